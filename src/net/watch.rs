//! One connection as its stream, its peers and their waiters see it.
//!
//! Invariants:
//! 1. The socket (one half in the stream, one in `writer`) and `eye` are the only descriptors of the
//!    connection. The stream's drop takes first the writer, without which nothing is armed any
//!    more, then the eye, and gives its own half: TCP ends there.
//! 2. `end` is set once. It is stored before the waiters' wakers are taken, and a waiter registers
//!    before it reads `end` the last time, so no wake-up is lost.
//! 3. Locks: `state`, then `writer`. Under `state` no waker of a waiter is called or dropped, and no
//!    registration is dropped: either could come back here.
//! 4. The reactor holds the eye's waker, an `Arc` of this connection, and this connection holds the eye: a
//!    cycle while armed. The last waiter's drop and the stream's take the eye out and so end it.

use std::{
    future::Future,
    io, mem,
    net::{Shutdown, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncWrite, Interest},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
};

use super::peer::PeerEnd;
use crate::scope::quietly;

/// What the stream and every `Peer` share.
pub(super) struct Connection {
    pub(super) addr: SocketAddr,
    pub(super) half_close: bool,
    pub(super) runtime: Handle,
    /// Our side has sent its FIN: a hang-up is no longer the peer's doing alone.
    finished: AtomicBool,
    /// Something that failed wants the client to see a reset.
    cut_off: AtomicBool,
    /// The peer has sent something, or held up a write, since this was last cleared.
    heard: AtomicBool,
    /// Odd while a write is held up; each has a number of its own.
    held_up: AtomicU32,
    /// 0, or a `PeerEnd`; first one wins.
    end: AtomicU8,
    /// Shared with peers, who shut it down or duplicate it; the stream reads without this lock.
    writer: Mutex<Option<OwnedWriteHalf>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The duplicate, registered for itself. Present only while somebody waits.
    eye: Option<TcpStream>,
    waiters: Waiters,
}

impl Connection {
    /// The connection, and the half that its stream reads from.
    pub(super) fn new(
        socket: TcpStream,
        addr: SocketAddr,
        half_close: bool,
    ) -> (Arc<Self>, OwnedReadHalf) {
        let (reader, writer) = socket.into_split();
        let connection = Self {
            addr,
            half_close,
            runtime: Handle::current(),
            finished: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            held_up: AtomicU32::new(0),
            end: AtomicU8::new(0),
            writer: Mutex::new(Some(writer)),
            state: Mutex::new(State::default()),
        };
        (Arc::new(connection), reader)
    }

    pub(super) fn end(&self) -> Option<PeerEnd> {
        PeerEnd::from_code(self.end.load(Ordering::Acquire))
    }

    /// Records how the connection ended, unless that is known already, and wakes who waits.
    pub(super) fn note(&self, end: PeerEnd) {
        // AcqRel: pairs with the load in `end`, which waiters repeat after they have registered.
        let first = self
            .end
            .compare_exchange(0, end.code(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            let wakers = self.state().waiters.take_wakers();
            for waker in wakers {
                // One that panics keeps it from nobody else.
                quietly(|| waker.wake());
            }
        }
    }

    /// Runs `f` on the writer; `None` once the stream has been dropped.
    pub(super) fn with_writer<R>(&self, f: impl FnOnce(&mut OwnedWriteHalf) -> R) -> Option<R> {
        self.writer().as_mut().map(f)
    }

    /// Relaxed: who clears it and asks is the task that reads and writes.
    pub(super) fn hear(&self, heard: bool) {
        self.heard.store(heard, Ordering::Relaxed);
    }

    pub(super) fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// A write begins to be held up, or goes on. Relaxed: it is a fact about nothing else.
    pub(super) fn turn_held_up(&self) {
        self.held_up.fetch_add(1, Ordering::Relaxed);
    }

    /// The write that is held up, on a connection that has not ended.
    pub(super) fn held_up(&self) -> Option<u32> {
        let number = self.held_up.load(Ordering::Relaxed);
        (number % 2 == 1 && self.end().is_none()).then_some(number)
    }

    /// Our side is about to send its FIN.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    /// The server ends the connection well: what failed on it was not, or not all of, the answer.
    pub(super) fn end_well(&self) {
        if self.cut_off.swap(false, Ordering::Relaxed) {
            self.with_writer(|writer| set_linger(writer.as_ref(), None));
        }
    }

    /// What an error of the stream's own reads and writes tells of the peer.
    pub(super) fn note_error(&self, error: &io::Error) {
        let gone = match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::TimedOut
            // What TCP gives up with where routers have said why.
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => true,
            // After our own FIN a broken pipe is our own doing.
            io::ErrorKind::BrokenPipe => !self.finished.load(Ordering::Relaxed),
            _ => false,
        };
        if gone {
            self.note(PeerEnd::Rst);
        }
    }

