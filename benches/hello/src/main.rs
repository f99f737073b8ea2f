//! `hello`: serves its apps on one thread, prints their ports, ends when its input does.
//!
//! Bare axum, a layer that does nothing, `Stack`, `BridgeLayer` alone, `Stack` under a supervisor; then
//! `Stack` by `axum::serve` and by `net::serve`, on a watched listener both.

use std::{
    future::IntoFuture,
    io::{Read, stdin},
    task::{Context, Poll},
    thread,
};

use axum::{Router, routing::get};
use bodyguard::{
    BridgeLayer, Stack, Supervisor,
    net::{self, Peer, WatchedListener},
};
use tokio::{net::TcpListener, task::JoinSet};
use tower_layer::Layer;
use tower_service::Service;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    thread::spawn(|| {
        let _ = stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut servers = JoinSet::new();
        let apps = [
            app(),
            app().layer(Noop),
            app().layer(Stack::new()),
            app().layer(BridgeLayer::new()),
            app().layer(Stack::new().supervisor(&Supervisor::new())),
        ];
        for app in apps {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?.port());
            servers.spawn(async move { axum::serve(listener, app).await });
        }
        let watched = || app().layer(Stack::new());
        let listener = WatchedListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        let service = watched().into_make_service_with_connect_info::<Peer>();
        servers.spawn(async move { axum::serve(listener, service).await });
        let listener = WatchedListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?.port());
        let server = net::serve(listener, watched()).into_future();
        servers.spawn(async move { server.await.map(drop) });
        servers.join_all().await;
        Ok(())
    })
}

fn app() -> Router {
    Router::new().route("/", get(|| async { "Hello, World!" }))
}

/// A layer that does nothing.
#[derive(Clone)]
struct Noop;

impl<S> Layer<S> for Noop {
    type Service = NoopService<S>;

    fn layer(&self, inner: S) -> NoopService<S> {
        NoopService(inner)
    }
}

#[derive(Clone)]
struct NoopService<S>(S);

impl<S: Service<R>, R> Service<R> for NoopService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}
