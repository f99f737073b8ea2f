//! Middleware written as a blocking function.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project::pin_project;
use tokio::sync::oneshot;
use tower_layer::Layer;
use tower_service::Service;

use super::{cx::Cx, error::BridgeError, handle::Bridge};

/// Makes a layer of a blocking function that runs on the request's thread.
///
/// The function is given the request and the [`Next`] service, and answers with a response. It runs
/// on the thread of the request's [`Bridge`] (that of the [`BridgeLayer`](super::BridgeLayer) around it),
/// hence on the same thread and loop as all other sync code of the request. While `next.run(..)` waits,
/// that thread is free for the calls of the handler inside.
///
/// The inner service is polled where the middleware itself is, not on the request's loop: what it
/// spawns on its runtime outlives the request as it would without this layer.
///
/// ```
/// use bodyguard::bridge::{Cx, Next, NextError, from_fn_sync};
/// use http::{Request, Response};
///
/// fn stamp<B, R, E>(
///     cx: &Cx,
///     request: Request<B>,
///     next: Next<B, R, E>,
/// ) -> Result<Response<R>, NextError<E>> {
///     let mut response = next.run(cx, request)?;
///     response.headers_mut().insert("x-sync", "yes".parse().unwrap());
///     Ok(response)
/// }
///
/// let layer = from_fn_sync(stamp::<String, String, std::io::Error>);
/// # let _ = layer;
/// ```
///
/// In axum, *inside* the [`BridgeLayer`](super::BridgeLayer), that is in a `Router` before it (what is
/// added last is outermost); a router's error is `Infallible`:
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```ignore")]
/// use std::convert::Infallible;
/// use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
/// use bodyguard::bridge::{BridgeLayer, Cx, Next, NextError, from_fn_sync};
///
/// fn timed(
///     cx: &Cx,
///     request: Request,
///     next: Next<Body, Body, Infallible>,
/// ) -> Result<Response, NextError<Infallible>> {
///     let start = std::time::Instant::now();
///     let response = next.run(cx, request)?;
///     println!("{:?}", start.elapsed());
///     Ok(response)
/// }
///
/// let app: Router = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(from_fn_sync(timed))
///     .layer(BridgeLayer::new());
/// ```
///
/// The function keeps the thread until the head is there. So a body of the bridge that is read before its head,
/// by the handler or by a layer further in (compression, [`Stack`](crate::Stack)), may hold 64 KiB; code that
/// has to wait for its reader there fails with `HeadBlocked` at the pool's
/// [`wait_limit`](super::PoolBuilder::wait_limit). Put such layers outside.
///
/// `R`, the body of the responses, has an empty `Default`, for the response to an error: axum's body has,
/// and those of this crate's scope layers.
///
/// # Errors
/// The inner service's own errors pass through. A [`BridgeError`], also a panic of the function,
/// becomes an empty response with status 503 when no thread could be had, else 500; the error is in
/// the response's extensions, and in the log (feature `tracing`).
#[track_caller]
pub fn from_fn_sync<F, B, R, E>(f: F) -> FromFnSyncLayer<F>
where
    F: Fn(&Cx, Request<B>, Next<B, R, E>) -> Result<Response<R>, NextError<E>>
        + Send
        + Sync
        + 'static,
    R: Default,
{
    FromFnSyncLayer {
        f: Arc::new(f),
        at: Location::caller(),
    }
}

/// The layer made by [`from_fn_sync`].
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct FromFnSyncLayer<F> {
    f: Arc<F>,
    at: &'static Location<'static>,
}

/// By hand: the function need not be `Clone`.
impl<F> Clone for FromFnSyncLayer<F> {
    fn clone(&self) -> Self {
        Self {
            f: Arc::clone(&self.f),
            at: self.at,
        }
    }
}

impl<F, S> Layer<S> for FromFnSyncLayer<F> {
    type Service = FromFnSync<F, S>;

    fn layer(&self, inner: S) -> Self::Service {
        FromFnSync {
            layer: self.clone(),
            inner,
        }
    }
}

impl<F> fmt::Debug for FromFnSyncLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFnSyncLayer")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// The service made by [`from_fn_sync`].
#[derive(Debug)]
pub struct FromFnSync<F, S> {
    layer: FromFnSyncLayer<F>,
    inner: S,
}

/// By hand: the function need not be `Clone`.
impl<F, S: Clone> Clone for FromFnSync<F, S> {
    fn clone(&self) -> Self {
        Self {
            layer: self.layer.clone(),
            inner: self.inner.clone(),
        }
    }
}

