//! The steps of a teardown, and the account at its end.

use std::{
    mem,
    sync::{Arc, Weak, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use super::{
    annex::Annex,
    closers::{Closer, Early},
    failure::{contained, distinct, panic_message, quietly},
    finishing::Finishing,
    machine::Scope,
    options::Options,
    refusal::Refusal,
    state::{Phase, ShutBy, State},
    verdict::{Causes, LastWords, Verdict, shows},
};
use crate::{
    error::Cause,
    outcome::{EndReport, Ending, Outcome},
    supervisor::{Background, Released},
};

/// What the teardown does next.
pub(super) enum Step {
    /// A closer runs ahead of the teardown, on behalf of its key: wait for it, at most so long.
    Wait(Duration),
    /// Run this closer.
    Run(Closer, Ending),
    /// Close this; closers may have been registered when it is done.
    Close(Arc<dyn Annex>),
    /// Have the body's last words made: the report is to tell if that panics.
    Speak((LastWords, Causes)),
    /// The client may see the end now; what is left runs behind it.
    Settled(Verdict),
    /// Nothing is left.
    Done(Finished),
}

/// The account of a scope that is done, still to be announced.
pub(super) struct Finished {
    verdict: Verdict,
    /// The report, if anybody wants it, and whose hooks do.
    report: Option<Box<(EndReport, Arc<Options>)>>,
    release: Option<Release>,
    // Not needed any more, and dropped outside the lock, since they are the application's.
    last_words: Option<LastWords>,
    waker: Option<Waker>,
    annex: Option<Arc<dyn Annex>>,
    hooks: Option<Arc<Options>>,
    finishing: Option<Finishing>,
}

impl Finished {
    /// Steps 5 and 6 of the teardown: the report to the hooks, then the release. Nothing panics out of it.
    pub(super) fn announce(self, scope: &Scope) -> Verdict {
        let span = scope.span();
        let _entered = span.enter();
        quietly(|| drop(self.annex));
        if let Some((mut report, options)) = self.report.map(|told| *told) {
            report.errors = distinct(report.errors);
            for hook in &options.on_end {
                // A hook's panic is its own: the others still get the report.
                if let Err(payload) = contained(|| hook(&report)) {
                    super::observe::hook_panicked(scope, &panic_message(&*payload));
                }
            }
            // A child's response is its parent's: one event for each response.
            if scope.parent.get().is_none() {
                super::observe::ended(&report);
            }
        }
        if let Some(parent) = scope.parent.get().and_then(Weak::upgrade) {
            parent.child_done(scope);
        }
        if let Some(release) = self.release {
            scope.release(release);
        }
        drop(self.finishing);
        quietly(|| drop(self.waker));
        quietly(|| drop(self.last_words));
        quietly(|| drop(self.hooks));
        // Whoever keeps a view keeps no span open.
        let (done, _span) = {
            let mut state = scope.lock();
            (state.signals.done(), mem::take(&mut state.span))
        };
        done.fire();
        self.verdict
    }
}

impl Scope {
    /// The next step of the teardown after tasks and children: one critical section.
    pub(super) fn next_step(&self) -> Step {
        let mut state = self.lock();
        let settled = state.settled;
        let work = state.work();
        work.closing = None;
        if let Some(left) = work.early.iter().filter_map(Early::left).min() {
            return Step::Wait(left);
        }
        if let Some(closer) = work.closers.pop() {
            work.closing = Some(closer.at);
            return Step::Run(closer, state.ending(self));
        }
        if let Some(annex) = work.annex.begin_close() {
            return Step::Close(annex);
        }
        if state.has_last_words(state.outcome) {
            let verdict = state.verdict(self);
            if let Some(due) = state.take_last_words(&verdict) {
                return Step::Speak(due);
            }
        }
        let work = state.work();
        let behind =
            !work.after_end.is_empty() || work.children.iter().any(|child| child.is_told());
        if behind && !settled {
            state.settle(self);
            return Step::Settled(state.verdict(self));
        }
        if let Some(closer) = work.after_end.pop() {
            work.closing = Some(closer.at);
            return Step::Run(closer, state.ending(self));
        }
        Step::Done(self.finish(&mut state))
    }

    /// Finishes at once if nothing is left to wait for.
    pub(super) fn try_finish(&self) -> Option<Finished> {
        let mut state = self.lock();
        let idle = state.phase == Phase::Ending
            && !state.has_last_words(state.outcome)
            && state.work.as_mut().is_none_or(|work| work.close_if_idle());
        idle.then(|| self.finish(&mut state))
    }

    /// Moves to `Done` and draws up the account; the caller announces it outside the lock.
    fn finish(&self, state: &mut State) -> Finished {
        state.phase = Phase::Done;
        state.settle(self);
        if !state.owner_gone {
            state.note_shown(self, state.outcome);
        }
        state.note_answer();
        if let Some(work) = &mut state.work {
            state.lingering = !work.tasks.close();
        }
        state.done_at = state.now();
        let report = state.is_report_wanted(self).then(|| {
            let report = state.report(self);
            Box::new((report, state.options(self).clone()))
        });
        let hooks = state.take_own_hooks();
        let verdict = state.verdict(self);
        let release = (!state.lingering).then(|| state.release());
        let work = state.work.as_mut();
        let (last_words, annex) = work
            .map(|work| (work.last_words.take(), work.annex.finish()))
            .unwrap_or_default();
        Finished {
            verdict,
            report,
            release,
            last_words,
            waker: state.waker.take(),
            annex,
            hooks,
            finishing: state.finishing.take(),
        }
    }

    /// Step 6: nothing of the scope runs any more.
    pub(super) fn release(&self, release: Release) {
        self.supervisor()
            .release(&self.registration, release.how, release.unrun);
        super::observe::released();
        drop(release.adopted);
    }

    /// Keeps an error for the report that does not change the outcome.
    pub(crate) fn keep_error(&self, cause: Cause) {
        Refusal::settle(&*cause);
        self.lock().add_error(cause);
    }

    /// The report of a scope that is done: whoever has the response may close it, also after it has
    /// ended.
    pub(super) fn report(&self) -> Option<Arc<EndReport>> {
        let mut report = {
            let mut state = self.lock();
            (state.phase == Phase::Done).then(|| state.report(self))?
        };
        report.errors = distinct(report.errors);
        Some(Arc::new(report))
    }
}

/// How a scope ended, for its supervisor.
#[derive(Default)]
pub(super) struct Release {
    pub(super) how: Released,
    /// Closers unrun that the supervisor does not know of yet.
    pub(super) unrun: u64,
    /// Dropped after the release.
    pub(super) adopted: Option<Background>,
}

impl State {
    /// What the supervisor is told when nothing of the scope runs any more.
    pub(super) fn release(&mut self) -> Release {
        let Some(work) = &mut self.work else {
            return Release::default();
        };
        Release {
            how: match work.shut_by {
                ShutBy::Nobody => Released::ByItself,
                ShutBy::EndNow(_) => Released::Ended,
                ShutBy::Abort => Released::Aborted,
            },
            unrun: work.counts.closers_unrun - work.counted_unrun,
            adopted: work.adopted.take(),
        }
    }

    /// The hooks that the response itself brought: who keeps a view of it keeps them no longer, nor do they
    /// each other.
    fn take_own_hooks(&mut self) -> Option<Arc<Options>> {
        let own = self.merged.as_mut().filter(|options| options.passing)?;
        if own.on_end.is_empty() {
            return None;
        }
        let mut rest = Options::clone(own);
        rest.on_end.clear();
        Some(mem::replace(own, Arc::new(rest)))
    }

    /// What the owner shows of a body that ends with this outcome goes into the account ahead of it: the report
    /// is made before.
    pub(super) fn note_shown(&mut self, scope: &Scope, outcome: Outcome) {
        let kept = self.kept.take().filter(|kept| shows(outcome, kept.clean));
        let said = || Some(self.work.as_ref()?.said.as_ref()?.len() as u64);
        let Some(more) = kept.map(|kept| kept.bytes).or_else(said) else {
            return;
        };
        let bytes = scope.bytes.load(Ordering::Relaxed) + more;
        if !self.unread && scope.count(bytes) {
            self.first_frame_at = self.ended_at.or_else(|| self.now());
        }
    }
}
