//! What was sent before a failure, and clients that read it late, on real sockets with little room.

mod support;

use std::{future::IntoFuture, io::Read, net::SocketAddr, time::Duration};

use axum::{Router, extract::State, response::IntoResponse, routing::get};
use bodyguard::{
    EndReport, Outcome, Shutdown, Stack, Supervisor, TaskGroup,
    net::{self, Peer, WatchedListener},
};
use support::{Http2, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::Instant,
};

const SMALL: u32 = 16 << 10;
const LAST: &str = "LAST WORDS";

/// More than the sockets hold, and less than hyper buffers.
const LENGTH: usize = 200_000;

struct Server {
    addr: SocketAddr,
    supervisor: Supervisor,
    peers: mpsc::UnboundedReceiver<Peer>,
    reports: mpsc::UnboundedReceiver<EndReport>,
}

/// Letters that compress to three quarters.
fn text() -> Vec<u8> {
    let mut seed = 88_172_645_463_325_252_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        b'0' + (seed & 63) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

async fn fails(
    State((fails, peers)): State<(bool, mpsc::UnboundedSender<Peer>)>,
    peer: Peer,
    group: TaskGroup,
) -> impl IntoResponse {
    let _ = peers.send(peer);
    let body = group.body(move |tx| async move {
        for chunk in text().chunks(50_000) {
            tx.send(chunk.to_vec()).await?;
        }
        if !fails {
            std::future::pending::<()>().await;
        }
        Err("fails".into())
    });
    body.on_failure(|_| Some(LAST.into()))
}

/// As much before its failure as after it.
async fn fails_at_length(group: TaskGroup) -> impl IntoResponse {
    let body = group.body(|tx| async move {
        tx.send(text()).await?;
        Err("fails".into())
    });
    body.on_failure(|_| Some(text().into()))
}

impl Server {
    async fn start(policy: Shutdown, does_fail: bool) -> Self {
        let supervisor = Supervisor::new();
        let (reported, reports) = mpsc::unbounded_channel();
        let (seen, peers) = mpsc::unbounded_channel();
        let stack = Stack::new().supervisor(&supervisor).shutdown(policy);
        let stack = stack.on_end(move |report| drop(reported.send(report.clone())));
        let app = Router::new()
            .route("/", get(fails))
            .route("/long", get(fails_at_length))
            .with_state((does_fail, seen))
            .layer(stack);
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(SMALL).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(16).unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = net::serve(WatchedListener::from(listener), app).supervisor(&supervisor);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        drop(tokio::spawn(serving.into_future()));
        Self {
            addr,
            supervisor,
            peers,
            reports,
        }
    }

    async fn get(&self, accept: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(SMALL).unwrap();
        let mut client = socket.connect(self.addr).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: {accept}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client
    }
}

/// The content of the chunks, and whether there was a last one.
fn unchunk(answer: &[u8]) -> (Vec<u8>, bool) {
    let end = |bytes: &[u8], end: &[u8]| bytes.windows(end.len()).position(|w| w == end);
    let mut rest = &answer[end(answer, b"\r\n\r\n").expect("a head") + 4..];
    let mut content = Vec::new();
    while let Some(at) = end(rest, b"\r\n") {
        let length = std::str::from_utf8(&rest[..at]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return (content, true);
        }
        let chunk = &rest[at + 2..];
        content.extend_from_slice(&chunk[..length.min(chunk.len())]);
        rest = chunk.get(length + 2..).unwrap_or_default();
    }
    (content, false)
}

/// What a broken encoding holds.
fn unzip(content: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(content);
    let broken = decoder.read_to_end(&mut read);
    assert!(broken.is_err(), "it looks whole");
    read
}

#[tokio::test]
async fn what_was_sent_before_a_failure_arrives_however_late_it_is_read() {
    let mut whole = text();
    whole.extend_from_slice(LAST.as_bytes());
    for accept in ["identity", "gzip"] {
        let mut server = Server::start(Shutdown::default(), true).await;
        let mut client = server.get(accept).await;
        let report = within(server.reports.recv()).await.unwrap();
        assert_eq!(report.outcome(), Outcome::Failed);
        // Many times what an error waits for a client that reads.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut answer = Vec::new();
        let _ = within(client.read_to_end(&mut answer)).await;
        let (content, ended) = unchunk(&answer);
        assert!(!ended, "it looks whole");
        let read = match accept {
            "gzip" => unzip(&content),
            _ => content,
        };
        assert!(read == whole, "{accept}: {} of {}", read.len(), whole.len());
    }
}

/// Time passes as soon as nothing else is to be done, and so while bytes are on their way between the sockets: each
/// that gets there counts as taken.
#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_keeps_no_failed_response() {
    for accept in ["identity", "gzip"] {
        let mut server = Server::start(Shutdown::default(), true).await;
        let _client = server.get(accept).await;
        let peer = server.peers.recv().await.unwrap();
        server.reports.recv().await.unwrap();
        let ended = Instant::now();
        peer.gone().await;
        let took = ended.elapsed().as_secs_f64();
        assert!((5.0..60.0).contains(&took), "{took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_by_a_shutdown_is_not_waited_for() {
    for accept in ["identity", "gzip"] {
        let mut server = Server::start(Shutdown::abort(), false).await;
        let _client = server.get(accept).await;
        let peer = server.peers.recv().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        let report = server.supervisor.drain(Duration::from_secs(30)).await;
        assert_eq!(report.aborted, 1, "{report}");
        peer.gone().await;
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// hyper asks on while much of a frame waits for the client's window; see `all_but_a_byte`.
#[tokio::test]
async fn what_goes_before_an_error_arrives_over_http2_however_late_the_window_opens() {
    const WINDOW: u32 = 50_000;
    let server = Server::start(Shutdown::default(), true).await;
    for accept in ["identity", "gzip"] {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW);
        let mut client = Http2::connect_with(server.addr, &mut builder).await;
        let request = http::Request::get("http://x/long").header("accept-encoding", accept);
        let request = request.body(()).unwrap();
        let (response, _stream) = client.send.send_request(request, true).unwrap();
        let mut body = within(response).await.unwrap().into_body();
        let mut content = Vec::new();
        let error = loop {
            let data = match within(body.data()).await.expect("it looks whole") {
                Ok(data) => data,
                Err(error) => break error,
            };
            content.extend_from_slice(&data);
            if body.flow_control().used_capacity() == WINDOW as usize {
                // Many times what an error waits.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let _ = body.flow_control().release_capacity(WINDOW as usize);
            }
        };
        assert!(error.is_reset(), "{error}");
        let read = match accept {
            "gzip" => unzip(&content),
            _ => content,
        };
        let sent = [text(), text()].concat();
        assert!(read == sent, "{accept}: {} of {}", read.len(), sent.len());
    }
}
