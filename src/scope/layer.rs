//! The layer and service of every view: they differ in a type parameter only.

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    body::ScopeBody,
    entry::{Arriving, Entered, View, enter},
    future::ScopeFuture,
    observe,
    options::{FailurePolicy, Options, Shutdown},
    owner::{Finisher, Owner},
};
use crate::{
    error::BoxError,
    outcome::{EndReport, Outcome},
    supervisor::Supervisor,
};

/// Gives every response an owner, and its handler the view `V`.
///
/// The first scope layer that a request meets opens the scope; those further in join it, so the
/// order of layers does not matter and teardown has one order. An option set on an inner layer wins
/// over an outer one; `on_end` hooks add up; the outermost layer's supervisor is everyone's.
///
/// Known by the names of its views: [`CleanupLayer`](crate::CleanupLayer),
/// [`TaskGroupLayer`](crate::TaskGroupLayer), [`DisconnectLayer`](crate::DisconnectLayer),
/// `BridgeLayer`.
pub struct ScopeLayer<V> {
    options: Arc<Options>,
    supervisor: Supervisor,
    clock: bool,
    view: PhantomData<fn() -> V>,
}

impl<V> ScopeLayer<V> {
    /// The layer with its defaults, under a private supervisor.
    pub fn new() -> Self {
        Self {
            options: Arc::default(),
            supervisor: Supervisor::new(),
            clock: observe::ON,
            view: PhantomData,
        }
    }

    /// Enters the scopes that this layer opens with `supervisor`, for snapshots and the drain.
    pub fn supervisor(mut self, supervisor: &Supervisor) -> Self {
        self.supervisor = supervisor.clone();
        self.clock = true;
        self
    }

    /// How long one closer may take before it is aborted (30 s).
    pub fn closer_limit(self, limit: Duration) -> Self {
        self.with(|options| options.closer_limit = Some(limit))
    }

    /// How long tasks are waited for at a natural end (30 s); then they are cancelled, and the
    /// response fails. Also how long aborted tasks are waited for.
    pub fn join_limit(self, limit: Duration) -> Self {
        self.with(|options| options.join_limit = Some(limit))
    }

    /// How long cancelled graceful tasks have before they are aborted (1 s).
    pub fn cancel_grace(self, grace: Duration) -> Self {
        self.with(|options| options.cancel_grace = Some(grace))
    }

    /// How long an error waits behind the last frame (10 ms).
    ///
    /// hyper throws away what it has buffered when a body fails at once: without the gap the frames
    /// sent just before a failure are lost.
    pub fn error_gap(self, gap: Duration) -> Self {
        self.with(|options| options.error_gap = Some(gap))
    }

    /// What a failing task does to its siblings (`CancelSiblings`).
    pub fn failure_policy(self, policy: FailurePolicy) -> Self {
        self.with(|options| options.failure_policy = Some(policy))
    }

    /// What a draining supervisor does to these responses (`Shutdown::finish()`).
    pub fn shutdown(self, policy: Shutdown) -> Self {
        self.with(|options| options.shutdown = Some(Arc::new(policy)))
    }

    /// Another rule for [`Ending::succeeded`](crate::Ending::succeeded) than complete and below 400.
    ///
    /// A failed task or closer, or a lost handler, makes it false whatever the rule says. The rule
    /// is asked while the scope is locked: it must only look at its arguments.
    pub fn succeeded_when(
        self,
        rule: impl Fn(Outcome, Option<StatusCode>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.with(|options| options.succeeded_when = Some(Arc::new(rule)))
    }

    /// Is given the report of every response, after its teardown.
    ///
    /// It runs where the teardown ended, once per response; it should not block. Its panic is
    /// contained.
    pub fn on_end(mut self, hook: impl Fn(&EndReport) + Send + Sync + 'static) -> Self {
        self.clock = true;
        self.with(|options| options.on_end.push(Arc::new(hook)))
    }

    /// What the annex of these scopes is set up with.
    #[cfg_attr(
        not(feature = "bridge"),
        allow(dead_code, reason = "for the one view that has an annex")
    )]
    pub(crate) fn annex_settings(self, settings: impl std::any::Any + Send + Sync) -> Self {
        self.with(|options| options.annex = Some(Arc::new(settings)))
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(Arc::make_mut(&mut self.options));
        self
    }
}

impl<V> Default for ScopeLayer<V> {
    fn default() -> Self {
        Self::new()
    }
}

// By hand: `V` is a phantom and need not be `Clone`.
impl<V> Clone for ScopeLayer<V> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            supervisor: self.supervisor.clone(),
            clock: self.clock,
            view: PhantomData,
        }
    }
}

impl<V> fmt::Debug for ScopeLayer<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeLayer")
            .field("options", &self.options)
            .field("supervisor", &self.supervisor)
            .finish_non_exhaustive()
    }
}

impl<S, V> Layer<S> for ScopeLayer<V> {
    type Service = ScopeService<S, V>;

    fn layer(&self, inner: S) -> Self::Service {
        ScopeService {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of a [`ScopeLayer`].
pub struct ScopeService<S, V> {
    inner: S,
    layer: ScopeLayer<V>,
}

impl<S: Clone, V> Clone for ScopeService<S, V> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, V> fmt::Debug for ScopeService<S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeService")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

impl<S, V, ReqB, B> Service<Request<ReqB>> for ScopeService<S, V>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    V: View,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = Response<ScopeBody<B>>;
    type Error = S::Error;
    type Future = ScopeFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqB>) -> Self::Future {
        let arriving = Arriving {
            views: V::BITS,
            options: &self.layer.options,
            supervisor: &self.layer.supervisor,
            clock: self.layer.clock,
        };
        // Both stand before the call, the owner last, so that a panic in it is seen and torn down.
        let (finisher, mut owner) = match enter(&mut request, &arriving) {
            Entered::Opened(scope) => (Finisher::new(Some(scope.clone())), Owner::root(scope)),
            Entered::Joined(scope) => (Finisher::new(None), Owner::joined(scope)),
        };
        let inner = owner.marked(|| self.inner.call(request));
        ScopeFuture::new(owner, inner, finisher)
    }
}
