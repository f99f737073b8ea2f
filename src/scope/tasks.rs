//! The tasks of a scope: none outlives its join, and no failure is lost.

use std::{future::Future, panic::Location, sync::Arc, task::Waker};

use slab::Slab;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    failure::{Failure, FailureKind, contained, named},
    machine::Scope,
    options::FailurePolicy,
    state::{LastWords, Phase, State, Work},
    tracked::{TaskEnd, TaskReport, Tracked},
};
use crate::{TaskResult, error::Cause, outcome::Outcome};

/// How a task is treated at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Awaited on a natural end; aborted at its next await on any other.
    Plain,
    /// As `Plain`, but told first, and given the grace.
    Graceful,
    /// Aborted on a natural end too.
    Background,
    /// On a blocking thread: told, and waited for; it cannot be aborted once it runs.
    Blocking,
}

/// Finds a task again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskKey {
    key: usize,
    number: u64,
}

/// The stream of a body that tasks of the scope feed.
pub(crate) trait Feed: Send + Sync {
    /// A failure cancels the siblings: takes nothing more, so that the body ends.
    ///
    /// False if that body is gone already, so that it cannot end anything.
    fn refuse(&self) -> bool;

    /// Its body went before its senders did.
    fn is_cut(&self) -> bool;

    /// Keeps its end back: a task is polled that may drop the last sender, and then fail.
    fn enter(&self);

    /// The task waits, or the scope knows how it ended.
    fn leave(&self);
}

pub(super) struct Tasks {
    slots: Slab<Slot>,
    spawned: u64,
    policy: FailurePolicy,
    /// New tasks are taken.
    pub(super) open: bool,
    /// All were told to end, and so is whoever comes late.
    pub(super) cancelling: bool,
    pub(super) failed: bool,
    failure: Option<(Outcome, Cause)>,
    cancel: Option<CancellationToken>,
    pub(super) joiner: Option<Waker>,
    feeds: Vec<Arc<dyn Feed>>,
    /// How many tasks may run at once, where the application has set it.
    places: Option<Arc<Semaphore>>,
}

/// A task that may be spawned.
struct Entered {
    runtime: Handle,
    report: TaskReport,
    /// What it feeds, as far as can be known.
    feed: Option<Arc<dyn Feed>>,
}

struct Slot {
    number: u64,
    kind: TaskKind,
    at: &'static Location<'static>,
    abort: Option<AbortHandle>,
    /// The scope has told it to end, so that its end is no failure.
    told: bool,
}

impl Slot {
    fn name(&self) -> String {
        named("task", self.at)
    }

    fn panicked(&self, message: String) -> Failure {
        let what = self.name();
        Failure::new(FailureKind::Panicked { what, message })
    }
}

impl Tasks {
    pub(super) fn new(policy: FailurePolicy) -> Self {
        Self {
            slots: Slab::new(),
            spawned: 0,
            policy,
            open: true,
            cancelling: false,
            failed: false,
            failure: None,
            cancel: None,
            joiner: None,
            feeds: Vec::new(),
            places: None,
        }
    }

