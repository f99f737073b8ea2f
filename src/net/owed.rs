//! The app of one connection, and the answers it owes: also those that no layer, so no supervisor, knows of.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower_service::Service;

use super::Peer;

/// The app of one connection: its requests carry the peer.
#[derive(Clone)]
pub(super) struct PerConnection<A> {
    app: A,
    origin: Arc<Origin>,
}

/// Where the requests of a connection come from. Shared with every answer that is owed.
struct Origin {
    peer: Peer,
    /// What each request starts with.
    extensions: Extensions,
}

/// Looks at what a connection owes, from outside of it.
pub(super) struct Owed(Arc<Origin>);

impl<A> PerConnection<A> {
    pub(super) fn new(app: A, peer: Peer) -> (Self, Owed) {
        let extensions = extensions_of(&peer);
        let origin = Arc::new(Origin { peer, extensions });
        let owed = Owed(Arc::clone(&origin));
        (Self { app, origin }, owed)
    }
}

fn extensions_of(peer: &Peer) -> Extensions {
    let mut extensions = Extensions::new();
    // Copies have the room of the original: with that of four, what a router and the layers add does not have
    // the map of each request grow.
    extensions.insert([(); 1]);
    extensions.insert([(); 2]);
    #[cfg(feature = "axum")]
    extensions.insert(axum::extract::ConnectInfo(peer.addr()));
    extensions.insert(peer.clone());
    extensions.remove::<[(); 1]>();
    extensions.remove::<[(); 2]>();
    extensions
}

impl Owed {
    /// Whether every request has its whole response, as far as the server is to ask for it.
    pub(super) fn nothing(&self) -> bool {
        // Ours, and the server's own.
        Arc::strong_count(&self.0) <= 2
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.0.peer
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
        let ours = self.origin.extensions.clone();
        // What hyper puts there, for an upgrade for instance, stays.
        if extensions.is_empty() {
            *extensions = ours;
        } else {
            extensions.extend(ours);
        }
        Answer {
            inner: self.app.call(request),
            owed: Some(Arc::clone(&self.origin)),
        }
    }
}

/// A response to come, and then its body.
#[pin_project::pin_project]
pub(super) struct Answer<T> {
    #[pin]
    inner: T,
    /// Dropped behind it. The future's goes to the body.
    owed: Option<Arc<Origin>>,
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
