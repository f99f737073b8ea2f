//! Local tasks: futures that need not be `Send`, on the request's loop.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::{
    call::Reply,
    cx::Cx,
    error::{BridgeError, BridgeErrorKind},
    job::Job,
    session::Session,
};
use crate::scope::Span;

/// The result of a future that runs on the request's loop.
///
/// Nothing is done before the first poll.
///
/// # On drop
/// The future is cancelled: it is dropped on its own thread.
#[must_use = "futures do nothing unless polled"]
pub struct Run<F, T> {
    session: Arc<Session>,
    called_at: &'static Location<'static>,
    start: Option<(F, Span)>,
    started: Option<Reply<T>>,
}

impl<F, T> Run<F, T> {
    pub(super) fn new(
        session: Arc<Session>,
        called_at: &'static Location<'static>,
        start: F,
    ) -> Self {
        let span = session.span_here();
        Self {
            session,
            called_at,
            start: Some((start, span)),
            started: None,
        }
    }
}

/// Nothing in it is ever pinned.
impl<F, T> Unpin for Run<F, T> {}

impl<F, Fut> Future for Run<F, Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    type Output = Result<Fut::Output, BridgeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some((start, span)) = this.start.take() {
            let (answer, result) = oneshot::channel();
            let job = LocalJob {
                start,
                span,
                answer,
                detached: None,
                called_at: this.called_at,
            };
            if this.session.push_local(Box::new(job)).is_err() {
                return Poll::Ready(Err(BridgeError::ENDED));
            }
            this.started = Some(Reply::new(&this.session, result));
        }
        let Some(reply) = &mut this.started else {
            panic!("a finished bridge run was polled again");
        };
        let result = std::task::ready!(reply.poll(cx, &this.session));
        if result.is_ok() {
            this.started = None;
        }
        Poll::Ready(result)
    }
}

impl<F, T> Drop for Run<F, T> {
    fn drop(&mut self) {
        if let Some(reply) = self.started.take() {
            // A running task sees its answer's receiver go; one in the mail box is taken out.
            reply.leave(&self.session);
            self.session.abandon();
        }
    }
}

impl<F, T> fmt::Debug for Run<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

/// A local task of the request, to be awaited or aborted.
///
/// Who awaits it is told of its panic. A panic that nobody is told of is a failure of the response, like
/// that of any task of its group; without a layer it is one of
/// [`CloseReport::failures`](super::CloseReport::failures). Polled on the request's own thread by another
/// executor than the loop it gives `OwnThread`, and runs on.
///
/// # On drop
/// The task runs on, until the request ends.
#[must_use = "a dropped task runs on and its result is lost"]
pub struct Task<T> {
    session: Arc<Session>,
    reply: Option<Reply<T>>,
    detached: Arc<AtomicBool>,
}

impl<T> Task<T> {
    /// Cancels the task: its future is dropped on its own thread, also if the task is dropped next.
    ///
    /// Awaiting it then fails with `Cancelled`.
    pub fn abort(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.leave(&self.session);
            self.session.abandon();
        }
    }

    /// Lets the task run on by itself, until the request ends.
    pub fn detach(self) {}
}

impl<T> Future for Task<T> {
    type Output = Result<T, BridgeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(reply) = &mut this.reply else {
            return Poll::Ready(Err(BridgeError::CANCELLED));
        };
        let result = std::task::ready!(reply.poll(cx, &this.session));
        match &result {
            Ok(_) => this.reply = None,
            // Asked for at the wrong place: its answer is still to come.
            Err(error) if error.kind() == BridgeErrorKind::OwnThread => {}
            Err(_) => this.abort(),
        }
        Poll::Ready(result)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        // Before the receiver goes, which the task would take for an abort; one that has gone was.
        if let Some(reply) = self.reply.take() {
            self.detached.store(true, Ordering::Release);
            reply.leave(&self.session);
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}

/// Starts a task from any thread.
pub(super) fn spawn<F, Fut>(
    session: &Arc<Session>,
    called_at: &'static Location<'static>,
    start: F,
) -> Task<Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    let (answer, result) = oneshot::channel();
    let detached = Arc::new(AtomicBool::new(false));
    let job = LocalJob {
        start,
        span: session.span_here(),
        answer,
        detached: Some(Arc::clone(&detached)),
        called_at,
    };
    if let Err(job) = session.push_local(Box::new(job)) {
        job.reject(BridgeError::ENDED);
    }
    Task {
        session: Arc::clone(session),
        reply: Some(Reply::new(session, result)),
        detached,
    }
}

