//! How the options of a scope change: by the layers that join it, and by what is set for one response.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    machine::Scope,
    options::{Choice, FailurePolicy, Hooks, Options},
    stall::Watchdog,
};
use crate::outcome::EndReport;

/// Whether tasks from now on are counted by themselves, for another limit.
type Recounts = bool;

impl Scope {
    /// Takes over what an inner layer sets.
    pub(super) fn join_options(&self, inner: &Options) {
        if inner.is_empty() {
            return;
        }
        if inner.clock {
            self.read_clock();
        }
        self.replace_options(|outer| {
            let merged = inner.inside(outer, Hooks::Both);
            let limits = !inner.max_tasks.is_unset() && merged.max_tasks == inner.max_tasks;
            (merged, limits)
        });
    }

    /// Lets at most so many tasks run at once, of those that take a place.
    pub(crate) fn set_max_tasks(&self, max: usize) {
        self.set_counting(true, |options| options.max_tasks = Choice::Response(max));
    }

    /// Sets what a failing task does to its siblings.
    pub(crate) fn set_failure_policy(&self, policy: FailurePolicy) {
        self.set(|options| options.failure_policy = Choice::Response(policy));
    }

    /// Sets how long tasks are waited for.
    pub(crate) fn set_join_limit(&self, limit: Duration) {
        self.set(|options| options.join_limit = Choice::Response(limit));
    }

    /// Sets how long cancelled tasks have that are told.
    pub(crate) fn set_cancel_grace(&self, grace: Duration) {
        self.set(|options| options.cancel_grace = Choice::Response(grace));
    }

    /// Sets how long an error waits behind the last frame.
    pub(crate) fn set_error_gap(&self, gap: Duration) {
        self.set(|options| options.error_gap = Some(gap));
    }

    /// Adds a hook for the end report of a body without a layer.
    pub(crate) fn on_end(&self, hook: impl Fn(&EndReport) + Send + Sync + 'static) {
        self.read_clock();
        self.set(|options| options.on_end.push(Arc::new(hook)));
    }

    /// Lets the handler choose to run on without its client: for a body without a layer.
    pub(crate) fn detachable(&self, limit: Duration) {
        self.set(|options| options.detachable = Some(limit));
    }

    /// Sets the stall time-out of a body without a layer; counts once the body is movable.
    pub(crate) fn stall_timeout(&self, timeout: Duration) {
        self.set(|options| options.stall = Some(Arc::new(Watchdog::new(timeout))));
    }

    /// From now on at the latest somebody is told how long the response takes.
    fn read_clock(&self) {
        self.lock().opened_at.get_or_insert_with(Instant::now);
    }

    fn set(&self, set: impl FnOnce(&mut Options)) {
        self.set_counting(false, set);
    }

    fn set_counting(&self, recounts: Recounts, set: impl FnOnce(&mut Options)) {
        self.replace_options(|options| {
            let mut options = Options::clone(options);
            options.passing = true;
            set(&mut options);
            (Arc::new(options), recounts)
        });
    }

    fn replace_options(&self, replace: impl FnOnce(&Arc<Options>) -> (Arc<Options>, Recounts)) {
        let mut state = self.lock();
        let (options, recounts) = replace(state.options(self));
        let replaced = state.merged.replace(options);
        let tasks = state.work.as_mut().map(|work| &mut work.tasks);
        let outdated = tasks
            .filter(|_| recounts)
            .and_then(|tasks| tasks.places.take());
        // Behind the lock: hooks and wakers are the application's.
        drop(state);
        drop(replaced);
        // Who waits for one of these places looks for the new ones.
        if let Some(places) = outdated {
            places.close();
        }
    }
}
