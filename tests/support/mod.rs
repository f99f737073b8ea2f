//! A server on a free port, clients that leave in every way, and waits with a deadline.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "each test binary uses the parts it needs"
)]

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bodyguard::{BoxError, Cleanup, CleanupLayer, EndReport, Outcome, Supervisor};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tower::{Layer, Service, ServiceExt, service_fn};

mod waits;
pub use waits::*;

/// Serves any tower service on a free port, HTTP/1.1 and HTTP/2, until it is dropped.
pub struct Listening {
    pub addr: SocketAddr,
    connections: JoinSet<()>,
}

impl Listening {
    pub async fn start<S, B>(service: S, half_close: bool) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        stream.set_nodelay(true).unwrap();
                        let service = TowerToHyperService::new(service.clone());
                        open.spawn(async move {
                            let mut http = auto::Builder::new(TokioExecutor::new());
                            http.http1().half_close(half_close);
                            let io = TokioIo::new(stream);
                            let _ = http.serve_connection_with_upgrades(io, service).await;
                        });
                    }
                    Some(_) = open.join_next() => {}
                }
            }
        });
        Self { addr, connections }
    }

    pub async fn connect(&self) -> TcpStream {
        let tcp = within(TcpStream::connect(self.addr)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    /// Drops every connection where it stands.
    pub async fn stop(&mut self) {
        self.connections.shutdown().await;
    }
}

/// A scope layer over one handler, which registers a closer for every request but `/ping`.
pub struct Server {
    pub listening: Listening,
    pub supervisor: Supervisor,
    pub closers: Arc<AtomicUsize>,
    pub reports: mpsc::UnboundedReceiver<EndReport>,
    /// One message for each request that has reached its handler.
    pub started: mpsc::UnboundedReceiver<()>,
}

impl Server {
    pub async fn start<F, Fut>(half_close: bool, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let supervisor = Supervisor::new();
        let closers = Arc::new(AtomicUsize::new(0));
        let (report, reports) = mpsc::unbounded_channel();
        let (start, started) = mpsc::unbounded_channel();
        let ran = closers.clone();
        let handler = service_fn(move |request: Request<Incoming>| {
            let ran = ran.clone();
            Cleanup::of(&request).unwrap().defer(move |_| async move {
                ran.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            let _ = start.send(());
            let answer = handler(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        let scoped = CleanupLayer::new()
            .supervisor(&supervisor)
            .on_end(move |end| drop(report.send(end.clone())))
            .layer(handler);
        let app = service_fn(move |request: Request<Incoming>| {
            let scoped = scoped.clone();
            async move {
                if request.uri().path() == "/ping" {
                    return Ok(Response::new(Body::from("pong")));
                }
                Ok::<_, Infallible>(scoped.oneshot(request).await?.map(Body::new))
            }
        });
        Self {
            listening: Listening::start(app, half_close).await,
            supervisor,
            closers,
            reports,
            started,
        }
    }

    /// The next end report, after which the closers must have run, once each.
    pub async fn ended(&mut self) -> EndReport {
        let report = within(self.reports.recv()).await.unwrap();
        assert_eq!(self.closers.load(Ordering::SeqCst), 1, "closers, once");
        assert_eq!(report.counts.closers_run, 1);
        eventually(|| self.supervisor.active() == 0).await;
        report
    }

    pub async fn handler_runs(&mut self) {
        within(self.started.recv()).await.unwrap();
    }

    /// The server has had every chance to notice, and has not.
    pub async fn assert_unnoticed(&mut self) {
        let mut other = self.listening.connect().await;
        for _ in 0..20 {
            other
                .write_all(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            read_until(&mut other, "pong").await;
        }
        assert!(self.reports.try_recv().is_err(), "it was noticed");
        assert_eq!(self.supervisor.active(), 1);
        assert_eq!(self.closers.load(Ordering::SeqCst), 0);
    }

    /// Ends what nobody noticed, by the drain and then with the connections; closers run once.
    pub async fn end_by_drain(&mut self) {
        let mut first = self
            .supervisor
            .clone()
            .drain(Duration::from_millis(40))
            .await;
        let stuck = first.stuck.pop();
        self.listening.stop().await;
        let report = self.ended().await;
        assert_eq!(report.outcome(), Outcome::Shutdown, "{stuck:?}");
    }
}

/// Reads until `end` has come; gives everything read.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&all).contains(end) {
            let read = stream.read_buf(&mut all).await.unwrap();
            assert!(
                read > 0,
                "closed before {end:?}: {:?}",
                String::from_utf8_lossy(&all)
            );
        }
    })
    .await;
    String::from_utf8_lossy(&all).into_owned()
}

/// What a client of one request and one connection saw.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub head: String,
    pub data: String,
    /// It cannot tell the body from a whole one.
    pub whole: bool,
}

/// One request over HTTP/1, read to the end of the connection.
pub async fn http1(addr: SocketAddr, version: &str, method: &str) -> Seen {
    let mut stream = within(TcpStream::connect(addr)).await.unwrap();
    let request = format!("{method} / HTTP/{version}\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    // An RST at the end is a broken transfer as well.
    let reset = within(stream.read_to_end(&mut all)).await.is_err();
    parse_http1(method, &all, reset)
}

fn parse_http1(method: &str, all: &[u8], reset: bool) -> Seen {
    let text = String::from_utf8_lossy(all).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Seen {
            status: 0,
            head: text,
            data: String::new(),
            whole: false,
        };
    };
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let (data, whole) = if method == "HEAD" || status == 204 || status == 304 {
        (body.to_owned(), body.is_empty())
    } else if lower.contains("transfer-encoding: chunked") {
        unchunk(body)
    } else if let Some(length) = length {
        (
            body.to_owned(),
            body.len() == length.trim().parse::<usize>().unwrap(),
        )
    } else {
        // Nothing but the end of the connection tells where it ends.
        (body.to_owned(), !reset)
    };
    Seen {
        status,
        head: lower,
        data,
        whole,
    }
}

fn unchunk(mut body: &str) -> (String, bool) {
    let mut data = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else {
            return (data, false);
        };
        if size == 0 {
            return (data, rest.ends_with("\r\n"));
        }
        let Some((chunk, next)) = rest.split_at_checked(size) else {
            data.push_str(rest);
            return (data, false);
        };
        data.push_str(chunk);
        body = next.strip_prefix("\r\n").unwrap_or("");
    }
    (data, false)
}

/// An HTTP/2 connection to a server.
pub struct Http2 {
    pub send: h2::client::SendRequest<bytes::Bytes>,
    pub connection: JoinSet<()>,
}

impl Http2 {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::connect_with(addr, &mut h2::client::Builder::new()).await
    }

    pub async fn connect_with(addr: SocketAddr, builder: &mut h2::client::Builder) -> Self {
        let tcp = within(TcpStream::connect(addr)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self::handshake(tcp, builder).await
    }

    async fn handshake(tcp: TcpStream, builder: &mut h2::client::Builder) -> Self {
        let (send, connection) = within(builder.handshake(tcp)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let send = within(send.ready()).await.unwrap();
        Self {
            send,
            connection: tasks,
        }
    }

    pub async fn over(tcp: TcpStream) -> Self {
        Self::handshake(tcp, &mut h2::client::Builder::new()).await
    }

    pub fn request(
        &mut self,
        method: &str,
    ) -> (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>) {
        self.request_coded(method, "identity")
    }

    /// The same, accepting this coding.
    pub fn request_coded(
        &mut self,
        method: &str,
        coding: &str,
    ) -> (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>) {
        let request = Request::builder()
            .method(method)
            .uri("http://x/")
            .header("accept-encoding", coding)
            .body(())
            .unwrap();
        self.send.send_request(request, true).unwrap()
    }
}

/// One request over HTTP/2, read to its end.
pub async fn http2(addr: SocketAddr, method: &str) -> Seen {
    let mut client = Http2::connect(addr).await;
    let (response, _stream) = client.request(method);
    let Ok(response) = within(response).await else {
        return Seen {
            status: 0,
            head: String::new(),
            data: String::new(),
            whole: false,
        };
    };
    let (parts, mut body) = response.into_parts();
    let mut seen = Seen {
        status: parts.status.as_u16(),
        head: format!("{:?}", parts.headers),
        data: String::new(),
        whole: false,
    };
    while let Some(data) = within(body.data()).await {
        let Ok(data) = data else { return seen };
        let _ = body.flow_control().release_capacity(data.len());
        seen.data.push_str(&String::from_utf8_lossy(&data));
    }
    seen.whole = within(body.trailers()).await.is_ok();
    seen
}

#[allow(
    deprecated,
    reason = "`set_zero_linger` is newer than the oldest tokio we build with"
)]
pub fn reset_on_drop(tcp: &TcpStream) {
    tcp.set_linger(Some(Duration::ZERO)).unwrap();
}