    pub(super) fn set_policy(&mut self, policy: FailurePolicy) {
        self.policy = policy;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn live(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.slots.iter().map(|(_, slot)| slot.name())
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn refuse_new(&mut self) {
        self.open = false;
    }

    /// A failure, or the end, has closed the streams.
    fn refuses_frames(&self) -> bool {
        let failed = self.failed && self.policy == FailurePolicy::CancelSiblings;
        failed || self.cancelling
    }

    /// The first failure while the scope is live.
    pub(super) fn failure(&self) -> Option<&(Outcome, Cause)> {
        self.failure.as_ref()
    }

    pub(super) fn take_failure(&mut self) -> Option<(Outcome, Cause)> {
        self.failure.take()
    }

    /// Takes no more tasks if none is left: one step, so that none slips in between.
    pub(super) fn close_if_idle(&mut self) -> bool {
        self.open &= !self.is_idle();
        self.is_idle()
    }

    /// Takes no more tasks; true if none is left.
    pub(super) fn close(&mut self) -> bool {
        self.open = false;
        self.slots.is_empty()
    }

    fn token(&mut self) -> &CancellationToken {
        let cancelling = self.cancelling;
        self.cancel.get_or_insert_with(|| {
            let token = CancellationToken::new();
            if cancelling {
                token.cancel();
            }
            token
        })
    }

    /// What has to be aborted and told, outside the lock, to cancel the tasks of these kinds.
    pub(super) fn cancellation(&mut self, of: impl Fn(TaskKind) -> bool) -> Cancellation {
        let mut aborts = Vec::new();
        for (_, slot) in &mut self.slots {
            if of(slot.kind) {
                slot.told = true;
                aborts.extend(slot.abort.clone());
            }
        }
        Cancellation {
            aborts,
            token: None,
        }
    }

    /// Cancels all: graceful and blocking tasks by their token, the others by abort.
    pub(super) fn cancel_all(&mut self) -> Cancellation {
        self.cancelling = true;
        for (_, slot) in &mut self.slots {
            slot.told = true;
        }
        Cancellation {
            token: self.cancel.clone(),
            ..self.cancellation(|kind| matches!(kind, TaskKind::Plain | TaskKind::Background))
        }
    }

    fn slot_of(&mut self, key: usize, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(key).filter(|slot| slot.number == number)
    }

    pub(super) fn awaits_nobody(&self) -> bool {
        self.slots
            .iter()
            .all(|(_, slot)| slot.kind == TaskKind::Background)
    }
}

/// Aborts and a token to be carried out once the lock is released.
#[must_use]
pub(super) struct Cancellation {
    aborts: Vec<AbortHandle>,
    token: Option<CancellationToken>,
}

impl Cancellation {
    pub(super) fn carry_out(self) {
        if let Some(token) = self.token {
            token.cancel();
        }
        for abort in self.aborts {
            abort.abort();
        }
    }
}

impl Scope {
    /// Spawns a task of this scope. Gives the future back if the scope takes no more.
    pub(crate) fn spawn<F>(
        self: &Arc<Self>,
        kind: TaskKind,
        at: &'static Location<'static>,
        future: F,
    ) -> Result<TaskKey, F>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let Some(Entered {
            runtime,
            report,
            feed,
        }) = self.enter_task(kind, at)
        else {
            return Err(future);
        };
        let (key, number) = (report.key, report.number);
        let task = runtime.spawn(Tracked {
            future: Some(future),
            report,
            feed,
        });
        self.set_abort(key, number, task.abort_handle());
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
            slot.and_then(|slot| {
                slot.told = true;
                slot.abort.clone()
            })
        };
        if let Some(abort) = abort {
            abort.abort();
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
    ) -> Result<(), C>
    where
        C: FnOnce(CancellationToken) -> TaskResult + Send + 'static,
    {
        let Some(entered) = self.enter_task(TaskKind::Blocking, at) else {
            return Err(code);
        };
        let Entered {
            runtime,
            mut report,
            ..
        } = entered;
        let (key, number) = (report.key, report.number);
        let cancel = self.task_token();
        let task = runtime.spawn_blocking(move || {
            let _place = place;
            report.tell(contained(|| code(cancel)).map(judge), None);
        });
        self.set_abort(key, number, task.abort_handle());
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
            let tasks = &mut state.work().tasks;
            if tasks.refuses_frames() {
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

    /// Whether what its tasks feed may be closed on its own account. Otherwise a task that is told
    /// so was told by somebody else's stream.
    pub(crate) fn closes_streams(&self) -> bool {
        let (ended, feeds) = {
            let mut state = self.lock();
            let (live, natural) = (state.phase == Phase::Live, state.natural);
            let work = state.work();
            let whole = match &work.body_end {
                Some((outcome, _)) => outcome.is_complete(),
                None => natural,
            };
            if !whole || !work.tasks.open || work.tasks.refuses_frames() {
                return true;
            }
            let ended = !live || work.body_end.is_some();
            (ended, work.tasks.feeds.clone())
        };
        // A stream of ours that ended whole had no sender left. What else has fed the body, and may
        // have been cut at its end, is not known here.
        (ended && feeds.is_empty()) || feeds.iter().any(|feed| feed.is_cut())
    }

    /// Makes the frame that a failing body ends with, before its error.
    pub(crate) fn on_failure(&self, words: LastWords) {
        let replaced = self.lock().work().last_words.replace(words);
        drop(replaced);
    }

    /// Keeps an error for the report that does not change the outcome.
    pub(crate) fn keep_error(&self, cause: Cause) {
        self.lock().add_error(cause);
    }

    /// Lets at most so many tasks run at once, of those that take a place.
    pub(crate) fn set_places(&self, places: usize) {
        let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let replaced = self.lock().work().tasks.places.replace(places);
        // Who waits for a place looks for the new ones.
        if let Some(replaced) = replaced {
            replaced.close();
        }
    }

    pub(crate) fn places(&self) -> Option<Arc<Semaphore>> {
        self.lock().work.as_ref()?.tasks.places.clone()
    }

    pub(crate) fn set_failure_policy(&self, policy: FailurePolicy) {
        self.lock().work().tasks.set_policy(policy);
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
    ) -> Option<Entered> {
        let runtime = self
            .runtime
            .clone()
            .or_else(|| Handle::try_current().ok())?;
        let mut state = self.lock();
        let tasks = &state.work().tasks;
        // Whoever came now would be neither told nor aborted before the grace is over.
        if !tasks.open || tasks.cancelling {
            return None;
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
            told: false,
        });
        let report = TaskReport {
            scope: Some(self.clone()),
            key,
            number,
        };
        let feed = tasks.feeds.last().cloned();
        Some(Entered {
            runtime,
            report,
            feed,
        })
    }

    /// A task may have ended, or been cancelled, before its handle is known.
    fn set_abort(&self, key: usize, number: u64, abort: AbortHandle) {
        let mut late = None;
        if let Some(slot) = self.lock().work().tasks.slot_of(key, number) {
            if slot.told && matches!(slot.kind, TaskKind::Plain | TaskKind::Background) {
                late = Some(abort);
            } else {
                slot.abort = Some(abort);
            }
        }
        if let Some(abort) = late {
            abort.abort();
        }
    }

    /// `burst` is the panic of its destructors behind a failure.
    pub(super) fn task_ended(
        self: &Arc<Self>,
        (key, number): (usize, u64),
        end: TaskEnd,
        burst: Option<String>,
    ) {
        let mut feeds = Vec::new();
        let mut cancellation = None;
        let mut interrupt = None;
        let (waker, release) = {
            let mut state = self.lock();
            let tasks = &mut state.work().tasks;
            if tasks.slot_of(key, number).is_none() {
                return;
            }
            let slot = tasks.slots.remove(key);
            let failure = state.count_task(&slot, end);
            if let Some((outcome, cause)) = failure {
                let live = state.phase == Phase::Live;
                let tasks = &mut state.work().tasks;
                let first = !std::mem::replace(&mut tasks.failed, true);
                if live && first {
                    tasks.failure = Some((outcome, cause.clone()));
                }
                state.note_failure(outcome, cause.clone());
                let tasks = &mut state.work().tasks;
                if tasks.policy == FailurePolicy::CancelSiblings && first {
                    feeds = std::mem::take(&mut tasks.feeds);
                    cancellation = Some(tasks.cancel_all());
                    interrupt = Some((outcome, cause));
                }
            }
            if let Some(message) = burst {
                state.note_failure(Outcome::Panicked, slot.panicked(message).into());
            }
            let lingering = state.lingering;
            let tasks = &mut state.work().tasks;
            let waker = tasks.joiner.take();
            let released = lingering && tasks.is_idle();
            let release = released.then(|| state.release());
            (waker, release)
        };
        if let Some(cancellation) = cancellation {
            cancellation.carry_out();
        }
        // Each of them is told, whatever the others say.
        let mut fed = false;
        for feed in feeds {
            fed |= feed.refuse();
        }
        // A body that is not fed by a channel of ours would go on: end it.
        if let Some((outcome, cause)) = interrupt.filter(|_| !fed) {
            self.interrupt(outcome, Some(cause));
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Some(release) = release {
            self.release(release);
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
