//! A bounded number of blocking-pool threads that take turns with the layer's sustained work.
//!
//! A job does a small block and goes to the back of the queue, so streams share the threads evenly
//! and a thousand downloads compress on as many threads as there are cores.
//!
//! The blocking pool is the application's, and it may be full: of the very producers that wait for
//! these bodies to take more. So a body waits for a thread with [`Patience`], and then does a block
//! itself.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Context,
    thread::available_parallelism,
    time::Duration,
};

use tokio::runtime::Handle;

use super::options::Core;
use crate::scope::Limit;

/// A worker hands over to a fresh one after this many blocks, so that it cannot keep a runtime
/// that is shutting down waiting for the work of another.
const TURNS: usize = 256;

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
    /// Asking the system costs microseconds: asked once.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Asked for.
    running: usize,
    /// Of these, those that were given a thread.
    at_work: usize,
    /// How often one was.
    stints: u64,
    queue: VecDeque<(Arc<dyn Job>, Handle)>,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            limit: available_parallelism().map_or(1, usize::from),
            state: Mutex::default(),
        }
    }

    /// How many jobs run at the same time.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn submit(core: &Arc<Core>, job: Arc<dyn Job>, handle: &Handle) {
        let mut state = core.workers.state();
        state.queue.push_back((job, handle.clone()));
        if state.running < core.workers.limit {
            state.running += 1;
            drop(state);
            Worker::spawn(core, handle);
        }
    }

    /// How often a thread was had.
    #[cfg(test)]
    pub(super) fn stints(&self) -> u64 {
        self.state().stints
    }

    fn begin(&self) {
        let mut state = self.state();
        state.at_work += 1;
        state.stints += 1;
    }

    /// Does a block of whoever is next, if no worker was given a thread since that stint.
    fn lend_a_hand(core: &Arc<Core>, since: u64) -> bool {
        let next = {
            let mut state = core.workers.state();
            match state.at_work {
                0 if state.stints == since => state.queue.pop_front(),
                _ => None,
            }
        };
        let Some((job, handle)) = next else {
            return false;
        };
        if block(&*job) {
            // Not just queued: the worker that was asked for may have found nothing meanwhile.
            Self::submit(core, job, &handle);
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock; nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Does one block; true if there is more to do at once.
fn block(job: &dyn Job) -> bool {
    let more = catch_unwind(AssertUnwindSafe(|| job.run()));
    more.unwrap_or_else(|_| {
        job.refuse(true);
        false
    })
}

/// One thread's stint. Dropped before it ran, it refuses the queue: its runtime is gone.
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
        drop(handle.spawn_blocking(move || worker.work()));
    }

    fn work(mut self) {
        self.began = true;
        let workers = &self.core.workers;
        workers.begin();
        for _ in 0..TURNS {
            let Some((job, handle)) = ({
                let mut state = workers.state();
                let next = state.queue.pop_front();
                if next.is_none() {
                    state.at_work -= 1;
                    state.running -= 1;
                }
                next
            }) else {
                return;
            };
            if block(&*job) {
                workers.state().queue.push_back((job, handle));
            }
        }
        let next = {
            let mut state = workers.state();
            let next = state.queue.front().map(|(_, handle)| handle.clone());
            state.at_work -= 1;
            state.running -= usize::from(next.is_none());
            next
        };
        if let Some(handle) = next {
            Self::spawn(&self.core, &handle);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.began {
            return;
        }
        let refused = {
            let mut state = self.core.workers.state();
            state.running -= 1;
            std::mem::take(&mut state.queue)
        };
        for (job, _) in refused {
            job.refuse(false);
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
    /// The stint that was the last when the limit began.
    since: u64,
}

impl Patience {
    pub(super) fn poll(&mut self, core: &Arc<Core>, cx: &mut Context<'_>) {
        if self.limit.poll(cx).is_pending() && !self.limit.is_broken() {
            return;
        }
        if Workers::lend_a_hand(core, self.since) {
            cx.waker().wake_by_ref();
            return;
        }
        // There are workers: the next look is one limit from now.
        self.since = core.workers.state().stints;
        if !self.limit.is_broken() {
            self.limit = Limit::new(PATIENCE);
            let _ = self.limit.poll(cx);
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: Limit::new(PATIENCE),
            since: 0,
        }
    }
}
