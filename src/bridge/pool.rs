//! The threads: started when needed, bounded in number, retired when idle.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use tokio::runtime::Runtime;

use super::{error::BridgeError, local, session::Session, stuck::Stuck};

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

/// How a [`Pool`] is made.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PoolBuilder {
    config: Config,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) max_threads: usize,
    pub(super) wait_limit: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_depth: usize,
    pub(super) close_limit: Duration,
    pub(super) closer_limit: Duration,
    pub(super) stack_size: Option<usize>,
    pub(super) thread_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_threads: 128,
            wait_limit: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            max_depth: 16,
            close_limit: Duration::from_secs(30),
            closer_limit: Duration::from_secs(30),
            stack_size: None,
            thread_name: "bridge".into(),
        }
    }
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

    /// The pool of the process, with the default settings.
    ///
    /// It serves sync bodies that were made without a layer; nothing else uses it unasked.
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
        if let Some(idle) = state.idle.pop() {
            state.serving.insert(idle.id, Arc::downgrade(&session));
            // The receiver only goes away once its entry is off the list, which it was not.
            let _ = idle.wake.send(Wake::Serve(session));
            return;
        }
        if state.threads >= shared.config.max_threads {
            state.queue.push_back(session);
            return;
        }
        state.threads += 1;
        state.last_id += 1;
        let id = state.last_id;
        state.serving.insert(id, Arc::downgrade(&session));
        drop(state);

        let mut builder =
            thread::Builder::new().name(format!("{}-{id}", shared.config.thread_name));
        if let Some(size) = shared.config.stack_size {
            builder = builder.stack_size(size);
        }
        let worker = Worker {
            shared: Arc::clone(shared),
            id,
            signed_off: false,
        };
        let first = Arc::clone(&session);
        if let Err(error) = builder.spawn(move || worker.run(first)) {
            // The closure was dropped, and the worker in it has signed off.
            let mut state = shared.lock();
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

impl PoolBuilder {
    /// The most threads there may be at a time (default 128, at least 1).
    ///
    /// A request keeps its thread from its first bridge call to the end of its response body.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.config.max_threads = threads.max(1);
        self
    }

    /// How long a request waits for a thread (default 5 s).
    pub fn wait_limit(mut self, limit: Duration) -> Self {
        self.config.wait_limit = limit;
        self
    }

    /// How long an idle thread is kept (default 10 s).
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// How many sync calls may be nested on one thread (default 16, at least 1).
    pub fn max_depth(mut self, depth: usize) -> Self {
        self.config.max_depth = depth.max(1);
        self
    }

    /// How long [`Context::close`](super::Context::close) waits for sync code (default 30 s).
    pub fn close_limit(mut self, limit: Duration) -> Self {
        self.config.close_limit = limit;
        self
    }

    /// How long one closer may wait in `block_on` (default 30 s).
    pub fn closer_limit(mut self, limit: Duration) -> Self {
        self.config.closer_limit = limit;
        self
    }

    /// The stack of each thread in bytes (default: that of the standard library, 2 MiB).
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.config.stack_size = Some(bytes);
        self
    }

    /// What thread names begin with (default `bridge`).
    pub fn thread_name(mut self, prefix: impl Into<String>) -> Self {
        self.config.thread_name = prefix.into();
        self
    }

    /// Makes the pool; no thread is started yet.
    #[must_use]
    pub fn build(self) -> Pool {
        Pool {
            handle: Arc::new(Handle {
                shared: Arc::new(Shared {
                    config: self.config,
                    state: Mutex::default(),
                }),
            }),
        }
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

struct Shared {
    config: Config,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Invariant: a session is in line only while every thread is taken and there are `max_threads`.
#[derive(Default)]
struct State {
    threads: usize,
    last_id: u64,
    /// The last to become idle is the first to be used, so that the others can retire.
    idle: Vec<Idle>,
    queue: VecDeque<Arc<Session>>,
    serving: HashMap<u64, Weak<Session>>,
    closed: bool,
}

struct Idle {
    id: u64,
    wake: mpsc::Sender<Wake>,
}

enum Wake {
    Serve(Arc<Session>),
    Exit,
}

struct Worker {
    shared: Arc<Shared>,
    id: u64,
    signed_off: bool,
}

impl Worker {
    fn run(mut self, first: Arc<Session>) {
        let (wake, woken) = mpsc::channel();
        let mut next = Some(first);
        let mut runtime = None;
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => match self.wait(&woken) {
                    Some(session) => session,
                    None => return,
                },
            };
            let finished = match runtime.take().map_or_else(new_loop, Ok) {
                Ok(fresh) => {
                    let served = local::serve(session, fresh);
                    runtime = served.unused;
                    served.finished
                }
                Err(error) => {
                    session.fail(&BridgeError::start(error));
                    None
                }
            };
            let Ok(coming) = self.check_in(&wake) else {
                drop(finished);
                return;
            };
            next = coming;
            // Whoever waited for the close finds the thread free, or already at work again.
            drop(finished);
            if next.is_none() && runtime.is_none() {
                runtime = new_loop().ok();
            }
        }
    }

    /// The next in line, or a place among the idle; `Err` when the pool is gone.
    fn check_in(&self, wake: &mpsc::Sender<Wake>) -> Result<Option<Arc<Session>>, ()> {
        let mut state = self.shared.lock();
        state.serving.remove(&self.id);
        if let Some(session) = state.queue.pop_front() {
            state.serving.insert(self.id, Arc::downgrade(&session));
            return Ok(Some(session));
        }
        if state.closed {
            return Err(());
        }
        state.idle.push(Idle {
            id: self.id,
            wake: wake.clone(),
        });
        Ok(None)
    }

    fn wait(&mut self, woken: &mpsc::Receiver<Wake>) -> Option<Arc<Session>> {
        let mut wake = woken.recv_timeout(self.shared.config.idle_timeout);
        if let Err(RecvTimeoutError::Timeout) = wake {
            let mut state = self.shared.lock();
            if let Some(at) = state.idle.iter().position(|idle| idle.id == self.id) {
                state.idle.remove(at);
                // In one step with leaving the list, or a session could get in line for nobody.
                state.threads -= 1;
                self.signed_off = true;
                return None;
            }
            drop(state);
            // Taken off the list in the meantime: a message is on its way.
            wake = woken.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        match wake {
            Ok(Wake::Serve(session)) => Some(session),
            Ok(Wake::Exit) | Err(_) => None,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.signed_off {
            let mut state = self.shared.lock();
            state.threads -= 1;
            state.serving.remove(&self.id);
        }
    }
}

/// A loop for one request.
fn new_loop() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
