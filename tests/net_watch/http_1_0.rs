//! HTTP/1.0: the end of the connection is that of the body, and only a reset says that it is broken.

use std::{
    future::IntoFuture,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::CONTENT_LENGTH},
    middleware::{Next, from_fn, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use bodyguard::{
    CompressionLayer, Shutdown, Stack, TaskGroup,
    net::{self, Peer, WatchedListener},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

use super::support::within;

type Item = io::Result<Bytes>;

/// Bodies that go out without a length, one since it is encoded; and whether gzip is asked for.
const WITHOUT_LENGTH: [(&str, bool); 2] = [("/endless", false), ("/promised-endless", true)];

/// More than both sockets hold.
const LARGE: usize = 16 << 20;

fn ready(text: &'static str) -> Item {
    Ok(Bytes::from_static(text.as_bytes()))
}

fn app() -> Router {
    let whole = || async { Body::from_stream(stream::iter([ready("whole")])) };
    let fails = || async {
        Body::from_stream(stream::iter([ready("half"), Err(io::Error::other("disk"))]))
    };
    let panics = || async {
        let panic = stream::poll_fn(|_| panic!("a test's own"));
        Body::from_stream(stream::iter([ready("half")]).chain(panic))
    };
    let task = |group: TaskGroup| async move {
        group.body(|tx| async move {
            tx.send("half").await?;
            Err("disk".into())
        })
    };
    let endless =
        || async { Body::from_stream(stream::iter([ready("half")]).chain(stream::pending())) };
    // With a length, which the compression takes away.
    let promised = || async {
        let panic = stream::once(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            panic!("a test's own")
        });
        let body = Body::from_stream(stream::iter([ready("half")]).chain(panic));
        ([(CONTENT_LENGTH, "100000")], body)
    };
    let promised_endless = move || async move { ([(CONTENT_LENGTH, "100000")], endless().await) };
    let large = || async {
        let chunk = Bytes::from(vec![b'x'; LARGE / 64]);
        Body::from_stream(stream::iter(vec![chunk; 64]).map(Item::Ok))
    };
    Router::new()
        .route("/whole", get(whole))
        .route("/large", get(large))
        .route("/fails", get(fails))
        .route("/panics", get(panics))
        .route("/task", get(task))
        .route("/endless", get(endless))
        .route("/promised", get(promised))
        .route("/promised-endless", get(promised_endless))
        .route(
            "/none",
            get(|| async { "nothing of a stream".into_response() }),
        )
        .layer(Stack::new().compression(CompressionLayer::new().random_padding(0)))
        // Reads what fails, and answers something else.
        .route(
            "/replaced",
            get(fails)
                .layer(Stack::new())
                .layer(map_response(|response: Response| async {
                    let read = axum::body::to_bytes(response.into_body(), 1 << 20).await;
                    read.map_err(|_| (StatusCode::BAD_GATEWAY, "a page in its place"))
                })),
        )
}

/// What an HTTP/1.0 client reads, and how it ends.
async fn read(addr: SocketAddr, path: &str, gzip: bool) -> (Vec<u8>, io::Result<()>) {
    let mut client = ask(addr, path, gzip).await;
    let mut text = Vec::new();
    let end = within(client.read_to_end(&mut text)).await;
    (text, end.map(drop))
}

async fn ask(addr: SocketAddr, path: &str, gzip: bool) -> TcpStream {
    let mut client = TcpStream::connect(addr).await.unwrap();
    let accept = if gzip {
        "accept-encoding: gzip\r\n"
    } else {
        ""
    };
    let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\n{accept}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

async fn served_by_axum() -> SocketAddr {
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = app().into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

async fn served_by_us() -> SocketAddr {
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(net::serve(listener, app()).into_future());
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_ends_in_a_reset_and_a_whole_one_does_not() {
    for addr in [served_by_axum().await, served_by_us().await] {
        for gzip in [false, true] {
            let promised = gzip.then_some("/promised");
            for path in ["/fails", "/panics", "/task"].into_iter().chain(promised) {
                let (text, end) = read(addr, path, gzip).await;
                let kind = end.expect_err("a clean end").kind();
                assert_eq!(
                    kind,
                    io::ErrorKind::ConnectionReset,
                    "{path} {gzip}: {text:?}"
                );
            }
            for path in ["/whole", "/none", "/replaced"] {
                let (_, end) = read(addr, path, gzip).await;
                end.unwrap_or_else(|error| panic!("{path}: {error}"));
            }
        }
    }
}

/// What the kernel still has to send is not discarded.
#[tokio::test]
async fn a_whole_body_arrives_at_a_slow_reader() {
    for addr in [served_by_axum().await, served_by_us().await] {
        let mut client = ask(addr, "/large", false).await;
        client.readable().await.unwrap();
        let mut text = Vec::new();
        let mut piece = vec![0; 256 << 10];
        loop {
            let read = within(client.read(&mut piece)).await.unwrap();
            if read == 0 {
                break;
            }
            text.extend_from_slice(&piece[..read]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(text.len() > LARGE, "{}", text.len());
    }
}

/// Sends a copy of the request ahead, whose body breaks, and answers with the other.
async fn two_attempts(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let mut copy = Request::from_parts(parts.clone(), Body::empty());
    copy.extensions_mut().insert(Copied);
    let copy = next.clone().run(copy).await;
    let mut copied = copy.into_body().into_data_stream();
    assert!(copied.next().await.unwrap().is_ok());
    let answer = next.run(Request::from_parts(parts, body)).await;
    // It breaks behind the head of the answer, and before its end.
    let rest = stream::once(async move {
        assert!(copied.next().await.unwrap().is_err());
        ready("whole").map_err(axum::Error::new)
    });
    answer.map(|body| Body::from_stream(body.into_data_stream().chain(rest)))
}

#[derive(Clone)]
struct Copied;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_breaks_resets_no_whole_answer() {
    let handler = async |request: Request| {
        let broken = request.extensions().get::<Copied>().is_some();
        let end = match broken {
            true => Err(io::Error::other("disk")),
            false => ready("still "),
        };
        Body::from_stream(stream::iter([ready("first "), end]))
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new())
        .layer(from_fn(two_attempts))
        .layer(Stack::new());
    for serve in [false, true] {
        let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = app.clone();
        if serve {
            tokio::spawn(net::serve(listener, app).into_future());
        } else {
            let app = app.into_make_service_with_connect_info::<Peer>();
            tokio::spawn(async move { axum::serve(listener, app).await });
        }
        for _ in 0..20 {
            let (text, end) = read(addr, "/", false).await;
            let text = String::from_utf8(text).unwrap();
            assert!(text.ends_with("first still whole"), "{text}");
            end.unwrap();
        }
    }
}

/// The drain's time is up: the connection is closed under a body that nobody asks any more.
#[tokio::test]
async fn a_body_that_the_drain_cuts_off_ends_in_a_reset() {
    for (path, gzip) in WITHOUT_LENGTH {
        let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = net::serve(listener, app())
            .deadline(Duration::from_millis(400))
            .shutdown(async { drop(stopped.await) });
        let serving = tokio::spawn(serving.into_future());
        let client = begun(addr, path, gzip).await;
        drop(stop);
        assert_reset(client, path).await;
        let report = within(serving).await.unwrap().unwrap();
        assert_eq!((report.aborted, report.is_clean()), (1, true), "{report}");
    }
}

/// A handler that the drain aborts is answered for: that answer is whole.
#[tokio::test]
async fn the_answer_for_an_aborted_handler_is_whole() {
    let (entered, has_entered) = oneshot::channel::<()>();
    let entered = Arc::new(Mutex::new(Some(entered)));
    let handler = move || {
        drop(entered.lock().unwrap().take());
        std::future::pending::<()>()
    };
    let layer = Stack::new().shutdown(Shutdown::abort());
    let app: Router = Router::new().route("/", get(handler)).layer(layer);
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = net::serve(listener, app).shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    let mut client = ask(addr, "/", false).await;
    within(has_entered).await.unwrap_err();
    drop(stop);
    let mut text = Vec::new();
    within(client.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("HTTP/1.0 503"), "{text}");
    within(serving).await.unwrap().unwrap();
}

/// A client that has the head, and something of the body.
async fn begun(addr: SocketAddr, path: &str, gzip: bool) -> TcpStream {
    let mut client = ask(addr, path, gzip).await;
    let mut text = Vec::new();
    let is_body = |text: &[u8]| text.windows(5).any(|end| end.starts_with(b"\r\n\r\n"));
    while !is_body(&text) {
        assert!(within(client.read_buf(&mut text)).await.unwrap() > 0);
    }
    client
}

async fn assert_reset(mut client: TcpStream, what: &str) {
    let end = within(client.read_to_end(&mut Vec::new())).await;
    let kind = end.expect_err(what).kind();
    assert_eq!(kind, io::ErrorKind::ConnectionReset, "{what}");
}

/// The server lets go of the connection first, and of the body after it.
#[tokio::test]
async fn a_body_whose_server_is_dropped_ends_in_a_reset() {
    for (path, gzip) in WITHOUT_LENGTH {
        for by_axum in [false, true] {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let addr = match by_axum {
                true => runtime.spawn(served_by_axum()).await.unwrap(),
                false => runtime.spawn(served_by_us()).await.unwrap(),
            };
            let client = begun(addr, path, gzip).await;
            runtime.shutdown_background();
            assert_reset(client, "a runtime that is shut down").await;
        }
        let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = tokio::spawn(net::serve(listener, app()).into_future());
        let client = begun(addr, path, gzip).await;
        serving.abort();
        assert_reset(client, "a server that is dropped").await;
    }
}

/// It breaks outside of what we see of it.
#[tokio::test]
async fn a_body_that_a_layer_further_out_breaks_ends_in_a_reset() {
    let soon = Duration::from_millis(50);
    let app = app().layer(tower_http::timeout::ResponseBodyTimeoutLayer::new(soon));
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(net::serve(listener, app).into_future());
    for (path, gzip) in WITHOUT_LENGTH {
        assert_reset(begun(addr, path, gzip).await, "a time-out").await;
    }
    let (text, end) = read(addr, "/whole", false).await;
    assert!(text.ends_with(b"whole"));
    end.unwrap();
}
