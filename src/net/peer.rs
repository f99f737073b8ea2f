//! The other end of a connection, and the wait for its going.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Sleep;

use super::watch::Connection;
#[cfg(feature = "tracing")]
use crate::scope::quietly;
use crate::{Supervisor, scope::timer};

/// How long to wait before a watch that could not be armed is tried again.
const ARM_AGAIN: Duration = Duration::from_secs(1);

/// The client at the other end of one connection.
///
/// Cheap to clone, and it keeps nothing open: the socket belongs to the
/// [`WatchedStream`](super::WatchedStream) alone. All requests of a connection share one watch.
///
/// An extractor in axum, of requests that [`serve`](super::serve) or a
/// [`WatchedListener`](super::WatchedListener) with `ConnectInfo<Peer>` brought; `Option<Peer>` elsewhere.
/// It is the one way that works under both: [`serve`](super::serve) inserts no `ConnectInfo<Peer>`.
///
/// A server that notices the end by itself drops the handler, and no branch of it is taken: this shows
/// what a handler outside the layers is told where the server does not.
///
/// ```
/// # use bodyguard::net::Peer;
/// # async fn work() {}
/// # async fn handler(peer: Peer) -> Option<()> {
/// tokio::select! {
///     end = peer.gone() => { println!("{} left: {end:?}", peer.addr()); None }
///     () = work() => Some(()),
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Peer {
    connection: Arc<Connection>,
    /// That of its server: scopes that have none of their own belong to it.
    supervisor: Option<Supervisor>,
    /// Nothing stands between the stream and the server.
    bare: bool,
}

/// How the end of a connection was seen; the first sighting counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerEnd {
    /// The peer sent FIN: it closed the connection, or its sending side.
    Fin,
    /// The peer reset the connection, or TCP gave up on it (a time-out).
    Rst,
    /// Our side closed it first: the server dropped it, or [`Peer::close`] or [`Peer::reset`].
    Closed,
}

/// Waits until the connection has ended; from [`Peer::gone`].
///
/// Ready from then on, at every poll.
///
/// # On drop
/// The wait ends; the last one of a connection takes the watch down.
#[must_use = "futures watch nothing unless polled"]
pub struct Gone {
    connection: Arc<Connection>,
    /// Boxed: only a delayed wait has one, and the watch's own state stays a few words.
    delay: Option<Pin<Box<Sleep>>>,
    key: Option<usize>,
}

impl Peer {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            supervisor: None,
            bare: false,
        }
    }

    /// The same for a server that reads the stream as it is, so that it shares what the stream sees.
    ///
    /// TLS on top of it may come to its end, and the server's, before the client has closed.
    pub(super) fn of_bare(self) -> Self {
        Self { bare: true, ..self }
    }

    pub(crate) fn is_bare(&self) -> bool {
        self.bare
    }

    /// The same for a server that drains `supervisor`.
    pub(super) fn served_under(self, supervisor: &Supervisor) -> Self {
        Self {
            supervisor: Some(supervisor.clone()),
            ..self
        }
    }

    pub(crate) fn supervisor(&self) -> Option<&Supervisor> {
        self.supervisor.as_ref()
    }

    /// From here on it counts what is [heard](Self::was_heard).
    pub(super) fn listen_anew(&self) {
        self.connection.hear(false);
    }

    /// Whether it has sent anything since, or has held up a write, so that bytes are on their way.
    pub(super) fn was_heard(&self) -> bool {
        self.connection.was_heard()
    }

    /// The peer that serves this request, if its extensions name one.
    ///
    /// A `Peer` put there by hand comes first, then (feature `axum`) `ConnectInfo<Peer>`.
    pub fn from_extensions(extensions: &http::Extensions) -> Option<&Self> {
        let by_hand = extensions.get::<Self>();
        #[cfg(feature = "axum")]
        let by_hand = by_hand.or_else(|| {
            extensions
                .get::<axum::extract::ConnectInfo<Self>>()
                .map(|info| &info.0)
        });
        by_hand
    }

    /// The peer's address.
    pub fn addr(&self) -> SocketAddr {
        self.connection.addr
    }

    /// How the connection ended, if it has been seen to.
    ///
    /// Reads one atomic. While nobody waits in [`gone`](Self::gone), only what the server's own
    /// reads and writes ran into is known.
    pub fn end(&self) -> Option<PeerEnd> {
        self.connection.end()
    }

    /// Whether the connection has been seen to end; see [`end`](Self::end).
    pub fn is_gone(&self) -> bool {
        self.end().is_some()
    }

    /// Whether a peer that has finished sending still counts as there.
    pub fn half_close(&self) -> bool {
        self.connection.half_close
    }

    /// Waits until the connection ends, and watches it meanwhile.
    ///
    /// The watch is armed at the first poll. It costs one more descriptor per *connection* while
    /// anybody waits. When none is to be had, arming is tried again every second (with a warning
    /// through `tracing`, if enabled).
    pub fn gone(&self) -> Gone {
        Gone {
            connection: Arc::clone(&self.connection),
            delay: None,
            key: None,
        }
    }

    /// Like [`gone`](Self::gone), but arms the watch only once `delay` has passed.
    ///
    /// For requests that mostly finish sooner: they then cost a timer, and no descriptor. On a
    /// runtime without timers the watch is armed at the first poll.
    pub fn gone_after(&self, delay: Duration) -> Gone {
        let mut gone = self.gone();
        if !delay.is_zero() {
            gone.wait_for(delay);
        }
        gone
    }

    /// Ends the connection, both ways, after what is queued for sending.
    ///
    /// The server's pending reads and writes fail at once, so that a connection held up by a
    /// client that does not read comes to its end. Does nothing to a connection that has ended.
    pub fn close(&self) {
        self.connection.shut_down(false);
    }

    /// Like [`close`](Self::close), but discards what is queued and sends RST.
    ///
    /// For clients that do not read: the kernel then holds no queue for them, and they cannot take what
    /// they have for a whole response. One that has read all that was sent may see a FIN first. RST goes out when the server drops the
    /// connection, which it does as its reads and writes now fail.
    pub fn reset(&self) {
        self.connection.shut_down(true);
    }

    /// The write that waits for the client to read, if one does: the next one has another number.
    pub(crate) fn held_up(&self) -> Option<u32> {
        self.connection.held_up()
    }

    /// Has the server's own close be a reset: the FIN of [`reset`](Self::reset) may overtake its RST.
    pub(crate) fn end_in_reset(&self) {
        self.connection.end_in_reset();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("addr", &self.addr())
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}

