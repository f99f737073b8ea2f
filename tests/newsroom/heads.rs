//! What the showcase says above its bodies.

use http::header;

use crate::{client::Protocol, server::Newsroom};

#[tokio::test]
async fn nobody_on_the_way_is_to_keep_events() {
    let newsroom = Newsroom::start().await;
    let mut client = newsroom.client(Protocol::Http1).await;
    let response = client.get("/stream").await;
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
}

#[tokio::test]
async fn metrics_are_of_the_type_that_prometheus_asks_for() {
    let newsroom = Newsroom::start().await;
    let mut client = newsroom.client(Protocol::Http1).await;
    let response = client.get("/metrics").await;
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
}
