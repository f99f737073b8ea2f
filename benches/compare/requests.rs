//! Hello world over HTTP/1.1: `Stack` on and nothing used, `BridgeLayer` alone, a layer that does
//! nothing, bare axum.
//!
//! And `Stack` under a supervisor, and on a watched listener by `axum::serve` and by `net::serve`.
//!
//! All are served by one thread, and what is compared is the processor time that thread has
//! had for a request, kernel included: so others on the machine do not count. The client has the other
//! core, never sleeps, and keeps 32 connections asked, without pipelining, so that the server is the
//! bottleneck: the share of the time that it was busy is shown.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{at_least, build, median, quick, stated, thread_cpu};

const HELLO: &str = "Hello, World!";
const CONNECTIONS: usize = 32;
/// What `hello` serves, in its order.
const APPS: usize = 7;

pub(crate) fn run() {
    let (requests, rounds) = if quick() { (3_000, 31) } else { (6_000, 61) };
    let server = Server::start();
    let mut clients = server.addresses.map(Client::connect);
    // Microseconds a request, by app and round.
    let mut costs = [const { Vec::new() }; APPS];
    let (mut wall, mut busy) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=rounds {
        for turn in 0..clients.len() {
            let which = (turn + round) % clients.len();
            let (before, begin) = (settled(&server.schedstat), Instant::now());
            clients[which].run(requests);
            wall += begin.elapsed();
            let spent = settled(&server.schedstat) - before;
            busy += spent;
            // The first round warms up.
            if round > 0 {
                costs[which].push(spent.as_secs_f64() * 1e6 / requests as f64);
            }
        }
    }
    let [bare, noop, stack, bridge, supervised, watched, served] = &costs;
    let over = |theirs: &[f64], ours: &[f64]| theirs.iter().zip(ours).map(|(a, b)| a / b).collect();
    println!(
        "the server's processor time a request: bare {:.2} µs, no-op layer {:.2} µs, Stack {:.2} µs, \
         BridgeLayer {:.2} µs, under a supervisor {:.2} µs, watched {:.2} µs, by net::serve {:.2} µs; it \
         was busy {:.0} % of the time",
        median(bare.clone()),
        median(noop.clone()),
        median(stack.clone()),
        median(bridge.clone()),
        median(supervised.clone()),
        median(watched.clone()),
        median(served.clone()),
        100.0 * busy.as_secs_f64() / wall.as_secs_f64(),
    );
    at_least("requests_vs_noop_layer", over(noop, stack), 0.97);
    at_least("requests_vs_bare_axum", over(bare, stack), 0.95);
    at_least("requests_bridge_vs_noop_layer", over(noop, bridge), 0.98);
    at_least(
        "requests_watched_vs_plain_listener",
        over(stack, watched),
        0.98,
    );
    at_least(
        "requests_net_serve_vs_axum_serve",
        over(stack, served),
        0.98,
    );
    let supervised = median(over(noop, supervised));
    stated("requests_supervised_vs_noop_layer", supervised);
    stated("requests_per_second_and_core", 1e6 / median(stack.clone()));
}

/// The server: a build of its own, because here every feature of the crate is on.
struct Server {
    process: Child,
    schedstat: PathBuf,
    addresses: [SocketAddr; APPS],
}

impl Server {
    fn start() -> Self {
        let mut process = Command::new(build("hello"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let addresses = [(); APPS].map(|()| {
            let port = lines.next().expect("a port").expect("text");
            SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a number")))
        });
        let id = process.id();
        Self {
            process,
            schedstat: format!("/proc/{id}/task/{id}/schedstat").into(),
            addresses,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
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
            socket.set_nonblocking(true).expect("a socket");
            socket
        });
        let sockets = sockets.collect();
        Self { sockets, length }
    }

    /// So many requests, the next on each connection as soon as it has answered.
    fn run(&mut self, requests: usize) {
        let mut buffer = [0; 1024];
        let mut read = [0; CONNECTIONS];
        let (mut asked, mut answered) = (0, 0);
        self.sockets.iter_mut().for_each(ask);
        asked += CONNECTIONS;
        while answered < requests {
            for (socket, read) in self.sockets.iter_mut().zip(&mut read) {
                let answer = &mut buffer[..self.length - *read];
                match socket.read(answer) {
                    Ok(more) => *read += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => panic!("no answer: {error}"),
                }
                if *read == self.length {
                    assert!(buffer[..self.length].ends_with(HELLO.as_bytes()));
                    answered += 1;
                    *read = 0;
                    if asked < requests {
                        ask(socket);
                        asked += 1;
                    }
                }
            }
        }
    }
}

fn ask(socket: &mut TcpStream) {
    let request =
        b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: compare\r\n\r\n";
    socket.write_all(request).expect("sent");
}
