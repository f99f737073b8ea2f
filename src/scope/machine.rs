//! The state of one scope, and the steps of its life: live, ending, done.
//!
//! Invariants:
//! 1. `phase` only goes forward, under the lock. Whoever moves it to `Ending` decided the outcome.
//! 2. The owner (future, then body) runs the teardown, also when someone else started the end; once
//!    the owner has gone (`owner_gone`, possible only with holds out) whoever starts the end
//!    spawns it.
//! 3. "No closer left" and "done" are one critical section (`next_step`), so that no closer is
//!    registered too late to run.
//! 4. No lock is held while code of the application runs: tokens are cancelled, tasks aborted,
//!    wakers woken and values dropped outside.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    time::Instant,
};

use http::{Extensions, Method, Uri, Version};
use tokio::runtime::{EnterGuard, Handle};

use super::{
    connection::Connection,
    failure::{ended, quietly},
    judge::Kept,
    limit,
    options::Options,
    span::Span,
    state::{Phase, ShutBy, State},
    teardown,
    verdict::Verdict,
};
use crate::{
    error::{BodyError, Cause},
    outcome::{Ending, Outcome},
    supervisor::{Member, Registration, Supervisor},
};

/// Everything one request owns. Views are doors into it; the owner's end is its end.
pub(crate) struct Scope {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) connection: Connection,
    pub(super) runtime: Option<Handle>,
    /// Those it was opened with; see [`State::options`].
    pub(super) options: Arc<Options>,
    pub(super) registration: Registration,
    /// Set at the opening for a cloned request, at the head for a standalone body.
    pub(super) parent: OnceLock<Weak<Scope>>,
    /// The extensions entry was cloned: later inner calls get children.
    pub(super) cloned: AtomicBool,
    /// The end was started by someone other than the owner, who should look.
    pub(super) interrupted: AtomicBool,
    /// Its response is its parent's, and not one of several attempts.
    pub(super) answers: AtomicBool,
    /// Its owner stands in a box and can be taken from the server.
    pub(super) movable: bool,
    /// The client has left, and the work goes on without it.
    pub(super) left: AtomicBool,
    pub(super) bytes: AtomicU64,
    pub(super) frames: AtomicU64,
    state: Mutex<State>,
}

/// What a scope is opened with. References: it is copied once, to where it stays.
pub(super) struct Opening<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) version: Version,
    pub(super) extensions: &'a Extensions,
    pub(super) options: &'a Arc<Options>,
    pub(super) movable: bool,
}