/// Starts a task from sync code on the thread itself.
pub(super) fn spawn_here<Fut>(
    cx: &Cx,
    called_at: &'static Location<'static>,
    future: Fut,
) -> Task<Fut::Output>
where
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let (answer, result) = oneshot::channel();
    let detached = Arc::new(AtomicBool::new(false));
    let told = Some(Arc::clone(&detached));
    let future = cx.local.session.span_here().around(future);
    start(cx, called_at, future, answer, told);
    let session = &cx.local.session;
    Task {
        session: Arc::clone(session),
        reply: Some(Reply::new(session, result)),
        detached,
    }
}

fn start<Fut>(
    cx: &Cx,
    called_at: &'static Location<'static>,
    future: Fut,
    answer: oneshot::Sender<Result<Fut::Output, BridgeError>>,
    detached: Option<Arc<AtomicBool>>,
) where
    Fut: Future + 'static,
    Fut::Output: 'static,
{
    let task = LocalTask {
        future: Box::pin(future),
        answer: Some(answer),
        detached,
        called_at,
        session: Arc::clone(&cx.local.session),
        _alive: Alive::new(cx.alive()),
    };
    // Its result goes through `answer`; the set owns it.
    drop(cx.local.tasks.borrow().spawn_local(task));
}

struct LocalJob<F, T> {
    start: F,
    span: Span,
    answer: oneshot::Sender<Result<T, BridgeError>>,
    detached: Option<Arc<AtomicBool>>,
    called_at: &'static Location<'static>,
}

impl<F, Fut> Job for LocalJob<F, Fut::Output>
where
    F: FnOnce() -> Fut + Send,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    fn is_live(&self) -> bool {
        !self.answer.is_closed() || is_detached(&self.detached)
    }

    fn run(self: Box<Self>, cx: &Cx) {
        let this = *self;
        let _entered = this.span.enter();
        match catch_unwind(AssertUnwindSafe(this.start)) {
            Ok(future) => {
                let future = this.span.clone().around(future);
                start(cx, this.called_at, future, this.answer, this.detached);
            }
            Err(panic) => {
                let error = BridgeError::panicked(panic, Some(this.called_at));
                answer(&cx.local.session, Some(this.answer), Err(error));
            }
        }
    }

    fn reject(self: Box<Self>, error: BridgeError) {
        let _ = self.answer.send(Err(error));
    }
}

/// Tells who awaits it how a task came out; of a panic somebody has to hear.
fn answer<T>(
    session: &Session,
    to: Option<oneshot::Sender<Result<T, BridgeError>>>,
    result: Result<T, BridgeError>,
) {
    let unheard = match to {
        Some(to) => to.send(result).err(),
        None => Some(result),
    };
    if let Some(Err(error)) = unheard {
        session.panicked_unheard(error);
    }
}

fn is_detached(detached: &Option<Arc<AtomicBool>>) -> bool {
    detached
        .as_ref()
        .is_some_and(|detached| detached.load(Ordering::Acquire))
}

struct LocalTask<Fut: Future> {
    future: Pin<Box<Fut>>,
    answer: Option<oneshot::Sender<Result<Fut::Output, BridgeError>>>,
    detached: Option<Arc<AtomicBool>>,
    called_at: &'static Location<'static>,
    session: Arc<Session>,
    _alive: Alive,
}

impl<Fut: Future> Future for LocalTask<Fut> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Some(answer) = &mut this.answer {
            if answer.poll_closed(cx).is_ready() {
                if !is_detached(&this.detached) {
                    return Poll::Ready(());
                }
                this.answer = None;
            }
        }
        let polled = catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(cx)));
        let result = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(BridgeError::panicked(panic, Some(this.called_at))),
        };
        answer(&this.session, this.answer.take(), result);
        Poll::Ready(())
    }
}

/// Counts the local tasks there are.
struct Alive(Rc<Cell<usize>>);

impl Alive {
    fn new(count: Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
