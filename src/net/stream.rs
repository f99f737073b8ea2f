//! An accepted connection whose end can be watched.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    peer::{Gone, Peer, PeerEnd},
    watch::Connection,
};
use crate::scope::contained;

/// How long a write has to be held up before it watches for the client's going.
const HELD_UP_AFTER: Duration = Duration::from_millis(20);

/// A TCP connection that can tell, through its [`Peer`], when the other end goes.
///
/// Reads and writes go straight to the socket; TLS streams work on top of it as on a
/// `TcpStream` (take the [`peer`](Self::peer) first). A write that is held up, because the client
/// does not read, fails once the client is seen to have gone: a server that can write nothing asks
/// for no further frame, and nobody else would find out.
///
/// # On drop
/// The connection is closed as a `TcpStream` is, at once: no [`Peer`] and no watch keeps it open.
/// Whoever waits for the peer wakes up.
///
/// ```no_run
/// # use bodyguard::net::WatchedListener;
/// # use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto};
/// # use hyper::{service::service_fn, Response};
/// # async fn serve() -> std::io::Result<()> {
/// let mut listener = WatchedListener::bind("127.0.0.1:3000").await?;
/// loop {
///     let (stream, _addr) = listener.accept().await?;
///     let peer = stream.peer();
///     let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
///         request.extensions_mut().insert(peer.clone());
///         async { Ok::<_, std::convert::Infallible>(Response::new(String::new())) }
///     });
///     tokio::task::spawn(async move {
///         auto::Builder::new(TokioExecutor::new())
///             .serve_connection(TokioIo::new(stream), service)
///             .await
///     });
/// }
/// # }
/// ```
pub struct WatchedStream {
    connection: Arc<Connection>,
    /// Taken by the drop alone.
    reader: Option<OwnedReadHalf>,
    held_up: HeldUp,
}

/// A write that waits for its client to read.
enum HeldUp {
    No,
    Watched(Gone),
    /// The runtime is shutting down.
    Unwatched,
}

const OPEN: &str = "only this stream's drop takes the socket";

impl WatchedStream {
    /// Wraps a connection that was accepted elsewhere; `half_close` as on the
    /// [listener](super::WatchedListener::half_close).
    ///
    /// # Errors
    /// If the socket's peer has no address: it is no longer connected.
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn new(socket: TcpStream, half_close: bool) -> io::Result<Self> {
        let addr = socket.peer_addr()?;
        Ok(Self::with_addr(socket, addr, half_close))
    }

    pub(super) fn with_addr(socket: TcpStream, addr: SocketAddr, half_close: bool) -> Self {
        let (connection, reader) = Connection::new(socket, addr, half_close);
        Self {
            connection,
            reader: Some(reader),
            held_up: HeldUp::No,
        }
    }

    /// The other end, to be put into the extensions of its requests.
    pub fn peer(&self) -> Peer {
        Peer::new(Arc::clone(&self.connection))
    }

    /// The address of our end.
    ///
    /// # Errors
    /// As [`TcpStream::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.with_socket(TcpStream::local_addr)
    }

    /// The address of the other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.connection.addr
    }

    /// Runs `f` on the socket, for its options.
    pub fn with_socket<R>(&self, f: impl FnOnce(&TcpStream) -> R) -> R {
        f(self.reader.as_ref().expect(OPEN).as_ref())
    }

    fn poll_writer<T>(
        &mut self,
        cx: &mut Context<'_>,
        f: impl FnOnce(Pin<&mut OwnedWriteHalf>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = self
            .connection
            .with_writer(|writer| f(Pin::new(writer), cx))
            .expect(OPEN);
        if polled.is_pending() {
            if self.poll_held_up(cx) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        } else if !matches!(self.held_up, HeldUp::No) {
            self.held_up = HeldUp::No;
            self.connection.turn_held_up();
        }
        self.noted(polled)
    }

    /// True once the client, who does not read, is known to have gone.
    fn poll_held_up(&mut self, cx: &mut Context<'_>) -> bool {
        self.connection.hear(true);
        if let HeldUp::No = self.held_up {
            self.connection.turn_held_up();
            self.held_up = HeldUp::Watched(self.peer().gone_after(HELD_UP_AFTER));
        }
        let HeldUp::Watched(gone) = &mut self.held_up else {
            return false;
        };
        match contained(|| Pin::new(gone).poll(cx)) {
            Ok(polled) => polled.is_ready(),
            // Timers panic where their runtime is shutting down.
            Err(_) => {
                self.held_up = HeldUp::Unwatched;
                false
            }
        }
    }

    /// What the server's own reads and writes run into is a sighting, too.
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.connection.note_error(error);
        }
        polled
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        let polled = Pin::new(self.reader.as_mut().expect(OPEN)).poll_read(cx, buf);
        let end_of_file = room > 0 && buf.remaining() == room;
        if buf.remaining() < room {
            self.connection.hear(true);
        }
        if end_of_file && !self.connection.half_close && matches!(polled, Poll::Ready(Ok(()))) {
            self.connection.note(PeerEnd::Fin);
        }
        self.noted(polled)
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_writer(cx, |writer, cx| writer.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writer(cx, |writer, cx| writer.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        // What `TcpStream` says, without its lock.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket has nothing to flush, and servers ask often: no lock.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.finish();
        self.connection.end_well();
        self.poll_writer(cx, |writer, cx| writer.poll_shutdown(cx))
    }
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        self.connection.close(self.reader.take());
    }
}

impl fmt::Debug for WatchedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedStream")
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}
