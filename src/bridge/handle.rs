//! The view: what handlers, middleware and closers hold.

use std::{fmt, future::Future, panic::Location, sync::Arc, thread::ThreadId};

use super::{
    call::Call,
    closer::{Closer, Run as CloserRun},
    cx::Cx,
    error::BridgeError,
    job::Interrupt,
    local,
    session::Session,
    stuck::Stuck,
    task::{self, Run, Task},
    view,
};
use crate::{
    BoxError,
    scope::{Scope, Span},
};

/// One thread and one event loop for all sync code of a request.
///
/// Handlers extract it through a [`BridgeLayer`](super::BridgeLayer) or [`Stack`](crate::Stack). All
/// clones lead to the same thread and the same loop. The thread is taken from the pool at the first
/// use and kept until the request ends: until its response body has, and its closers have run.
///
/// Code of a request runs on one thread, so one piece runs at a time: a call that arrives while
/// other sync code computes waits for it; one that arrives while other sync code *waits* on the loop
/// runs on top of it, and the one below goes on when it is done.
///
/// | sync code that is | is given to |
/// |---|---|
/// | one piece, with a result | [`call`](Self::call) |
/// | a body, written | [`body_writer`](Self::body_writer), [`body_writer_with`](Self::body_writer_with) its [`Cx`] |
/// | a body, iterated over | [`body_from_iter`](Self::body_from_iter), [`body_try_from_iter`](Self::body_try_from_iter), [`body_from_iter_with`](Self::body_from_iter_with) |
/// | an undoing, or a commit | [`defer`](Self::defer), [`try_defer`](Self::try_defer) |
///
/// # On drop
/// Nothing: the response's scope (or the [`Context`](super::Context) that the handle came from)
/// decides when the request ends.
#[derive(Clone)]
pub struct Bridge {
    pub(super) door: Door,
}

/// Where a handle leads.
#[derive(Clone)]
pub(super) enum Door {
    Session(Arc<Session>),
    /// To the session of this scope, which is opened at the first use.
    Scope(Arc<Scope>),
}

