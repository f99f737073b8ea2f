//! The body the layer answers with.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{
    source::{Inner, InnerProjection},
    stream::Stream,
};
use crate::{
    BodyError, BoxError,
    frames::{let_go, take_bytes},
};

/// The response body of [`Compression`](super::Compression): encoded, or as it came.
///
/// An encoded one may be pending although the inner body is ready: it lets others have their turn, and wakes
/// itself.
///
/// # Errors
///
/// The inner body's error, once; or a [`Failure`](crate::scope::Failure), `Truncated` or `Overlong`, if it gave
/// another number of bytes than its head had promised. It comes 10 ms behind the last frame (at once on a runtime
/// without timers), or hyper would throw that frame away. After an error the encoded form has no end, so
/// no client can take it for whole.
///
/// # On drop
///
/// The inner body is dropped first, then the compressor goes back to the pool. No end is written.
#[pin_project::pin_project]
#[must_use = "a body does nothing unless it is polled"]
pub struct CompressionBody<B> {
    // Field order is drop order: the inner body goes before the encoder.
    #[pin]
    inner: Inner<B>,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// The inner body's own frames.
    Plain,
    /// All there is, ready.
    Whole {
        data: Bytes,
        // Boxed: rare, and the body is moved before it is polled.
        trailers: Option<Box<HeaderMap>>,
    },
    /// No content, and no word on its length: an answer to HEAD, or a 304.
    Head,
    Stream(Box<Stream>),
}

impl<B> CompressionBody<B> {
    pub(super) fn plain(inner: B) -> Self {
        Self {
            inner: Inner::Plain(inner),
            mode: Mode::Plain,
        }
    }

    pub(super) fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self {
            inner: Inner::Gone,
            mode: Mode::Whole {
                data,
                trailers: trailers.map(Box::new),
            },
        }
    }

    pub(super) fn head() -> Self {
        Self {
            inner: Inner::Gone,
            mode: Mode::Head,
        }
    }

    pub(super) fn stream(inner: Inner<B>, stream: Stream) -> Self {
        Self {
            inner,
            mode: Mode::Stream(Box::new(stream)),
        }
    }
}

impl<B> Body for CompressionBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.project();
        match this.mode {
            Mode::Stream(stream) => stream.poll_frame(this.inner, cx),
            Mode::Whole { data, trailers } => {
                let frame = match data.is_empty() {
                    false => Some(Frame::data(std::mem::take(data))),
                    true => trailers.take().map(|trailers| Frame::trailers(*trailers)),
                };
                Poll::Ready(frame.map(Ok))
            }
            Mode::Head => Poll::Ready(None),
            Mode::Plain => {
                let mut source = this.inner;
                let InnerProjection::Plain(inner) = source.as_mut().project() else {
                    return Poll::Ready(None);
                };
                let mut polled = inner.poll_frame(cx);
                // Nearly always: data, taken out where it stands.
                if let Poll::Ready(Some(Ok(frame))) = &mut polled {
                    if let Some(data) = frame.data_mut() {
                        let data = take_bytes(data);
                        let_go::<B::Data, _>(polled);
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                let frame = ready!(polled);
                if !matches!(frame, Some(Ok(_))) {
                    // Its end or its error: it is not to be polled again.
                    source.set(Inner::Gone);
                }
                Poll::Ready(frame.map(|frame| match frame {
                    Ok(frame) => Ok(frame.map_data(|mut data| take_bytes(&mut data))),
                    Err(error) => Err(BodyError::new(error)),
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.mode {
            Mode::Plain => self.inner.get().is_none_or(Body::is_end_stream),
            Mode::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            Mode::Head => true,
            Mode::Stream(stream) => stream.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.mode {
            Mode::Plain => self
                .inner
                .get()
                .map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
            Mode::Whole { data, .. } => SizeHint::with_exact(data.len() as u64),
            Mode::Stream(stream) if stream.is_done() => SizeHint::with_exact(0),
            // A size of the encoded form is not known, and an answer without content must not claim zero.
            Mode::Head | Mode::Stream(_) => SizeHint::default(),
        }
    }
}

impl<B> Default for CompressionBody<B> {
    /// An empty body.
    fn default() -> Self {
        Self::whole(Bytes::new(), None)
    }
}

impl<B> fmt::Debug for CompressionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompressionBody")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
