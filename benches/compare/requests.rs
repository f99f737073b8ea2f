//! Hello world over HTTP/1.1: `Stack` on and nothing used, a layer that does nothing, bare axum.
//!
//! All three are served by one thread, and what is compared is the processor time that thread has
//! had for a request, kernel included: so the client cannot be the bottleneck, and others on the
//! machine do not count. The client keeps 32 connections asked, without pipelining; the share of
//! the time that the server was busy is shown.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use bodyguard::Stack;
use tokio::net::TcpListener;
use tower::{Layer, Service};

use crate::support::{at_least, median, quick, stated, thread_cpu};

const HELLO: &str = "Hello, World!";
const CONNECTIONS: usize = 32;

pub(crate) fn run() {
    let (batches, rounds) = if quick() { (100, 15) } else { (200, 41) };
    let (server, addresses) = serve([app(), app().layer(Noop), app().layer(Stack::new())]);
    let mut clients = addresses.map(Client::connect);
    // Microseconds a request, by app and round.
    let mut costs = [const { Vec::new() }; 3];
    let (mut wall, mut busy) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=rounds {
        for turn in 0..clients.len() {
            let which = (turn + round) % clients.len();
            let (begin, before) = (Instant::now(), settled(&server));
            for _ in 0..batches {
                clients[which].batch();
            }
            wall += begin.elapsed();
            let spent = settled(&server) - before;
            busy += spent;
            // The first round warms up.
            if round > 0 {
                costs[which].push(spent.as_secs_f64() * 1e6 / (batches * CONNECTIONS) as f64);
            }
        }
    }
    let [bare, noop, stack] = &costs;
    let over = |theirs: &[f64]| theirs.iter().zip(stack).map(|(a, b)| a / b).collect();
    println!(
        "the server's processor time a request: bare {:.2} µs, no-op layer {:.2} µs, Stack {:.2} µs; \
         it was busy {:.0} % of the time",
        median(bare.clone()),
        median(noop.clone()),
        median(stack.clone()),
        100.0 * busy.as_secs_f64() / wall.as_secs_f64(),
    );
    at_least("requests_vs_noop_layer", over(noop), 0.97);
    at_least("requests_vs_bare_axum", over(bare), 0.95);
    stated("requests_per_second_and_core", 1e6 / median(stack.clone()));
}

fn app() -> Router {
    Router::new().route("/", get(|| async { HELLO }))
}

/// One thread that serves them all; its `schedstat`, and where they listen.
fn serve<const N: usize>(apps: [Router; N]) -> (PathBuf, [SocketAddr; N]) {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut addresses = Vec::new();
            let mut servers = tokio::task::JoinSet::new();
            for app in apps {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                addresses.push(listener.local_addr().expect("bound"));
                servers.spawn(async move { axum::serve(listener, app).await });
            }
            let task = std::fs::read_link("/proc/thread-self").expect("Linux");
            let schedstat = PathBuf::from("/proc").join(task).join("schedstat");
            let _ = tell.send((schedstat, addresses));
            servers.join_all().await;
        });
    });
    let (schedstat, addresses) = told.recv().expect("a server");
    (schedstat, addresses.try_into().expect("as many"))
}

/// The server's processor time once it rests: the kernel books it when the thread stops.
fn settled(schedstat: &Path) -> Duration {
    let mut last = thread_cpu(schedstat);
    loop {
        thread::park_timeout(Duration::from_micros(300));
        let now = thread_cpu(schedstat);
        if now == last {
            return now;
        }
        last = now;
    }
}

struct Client {
    sockets: Vec<TcpStream>,
    length: usize,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let mut length = 0;
        let sockets = (0..CONNECTIONS).map(|_| {
            let mut socket = TcpStream::connect(address).expect("a server");
            socket.set_nodelay(true).expect("a socket");
            let deadline = Some(Duration::from_secs(30));
            socket.set_read_timeout(deadline).expect("a socket");
            ask(&mut socket);
            let (mut buffer, mut read) = ([0; 1024], 0);
            while !buffer[..read].ends_with(HELLO.as_bytes()) {
                read += socket.read(&mut buffer[read..]).expect("an answer");
            }
            length = read;
            socket
        });
        let sockets = sockets.collect();
        Self { sockets, length }
    }

    /// One request on each connection, all before the first answer is read.
    fn batch(&mut self) {
        self.sockets.iter_mut().for_each(ask);
        let mut buffer = [0; 1024];
        for socket in &mut self.sockets {
            let answer = &mut buffer[..self.length];
            socket.read_exact(answer).expect("an answer");
            assert!(answer.ends_with(HELLO.as_bytes()), "of the same length");
        }
    }
}

fn ask(socket: &mut TcpStream) {
    let request =
        b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: compare\r\n\r\n";
    socket.write_all(request).expect("sent");
}

/// A layer that does nothing.
#[derive(Clone)]
struct Noop;

impl<S> Layer<S> for Noop {
    type Service = NoopService<S>;

    fn layer(&self, inner: S) -> NoopService<S> {
        NoopService(inner)
    }
}

#[derive(Clone)]
struct NoopService<S>(S);

impl<S: Service<R>, R> Service<R> for NoopService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}
