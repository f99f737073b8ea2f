//! What a step of the inner body means: the owner's judgement, apart from any polling.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;

use super::{
    detector::{Seen, stops_at_length},
    failure::{Failure, FailureKind, broken_length, ended},
    machine::Scope,
    owner::{Owner, Runs},
    refusal::Refusal,
    state::ShutBy,
};
use crate::{
    error::{BodyError, BoxError, Cause},
    frames::take_bytes,
    outcome::Outcome,
};

/// What the inner body gave. Small, since every frame passes through it.
pub(super) enum Next {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    Error(BoxError),
    End,
    /// Someone else started the end.
    Interrupted,
    /// The last poll panicked, and someone caught it and asks again.
    Panicked,
}

/// What is to be done with it.
pub(super) enum Judged {
    /// Data for the client; more is to come.
    Pass(Bytes),
    /// The last data of a body whose end nobody waits for.
    Last(Bytes),
    /// The last data; trailers, or an error, may follow.
    AtLength(Bytes),
    End(End),
}

/// How the body ended, and what is to be shown if the teardown agrees.
#[derive(Debug)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) error: Option<BodyError>,
    pub(super) held: Held,
}

impl End {
    /// A promised body of which nothing came.
    pub(super) fn nothing_of(promised: u64) -> Self {
        let kind = FailureKind::Truncated {
            produced: 0,
            promised,
        };
        Self::failed(Outcome::Truncated, Cause::from(Failure::new(kind)))
    }

    pub(super) fn complete(data: Option<Bytes>, trailers: Option<Box<HeaderMap>>) -> Self {
        Self {
            outcome: Outcome::Complete,
            error: None,
            held: Held {
                data,
                trailers,
                clean: false,
            },
        }
    }

    pub(super) fn failed(outcome: Outcome, error: impl Into<BodyError>) -> Self {
        Self {
            outcome,
            error: Some(error.into()),
            held: Held::default(),
        }
    }
}

/// What is shown once the teardown is finished.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) data: Option<Bytes>,
    pub(super) trailers: Option<Box<HeaderMap>>,
    /// Shown although the outcome is not `Complete`: a last frame at shutdown.
    pub(super) clean: bool,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    /// Its data, for the account.
    pub(super) fn kept(&self) -> Option<Kept> {
        let data = self.data.as_ref()?;
        Some(Kept {
            bytes: data.len() as u64,
            clean: self.clean,
        })
    }

    /// Takes the next frame of it: data, then trailers.
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let data = self.data.take().map(Frame::data);
        data.or_else(|| self.trailers.take().map(|map| Frame::trailers(*map)))
    }
}

/// Data that is held back, as the scope knows of it.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) bytes: u64,
    pub(super) clean: bool,
}

impl<D: Buf + 'static, E: Into<BoxError>> From<Option<Result<Frame<D>, E>>> for Next {
    fn from(frame: Option<Result<Frame<D>, E>>) -> Self {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => Next::Data(take_bytes(&mut data)),
                Err(frame) => trailers(frame),
            },
            Some(Err(error)) => Next::Error(error.into()),
            None => Next::End,
        }
    }
}

#[cold]
fn trailers<D>(frame: Frame<D>) -> Next {
    match frame.into_trailers() {
        Ok(trailers) => Next::Trailers(Box::new(trailers)),
        Err(_) => Next::Data(Bytes::new()),
    }
}

impl Scope {
    /// A frame of data goes out, with which it is so many `bytes`; true if it is the first. Only the
    /// owner counts, and behind it its end.
    #[inline]
    pub(super) fn count(&self, bytes: u64) -> bool {
        let frames = self.frames.load(Ordering::Relaxed) + 1;
        self.frames.store(frames, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        frames == 1
    }
}

impl Scope {
    #[cold]
    fn note_first_frame(&self) {
        let mut state = self.lock();
        state.first_frame_at = state.now();
    }
}

impl Owner {
    /// What one step of the inner body means for the client.
    pub(super) fn judge(&mut self, next: Next, end_hint: impl FnOnce() -> bool) -> Judged {
        match next {
            Next::Data(data) => {
                let end_hint = self.marked(Runs::Body, end_hint);
                match self.detector.data(data.len() as u64, end_hint) {
                    Seen::More => Judged::Pass(data),
                    // Nothing is held back for a scope with nothing registered.
                    Seen::LengthReached if !self.stops_at_length() && !self.is_used() => {
                        Judged::Pass(data)
                    }
                    // Asked once more even where the server would not: what it says is its end.
                    Seen::LengthReached if !self.stops_at_length() || self.is_producing() => {
                        self.withheld = true;
                        Judged::AtLength(data)
                    }
                    Seen::LengthReached | Seen::Ended(Outcome::Complete) if self.is_unreached() => {
                        Judged::Last(data)
                    }
                    Seen::LengthReached | Seen::Ended(Outcome::Complete) => {
                        Judged::End(End::complete(Some(data), None))
                    }
                    Seen::Ended(_) => Judged::End(self.broken()),
                }
            }
            Next::Trailers(trailers) => Judged::End(self.end_of_stream(None, Some(trailers))),
            Next::End => Judged::End(self.end_of_stream(None, None)),
            Next::Error(error) => Judged::End(self.inner_error(error)),
            Next::Interrupted => Judged::End(self.interrupted()),
            Next::Panicked => Judged::End(self.panicked()),
        }
    }

