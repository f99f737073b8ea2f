//! One task, and the account it gives of its end whatever becomes of it.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use pin_project::{pin_project, pinned_drop};

use super::{
    failure::{Payload, contained, panic_message},
    machine::Scope,
    refusal::Refusal,
    span::Span,
    tasks::{Feed, Withdraw},
};
use crate::{
    TaskResult,
    error::{BoxError, Cause},
};

/// Returned by a task that has caught a panic: it counts as its own, and this is what it is told as.
#[derive(Debug)]
pub(crate) struct Panicked(pub(crate) BoxError);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("task panicked")
    }
}

impl Error for Panicked {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// How one task came out. Nothing in it runs the application's code when it drops.
pub(super) enum TaskEnd {
    Returned(Result<(), Cause>),
    /// With the panic's message.
    Panicked(String),
    /// It says itself what panicked.
    Caught(Cause),
    Dropped,
}

impl TaskEnd {
    fn returned(result: TaskResult) -> Self {
        let Err(error) = result else {
            return Self::Returned(Ok(()));
        };
        match error.downcast::<Panicked>() {
            Ok(panicked) => Self::Caught(panicked.0.into()),
            Err(error) => {
                Refusal::settle(&*error);
                Self::Returned(Err(error.into()))
            }
        }
    }
}

/// Tells the scope how a task came out, also when the task is just dropped.
pub(super) struct TaskReport {
    pub(super) scope: Option<Arc<Scope>>,
    pub(super) key: usize,
    pub(super) number: u64,
}

impl TaskReport {
    /// How its code came out, and what its destructors panicked with.
    pub(super) fn tell(&mut self, result: Result<TaskResult, Payload>, burst: Option<Payload>) {
        let (result, burst) = match (result, burst) {
            (Ok(Ok(())), Some(burst)) => (Err(burst), None),
            told => told,
        };
        let (end, payload) = match result {
            Ok(result) => (TaskEnd::returned(result), None),
            Err(payload) => (TaskEnd::Panicked(panic_message(&*payload)), Some(payload)),
        };
        self.tell_end(end, burst.as_deref().map(panic_message));
        // They are the application's: they go last, and may use the scope.
        drop((payload, burst));
    }

    fn tell_end(&mut self, end: TaskEnd, burst: Option<String>) {
        if let Some(scope) = self.scope.take() {
            scope.task_ended((self.key, self.number), end, burst);
        }
    }
}

impl Drop for TaskReport {
    fn drop(&mut self) {
        self.tell_end(TaskEnd::Dropped, None);
    }
}

/// A task's future. Its drop lets the future go before its end is told.
#[pin_project(PinnedDrop)]
pub(super) struct Tracked<F> {
    #[pin]
    pub(super) future: Option<F>,
    pub(super) report: TaskReport,
    pub(super) feed: Option<Arc<dyn Feed>>,
    pub(super) span: Span,
}

impl<F: Future<Output = TaskResult>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let _entered = this.span.enter();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        // Until this returns, so that no stream ends whole before the failure is told.
        let _polling = this.feed.as_deref().map(Polling::begin);
        let result = match contained(|| future.poll(cx)) {
            Ok(poll) => Ok(ready!(poll)),
            Err(payload) => Err(payload),
        };
        let burst = contained(|| this.future.set(None)).err();
        this.report.tell(result, burst);
        Poll::Ready(())
    }
}

#[pinned_drop]
impl<F> PinnedDrop for Tracked<F> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        let _entered = this.span.enter();
        // Otherwise it is told as dropped, if it was not told before.
        if let Err(payload) = contained(|| this.future.set(None)) {
            this.report.tell(Err(payload), None);
        }
    }
}

/// Blocking code that waits for a thread: that takes it, or a cancellation does, whichever comes first.
pub(super) struct Queued<C>(Mutex<Option<(C, TaskReport, Span)>>);

impl<C: FnOnce() -> TaskResult + Send> Queued<C> {
    pub(super) fn new(code: C, report: TaskReport, span: Span) -> Self {
        Self(Mutex::new(Some((code, report, span))))
    }

    fn take(&self) -> Option<(C, TaskReport, Span)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<C: FnOnce() -> TaskResult + Send> Withdraw for Queued<C> {
    fn withdraw(&self) {
        let Some((code, mut report, span)) = self.take() else {
            return;
        };
        let _entered = span.enter();
        if let Err(payload) = contained(|| drop(code)) {
            report.tell(Err(payload), None);
        }
    }
}

/// The place of blocking code in the queue. A pool that shuts down drops it with the code.
pub(super) struct Turn<C: FnOnce() -> TaskResult + Send>(pub(super) Arc<Queued<C>>);

impl<C: FnOnce() -> TaskResult + Send> Turn<C> {
    pub(super) fn take(self) {
        if let Some((code, mut report, span)) = self.0.take() {
            let _entered = span.enter();
            report.tell(contained(code), None);
        }
    }
}

impl<C: FnOnce() -> TaskResult + Send> Drop for Turn<C> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// A poll of a task that may feed a stream.
struct Polling<'a>(&'a dyn Feed);

impl<'a> Polling<'a> {
    fn begin(feed: &'a dyn Feed) -> Self {
        feed.enter();
        Self(feed)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
