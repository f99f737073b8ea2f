//! What the bridge costs a request that does not use it: alone in its process, to be counted.

use std::alloc::System;

use axum::{Router, body::Body, routing::get};
use bodyguard::{
    Cleanup, CleanupLayer,
    bridge::{Bridge, BridgeLayer, Pool},
};
use http_body_util::BodyExt as _;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{ServiceExt as _, layer::util::Identity};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a layer in which nothing is registered allocates, the boxes that axum puts around any
/// service of its own among it.
const SCOPE: usize = 7;

/// Allocations of a request: the median of a hundred, since the test harness allocates now and then.
async fn allocations(app: Router) -> usize {
    let mut counted = Vec::new();
    for _ in 0..100 {
        let (app, request) = (app.clone(), http::Request::new(Body::empty()));
        let region = Region::new(ALLOCATOR);
        let response = app.oneshot(request).await.unwrap();
        response.into_body().collect().await.unwrap();
        counted.push(region.change().allocations);
    }
    counted.sort_unstable();
    counted[50]
}

#[tokio::test]
async fn a_request_that_does_not_use_it_pays_nothing() {
    let pool = Pool::new();
    let with = BridgeLayer::new().pool(&pool);
    let without = CleanupLayer::new();
    let plain = || Router::new().route("/", get(|| async { "hello" }));

    // The layer: what any layer of the crate costs. A second one: nothing.
    let none = allocations(plain().layer(Identity::new())).await;
    let one = allocations(plain().layer(without.clone())).await;
    assert_eq!(allocations(plain().layer(with.clone())).await, one);
    let both = (without.clone(), BridgeLayer::new());
    assert_eq!(allocations(plain().layer(both)).await, one);
    // Options of an inner layer are merged with those of the outer once, and not for each request.
    let both = (without.clone(), with.clone());
    assert_eq!(allocations(plain().layer(both)).await, one);
    println!("allocations: {none} without a layer, {one} with one");
    assert_eq!(one - none, SCOPE);

    // The view, in the hands of a handler that makes nothing of it.
    let cleanup = Router::new().route("/", get(|_: Cleanup| async { "hello" }));
    let bridge = Router::new().route("/", get(|_: Bridge| async { "hello" }));
    let theirs = allocations(cleanup.layer(without)).await;
    let ours = allocations(bridge.layer(with.clone())).await;
    println!("allocations: layer {one}, with a view taken {theirs}, with the bridge {ours}");
    assert_eq!(ours, theirs);
    assert_eq!(pool.threads(), 0);

    // The counter counts: a call takes a thread, and allocates.
    let used = Router::new().route(
        "/",
        get(|bridge: Bridge| async move { bridge.call(|_| "hello").await.unwrap() }),
    );
    assert!(allocations(used.layer(with)).await > ours);
    assert_eq!(pool.threads(), 1);
}
