//! Closers as they come and go: registered, taken back, run by their key or late; and how they ended.

use std::{future::poll_fn, panic::Location, sync::Arc, task::Poll};

use super::{
    closers::{Closer, CloserFailed},
    failure::{Failure, FailureKind, named, quietly},
    machine::Scope,
    span::Span,
    state::{Phase, State, Work},
};
use crate::{error::Cause, outcome::Outcome, supervisor::Background};

impl Scope {
    /// Registers a closer; after the end it runs at once, with the final ending.
    pub(crate) fn defer(self: &Arc<Self>, mut closer: Closer) -> u64 {
        let key = {
            let mut state = self.lock();
            state.used = true;
            state.work().next_key += 1;
            closer.key = state.work().next_key;
            if state.phase != Phase::Done {
                let key = closer.key;
                state.work().closers.push(closer);
                return key;
            }
            closer.key
        };
        self.run_late(closer);
        key
    }

    /// Registers a closer that the client does not wait for.
    pub(crate) fn defer_after_end(self: &Arc<Self>, mut closer: Closer) -> u64 {
        let mut state = self.lock();
        if state.phase == Phase::Done {
            drop(state);
            return self.defer(closer);
        }
        state.used = true;
        state.work().next_key += 1;
        closer.key = state.work().next_key;
        let key = closer.key;
        state.work().after_end.push(closer);
        key
    }

    /// Takes a closer back before it runs.
    pub(crate) fn take_closer(&self, key: u64) -> Option<Closer> {
        Self::take_from(&mut self.lock(), key)
    }

    fn take_from(state: &mut State, key: u64) -> Option<Closer> {
        let work = state.work.as_mut()?;
        [&mut work.closers, &mut work.after_end]
            .into_iter()
            .find_map(|list| {
                let at = list.iter().position(|closer| closer.key == key)?;
                Some(list.remove(at))
            })
    }

    /// Runs one closer now, on behalf of its key; `None` if it is taken already.
    ///
    /// Its failure counts like any other. A teardown that starts meanwhile waits for it.
    pub(crate) async fn close_now(self: Arc<Self>, key: u64) -> Option<Result<(), Cause>> {
        let (closer, ending, limit) = {
            let mut state = self.lock();
            let closer = Self::take_from(&mut state, key)?;
            // In the same critical section: the teardown must not overtake it.
            let limit = state.options(&self).closer_limit();
            let early = closer.early(limit);
            state.work().early.push(early);
            let ending = match state.phase {
                // Nothing is delivered yet: the safe reading is that the application gave up.
                Phase::Live => state.ending_as(&self, Outcome::Cancelled),
                Phase::Ending | Phase::Done => state.ending(&self),
            };
            (closer, ending, limit)
        };
        let mut alone = Alone::new(&self, &closer);
        alone.early = Some(key);
        let run = self.span().around(async move {
            let result = closer.run(ending, limit).await;
            let outcome = result.as_ref().map(|_| ()).map_err(|f| f.cause.clone());
            alone.ran = true;
            alone.scope.closer_ran(Some(key), result);
            outcome
        });
        Some(run.await)
    }

    /// A closer has run; on behalf of its key, if it ran `early`.
    pub(super) fn closer_ran(&self, early: Option<u64>, result: Result<(), CloserFailed>) {
        let mut state = self.lock();
        let work = state.work();
        let given_up = early.is_some_and(|key| work.early_over(key));
        let Err(failed) = result else {
            work.counts.closers_run += 1;
            return;
        };
        work.counts.closers_run += u64::from(failed.ran);
        // Of one that was given up the teardown has told.
        work.counts.closers_failed += u64::from(!given_up);
        if given_up && failed.has_overrun() {
            failed
                .burst
                .into_iter()
                .for_each(|cause| state.add_error(cause));
            return;
        }
        // Behind the end nobody else tells: hooks have had their report.
        let late = (state.phase == Phase::Done).then(|| failed.cause.clone());
        state.note_failure(failed.outcome, failed.cause);
        failed
            .burst
            .into_iter()
            .for_each(|cause| state.add_error(cause));
        drop(state);
        if let Some(cause) = late {
            super::observe::failed_late(self, &cause, !given_up);
        }
        if !failed.ran {
            self.closer_unrun();
            super::observe::unrun(self);
        }
    }

