//! Clients that leave in every way, and servers that tell a test who has called.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    routing::any,
};
use bodyguard::net::{Peer, WatchedListener, WatchedStream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client,
    rustls::{self, pki_types},
};

#[path = "../support/waits.rs"]
mod waits;
use waits::in_time;

/// Far above anything seen, far below patience.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

/// Polls until `done`; for what no event announces.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Both ends of a connection, with no HTTP between.
pub(crate) async fn pair(half_close: bool) -> (TcpStream, WatchedStream) {
    let mut listener = WatchedListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .half_close(half_close);
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = within(async { tokio::join!(client, listener.accept()) }).await;
    let client = client.unwrap();
    client.set_nodelay(true).unwrap();
    (client, server.unwrap().0)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Axum,
    Bare,
    Tls,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Axum, Kind::Bare, Kind::Tls];

/// A request that has arrived. Its handler waits for `release`.
pub(crate) struct Arrived {
    pub(crate) peer: Peer,
    pub(crate) body: Option<Body>,
    pub(crate) respond: tokio::sync::oneshot::Sender<Response<Body>>,
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) arrivals: mpsc::UnboundedReceiver<Arrived>,
    tls: Option<TlsConnector>,
}

impl Server {
    pub(crate) async fn start(kind: Kind, half_close: bool) -> Self {
        let listener = WatchedListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .half_close(half_close);
        let addr = listener.local_addr().unwrap();
        let (tx, arrivals) = mpsc::unbounded_channel();
        let mut tls = None;
        match kind {
            Kind::Axum => {
                assert!(!half_close, "axum::serve does not set hyper's half_close");
                let app = Router::new().fallback(any(move |request| answer(request, tx.clone())));
                let app = app.into_make_service_with_connect_info::<Peer>();
                tokio::spawn(async move { axum::serve(listener, app).await });
            }
            Kind::Bare => drop(tokio::spawn(accept(listener, half_close, None, tx))),
            Kind::Tls => {
                let (acceptor, connector) = certificates();
                tls = Some(connector);
                tokio::spawn(accept(listener, half_close, Some(acceptor), tx));
            }
        }
        Self {
            addr,
            arrivals,
            tls,
        }
    }

    pub(crate) async fn connect(&self) -> Client {
        let tcp = within(TcpStream::connect(self.addr)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        match &self.tls {
            None => Client::Plain(tcp),
            Some(connector) => {
                let name = pki_types::ServerName::try_from("localhost").unwrap();
                let tls = within(connector.connect(name, tcp)).await.unwrap();
                Client::Tls(Box::new(tls))
            }
        }
    }

    pub(crate) async fn arrived(&mut self) -> Arrived {
        within(self.arrivals.recv()).await.expect("server runs")
    }
}

async fn accept(
    mut listener: WatchedListener,
    half_close: bool,
    tls: Option<TlsAcceptor>,
    tx: mpsc::UnboundedSender<Arrived>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let peer = stream.peer();
        let tx = tx.clone();
        let service = hyper::service::service_fn(move |mut request: Request<_>| {
            request.extensions_mut().insert(peer.clone());
            let answered = answer(request.map(Body::new), tx.clone());
            async { Ok::<_, Infallible>(answered.await) }
        });
        let tls = tls.clone();
        tokio::spawn(async move {
            let mut http = auto::Builder::new(TokioExecutor::new());
            http.http1().half_close(half_close);
            match tls {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => {
                    let stream = tls.accept(stream).await?;
                    http.serve_connection(TokioIo::new(stream), service).await
                }
            }
        });
    }
}

async fn answer(request: Request<Body>, tx: mpsc::UnboundedSender<Arrived>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (respond, response) = tokio::sync::oneshot::channel();
    let arrived = Arrived {
        peer: Peer::from_extensions(&parts.extensions)
            .expect("every request has a peer")
            .clone(),
        body: Some(body),
        respond,
    };
    let _ = tx.send(arrived);
    match response.await {
        Ok(response) => response,
        // Nobody wants an answer: the handler stays pending.
        Err(_) => std::future::pending().await,
    }
}

fn certificates() -> (TlsAcceptor, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let chain = vec![made.cert.der().clone()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    // A client that closes on unread tickets sends RST, not FIN.
    server.send_tls13_tickets = 0;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server).into(), Arc::new(client).into())
}

pub(crate) enum Client {
    Plain(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Leave {
    Fin,
    Rst,
    ShutdownWrite,
}

/// What a client that has left still holds.
pub(crate) struct Left {
    _half_open: Option<std::net::TcpStream>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &str) {
        within(async {
            self.write_all(bytes.as_bytes()).await.unwrap();
            self.flush().await.unwrap();
        })
        .await;
    }

    /// Sends until the server takes no more; returns how much it took.
    pub(crate) fn fill(&self) -> usize {
        let chunk = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        while let Ok(n) = self.tcp().try_write(&chunk) {
            sent += n;
        }
        sent
    }

    pub(crate) fn leave(self, how: Leave) -> Left {
        match how {
            Leave::Fin => Left { _half_open: None },
            Leave::Rst => {
                reset_on_drop(self.tcp());
                Left { _half_open: None }
            }
            Leave::ShutdownWrite => {
                let tcp = match self {
                    Self::Plain(tcp) => tcp,
                    Self::Tls(tls) => tls.into_inner().0,
                };
                let tcp = tcp.into_std().unwrap();
                tcp.shutdown(std::net::Shutdown::Write).unwrap();
                Left {
                    _half_open: Some(tcp),
                }
            }
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    fn io(&mut self) -> Pin<&mut (dyn Io + '_)> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp),
            Self::Tls(tls) => Pin::new(&mut **tls),
        }
    }
}

pub(crate) fn reset_on_drop(tcp: &TcpStream) {
    tcp.set_zero_linger().unwrap();
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
