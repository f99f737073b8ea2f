//! The body of an owner: passes frames through, sees the end, and holds it back for the teardown.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::{
    detector::Detector,
    failing::Failing,
    failure::contained,
    inner::{Inner, askable, end_hint, poll_inner, seen},
    judge::{End, Held, Judged, Next},
    machine::{Parting, Scope},
    owner::{Finisher, Owner},
};
use crate::{
    error::{BodyError, BoxError},
    frames::{let_go, take_bytes},
};

/// A response body with an owner: what its request started ends when it does.
///
/// Frames of the inner body pass through as they are. If anything is registered in the scope, the
/// end (or the last frame of a known length) is held back until the teardown is finished, and
/// becomes an error if that fails.
///
/// **On drop**: the end starts, the inner body is dropped, and the teardown moves to a task on the
/// runtime that was current at the call.
#[pin_project(project = Projected)]
#[must_use = "a body does nothing unless it is polled"]
pub struct ScopeBody<B> {
    // Field order is drop order: signals, inner body, teardown.
    owner: Owner,
    #[pin]
    inner: Option<Inner<B>>,
    stage: Stage,
    finisher: Finisher,
}

/// What is large is boxed: bodies are moved several times before they are first polled, and most
/// come to no stage but `Streaming` and `Done`.
#[derive(Debug)]
enum Stage {
    /// The inner body is asked.
    Streaming,
    /// The same, but what it gives is judged by an owner further out.
    Passing,
    /// This was polled ahead of the head, and goes first.
    Ahead(Box<Bytes>),
    /// The length is reached and the inner body may still have trailers: this frame waits.
    AtLength(Box<Bytes>),
    /// The inner body is gone; the teardown runs, then this is shown.
    Ending(Option<Box<Held>>),
    /// The error waits a little, so that the frames before it are delivered.
    Failing(Box<Failing>),
    /// Nothing follows. HEAD keeps the size hint of what GET would have sent.
    Done { hint: Option<Box<SizeHint>> },
}

impl<B> ScopeBody<B> {
    /// The body of a joined layer: the owner further out judges what passes.
    pub(super) fn passing(inner: B) -> Self {
        let mut body = Self::new(
            Owner::free(),
            Some(Inner::Inline(inner)),
            Finisher::default(),
        );
        body.stage = Stage::Passing;
        body
    }

    /// A body under an owner whose head has passed.
    pub(super) fn streaming(owner: Owner, inner: B, finisher: Finisher) -> Self {
        Self::new(owner, Some(Inner::Inline(inner)), finisher)
    }

    /// The same with a body that was polled ahead of the head, and gave this.
    pub(super) fn polled_ahead(
        owner: Owner,
        inner: Pin<Box<B>>,
        ahead: Option<Bytes>,
        at_length: Option<Bytes>,
        finisher: Finisher,
    ) -> Self {
        let mut body = Self::new(owner, Some(Inner::Boxed(inner)), finisher);
        body.stage = match (at_length, ahead) {
            (Some(data), _) => Stage::AtLength(Box::new(data)),
            (None, Some(data)) => Stage::Ahead(Box::new(data)),
            (None, None) => Stage::Streaming,
        };
        body
    }

    /// A body that was over before its head was sent; `held` is all of it.
    pub(super) fn over(held: Held, hint: Option<SizeHint>) -> Self {
        let mut body = Self::new(Owner::free(), None, Finisher::new(None));
        body.stage = if held.is_empty() {
            Stage::Done {
                hint: hint.map(Box::new),
            }
        } else {
            Stage::ending(Held {
                clean: true,
                ..held
            })
        };
        body
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The inner body before it is first polled.
    pub(crate) fn inner_mut(&mut self) -> Option<&mut B> {
        match &mut self.inner {
            Some(Inner::Inline(body)) => Some(body),
            Some(Inner::Boxed(_)) | None => None,
        }
    }

    fn new(owner: Owner, inner: Option<Inner<B>>, finisher: Finisher) -> Self {
        Self {
            owner,
            inner,
            stage: Stage::Streaming,
            finisher,
        }
    }
}

impl<B> ScopeBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// A body that owns a scope of its own: for use without a layer.
    pub(crate) fn standalone(scope: Arc<Scope>, inner: B) -> Self {
        let mut owner = Owner::root(scope.clone());
        // A body that says it is over must not be polled.
        let over = inner.is_end_stream();
        let promised = if over {
            Some(0)
        } else {
            inner.size_hint().exact()
        };
        owner.streams(Detector::promising(promised));
        let inner = (!over).then_some(Inner::Inline(inner));
        Self::new(owner, inner, Finisher::new(Some(scope)))
    }
}

