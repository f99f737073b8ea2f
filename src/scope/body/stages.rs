//! The stages of a body, and how one leads to another: all but what nearly every poll is.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Projected;
use crate::{
    error::{BodyError, BoxError},
    scope::{
        failing::Failing,
        failure::contained,
        finisher::Finisher,
        inner::{Inner, end_hint, poll_inner},
        judge::{End, Held, Judged, Next},
        limit::Limit,
        machine::Parting,
        owner::Owner,
    },
};

/// What is large is boxed: bodies are moved several times before they are first polled, and most
/// come to no stage but `Streaming` and `Done`.
#[derive(Debug)]
pub(super) enum Stage {
    /// The inner body is asked.
    Streaming,
    /// The same, but what it gives is judged by an owner further out.
    Passing,
    /// This was polled ahead of the head, and goes first.
    Ahead(Box<Bytes>),
    /// The length is reached and the inner body may still have trailers: this frame waits.
    AtLength(Box<Withheld>),
    /// The inner body is gone; the teardown runs, then this is shown.
    Ending(Option<Box<Held>>),
    /// The error waits a little, so that the frames before it are delivered.
    Failing(Box<Failing>),
    /// Nothing follows. HEAD and 304 keep the size hint of what GET would have sent.
    Done { hint: Option<Box<SizeHint>> },
}

/// The frame that reaches the promised length, and how long it waits for what may follow it.
#[derive(Debug)]
pub(super) struct Withheld {
    pub(super) data: Bytes,
    limit: Limit,
}

impl Withheld {
    /// The end of a source that says nothing more, and has no code running that could. `Pending` with the waker
    /// registered.
    fn poll_end(&mut self, owner: &Owner, cx: &mut Context<'_>) -> Poll<End> {
        if owner.is_producing() {
            return Poll::Pending;
        }
        let scope = owner.scope();
        let _context = scope.and_then(|scope| scope.enter());
        ready!(self.limit.poll(cx));
        Poll::Ready(End::complete(Some(std::mem::take(&mut self.data)), None))
    }
}

impl Stage {
    pub(super) fn at_length(data: Bytes, owner: &Owner) -> Self {
        let limit = Limit::new(owner.join_limit());
        Self::AtLength(Box::new(Withheld { data, limit }))
    }

    /// The teardown comes next; what is held is shown behind it.
    pub(super) fn ending(held: Held) -> Self {
        let shown = held.clean || !held.is_empty();
        Self::Ending(shown.then(|| Box::new(held)))
    }
}

impl<B> Projected<'_, B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Goes on from what the inner body gave, or from where the stage stands.
    pub(super) fn proceed(
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
                        Judged::Pass(data) => {
                            self.owner.account();
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Judged::Last(data) => {
                            self.inner.set(None);
                            *self.stage = Stage::Done { hint: None };
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Judged::AtLength(data) => *self.stage = Stage::at_length(data, self.owner),
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
                    self.owner.account();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Stage::AtLength(withheld) => {
                    // Trailers (HTTP/2), or an error; more data would be more than promised.
                    let end = match poll_inner(self.owner, self.inner.as_mut(), cx) {
                        Poll::Ready(next) => {
                            let end_hint = || end_hint(self.inner.as_ref());
                            let data = &mut withheld.data;
                            self.owner.judge_at_length(data, next, end_hint)
                        }
                        Poll::Pending => Some(ready!(withheld.poll_end(self.owner, cx))),
                    };
                    let Some(end) = end else {
                        continue;
                    };
                    *self.stage = settle(end, self.owner, self.inner.as_mut(), self.finisher);
                }
                Stage::Ending(held) => {
                    let verdict = ready!(self.finisher.poll_driven(cx));
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
                    if let Some(frame) = failing.next_frame() {
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
pub(super) fn settle<B>(
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
    let parting = owner.end(end.outcome, end.error, held.kept());
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
