//! The service of every view: it opens the scope of a request, or joins it.

use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    body::ScopeBody,
    entry::{Arriving, Entered, View, enter},
    finisher::Finisher,
    future::ScopeFuture,
    layer::{Fixed, Mode, Movable, ScopeLayer},
    movable::{MovableBody, MovableFuture},
    owner::{Owner, Runs},
};
use crate::error::BoxError;

/// The service of a [`ScopeLayer`].
pub struct ScopeService<S, V, M = Fixed> {
    inner: S,
    layer: ScopeLayer<V, M>,
}

impl<S: Clone, V, M> Clone for ScopeService<S, V, M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, V, M> fmt::Debug for ScopeService<S, V, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeService")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

impl<S, V, M> ScopeService<S, V, M> {
    pub(super) fn new(inner: S, layer: ScopeLayer<V, M>) -> Self {
        Self { inner, layer }
    }
}

impl<S, V: View, M: Mode> ScopeService<S, V, M> {
    /// Opens or joins the request's scope, and calls the inner service under its owner.
    fn enter<ReqB, B>(&mut self, mut request: Request<ReqB>) -> ScopeFuture<S::Future, S::Error>
    where
        S: Service<Request<ReqB>, Response = Response<B>>,
    {
        let arriving = Arriving {
            views: V::BITS,
            options: &self.layer.options,
            movable: M::MOVABLE,
        };
        // Both stand before the call, the owner last, so that a panic in it is seen and torn down.
        let (finisher, owner) = match enter(&mut request, &arriving) {
            Entered::Opened(scope) => (Finisher::new(Some(scope.clone())), Owner::root(scope)),
            Entered::Joined(scope) => (Finisher::new(None), Owner::joined(scope)),
        };
        let inner = owner.marked(Runs::Handler, || self.inner.call(request));
        ScopeFuture::new(owner, inner, finisher)
    }
}

impl<S, V, ReqB, B> Service<Request<ReqB>> for ScopeService<S, V, Fixed>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    V: View,
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ScopeBody<B>>;
    type Error = S::Error;
    type Future = ScopeFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        self.enter(request)
    }
}

impl<S, V, ReqB, B> Service<Request<ReqB>> for ScopeService<S, V, Movable>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    V: View,
    B: Body + Send + 'static,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<MovableBody>;
    type Error = S::Error;
    type Future = MovableFuture<B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        MovableFuture::new(self.enter(request))
    }
}
