//! The body of an owner: passes frames through, sees the end, and holds it back for the teardown.

mod stages;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use self::stages::{Stage, settle};
use super::{
    detector::Detector,
    finisher::Finisher,
    inner::{Inner, askable, end_hint, seen},
    judge::Held,
    machine::Scope,
    owner::{Owner, Runs},
};
use crate::{
    error::{BodyError, BoxError},
    frames::{let_go, take_bytes},
};

/// A response body with an owner: what its request started ends when it does.
///
/// Frames of the inner body pass through as they are. If anything is registered in the scope, the
/// end (or the last frame of a known length) is held back until the teardown is finished, and
/// becomes an error if that fails. A teardown that has begun goes on although the body is not polled.
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
        let stage = match (at_length, ahead) {
            (Some(data), _) => Stage::at_length(data, &owner),
            (None, Some(data)) => Stage::Ahead(Box::new(data)),
            (None, None) => Stage::Streaming,
        };
        let mut body = Self::new(owner, Some(Inner::Boxed(inner)), finisher);
        body.stage = stage;
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
        // Under one mark: its hint is its own code, too.
        this.owner.mark(Runs::Body);
        let mut polled = inner.poll_frame(cx);
        // Nearly every poll: data and more to come. It is taken out where it stands, since to move what
        // was only just written costs more than the rest of this.
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(data) = frame.data_mut() {
                let length = data.remaining();
                let hint = end_hint(this.inner.as_ref());
                if this.owner.passes(length, hint) {
                    let data = take_bytes(data);
                    this.owner.unmark();
                    let_go::<B::Data, _>(polled);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
        this.owner.unmark();
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
            // It is asked nothing more.
            Stage::Streaming if self.owner.has_panicked() => SizeHint::default(),
            Stage::Streaming | Stage::Passing => {
                let ask = || self.inner.as_ref().map(Inner::size_hint);
                let hint = self.owner.marked(Runs::Body, ask);
                let hint = hint.unwrap_or_else(|| SizeHint::with_exact(0));
                // HTTP/1 sends no bytes as a whole response, and never asks how they ended.
                match hint.exact() == Some(0) && self.owner.shows_its_end() {
                    true => SizeHint::default(),
                    false => hint,
                }
            }
            Stage::AtLength(withheld) => SizeHint::with_exact(withheld.data.len() as u64),
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

impl<B> fmt::Debug for ScopeBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeBody")
            .field("owner", &self.owner)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}