    pub(super) fn closer_unrun(&self) {
        let mut state = self.lock();
        state.work().counts.closers_unrun += 1;
        // What is counted at the release was counted without it.
        let late = state.phase == Phase::Done && !state.lingering;
        drop(state);
        if late {
            self.supervisor().count_unrun();
        }
    }

    /// Ready once no closer runs ahead of the teardown.
    pub(super) async fn early_done(&self) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let replaced = {
                let mut state = self.lock();
                if state.work().early.iter().all(|early| early.given_up) {
                    return Poll::Ready(());
                }
                state.work().early_waiter.replace(waker)
            };
            drop(replaced);
            Poll::Pending
        })
        .await;
    }

    /// The teardown cannot wait for them.
    pub(super) fn forget_early(&self) {
        // Those that were given up have been counted.
        self.lock().work().early.retain(|early| early.given_up);
    }

    /// The teardown has waited long enough for some of them: whoever runs them does not poll them.
    pub(super) fn early_overran(&self) {
        let mut state = self.lock();
        let work = state.work();
        let mut overran = Vec::new();
        for early in &mut work.early {
            if early.left().is_some_and(|left| left.is_zero()) {
                early.given_up = true;
                overran.push((named("closer", early.at), early.limit));
            }
        }
        for (what, limit) in overran {
            let work = state.work();
            work.counts.closers_failed += 1;
            work.stuck.push(what.clone());
            let overran = Failure::new(FailureKind::OverranLimit { what, limit });
            state.note_failure(Outcome::Failed, overran.into());
        }
    }

    /// `unfinished` by whoever ran it, what it was to do is half done: a failure, unless the teardown has told
    /// of one.
    fn early_ended(&self, key: u64, unfinished: Option<String>) {
        let waiter = {
            let mut state = self.lock();
            let work = state.work();
            let told = work.early_over(key);
            if let Some(what) = unfinished.filter(|_| !told) {
                work.half_done = true;
                let failure = Failure::new(FailureKind::GivenUp { what });
                state.note_failure(Outcome::Failed, failure.into());
            }
            state.work().early_waiter.take()
        };
        if let Some(waiter) = waiter {
            quietly(|| waiter.wake());
        }
    }

    fn run_late(self: &Arc<Self>, closer: Closer) {
        let ending = self.ending();
        // Its own has gone by now, as a rule.
        let span = self.span().or(Span::current);
        if closer.is_sync() {
            let _entered = span.enter();
            let result = closer.run_sync(ending);
            self.closer_ran(None, result);
            return;
        }
        let limit = self.lock().options(self).closer_limit();
        let alone = Alone::new(self, &closer);
        let run = span.around(async move {
            let mut alone = alone;
            let result = closer.run(ending, limit).await;
            alone.ran = true;
            alone.scope.closer_ran(None, result);
        });
        let runtime = self.runtime.clone();
        if let Some(runtime) = runtime.or_else(|| tokio::runtime::Handle::try_current().ok()) {
            runtime.spawn(run);
        }
    }
}

impl Work {
    /// The closer with this key does not run ahead any more. True if the teardown had given it up.
    fn early_over(&mut self, key: u64) -> bool {
        let at = self.early.iter().position(|early| early.key == key);
        at.is_some_and(|at| self.early.swap_remove(at).given_up)
    }
}

/// A closer that runs outside the teardown: registered after the end, or run early by its key.
///
/// The drain waits for it. Its drop unfinished means that the runtime is gone, or that whoever ran
/// it early gave up.
struct Alone {
    scope: Arc<Scope>,
    _background: Background,
    ran: bool,
    at: &'static Location<'static>,
    /// The teardown waits for it, by its key.
    early: Option<u64>,
}

impl Alone {
    fn new(scope: &Arc<Scope>, closer: &Closer) -> Self {
        let name = scope.named(&closer.name());
        Self {
            scope: scope.clone(),
            _background: scope.supervisor().background(name),
            ran: false,
            at: closer.at,
            early: None,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !self.ran {
            self.scope.closer_unrun();
            super::observe::unrun(&self.scope);
        }
        if let Some(key) = self.early {
            let unfinished = (!self.ran).then(|| named("closer", self.at));
            self.scope.early_ended(key, unfinished);
        }
    }
}
