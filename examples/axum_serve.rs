//! Keep `axum::serve`, and shut it down so that it ends.
//!
//! `cargo run --example axum_serve`, then try, and press Ctrl-C in the server's terminal:
//!
//! ```text
//! curl -N http://127.0.0.1:3000/clock      a tick each second, at the shutdown "event: bye"
//! ```
//!
//! ```text
//! 0 complete, 1 ended, 0 aborted, 0 closers unrun, 0 stuck
//! ```

use std::time::Duration;

use axum::{Router, response::IntoResponse, routing::get};
use bodyguard::{
    BoxError, Shutdown, Stack, Supervisor, TaskGroup,
    net::{Peer, PeerAddrLayer, WatchedListener},
};
use tokio::time::sleep;

/// How long a shutdown may take; service managers often give 30 s.
const DEADLINE: Duration = Duration::from_secs(20);

async fn clock(group: TaskGroup) -> impl IntoResponse {
    let body = group.body(|tx| async move {
        for tick in 0_u64.. {
            tx.send(format!("data: {tick}\n\n")).await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    let headers = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"), // Or nginx holds events back.
    ];
    (headers, body)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let supervisor = Supervisor::new();
    let bye = Shutdown::end_now().last_frame("text/event-stream", "event: bye\ndata: {}\n\n");
    let app = Router::new()
        .route("/clock", get(clock))
        .layer(Stack::new().supervisor(&supervisor).shutdown(bye))
        // For handlers that extract `ConnectInfo<SocketAddr>`.
        .layer(PeerAddrLayer::new());
    // Connections are watched: a client that has left is `Disconnected`, and seen to leave.
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<Peer>();
    let signalled = supervisor.clone();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await // It cannot be listened for: serve on.
        }
        signalled.begin_shutdown();
    });
    // axum waits for its clients, and the drain ends their responses: neither waits for the other.
    let (served, report) = supervisor.supervise(server, DEADLINE).await;
    println!("{report}");
    Ok(served.unwrap_or(Ok(()))?)
}
