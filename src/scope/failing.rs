//! How a body that fails says so: a last frame if the format has one, a gap, then the error.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    connection::Connection,
    detector::Detector,
    failure::{Failure, FailureKind, contained},
    limit::Limit,
    state::Verdict,
};
use crate::{error::BodyError, outcome::Outcome};

#[derive(Debug)]
pub(super) struct Failing {
    /// What the application says to the client about it, if the format has a way.
    pub(super) last_frame: Option<Bytes>,
    gap: Limit,
    runtime: Option<Handle>,
    cut_off: Option<Connection>,
    error: BodyError,
}

impl Failing {
    /// The wait is over, or cannot be had: no runtime, or one without timers.
    pub(super) fn poll_gap(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _context = self.runtime.as_ref().map(Handle::enter);
        self.gap.poll_if_kept(cx)
    }

    /// What the body ends with, at its end. Only the close is made a reset: what an encoder further out
    /// has to send yet goes first.
    pub(super) fn error(&self) -> BodyError {
        if let Some(connection) = &self.cut_off {
            connection.end_in_reset();
        }
        self.error.clone()
    }
}

impl Verdict {
    /// The error the body ends with, unless the end is to look whole.
    pub(super) fn failing(self, clean: bool, detector: &Detector) -> Option<Failing> {
        let outcome = self.outcome;
        let fault = self
            .fault
            .filter(|_| !clean || outcome != Outcome::Shutdown)?;
        let error = BodyError::from(
            fault
                .cause
                .unwrap_or_else(|| Failure::new(FailureKind::Ended { outcome }).into()),
        );
        // Under a promised length a further frame would count as content.
        let gone = matches!(outcome, Outcome::Disconnected | Outcome::Dropped);
        let words = fault
            .last_words
            .filter(|_| !gone && detector.promised().is_none());
        let last_frame = words.and_then(|words| contained(|| words(&error)).ok().flatten());
        Some(Failing {
            last_frame: last_frame.filter(|frame| !frame.is_empty()),
            gap: Limit::new(fault.gap),
            runtime: fault.runtime,
            cut_off: fault.cut_off,
            error,
        })
    }
}
