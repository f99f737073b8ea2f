//! One stream's blocks on several threads, put together again as one gzip member.
//!
//! Each block is raw deflate primed with the text before it and ended by a sync flush, so blocks
//! can be compressed apart and follow each other byte-aligned, in the order of their text.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Crc, FlushCompress};
use tokio::runtime::Handle;

use super::{
    encoder::Gzip,
    options::{Core, WINDOW},
    pool::Lease,
    source::broken,
    workers::{Engaged, Job, Patience, Workers},
};
use crate::BoxError;

/// Bytes of text in each of the first blocks: a body of a few hundred kilobytes is shared fairly.
const BLOCK: usize = 128 << 10;

/// Bytes of text in a block of a stream that has turned out long: priming a compressor with the
/// text before costs a few hundredths of compressing 128 KiB.
pub(super) const LONG_BLOCK: usize = 256 << 10;

/// Blocks under way for each worker: the one it works on, and the next, so that it does not run
/// dry while the body waits for one of the cores that the workers keep busy.
const DEPTH: usize = 2;

/// A stream's blocks under way. Dropped, those not begun are not compressed any more.
pub(super) struct Parallel {
    core: Arc<Core>,
    handle: Handle,
    /// At rest between blocks: its header is written, nothing is pending in it. `None` once back.
    gzip: Option<Box<Gzip>>,
    /// What `gzip` had written before the first block.
    head: Bytes,
    /// The next block.
    next: Text,
    /// The text before the next block.
    before: Text,
    blocks: VecDeque<Arc<Block>>,
    submitted: usize,
    patience: Patience,
}

impl Parallel {
    pub(super) fn start(
        core: &Arc<Core>,
        handle: Handle,
        mut gzip: Box<Gzip>,
    ) -> Result<Self, BoxError> {
        let (head, before) = gzip.step_aside()?;
        Ok(Self {
            core: Arc::clone(core),
            handle,
            gzip: Some(gzip),
            head,
            next: Text::default(),
            before: Text::from(before),
            blocks: VecDeque::new(),
            submitted: 0,
            patience: Patience::default(),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.blocks.len() < self.most()
    }

    /// Blocks under way at the same time.
    fn most(&self) -> usize {
        (self.core.workers.limit() * DEPTH).max(3)
    }

    fn block(&self) -> usize {
        if self.submitted < self.most() {
            BLOCK
        } else {
            LONG_BLOCK
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.blocks.is_empty()
    }

    pub(super) fn put(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            let room = self.block() - self.next.len;
            let piece = data.split_to(data.len().min(room));
            let full = piece.len() == room;
            self.next.push(piece);
            if full {
                self.close();
            }
        }
    }

    /// What there is of the next block is one.
    pub(super) fn close(&mut self) {
        if self.next.len > 0 {
            let text = std::mem::take(&mut self.next);
            self.submit(text);
        }
    }

    fn submit(&mut self, text: Text) {
        let before = self.before.clone();
        for piece in &text.pieces {
            self.before.push(piece.clone());
        }
        self.before.keep_last(WINDOW);
        let block = Arc::new(Block {
            core: Arc::clone(&self.core),
            state: Mutex::new(State {
                text: Some((before, text)),
                engaged: Some(Engaged::new(&self.core)),
                done: None,
                waker: None,
            }),
        });
        self.blocks.push_back(Arc::clone(&block));
        let submit = match self.submitted {
            0 => Workers::submit,
            _ => Workers::submit_more,
        };
        self.submitted += 1;
        #[cfg(test)]
        let _ = self
            .core
            .stats
            .tally
            .blocks
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        submit(&self.core, block, &self.handle);
    }

    /// The next block's frame, or `None` once all are done.
    pub(super) fn harvest(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, BoxError>> {
        if !self.head.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.head))));
        }
        let Some(block) = self.blocks.front() else {
            // More is to come for the next block.
            return match self.next.len {
                0 => Poll::Ready(Ok(None)),
                _ => Poll::Pending,
            };
        };
        let done = {
            let mut state = block.state();
            let done = state.done.take();
            let old = match &done {
                Some(_) => None,
                None => state.waker.replace(cx.waker().clone()),
            };
            drop(state);
            drop(old);
            done
        };
        let Some(done) = done else {
            self.patience.poll(&self.core, cx);
            return Poll::Pending;
        };
        let block = self.blocks.pop_front();
        let (output, crc) = match (done, block) {
            (Done::Compressed(result), _) => result?,
            // No worker could be had: its runtime is gone.
            (Done::Refused, Some(block)) => match block.take() {
                Some((before, text)) => compress(&self.core, &before, &text)?,
                None => return Poll::Ready(Err(broken())),
            },
            (Done::Refused, None) => return Poll::Ready(Err(broken())),
        };
        if let Some(gzip) = &mut self.gzip {
            gzip.append(&crc);
        }
        Poll::Ready(Ok(Some(output)))
    }

    /// The encoder, told of the text that went by.
    pub(super) fn take_gzip(&mut self) -> Option<Box<Gzip>> {
        let mut gzip = self.gzip.take()?;
        gzip.step_in(&self.before.join());
        Some(gzip)
    }
}

