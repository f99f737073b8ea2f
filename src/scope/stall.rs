//! The stall watchdog: ends responses whose server has stopped asking, for a client that stopped reading.
//!
//! It stands outside the poll: one task for all streams of a layer looks at a counter in each. No
//! stream reads a clock.
//!
//! A stream whose last poll gave a frame waits for its server. One that was pending may wait for its own
//! source, or again for the server: that does not ask as long as what an encoder around it has made of the
//! frames before goes nowhere. So half way through the time-out its poller is woken, once: a server whose
//! client reads asks then.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use slab::Slab;
use tokio::runtime::Handle;

use super::{cell::Cell, limit::Limit};

/// Looks per time-out: a stall is noticed up to two looks late.
const LOOKS: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(250);

/// What a body writes down at each poll for the watchdog to see.
#[derive(Debug, Default)]
pub(super) struct Attention(AtomicU64);

impl Attention {
    /// The server asked, and was `given` a frame; if not, it is not its turn.
    pub(super) fn asked(&self, given: bool) {
        // One writer at a time: the poller, under the cell's lock.
        let polls = self.0.load(Ordering::Relaxed) >> 1;
        let word = (polls + 1) << 1 | u64::from(given);
        self.0.store(word, Ordering::Relaxed);
    }

    fn word(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether it is the server's turn to ask.
fn waits_for_server(word: u64) -> bool {
    word & 1 == 1
}

/// Watches the streams of one layer.
pub(super) struct Watchdog {
    timeout: Duration,
    rounds: Mutex<Rounds>,
}

#[derive(Default)]
struct Rounds {
    streams: Slab<Stream>,
    walking: bool,
}

struct Stream {
    cell: Arc<Cell>,
    word: u64,
    /// How many looks have seen the same word since.
    looks: u32,
    /// Its poller was woken since, to see whether it asks.
    woken: bool,
}

/// What a look has found.
#[derive(Default)]
struct Found {
    stalled: Vec<Arc<Cell>>,
    /// To be woken.
    pending: Vec<Arc<Cell>>,
}

impl Watchdog {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            rounds: Mutex::default(),
        }
    }

    /// Watches a stream until the guard drops.
    pub(super) fn watch(self: &Arc<Self>, cell: &Arc<Cell>) -> Armed {
        let runtime = cell.scope.runtime.clone();
        let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) else {
            return Armed::default();
        };
        let (key, start) = {
            let mut rounds = self.rounds();
            let key = rounds.streams.insert(Stream {
                cell: cell.clone(),
                word: 0,
                looks: 0,
                woken: false,
            });
            (key, !std::mem::replace(&mut rounds.walking, true))
        };
        if start {
            let mut walk = Walk {
                watchdog: self.clone(),
                walking: true,
            };
            runtime.spawn(async move { walk.run().await });
        }
        Armed(Some((self.clone(), key)))
    }

    fn pause(&self) -> Duration {
        (self.timeout / LOOKS).clamp(SHORTEST, LONGEST)
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look at every stream, or `None` if there are no streams.
    fn look(&self) -> Option<Found> {
        let mut rounds = self.rounds();
        if rounds.streams.is_empty() {
            rounds.walking = false;
            return None;
        }
        let mut found = Found::default();
        for (_, stream) in &mut rounds.streams {
            let word = stream.cell.attention().word();
            if word != stream.word {
                (stream.word, stream.looks, stream.woken) = (word, 0, false);
                continue;
            }
            stream.looks = stream.looks.saturating_add(1);
            let silent = self.pause().saturating_mul(stream.looks);
            if !waits_for_server(word) && !stream.woken {
                // Never asked, it is not watched.
                if word > 0 && silent >= self.timeout / 2 {
                    stream.woken = true;
                    found.pending.push(stream.cell.clone());
                }
                continue;
            }
            let due = silent >= self.timeout;
            // Behind the last byte that was promised there is nothing to ask for; and a server that asks at
            // this moment has not stalled.
            if due && stream.cell.is_left() {
                found.stalled.push(stream.cell.clone());
            }
        }
        Some(found)
    }
}

/// The watchdog's task. Lives as long as there are streams.
struct Walk {
    watchdog: Arc<Watchdog>,
    walking: bool,
}

impl Walk {
    async fn run(&mut self) {
        let pause = self.watchdog.pause();
        loop {
            let mut pause = Limit::new(pause);
            let waited = std::future::poll_fn(|cx| match pause.poll(cx) {
                Poll::Ready(()) => Poll::Ready(true),
                // A runtime without timers: nothing can be watched there.
                Poll::Pending if pause.is_broken() => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            if !waited.await {
                return;
            }
            match self.watchdog.look() {
                Some(found) => {
                    found.stalled.iter().for_each(|cell| cell.scope.stalled());
                    found
                        .pending
                        .iter()
                        .for_each(|cell| cell.scope.wake_poller());
                }
                None => {
                    self.walking = false;
                    return;
                }
            }
        }
    }
}

impl Drop for Walk {
    /// Its runtime may have gone before its streams: the next stream starts another.
    fn drop(&mut self) {
        if self.walking {
            self.watchdog.rounds().walking = false;
        }
    }
}

/// Keeps a stream watched.
#[derive(Default)]
pub(super) struct Armed(Option<(Arc<Watchdog>, usize)>);

impl Drop for Armed {
    fn drop(&mut self) {
        if let Some((watchdog, key)) = self.0.take() {
            let stream = watchdog.rounds().streams.try_remove(key);
            drop(stream);
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
