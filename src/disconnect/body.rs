//! A body that knows how it fares, for use without a layer.

use std::time::Duration;

use http::Request;
use http_body::Body;

use super::Disconnect;
use crate::{
    BoxError,
    scope::{MovableBody, Scope, ScopeBody, ViewBody, unknown},
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
/// The handler that makes it is not covered: it ends as its server ends it. See [`ViewBody`] for what it
/// has in common with the bodies of other views.
///
/// **On drop**: as [`ScopeBody`], or, once armed, [`MovableBody`].
pub type DisconnectBody<T> = ViewBody<T, Disconnect>;

impl<B> DisconnectBody<ScopeBody<B>>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Wraps a body of which nothing more is known.
    pub fn new(body: B) -> Self {
        Self::answering(&unknown(), body)
    }

    /// Wraps the body of the answer to a request.
    ///
    /// Its report names the request, and a [`net::Peer`](crate::net::Peer) in its extensions confirms
    /// that the client has gone.
    pub fn answering<R>(request: &Request<R>, body: B) -> Self {
        Self::under(Scope::answering(request, true), body)
    }
}

impl<B> DisconnectBody<ScopeBody<B>>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Lets the body run on for at most `limit` without its client. See [`Disconnect::on_leave`].
    pub fn detachable(self, limit: Duration) -> DisconnectBody<MovableBody> {
        self.view.scope.detachable(limit);
        self.movable()
    }
}

impl DisconnectBody<MovableBody> {
    /// Lets the body run on for at most `limit` without its client. See [`Disconnect::on_leave`].
    pub fn detachable(self, limit: Duration) -> Self {
        self.view.scope.detachable(limit);
        self
    }
}

impl<T> DisconnectBody<T> {
    /// The body's view, to be cloned for whoever wants to know.
    pub fn disconnect(&self) -> &Disconnect {
        &self.view
    }
}
