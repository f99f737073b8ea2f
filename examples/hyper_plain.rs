//! Bare hyper, HTTP/1.1 and HTTP/2, on an accept loop of one's own: the pattern for TLS, Unix sockets and
//! hyper's options. It shuts down as `net::serve` does, but that silent clients have all of the time.
//!
//! `cargo run --example hyper_plain`, then try:
//! ```text
//! curl -N http://127.0.0.1:3000/                             a clock, once a second
//! curl -N --http2-prior-knowledge http://127.0.0.1:3000/     the same over HTTP/2
//! ```
//! After Ctrl-C in curl the server prints `Disconnected after 3 frames`; its own ends clocks in errors.

use std::{convert::Infallible, pin::pin, time::Duration};

use bodyguard::{BoxError, Shutdown, Supervisor, TaskGroupBody, TaskGroupLayer, net};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::{conn::auto, graceful::GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use tokio::{task::JoinSet, time::sleep, time::timeout};
use tower::ServiceBuilder;

async fn clock(_: Request<Incoming>) -> Result<Response<TaskGroupBody>, Infallible> {
    let body = TaskGroupBody::new(|_, tx| async move {
        for second in 0.. {
            tx.send(format!("{second} s\n")).await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    Ok(body.into_http()) // By this the layer's supervisor knows of the body's tasks.
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let mut listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let supervisor = Supervisor::new();
    let layer = TaskGroupLayer::new()
        .supervisor(&supervisor) // By name: here no server tells it.
        .shutdown(Shutdown::end_now())
        .on_end(|report| println!("{} after {} frames", report.outcome(), report.frames));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()); // Without one hyper has no time-outs.
    http.http2().timer(TokioTimer::new());
    let (mut connections, graceful) = (JoinSet::new(), GracefulShutdown::new());
    let mut stop = pin!(tokio::signal::ctrl_c());
    loop {
        let accepted = tokio::select! {
            stopped = &mut stop => break stopped?,
            Some(_ended) = connections.join_next() => continue, // Or the set keeps them.
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { break }; // No more can come: those here may finish.
        let (supervisor, peer) = (supervisor.clone(), stream.peer());
        let service = ServiceBuilder::new()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer.clone()); // By this the layer knows the connection.
                request
            })
            .layer(layer.clone())
            .service_fn(clock);
        let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let served = graceful.watch(served.into_owned());
        connections.spawn(async move {
            tokio::select! {
                _ = served => {} // Its error is the client's going: that is in the end report.
                () = supervisor.aborting() => {} // The drain is out of patience.
            }
        });
    }
    drop(listener);
    // Connections take no more requests, bodies end. The last bytes have another second.
    let closed = timeout(Duration::from_secs(6), graceful.shutdown());
    let _ = tokio::join!(closed, supervisor.drain(Duration::from_secs(5)));
    connections.abort_all(); // Not waited for: what blocks its thread cannot be stopped, but named.
    let report = supervisor.drain(Duration::from_secs(1)).await;
    println!("drained: {report}");
    Ok(())
}
