//! The inner body of an owner, and how it is asked for a frame.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::{
    judge::Next,
    owner::{Owner, Runs},
};
use crate::error::BoxError;

/// The inner body; boxed if it was polled before the head was sent.
#[pin_project(project = InnerProjection)]
pub(super) enum Inner<B> {
    Inline(#[pin] B),
    Boxed(Pin<Box<B>>),
}

impl<B: Body> Inner<B> {
    pub(super) fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project() {
            InnerProjection::Inline(body) => body.poll_frame(cx),
            InnerProjection::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    pub(super) fn end_hint(&self) -> bool {
        match self {
            Inner::Inline(body) => body.is_end_stream(),
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Inner::Inline(body) => body.size_hint(),
            Inner::Boxed(body) => body.size_hint(),
        }
    }
}

pub(super) fn end_hint<B: Body>(inner: Pin<&Option<Inner<B>>>) -> bool {
    inner.get_ref().as_ref().is_none_or(Inner::end_hint)
}

/// The inner future or body, if it is to be polled; else what that means.
#[inline]
pub(super) fn askable<'a, T>(
    owner: &Owner,
    inner: Pin<&'a mut Option<T>>,
) -> Result<Pin<&'a mut T>, Unasked> {
    if owner.is_interrupted() {
        return Err(Unasked::Interrupted);
    }
    if owner.has_panicked() {
        return Err(Unasked::Panicked);
    }
    inner.as_pin_mut().ok_or(Unasked::Gone)
}

/// Why what is inner is not polled.
pub(super) enum Unasked {
    Interrupted,
    Panicked,
    Gone,
}

impl From<Unasked> for Next {
    fn from(unasked: Unasked) -> Self {
        match unasked {
            Unasked::Interrupted => Next::Interrupted,
            Unasked::Panicked => Next::Panicked,
            Unasked::Gone => Next::End,
        }
    }
}

/// What the inner body gave, unless the end has come otherwise meanwhile.
pub(super) fn seen<D: Buf + 'static, E: Into<BoxError>>(
    polled: Poll<Option<Result<Frame<D>, E>>>,
    owner: &mut Owner,
    cx: &mut Context<'_>,
) -> Poll<Next> {
    match polled {
        // What is in it is converted by the application's code, too.
        Poll::Ready(given) => Poll::Ready(owner.marked(Runs::Body, || Next::from(given))),
        // Registered before the second look, so that an interruption in between is not missed.
        Poll::Pending if owner.watch(cx) => Poll::Ready(Next::Interrupted),
        Poll::Pending => Poll::Pending,
    }
}

/// Asks the inner body for its next frame.
pub(super) fn poll_inner<B>(
    owner: &mut Owner,
    inner: Pin<&mut Option<Inner<B>>>,
    cx: &mut Context<'_>,
) -> Poll<Next>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    match askable(owner, inner) {
        Ok(inner) => {
            let polled = owner.marked(Runs::Body, || inner.poll_frame(cx));
            seen(polled, owner, cx)
        }
        Err(unasked) => Poll::Ready(unasked.into()),
    }
}
