//! Sustained input is encoded on blocking-pool threads, in small blocks, in order.
//!
//! A [`Station`] holds a stream's encoder while it is away: the body puts plain pieces in and
//! takes encoded frames out, one worker at a time does a block. Both queues are bounded.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    encoder::{Encoder, FULL},
    options::Core,
    source::broken,
    workers::{Engaged, Job, Patience, Workers},
};
use crate::{BoxError, scope::quietly};

/// Bytes that may wait on either side of the encoder.
const BOUND: usize = 256 << 10;

/// Bytes in one block of a worker.
const BLOCK: usize = 32 << 10;

/// What a piece or a frame counts for besides its bytes, which may be few.
const EACH: usize = 256;

/// A stream's end of its station. Dropped, the encoder goes back to the pool.
pub(super) struct Offload {
    station: Arc<Station>,
    core: Arc<Core>,
    handle: Handle,
    flush_each: bool,
    home: Home,
    /// The encoder has nothing inside, or may come home with it.
    settled: bool,
    ended: bool,
    patience: Patience,
}

/// How the encoder comes home once it has done everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    AsItIs,
    /// Flushed: that is too slow for the body to do.
    Flushed,
    /// The same, and only at the end: before, nothing may be flushed.
    AtEnd,
}

/// What the encoder has for the body.
pub(super) enum Harvest {
    Frame(Bytes),
    /// The frame with the end of the encoded form: there is no encoder any more.
    Last(Bytes),
    /// No worker has the encoder: here it is, and what was put in and not encoded.
    Home {
        encoder: Encoder,
        left: Vec<Bytes>,
        /// There are no threads to be had.
        refused: bool,
    },
}

