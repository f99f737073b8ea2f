//! A bounded number of blocking-pool threads that take turns with the layer's sustained work.
//!
//! A job does small blocks for a few milliseconds and goes back into the queue, so streams share the threads
//! evenly and a thousand downloads compress on as many threads as there are cores.
//!
//! The blocking pool is the application's, and it may be full: of the very producers that wait for
//! these bodies to take more. So a body waits for a thread with [`Patience`], and then does a block
//! itself.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Waker},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::{options::Core, queue::Queue};
use crate::scope::{Limit, contained, quietly};

/// A worker hands over to a fresh one after this long, so that it cannot keep a runtime that is
/// shutting down waiting for the work of another. Not counted in blocks: of gzip one takes a
/// millisecond, of the slowest levels a tenth of a second.
pub(super) const STINT: Duration = Duration::from_millis(100);

/// A worker stays with a job for this long: with the next one other tables come into its core's cache, which takes as
/// long as some kilobytes of text.
pub(super) const TURN: Duration = Duration::from_millis(4);

/// How long a body waits for the blocking pool to have a thread for anybody.
const PATIENCE: Duration = Duration::from_millis(50);

/// Work that is done a block at a time.
pub(super) trait Job: Send + Sync {
    /// Does one block; true if there is more to do at once.
    fn run(&self) -> bool;

    /// Called instead of a `run` that cannot be: the runtime is gone (`panicked` false), or the
    /// last one panicked.
    fn refuse(&self, panicked: bool);
}

pub(super) struct Workers {
    limit: usize,
    /// Jobs whose bodies wait for them, queued or at work.
    engaged: AtomicUsize,
    state: Mutex<State>,
}

/// Counts a job from its submission to its last block, or what is encoded beside one meanwhile.
///
/// It is to go before the body is told, so that whoever sends one request after the other finds the
/// workers at rest.
#[derive(Debug)]
pub(super) struct Engaged(Arc<Core>);

impl Engaged {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        core.workers.engaged.fetch_add(1, Relaxed);
        Self(Arc::clone(core))
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        self.0.workers.engaged.fetch_sub(1, Relaxed);
    }
}

type Jobs = Queue<(Arc<dyn Job>, Handle)>;

#[derive(Default)]
struct State {
    /// Asked for.
    running: usize,
    /// Of these, those that were given a thread.
    at_work: usize,
    /// How often one was.
    stints: u64,
    queue: Jobs,
    /// Bodies that no timer wakes, to be told when nobody has a thread for the queue.
    untimed: Vec<Waker>,
}

impl State {
    /// The bodies to be woken because no worker has a thread now.
    #[must_use]
    fn stranded(&mut self) -> Vec<Waker> {
        match self.at_work {
            0 => std::mem::take(&mut self.untimed),
            _ => Vec::new(),
        }
    }
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            limit: cores(),
            engaged: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// How many jobs run at the same time.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// With one more job no more than half of the threads have work.
    pub(super) fn are_at_rest(&self) -> bool {
        2 * (self.engaged.load(Relaxed) + 1) <= self.limit
    }

    /// Has a job done, soon.
    pub(super) fn submit(core: &Arc<Core>, job: Arc<dyn Job>, handle: &Handle) {
        Self::queue(core, handle, |queue| queue.push((job, handle.clone())));
    }

    /// The same for one of a stream that has had its first turns.
    pub(super) fn submit_more(core: &Arc<Core>, job: Arc<dyn Job>, handle: &Handle) {
        Self::queue(core, handle, |queue| queue.push_back((job, handle.clone())));
    }

    fn queue(core: &Arc<Core>, handle: &Handle, put: impl FnOnce(&mut Jobs)) {
        let mut state = core.workers.state();
        put(&mut state.queue);
        if state.running < core.workers.limit {
            state.running += 1;
            drop(state);
            Worker::spawn(core, handle);
        }
    }

    /// Jobs that wait: those that have just come, and all.
    #[cfg(test)]
    pub(super) fn queued(&self) -> (usize, usize) {
        let state = self.state();
        (state.queue.fresh(), state.queue.len())
    }

    /// How often a thread was had.
    #[cfg(test)]
    pub(super) fn stints(&self) -> u64 {
        self.state().stints
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock; nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asked once: it opens the files of the control group, and layers are made option by option.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| available_parallelism().map_or(1, usize::from))
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Workers")
            .field("running", &state.running)
            .field("queued", &state.queue.len())
            .finish()
    }
}

