//! The handle by which a handler ties tasks to its response.

use std::{fmt, future::Future, panic::Location, sync::Arc, time::Duration};

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio_util::sync::CancellationToken;

use super::{
    body::GroupBody,
    channel::{Closed, FrameSender},
    merge::Sources,
    spawn_error::{SpawnError, Why},
};
use crate::{
    BoxError, Outcome, TaskResult,
    scope::{
        FailurePolicy, Fixed, Hold, MissingLayer, Scope, ScopeLayer, Sealed, Standalone, TaskKind,
        View, sources,
    },
};

/// The layer that gives handlers [`TaskGroup`].
///
/// `M` is its mode: see [`ScopeLayer`].
pub type TaskGroupLayer<M = Fixed> = ScopeLayer<TaskGroup, M>;

/// Ties tasks to the response of this request: none of them outlives it. Cheap to clone.
///
/// At a natural end of the body they are awaited up to the join limit (30 s); on any other end they
/// are cancelled and joined before the closers run. A task that returns an error or panics fails
/// the response; one that returns [`Closed`], because the client has left, does not. While the
/// response goes on, `Closed` is an error like any other: another stream has ended. So it is after
/// the stream of the group has ended whole.
///
/// **On drop**: nothing happens; the scope owns the tasks.
#[derive(Clone)]
pub struct TaskGroup {
    scope: Arc<Scope>,
}

impl TaskGroup {
    /// The group of this request, for services without extractors.
    ///
    /// # Errors
    /// [`MissingLayer`] without a [`TaskGroupLayer`] or [`Stack`](crate::Stack) around.
    pub fn of<B>(request: &Request<B>) -> Result<Self, MissingLayer> {
        Self::from_extensions(request.extensions())
    }