    /// Ends both directions from our side, and by RST instead of FIN if `reset` is set.
    pub(super) fn shut_down(&self, reset: bool) {
        self.note(PeerEnd::Closed);
        self.finish();
        self.with_writer(|writer| {
            if reset {
                set_linger(writer.as_ref(), Some(Duration::ZERO));
            }
            // std shuts down both directions, for which it needs a descriptor of its own. When
            // none is left, the write side alone makes the server's next write fail, too.
            match duplicate(writer.as_ref()) {
                Ok(socket) => drop(socket.shutdown(Shutdown::Both)),
                Err(_) => {
                    let mut cx = Context::from_waker(Waker::noop());
                    let _ = Pin::new(writer).poll_shutdown(&mut cx);
                }
            }
        });
    }

    /// Has the drop of the stream send RST instead of FIN, and discard what is queued.
    pub(super) fn end_in_reset(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
        self.with_writer(|writer| set_linger(writer.as_ref(), Some(Duration::ZERO)));
    }

    /// The stream is being dropped: closes every descriptor, now (invariant 1).
    pub(super) fn close(&self, reader: Option<OwnedReadHalf>) {
        if let Some(writer) = self.writer().take() {
            // Not shut down but closed, with the reader.
            writer.forget();
        }
        let eye = self.state().eye.take();
        drop(eye);
        drop(reader);
        self.note(PeerEnd::Closed);
    }

