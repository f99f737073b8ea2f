//! Four producers into one response body, over a loopback socket with HTTP/1.1.
//!
//! Ours: `FrameBody::channel(16 KiB)`. Theirs: `spawn`, `tokio::sync::mpsc` with as many slots as
//! frames fit in 16 KiB, `ReceiverStream` and `StreamBody`. Server and client share the machine,
//! rounds alternate in pairs, and a ratio is the median over the pairs.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bodyguard::{BodyError, task_group::FrameBody};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{at_least, cpu, median, quick, stated};

const BOUND: usize = 16 * 1024;
const PRODUCERS: usize = 4;

#[derive(Clone, Copy)]
enum Side {
    Ours,
    Theirs,
}

/// One kind of response: so many frames of such a length, all producers together.
#[derive(Clone, Copy)]
struct Load {
    len: usize,
    frames: usize,
}

pub(crate) fn run() {
    // Where both sides are near each other many short rounds say more than a few long ones.
    let goals = [
        (64, 21, 600_000, 2.0),
        (256, 21, 500_000, 2.0),
        (4096, 121, 30_000, 1.0),
        (16384, 121, 10_000, 1.0),
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    println!("frame bytes | ours, frames/s | theirs, frames/s");
    for (len, rounds, frames, goal) in goals {
        let (rounds, frames) = match quick() {
            true => (rounds / 2 + 1, frames / 4),
            false => (rounds, frames),
        };
        let load = Load { len, frames };
        let pair = compare(&runtime, load, rounds);
        at_least(&format!("fan_in_{len}"), pair.faster, goal);
        // Both ends of the socket are in it, the client's the same on both sides.
        stated(&format!("fan_in_{len}_cpu"), median(pair.cheaper));
    }
}

/// What each pair of rounds says: frames a second and frames for the same processor time, ours to
/// theirs.
struct Pair {
    faster: Vec<f64>,
    cheaper: Vec<f64>,
}

fn compare(runtime: &Runtime, load: Load, rounds: usize) -> Pair {
    let ours = serve(runtime, load, Side::Ours);
    let theirs = serve(runtime, load, Side::Theirs);
    let mut rates = [Vec::new(), Vec::new()];
    let mut pair = Pair {
        faster: Vec::new(),
        cheaper: Vec::new(),
    };
    for round in 0..=rounds {
        // Whoever goes first changes from round to round.
        let (a, b) = if round % 2 == 0 {
            let a = fetch(ours, load);
            (a, fetch(theirs, load))
        } else {
            let b = fetch(theirs, load);
            (fetch(ours, load), b)
        };
        // The first round warms up.
        if round > 0 {
            let frames = load.frames as f64;
            rates[0].push(frames / a.wall.as_secs_f64());
            rates[1].push(frames / b.wall.as_secs_f64());
            pair.faster
                .push(b.wall.as_secs_f64() / a.wall.as_secs_f64());
            pair.cheaper.push(b.cpu.as_secs_f64() / a.cpu.as_secs_f64());
        }
    }
    let [ours, theirs] = rates.map(median);
    println!("{:>11} | {ours:>14.0} | {theirs:>16.0}", load.len);
    pair
}

/// A server that answers every request with the load.
fn serve(runtime: &Runtime, load: Load, side: Side) -> SocketAddr {
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("bind");
    let address = listener.local_addr().expect("address");
    runtime.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let answer = service_fn(move |_: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(match side {
                    Side::Ours => our_body(load),
                    Side::Theirs => their_body(load),
                }))
            });
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
        }
    });
    address
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is compared: producers nobody owns"
)]
fn our_body(load: Load) -> BoxBody<Bytes, BodyError> {
    let (sender, body) = FrameBody::channel(BOUND);
    for _ in 0..PRODUCERS {
        let sender = sender.clone();
        tokio::spawn(async move {
            let frame = Bytes::from(vec![b'x'; load.len]);
            for _ in 0..load.frames / PRODUCERS {
                if sender.send(frame.clone()).await.is_err() {
                    return;
                }
            }
        });
    }
    BoxBody::new(body)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is compared: producers nobody owns"
)]
fn their_body(load: Load) -> BoxBody<Bytes, BodyError> {
    let (sender, receiver) = mpsc::channel::<Bytes>(BOUND / load.len);
    for _ in 0..PRODUCERS {
        let sender = sender.clone();
        tokio::spawn(async move {
            let frame = Bytes::from(vec![b'x'; load.len]);
            for _ in 0..load.frames / PRODUCERS {
                if sender.send(frame.clone()).await.is_err() {
                    return;
                }
            }
        });
    }
    let frames = ReceiverStream::new(receiver).map(|data| Ok(Frame::data(data)));
    BoxBody::new(StreamBody::new(frames))
}

/// What one response took, from the request to its end.
struct Cost {
    wall: Duration,
    cpu: Duration,
}

fn fetch(address: SocketAddr, load: Load) -> Cost {
    let mut socket = TcpStream::connect(address).expect("connect");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("deadline");
    let mut buffer = vec![0; 128 * 1024];
    let mut read = 0;
    let cpu_before = cpu();
    let start = Instant::now();
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .expect("request");
    loop {
        match socket.read(&mut buffer).expect("response") {
            0 => break,
            some => read += some,
        }
    }
    let wall = start.elapsed();
    assert!(read >= load.frames * load.len, "a byte is missing");
    Cost {
        wall,
        cpu: cpu().saturating_sub(cpu_before),
    }
}
