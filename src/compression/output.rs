//! What has come out of a compressor.

use bytes::Bytes;

use super::encoder::FULL;

/// Room for one call of a compressor. Always as much, however large the buffer is: from where a compressor finds no more
/// room it goes on with other matches than it had.
pub(super) const ROOM: usize = 16 << 10;

/// What a buffer grows by: with the first an event has room, with two a stream that is handed on in time.
const GROWTH: usize = (FULL + ROOM) / 2;

/// A buffer that has grown beyond the usual does not go back with its compressor.
pub(super) const LARGEST_SCRATCH: usize = 4 * GROWTH;

/// Bytes, in a buffer that outlives them and is made ready to be written to only once.
#[derive(Debug, Default)]
pub(super) struct Output {
    buffer: Vec<u8>,
    len: usize,
}

impl Output {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.next(bytes.len()).copy_from_slice(bytes);
    }

    pub(super) fn push_repeated(&mut self, byte: u8, times: usize) {
        self.next(times).fill(byte);
    }

    fn next(&mut self, bytes: usize) -> &mut [u8] {
        let begin = self.len;
        self.len += bytes;
        if self.buffer.len() < self.len {
            self.buffer.resize(self.len, 0);
        }
        &mut self.buffer[begin..self.len]
    }

    /// Where the next bytes go; how many there are is to be told.
    pub(super) fn room(&mut self) -> &mut [u8; ROOM] {
        if self.buffer.len() - self.len < ROOM {
            let end = (self.len + ROOM).next_multiple_of(GROWTH);
            self.buffer.resize(end, 0);
        }
        let room = self.buffer[self.len..].first_chunk_mut();
        room.expect("made a moment ago")
    }

    /// So many bytes of the room were written to.
    pub(super) fn add(&mut self, written: usize) {
        debug_assert!(written <= ROOM);
        self.len += written;
    }

    /// All of it, in a buffer of its own size.
    pub(super) fn take(&mut self) -> Bytes {
        let bytes = Bytes::copy_from_slice(self.as_slice());
        self.clear();
        bytes
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}
