//! A WebSocket in axum: its scope is held past the 101, until the socket is done.

mod support;

use std::time::Duration;

use axum::{
    Router,
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    response::Response,
    routing::any,
};
use bodyguard::{Cleanup, Disconnect, EndReport, Hold, Outcome, Shutdown, Stack, Supervisor};
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use support::{Listening, eventually, within};
use tokio::sync::mpsc;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

struct Socket {
    listening: Listening,
    supervisor: Supervisor,
    reports: mpsc::UnboundedReceiver<EndReport>,
    closed: mpsc::UnboundedReceiver<(Outcome, Option<StatusCode>)>,
}

/// How the socket's task uses its hold.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    /// It says how it ended.
    Finishes,
    /// It forgets to.
    Drops,
    /// There is none.
    Not,
}

impl Socket {
    async fn serve(holds: Holds) -> Self {
        let supervisor = Supervisor::new();
        let (report, reports) = mpsc::unbounded_channel();
        let (close, closed) = mpsc::unbounded_channel();
        let handler = move |upgrade: WebSocketUpgrade, cleanup: Cleanup, view: Disconnect| async move {
            cleanup.defer(move |ending| async move {
                close.send((ending.outcome(), ending.status()))?;
                Ok(())
            });
            let hold = (holds != Holds::Not).then(|| view.hold());
            let answer: Response = upgrade.on_upgrade(move |socket| async move {
                let gone = view.token();
                let outcome = tokio::select! {
                    outcome = echo(socket) => outcome,
                    () = gone.cancelled() => Outcome::Shutdown,
                };
                if holds == Holds::Finishes {
                    if let Some(hold) = hold {
                        Hold::finish(hold, outcome);
                    }
                }
            });
            answer
        };
        let stack = Stack::new()
            .supervisor(&supervisor)
            .shutdown(Shutdown::finish_within(Duration::from_millis(20)))
            .on_end(move |end| drop(report.send(end.clone())));
        let app = Router::new().route("/ws", any(handler)).layer(stack);
        Self {
            listening: Listening::start(app, false).await,
            supervisor,
            reports,
            closed,
        }
    }

    async fn connect(&self) -> WebSocketStream<tokio::net::TcpStream> {
        let tcp = self.listening.connect().await;
        let (socket, response) = within(client_async("ws://x/ws", tcp)).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        socket
    }
}

/// Sends back what comes, until the peer closes.
async fn echo(mut socket: WebSocket) -> Outcome {
    while let Some(message) = socket.recv().await {
        match message {
            Ok(Message::Close(_)) => return Outcome::Complete,
            Ok(message) => {
                if socket.send(message).await.is_err() {
                    return Outcome::Failed;
                }
            }
            Err(_) => return Outcome::Disconnected,
        }
    }
    Outcome::Disconnected
}

async fn round_trip(socket: &mut WebSocketStream<tokio::net::TcpStream>) {
    within(socket.send(tungstenite::Message::text("ping")))
        .await
        .unwrap();
    let back = within(socket.next()).await.unwrap().unwrap();
    assert_eq!(back, tungstenite::Message::text("ping"));
}

const SWITCHED: Option<StatusCode> = Some(StatusCode::SWITCHING_PROTOCOLS);

#[tokio::test]
async fn a_held_scope_ends_with_its_socket() {
    let mut server = Socket::serve(Holds::Finishes).await;
    let mut socket = server.connect().await;
    round_trip(&mut socket).await;
    assert_eq!(server.supervisor.active(), 1);
    assert!(server.closed.try_recv().is_err(), "open, so not closed");
    within(socket.close(None)).await.unwrap();
    let closed = within(server.closed.recv()).await.unwrap();
    assert_eq!(closed, (Outcome::Complete, SWITCHED));
    let report = within(server.reports.recv()).await.unwrap();
    assert_eq!(
        (report.outcome(), report.status()),
        (Outcome::Complete, SWITCHED)
    );
    eventually(|| server.supervisor.active() == 0).await;
}

#[tokio::test]
async fn a_client_that_vanishes_is_what_the_socket_says_it_is() {
    let mut server = Socket::serve(Holds::Finishes).await;
    let mut socket = server.connect().await;
    round_trip(&mut socket).await;
    drop(socket);
    let closed = within(server.closed.recv()).await.unwrap();
    assert_eq!(closed, (Outcome::Disconnected, SWITCHED));
}

#[tokio::test]
async fn a_dropped_hold_is_cancelled_and_keeps_the_status() {
    let mut server = Socket::serve(Holds::Drops).await;
    let mut socket = server.connect().await;
    round_trip(&mut socket).await;
    within(socket.close(None)).await.unwrap();
    let closed = within(server.closed.recv()).await.unwrap();
    assert_eq!(closed, (Outcome::Cancelled, SWITCHED));
    let report = within(server.reports.recv()).await.unwrap();
    assert_eq!(
        (report.outcome(), report.status()),
        (Outcome::Cancelled, SWITCHED)
    );
}

#[tokio::test]
async fn without_a_hold_the_teardown_precedes_the_101() {
    let mut server = Socket::serve(Holds::Not).await;
    let mut socket = server.connect().await;
    // The 101 is here, so it has run.
    assert_eq!(
        server.closed.try_recv().unwrap(),
        (Outcome::Complete, SWITCHED)
    );
    assert_eq!(server.supervisor.active(), 0);
    round_trip(&mut socket).await;
}

#[tokio::test]
async fn a_drain_reaches_sockets() {
    let mut server = Socket::serve(Holds::Finishes).await;
    let mut socket = server.connect().await;
    round_trip(&mut socket).await;
    let report = within(server.supervisor.drain(Duration::from_secs(10))).await;
    assert_eq!((report.aborted, report.is_clean()), (1, true), "{report}");
    let closed = within(server.closed.recv()).await.unwrap();
    assert_eq!(closed, (Outcome::Shutdown, SWITCHED));
}
