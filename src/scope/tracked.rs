//! One task, and the account it gives of its end whatever becomes of it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project::pin_project;

use super::{
    failure::{Payload, contained, panic_message},
    machine::Scope,
    tasks::Feed,
};
use crate::{TaskResult, error::Cause};

/// How one task came out. Nothing in it runs the application's code when it drops.
pub(super) enum TaskEnd {
    Returned(Result<(), Cause>),
    /// With the panic's message.
    Panicked(String),
    Dropped,
}

/// Tells the scope how a task came out, also when the task is just dropped.
pub(super) struct TaskReport {
    pub(super) scope: Option<Arc<Scope>>,
    pub(super) key: usize,
    pub(super) number: u64,
}

impl TaskReport {
    pub(super) fn tell(&mut self, result: Result<TaskResult, Payload>) {
        match result {
            Ok(result) => self.tell_end(TaskEnd::Returned(result.map_err(Cause::from))),
            Err(payload) => {
                self.tell_end(TaskEnd::Panicked(panic_message(&*payload)));
                // It is the application's: it goes last, and may use the scope, or panic.
                let _ = contained(|| drop(payload));
            }
        }
    }

    fn tell_end(&mut self, end: TaskEnd) {
        if let Some(scope) = self.scope.take() {
            scope.task_ended(self.key, self.number, end);
        }
    }
}

impl Drop for TaskReport {
    fn drop(&mut self) {
        self.tell_end(TaskEnd::Dropped);
    }
}

/// A task's future. Field order is drop order: the future is gone before its end is told.
#[pin_project]
pub(super) struct Tracked<F> {
    #[pin]
    pub(super) future: Option<F>,
    pub(super) report: TaskReport,
    pub(super) feed: Option<Arc<dyn Feed>>,
}

impl<F: Future<Output = TaskResult>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        // Until this returns, so that no stream ends whole before the failure is told.
        let _polling = this.feed.as_deref().map(Polling::begin);
        let mut result = match contained(|| future.poll(cx)) {
            Ok(poll) => Ok(ready!(poll)),
            Err(payload) => Err(payload),
        };
        if let Err(payload) = contained(|| this.future.set(None)) {
            result = Err(payload);
        }
        this.report.tell(result);
        Poll::Ready(())
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