    /// Whether this is data with more to come; then it is accounted for. Else `judge` decides.
    #[inline]
    pub(super) fn passes(&mut self, length: usize, end_hint: bool) -> bool {
        let passes = self.detector.passes(length as u64, end_hint);
        if passes {
            self.account();
        }
        passes
    }

    /// The same once the length is reached and `data` waits for what follows it. `None`: that is still
    /// to come.
    pub(super) fn judge_at_length(
        &mut self,
        data: &mut Bytes,
        next: Next,
        end_hint: impl FnOnce() -> bool,
    ) -> Option<End> {
        // It says nothing; trailers, or an error, may stand behind it.
        let says_nothing = matches!(&next, Next::Data(more) if more.is_empty());
        if says_nothing && !self.marked(Runs::Body, end_hint) {
            return None;
        }
        let data = std::mem::take(data);
        Some(match next {
            Next::Data(more) if more.is_empty() => self.end_of_stream(Some(data), None),
            Next::Data(more) => {
                self.detector.data(more.len() as u64, false);
                self.broken()
            }
            Next::Trailers(trailers) => self.end_of_stream(Some(data), Some(trailers)),
            Next::End => self.end_of_stream(Some(data), None),
            Next::Error(error) => self.inner_error(error),
            Next::Interrupted => self.interrupted(),
            Next::Panicked => self.panicked(),
        })
    }

    /// Writes down what goes to the server now, where dashboards and the report read it.
    #[inline]
    pub(super) fn account(&self) {
        let Some(scope) = self.scope() else {
            return;
        };
        if scope.count(self.detector.produced()) {
            scope.note_first_frame();
        }
    }

    fn stops_at_length(&self) -> bool {
        !self.detector.is_chunked()
            && self
                .known()
                .is_none_or(|scope| stops_at_length(scope.version))
    }

    fn is_used(&self) -> bool {
        self.scope().is_some_and(|scope| scope.lock().used)
    }

    pub(super) fn is_producing(&self) -> bool {
        let scope = self.scope();
        scope.is_some_and(|scope| scope.lock().is_annex_producing())
    }

    /// How long a body that is whole but for its end may stay open.
    pub(super) fn join_limit(&self) -> Duration {
        let limit = |scope: &Arc<Scope>| scope.lock().options(scope).join_limit();
        self.scope().map(limit).unwrap_or_default()
    }

    /// The client learns of a failing teardown here or nowhere: no layer further out waits for it.
    pub(super) fn shows_its_end(&self) -> bool {
        let alone = |scope: &&Arc<Scope>| scope.parent.get().is_none();
        self.scope().filter(alone).is_some() && self.is_used()
    }

    fn end_of_stream(&self, data: Option<Bytes>, trailers: Option<Box<HeaderMap>>) -> End {
        if let (Some(scope), Some(trailers)) = (self.scope(), &trailers) {
            scope.note_rpc_status(trailers);
        }
        match self.detector.end_of_stream() {
            Seen::Ended(Outcome::Complete) => End::complete(data, trailers),
            _ => self.broken(),
        }
    }

    /// The body broke the promise of its length.
    fn broken(&self) -> End {
        let produced = self.detector.produced();
        let promised = self.detector.promised().unwrap_or(produced);
        let error = broken_length(produced, promised);
        End::failed(error.outcome(), error)
    }

    fn inner_error(&self, error: BoxError) -> End {
        // It is asked for its sources.
        let error = self.marked(Runs::Body, || {
            Refusal::settle(&*error);
            BodyError::new(error)
        });
        End::failed(error.outcome(), error)
    }

    fn panicked(&self) -> End {
        End::failed(Outcome::Panicked, self.panic_cause())
    }

    /// The end was started elsewhere, and the outcome given here is not looked at; or the client of a
    /// body whose end nobody hears of has gone.
    pub(super) fn interrupted(&self) -> End {
        let outcome = match self.is_unreached() {
            true => Outcome::Disconnected,
            false => Outcome::Cancelled,
        };
        End::failed(outcome, ended(outcome))
    }

    #[inline]
    pub(super) fn is_interrupted(&self) -> bool {
        self.scope().is_some_and(|scope| scope.is_interrupted())
    }

    /// If the scope is being ended for a shutdown that ends cleanly: the frame to end with.
    ///
    /// A promised length cannot be cut cleanly; its body ends in an error instead.
    pub(super) fn clean_shutdown(&self) -> Option<Bytes> {
        let scope = self.scope().filter(|scope| scope.is_interrupted())?;
        match &scope.lock().work.as_ref()?.shut_by {
            ShutBy::EndNow(frame) if self.detector.promised().is_none() => frame.clone(),
            _ => None,
        }
    }
}