impl Scope {
    /// Opens a scope under its supervisor, and under `parent` for a cloned request.
    pub(super) fn open(opening: &Opening<'_>, parent: Option<&Arc<Scope>>) -> Arc<Self> {
        let options = opening.options;
        let connection = Connection::of(opening.extensions);
        let servers = connection.supervisor().cloned();
        let private = options.supervisor.is_private();
        let supervisor = servers.as_ref().filter(|_| private);
        let clock = options.clock || supervisor.is_some();
        let supervisor = supervisor.unwrap_or(&options.supervisor);
        let span = Span::current();
        let scope = supervisor.register(|registration| {
            // Not `new`, which would copy it to where it stays: it is large.
            Arc::new_cyclic(|_| Scope {
                method: opening.method.clone(),
                uri: opening.uri.clone(),
                version: opening.version,
                connection,
                runtime: Handle::try_current().ok(),
                options: options.clone(),
                registration,
                parent: OnceLock::new(),
                cloned: AtomicBool::new(false),
                interrupted: AtomicBool::new(false),
                answers: AtomicBool::new(false),
                movable: opening.movable,
                left: AtomicBool::new(false),
                bytes: AtomicU64::new(0),
                frames: AtomicU64::new(0),
                state: Mutex::new(State::new(span, clock.then(Instant::now))),
            })
        });
        super::observe::opened();
        if let Some(parent) = parent {
            parent.adopt(scope.clone());
        } else if let Some(server) = servers.filter(|server| !server.is(scope.supervisor())) {
            let kept = server.background_scope(scope.named("response"), scope.as_member());
            scope.lock().work().adopted = Some(kept);
        }
        scope
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of the layers; if they were given none, that of the server, if there is one.
    pub(crate) fn supervisor(&self) -> &Supervisor {
        let own = &self.options.supervisor;
        match self.connection.supervisor() {
            Some(server) if own.is_private() => server,
            _ => own,
        }
    }

    /// The connection of an HTTP/1.0 client: without a length, only a reset tells it a broken body from
    /// a whole one.
    pub(super) fn ends_with_its_connection(&self) -> Option<&Connection> {
        (self.version < Version::HTTP_11).then_some(&self.connection)
    }

    /// The connection, if what it has yet to write is this response: on HTTP/2 there are others.
    pub(super) fn connection_writes_in_order(&self) -> Option<&Connection> {
        (self.version < Version::HTTP_2).then_some(&self.connection)
    }

    pub(super) fn as_member(self: &Arc<Self>) -> Weak<dyn Member> {
        let this: Weak<Self> = Arc::downgrade(self);
        this
    }

    /// Something of this request, for reports.
    pub(super) fn named(&self, what: &str) -> String {
        format!("{} {}: {what}", self.method, self.uri.path())
    }

    pub(crate) fn id(&self) -> u64 {
        self.supervisor().number(&self.registration)
    }

    /// Starts the end, once: the first cause wins.
    ///
    /// An end from outside is told to the owner, who may be polled by others at this moment, and to
    /// the tasks and what they feed at once: the owner may not be polled for long.
    pub(super) fn start(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        outcome: Outcome,
        error: Option<BodyError>,
        from_outside: bool,
    ) -> Started {
        if state.phase != Phase::Live {
            // Before the error, which is the application's.
            drop(state);
            return Started::Before;
        }
        state.begin(outcome, error.as_ref());
        // As it is decided: a task may have failed under a body that ended by itself.
        let (outcome, cause) = (state.outcome, state.cause.clone());
        let clean = outcome.is_complete();
        self.interrupted.store(from_outside, Ordering::Release);
        // Read in the same critical section that moves the phase: an owner that goes later
        // finds the end started, and tears down itself.
        let owner_gone = state.owner_gone;
        let waker = state.waker.take_if(|_| from_outside);
        let signals = state.signals.end_started(clean);
        let shut_by = if clean {
            ShutBy::Nobody
        } else {
            state.shut_by()
        };
        let (children, tasks) = match &mut state.work {
            Some(work) if !clean => (
                work.children.clone(),
                from_outside.then(|| work.tasks.cancel_all()),
            ),
            _ => (Vec::new(), None),
        };
        drop(state);
        signals.fire();
        if let Some(tasks) = tasks {
            self.cancel_unpolled(tasks);
        }
        for child in children {
            child.end_with_parent(outcome, cause.clone(), shut_by.clone());
        }
        if owner_gone {
            return Started::WithoutOwner;
        }
        if let Some(waker) = waker {
            quietly(|| waker.wake());
        }
        Started::UnderOwner
    }

    /// Ends the scope from outside its owner: cancellation, shutdown, a parent's end.
    ///
    /// False if it had ended.
    pub(crate) fn interrupt(self: &Arc<Self>, outcome: Outcome, cause: Option<Cause>) -> bool {
        // Before the lock: it asks the application's error for its sources.
        let error = BodyError::from(cause.unwrap_or_else(|| ended(outcome)));
        self.interrupt_under(self.lock(), outcome, error)
    }

    /// The same in a critical section that has begun, which it ends.
    pub(super) fn interrupt_under(
        self: &Arc<Self>,
        state: MutexGuard<'_, State>,
        outcome: Outcome,
        error: BodyError,
    ) -> bool {
        match self.start(state, outcome, Some(error), true) {
            Started::Before => return false,
            Started::WithoutOwner => teardown::detach(self.clone()),
            Started::UnderOwner => self.take_over(),
        }
        true
    }

    /// The owner's body (or its handler future) has come to an end.
    ///
    /// If the end has started, now or before, the owner has to tear down; if holds keep the scope
    /// open, it just leaves.
    pub(super) fn owner_ended(
        self: &Arc<Self>,
        outcome: Outcome,
        error: Option<BodyError>,
        end: OwnerEnd,
    ) -> Parting {
        let mut state = self.lock();
        // For the last time if there are holds: the client is shown this end now.
        state.look_for_client(self);
        state.owner_ended = true;
        state.speaks = end.speaks;
        state.kept = end.kept;
        let live = state.phase == Phase::Live;
        let Some(work) = state.work.as_mut().filter(|work| live && work.holds > 0) else {
            if !live {
                state.failed_behind(outcome, error.as_ref());
            }
            self.start(state, outcome, error, false);
            return Parting::TearDown;
        };
        // No join waits for the tasks now: what has failed by now has broken the body. The first cause wins.
        let first = work.tasks.failure().cloned();
        let first = first.map(|(outcome, cause)| (outcome, Some(cause)));
        let cause = error.as_ref().map(BodyError::cause);
        let (outcome, first) = first.unwrap_or_else(|| (outcome, cause.cloned()));
        work.body_end = Some((outcome, first.clone()));
        // Behind what it could hide.
        state.add_errors(error.as_ref());
        let signals = state.signals.body_ended(outcome.is_complete());
        drop(state);
        signals.fire();
        Parting::Leave(self.broken(outcome, first.map(BodyError::from)))
    }

    /// The owner is about to go while holds are out. True if the end has started meanwhile, and nobody else
    /// tears down.
    pub(super) fn leave_to_holds(&self) -> bool {
        let mut state = self.lock();
        state.owner_gone = true;
        // What is shown now waits for no teardown.
        let ended = state.work.as_ref().and_then(|work| work.body_end.as_ref());
        if let Some(&(outcome, _)) = ended {
            state.note_shown(self, outcome);
        }
        state.phase == Phase::Ending
    }

    pub(super) fn ending(&self) -> Ending {
        self.lock().ending(self)
    }

    /// Goes into the runtime of the call: see [`limit::enter`].
    pub(crate) fn enter(&self) -> Option<EnterGuard<'_>> {
        limit::enter(self.runtime.as_ref())
    }

