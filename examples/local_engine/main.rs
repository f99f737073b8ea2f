//! A script engine for each request that cannot leave its thread: made by blocking middleware, used
//! by the async handler and by the streamed body of the same request.
//!
//! `cargo run --example local_engine`, then `curl -i '127.0.0.1:3001/?rows=3'`:
//!
//! ```text
//! x-title: 3 teas
//!
//! 1 black tea: 24 in stock
//! 2 green tea: 17 in stock
//! 3 white tea: 5 in stock
//! 4 calls into one engine
//! ```
//!
//! `BIND` sets another address.

mod engine;

use std::{env, io};

use axum::{
    Router,
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bodyguard::{
    Bridge, Stack, Supervisor,
    bridge::{BridgeError, Cx, from_fn_sync},
    net,
};
use serde::Deserialize;

use engine::Engine;

#[derive(Deserialize)]
struct Ask {
    #[serde(default = "three")]
    rows: i64,
}

fn three() -> i64 {
    3
}

fn app(supervisor: &Supervisor) -> Router {
    Router::new()
        .route("/", get(report))
        .layer(from_fn_sync(engine::middleware))
        .layer(Stack::new().supervisor(supervisor))
}

/// An async handler. What it hands to the bridge finds the engine there.
async fn report(bridge: Bridge, Query(Ask { rows }): Query<Ask>) -> Result<Response, Problem> {
    let title = bridge.call(move |cx| Engine::of(cx)?.call("title", (rows,)));
    let title = title.await??;
    let body = bridge.body_writer(move |out| {
        let engine =
            Cx::with_current(Engine::of).ok_or_else(|| io::Error::other("no bridge"))??;
        for row in 1..=rows {
            // Waits when the client is slow; the request's loop goes on meanwhile.
            writeln!(out, "{}", engine.call("row", (row,))?)?;
        }
        writeln!(out, "{} calls into one engine", engine.calls())
    });
    Ok(([("x-title", title)], body).into_response())
}

/// A script that fails before the body has begun is a 500; after that, a broken transfer.
struct Problem(String);

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<BridgeError> for Problem {
    fn from(error: BridgeError) -> Self {
        Self(error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0).into_response()
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let supervisor = Supervisor::new();
    let bind = env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3001".to_owned());
    let listener = net::WatchedListener::bind(&bind).await?;
    println!("local_engine: http://{}/?rows=3", listener.local_addr()?);
    let report = net::serve(listener, app(&supervisor))
        .supervisor(&supervisor)
        .shutdown(async {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending().await // It cannot be listened for: serve on.
            }
        })
        .await?;
    println!("drained: {report}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(target: &str) -> Response {
        let request = Request::get(target).body(Body::empty()).unwrap();
        app(&Supervisor::new()).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn handler_and_body_use_the_engine_that_the_middleware_made() {
        let response = ask("/?rows=3").await;
        assert_eq!(response.headers()["x-title"], "3 teas");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = str::from_utf8(&body).unwrap();
        assert!(
            text.starts_with("1 black tea: 24 in stock\n2 green tea"),
            "{text}"
        );
        assert!(text.ends_with("\n4 calls into one engine\n"), "{text}");
    }

    #[tokio::test]
    async fn a_script_that_fails_in_the_handler_is_a_500_in_the_body_a_broken_transfer() {
        let response = ask("/?rows=-1").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = ask("/?rows=4").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().collect().await.is_err());
    }
}
