//! The bytes between sync code that writes and the body that is read: bounded, in order.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

/// What the first small writes are gathered in; the chunks after it double in size.
const FIRST_CHUNK: usize = 8 * 1024;

/// The largest chunk: a body that writes much should leave in few, large frames.
const LARGEST_CHUNK: usize = 64 * 1024;

/// Chunks smaller than this are copied together instead of passed on one by one.
const SMALL: usize = 2 * 1024;

/// A byte queue with one writer and one reader.
///
/// The reader takes all that was gathered since its last turn: small writes become large frames
/// when the reader is slower, and leave at once when it is not, so there is no flush to forget.
/// A full pipe lets the writer sleep until a quarter is left, not until the next byte is free: each
/// wake costs as much as the copy of several KiB.
pub(super) struct Pipe {
    state: Mutex<State>,
}

struct State {
    limit: usize,
    frames: VecDeque<Bytes>,
    /// What comes after the frames, still growing.
    tail: BytesMut,
    chunk: usize,
    bytes: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<(Waker, usize)>,
}

/// Why nothing was written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    /// The reader has gone.
    Closed,
}

impl Pipe {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            state: Mutex::new(State {
                limit: limit.max(1),
                frames: VecDeque::new(),
                tail: BytesMut::new(),
                chunk: FIRST_CHUNK,
                bytes: 0,
                closed: false,
                reader: None,
                writer: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how many bytes may wait; what waits already stays.
    pub(super) fn set_limit(&self, limit: usize) {
        let mut state = self.lock();
        state.limit = limit.max(1);
        let writer = state.writer_to_wake();
        drop(state);
        wake(writer);
    }

    /// Lets as many bytes wait, if fewer may; whether they do now.
    pub(super) fn raise_limit(&self, limit: usize) -> bool {
        let mut state = self.lock();
        let raised = state.limit < limit;
        state.limit = state.limit.max(limit);
        raised
    }

    /// Copies in as much as there is room for.
    pub(super) fn write(&self, data: &[u8]) -> Result<usize, Refused> {
        let mut state = self.lock();
        let room = state.room()?;
        let taken = room.min(data.len());
        state.append(&data[..taken]);
        let reader = state.reader.take();
        drop(state);
        wake(reader);
        Ok(taken)
    }

    /// Passes a chunk on whole; one larger than the limit goes alone.
    pub(super) fn push(&self, data: &Bytes) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.has_room_for(data.len()) {
            return Err(Refused::Full);
        }
        if data.len() < SMALL {
            state.append(data);
        } else {
            state.seal();
            state.frames.push_back(data.clone());
            state.bytes += data.len();
        }
        let reader = state.reader.take();
        drop(state);
        wake(reader);
        Ok(())
    }

    /// Ready once a write of `len` bytes is worth another try.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, len: usize) -> Poll<()> {
        let mut state = self.lock();
        if state.closed || state.is_worth_waking_for(len) {
            return Poll::Ready(());
        }
        let old = state.writer.replace((cx.waker().clone(), len));
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Whether the reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The next frame.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut state = self.lock();
        let Some(frame) = state.take() else {
            let old = state.reader.replace(cx.waker().clone());
            drop(state);
            drop(old);
            return Poll::Pending;
        };
        let writer = state.writer_to_wake();
        drop(state);
        wake(writer);
        Poll::Ready(frame)
    }

    /// The next frame, if there is one.
    pub(super) fn read_now(&self) -> Option<Bytes> {
        self.lock().take()
    }

    /// The reader goes: what waits is dropped, writes are refused.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let frames = (
            std::mem::take(&mut state.frames),
            std::mem::take(&mut state.tail),
        );
        let writer = state.writer.take().map(|(writer, _)| writer);
        drop(state);
        drop(frames);
        wake(writer);
    }
}

impl State {
    fn room(&self) -> Result<usize, Refused> {
        if self.closed {
            return Err(Refused::Closed);
        }
        match self.limit.saturating_sub(self.bytes) {
            0 => Err(Refused::Full),
            room => Ok(room),
        }
    }

    fn has_room_for(&self, len: usize) -> bool {
        self.bytes == 0 || self.bytes.saturating_add(len) <= self.limit
    }

    fn is_worth_waking_for(&self, len: usize) -> bool {
        self.bytes <= self.limit / 4 && self.has_room_for(len)
    }

    fn writer_to_wake(&mut self) -> Option<Waker> {
        let (_, len) = self.writer.as_ref()?;
        if self.is_worth_waking_for(*len) {
            return self.writer.take().map(|(writer, _)| writer);
        }
        None
    }

    fn append(&mut self, data: &[u8]) {
        if self.tail.capacity() - self.tail.len() < data.len() {
            self.seal();
            self.tail = BytesMut::with_capacity(self.chunk.max(data.len()));
            self.chunk = (self.chunk * 2).min(LARGEST_CHUNK);
        }
        self.tail.extend_from_slice(data);
        self.bytes += data.len();
    }

