//! Several producers, one response: none outlives it, and none fails unseen.
//!
//! `cargo run --example task_group`, then try:
//! ```text
//! curl -N http://127.0.0.1:3000/          news and weather as they come, then a clean end
//! curl -N http://127.0.0.1:3000/alone     the same from a body that needs no layer
//! curl -N http://127.0.0.1:3000/broken    one producer fails: curl: (18) ... , never a short whole body
//! curl -N -m 1 http://127.0.0.1:3000/     leaves: both producers are cancelled
//! ```
//! For each the server prints how it ended, for instance `/broken: Failed, the presses have stopped`.

use std::time::Duration;

use axum::{Router, routing::get};
use bodyguard::{
    BoxError, EndReport, FrameSender, TaskGroup, TaskGroupBody, TaskGroupLayer, TaskResult, net,
    task_group::GroupBody,
};
use tokio::time::sleep;

/// A producer. Once the client has left, it is cancelled at its next `await`.
async fn reporter(name: &'static str, every: Duration, tx: FrameSender) -> TaskResult {
    for item in 1..=8 {
        sleep(every).await;
        tx.send(format!("{name} {item}\n")).await?;
    }
    Ok(())
}

fn spawn_reporters(group: &TaskGroup, tx: FrameSender) -> TaskResult {
    group.spawn(reporter("news", Duration::from_millis(400), tx.clone()))?;
    group.spawn(reporter("weather", Duration::from_millis(250), tx))?;
    Ok(())
}

/// Under the request's scope: its supervisor knows the tasks, its closers run after them.
async fn merged(group: TaskGroup) -> GroupBody {
    let reporters = group.clone();
    group.body(|tx| async move { spawn_reporters(&reporters, tx) })
}

/// With a group of its own: works in any hyper service as it is.
async fn alone() -> TaskGroupBody {
    TaskGroupBody::new(|group, tx| async move { spawn_reporters(&group, tx) })
}

async fn broken(group: TaskGroup) -> GroupBody {
    let reporters = group.clone();
    group.body(|tx| async move {
        spawn_reporters(&reporters, tx)?;
        sleep(Duration::from_secs(1)).await;
        Err("the presses have stopped".into())
    })
}

fn print(report: &EndReport) {
    let errors = report.errors.iter().map(|error| format!(", {error}"));
    let errors = errors.collect::<String>();
    println!("{}: {}{errors}", report.uri, report.outcome());
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/", get(merged))
        .route("/alone", get(alone))
        .route("/broken", get(broken))
        .layer(TaskGroupLayer::new().on_end(print));
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = net::serve(listener, app)
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    println!("drained: {report}");
    Ok(())
}
