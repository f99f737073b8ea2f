//! Keeping a scope open past its body: for upgrades, and for work the response does not wait for.

use std::{
    fmt, mem,
    sync::{Arc, MutexGuard, Weak, atomic::Ordering},
};

use super::{
    failure::ended,
    machine::{Scope, Started},
    state::{Phase, State},
};
use crate::{error::BodyError, outcome::Outcome};

/// Keeps a scope open past the end of its body, without delaying that end.
///
/// A WebSocket task holds the scope of its upgrade request, so that closers run when the socket
/// is done and not before the 101. The teardown starts when the last hold goes; a body that ended
/// badly keeps its outcome, otherwise the hold's word counts. Work that chose to run on without its
/// client ([`OnLeave`](crate::disconnect::OnLeave)) ends at that word, too.
///
/// **On drop** without [`Hold::finish`]: the scope is `Cancelled`.
#[must_use = "a dropped hold cancels the scope"]
pub struct Hold {
    scope: Option<Arc<Scope>>,
}

impl Hold {
    /// A hold on a live scope; on an ended one it holds nothing.
    pub(crate) fn on(scope: &Arc<Scope>) -> Self {
        Self {
            scope: scope.hold().then(|| scope.clone()),
        }
    }

    /// Lets go and says how the held work came out.
    pub fn finish(mut self, outcome: Outcome) {
        self.release(outcome);
    }

    /// Whether the scope's end has not started: false after a shutdown or a cancel.
    pub fn is_live(&self) -> bool {
        self.scope.as_ref().is_some_and(|scope| scope.is_live())
    }

    fn release(&mut self, outcome: Outcome) {
        if let Some(scope) = self.scope.take() {
            scope.release_hold(outcome);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release(Outcome::Cancelled);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("scope", &self.scope).finish()
    }
}

impl Scope {
    /// Keeps the scope open past its body; false if it has ended.
    pub(crate) fn hold(&self) -> bool {
        let live = {
            let mut state = self.lock();
            let live = state.phase == Phase::Live;
            if live {
                state.used = true;
                state.work().holds += 1;
            }
            live
        };
        if live && self.answers.load(Ordering::Acquire) {
            if let Some(parent) = self.parent.get().and_then(Weak::upgrade) {
                parent.hold_with(self);
            }
        }
        live
    }

    /// What keeps a child open whose response is ours keeps us open, too: all its holds together are one of ours.
    pub(super) fn hold_with(&self, child: &Scope) {
        let parent = child.parent.get().and_then(Weak::upgrade);
        if !parent.is_some_and(|parent| std::ptr::eq(&*parent, self)) {
            return;
        }
        let further_out = {
            let mut state = self.lock();
            let mut theirs = child.lock();
            let held = theirs.phase == Phase::Live && theirs.work.is_some();
            let new = held && theirs.work().holds > 0 && !theirs.work().holds_parent;
            if !new || state.phase != Phase::Live {
                return;
            }
            theirs.work().holds_parent = true;
            state.used = true;
            state.work().holds += 1;
            self.answers.load(Ordering::Acquire)
        };
        if further_out {
            if let Some(parent) = self.parent.get().and_then(Weak::upgrade) {
                parent.hold_with(self);
            }
        }
    }

    /// A hold goes, with what it makes of the outcome. The end starts under the same lock: no hold can be
    /// taken in between.
    pub(crate) fn release_hold(self: &Arc<Self>, outcome: Outcome) {
        let mut state = self.lock();
        let live = state.phase == Phase::Live;
        let work = state.work();
        work.holds -= 1;
        if work.held.is_complete() {
            work.held = outcome;
        }
        if work.holds > 0 {
            return;
        }
        let held = work.held;
        let parent = mem::take(&mut work.holds_parent)
            .then(|| self.parent.get().and_then(Weak::upgrade))
            .flatten();
        match work.body_end.as_ref().map(|&(first, _)| first) {
            _ if !live => drop(state),
            // The body ended badly before: the first cause wins, and is known.
            Some(first) if !first.is_complete() => self.end_held(state, first),
            _ if !held.is_complete() => {
                self.interrupt_under(state, held, BodyError::from(ended(held)));
            }
            Some(first) => self.end_held(state, first),
            None => drop(state),
        }
        // Behind the start of our end, for which it waits.
        if let Some(parent) = parent {
            parent.release_hold(held);
        }
    }

    fn end_held(self: &Arc<Self>, state: MutexGuard<'_, State>, outcome: Outcome) {
        if self.start(state, outcome, None, false) == Started::WithoutOwner {
            super::teardown::detach(self.clone());
        }
    }
}
