//! Request bodies that are watched: an abort is noticed, and what nobody reads is read away.
//!
//! A client's end of file stands behind the bytes it has sent. A server that does not read them, as
//! its handler does not, never comes to it. So a [`DrainRequest`] layer hands the owner whatever
//! request body is dropped unread, and the owner reads it while it waits for the handler or the
//! body: no task, and nothing outlives the response.

mod abort;

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Buf;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use tower_layer::Layer;
use tower_service::Service;

#[cfg(feature = "net")]
use self::abort::is_end_of_file;
use self::abort::is_of_connection;
use super::failure::{contained, quietly};
use crate::error::BoxError;
#[cfg(feature = "net")]
use crate::net::Peer;

/// Frames read away per poll, before others have their turn.
const AT_ONCE: usize = 16;

/// A scope layer that reads unread request bodies away, and notices aborted uploads.
///
/// Made by [`ScopeLayer::drain_request`](super::ScopeLayer::drain_request), as the last of its
/// options.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing unless it is applied to a service"]
pub struct DrainRequest<L> {
    layer: L,
    limit: u64,
}

impl<L> DrainRequest<L> {
    pub(crate) fn new(layer: L, limit: u64) -> Self {
        Self { layer, limit }
    }
}

impl<S, L: Layer<S>> Layer<S> for DrainRequest<L> {
    type Service = DrainRequestService<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        DrainRequestService {
            inner: self.layer.layer(inner),
            limit: self.limit,
        }
    }
}

/// The service of a [`DrainRequest`] layer.
#[derive(Clone, Debug)]
pub struct DrainRequestService<S> {
    inner: S,
    limit: u64,
}

impl<S, B> Service<Request<B>> for DrainRequestService<S>
where
    S: Service<Request<RequestBody<B>>>,
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        if request.body().is_end_stream() {
            return self.inner.call(request.map(RequestBody::unwatched));
        }
        if let Some(further_out) = request.extensions().get::<Arc<Upload>>() {
            further_out.read_up_to(self.limit);
            return self.inner.call(request.map(RequestBody::unwatched));
        }
        #[cfg(feature = "net")]
        let half_close = Peer::from_extensions(request.extensions()).is_some_and(Peer::half_close);
        let upload = Arc::new(Upload {
            #[cfg(feature = "net")]
            half_close,
            state: Mutex::new(State {
                left: self.limit,
                ..State::default()
            }),
        });
        let waits = request.headers().contains_key(http::header::EXPECT);
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(upload.clone());
        let body = RequestBody {
            inner: Some(body),
            upload: Some(upload),
            waits,
        };
        self.inner.call(Request::from_parts(parts, body))
    }
}

/// The request body under a [`DrainRequest`] layer: passes everything on.
///
/// **On drop** before its end: what is left is read away while the response is under way, up to the
/// layer's limit.
#[must_use = "a body does nothing unless it is polled"]
pub struct RequestBody<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    inner: Option<B>,
    upload: Option<Arc<Upload>>,
    /// The client sends nothing before it is asked to (`Expect: 100-continue`), and nobody has asked.
    waits: bool,
}

impl<B> RequestBody<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn unwatched(inner: B) -> Self {
        Self {
            inner: Some(inner),
            upload: None,
            waits: false,
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        self.waits = false;
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(inner).poll_frame(cx);
        polled.map(|frame| match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                let error = error.into();
                self.inner = None;
                if let Some(upload) = &self.upload {
                    upload.failed(&*error);
                }
                Some(Err(error))
            }
            None => {
                self.inner = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.inner.as_ref().map(Body::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl<B> Drop for RequestBody<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn drop(&mut self) {
        if let (Some(inner), Some(upload)) = (self.inner.take(), self.upload.take()) {
            if !self.waits && !inner.is_end_stream() {
                upload.unread(inner);
            }
        }
    }
}

impl<B> fmt::Debug for RequestBody<B>
where
    B: Body + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

/// One request's upload, as its scope sees it.
pub(super) struct Upload {
    /// A client that just stops sending may be there, and read the answer.
    #[cfg(feature = "net")]
    half_close: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that may still be read away.
    left: u64,
    unread: Option<Unread>,
    aborted: bool,
    /// The response is over: nothing is read any more.
    closed: bool,
    /// Who polls the owner.
    waker: Option<Waker>,
}

/// A request body of which only the length of its frames is looked at. Nobody hears of a panic in its
/// drop: the handler has let go of it.
struct Unread(Option<Pin<Box<dyn Lengths>>>);

impl Unread {
    /// A panic counts as its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<u64, BoxError>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        contained(|| body.as_mut().poll_length(cx)).unwrap_or(Poll::Ready(None))
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let body = self.0.take();
        quietly(|| drop(body));
    }
}

trait Lengths: Send {
    /// As `poll_frame`, with the length of the data.
    fn poll_length(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<u64, BoxError>>>;
}

impl<B> Lengths for B
where
    B: Body + Send,
    B::Error: Into<BoxError>,
{
    fn poll_length(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<u64, BoxError>>> {
        let length = |frame: Frame<B::Data>| {
            let data = frame.data_ref();
            data.map_or(0, |data| data.remaining() as u64)
        };
        self.poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map(length).map_err(Into::into)))
    }
}

impl Upload {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request body failed while someone read it.
    fn failed(&self, error: &(dyn Error + 'static)) {
        #[cfg(feature = "net")]
        if self.half_close && is_end_of_file(error) {
            return;
        }
        if is_of_connection(error) {
            let waker = {
                let mut state = self.state();
                state.aborted = true;
                state.waker.take()
            };
            waker.into_iter().for_each(|waker| quietly(|| waker.wake()));
        }
    }

    /// A layer further in has another limit.
    fn read_up_to(&self, bytes: u64) {
        self.state().left = bytes;
    }

    /// The request body was dropped before its end.
    fn unread(&self, body: impl Lengths + 'static) {
        if self.keep(Unread(Some(Box::pin(body)))) {
            let waker = self.state().waker.take();
            waker.into_iter().for_each(|waker| quietly(|| waker.wake()));
        }
    }

    /// False if the response is over, or nothing more may be read: then it is dropped.
    fn keep(&self, body: Unread) -> bool {
        let mut state = self.state();
        if state.closed || state.left == 0 {
            drop(state);
            return false;
        }
        state.unread = Some(body);
        true
    }

    /// Reads away what there is. True if the client has aborted its upload.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> bool {
        let (unread, replaced) = {
            let mut state = self.state();
            if state.aborted || state.closed {
                return state.aborted;
            }
            (state.unread.take(), state.waker.replace(cx.waker().clone()))
        };
        drop(replaced);
        let Some(mut body) = unread else {
            return false;
        };
        // Polled outside the lock: it is the server's code, or the application's.
        for _ in 0..AT_ONCE {
            match body.poll(cx) {
                Poll::Ready(Some(Ok(length))) => {
                    if !self.allows(length) {
                        return false;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    drop(body);
                    self.failed(&*error);
                    return self.is_aborted();
                }
                Poll::Ready(None) => return false,
                Poll::Pending => {
                    self.keep(body);
                    return false;
                }
            }
        }
        self.keep(body);
        cx.waker().wake_by_ref();
        false
    }

    fn allows(&self, length: u64) -> bool {
        let mut state = self.state();
        let rest = state.left.checked_sub(length);
        state.left = rest.unwrap_or(0);
        rest.is_some()
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.state().aborted
    }

    /// The response is over; what is left of the request is the server's affair.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = self.state();
            state.closed = true;
            (state.unread.take(), state.waker.take())
        };
        drop(dropped);
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}
