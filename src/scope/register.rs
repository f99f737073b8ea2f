//! The doors of a scope: what views do with it while it lives, and after; and its head.

use std::{
    future::poll_fn,
    mem,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use http::Response;

use super::{
    close::ResponseScope,
    closers::{Closer, CloserFailed, Early},
    failure::{Failure, FailureKind, named, quietly},
    machine::{Scope, Started},
    options::ShutdownKind,
    state::{Phase, State, Work},
};
use crate::{
    content_encoding,
    error::{BodyError, Cause},
    outcome::Outcome,
    supervisor::{Background, Member},
};

/// Owner and finisher each hold the scope, and so do a registry and a parent; more holders are views.
const OWN_HANDLES: usize = 2;

impl Scope {
    /// Registers a closer; after the end it runs at once, with the final ending.
    pub(crate) fn defer(self: &Arc<Self>, mut closer: Closer) -> u64 {
        let key = {
            let mut state = self.lock();
            state.used = true;
            state.work().next_key += 1;
            closer.key = state.work().next_key;
            if state.phase != Phase::Done {
                let key = closer.key;
                state.work().closers.push(closer);
                return key;
            }
            closer.key
        };
        self.run_late(closer);
        key
    }

    /// Registers a closer that the client does not wait for.
    pub(crate) fn defer_after_end(self: &Arc<Self>, mut closer: Closer) -> u64 {
        let mut state = self.lock();
        if state.phase == Phase::Done {
            drop(state);
            return self.defer(closer);
        }
        state.used = true;
        state.work().next_key += 1;
        closer.key = state.work().next_key;
        let key = closer.key;
        state.work().after_end.push(closer);
        key
    }

    /// Takes a closer back before it runs.
    pub(crate) fn take_closer(&self, key: u64) -> Option<Closer> {
        Self::take_from(&mut self.lock(), key)
    }

    fn take_from(state: &mut State, key: u64) -> Option<Closer> {
        let work = state.work.as_mut()?;
        [&mut work.closers, &mut work.after_end]
            .into_iter()
            .find_map(|list| {
                let at = list.iter().position(|closer| closer.key == key)?;
                Some(list.remove(at))
            })
    }

    /// Runs one closer now, on behalf of its key; `None` if it is taken already.
    ///
    /// Its failure counts like any other. A teardown that starts meanwhile waits for it.
    pub(crate) async fn close_now(self: Arc<Self>, key: u64) -> Option<Result<(), Cause>> {
        let (closer, ending, limit) = {
            let mut state = self.lock();
            let closer = Self::take_from(&mut state, key)?;
            // In the same critical section: the teardown must not overtake it.
            let limit = state.options(&self).closer_limit();
            let early = closer.early(limit);
            state.work().early.push(early);
            let ending = match state.phase {
                // Nothing is delivered yet: the safe reading is that the application gave up.
                Phase::Live => state.ending_as(&self, Outcome::Cancelled),
                Phase::Ending | Phase::Done => state.ending(&self),
            };
            (closer, ending, limit)
        };
        let mut alone = Alone::new(&self, &closer);
        alone.early = Some(key);
        let result = closer.run(ending, limit).await;
        let outcome = result.as_ref().map(|_| ()).map_err(|f| f.cause.clone());
        alone.ran = true;
        self.closer_ran(Some(key), result);
        Some(outcome)
    }

    /// A closer has run; on behalf of its key, if it ran `early`.
    pub(super) fn closer_ran(&self, early: Option<u64>, result: Result<(), CloserFailed>) {
        let mut state = self.lock();
        let work = state.work();
        let given_up = early.is_some_and(|key| work.early_over(key));
        let Err(failed) = result else {
            work.counts.closers_run += 1;
            return;
        };
        work.counts.closers_run += u64::from(failed.ran);
        // Of one that was given up the teardown has told.
        work.counts.closers_failed += u64::from(!given_up);
        if given_up && failed.has_overrun() {
            return;
        }
        // Behind the end nobody else tells: hooks have had their report.
        let late = (state.phase == Phase::Done && !given_up).then(|| failed.cause.clone());
        state.note_failure(failed.outcome, failed.cause);
        drop(state);
        if let Some(cause) = late {
            super::observe::failed_late(self, &cause);
        }
        if !failed.ran {
            self.closer_unrun();
            super::observe::unrun(self);
        }
    }

    /// Ready once no closer runs ahead of the teardown.
    pub(super) async fn early_done(&self) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let replaced = {
                let mut state = self.lock();
                if state.work().early.iter().all(|early| early.given_up) {
                    return Poll::Ready(());
                }
                state.work().early_waiter.replace(waker)
            };
            drop(replaced);
            Poll::Pending
        })
        .await;
    }

    /// The teardown cannot wait for them.
    pub(super) fn forget_early(&self) -> Vec<Early> {
        mem::take(&mut self.lock().work().early)
    }

    /// The teardown has waited long enough for some of them: whoever runs them does not poll them.
    pub(super) fn early_overran(&self) {
        let mut state = self.lock();
        let work = state.work();
        let mut overran = Vec::new();
        for early in &mut work.early {
            if early.left().is_some_and(|left| left.is_zero()) {
                early.given_up = true;
                overran.push((named("closer", early.at), early.limit));
            }
        }
        for (what, limit) in overran {
            let work = state.work();
            work.counts.closers_failed += 1;
            work.stuck.push(what.clone());
            let overran = Failure::new(FailureKind::OverranLimit { what, limit });
            state.note_failure(Outcome::Failed, overran.into());
        }
    }

    fn early_ended(&self, key: u64) {
        let waiter = {
            let mut state = self.lock();
            let work = state.work();
            work.early_over(key);
            work.early_waiter.take()
        };
        if let Some(waiter) = waiter {
            quietly(|| waiter.wake());
        }
    }

    fn run_late(self: &Arc<Self>, closer: Closer) {
        let ending = self.ending();
        if closer.is_sync() {
            let result = closer.run_sync(ending);
            self.closer_ran(None, result);
            return;
        }
        let limit = self.lock().options(self).closer_limit();
        let alone = Alone::new(self, &closer);
        let run = async move {
            let mut alone = alone;
            let result = closer.run(ending, limit).await;
            alone.ran = true;
            alone.scope.closer_ran(None, result);
        };
        let runtime = self.runtime.clone();
        if let Some(runtime) = runtime.or_else(|| tokio::runtime::Handle::try_current().ok()) {
            runtime.spawn(run);
        }
    }

    /// The head has come: notes the status, and what a shutdown would end the body with.
    ///
    /// Leaves a handle for `close` if something is registered, or may be.
    pub(super) fn at_head<B>(self: &Arc<Self>, response: &mut Response<B>) -> AtHead {
        // A body with a scope of its own, made in the handler: it becomes our child.
        let child = ResponseScope::take(response.extensions_mut());
        let has_child = child.is_some();
        // One that is our child already counts only for what is registered with it.
        let adopted = child.is_some_and(|child| {
            child.answers.store(true, Ordering::Release);
            if self.cloned.load(Ordering::Acquire) {
                self.hear_of_answer(&child);
            }
            self.adopt(child.clone()) || child.lock().used
        });
        // A movable child tells its parent that this is the answer.
        let has_parent = self.parent.get().is_some();
        let own =
            OWN_HANDLES + usize::from(self.registration.is_listed()) + usize::from(has_parent);
        // Counted before the lock is taken: whoever went before has left its word in there.
        let views = Arc::strong_count(self) > own || Arc::weak_count(self) > 0;
        let (used, untouched, end_now) = {
            let mut state = self.lock();
            state.used |= adopted;
            state.status = Some(response.status());
            let is_encoded = || content_encoding::is_encoded(response.headers());
            state.encoded = (state.used || views) && is_encoded();
            let policy = state.options(self).shutdown.clone();
            let end_now = match policy.as_deref().map(|policy| (policy, &policy.kind)) {
                Some((policy, ShutdownKind::EndNow { .. })) => {
                    let content_type = response.headers().get(http::header::CONTENT_TYPE);
                    let content_type = content_type.and_then(|value| value.to_str().ok());
                    let frame = policy.frame_for(content_type.unwrap_or_default());
                    state.work().last_frame = frame.filter(|_| !is_encoded());
                    true
                }
                Some((_, ShutdownKind::Abort)) => true,
                Some((_, ShutdownKind::Finish { .. })) | None => false,
            };
            (state.used, state.is_untouched(self), end_now)
        };
        let told = has_child || (has_parent && self.movable);
        if used || told || views {
            let extensions = response.extensions_mut();
            extensions.insert(ResponseScope::new(self.clone()));
        }
        if end_now && self.supervisor().is_draining() {
            self.clone().shut_down();
        }
        let alone = own == OWN_HANDLES && !self.movable && self.connection.upload().is_none();
        match (used, views) {
            (true, _) => AtHead::Used,
            (false, false) if alone && untouched && !told => AtHead::Unreached,
            (false, _) => AtHead::Unused,
        }
    }

    /// Makes a standalone body's scope known to the layers its response passes, and to `close`.
    pub(crate) fn announce_in(scope: Arc<Self>, extensions: &mut http::Extensions) {
        extensions.insert(ResponseScope::new(scope));
    }

    /// Keeps the scope open past its body; false if it has ended.
    pub(crate) fn hold(&self) -> bool {
        let mut state = self.lock();
        let live = state.phase == Phase::Live;
        if live {
            state.used = true;
            state.work().holds += 1;
        }
        live
    }

    /// A hold goes, with what it makes of the outcome.
    pub(crate) fn release_hold(self: &Arc<Self>, outcome: Outcome) {
        let (body_end, held) = {
            let mut state = self.lock();
            state.work().holds -= 1;
            if state.work().held.is_complete() {
                state.work().held = outcome;
            }
            if state.phase != Phase::Live || state.work().holds > 0 {
                return;
            }
            let work = state.work();
            (work.body_end.clone(), work.held)
        };
        match body_end {
            // The body ended badly before: the first cause wins.
            Some((first, cause)) if !first.is_complete() => self.end_held(first, cause),
            _ if !held.is_complete() => {
                self.interrupt(held, None);
            }
            Some((first, cause)) => self.end_held(first, cause),
            None => {}
        }
    }

    fn end_held(self: &Arc<Self>, outcome: Outcome, cause: Option<Cause>) {
        if self.start_end(outcome, cause.map(BodyError::from)) == Started::WithoutOwner {
            super::teardown::detach(self.clone());
        }
    }
}

