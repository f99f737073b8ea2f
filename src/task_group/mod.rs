//! Tasks that cannot outlive the response they feed, and whose failure reaches the client.
//!
//! ```
//! use bodyguard::task_group::TaskGroupBody;
//! use http_body_util::BodyExt;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let body = TaskGroupBody::new(|group, tx| async move {
//!     let news = tx.clone();
//!     group.spawn(async move { Ok(news.send("news\n").await?) })?;
//!     group.spawn(async move { Ok(tx.send("weather\n").await?) })?;
//!     Ok(())
//! });
//! assert_eq!(body.collect().await?.to_bytes().len(), 13);
//! # Ok::<(), bodyguard::BoxError>(())
//! # }).unwrap();
//! ```
//!
//! The body ends cleanly only if the group's own future and every task returned `Ok` and all
//! senders are gone. One failure or panic cancels the siblings, and the client sees a broken
//! transfer; a disconnect cancels and joins them all. The body's error has the first failure and all
//! that came of it: see [`BodyError::causes`](crate::BodyError::causes).
//!
//! | wanted | use |
//! |---|---|
//! | a body made of tasks, with no layer | [`TaskGroupBody`] |
//! | the same under the request's scope and its supervisor | [`TaskGroup::body`] |
//! | streams that exist already, merged | [`TaskGroup::merge`], [`TaskGroupBody::merge`] |
//! | tasks tied to any response | [`TaskGroup::spawn`] |
//! | only the channel | [`FrameBody`] |
//!
//! # Event streams
//! Frames are bytes. What is sent as an event has to be one, with a `data:` field for each line of the
//! text; and where nothing is sent for long, a comment shows proxies that the stream lives.
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use std::time::Duration;
//! use axum::{Router, extract::State, response::IntoResponse, routing::get};
//! use bodyguard::{Stack, TaskGroup};
//! use tokio::{sync::broadcast, time::timeout};
//!
//! fn event(text: &str) -> String {
//!     // A lone `\r` ends a line in an event stream, too.
//!     let text = text.replace("\r\n", "\n");
//!     let lines = text.split(['\r', '\n']).map(|line| format!("data: {line}\n"));
//!     lines.chain(["\n".to_owned()]).collect()
//! }
//!
//! async fn feed(State(news): State<broadcast::Sender<String>>, group: TaskGroup) -> impl IntoResponse {
//!     let mut news = news.subscribe();
//!     let body = group.body(|tx| async move {
//!         loop {
//!             match timeout(Duration::from_secs(15), news.recv()).await {
//!                 Ok(item) => tx.send(event(&item?)).await?,
//!                 Err(_) => tx.send(":\n\n").await?,
//!             }
//!         }
//!     });
//!     ([("content-type", "text/event-stream"), ("cache-control", "no-cache")], body)
//! }
//!
//! # let (news, _) = broadcast::channel(16);
//! let app: Router = Router::new()
//!     .route("/feed", get(feed))
//!     .layer(Stack::new())
//!     .with_state(news);
//! # assert_eq!(event("two\r\nlines"), "data: two\ndata: lines\n\n");
//! ```
//!
//! axum's `Sse` does both by itself, and goes with a group as any response does: feed its stream from a
//! task of [`TaskGroup::spawn`], whose failure then breaks the response off.

mod body;
mod channel;
mod group;
mod merge;
mod spawn_error;

pub use body::{GroupBody, TaskGroupBody};
pub use channel::{
    Closed, FrameBody, FrameSender, FrameSink, FrameWriter, SendFrame, TrySendError,
};
pub use group::{TaskGroup, TaskGroupLayer};
pub use merge::{SourceError, Sources};
pub use spawn_error::SpawnError;

pub use crate::scope::FailurePolicy;
