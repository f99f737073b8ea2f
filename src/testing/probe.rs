//! Watches what happens to a scripted body.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What happened to a [`Script`](super::Script) so far. Clones look at the same body.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    inner: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    polls: AtomicUsize,
    dropped: AtomicBool,
    polled_after_end: AtomicBool,
}

impl Probe {
    /// How often `poll_frame` was called.
    pub fn polls(&self) -> usize {
        self.inner.polls.load(Ordering::SeqCst)
    }

    /// Whether the body has been dropped.
    pub fn is_dropped(&self) -> bool {
        self.inner.dropped.load(Ordering::SeqCst)
    }

    /// Whether it was polled after its end, an error, or an end hint. The body panics then, too.
    pub fn was_polled_after_end(&self) -> bool {
        self.inner.polled_after_end.load(Ordering::SeqCst)
    }

    pub(super) fn polled(&self) {
        self.inner.polls.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn dropped(&self) {
        self.inner.dropped.store(true, Ordering::SeqCst);
    }

    pub(super) fn polled_after_end(&self) {
        self.inner.polled_after_end.store(true, Ordering::SeqCst);
    }
}
