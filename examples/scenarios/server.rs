//! Servers on free ports: hyper and axum alone, with the layer, and with the watched listener.

use std::{
    convert::Infallible,
    future::IntoFuture,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{Router, body::Body, serve::ListenerExt};
use bodyguard::{
    BoxError, DisconnectLayer,
    net::{self, Peer, WatchedListener},
    scope::RequestBody,
};
use bytes::Bytes;
use futures_util::future::Either;
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{self, pki_types},
};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

use crate::{
    rows::{Row, Setup},
    stage::{Event, How, Stage, answer},
};

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

/// What the layer reads away of an upload in the rows with `drain_request`.
pub(crate) const DRAINED: usize = 64 << 20;

impl Server {
    pub(crate) async fn start(row: &Row, setup: Setup) -> io::Result<Self> {
        let (events, received) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage::new(row, setup.layered(), events));
        let app = app(&stage);
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
        Ok(Self {
            addr,
            connector,
            events: received,
            stage,
            _serving: serving,
        })
    }
}

/// The row's handler, behind the layer if it is to have one.
fn app(stage: &Arc<Stage>) -> App {
    let (handled, ends) = (stage.clone(), stage.clone());
    let handler = service_fn(move |request| {
        let answered = answer(handled.clone(), request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    if !stage.layered {
        return BoxCloneSyncService::new(handler);
    }
    let layer = DisconnectLayer::new().on_end(move |report| {
        if !report.outcome().is_complete() {
            ends.seen(How::Ended(report.outcome()));
        }
    });
    if stage.row.drain {
        let handler =
            handler.map_request(|request: Request<RequestBody<Body>>| request.map(Body::new));
        return boxed(layer.drain_request(DRAINED as u64).layer(handler));
    }
    boxed(layer.layer(handler))
}

fn boxed<S, B>(service: S) -> App
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(service.map_response(|response: Response<B>| response.map(Body::new)))
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
                if let Some(peer) = &peer {
                    request.extensions_mut().insert(peer.clone());
                }
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
