//! What a scope knows, behind its lock: what is registered, how it ends, what comes of it.

use std::{
    panic::Location,
    sync::{Arc, Weak, atomic::Ordering},
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;
use tokio::runtime::Handle;

use super::{
    annex::Slot,
    closers::Closer,
    failure::{Failure, FailureKind, contained},
    machine::Scope,
    movable::Cell,
    options::{OnLeave, Options},
    signals::Signals,
    tasks::Tasks,
};
use crate::{
    error::{BodyError, Cause},
    outcome::{Counts, EndReport, Ending, EndingParts, Outcome},
    supervisor::{Background, Released},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Live,
    Ending,
    Done,
}

/// Who asked for a shutdown of the scope, for the drain's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ShutBy {
    Nobody,
    /// `EndNow`: the body ends cleanly, with this last frame.
    EndNow(Option<Bytes>),
    Abort,
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) options: Arc<Options>,
    pub(super) outcome: Outcome,
    pub(super) cause: Option<Cause>,
    pub(super) status: Option<StatusCode>,
    pub(super) natural: bool,
    pub(super) client_gone: bool,
    pub(super) handler_lost: bool,
    /// The client has been shown the outcome: it changes no more.
    pub(super) settled: bool,
    /// The teardown runs before the head is sent, so that a failure becomes a 500.
    pub(super) before_head: bool,
    /// The inner future and body have come to their end, or are about to drop.
    pub(super) owner_ended: bool,
    /// The owner has gone and left the scope to its holds.
    pub(super) owner_gone: bool,
    /// How the body ended while holds were out.
    pub(super) body_end: Option<(Outcome, Option<Cause>)>,
    pub(super) holds: usize,
    /// What the holds made of it: the first that was not `Complete`. Counts once the last goes.
    pub(super) held: Outcome,
    pub(super) shut_by: ShutBy,
    /// Where the body can be taken from its server, if it can.
    pub(super) cell: Weak<Cell>,
    pub(super) on_leave: OnLeave,
    /// What `EndNow` would end this body with, known from its head.
    pub(super) last_frame: Option<Bytes>,
    pub(super) closers: Vec<Closer>,
    pub(super) after_end: Vec<Closer>,
    /// The closer that runs now, by its place.
    pub(super) closing: Option<&'static Location<'static>>,
    pub(super) next_key: u64,
    /// Closers that run ahead of the teardown, by their keys; it waits for them.
    pub(super) early: usize,
    pub(super) early_waiter: Option<Waker>,
    pub(super) tasks: Tasks,
    pub(super) last_words: Option<LastWords>,
    pub(super) annex: Slot,
    pub(super) children: Vec<Arc<Scope>>,
    /// Keeps the drain of the parent's supervisor waiting for a scope that has its own.
    pub(super) adopted: Option<Background>,
    /// Closers unrun that children have told our supervisor about.
    pub(super) counted_unrun: u64,
    pub(super) counts: Counts,
    pub(super) errors: Vec<Cause>,
    pub(super) stuck: Vec<String>,
    pub(super) signals: Signals,
    pub(super) first_frame: Option<Duration>,
    pub(super) ended_at: Option<Instant>,
    pub(super) keep_report: bool,
    pub(super) report: Option<Arc<EndReport>>,
    /// Something was registered once: the response is worth a handle for `close`.
    pub(super) used: bool,
    /// Done, but a task does not stop: released when it does.
    pub(super) lingering: bool,
}

