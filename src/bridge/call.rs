//! A sync call, as the future its caller awaits.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{sync::oneshot, task::unconstrained};

use super::{
    bound::Bound,
    cx::Cx,
    error::BridgeError,
    job::{Gone, Job, SyncJob},
    local::{Place, place_of},
    session::Session,
};
use crate::scope::Span;

/// The result of sync code that runs on the request's thread.
///
/// Nothing is done before the first poll.
///
/// # On drop
/// Code that has not started is dropped unrun. Code that is running cannot be stopped from
/// outside: it runs on, its next wait on the loop fails with `Cancelled`, its result is dropped. A
/// panic of it is a failure of the response (without a layer one of
/// [`CloseReport::failures`](super::CloseReport::failures)), unless a wait or write of it had failed
/// before, because nobody asks for it any more.
#[must_use = "futures do nothing unless polled"]
pub struct Call<F, T> {
    session: Arc<Session>,
    called_at: &'static Location<'static>,
    start: Option<(F, Span)>,
    started: Option<(Reply<T>, Gone)>,
}

impl<F, T> Call<F, T> {
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
impl<F, T> Unpin for Call<F, T> {}

impl<F, T> Future for Call<F, T>
where
    F: FnOnce(&Cx) -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = Result<T, BridgeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some((start, span)) = this.start.take() {
            let place = place_of(&this.session);
            if place == Place::Sync {
                return Poll::Ready(Err(BridgeError::OWN_THREAD));
            }
            let (answer, result) = oneshot::channel();
            let gone = Arc::new(AtomicBool::new(false));
            let job = SyncJob {
                job: Box::new(CallJob {
                    start,
                    span,
                    answer,
                    called_at: this.called_at,
                }),
                gone: Arc::clone(&gone),
                called_at: this.called_at,
                from_loop: place == Place::Loop,
            };
            if this.session.push_sync(job).is_err() {
                return Poll::Ready(Err(BridgeError::ENDED));
            }
            this.started = Some((Reply::new(&this.session, result), gone));
        }
        let Some((reply, _)) = &mut this.started else {
            panic!("a finished bridge call was polled again");
        };
        let result = std::task::ready!(reply.poll(cx, &this.session));
        if result.is_ok() {
            this.started = None;
        }
        // An error leaves it to `Drop` to give up what may not have started.
        Poll::Ready(result)
    }
}

impl<F, T> Drop for Call<F, T> {
    fn drop(&mut self) {
        if let Some((reply, gone)) = self.started.take() {
            gone.store(true, Ordering::Release);
            reply.leave(&self.session);
            self.session.abandon();
        }
    }
}

impl<F, T> fmt::Debug for Call<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("called_at", &self.called_at)
            .finish_non_exhaustive()
    }
}

struct CallJob<F, T> {
    start: F,
    span: Span,
    answer: oneshot::Sender<Result<T, BridgeError>>,
    called_at: &'static Location<'static>,
}

impl<F, T> Job for CallJob<F, T>
where
    F: FnOnce(&Cx) -> T + Send,
    T: Send,
{
    fn is_live(&self) -> bool {
        !self.answer.is_closed()
    }

    fn run(self: Box<Self>, cx: &Cx) {
        let Self {
            start,
            span,
            answer,
            called_at,
        } = *self;
        let _entered = span.enter();
        let result = catch_unwind(AssertUnwindSafe(|| start(cx)))
            .map_err(|panic| BridgeError::panicked(panic, Some(called_at)))
            .map_err(|error| error.excused(cx.local.was_told()));
        if let Err(Err(error)) = answer.send(result) {
            cx.local.session.panicked_unheard(error);
        }
    }

    fn reject(self: Box<Self>, error: BridgeError) {
        let _ = self.answer.send(Err(error));
    }
}

/// The caller's end of a job: its result, or the reason why there will be none.
pub(super) struct Reply<T> {
    result: oneshot::Receiver<Result<T, BridgeError>>,
    /// Set while the session may have no thread yet.
    bound: Option<Bound>,
}

impl<T> Reply<T> {
    pub(super) fn new(
        session: &Session,
        result: oneshot::Receiver<Result<T, BridgeError>>,
    ) -> Self {
        let bound = if session.is_open() {
            None
        } else {
            Bound::new(session.pool.config().wait_limit)
        };
        Self { result, bound }
    }

    /// Nobody asks for it any more.
    pub(super) fn leave(mut self, session: &Session) {
        self.result.close();
        // What comes from now on its sender has back.
        if let Ok(Err(error)) = self.result.try_recv() {
            session.panicked_unheard(error);
        }
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &Arc<Session>,
    ) -> Poll<Result<T, BridgeError>> {
        if let Poll::Ready(result) = Pin::new(&mut self.result).poll(cx) {
            // Dropped unanswered: with its local set, at the end.
            return Poll::Ready(result.unwrap_or(Err(BridgeError::ENDED)));
        }
        if place_of(session) == Place::Sync {
            // Something else than the loop is blocking the one thread that could answer.
            return Poll::Ready(Err(BridgeError::OWN_THREAD));
        }
        if let Some(bound) = &mut self.bound {
            if session.is_open() {
                self.bound = None;
            } else if bound.poll(cx).is_ready() {
                let limit = session.pool.config().wait_limit;
                // The caller's waker goes now: under the session's lock nothing of the caller's is dropped.
                let mut aside = Context::from_waker(Waker::noop());
                let mut result = unconstrained(&mut self.result);
                if let Poll::Ready(result) = Pin::new(&mut result).poll(&mut aside) {
                    return Poll::Ready(result.unwrap_or(Err(BridgeError::ENDED)));
                }
                // In this order: whoever is told that there is no thread must not be served after all.
                if session.pool.is_in_line(session) && session.withdraw(|| self.result.close()) {
                    let threads = session.pool.config().max_threads;
                    return Poll::Ready(Err(BridgeError::exhausted(limit, threads)));
                }
                // It has its thread, which only has to wake up.
                self.bound = Bound::new(limit);
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}
