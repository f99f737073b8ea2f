//! The service, and the future that decides what to do with a response.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, Method, Request, Response, StatusCode, Version, header, response::Parts};
use http_body::Body;
use tower_service::Service;

use super::{
    body::CompressionBody,
    headers::{self, Compress, Form, Treatment},
    negotiation::{Accepted, Choice},
    options::Core,
    source::{Account, Inner, Source},
    stream::Stream,
    whole::{self, Collected, Whole},
};
use crate::{
    BoxError,
    content_length::{self, Framing},
    scope::{Connection, is_encoded_outside},
};

/// A service whose responses are compressed: made by [`CompressionLayer`](super::CompressionLayer).
#[derive(Clone, Debug)]
pub struct Compression<S> {
    inner: S,
    core: Arc<Core>,
}

impl<S> Compression<S> {
    pub(super) fn new(inner: S, core: Arc<Core>) -> Self {
        Self { inner, core }
    }
}

impl<S, ReqB, B> Service<Request<ReqB>> for Compression<S>
where
    S: Service<Request<ReqB>, Response = Response<B>>,
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<CompressionBody<B>>;
    type Error = S::Error;
    type Future = CompressionFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let lines = request.headers().get_all(header::ACCEPT_ENCODING);
        // Its end is that of a stream.
        let closes = request.version() < Version::HTTP_11;
        let call = Call {
            method: request.method().clone(),
            version: request.version(),
            connection: closes.then(|| Box::new(Connection::of(request.extensions()))),
            accepted: Accepted::parse(lines.into_iter().map(|line| line.as_bytes())),
            core: Arc::clone(&self.core),
            inside: is_encoded_outside(request.extensions()),
        };
        let refused = self.core.options.strict && call.choice() == Choice::Nothing;
        CompressionFuture {
            state: match refused {
                true => State::Refused,
                false => State::Inner(self.inner.call(request)),
            },
            call,
        }
    }
}

/// The future of [`Compression`].
///
/// A body whose size is known, up to 64 KiB, and which is ready, is compressed before the head is given, so that the head
/// has its length: of more than 32 KiB part of it on other threads. Meanwhile this is pending, and wakes itself.
///
/// # Errors
///
/// The inner service's.
///
/// # On drop
///
/// The inner service's future is dropped, or the body with its compressor.
#[must_use = "futures do nothing unless polled"]
#[pin_project::pin_project]
pub struct CompressionFuture<F> {
    #[pin]
    state: State<F>,
    call: Call,
}

#[pin_project::pin_project(project = StateProjection)]
enum State<F> {
    /// Nothing on offer is acceptable, and the layer is strict.
    Refused,
    Inner(#[pin] F),
    /// A whole body is being compressed, in turns or on another thread.
    Compressing(Box<Whole>),
    Done,
}

/// What a response's treatment depends on besides the response.
struct Call {
    method: Method,
    version: Version,
    /// That of an HTTP/1.0 client.
    connection: Option<Box<Connection>>,
    accepted: Accepted,
    /// The layer's, or that of one further in whose response it encodes.
    core: Arc<Core>,
    /// Another encoder, outside of the scope that this is inside of, has what the scope says last: it is the one
    /// to encode, by our options.
    inside: bool,
}

/// The options of a layer that leaves its response to an encoder further out: an extension of that response.
///
/// Nothing of the request: who stands between may keep the response, and answer others by it.
#[derive(Clone)]
struct LeftBy(Arc<Core>);

impl<F, B, E> Future for CompressionFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<CompressionBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let StateProjection::Inner(future) = this.state.as_mut().project() {
            let mut response = ready!(future.poll(cx))?;
            let treated = match this.call.regard(&mut response) {
                // At once: to move a response costs more than all the rest of this.
                Regard::LeaveAlone => {
                    this.state.set(State::Done);
                    return Poll::Ready(Ok(response.map(CompressionBody::plain)));
                }
                Regard::Treat(plan) => this.call.treat(response, plan, cx),
                Regard::Refuse => Ok(not_acceptable(mem::take(response.extensions_mut()))),
            };
            match treated {
                Ok(response) => {
                    this.state.set(State::Done);
                    return Poll::Ready(Ok(response));
                }
                Err(whole) => this.state.set(State::Compressing(whole)),
            }
        }
        let response = match this.state.as_mut().project() {
            StateProjection::Compressing(whole) => ready!(whole.poll(cx)),
            StateProjection::Refused => not_acceptable(Extensions::new()),
            StateProjection::Inner(_) | StateProjection::Done => panic!("polled after completion"),
        };
        this.state.set(State::Done);
        Poll::Ready(Ok(response))
    }
}

impl Call {
    fn choice(&self) -> Choice {
        self.accepted.choose(&self.core.options.codings)
    }

    /// The options of a layer further in win; but what a strict layer refuses stays refused.
    fn agree(&mut self, extensions: &mut Extensions) -> Result<(), NotAcceptable> {
        if self.inside {
            extensions.get_or_insert_with(|| LeftBy(self.core.clone()));
            return Ok(());
        }
        let Some(LeftBy(core)) = extensions.remove() else {
            return Ok(());
        };
        let strict = self.core.options.strict;
        self.core = core;
        match strict && self.choice() == Choice::Nothing {
            true => Err(NotAcceptable),
            false => Ok(()),
        }
    }

