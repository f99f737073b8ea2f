//! How tasks enter a scope, what they feed, and what comes of their ends.

use std::{future::Future, panic::Location, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{
    failure::{Failure, FailureKind, quietly},
    machine::Scope,
    options::FailurePolicy,
    span::Span,
    state::{Phase, State, Work},
    stream_id::StreamId,
    tasks::{Abort, Cancellation, Feed, Slot, TaskKey, TaskKind},
    tracked::{Queued, TaskEnd, TaskReport, Tracked, Turn},
};
use crate::{TaskResult, error::Cause, outcome::Outcome};

/// Why a scope does not take a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its end has started, or its tasks are cancelled.
    Ending,
    NoRuntime,
}

/// A task that may be spawned.
struct Entered {
    runtime: Handle,
    report: TaskReport,
    /// What it feeds, as far as can be known.
    feed: Option<Arc<dyn Feed>>,
    span: Span,
}

/// The siblings of a task that has failed, and what the body ends with that they do not feed.
#[must_use]
pub(super) struct Cancelled {
    cancellation: Cancellation,
    body_ended: bool,
    outcome: Outcome,
    cause: Cause,
}

impl Scope {
    /// Spawns a task of this scope. Gives the future back if the scope takes no more.
    pub(crate) fn spawn<F>(
        self: &Arc<Self>,
        kind: TaskKind,
        at: &'static Location<'static>,
        future: F,
    ) -> Result<TaskKey, (Refused, F)>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let Entered {
            runtime,
            report,
            feed,
            span,
        } = match self.enter_task(kind, at) {
            Ok(entered) => entered,
            Err(refused) => return Err((refused, future)),
        };
        let (key, number) = (report.key, report.number);
        let task = runtime.spawn(Tracked {
            future: Some(future),
            report,
            feed,
            span,
        });
        self.set_abort(key, number, Abort::Task(task.abort_handle()));
        Ok(TaskKey { key, number })
    }

    /// Aborts a task that fed a body which was replaced; not once the response is ending.
    pub(crate) fn abort_replaced(&self, task: TaskKey) {
        let abort = {
            let mut state = self.lock();
            if state.phase != Phase::Live || state.work().body_end.is_some() {
                return;
            }
            let slot = state.work().tasks.slot_of(task.key, task.number);
            slot.and_then(Slot::abort)
        };
        if let Some(abort) = abort {
            abort.carry_out();
        }
    }

    /// Runs blocking code as a task of this scope, its result seen through `judge`. Gives the code
    /// back if the scope takes no more.
    pub(crate) fn spawn_blocking<C>(
        self: &Arc<Self>,
        at: &'static Location<'static>,
        place: Option<OwnedSemaphorePermit>,
        code: C,
        judge: impl FnOnce(TaskResult) -> TaskResult + Send + 'static,
    ) -> Result<(), (Refused, C)>
    where
        C: FnOnce(CancellationToken) -> TaskResult + Send + 'static,
    {
        let Entered {
            runtime,
            report,
            span,
            ..
        } = match self.enter_task(TaskKind::Blocking, at) {
            Ok(entered) => entered,
            Err(refused) => return Err((refused, code)),
        };
        let (key, number) = (report.key, report.number);
        let cancel = self.task_token();
        let code = move || {
            let _place = place;
            judge(code(cancel))
        };
        let queued = Arc::new(Queued::new(code, report, span));
        self.set_abort(key, number, Abort::Queued(queued.clone()));
        let turn = Turn(queued);
        runtime.spawn_blocking(|| turn.take());
        Ok(())
    }

    /// The token of graceful and blocking tasks: fires when the tasks are cancelled.
    pub(crate) fn task_token(&self) -> CancellationToken {
        self.lock().work().tasks.token().child_token()
    }

    /// Tasks from now on feed this stream. Refused when a failure cancels the siblings; at once if
    /// that has happened.
    pub(crate) fn feed(&self, feed: Arc<dyn Feed>) {
        let now = {
            let mut state = self.lock();
            let policy = state.options(self).failure_policy();
            let tasks = &mut state.work().tasks;
            if tasks.refuses_frames(policy) {
                Some(feed)
            } else {
                tasks.feeds.push(feed);
                None
            }
        };
        if let Some(feed) = now {
            feed.refuse();
        }
    }

    /// A stream that was never begun, and has gone, is none of the scope's.
    pub(crate) fn unfeed(&self, stream: StreamId) {
        let gone = {
            let mut state = self.lock();
            let feeds = &mut state.work().tasks.feeds;
            let place = feeds.iter().position(|feed| feed.cut() == Some(stream));
            place.map(|place| feeds.remove(place))
        };
        drop(gone);
    }

    /// Whether this stream may be closed on the scope's own account. Otherwise a task that is told so was
    /// told by somebody else's.
    pub(crate) fn closes(&self, stream: Option<StreamId>) -> bool {
        let (ended, feeds) = {
            let mut state = self.lock();
            let (live, natural) = (state.phase == Phase::Live, state.natural);
            let policy = state.options(self).failure_policy();
            let work = state.work();
            let whole = match &work.body_end {
                Some((outcome, _)) => outcome.is_complete(),
                None => natural,
            };
            if !whole || !work.tasks.open || work.tasks.refuses_frames(policy) {
                return true;
            }
            let ended = !live || work.body_end.is_some();
            (ended, work.tasks.feeds.clone())
        };
        // A stream of ours that ended whole had no sender left. What else has fed the body, and may
        // have been cut at its end, is not known here.
        (ended && feeds.is_empty())
            || stream.is_some() && feeds.iter().any(|feed| feed.cut() == stream)
    }

    /// For as many tasks as may run at once; none if any number may.
    pub(crate) fn places(&self) -> Option<Arc<Semaphore>> {
        let mut state = self.lock();
        let work = state.work.as_ref();
        if let Some(places) = work.and_then(|work| work.tasks.places.as_ref()) {
            return Some(places.clone());
        }
        let most = state.options(self).max_tasks.get()?;
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        state.work().tasks.places = Some(places.clone());
        Some(places)
    }

    /// A task has failed, and the end that comes of it has not begun.
    pub(crate) fn has_failed_task(&self) -> bool {
        let state = self.lock();
        let failure = |work: &Work| work.tasks.failure.is_some();
        state.phase == Phase::Live && state.work.as_deref().is_some_and(failure)
    }

    fn enter_task(
        self: &Arc<Self>,
        kind: TaskKind,
        at: &'static Location<'static>,
    ) -> Result<Entered, Refused> {
        let runtime = self
            .runtime
            .clone()
            .or_else(|| Handle::try_current().ok())
            .ok_or(Refused::NoRuntime)?;
        let span = self.span_here();
        let mut state = self.lock();
        let tasks = &state.work().tasks;
        // Whoever came now would be neither told nor aborted before the grace is over.
        if !tasks.open || tasks.cancelling {
            return Err(Refused::Ending);
        }
        state.used = true;
        let tasks = &mut state.work().tasks;
        tasks.spawned += 1;
        let number = tasks.spawned;
        let key = tasks.slots.insert(Slot {
            number,
            kind,
            at,
            abort: None,
            abort_due: false,
            told: false,
        });
        let report = TaskReport {
            scope: Some(self.clone()),
            key,
            number,
        };
        let feed = tasks.feeds.last().cloned();
        Ok(Entered {
            runtime,
            report,
            feed,
            span,
        })
    }

    /// A task may have ended, or been cancelled, before it is known how to abort it.
    fn set_abort(&self, key: usize, number: u64, abort: Abort) {
        let mut late = None;
        if let Some(slot) = self.lock().work().tasks.slot_of(key, number) {
            if slot.abort_due {
                late = Some(abort);
            } else {
                slot.abort = Some(abort);
            }
        }
        if let Some(abort) = late {
            abort.carry_out();
        }
    }

    /// `burst` is the panic of its destructors behind a failure.
    pub(super) fn task_ended(
        self: &Arc<Self>,
        (key, number): (usize, u64),
        end: TaskEnd,
        burst: Option<String>,
    ) {
        let mut cancelled = None;
        let (waker, keeper, release) = {
            let mut state = self.lock();
            let tasks = &mut state.work().tasks;
            if tasks.slot_of(key, number).is_none() {
                return;
            }
            let slot = tasks.slots.remove(key);
            if let Some((outcome, cause)) = state.count_task(&slot, end) {
                cancelled = self.task_failed(&mut state, outcome, cause);
            }
            if let Some(message) = burst {
                state.note_failure(Outcome::Panicked, slot.panicked(message).into());
            }
            let lingering = state.lingering;
            let tasks = &mut state.work().tasks;
            let waker = tasks.joiner.take();
            let idle = tasks.is_idle();
            let keeper = tasks.keeper.take_if(|_| idle);
            let released = lingering && idle;
            // What fails from here on is not in it.
            state.lingering &= !released;
            let release = released.then(|| state.release());
            (waker, keeper, release)
        };
        if let Some(cancelled) = cancelled {
            self.cancel_siblings(cancelled);
        }
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        if let Some(release) = release {
            self.release(release);
        }
        if let Some(waker) = waker {
            quietly(|| waker.wake());
        }
    }

    /// What is to be done, outside the lock, if the failure cancels the siblings.
    pub(super) fn task_failed(
        &self,
        state: &mut State,
        outcome: Outcome,
        cause: Cause,
    ) -> Option<Cancelled> {
        let live = state.phase == Phase::Live;
        let tasks = &mut state.work().tasks;
        let first = !std::mem::replace(&mut tasks.failed, true);
        if live && first {
            tasks.failure = Some((outcome, cause.clone()));
        }
        state.note_failure(outcome, cause.clone());
        let policy = state.options(self).failure_policy();
        let work = state.work();
        let body_ended = work.body_end.is_some();
        let tasks = &mut work.tasks;
        let cancels = policy == FailurePolicy::CancelSiblings && !tasks.cancelling;
        cancels.then(|| Cancelled {
            cancellation: tasks.cancel_all(),
            body_ended,
            outcome,
            cause,
        })
    }

    pub(super) fn cancel_siblings(self: &Arc<Self>, cancelled: Cancelled) {
        let ends = self.cancel_unpolled(cancelled.cancellation);
        // A body that is not fed by a channel of ours would go on: end it. One that has ended
        // leaves the scope to its holds: they hear of it.
        if !ends || cancelled.body_ended {
            self.interrupt(cancelled.outcome, Some(cancelled.cause));
        }
    }
}

