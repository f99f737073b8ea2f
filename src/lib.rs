#![cfg_attr(docsrs, feature(doc_cfg))]
//! Tower layers that give every streaming HTTP response an owner.
//!
//! What a request started is stopped, closed and accounted for when its body ends, however it ends,
//! and the client cannot mistake a broken stream for a whole one
//! ([three exceptions](#where-a-broken-body-can-look-whole)).
//!
//! Without an owner: when a client leaves, hyper drops the body, and Rust has no async drop, so
//! transactions stay open and producers leak. When a producer task panics, the client sees a
//! clean, complete response. With one:
//!
#![cfg_attr(
    all(feature = "axum", feature = "net", feature = "compression"),
    doc = "```no_run"
)]
#![cfg_attr(
    not(all(feature = "axum", feature = "net", feature = "compression")),
    doc = "```ignore"
)]
//! use axum::{Router, response::IntoResponse, routing::get};
//! use bodyguard::{Cleanup, Stack, TaskGroup, net};
//!
//! async fn feed(group: TaskGroup, cleanup: Cleanup) -> impl IntoResponse {
//!     // Runs exactly once, before the client sees the end, or when the client has left.
//!     cleanup.defer(|ending| async move {
//!         println!("{}", if ending.succeeded() { "commit" } else { "roll back" });
//!         Ok(())
//!     });
//!     let tasks = group.clone();
//!     let body = group.body(|tx| async move {
//!         let news = tx.clone();
//!         tasks.spawn(async move { Ok(news.send("data: news\n\n").await?) })?;
//!         tasks.spawn(async move { Ok(tx.send("data: weather\n\n").await?) })?;
//!         Ok(())
//!     });
//!     let headers = [
//!         ("content-type", "text/event-stream"),
//!         ("cache-control", "no-cache"),
//!         ("x-accel-buffering", "no"), // Or nginx holds events back.
//!     ];
//!     (headers, body)
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let app = Router::new().route("/feed", get(feed)).layer(Stack::new());
//!     let listener = net::WatchedListener::bind("127.0.0.1:3000").await?;
//!     // To ask who is live, give the layers and the server one `.supervisor(&supervisor)`.
//!     let report = net::serve(listener, app)
//!         // A service manager sends SIGTERM: see `tokio::signal::unix`.
//!         .shutdown(async {
//!             if tokio::signal::ctrl_c().await.is_err() {
//!                 std::future::pending().await // It cannot be listened for: serve on.
//!             }
//!         })
//!         .await?;
//!     println!("{report}");
//!     Ok(())
//! }
//! ```
//!
//! # Which layer do I need?
//!
//! | you have | use | it gives handlers |
//! |---|---|---|
//! | something to close behind a stream | [`CleanupLayer`] | [`Cleanup`]: async closers, exactly once, in order |
//! | producers that feed a response | [`TaskGroupLayer`] | [`TaskGroup`]: tasks that cannot outlive the response |
//! | work to stop when the client leaves | [`DisconnectLayer`] | [`Disconnect`]: the end as a future, a token, a flag |
//! | blocking code: a driver, an engine, a writer | `BridgeLayer` | `Bridge`: one thread and one event loop per request |
//! | event streams, exports, JSON | `CompressionLayer` | gzip that flushes when idle |
//! | all of it | [`Stack`] | all views, compression outside |
//! | a process that shuts down | [`Supervisor`], `net::serve` | a drain with a report |
//! | streams without an end | [`Shutdown::end_now`] on the layer | a last event at a shutdown |
//!
//! Each layer works alone, in any order, on axum or any hyper 1.x service; together they share one
//! scope per request. Without a layer there are bodies that bring their own scope:
//! [`cleanup::CleanupBody`], [`TaskGroupBody`] and [`disconnect::DisconnectBody`].
//!
//! # How a response ends
//!
//! [`Outcome`] says how the body ended, [`Ending::succeeded`] is what commit-or-rollback code
//! branches on, and an [`EndReport`] accounts for each response. On a natural end the teardown
//! finishes before the client sees the end: a closer that fails makes the transfer a broken one,
//! or the response a 500 if its head was not sent yet. A gRPC call that fails, which is a complete
//! response of status 200, has not succeeded.
//!
//! # Where a broken body can look whole
//!
//! - To an HTTP/1.0 client the end of the connection is that of a body without a length: there a broken
//!   one ends in a reset, which takes a `net::WatchedListener` and its `net::Peer` in the request's
//!   extensions, as under `net::serve`. (nginx before 1.29.7 asks its upstreams so, unless told
//!   `proxy_http_version 1.1`.) A length that a layer of another crate takes away, outside of ours, is
//!   taken for still there.
//! - [`FrameBody`](task_group::FrameBody) is only a channel: it ends cleanly when its senders are gone,
//!   also by a panic of the task that held them.
//! - A [`GroupBody`](task_group::GroupBody) is judged by the layer of its group: sent as a response from
//!   outside that layer, it ends cleanly whatever its tasks came to.
//!
//! # Observability
//!
//! In the process: an [`EndReport`] for each response by [`on_end`](scope::ScopeLayer::on_end), live ones
//! by [`Supervisor::snapshot`].
//!
//! With the feature `tracing`: for every response the event `response ended`, target `bodyguard`, level
//! `DEBUG`, or `WARN` if anything failed. Its fields: `scope`, `method`, `path` (no query), `outcome`,
//! `status`, `bytes`, `frames`, `client_gone`, `first_frame_ms`, `duration_ms`, `teardown_ms`,
//! `closers_run`, `closers_failed`, `closers_unrun`, `tasks_joined`, `tasks_failed`, `tasks_cancelled`,
//! `tasks_panicked`, `stuck` (how many), `errors` (how many), `error` (the first, with its sources behind
//! `: `), `also` (up to five more, between `; `). Closers that did not
//! run to their end, closers that failed behind the end, and a hook that panicked, are events of level
//! `ERROR` besides; so are accepts that fail, and errors of the bridge that become the answer. A connection
//! that cannot be watched is a `WARN`.
//!
//! These events, `on_end` hooks, closers and work that goes on without its client are in the span that was
//! current when the outermost layer was called (for a body without a layer: where it was made), also if the
//! response was dropped elsewhere: so put the layer that makes the span, tower-http's `TraceLayer`, outside.
//! Tasks, producers and code of the bridge are in the span that was current where they were spawned or
//! called, or else in that one. A response lets go of its span once its report is out and nothing of it runs.
//! Without a span whatever is current stays. What a body does when it is polled, or dropped, by the server is
//! in the span of the server.
//!
//! With the feature `metrics`:
//!
//! | metric | kind | label |
//! |---|---|---|
//! | `bodyguard_scopes_live` | gauge | |
//! | `bodyguard_responses_total` | counter | `outcome` |
//! | `bodyguard_response_duration_seconds` | histogram | `outcome` |
//! | `bodyguard_response_bytes_total` | counter | |
//! | `bodyguard_first_frame_seconds` | histogram | |
//! | `bodyguard_teardown_seconds` | histogram | |
//! | `bodyguard_closers_run_total` | counter | |
//! | `bodyguard_closers_failed_total` | counter | |
//! | `bodyguard_closers_unrun_total` | counter | |
//! | `bodyguard_tasks_joined_total` | counter | |
//! | `bodyguard_tasks_failed_total` | counter | |
//! | `bodyguard_tasks_panicked_total` | counter | |
//! | `bodyguard_tasks_cancelled_total` | counter | |
//! | `bodyguard_compression_streams` | gauge | |
//! | `bodyguard_compression_parked` | gauge | |
//! | `bodyguard_compression_resident` | gauge | |
//! | `bodyguard_compression_bytes_in_total` | counter | |
//! | `bodyguard_compression_bytes_out_total` | counter | |
//!
//! Durations run from the call to the first data frame, to the start of the end, and from there to the
//! report. The last five are those of `CompressionStats`, summed over all layers. Live scopes are those of
//! [`Supervisor::active`], under all supervisors and none: as a rule one for each response that is under way,
//! up to the end of its teardown and its last task; they count from when the recorder was installed.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `axum` | yes | extractors and `IntoResponse` |
//! | `compression` | yes | `CompressionLayer` (gzip, pure Rust), and its place in [`Stack`] |
//! | `net` | yes | `net::serve`, `net::WatchedListener` |
//! | `bridge` | yes | one thread and one event loop per request for sync code |
//! | `br`, `zstd`, `deflate` | | further codings, each offered once `CompressionLayer` is told so |
//! | `tracing`, `metrics` | | [an event and counters](#observability) for each end report |
//! | `testing` | | scripted bodies, probes, conformance checks |
//! | `full` | | all of them |

