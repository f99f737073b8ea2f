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

mod client;
mod conformance;
mod probe;
mod script;

pub use client::{Taken, take_frames};
pub use conformance::{conformance, conformance_of_content};
pub use probe::Probe;
pub use script::{Script, ScriptError};
