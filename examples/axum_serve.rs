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

use std::{future::IntoFuture, pin::pin, time::Duration};

use axum::{Router, response::IntoResponse, routing::get};
use bodyguard::{
    BoxError, Shutdown, Stack, Supervisor, TaskGroup,
    net::{Peer, PeerAddrLayer, WatchedListener},
};
use tokio::time::{sleep, timeout};

/// How long a shutdown may take; service managers often give 30 s.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long the last bytes may be on their way when every response has ended.
const LAST_BYTES: Duration = Duration::from_secs(1);

async fn clock(group: TaskGroup) -> impl IntoResponse {
    let body = group.body(|tx| async move {
        for tick in 0_u64.. {
            tx.send(format!("data: {tick}\n\n")).await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    ([("content-type", "text/event-stream")], body)
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
    let listener = WatchedListener::bind("127.0.0.1:3000").await?;
    let signalled = supervisor.clone();
    let service = app.into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move {
        let _ = tokio::signal::ctrl_c().await;
        signalled.begin_shutdown();
    });
    let mut serving = pin!(serving.into_future());
    // axum waits for its clients, and the drain ends their responses: neither can wait for the other.
    let draining = async {
        supervisor.shutdown_token().cancelled().await;
        supervisor.drain(DEADLINE).await
    };
    let report = tokio::select! {
        served = serving.as_mut() => {
            served?;
            supervisor.drain(DEADLINE).await
        }
        report = draining => {
            // A client that reads nothing would hold axum up for ever.
            let _ = timeout(LAST_BYTES, serving).await;
            report
        }
    };
    println!("{report}");
    Ok(())
}
