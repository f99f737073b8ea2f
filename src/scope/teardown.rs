//! What a scope does at its end: children, tasks, the bridge, closers, report, release.
//!
//! The teardown is one boxed future. The owner polls it; a dropped owner moves it to a task as it
//! stands. The guard inside notices if it is dropped unfinished, which only a dying runtime does.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::runtime::Handle;

use super::{
    closers::Closer,
    failure::{contained, quietly},
    finish::Step,
    limit::{enter, within},
    machine::Scope,
    state::{Phase, Work},
    verdict::Verdict,
};

/// A teardown under way.
pub(super) type Teardown = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// The teardown of a scope whose end has started and whose inner body is gone.
pub(super) fn teardown(scope: Arc<Scope>) -> Teardown {
    // Made outside the future: it is to be dropped with it even if that was never polled.
    let mut guard = Guard {
        scope,
        running: false,
        armed: true,
    };
    Box::pin(async move {
        guard.scope.join_children().await;
        guard.scope.join_tasks().await;
        let mut overran = guard.scope.end_annex_tasks().await;
        loop {
            match guard.scope.next_step() {
                Step::Wait(limit) => {
                    if within(limit, guard.scope.early_done()).await.is_none() {
                        guard.scope.early_overran();
                    }
                }
                Step::Run(closer, ending) => {
                    let limit = guard.scope.lock().options(&guard.scope).closer_limit();
                    guard.running = !closer.is_sync();
                    let result = closer.run(ending, limit).await;
                    guard.running = false;
                    guard.scope.closer_ran(None, result);
                }
                Step::Close(annex) => {
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
    })
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
    /// Teardown step 1: waits for the children whose body has gone; the others live on.
    ///
    /// Behind its own end that the client sees, also for what they do behind theirs.
    async fn join_children(&self) {
        let settled = self.lock().settled;
        loop {
            let ending = {
                let mut state = self.lock();
                let mut children = state.work().children.iter();
                children.find(|child| child.holds_up(settled)).cloned()
            };
            let Some(child) = ending else { return };
            let limit = self.lock().options(self).join_limit();
            let told = poll_fn(|cx| self.poll_child(&child, settled, cx));
            if within(limit, told).await.is_none() {
                return;
            }
        }
    }

    /// Waits until this child holds up nothing.
    fn poll_child(&self, child: &Arc<Scope>, settled: bool, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let replaced = {
            let mut state = self.lock();
            let work = state.work();
            let mut children = work.children.iter();
            if !children.any(|other| Arc::ptr_eq(other, child) && child.holds_up(settled)) {
                return Poll::Ready(());
            }
            work.child_waiter.replace(waker)
        };
        drop(replaced);
        Poll::Pending
    }

    /// Whether its parent's teardown has to wait for it: until its outcome is settled and told, and once
    /// the parent's is, too, until it is done.
    fn holds_up(&self, settled: bool) -> bool {
        let state = self.lock();
        let told = || state.work.as_deref().is_some_and(|work| work.told);
        state.owner_ended && state.phase != Phase::Live && (settled || !told())
    }

    /// Its parent knows its outcome, and has yet to hear of the rest.
    pub(super) fn is_told(&self) -> bool {
        self.lock().work.as_deref().is_some_and(|work| work.told)
    }

    /// Its outcome is settled: the parent's end does not wait for what is left.
    pub(super) fn tell_parent(&self) {
        if let Some(parent) = self.parent.get().and_then(Weak::upgrade) {
            parent.child_told(self, false);
        }
    }

    /// A child is done: what came of it joins ours, and we forget it.
    pub(super) fn child_done(&self, child: &Scope) {
        self.child_told(child, true);
    }

    /// A child's outcome is settled, or all of it `done`.
    fn child_told(&self, child: &Scope, done: bool) {
        let answers = child.answers.load(Ordering::Acquire);
        // One of several attempts, and not the answer: how it failed is told by its own report.
        let lost = !answers && self.cloned.load(Ordering::Acquire);
        let (used, counts, failures, failed) = {
            let state = child.lock();
            let work = state.work.as_deref();
            let failures = |work: &Work| (work.errors.clone(), work.stuck.clone());
            (
                state.used && !lost,
                work.map(|work| work.counts).unwrap_or_default(),
                work.filter(|_| !lost).map(failures),
                state.failed_at_the_end().filter(|_| answers),
            )
        };
        let (told, waiter, removed) = {
            let mut state = self.lock();
            state.used |= used;
            // What it would have shown at the end of the body, had the server asked for that.
            let told = failed.map(|(outcome, cause)| state.body_failed(outcome, cause));
            let (errors, stuck) = failures.unwrap_or_default();
            state.hear_of(errors, stuck);
            let work = state.work();
            work.child_failed |= !lost && counts.closers_failed > 0;
            let removed = match done {
                true => {
                    work.counts.add(&counts);
                    if lost {
                        work.lost += counts.closers_failed;
                    }
                    if self.supervisor().is(child.supervisor()) {
                        work.counted_unrun += counts.closers_unrun;
                    }
                    // By identity: numbers are unique under one supervisor only.
                    let mut children = work.children.iter();
                    let position = children.position(|c| std::ptr::eq(&**c, child));
                    position.map(|at| work.children.swap_remove(at))
                }
                false => {
                    // Under our lock, so that nobody waits for what was told before.
                    child.lock().work().told = true;
                    None
                }
            };
            (told, work.child_waiter.take(), removed)
        };
        told.unwrap_or_default().fire();
        if let Some(waiter) = waiter {
            quietly(|| waiter.wake());
        }
        drop(removed);
    }

    /// An attempt that was torn down before its head is the answer after all: its failures are ours, too.
    pub(super) fn hear_of_answer(&self, attempt: &Scope) {
        let ours = attempt.parent.get().and_then(Weak::upgrade);
        if !ours.is_some_and(|parent| std::ptr::eq(&*parent, self)) {
            return;
        }
        let (failures, done) = {
            let state = attempt.lock();
            let done = state.phase == Phase::Done;
            let told = state.work.as_deref().filter(|work| work.told || done);
            let failures = |work: &Work| (work.errors.clone(), work.stuck.clone(), work.counts);
            (told.map(failures), done)
        };
        if let Some((errors, stuck, counts)) = failures {
            let mut state = self.lock();
            state.hear_of(errors, stuck);
            let work = state.work();
            work.child_failed |= counts.closers_failed > 0;
            if done {
                work.lost = work.lost.saturating_sub(counts.closers_failed);
            }
        }
    }

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
                Step::Wait(_) => drop(self.forget_early()),
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

    pub(super) fn closer_unrun(&self) {
        let mut state = self.lock();
        state.work().counts.closers_unrun += 1;
        // What is counted at the release was counted without it.
        let late = state.phase == Phase::Done && !state.lingering;
        drop(state);
        if late {
            self.supervisor().count_unrun();
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
