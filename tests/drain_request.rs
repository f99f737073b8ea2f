//! Uploads that nobody reads, and uploads that are broken off.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::DefaultBodyLimit,
    routing::post,
};
use bodyguard::{Disconnect, DisconnectLayer, EndReport, Outcome, Stack, testing::Script};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Notify, mpsc},
};
use tower::{Layer, ServiceExt};

mod support;
use support::{Http2, Listening, http1, read_until, within};

/// More than both sockets hold.
const LARGE: usize = 16 << 20;

struct Server {
    listening: Listening,
    reports: mpsc::UnboundedReceiver<EndReport>,
    arrived: Arc<Notify>,
}

impl Server {
    /// `/ignore` drops the upload and waits, `/read` reads it and then waits, `/stream` drops it and
    /// streams nothing, `/held` keeps it unread.
    async fn start(drain: u64) -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let arrived = Arc::new(Notify::new());
        let told = arrived.clone();
        let wait = move || {
            told.notify_one();
            std::future::pending::<()>()
        };
        let (ignore, read) = (wait.clone(), wait.clone());
        let app = Router::new()
            .route("/ignore", post(move |_: http::HeaderMap| ignore()))
            .route(
                "/read",
                post(move |body: Body| async move {
                    let waiting = read();
                    let whole = body.collect().await.is_ok();
                    waiting.await;
                    whole.to_string()
                }),
            )
            .route(
                "/stream",
                post(move || async move {
                    drop(wait());
                    let idle = futures_util::stream::pending::<Result<Bytes, Infallible>>();
                    Body::from_stream(idle)
                }),
            )
            .route(
                "/echo",
                post(|body: Bytes| async move { body.len().to_string() }),
            )
            .route("/skip", post(|| async { "skipped" }))
            .layer(DefaultBodyLimit::disable())
            .layer(
                DisconnectLayer::new()
                    .on_end(move |end| drop(report.send(end.clone())))
                    .drain_request(drain),
            );
        Self {
            listening: Listening::start(app, false).await,
            reports,
            arrived,
        }
    }

    async fn upload(&self, path: &str, promised: usize, sent: usize) -> TcpStream {
        let mut client = self.listening.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {promised}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        within(self.arrived.notified()).await;
        within(client.write_all(&vec![b'x'; sent])).await.unwrap();
        client
    }

    async fn ended(&mut self) -> EndReport {
        within(self.reports.recv()).await.unwrap()
    }
}

#[tokio::test]
async fn a_close_behind_a_large_unread_upload_is_seen() {
    let mut server = Server::start(2 * LARGE as u64).await;
    for path in ["/ignore", "/stream"] {
        for promised in [LARGE, LARGE + 1] {
            let client = server.upload(path, promised, LARGE).await;
            assert!(server.reports.try_recv().is_err(), "the client is there");
            drop(client);
            let report = server.ended().await;
            // hyper sees the end of file behind a whole upload by itself.
            let by_hyper = promised == LARGE && report.outcome() == Outcome::Dropped;
            assert!(
                by_hyper || report.outcome() == Outcome::Disconnected,
                "{report:?}"
            );
            assert!(report.ending.client_gone() || path == "/ignore", "{path}");
        }
    }
}

#[tokio::test]
async fn an_upload_broken_off_while_it_is_read_ends_the_handler() {
    let mut server = Server::start(0).await;
    let client = server.upload("/read", 1_000, 10).await;
    drop(client);
    let report = server.ended().await;
    assert_eq!(report.outcome(), Outcome::Disconnected);
    assert!(report.ending.client_gone());
}

#[tokio::test]
async fn over_http2_too() {
    let mut server = Server::start(1 << 20).await;
    let mut client = Http2::connect(server.listening.addr).await;
    let request = Request::post("http://x/ignore").body(()).unwrap();
    let (response, mut upload) = client.send.send_request(request, false).unwrap();
    within(server.arrived.notified()).await;
    upload
        .send_data(Bytes::from(vec![b'x'; 30_000]), false)
        .unwrap();
    upload.send_reset(h2::Reason::CANCEL);
    let report = server.ended().await;
    assert!(matches!(
        report.outcome(),
        Outcome::Dropped | Outcome::Disconnected
    ));
    drop(response);
}

