//! What a scope knows, behind its lock: what is registered, how it ends, what comes of it.

use std::{
    panic::Location,
    sync::{Arc, Weak, atomic::Ordering},
    task::Waker,
    time::Instant,
};

use bytes::Bytes;
use http::StatusCode;

use super::{
    annex::Slot,
    cell::Cell,
    closers::{Closer, Early},
    failure::{Failure, FailureKind, is_itself},
    finishing::Finishing,
    judge::Kept,
    machine::Scope,
    options::{OnLeave, Options},
    pace::Pace,
    signals::{Fire, Signals},
    span::Span,
    tasks::Tasks,
    verdict::LastWords,
};
use crate::{
    error::{BodyError, Cause},
    outcome::{Counts, EndReport, Outcome},
    supervisor::Background,
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
    /// The options, once an inner layer, or a view, has set some.
    pub(super) merged: Option<Arc<Options>>,
    pub(super) outcome: Outcome,
    pub(super) cause: Option<Cause>,
    pub(super) status: Option<StatusCode>,
    pub(super) natural: bool,
    pub(super) client_gone: bool,
    pub(super) handler_lost: bool,
    /// The headers or trailers say so.
    pub(super) rpc_failed: bool,
    /// The client has been shown the outcome: it changes no more.
    pub(super) settled: bool,
    /// The teardown runs before the head is sent, so that a failure becomes a 500.
    pub(super) before_head: bool,
    /// The inner future and body have come to their end, or are about to drop.
    pub(super) owner_ended: bool,
    /// The owner's body has ended, and can still show a frame that nobody promised.
    pub(super) speaks: bool,
    /// The last data of the owner's body, which waits for the teardown.
    pub(super) kept: Option<Kept>,
    /// The owner has been dropped: what it still had to show, nobody is given.
    pub(super) unread: bool,
    /// What the owner is dropping, before its end; not if a panic drops it.
    pub(super) dropping: Option<&'static str>,
    /// The owner has gone and left the scope to its holds.
    pub(super) owner_gone: bool,
    /// Where the body can be taken from its server, if it can.
    pub(super) cell: Weak<Cell>,
    pub(super) on_leave: OnLeave,
    /// Something was registered once: the response is worth a handle for `close`.
    pub(super) used: bool,
    /// Its shutdown has begun, and lets it finish for a time.
    pub(super) finishing: Option<Finishing>,
    /// Done, but a task does not stop: released when it does.
    pub(super) lingering: bool,
    /// The body comes encoded from further in: a frame of plain text would be no part of it.
    pub(super) encoded: bool,
    pub(super) signals: Signals,
    /// Until it is done.
    pub(super) span: Span,
    /// Who polls the owner, to be woken by an interruption.
    pub(super) waker: Option<Waker>,
    /// Read where somebody is told how long a response took: at the latest as such a layer joins.
    pub(super) opened_at: Option<Instant>,
    // Read if that was.
    pub(super) first_frame_at: Option<Instant>,
    pub(super) ended_at: Option<Instant>,
    pub(super) done_at: Option<Instant>,
    /// Made when first needed, by [`State::work`]: most responses register nothing.
    pub(super) work: Option<Box<Work>>,
}

/// What a scope has to do beside its body, and what came of it.
pub(super) struct Work {
    /// How the body ended while holds were out.
    pub(super) body_end: Option<(Outcome, Option<Cause>)>,
    pub(super) holds: usize,
    /// They are one of our parent's.
    pub(super) holds_parent: bool,
    /// What the holds made of it: the first that was not `Complete`. Counts once the last goes.
    pub(super) held: Outcome,
    pub(super) shut_by: ShutBy,
    /// What `EndNow` would end this body with, known from its head.
    pub(super) last_frame: Option<Bytes>,
    pub(super) closers: Vec<Closer>,
    pub(super) after_end: Vec<Closer>,
    /// The closer that runs now, by its place.
    pub(super) closing: Option<&'static Location<'static>>,
    pub(super) next_key: u64,
    /// Closers that run ahead of the teardown; it waits for them.
    pub(super) early: Vec<Early>,
    pub(super) early_waiter: Option<Waker>,
    pub(super) tasks: Tasks,
    pub(super) last_words: Option<LastWords>,
    /// What they were.
    pub(super) said: Option<Bytes>,
    pub(super) annex: Slot,
    pub(super) children: Vec<Arc<Scope>>,
    /// The teardown, while it waits for one of them.
    pub(super) child_waiter: Option<Waker>,
    /// A closer has failed in a child that is not a lost attempt.
    pub(super) child_failed: bool,
    /// A closer that was run early was given up half-way.
    pub(super) half_done: bool,
    /// Our parent knows how we ended, and waits only for its own last steps.
    pub(super) told: bool,
    /// Our parent waits for us no longer.
    pub(super) left_behind: bool,
    pub(super) pace: Pace,
    /// Keeps the drain of the parent's, or the server's, supervisor waiting for a scope that has its own.
    pub(super) adopted: Option<Background>,
    /// Closers unrun that children have told our supervisor about.
    pub(super) counted_unrun: u64,
    pub(super) counts: Counts,
    /// Closers of those that failed in attempts that are not the answer.
    pub(super) lost: u64,
    pub(super) errors: Vec<Cause>,
    pub(super) stuck: Vec<String>,
}

