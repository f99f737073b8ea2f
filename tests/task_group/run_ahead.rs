//! With a client that reads nothing, producers stop at the buffer, whatever the size of frames.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use bodyguard::{Stack, Supervisor, TaskGroup, net};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::support::{until, within};

const BUFFER: usize = 16 * 1024;
const PRODUCERS: usize = 4;
const SIZES: [usize; 8] = [
    1,
    64,
    1000,
    4096,
    16 * 1024,
    16 * 1024 + 1,
    100_000,
    1 << 20,
];

const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
/// Preface, settings, `GET http://x/` as stream 1. By hand, since a client of h2 reads, and closes
/// its connection when many small frames lie unread.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01x";

/// Bytes that producers were let put in, and bytes that hyper has taken out of the body.
#[derive(Clone, Default)]
struct Flow {
    accepted: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

impl Flow {
    fn read(&self) -> (usize, usize) {
        let taken = self.taken.load(Ordering::SeqCst);
        (self.accepted.load(Ordering::SeqCst), taken)
    }

    /// Waits until nothing has moved for a while.
    async fn settled(&self) -> (usize, usize) {
        let (mut last, mut quiet) = ((0, 0), 0);
        until(|| {
            let now = self.read();
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            now.0 > 0 && quiet > 60
        })
        .await;
        last
    }
}

fn app(size: usize, flow: &Flow, supervisor: &Supervisor) -> Router {
    let (accepted, taken) = (flow.accepted.clone(), flow.taken.clone());
    let handler = move |group: TaskGroup, _: Request| async move {
        let tasks = group.clone();
        group.body(move |tx| async move {
            let frame = Bytes::from(vec![b'x'; size]);
            for _ in 0..PRODUCERS {
                let (tx, frame, accepted) = (tx.clone(), frame.clone(), accepted.clone());
                tasks.spawn(async move {
                    loop {
                        tx.send(frame.clone()).await?;
                        accepted.fetch_add(frame.len(), Ordering::SeqCst);
                    }
                })?;
            }
            Ok(())
        })
    };
    Router::new()
        .fallback(handler)
        .layer(Stack::new().supervisor(supervisor))
        .layer(axum::middleware::map_response(
            move |response: http::Response<Body>| {
                let taken = taken.clone();
                async move {
                    response.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            let len = frame.data_ref().map_or(0, Bytes::len);
                            taken.fetch_add(len, Ordering::SeqCst);
                            frame
                        }))
                    })
                }
            },
        ))
}

/// A connection whose kernel takes little.
async fn connect(addr: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    within(socket.connect(addr)).await.unwrap()
}

async fn run(size: usize, http2: bool) {
    let (flow, supervisor) = (Flow::default(), Supervisor::new());
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = net::serve(listener, app(size, &flow, &supervisor)).supervisor(&supervisor);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(server.await) });
    let mut tcp = connect(addr).await;
    let request = if http2 { HTTP2 } else { HTTP1 };
    tcp.write_all(request).await.unwrap();
    let (accepted, taken) = flow.settled().await;
    let ahead = accepted - taken;
    let bound = BUFFER.max(size);
    println!("frames of {size} bytes, http2 {http2}: {taken} taken, {ahead} ahead");
    assert_eq!(supervisor.active(), 1, "the response is still wanted");
    assert!(ahead <= bound, "{ahead} bytes ahead with frames of {size}");
    // Backpressure and no standstill: those who wait are let in from half empty on.
    assert!(
        ahead + size > BUFFER / 2,
        "{ahead} bytes ahead with frames of {size}"
    );
    tasks.shutdown().await;
    until(|| supervisor.active() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_ahead_of_a_client_that_reads_nothing() {
    for http2 in [false, true] {
        for size in SIZES {
            within(run(size, http2)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_polled_once_lets_in_one_buffer() {
    for size in SIZES {
        let (flow, supervisor) = (Flow::default(), Supervisor::new());
        let router = app(size, &flow, &supervisor);
        let request = Request::new(Body::empty());
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (accepted, taken) = flow.read();
        assert!(accepted - taken <= BUFFER.max(size), "frames of {size}");
    }
}
