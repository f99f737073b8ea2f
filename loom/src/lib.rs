//! Every interleaving of the threads of the frame channel, and of those that drive a teardown, as far as loom can
//! reach.
#![allow(
    dead_code,
    unused_imports,
    reason = "each model uses a part of what is shared"
)]

/// The channel's body names it, and never makes one.
#[derive(Debug)]
pub enum BodyError {}

mod runtime;
mod scope;

#[path = "../../src/task_group/channel/mod.rs"]
mod channel;

#[path = "../../src/sync.rs"]
mod sync;

#[cfg(test)]
mod models;
