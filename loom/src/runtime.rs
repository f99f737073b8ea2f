//! A runtime whose tasks are threads of the model.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use loom::{
    future::block_on,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Otherwise a task is polled once, and dropped.
    pub(crate) lives: bool,
    /// Written behind each poll. Who reads it while it holds a lock finds the tasks that came to that lock in vain: loom
    /// tries the orders of what is read and written, and the release of a lock is neither.
    pub(crate) polled: Arc<AtomicBool>,
}

impl Handle {
    /// No thread of a model is in one.
    pub(crate) fn try_current() -> Result<Self, ()> {
        Err(())
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Self { lives, polled } = self.clone();
        thread::spawn(move || {
            let mut task = pin!(task);
            block_on(poll_fn(|cx| {
                let poll = task.as_mut().poll(cx);
                polled.store(true, Ordering::Relaxed);
                match lives {
                    true => poll,
                    false => Poll::Ready(()),
                }
            }));
        });
    }
}
