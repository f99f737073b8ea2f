//! Time limits that survive a runtime without timers, or one that is gone.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;

/// A time limit that costs nothing until it is first waited for.
///
/// tokio's timers panic where the runtime has no time driver or is shutting down; a limit that
/// cannot be kept is then no limit, and the guard of the teardown accounts for what is lost.
#[derive(Debug)]
pub(crate) struct Limit {
    duration: Duration,
    state: Timer,
}

#[derive(Debug)]
enum Timer {
    Unset,
    Running(Pin<Box<Sleep>>),
    Broken,
}

impl Limit {
    pub(crate) fn new(duration: Duration) -> Self {
        Self {
            duration,
            state: Timer::Unset,
        }
    }

    pub(super) fn duration(&self) -> Duration {
        self.duration
    }

    /// Ready once the time is over; starts counting at the first call.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if let Timer::Unset = self.state {
                self.state = Timer::Running(Box::pin(tokio::time::sleep(self.duration)));
            }
            match &mut self.state {
                Timer::Running(sleep) => pin!(tokio::task::unconstrained(sleep.as_mut())).poll(cx),
                Timer::Unset | Timer::Broken => Poll::Pending,
            }
        }));
        polled.unwrap_or_else(|_| {
            self.state = Timer::Broken;
            Poll::Pending
        })
    }

    /// Whether no timer could be had, so that waiting for it would be waiting for ever.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.state, Timer::Broken)
    }
}

/// Waits for a future up to a limit; `None` if the limit came first.
pub(super) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let (mut limit, mut future) = (Limit::new(limit), pin!(future));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => limit.poll(cx).map(|()| None),
    })
    .await
}
