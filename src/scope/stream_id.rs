//! Which stream it is that has ended.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

/// Tells a stream that has ended from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamId(NonZeroU64);

impl StreamId {
    pub(crate) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        // Relaxed: a number, and nothing else.
        let drawn = LAST.fetch_add(1, Ordering::Relaxed);
        Self(NonZeroU64::MIN.saturating_add(drawn))
    }
}
