//! A scope as its supervisor, or a scope around it, sees it: what it holds, and how it is shut down.

use std::sync::{Arc, atomic::Ordering};

use super::{
    failure::{ended, named, quietly},
    machine::Scope,
    options::ShutdownKind,
    state::{Phase, ShutBy},
};
use crate::{
    error::Cause,
    outcome::Outcome,
    supervisor::{self, LiveScope, Member},
};

impl Member for Scope {
    fn snapshot(&self) -> LiveScope {
        let state = self.lock();
        let work = state.work.as_deref();
        LiveScope {
            id: self.id(),
            method: self.method.clone(),
            uri: self.uri.clone(),
            age: state.opened_at.map(|opened| opened.elapsed()),
            bytes: self.bytes.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
            tasks: work.map_or(0, |work| work.tasks.live()),
            closers: work.map_or(0, |work| work.closers.len() + work.after_end.len()),
            phase: match state.phase {
                Phase::Live => supervisor::Phase::Live,
                Phase::Done if state.lingering => supervisor::Phase::Stuck,
                Phase::Ending | Phase::Done => supervisor::Phase::Ending,
            },
        }
    }

    fn shut_down(self: Arc<Self>) {
        let shut_by = {
            let mut state = self.lock();
            let Some(policy) = state.options(&self).shutdown.clone() else {
                return;
            };
            match policy.kind {
                ShutdownKind::Finish { within: None } => return,
                ShutdownKind::Finish {
                    within: Some(within),
                } => {
                    drop(state);
                    self.finish_within(&policy, within);
                    return;
                }
                // Without a head there is no body to end: `at_head` comes back to it.
                ShutdownKind::EndNow { .. } if state.status.is_none() => return,
                ShutdownKind::EndNow { .. } => ShutBy::EndNow(state.work().last_frame.clone()),
                ShutdownKind::Abort => ShutBy::Abort,
            }
        };
        self.shut(shut_by);
    }

    fn abort(self: Arc<Self>) {
        self.shut(ShutBy::Abort);
    }

    fn has_an_answer(&self) -> bool {
        let state = self.lock();
        match state.phase {
            Phase::Live => true,
            // Not of one that has been answered, or whose body is gone.
            Phase::Ending => {
                state.owner_ended && !state.settled && !state.unread && !state.owner_gone
            }
            Phase::Done => false,
        }
    }

    fn still_running(&self) -> Vec<String> {
        let mut state = self.lock();
        let work = state.work();
        let mut what: Vec<_> = work.tasks.names().collect();
        if let Some(at) = work.closing {
            what.push(named("closer", at));
        }
        what.extend(state.annex_running());
        if what.is_empty() {
            let left = self.left.load(Ordering::Relaxed);
            let who = if left {
                "detached work, whose client has left"
            } else {
                "response not released by its server"
            };
            what.push(who.to_owned());
        }
        what.iter().map(|what| self.named(what)).collect()
    }
}

impl Scope {
    fn shut(self: &Arc<Self>, by: ShutBy) {
        let aborts = by == ShutBy::Abort;
        self.note_shutdown(by);
        if !self.interrupt(Outcome::Shutdown, None) && aborts {
            self.cut_short();
        }
    }

    /// Its end has come, and waits for tasks: there is no more time for them.
    fn cut_short(self: &Arc<Self>) {
        let (cancellation, joiner) = {
            let mut state = self.lock();
            let waits = state.work.as_mut().filter(|work| !work.tasks.is_idle());
            let Some(work) = waits else { return };
            if work.tasks.cancelling {
                return;
            }
            work.shut_by = ShutBy::Abort;
            let told = (work.tasks.cancel_all(), work.tasks.joiner.take());
            let outcome = Outcome::Shutdown;
            state.note_failure(outcome, ended(outcome));
            told
        };
        self.cancel_unpolled(cancellation);
        joiner
            .into_iter()
            .for_each(|joiner| quietly(|| joiner.wake()));
    }

    /// Ends a child with its parent, and by whatever ended that.
    pub(super) fn end_with_parent(
        self: &Arc<Self>,
        outcome: Outcome,
        cause: Option<Cause>,
        by: ShutBy,
    ) {
        self.note_shutdown(by);
        if !self.goes_on(outcome) {
            self.interrupt(outcome, cause);
        }
    }

    fn note_shutdown(&self, by: ShutBy) {
        let mut state = self.lock();
        if state.phase == Phase::Live && by != ShutBy::Nobody {
            state.work().shut_by = by;
        }
    }
}