    /// Waits for the end, arming the watch if it is not. `key` is the waiter's, to be released.
    ///
    /// Fails when the watch cannot be armed; the waiter stays registered for what the stream
    /// itself sees.
    pub(super) fn poll_end(
        self: &Arc<Self>,
        key: &mut Option<usize>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<PeerEnd>> {
        let replaced;
        let (end, eye) = {
            let mut state = self.state();
            replaced = state.waiters.register(key, cx.waker());
            if let Some(end) = self.end() {
                return Poll::Ready(Ok(end));
            }
            if state.eye.is_none() {
                state.eye = self.open_eye()?;
            }
            match self.look(&state) {
                Some(end) => (end, state.eye.take()),
                None => return Poll::Pending,
            }
        };
        drop((replaced, eye));
        self.note(end);
        Poll::Ready(Ok(self.end().unwrap_or(end)))
    }

    /// The waiter has gone; with the last one goes the duplicate.
    pub(super) fn release(&self, key: usize) {
        let last_used = {
            let mut state = self.state();
            let waker = state.waiters.remove(key);
            let unused = state.waiters.is_empty();
            (waker, if unused { state.eye.take() } else { None })
        };
        drop(last_used);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<OwnedWriteHalf>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_eye(&self) -> io::Result<Option<TcpStream>> {
        match self.with_writer(|writer| duplicate(writer.as_ref())) {
            Some(Ok(duplicate)) => {
                let _context = self.runtime.enter();
                TcpStream::from_std(duplicate).map(Some)
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }

    /// One look through the eye. `None` leaves this connection's waker with the reactor.
    fn look(self: &Arc<Self>, state: &State) -> Option<PeerEnd> {
        let eye = state.eye.as_ref()?;
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        loop {
            if !poll_edge(eye, self.half_close, &mut cx) {
                return None;
            }
            if let Some(end) = self.judge(eye) {
                return Some(end);
            }
            // Bytes arrived (or room to write did): wait for the next edge. This clears the
            // duplicate's readiness only; "closed" and "error" outlive it, and a newer
            // event than the one just read is not cleared.
            let _ = eye.try_io(edge_interest(self.half_close), || {
                Err::<(), _>(io::ErrorKind::WouldBlock.into())
            });
        }
    }

    fn judge(&self, eye: &TcpStream) -> Option<PeerEnd> {
        let all = Interest::READABLE | Interest::WRITABLE | Interest::ERROR;
        let mut cx = Context::from_waker(Waker::noop());
        let ready = match pin!(eye.ready(all)).poll(&mut cx) {
            Poll::Ready(Ok(ready)) => ready,
            Poll::Ready(Err(_)) | Poll::Pending => return None,
        };
        let finished = self.finished.load(Ordering::Relaxed);
        // The stream's own read may have taken the socket's error away; the hang-up remains.
        if ready.is_error() || (ready.is_write_closed() && !finished) {
            Some(PeerEnd::Rst)
        } else if ready.is_read_closed() && (!self.half_close || finished) {
            Some(PeerEnd::Fin)
        } else {
            None
        }
    }
}

/// The reactor saw something happen on the eye.
impl Wake for Connection {
    fn wake(self: Arc<Self>) {
        let (end, eye) = {
            let mut state = self.state();
            match self.look(&state) {
                Some(end) => (end, state.eye.take()),
                None => return,
            }
        };
        drop(eye);
        self.note(end);
    }
}

/// The wakers of those who wait, by key.
#[derive(Default)]
struct Waiters {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Waiters {
    /// Returns the waker that was replaced, to be dropped outside the lock.
    #[must_use]
    fn register(&mut self, key: &mut Option<usize>, waker: &Waker) -> Option<Waker> {
        let key = *key.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            })
        });
        match &self.slots[key] {
            Some(known) if known.will_wake(waker) => None,
            _ => self.slots[key].replace(waker.clone()),
        }
    }

    /// Returns the waiter's waker, to be dropped outside the lock.
    #[must_use]
    fn remove(&mut self, key: usize) -> Option<Waker> {
        let waker = self.slots[key].take();
        self.free.push(key);
        if self.is_empty() {
            *self = Self::default();
        }
        waker
    }

    fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Keys stay taken: each waiter gives its own back.
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.slots.iter_mut().filter_map(mem::take).collect()
    }
}

/// The direction whose edges are followed. Under half-close a FIN is no news, and the write side
/// is the one that tells of a reset but not of a FIN.
fn edge_interest(half_close: bool) -> Interest {
    if half_close {
        Interest::WRITABLE
    } else {
        Interest::READABLE
    }
}

/// Whether something has happened; if not, `cx` is with the reactor.
fn poll_edge(eye: &TcpStream, half_close: bool, cx: &mut Context<'_>) -> bool {
    // Unconstrained: out of budget, tokio would call our waker at once, under our own lock.
    let edge = tokio::task::unconstrained(std::future::poll_fn(|cx| {
        if half_close {
            eye.poll_write_ready(cx)
        } else {
            eye.poll_read_ready(cx)
        }
    }));
    // An error: the runtime is shutting down, and with it the stream.
    matches!(pin!(edge).poll(cx), Poll::Ready(Ok(())))
}

/// Zero is the one linger time that never blocks: close() sends RST and drops what is unsent.
#[allow(
    deprecated,
    reason = "`set_zero_linger` is newer than the oldest tokio we build with; zero or nothing is what is set"
)]
fn set_linger(socket: &TcpStream, linger: Option<Duration>) {
    let _ = socket.set_linger(linger);
}

#[cfg(unix)]
fn duplicate(socket: &TcpStream) -> io::Result<std::net::TcpStream> {
    use std::os::fd::AsFd;
    socket.as_fd().try_clone_to_owned().map(Into::into)
}

#[cfg(not(unix))]
fn duplicate(_socket: &TcpStream) -> io::Result<std::net::TcpStream> {
    Err(io::ErrorKind::Unsupported.into())
}
