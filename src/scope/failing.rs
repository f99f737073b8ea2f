//! How a body that fails says so: a last frame if the format has one, a gap, then the error.

use std::{
    mem,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{
    connection::Connection,
    failure::{Failure, contained, quietly},
    gap::{Gap, all_but_a_byte},
    limit::enter,
    machine::Scope,
    state::{Phase, ShutBy, State},
    verdict::{Causes, LastWords, Verdict, shows},
};
use crate::{error::BodyError, outcome::Outcome};

#[derive(Debug)]
pub(super) struct Failing {
    /// What the application says to the client about it, if the format has a way.
    last_frame: Option<Bytes>,
    /// The client's window may be smaller than that, and the frame waits until it opens.
    windowed: bool,
    gap: Gap,
    runtime: Option<Handle>,
    cut_off: Option<Connection>,
    error: BodyError,
}

impl Failing {
    /// The last frame; on HTTP/2 in two, of which the second tells when the client has room for the first.
    pub(super) fn next_frame(&mut self) -> Option<Bytes> {
        let frame = self.last_frame.as_mut()?;
        let first = mem::take(&mut self.windowed).then(|| all_but_a_byte(frame));
        first.flatten().or_else(|| self.last_frame.take())
    }

    /// The wait is over, or cannot be had: no runtime, or one without timers.
    pub(super) fn poll_gap(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _context = enter(self.runtime.as_ref());
        self.gap.poll(cx)
    }

    /// What the body ends with, at its end, and whose buffers an encoder further out waits for. Only the close is made a reset: what an encoder further out
    /// has to send yet goes first.
    pub(super) fn error(&self) -> BodyError {
        if let Some(connection) = &self.cut_off {
            connection.end_in_reset();
        }
        let error = self.error.clone();
        match self.gap.connection() {
            Some(connection) => error.behind(connection),
            None => error,
        }
    }
}

impl Verdict {
    /// The error the body ends with, unless the end is to look whole.
    pub(super) fn failing(self, clean: bool) -> Option<Failing> {
        let outcome = self.outcome;
        let fault = self.fault.filter(|_| !shows(outcome, clean))?;
        Some(Failing {
            last_frame: fault.last_frame,
            windowed: fault.windowed,
            gap: fault.gap,
            runtime: fault.runtime,
            cut_off: fault.cut_off,
            error: fault.causes.error(),
        })
    }
}

impl Scope {
    /// Makes the frame that a failing body ends with, before its error.
    ///
    /// Not of one that has ended: nobody would let go of what makes it.
    pub(crate) fn on_failure(&self, words: LastWords) {
        let mut words = Some(words);
        {
            let mut state = self.lock();
            if state.phase != Phase::Done {
                std::mem::swap(&mut state.work().last_words, &mut words);
            }
        }
        // The application's: their drop may panic.
        quietly(|| drop(words));
    }

    /// What is shown of a body that is broken while holds keep the scope open.
    pub(super) fn broken(&self, outcome: Outcome, error: Option<BodyError>) -> Option<Verdict> {
        let due = {
            let mut state = self.lock();
            let verdict = state.broken_on(self, outcome, error.clone())?;
            match state.take_last_words(&verdict) {
                Some(due) => due,
                None => return Some(verdict),
            }
        };
        self.speak(due);
        self.lock().broken_on(self, outcome, error)
    }

    /// Has the last words of a body that fails made. Their panic is a failure like any other.
    pub(super) fn speak(&self, (words, causes): (LastWords, Causes)) {
        let error = causes.error();
        let said = contained(|| words(&error));
        let said = said.map_err(|payload| Failure::panicked("on_failure", &*payload));
        // The application's: outside the lock.
        let _ = contained(|| drop(words));
        let mut state = self.lock();
        match said {
            Ok(frame) => state.work().said = frame.filter(|frame| !frame.is_empty()),
            Err(panicked) => state.note_failure(Outcome::Panicked, panicked.into()),
        }
    }
}

impl State {
    /// Whether a body with this outcome has yet to say its last words, to a client who reads them.
    pub(super) fn has_last_words(&self, outcome: Outcome) -> bool {
        let Some(work) = self.work.as_ref().filter(|work| work.last_words.is_some()) else {
            return false;
        };
        // Ended with the frame of the shutdown.
        let clean = matches!(work.shut_by, ShutBy::EndNow(Some(_)));
        let shows = match outcome {
            Outcome::Complete | Outcome::Disconnected | Outcome::Dropped => false,
            Outcome::Shutdown => !clean,
            _ => true,
        };
        // In an encoded body, they would be no part of it.
        shows && self.speaks && !self.owner_gone && !self.client_gone && !self.encoded
    }

    /// Takes them, to be said of this error, outside the lock.
    pub(super) fn take_last_words(&mut self, verdict: &Verdict) -> Option<(LastWords, Causes)> {
        let fault = verdict.fault.as_ref()?;
        let due = self.has_last_words(verdict.outcome);
        let words = self.work.as_mut().filter(|_| due)?.last_words.take()?;
        Some((words, fault.causes.clone()))
    }
}
