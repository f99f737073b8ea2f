//! Uploads that break off, and handlers and bodies that are the first to see it.

use std::{future::IntoFuture, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::post,
};
use bodyguard::{Disconnect, EndReport, Outcome, Stack, Supervisor, disconnect::OnLeave, net};
use futures_util::StreamExt;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

mod support;
use support::{Http2, Listening, read_until, reset_on_drop, within};

const LIMIT: Duration = Duration::from_secs(10);

struct Server {
    listening: Listening,
    reports: mpsc::UnboundedReceiver<EndReport>,
}

/// `/echo` passes the upload on, its error too; `/read` stops at the error and answers; `/detached` does so
/// whoever is there.
fn routes() -> Router {
    async fn read(body: Body) -> String {
        let mut frames = body.into_data_stream();
        let mut read = 0;
        while let Some(Ok(data)) = frames.next().await {
            read += data.len();
        }
        read.to_string()
    }
    let detached = |disconnect: Disconnect, body: Body| async move {
        disconnect.on_leave(OnLeave::Detach).unwrap();
        read(body).await
    };
    Router::new()
        .route("/echo", post(|body: Body| async { body }))
        .route("/read", post(read))
        .route("/detached", post(detached))
}

impl Server {
    /// With its layer armed or not.
    async fn start(armed: bool) -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let stack = Stack::new().on_end(move |end| drop(report.send(end.clone())));
        let app = match armed {
            true => routes().layer(stack.detachable(LIMIT).drain_request(1 << 20)),
            false => routes().layer(stack.drain_request(1 << 20)),
        };
        let listening = Listening::start(app, false).await;
        Self { listening, reports }
    }

    /// A client that sends half of what it promised.
    async fn upload(&self, path: &str) -> TcpStream {
        let mut client = self.listening.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello");
        client.write_all(head.as_bytes()).await.unwrap();
        if path == "/echo" {
            read_until(&mut client, "hello").await;
        }
        client
    }

    async fn ended(&mut self) -> EndReport {
        within(self.reports.recv()).await.unwrap()
    }
}

#[tokio::test]
async fn whoever_reacts_to_it_at_once_does_not_hide_that_the_client_has_gone() {
    for armed in [false, true] {
        let mut server = Server::start(armed).await;
        for path in ["/echo", "/read"] {
            for reset in [false, true] {
                let client = server.upload(path).await;
                if reset {
                    reset_on_drop(&client);
                }
                drop(client);
                let report = server.ended().await;
                let what = format!("{path}, armed: {armed}, reset: {reset}: {report:?}");
                assert_eq!(report.outcome(), Outcome::Disconnected, "{what}");
                assert!(report.ending.client_gone(), "{what}");
                assert!(!report.ending.succeeded(), "{what}");
            }
        }
    }
}

/// Where a client may finish sending and read on, one that has sent too little gets its answer.
#[tokio::test]
async fn a_client_that_half_closes_gets_its_answer() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let supervisor = Supervisor::new();
    let stack = Stack::new()
        .supervisor(&supervisor)
        .on_end(move |end: &EndReport| drop(report.send(end.clone())));
    let app = routes().layer(stack.drain_request(1 << 20));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let listener = listener.half_close(true);
    let addr = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(
        net::serve(listener, app)
            .supervisor(&supervisor)
            .into_future(),
    );
    let mut client = within(TcpStream::connect(addr)).await.unwrap();
    let request = b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello";
    client.write_all(request).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n5"), "{answer}");
    let report = within(reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Complete);
}

#[tokio::test]
async fn over_http2_too() {
    let mut server = Server::start(false).await;
    for path in ["/echo", "/read"] {
        let mut client = Http2::connect(server.listening.addr).await;
        let uri = format!("http://x{path}");
        let request = Request::post(uri).body(()).unwrap();
        let (response, mut upload) = client.send.send_request(request, false).unwrap();
        upload
            .send_data(Bytes::from_static(b"hello"), false)
            .unwrap();
        if path == "/echo" {
            let mut echoed = within(response).await.unwrap().into_body();
            assert_eq!(within(echoed.data()).await.unwrap().unwrap(), "hello");
        }
        upload.send_reset(h2::Reason::CANCEL);
        let report = server.ended().await;
        assert!(
            matches!(report.outcome(), Outcome::Disconnected | Outcome::Dropped),
            "{path}: {report:?}"
        );
    }
}

/// It was to go on whether the client is there or not: what it comes to is its own.
#[tokio::test]
async fn detached_work_ends_as_it_ends() {
    let mut server = Server::start(true).await;
    drop(server.upload("/detached").await);
    let report = server.ended().await;
    assert_eq!(report.outcome(), Outcome::Complete, "{report:?}");
    assert!(report.ending.client_gone() && report.ending.succeeded());
}
