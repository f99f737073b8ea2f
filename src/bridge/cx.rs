//! What sync code is given: the loop of its request, and what is kept for it on the thread.

use std::{any::TypeId, cell::Cell, fmt, future::Future, panic::Location, rc::Rc, sync::Arc};

use super::{
    closer::{BoundCloser, Closer, Run},
    error::BridgeError,
    handle::Bridge,
    local::{self, Local},
    task::{self, Task},
    view,
};
use crate::{BoxError, Ending, scope::Span};

/// The request's loop, in the hands of sync code on the request's thread.
///
/// It cannot leave the thread. The tokio context is the loop's, so timers and sockets may be made
/// in sync code; but wait for them with [`Cx::block_on`] only: `Handle::current().block_on(..)`
/// does not drive a loop of this kind, so it waits for ever.
pub struct Cx {
    pub(super) local: Rc<Local>,
    ending: Option<Ending>,
}

impl Cx {
    pub(super) fn new(local: Rc<Local>) -> Self {
        Self {
            local,
            ending: None,
        }
    }

    /// The same, for a closer of a response that ended so.
    pub(super) fn at_end(&self, ending: Ending) -> Self {
        Self {
            local: Rc::clone(&self.local),
            ending: Some(ending),
        }
    }

    /// How the response ended, in its bridge closers: what a commit or rollback is decided by.
    ///
    /// `None` in any other code, and in the closers of a [`Context`](super::Context), which serves no
    /// response. See [`Bridge::try_defer`] for an example.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Gives `f` the request of the calling thread, if it is a bridge thread.
    ///
    /// This is how code that is called without a `Cx`, an iterator or a library's callback, comes
    /// by one. It has no [`ending`](Self::ending).
    pub fn with_current<R>(f: impl FnOnce(&Cx) -> R) -> Option<R> {
        local::current().map(|local| f(&Cx::new(local)))
    }

    /// Runs a future on the request's loop and waits for it.
    ///
    /// While it waits the request's local tasks go on, and so do other calls of the same request:
    /// a call that arrives, from this future or from elsewhere, runs on top of this one. The
    /// future given here may borrow; it is not polled while such a nested call runs. A future that
    /// a nested call waits for belongs into a local task ([`Cx::spawn_local`]), which is.
    ///
    /// # Errors
    /// `InsideLoop` when called by async code that the loop is running, `Ended` when the request
    /// ends while it waits, `Cancelled` when the caller of this sync code has dropped its call. The
    /// future is dropped.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, BridgeError> {
        self.local.block_on(self, future)
    }

    /// Starts a future, which need not be `Send`, as a task of the request.
    ///
    /// It runs whenever the thread drives its loop: between calls and in every `block_on`.
    ///
    /// # On drop
    /// A dropped [`Task`] lets the future run on, until the request ends.
    #[track_caller]
    pub fn spawn_local<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        task::spawn_here(self, Location::caller(), future)
    }

    /// Keeps a value for the request on its thread, one of each type.
    ///
    /// It need not be `Send`: an embedded engine, say, that every call of the request uses. It is
    /// dropped on this thread after the closers. Returns the one that was there before.
    pub fn insert<T: 'static>(&self, value: T) -> Option<Rc<T>> {
        let old = self
            .local
            .values
            .borrow_mut()
            .insert(TypeId::of::<T>(), Rc::new(value));
        old.and_then(|old| old.downcast().ok())
    }

    /// The value of this type that was kept for the request.
    pub fn get<T: 'static>(&self) -> Option<Rc<T>> {
        let value = self.local.values.borrow().get(&TypeId::of::<T>()).cloned();
        value.and_then(|value| value.downcast().ok())
    }

    /// Takes a kept value out.
    pub fn remove<T: 'static>(&self) -> Option<Rc<T>> {
        let value = self.local.values.borrow_mut().remove(&TypeId::of::<T>());
        value.and_then(|value| value.downcast().ok())
    }

    /// Registers sync code to run on this thread at the end; it need not be `Send`.
    ///
    /// See [`Bridge::defer`], and [`Bridge::try_defer`] for an example that commits or rolls back.
    ///
    /// # Errors
    /// `Ended` once the last closer has run.
    #[track_caller]
    pub fn defer<F>(&self, closer: F) -> Result<(), BridgeError>
    where
        F: FnOnce(&Cx) + 'static,
    {
        self.push_closer(Box::new(move |cx| {
            closer(cx);
            Ok(())
        }))
    }

    /// Registers fallible sync code to run on this thread at the end.
    ///
    /// # Errors
    /// `Ended` once the last closer has run.
    #[track_caller]
    pub fn try_defer<F, E>(&self, closer: F) -> Result<(), BridgeError>
    where
        F: FnOnce(&Cx) -> Result<(), E> + 'static,
        E: Into<BoxError>,
    {
        self.push_closer(Box::new(move |cx| closer(cx).map_err(Into::into)))
    }

    #[track_caller]
    fn push_closer(&self, closer: BoundCloser) -> Result<(), BridgeError> {
        let index = {
            let mut closers = self.local.closers.borrow_mut();
            closers.push(Some(closer));
            closers.len() - 1
        };
        let entry = Closer {
            run: Run::Bound(index),
            called_at: Location::caller(),
            span: Span::current(),
        };
        let session = &self.local.session;
        let registered = match &session.scope {
            Some(_) => view::register(session, entry),
            None => session
                .push_closer_here(entry)
                .map_err(|_| BridgeError::ENDED),
        };
        registered.inspect_err(|_| self.forget_closer(index))
    }

    fn forget_closer(&self, index: usize) {
        let refused = self.local.closers.borrow_mut()[index].take();
        drop(refused);
    }

    /// The handle of this request, to be kept or sent elsewhere.
    pub fn bridge(&self) -> Bridge {
        Bridge::new(Arc::clone(&self.local.session))
    }

    /// Whether the request has ended, so that waiting would fail; for code that computes.
    ///
    /// True as well once the caller of this code has dropped its call. False in closers, as long as
    /// those may wait.
    pub fn is_ended(&self) -> bool {
        self.local.is_wait_over()
    }

    pub(super) fn alive(&self) -> Rc<Cell<usize>> {
        Rc::clone(&self.local.alive)
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").finish_non_exhaustive()
    }
}
