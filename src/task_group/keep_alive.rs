//! What a body gives by itself while its producers are silent.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::scope::{Limit, Scope};

/// One timer, which is not touched as frames pass: it looks at its end when the last one was given, and
/// goes on for what is left.
pub(super) struct KeepAlive {
    every: Duration,
    frame: Bytes,
    /// When a frame was given last, or the first wait began.
    given: Option<Instant>,
    /// Made by the first wait.
    timer: Option<Limit>,
}

impl KeepAlive {
    /// None, if there is nothing to give, or no time between.
    pub(super) fn new(every: Duration, frame: Bytes) -> Option<Box<Self>> {
        let gives = !every.is_zero() && !frame.is_empty();
        gives.then(|| {
            Box::new(Self {
                every,
                frame,
                given: None,
                timer: None,
            })
        })
    }

    /// A frame has been given.
    pub(super) fn note_given(&mut self) {
        self.given = Some(Instant::now());
    }

    /// There is no frame to give: ready with one if that has been so for long enough.
    pub(super) fn poll(&mut self, scope: &Scope, cx: &mut Context<'_>) -> Poll<Bytes> {
        // Without timers it is pending for good.
        let _context = scope.enter();
        let given = *self.given.get_or_insert_with(Instant::now);
        let left = || self.every.saturating_sub(given.elapsed());
        let timer = self.timer.get_or_insert_with(|| Limit::new(left()));
        ready!(timer.poll(cx));
        let left = left();
        if !left.is_zero() {
            timer.restart(left);
            ready!(timer.poll(cx));
        }
        // Its timer is left as it is: who does not ask is not woken again.
        self.note_given();
        Poll::Ready(self.frame.clone())
    }
}
