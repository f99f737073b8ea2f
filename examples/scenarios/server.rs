//! Servers on free ports: hyper and axum alone, with the layer, and with the watched listener.

use std::{
    convert::Infallible,
    future::{IntoFuture, pending},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{Router, body::Body, serve::ListenerExt};
use bodyguard::{
    Disconnect, DisconnectLayer, Outcome,
    net::{self, Peer, WatchedListener},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either, stream};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{self, pki_types},
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

use crate::rows::{Does, Leaves, Row, Setup};

/// The response of a handler that goes on, and how it is cut into frames.
pub(crate) const WHOLE: usize = 1 << 20;
const FRAME: usize = 64 * 1024;

/// How an end was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// hyper dropped the handler or the body.
    Dropped,
    /// The handler's own read of the upload failed.
    ReadFailed,
    /// `Disconnect::gone` fired.
    Gone,
    /// `on_end` reported something else than a complete response.
    Ended(Outcome),
}

impl How {
    /// Whether it says that the client left, and not that something else went wrong.
    pub(crate) fn is_left(self) -> bool {
        match self {
            Self::Ended(outcome) => matches!(outcome, Outcome::Disconnected | Outcome::Dropped),
            Self::Dropped | Self::ReadFailed | Self::Gone => true,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Started,
    Seen(How, Instant),
}

/// What one row's handlers are to do, and whom they tell.
pub(crate) struct Stage {
    row: Row,
    layered: bool,
    events: mpsc::UnboundedSender<Event>,
    /// Set once handlers that answer later are to go on.
    go: watch::Sender<bool>,
    frames: AtomicU64,
    waiting: Mutex<JoinSet<()>>,
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) connector: Option<TlsConnector>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) stage: Arc<Stage>,
    _serving: JoinSet<()>,
}

type App = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// The layer with `drain_request`, or `None` as long as it does not exist.
///
/// The one place to switch those rows on.
fn draining(_layer: &DisconnectLayer) -> Option<DisconnectLayer> {
    None
}

impl Server {
    /// `None` if the row needs what is not built yet.
    pub(crate) async fn start(row: &Row, setup: Setup) -> io::Result<Option<Self>> {
        let (events, received) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage {
            row: *row,
            layered: setup.layered(),
            events,
            go: watch::Sender::new(false),
            frames: AtomicU64::new(0),
            waiting: Mutex::default(),
        });
        let Some(app) = app(&stage) else {
            return Ok(None);
        };
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let addr = tcp.local_addr()?;
        let (acceptor, connector) = match row.tls {
            true => Some(certificates().clone()).unzip(),
            false => (None, None),
        };
        let router = Router::new().fallback_service(app.clone());
        let hyper_only = row.tls || row.half_close;
        let half_close = row.half_close;
        let mut serving = JoinSet::new();
        match setup {
            Setup::Net | Setup::AxumNet => {
                let watched = WatchedListener::from(tcp).half_close(half_close);
                if setup == Setup::AxumNet {
                    let router = router.into_make_service_with_connect_info::<Peer>();
                    serving.spawn(async move { drop(axum::serve(watched, router).await) });
                } else if row.tls {
                    serving.spawn(over_hyper(
                        Either::Right(watched),
                        app,
                        half_close,
                        acceptor,
                    ));
                } else {
                    let server = net::serve(watched, router).into_future();
                    serving.spawn(async move { drop(server.await) });
                }
            }
            Setup::Axum | Setup::Layer if !hyper_only => {
                let tcp = tcp.tap_io(|tcp| drop(tcp.set_nodelay(true)));
                serving.spawn(async move { drop(axum::serve(tcp, router).await) });
            }
            Setup::Hyper | Setup::Axum | Setup::Layer => {
                serving.spawn(over_hyper(Either::Left(tcp), app, half_close, acceptor));
            }
        }
        Ok(Some(Self {
            addr,
            connector,
            events: received,
            stage,
            _serving: serving,
        }))
    }
}

