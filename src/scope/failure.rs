//! Failures that arise in a scope itself, as errors that say what and where.

use std::{
    any::Any,
    error::Error,
    fmt, io, iter, mem,
    ops::Deref,
    panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use super::verdict::RULE;
use crate::{
    error::{BodyError, BoxError, Cause},
    outcome::Outcome,
};

/// A failure that is not an error of the application's: a panic, a limit, a broken promise.
///
/// It is a cause of a [`BodyError`](crate::BodyError) or in an
/// [`EndReport`](crate::EndReport); errors that tasks and closers return stand there as themselves.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
}

/// The kinds of [`Failure`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// Code panicked: what it was, and the panic's message.
    Panicked {
        /// A task, a closer, the body, the handler, `on_failure`, `succeeded_when`; with its place where
        /// there is one.
        what: String,
        /// The panic's message, if it was text.
        message: String,
    },
    /// A task or closer overran its limit and was aborted.
    OverranLimit {
        /// The task or closer, with the place where it was registered.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// A closer that was run early, by its key, was given up before it was done.
    GivenUp {
        /// The closer, with the place where it was registered.
        what: String,
    },
    /// The body ended short of its promised length.
    Truncated {
        /// Bytes given.
        produced: u64,
        /// Bytes promised.
        promised: u64,
    },
    /// The body gave more than its promised length.
    Overlong {
        /// Bytes given so far.
        produced: u64,
        /// Bytes promised.
        promised: u64,
    },
    /// The service returned an error instead of a response.
    ///
    /// The error itself goes on to whoever called the service, who alone may take it: of its type nothing is
    /// asked, not even a text. Where that is wanted, a `map_err` inside the layer sees it.
    Service,
    /// A task was stopped by something other than its scope before it finished.
    TaskLost {
        /// The task, with the place where it was spawned.
        what: String,
    },
    /// Synchronous code did not come back at the end, and cannot be stopped from outside; or the teardown of a
    /// scope under this one did not get on, because nobody polls it.
    StillRunning {
        /// The code, with the place where it was called.
        what: String,
    },
    /// The scope was ended from outside: shutdown or cancellation.
    Ended {
        /// How it ended.
        outcome: Outcome,
    },
}

impl Failure {
    pub(crate) fn new(kind: FailureKind) -> Self {
        Self { kind }
    }

    pub(crate) fn panicked(what: impl Into<String>, payload: &(dyn Any + Send)) -> Self {
        Self::new(FailureKind::Panicked {
            what: what.into(),
            message: panic_message(payload),
        })
    }

    /// A panic that passed by.
    pub(crate) fn unseen_panic(what: &str) -> Self {
        Self::new(FailureKind::Panicked {
            what: what.to_owned(),
            message: "see the panic's own report".to_owned(),
        })
    }

    /// What each owner notes for itself of a handler, body or rule that failed or panicked under several.
    pub(super) fn of_owner(&self) -> Option<&FailureKind> {
        let passes = match &self.kind {
            FailureKind::Service => true,
            FailureKind::Panicked { what, .. } => {
                ["handler", "response body", RULE].contains(&what.as_str())
            }
            _ => false,
        };
        passes.then_some(&self.kind)
    }

    /// What went wrong.
    pub fn kind(&self) -> &FailureKind {
        &self.kind
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FailureKind::Panicked { what, message } => write!(f, "{what} panicked: {message}"),
            FailureKind::OverranLimit { what, limit } => {
                write!(f, "{what} overran its limit of {limit:?} and was aborted")
            }
            FailureKind::GivenUp { what } => write!(f, "{what} was given up before it was done"),
            FailureKind::Truncated { produced, promised } => {
                write!(
                    f,
                    "body ended after {produced} of {promised} promised bytes"
                )
            }
            FailureKind::Overlong { produced, promised } => {
                write!(
                    f,
                    "body gave {produced} bytes where {promised} were promised"
                )
            }
            FailureKind::Service => f.write_str("service returned an error"),
            FailureKind::TaskLost { what } => write!(f, "{what} was stopped before it finished"),
            FailureKind::StillRunning { what } => write!(f, "not back at the end: {what}"),
            FailureKind::Ended { outcome } => write!(f, "response was ended early: {outcome}"),
        }
    }
}

impl Error for Failure {}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        Cause::from(BoxError::from(failure))
    }
}

/// The cause of an end that has come from outside.
pub(super) fn ended(outcome: Outcome) -> Cause {
    Failure::new(FailureKind::Ended { outcome }).into()
}

