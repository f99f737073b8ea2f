//! Stop working for a client that has left.
//!
//! `cargo run --example disconnect`, then try, and look at what the server prints:
//!
//! ```text
//! curl http://127.0.0.1:3000/factor/1000036000099               1000003: Complete
//! curl -m 1 http://127.0.0.1:3000/factor/9223372036854775783    a prime: leave it after a second
//! ```
//!
//! ```text
//! GET /factor/1000036000099: Complete after 1 ms
//! GET /factor/9223372036854775783: Disconnected after 1001 ms
//! stopped at 382861313: nobody is waiting for it
//! ```

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use bodyguard::{BoxError, Disconnect, DisconnectLayer, EndReport, net};

/// Where a search that gave up had got to.
struct Stopped(u64);

/// The smallest factor of a number, by trying them all. Looks up now and then.
fn smallest_factor(n: u64, disconnect: &Disconnect) -> Result<u64, Stopped> {
    if n > 2 && n % 2 == 0 {
        return Ok(2);
    }
    let (mut candidate, root) = (3, n.isqrt());
    while candidate <= root {
        if n % candidate == 0 {
            return Ok(candidate);
        }
        candidate += 2;
        if candidate % 65_536 == 1 && disconnect.is_gone() {
            return Err(Stopped(candidate));
        }
    }
    Ok(n)
}

/// When the client leaves, hyper drops this future; the thread finds out by `disconnect`.
async fn factor(Path(n): Path<u64>, disconnect: Disconnect) -> Result<String, StatusCode> {
    let search = tokio::task::spawn_blocking(move || {
        smallest_factor(n, &disconnect)
            .inspect_err(|Stopped(at)| println!("stopped at {at}: nobody is waiting for it"))
    });
    match search.await {
        Ok(Ok(factor)) => Ok(format!("{factor}\n")),
        Ok(Err(_)) | Err(_) => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn print(report: &EndReport) {
    let (method, uri, outcome) = (&report.method, &report.uri, report.outcome());
    let took = report.duration.unwrap_or_default().as_millis();
    println!("{method} {uri}: {outcome} after {took} ms");
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/factor/{n}", get(factor))
        .layer(DisconnectLayer::new().on_end(print));

    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    net::serve(listener, app)
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    Ok(())
}
