//! Compressors, lent to streams and taken back.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use flate2::{Compress, Compression};

use super::options::Core;

/// Compressors of one level, at most `limit` of which outlive their use.
#[derive(Debug)]
pub(super) struct Pool {
    level: Compression,
    limit: usize,
    /// Streams may hold on to this many while idle; the rest serves the others in turn.
    keep: usize,
    resident: AtomicUsize,
    free: Mutex<Vec<Compressor>>,
}

/// A raw deflate compressor (hundreds of kilobytes) and the buffer it writes to.
pub(super) struct Compressor {
    pub(super) deflate: Compress,
    pub(super) scratch: Vec<u8>,
}

impl Pool {
    pub(super) fn new(level: u32, limit: usize) -> Self {
        Self {
            level: Compression::new(level),
            limit,
            keep: limit - limit.div_ceil(4),
            resident: AtomicUsize::new(0),
            free: Mutex::default(),
        }
    }

    /// Compressors that exist, lent or free.
    pub(super) fn resident(&self) -> usize {
        self.resident.load(Relaxed)
    }

    fn free(&self) -> MutexGuard<'_, Vec<Compressor>> {
        // A panic elsewhere cannot leave a list of compressors half edited.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Compressor {
        if let Some(mut compressor) = self.free().pop() {
            compressor.deflate.reset();
            return compressor;
        }
        self.resident.fetch_add(1, Relaxed);
        Compressor {
            deflate: Compress::new(self.level, false),
            scratch: Vec::new(),
        }
    }

    fn give_back(&self, compressor: Compressor) {
        {
            let mut free = self.free();
            if self.resident.load(Relaxed) <= self.limit {
                free.push(compressor);
                return;
            }
            self.resident.fetch_sub(1, Relaxed);
        }
        // Freed outside the lock.
        drop(compressor);
    }

    /// Compressors that streams hold.
    pub(super) fn lent(&self) -> usize {
        let free = self.free();
        self.resident.load(Relaxed) - free.len()
    }

    fn may_keep(&self) -> bool {
        self.lent() <= self.keep
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compressor")
    }
}

/// A compressor on loan, as good as new when taken; it goes back when this is dropped.
pub(super) struct Lease {
    /// `Some` until the drop.
    compressor: Option<Compressor>,
    core: Arc<Core>,
}

impl Lease {
    pub(super) fn take(core: &Arc<Core>) -> Self {
        Self {
            compressor: Some(core.pool.take()),
            core: Arc::clone(core),
        }
    }

    /// Whether a stream that has nothing to do may hold on to this.
    pub(super) fn may_stay(&self) -> bool {
        self.core.pool.may_keep()
    }
}

impl Deref for Lease {
    type Target = Compressor;

    fn deref(&self) -> &Compressor {
        self.compressor.as_ref().expect("taken only by drop")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Compressor {
        self.compressor.as_mut().expect("taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(compressor) = self.compressor.take() {
            self.core.pool.give_back(compressor);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}
