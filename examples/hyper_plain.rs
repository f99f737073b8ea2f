//! Bare hyper, HTTP/1.1 and HTTP/2 on one port: a body that owns its tasks, and one layer around it.
//!
//! `cargo run --example hyper_plain`, then try:
//! ```text
//! curl -N http://127.0.0.1:3000/                             a clock, once a second
//! curl -N --http2-prior-knowledge http://127.0.0.1:3000/     the same over HTTP/2
//! ```
//!
//! Leave with Ctrl-C in curl: the server prints `Dropped after 3 frames`. Ctrl-C in the server
//! ends every clock with an error, and prints what the drain found.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bodyguard::{BoxError, EndReport, Shutdown, Supervisor, TaskGroupBody, TaskGroupLayer};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet, time::interval};
use tower::{ServiceBuilder, service_fn};

async fn clock(_: Request<Incoming>) -> Result<Response<TaskGroupBody>, Infallible> {
    let body = TaskGroupBody::new(|_, tx| async move {
        let mut ticks = interval(Duration::from_secs(1));
        for second in 0.. {
            ticks.tick().await;
            tx.send(format!("{second} s\n")).await?;
        }
        Ok(())
    });
    // Makes the body's tasks known to the layer, so that its supervisor waits for them.
    Ok(body.into_http())
}

fn print(report: &EndReport) {
    println!("{} after {} frames", report.outcome(), report.frames);
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(bind.parse::<SocketAddr>()?).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let supervisor = Supervisor::new();
    let layer = TaskGroupLayer::new()
        .supervisor(&supervisor)
        .shutdown(Shutdown::end_now())
        .on_end(print);
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(clock));

    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = tokio::signal::ctrl_c() => break,
        };
        // A held last frame would wait for the client's delayed acknowledgement.
        socket.set_nodelay(true)?;
        let service = TowerToHyperService::new(service.clone());
        connections.spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            // Fails when the client goes: that is in the end report.
            http.serve_connection(TokioIo::new(socket), service)
                .await
                .ok();
        });
    }
    println!(
        "drained: {}",
        supervisor.drain(Duration::from_secs(5)).await
    );
    Ok(())
}
