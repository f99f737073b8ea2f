//! The bridge as a view: how it is found, and how its end is tied to the scope's.

use std::{
    any::Any,
    panic::Location,
    sync::{Arc, Weak},
    time::Duration,
};

use http::{Extensions, Request};

use super::{
    closer::{BoundCloser, Closer, Run},
    context::{Close, CloseReport, end_tasks},
    cx::Cx,
    error::BridgeError,
    handle::{Bridge, Door},
    pool::Pool,
    session::Session,
};
use crate::{
    Ending, TaskResult,
    scope::{
        self, Annex, AnnexClosed, AnnexFuture, Fixed, MissingLayer, Scope, ScopeLayer, Sealed,
        Unrun, View,
    },
};

/// The layer that gives handlers [`Bridge`].
///
/// Nothing is started by it: a request that does not use its bridge costs no thread and no
/// allocation.
///
/// `M` is its mode: see [`ScopeLayer`].
pub type BridgeLayer<M = Fixed> = ScopeLayer<Bridge, M>;

impl<M> ScopeLayer<Bridge, M> {
    /// Takes the threads from `pool` (the [global one](Pool::global)).
    pub fn pool(self, pool: &Pool) -> Self {
        self.annex_settings(pool.clone())
    }
}

impl Bridge {
    /// The bridge of this request, for services without extractors.
    ///
    /// # Errors
    /// [`MissingLayer`] without a [`BridgeLayer`] or [`Stack`](crate::Stack) around.
    pub fn of<B>(request: &Request<B>) -> Result<Self, MissingLayer> {
        Self::from_extensions(request.extensions())
    }

    /// The same for code that answers with a [`BridgeError`].
    pub(super) fn find(extensions: &Extensions) -> Result<Self, BridgeError> {
        Self::from_extensions(extensions).map_err(|_| BridgeError::MISSING)
    }
}

impl Sealed for Bridge {
    const BITS: u8 = 8;
    const VIEW: &'static str = "Bridge";
    const LAYER: &'static str = "BridgeLayer";

    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn through(scope: Arc<Scope>) -> Self {
        Self {
            door: Door::Scope(scope),
        }
    }
}

/// The session of the scope, opened at the first use.
pub(super) fn session_of(scope: &Arc<Scope>) -> Arc<Session> {
    let open = |settings: Option<&(dyn Any + Send + Sync)>, scope: Weak<Scope>| {
        let pool = settings.and_then(|settings| settings.downcast_ref::<Pool>());
        Session::new(pool.cloned().unwrap_or_else(Pool::global), scope)
    };
    scope
        .annex(open)
        .unwrap_or_else(|| Session::ended(Pool::global()))
}

/// Registers a closer: among those of the scope, so that all run in one order, or the session's own.
pub(super) fn register(session: &Arc<Session>, closer: Closer) -> Result<(), BridgeError> {
    let Some(scope) = &session.scope else {
        return session.push_closer(closer).map_err(|_| BridgeError::ENDED);
    };
    let scope = scope.upgrade().ok_or(BridgeError::ENDED)?;
    let (at, run) = (closer.called_at, closer.run);
    let bridge = Bridge::new(Arc::clone(session));
    let closer = scope::Closer::new(move |ending| close(bridge, at, run, ending)).registered_at(at);
    scope
        .defer_with_annex(closer)
        .map_err(|_| BridgeError::ENDED)
}

/// A closer of the scope that runs on the request's thread.
async fn close(
    bridge: Bridge,
    at: &'static Location<'static>,
    run: Run,
    end: Ending,
) -> TaskResult {
    let closed = bridge.call_from(at, move |cx| {
        let cx = &cx.at_end(end);
        match run {
            Run::Send(run) => run(cx),
            Run::Bound(index) => match take_bound(cx, index) {
                Some(run) => run(cx),
                None => Ok(()),
            },
        }
    });
    match closed.await {
        Ok(result) => result,
        Err(error) => match error.panic_message() {
            // To be counted as the panic that it is; its own report has been made.
            Some(message) => std::panic::resume_unwind(Box::new(message.to_owned())),
            // Any other error stands for a closure that was dropped as it was.
            None => Err(Unrun(error.into()).into()),
        },
    }
}

fn take_bound(cx: &Cx, index: usize) -> Option<BoundCloser> {
    cx.local.closers.borrow_mut().get_mut(index)?.take()
}

impl Annex for Session {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn close_if_idle(&self) -> bool {
        self.end_if_idle()
    }

    fn is_producing(&self) -> bool {
        Session::is_producing(self)
    }

    fn end_tasks(self: Arc<Self>) -> AnnexFuture<Result<u64, String>> {
        let ended = end_tasks(&self);
        Box::pin(async move {
            let tasks = ended.await.ok_or_else(|| {
                let what = self.running_now();
                what.unwrap_or_else(|| "thread of the request".into())
            });
            tasks.map(|tasks| tasks as u64)
        })
    }

    fn close(self: Arc<Self>, overran: bool) -> AnnexFuture<AnnexClosed> {
        let close = Close::of(&self, overran);
        Box::pin(async move {
            match close.report().await {
                Some(report) => AnnexClosed::from(report),
                // Named by what runs now, which may be the drop of a value.
                None => {
                    // A `Drop` that waits on the loop is told to give up.
                    self.interrupt_closers();
                    AnnexClosed {
                        stuck: self.running_now(),
                        ..AnnexClosed::default()
                    }
                }
            }
        })
    }

    fn limit(&self) -> Duration {
        self.pool.config().close_limit
    }

    fn still_running(&self) -> Option<String> {
        self.running_now()
    }

    fn keep(&self, value: Box<dyn Any + Send>) {
        self.keep_until_done(value);
    }
}

impl From<CloseReport> for AnnexClosed {
    fn from(report: CloseReport) -> Self {
        Self {
            tasks_cancelled: report.tasks_cancelled as u64,
            closers_run: report.closers_run as u64,
            closers_unrun: report.unrun as u64,
            failures: report.failures,
            stuck: None,
        }
    }
}
