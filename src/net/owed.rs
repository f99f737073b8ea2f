//! The app of one connection, and the answers it owes: also those that no layer, so no supervisor, knows of.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower_service::Service;

use super::Peer;

/// The app of one connection: its requests carry the peer.
#[derive(Clone)]
pub(super) struct PerConnection<A> {
    app: A,
    /// Shared with every answer that is owed.
    peer: Arc<Peer>,
}

/// Looks at what a connection owes, from outside of it.
pub(super) struct Owed(Arc<Peer>);

impl<A> PerConnection<A> {
    pub(super) fn new(app: A, peer: Peer) -> (Self, Owed) {
        let peer = Arc::new(peer);
        let owed = Owed(Arc::clone(&peer));
        (Self { app, peer }, owed)
    }
}

impl Owed {
    /// Whether every request has its whole response, as far as the server is to ask for it.
    pub(super) fn nothing(&self) -> bool {
        // Ours, and the server's own.
        Arc::strong_count(&self.0) <= 2
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.0
    }
}

impl<A, B> Service<Request<Incoming>> for PerConnection<A>
where
    A: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<Answer<B>>;
    type Error = A::Error;
    type Future = Answer<A::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), A::Error>> {
        self.app.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let extensions = request.extensions_mut();
        #[cfg(feature = "axum")]
        extensions.insert(axum::extract::ConnectInfo(self.peer.addr()));
        extensions.insert(Peer::clone(&self.peer));
        Answer {
            inner: self.app.call(request),
            owed: Some(Arc::clone(&self.peer)),
        }
    }
}

/// A response to come, and then its body.
#[pin_project::pin_project]
pub(super) struct Answer<T> {
    #[pin]
    inner: T,
    /// Dropped behind it. The future's goes to the body.
    owed: Option<Arc<Peer>>,
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Answer<B>>, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        let owed = this.owed.take();
        Poll::Ready(Ok(response.map(|inner| Answer { inner, owed })))
    }
}

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