impl Work {
    /// What broke before the end: the body, while holds kept the scope open, or a task, while the body
    /// went on.
    fn first_failure(&mut self) -> Option<(Outcome, Option<Cause>)> {
        let body_end = self.body_end.as_ref();
        let broken = body_end.filter(|(outcome, _)| !outcome.is_complete());
        let of_task = |(outcome, cause)| (outcome, Some(cause));
        broken
            .cloned()
            .or_else(|| self.tasks.take_failure().map(of_task))
    }

    /// Whether a closer or task has failed, other than in an attempt that is not the answer.
    pub(super) fn has_failed(&self) -> bool {
        self.has_spoilt_closer() || self.tasks.has_failed()
    }

    /// Whether what a closer was to do is not done, or half done, here or further in.
    pub(super) fn has_spoilt_closer(&self) -> bool {
        self.counts.closers_failed > self.lost || self.half_done || self.child_failed
    }

    /// Closes what only took registrations, if there is nothing to wait for.
    pub(super) fn close_if_idle(&mut self) -> bool {
        self.closers.is_empty()
            && self.after_end.is_empty()
            && self.tasks.is_idle()
            && self.children.is_empty()
            && self.early.is_empty()
            // Last: it closes.
            && self.annex.close_if_idle()
    }
}

impl State {
    pub(super) fn new(span: Span, opened_at: Option<Instant>) -> Self {
        Self {
            phase: Phase::Live,
            merged: None,
            outcome: Outcome::Complete,
            cause: None,
            status: None,
            natural: true,
            client_gone: false,
            handler_lost: false,
            rpc_failed: false,
            settled: false,
            before_head: false,
            owner_ended: false,
            speaks: false,
            kept: None,
            unread: false,
            dropping: None,
            owner_gone: false,
            cell: Weak::new(),
            on_leave: OnLeave::default(),
            used: false,
            finishing: None,
            lingering: false,
            encoded: false,
            signals: Signals::default(),
            span,
            waker: None,
            opened_at,
            first_frame_at: None,
            ended_at: None,
            done_at: None,
            work: None,
        }
    }

    /// What the layers around the handler have set, and views for this response.
    pub(super) fn options<'a>(&'a self, scope: &'a Scope) -> &'a Arc<Options> {
        self.merged.as_ref().unwrap_or(&scope.options)
    }

    /// The work of this scope. What is too late by now is closed from the start.
    pub(super) fn work(&mut self) -> &mut Work {
        let (phase, natural) = (self.phase, self.natural);
        self.work.get_or_insert_with(|| {
            let mut tasks = Tasks::new();
            let cancelled = phase != Phase::Live && !natural;
            tasks.open = phase != Phase::Done && !cancelled;
            tasks.cancelling = cancelled;
            Box::new(Work {
                body_end: None,
                holds: 0,
                holds_parent: false,
                held: Outcome::Complete,
                shut_by: ShutBy::Nobody,
                last_frame: None,
                closers: Vec::new(),
                after_end: Vec::new(),
                closing: None,
                next_key: 0,
                early: Vec::new(),
                early_waiter: None,
                tasks,
                last_words: None,
                said: None,
                annex: match phase {
                    Phase::Done => Slot::Closed,
                    Phase::Live | Phase::Ending => Slot::Unused,
                },
                children: Vec::new(),
                child_waiter: None,
                child_failed: false,
                half_done: false,
                told: false,
                left_behind: false,
                pace: Pace::default(),
                adopted: None,
                counted_unrun: 0,
                counts: Counts::default(),
                lost: 0,
                errors: Vec::new(),
                stuck: Vec::new(),
            })
        })
    }

    /// Who asked for a shutdown, as children are told: the last frame is not theirs.
    pub(super) fn shut_by(&self) -> ShutBy {
        match self.work.as_ref().map(|work| &work.shut_by) {
            Some(ShutBy::EndNow(_)) => ShutBy::EndNow(None),
            Some(ShutBy::Abort) => ShutBy::Abort,
            Some(ShutBy::Nobody) | None => ShutBy::Nobody,
        }
    }

    /// Reads the clock, if anybody wants to know.
    pub(super) fn now(&self) -> Option<Instant> {
        self.opened_at.map(|_| Instant::now())
    }

