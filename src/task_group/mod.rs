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
//! text, as [`event`] makes it; and where nothing is sent for long, a comment shows proxies that the stream
//! lives: [`keep_alive`](GroupBody::keep_alive) gives one.
//!
#![cfg_attr(feature = "axum", doc = "```")]
#![cfg_attr(not(feature = "axum"), doc = "```ignore")]
//! use std::time::Duration;
//! use axum::{Router, extract::State, response::IntoResponse, routing::get};
//! use bodyguard::{Stack, TaskGroup, task_group::event};
//! use tokio::sync::broadcast;
//!
//! async fn feed(State(news): State<broadcast::Sender<String>>, group: TaskGroup) -> impl IntoResponse {
//!     let mut news = news.subscribe();
//!     let body = group.body(|tx| async move {
//!         loop {
//!             tx.send(event("news", &news.recv().await?)).await?;
//!         }
//!     });
//!     let body = body.keep_alive(Duration::from_secs(15), ":\n\n");
//!     ([("content-type", "text/event-stream"), ("cache-control", "no-cache")], body)
//! }
//!
//! # let (news, _) = broadcast::channel(16);
//! let app: Router = Router::new()
//!     .route("/feed", get(feed))
//!     .layer(Stack::new())
//!     .with_state(news);
//! ```
//!
//! What an event stream says last if it fails: [`on_failure`](GroupBody::on_failure).
//!
//! axum's `Sse` does both by itself, and goes with a group as any response does: feed its stream from a
//! task of [`TaskGroup::spawn`], whose failure then breaks the response off. It drops the stream where it
//! stands: **what still lies in your channel then is lost**, where [`TaskGroup::body`] gives what was sent before.
//! To have it given, send the error as the last item of the stream and return `Ok(())`, or set
//! [`FailurePolicy::KeepOthers`].

mod body;
mod channel;
mod event;
mod group;
mod keep_alive;
mod merge;
mod spawn_error;

pub use body::{GroupBody, TaskGroupBody};
pub use channel::{
    Closed, FrameBody, FrameSender, FrameSink, FrameWriter, SendFrame, TrySendError,
};
pub use event::event;
pub use group::{TaskGroup, TaskGroupLayer};
pub use merge::{SourceError, Sources};
pub use spawn_error::SpawnError;

pub use crate::scope::FailurePolicy;