/// The row's handler, behind the layer if it is to have one.
fn app(stage: &Arc<Stage>) -> Option<App> {
    let (handled, ends) = (stage.clone(), stage.clone());
    let handler = service_fn(move |request| {
        let answered = answer(handled.clone(), request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    if !stage.layered {
        return Some(BoxCloneSyncService::new(handler));
    }
    let mut layer = DisconnectLayer::new().on_end(move |report| {
        if !report.outcome().is_complete() {
            ends.seen(How::Ended(report.outcome()));
        }
    });
    if stage.row.drain {
        layer = draining(&layer)?;
    }
    let scoped = layer.layer(handler);
    let scoped = scoped.map_response(|response: Response<_>| response.map(Body::new));
    Some(BoxCloneSyncService::new(scoped))
}

/// Serves with bare hyper, for what `axum::serve` and `net::serve` do not set.
async fn over_hyper(
    mut listener: Either<TcpListener, WatchedListener>,
    app: App,
    half_close: bool,
    tls: Option<TlsAcceptor>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted: io::Result<(Box<dyn Io>, Option<Peer>)> = match &mut listener {
            Either::Left(tcp) => tcp.accept().await.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok((Box::new(stream) as _, None))
            }),
            Either::Right(watched) => watched.accept().await.map(|(stream, _)| {
                let peer = stream.peer();
                (Box::new(stream) as _, Some(peer))
            }),
        };
        let Ok((stream, peer)) = accepted else { return };
        let (app, tls) = (app.clone(), tls.clone());
        connections.spawn(async move {
            let app = app.map_request(move |mut request: Request<hyper::body::Incoming>| {
                request.extensions_mut().extend(peer.iter().fold(
                    http::Extensions::new(),
                    |mut extensions, peer| {
                        extensions.insert(peer.clone());
                        extensions
                    },
                ));
                request.map(Body::new)
            });
            let mut http = auto::Builder::new(TokioExecutor::new());
            http.http1().half_close(half_close);
            let stream: Box<dyn Io> = match tls {
                None => stream,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => return,
                },
            };
            let service = TowerToHyperService::new(app);
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Stage {
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// With bodyguard only what it tells counts, without it only what hyper does.
    fn seen(&self, how: How) {
        if self.layered == matches!(how, How::Gone | How::Ended(_)) {
            self.tell(Event::Seen(how, Instant::now()));
        }
    }

    pub(crate) fn go_on(&self) {
        self.go.send_replace(true);
    }

    /// Frames given so far by a body without end.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Tells when the view does, also once the handler has been dropped.
    fn wait_for(self: &Arc<Self>, disconnect: Disconnect) {
        let events = self.events.clone();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.spawn(async move {
            disconnect.gone().await;
            let _ = events.send(Event::Seen(How::Gone, Instant::now()));
        });
    }
}

/// Tells that hyper has dropped what holds it.
struct Guard(Option<Arc<Stage>>);

impl Guard {
    fn defuse(&mut self) {
        self.0 = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(stage) = &self.0 {
            stage.seen(How::Dropped);
        }
    }
}

async fn answer(stage: Arc<Stage>, request: Request<Body>) -> Response<Body> {
    if let Ok(disconnect) = Disconnect::of(&request) {
        stage.wait_for(disconnect);
    }
    let guard = Guard(Some(stage.clone()));
    let mut upload = Some(request.into_body());
    stage.tell(Event::Started);
    match stage.row.does {
        Does::DropsUpload => upload = None,
        Does::ReadsSomeUpload => {
            if let Some(upload) = &mut upload {
                let _ = upload.frame().await;
            }
        }
        Does::ReadsUpload => {
            if let Some(Err(_)) = read(&mut upload).await {
                stage.seen(How::ReadFailed);
            }
        }
        Does::Idles => {
            let frames = stream::iter([Bytes::from("first")]).chain(stream::pending());
            return streaming(frames, guard);
        }
        Does::Floods => {
            let frames = stream::repeat(Bytes::from(vec![b'x'; 16 * 1024]));
            let frames = frames.inspect(move |_| {
                stage.frames.fetch_add(1, Ordering::Relaxed);
            });
            return streaming(frames, guard);
        }
        Does::AnswersLater => {
            let _ = stage.go.subscribe().wait_for(|go| *go).await;
            return streaming(rest(&stage), guard);
        }
        Does::FlowsLater => {
            let go = stage.clone();
            let later = stream::once(async move {
                let _ = go.go.subscribe().wait_for(|go| *go).await;
                rest(&go)
            });
            let first = stream::iter([Bytes::from("first")]);
            return streaming(first.chain(later.flatten()), guard);
        }
        Does::Pends | Does::HoldsUpload => {}
    }
    pending::<()>().await;
    drop((upload, guard));
    Response::default()
}

async fn read(upload: &mut Option<Body>) -> Option<Result<(), axum::Error>> {
    let upload = upload.take()?;
    Some(upload.collect().await.map(drop))
}

/// All of it, or, for a client that is no longer there, one frame and then nothing.
fn rest(stage: &Stage) -> impl Stream<Item = Bytes> + Send + use<> {
    let frame = Bytes::from(vec![b'#'; FRAME]);
    if stage.row.leaves == Leaves::FinThenWrite {
        Either::Left(stream::iter([frame]).chain(stream::pending()))
    } else {
        Either::Right(stream::repeat(frame).take(WHOLE / FRAME))
    }
}

fn streaming(frames: impl Stream<Item = Bytes> + Send + 'static, guard: Guard) -> Response<Body> {
    let frames = Box::pin(frames);
    let frames = stream::unfold((frames, guard), |(mut frames, mut guard)| async move {
        let frame = frames.next().await;
        if frame.is_none() {
            guard.defuse();
        }
        frame.map(|frame| (Ok::<_, Infallible>(frame), (frames, guard)))
    });
    Response::new(Body::from_stream(frames))
}

/// Made once; both sides know each other.
fn certificates() -> &'static (TlsAcceptor, TlsConnector) {
    static MADE: OnceLock<(TlsAcceptor, TlsConnector)> = OnceLock::new();
    MADE.get_or_init(|| make_certificates().expect("a certificate for localhost"))
}

fn make_certificates() -> Result<(TlsAcceptor, TlsConnector), Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    // A client that closes on unread tickets sends RST, not FIN.
    server.send_tls13_tickets = 0;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((Arc::new(server).into(), Arc::new(client).into()))
}
