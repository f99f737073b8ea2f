//! Sync code that does not come back, by name.

use std::{fmt, panic::Location, time::Duration};

/// Sync code that is running on a bridge thread: which, where from, for how long.
#[derive(Clone, Debug)]
pub struct Stuck {
    pub(super) thread: String,
    pub(super) called_at: &'static Location<'static>,
    pub(super) running_for: Duration,
}

impl Stuck {
    /// The name of the thread.
    pub fn thread(&self) -> &str {
        &self.thread
    }

    /// Where the code was handed to the bridge.
    pub fn called_at(&self) -> &'static Location<'static> {
        self.called_at
    }

    /// How long it has been running.
    pub fn running_for(&self) -> Duration {
        self.running_for
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sync code called at {} has been running on thread {} for {:?}",
            self.called_at, self.thread, self.running_for
        )
    }
}