/// The program in the README is a test.
#[cfg(all(doctest, feature = "axum", feature = "net", feature = "compression"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "bridge")]
pub mod bridge;
pub mod cleanup;
#[cfg(feature = "compression")]
pub mod compression;
mod content_encoding;
mod content_length;
pub mod disconnect;
mod error;
mod frames;
#[cfg(feature = "net")]
pub mod net;
mod outcome;
pub mod scope;
pub mod stack;
mod supervisor;
mod sync;
pub mod task_group;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(all(test, not(loom)))]
#[path = "../tests/support/waits.rs"]
mod waits;

#[cfg(feature = "bridge")]
pub use bridge::{Bridge, BridgeLayer};
pub use cleanup::{Cleanup, CleanupLayer};
#[cfg(feature = "compression")]
pub use compression::CompressionLayer;
pub use disconnect::{Disconnect, DisconnectLayer};
pub use error::{BodyError, BoxError, Cause, TaskResult};
pub use outcome::{Counts, EndReport, Ending, Outcome};
pub use scope::{
    CloseError, Closing, Failure, FailureKind, FailurePolicy, Hold, MissingLayer, OnLeave,
    Shutdown, close, closing,
};
pub use stack::Stack;
pub use supervisor::{DrainReport, LiveScope, Phase, Supervisor};
pub use task_group::{FrameSender, TaskGroup, TaskGroupBody, TaskGroupLayer};
/// From `tokio-util`: what graceful tasks are given, and views give out.
pub use tokio_util::sync::CancellationToken;