    /// Spawns a task: awaited at a natural end, aborted at its next await on any other.
    ///
    /// If it fails, a body of the group fails behind what was sent before; any other is dropped where it
    /// stands, with what lies in channels of its own, unless the policy is
    /// [`KeepOthers`](super::FailurePolicy::KeepOthers).
    ///
    /// # Errors
    /// [`SpawnError`] gives the future back once the end has started, outside any runtime, or if
    /// [as many tasks run as are allowed](Self::set_max_tasks).
    #[track_caller]
    pub fn spawn<F>(&self, task: F) -> Result<(), SpawnError<F>>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        self.spawn_as(TaskKind::Plain, task)
    }

    /// Spawns a task that is told when it has to end, and has the cancel grace (1 s) to do so.
    ///
    /// Then it is aborted, also while nobody polls the body.
    ///
    /// # Errors
    /// As [`TaskGroup::spawn`].
    #[track_caller]
    pub fn spawn_graceful<F, Fut>(&self, task: F) -> Result<(), SpawnError<Fut>>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        self.spawn_as(TaskKind::Graceful, task(self.scope.task_token()))
    }

    /// Spawns a task that a natural end does not wait for: it is cancelled and joined then.
    ///
    /// # Errors
    /// As [`TaskGroup::spawn`].
    #[track_caller]
    pub fn spawn_background<F>(&self, task: F) -> Result<(), SpawnError<F>>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        self.spawn_as(TaskKind::Background, task)
    }

    /// Runs blocking code on tokio's blocking threads as a task of the group.
    ///
    /// It cannot be aborted: it should look at its token, and it ends at the next
    /// [`FrameSender::send_blocking`] after the client has left. The teardown waits for it up to the
    /// join limit, then names it in the report. Code that is cancelled before it has a thread never
    /// runs, and is dropped at once.
    ///
    /// # Errors
    /// As [`TaskGroup::spawn`], with the code instead of a future.
    #[track_caller]
    pub fn spawn_blocking<C>(&self, code: C) -> Result<(), SpawnError<C>>
    where
        C: FnOnce(CancellationToken) -> TaskResult + Send + 'static,
    {
        let place = match self.take_place() {
            Ok(place) => place,
            Err(Full) => return Err(SpawnError::new(Why::Full, code)),
        };
        let scope = self.scope.clone();
        let judge = move |result| forgive(&scope, result);
        self.scope
            .spawn_blocking(Location::caller(), place, code, judge)
            .map_err(|(refused, code)| SpawnError::new(refused.into(), code))
    }

    /// A body fed by the senders that `producer` is given, under this scope and its supervisor.
    ///
    /// The producer is a task of the group, spawned at the body's first poll: a body that is never
    /// polled never starts it. A response to HEAD is one of those, and complete all the same. Producers
    /// are ahead of the client by 16 KiB at most, and one larger frame.
    ///
    /// It sends bytes, and knows no format: for event streams see the [module](super#event-streams).
    #[track_caller]
    pub fn body<F, Fut>(&self, producer: F) -> GroupBody
    where
        F: FnOnce(FrameSender) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        GroupBody::new(self, Location::caller(), producer)
    }

    /// The body of streams merged under this scope and its supervisor. See [`Sources`].
    #[track_caller]
    pub fn merge(&self, sources: Sources) -> GroupBody {
        let group = self.clone();
        self.body(move |tx| {
            sources.start(&group, tx);
            async { Ok(()) }
        })
    }

    /// Lets at most `max` tasks run at once; overrides the [`max_tasks`](crate::scope::ScopeLayer::max_tasks)
    /// of any layer.
    ///
    /// What a view sets is for this response, wherever the layers stand that say otherwise, further in
    /// too; of several who set it the last wins. An attempt of a cloned request, and the work of an armed layer
    /// inside one that is not, have it from the scope around them, as it is when they begin.
    ///
    /// With `max` tasks running the ways to spawn refuse ([`SpawnError::is_full`]), and
    /// [`spawn_when_free`](Self::spawn_when_free) waits. With 0 that is every task, until there is
    /// another limit. Counted are tasks spawned from now on, not the producers of [`body`](Self::body)
    /// and the sources of [`merge`](Self::merge).
    pub fn set_max_tasks(&self, max: usize) {
        self.scope.set_max_tasks(max);
    }

    /// Spawns a task as [`spawn`](Self::spawn) does, once fewer than the most allowed are running.
    ///
    /// Those who wait are served in turn. A task that waits here for a place holds its own
    /// meanwhile: if all of them do, they wait for the client to leave.
    ///
    /// # Errors
    /// [`SpawnError`] gives the future back once the tasks are cancelled or the response is over, and
    /// outside any runtime.
    ///
    /// **On drop**: nothing was spawned, and the task is dropped.
    #[track_caller]
    pub fn spawn_when_free<F>(
        &self,
        task: F,
    ) -> impl Future<Output = Result<(), SpawnError<F>>> + Send + use<'_, F>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let at = Location::caller();
        async move {
            let Some(place) = self.wait_for_place().await else {
                return Err(SpawnError::new(Why::Ending, task));
            };
            self.spawn_at(place, at, TaskKind::Plain, task)
        }
    }

    /// What a failing task does to its siblings; overrides the
    /// [`failure_policy`](crate::scope::ScopeLayer::failure_policy) of any layer, as
    /// [`set_max_tasks`](Self::set_max_tasks) does its limit.
    ///
    /// It is for failures to come.
    pub fn set_failure_policy(&self, policy: FailurePolicy) {
        self.scope.set_failure_policy(policy);
    }

    /// How long tasks are waited for at a natural end; overrides the
    /// [`join_limit`](crate::scope::ScopeLayer::join_limit) of any layer, as
    /// [`set_max_tasks`](Self::set_max_tasks) does its limit.
    ///
    /// A body without a layer has no other: see its [`group`](super::TaskGroupBody::group). A wait that has
    /// begun goes on as it is.
    pub fn set_join_limit(&self, limit: Duration) {
        self.scope.set_join_limit(limit);
    }

    /// How long cancelled graceful tasks have before they are aborted; overrides the
    /// [`cancel_grace`](crate::scope::ScopeLayer::cancel_grace) of any layer, as
    /// [`set_max_tasks`](Self::set_max_tasks) does its limit.
    ///
    /// A grace that has begun goes on as it is.
    pub fn set_cancel_grace(&self, grace: Duration) {
        self.scope.set_cancel_grace(grace);
    }

    /// Ends the response as `Cancelled`: tasks are cancelled and joined, the body fails.
    ///
    /// Does nothing once the end has started.
    pub fn cancel(&self) {
        self.scope.interrupt(Outcome::Cancelled, None);
    }

    /// Keeps the scope open past its body. See [`Hold`].
    ///
    /// The body's end does not wait for tasks then: it fails for those that have failed by that
    /// time. Of one that fails as its sender goes the body hears, unless it is blocking code or
    /// older than the body; a later failure is only the scope's.
    pub fn hold(&self) -> Hold {
        Hold::on(&self.scope)
    }

    #[track_caller]
    fn spawn_as<F>(&self, kind: TaskKind, task: F) -> Result<(), SpawnError<F>>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        match self.take_place() {
            Ok(place) => self.spawn_at(place, Location::caller(), kind, task),
            Err(Full) => Err(SpawnError::new(Why::Full, task)),
        }
    }

    fn spawn_at<F>(
        &self,
        place: Option<OwnedSemaphorePermit>,
        at: &'static Location<'static>,
        kind: TaskKind,
        task: F,
    ) -> Result<(), SpawnError<F>>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let mut task = Forgiving::new(&self.scope, task);
        task._place = place;
        self.scope
            .spawn(kind, at, task)
            .map(drop)
            .map_err(|(refused, task)| SpawnError::new(refused.into(), task.task))
    }

    /// The same in turn; `None` once the tasks are cancelled, or the response is over.
    async fn wait_for_place(&self) -> Option<Option<OwnedSemaphorePermit>> {
        while let Some(places) = self.scope.places() {
            let cancel = self.scope.task_token();
            let place = tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                // A natural end cancels nobody, and waits only for tasks.
                () = self.scope.done() => return None,
                place = places.acquire_owned() => place,
            };
            // Otherwise the limit is another by now.
            if place.is_ok() {
                return Some(place.ok());
            }
        }
        Some(None)
    }

    /// A place among the most tasks allowed, if there is such a limit.
    fn take_place(&self) -> Result<Option<OwnedSemaphorePermit>, Full> {
        match self.scope.places() {
            None => Ok(None),
            Some(places) => match places.try_acquire_owned() {
                Ok(place) => Ok(Some(place)),
                Err(TryAcquireError::NoPermits) => Err(Full),
                // The limit is another by now.
                Err(TryAcquireError::Closed) => self.take_place(),
            },
        }
    }
}

