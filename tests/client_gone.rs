//! `Ending::client_gone` against what the client did: on a watched connection it says what is known.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    middleware::{Next, from_fn},
    routing::any,
};
use bodyguard::{
    Cleanup, Disconnect, DisconnectLayer, EndReport, Outcome, Shutdown, Stack, Supervisor, net,
    testing::Script,
};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::timeout::ResponseBodyTimeoutLayer;

mod support;
use support::{Http2, eventually, read_until, reset_on_drop, within};

const LIMIT: Duration = Duration::from_secs(10);

struct Server {
    addr: std::net::SocketAddr,
    supervisor: Supervisor,
    reports: mpsc::UnboundedReceiver<EndReport>,
    /// Lets the closer of `/late`, and the hold of `/hold`, go on.
    go: Arc<Notify>,
    _serving: JoinSet<()>,
}

impl Server {
    async fn start(
        policy: Shutdown,
        layers: impl FnOnce(Router, Stack, DisconnectLayer) -> Router,
    ) -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let (supervisor, go) = (Supervisor::new(), Arc::new(Notify::new()));
        let inner = report.clone();
        let stack = Stack::new()
            .supervisor(&supervisor)
            .shutdown(policy)
            .on_end(move |end| drop(report.send(end.clone())));
        let disconnect = DisconnectLayer::new().on_end(move |end| drop(inner.send(end.clone())));
        let app = layers(routes(&go), stack, disconnect);
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        let serve = net::serve(listener, app).supervisor(&supervisor);
        serving.spawn(async move { drop(serve.await) });
        Self {
            addr,
            supervisor,
            reports,
            go,
            _serving: serving,
        }
    }

    async fn plain() -> Self {
        Self::start(Shutdown::finish(), |app, stack, _| app.layer(stack)).await
    }

    /// A client that has read the response so far, if there is any.
    async fn client(&self, path: &str) -> TcpStream {
        let mut client = within(TcpStream::connect(self.addr)).await.unwrap();
        let request = match path {
            "/echo" => "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello".into(),
            path => format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"),
        };
        client.write_all(request.as_bytes()).await.unwrap();
        match path {
            "/idle" | "/late" | "/left" => drop(read_until(&mut client, "first").await),
            "/echo" => drop(read_until(&mut client, "hello").await),
            // A server that reads of the leaving with the request may not call the service.
            "/pend" => eventually(|| self.lists(path)).await,
            _ => {}
        }
        client
    }

    fn lists(&self, path: &str) -> bool {
        let live = self.supervisor.snapshot();
        live.iter().any(|scope| scope.uri.path() == path)
    }

    /// The outcome, and whether the client had gone.
    async fn ended(&mut self) -> (Outcome, bool) {
        let report = within(self.reports.recv()).await.unwrap();
        (report.outcome(), report.ending.client_gone())
    }
}

fn routes(go: &Arc<Notify>) -> Router {
    let (to_hold, to_close) = (go.clone(), go.clone());
    let idle = || async { Body::new(Script::new().data("first").hang()) };
    let hold = move |cleanup: Cleanup| async move {
        let hold = cleanup.hold();
        #[allow(clippy::disallowed_methods, reason = "as a WebSocket's task")]
        tokio::spawn(async move {
            to_hold.notified().await;
            hold.finish(Outcome::Disconnected);
        });
        "whole"
    };
    let late = move |cleanup: Cleanup| async move {
        cleanup.defer(move |_| async move {
            to_close.notified().await;
            Ok(())
        });
        Body::new(Script::new().data("first"))
    };
    let left = |cleanup: Cleanup, peer: net::Peer| async move {
        cleanup.defer(move |_| async move {
            peer.gone().await;
            Ok(())
        });
        Body::new(Script::new().data("first"))
    };
    Router::new()
        .route("/idle", any(idle))
        .route("/replaced", any(idle))
        .route("/echo", any(|body: Body| async { body }))
        .route("/hold", any(hold))
        .route("/late", any(late))
        .route("/left", any(left))
        .route("/pend", any(std::future::pending::<()>))
}

/// The client is there, and an outer layer or a drain gave up the body.
#[tokio::test]
async fn a_client_that_is_there_has_not_gone() {
    let soon = Duration::from_millis(50);
    let mut timed = Server::start(Shutdown::finish(), |app, stack, _| {
        app.layer(stack).layer(ResponseBodyTimeoutLayer::new(soon))
    })
    .await;
    let _client = timed.client("/idle").await;
    assert_eq!(timed.ended().await, (Outcome::Dropped, false));
    // The same while the end is held back.
    let mut client = timed.client("/late").await;
    drop(within(client.read_to_end(&mut Vec::new())).await);
    timed.go.notify_one();
    assert_eq!(timed.ended().await, (Outcome::Complete, false));

    let mut replaced = Server::start(Shutdown::finish(), |app, stack, _| {
        let replace = |request: Request, next: Next| async move {
            drop(next.run(request).await);
            "instead"
        };
        app.layer(stack).layer(from_fn(replace))
    })
    .await;
    let mut client = replaced.client("/replaced").await;
    read_until(&mut client, "instead").await;
    assert_eq!(replaced.ended().await, (Outcome::Dropped, false));
}

