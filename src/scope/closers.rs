//! Registered pieces of cleanup, and running one under its limit with its panic contained.

use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    panic::Location,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    failure::{Failure, FailureKind, Payload, contained, named},
    limit::Limit,
    refusal::Refusal,
};
use crate::{
    TaskResult,
    error::{BoxError, Cause},
    outcome::{Ending, Outcome},
};

pub(super) type ClosingFuture = Pin<Box<dyn Future<Output = TaskResult> + Send>>;
type AsyncCloser = Box<dyn FnOnce(Ending) -> ClosingFuture + Send>;
type SyncCloser = Box<dyn FnOnce(Ending) + Send>;

/// One registered piece of cleanup.
pub(crate) struct Closer {
    pub(super) key: u64,
    pub(super) limit: Option<Duration>,
    pub(super) at: &'static Location<'static>,
    work: Work,
}

enum Work {
    Async(AsyncCloser),
    Sync(SyncCloser),
}

/// Why a closer failed, and the outcome that makes of a provisional `Complete`.
pub(super) struct CloserFailed {
    pub(super) outcome: Outcome,
    pub(super) cause: Cause,
    /// Whether it ran at all.
    pub(super) ran: bool,
    /// What was left of it panicked as it was dropped.
    pub(super) burst: Option<Cause>,
}

impl CloserFailed {
    fn new(outcome: Outcome, cause: Cause) -> Self {
        Self {
            outcome,
            cause,
            ran: true,
            burst: None,
        }
    }

    fn returned(error: BoxError) -> Self {
        match error.downcast::<Unrun>() {
            Ok(unrun) => Self {
                ran: false,
                ..Self::new(Outcome::Failed, Cause::from(unrun.0))
            },
            Err(error) => {
                Refusal::settle(&*error);
                Self::new(Outcome::Failed, Cause::from(error))
            }
        }
    }

    pub(super) fn has_overrun(&self) -> bool {
        let failure = self.cause.downcast_ref().map(Failure::kind);
        matches!(failure, Some(FailureKind::OverranLimit { .. }))
    }
}

/// A closer that runs ahead of the teardown.
pub(super) struct Early {
    pub(super) key: u64,
    pub(super) at: &'static Location<'static>,
    pub(super) limit: Duration,
    since: tokio::time::Instant,
    /// The teardown has waited long enough, and counted it as failed.
    pub(super) given_up: bool,
}

impl Early {
    /// How long the teardown waits for it; `None` if it does not any more.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.limit.saturating_sub(self.since.elapsed());
        (!self.given_up).then_some(left)
    }
}

/// Returned by a closer that could not have its work done where that has to be: why.
#[cfg_attr(
    not(feature = "bridge"),
    allow(dead_code, reason = "for closers by way of the annex")
)]
#[derive(Debug)]
pub(crate) struct Unrun(pub(crate) BoxError);

impl fmt::Display for Unrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closer could not run")
    }
}

impl Error for Unrun {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

impl Closer {
    #[track_caller]
    pub(crate) fn new<F, Fut>(closer: F) -> Self
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        Self::of(Work::Async(Box::new(move |ending| {
            Box::pin(closer(ending))
        })))
    }

    #[track_caller]
    pub(crate) fn sync(closer: impl FnOnce(Ending) + Send + 'static) -> Self {
        Self::of(Work::Sync(Box::new(closer)))
    }

    #[track_caller]
    fn of(work: Work) -> Self {
        Self {
            key: 0,
            limit: None,
            at: Location::caller(),
            work,
        }
    }

    /// Known by another place than the one that made it.
    #[cfg_attr(
        not(feature = "bridge"),
        allow(dead_code, reason = "for closers by way of the annex")
    )]
    pub(crate) fn registered_at(mut self, at: &'static Location<'static>) -> Self {
        self.at = at;
        self
    }

    pub(crate) fn limited(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// How long it may take, under a layer's `limit`.
    pub(super) fn limit_within(&self, limit: Duration) -> Duration {
        self.limit.unwrap_or(limit)
    }

    /// What stands for it while it runs ahead of the teardown.
    pub(super) fn early(&self, limit: Duration) -> Early {
        Early {
            key: self.key,
            at: self.at,
            limit: self.limit_within(limit),
            since: tokio::time::Instant::now(),
            given_up: false,
        }
    }

    pub(super) fn is_sync(&self) -> bool {
        matches!(self.work, Work::Sync(_))
    }

    pub(super) fn name(&self) -> String {
        name(self.at)
    }

    /// Runs a synchronous closer where it stands. An async one is dropped unrun: ask first.
    pub(super) fn run_sync(self, ending: Ending) -> Result<(), CloserFailed> {
        let at = self.at;
        match self.work {
            Work::Sync(closer) => {
                contained(|| closer(ending)).map_err(|payload| panicked(at, payload))
            }
            Work::Async(_) => Ok(()),
        }
    }

    /// Runs the closer to its end, its panic contained, under `limit` unless it has its own.
    pub(super) async fn run(self, ending: Ending, limit: Duration) -> Result<(), CloserFailed> {
        if self.is_sync() {
            return self.run_sync(ending);
        }
        let at = self.at;
        let mut limit = Limit::new(self.limit_within(limit));
        let Work::Async(closer) = self.work else {
            return Ok(());
        };
        let mut future = match contained(|| closer(ending)) {
            Ok(future) => Guarded(Some(future)),
            Err(payload) => return Err(panicked(at, payload)),
        };
        let result = poll_fn(|cx| match future.poll(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => limit.poll(cx).map(|()| None),
        })
        .await;
        // Its drop is its own code, too.
        let gone = contained(|| drop(future.0.take()));
        let gone = gone.map_err(|payload| panicked(at, payload));
        let mut failed = match result {
            Some(Ok(Ok(()))) => return gone,
            Some(Ok(Err(error))) => CloserFailed::returned(error),
            Some(Err(payload)) => panicked(at, payload),
            None => {
                let limit = limit.duration();
                let what = name(at);
                let overran = Failure::new(FailureKind::OverranLimit { what, limit });
                CloserFailed::new(Outcome::Failed, overran.into())
            }
        };
        failed.burst = gone.err().map(|gone| gone.cause);
        Err(failed)
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer")
            .field("at", &self.at)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// A closing future whose panics, in poll and in drop, stay inside.
struct Guarded(Option<ClosingFuture>);

impl Guarded {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<TaskResult, Payload>> {
        let Some(future) = &mut self.0 else {
            return Poll::Pending;
        };
        match contained(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(payload) => Poll::Ready(Err(payload)),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let future = self.0.take();
        let _ = contained(|| drop(future));
    }
}

fn name(at: &Location<'_>) -> String {
    named("closer", at)
}

fn panicked(at: &Location<'_>, payload: Payload) -> CloserFailed {
    let failure = Failure::panicked(name(at), &*payload);
    CloserFailed::new(Outcome::Panicked, failure.into())
}
