//! Tests of the module as a whole: scripted bodies in, decoded bytes out.

mod closing;
#[cfg(all(feature = "br", feature = "zstd", feature = "deflate"))]
mod codecs;
mod equal;
mod foreign;
mod jobs;
mod lead;
mod matrix;
mod pauses;
mod property;
mod reuse;
mod script;
mod service;
mod streams;
mod workers;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io::Read,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use tower_layer::Layer;
use tower_service::Service;

use super::{CompressionBody, CompressionLayer};
use crate::BodyError;

/// A layer whose output is a function of its input.
fn layer() -> CompressionLayer {
    CompressionLayer::new().random_padding(0)
}

/// Answers one request through `layer`, with a future that waits for nothing.
fn answer<B>(
    layer: &CompressionLayer,
    request: Request<()>,
    response: Response<B>,
) -> Response<CompressionBody<B>>
where
    B: Body<Data: 'static, Error: Into<crate::BoxError>>,
{
    let mut response = Some(response);
    let mut service = layer.layer(Fixed(|| response.take().expect("called once")));
    let mut future = pin!(service.call(request));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(Ok(response)) => return response,
            // It lets others have their turn.
            Poll::Pending => assert!(woken.0.swap(false, Relaxed), "the head is held back"),
        }
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// The answer to one request, with a body of known size.
fn whole<T: Into<Bytes>>(
    layer: &CompressionLayer,
    text: T,
) -> impl Future<Output = Result<Response<CompressionBody<Full<Bytes>>>, Infallible>> + use<T> {
    let mut response = Some(Response::new(Full::new(text.into())));
    let mut service = layer.layer(Fixed(move || response.take().expect("called once")));
    service.call(get("gzip"))
}

struct Fixed<F>(F);

impl<F: FnMut() -> Response<B>, B> Service<Request<()>> for Fixed<F> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok((self.0)()))
    }
}

fn get(accept: &str) -> Request<()> {
    Request::builder()
        .header("accept-encoding", accept)
        .body(())
        .unwrap()
}

/// `body` behind `layer` as a stream, for a client that accepts gzip.
fn stream<B>(layer: &CompressionLayer, body: B) -> CompressionBody<B>
where
    B: Body<Data: 'static, Error: Into<crate::BoxError>>,
{
    let response = answer(layer, get("gzip"), Response::new(body));
    assert_eq!(response.headers()["content-encoding"], "gzip");
    response.into_body()
}

fn poll<B>(body: Pin<&mut B>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
where
    B: Body<Data = Bytes, Error = BodyError>,
{
    body.poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// What a body came to, polled through every `Pending`.
#[derive(Debug, Default)]
struct Taken {
    wire: Vec<u8>,
    frames: usize,
    trailers: Option<HeaderMap>,
    error: Option<BodyError>,
}

impl Taken {
    /// Takes the next frame; false at the end.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) -> bool {
        match frame {
            None => return false,
            Some(Err(error)) => self.error = Some(error),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty(), "empty frame");
                    self.wire.extend_from_slice(&data);
                    self.frames += 1;
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            },
        }
        true
    }
}

fn drain<B>(body: B) -> Taken
where
    B: Body<Data = Bytes, Error = BodyError>,
{
    let mut body = pin!(body);
    let mut taken = Taken::default();
    loop {
        match poll(body.as_mut()) {
            Poll::Pending => {}
            Poll::Ready(frame) => {
                if !taken.take(frame) {
                    return taken;
                }
            }
        }
    }
}

/// Decodes one gzip member, CRC and length checked, with nothing behind it.
fn gunzip(wire: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut decoder = flate2::bufread::GzDecoder::new(wire);
    decoder.read_to_end(&mut text).expect("well-formed gzip");
    assert!(decoder.into_inner().is_empty(), "bytes behind the member");
    text
}

/// What a client can decode of an unfinished member.
fn gunzip_prefix(wire: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    if wire.is_empty() {
        return text;
    }
    let end = flate2::bufread::GzDecoder::new(wire).read_to_end(&mut text);
    assert!(end.is_err(), "looks complete");
    text
}

/// Text as JSON events have it: repetitive in form, varied in content.
fn events(count: usize) -> Vec<Bytes> {
    let mut seed = 7_u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    (0..count)
        .map(|n| {
            Bytes::from(format!(
                "data: {{\"id\":{n},\"user\":\"u{}\",\"price\":{}.{:02},\"note\":\"{:08x}\"}}\n\n",
                next() % 500,
                next() % 900,
                next() % 100,
                next()
            ))
        })
        .collect()
}
