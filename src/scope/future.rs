//! The owner until there is a head: polls the handler, and ends what needs no body to be polled.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use http::{
    Extensions, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    response::Parts,
};
use http_body::{Body, SizeHint};
use pin_project::pin_project;

use super::{
    body::ScopeBody,
    detector::{Detector, Head, hint_without_body},
    failure::{Failure, FailureKind, contained},
    finisher::Finisher,
    head::AtHead,
    inner::{Unasked, askable},
    judge::{End, Held, Judged, Next},
    machine::Parting,
    owner::{Owner, Runs},
    verdict::{Verdict, failure_status},
};
use crate::{
    error::{BoxError, Cause},
    outcome::Outcome,
};

/// The response future of a scope layer.
///
/// **On drop**: the end starts (`Dropped`, or `Panicked`), the handler is dropped, and the teardown
/// moves to a task on the runtime that was current at the call.
#[pin_project(project = Projected)]
#[must_use = "futures do nothing unless polled"]
pub struct ScopeFuture<F, E> {
    // Field order is drop order: signals, handler, teardown.
    owner: Owner,
    #[pin]
    inner: Option<F>,
    /// What is given once the teardown, which here comes before the head, is finished.
    last: Option<Box<Last<E>>>,
    finisher: Finisher,
}

enum Last<E> {
    Respond(Over),
    Error(E),
    /// With what leads to its scope.
    Interrupted(Extensions),
}

/// A response whose body is over before its head is sent.
struct Over {
    parts: Parts,
    held: Held,
    hint: Option<SizeHint>,
    /// It is broken, and holds keep the scope from saying so.
    broken: Option<Outcome>,
}

impl<F, E> ScopeFuture<F, E> {
    pub(super) fn new(owner: Owner, inner: F, finisher: Finisher) -> Self {
        Self {
            owner,
            inner: Some(inner),
            last: None,
            finisher,
        }
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl<F, B, E> Future for ScopeFuture<F, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ScopeBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(last) = this.last.take() {
            return this.conclude(*last, cx);
        }
        let polled = match askable(this.owner, this.inner.as_mut()) {
            Ok(handler) => this.owner.marked(Runs::Handler, || handler.poll(cx)),
            Err(Unasked::Interrupted) => {
                let last = this.interrupted();
                return this.conclude(last, cx);
            }
            // Polled again after it was ready, or after its panic was caught: futures are not to be.
            Err(Unasked::Gone | Unasked::Panicked) => return Poll::Pending,
        };
        let last = match polled {
            Poll::Ready(Ok(mut response)) => {
                this.let_go();
                // A response is moved as seldom as can be: that costs more than all the rest of this.
                match at_head(&mut response, this.owner, this.finisher) {
                    Follows::Stream => {
                        let (owner, finisher) = (mem::take(this.owner), mem::take(this.finisher));
                        let streams = |body| ScopeBody::streaming(owner, body, finisher);
                        return Poll::Ready(Ok(response.map(streams)));
                    }
                    Follows::Passing => return Poll::Ready(Ok(response.map(ScopeBody::passing))),
                    Follows::Nothing(hint) => {
                        let over = |_| ScopeBody::over(Held::default(), hint);
                        return Poll::Ready(Ok(response.map(over)));
                    }
                    Follows::End { outcome, hint } => this.ends(response, outcome, hint),
                    Follows::MaybeAll => {
                        match poll_ahead(response, this.owner, this.finisher, cx) {
                            Ok(response) => return Poll::Ready(Ok(response)),
                            Err(over) => Last::Respond(over),
                        }
                    }
                }
            }
            Poll::Ready(Err(error)) => {
                this.let_go();
                this.failed(error)
            }
            Poll::Pending if this.owner.watch(cx) => this.interrupted(),
            Poll::Pending => return Poll::Pending,
        };
        this.conclude(last, cx)
    }
}