#[tokio::test]
async fn no_more_than_the_limit_is_read_away() {
    let mut server = Server::start(1 << 20).await;
    let mut client = server.listening.connect().await;
    let head = format!("POST /ignore HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGE}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    within(server.arrived.notified()).await;
    // The sockets take something behind the limit, but not all.
    let rest = vec![b'x'; LARGE];
    let all = tokio::time::timeout(Duration::from_millis(500), client.write_all(&rest)).await;
    assert!(all.is_err(), "the server went on reading");
    assert!(server.reports.try_recv().is_err());
}

/// Ordinary requests are what they were: read, skipped, limited, kept alive.
#[tokio::test]
async fn ordinary_requests_are_none_the_wiser() {
    let mut server = Server::start(1 << 20).await;
    let mut client = server.listening.connect().await;
    for round in 0..50 {
        for (path, answer) in [("/echo", "5"), ("/skip", "skipped")] {
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello");
            client.write_all(head.as_bytes()).await.unwrap();
            read_until(&mut client, &format!("\r\n\r\n{answer}")).await;
            let report = server.ended().await;
            assert_eq!(report.outcome(), Outcome::Complete, "{path} {round}");
            assert!(!report.ending.client_gone(), "{path} {round}");
        }
    }
    let seen = http1(server.listening.addr, "1.1", "GET").await;
    assert_eq!(seen.status, 404);
}

/// An error of a layer between is nobody's disconnect.
#[tokio::test]
async fn a_body_over_its_limit_is_not_a_client_that_left() {
    let endings = Arc::new(Mutex::new(Vec::new()));
    let ended = endings.clone();
    let handler =
        |disconnect: Disconnect, body: Result<Bytes, axum::extract::rejection::BytesRejection>| async move {
            tokio::task::yield_now().await;
            match body {
                Ok(_) => StatusCode::OK,
                Err(_) if disconnect.is_gone() => StatusCode::IM_A_TEAPOT,
                Err(_) => StatusCode::PAYLOAD_TOO_LARGE,
            }
        };
    let app = Router::new()
        .route("/", post(handler))
        .layer(DefaultBodyLimit::max(10))
        .layer(
            Stack::new()
                .on_end(move |end| ended.lock().unwrap().push(end.clone()))
                .drain_request(1 << 20),
        );
    let listening = Listening::start(app, false).await;
    let mut client = listening.connect().await;
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&[b'x'; 100]).await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    support::eventually(|| !endings.lock().unwrap().is_empty()).await;
    let report = &endings.lock().unwrap()[0];
    assert_eq!(report.outcome(), Outcome::Complete);
    assert!(!report.ending.client_gone());
}

/// Waits for the report of the one request that was answered, and looks at it.
async fn answered(reports: &mut mpsc::UnboundedReceiver<EndReport>) {
    let report = within(reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Complete, "{report:?}");
    assert!(!report.ending.client_gone());
}

/// Answers 400 to what it cannot read, unless it is cancelled meanwhile.
fn reading() -> (Router, mpsc::UnboundedReceiver<EndReport>) {
    let (report, reports) = mpsc::unbounded_channel();
    let handler = |body: Body| async move {
        match body.collect().await {
            Ok(_) => StatusCode::OK,
            Err(_) => {
                tokio::task::yield_now().await;
                StatusCode::BAD_REQUEST
            }
        }
    };
    let layer = DisconnectLayer::new()
        .on_end(move |end| drop(report.send(end.clone())))
        .drain_request(1 << 20);
    (
        Router::new().route("/", post(handler)).layer(layer),
        reports,
    )
}

/// A decoder further out that comes to the end of its input, say, or one that waits for its disk.
#[tokio::test]
async fn a_request_body_that_fails_further_out_is_not_a_client_that_left() {
    use std::io::{Error, ErrorKind};
    for kind in [
        ErrorKind::UnexpectedEof,
        ErrorKind::TimedOut,
        ErrorKind::BrokenPipe,
    ] {
        let (app, mut reports) = reading();
        let frames = futures_util::stream::iter([Ok(Bytes::from("x")), Err(Error::from(kind))]);
        let request = Request::post("/").body(Body::from_stream(frames)).unwrap();
        let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{kind}");
        drop(response.into_body().collect().await.unwrap());
        answered(&mut reports).await;
    }
}

