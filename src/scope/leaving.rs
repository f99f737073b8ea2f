//! What becomes of a scope whose client stops reading, or leaves.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use http::Version;

use super::{
    machine::Scope,
    options::OnLeave,
    state::{Phase, State},
    verdict::failure_status,
};
use crate::outcome::Outcome;

impl Scope {
    /// The server has asked for nothing for too long.
    pub(super) fn stalled(self: &Arc<Self>) {
        if !self.is_live() || !self.interrupt(Outcome::Stalled, None) {
            return;
        }
        let parent = self.parent.get().and_then(Weak::upgrade);
        // One of several attempts, and not (yet) the answer: a mirror, read by the application.
        let cloned = |parent: &Arc<Scope>| parent.cloned.load(Ordering::Acquire);
        if parent.as_ref().is_some_and(cloned) && !self.answers.load(Ordering::Acquire) {
            return;
        }
        // On HTTP/2 the other streams of the connection may fare well.
        if self.version < Version::HTTP_2 {
            self.connection.reset();
        }
        if let Some(parent) = parent {
            parent.stalled();
        }
    }

    /// The client has gone: the outermost scope of the response hears of it first. False if it goes on.
    pub(super) fn client_left(self: &Arc<Self>) -> bool {
        self.lock().client_gone = true;
        let parent = self.parent.get().and_then(Weak::upgrade);
        if parent.is_some_and(|parent| parent.is_live() && !parent.client_left()) {
            return false;
        }
        let outcome = Outcome::Disconnected;
        !self.goes_on(outcome) && self.interrupt(outcome, None)
    }

    /// The server has dropped a response whose end it has not seen: its client has left, unless that would
    /// be known, and is sent nothing in its place.
    pub(super) fn let_go(&self) {
        let mut state = self.lock();
        state.before_head = false;
        // A drain drops what it has aborted.
        let aborted = state.outcome == Outcome::Shutdown;
        let told = state.settled || self.connection.tells_leaves(self.version);
        state.client_gone |= !aborted && !told;
    }

    /// What is to happen when the client leaves. False if the layer is not armed for it.
    pub(crate) fn set_on_leave(&self, then: OnLeave) -> bool {
        if !self.movable {
            // An attempt of a cloned request: what moves is the owner around all of them.
            let parent = self.parent.get().and_then(Weak::upgrade);
            return parent.is_some_and(|parent| parent.set_on_leave(then));
        }
        let mut state = self.lock();
        let armed = state.options(self).detachable.is_some();
        if armed {
            state.on_leave = then;
        }
        armed
    }

    /// The client has left: how long the work goes on without it. `None`: it ends.
    pub(super) fn leave(&self) -> Option<Duration> {
        let (limit, signals) = {
            let mut state = self.lock();
            let longest = state.options(self).detachable?;
            // Behind the body's end there are only holds, whose word decides.
            if state.phase != Phase::Live || state.owner_ended {
                return None;
            }
            let chosen = match state.on_leave {
                OnLeave::Cancel => return None,
                OnLeave::Detach => (longest, None),
                // Told as if the body had ended, with work still to do.
                OnLeave::Grace(grace) => {
                    (grace.min(longest), Some(state.signals.body_ended(false)))
                }
            };
            state.client_gone = true;
            chosen
        };
        self.left.store(true, Ordering::Release);
        if let Some(signals) = signals {
            signals.fire();
        }
        Some(limit)
    }

    /// Whether the work goes on although its client has left.
    pub(super) fn goes_on(&self, outcome: Outcome) -> bool {
        matches!(outcome, Outcome::Disconnected | Outcome::Dropped) && self.leave().is_some()
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

impl State {
    /// Looks whether the client has gone, until it is shown the end: what it does behind that is its own
    /// affair.
    pub(super) fn look_for_client(&mut self, scope: &Scope) {
        let work = self.work.as_deref();
        let shown = self.settled || work.is_some_and(|work| work.body_end.is_some());
        self.client_gone |= !shown && scope.connection.has_left();
    }

    /// The status of what the owner answers in place of a response. One who has gone is not answered.
    pub(super) fn note_answer(&mut self) {
        let answered = !matches!(self.outcome, Outcome::Complete | Outcome::Disconnected);
        if self.before_head && answered {
            self.status = Some(failure_status(self.outcome));
        }
    }

    /// The client is shown the outcome now.
    pub(super) fn settle(&mut self, scope: &Scope) {
        self.look_for_client(scope);
        self.settled = true;
    }
}
