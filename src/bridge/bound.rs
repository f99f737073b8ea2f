//! A limit on a wait for another thread, by the real clock.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

/// Ready once the limit has passed, and not before.
///
/// Other threads work in real time whatever the clock of the caller's runtime does. A paused test
/// clock jumps ahead as soon as its runtime is idle, which it is while it waits for us; so a timer
/// that fires early by the real clock is set again.
///
/// tokio's timers panic where the runtime has no time driver or is shutting down; a limit that
/// cannot be kept is then no limit.
pub(super) struct Bound {
    deadline: Instant,
    timer: Timer,
}

enum Timer {
    Unset,
    Running(Pin<Box<Sleep>>),
    Broken,
}

impl Bound {
    /// `None` where there is no runtime to keep the time, or no limit.
    pub(super) fn new(limit: Duration) -> Option<Self> {
        tokio::runtime::Handle::try_current().ok()?;
        Some(Self {
            deadline: Instant::now().checked_add(limit)?,
            timer: Timer::Unset,
        })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            if self.poll_timer(left, cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = Timer::Unset;
        }
    }

    /// Whether no timer could be had, so that waiting for it would be waiting for ever.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.timer, Timer::Broken)
    }

    fn poll_timer(&mut self, left: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let timer = &mut self.timer;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if let Timer::Unset = timer {
                *timer = Timer::Running(Box::pin(tokio::time::sleep(left)));
            }
            match timer {
                Timer::Running(sleep) => sleep.as_mut().poll(cx),
                Timer::Unset | Timer::Broken => Poll::Pending,
            }
        }));
        polled.unwrap_or_else(|_| {
            self.timer = Timer::Broken;
            Poll::Pending
        })
    }
}
