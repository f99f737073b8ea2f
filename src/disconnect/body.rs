//! A body that knows how it fares, for use without a layer.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::Disconnect;
use crate::{
    BodyError, BoxError, EndReport,
    scope::{MovableBody, Scope, ScopeBody, Sealed},
};

/// Any body, with word of how it fares. Needs no layer.
///
/// ```
/// # use std::time::Duration;
/// # use bodyguard::disconnect::DisconnectBody;
/// # use http_body_util::{BodyExt, Full};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # let request = http::Request::new(());
/// let body = DisconnectBody::answering(&request, Full::new(bytes::Bytes::from("tokens")))
///     .on_end(|report| println!("{} after {} bytes", report.outcome(), report.bytes))
///     .stall_timeout(Duration::from_secs(60));
/// let disconnect = body.disconnect().clone();
/// assert_eq!(body.collect().await?.to_bytes(), "tokens");
/// assert!(!disconnect.is_gone());
/// # Ok::<(), bodyguard::BoxError>(())
/// # }).unwrap();
/// ```
///
/// A response that the server sends without its body (HEAD, 204, 304) is a dropped body here. The
/// handler that makes it is not covered: it ends as its server ends it.
///
/// **On drop**: as [`ScopeBody`], or, once armed, [`MovableBody`].
#[must_use = "a body does nothing unless it is polled"]
#[pin_project]
pub struct DisconnectBody<T> {
    #[pin]
    body: T,
    disconnect: Disconnect,
}

impl<B> DisconnectBody<ScopeBody<B>>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Wraps a body of which nothing more is known.
    pub fn new(body: B) -> Self {
        let mut unknown = Request::new(());
        // What HTTP/2 may still send behind the promised length is not to be lost.
        *unknown.version_mut() = Version::HTTP_2;
        Self::answering(&unknown, body)
    }

    /// Wraps the body of the answer to a request.
    ///
    /// Its report names the request, and a [`net::Peer`](crate::net::Peer) in its extensions confirms
    /// that the client has gone.
    pub fn answering<R>(request: &Request<R>, body: B) -> Self {
        let scope = Scope::answering(request);
        Self {
            body: ScopeBody::standalone(scope.clone(), body),
            disconnect: Disconnect::through(scope),
        }
    }
}

impl<B> DisconnectBody<ScopeBody<B>>
where
    B: Body + Send + 'static,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// See [`ScopeLayer::stall_timeout`](crate::scope::ScopeLayer::stall_timeout); here it takes a task
    /// for each body, which a layer shares.
    pub fn stall_timeout(self, timeout: Duration) -> DisconnectBody<MovableBody> {
        self.disconnect.scope.stall_timeout(timeout);
        self.movable()
    }

    /// Lets the body run on for at most `limit` without its client. See [`Disconnect::on_leave`].
    pub fn detachable(self, limit: Duration) -> DisconnectBody<MovableBody> {
        self.disconnect.scope.detachable(limit);
        self.movable()
    }

    fn movable(self) -> DisconnectBody<MovableBody> {
        DisconnectBody {
            body: self.body.movable(),
            disconnect: self.disconnect,
        }
    }
}

impl DisconnectBody<MovableBody> {
    /// See [`ScopeLayer::stall_timeout`](crate::scope::ScopeLayer::stall_timeout). The last word counts.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.disconnect.scope.stall_timeout(timeout);
        self.body.watch();
        self
    }

    /// Lets the body run on for at most `limit` without its client. See [`Disconnect::on_leave`].
    pub fn detachable(self, limit: Duration) -> Self {
        self.disconnect.scope.detachable(limit);
        self
    }
}

impl<T> DisconnectBody<T> {
    /// Is given the report once the body has ended. See
    /// [`ScopeLayer::on_end`](crate::scope::ScopeLayer::on_end).
    pub fn on_end(self, hook: impl Fn(&EndReport) + Send + Sync + 'static) -> Self {
        self.disconnect.scope.on_end(hook);
        self
    }

    /// How long an error waits behind the last frame (10 ms).
    ///
    /// Under a layer its own [`error_gap`](crate::scope::ScopeLayer::error_gap), which says what it is for,
    /// comes on top.
    pub fn error_gap(self, gap: Duration) -> Self {
        self.disconnect.scope.set_error_gap(gap);
        self
    }

    /// The body's view, to be cloned for whoever wants to know.
    pub fn disconnect(&self) -> &Disconnect {
        &self.disconnect
    }
}

impl<T> DisconnectBody<T>
where
    T: Body<Data = Bytes, Error = BodyError>,
{
    /// The body as a response with status 200, known to the scope of the request it answers.
    ///
    /// As an axum response it is so by itself.
    pub fn into_http(self) -> http::Response<Self> {
        let scope = self.disconnect.scope.clone();
        let mut response = http::Response::new(self);
        Scope::announce_in(scope, response.extensions_mut());
        response
    }
}

impl<T> Body for DisconnectBody<T>
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

impl<T> fmt::Debug for DisconnectBody<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DisconnectBody")
            .field("disconnect", &self.disconnect)
            .finish_non_exhaustive()
    }
}