    /// What is to be done with a response, as far as that takes no look at most of its headers.
    fn regard(&mut self, response: &mut Response<impl Body>) -> Regard {
        let extensions = response.extensions_mut();
        if let Err(NotAcceptable) = self.agree(extensions) {
            return Regard::Refuse;
        }
        let wish = match self.inside {
            true => extensions.get().copied(),
            false => extensions.remove::<Compress>(),
        };
        let options = &self.core.options;
        let form = match self.choice() {
            Choice::Encode(coding) => Some(Form::new(coding, &self.method)),
            Choice::Identity | Choice::Nothing => None,
        };
        let size = self.size(response);
        let nothing_on_offer = options.codings.is_empty();
        let only_encoded = form.is_some() && self.accepted.refuses_identity();
        if nothing_on_offer
            || headers::is_too_small(response.status(), size, wish, only_encoded, options)
        {
            return Regard::LeaveAlone;
        }
        Regard::Treat(Plan { form, wish, size })
    }

    /// What the client gets; `Err` while a whole body is being compressed.
    #[inline(never)]
    fn treat<B>(
        &self,
        response: Response<B>,
        Plan { form, wish, size }: Plan,
        cx: &mut Context<'_>,
    ) -> Result<Response<CompressionBody<B>>, Box<Whole>>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = response.into_parts();
        let treatment = headers::judge(&self.method, &parts, wish, &self.core.options);
        if treatment != Treatment::LeaveAlone {
            headers::add_vary(&mut parts.headers);
        }
        match (treatment, form) {
            // What is sent of it is said further out.
            _ if self.inside => {}
            (Treatment::Negotiable, Some(form)) => return self.encode(parts, body, size, form, cx),
            (Treatment::HeadersOnly, Some(form)) => {
                form.forget_plain(&mut parts.headers);
                if body.is_end_stream() {
                    return Ok(Response::from_parts(parts, CompressionBody::head()));
                }
            }
            _ => {}
        }
        Ok(Response::from_parts(parts, CompressionBody::plain(body)))
    }

    fn encode<B>(
        &self,
        mut parts: Parts,
        body: B,
        size: Option<u64>,
        form: Form,
        cx: &mut Context<'_>,
    ) -> Result<Response<CompressionBody<B>>, Box<Whole>>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        if self.method == Method::HEAD {
            form.encode_head(&mut parts.headers, None);
            return Ok(Response::from_parts(parts, CompressionBody::head()));
        }
        let Framing { chunked, .. } = Framing::of(self.version, &parts.headers);
        let source = Source::new(Account {
            promised: size,
            ends_at_length: self.version < Version::HTTP_2 && !chunked,
            given: 0,
        });
        if size.is_none_or(|size| size > whole::LIMIT) {
            let stream = Stream::new(&self.core, form, source, bytes::Bytes::new());
            return Ok(self.streamed(parts, form, Inner::Plain(body), stream));
        }
        match whole::collect(body, source, cx) {
            Collected::Whole { data, trailers } => {
                let larger = self.accepted.refuses_identity();
                match Whole::start(&self.core, form, parts, data, trailers, larger) {
                    Ok(begun) => Err(begun),
                    Err(small) => Ok(small.compress_here()),
                }
            }
            Collected::Stream {
                inner,
                source,
                data,
            } => {
                let stream = Stream::new(&self.core, form, source, data);
                Ok(self.streamed(parts, form, inner, stream))
            }
        }
    }

    /// The length goes, and with it all that tells an HTTP/1.0 client a broken body from a whole one: but
    /// for a reset, which a server that has sent all of it takes back.
    fn streamed<B>(
        &self,
        mut parts: Parts,
        form: Form,
        inner: Inner<B>,
        stream: Stream,
    ) -> Response<CompressionBody<B>> {
        if let Some(connection) = &self.connection {
            connection.end_in_reset();
        }
        form.encode_head(&mut parts.headers, None);
        Response::from_parts(parts, CompressionBody::stream(inner, stream))
    }

    /// The size of the content as far as the head tells.
    fn size(&self, response: &Response<impl Body>) -> Option<u64> {
        if let Some(length) = content_length::of(response.headers()) {
            return Some(length);
        }
        let body = response.body();
        if self.method == Method::HEAD {
            // An empty answer says nothing about the content GET would give; one that is over and hints
            // at a size does.
            return body.size_hint().exact().filter(|size| *size > 0);
        }
        match body.is_end_stream() {
            true => Some(0),
            false => body.size_hint().exact(),
        }
    }
}

/// What is to be done with a response.
enum Regard {
    /// It passes as it is, and nothing is said of it.
    LeaveAlone,
    /// Its head decides.
    Treat(Plan),
    /// A strict layer has nothing on offer that the client accepts.
    Refuse,
}

/// What is known of a response before its head is read.
struct Plan {
    /// What it may be encoded as.
    form: Option<Form>,
    wish: Option<Compress>,
    size: Option<u64>,
}

/// A strict layer has nothing on offer that the client accepts.
struct NotAcceptable;

fn not_acceptable<B>(extensions: Extensions) -> Response<CompressionBody<B>> {
    let mut response = Response::new(CompressionBody::default());
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    *response.extensions_mut() = extensions;
    headers::add_vary(response.headers_mut());
    response
}

impl<F> fmt::Debug for CompressionFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompressionFuture").finish_non_exhaustive()
    }
}