/// As many tasks run as may.
struct Full;

/// A task whose `Closed` is no failure.
#[pin_project::pin_project]
pub(super) struct Forgiving<F> {
    #[pin]
    task: F,
    scope: Arc<Scope>,
    /// Given back when the task is over.
    _place: Option<OwnedSemaphorePermit>,
}

impl<F> Forgiving<F> {
    pub(super) fn new(scope: &Arc<Scope>, task: F) -> Self {
        Self {
            task,
            scope: scope.clone(),
            _place: None,
        }
    }
}

impl<F: Future<Output = TaskResult>> Future for Forgiving<F> {
    type Output = TaskResult;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<TaskResult> {
        let this = self.project();
        this.task.poll(cx).map(|result| forgive(this.scope, result))
    }
}

/// The client has left, or the group has failed already: no error of this task's making.
///
/// Not if the response goes on: then it was another stream, or group, that took nothing more.
fn forgive(scope: &Scope, result: TaskResult) -> TaskResult {
    match result {
        Err(error) if closed(&error).is_some_and(|by| scope.closes(by.stream())) => Ok(()),
        result => result,
    }
}

/// What has told the task that nothing goes in any more, from outside.
pub(super) fn closed(error: &BoxError) -> Option<&Closed> {
    let mut sources = sources(&**error);
    let closed = sources.find_map(|error| error.downcast_ref::<Closed>());
    closed.filter(|closed| closed.is_from_outside())
}

impl Sealed for TaskGroup {
    const BITS: u8 = 2;
    const VIEW: &'static str = "TaskGroup";
    const LAYER: &'static str = "TaskGroupLayer";

    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn through(scope: Arc<Scope>) -> Self {
        Self { scope }
    }
}

impl Standalone for TaskGroup {
    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("scope", &self.scope)
            .finish()
    }
}
