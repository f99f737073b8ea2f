//! Scripted bodies and probes for tests, of this crate and of yours.
//!
//! ```
//! use bodyguard::testing::Script;
//! use http_body_util::BodyExt;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let body = Script::new().data("a").pending().data("b");
//! let probe = body.probe();
//! assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
//! assert_eq!(probe.polls(), 4);
//! assert!(probe.is_dropped());
//! # });
//! ```
//!
//! # Views without a server
//! Functions that take a view are tested with one of a body of its own:
//!
//! | view | from |
//! |---|---|
//! | [`Cleanup`](crate::Cleanup) | [`CleanupBody::cleanup`](crate::cleanup::CleanupBody::cleanup) |
//! | [`TaskGroup`](crate::TaskGroup) | [`TaskGroupBody::group`](crate::TaskGroupBody::group) |
//! | [`Disconnect`](crate::Disconnect) | [`DisconnectBody::disconnect`](crate::disconnect::DisconnectBody::disconnect) |
//! | `Bridge` | `bridge::Context::bridge` |
//!
//! Drop the body and the client has left; poll it to its end and it has not. Whole handlers are tested
//! under their layers by [`take_frames`]; closers and `on_end` hooks by themselves with [`ending`] and
//! [`end_report`].

mod client;
mod conformance;
mod ending;
mod probe;
mod script;

pub use client::{Taken, take_frames};
pub use conformance::{conformance, conformance_of_content};
pub use ending::{end_report, ending};
pub use probe::Probe;
pub use script::{Script, ScriptError};
