//! Every live response, the shutdown signal, the drain, and what it found.
//!
//! A scope registers when it opens and is released when nothing of it runs any more: closers,
//! children, tasks, threads. The supervisor knows scopes only as [`Member`]s.

mod drain;
mod registry;

use std::{
    cmp::Reverse,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Method, Uri};
use slab::Slab;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use drain::DrainReport;
#[cfg(feature = "net")]
pub(crate) use drain::{LEAST, reserve_of};
pub(crate) use registry::Registration;
use registry::Registry;

use drain::Tally;

use crate::scope::{Lazy, quietly};

/// What the supervisor asks of a scope.
pub(crate) trait Member: Send + Sync {
    /// What it holds right now.
    fn snapshot(&self) -> LiveScope;
    /// The shutdown has started: apply the policy.
    fn shut_down(self: Arc<Self>);
    /// The time is up: end it whatever it does.
    fn abort(self: Arc<Self>);
    /// Whether its client may yet be answered if its server goes on: not if it has been ended and is not
    /// asked for that, nor if it was reported.
    fn has_an_answer(&self) -> bool;
    /// What still runs, by name, for the report.
    fn still_running(&self) -> Vec<String>;
}

/// How a scope that was released had ended, as far as a drain counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Released {
    #[default]
    ByItself,
    Ended,
    Aborted,
}

/// A live response, as [`Supervisor::snapshot`] lists it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveScope {
    /// Its number, unique under this supervisor.
    pub id: u64,
    /// The request's method.
    pub method: Method,
    /// The request's target.
    pub uri: Uri,
    /// Since the call; `None` where no clock is read (a layer with neither hook nor supervisor, its own or that of
    /// `net::serve`).
    pub age: Option<Duration>,
    /// Body bytes handed to the server so far.
    pub bytes: u64,
    /// Data frames handed to the server so far.
    pub frames: u64,
    /// Tasks running now.
    pub tasks: usize,
    /// Closers registered and not yet run.
    pub closers: usize,
    /// How far it has come.
    pub phase: Phase,
}

/// How far a response has come that is still there, in a [`LiveScope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Its handler, its body or a hold is under way.
    Live,
    /// Its end has started: tasks are joined, closers run.
    Ending,
    /// It was reported, with a task that does not stop.
    Stuck,
}

impl Phase {
    /// The name in lower case, for dashboards: `"live"`, `"ending"`, `"stuck"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Live => "live",
            Phase::Ending => "ending",
            Phase::Stuck => "stuck",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Knows every live response of the layers it is shared by, and drains them at shutdown.
///
/// Cheap to clone; clones are one supervisor. Give it to layers with
/// [`supervisor`](crate::scope::ScopeLayer::supervisor). A layer made without one belongs to its
/// server's, under [`net::serve`](crate::net::serve); elsewhere it has a private one, and nobody can
/// drain that.
///
/// It drains once: there is no way back from a shutdown, and what is to start anew, or to stop by itself,
/// has a supervisor of its own.
///
/// **On drop**: dropping the last clone stops nothing; scopes keep their supervisor alive.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    /// Closers run outside their scope's teardown, by name.
    background: Mutex<Slab<Kept>>,
    /// The same as the token's state, cheap to read for every request.
    is_draining: AtomicBool,
    draining: Signal,
    aborting: Signal,
    changed: Notify,
    tally: Mutex<Tally>,
}

/// A token of ours, and one to hand out: whose waker panics there keeps nobody of ours from being told.
#[derive(Default)]
struct Signal {
    own: Token,
    handed_out: Token,
}

/// Made when asked for: a body without a layer has a supervisor of its own, whom nobody asks.
#[derive(Default)]
struct Token(Mutex<Lazy>);

impl Token {
    fn get(&self) -> CancellationToken {
        self.lock().token()
    }