impl<F, E> Projected<'_, F, E> {
    /// The handler goes as soon as it is done.
    fn let_go(&mut self) {
        self.owner.marked(Runs::Handler, || self.inner.set(None));
    }

    /// No body will be polled.
    fn ends<B>(
        &mut self,
        response: Response<B>,
        outcome: Outcome,
        hint: Option<SizeHint>,
    ) -> Last<E> {
        let (parts, body) = response.into_parts();
        let end = match outcome {
            Outcome::Complete => End::complete(None, None),
            _ => End::nothing_of(Detector::promised_by(&parts.headers)),
        };
        Last::Respond(end_with(end, body, parts, hint, self.owner, self.finisher))
    }

    /// The service has failed. What is answered to the error is not ours to say.
    fn failed(&mut self, error: E) -> Last<E> {
        let cause = Cause::from(Failure::new(FailureKind::Service));
        let parting = self.owner.end(Outcome::Failed, Some(cause.into()), None);
        if let Parting::Leave(_) = parting {
            self.finisher.leave_to_holds();
        }
        Last::Error(error)
    }

    /// Someone else started the end.
    fn interrupted(&mut self) -> Last<E> {
        self.let_go();
        let end = End {
            outcome: Outcome::Cancelled,
            error: None,
            held: Held::default(),
        };
        let mut extensions = Extensions::new();
        if let Some(scope) = self.owner.scope() {
            scope.lead_here(&mut extensions);
        }
        end_before_head(self.owner, self.finisher, end, ());
        Last::Interrupted(extensions)
    }

    /// Finishes the teardown, then gives what is to be given.
    fn conclude<B>(
        self,
        last: Last<E>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ScopeBody<B>>, E>> {
        match self.finisher.poll_before_head(cx) {
            Poll::Ready(verdict) => Poll::Ready(answer(last, verdict)),
            Poll::Pending => {
                *self.last = Some(Box::new(last));
                Poll::Pending
            }
        }
    }
}

/// What follows a head.
enum Follows {
    /// A body of another layer's.
    Passing,
    /// A body under its owner.
    Stream,
    /// The same, and the whole of it may be at hand.
    MaybeAll,
    /// Nothing, and nobody hears of the end.
    Nothing(Option<SizeHint>),
    /// Nothing: the teardown comes before the head.
    End {
        outcome: Outcome,
        hint: Option<SizeHint>,
    },
}

/// Reads the head.
fn at_head<B: Body>(
    response: &mut Response<B>,
    owner: &mut Owner,
    finisher: &mut Finisher,
) -> Follows {
    let Some(scope) = owner.scope() else {
        owner.release();
        return Follows::Passing;
    };
    let head = scope.at_head(response);
    if head != AtHead::Unreached {
        scope.note_rpc_status(response.headers());
    }
    let body = response.body();
    let hints = || (body.size_hint(), body.is_end_stream());
    let (hint, end_hint) = owner.marked(Runs::Body, hints);
    let seen = Detector::at_head(
        (&scope.method, scope.version),
        response.status(),
        response.headers(),
        &hint,
        end_hint,
    );
    let kept = match seen {
        Head::Ended(_) => hint_without_body(&scope.method, response.status(), hint),
        Head::Streams(_) => None,
    };
    if scope.method == Method::HEAD {
        write_length(response, kept.as_ref());
    }
    if head == AtHead::Unreached && !matches!(seen, Head::Ended(Outcome::Truncated)) {
        owner.leave_unreached();
        finisher.give_up();
    }
    let detector = match seen {
        Head::Streams(detector) => detector,
        Head::Ended(_) if owner.is_unreached() => return Follows::Nothing(kept),
        Head::Ended(outcome) => {
            return Follows::End {
                outcome,
                hint: kept,
            };
        }
    };
    owner.streams(detector);
    // Something may fail in the teardown: it is seen whether it can come before the head.
    match head == AtHead::Used && detector.promised().is_some() {
        true => Follows::MaybeAll,
        false => Follows::Stream,
    }
}

