//! What a scope does at its end: children, tasks, the bridge, closers, report, release.
//!
//! The teardown is one boxed future. The owner polls it; a dropped owner moves it to a task as it
//! stands. The guard inside notices if it is dropped unfinished, which only a dying runtime does.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

use super::{
    closers::Closer,
    failure::contained,
    finish::Step,
    limit::{enter, within},
    machine::Scope,
    verdict::Verdict,
};

/// A teardown under way.
pub(super) type Teardown = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// The teardown of a scope whose end has started and whose inner body is gone.
pub(super) fn teardown(scope: Arc<Scope>) -> Teardown {
    // Made outside the future: it is to be dropped with it even if that was never polled.
    let span = scope.span();
    let mut guard = Guard {
        scope,
        running: false,
        armed: true,
    };
    Box::pin(span.around(async move {
        guard.scope.join_children().await;
        guard.scope.join_tasks().await;
        let mut overran = guard.scope.end_annex_tasks().await;
        loop {
            match guard.scope.next_step() {
                Step::Wait(limit) => {
                    guard.scope.begin_step(limit);
                    if within(limit, guard.scope.early_done()).await.is_none() {
                        guard.scope.early_overran();
                    }
                }
                Step::Run(closer, ending) => {
                    let limit = guard.scope.lock().options(&guard.scope).closer_limit();
                    guard.scope.begin_step(closer.limit_within(limit));
                    guard.running = !closer.is_sync();
                    let result = closer.run(ending, limit).await;
                    guard.running = false;
                    guard.scope.closer_ran(None, result);
                }
                Step::Close(annex) => {
                    guard.scope.begin_step(annex.limit());
                    let closed = annex.clone().close(overran.is_some()).await;
                    guard.scope.annex_closed(&annex, closed, overran.take());
                }
                Step::Speak(words) => guard.scope.speak(words),
                Step::Settled(verdict) => {
                    guard.armed = false;
                    guard.scope.tell_parent();
                    detach(guard.scope.clone());
                    return verdict;
                }
                Step::Done(finished) => {
                    guard.armed = false;
                    return finished.announce(&guard.scope);
                }
            }
        }
    }))
}

/// Runs (the rest of) a teardown as a task on the scope's runtime.
pub(super) fn detach(scope: Arc<Scope>) {
    match scope.try_finish() {
        Some(finished) => {
            finished.announce(&scope);
        }
        None => {
            let runtime = scope.runtime.clone();
            spawn(runtime, teardown(scope));
        }
    }
}

/// Moves a teardown to a task; with no runtime the guard inside accounts for it.
pub(super) fn spawn(runtime: Option<Handle>, teardown: Teardown) {
    if let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) {
        runtime.spawn(teardown);
    }
}

/// Polls a teardown where timers can be made, also from a thread with no runtime in context.
pub(super) fn poll(
    runtime: Option<&Handle>,
    teardown: &mut Teardown,
    cx: &mut Context<'_>,
) -> Poll<Verdict> {
    let _context = enter(runtime);
    teardown.as_mut().poll(cx)
}

impl Scope {
    /// The teardown cannot go on: the runtime is gone. Synchronous closers still run, in order.
    fn abandon(&self, interrupted: bool) {
        self.abandon_tasks();
        if interrupted {
            self.closer_unrun();
        }
        // It may have been in the middle of its close.
        self.name_annex();
        loop {
            match self.next_step() {
                Step::Wait(_) => self.forget_early(),
                Step::Run(closer, ending) => self.run_or_count(closer, ending),
                Step::Close(annex) => self.abandon_annex(&annex),
                // Nobody reads them.
                Step::Speak(words) => drop(contained(|| drop(words))),
                Step::Settled(_) => {}
                Step::Done(finished) => {
                    if self.lock().work().counts.closers_unrun > 0 {
                        super::observe::unrun(self);
                    }
                    finished.announce(self);
                    return;
                }
            }
        }
    }

    fn run_or_count(&self, closer: Closer, ending: crate::Ending) {
        if closer.is_sync() {
            let result = closer.run_sync(ending);
            self.closer_ran(None, result);
        } else {
            self.closer_unrun();
            // The application's values in the closer drop here, outside the lock.
            let _ = contained(|| drop(closer));
        }
    }
}

/// Sees a teardown dropped before it finished: that is how a dead runtime shows.
struct Guard {
    scope: Arc<Scope>,
    /// An async closer is in progress.
    running: bool,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            self.scope.abandon(self.running);
        }
    }
}
