//! What large gzip downloads do to everybody else's latency, on a runtime of two threads.
//!
//! p99 of a small request without downloads, with two of them behind
//! our layer, and with two behind tower-http's; rounds alternate.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bodyguard::compression::CompressionLayer;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinSet};
use tower::{Layer, Service};
use tower_http::compression::CompressionLayer as TowerHttp;

use crate::support::{at_most, corpus, median, quick};

const ROUNDS: usize = 5;
/// How often a request is made.
const PACE: Duration = Duration::from_millis(2);
/// What each download must have received before measuring begins.
const UNDER_WAY: usize = 200 << 10;
const DOWNLOADS: usize = 2;

pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let ours = serve(&runtime, CompressionLayer::new().level(6));
    let theirs = serve(&runtime, TowerHttp::new());
    let (mut against, mut idle_against, mut volume) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (quiet, _) = p99(ours, 0);
        let (with_ours, our_bytes) = p99(ours, DOWNLOADS);
        let (with_theirs, their_bytes) = p99(theirs, DOWNLOADS);
        println!(
            "p99 of a small request: {quiet:.2} ms alone, {with_ours:.2} ms beside our downloads \
             ({our_bytes:.1} MB/s sent), {with_theirs:.2} ms beside tower-http's ({their_bytes:.1} MB/s)"
        );
        against.push(with_ours / with_theirs);
        idle_against.push(with_ours / quiet);
        volume.push(our_bytes / their_bytes);
    }
    println!(
        "against no download: {:.2}x; bytes sent meanwhile: {:.2}x",
        median(idle_against),
        median(volume)
    );
    at_most("starve_p99_vs_tower_http", against, 0.1);
}

type Answer = Response<Either<Full<Bytes>, Endless>>;
type Endless = StreamBody<
    futures_util::stream::Iter<Box<dyn Iterator<Item = Result<Frame<Bytes>, Infallible>> + Send>>,
>;

fn serve<L, S, B>(runtime: &Runtime, layer: L) -> SocketAddr
where
    L: Layer<Handler, Service = S>,
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let text = Bytes::from(corpus::prose(4 << 20));
    let service = layer.layer(Handler { text });
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
            while connections.try_join_next().is_some() {}
        }
    };
    drop(runtime.spawn(server));
    address
}

#[derive(Clone)]
struct Handler {
    text: Bytes,
}

impl Service<Request<Incoming>> for Handler {
    type Response = Answer;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Answer, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let body = match request.uri().path() {
            "/large" => {
                let chunks = corpus::chunks(&self.text, 16 << 10);
                let frames = chunks
                    .into_iter()
                    .cycle()
                    .map(|chunk| Ok(Frame::data(chunk)));
                let frames: Box<dyn Iterator<Item = _> + Send> = Box::new(frames);
                Either::Right(StreamBody::new(futures_util::stream::iter(frames)))
            }
            _ => Either::Left(Full::new(Bytes::from_static(b"small"))),
        };
        std::future::ready(Ok(Response::new(body)))
    }
}

/// Milliseconds, and megabytes a second that the downloads got meanwhile.
fn p99(address: SocketAddr, downloads: usize) -> (f64, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..downloads)
        .map(|_| {
            let (stop, received) = (Arc::clone(&stop), Arc::clone(&received));
            thread::spawn(move || {
                let mut socket = ask(address, "/large", "gzip");
                let mut buffer = vec![0; 64 << 10];
                while !stop.load(Relaxed) {
                    match socket.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(read) => received.fetch_add(read, Relaxed),
                    };
                }
            })
        })
        .collect();
    while received.load(Relaxed) < downloads * UNDER_WAY {
        pause();
    }
    let mut socket = TcpStream::connect(address).expect("a server");
    socket.set_nodelay(true).expect("a socket");
    let (begin, before) = (Instant::now(), received.load(Relaxed));
    let mut times = Vec::new();
    while begin.elapsed() < span() {
        pause();
        let begin = Instant::now();
        small(&mut socket);
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let bytes = received.load(Relaxed) - before;
    let rate = bytes as f64 / 1e6 / begin.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    for client in clients {
        client.join().expect("a client");
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() * 99 / 100], rate)
}

/// How long each measurement lasts.
fn span() -> Duration {
    Duration::from_millis(if quick() { 800 } else { 3000 })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client's own thread, outside the runtime"
)]
fn pause() {
    thread::sleep(PACE);
}

fn ask(address: SocketAddr, path: &str, accept: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("a server");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a socket");
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: {accept}\r\n\r\n"
    )
    .expect("sent");
    socket
}

fn small(socket: &mut TcpStream) {
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .expect("sent");
    let (mut buffer, mut length) = ([0; 1024], 0);
    while !buffer[..length].ends_with(b"\r\n\r\nsmall") {
        let read = socket.read(&mut buffer[length..]).expect("an answer");
        assert!(read > 0, "closed");
        length += read;
    }
}