/// Polls a body before its head is given. `Err` if that is all of it, so that the teardown comes first.
fn poll_ahead<B>(
    response: Response<B>,
    owner: &mut Owner,
    finisher: &mut Finisher,
    cx: &mut Context<'_>,
) -> Result<Response<ScopeBody<B>>, Over>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let mut body = Box::pin(body);
    let mut waiting = None;
    loop {
        let polled = owner.marked(Runs::Body, || body.as_mut().poll_frame(cx).map(Next::from));
        let Poll::Ready(next) = polled else {
            let (owner, finisher) = (mem::take(owner), mem::take(finisher));
            let body = ScopeBody::polled_ahead(owner, body, None, waiting, finisher);
            return Ok(Response::from_parts(parts, body));
        };
        let end = match &mut waiting {
            Some(data) => match owner.judge_at_length(data, next, || body.is_end_stream()) {
                Some(end) => end,
                None => continue,
            },
            None => match owner.judge(next, || body.is_end_stream()) {
                Judged::Pass(data) | Judged::Last(data) => {
                    let (owner, finisher) = (mem::take(owner), mem::take(finisher));
                    let body = ScopeBody::polled_ahead(owner, body, Some(data), None, finisher);
                    return Ok(Response::from_parts(parts, body));
                }
                Judged::AtLength(data) => {
                    waiting = Some(data);
                    continue;
                }
                Judged::End(end) => end,
            },
        };
        return Err(end_with(end, body, parts, None, owner, finisher));
    }
}

/// HEAD's answer says how long GET's is. hyper would ask the hint of a body that has not ended.
fn write_length<B>(response: &mut Response<B>, hint: Option<&SizeHint>) {
    let Some(length @ 1..) = hint.and_then(SizeHint::exact) else {
        return;
    };
    let headers = response.headers();
    let says = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    if !says && response.status() != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
}

fn end_with<B>(
    end: End,
    body: B,
    parts: Parts,
    hint: Option<SizeHint>,
    owner: &mut Owner,
    finisher: &mut Finisher,
) -> Over {
    let (held, broken) = end_before_head(owner, finisher, end, body);
    Over {
        parts,
        held,
        hint,
        broken: broken.map(|verdict| verdict.outcome),
    }
}

/// The end has come and there is no head yet: what fails from here on becomes the head's status.
/// If holds keep the scope open, the head goes out before the teardown, with this verdict.
///
/// The body goes between the end's start, so that its senders are told on that account, and any
/// teardown.
fn end_before_head<B>(
    owner: &mut Owner,
    finisher: &mut Finisher,
    end: End,
    body: B,
) -> (Held, Option<Verdict>) {
    let scope = owner.scope().cloned();
    let held = end.held;
    let parting = owner.end(end.outcome, end.error, held.kept());
    let panicked = contained(|| drop(body)).err();
    let panicked = panicked.map(|payload| finisher.body_panicked(payload));
    match parting {
        Parting::TearDown => {
            if let Some(scope) = scope {
                scope.lock().before_head = true;
            }
            (held, None)
        }
        Parting::Leave(broken) => {
            let broken = broken.or_else(|| finisher.broken_by(panicked?));
            if let (Some(scope), Some(verdict)) = (scope, &broken) {
                scope.lock().status = Some(failure_status(verdict.outcome));
            }
            finisher.leave_to_holds();
            (held, broken)
        }
    }
}

/// The teardown is finished: the response as it was, or an error in its place.
fn answer<B, E>(last: Last<E>, verdict: Option<Verdict>) -> Result<Response<ScopeBody<B>>, E> {
    let failed = verdict
        .map(|verdict| verdict.outcome)
        .filter(|outcome| !outcome.is_complete());
    match last {
        Last::Error(error) => Err(error),
        Last::Respond(over) => Ok(match failed.or(over.broken) {
            None => Response::from_parts(over.parts, ScopeBody::over(over.held, over.hint)),
            Some(outcome) => failed_response(outcome, over.parts.extensions),
        }),
        Last::Interrupted(extensions) => Ok(failed_response(
            failed.unwrap_or(Outcome::Cancelled),
            extensions,
        )),
    }
}

/// What the client gets instead of a response that failed before its head: a bare status.
fn failed_response<B>(outcome: Outcome, extensions: Extensions) -> Response<ScopeBody<B>> {
    let mut response = Response::new(ScopeBody::over(Held::default(), None));
    *response.status_mut() = failure_status(outcome);
    // To HEAD, too, that is all there is: without it, a layer further out would not know.
    let nothing = HeaderValue::from_static("0");
    response.headers_mut().insert(CONTENT_LENGTH, nothing);
    *response.extensions_mut() = extensions;
    response
}

impl<F, E> fmt::Debug for ScopeFuture<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeFuture")
            .field("owner", &self.owner)
            .field("finishing", &self.last.is_some())
            .finish_non_exhaustive()
    }
}
