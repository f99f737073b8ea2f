//! The same handler twice: with `tokio::spawn` and a channel, and with a task group.
//!
//! A producer that panics, or fails, half way looks like a clean and complete response in the first,
//! and is a broken transfer in the second.

#[path = "newsroom/client.rs"]
#[allow(dead_code, reason = "the tests of the newsroom use all of it")]
mod client;

use std::convert::Infallible;

use axum::{Router, body::Body, routing::get};
use bodyguard::{BoxError, Stack, TaskGroup, task_group::GroupBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use client::{Client, PROTOCOLS, Read, read_all, serve};

const HALF: &str = "line 1 of 4\nline 2 of 4\n";

fn fails() -> Result<(), BoxError> {
    Err("the database has gone".into())
}

fn panics() -> Result<(), BoxError> {
    panic!("a producer panics, as it should")
}

/// As found in the wild.
#[allow(clippy::disallowed_methods, reason = "this is what is shown")]
async fn spawned(ends: fn() -> Result<(), BoxError>) -> Body {
    let (tx, rx) = mpsc::channel::<Result<String, Infallible>>(16);
    tokio::spawn(async move {
        for line in 1..=2 {
            let _ = tx.send(Ok(format!("line {line} of 4\n"))).await;
        }
        ends()
    });
    Body::from_stream(ReceiverStream::new(rx))
}

async fn grouped(group: TaskGroup, ends: fn() -> Result<(), BoxError>) -> GroupBody {
    group.body(move |tx| async move {
        for line in 1..=2 {
            tx.send(format!("line {line} of 4\n")).await?;
        }
        ends()
    })
}

fn app() -> Router {
    Router::new()
        .route("/spawned/fails", get(async || spawned(fails).await))
        .route("/spawned/panics", get(async || spawned(panics).await))
        .route(
            "/grouped/fails",
            get(async |group| grouped(group, fails).await),
        )
        .route(
            "/grouped/panics",
            get(async |group| grouped(group, panics).await),
        )
        .layer(Stack::new())
}

#[tokio::test]
async fn spawn_and_a_channel_end_cleanly_where_a_task_group_breaks_the_transfer() {
    let (addr, _server) = serve(app()).await;
    for protocol in PROTOCOLS {
        for how in ["fails", "panics"] {
            let Read { text, end } = read(addr, protocol, &format!("/spawned/{how}")).await;
            assert_eq!(text, HALF);
            assert!(end.is_ok(), "{protocol:?}, {how}: nobody is told");

            let Read { text, end } = read(addr, protocol, &format!("/grouped/{how}")).await;
            assert_eq!(text, HALF, "all that was sent arrives");
            assert!(end.is_err(), "{protocol:?}, {how}: the client is told");
        }
    }
}

async fn read(addr: std::net::SocketAddr, protocol: client::Protocol, path: &str) -> Read {
    let mut client = Client::connect(addr, protocol).await;
    read_all(client.get(path).await.body_mut()).await
}
