//! All of it in the right order, in one call.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use tower_layer::Layer;

#[cfg(feature = "compression")]
use crate::compression::{Compression, CompressionLayer};
use crate::{
    EndReport, Outcome, Shutdown, Supervisor,
    scope::{DrainRequest, FailurePolicy, Fixed, Movable, Scope, ScopeLayer, ScopeService, Sealed},
};

/// Every view at once: what [`Stack`] gives handlers through the one scope it opens.
///
/// Extract the single views ([`Cleanup`](crate::Cleanup) and so on), not this.
#[derive(Clone, Debug)]
pub struct AllViews(());

impl Sealed for AllViews {
    const BITS: u8 = u8::MAX;
    const VIEW: &'static str = "AllViews";
    const LAYER: &'static str = "Stack";

    #[allow(private_interfaces, reason = "the trait is sealed")]
    fn through(_: Arc<Scope>) -> Self {
        Self(())
    }
}

#[cfg(feature = "compression")]
type Stacked<S, M> = Compression<ScopeService<S, AllViews, M>>;
#[cfg(not(feature = "compression"))]
type Stacked<S, M> = ScopeService<S, AllViews, M>;

/// One layer with all views, and compression (feature `compression`) outside of them.
///
/// Compression is outside, so that lengths and endings are judged on the handler's own bytes, a
/// last frame passes through the encoder, and the gzip trailer follows the teardown.
///
/// ```
/// use axum::{Router, routing::get};
/// use bodyguard::{Stack, Supervisor};
///
/// let supervisor = Supervisor::new();
/// let app: Router = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(Stack::new().supervisor(&supervisor));
/// ```
///
/// Further layers of this crate inside it, on single routes, set options for those routes. So do a `Stack` and a
/// `CompressionLayer` there: it is this one that encodes, outside of the scope, on their terms.
///
/// `M` is its mode: see [`ScopeLayer`].
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct Stack<M = Fixed> {
    scope: ScopeLayer<AllViews, M>,
    #[cfg(feature = "compression")]
    compression: CompressionLayer,
}

impl Stack {
    /// Everything at its defaults, under the supervisor of the server, if it has one.
    pub fn new() -> Self {
        Self {
            scope: ScopeLayer::new(),
            #[cfg(feature = "compression")]
            compression: CompressionLayer::new(),
        }
    }
}

impl<M> Stack<M> {
    /// Replaces the compression and its options.
    ///
    /// Without any: `.compression(CompressionLayer::new().gzip(false))`, which leaves every response as
    /// it is, `Vary` included.
    #[cfg(feature = "compression")]
    pub fn compression(mut self, compression: CompressionLayer) -> Self {
        self.compression = compression;
        self
    }

    /// Takes the bridge's threads from `pool`. See [`BridgeLayer`](crate::BridgeLayer).
    #[cfg(feature = "bridge")]
    pub fn bridge_pool(self, pool: &crate::bridge::Pool) -> Self {
        self.scope(|scope| scope.annex_settings(pool.clone()))
    }

    /// See [`ScopeLayer::supervisor`].
    pub fn supervisor(self, supervisor: &Supervisor) -> Self {
        self.scope(|scope| scope.supervisor(supervisor))
    }

    /// See [`ScopeLayer::shutdown`].
    pub fn shutdown(self, policy: Shutdown) -> Self {
        self.scope(|scope| scope.shutdown(policy))
    }

    /// See [`ScopeLayer::on_end`].
    pub fn on_end(self, hook: impl Fn(&EndReport) + Send + Sync + 'static) -> Self {
        self.scope(|scope| scope.on_end(hook))
    }

    /// See [`ScopeLayer::succeeded_when`].
    pub fn succeeded_when(
        self,
        rule: impl Fn(Outcome, Option<StatusCode>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.scope(|scope| scope.succeeded_when(rule))
    }

    /// See [`ScopeLayer::failure_policy`].
    pub fn failure_policy(self, policy: FailurePolicy) -> Self {
        self.scope(|scope| scope.failure_policy(policy))
    }

    /// See [`ScopeLayer::max_tasks`].
    pub fn max_tasks(self, max: usize) -> Self {
        self.scope(|scope| scope.max_tasks(max))
    }

    /// See [`ScopeLayer::closer_limit`].
    pub fn closer_limit(self, limit: Duration) -> Self {
        self.scope(|scope| scope.closer_limit(limit))
    }

    /// See [`ScopeLayer::join_limit`].
    pub fn join_limit(self, limit: Duration) -> Self {
        self.scope(|scope| scope.join_limit(limit))
    }

    /// See [`ScopeLayer::cancel_grace`].
    pub fn cancel_grace(self, grace: Duration) -> Self {
        self.scope(|scope| scope.cancel_grace(grace))
    }

    /// See [`ScopeLayer::error_gap`].
    pub fn error_gap(self, gap: Duration) -> Self {
        self.scope(|scope| scope.error_gap(gap))
    }

    /// See [`ScopeLayer::stall_timeout`], and [`ScopeLayer`] for a `Stack` that is armed or not.
    pub fn stall_timeout(self, timeout: Duration) -> Stack<Movable> {
        self.scope(|scope| scope.stall_timeout(timeout))
    }

    /// See [`ScopeLayer::detachable`], and [`ScopeLayer`] for a `Stack` that is armed or not.
    pub fn detachable(self, limit: Duration) -> Stack<Movable> {
        self.scope(|scope| scope.detachable(limit))
    }

    /// See [`ScopeLayer::drain_request`].
    pub fn drain_request(self, bytes: u64) -> DrainRequest<Self> {
        DrainRequest::new(self, bytes)
    }

    fn scope<N>(
        self,
        set: impl FnOnce(ScopeLayer<AllViews, M>) -> ScopeLayer<AllViews, N>,
    ) -> Stack<N> {
        Stack {
            scope: set(self.scope),
            #[cfg(feature = "compression")]
            compression: self.compression,
        }
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

// By hand: `M` is a phantom and need not be `Clone`.
impl<M> Clone for Stack<M> {
    fn clone(&self) -> Self {
        Self {
            scope: self.scope.clone(),
            #[cfg(feature = "compression")]
            compression: self.compression.clone(),
        }
    }
}

impl<M> fmt::Debug for Stack<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stack = f.debug_struct("Stack");
        stack.field("scope", &self.scope);
        #[cfg(feature = "compression")]
        stack.field("compression", &self.compression);
        stack.finish()
    }
}

impl<S, M> Layer<S> for Stack<M> {
    type Service = Stacked<S, M>;

    fn layer(&self, inner: S) -> Stacked<S, M> {
        let scoped = self.scope.layer(inner);
        #[cfg(feature = "compression")]
        let scoped = self.compression.layer(scoped);
        scoped
    }
}
