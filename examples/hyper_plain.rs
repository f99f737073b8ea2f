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

use std::{convert::Infallible, net::SocketAddr, pin::pin, time::Duration};

use bodyguard::{BoxError, EndReport, Shutdown, Supervisor, TaskGroupBody, TaskGroupLayer};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{interval, sleep},
};
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

    let mut http = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper's time-out for request heads does nothing.
    http.http1().timer(TokioTimer::new());
    http.http2().timer(TokioTimer::new());
    let mut stop = pin!(tokio::signal::ctrl_c());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Or a set of tasks keeps those that have ended.
            Some(_ended) = connections.join_next() => continue,
            stopped = &mut stop => break stopped?,
        };
        let Ok((socket, _)) = accepted else {
            // Out of descriptors, most likely: some come back.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        // A held last frame would wait for the client's delayed acknowledgement. Fails only if the
        // client has gone already.
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(service.clone());
        let http = http.clone();
        connections.spawn(async move {
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