impl Drop for Parallel {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            drop(block.take());
        }
    }
}

impl fmt::Debug for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parallel")
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

/// Pieces of text in order, as they came.
#[derive(Clone, Default)]
struct Text {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Text {
    fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len();
        self.pieces.push_back(piece);
    }

    /// Lets go of all but the last `most` bytes.
    fn keep_last(&mut self, most: usize) {
        while self.len > most {
            let surplus = self.len - most;
            let Some(first) = self.pieces.front_mut() else {
                return;
            };
            if first.len() > surplus {
                first.advance(surplus);
                self.len -= surplus;
            } else {
                self.len -= first.len();
                self.pieces.pop_front();
            }
        }
    }

    /// All of it, copied only if it is in several pieces.
    fn join(&self) -> Bytes {
        match self.pieces.len() {
            1 => self.pieces[0].clone(),
            _ => {
                let mut joined = BytesMut::with_capacity(self.len);
                for piece in &self.pieces {
                    joined.extend_from_slice(piece);
                }
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Text {
    fn from(piece: Bytes) -> Self {
        let mut text = Self::default();
        text.push(piece);
        text
    }
}

type Compressed = (Bytes, Crc);

enum Done {
    Compressed(Result<Compressed, BoxError>),
    Refused,
}

struct Block {
    core: Arc<Core>,
    state: Mutex<State>,
}

struct State {
    /// The text before the block, and its own.
    text: Option<(Text, Text)>,
    engaged: Option<Engaged>,
    done: Option<Done>,
    waker: Option<Waker>,
}

impl Block {
    fn state(&self) -> MutexGuard<'_, State> {
        // Compression happens outside the lock; nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<(Text, Text)> {
        self.state().text.take()
    }

    fn finish(&self, done: Done) {
        let waker = {
            let mut state = self.state();
            state.engaged = None;
            state.done = Some(done);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Job for Block {
    fn run(&self) -> bool {
        if let Some((before, text)) = self.take() {
            self.finish(Done::Compressed(compress(&self.core, &before, &text)));
        }
        false
    }

    fn refuse(&self, panicked: bool) {
        self.finish(match panicked {
            true => Done::Compressed(Err(broken())),
            false => Done::Refused,
        });
    }
}

fn compress(core: &Arc<Core>, before: &Text, text: &Text) -> Result<Compressed, BoxError> {
    let mut lease = Lease::take(core);
    let mut output = lease.take_scratch();
    if before.len > 0 {
        lease.prime(&before.join())?;
    }
    // In one piece: what is made of it is not to depend on the frames it came in.
    let text = text.join();
    let mut crc = Crc::new();
    crc.update(&text);
    lease.deflate(&text, &mut output, FlushCompress::Sync)?;
    let frame = output.take();
    lease.keep_scratch(output);
    Ok((frame, crc))
}