impl<B> ScopeBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Lets the inner body of an interrupted scope go now; the rest is for who polls next.
    pub(super) fn cut(self: Pin<&mut Self>) {
        let this = self.project();
        let asks = matches!(
            this.stage,
            Stage::Streaming | Stage::Ahead(_) | Stage::AtLength(_)
        );
        if asks && this.owner.is_interrupted() {
            let end = this.owner.interrupted();
            *this.stage = settle(end, this.owner, this.inner, this.finisher);
        }
    }
}

impl<B> Body for ScopeBody<B>
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
        let mut this = self.project();
        if !matches!(this.stage, Stage::Streaming) {
            return this.proceed(None, cx);
        }
        let inner = match askable(this.owner, this.inner.as_mut()) {
            Ok(inner) => inner,
            Err(unasked) => return this.proceed(Some(unasked.into()), cx),
        };
        let mut polled = this.owner.marked(|| inner.poll_frame(cx));
        // Nearly every poll: data and more to come. It is taken out where it stands, since to move what
        // was only just written costs more than the rest of this.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(data) = frame.data_mut() {
                let length = data.remaining();
                if this.owner.passes(length, || end_hint(this.inner.as_ref())) {
                    let data = take_bytes(data);
                    let_go::<B::Data, _>(polled);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
        let next = ready!(seen(polled, this.owner, cx));
        this.proceed(Some(next), cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.stage {
            Stage::Done { .. } => true,
            Stage::Passing => self.inner.as_ref().is_none_or(Inner::end_hint),
            // An owner shows its ends as they come.
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.stage {
            // Polled ahead only under a promised length; the inner hint is short of this frame.
            Stage::Ahead(data) => {
                let promised = self.owner.detector.promised();
                SizeHint::with_exact(promised.unwrap_or(data.len() as u64))
            }
            Stage::Streaming | Stage::Passing => {
                let hint = self.inner.as_ref().map(Inner::size_hint);
                let hint = hint.unwrap_or_else(|| SizeHint::with_exact(0));
                // HTTP/1 sends no bytes as a whole response, and never asks how they ended.
                match hint.exact() == Some(0) && self.owner.shows_its_end() {
                    true => SizeHint::default(),
                    false => hint,
                }
            }
            Stage::AtLength(data) => SizeHint::with_exact(data.len() as u64),
            Stage::Ending(Some(held)) if held.clean => {
                SizeHint::with_exact(held.data.as_ref().map_or(0, |data| data.len() as u64))
            }
            Stage::Ending(_) | Stage::Failing(_) => SizeHint::default(),
            Stage::Done { hint } => match hint {
                Some(hint) => **hint,
                None => SizeHint::with_exact(0),
            },
        }
    }
}

impl<B> Projected<'_, B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Goes on from what the inner body gave, or from where the stage stands.
    fn proceed(
        mut self,
        mut next: Option<Next>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.stage {
                Stage::Streaming => {
                    // No stage leads here: it is `poll_frame` that asks, and brings the answer.
                    let Some(next) = next.take() else {
                        return Poll::Ready(None);
                    };
                    match self.owner.judge(next, || end_hint(self.inner.as_ref())) {
                        Judged::Pass(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        Judged::Last(data) => {
                            self.inner.set(None);
                            *self.stage = Stage::Done { hint: None };
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Judged::AtLength(data) => *self.stage = Stage::AtLength(Box::new(data)),
                        Judged::End(end) => {
                            *self.stage =
                                settle(end, self.owner, self.inner.as_mut(), self.finisher);
                        }
                    }
                }
                Stage::Passing => return pass_through(self.inner, self.stage, cx),
                Stage::Ahead(data) => {
                    let data = std::mem::take(&mut **data);
                    *self.stage = Stage::Streaming;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Stage::AtLength(data) => {
                    // Trailers (HTTP/2), or an error; more data would be more than promised.
                    let next = ready!(poll_inner(self.owner, self.inner.as_mut(), cx));
                    let end_hint = || end_hint(self.inner.as_ref());
                    let Some(end) = self.owner.judge_at_length(data, next, end_hint) else {
                        continue;
                    };
                    *self.stage = settle(end, self.owner, self.inner.as_mut(), self.finisher);
                }
                Stage::Ending(held) => {
                    let verdict = ready!(self.finisher.poll(cx));
                    let clean = held.as_ref().is_some_and(|held| held.clean);
                    let failing = verdict.and_then(|verdict| verdict.failing(clean));
                    if let Some(failing) = failing {
                        *self.stage = Stage::Failing(Box::new(failing));
                        continue;
                    }
                    let next = held.as_mut().and_then(|held| held.next());
                    if held.as_ref().is_none_or(|held| held.is_empty()) {
                        *self.stage = Stage::Done { hint: None };
                    }
                    return Poll::Ready(next.map(Ok));
                }
                Stage::Failing(failing) => {
                    if let Some(frame) = failing.last_frame.take() {
                        return Poll::Ready(Some(Ok(Frame::data(frame))));
                    }
                    ready!(failing.poll_gap(cx));
                    let error = failing.error();
                    *self.stage = Stage::Done { hint: None };
                    return Poll::Ready(Some(Err(error)));
                }
                Stage::Done { .. } => return Poll::Ready(None),
            }
        }
    }
}

#[inline(never)]
fn pass_through<B>(
    mut inner: Pin<&mut Option<Inner<B>>>,
    stage: &mut Stage,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    let next = match inner.as_mut().as_pin_mut() {
        Some(inner) => Next::from(ready!(inner.poll_frame(cx))),
        None => Next::End,
    };
    let frame = match next {
        Next::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
        Next::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(*trailers)))),
        Next::Error(error) => Some(Err(BodyError::new(error))),
        Next::End | Next::Interrupted | Next::Panicked => None,
    };
    inner.set(None);
    *stage = Stage::Done { hint: None };
    Poll::Ready(frame)
}

