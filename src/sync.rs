//! Locks, counters, threads and runtimes: as they are, or loom's in the model check.

#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, fence},
    },
    thread,
};

#[cfg(not(loom))]
pub(crate) use tokio::runtime::Handle;

#[cfg(loom)]
pub(crate) use loom::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, fence},
    },
    thread,
};

#[cfg(loom)]
pub(crate) use crate::runtime::Handle;

use std::{
    pin::pin,
    task::{Context, Poll, Wake, Waker},
};

/// Runs a future on this thread, parked while the future waits. Needs no runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        thread::park();
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}
