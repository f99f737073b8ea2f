//! Small bodies of known size: collected while ready, compressed as a whole, sent with the length that gives.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, response::Parts};
use http_body::{Body, Frame};

use super::{
    body::CompressionBody,
    encoder::Encoder,
    headers::{self, Form},
    options::Core,
    source::{Event, Inner, Source},
    stream::Stream,
};
use crate::BoxError;

/// The largest body that is held to be compressed as a whole.
pub(super) const LIMIT: u64 = 64 << 10;

pub(super) enum Collected<B> {
    Whole {
        data: Bytes,
        trailers: Option<HeaderMap>,
    },
    /// Pending or failed before its end: what there is so far goes out as a stream.
    Stream {
        inner: Inner<B>,
        source: Source,
        data: Bytes,
    },
}

/// Reads `body` for as long as it is ready.
pub(super) fn collect<B>(body: B, mut source: Source, cx: &mut Context<'_>) -> Collected<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    let mut boxed = Box::pin(Inner::Plain(body));
    let mut text = Joined::default();
    loop {
        let trailers = match source.poll(boxed.as_mut(), cx) {
            Poll::Ready(Event::Data(data)) => {
                text.push(data);
                continue;
            }
            Poll::Ready(Event::End) => Some(None),
            Poll::Ready(Event::Trailers(trailers)) => Some(Some(trailers)),
            Poll::Ready(Event::Failed(error)) => {
                source.fail_with(error);
                None
            }
            Poll::Ready(Event::Nothing) | Poll::Pending => None,
        };
        let data = text.take();
        return match trailers {
            Some(trailers) => Collected::Whole { data, trailers },
            None => Collected::Stream {
                inner: Inner::Boxed(boxed),
                source,
                data,
            },
        };
    }
}

/// Pieces put together. One alone is not copied.
#[derive(Default)]
struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    fn push(&mut self, data: Bytes) {
        if self.first.is_empty() {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&data);
    }

    fn take(&mut self) -> Bytes {
        let Self { first, all } = std::mem::take(self);
        match all.is_empty() {
            true => first,
            false => all.freeze(),
        }
    }
}

/// A whole body on its way to being compressed: the stream of it, collected.
pub(super) struct Whole {
    stream: Stream,
    compressed: Joined,
    /// `None` once answered.
    plain: Option<Box<Plain>>,
}

pub(super) struct Plain {
    core: Arc<Core>,
    form: Form,
    parts: Parts,
    data: Bytes,
    trailers: Option<HeaderMap>,
    /// The compressed form goes out although it is larger: the client refuses the plain one.
    larger: bool,
}

impl Whole {
    /// A body within a burst comes back: it is done at once.
    pub(super) fn start(
        core: &Arc<Core>,
        form: Form,
        parts: Parts,
        data: Bytes,
        trailers: Option<HeaderMap>,
        larger: bool,
    ) -> Result<Box<Self>, Box<Plain>> {
        let plain = Box::new(Plain {
            core: Arc::clone(core),
            form,
            parts,
            data,
            trailers,
            larger,
        });
        if plain.data.len() <= core.options.burst(form.coding) {
            return Err(plain);
        }
        Ok(Box::new(Self {
            stream: Stream::of_all(core, form, plain.data.clone()),
            compressed: Joined::default(),
            plain: Some(plain),
        }))
    }

    pub(super) fn poll<B>(&mut self, cx: &mut Context<'_>) -> Poll<Response<CompressionBody<B>>>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        let compressed = loop {
            let nothing_more = pin!(Inner::<B>::Gone);
            match ready!(self.stream.poll_frame(nothing_more, cx))
                .map(|polled| polled.map(Frame::into_data))
            {
                Some(Ok(Ok(frame))) => self.compressed.push(frame),
                Some(Ok(Err(_))) => {}
                Some(Err(_)) => break None,
                None => break Some(self.compressed.take()),
            }
        };
        let plain = self.plain.take().expect("polled after completion");
        Poll::Ready(plain.answer(compressed))
    }
}

impl Plain {
    pub(super) fn compress_here<B>(self) -> Response<CompressionBody<B>> {
        let compressed = Encoder::whole(&self.core, self.form.coding, &self.data).ok();
        self.answer(compressed)
    }

    /// The compressed form if it is smaller, or the only one that is wanted; else the body and the head as they
    /// came. Where there is none, and no other is wanted, an empty 500.
    fn answer<B>(self, compressed: Option<Bytes>) -> Response<CompressionBody<B>> {
        let (mut parts, mut trailers) = (self.parts, self.trailers);
        let data = match compressed {
            Some(compressed) if self.larger || compressed.len() < self.data.len() => {
                let length = compressed.len() as u64;
                self.core.stats.count(self.data.len() as u64, length);
                self.form.encode_head(&mut parts.headers, Some(length));
                if let Some(trailers) = &mut trailers {
                    self.form.encode_trailers(trailers);
                }
                compressed
            }
            None if self.larger => {
                parts.status = StatusCode::INTERNAL_SERVER_ERROR;
                parts.headers = HeaderMap::new();
                headers::add_vary(&mut parts.headers);
                trailers = None;
                Bytes::new()
            }
            _ => self.data,
        };
        Response::from_parts(parts, CompressionBody::whole(data, trailers))
    }
}