    pub(super) fn begin(&mut self, outcome: Outcome, error: Option<&BodyError>) {
        self.phase = Phase::Ending;
        self.natural = outcome.is_complete();
        self.ended_at = self.now();
        // The first cause wins, and has decided already.
        let first = self.work.as_mut().and_then(|work| work.first_failure());
        let cause = error.map(BodyError::cause);
        (self.outcome, self.cause) = first.unwrap_or_else(|| (outcome, cause.cloned()));
        // Behind what it could hide.
        self.add_errors(error);
        if let Some(work) = self.work.as_mut().filter(|_| !self.natural) {
            work.tasks.refuse_new();
        }
    }

    /// Errors are kept in the order they were seen; see [`distinct`].
    pub(super) fn add_error(&mut self, cause: Cause) {
        // Being ended from outside is an outcome, and nobody's error.
        let ended = |failure: &Failure| matches!(failure.kind(), FailureKind::Ended { .. });
        if cause.downcast_ref().is_some_and(ended) {
            return;
        }
        let errors = &mut self.work().errors;
        if !errors.iter().any(|seen| is_itself(seen, &cause)) {
            errors.push(cause);
        }
    }

    /// All that a body has failed with.
    pub(super) fn add_errors(&mut self, error: Option<&BodyError>) {
        let causes = error.map_or(&[][..], BodyError::causes);
        causes
            .iter()
            .for_each(|cause| self.add_error(cause.clone()));
    }

    /// The owner's end comes behind one from elsewhere, which has decided. A body cut short by that has
    /// not failed.
    pub(super) fn failed_behind(&mut self, outcome: Outcome, error: Option<&BodyError>) {
        self.add_errors(error.filter(|_| outcome != Outcome::Truncated));
    }

    pub(super) fn note_failure(&mut self, outcome: Outcome, cause: Cause) {
        self.add_error(cause.clone());
        if self.phase == Phase::Ending && !self.settled && self.outcome.is_complete() {
            self.outcome = outcome;
            self.cause = Some(cause);
        }
    }

    /// The body failed behind an end that may have been a natural one: in its drop, or a child's commit.
    pub(super) fn body_failed(&mut self, outcome: Outcome, cause: Cause) -> Fire {
        let work = self.work.as_mut();
        let kept = work.and_then(|work| work.body_end.as_mut());
        let mut told = Fire::default();
        if let Some(end) = kept.filter(|(outcome, _)| outcome.is_complete()) {
            *end = (outcome, Some(cause.clone()));
            told = self.signals.body_ended(false);
        }
        self.note_failure(outcome, cause);
        told
    }

    /// Takes over what a child could not do, and what does not end.
    pub(super) fn hear_of(&mut self, errors: Vec<Cause>, stuck: Vec<String>) {
        errors.into_iter().for_each(|error| self.add_error(error));
        let known = &mut self.work().stuck;
        let new = stuck.into_iter().filter(|what| !known.contains(what));
        let new: Vec<_> = new.collect();
        known.extend(new);
    }

    /// What made a failure of a body that had come to its natural end.
    pub(super) fn failed_at_the_end(&self) -> Option<(Outcome, Cause)> {
        let failed = self.natural && !self.outcome.is_complete();
        Some((self.outcome, self.cause.clone().filter(|_| failed)?))
    }

    /// Whether its end is to come, and concerns nobody: nothing is registered, no token given out, no
    /// report wanted.
    pub(super) fn is_untouched(&self, scope: &Scope) -> bool {
        let unused = self.phase == Phase::Live && self.work.is_none();
        unused && self.signals.are_unheard() && !self.is_report_wanted(scope)
    }

    pub(super) fn is_report_wanted(&self, scope: &Scope) -> bool {
        !self.options(scope).on_end.is_empty() || super::observe::ON
    }

    pub(super) fn report(&mut self, scope: &Scope) -> EndReport {
        let since = |start: Option<Instant>, end: Option<Instant>| {
            Some(end?.saturating_duration_since(start?))
        };
        // First: its rule may panic.
        let ending = self.ending(scope);
        let work = self.work.as_deref();
        EndReport {
            id: scope.id(),
            method: scope.method.clone(),
            uri: scope.uri.clone(),
            ending,
            bytes: scope.bytes.load(Ordering::Relaxed),
            frames: scope.frames.load(Ordering::Relaxed),
            first_frame: since(self.opened_at, self.first_frame_at),
            duration: since(self.opened_at, self.ended_at),
            teardown: since(self.ended_at, self.done_at),
            counts: work.map(|work| work.counts).unwrap_or_default(),
            errors: work.map(|work| work.errors.clone()).unwrap_or_default(),
            stuck: work.map(|work| work.stuck.clone()).unwrap_or_default(),
        }
    }
}