impl State {
    fn count_task(&mut self, slot: &Slot, end: TaskEnd) -> Option<(Outcome, Cause)> {
        let counts = &mut self.work().counts;
        match end {
            TaskEnd::Returned(Ok(())) => {
                counts.tasks_joined += 1;
                None
            }
            TaskEnd::Returned(Err(cause)) => {
                counts.tasks_joined += 1;
                counts.tasks_failed += 1;
                Some((Outcome::Failed, cause))
            }
            TaskEnd::Panicked(message) => {
                counts.tasks_panicked += 1;
                Some((Outcome::Panicked, slot.panicked(message).into()))
            }
            TaskEnd::Caught(cause) => {
                counts.tasks_panicked += 1;
                Some((Outcome::Panicked, cause))
            }
            TaskEnd::Dropped if slot.told => {
                counts.tasks_cancelled += 1;
                None
            }
            TaskEnd::Dropped => {
                counts.tasks_cancelled += 1;
                let failure = Failure::new(FailureKind::TaskLost { what: slot.name() });
                Some((Outcome::Failed, failure.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    /// Between the spawning of a graceful task and the coming of its handle, its grace is over.
    #[tokio::test(start_paused = true)]
    async fn a_task_whose_handle_comes_behind_the_last_abort_is_aborted() {
        for kind in [TaskKind::Plain, TaskKind::Graceful, TaskKind::Background] {
            let scope = Scope::standalone();
            let entered = scope.enter_task(kind, Location::caller());
            let Entered { report, .. } = entered.expect("open");
            let (key, number) = (report.key, report.number);
            scope.abandon_tasks();
            let mut task = JoinSet::new();
            let abort = task.spawn(pending::<()>());
            scope.set_abort(key, number, Abort::Task(abort));
            let ended = timeout(Duration::from_secs(1), task.join_next()).await;
            let ended = ended.expect("it goes on").expect("one task");
            assert!(ended.expect_err("aborted").is_cancelled());
        }
    }
}
