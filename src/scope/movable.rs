//! The movable mode: an owner that can be taken from its server.
//!
//! A layer armed with `stall_timeout` or `detachable` keeps its owner in a box. The owner itself is
//! the same; what is added stands around it:
//!
//! - [`MovableFuture`] and [`MovableBody`], when dropped by a server whose client has left, move
//!   their owner to a task that runs it to its end, if the handler chose so;
//! - a [`Cell`] holds the body's owner, so that an end from outside (a stall, a shutdown) can take
//!   it and drive it to its end although the server does not poll.
//!
//! Whoever takes the owner polls it, so that it drops as it always does: signals, inner body,
//! teardown.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::runtime::Handle;

use super::{
    body::ScopeBody, cell::Cell, failure, future::ScopeFuture, limit::within, machine::Scope,
    stall::Armed,
};
use crate::{
    error::{BodyError, BoxError},
    outcome::Outcome,
};

/// An owner that can be moved: what it says of itself.
pub(super) trait Movable: Send {
    /// The scope, if it is ours and its end is not told yet.
    fn scope(&self) -> Option<&Arc<Scope>>;

    /// Whether there is work left to be done, and nothing of it has panicked.
    fn is_under_way(&self) -> bool;
}

impl<F: Send, E: Send> Movable for ScopeFuture<F, E> {
    fn scope(&self) -> Option<&Arc<Scope>> {
        self.owner().scope()
    }

    fn is_under_way(&self) -> bool {
        self.owner().is_under_way()
    }
}

impl<B: Send> Movable for ScopeBody<B> {
    fn scope(&self) -> Option<&Arc<Scope>> {
        self.owner().scope()
    }

    fn is_under_way(&self) -> bool {
        self.owner().is_under_way()
    }
}

/// How long the work goes on without its client, now that this has left. `None`: it ends.
pub(super) fn leave(owner: &(impl Movable + ?Sized)) -> Option<(Arc<Scope>, Duration)> {
    let scope = owner.scope().filter(|_| owner.is_under_way())?;
    Some((scope.clone(), scope.leave()?))
}

/// Runs an owner to its end as a task, up to a limit; then it is dropped.
pub(super) fn run_on(
    scope: &Scope,
    limit: Duration,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let run = scope.span().around(async move {
        let _ = within(limit, work).await;
    });
    // Without a runtime it is dropped here and now.
    if let Some(runtime) = runtime_of(scope) {
        runtime.spawn(run);
    }
}

pub(super) fn runtime_of(scope: &Scope) -> Option<Handle> {
    let runtime = scope.runtime.clone();
    runtime.or_else(|| Handle::try_current().ok())
}

trait Handling<B, E>: Movable + Future<Output = Result<Response<ScopeBody<B>>, E>> {
    fn run_on(self: Pin<Box<Self>>, scope: &Scope, limit: Duration);
}

impl<F, B, E> Handling<B, E> for ScopeFuture<F, E>
where
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    E: Send + 'static,
{
    fn run_on(self: Pin<Box<Self>>, scope: &Scope, limit: Duration) {
        run_on(scope, limit, async move {
            if let Ok(response) = self.await {
                discard(Box::pin(response.into_body())).await;
            }
        });
    }
}

/// Polls a body to its end for nobody.
pub(super) async fn discard(mut body: Owned) {
    while let Some(Ok(_)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        // A body that is always ready must leave room for others.
        tokio::task::consume_budget().await;
    }
}

/// The response future of an armed layer.
///
/// **On drop**: as [`ScopeFuture`]; if the handler chose to be detached, it moves to a task of the
/// runtime that was current at the call, and its body after it.
#[must_use = "futures do nothing unless polled"]
pub struct MovableFuture<B, E> {
    work: Option<Pin<Box<dyn Handling<B, E>>>>,
}

impl<B, E> MovableFuture<B, E>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    E: Send + 'static,
{
    pub(super) fn new<F>(work: ScopeFuture<F, E>) -> Self
    where
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    {
        Self {
            work: Some(Box::pin(work)),
        }
    }
}

