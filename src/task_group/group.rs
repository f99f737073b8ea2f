//! The handle by which a handler ties tasks to its response.

use std::{
    error::Error,
    fmt,
    future::Future,
    panic::Location,
    sync::{Arc, Mutex, PoisonError},
};

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio_util::sync::CancellationToken;

use super::{
    body::GroupBody,
    channel::{Closed, FrameSender},
    merge::Sources,
};
use crate::{
    BoxError, Outcome, TaskResult,
    scope::{FailurePolicy, Fixed, Hold, MissingLayer, Scope, ScopeLayer, Sealed, TaskKind, View},
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
    /// join limit, then names it in the report.
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
            Err(Full) => return Err(SpawnError::full(code)),
        };
        let scope = self.scope.clone();
        let judge = move |result| forgive(&scope, result);
        self.scope
            .spawn_blocking(Location::caller(), place, code, judge)
            .map_err(SpawnError::ending)
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

    /// Lets at most `max` tasks run at once; unlimited by default.
    ///
    /// With `max` tasks running the ways to spawn refuse ([`SpawnError::is_full`]), and
    /// [`spawn_when_free`](Self::spawn_when_free) waits. Counted are tasks spawned from now on, not
    /// the producers of [`body`](Self::body) and the sources of [`merge`](Self::merge).
    pub fn set_max_tasks(&self, max: usize) {
        self.scope.set_places(max);
    }

    /// Spawns a task as [`spawn`](Self::spawn) does, once fewer than the most allowed are running.
    ///
    /// Those who wait are served in turn. A task that waits here for a place holds its own
    /// meanwhile: if all of them do, they wait for the client to leave.
    ///
    /// # Errors
    /// [`SpawnError`] gives the future back once the tasks are cancelled or the end has started.
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
                return Err(SpawnError::ending(task));
            };
            self.spawn_at(place, at, TaskKind::Plain, task)
        }
    }

    /// What a failing task does to its siblings; overrides the layer's policy.
    pub fn set_failure_policy(&self, policy: FailurePolicy) {
        self.scope.set_failure_policy(policy);
    }

    /// Ends the response as `Cancelled`: tasks are cancelled and joined, the body fails.
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

    pub(super) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    #[track_caller]
    fn spawn_as<F>(&self, kind: TaskKind, task: F) -> Result<(), SpawnError<F>>
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        match self.take_place() {
            Ok(place) => self.spawn_at(place, Location::caller(), kind, task),
            Err(Full) => Err(SpawnError::full(task)),
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
            .map_err(|refused| SpawnError::ending(refused.task))
    }

    /// The same in turn; `None` once the tasks are cancelled.
    async fn wait_for_place(&self) -> Option<Option<OwnedSemaphorePermit>> {
        while let Some(places) = self.scope.places() {
            let cancel = self.scope.task_token();
            let place = tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
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
        Err(error) if is_closed(&error) && scope.closes_streams() => Ok(()),
        result => result,
    }
}

fn is_closed(error: &BoxError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = next {
        if let Some(closed) = error.downcast_ref::<Closed>() {
            return closed.is_from_outside();
        }
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// The scope takes no more tasks, or not now. Gives back what was to be spawned.
///
/// A task that returns it because the response is ending has not failed by that.
pub struct SpawnError<T> {
    /// In a mutex, so that the error is `Sync` and `?` boxes it, whatever the future holds.
    refused: Mutex<T>,
    full: bool,
}

impl<T> SpawnError<T> {
    fn ending(refused: T) -> Self {
        Self {
            refused: Mutex::new(refused),
            full: false,
        }
    }

    fn full(refused: T) -> Self {
        Self {
            refused: Mutex::new(refused),
            full: true,
        }
    }

    /// As many tasks run as [`TaskGroup::set_max_tasks`] allows; otherwise the end has started.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The future or code that was refused.
    pub fn into_inner(self) -> T {
        self.refused
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError")
            .field("full", &self.full)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.full {
            true => "task refused: as many run as are allowed",
            false => "task refused: the response is ending",
        })
    }
}

impl<T> Error for SpawnError<T> {
    /// An ending group refuses tasks as it refuses frames: for a task that returns this error it is
    /// no failure of its own.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        static REFUSED: Closed = Closed::REFUSED;
        (!self.full).then_some(&REFUSED)
    }
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

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("scope", &self.scope)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    /// Compiles: a boxed future is `Send` but not `Sync`, and its refusal is boxed by `?` all the same.
    #[tokio::test]
    async fn a_refusal_is_boxed_whatever_the_future_holds() {
        fn spawn(group: &TaskGroup) -> TaskResult {
            let task: Pin<Box<dyn Future<Output = TaskResult> + Send>> = Box::pin(async { Ok(()) });
            group.spawn(task)?;
            Ok(())
        }
        let group = TaskGroup::through(Scope::standalone());
        spawn(&group).unwrap();
        group.cancel();
        let refused = spawn(&group).unwrap_err();
        assert_eq!(refused.to_string(), "task refused: the response is ending");
    }
}
