//! Blocking code, all of a request's on one thread and one event loop: middleware, handler, body, closer.
//!
//! `cargo run --example bridge`, then try, and look at what the server prints:
//!
//! ```text
//! curl http://127.0.0.1:3000/row             a blocking handler       /row: 1 rows read
//! curl -N http://127.0.0.1:3000/rows         ten rows as they come    /rows: 10 rows read
//! curl -N -m 1 http://127.0.0.1:3000/rows    leaves                   /rows: 3 rows read
//! ```

use std::{cell::Cell, convert::Infallible, rc::Rc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
use bodyguard::{
    BoxError, Bridge, BridgeLayer,
    bridge::{BridgeError, Cx, Next, NextError, SyncBody, from_fn_sync, sync_handler},
    net,
};
use tokio::time::sleep;

/// Stands in for a driver's: it blocks, and must not leave its thread.
#[derive(Default)]
struct Session {
    read: Rc<Cell<u32>>,
}

impl Session {
    fn row(&self, cx: &Cx) -> Result<String, BridgeError> {
        // Waits for async code, while the request's loop goes on.
        cx.block_on(sleep(Duration::from_millis(300)))?;
        self.read.set(self.read.get() + 1);
        let thread = std::thread::current().id();
        Ok(format!("row {}, on {thread:?}\n", self.read.get()))
    }
}

/// Opens the request's session, and closes it when the response has ended, on the same thread.
fn open(
    cx: &Cx,
    request: Request,
    next: Next<Body, Body, Infallible>,
) -> Result<Response, NextError<Infallible>> {
    let (path, session) = (request.uri().path().to_owned(), Session::default());
    let read = session.read.clone();
    cx.insert(session);
    cx.defer(move |_| println!("{path}: {} rows read", read.get()))?;
    next.run(cx, request)
}

fn row(cx: &Cx) -> Result<String, BridgeError> {
    cx.get::<Session>().unwrap_or_default().row(cx)
}

/// The iterator runs on the request's thread, ahead of the client by a buffer at most.
async fn rows(bridge: Bridge) -> SyncBody {
    let rows = (1..=10).map_while(|_| Cx::with_current(row));
    bridge.body_try_from_iter(rows)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/row", get(sync_handler(row)))
        .route("/rows", get(rows))
        .layer(from_fn_sync(open))
        .layer(BridgeLayer::new());

    let bind = std::env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = net::serve(listener, app)
        .shutdown(async { tokio::signal::ctrl_c().await.expect("Ctrl-C is heard") })
        .await?;
    println!("drained: {report}");
    Ok(())
}