    /// Remembers who polls the owner. The caller looks at `interrupted` again afterwards.
    pub(super) fn watch(&self, waker: &Waker) {
        let known = |known: &Waker| known.will_wake(waker);
        if self.lock().waker.as_ref().is_some_and(known) {
            return;
        }
        let waker = waker.clone();
        let old = self.lock().waker.replace(waker);
        drop(old);
    }

    /// Has the server look whether it wants a frame.
    pub(super) fn wake_poller(&self) {
        let Some(waker) = self.lock().waker.take() else {
            return;
        };
        quietly(|| waker.wake_by_ref());
        let mut waker = Some(waker);
        let mut state = self.lock();
        // Unless it has come meanwhile, with another.
        if state.waker.is_none() {
            state.waker = waker.take();
        }
        drop(state);
    }

    #[inline]
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }
}

/// Whether a call started the end, and who tears down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// Someone else had started it.
    Before,
    /// The owner tears down.
    UnderOwner,
    /// The owner has gone: the caller tears down.
    WithoutOwner,
}

/// What an owner can still show when it has told its end.
#[derive(Clone, Copy, Default)]
pub(super) struct OwnerEnd {
    /// A frame that nobody promised.
    pub(super) speaks: bool,
    /// The last data, once the teardown agrees.
    pub(super) kept: Option<Kept>,
}

/// What an owner does that has told its end.
pub(super) enum Parting {
    /// It tears down, and the verdict is to come.
    TearDown,
    /// It leaves; with the verdict on a body that is broken as it is now.
    Leave(Option<Verdict>),
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("id", &self.id())
            .field("method", &self.method)
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
