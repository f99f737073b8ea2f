//! Producers and a queue of one's own between them and the response, as code that is moved here often has.
//!
//! `cargo run --example queues`, then try:
//! ```text
//! curl -N http://127.0.0.1:3000/sentinel   one producer, whose `None` ends the response
//! curl -N http://127.0.0.1:3000/shared     three share a queue of one, until the last has gone
//! ```
//! A producer that fails or panics breaks the transfer, although its queue looks ended to whoever reads it; a
//! client that leaves cancels them all. Without a queue it is shorter: a `FrameSender` is one (`task_group.rs`).

use std::time::Duration;

use axum::{Router, routing::get};
use bodyguard::{BoxError, TaskGroup, TaskGroupLayer, net, task_group::GroupBody};
use tokio::{sync::mpsc, time::sleep};

async fn sentinel(group: TaskGroup) -> GroupBody {
    group.clone().body(|tx| async move {
        let (queue, mut items) = mpsc::channel(1);
        group.spawn(async move {
            for item in 1..=5 {
                sleep(Duration::from_millis(200)).await;
                queue.send(Some(format!("item {item}\n"))).await?;
            }
            Ok(queue.send(None).await?)
        })?;
        while let Some(Some(item)) = items.recv().await {
            tx.send(item).await?;
        }
        Ok(())
    })
}

async fn shared(group: TaskGroup) -> GroupBody {
    group.clone().body(|tx| async move {
        let (queue, mut items) = mpsc::channel(1); // As Python's `maxsize=1`.
        for name in ["red", "green", "blue"] {
            let queue = queue.clone();
            group.spawn(async move {
                for item in 1..=5 {
                    sleep(Duration::from_millis(200)).await;
                    queue.send(format!("{name} {item}\n")).await?;
                }
                Ok(())
            })?;
        }
        drop(queue); // Or the last producer to go would not be the last.
        while let Some(item) = items.recv().await {
            tx.send(item).await?;
        }
        Ok(())
    })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/sentinel", get(sentinel))
        .route("/shared", get(shared))
        .layer(TaskGroupLayer::new());
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = net::serve(listener, app)
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    println!("drained: {report}");
    Ok(())
}
