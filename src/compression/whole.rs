//! Small bodies of known size: collected while ready, compressed at once, sent with their length.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, response::Parts};
use http_body::Body;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    body::CompressionBody,
    encoder::Encoder,
    headers::{self, Form},
    negotiation::Coding,
    options::Core,
    source::{Event, Inner, Source},
    workers::{Engaged, Job, Patience, Workers},
};
use crate::BoxError;

/// The largest body that is held to be compressed at once.
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
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let trailers = match source.poll(boxed.as_mut(), cx) {
            Poll::Ready(Event::Data(data)) => {
                if first.is_empty() {
                    first = data;
                } else {
                    if rest.is_empty() {
                        rest.extend_from_slice(&first);
                    }
                    rest.extend_from_slice(&data);
                }
                continue;
            }
            Poll::Ready(Event::End) => Some(None),
            Poll::Ready(Event::Trailers(trailers)) => Some(Some(trailers)),
            Poll::Ready(Event::Failed(error)) => {
                source.fail_with(error);
                None
            }
            Poll::Pending => None,
        };
        let data = if rest.is_empty() {
            first
        } else {
            rest.freeze()
        };
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

/// A whole body on its way to being compressed.
pub(super) struct Whole {
    /// `None` once answered.
    plain: Option<Box<Plain>>,
    /// `None` if no worker could run; it is closed if one has failed, or panicked.
    compressed: oneshot::Receiver<Option<Bytes>>,
    patience: Patience,
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
    /// Sends a larger body to a worker; one within a burst, or without a runtime, comes back.
    pub(super) fn start(
        core: &Arc<Core>,
        form: Form,
        parts: Parts,
        data: Bytes,
        trailers: Option<HeaderMap>,
        larger: bool,
    ) -> Result<Self, Box<Plain>> {
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
        let Ok(handle) = Handle::try_current() else {
            return Err(plain);
        };
        let (sender, compressed) = oneshot::channel();
        let job = Task {
            core: Arc::clone(core),
            coding: form.coding,
            data: plain.data.clone(),
            sender: Mutex::new(Some((sender, Engaged::new(core)))),
        };
        Workers::submit(core, Arc::new(job), &handle);
        Ok(Self {
            plain: Some(plain),
            compressed,
            patience: Patience::default(),
        })
    }

    pub(super) fn poll<B>(&mut self, cx: &mut Context<'_>) -> Poll<Response<CompressionBody<B>>> {
        let plain = self.plain.as_ref().expect("polled after completion");
        let Poll::Ready(told) = Pin::new(&mut self.compressed).poll(cx) else {
            self.patience.poll(&plain.core, cx);
            return Poll::Pending;
        };
        let plain = self.plain.take().expect("looked at above");
        Poll::Ready(match told {
            // Else the plain form is as good.
            Ok(None) if plain.larger => plain.compress_here(),
            told => plain.answer(told.ok().flatten()),
        })
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

struct Task {
    core: Arc<Core>,
    coding: Coding,
    data: Bytes,
    sender: Mutex<Option<(Sender, Engaged)>>,
}

type Sender = oneshot::Sender<Option<Bytes>>;

impl Task {
    fn sender(&self) -> Option<(Sender, Engaged)> {
        self.sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Job for Task {
    fn run(&self) -> bool {
        if let Some((sender, engaged)) = self.sender().filter(|(sender, _)| !sender.is_closed()) {
            if let Ok(compressed) = Encoder::whole(&self.core, self.coding, &self.data) {
                drop(engaged);
                // The client may have left meanwhile.
                let _ = sender.send(Some(compressed));
            }
        }
        false
    }

    fn refuse(&self, panicked: bool) {
        if let Some((sender, _)) = self.sender().filter(|_| !panicked) {
            let _ = sender.send(None);
        }
    }
}