impl Work {
    /// The closer with this key does not run ahead any more. True if the teardown had given it up.
    fn early_over(&mut self, key: u64) -> bool {
        let at = self.early.iter().position(|early| early.key == key);
        at.is_some_and(|at| self.early.swap_remove(at).given_up)
    }
}

/// How a scope stands when its head comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtHead {
    /// Something is registered.
    Used,
    /// Nothing yet.
    Unused,
    /// Nothing, nobody is left who could, and nobody hears of the end: neither its start nor how.
    Unreached,
}

/// A closer that runs outside the teardown: registered after the end, or run early by its key.
///
/// The drain waits for it. Its drop unfinished means that the runtime is gone, or that whoever ran
/// it early gave up.
struct Alone {
    scope: Arc<Scope>,
    _background: Background,
    ran: bool,
    /// The teardown waits for it, by its key.
    early: Option<u64>,
}

impl Alone {
    fn new(scope: &Arc<Scope>, closer: &Closer) -> Self {
        let name = scope.named(&closer.name());
        Self {
            scope: scope.clone(),
            _background: scope.supervisor().background(name),
            ran: false,
            early: None,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !self.ran {
            self.scope.closer_unrun();
            super::observe::unrun(&self.scope);
        }
        if let Some(key) = self.early {
            self.scope.early_ended(key);
        }
    }
}
