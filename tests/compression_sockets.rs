//! Compressed event streams over real sockets: each event reaches the client, decodable, before
//! the next one is made; and the whole is one gzip member to decoders that are not ours.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{Read, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bodyguard::compression::CompressionLayer;
use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::{body::Incoming, client::conn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tower::{Layer, service_fn};

#[path = "../src/compression/tests/foreign.rs"]
mod foreign;

/// Longer than any wait that is not a failure.
const DEADLINE: Duration = Duration::from_secs(60);
const STREAMS: usize = 500;
const CONNECTIONS: usize = 4;

/// The events of each stream, by the path it is asked for under.
type Feeds = Arc<Mutex<HashMap<String, mpsc::Receiver<Bytes>>>>;

/// Serves each request the next of `feeds`, compressed, with no compressor kept while idle.
async fn serve(layer: CompressionLayer, feeds: Feeds) -> (SocketAddr, JoinSet<()>) {
    let service = layer.layer(service_fn(move |request: Request<Incoming>| {
        let feed = feeds.lock().expect("no panic").remove(request.uri().path());
        async move {
            let feed = feed.expect("a feed for each request");
            let frames = futures_util::stream::unfold(feed, |mut feed| async {
                let event = feed.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(event)), feed))
            });
            let response = Response::builder()
                .header("content-type", "text/event-stream")
                .body(StreamBody::new(Box::pin(frames)))
                .expect("a response");
            Ok::<_, Infallible>(response)
        }
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket");
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, server)
}

enum Client {
    One(conn::http1::SendRequest<Empty<Bytes>>),
    Two(conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn connect(address: SocketAddr, version: Version, tasks: &mut JoinSet<()>) -> Self {
        let stream = TcpStream::connect(address).await.expect("a server");
        stream.set_nodelay(true).expect("a socket");
        let io = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("HTTP/2");
            tasks.spawn(async move { drop(connection.await) });
            Client::Two(sender)
        } else {
            let (sender, connection) = conn::http1::handshake(io).await.expect("HTTP/1");
            tasks.spawn(async move { drop(connection.await) });
            Client::One(sender)
        }
    }

    async fn get(&mut self, address: SocketAddr, path: &str) -> Response<Incoming> {
        self.ask(address, Method::GET, path).await
    }

    async fn ask(&mut self, address: SocketAddr, method: Method, path: &str) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
            .header("host", address.to_string())
            .header("accept-encoding", "gzip")
            .body(Empty::new())
            .expect("a request");
        let response = match self {
            Client::One(sender) => {
                sender.ready().await.expect("an idle connection");
                sender.send_request(request).await
            }
            Client::Two(sender) => sender.send_request(request).await,
        };
        response.expect("a response")
    }
}

/// Lengths from one byte to 200 KB, small ones far more often.
struct Lengths(u64);

impl Lengths {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn event(&mut self) -> Bytes {
        let bits = 1 + self.next() % 18;
        let length = (1 + self.next() % (1 << bits)).min(200_000) as usize;
        let mut text = Vec::with_capacity(length + 40);
        while text.len() < length {
            let number = self.next() % 100_000;
            text.extend_from_slice(format!("{{\"n\":{number},\"word\":\"event\"}},").as_bytes());
        }
        text.truncate(length);
        text.into()
    }
}

async fn streams(version: Version) {
    let mut tasks = JoinSet::new();
    let mut wires = Vec::new();
    let mut connections = JoinSet::new();
    for connection in 0..CONNECTIONS {
        // A layer for each connection: its figures are those of one stream.
        let layer = CompressionLayer::new().resident_limit(0);
        let feeds = Feeds::default();
        let (address, server) = serve(layer.clone(), Arc::clone(&feeds)).await;
        let mut client = Client::connect(address, version, &mut tasks).await;
        connections.spawn(async move {
            let _server = server;
            let mut wires = Vec::new();
            for stream in 0..STREAMS / CONNECTIONS {
                let seed = (connection * STREAMS + stream) as u64;
                wires.push(
                    timeout(
                        DEADLINE,
                        one_stream(&mut client, &layer, address, &feeds, seed),
                    )
                    .await
                    .unwrap_or_else(|_| panic!("stream {seed} hangs")),
                );
            }
            assert_eq!(layer.stats().resident, 0, "a compressor was kept");
            wires
        });
    }
    while let Some(done) = connections.join_next().await {
        wires.extend(done.expect("no panic"));
    }
    assert_eq!(wires.len(), STREAMS);
    let decoded = tokio::task::spawn_blocking(|| foreign::decode(wires));
    decoded.await.expect("one member each, to others too");
}

