//! A body that does what it is told, poll by poll.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::Probe;

/// A body made of steps; each `poll_frame` takes one. After the last it ends.
///
/// It panics if it is polled after its end, after an error, or after its end hint: no wrapper may.
#[derive(Debug)]
pub struct Script {
    steps: VecDeque<Step>,
    hint: Option<SizeHint>,
    end_hint: bool,
    over: bool,
    probe: Probe,
    _dropped: DropGuard,
}

#[derive(Clone, Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Pending { wake: bool },
    Error(String),
    Panic(String),
}

/// The error of a [`Script`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError(String);

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ScriptError {}

impl Script {
    /// An empty body that gives no hints.
    pub fn new() -> Self {
        let probe = Probe::default();
        Self {
            steps: VecDeque::new(),
            hint: Some(SizeHint::default()),
            end_hint: false,
            over: false,
            _dropped: DropGuard(probe.clone()),
            probe,
        }
    }

    /// A data frame.
    #[must_use]
    pub fn data(self, data: impl Into<Bytes>) -> Self {
        self.then(Step::Data(data.into()))
    }

    /// A trailers frame.
    #[must_use]
    pub fn trailers(self, trailers: HeaderMap) -> Self {
        self.then(Step::Trailers(trailers))
    }

    /// One `Pending`, with a wake-up at once.
    #[must_use]
    pub fn pending(self) -> Self {
        self.then(Step::Pending { wake: true })
    }

    /// `Pending` from here on, without a wake-up.
    #[must_use]
    pub fn hang(self) -> Self {
        self.then(Step::Pending { wake: false })
    }

    /// An error.
    #[must_use]
    pub fn error(self, message: &str) -> Self {
        self.then(Step::Error(message.to_owned()))
    }

    /// A panic in `poll_frame`.
    #[must_use]
    pub fn panic(self, message: &str) -> Self {
        self.then(Step::Panic(message.to_owned()))
    }

    /// The size hint it gives, right or wrong; it stays as it is while the body is read.
    #[must_use]
    pub fn hint(mut self, hint: SizeHint) -> Self {
        self.hint = Some(hint);
        self
    }

    /// An exact size hint, right at every moment: what is left of the data.
    #[must_use]
    pub fn exact_hint(mut self) -> Self {
        self.hint = None;
        self
    }

    /// Makes `is_end_stream` true once no step is left.
    #[must_use]
    pub fn end_hint(mut self) -> Self {
        self.end_hint = true;
        self
    }

    /// A watch on this body.
    pub fn probe(&self) -> Probe {
        self.probe.clone()
    }

    /// Bytes of data that are still to come.
    fn data_left(&self) -> u64 {
        let of = |step: &Step| match step {
            Step::Data(data) => data.len() as u64,
            _ => 0,
        };
        self.steps.iter().map(of).sum()
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = ScriptError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ScriptError>>> {
        self.probe.polled();
        if self.over || self.is_end_stream() {
            self.probe.polled_after_end();
            panic!("a scripted body was polled after its end");
        }
        match self.steps.pop_front() {
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Pending { wake: true }) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Pending { wake: false }) => {
                self.steps.push_front(Step::Pending { wake: false });
                Poll::Pending
            }
            Some(Step::Error(message)) => {
                self.over = true;
                Poll::Ready(Some(Err(ScriptError(message))))
            }
            Some(Step::Panic(message)) => {
                self.over = true;
                panic!("{message}")
            }
            None => {
                self.over = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.end_hint && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.hint {
            Some(hint) => *hint,
            None => SizeHint::with_exact(self.data_left()),
        }
    }
}

/// Tells the probe about the drop; on a guard, so that the body itself needs no `Drop`.
#[derive(Debug)]
struct DropGuard(Probe);

impl Drop for DropGuard {
    fn drop(&mut self) {
        self.0.dropped();
    }
}
