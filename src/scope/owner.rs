//! The first of an owner's two guards, whose drop starts the end.
//!
//! An owner (future or body) holds, in this order, an [`Owner`], the inner future or body, and a
//! [`Finisher`](super::finisher::Finisher), whose drop tears down. Field order is drop order: signals
//! fire, then the inner value goes, then closers run.

use std::{cell::Cell, mem, sync::Arc, task::Context, thread};

use super::{
    connection::{Connection, Watch},
    detector::Detector,
    failure::Failure,
    judge::Kept,
    machine::{OwnerEnd, Parting, Scope},
};
use crate::{
    error::{BodyError, Cause},
    outcome::Outcome,
};

/// Starts the end of its scope when dropped before it was told how the end came.
#[derive(Debug)]
pub(super) struct Owner {
    role: Role,
    pub(super) detector: Detector,
    /// Set before each call into inner code and cleared after: still set means it panicked. Hints are asked
    /// for through a shared reference.
    mark: Cell<Runs>,
    /// A response head has passed: whoever drops us now drops a body.
    body: bool,
    /// The frame that reaches the promised length waits for what follows it.
    pub(super) withheld: bool,
    watch: Watch,
}

/// Inner code, as a failure names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    Nothing,
    Handler,
    Body,
}

#[derive(Debug)]
enum Role {
    /// The scope is ours.
    Root(Arc<Scope>),
    /// The scope belongs to an outer layer; we only notice a lost handler.
    Joined(Arc<Scope>),
    /// The scope was ours, and came to its head with nothing registered and nobody left who could:
    /// no end is to be told. The client is still to see a broken body as one.
    Unreached(Arc<Scope>),
    /// Nothing to tell any more.
    Free,
}

impl Owner {
    pub(super) fn root(scope: Arc<Scope>) -> Self {
        Self::new(Role::Root(scope))
    }

    pub(super) fn joined(scope: Arc<Scope>) -> Self {
        Self::new(Role::Joined(scope))
    }

    /// An owner of nothing: the end is told, or was never ours.
    pub(super) fn free() -> Self {
        Self::new(Role::Free)
    }

    fn new(role: Role) -> Self {
        Self {
            role,
            detector: Detector::default(),
            mark: Cell::new(Runs::Nothing),
            body: false,
            withheld: false,
            watch: Watch::default(),
        }
    }

    /// Whether there is work left that polling would do.
    pub(super) fn is_under_way(&self) -> bool {
        !self.has_panicked() && !self.is_whole()
    }

    /// Every byte that was promised has been given to the server.
    fn is_whole(&self) -> bool {
        let whole = self.detector.promised() == Some(self.detector.produced());
        self.body && whole && !self.withheld
    }

    /// The scope, if it is ours and its end is not told yet.
    pub(super) fn scope(&self) -> Option<&Arc<Scope>> {
        match &self.role {
            Role::Root(scope) => Some(scope),
            Role::Joined(_) | Role::Unreached(_) | Role::Free => None,
        }
    }

    /// The scope, if it is or was ours: what it knows of the request.
    pub(super) fn known(&self) -> Option<&Arc<Scope>> {
        match &self.role {
            Role::Root(scope) | Role::Unreached(scope) => Some(scope),
            Role::Joined(_) | Role::Free => None,
        }
    }

    /// The end of the scope concerns nobody any more.
    pub(super) fn leave_unreached(&mut self) {
        self.role = match mem::replace(&mut self.role, Role::Free) {
            Role::Root(scope) => Role::Unreached(scope),
            other => other,
        };
    }

    pub(super) fn is_unreached(&self) -> bool {
        matches!(self.role, Role::Unreached(_))
    }

    /// Runs inner code under the mark.
    #[inline]
    pub(super) fn marked<T>(&self, runs: Runs, inner: impl FnOnce() -> T) -> T {
        self.mark(runs);
        let result = inner();
        self.unmark();
        result
    }

    /// The same where that is several calls.
    #[inline]
    pub(super) fn mark(&self, runs: Runs) {
        self.mark.set(runs);
    }

    #[inline]
    pub(super) fn unmark(&self) {
        self.mark.set(Runs::Nothing);
    }