    /// Makes what was gathered a frame of its own.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let frame = self.tail.split().freeze();
            self.frames.push_back(frame);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let frame = match self.frames.pop_front() {
            Some(frame) => frame,
            None if self.tail.is_empty() => return None,
            None => self.tail.split().freeze(),
        };
        self.bytes -= frame.len();
        Some(frame)
    }
}

/// Outside the lock: a waker may run anything.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        task::Wake,
        thread,
        time::Duration,
    };

    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn small_writes_leave_as_one_frame() {
        let pipe = Pipe::new(100);
        assert_eq!(pipe.write(b"ab"), Ok(2));
        assert_eq!(pipe.write(b"cd"), Ok(2));
        assert_eq!(pipe.read_now().unwrap(), "abcd");
        assert_eq!(pipe.write(b"e"), Ok(1));
        assert_eq!(pipe.read_now().unwrap(), "e");
        assert_eq!(pipe.read_now(), None);
    }

    #[test]
    fn the_bound_is_in_bytes_and_room_is_offered_at_a_quarter() {
        let pipe = Pipe::new(10);
        assert_eq!(pipe.write(&[0; 6]), Ok(6));
        assert_eq!(pipe.push(&Bytes::from_static(&[1; 4])), Ok(()));
        assert_eq!(pipe.write(b"x"), Err(Refused::Full));
        assert!(pipe.poll_room(&mut cx(), 1).is_pending());
        assert!(pipe.poll_read(&mut cx()).is_ready());
        assert!(pipe.poll_room(&mut cx(), 1).is_ready());
        assert_eq!(pipe.write(&[2; 20]), Ok(10));

        let pipe = Pipe::new(10_000);
        for _ in 0..3 {
            pipe.push(&Bytes::from(vec![3; 3_000])).unwrap();
        }
        assert!(pipe.poll_room(&mut cx(), 3_000).is_pending());
        pipe.read_now();
        pipe.read_now();
        assert!(pipe.poll_room(&mut cx(), 3_000).is_pending());
        pipe.read_now();
        assert!(pipe.poll_room(&mut cx(), 3_000).is_ready());
    }

    #[test]
    fn a_chunk_larger_than_the_bound_passes_alone_and_uncopied() {
        let pipe = Pipe::new(16);
        let big = Bytes::from(vec![7; 5_000]);
        assert_eq!(pipe.write(b"first"), Ok(5));
        assert_eq!(pipe.push(&big), Err(Refused::Full));
        assert!(pipe.poll_room(&mut cx(), big.len()).is_pending());
        assert_eq!(pipe.read_now().unwrap(), "first");
        assert!(pipe.poll_room(&mut cx(), big.len()).is_ready());
        assert_eq!(pipe.push(&big), Ok(()));
        assert_eq!(pipe.write(b"x"), Err(Refused::Full));
        assert_eq!(pipe.read_now().unwrap().as_ptr(), big.as_ptr());
    }

    #[test]
    fn order_is_kept_between_copied_and_passed_chunks() {
        let pipe = Pipe::new(1 << 20);
        let big = Bytes::from(vec![b'-'; SMALL]);
        pipe.write(b"a").unwrap();
        pipe.push(&big).unwrap();
        pipe.write(b"b").unwrap();
        pipe.push(&Bytes::from_static(b"c")).unwrap();
        let frames: Vec<_> = std::iter::from_fn(|| pipe.read_now()).collect();
        assert_eq!(
            frames,
            [Bytes::from_static(b"a"), big, Bytes::from_static(b"bc")]
        );
    }

    #[test]
    fn a_closed_pipe_refuses() {
        let pipe = Pipe::new(4);
        pipe.write(b"abcd").unwrap();
        pipe.close();
        assert_eq!(pipe.write(b"e"), Err(Refused::Closed));
        assert_eq!(pipe.push(&Bytes::from_static(b"e")), Err(Refused::Closed));
        assert!(pipe.poll_room(&mut cx(), 1).is_ready());
        assert_eq!(pipe.read_now(), None);
    }

    /// It looks at the pipe when it is dropped, as a waker of foreign make may.
    struct Looks(Arc<Pipe>);

    impl Wake for Looks {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Looks {
        fn drop(&mut self) {
            self.0.is_closed();
        }
    }

    #[test]
    fn a_waker_that_another_replaces_is_not_dropped_under_the_lock() {
        let (done, finished) = mpsc::channel();
        thread::spawn(move || {
            let pipe = Arc::new(Pipe::new(4));
            pipe.write(b"abcd").unwrap();
            for reads in [false, true] {
                for last in [false, true] {
                    let looks = Waker::from(Arc::new(Looks(Arc::clone(&pipe))));
                    let waker = if last { Waker::noop() } else { &looks };
                    let mut cx = Context::from_waker(waker);
                    let pending = match reads {
                        true => pipe.poll_read(&mut cx).is_pending(),
                        false => pipe.poll_room(&mut cx, 1).is_pending(),
                    };
                    assert!(pending);
                }
                pipe.read_now();
            }
            done.send(()).unwrap();
        });
        let limit = Duration::from_secs(20);
        finished.recv_timeout(limit).expect("panicked, or hangs");
    }
}
