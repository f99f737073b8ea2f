//! Ready input, before an encoder has it, and how much of it may be encoded where it is polled.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    encoder::SLICE,
    negotiation::Coding,
    options::{Flush, Options},
};

/// What each idle moment restores of the burst: a stream with less than this between two idle
/// moments, as events have, always stays inline.
const REFILL: usize = 4 << 10;

/// How many bursts are gathered if they are ready within one turn: the longer a stream is seen to be, the more of it
/// two encoders can begin with.
const AT_ONCE: usize = 8;

/// Pieces for which there is room while a stream is idle.
const FEW: usize = 4;

/// Frames below this many bytes are copied together where several wait: that costs less than a call of the encoder.
const SMALL: usize = 2 << 10;

/// What the inner body gave, in its order: large frames as they came, small ones that wait together in one piece.
#[derive(Debug)]
pub(super) struct Gathered {
    pieces: VecDeque<Bytes>,
    /// Small frames behind them, to which more may be added.
    tail: BytesMut,
    len: usize,
    /// Each frame is flushed by itself.
    apart: bool,
    /// Bytes that may still be encoded inline, and as many as they are at the start.
    credit: usize,
    burst: usize,
}

impl Gathered {
    pub(super) fn new(options: &Options, coding: Coding) -> Self {
        let burst = options.stream_burst(coding);
        Self::with(options.flush == Flush::EveryFrame, burst)
    }