impl Bridge {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self {
            door: Door::Session(session),
        }
    }

    pub(super) fn session(&self) -> Arc<Session> {
        match &self.door {
            Door::Session(session) => Arc::clone(session),
            Door::Scope(scope) => view::session_of(scope),
        }
    }

    /// The session if there is one: looking does not open it.
    fn opened(&self) -> Option<Arc<Session>> {
        match &self.door {
            Door::Session(session) => Some(Arc::clone(session)),
            Door::Scope(scope) => scope.opened_annex(),
        }
    }

    /// Runs sync code on the request's thread.
    ///
    /// ```
    /// # async fn example(bridge: bodyguard::bridge::Bridge) -> Result<(), bodyguard::bridge::BridgeError> {
    /// let length = bridge
    ///     .call(|cx| {
    ///         // Blocking code. To wait for async code from here:
    ///         cx.block_on(async { "hello".len() })
    ///     })
    ///     .await??;
    /// assert_eq!(length, 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Panicked`; `Exhausted` when no thread came free; `TooDeep` when sync code waits for async
    /// code that waits for this call, and so on, past the pool's depth; `OwnThread` when polled by
    /// another executor on the request's own thread; `Ended`; `Start`.
    #[track_caller]
    pub fn call<F, T>(&self, f: F) -> Call<F, T>
    where
        F: FnOnce(&Cx) -> T + Send + 'static,
        T: Send + 'static,
    {
        Call::new(self.session(), Location::caller(), f)
    }

    /// As `call`, for code that was registered somewhere else than it is called.
    pub(super) fn call_from<F, T>(&self, at: &'static Location<'static>, f: F) -> Call<F, T>
    where
        F: FnOnce(&Cx) -> T + Send + 'static,
        T: Send + 'static,
    {
        Call::new(self.session(), at, f)
    }

    /// Runs a future, which need not be `Send`, on the request's loop.
    ///
    /// The closure makes it there.
    ///
    /// # Errors
    /// As [`call`](Self::call), but never `TooDeep`.
    #[track_caller]
    pub fn run<F, Fut>(&self, f: F) -> Run<F, Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        Run::new(self.session(), Location::caller(), f)
    }

    /// Starts a future on the request's loop and does not wait for it.
    ///
    /// Unlike [`run`](Self::run) it starts at once, and goes on when the [`Task`] is dropped, until
    /// the request ends. What keeps it from starting, or ends it, is the error of the awaited [`Task`]: whoever
    /// drops that is not told.
    #[track_caller]
    pub fn spawn_local<F, Fut>(&self, f: F) -> Task<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        task::spawn(&self.session(), Location::caller(), f)
    }

    /// Waits for a future, from sync code on the request's thread.
    ///
    /// As [`Cx::block_on`], for code that was not handed a `Cx`.
    ///
    /// # Errors
    /// `ForeignThread` on any other thread, `Ended` there after the end, else as `Cx::block_on`.
    pub fn block_on<F: Future>(&self, future: F) -> Result<F::Output, BridgeError> {
        match local::current() {
            Some(local) if self.leads_to(&local.session) => Cx::new(local).block_on(future),
            _ if self.is_ended() => Err(BridgeError::ENDED),
            _ => Err(BridgeError::FOREIGN_THREAD),
        }
    }

    /// Registers sync code to run on the request's thread at the end.
    ///
    /// It is one of the response's closers, and they run last registered first, whichever view they
    /// came by, after the local tasks have been dropped. One that fails or panics is reported and
    /// the others still run; each has the layer's
    /// [`closer_limit`](crate::scope::ScopeLayer::closer_limit). [`Cx::ending`] tells it how the
    /// response ended. Without a layer it is one of the [`Context`](super::Context)'s, and may wait in
    /// `block_on` for the pool's [`closer_limit`](super::PoolBuilder::closer_limit).
    ///
    /// # Errors
    /// `Ended` once the last closer has run, or, without a layer, once the close has begun: the closer is dropped
    /// unrun, since there is no thread left that it could run on.
    #[track_caller]
    pub fn defer<F>(&self, closer: F) -> Result<(), BridgeError>
    where
        F: FnOnce(&Cx) + Send + 'static,
    {
        self.push_closer(CloserRun::Send(Box::new(move |cx| {
            closer(cx);
            Ok(())
        })))
    }

    /// Registers fallible sync code to run on the request's thread at the end.
    ///
    /// Its error fails the response as that of any closer does; without a layer it is in the
    /// [`CloseReport`](super::CloseReport).
    ///
    /// A transaction of a blocking driver, which cannot leave its thread; [`Cx::try_defer`] registers
    /// there what is not `Send`:
    ///
    /// ```
    /// # use std::{io, rc::Rc};
    /// # struct Transaction(Rc<()>);
    /// # impl Transaction {
    /// #     fn begin() -> io::Result<Self> { Ok(Self(Rc::new(()))) }
    /// #     fn commit(self) -> io::Result<()> { Ok(()) }
    /// #     fn rollback(self) -> io::Result<()> { Ok(()) }
    /// # }
    /// # use bodyguard::{BoxError, bridge::Bridge};
    /// async fn begin(bridge: &Bridge) -> Result<(), BoxError> {
    ///     bridge
    ///         .call(|cx| {
    ///             let transaction = Transaction::begin()?;
    ///             cx.try_defer(move |cx| match cx.ending() {
    ///                 Some(ending) if ending.succeeded() => transaction.commit(),
    ///                 _ => transaction.rollback(),
    ///             })?;
    ///             Ok(())
    ///         })
    ///         .await?
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`defer`](Self::defer).
    #[track_caller]
    pub fn try_defer<F, E>(&self, closer: F) -> Result<(), BridgeError>
    where
        F: FnOnce(&Cx) -> Result<(), E> + Send + 'static,
        E: Into<BoxError>,
    {
        self.push_closer(CloserRun::Send(Box::new(move |cx| {
            closer(cx).map_err(Into::into)
        })))
    }

    #[track_caller]
    fn push_closer(&self, run: CloserRun) -> Result<(), BridgeError> {
        let closer = Closer {
            run,
            called_at: Location::caller(),
            span: Span::current(),
        };
        view::register(&self.session(), closer)
    }

    fn leads_to(&self, session: &Arc<Session>) -> bool {
        self.opened()
            .is_some_and(|opened| Arc::ptr_eq(&opened, session))
    }

    /// The request's thread, once it has one.
    pub fn thread_id(&self) -> Option<ThreadId> {
        self.opened()?.thread_id()
    }

    /// Whether the request has ended, so that calls fail, or those that run can no longer wait.
    ///
    /// False again for the closers of a response that come behind these calls, since they may call
    /// and wait.
    pub fn is_ended(&self) -> bool {
        let opened = self.opened();
        opened
            .is_some_and(|session| session.is_closing() || session.is_interrupted(Interrupt::Calls))
            || matches!(&self.door, Door::Scope(scope) if scope.is_annex_closed())
    }

    /// The sync code that is running on the thread now, if any.
    pub fn stuck(&self) -> Option<Stuck> {
        self.opened()?.stuck()
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("thread", &self.thread_id())
            .finish_non_exhaustive()
    }
}
