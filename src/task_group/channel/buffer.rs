//! What has been accepted and not yet taken: whole frames, then the one being merged.

use std::{collections::VecDeque, mem};

use bytes::{Bytes, BytesMut};

/// Frames shorter than this are copied together; longer ones are queued as they are.
pub(super) const MERGE_BELOW: usize = 2048;

/// Frames in order. `whole` goes first, `merging` is behind all of it.
///
/// A small frame that finds no small neighbour is queued whole too, so a frame that leaves alone
/// is never copied.
#[derive(Default)]
pub(super) struct Buffer {
    whole: VecDeque<Bytes>,
    merging: BytesMut,
    len: usize,
    /// Bytes merged into the last frame that left: what to allocate for the next.
    last_merged: usize,
}

/// Frames whose bytes were copied out: dropped by the caller, outside the lock.
pub(super) type Spent = (Option<Bytes>, Option<Bytes>);

impl Buffer {
    /// Bytes held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a frame, which is not empty. Those whose bytes were copied out go into `spent`.
    pub(super) fn push(&mut self, frame: Bytes, merge: bool, bound: usize, spent: &mut Spent) {
        self.len += frame.len();
        if merge && frame.len() < MERGE_BELOW {
            if let Some(neighbour) = self.open_merging(frame.len(), bound) {
                self.merging.extend_from_slice(&frame);
                *spent = (Some(frame), neighbour);
                return;
            }
        }
        self.seal();
        self.whole.push_back(frame);
    }

    /// Appends a copy of `data`, which is not empty.
    pub(super) fn push_slice(&mut self, data: &[u8], merge: bool, bound: usize) -> Option<Bytes> {
        self.len += data.len();
        if !merge {
            self.seal();
            self.whole.push_back(Bytes::copy_from_slice(data));
            return None;
        }
        // It has to be copied anyway, so there is no upper limit to what is merged.
        let neighbour = match self.open_merging(data.len(), bound) {
            Some(neighbour) => neighbour,
            None => {
                self.reserve_merging(data.len(), bound);
                None
            }
        };
        self.merging.extend_from_slice(data);
        neighbour
    }

    /// Takes the next frame to leave.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let frame = match self.whole.pop_front() {
            Some(frame) => frame,
            None if self.merging.is_empty() => return None,
            None => self.take_merging(),
        };
        self.len -= frame.len();
        Some(frame)
    }

    /// Gives back what a burst has grown, once all of it is taken.
    pub(super) fn rest(&mut self) {
        rest(&mut self.whole);
    }

    /// Frames there is a place for.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.whole.capacity()
    }

    /// Makes `merging` the place for `more` bytes if there is, or was, a small frame to merge with.
    ///
    /// `None` if there is none; else the neighbour that was copied into `merging`, if one was.
    fn open_merging(&mut self, more: usize, bound: usize) -> Option<Option<Bytes>> {
        if !self.merging.is_empty() {
            return Some(None);
        }
        if self.whole.back()?.len() >= MERGE_BELOW {
            return None;
        }
        let neighbour = self.whole.pop_back()?;
        self.reserve_merging(neighbour.len() + more, bound);
        self.merging.extend_from_slice(&neighbour);
        Some(Some(neighbour))
    }

    /// Allocates as much as the last merged frame took: a busy stream fills its bound every time,
    /// an idle one should not hold a bound's worth of memory for one event.
    fn reserve_merging(&mut self, need: usize, bound: usize) {
        let guess = self.last_merged.next_power_of_two().min(bound);
        self.merging.reserve(need.max(guess));
    }

    /// Closes the frame being merged, so that what follows stays behind it.
    fn seal(&mut self) {
        if !self.merging.is_empty() {
            let merged = self.take_merging();
            self.whole.push_back(merged);
        }
    }

    /// Takes the merged frame together with its allocation.
    fn take_merging(&mut self) -> Bytes {
        self.last_merged = self.merging.len();
        mem::take(&mut self.merging).freeze()
    }
}

/// Frees an empty queue that has grown; one of its first size is kept, for the next frame.
pub(super) fn rest<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > 4 {
        *queue = VecDeque::new();
    }
}
