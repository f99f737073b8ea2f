//! Compressors, lent to streams and taken back.

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use flate2::{Compress, Compression, FlushCompress, Status};

use super::{
    options::Core,
    output::{LARGEST_SCRATCH, Output, ROOM},
    stats::Resident,
};

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
struct Compressor {
    deflate: Compress,
    scratch: Output,
    _resident: Resident,
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
        // Not in the `if`, which would hold the lock until its end.
        let free = self.free().pop();
        if let Some(mut compressor) = free {
            compressor.deflate.reset();
            return compressor;
        }
        let compressor = Compressor {
            deflate: Compress::new(self.level, false),
            scratch: Output::default(),
            _resident: Resident::new(),
        };
        // Only once it exists, which may fail.
        self.resident.fetch_add(1, Relaxed);
        compressor
    }

    fn give_back(&self, compressor: Compressor, clean: bool) {
        {
            let mut free = self.free();
            if clean && self.resident.load(Relaxed) <= self.limit {
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

/// A compressor on loan, reset when taken; it goes back when this is dropped. Behind a flush, one that was used before
/// may find other matches than a new one (seen at levels 2, 7, 8 and 9).
pub(super) struct Lease {
    /// `Some` until the drop.
    compressor: Option<Compressor>,
    /// At a point where a reset makes it as good as new: nothing is pending inside. Elsewhere a
    /// reset is not to be relied on: zlib-rs (0.6.8) forgets there that it has a block open at level 1,
    /// and whoever is next would write into a block that nobody has begun.
    clean: bool,
    core: Arc<Core>,
}

impl Lease {
    pub(super) fn take(core: &Arc<Core>) -> Self {
        Self {
            compressor: Some(core.pool.take()),
            clean: true,
            core: Arc::clone(core),
        }
    }

    /// Whether a stream that has nothing to do may hold on to this.
    pub(super) fn may_stay(&self) -> bool {
        self.core.pool.may_keep()
    }

    /// Tells it what the decoder has seen last. Only before the first `deflate`.
    pub(super) fn prime(&mut self, text: &[u8]) -> io::Result<()> {
        let primed = self.compressor().deflate.set_dictionary(text);
        primed.map(drop).map_err(io::Error::other)
    }

    /// Runs `input` through, with room for whatever `flush` asks to be written.
    pub(super) fn deflate(
        &mut self,
        mut input: &[u8],
        output: &mut Output,
        flush: FlushCompress,
    ) -> io::Result<()> {
        self.clean = false;
        let deflate = &mut self.compressor().deflate;
        loop {
            let before = (deflate.total_in(), deflate.total_out());
            let status = deflate.compress(input, output.room(), flush)?;
            input = &input[(deflate.total_in() - before.0) as usize..];
            let written = (deflate.total_out() - before.1) as usize;
            output.add(written);
            // Room left over says that the compressor had nothing more to write.
            let done = match flush {
                FlushCompress::Finish => status == Status::StreamEnd,
                _ => input.is_empty() && written < ROOM,
            };
            if done {
                break;
            }
        }
        self.clean = matches!(flush, FlushCompress::Sync | FlushCompress::Finish);
        Ok(())
    }

    /// The buffer that came with it, empty.
    pub(super) fn take_scratch(&mut self) -> Output {
        std::mem::take(&mut self.compressor().scratch)
    }

    /// Lets a buffer go back with it.
    pub(super) fn keep_scratch(&mut self, mut buffer: Output) {
        let scratch = &mut self.compressor().scratch;
        if buffer.capacity() <= LARGEST_SCRATCH && scratch.capacity() == 0 {
            buffer.clear();
            *scratch = buffer;
        }
    }

    fn compressor(&mut self) -> &mut Compressor {
        self.compressor.as_mut().expect("taken only by drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(compressor) = self.compressor.take() {
            self.core.pool.give_back(compressor, self.clean);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

#[cfg(test)]
impl Pool {
    /// The largest buffer that a free compressor has.
    pub(super) fn largest_scratch(&self) -> usize {
        let scratches = self.free();
        let sizes = scratches.iter().map(|free| free.scratch.capacity());
        sizes.max().unwrap_or(0)
    }
}
