//! Every interleaving of the frame channel's threads, as far as loom can reach.
#![allow(
    dead_code,
    unused_imports,
    reason = "each model uses a part of what is shared"
)]

/// The channel's body names it, and never makes one.
#[derive(Debug)]
pub enum BodyError {}

/// A model's own failure is to be seen.
mod scope {
    pub(crate) use crate::stream_id::StreamId;

    pub(crate) fn quietly(code: impl FnOnce()) {
        code();
    }
}

#[path = "../../src/scope/stream_id.rs"]
mod stream_id;

#[path = "../../src/task_group/channel/mod.rs"]
mod channel;

#[cfg(test)]
mod models;
