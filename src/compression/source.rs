//! The inner body, read by the rules of what may follow what.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};

use crate::{
    BodyError, BoxError, Outcome,
    error::Cause,
    frames::take_bytes,
    scope::{Failure, broken_length},
};

/// How long an inner body that is always ready is asked in one poll of its stream. tokio looks at sockets and timers
/// once in 61 polls of such tasks; and a runtime of several threads goes on with them on another core.
const TURN: Duration = Duration::from_micros(250);

/// Frames that one poll takes in any case, a few that belong together are not handed on apart, and between two looks at
/// the clock.
const AT_LEAST: u32 = 8;

/// What the inner body has promised, and given so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) promised: Option<u64>,
    /// HTTP/1 ends a response at its promised length: waiting longer could be for ever.
    pub(super) ends_at_length: bool,
    pub(super) given: u64,
}

/// The inner body, read with the rules about what may follow what.
#[derive(Debug)]
pub(super) struct Source {
    account: Account,
    /// When this poll began to ask, how many frames it has, and whether there are no more of them.
    turn: Option<Instant>,
    taken: u32,
    waiting: bool,
    /// It had only frames without data, for as long as a poll may ask.
    idle: bool,
    /// A failure met before the stream began, still to be told.
    failure: Option<BodyError>,
}

/// What one poll of the inner body came to.
#[derive(Debug)]
pub(super) enum Event {
    Data(Bytes),
    /// Frames without data, until the turn was over.
    Nothing,
    Trailers(HeaderMap),
    End,
    Failed(BodyError),
}

impl Source {
    pub(super) fn new(account: Account) -> Self {
        Self {
            account,
            turn: None,
            taken: 0,
            waiting: false,
            idle: false,
            failure: None,
        }
    }

    /// A poll of the stream begins.
    pub(super) fn begin_turn(&mut self) {
        (self.turn, self.taken, self.waiting) = (None, 0, false);
        self.idle = false;
    }

    /// This poll has asked enough, and others have their turn: an inner body that is always ready may still
    /// take its time for each frame.
    pub(super) fn is_turn_over(&self) -> bool {
        let between = self.taken > 0 && self.taken % AT_LEAST == 0;
        self.idle || between && self.is_time_up()
    }

    /// The same between any two frames.
    pub(super) fn is_time_up(&self) -> bool {
        self.turn.is_some_and(|begun| begun.elapsed() >= TURN)
    }

    /// This poll has found the inner body pending, which will wake it.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    pub(super) fn given(&self) -> u64 {
        self.account.given
    }

    /// Polls `inner`, which is dropped as soon as it has nothing more to say.
    ///
    /// Never polls after end of stream, an error, trailers or the end hint; skips empty frames.
    pub(super) fn poll<B>(
        &mut self,
        mut inner: Pin<&mut Inner<B>>,
        cx: &mut Context<'_>,
    ) -> Poll<Event>
    where
        B: Body,
        B::Data: 'static,
        B::Error: Into<BoxError>,
    {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Event::Failed(failure));
        }
        self.turn.get_or_insert_with(Instant::now);
        let mut empty = 0_u32;
        loop {
            if inner.is_end_stream() {
                inner.set(Inner::Gone);
            }
            let Some(body) = inner.as_mut().live() else {
                return Poll::Ready(self.end());
            };
            let frame = match body.poll_frame(cx) {
                Poll::Pending if self.is_satisfied() => None,
                polled => {
                    self.waiting = polled.is_pending();
                    ready!(polled)
                }
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(mut data))) => {
                    let data = take_bytes(&mut data);
                    self.account.given += data.len() as u64;
                    if self.is_exceeded() {
                        inner.set(Inner::Gone);
                        return Poll::Ready(Event::Failed(self.mismatch()));
                    }
                    if !data.is_empty() {
                        self.taken = self.taken.saturating_add(1);
                        return Poll::Ready(Event::Data(data));
                    }
                }
                Some(Ok(Err(other))) => {
                    if let Ok(trailers) = other.into_trailers() {
                        inner.set(Inner::Gone);
                        return Poll::Ready(match self.end() {
                            Event::End => Event::Trailers(trailers),
                            mismatch => mismatch,
                        });
                    }
                }
                Some(Err(error)) => {
                    inner.set(Inner::Gone);
                    return Poll::Ready(Event::Failed(BodyError::new(error)));
                }
                // The next turn tells what this end is.
                None => {
                    inner.set(Inner::Gone);
                    continue;
                }
            }
            empty = empty.saturating_add(1);
            if empty >= AT_LEAST && self.is_time_up() {
                self.idle = true;
                return Poll::Ready(Event::Nothing);
            }
        }
    }

    /// Makes the next poll tell of this failure.
    pub(super) fn fail_with(&mut self, failure: BodyError) {
        self.failure = Some(failure);
    }

    fn end(&self) -> Event {
        match self.account.promised {
            Some(promised) if promised != self.account.given => Event::Failed(self.mismatch()),
            _ => Event::End,
        }
    }

    fn is_satisfied(&self) -> bool {
        self.account.ends_at_length && self.account.promised == Some(self.account.given)
    }

    fn is_exceeded(&self) -> bool {
        self.account
            .promised
            .is_some_and(|promised| self.account.given > promised)
    }

    fn mismatch(&self) -> BodyError {
        let Account {
            promised, given, ..
        } = self.account;
        broken_length(given, promised.unwrap_or(given))
    }
}

/// The inner body panicked in an earlier poll, or the encoder did.
pub(super) fn broken() -> BoxError {
    let failure = Cause::from(Failure::unseen_panic("response body"));
    BodyError::from(failure).of(Outcome::Panicked).into()
}

/// An inner body: as it came, boxed because it has been polled before it moved, or dropped.
#[pin_project::pin_project(project = InnerProjection)]
#[derive(Debug)]
pub(super) enum Inner<B> {
    Plain(#[pin] B),
    Boxed(Pin<Box<Inner<B>>>),
    Gone,
}

impl<B: Body> Inner<B> {
    pub(super) fn live(self: Pin<&mut Self>) -> Option<Pin<&mut B>> {
        match self.project() {
            InnerProjection::Plain(body) => Some(body),
            InnerProjection::Boxed(body) => body.as_mut().live(),
            InnerProjection::Gone => None,
        }
    }

    pub(super) fn get(&self) -> Option<&B> {
        match self {
            Self::Plain(body) => Some(body),
            Self::Boxed(body) => body.get(),
            Self::Gone => None,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.get().is_none_or(Body::is_end_stream)
    }
}
