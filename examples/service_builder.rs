//! The layers in tower's `ServiceBuilder`, around a plain function: no axum.
//!
//! `cargo run --example service_builder`, then try:
//!
//! ```text
//! curl -N --compressed http://127.0.0.1:3000/                a count to ten
//! curl -N -m 1 http://127.0.0.1:3000/                        leaves: the server prints `GET Disconnected`
//! curl -N --http2-prior-knowledge http://127.0.0.1:3000/     the same over HTTP/2
//! ```
//!
//! Ctrl-C lets the streams that are open come to their end, for ten seconds.

use std::time::Duration;

use bodyguard::{
    BoxError, Cleanup, CleanupLayer, CompressionLayer, TaskGroup, TaskGroupLayer, net,
    scope::MissingLayer, task_group::GroupBody,
};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use hyper::body::Incoming;
use tower::ServiceBuilder;

/// Without extractors a view is asked for by `of`.
async fn count(request: Request<Incoming>) -> Result<Response<GroupBody>, MissingLayer> {
    let group = TaskGroup::of(&request)?;
    Cleanup::of(&request)?.defer(|ending| async move {
        println!("{} {}", ending.method(), ending.outcome());
        Ok(())
    });
    let body = group.body(|tx| async move {
        for number in 1..=10 {
            tx.send(format!("{number}\n")).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    });
    let mut response = Response::new(body);
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, text);
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The first layer is the outermost. Compression goes outside, so that the others see the
    // handler's own bytes; the order of those among themselves does not matter.
    let service = ServiceBuilder::new()
        .layer(CompressionLayer::new())
        .layer(CleanupLayer::new())
        .layer(TaskGroupLayer::new())
        .service_fn(count);

    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = net::serve(listener, service)
        .deadline(Duration::from_secs(10))
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    println!("drained: {report}");
    Ok(())
}
