//! The handle by which a handler ties tasks to its response.

use std::{error::Error, fmt, future::Future, panic::Location, sync::Arc};

use http::Request;
use tokio_util::sync::CancellationToken;

use super::{
    body::GroupBody,
    channel::{Closed, FrameSender},
};
use crate::{
    BoxError, Outcome, TaskResult,
    scope::{FailurePolicy, Hold, MissingLayer, Scope, ScopeLayer, Sealed, TaskKind, View},
};

/// The layer that gives handlers [`TaskGroup`].
pub type TaskGroupLayer = ScopeLayer<TaskGroup>;

/// Ties tasks to the response of this request: none of them outlives it. Cheap to clone.
///
/// At a natural end of the body they are awaited up to the join limit (30 s); on any other end they
/// are cancelled and joined before the closers run. A task that returns an error or panics fails
/// the response; one that returns [`Closed`], because the client has left, does not.
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
    /// [`SpawnError`] gives the future back once the end has started, or outside any runtime.
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
        self.scope
            .spawn_blocking(Location::caller(), code, forgive)
            .map_err(|refused| SpawnError { refused })
    }

    /// A body fed by the senders that `producer` is given, under this scope and its supervisor.
    ///
    /// The producer is a task of the group, spawned at the body's first poll: a body that is never
    /// polled never starts it.
    #[track_caller]
    pub fn body<F, Fut>(&self, producer: F) -> GroupBody
    where
        F: FnOnce(FrameSender) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        GroupBody::new(self.clone(), Location::caller(), producer)
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
        let at = Location::caller();
        self.scope
            .spawn(kind, at, Forgiving(task))
            .map_err(|Forgiving(refused)| SpawnError { refused })
    }
}

/// A task whose `Closed` is no failure.
#[pin_project::pin_project]
pub(super) struct Forgiving<F>(#[pin] pub(super) F);

impl<F: Future<Output = TaskResult>> Future for Forgiving<F> {
    type Output = TaskResult;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<TaskResult> {
        self.project().0.poll(cx).map(forgive)
    }
}

/// The client has left, or the group has failed already: no error of this task's making.
fn forgive(result: TaskResult) -> TaskResult {
    match result {
        Err(error) if is_closed(&error) => Ok(()),
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

/// The scope takes no more tasks: its end has started. Gives back what was to be spawned.
pub struct SpawnError<T> {
    refused: T,
}

impl<T> SpawnError<T> {
    /// The future or code that was refused.
    pub fn into_inner(self) -> T {
        self.refused
    }
}

impl<T> fmt::Debug for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError").finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SpawnError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("task refused: the response is ending")
    }
}

impl<T> Error for SpawnError<T> {}

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