/// Sends each event only once the one before has been decoded and the stream is parked.
async fn one_stream(
    client: &mut Client,
    layer: &CompressionLayer,
    address: SocketAddr,
    feeds: &Feeds,
    seed: u64,
) -> (Vec<u8>, Vec<u8>) {
    // Over HTTP/2 the client knows the end of a stream before its server has let go of it.
    until(|| layer.stats().open == 0).await;
    let mut lengths = Lengths(seed);
    let (events, receiver) = mpsc::channel(1);
    let path = format!("/{seed}");
    feeds
        .lock()
        .expect("no panic")
        .insert(path.clone(), receiver);
    let response = client.get(address, &path).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let mut body = response.into_body();
    let (mut wire, mut told) = (Vec::new(), 0);
    let mut text = Vec::new();
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    for _ in 0..3 + seed % 5 {
        let event = lengths.event();
        text.extend_from_slice(&event);
        events.send(event).await.expect("the body is there");
        while told < text.len() {
            let frame = body.frame().await.expect("not the end").expect("no error");
            let data = frame.into_data().expect("data");
            decoder.write_all(&data).expect("gzip");
            decoder.flush().expect("gzip");
            wire.extend_from_slice(&data);
            told = decoder.get_ref().len();
        }
        assert!(decoder.get_ref() == &text, "another text");
        until(|| layer.stats().parked == 1).await;
        assert_eq!((layer.stats().open, layer.stats().resident), (1, 0));
    }
    drop(events);
    while let Some(frame) = body.frame().await {
        wire.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
    }
    (wire, text)
}

/// For what no event announces; the deadline is that of the stream.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_before_the_next_over_http_1() {
    streams(Version::HTTP_11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_before_the_next_over_http_2() {
    streams(Version::HTTP_2).await;
}

/// A length beside it would make hyper give up the response (RFC 9112, 6.2).
#[tokio::test]
async fn a_transfer_coding_of_the_handlers_gets_no_length_beside_it() {
    let text = "a line of text\n".repeat(400);
    let body = Full::new(Bytes::from(text.clone()));
    let service = CompressionLayer::new().layer(service_fn(move |_: Request<Incoming>| {
        let response = Response::builder()
            .header("transfer-encoding", "chunked")
            .body(body.clone())
            .expect("a response");
        async { Ok::<_, Infallible>(response) }
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let service = TowerToHyperService::new(service);
        let _ = auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
    let mut client = Client::connect(address, Version::HTTP_11, &mut tasks).await;
    let response = client.get(address, "/").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.headers()["transfer-encoding"], "chunked");
    assert!(!response.headers().contains_key("content-length"));
    let wire = timeout(DEADLINE, response.into_body().collect()).await;
    let wire = wire.expect("in time").expect("no error").to_bytes();
    let mut decoded = String::new();
    let mut decoder = flate2::read::GzDecoder::new(&wire[..]);
    decoder.read_to_string(&mut decoded).expect("gzip");
    assert_eq!(decoded, text);
}

#[tokio::test]
async fn head_claims_neither_zero_bytes_nor_the_plain_length() {
    let app = axum::Router::new()
        .route(
            "/",
            axum::routing::get(|| async { "a line of text\n".repeat(400) }),
        )
        .layer(CompressionLayer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(axum::serve(listener, app).await) });
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(address, version, &mut tasks).await;
        let whole = client.ask(address, Method::GET, "/").await;
        let head = client.ask(address, Method::HEAD, "/").await;
        for name in ["content-encoding", "vary", "content-type"] {
            assert_eq!(
                head.headers().get(name),
                whole.headers().get(name),
                "{name}"
            );
        }
        assert_eq!(head.headers()["content-encoding"], "gzip");
        assert!(
            !head.headers().contains_key("content-length"),
            "{version:?}"
        );
        assert!(
            whole.headers().contains_key("content-length"),
            "{version:?}"
        );
        let body = timeout(DEADLINE, head.into_body().collect())
            .await
            .expect("in time");
        assert!(body.expect("no error").to_bytes().is_empty());
        let body = timeout(DEADLINE, whole.into_body().collect())
            .await
            .expect("in time");
        assert!(body.expect("no error").to_bytes().len() < 500);
    }
}