#[tokio::test]
async fn a_drain_sends_no_client_away() {
    for policy in [Shutdown::abort(), Shutdown::finish()] {
        for version2 in [false, true] {
            let mut server = Server::start(policy.clone(), |app, stack, _| app.layer(stack)).await;
            let (mut client1, mut client2) = (None, None);
            if version2 {
                client2 = Some(idle_over_http2(server.addr).await);
            } else {
                client1 = Some(server.client("/idle").await);
            }
            within(server.supervisor.drain(Duration::from_millis(50))).await;
            let seen = server.ended().await;
            assert_eq!(seen, (Outcome::Shutdown, false), "{policy:?} {version2}");
            drop((client1.take(), client2.take()));
        }
    }
}

async fn idle_over_http2(
    addr: std::net::SocketAddr,
) -> (Http2, h2::RecvStream, h2::SendStream<Bytes>) {
    let mut client = Http2::connect(addr).await;
    let request = http::Request::get("http://x/idle").body(()).unwrap();
    let (response, sending) = client.send.send_request(request, true).unwrap();
    let mut body = within(response).await.unwrap().into_body();
    assert_eq!(within(body.data()).await.unwrap().unwrap(), "first");
    (client, body, sending)
}

/// Its connection stays, so that the drop of the body is all there is to see.
#[tokio::test]
async fn over_http2_a_reset_stream_is_a_client_that_has_gone() {
    let mut server = Server::plain().await;
    let (_client, _body, mut sending) = idle_over_http2(server.addr).await;
    sending.send_reset(h2::Reason::CANCEL);
    assert_eq!(server.ended().await, (Outcome::Dropped, true));
}

#[tokio::test]
async fn one_that_has_left_has_gone() {
    for reset in [false, true] {
        let mut server = Server::plain().await;
        for path in ["/idle", "/pend", "/echo"] {
            let client = server.client(path).await;
            if reset {
                reset_on_drop(&client);
            }
            drop(client);
            let (outcome, gone) = server.ended().await;
            assert!(gone, "{path} {reset}: {outcome}");
            // Nobody asked for more than what the connection shows.
            let echo_failed = path == "/echo" && outcome == Outcome::Failed;
            assert!(
                echo_failed || outcome == Outcome::Disconnected,
                "{path} {reset}: {outcome}"
            );
        }
    }
}

/// Each of two scopes for one response.
#[tokio::test]
async fn an_armed_layer_under_another_agrees_with_it() {
    let mut server = Server::start(Shutdown::finish(), |app, stack, inner| {
        app.layer(inner.stall_timeout(LIMIT)).layer(stack)
    })
    .await;
    drop(server.client("/idle").await);
    for _ in 0..2 {
        assert_eq!(server.ended().await, (Outcome::Disconnected, true));
    }
}

/// The response was whole by then; its hold says that the client went.
#[tokio::test]
async fn a_hold_that_says_so_is_believed() {
    let mut server = Server::plain().await;
    let mut client = server.client("/hold").await;
    read_until(&mut client, "whole").await;
    server.go.notify_one();
    assert_eq!(server.ended().await, (Outcome::Disconnected, true));
}

/// Its closer waits for just that.
#[tokio::test]
async fn one_that_leaves_while_the_end_is_held_back_has_gone() {
    let mut server = Server::plain().await;
    drop(server.client("/left").await);
    assert_eq!(server.ended().await, (Outcome::Complete, true));
}

/// Where nothing is watched, a body that is dropped was left; not if a drain had aborted it.
#[tokio::test]
async fn unwatched_a_dropped_body_was_left() {
    for drained in [false, true] {
        let (report, mut reports) = mpsc::unbounded_channel();
        let supervisor = Supervisor::new();
        let layer = DisconnectLayer::new()
            .supervisor(&supervisor)
            .shutdown(Shutdown::abort())
            .on_end(move |end: &EndReport| drop(report.send(end.clone())));
        let service = layer.layer(service_fn(|request: http::Request<()>| async move {
            Disconnect::of(&request).unwrap();
            let body = Script::new().data("first").hang();
            Ok::<_, Infallible>(http::Response::new(body))
        }));
        let response = service.oneshot(http::Request::new(())).await.unwrap();
        let mut body = response.into_body();
        within(body.frame()).await.unwrap().unwrap();
        if drained {
            within(supervisor.drain(Duration::from_millis(10))).await;
        }
        drop(body);
        let report = within(reports.recv()).await.unwrap();
        let seen = (report.outcome(), report.ending.client_gone());
        let due = match drained {
            true => (Outcome::Shutdown, false),
            false => (Outcome::Dropped, true),
        };
        assert_eq!(seen, due);
    }
}

/// Ends where TLS would, although the connection does not.
struct Ends(net::WatchedStream);

impl AsyncRead for Ends {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.0).poll_read(cx, buffer);
        if buffer.filled() == b"close notify" {
            buffer.clear();
        }
        polled
    }
}

impl AsyncWrite for Ends {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What stands on a watched stream may tell the server of an end that the stream has not seen.
#[tokio::test]
async fn a_leave_that_the_stream_does_not_see() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let stack = Stack::new().on_end(move |end: &EndReport| drop(report.send(end.clone())));
    let app = routes(&Arc::default()).layer(stack);
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (stream, _) = tcp.accept().await.unwrap();
        let stream = net::WatchedStream::new(stream, false).unwrap();
        let peer = stream.peer();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
            request.extensions_mut().insert(peer.clone());
            app.clone().oneshot(request)
        });
        let io = hyper_util::rt::TokioIo::new(Ends(stream));
        let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        drop(served.await);
    });
    let mut client = within(TcpStream::connect(addr)).await.unwrap();
    let request = b"GET /idle HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(request).await.unwrap();
    read_until(&mut client, "first").await;
    client.write_all(b"close notify").await.unwrap();
    let report = within(reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert!(report.ending.client_gone());
}
