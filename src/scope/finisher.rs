//! The second of an owner's two guards, whose drop tears down; see [`owner`](super::owner).

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    driving::Driven,
    failure::{Failure, Payload},
    machine::Scope,
    teardown::{self, Teardown},
    verdict::Verdict,
};
use crate::{error::Cause, outcome::Outcome};

/// Tears a scope down: polled by the owner, or moved to a task when the owner is dropped.
pub(super) struct Finisher {
    scope: Option<Arc<Scope>>,
    running: Option<Running>,
}

/// A teardown under way.
enum Running {
    /// Its owner polls it, or drops it.
    Here(Teardown),
    /// It goes on if the owner is not polled.
    Driven(Driven),
}

impl Finisher {
    pub(super) fn new(scope: Option<Arc<Scope>>) -> Self {
        Self {
            scope,
            running: None,
        }
    }

    /// Runs the teardown to its end; nothing is boxed if nothing is left to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        let Some(scope) = &self.scope else {
            return Poll::Ready(None);
        };
        let verdict = match &mut self.running {
            Some(Running::Here(teardown)) => {
                ready!(teardown::poll(scope.runtime.as_ref(), teardown, cx))
            }
            Some(Running::Driven(driven)) => ready!(driven.poll(cx)),
            None => match scope.try_finish() {
                Some(finished) => finished.announce(scope),
                None => {
                    let mut teardown = teardown::teardown(scope.clone());
                    match teardown::poll(scope.runtime.as_ref(), &mut teardown, cx) {
                        Poll::Ready(verdict) => verdict,
                        Poll::Pending => {
                            self.running = Some(Running::Here(teardown));
                            return Poll::Pending;
                        }
                    }
                }
            },
        };
        self.running = None;
        self.scope = None;
        Poll::Ready(Some(verdict))
    }

    /// The same before a head: one of several attempts may be kept without being polled, while its parent waits.
    pub(super) fn poll_before_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        let scope = self.scope.as_ref();
        match scope.is_some_and(|scope| scope.parent.get().is_some()) {
            true => self.poll_driven(cx),
            false => self.poll(cx),
        }
    }

    /// The same behind a body, which its server may not ask for long: the teardown does not wait for that.
    pub(super) fn poll_driven(&mut self, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        if let Poll::Ready(verdict) = self.poll(cx) {
            return Poll::Ready(verdict);
        }
        match self.running.take() {
            Some(Running::Here(teardown)) => {
                let runtime = self.scope.as_ref().and_then(|scope| scope.runtime.clone());
                self.running = Some(Running::Driven(Driven::new(teardown, runtime)));
                // With the waker of both.
                self.poll(cx)
            }
            running => {
                self.running = running;
                Poll::Pending
            }
        }
    }

    /// The inner body panicked in its drop, when its end was told but nothing is torn down yet.
    pub(super) fn body_panicked(&self, payload: Payload) -> Cause {
        let Some(scope) = &self.scope else {
            // Nobody here accounts for it.
            payload.resume();
        };
        let cause = body_panic(&payload);
        let told = scope.lock().body_failed(Outcome::Panicked, cause.clone());
        told.fire();
        cause
    }

    /// What a client is shown of that if holds keep the scope open.
    pub(super) fn broken_by(&self, panicked: Cause) -> Option<Verdict> {
        self.scope
            .as_ref()?
            .broken(Outcome::Panicked, Some(panicked.into()))
    }

    /// There is nothing to tear down.
    pub(super) fn give_up(&mut self) {
        self.scope = None;
    }

    /// The owner goes and the holds stay.
    pub(super) fn leave_to_holds(&mut self) {
        if let Some(scope) = self.scope.take() {
            if scope.leave_to_holds() {
                teardown::detach(scope);
            }
        }
    }
}

impl Default for Finisher {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Drop for Finisher {
    #[inline]
    fn drop(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.tear_down(scope);
        }
    }
}

impl Finisher {
    /// Leaves what is not torn down yet to a task.
    #[inline(never)]
    fn tear_down(&mut self, scope: Arc<Scope>) {
        scope.note_drop();
        match self.running.take() {
            Some(running) => {
                scope.let_go();
                match running {
                    Running::Here(teardown) => teardown::spawn(scope.runtime.clone(), teardown),
                    Running::Driven(driven) => driven.leave(),
                }
            }
            None => {
                if scope.leave_to_holds() {
                    teardown::detach(scope);
                }
            }
        }
    }
}

impl std::fmt::Debug for Finisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finisher")
            .field("scope", &self.scope)
            .field("running", &self.running.is_some())
            .finish()
    }
}

impl Scope {
    /// The finisher is dropped before the end was shown. A panic that has begun since the drop of the owner is
    /// that of the inner drop.
    fn note_drop(&self) {
        let mut state = self.lock();
        state.unread = true;
        let dropped = state.dropping.take().filter(|_| std::thread::panicking());
        let failure = dropped.map(Failure::unseen_panic);
        let told = failure.map(|failure| state.body_failed(Outcome::Panicked, failure.into()));
        drop(state);
        told.unwrap_or_default().fire();
    }
}

/// A body's panic in its drop, as a cause.
fn body_panic(payload: &Payload) -> Cause {
    Failure::panicked("response body", &**payload).into()
}
