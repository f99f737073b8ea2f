//! What is in a session's mail box.

use std::{
    panic::Location,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{cx::Cx, error::BridgeError};

/// Something to do on the thread, for someone who waits for its result.
pub(super) trait Job: Send {
    /// Whether its result is still wanted.
    fn is_live(&self) -> bool;
    fn run(self: Box<Self>, cx: &Cx);
    fn reject(self: Box<Self>, error: BridgeError);
}

/// Set once the caller has dropped its call.
pub(super) type Gone = Arc<AtomicBool>;

/// A sync call; it is run outside the loop, so that it can block on the loop.
pub(super) struct SyncJob {
    pub(super) job: Box<dyn Job>,
    pub(super) gone: Gone,
    pub(super) called_at: &'static Location<'static>,
    /// Whether the loop itself submitted it: then whoever waits for it may be what blocks it.
    pub(super) from_loop: bool,
}

impl SyncJob {
    pub(super) fn is_live(&self) -> bool {
        !self.gone.load(Ordering::Acquire) && self.job.is_live()
    }
}

/// What the code that is waiting on the loop has to do next.
pub(super) enum Step {
    Sync(SyncJob),
    /// Start a local task, from inside the loop.
    Local(Box<dyn Job>),
    EndTasks,
    Close,
    Interrupted,
}

/// How hard code that waits on the loop is being told to stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interrupt {
    None,
    /// Calls must stop waiting.
    Calls,
    /// Closers too: the close has taken too long.
    Closers,
}