/// Does one block; the job is given back if there is more to do at once. No panic of the job's passes.
fn block(job: Arc<dyn Job>) -> Option<Arc<dyn Job>> {
    match contained(|| job.run()) {
        Ok(true) => return Some(job),
        Ok(false) => {}
        Err(payload) => {
            drop(payload);
            quietly(|| job.refuse(true));
        }
    }
    quietly(|| drop(job));
    None
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        quietly(|| waker.wake());
    }
}

/// One thread's stint. Its drop settles what it counted for.
struct Worker {
    core: Arc<Core>,
    began: bool,
}

impl Worker {
    fn spawn(core: &Arc<Core>, handle: &Handle) {
        let worker = Worker {
            core: Arc::clone(core),
            began: false,
        };
        // Where the system has no thread to give, tokio panics, and keeps the worker until there is one.
        quietly(|| drop(handle.spawn_blocking(move || worker.work())));
    }

    fn work(mut self) {
        let workers = &self.core.workers;
        {
            let mut state = workers.state();
            state.at_work += 1;
            state.stints += 1;
            self.began = true;
        }
        let began = Instant::now();
        while began.elapsed() < STINT {
            let next = workers.state().queue.pop();
            let Some((mut job, handle)) = next else {
                return;
            };
            let turn = Instant::now();
            while let Some(again) = block(job) {
                job = again;
                if turn.elapsed() >= TURN {
                    workers.state().queue.push_back((job, handle));
                    break;
                }
            }
        }
    }

    /// Leaves, and asks for another worker if there is more to do.
    fn hand_over(&self) {
        let (next, stranded) = {
            let mut state = self.core.workers.state();
            state.at_work -= 1;
            let next = state.queue.peek().map(|(_, handle)| handle.clone());
            state.running -= usize::from(next.is_none());
            // All of them, now and then: those whose bodies are gone are forgotten.
            (next, std::mem::take(&mut state.untimed))
        };
        if let Some(handle) = next {
            Self::spawn(&self.core, &handle);
        }
        wake(stranded);
    }

    /// Refuses the queue: dropped before it ran, its runtime is gone.
    fn refuse(&self) {
        let refused = {
            let mut state = self.core.workers.state();
            state.running -= 1;
            std::mem::take(&mut state.queue)
        };
        for (job, _) in refused {
            quietly(|| job.refuse(false));
            quietly(|| drop(job));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        match self.began {
            true => self.hand_over(),
            false => self.refuse(),
        }
    }
}

/// The wait of a body for a worker: polled whenever it has to wait.
///
/// If no worker has been given a thread for a while, the body does a block of whatever is next in the
/// queue, and so on until there is one. Without timers it does not wait first.
#[derive(Debug)]
pub(super) struct Patience {
    /// Runs on from wait to wait: to set a timer may wake another thread.
    limit: Limit,
    /// The stint that was the last when the limit began, once it has.
    since: Option<u64>,
}

impl Patience {
    pub(super) fn poll(&mut self, core: &Arc<Core>, cx: &mut Context<'_>) {
        let since = *self
            .since
            .get_or_insert_with(|| core.workers.state().stints);
        let waits = self.limit.poll(cx).is_pending();
        let untimed = self.limit.is_broken().then(|| cx.waker().clone());
        if waits && untimed.is_none() {
            return;
        }
        match self.next(core, since, untimed) {
            Some((job, handle)) => {
                if let Some(job) = block(job) {
                    // Not just queued: the worker that was asked for may have found nothing meanwhile.
                    Workers::submit_more(core, job, &handle);
                }
                let stranded = core.workers.state().stranded();
                wake(stranded);
                cx.waker().wake_by_ref();
            }
            None if self.limit.is_broken() => {}
            None => {
                self.limit = Limit::new(PATIENCE);
                let _ = self.limit.poll(cx);
            }
        }
    }

    /// Whoever is next, if that is for the body to do. Otherwise the next look is one limit from now, or
    /// when `untimed` is woken.
    fn next(
        &mut self,
        core: &Core,
        since: u64,
        untimed: Option<Waker>,
    ) -> Option<(Arc<dyn Job>, Handle)> {
        let mut state = core.workers.state();
        if state.at_work == 0 && (untimed.is_some() || state.stints == since) {
            if let Some(next) = state.queue.pop() {
                drop(state);
                return Some(next);
            }
        }
        self.since = Some(state.stints);
        let known = |waker: &Waker| state.untimed.iter().any(|other| other.will_wake(waker));
        if let Some(waker) = untimed {
            if known(&waker) {
                // Not dropped under the lock.
                drop(state);
            } else {
                state.untimed.push(waker);
            }
        }
        None
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: Limit::new(PATIENCE),
            since: None,
        }
    }
}