impl PeerEnd {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Fin => 1,
            Self::Rst => 2,
            Self::Closed => 3,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Fin, Self::Rst, Self::Closed]
            .into_iter()
            .find(|end| end.code() == code)
    }
}

impl Gone {
    /// False if the connection's runtime has no timers.
    fn wait_for(&mut self, delay: Duration) -> bool {
        let _context = self.connection.runtime.enter();
        self.delay = timer(delay).map(Box::pin);
        self.delay.is_some()
    }
}

impl Future for Gone {
    type Output = PeerEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PeerEnd> {
        let this = &mut *self;
        loop {
            if let Some(end) = this.connection.end() {
                return Poll::Ready(end);
            }
            if let Some(delay) = &mut this.delay {
                ready!(delay.as_mut().poll(cx));
                this.delay = None;
            }
            match ready!(this.connection.poll_end(&mut this.key, cx)) {
                Ok(end) => return Poll::Ready(end),
                // Not the system's: the runtime is shutting down, its timers with it.
                Err(error) if error.raw_os_error().is_none() => return Poll::Pending,
                Err(error) => {
                    warn_unarmed(this.connection.addr, &error);
                    if !this.wait_for(ARM_AGAIN) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.connection.release(key);
        }
    }
}

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gone")
            .field("addr", &self.connection.addr)
            .field("end", &self.connection.end())
            .finish_non_exhaustive()
    }
}

fn warn_unarmed(_addr: SocketAddr, _error: &io::Error) {
    #[cfg(feature = "tracing")]
    quietly(|| {
        tracing::warn!(
            peer = %_addr,
            error = %_error,
            "cannot watch a connection for its end, trying again in 1 s"
        );
    });
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
        net::TcpStream,
    };

    use super::{
        super::{WatchedListener, WatchedStream, mute::Mute},
        *,
    };

    /// Writes until there is no room, and says which write that was.
    async fn hold_up(stream: &mut WatchedStream) -> u32 {
        poll_fn(|cx| {
            while let Poll::Ready(written) = Pin::new(&mut *stream).poll_write(cx, &[0; 4096]) {
                written.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        stream.peer().held_up().expect("a write is held up")
    }

    #[tokio::test]
    async fn a_write_is_held_up_until_it_goes_on_or_the_connection_ends() {
        let mut listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(addr).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let peer = stream.peer();
        // The system's word that a new connection has room is still to come.
        stream.write_all(b"a").await.unwrap();
        assert_eq!(peer.held_up(), None);
        let first = hold_up(&mut stream).await;
        assert_eq!(hold_up(&mut stream).await, first, "nothing went on");
        let mut room = vec![0; 64 << 10];
        let reads = async {
            while peer.held_up().is_some() {
                client.read_exact(&mut room).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let writes = poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, &[0; 4096]));
        let (written, ()) = tokio::join!(writes, reads);
        assert!(written.unwrap() > 0);
        assert_ne!(hold_up(&mut stream).await, first, "another write");
        peer.reset();
        assert_eq!(peer.held_up(), None);
    }

    #[test]
    fn a_subscriber_that_panics_at_the_warning() {
        let subscriber = Mute::new();
        let error = io::Error::other("none left");
        warn_unarmed(SocketAddr::from(([127, 0, 0, 1], 1)), &error);
        assert_eq!(subscriber.told(), 1);
    }
}
