//! One thread and one event loop per request, for sync code.
//!
//! A [`Bridge`] takes async code to sync code ([`Bridge::call`]) and sync code to async code
//! ([`Cx::block_on`]), and within one request always to the same thread and the same loop: what one
//! call has bound to the loop, a connection or a task, the next one can use. [`BridgeLayer`] (or
//! [`Stack`](crate::Stack)) gives it to handlers; the thread is taken from a [`Pool`] at the first use
//! and given back with the end of the response body.
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use axum::{Router, response::IntoResponse, routing::get};
//! use bodyguard::bridge::{Bridge, BridgeError, BridgeLayer};
//!
//! async fn rows(bridge: Bridge) -> Result<impl IntoResponse, BridgeError> {
//!     // Blocking code, which may wait for async code.
//!     let count = bridge.call(|cx| cx.block_on(async { 3 })).await??;
//!     // Runs on the same thread while the client reads.
//!     Ok(bridge.body_writer(move |out| {
//!         for row in 0..count {
//!             writeln!(out, "{row}")?;
//!         }
//!         Ok(())
//!     }))
//! }
//!
//! let app: Router = Router::new().route("/", get(rows)).layer(BridgeLayer::new());
//! ```
//!
//! Middleware and handlers that are blocking functions themselves: [`from_fn_sync`],
//! `sync_handler`. Without a layer a [`Context`] owns the bridge:
//!
//! ```
//! use bodyguard::bridge::{BridgeError, Context, Pool};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BridgeError> {
//! let context = Context::new(Pool::new());
//! let bridge = context.bridge();
//! let again = bridge.clone();
//! let sum = bridge
//!     .call(move |cx| {
//!         let first = cx.block_on(async { 1 })?;
//!         // Back to sync code, on this very thread.
//!         let second = cx.block_on(again.call(|_| 2))??;
//!         Ok::<_, BridgeError>(first + second)
//!     })
//!     .await??;
//! assert_eq!(sum, 3);
//! context.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What runs when
//! One piece of code at a time runs on the thread. Sync code that computes keeps it to itself. Sync
//! code that **waits**, in `block_on` or in a write to a full [`SyncBody`], lets everything else of
//! the request go on: local tasks, and further calls, which run on top of it. So calls finish last
//! in, first out; and the *future* of an outer `block_on` is not polled while a call runs on top,
//! since it lies below on the stack. What a nested call has to wait for belongs into a local task.
//! Calls nest to [`PoolBuilder::max_depth`].
//!
//! # Misuse that is detected
//! Each is an error with its own [`BridgeErrorKind`], none a hang.
//!
//! | what | error |
//! |---|---|
//! | `block_on` in async code that the loop is running | `InsideLoop` |
//! | `Bridge::block_on` on another thread | `ForeignThread` |
//! | a call awaited with another executor on the request's own thread | `OwnThread` |
//! | anything after the end; waiting when the end comes | `Ended` |
//! | waiting for a caller that has dropped its call | `Cancelled` |
//! | no thread within the pool's limit | `Exhausted` |
//! | a call from the loop, nested deeper than the pool allows | `TooDeep`, at once |
//! | the same by way of another thread, or many calls at once | waits; `TooDeep` at the wait limit |
//! | a body read before its head, full, on top of `from_fn_sync` that waits for the head | `HeadBlocked` at the wait limit |
//! | blocking middleware or handlers in a request without a bridge | `Missing` |
//!
//! Not detected: `tokio::runtime::Handle::block_on` in sync code, which waits without driving the
//! loop; and two pieces of sync code of one request that wait for each other.
//!
//! # At the end
//! Waiting code is interrupted, local tasks are dropped, closers run last registered first, then
//! values kept with [`Cx::insert`] are dropped, all on the request's thread; the loop goes with
//! them, and whatever was spawned on it, but for blocking code that has begun on tokio's own threads
//! (`tokio::task::spawn_blocking`, `tokio::fs`): nobody waits for that. Thread-locals of the code itself
//! stay. Under a layer this is part of the response's teardown: the tasks behind those of its task group,
//! the closers among all others, all of it before the client sees the end.
//!
//! Sync code that does not come back within the pool's [`close_limit`](PoolBuilder::close_limit)
//! keeps its thread. The response then ends in an error, and the code is named in its end report and,
//! until it is back, in that of a drain; without a layer by [`CloseReport::stuck`] and
//! [`Pool::stuck`].

// | file | what it is |
// |---|---|
// | `view`, `handle` | how a request's bridge is found and tied to its scope, and what its code holds |
// | `context` | the owner without a layer; the close, how it is waited for, and its report |
// | `session`, `job` | the half of a session that all threads share: its mail box, and where it stands |
// | `session/ending`, `session/thread` | how it is ended; what only its own thread does with it |
// | `local`, `limits` | the thread's half: the loop, the sync code around it, how long that may wait |
// | `finished` | the last of a session: those who wait for its close are told |
// | `cx`, `closer` | what sync code is given; cleanup on the thread |
// | `call`, `task` | calls and local tasks, as futures for their callers |
// | `pool`, `worker`, `config` | the threads, one of them, and how many there are and how long anybody waits |
// | `bound` | a limit on a wait for another thread, by the real clock |
// | `sync_body`, `pipe` | bodies of blocking code, and the bytes on their way |
// | `from_fn`, `handler` | middleware and handlers that are blocking functions |
// | `error`, `stuck` | what goes wrong, and what does not come back, by name |

mod bound;
mod call;
mod closer;
mod config;
mod context;
mod cx;
mod error;
mod finished;
mod from_fn;
mod handle;
#[cfg(feature = "axum")]
mod handler;
mod job;
mod limits;
mod local;
mod pipe;
mod pool;
mod session;
mod stuck;
mod sync_body;
mod task;
mod view;
mod worker;

pub use call::Call;
pub use config::PoolBuilder;
pub use context::{Close, CloseReport, Context};
pub use cx::Cx;
pub use error::{BridgeError, BridgeErrorKind};
pub use from_fn::{FromFnSync, FromFnSyncLayer, Next, NextError, ResponseFuture, from_fn_sync};
pub use handle::Bridge;
#[cfg(feature = "axum")]
pub use handler::{SyncHandler, sync_handler};
pub use pool::Pool;
pub use stuck::Stuck;
pub use sync_body::SyncBody;
pub use task::{Run, Task};
pub use view::BridgeLayer;
