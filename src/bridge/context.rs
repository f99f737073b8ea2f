//! The owner's side: a request's bridge from its first use to its close.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    bound::Bound, error::BridgeError, handle::Bridge, pool::Pool, session::Session, stuck::Stuck,
};
use crate::{
    Cause,
    scope::{Failure, FailureKind},
};

/// What owns a request's bridge and closes it.
///
/// Making one costs no thread, no lock and no allocation; the first [`bridge`](Self::bridge)
/// allocates, the first use of that bridge takes a thread.
///
/// # On drop
/// Closes, as [`close`](Self::close) does, without waiting.
pub struct Context {
    pool: Pool,
    session: OnceLock<Arc<Session>>,
    closed: AtomicBool,
}

impl Context {
    /// A context that will take its thread from `pool`.
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            session: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// The handle for the request's code.
    pub fn bridge(&self) -> Bridge {
        let session = self
            .session
            .get_or_init(|| Session::alone(self.pool.clone()));
        // Behind the session's being there, as `close` looks for the session behind its mark: one of
        // the two sees the other.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            session.close_unheard();
        }
        Bridge::new(Arc::clone(session))
    }

    /// Ends the request's bridge: its tasks, its closers, its hold on the thread.
    ///
    /// From now on calls are refused. Sync code that waits on the loop is interrupted, local tasks
    /// are dropped, then closers run, last registered first; then the thread is back in the pool.
    /// Sync code that does not come back within the pool's
    /// [`close_limit`](super::PoolBuilder::close_limit) is named in the report. It starts when
    /// called; the future only waits.
    pub fn close(&self) -> Close {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        match self.session.get() {
            Some(session) => Close::of(session, false),
            None => Close {
                session: None,
                closed: None,
                bound: None,
            },
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(session) = self.session.get() {
            session.close_unheard();
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("used", &self.session.get().is_some())
            .finish_non_exhaustive()
    }
}

fn bound<T>(wait: &Option<oneshot::Receiver<T>>, limit: Duration) -> Option<Bound> {
    wait.as_ref().and_then(|_| Bound::new(limit))
}

/// Drops the local tasks and interrupts waiting calls, but keeps the thread: the first half of a close, for
/// owners that run closers of their own on the thread afterwards.
///
/// Gives the number of tasks that were dropped, or `None` if the limit of the pool's
/// [`close_limit`](super::PoolBuilder::close_limit) passed first. It starts when called.
pub(super) fn end_tasks(session: &Arc<Session>) -> impl Future<Output = Option<usize>> + use<> {
    let mut ended = session.request_end_tasks();
    let mut bound = bound(&ended, session.pool.config().close_limit);
    poll_fn(move |cx| {
        let Some(ended) = &mut ended else {
            return Poll::Ready(Some(0));
        };
        if let Poll::Ready(ended) = Pin::new(ended).poll(cx) {
            return Poll::Ready(Some(ended.unwrap_or(0)));
        }
        match &mut bound {
            Some(bound) => bound.poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
}

/// The wait of [`Context::close`].
///
/// # On drop
/// The close goes on all the same.
#[must_use = "futures do nothing unless polled"]
pub struct Close {
    session: Option<Arc<Session>>,
    closed: Option<oneshot::Receiver<CloseReport>>,
    bound: Option<Bound>,
}

impl Close {
    /// With `overran` its tasks have been waited for; if they still run they are not again.
    pub(super) fn of(session: &Arc<Session>, overran: bool) -> Self {
        let closed = session.request_close();
        let limit = if overran && session.is_behind() {
            Duration::ZERO
        } else {
            session.pool.config().close_limit
        };
        Self {
            bound: bound(&closed, limit),
            session: Some(Arc::clone(session)),
            closed,
        }
    }

    /// `None` when the limit came first.
    fn poll_report(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<CloseReport>> {
        let Some(closed) = &mut self.closed else {
            return Poll::Ready(Some(CloseReport::default()));
        };
        if let Poll::Ready(report) = Pin::new(closed).poll(cx) {
            return Poll::Ready(Some(report.unwrap_or_else(|_| self.lost())));
        }
        match &mut self.bound {
            Some(bound) => bound.poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }

    /// The thread has died and can no longer tell.
    fn lost(&self) -> CloseReport {
        let unrun = self.session.as_ref().map_or(0, |s| s.pending_closers());
        let what = with_unrun("bridge thread".into(), unrun);
        let failure = Failure::new(FailureKind::TaskLost { what });
        CloseReport {
            unrun,
            failures: vec![failure.into()],
            ..CloseReport::default()
        }
    }

    pub(super) async fn report(mut self) -> Option<CloseReport> {
        poll_fn(|cx| self.poll_report(cx)).await
    }
}

impl Future for Close {
    type Output = CloseReport;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let report = std::task::ready!(self.poll_report(cx));
        Poll::Ready(match (report, &self.session) {
            (Some(report), _) => report,
            (None, Some(session)) => {
                let report = CloseReport::overran(session);
                session.interrupt_closers();
                report
            }
            (None, None) => CloseReport::default(),
        })
    }
}

impl fmt::Debug for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Close").finish_non_exhaustive()
    }
}

/// What a close did.
#[derive(Clone, Debug, Default)]
pub struct CloseReport {
    pub(super) tasks_cancelled: usize,
    pub(super) closers_run: usize,
    pub(super) failures: Vec<Cause>,
    pub(super) unrun: usize,
    pub(super) stuck: Option<Stuck>,
}

impl CloseReport {
    /// Local tasks that were still running, and were dropped.
    pub fn tasks_cancelled(&self) -> usize {
        self.tasks_cancelled
    }

    /// Closers that ran, whatever came of it.
    pub fn closers_run(&self) -> usize {
        self.closers_run
    }

    /// The panics of local tasks that nobody awaited and of calls that were given up, then what closers failed
    /// with, in the order they ran; a panic is a [`BridgeError`].
    ///
    /// Never empty unless all of it is done: with code that did not come back there is a
    /// [`Failure`] that names it, without a thread a [`BridgeError`], `Exhausted` or `Start`.
    pub fn failures(&self) -> &[Cause] {
        &self.failures
    }

    /// Closers that had not run when the wait was given up.
    ///
    /// They run later if the thread comes back, unless there never was a thread.
    pub fn unrun(&self) -> usize {
        self.unrun
    }

    /// The sync code that did not come back in time.
    pub fn stuck(&self) -> Option<&Stuck> {
        self.stuck.as_ref()
    }

    fn overran(session: &Session) -> Self {
        let unrun = session.pending_closers();
        let failure = match session.thread_id() {
            Some(_) => {
                let what = session.running_now();
                let what = what.unwrap_or_else(|| "thread of the request".into());
                let what = with_unrun(what, unrun);
                Failure::new(FailureKind::StillRunning { what }).into()
            }
            None => {
                let config = session.pool.config();
                Arc::new(BridgeError::exhausted(
                    config.close_limit,
                    config.max_threads,
                )) as Cause
            }
        };
        let mut failures = session.panics();
        failures.push(failure);
        Self {
            unrun,
            stuck: session.stuck(),
            failures,
            ..Self::default()
        }
    }

    pub(super) fn unrun_for(unrun: usize, error: &BridgeError) -> Self {
        Self {
            unrun,
            failures: vec![Arc::new(error.clone())],
            ..Self::default()
        }
    }
}

fn with_unrun(what: String, unrun: usize) -> String {
    match unrun {
        0 => what,
        1 => format!("{what}; 1 closer has not run"),
        _ => format!("{what}; {unrun} closers have not run"),
    }
}

#[cfg(test)]
mod tests;
