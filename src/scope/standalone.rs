//! A body with a scope of its own, for use without a layer; and a body without a scope.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::{
    body::ScopeBody,
    entry::sealed::Standalone,
    judge::Held,
    machine::{Opening, Scope},
    movable::MovableBody,
    options::Options,
};
use crate::{
    error::{BodyError, BoxError},
    outcome::EndReport,
};

/// A body with a scope of its own, and the view `V` of it. Needs no layer.
///
/// Known by the names of its views: [`CleanupBody`](crate::cleanup::CleanupBody),
/// [`TaskGroupBody`](crate::TaskGroupBody), [`DisconnectBody`](crate::disconnect::DisconnectBody), which
/// say how it is made.
///
/// A response that the server sends without its body (HEAD, 204, 304) is a dropped body here: it
/// does not know the status, nor, unless made to answer a request, the method. Make it in the runtime
/// that is to run its closers.
///
/// **On drop**: as [`ScopeBody`], or, once armed, [`MovableBody`].
#[pin_project]
#[must_use = "a body does nothing unless it is polled"]
pub struct ViewBody<T, V> {
    #[pin]
    pub(crate) body: T,
    pub(crate) view: V,
}

impl<B, V> ViewBody<ScopeBody<B>, V>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
    V: Standalone,
{
    /// Puts a body under a scope.
    pub(crate) fn under(scope: Arc<Scope>, body: B) -> Self {
        Self {
            body: ScopeBody::standalone(scope.clone(), body),
            view: V::through(scope),
        }
    }
}

impl<B, V> ViewBody<ScopeBody<B>, V>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    V: Standalone,
{
    /// See [`ScopeLayer::stall_timeout`](crate::scope::ScopeLayer::stall_timeout); here it takes a task
    /// for each body, which a layer shares.
    pub fn stall_timeout(self, timeout: Duration) -> ViewBody<MovableBody, V> {
        self.view.scope().stall_timeout(timeout);
        self.movable()
    }

    pub(crate) fn movable(self) -> ViewBody<MovableBody, V> {
        ViewBody {
            body: MovableBody::new(self.body),
            view: self.view,
        }
    }
}

impl<V: Standalone> ViewBody<MovableBody, V> {
    /// See [`ScopeLayer::stall_timeout`](crate::scope::ScopeLayer::stall_timeout). The last word counts.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.view.scope().stall_timeout(timeout);
        self.body.watch();
        self
    }
}

impl<T, V: Standalone> ViewBody<T, V> {
    /// Is given the report once the body has ended. See
    /// [`ScopeLayer::on_end`](crate::scope::ScopeLayer::on_end).
    ///
    /// Durations in the report of a [`CleanupBody`](crate::cleanup::CleanupBody) or a
    /// [`TaskGroupBody`](crate::TaskGroupBody) are counted from here, if nobody was to be told before.
    pub fn on_end(self, hook: impl Fn(&EndReport) + Send + Sync + 'static) -> Self {
        self.view.scope().on_end(hook);
        self
    }

    /// How long an error waits behind the last frame (10 ms).
    ///
    /// Under a layer its own [`error_gap`](crate::scope::ScopeLayer::error_gap), which says what it is for,
    /// comes on top.
    pub fn error_gap(self, gap: Duration) -> Self {
        self.view.scope().set_error_gap(gap);
        self
    }

    /// The body as a response with status 200, known to the scope of the request it answers.
    ///
    /// The drain of that scope's supervisor then waits for what this body owns. As an axum response it
    /// is so by itself; a `Response::new` around it does not tell the layers.
    pub fn into_http(self) -> Response<Self> {
        let scope = self.view.scope().clone();
        let mut response = Response::new(self);
        Scope::announce_in(scope, response.extensions_mut());
        response
    }
}

impl<T, V> Body for ViewBody<T, V>
where
    T: Body<Data = Bytes, Error = BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<T: fmt::Debug, V: fmt::Debug> fmt::Debug for ViewBody<T, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewBody")
            .field("body", &self.body)
            .field("view", &self.view)
            .finish()
    }
}

impl Scope {
    /// A scope for the answer to a request, under its server's supervisor or else one of its own; with a
    /// clock if somebody is told how long it took.
    pub(crate) fn answering<B>(request: &Request<B>, clock: bool) -> Arc<Self> {
        let mut options = Options::default();
        options.clock |= clock;
        let opening = Opening {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            extensions: request.extensions(),
            options: &Arc::new(options),
            movable: true,
        };
        Self::open(&opening, None)
    }

    #[cfg(test)]
    pub(crate) fn standalone() -> Arc<Self> {
        Self::answering(&unknown(), false)
    }
}

/// The request of a body of which nothing more is known.
pub(crate) fn unknown() -> Request<()> {
    let mut request = Request::new(());
    // What HTTP/2 may still send behind the promised length is not to be lost.
    *request.version_mut() = Version::HTTP_2;
    request
}

/// An empty body that owns nothing: for a response made outside its layer.
impl<B> Default for ScopeBody<B> {
    fn default() -> Self {
        Self::over(Held::default(), None)
    }
}
