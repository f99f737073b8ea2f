//! At a shutdown, who says nothing and is owed nothing is closed early; who has bytes to come is not.
#![cfg(all(feature = "net", feature = "axum"))]

mod support;

use std::{future::IntoFuture, io, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, routing::get};
use bodyguard::{CleanupLayer, DrainReport, Supervisor, net};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use support::{Http2, eventually, http1, read_until, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinSet,
};

/// Far above the tests' own; the patience is 5 s.
const FAR: Duration = Duration::from_secs(60);

/// The patience is 2 s.
const SHORT: Duration = Duration::from_secs(8);

/// More than the kernel takes off a server's hands.
const LARGE: usize = 24 << 20;

/// More than the windows of an HTTP/2 client that reads nothing.
const SOME: usize = 300_000;

/// A server on the test's own thread.
struct Serving {
    addr: SocketAddr,
    supervisor: Supervisor,
    stop: Option<oneshot::Sender<()>>,
    drained: JoinSet<io::Result<DrainReport>>,
    /// What `/late` and `/rows` wait for, which no layer knows of.
    release: watch::Sender<bool>,
}

impl Serving {
    async fn start(deadline: Duration) -> Self {
        let supervisor = Supervisor::new();
        let release = watch::Sender::new(false);
        let released = |mut released: watch::Receiver<bool>| async move {
            released.wait_for(|released| *released).await.unwrap();
        };
        let (late, rows) = (release.subscribe(), release.subscribe());
        let late = move || {
            let late = late.clone();
            async move {
                released(late).await;
                "late"
            }
        };
        let rows = move || async move {
            let first = stream::iter([Ok::<_, io::Error>("first ")]);
            let last = stream::once(async move {
                released(rows).await;
                Ok("last")
            });
            Body::from_stream(first.chain(last))
        };
        let app = Router::new()
            .route("/large", get(|| async { vec![b'x'; LARGE] }))
            .route("/some", get(|| async { vec![b'x'; SOME] }))
            .layer(CleanupLayer::new())
            .route("/", get(|| async { "outside of the layer" }))
            .route("/late", get(late))
            .route("/rows", get(rows));
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = net::serve(listener, app)
            .supervisor(&supervisor)
            .deadline(deadline)
            .shutdown(async { drop(stopped.await) });
        let mut drained = JoinSet::new();
        drained.spawn(serving.into_future());
        Self {
            addr,
            supervisor,
            stop: Some(stop),
            drained,
            release,
        }
    }

    async fn sends(&self, bytes: &[u8]) -> TcpStream {
        let mut tcp = within(TcpStream::connect(self.addr)).await.unwrap();
        within(tcp.write_all(bytes)).await.unwrap();
        tcp
    }

    /// Whatever was sent has been read: what came later has been answered.
    async fn has_read(&self) {
        for _ in 0..5 {
            assert_eq!(http1(self.addr, "1.1", "GET").await.status, 200);
        }
    }

    /// A client that has said half of what it had to say.
    async fn half_a_head(&self) -> TcpStream {
        let tcp = self.sends(b"GET / HTTP/1.1\r\nho").await;
        self.has_read().await;
        tcp
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }

    async fn ends_well(mut self) {
        let report = within(self.drained.join_next()).await;
        let report = report.unwrap().unwrap().unwrap();
        assert!(report.is_clean(), "{report}");
    }
}

/// The server closes it, without an answer.
async fn closed(mut tcp: TcpStream) {
    let mut answer = Vec::new();
    let _ = within(tcp.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
}

/// Reads frames up to one of this type with these flags.
async fn read_frames(tcp: &mut TcpStream, last: [u8; 2]) {
    within(async {
        loop {
            let mut head = [0; 9];
            tcp.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            tcp.read_exact(&mut payload).await.unwrap();
            if head[3..5] == last {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn half_a_head_keeps_no_server_waiting() {
    let mut serving = Serving::start(FAR).await;
    let client = serving.half_a_head().await;
    serving.stop();
    serving.ends_well().await;
    closed(client).await;
}

#[tokio::test]
async fn a_client_of_http2_that_answers_no_ping_keeps_no_server_waiting() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const PING: [u8; 2] = [6, 0];
    let mut serving = Serving::start(FAR).await;
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &SETTINGS[..], &ACK].concat();
    let mut client = serving.sends(&preface).await;
    read_frames(&mut client, [4, 1]).await;
    serving.has_read().await;
    serving.stop();
    read_frames(&mut client, PING).await;
    serving.ends_well().await;
    closed(client).await;
}

/// The signal that the patience is over, in these: another client, a silent one, has been closed.
#[tokio::test]
async fn a_reader_of_http1_that_pauses_gets_the_rest() {
    let mut serving = Serving::start(SHORT).await;
    let mut client = serving
        .sends(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let silent = serving.half_a_head().await;
    eventually(|| serving.supervisor.active() == 0).await;
    serving.stop();
    closed(silent).await;
    let mut answer = Vec::new();
    within(client.read_to_end(&mut answer)).await.unwrap();
    let body = answer
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert_eq!(answer.len() - body, LARGE);
    serving.ends_well().await;
}

#[tokio::test]
async fn a_reader_of_http2_whose_windows_are_closed_gets_the_rest() {
    let mut serving = Serving::start(SHORT).await;
    let mut client = Http2::connect(serving.addr).await;
    let request = http::Request::get("http://x/some").body(()).unwrap();
    let (response, _) = client.send.send_request(request, true).unwrap();
    let mut body = within(response).await.unwrap().into_body();
    let silent = serving.half_a_head().await;
    eventually(|| serving.supervisor.active() == 0).await;
    serving.stop();
    closed(silent).await;
    let mut read = 0;
    while let Some(data) = within(body.data()).await {
        let data: Bytes = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read += data.len();
    }
    assert_eq!(read, SOME);
    drop(client);
    serving.ends_well().await;
}

/// The supervisor does not know of them: they are responses all the same.
#[tokio::test]
async fn answers_outside_of_the_layers_come() {
    let mut serving = Serving::start(SHORT).await;
    let mut late = serving
        .sends(b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let mut rows = serving
        .sends(b"GET /rows HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    read_until(&mut rows, "first").await;
    let silent = serving.half_a_head().await;
    serving.stop();
    closed(silent).await;
    serving.release.send_replace(true);
    read_until(&mut late, "\r\n\r\nlate").await;
    read_until(&mut rows, "last\r\n0\r\n\r\n").await;
    serving.ends_well().await;
}

#[tokio::test]
async fn who_goes_on_with_its_request_is_answered() {
    let mut serving = Serving::start(SHORT).await;
    let mut idle = serving.sends(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut idle, "layer").await;
    let mut slow = serving.half_a_head().await;
    let silent = serving.half_a_head().await;
    serving.stop();
    closed(idle).await;
    within(slow.write_all(b"st: ")).await.unwrap();
    closed(silent).await;
    within(slow.write_all(b"x\r\n\r\n")).await.unwrap();
    read_until(&mut slow, "outside of the layer").await;
    serving.ends_well().await;
}
