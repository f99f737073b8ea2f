//! A whole server in one call: connections, shutdown, drain, deadline, report.

use std::{
    fmt,
    future::{Future, IntoFuture, pending},
    io,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::{
    WatchedListener, WatchedStream,
    owed::{Owed, PerConnection},
};
use crate::{
    BoxError, DrainReport, Supervisor,
    supervisor::{LEAST, reserve_of},
};

/// How long a drain may take unless [`Serve::deadline`] says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// A deadline further away is as good as none.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The longest patience with silent clients; it is a quarter of the deadline.
const PATIENCE: Duration = Duration::from_secs(5);

type Signal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves `app` on `listener` over HTTP/1.1 and HTTP/2 until the shutdown signal, then drains.
///
/// `app` is any clonable tower service, an axum `Router` among them. `await` it: it gives the
/// [`DrainReport`] once every response has ended and every connection is closed, or the deadline is
/// over. Without a signal it serves for ever.
///
/// A connection that was upgraded (a WebSocket) is the application's. It is waited for as long as a
/// [`Hold`](crate::scope::Hold) keeps its response open; without one, or if
/// [`Shutdown::end_now`](crate::Shutdown::end_now) has ended the response, it outlives the drain.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use bodyguard::{Stack, net};
///
/// # async fn run() -> std::io::Result<()> {
/// let app = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(Stack::new());
/// let listener = net::WatchedListener::bind("127.0.0.1:3000").await?;
/// let report = net::serve(listener, app)
///     .shutdown(async { tokio::signal::ctrl_c().await.expect("signals") })
///     .await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// Every request carries in its extensions its connection's [`Peer`](super::Peer), so that the layers can confirm a
/// disconnect (axum handlers extract it as it is), and with the feature `axum` a
/// `ConnectInfo<SocketAddr>`; there is no `ConnectInfo<Peer>`. `TCP_NODELAY` is set.
///
/// A client that shuts down its write side counts as gone, although it may still read, unless the listener
/// was made with [`half_close`](WatchedListener::half_close).
///
/// `app` is called for each request: an axum `Router` as it is, without `into_make_service`, behind its `with_state`.
///
/// It serves plain TCP with hyper's defaults: no TLS, no Unix sockets, none of hyper's options. With an
/// accept loop of your own the pattern is `examples/hyper_plain.rs`, which shuts down as this does, but that
/// silent clients have all of its time (see [`Serve::deadline`]), that layers have to be given the supervisor
/// ([`ScopeLayer::supervisor`](crate::scope::ScopeLayer::supervisor)), and that a `Peer` inserted by
/// hand may stand under TLS (see [`Ending::client_gone`](crate::Ending::client_gone)).
///
/// Compared with `axum::serve`: a shutdown reaches the bodies, and a stalled connection cannot keep
/// the process from ending.
///
/// # Errors
/// Only if the listening socket itself is unusable (see [`WatchedListener::accept`]): then it drains
/// as at a shutdown, and gives the error.
///
/// **On drop** of the future: connections are dropped where they stand; teardowns of their
/// responses go on as long as the runtime does.
pub fn serve<A, B>(listener: impl Into<WatchedListener>, app: A) -> Serve<A>
where
    A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Serve {
        listener: listener.into(),
        app,
        supervisor: Supervisor::new(),
        deadline: DEADLINE,
        signal: Box::pin(pending()),
    }
}

/// A server being set up; made by [`serve`].
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<A> {
    listener: WatchedListener,
    app: A,
    supervisor: Supervisor,
    deadline: Duration,
    signal: Signal,
}

impl<A> Serve<A> {
    /// The supervisor to drain: the one that the app's layers were given, if it is to be asked who is live.
    ///
    /// Layers that were given none use the server's, this one or its own. The scopes of layers that
    /// were given another are waited for, and aborted when the time is up, but their
    /// [`Shutdown`](crate::Shutdown) is not applied and their endings are not counted.
    ///
    /// A supervisor drains once, and servers that share one stop together, so give them one signal: the first
    /// to stop drains the responses of all, and the others then accept connections only to close them,
    /// as a rule unanswered. So does a server that is started under one that has drained.
    pub fn supervisor(mut self, supervisor: &Supervisor) -> Self {
        self.supervisor = supervisor.clone();
        self
    }