impl State {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self {
            phase: Phase::Live,
            tasks: Tasks::new(options.failure_policy.unwrap_or_default()),
            options,
            outcome: Outcome::Complete,
            cause: None,
            status: None,
            natural: true,
            client_gone: false,
            handler_lost: false,
            settled: false,
            before_head: false,
            owner_ended: false,
            owner_gone: false,
            body_end: None,
            holds: 0,
            held: Outcome::Complete,
            shut_by: ShutBy::Nobody,
            cell: Weak::new(),
            on_leave: OnLeave::default(),
            closers: Vec::new(),
            after_end: Vec::new(),
            annex: Slot::Unused,
            closing: None,
            last_frame: None,
            last_words: None,
            next_key: 0,
            early: 0,
            early_waiter: None,
            children: Vec::new(),
            adopted: None,
            counted_unrun: 0,
            counts: Counts::default(),
            errors: Vec::new(),
            stuck: Vec::new(),
            signals: Signals::default(),
            first_frame: None,
            ended_at: None,
            keep_report: false,
            report: None,
            used: false,
            lingering: false,
        }
    }

    pub(super) fn begin(&mut self, outcome: Outcome, cause: Option<Cause>, clock: bool) {
        self.phase = Phase::Ending;
        self.natural = outcome.is_complete();
        self.ended_at = clock.then(Instant::now);
        if let Some(cause) = &cause {
            self.add_error(cause.clone());
        }
        // A task that failed while the body went on has decided already: the first cause wins.
        let first = self.tasks.take_failure();
        (self.outcome, self.cause) = match first {
            Some((outcome, cause)) => (outcome, Some(cause)),
            None => (outcome, cause),
        };
        if !self.natural {
            self.tasks.refuse_new();
        }
    }

    /// Errors are kept once each, in the order they were seen.
    pub(super) fn add_error(&mut self, cause: Cause) {
        // Being ended from outside is an outcome, and nobody's error.
        let ended = |failure: &Failure| matches!(failure.kind(), FailureKind::Ended { .. });
        if cause.downcast_ref().is_some_and(ended) {
            return;
        }
        if !self.errors.iter().any(|seen| Arc::ptr_eq(seen, &cause)) {
            self.errors.push(cause);
        }
    }

    pub(super) fn note_failure(&mut self, outcome: Outcome, cause: Cause) {
        self.add_error(cause.clone());
        if self.phase == Phase::Ending && !self.settled && self.outcome.is_complete() {
            self.outcome = outcome;
            self.cause = Some(cause);
        }
    }

    pub(super) fn ending(&self, scope: &Scope) -> Ending {
        self.ending_as(scope, self.outcome)
    }

    pub(super) fn ending_as(&self, scope: &Scope, outcome: Outcome) -> Ending {
        let failed = self.counts.closers_failed > 0 || self.tasks.has_failed();
        let by_rule = match &self.options.succeeded_when {
            // A panic of the rule is no success.
            Some(rule) => contained(|| rule(outcome, self.status)).unwrap_or(false),
            None => outcome.is_complete() && self.status.is_none_or(|status| status.as_u16() < 400),
        };
        Ending::new(EndingParts {
            outcome,
            method: scope.method.clone(),
            status: self.status,
            client_gone: self.client_gone || scope.connection.has_aborted(),
            cause: self.cause.clone(),
            succeeded: by_rule && !failed && !self.handler_lost,
        })
    }

    pub(super) fn verdict(&self, scope: &Scope) -> Verdict {
        self.verdict_on(scope, self.outcome, self.cause.clone())
    }

    /// What the owner shows for an outcome that is not the scope's own (yet).
    pub(super) fn verdict_on(
        &self,
        scope: &Scope,
        outcome: Outcome,
        cause: Option<Cause>,
    ) -> Verdict {
        Verdict {
            outcome,
            cause,
            gap: self.options.error_gap(),
            // A whole response waits for nothing.
            runtime: (!outcome.is_complete())
                .then(|| scope.runtime.clone())
                .flatten(),
            last_words: self.last_words.clone().filter(|_| !outcome.is_complete()),
        }
    }

    pub(super) fn report(&self, scope: &Scope) -> EndReport {
        let since = |start: Option<Instant>, end: Option<Instant>| {
            Some(end?.saturating_duration_since(start?))
        };
        EndReport {
            id: scope.id(),
            method: scope.method.clone(),
            uri: scope.uri.clone(),
            ending: self.ending(scope),
            bytes: scope.bytes.load(Ordering::Relaxed),
            frames: scope.frames.load(Ordering::Relaxed),
            first_frame: self.first_frame,
            duration: since(scope.opened, self.ended_at),
            teardown: self.ended_at.map(|start| start.elapsed()),
            counts: self.counts,
            errors: self.errors.clone(),
            stuck: self.stuck.clone(),
        }
    }

    /// How it ended, and the closers unrun that its supervisor does not know of yet.
    pub(super) fn released(&self) -> (Released, u64) {
        let how = match self.shut_by {
            ShutBy::Nobody => Released::ByItself,
            ShutBy::EndNow(_) => Released::Ended,
            ShutBy::Abort => Released::Aborted,
        };
        (how, self.counts.closers_unrun - self.counted_unrun)
    }
}

/// What the owner shows its client.
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) cause: Option<Cause>,
    /// How long an error waits behind the last frame.
    pub(super) gap: Duration,
    /// Where that wait finds its timer.
    pub(super) runtime: Option<Handle>,
    /// What may say a last word before the error.
    pub(super) last_words: Option<LastWords>,
}

/// Makes the last frame of a body that fails, from its error.
pub(crate) type LastWords = Arc<dyn Fn(&BodyError) -> Option<Bytes> + Send + Sync>;

/// The status of a response that failed before its head was sent.
pub(super) fn failure_status(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
