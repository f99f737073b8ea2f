//! Compressed bodies that fail: what came before the error reaches the client, also what the encoder
//! still had, and what the handler said last.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::mpsc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Version},
    routing::get,
};
use bodyguard::{
    CompressionLayer, Stack, TaskGroup,
    compression::Flush,
    net::{self, WatchedListener},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::timeout,
};

/// Longer than any wait that is not a failure.
const DEADLINE: Duration = Duration::from_secs(20);
const ONE: &str = "data: 1\n\n";
const TWO: &str = "data: 2\n\n";
const LAST: &str = "event: error\n\n";

fn app(compression: CompressionLayer) -> Router {
    let events = async |group: TaskGroup| {
        let body = group.body(|tx| async move {
            tx.send(ONE).await?;
            tx.send(TWO).await?;
            Err("no more news".into())
        });
        body.on_failure(|_| Some(Bytes::from_static(LAST.as_bytes())))
    };
    let large = async |group: TaskGroup| {
        let body = group.body(|tx| async move {
            tx.send(large()).await?;
            Err("no more news".into())
        });
        body.on_failure(|_| Some(Bytes::from_static(LAST.as_bytes())))
    };
    // Its length is known, and small: it is collected, and fails meanwhile.
    let short = async || {
        let half = stream::iter([Ok(ONE), Err(io::Error::other("disk"))]);
        ([("content-length", "1000")], Body::from_stream(half))
    };
    Router::new()
        .route("/events", get(events))
        .route("/large", get(large))
        .layer(Stack::new().compression(compression.clone()))
        // Without a scope, whose gap would make a stream of it.
        .route("/short", get(short).layer(compression))
}

/// More than is encoded where it is polled.
fn large() -> Bytes {
    ONE.repeat((64 << 10) / ONE.len()).into()
}

async fn serve(compression: CompressionLayer) -> (SocketAddr, JoinSet<()>) {
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = net::serve(listener, app(compression));
    let mut serving = JoinSet::new();
    serving.spawn(async move { drop(server.await) });
    (addr, serving)
}

/// What a client reads before the error.
async fn read(addr: SocketAddr, version: Version, path: &str) -> Vec<u8> {
    timeout(DEADLINE, async {
        match version {
            Version::HTTP_10 => read_1_0(addr, path).await,
            version => read_by_hyper(addr, version, path).await,
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{version:?} {path} hangs"))
}

async fn read_by_hyper(addr: SocketAddr, version: Version, path: &str) -> Vec<u8> {
    let request = Request::get(format!("http://{addr}{path}"))
        .header("host", addr.to_string())
        .header("accept-encoding", "gzip")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let mut tasks = JoinSet::new();
    let response = if version == Version::HTTP_2 {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        tasks.spawn(async move { drop(connection.await) });
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
        tasks.spawn(async move { drop(connection.await) });
        sender.send_request(request).await
    };
    let response = response.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let (mut body, mut wire) = (response.into_body(), Vec::new());
    loop {
        match body.frame().await.expect("a clean end") {
            Ok(frame) => wire.extend_from_slice(&frame.into_data().unwrap()),
            Err(_) => return wire,
        }
    }
}

async fn read_1_0(addr: SocketAddr, path: &str) -> Vec<u8> {
    let mut client = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut wire = Vec::new();
    let end = client.read_to_end(&mut wire).await;
    let kind = end.expect_err("a clean end").kind();
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
    let mut lines = wire.windows(4);
    let head = lines.position(|bytes| bytes == b"\r\n\r\n").unwrap();
    wire.split_off(head + 4)
}

/// What can be read of a gzip stream that is not whole.
fn plain(wire: &[u8]) -> String {
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    decoder.write_all(wire).unwrap();
    decoder.flush().unwrap();
    assert!(decoder.try_finish().is_err(), "a whole gzip member");
    String::from_utf8(decoder.get_ref().clone()).unwrap()
}

const VERSIONS: [Version; 3] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];

#[tokio::test]
async fn what_is_flushed_at_the_end_only_arrives_before_the_error() {
    let (addr, _serving) = serve(CompressionLayer::new().flush(Flush::Never)).await;
    for version in VERSIONS {
        let wire = read(addr, version, "/events").await;
        assert_eq!(plain(&wire), [ONE, TWO, LAST].concat(), "{version:?}");
    }
}

#[tokio::test]
async fn what_is_collected_until_the_body_fails_arrives_before_the_error() {
    let (addr, _serving) = serve(CompressionLayer::new()).await;
    for version in VERSIONS {
        let wire = read(addr, version, "/short").await;
        assert_eq!(plain(&wire), ONE, "{version:?}");
    }
}

#[test]
fn what_waits_for_a_thread_longer_than_the_gap_arrives_before_the_error() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (begins, begun) = mpsc::channel();
    let (_done, waits) = mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || {
        begins.send(()).unwrap();
        waits.recv()
    }));
    begun.recv_timeout(DEADLINE).expect("a thread");
    runtime.block_on(async {
        let (addr, _serving) = serve(CompressionLayer::new()).await;
        for version in VERSIONS {
            let text = plain(&read(addr, version, "/large").await);
            assert_eq!(text.len(), large().len() + LAST.len(), "{version:?}");
            assert!(text.ends_with(LAST), "{version:?}");
        }
    });
}