    /// How long the drain may take, all in all (30 s).
    ///
    /// Connections whose clients say nothing do not hold it up: once every response is torn down, one that
    /// has no response under way and no bytes that its client is slow to take, and from which nothing has
    /// come since it was told of the shutdown, is closed after a quarter of the deadline, at most 5 s. Such a client
    /// has sent half a request head, or speaks HTTP/2 and is not there any more.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Shuts down when this future is ready.
    pub fn shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.signal = Box::pin(signal);
        self
    }
}

impl<A, B> IntoFuture for Serve<A>
where
    A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = io::Result<DrainReport>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<DrainReport>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(run(self))
    }
}

async fn run<A, B>(serve: Serve<A>) -> io::Result<DrainReport>
where
    A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Serve {
        mut listener,
        app,
        supervisor,
        deadline,
        mut signal,
    } = serve;
    let deadline = deadline.min(FAR);
    let drained = CancellationToken::new();
    let silence = Silence {
        drained: drained.clone(),
        patience: (deadline / 4).clamp(LEAST, PATIENCE),
    };
    let mut connections = JoinSet::new();
    let ended = loop {
        tokio::select! {
            // In this order: a signal is listened for, by its first poll, before anybody is served.
            biased;
            () = &mut signal => break Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (app, supervisor) = (app.clone(), supervisor.clone());
                    connections.spawn(connection(stream, app, supervisor, silence.clone()));
                }
                Err(error) => break Err(error),
            }
        }
    };
    drop(listener);
    let end = Instant::now() + deadline;
    supervisor.drain(deadline).await;
    drained.cancel();
    // Every response so far is torn down. Bytes may be on their way, and a request that was half
    // read at the signal may have come since: these have the rest of the time, but for a little to
    // tear down in. The silent ones have less.
    let _ = timeout_at(end - reserve_of(deadline), closed(&mut connections)).await;
    // What blocks its thread is not stopped by this, and has to be named without it.
    connections.abort_all();
    let _ = timeout_at(end, closed(&mut connections)).await;
    let report = supervisor.drain_by(end).await;
    ended.map(|()| report)
}

async fn closed(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// When a connection is given up whose client says nothing more.
#[derive(Clone)]
struct Silence {
    /// The supervisor's responses are torn down.
    drained: CancellationToken,
    patience: Duration,
}

impl Silence {
    /// Ready once the client is owed nothing, if it was not heard.
    async fn of(self, owed: &Owed) {
        self.drained.cancelled_owned().await;
        loop {
            sleep(self.patience).await;
            if owed.peer().was_heard() {
                return pending().await;
            }
            if owed.nothing() {
                return;
            }
        }
    }
}

/// Serves one connection to its end: gracefully from the shutdown on, not at all once the drain has
/// answered whom it could, or nothing comes any more.
async fn connection<A, B>(stream: WatchedStream, app: A, supervisor: Supervisor, silence: Silence)
where
    A: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    A::Error: Into<BoxError>,
    A::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let peer = stream.peer().of_bare().served_under(&supervisor);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // What is a client's right to the watch has to be one to hyper.
    let half_close = peer.half_close();
    builder
        .http1()
        .half_close(half_close)
        .timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let (app, owed) = PerConnection::new(app, peer);
    let service = TowerToHyperService::new(app);
    let mut served = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let shutdown = supervisor.own_shutdown_token();
    tokio::select! {
        // In this order: what has just been answered is sent.
        biased;
        // Its error is the client's going or misbehaving: the scopes have their own account.
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    owed.peer().listen_anew();
    served.as_mut().graceful_shutdown();
    // Both come behind the telling.
    let mut aborting = pin!(supervisor.own_aborting());
    let mut silent = pin!(silence.of(&owed));
    tokio::select! {
        biased;
        _ = served => {}
        () = aborting.as_mut() => {}
        () = silent.as_mut() => {}
    }
}

impl<A> fmt::Debug for Serve<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("supervisor", &self.supervisor)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
