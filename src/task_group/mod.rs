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
//! transfer; a disconnect cancels and joins them all.
//!
//! | wanted | use |
//! |---|---|
//! | a body made of tasks, with no layer | [`TaskGroupBody`] |
//! | the same under the request's scope and its supervisor | [`TaskGroup::body`] |
//! | streams that exist already, merged | [`TaskGroup::merge`], [`TaskGroupBody::merge`] |
//! | tasks tied to any response | [`TaskGroup::spawn`] |
//! | only the channel | [`FrameBody`] |

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
