//! What is made of an end: for closers an ending, for the client a verdict.

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, Version};
use tokio::runtime::Handle;

use super::{
    connection::Connection,
    failure::{Failure, contained, distinct, ended},
    gap::{Gap, is_patient},
    machine::Scope,
    state::{State, Work},
};
use crate::{
    error::{BodyError, Cause},
    outcome::{Ending, EndingParts, Outcome, succeeded},
};

/// The rule for `Ending::succeeded`, as what panicked.
pub(super) const RULE: &str = "succeeded_when";

/// What the owner shows its client.
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    /// What there is to say of any outcome but `Complete`.
    pub(super) fault: Option<Box<Fault>>,
}

/// All that a body fails with. Becomes its error outside the lock, since errors are asked for their sources
/// then.
#[derive(Clone)]
pub(super) struct Causes {
    outcome: Outcome,
    first: First,
    known: Vec<Cause>,
}

/// What decided.
#[derive(Clone)]
pub(super) enum First {
    Cause(Cause),
    Error(BodyError),
}

impl Causes {
    pub(super) fn error(self) -> BodyError {
        let first = match self.first {
            First::Cause(cause) => cause.into(),
            First::Error(error) => error,
        };
        first.and(&distinct(self.known)).of(self.outcome)
    }
}

pub(super) struct Fault {
    /// All that is known by now, the first cause first.
    pub(super) causes: Causes,
    /// How long an error waits behind the last frame.
    pub(super) gap: Gap,
    /// Where that wait finds its timer.
    pub(super) runtime: Option<Handle>,
    /// What has to be reset, where the end of the connection is that of the body.
    pub(super) cut_off: Option<Connection>,
    /// What the application says to the client about it, if the format has a way.
    pub(super) last_frame: Option<Bytes>,
    /// The client's window may be smaller than that, and the frame waits until it opens.
    pub(super) windowed: bool,
}

/// Makes the last frame of a body that fails, from its error.
pub(crate) type LastWords = Arc<dyn Fn(&BodyError) -> Option<Bytes> + Send + Sync>;

/// Whether a body that ends with this outcome shows what it kept back, and no error. One that is ended
/// `clean` is whole for a shutdown.
pub(super) fn shows(outcome: Outcome, clean: bool) -> bool {
    outcome.is_complete() || (clean && outcome == Outcome::Shutdown)
}

/// The status of a response that failed before its head was sent.
pub(super) fn failure_status(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl State {
    pub(super) fn ending(&mut self, scope: &Scope) -> Ending {
        let by_rule = self.by_rule(scope, self.outcome);
        // Behind the rule, which may have panicked.
        self.ending_by(scope, self.outcome, by_rule)
    }

    pub(super) fn ending_as(&mut self, scope: &Scope, outcome: Outcome) -> Ending {
        let by_rule = self.by_rule(scope, outcome);
        self.ending_by(scope, outcome, by_rule)
    }

    /// Whether that is a success, by the layer's rule or the default one. A panic is none, and a failure
    /// like that of a closer, to whom it is told as one.
    fn by_rule(&mut self, scope: &Scope, outcome: Outcome) -> bool {
        let status = self.status;
        let by_rule = match &self.options(scope).succeeded_when {
            Some(rule) => contained(|| rule(outcome, status))
                .map_err(|payload| Failure::panicked(RULE, &*payload)),
            None => Ok(succeeded(outcome, status) && !self.rpc_failed),
        };
        by_rule.unwrap_or_else(|panicked| {
            self.note_failure(Outcome::Panicked, panicked.into());
            false
        })
    }

    fn ending_by(&mut self, scope: &Scope, outcome: Outcome, by_rule: bool) -> Ending {
        self.look_for_client(scope);
        let failed = self.work.as_deref().is_some_and(Work::has_failed);
        Ending::new(EndingParts {
            outcome,
            method: scope.method.clone(),
            status: self.status,
            client_gone: self.client_gone || outcome == Outcome::Disconnected,
            cause: self.cause.clone(),
            succeeded: by_rule && !failed && !self.handler_lost,
        })
    }

    pub(super) fn verdict(&self, scope: &Scope) -> Verdict {
        self.verdict_on(scope, self.outcome, self.cause.clone().map(First::Cause))
    }

    /// What the owner shows for an outcome that is not the scope's own (yet).
    pub(super) fn verdict_on(
        &self,
        scope: &Scope,
        outcome: Outcome,
        first: Option<First>,
    ) -> Verdict {
        // A whole response waits for nothing, and has nothing to say.
        let fault = (!outcome.is_complete()).then(|| {
            let from_outside = || First::Cause(ended(outcome));
            let work = self.work.as_ref();
            Box::new(Fault {
                causes: Causes {
                    outcome,
                    first: first.unwrap_or_else(from_outside),
                    known: work.map(|work| work.errors.clone()).unwrap_or_default(),
                },
                gap: self.gap(scope, outcome),
                runtime: scope.runtime.clone(),
                cut_off: scope.ends_with_its_connection().cloned(),
                last_frame: work.and_then(|work| work.said.clone()),
                windowed: scope.version >= Version::HTTP_2 && is_patient(outcome),
            })
        });
        Verdict { outcome, fault }
    }

    fn gap(&self, scope: &Scope, outcome: Outcome) -> Gap {
        let shown = scope.connection_writes_in_order();
        let shown = shown.filter(|_| is_patient(outcome));
        Gap::new(self.options(scope).error_gap(), shown.cloned())
    }

    /// The verdict on a body that did not end well, before any teardown.
    pub(super) fn broken_on(
        &self,
        scope: &Scope,
        outcome: Outcome,
        error: Option<BodyError>,
    ) -> Option<Verdict> {
        let first = error.map(First::Error);
        (!outcome.is_complete()).then(|| self.verdict_on(scope, outcome, first))
    }
}