/// Its sources are a circle, or it panics when it is asked for them.
#[derive(Debug)]
struct Odd {
    panics: bool,
}

impl std::fmt::Display for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("odd")
    }
}

impl std::error::Error for Odd {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        assert!(!self.panics, "asked for its source");
        Some(self)
    }
}

#[test]
fn a_request_body_whose_error_has_odd_sources_is_answered() {
    for panics in [true, false] {
        let (done, finished) = std::sync::mpsc::channel();
        // A thread of its own: what does not come to an end is left behind.
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let answer = runtime.block_on(async {
                let (app, mut reports) = reading();
                let frames =
                    futures_util::stream::iter([Ok(Bytes::from("x")), Err(Odd { panics })]);
                let request = Request::post("/").body(Body::from_stream(frames)).unwrap();
                let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
                let status = response.status();
                drop(response.into_body().collect().await.unwrap());
                answered(&mut reports).await;
                status
            });
            done.send(answer).unwrap();
        });
        let answer = finished.recv_timeout(Duration::from_secs(10));
        assert_eq!(answer.expect("an answer"), StatusCode::BAD_REQUEST);
    }
}

/// hyper's error says so, too, and its client waits for the answer.
#[tokio::test]
async fn a_malformed_upload_is_answered() {
    let (app, mut reports) = reading();
    let listening = Listening::start(app, false).await;
    let mut client = listening.connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n";
    client.write_all(head).await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    answered(&mut reports).await;
}

/// An error of the connection counts, also behind one that stands for it.
#[tokio::test]
async fn a_broken_connection_shows_through_a_body_that_maps_its_errors() {
    let (app, mut reports) = reading();
    let app = app.layer(axum::middleware::map_request(
        |request: axum::extract::Request| async {
            request.map(|body| Body::new(body.map_err(std::io::Error::other)))
        },
    ));
    let listening = Listening::start(app, true).await;
    let mut client = listening.connect().await;
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhello")
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    let report = within(reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Disconnected, "{report:?}");
}

/// The response ends as it likes; the server closes or drains the rest of the request by itself.
#[tokio::test]
async fn a_response_that_is_over_reads_nothing_more() {
    let service = tower::service_fn(
        |request: Request<bodyguard::scope::RequestBody<Body>>| async {
            drop(request);
            Ok::<_, Infallible>(Response::new(Body::from("done")))
        },
    );
    let (polled, body) = endless_upload();
    let layered = DisconnectLayer::new()
        .drain_request(u64::MAX)
        .layer(service);
    let request = Request::post("/").body(body).unwrap();
    let response = tower::ServiceExt::oneshot(layered, request).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "done");
    let reads = *polled.lock().unwrap();
    tokio::task::yield_now().await;
    assert_eq!(*polled.lock().unwrap(), reads);
    assert!(reads <= 16, "{reads}");
}

fn endless_upload() -> (Arc<Mutex<usize>>, Body) {
    let polled = Arc::new(Mutex::new(0));
    let count = polled.clone();
    let stream = futures_util::stream::repeat_with(move || {
        *count.lock().unwrap() += 1;
        Ok::<_, Infallible>(Bytes::from_static(b"x"))
    });
    (polled, Body::from_stream(stream))
}

/// The handler keeps the head, and with it what the inner layer has put there.
#[tokio::test]
async fn a_layer_inside_another_sets_the_limit() {
    for (inner, read) in [(LARGE as u64, true), (0, false)] {
        let (layer, inside) = (DisconnectLayer::new(), DisconnectLayer::new());
        let handler = tower::service_fn(async |request: Request<_>| {
            let (parts, body) = request.into_parts();
            drop(body);
            tokio::task::yield_now().await;
            drop(parts);
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = layer
            .drain_request(LARGE as u64 - 1)
            .layer(inside.drain_request(inner).layer(handler));
        let script = Script::new().data("upload").pending().data("more");
        let probe = script.probe();
        service.oneshot(Request::new(script)).await.unwrap();
        assert_eq!(probe.polls() > 0, read);
    }
}