impl<B, E> MovableFuture<B, E> {
    /// Moves the work to a task, if the client has left and the handler chose so.
    fn detach(&mut self) -> bool {
        let Some((scope, limit)) = self.work.as_deref().and_then(leave) else {
            return false;
        };
        if let Some(work) = self.work.take() {
            work.run_on(&scope, limit);
        }
        true
    }
}

impl<B, E> Future for MovableFuture<B, E>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<MovableBody>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else {
            // Polled again after it was ready, against the contract of futures.
            return Poll::Pending;
        };
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            self.work = None;
            return Poll::Ready(result.map(|response| response.map(MovableBody::new)));
        }
        // The connection says so before the server does: the limit counts from here.
        let has_left = work.scope().is_some_and(|scope| scope.has_left());
        if has_left && self.detach() {
            let mut nobody = Response::new(MovableBody::default());
            *nobody.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Poll::Ready(Ok(nobody));
        }
        Poll::Pending
    }
}

impl<B, E> Drop for MovableFuture<B, E> {
    fn drop(&mut self) {
        self.detach();
    }
}

impl<B, E> fmt::Debug for MovableFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovableFuture")
            .field("scope", &self.work.as_deref().and_then(Movable::scope))
            .finish_non_exhaustive()
    }
}

pub(super) type Given = Result<Frame<Bytes>, BodyError>;

pub(super) trait Streaming: Movable + Body<Data = Bytes, Error = BodyError> {
    fn cut(self: Pin<&mut Self>);
}

impl<B> Streaming for ScopeBody<B>
where
    B: Body + Send,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    fn cut(self: Pin<&mut Self>) {
        ScopeBody::cut(self);
    }
}

/// The owner of a body, in its box.
pub(super) type Owned = Pin<Box<dyn Streaming>>;

/// The response body of an armed layer.
///
/// As [`ScopeBody`], but an end from outside (a stall, a shutdown, a cancellation) reaches it
/// although the server does not poll it: the inner body is dropped, tasks are cancelled and closers
/// run at once, and the next poll shows what came of it.
///
/// **On drop**: as [`ScopeBody`]; if the handler chose to be detached, the body moves to a task that
/// discards its frames.
#[derive(Default)]
#[must_use = "a body does nothing unless it is polled"]
pub struct MovableBody {
    kind: Kind,
}

#[derive(Default)]
enum Kind {
    /// Nothing to give.
    #[default]
    Empty,
    /// Over already, or another layer's to end.
    Passing(Owned),
    /// Ours, where an end from outside finds it.
    Kept { cell: Arc<Cell>, armed: Armed },
}

impl MovableBody {
    /// Keeps a body where it can be taken.
    pub(super) fn new<B>(body: ScopeBody<B>) -> Self
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let scope = body.owner().scope().cloned();
        let body: Owned = Box::pin(body);
        let kind = match scope {
            None => Kind::Passing(body),
            Some(scope) => {
                let cell = Cell::new(body, scope);
                let armed = cell.watched();
                Kind::Kept { cell, armed }
            }
        };
        Self { kind }
    }

    /// Has it looked after by the watchdog that its scope has now.
    pub(crate) fn watch(&mut self) {
        if let Kind::Kept { cell, armed } = &mut self.kind {
            *armed = cell.watched();
        }
    }
}

impl Body for MovableBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Given>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Passing(body) => body.as_mut().poll_frame(cx),
            Kind::Kept { cell, .. } => cell.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Passing(body) => body.is_end_stream(),
            Kind::Kept { cell, .. } => cell.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Passing(body) => body.size_hint(),
            Kind::Kept { cell, .. } => cell.size_hint(),
        }
    }
}

impl Drop for MovableBody {
    fn drop(&mut self) {
        if let Kind::Kept { cell, .. } = &self.kind {
            cell.drop_body();
        }
    }
}

impl fmt::Debug for MovableBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match &self.kind {
            Kind::Kept { cell, .. } => Some(&cell.scope),
            Kind::Passing(_) | Kind::Empty => None,
        };
        f.debug_struct("MovableBody")
            .field("scope", &scope)
            .finish_non_exhaustive()
    }
}

pub(super) fn ended(outcome: Outcome) -> BodyError {
    BodyError::from(failure::ended(outcome)).of(outcome)
}
