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

use bytes::{Bytes, BytesMut};
use flate2::{Crc, FlushCompress};
use tokio::runtime::Handle;

use super::{
    encoder::{Gzip, deflate},
    error::Broken,
    options::{Core, WINDOW},
    pool::Lease,
    workers::{Job, Workers},
};
use crate::BoxError;

/// Bytes of text in a block.
const BLOCK: usize = 128 << 10;

/// A stream's blocks under way. Dropped, those not begun are not compressed any more.
pub(super) struct Parallel {
    core: Arc<Core>,
    handle: Handle,
    /// At rest between blocks: its header is written, nothing is pending in it. `None` once back.
    gzip: Option<Box<Gzip>>,
    /// What `gzip` had written before the first block.
    head: Bytes,
    gathered: BytesMut,
    /// The text before the next block.
    before: Bytes,
    blocks: VecDeque<Arc<Block>>,
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
            gathered: BytesMut::new(),
            before,
            blocks: VecDeque::new(),
        })
    }

    /// Enough blocks to keep every worker busy while the first one is being sent.
    pub(super) fn has_room(&self) -> bool {
        self.blocks.len() < self.core.workers.limit() + 2
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.blocks.is_empty()
    }

    pub(super) fn put(&mut self, mut data: Bytes) {
        while !data.is_empty() {
            if self.gathered.is_empty() && data.len() >= BLOCK {
                self.submit(data.split_to(BLOCK));
                continue;
            }
            let piece = data.split_to(data.len().min(BLOCK - self.gathered.len()));
            self.gathered.reserve(BLOCK - self.gathered.len());
            self.gathered.extend_from_slice(&piece);
            if self.gathered.len() == BLOCK {
                self.put_gathered();
            }
        }
    }

    pub(super) fn put_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let block = self.gathered.split().freeze();
            self.submit(block);
        }
    }

    fn submit(&mut self, text: Bytes) {
        let before = self.before.clone();
        self.before = match text.len().checked_sub(WINDOW) {
            Some(start) => text.slice(start..),
            None => {
                let joined = [&before[..], &text].concat();
                Bytes::from(joined).split_off((before.len() + text.len()).saturating_sub(WINDOW))
            }
        };
        let block = Arc::new(Block {
            core: Arc::clone(&self.core),
            state: Mutex::new(State {
                text: Some((before, text)),
                done: None,
                waker: None,
            }),
        });
        self.blocks.push_back(Arc::clone(&block));
        Workers::submit(&self.core, block, &self.handle);
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
            return Poll::Ready(Ok(None));
        };
        let done = {
            let mut state = block.state();
            let Some(done) = state.done.take() else {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            done
        };
        let block = self.blocks.pop_front();
        let (output, crc) = match (done, block) {
            (Done::Compressed(result), _) => result?,
            // No worker could be had: its runtime is gone.
            (Done::Refused, Some(block)) => match block.take() {
                Some((before, text)) => compress(&self.core, &before, &text)?,
                None => return Poll::Ready(Err(Broken.into())),
            },
            (Done::Refused, None) => return Poll::Ready(Err(Broken.into())),
        };
        if let Some(gzip) = &mut self.gzip {
            gzip.append(&crc);
        }
        Poll::Ready(Ok(Some(output)))
    }

    /// The encoder, told of the text that went by.
    pub(super) fn take_gzip(&mut self) -> Option<Box<Gzip>> {
        let mut gzip = self.gzip.take()?;
        gzip.step_in(&self.before);
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
    text: Option<(Bytes, Bytes)>,
    done: Option<Done>,
    waker: Option<Waker>,
}

impl Block {
    fn state(&self) -> MutexGuard<'_, State> {
        // Compression happens outside the lock; nothing under it panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<(Bytes, Bytes)> {
        self.state().text.take()
    }

    fn finish(&self, done: Done) {
        let waker = {
            let mut state = self.state();
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
            true => Done::Compressed(Err(Broken.into())),
            false => Done::Refused,
        });
    }
}

fn compress(core: &Arc<Core>, before: &[u8], text: &[u8]) -> Result<Compressed, BoxError> {
    let mut lease = Lease::take(core);
    let mut output = std::mem::take(&mut lease.scratch);
    if !before.is_empty() {
        lease.deflate.set_dictionary(before)?;
    }
    deflate(&mut lease.deflate, text, &mut output, FlushCompress::Sync)?;
    let mut crc = Crc::new();
    crc.update(text);
    let frame = Bytes::copy_from_slice(&output);
    output.clear();
    lease.scratch = output;
    Ok((frame, crc))
}