    fn fire(&self) {
        let token = self.lock().fire();
        if let Some(token) = token {
            quietly(|| token.cancel());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lazy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signal {
    fn fire(&self) {
        self.handed_out.fire();
        self.own.fire();
    }
}

/// A piece of work outside the teardown of its scope.
struct Kept {
    name: String,
    /// A scope of another supervisor, to be aborted with our own.
    member: Option<Weak<dyn Member>>,
}

impl Supervisor {
    /// A supervisor with nothing to supervise yet.
    pub fn new() -> Self {
        Self::with(Registry::new())
    }

    /// A supervisor that nobody can ask or drain: it lists nothing.
    pub(crate) fn private() -> Self {
        Self::with(Registry::numbers())
    }

    fn with(registry: Registry) -> Self {
        Self {
            inner: Arc::new(Inner {
                registry,
                background: Mutex::default(),
                is_draining: AtomicBool::new(false),
                draining: Signal::default(),
                aborting: Signal::default(),
                changed: Notify::new(),
                tally: Mutex::new(Tally::default()),
            }),
        }
    }

    /// How many responses are live.
    pub fn active(&self) -> usize {
        self.inner.registry.len()
    }

    /// What is live right now, oldest first. Locks a part of the registry at a time.
    pub fn snapshot(&self) -> Vec<LiveScope> {
        let mut live: Vec<_> = self
            .inner
            .registry
            .members()
            .iter()
            .map(|member| member.snapshot())
            .collect();
        // Threads number theirs apart.
        live.sort_by_key(|scope| (Reverse(scope.age), scope.id));
        live
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.inner.is_draining.load(Ordering::Acquire)
    }

    /// Starts the shutdown without waiting: signals fire and each scope's policy is applied, limits
    /// ([`Shutdown::finish_within`](crate::Shutdown::finish_within)) counting from now.
    ///
    /// [`Supervisor::drain`] does this first; call it yourself to announce a shutdown earlier.
    pub fn begin_shutdown(&self) {
        self.announce();
        for member in self.inner.registry.members() {
            member.shut_down();
        }
    }

    fn announce(&self) {
        self.inner.is_draining.store(true, Ordering::Release);
        self.inner.draining.fire();
    }

    /// A token that fires when the shutdown begins. A child: cancelling it stops nobody else.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.inner.draining.handed_out.get().child_token()
    }

    /// The same, for what must not depend on the wakers of others.
    pub(crate) fn own_shutdown_token(&self) -> CancellationToken {
        self.inner.draining.own.get().child_token()
    }

    /// Ready when a drain has run out of patience, and who could be answered has been: servers close their
    /// connections then. Never, if all responses end without that.
    ///
    /// **On drop**: cancel-safe; nothing is left behind.
    pub fn aborting(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner.aborting.handed_out.get().cancelled_owned()
    }

    /// The same, for what must not depend on the wakers of others.
    #[cfg(feature = "net")]
    pub(crate) fn own_aborting(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner.aborting.own.get().cancelled_owned()
    }

    /// Enters a new scope; `build` makes it around its registration.
    pub(crate) fn register<M: Member + 'static>(
        &self,
        build: impl FnOnce(Registration) -> Arc<M>,
    ) -> Arc<M> {
        self.inner.registry.insert(build)
    }

    /// The number of a scope, unique under this supervisor.
    pub(crate) fn number(&self, registration: &Registration) -> u64 {
        self.inner.registry.number(registration)
    }

    /// Takes a scope off the list: nothing of it runs any more.
    pub(crate) fn release(&self, registration: &Registration, how: Released, unrun: u64) {
        // Counted under the shard's lock: a drain that sees the scope gone sees it counted.
        let removed = self.inner.registry.remove(registration, || {
            if self.is_draining() {
                self.tally().count(how, unrun);
            }
        });
        drop(removed);
        self.tell_drains();
    }

    /// They look at what is left.
    fn tell_drains(&self) {
        if self.is_draining() {
            quietly(|| self.inner.changed.notify_waiters());
        }
    }

    /// One more closer did not run, of a scope that was released before.
    pub(crate) fn count_unrun(&self) {
        if self.is_draining() {
            self.tally().count_unrun();
        }
    }

    /// Keeps a piece of work outside its scope's teardown known until the guard drops.
    pub(crate) fn background(&self, name: String) -> Background {
        self.keep(Kept { name, member: None })
    }

    /// The same for a scope that has a supervisor of its own.
    pub(crate) fn background_scope(&self, name: String, member: Weak<dyn Member>) -> Background {
        let member = Some(member);
        self.keep(Kept { name, member })
    }

    fn keep(&self, kept: Kept) -> Background {
        Background {
            key: self.in_background().insert(kept),
            supervisor: self.clone(),
        }
    }

    fn scopes_in_background(&self) -> Vec<Arc<dyn Member>> {
        let background = self.in_background();
        let members = background
            .iter()
            .filter_map(|(_, kept)| kept.member.as_ref());
        members.filter_map(Weak::upgrade).collect()
    }

    fn in_background(&self) -> MutexGuard<'_, Slab<Kept>> {
        let background = self.inner.background.lock();
        background.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody can ask or drain it.
    pub(crate) fn is_private(&self) -> bool {
        self.inner.registry.lists_nothing()
    }

    /// Whether this is the same supervisor.
    pub(crate) fn is(&self, other: &Supervisor) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn is_idle(&self) -> bool {
        self.active() == 0 && self.in_background().is_empty()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.inner
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("active", &self.active())
            .field("draining", &self.is_draining())
            .finish()
    }
}

/// Keeps the drain waiting for one piece of work.
#[derive(Debug)]
pub(crate) struct Background {
    supervisor: Supervisor,
    key: usize,
}

impl Drop for Background {
    fn drop(&mut self) {
        let kept = self.supervisor.in_background().try_remove(self.key);
        drop(kept);
        self.supervisor.tell_drains();
    }
}
