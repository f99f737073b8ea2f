//! Scopes under a scope, one for each attempt of a cloned request or body with a scope of its own: how they
//! come under it, and what each is told of the other.

use std::{
    future::poll_fn,
    sync::{Arc, Weak, atomic::Ordering},
    task::{Context, Poll},
};

use super::{
    failure::{Failure, FailureKind, quietly},
    limit::within,
    machine::Scope,
    options::OnLeave,
    state::{Phase, Work},
};
use crate::outcome::Outcome;

impl Scope {
    /// Makes a scope the child of this one, if it has no parent and is not done.
    ///
    /// False if it has a parent.
    pub(super) fn adopt(self: &Arc<Self>, child: Arc<Scope>) -> bool {
        if child.parent.set(Arc::downgrade(self)).is_err() {
            return false;
        }
        let (settled, ended) = {
            let mut state = self.lock();
            let mut theirs = child.lock();
            let lives_on = theirs.phase != Phase::Done;
            if lives_on {
                if !self.supervisor().is(child.supervisor()) {
                    let name = self.named("body with a scope of its own");
                    let kept = self.supervisor().background_scope(name, child.as_member());
                    theirs.work().adopted = Some(kept);
                }
                state.work().children.push(child.clone());
            }
            let settled = theirs.settled && lives_on;
            drop(theirs);
            let unnatural = state.phase != Phase::Live && !state.natural;
            let ended = unnatural.then(|| (state.outcome, state.cause.clone(), state.shut_by()));
            (settled, ended)
        };
        // It had no parent to tell.
        if settled {
            child.tell_parent();
        }
        // The parent's end went through its children before this one was among them.
        if let Some((outcome, cause, by)) = ended {
            child.end_with_parent(outcome, cause, by);
        }
        true
    }

    /// Teardown step 1: waits for the children whose body has gone; the others live on.
    ///
    /// Behind its own end that the client sees, also for what they do behind theirs.
    pub(super) async fn join_children(&self) {
        let settled = self.lock().settled;
        loop {
            let ending = {
                let mut state = self.lock();
                let mut children = state.work().children.iter();
                children.find(|child| child.holds_up(settled)).cloned()
            };
            let Some(child) = ending else { return };
            if !self.join_child(&child, settled).await {
                self.leave_behind(&child);
            }
        }
    }

    /// Waits for a child as long as its teardown gets on: each step has its own limit, and what overruns that is
    /// in its account, and so in ours. False if it does not: nobody polls it, or its runtime is at rest.
    async fn join_child(&self, child: &Arc<Scope>, settled: bool) -> bool {
        let mut pace = child.pace();
        loop {
            let limit = pace.limit(self.lock().options(self).join_limit());
            self.begin_step(limit);
            let told = poll_fn(|cx| self.poll_child(child, settled, cx));
            if within(limit, told).await.is_some() {
                return true;
            }
            let now = child.pace();
            if now == pace {
                return false;
            }
            pace = now;
        }
    }

    /// A child that does not get on is waited for no longer. Whether it could commit, nobody knows; but that of a
    /// lost attempt is nobody's concern.
    fn leave_behind(&self, child: &Arc<Scope>) {
        let lost = self.is_lost(child);
        let what = child.named("teardown of a scope under this one");
        let mut state = self.lock();
        child.lock().work().left_behind = true;
        state.work().stuck.push(what.clone());
        if !lost {
            let failure = Failure::new(FailureKind::StillRunning { what });
            state.work().child_failed = true;
            state.note_failure(Outcome::Failed, failure.into());
        }
    }

    /// One of several attempts, and not the answer: how it failed is told by its own report.
    fn is_lost(&self, child: &Scope) -> bool {
        !child.answers.load(Ordering::Acquire) && self.cloned.load(Ordering::Acquire)
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
        let work = state.work.as_deref();
        let waited_for = work.is_none_or(|work| !work.left_behind && (settled || !work.told));
        state.owner_ended && state.phase != Phase::Live && waited_for
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
        let lost = self.is_lost(child);
        let (used, counts, failures, failed, spoilt) = {
            let state = child.lock();
            let work = state.work.as_deref();
            let failures = |work: &Work| (work.errors.clone(), work.stuck.clone());
            (
                state.used && !lost,
                work.map(|work| work.counts).unwrap_or_default(),
                work.filter(|_| !lost).map(failures),
                state.failed_at_the_end().filter(|_| answers),
                work.is_some_and(Work::has_spoilt_closer) && !lost,
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
            work.child_failed |= spoilt;
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
        let (failures, done, spoilt) = {
            let state = attempt.lock();
            let done = state.phase == Phase::Done;
            let told = state.work.as_deref().filter(|work| work.told || done);
            let spoilt = told.is_some_and(Work::has_spoilt_closer);
            let failures = |work: &Work| (work.errors.clone(), work.stuck.clone(), work.counts);
            (told.map(failures), done, spoilt)
        };
        if let Some((errors, stuck, counts)) = failures {
            let mut state = self.lock();
            state.hear_of(errors, stuck);
            let work = state.work();
            work.child_failed |= spoilt;
            if done {
                work.lost = work.lost.saturating_sub(counts.closers_failed);
            }
        }
    }

    /// It ends when it is left, and so does what answers in it, whatever the handlers chose.
    pub(super) fn end_when_left(&self) {
        let children = {
            let mut state = self.lock();
            state.on_leave = OnLeave::Cancel;
            let work = state.work.as_deref();
            work.map(|work| work.children.clone()).unwrap_or_default()
        };
        let answers = |child: &&Arc<Scope>| child.answers.load(Ordering::Acquire);
        children
            .iter()
            .filter(answers)
            .for_each(|child| child.end_when_left());
    }
}
