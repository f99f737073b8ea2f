//! Counters, cheap enough to be always on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::options::Core;
#[cfg(feature = "metrics")]
use crate::scope::quietly;

/// Tells a recorder, if there is one: all that compression tells goes through here.
///
/// It is the application's, and this runs in polls and in drops: its panic stays in here.
macro_rules! tell {
    ($kind:ident $name:literal, $change:ident $by:expr) => {
        #[cfg(feature = "metrics")]
        quietly(|| metrics::$kind!($name).$change($by));
    };
}

/// A snapshot of what one layer's streams hold and have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionStats {
    /// Compressed streams that are open now.
    pub open: usize,
    /// Open gzip streams that have given their compressor back, and wait.
    pub parked: usize,
    /// gzip compressors that exist: held by streams, or in the pool.
    pub resident: usize,
    /// Bytes taken from inner bodies to be compressed, whole bodies included.
    pub bytes_in: u64,
    /// Bytes that left compressed.
    pub bytes_out: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    open: AtomicUsize,
    parked: AtomicUsize,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    #[cfg(test)]
    pub(super) tally: Tally,
}

/// What streams have been through, for tests that must know they have.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) parked: AtomicUsize,
    /// Blocks of streams in parallel.
    pub(super) blocks: AtomicUsize,
}

impl Stats {
    pub(super) fn count(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        self.bytes_out.fetch_add(bytes_out, Relaxed);
        tell!(counter "bodyguard_compression_bytes_in_total", increment bytes_in);
        tell!(counter "bodyguard_compression_bytes_out_total", increment bytes_out);
    }

    pub(super) fn snapshot(core: &Core) -> CompressionStats {
        let stats = &core.stats;
        CompressionStats {
            open: stats.open.load(Relaxed),
            parked: stats.parked.load(Relaxed),
            resident: core.pool.resident(),
            bytes_in: stats.bytes_in.load(Relaxed),
            bytes_out: stats.bytes_out.load(Relaxed),
        }
    }
}

/// Counts a stream as open for as long as it lives.
#[derive(Debug)]
pub(super) struct Open(Arc<Core>);

impl Open {
    pub(super) fn new(core: Arc<Core>) -> Self {
        core.stats.open.fetch_add(1, Relaxed);
        tell!(gauge "bodyguard_compression_streams", increment 1.0);
        Self(core)
    }

    pub(super) fn count(&self, bytes_in: u64, bytes_out: u64) {
        self.0.stats.count(bytes_in, bytes_out);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.open.fetch_sub(1, Relaxed);
        tell!(gauge "bodyguard_compression_streams", decrement 1.0);
    }
}

/// Counts a stream as parked for as long as it lives.
#[derive(Debug)]
pub(super) struct Parked(Arc<Core>);

impl Parked {
    pub(super) fn new(core: Arc<Core>) -> Self {
        core.stats.parked.fetch_add(1, Relaxed);
        #[cfg(test)]
        core.stats.tally.parked.fetch_add(1, Relaxed);
        tell!(gauge "bodyguard_compression_parked", increment 1.0);
        Self(core)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.stats.parked.fetch_sub(1, Relaxed);
        tell!(gauge "bodyguard_compression_parked", decrement 1.0);
    }
}

/// Counts a compressor as existing for as long as it lives: in `metrics`, the pool counts its own.
pub(super) struct Resident(());

impl Resident {
    pub(super) fn new() -> Self {
        tell!(gauge "bodyguard_compression_resident", increment 1.0);
        Self(())
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        tell!(gauge "bodyguard_compression_resident", decrement 1.0);
    }
}