impl<F, S, B, R> Service<Request<B>> for FromFnSync<F, S>
where
    F: Fn(&Cx, Request<B>, Next<B, R, S::Error>) -> Result<Response<R>, NextError<S::Error>>
        + Send
        + Sync
        + 'static,
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let bridge = Bridge::find(request.extensions());
        let (service, called) = oneshot::channel();
        let call: SyncCall<R, S::Error> = match bridge {
            Ok(bridge) => {
                let f = Arc::clone(&self.layer.f);
                let next = Next { service };
                Box::pin(bridge.call_from(self.layer.at, move |cx| f(cx, request, next)))
            }
            Err(missing) => Box::pin(std::future::ready(Err(missing))),
        };
        // The one that is ready is used, its clone is kept.
        let kept = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, kept);
        ResponseFuture {
            call,
            called: Some(called),
            service: ready,
            inner: None,
            answer: None,
        }
    }
}

/// What the inner service has to answer, and where to.
type Called<B, R, E> = (Request<B>, oneshot::Sender<Result<Response<R>, E>>);

type SyncCall<R, E> =
    Pin<Box<dyn Future<Output = Result<Result<Response<R>, NextError<E>>, BridgeError>> + Send>>;

/// The rest of the stack, for a blocking middleware to run.
///
/// # On drop
/// The inner service is not called.
#[must_use = "a dropped `Next` does not call the inner service"]
pub struct Next<B, R, E> {
    service: oneshot::Sender<Called<B, R, E>>,
}

impl<B, R, E> Next<B, R, E> {
    /// Runs the inner service and waits for its response, on the loop of `cx`.
    ///
    /// # Errors
    /// The inner service's error, or that of the wait.
    pub fn run(self, cx: &Cx, request: Request<B>) -> Result<Response<R>, NextError<E>> {
        let (answer, answered) = oneshot::channel();
        // If the middleware's future is gone, so is the answer.
        let _ = self.service.send((request, answer));
        match cx.local.awaiting_head(|| cx.block_on(answered)) {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(error))) => Err(NextError {
                repr: Repr::Service(error),
            }),
            Ok(Err(_)) => Err(BridgeError::CANCELLED.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl<B, R, E> fmt::Debug for Next<B, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").finish_non_exhaustive()
    }
}

/// Why a blocking middleware has no response.
#[derive(Debug)]
pub struct NextError<E> {
    repr: Repr<E>,
}

#[derive(Debug)]
enum Repr<E> {
    Service(E),
    Bridge(BridgeError),
}

impl<E> NextError<E> {
    /// An error of the service's own type.
    pub fn service(error: E) -> Self {
        Self {
            repr: Repr::Service(error),
        }
    }

    /// The inner service's error, if it is one.
    pub fn into_service(self) -> Result<E, BridgeError> {
        match self.repr {
            Repr::Service(error) => Ok(error),
            Repr::Bridge(error) => Err(error),
        }
    }
}

impl<E> From<BridgeError> for NextError<E> {
    fn from(error: BridgeError) -> Self {
        Self {
            repr: Repr::Bridge(error),
        }
    }
}

impl<E> fmt::Display for NextError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.repr {
            Repr::Service(_) => f.write_str("the inner service failed"),
            Repr::Bridge(_) => f.write_str("the wait for the inner service failed"),
        }
    }
}

impl<E: StdError + 'static> StdError for NextError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.repr {
            Repr::Service(error) => Some(error),
            Repr::Bridge(error) => Some(error),
        }
    }
}

/// The future of [`FromFnSync`]: the blocking call, and the inner service beside it.
///
/// # On drop
/// The inner future is dropped, and the blocking function's wait for it fails with `Cancelled`.
#[must_use = "futures do nothing unless polled"]
#[pin_project]
pub struct ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    call: SyncCall<R, S::Error>,
    called: Option<oneshot::Receiver<Called<B, R, S::Error>>>,
    service: S,
    #[pin]
    inner: Option<S::Future>,
    answer: Option<oneshot::Sender<Result<Response<R>, S::Error>>>,
}

impl<S, B, R> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(result) = this.call.as_mut().poll(cx) {
            let error = match result {
                Ok(Ok(response)) => return Poll::Ready(Ok(response)),
                Ok(Err(error)) => match error.into_service() {
                    Ok(error) => return Poll::Ready(Err(error)),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            return Poll::Ready(Ok(error.answer()));
        }
        if let Some(called) = this.called {
            if let Poll::Ready(called) = Pin::new(called).poll(cx) {
                *this.called = None;
                if let Ok((request, answer)) = called {
                    this.inner.set(Some(this.service.call(request)));
                    *this.answer = Some(answer);
                }
            }
        }
        if let Some(inner) = this.inner.as_mut().as_pin_mut() {
            let given_up = match this.answer {
                Some(answer) => answer.poll_closed(cx).is_ready(),
                None => false,
            };
            if given_up {
                this.inner.set(None);
            } else if let Poll::Ready(result) = inner.poll(cx) {
                this.inner.set(None);
                if let Some(answer) = this.answer.take() {
                    let _ = answer.send(result);
                }
            }
        }
        Poll::Pending
    }
}

impl<S: Service<Request<B>>, B, R> fmt::Debug for ResponseFuture<S, B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
