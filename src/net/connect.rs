//! axum: the listener, the connect info, and the address for handlers that ask for it.

use std::{
    convert::Infallible,
    error::Error,
    fmt, io,
    net::SocketAddr,
    task::{Context, Poll},
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts, connect_info::Connected},
    response::{IntoResponse, Response},
    serve::{IncomingStream, Listener, TapIo},
};
use http::{Request, StatusCode, request::Parts};
use tower_layer::Layer;
use tower_service::Service;

use super::{Peer, WatchedListener, WatchedStream};

impl Listener for WatchedListener {
    type Io = WatchedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (WatchedStream, SocketAddr) {
        loop {
            match WatchedListener::accept(self).await {
                Ok(accepted) => return accepted,
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        WatchedListener::local_addr(self)
    }
}

impl Connected<IncomingStream<'_, WatchedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, WatchedListener>) -> Self {
        stream.io().peer().of_bare()
    }
}

impl<F> Connected<IncomingStream<'_, TapIo<WatchedListener, F>>> for Peer
where
    F: FnMut(&mut WatchedStream) + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'_, TapIo<WatchedListener, F>>) -> Self {
        stream.io().peer().of_bare()
    }
}

/// A handler asked for its [`Peer`], and the connection is not watched.
///
/// As a response, status 500 and a text that says how to serve instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotWatched;

impl fmt::Display for NotWatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "nobody watches the connection of this request, whose handler uses `Peer`: serve with \
             `bodyguard::net::serve`, or `axum::serve` on a `bodyguard::net::WatchedListener` and \
             `.into_make_service_with_connect_info::<bodyguard::net::Peer>()`",
        )
    }
}

impl Error for NotWatched {}

impl IntoResponse for NotWatched {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = NotWatched;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NotWatched> {
        Self::from_extensions(&parts.extensions)
            .cloned()
            .ok_or(NotWatched)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::from_extensions(&parts.extensions).cloned())
    }
}

/// Lets handlers that extract `ConnectInfo<SocketAddr>` work beside a [`Peer`].
///
/// An app has one connect info, and with a watched listener that is `ConnectInfo<Peer>`. One line
/// keeps the older handlers going (axum's trait cannot be implemented for `SocketAddr` from here):
///
/// ```
/// # use axum::{extract::ConnectInfo, routing::get, Router};
/// # use std::net::SocketAddr;
/// use bodyguard::net::{Peer, PeerAddrLayer};
/// # async fn old_handler(ConnectInfo(addr): ConnectInfo<SocketAddr>) -> String { addr.to_string() }
/// let app = Router::new()
///     .route("/", get(old_handler))
///     .layer(PeerAddrLayer::new())
///     .into_make_service_with_connect_info::<Peer>();
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct PeerAddrLayer;

impl PeerAddrLayer {
    /// The layer. It has no options.
    pub const fn new() -> Self {
        Self
    }
}

/// The service of [`PeerAddrLayer`].
#[derive(Clone, Copy, Debug)]
pub struct PeerAddr<S> {
    inner: S,
}

impl<S> Layer<S> for PeerAddrLayer {
    type Service = PeerAddr<S>;

    fn layer(&self, inner: S) -> PeerAddr<S> {
        PeerAddr { inner }
    }
}

impl<S, B> Service<Request<B>> for PeerAddr<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(addr) = Peer::from_extensions(request.extensions()).map(Peer::addr) {
            request.extensions_mut().insert(ConnectInfo(addr));
        }
        self.inner.call(request)
    }
}
