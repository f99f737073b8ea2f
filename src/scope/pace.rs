//! How a teardown gets on, for a parent that waits for it.

use std::time::Duration;

use super::machine::Scope;

/// The step of a teardown that is under way: which it is, and how long it may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    step: u64,
    limit: Option<Duration>,
}

/// What a step may take longer than its limit, until that has been seen to.
const LEEWAY: Duration = Duration::from_secs(1);

impl Scope {
    /// A step of the teardown begins, which keeps this limit.
    pub(super) fn begin_step(&self, limit: Duration) {
        let mut state = self.lock();
        let pace = &mut state.work().pace;
        pace.step += 1;
        pace.limit = Some(limit);
    }

    pub(super) fn pace(&self) -> Pace {
        let state = self.lock();
        let work = state.work.as_deref();
        work.map(|work| work.pace).unwrap_or_default()
    }
}

impl Pace {
    /// How long a teardown that gets on stays at this step; `begins`, before its first.
    pub(super) fn limit(self, begins: Duration) -> Duration {
        self.limit.unwrap_or(begins).saturating_add(LEEWAY)
    }
}
