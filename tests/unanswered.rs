//! Handlers that never answered, and the status their end is told with: what the client was sent, if anything.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use bodyguard::{Cleanup, EndReport, Outcome, Stack, Supervisor, net};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

mod support;
use support::{reset_on_drop, within};

struct Server {
    addr: SocketAddr,
    supervisor: Supervisor,
    reports: mpsc::UnboundedReceiver<EndReport>,
    /// One message for each handler that waits.
    entered: mpsc::UnboundedReceiver<()>,
    _serving: JoinSet<()>,
}

impl Server {
    /// `/` waits for ever; `/slow` does too, with a closer that waits for the connection's end.
    async fn start() -> Self {
        let (report, reports) = mpsc::unbounded_channel();
        let (enter, entered) = mpsc::unbounded_channel();
        let supervisor = Supervisor::new();
        let stack = Stack::new()
            .supervisor(&supervisor)
            .on_end(move |end| drop(report.send(end.clone())));
        let wait = move || {
            enter.send(()).unwrap();
            std::future::pending::<()>()
        };
        let slow = {
            let wait = wait.clone();
            move |cleanup: Cleanup, peer: net::Peer| {
                cleanup.defer(move |_| async move {
                    peer.gone().await;
                    Ok(())
                });
                wait()
            }
        };
        let app = Router::new()
            .route("/", get(wait))
            .route("/slow", get(slow))
            .layer(stack);
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = net::serve(listener, app).supervisor(&supervisor);
        let mut serving = JoinSet::new();
        serving.spawn(async move { drop(serve.await) });
        Self {
            addr,
            supervisor,
            reports,
            entered,
            _serving: serving,
        }
    }

    async fn ask(&mut self, path: &str) -> TcpStream {
        let mut client = within(TcpStream::connect(self.addr)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        within(self.entered.recv()).await.unwrap();
        client
    }

    async fn ended(&mut self) -> (Outcome, Option<StatusCode>) {
        let report = within(self.reports.recv()).await.unwrap();
        (report.outcome(), report.status())
    }
}

/// However it is noticed: by the server, or, behind bytes that it does not read, by the watch alone.
#[tokio::test]
async fn a_client_that_has_gone_was_sent_nothing() {
    let mut server = Server::start().await;
    for path in ["/", "/slow"] {
        for behind in ["", "\r\n", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            for reset in [false, true] {
                let mut client = server.ask(path).await;
                client.write_all(behind.as_bytes()).await.unwrap();
                if reset {
                    reset_on_drop(&client);
                }
                drop(client);
                let seen = server.ended().await;
                let due = (Outcome::Disconnected, None);
                assert_eq!(seen, due, "{path} {behind:?} {reset}");
            }
        }
    }
}

/// It is answered for, unless the teardown takes longer than the drain has patience.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_aborts_a_handler_tells_what_its_client_saw() {
    for _ in 0..10 {
        for (path, status) in [
            ("/", Some(StatusCode::SERVICE_UNAVAILABLE)),
            ("/slow", None),
        ] {
            let mut server = Server::start().await;
            let mut client = server.ask(path).await;
            within(server.supervisor.drain(Duration::from_millis(20))).await;
            let mut text = Vec::new();
            within(client.read_to_end(&mut text)).await.unwrap();
            let answered = text.starts_with(b"HTTP/1.1 503");
            assert_eq!(answered, status.is_some(), "{path}: {text:?}");
            assert_eq!(server.ended().await, (Outcome::Shutdown, status), "{path}");
        }
    }
}
