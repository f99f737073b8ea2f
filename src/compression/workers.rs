//! A bounded number of blocking-pool threads that take turns with the layer's sustained work.
//!
//! A job does a small block and goes to the back of the queue, so streams share the threads evenly
//! and a thousand downloads compress on as many threads as there are cores.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::available_parallelism,
};

use tokio::runtime::Handle;

use super::options::Core;

/// A worker hands over to a fresh one after this many blocks, so that it cannot keep a runtime
/// that is shutting down waiting for the work of another.
const TURNS: usize = 256;

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
    running: usize,
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
        for _ in 0..TURNS {
            let Some((job, handle)) = ({
                let mut state = workers.state();
                let next = state.queue.pop_front();
                state.running -= usize::from(next.is_none());
                next
            }) else {
                return;
            };
            match catch_unwind(AssertUnwindSafe(|| job.run())) {
                Ok(true) => workers.state().queue.push_back((job, handle)),
                Ok(false) => {}
                Err(_) => job.refuse(true),
            }
        }
        let next = {
            let mut state = workers.state();
            let next = state.queue.front().map(|(_, handle)| handle.clone());
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
