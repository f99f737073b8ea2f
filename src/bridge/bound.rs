//! A limit on a wait for another thread, by the real clock.

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::scope::Limit;

/// Ready once the limit has passed, and not before.
///
/// Other threads work in real time whatever the clock of the caller's runtime does. A paused test
/// clock jumps ahead as soon as its runtime is idle, which it is while it waits for us; so a timer
/// that fires early by the real clock is set again. One that cannot be kept is no limit.
pub(super) struct Bound {
    deadline: Instant,
    limit: Limit,
}

impl Bound {
    /// `None` where there is no runtime to keep the time, or no limit.
    pub(super) fn new(limit: Duration) -> Option<Self> {
        tokio::runtime::Handle::try_current().ok()?;
        Some(Self {
            deadline: Instant::now().checked_add(limit)?,
            limit: Limit::new(limit),
        })
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            if self.limit.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.limit = Limit::new(left);
        }
    }
}
