//! The threads: started when needed, bounded in number, retired when idle.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    thread,
};

use super::{
    config::{Config, PoolBuilder},
    error::BridgeError,
    session::Session,
    stuck::Stuck,
    worker::{Wake, Worker},
};

/// The threads that requests with sync code share, one request at a time on each.
///
/// A pool has no thread until the first request needs one, never more than
/// [`max_threads`](PoolBuilder::max_threads), and lets a thread go that was idle for
/// [`idle_timeout`](PoolBuilder::idle_timeout). A request that finds every thread taken waits in
/// line, first come first served, for at most [`wait_limit`](PoolBuilder::wait_limit).
///
/// Every request gets an event loop of its own: it is made new for each, so that no task, timer
/// or socket of one request can be seen by the next on the same thread. What sync code leaves in
/// a **thread-local** of its own cannot be cleared from outside and is seen by later requests; use
/// [`Cx::insert`](super::Cx::insert) instead.
///
/// Clones share the threads.
///
/// # On drop
/// Once the last clone is gone, with all contexts made from it, idle threads end at once.
#[derive(Clone)]
pub struct Pool {
    handle: Arc<Handle>,
}

impl Pool {
    /// A pool with the default settings, of its own.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Sets up a pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder {
            config: Config::default(),
        }
    }

    pub(super) fn with(config: Config) -> Self {
        Self {
            handle: Arc::new(Handle {
                shared: Arc::new(Shared {
                    config,
                    state: Mutex::default(),
                }),
            }),
        }
    }

    /// The pool of the process, with the default settings.
    ///
    /// It serves layers that were not given another, and sync bodies made without a layer.
    pub fn global() -> Self {
        static GLOBAL: LazyLock<Pool> = LazyLock::new(Pool::new);
        GLOBAL.clone()
    }

    /// The threads there are now, busy and idle.
    pub fn threads(&self) -> usize {
        self.handle.shared.lock().threads
    }

    /// The threads that wait for a request.
    pub fn idle(&self) -> usize {
        self.handle.shared.lock().idle.len()
    }

    /// The requests that wait for a thread.
    pub fn waiting(&self) -> usize {
        self.handle.shared.lock().queue.len()
    }

    /// Sync code still running for requests that have ended.
    ///
    /// Meant for a drain: what is in here keeps its thread, and nothing can stop it from outside.
    pub fn stuck(&self) -> Vec<Stuck> {
        let serving: Vec<_> = {
            let state = self.handle.shared.lock();
            state.serving.values().filter_map(Weak::upgrade).collect()
        };
        serving
            .iter()
            .filter(|session| session.is_closing())
            .filter_map(|session| session.stuck())
            .collect()
    }

    pub(super) fn config(&self) -> &Config {
        &self.handle.shared.config
    }

    /// Finds a thread for the session: an idle one, a new one, or a place in the line.
    pub(super) fn submit(&self, session: Arc<Session>) {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        let Err(session) = state.wake_idle(session) else {
            return;
        };
        if state.threads >= shared.config.max_threads {
            state.queue.push_back(session);
            return;
        }
        shared.start(state, session);
    }

    /// Whether the session waits for a thread to come free.
    pub(super) fn is_in_line(&self, session: &Arc<Session>) -> bool {
        let state = self.handle.shared.lock();
        state.queue.iter().any(|entry| Arc::ptr_eq(entry, session))
    }

    /// Takes a session out of the line that nobody waits for any more.
    pub(super) fn forget(&self, session: &Arc<Session>) {
        let mut removed = Vec::new();
        let mut state = self.handle.shared.lock();
        // Asked under the lock: it may have been wanted again since, and entered anew.
        if !session.is_queued() {
            let queue = std::mem::take(&mut state.queue);
            for entry in queue {
                if Arc::ptr_eq(&entry, session) {
                    removed.push(entry);
                } else {
                    state.queue.push_back(entry);
                }
            }
        }
        drop(state);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .field("max_threads", &self.config().max_threads)
            .finish_non_exhaustive()
    }
}

/// What clones of the pool share; threads hold only the [`Shared`] in it, so its end is theirs.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for idle in std::mem::take(&mut state.idle) {
            let _ = idle.wake.send(Wake::Exit);
        }
    }
}

pub(super) struct Shared {
    pub(super) config: Config,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread for the session.
    pub(super) fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State>, session: Arc<Session>) {
        state.threads += 1;
        state.last_id += 1;
        let id = state.last_id;
        state.serving.insert(id, Arc::downgrade(&session));
        drop(state);

        let name = format!("{}-{id}", self.config.thread_name);
        let mut builder = thread::Builder::new().name(name);
        if let Some(size) = self.config.stack_size {
            builder = builder.stack_size(size);
        }
        let worker = Worker::new(Arc::clone(self), id);
        let first = Arc::clone(&session);
        if let Err(error) = builder.spawn(move || worker.run(first)) {
            // The closure was dropped, and the worker in it has signed off.
            self.not_started(session, error);
        }
    }

    /// There is no new thread after all: those that there are have to do.
    fn not_started(&self, session: Arc<Session>, error: io::Error) {
        let mut state = self.lock();
        // One may have come free since: it found nobody in line.
        let Err(session) = state.wake_idle(session) else {
            return;
        };
        state.queue.push_front(session);
        if state.threads == 0 {
            // Nobody is left who would serve the line.
            let stranded = std::mem::take(&mut state.queue);
            drop(state);
            let error = BridgeError::start(error);
            for session in stranded {
                session.fail(&error);
            }
        }
    }
}

/// Invariant: a session is in line only while every thread is taken, and there are `max_threads` or
/// another could not be started.
#[derive(Default)]
pub(super) struct State {
    pub(super) threads: usize,
    pub(super) last_id: u64,
    /// The last to become idle is the first to be used, so that the others can retire.
    pub(super) idle: Vec<Idle>,
    pub(super) queue: VecDeque<Arc<Session>>,
    pub(super) serving: HashMap<u64, Weak<Session>>,
    pub(super) closed: bool,
}

impl State {
    /// Gives the session to an idle thread, or back.
    fn wake_idle(&mut self, mut session: Arc<Session>) -> Result<(), Arc<Session>> {
        while let Some(idle) = self.idle.pop() {
            let served = Arc::downgrade(&session);
            match idle.wake.send(Wake::Serve(session)) {
                Ok(()) => {
                    self.serving.insert(idle.id, served);
                    return Ok(());
                }
                // A thread on its way out, that could not leave the list yet.
                Err(mpsc::SendError(Wake::Serve(back))) => session = back,
                Err(mpsc::SendError(Wake::Exit)) => unreachable!("a session was sent"),
            }
        }
        Err(session)
    }
}

pub(super) struct Idle {
    pub(super) id: u64,
    pub(super) wake: mpsc::Sender<Wake>,
}

#[cfg(test)]
mod tests;