    fn with(apart: bool, burst: usize) -> Self {
        Self {
            pieces: VecDeque::new(),
            tail: BytesMut::new(),
            len: 0,
            apart,
            credit: burst,
            burst,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// More is not to be asked for before this is encoded, though it be ready at once.
    pub(super) fn is_full(&self) -> bool {
        self.is_enough(AT_ONCE) || (self.apart && self.len > 0)
    }

    /// More is not to be waited for before this is encoded.
    pub(super) fn is_plenty(&self) -> bool {
        self.is_enough(1)
    }

    fn is_enough(&self, bursts: usize) -> bool {
        self.len > bursts * self.credit.min(self.burst)
    }

    /// More than may be encoded inline.
    pub(super) fn exceeds_credit(&self) -> bool {
        self.exceeds_credit_by(0)
    }

    /// By more than so many bytes more.
    pub(super) fn exceeds_credit_by(&self, more: usize) -> bool {
        self.len > self.credit.saturating_add(more)
    }

    /// An idle moment: a stream holds little then.
    pub(super) fn refill(&mut self) {
        if self.pieces.capacity() > FEW {
            self.pieces = VecDeque::new();
        }
        let credit = self.credit.saturating_add(REFILL);
        self.credit = credit.min(self.burst.max(self.credit));
    }

    /// All that is here now may be encoded inline.
    pub(super) fn allow_all(&mut self) {
        self.credit = self.len.max(self.burst);
    }

    /// The next slice to be encoded inline, at most `most` bytes, and whether that is flushed behind it.
    pub(super) fn take_inline(&mut self, most: usize) -> Option<(Bytes, bool)> {
        let whole = self.pieces.len();
        // Never nothing: whoever takes slices does so until there are none.
        let slice = self.take(most.min(self.credit.max(1)))?;
        self.credit = self.credit.saturating_sub(slice.len());
        Some((slice, self.apart && self.pieces.len() < whole))
    }

    /// In one piece, as much as may be encoded inline, or half of what was gathered.
    pub(super) fn take_lead(&mut self) -> Bytes {
        let half = self.burst * AT_ONCE / 2;
        let most = (self.len / 2).min(half).max(self.credit);
        let first = self.take(most).unwrap_or_default();
        if first.len() == most {
            return first;
        }
        let mut joined = BytesMut::with_capacity(most);
        joined.extend_from_slice(&first);
        while joined.len() < most {
            let Some(piece) = self.take(most - joined.len()) else {
                break;
            };
            joined.extend_from_slice(&piece);
        }
        joined.freeze()
    }

    /// One frame more.
    pub(super) fn put(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        if self.apart || data.len() >= SMALL {
            self.close();
            self.pieces.push_back(data);
            return;
        }
        if self.tail.is_empty() {
            let last = self.pieces.back().filter(|last| last.len() < SMALL);
            let Some(last) = last else {
                // It may stay alone: most events do.
                return self.pieces.push_back(data);
            };
            self.tail.extend_from_slice(last);
            self.pieces.pop_back();
        }
        self.tail.extend_from_slice(&data);
        if self.tail.len() > SLICE - SMALL {
            self.close();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::with(self.apart, self.burst);
    }

    /// What comes before all that is here.
    pub(super) fn put_back(&mut self, pieces: impl DoubleEndedIterator<Item = Bytes>) {
        for piece in pieces.rev().filter(|piece| !piece.is_empty()) {
            self.len += piece.len();
            self.pieces.push_front(piece);
        }
    }

    /// The first piece, at most `most` bytes of it.
    pub(super) fn take(&mut self, most: usize) -> Option<Bytes> {
        self.close_if_alone();
        let first = self.pieces.front_mut()?;
        let piece = if first.len() > most {
            first.split_to(most)
        } else {
            self.pieces.pop_front()?
        };
        self.len -= piece.len();
        Some(piece)
    }

    /// The same, unless small frames may be added to it.
    pub(super) fn take_full(&mut self, most: usize) -> Option<Bytes> {
        let is_last = self.pieces.len() == 1 && self.tail.is_empty();
        let grows = |first: &Bytes| is_last && first.len() < SMALL && !self.apart;
        match self.pieces.front() {
            Some(first) if !grows(first) => self.take(most),
            _ => None,
        }
    }

    fn close_if_alone(&mut self) {
        if self.pieces.is_empty() {
            self.close();
        }
    }

    fn close(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.pieces.push_back(tail.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize, byte: u8) -> Bytes {
        Bytes::from(vec![byte; len])
    }

    fn lengths(gathered: &mut Gathered) -> Vec<usize> {
        std::iter::from_fn(|| gathered.take(usize::MAX))
            .map(|piece| piece.len())
            .collect()
    }

    #[test]
    fn small_frames_are_copied_together_and_large_ones_are_not_copied() {
        let mut gathered = Gathered::with(false, 0);
        let large = frame(SMALL, b'x');
        let mut text = Vec::new();
        for data in [
            frame(1, b'a'),
            frame(2, b'b'),
            large.clone(),
            frame(3, b'c'),
        ] {
            text.extend_from_slice(&data);
            gathered.put(data);
        }
        assert_eq!(gathered.len, SMALL + 6);
        let pieces: Vec<_> = std::iter::from_fn(|| gathered.take(usize::MAX)).collect();
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
        assert!(gathered.is_empty());
    }

    #[test]
    fn what_is_copied_together_is_of_the_size_of_a_slice() {
        let mut gathered = Gathered::with(false, 0);
        for _ in 0..1000 {
            gathered.put(frame(100, b'x'));
        }
        let lengths = lengths(&mut gathered);
        assert_eq!(lengths.iter().sum::<usize>(), 100_000);
        let (_, full) = lengths.split_last().unwrap();
        assert!(
            full.iter().all(|len| (SLICE - SMALL..=SLICE).contains(len)),
            "{lengths:?}"
        );
    }

    #[test]
    fn a_frame_that_is_flushed_by_itself_stays_apart() {
        let mut gathered = Gathered::with(true, 0);
        for len in 1..4 {
            gathered.put(frame(len, b'x'));
        }
        assert_eq!(lengths(&mut gathered), [1, 2, 3]);
    }

    #[test]
    fn one_small_frame_alone_is_not_full_and_two_are_one() {
        let mut gathered = Gathered::with(false, 0);
        gathered.put(frame(1, b'x'));
        assert_eq!(gathered.take_full(SLICE), None);
        gathered.put(frame(1, b'y'));
        assert_eq!(gathered.take_full(SLICE), None);
        gathered.put(frame(SMALL, b'z'));
        assert_eq!(gathered.take_full(SLICE).unwrap(), "xy");
        assert_eq!(gathered.take_full(10).unwrap(), "zzzzzzzzzz");
        assert_eq!(gathered.len, SMALL - 10);
    }

    #[test]
    fn nothing_is_no_frame_and_a_frame_alone_is_not_copied() {
        let mut gathered = Gathered::with(false, 0);
        gathered.put(Bytes::new());
        let event = frame(100, b'x');
        gathered.put(event.clone());
        let taken = gathered.take(usize::MAX).unwrap();
        assert_eq!(taken.as_ptr(), event.as_ptr());
    }

    #[test]
    fn frames_that_are_flushed_by_themselves_are_each_told_from_the_next() {
        let mut gathered = Gathered::with(true, 2 * SLICE);
        gathered.put(frame(SLICE + 1, b'x'));
        gathered.put(frame(1, b'y'));
        let taken = std::iter::from_fn(|| gathered.take_inline(SLICE));
        let flushes: Vec<_> = taken.map(|(slice, flush)| (slice.len(), flush)).collect();
        assert_eq!(flushes, [(SLICE, false), (1, true), (1, true)]);
    }

    #[test]
    fn an_idle_stream_has_room_for_a_few_pieces_only() {
        let mut gathered = Gathered::with(true, 0);
        (0..100).for_each(|_| gathered.put(frame(1, b'x')));
        while gathered.take(SLICE).is_some() {}
        gathered.refill();
        assert!(gathered.pieces.capacity() <= FEW);
    }

    #[test]
    fn the_beginning_is_half_of_what_was_gathered_within_bounds() {
        for (given, plenty, full, lead) in [
            (100, false, false, 100),
            (101, true, false, 100),
            (300, true, false, 150),
            (800, true, false, 400),
            (5000, true, true, 400),
        ] {
            let mut gathered = Gathered::with(false, 100);
            for _ in 0..given / 50 {
                gathered.put(frame(50, b'x'));
            }
            gathered.put(frame(given % 50, b'x'));
            assert_eq!((gathered.is_plenty(), gathered.is_full()), (plenty, full));
            assert_eq!(gathered.take_lead().len(), lead);
            assert_eq!(gathered.len, given - lead);
        }
    }

    #[test]
    fn what_comes_back_is_first_again() {
        let mut gathered = Gathered::with(false, 0);
        gathered.put(frame(1, b'c'));
        let back = [frame(1, b'a'), Bytes::new(), frame(1, b'b')];
        gathered.put_back(back.into_iter());
        let all: Vec<_> = std::iter::from_fn(|| gathered.take(SLICE)).collect();
        assert_eq!(all.concat(), b"abc");
        assert!(gathered.is_empty());
    }
}
