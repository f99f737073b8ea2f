//! What a layer was told, and what all its streams share.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::response::Parts;

use super::{negotiation::Coding, pool::Pool, stats::Stats, workers::Workers};

/// When a stream's output is made decodable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flush {
    /// When the inner body has nothing ready: whatever it gave so far reaches the client. While it always has,
    /// what has come of each 256 KiB or so is handed on.
    #[default]
    WhenIdle,
    /// After every data frame, ready or not. Costs size where frames are small and many; and over HTTP/2 a client may
    /// take thousands of a few bytes each for an attack (those of the `h2` crate end the connection).
    EveryFrame,
    /// Only at the end. The stream keeps its compressor while it is idle.
    Never,
}

/// The most ready input that is encoded where it is polled; more than this at once goes to a worker.
pub(super) const BURST: usize = 32 << 10;

/// Deflate's window: no more history than this can ever be referred to.
pub(super) const WINDOW: usize = 32 << 10;

#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Enabled codings, best first.
    pub(super) codings: Vec<Coding>,
    /// The order of all codings, enabled or not.
    pub(super) preference: Vec<Coding>,
    pub(super) level: u32,
    #[cfg(feature = "br")]
    pub(super) br_level: i32,
    #[cfg(feature = "zstd")]
    pub(super) zstd_level: i32,
    pub(super) min_size: u64,
    pub(super) flush: Flush,
    pub(super) history: usize,
    pub(super) resident_limit: usize,
    pub(super) parallel: bool,
    pub(super) random_padding: u16,
    pub(super) strict: bool,
    pub(super) predicate: Option<Predicate>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            codings: vec![Coding::Gzip],
            preference: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip, Coding::Deflate],
            // The table of `cargo bench --bench compare -- --only gzip_levels`: the fastest level
            // within 2 % of the size that tower-http's default gives, on prose and JSON, and on
            // source text (`GZIP_FILE`).
            level: 5,
            #[cfg(feature = "br")]
            br_level: 4,
            #[cfg(feature = "zstd")]
            zstd_level: 3,
            min_size: 200,
            flush: Flush::WhenIdle,
            // The table of `cargo bench --bench compare -- --only idle_table`: 8 KiB of heap for an
            // idle stream, at most 1.11 times the bytes of one never parked.
            history: 6 << 10,
            resident_limit: 32,
            parallel: false,
            random_padding: 100,
            strict: false,
            predicate: None,
        }
    }
}

impl Options {
    /// Ready input that is encoded where it is polled: what takes 2 ms or so, and nothing where a
    /// first byte takes longer. Source text, one core of a small server, the time of the flush included:
    ///
    /// | coding, level | first 32 KiB | 4 KiB more |
    /// |---|---|---|
    /// | gzip, deflate 1 to 9 | 0.2 to 1.5 ms | 0.0 to 0.2 ms |
    /// | br 0 to 6 | 0.5 to 2.4 ms | 0.1 to 0.5 ms |
    /// | br 7 to 9 | 5 to 19 ms | 2 ms |
    /// | br 10, 11 | 31, 84 ms | 5, 12 ms (300 bytes: 1.5 ms) |
    /// | zstd 1 to 9 | 0.2 to 1.4 ms | 0.0 to 0.4 ms |
    /// | zstd 10, 11 | 3 to 6 ms | 0.2 ms |
    /// | zstd 12 to 19 | 34 to 92 ms | 0.3 to 2 ms |
    pub(super) fn burst(&self, coding: Coding) -> usize {
        match coding {
            #[cfg(feature = "br")]
            Coding::Brotli => match self.br_level {
                ..=6 => BURST,
                7..=9 => BURST / 8,
                _ => 0,
            },
            #[cfg(feature = "zstd")]
            Coding::Zstd => match self.zstd_level {
                ..=9 => BURST,
                10 | 11 => BURST / 8,
                _ => 0,
            },
            _ => BURST,
        }
    }

    /// Of a stream: one that is never flushed gathers, and then encodes much more than it is given.
    pub(super) fn stream_burst(&self, coding: Coding) -> usize {
        if self.flush == Flush::Never && self.is_slow(coding) {
            return 0;
        }
        self.burst(coding)
    }

    /// Whether a flush may take many milliseconds.
    pub(super) fn is_slow(&self, coding: Coding) -> bool {
        self.burst(coding) < BURST
    }

    /// Puts the enabled codings in the order of preference; those it does not name come last.
    pub(super) fn sort_codings(&mut self) {
        let order = &self.preference;
        self.codings.sort_by_key(|coding| {
            order
                .iter()
                .position(|other| other == coding)
                .unwrap_or(order.len())
        });
    }
}

/// The user's own condition.
#[derive(Clone)]
pub(super) struct Predicate(Arc<dyn Fn(&Parts) -> bool + Send + Sync>);

impl Predicate {
    pub(super) fn new(allows: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(allows))
    }

    pub(super) fn call(&self, parts: &Parts) -> bool {
        (self.0)(parts)
    }
}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Predicate")
    }
}

/// Everything the services and streams of one layer share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) options: Options,
    pub(super) pool: Pool,
    pub(super) stats: Stats,
    pub(super) workers: Workers,
    random: RandomState,
    drawn: AtomicU64,
}

impl Core {
    pub(super) fn new(options: Options) -> Self {
        Self {
            pool: Pool::new(options.level, options.resident_limit),
            options,
            stats: Stats::default(),
            workers: Workers::new(),
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
        }
    }

    /// The length of a gzip file-name field: random, so that the size of a response tells less.
    ///
    /// A keyed hash of a counter: nobody outside can predict it, and it needs no generator.
    pub(super) fn draw_padding(&self) -> usize {
        match self.options.random_padding {
            0 => 0,
            most => {
                let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
                (self.random.hash_one(drawn) % (u64::from(most) + 1)) as usize
            }
        }
    }
}
