//! A body that does what its script says and tells what was done to it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Data(Bytes),
    Pending,
    Trailers(HeaderMap),
    Fail,
    Panic,
}

pub(super) fn data(text: impl Into<Bytes>) -> Step {
    Step::Data(text.into())
}

/// Panics when polled after its end. Wakes itself on `Pending`.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    steps: VecDeque<Step>,
    hints_end: bool,
    size: Option<u64>,
    ended: bool,
    pub(super) dropped: Arc<AtomicBool>,
}

impl Script {
    pub(super) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let mut script = Self::default();
        script.steps.extend(steps);
        script
    }

    /// Says `is_end_stream` once its steps are done.
    pub(super) fn hinting_end(mut self) -> Self {
        self.hints_end = true;
        self
    }

    pub(super) fn promising(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.dropped.store(true, SeqCst);
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        assert!(!self.ended, "polled after its end");
        let step = self.steps.pop_front();
        self.ended = self.hints_end && self.steps.is_empty();
        Poll::Ready(match step {
            Some(Step::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Step::Trailers(trailers)) => {
                self.ended = true;
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Step::Fail) => {
                self.ended = true;
                Some(Err(std::io::Error::other("script")))
            }
            Some(Step::Panic) => panic!("script"),
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => {
                self.ended = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.hints_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