/// The error of a body that gave this many bytes where another number was promised.
pub(crate) fn broken_length(produced: u64, promised: u64) -> BodyError {
    let (outcome, kind) = match produced < promised {
        true => (
            Outcome::Truncated,
            FailureKind::Truncated { produced, promised },
        ),
        false => (
            Outcome::Failed,
            FailureKind::Overlong { produced, promised },
        ),
    };
    BodyError::from(Cause::from(Failure::new(kind))).of(outcome)
}

/// What a panic carries. It is the application's, and may panic as it is dropped: that stays in here.
pub(crate) struct Payload(Option<Box<dyn Any + Send>>);

impl Payload {
    /// Goes on with the panic.
    pub(super) fn resume(mut self) -> ! {
        resume_unwind(self.0.take().unwrap_or_else(|| Box::new(())))
    }
}

impl Deref for Payload {
    type Target = dyn Any + Send;

    fn deref(&self) -> &Self::Target {
        self.0.as_deref().unwrap_or(&())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let payload = self.0.take();
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            // There is no end to that.
            mem::forget(again);
        }
    }
}

/// Runs application code whose panic must not reach past us. What it was working on is dropped
/// with it, so nobody sees it half done.
pub(crate) fn contained<T>(code: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|payload| Payload(Some(payload)))
}

/// Runs application code of which nothing is wanted, not even its panic.
pub(crate) fn quietly(code: impl FnOnce()) {
    let _ = contained(code);
}

/// How far down the sources of an error others are looked for.
pub(super) const MOST_SOURCES: usize = 16;

/// An error and its sources, the error that an `io::Error` wraps among them.
///
/// They are the application's own code, which may not come to an end.
pub(crate) fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let next = |error: &&'a (dyn Error + 'static)| {
        let error = *error;
        match error.downcast_ref().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => contained(|| error.source()).ok().flatten(),
        }
    };
    iter::successors(Some(error), next).take(MOST_SOURCES)
}

/// The text of an error and its sources, which may panic or fail.
pub(crate) fn told_whole(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in sources(error) {
        let text = contained(|| error.to_string());
        let text = text.unwrap_or_else(|_| "(its text panicked)".to_owned());
        // A wrapper may show what it wraps as itself.
        if texts.last() != Some(&text) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

/// Names a task or closer by its kind and place.
pub(super) fn named(what: &str, at: &Location<'_>) -> String {
    format!("{what} at {}:{}", at.file(), at.line())
}

pub(super) fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// Whether two errors are one that passed several owners.
pub(crate) fn is_same(one: &Cause, other: &Cause) -> bool {
    is_itself(one, other) || carries(one, other) || carries(other, one)
}

/// The same, as far as it is known without asking them for their sources: that is the application's code,
/// and not for under a lock.
pub(super) fn is_itself(one: &Cause, other: &Cause) -> bool {
    fn failure(cause: &Cause) -> Option<&FailureKind> {
        cause.downcast_ref::<Failure>()?.of_owner()
    }
    Arc::ptr_eq(one, other) || failure(one).is_some_and(|kind| failure(other) == Some(kind))
}

/// Each error once, in the order in which they were seen, of such as are not the same themselves.
pub(super) fn distinct(errors: Vec<Cause>) -> Vec<Cause> {
    if errors.len() < 2 {
        return errors;
    }
    let carried: Vec<_> = errors.iter().map(|error| carried_by(error)).collect();
    let mut kept: Vec<(usize, Cause)> = Vec::with_capacity(errors.len());
    for (at, error) in errors.into_iter().enumerate() {
        let known = kept.iter().any(|(earlier, other)| {
            is_among(&carried[*earlier], &error) || is_among(&carried[at], other)
        });
        if !known {
            kept.push((at, error));
        }
    }
    kept.into_iter().map(|(_, error)| error).collect()
}

/// Whether this is that error of a body of ours, as a body around it passed it on.
fn carries(outer: &Cause, inner: &Cause) -> bool {
    is_among(&carried_by(outer), inner)
}

/// The first causes of our bodies' errors among the sources of an error.
fn carried_by(outer: &Cause) -> Vec<Cause> {
    let bodies = sources(&**outer).filter_map(|error| error.downcast_ref::<BodyError>());
    bodies.map(|error| error.cause().clone()).collect()
}

fn is_among(carried: &[Cause], error: &Cause) -> bool {
    carried.iter().any(|inner| Arc::ptr_eq(inner, error))
}