    /// The head has passed and the body streams, watched by `detector`.
    pub(super) fn streams(&mut self, detector: Detector) {
        self.detector = detector;
        self.body = true;
        // Now, since most of what breaks a body takes its connection first. A server that has sent all of
        // it shuts the connection down, which is no reset.
        if self.detector.promised().is_none() {
            let connection = self
                .known()
                .and_then(|scope| scope.ends_with_its_connection());
            connection.into_iter().for_each(Connection::end_in_reset);
        }
    }

    /// Tells how the end came, and what is kept back for the teardown.
    pub(super) fn end(
        &mut self,
        outcome: Outcome,
        error: Option<BodyError>,
        kept: Option<Kept>,
    ) -> Parting {
        match mem::replace(&mut self.role, Role::Free) {
            Role::Root(scope) => {
                // Whoever read the upload has seen that before us, and reacted.
                if !self.has_panicked() && scope.connection.has_aborted() {
                    scope.client_left();
                }
                close_upload(&scope);
                // Under a promised length a further frame would count as content.
                let speaks = self.body && self.detector.promised().is_none();
                scope.owner_ended(outcome, error, OwnerEnd { speaks, kept })
            }
            // There is no teardown to wait for.
            Role::Unreached(_) if outcome.is_complete() => Parting::Leave(None),
            Role::Unreached(scope) => {
                Parting::Leave(scope.lock().broken_on(&scope, outcome, error))
            }
            Role::Joined(_) | Role::Free => Parting::TearDown,
        }
    }

    /// The inner code is pending: remembers who polls, and looks after the connection.
    ///
    /// True if the end has come from elsewhere: an interruption, or the client's going.
    pub(super) fn watch(&mut self, cx: &mut Context<'_>) -> bool {
        let scope = match &self.role {
            Role::Root(scope) => scope,
            Role::Unreached(scope) => return self.watch.poll(&scope.connection, cx),
            Role::Joined(_) | Role::Free => return false,
        };
        scope.watch(cx.waker());
        let upload = scope.connection.upload();
        let aborted = upload.is_some_and(|upload| upload.poll(cx));
        if self.watch.poll(&scope.connection, cx) || aborted {
            scope.client_left();
        }
        scope.is_interrupted()
    }

    /// A joined layer's handler has answered: nothing was lost.
    pub(super) fn release(&mut self) {
        self.role = Role::Free;
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::free()
    }
}

impl Drop for Owner {
    #[inline]
    fn drop(&mut self) {
        // Most have told their end by now, or have none to tell.
        if let Role::Root(_) | Role::Joined(_) = self.role {
            self.end_dropped();
        }
    }
}

impl Owner {
    #[inline(never)]
    fn end_dropped(&mut self) {
        match mem::replace(&mut self.role, Role::Free) {
            Role::Root(scope) => {
                scope.lock().dropping = (!thread::panicking()).then(|| self.inner_name());
                let (outcome, cause) = self.dropped(&scope);
                if self.body && !self.has_panicked() && !outcome.is_complete() {
                    scope.let_go();
                }
                close_upload(&scope);
                let end = OwnerEnd::default();
                scope.owner_ended(outcome, cause.map(BodyError::from), end);
            }
            Role::Joined(scope) => scope.lock().handler_lost = true,
            Role::Unreached(_) | Role::Free => {}
        }
    }

    /// What a drop before the end means.
    fn dropped(&self, scope: &Scope) -> (Outcome, Option<Cause>) {
        if self.has_panicked() {
            (Outcome::Panicked, Some(self.panic_cause()))
        } else if self.is_whole() {
            (Outcome::Complete, None)
        } else if scope.connection.has_left() {
            (Outcome::Disconnected, None)
        } else {
            (Outcome::Dropped, None)
        }
    }

    /// Inner code panicked: the mark was never cleared.
    #[inline]
    pub(super) fn has_panicked(&self) -> bool {
        self.mark.get() != Runs::Nothing
    }

    pub(super) fn panic_cause(&self) -> Cause {
        Failure::unseen_panic(self.inner_name()).into()
    }

    /// What it owns, as a failure names it. A body is asked for its hints before its head has passed.
    fn inner_name(&self) -> &'static str {
        match self.body || self.mark.get() == Runs::Body {
            true => "response body",
            false => "handler",
        }
    }
}

/// The response is over; an attempt's end is not that of the request.
fn close_upload(scope: &Scope) {
    if scope.parent.get().is_none() {
        scope.connection.close_upload();
    }
}
