//! Accepting connections that can be watched, without falling over.

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, ToSocketAddrs},
    time::sleep,
};

use super::{keepalive, stream::WatchedStream};
use crate::scope::quietly;

/// The first pause after a failed accept; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

type OnError = Box<dyn FnMut(&io::Error) + Send>;

/// A TCP listener whose connections know when their peer has gone.
///
/// Sets `TCP_NODELAY` on every connection: a body end held back for a closer would otherwise wait
/// for the client's delayed ACK. A client that is out of reach sends neither FIN nor RST: silent connections
/// are probed ([`tcp_keepalive`](Self::tcp_keepalive)). It is an `axum::serve::Listener` (feature `axum`), and has an
/// [`accept`](Self::accept) of its own for bare hyper.
///
/// Under `axum::serve` the connect info is what brings the [`Peer`](super::Peer) to the layers: without
/// `into_make_service_with_connect_info::<Peer>()` nothing is watched. [`serve`](super::serve) does it by
/// itself; handlers that take `Peer` work under both.
///
/// ```no_run
/// # use axum::{routing::get, Router};
/// use bodyguard::net::{Peer, WatchedListener};
/// # async fn run() -> std::io::Result<()> {
/// async fn handler(peer: Peer) -> String {
///     peer.addr().to_string()
/// }
/// let app = Router::new().route("/", get(handler));
/// let listener = WatchedListener::bind("127.0.0.1:3000").await?;
/// axum::serve(listener, app.into_make_service_with_connect_info::<Peer>()).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a listener that nobody accepts from is closed when dropped"]
pub struct WatchedListener {
    pub(super) tcp: TcpListener,
    half_close: bool,
    pause: Duration,
    on_error: Option<OnError>,
}

impl WatchedListener {
    /// Binds to `addr`, as [`TcpListener::bind`] does.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    ///
    /// **On drop**: nothing is bound.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        TcpListener::bind(addr).await.map(Self::from)
    }

    /// Takes a listener from std, and makes it non-blocking.
    ///
    /// # Errors
    /// As [`TcpListener::from_std`].
    ///
    /// # Panics
    /// If called outside a tokio runtime with I/O enabled.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self::from)
    }

    /// Whether a client may finish sending and go on reading. Default: `false`.
    ///
    /// With `true` a FIN is the client's right and only RST ends a [`Peer`](super::Peer): a client
    /// that closed is then noticed when the server next writes, since RST is the answer. Set it
    /// like hyper's option of the same name.
    pub fn half_close(mut self, half_close: bool) -> Self {
        self.half_close = half_close;
        self
    }

    /// After how long a silence TCP asks whether the client is still there. Default: 60 s.
    ///
    /// One that does not answer for as long again is gone, as by RST. It costs a packet each time.
    /// Counted in whole seconds, at least one. `None` asks nobody. Unless this is called, a listener that
    /// came with keep-alive turned on is left as it is.
    ///
    /// The seconds between probes and their number (5) are set on Linux only, and it is for the system to hand
    /// all this on from the listening socket to accepted ones: Linux and the BSDs do.
    pub fn tcp_keepalive(self, idle: impl Into<Option<Duration>>) -> Self {
        keepalive::set(&self.tcp, idle.into());
        self
    }

    /// How long what was sent may go without an acknowledgement (RFC 5482; Linux only). Default: the
    /// system's, about 15 minutes; `None` is that again. Counted in milliseconds.
    ///
    /// A client that is out of reach while its stream goes on is gone after this, as by RST. So is one that
    /// takes nothing for so long, although it is there: choose minutes, and see
    /// [`stall_timeout`](crate::scope::ScopeLayer::stall_timeout) for those.
    pub fn tcp_user_timeout(self, limit: impl Into<Option<Duration>>) -> Self {
        keepalive::set_user_timeout(&self.tcp, limit.into());
        self
    }

    /// Calls `f` for each failed accept that was not one connection's own.
    ///
    /// Typically file descriptors have run out. It runs on the accepting task: count or log,
    /// do not block. Its panic ends nothing, and it is called again. With the feature `tracing` these errors are
    /// logged anyway.
    pub fn on_accept_error(mut self, f: impl FnMut(&io::Error) + Send + 'static) -> Self {
        self.on_error = Some(Box::new(f));
        self
    }

    /// The address this listener is bound to.
    ///
    /// # Errors
    /// As [`TcpListener::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection.
    ///
    /// A connection that was gone before it was accepted is skipped. When file descriptors or
    /// memory run out, the error is reported ([`on_accept_error`](Self::on_accept_error)) and
    /// accepting goes on after a pause of 10 ms, doubled each time up to 1 s: clients meanwhile
    /// wait in the listener's queue.
    ///
    /// # Errors
    /// Only if the listening socket itself is unusable: not listening, or no longer.
    ///
    /// # On drop
    /// Cancel safe: no connection is lost.
    pub async fn accept(&mut self) -> io::Result<(WatchedStream, SocketAddr)> {
        loop {
            match self.tcp.accept().await {
                Ok((socket, addr)) => {
                    self.pause = Duration::ZERO;
                    // Fails only on a connection that has gone already.
                    let _ = socket.set_nodelay(true);
                    let stream = WatchedStream::with_addr(socket, addr, self.half_close);
                    return Ok((stream, addr));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    /// Reports an error and waits; longer each time, until a connection is accepted.
    pub(super) async fn back_off(&mut self, error: &io::Error) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        if let Some(on_error) = &mut self.on_error {
            quietly(|| on_error(error));
        }
        #[cfg(feature = "tracing")]
        quietly(|| {
            tracing::error!(
                %error,
                pause_ms = self.pause.as_millis() as u64,
                "cannot accept connections (are file descriptors used up?), trying again"
            );
        });
        sleep(self.pause).await;
    }
}

impl From<TcpListener> for WatchedListener {
    fn from(tcp: TcpListener) -> Self {
        keepalive::set_default(&tcp);
        Self {
            tcp,
            half_close: false,
            pause: Duration::ZERO,
            on_error: None,
        }
    }
}

impl fmt::Debug for WatchedListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedListener")
            .field("tcp", &self.tcp)
            .field("half_close", &self.half_close)
            .finish_non_exhaustive()
    }
}

/// accept(2) hands out errors of the one connection it was about to return.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::{super::mute::Mute, *};

    /// By a hook that panics, and to a subscriber that panics: `tracing` remembers of a callsite what the first test to
    /// meet it was told, so that is this one.
    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_a_second_and_each_error_is_told() {
        let subscriber = Mute::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&told);
        let mut listener = WatchedListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .on_accept_error(move |error| {
                log.lock().unwrap().push(error.to_string());
                panic!("hook");
            });
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            listener.back_off(&io::Error::other("none left")).await;
            pauses.push(start.elapsed().as_millis());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(*told.lock().unwrap(), ["none left"; 9]);
        assert_eq!(subscriber.told(), 9);
    }
}