/// Tells the end, lets the inner body go, and says what comes next. The one way out of streaming.
#[inline(never)]
fn settle<B>(
    end: End,
    owner: &mut Owner,
    mut inner: Pin<&mut Option<Inner<B>>>,
    finisher: &mut Finisher,
) -> Stage {
    let mut held = end.held;
    // Without a last frame for its content type the client must see a broken transfer, also if the
    // inner body ended: its producers may just have heard of the shutdown.
    if let Some(last_frame) = owner.clean_shutdown() {
        let data = held.data.take().into_iter().chain([last_frame]);
        let data: Vec<u8> = data.flatten().collect();
        held = Held {
            data: (!data.is_empty()).then(|| data.into()),
            trailers: None,
            clean: true,
        };
    }
    let parting = owner.end(end.outcome, end.error);
    let panicked = contained(|| inner.set(None)).err();
    let panicked = panicked.map(|payload| finisher.body_panicked(payload));
    let Parting::Leave(broken) = parting else {
        return Stage::ending(held);
    };
    // With holds out there is no verdict to come: a broken body is shown as what it is now.
    let broken = broken.or_else(|| finisher.broken_by(panicked?));
    finisher.leave_to_holds();
    match broken.and_then(|verdict| verdict.failing(held.clean)) {
        Some(failing) => Stage::Failing(Box::new(failing)),
        None => Stage::ending(held),
    }
}

impl Stage {
    /// The teardown comes next; what is held is shown behind it.
    fn ending(held: Held) -> Self {
        let shown = held.clean || !held.is_empty();
        Self::Ending(shown.then(|| Box::new(held)))
    }
}

impl<B> fmt::Debug for ScopeBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeBody")
            .field("owner", &self.owner)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}