impl Offload {
    pub(super) fn start(
        core: &Arc<Core>,
        handle: Handle,
        encoder: Encoder,
        flush_each: bool,
        home: Home,
    ) -> Self {
        Self {
            station: Arc::new(Station::new(encoder, flush_each || home != Home::AsItIs)),
            core: Arc::clone(core),
            handle,
            flush_each,
            home,
            // A slow one may have something inside from before.
            settled: home == Home::AsItIs,
            ended: false,
            patience: Patience::default(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.station.state();
        state.queued < BOUND && state.ready < BOUND
    }

    pub(super) fn is_busy(&self) -> bool {
        self.station.state().engaged.is_some()
    }

    pub(super) fn put(&mut self, data: Bytes) {
        let then = match self.flush_each {
            true => Then::Flush,
            false => Then::Nothing,
        };
        self.send(data, then);
    }

    /// Nothing more is coming, and if all went `well` the encoded form ends: where the encoder is, unless nobody is at
    /// work with it and its end is no work.
    pub(super) fn end(&mut self, well: bool) {
        let first = !std::mem::replace(&mut self.ended, true);
        if first && well && (self.is_busy() || self.home != Home::AsItIs) {
            self.send(Bytes::new(), Then::Finish);
        }
    }

    fn send(&mut self, data: Bytes, then: Then) {
        self.settled = then != Then::Nothing || self.home == Home::AsItIs;
        let mut state = self.station.state();
        state.queued += data.len() + EACH;
        state.input.push_back(Piece { data, then });
        self.schedule(state);
    }

    fn schedule(&self, mut state: MutexGuard<'_, State>) {
        let waits = state.engaged.is_none() && !state.refused;
        if waits && !state.input.is_empty() && state.ready < BOUND {
            state.engaged = Some(Engaged::new(&self.core));
            drop(state);
            let job = Arc::clone(&self.station) as Arc<dyn Job>;
            Workers::submit(&self.core, job, &self.handle);
        }
    }

    pub(super) fn harvest(&mut self, cx: &mut Context<'_>) -> Poll<Result<Harvest, BoxError>> {
        let mut state = self.station.state();
        if let Some(frame) = state.output.pop_front() {
            state.ready -= frame.len() + EACH;
            if state.finished && state.output.is_empty() {
                return Poll::Ready(Ok(Harvest::Last(frame)));
            }
            self.schedule(state);
            return Poll::Ready(Ok(Harvest::Frame(frame)));
        }
        if let Some(error) = state.error.take() {
            return Poll::Ready(Err(error));
        }
        let idle = state.engaged.is_none() && state.input.is_empty() && !state.refused;
        let stays = idle && self.home == Home::AtEnd && !self.ended;
        if idle && !self.settled && !stays {
            drop(state);
            self.send(Bytes::new(), Then::Flush);
            // From the start: the worker may be done with it.
            return self.harvest(cx);
        }
        if state.engaged.is_none() && !stays && (state.input.is_empty() || state.refused) {
            let Some(encoder) = state.encoder.take() else {
                return Poll::Ready(Err(broken()));
            };
            let left = std::mem::take(&mut state.input);
            return Poll::Ready(Ok(Harvest::Home {
                encoder,
                left: left.into_iter().map(|piece| piece.data).collect(),
                refused: state.refused,
            }));
        }
        let old = state.waker.replace(cx.waker().clone());
        let waits_for_a_worker = state.engaged.is_some();
        drop(state);
        drop(old);
        if waits_for_a_worker {
            self.patience.poll(&self.core, cx);
        }
        Poll::Pending
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        let mut state = self.station.state();
        state.abandoned = true;
        let engaged = state.engaged.take();
        let encoder = state.encoder.take();
        let waiting = std::mem::take(&mut state.input);
        let output = std::mem::take(&mut state.output);
        let waker = state.waker.take();
        drop(state);
        drop((encoder, waiting, output, waker, engaged));
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}

struct Station {
    state: Mutex<State>,
}

struct Piece {
    data: Bytes,
    then: Then,
}

/// What is done behind a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Flush,
    Finish,
}

/// `encoder` is here whenever no worker is inside `run`; `engaged` covers the time from
/// submission to the end of the last block.
struct State {
    encoder: Option<Encoder>,
    input: VecDeque<Piece>,
    queued: usize,
    output: VecDeque<Bytes>,
    ready: usize,
    /// Any output is worth a wake: it was flushed for that, or took its time.
    eager: bool,
    engaged: Option<Engaged>,
    finished: bool,
    refused: bool,
    abandoned: bool,
    error: Option<BoxError>,
    waker: Option<Waker>,
}

impl Station {
    fn new(encoder: Encoder, eager: bool) -> Self {
        Self {
            state: Mutex::new(State {
                encoder: Some(encoder),
                input: VecDeque::new(),
                queued: 0,
                output: VecDeque::new(),
                ready: 0,
                eager,
                engaged: None,
                finished: false,
                refused: false,
                abandoned: false,
                error: None,
                waker: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Encoding happens outside the lock; nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// More may come, and there is little left.
    fn may_run_dry(&self) -> bool {
        let last = self.input.back().map(|piece| piece.then);
        self.queued <= BOUND / 4 && last != Some(Then::Finish)
    }

    fn next_slice(&mut self, most: usize) -> Option<Piece> {
        let piece = self.input.front_mut()?;
        let data = piece.data.split_to(piece.data.len().min(most));
        self.queued -= data.len();
        let mut then = Then::Nothing;
        if piece.data.is_empty() {
            then = piece.then;
            self.queued -= EACH;
            self.input.pop_front();
        }
        Some(Piece { data, then })
    }
}

impl Job for Station {
    fn run(&self) -> bool {
        let mut state = self.state();
        let mut encoder = state.encoder.take();
        let mut taken = 0;
        while let Some(at_work) = encoder.as_mut() {
            if taken >= BLOCK || state.ready >= BOUND {
                break;
            }
            let Some(piece) = state.next_slice(at_work.slice()) else {
                break;
            };
            taken += piece.data.len() + EACH;
            drop(state);
            let done = encode(at_work, &piece);
            let finished = piece.then == Then::Finish && done.is_ok();
            if finished {
                // It is back in the pool before anybody is told.
                encoder = None;
            }
            // The application's own memory, maybe: not under the lock.
            quietly(|| drop(piece));
            state = self.state();
            if state.abandoned {
                drop(state);
                drop(encoder);
                return false;
            }
            state.finished = finished;
            match done {
                Ok(output) if output.is_empty() && !finished => {}
                Ok(output) => {
                    state.ready += output.len() + EACH;
                    state.output.push_back(output);
                }
                Err(error) => {
                    state.error = Some(error);
                    break;
                }
            }
        }
        let may_go_on = state.ready < BOUND && state.error.is_none() && encoder.is_some();
        let more = may_go_on && !state.input.is_empty();
        state.encoder = encoder;
        if !more {
            state.engaged = None;
        }
        // Waking costs as much as a few kilobytes of text: the body is woken for the end, for
        // plenty of output (any, if `eager`), or for plenty of room while more may come.
        let enough = if state.eager { 1 } else { 2 * FULL };
        let wanted = !more || state.ready >= enough || state.may_run_dry();
        let waker = state.waker.take_if(|_| wanted);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        more
    }

    fn refuse(&self, panicked: bool) {
        let mut state = self.state();
        state.engaged = None;
        state.refused = true;
        if panicked {
            state.error = Some(broken());
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn encode(encoder: &mut Encoder, piece: &Piece) -> Result<Bytes, BoxError> {
    encoder.write(&piece.data)?;
    match piece.then {
        Then::Nothing if !encoder.is_due()? => return Ok(Bytes::new()),
        Then::Nothing => {}
        Then::Flush => encoder.flush()?,
        Then::Finish => encoder.finish()?,
    }
    Ok(encoder.take_output())
}

#[cfg(test)]
mod tests;
