//! What goes out through `tracing` and `metrics`, where those features are on.
//!
//! Subscribers and recorders are the application's, and run here in the middle of a life: no panic of theirs comes
//! out, nor does that of a subscriber keep it from a recorder.

#[cfg(feature = "tracing")]
use std::fmt;

#[cfg(feature = "tracing")]
use tracing::field::{DisplayValue, display};

#[cfg(any(feature = "tracing", feature = "metrics"))]
use super::failure::quietly;
#[cfg(feature = "tracing")]
use super::failure::told_whole;
use super::machine::Scope;
#[cfg(feature = "metrics")]
use crate::outcome::Outcome;
use crate::{error::Cause, outcome::EndReport};

/// Whether anybody listens, so that clocks are worth reading.
pub(super) const ON: bool = cfg!(any(feature = "tracing", feature = "metrics"));

/// A scope has been opened.
pub(super) fn opened() {
    #[cfg(feature = "metrics")]
    count(1.0);
}

/// Nothing of a scope runs any more.
pub(super) fn released() {
    #[cfg(feature = "metrics")]
    count(-1.0);
}

#[cfg(feature = "metrics")]
fn count(change: f64) {
    quietly(|| metrics::gauge!("bodyguard_scopes_live").increment(change));
}

/// The end report, as the event and the metrics that the crate documents under "Observability".
pub(super) fn ended(report: &EndReport) {
    #[cfg(feature = "tracing")]
    quietly(|| trace(report));
    #[cfg(feature = "metrics")]
    quietly(|| measure(report));
    let _ = report;
}

/// Closers that did not run to their end, mostly because the runtime was gone: always an error.
pub(super) fn unrun(scope: &Scope) {
    #[cfg(feature = "tracing")]
    quietly(|| {
        tracing::error!(
            target: "bodyguard",
            scope = scope.id(),
            method = %scope.method,
            path = scope.uri.path(),
            "closers did not run to their end"
        );
    });
    let _ = scope;
}

/// A closer has failed that ran behind the end, when the report was out; `counts` unless that had it.
pub(super) fn failed_late(scope: &Scope, cause: &Cause, counts: bool) {
    #[cfg(feature = "tracing")]
    quietly(|| {
        tracing::error!(
            target: "bodyguard",
            scope = scope.id(),
            method = %scope.method,
            path = scope.uri.path(),
            error = chains(std::slice::from_ref(cause)),
            "closer failed behind the end report"
        );
    });
    #[cfg(feature = "metrics")]
    quietly(|| {
        metrics::counter!("bodyguard_closers_failed_total").increment(u64::from(counts));
    });
    let _ = (scope, cause, counts);
}

/// A hook for end reports has panicked. There is no report left to put that into.
pub(super) fn hook_panicked(scope: &Scope, message: &str) {
    #[cfg(feature = "tracing")]
    quietly(|| {
        tracing::error!(
            target: "bodyguard",
            scope = scope.id(),
            method = %scope.method,
            path = scope.uri.path(),
            panic = message,
            "on_end hook panicked"
        );
    });
    let _ = (scope, message);
}

/// How many errors behind the first an event has.
#[cfg(feature = "tracing")]
const MOST_FURTHER: usize = 5;

/// Errors, each with its sources: made only where a subscriber writes it down, who is not to see their own
/// code panic.
#[cfg(feature = "tracing")]
struct Chains<'a>(&'a [Cause]);

#[cfg(feature = "tracing")]
impl fmt::Display for Chains<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let before = if at == 0 { "" } else { "; " };
            write!(f, "{before}{}", told_whole(&**error))?;
        }
        Ok(())
    }
}

/// As a field that is there if they are.
#[cfg(feature = "tracing")]
fn chains(errors: &[Cause]) -> Option<DisplayValue<Chains<'_>>> {
    (!errors.is_empty()).then(|| display(Chains(errors)))
}

#[cfg(feature = "tracing")]
fn trace(report: &EndReport) {
    let counts = &report.counts;
    let (first, further) = report.errors.split_at(report.errors.len().min(1));
    let further = &further[..further.len().min(MOST_FURTHER)];
    macro_rules! event {
        ($level:expr) => {
            tracing::event!(
                target: "bodyguard",
                $level,
                scope = report.id,
                method = %report.method,
                path = report.uri.path(),
                outcome = report.outcome().as_str(),
                status = report.status().map(|status| status.as_u16()),
                bytes = report.bytes,
                frames = report.frames,
                client_gone = report.ending.client_gone(),
                first_frame_ms = report.first_frame.map(|d| d.as_millis() as u64),
                duration_ms = report.duration.map(|d| d.as_millis() as u64),
                teardown_ms = report.teardown.map(|d| d.as_millis() as u64),
                closers_run = counts.closers_run,
                closers_failed = counts.closers_failed,
                closers_unrun = counts.closers_unrun,
                tasks_joined = counts.tasks_joined,
                tasks_failed = counts.tasks_failed,
                tasks_cancelled = counts.tasks_cancelled,
                tasks_panicked = counts.tasks_panicked,
                stuck = report.stuck.len(),
                errors = report.errors.len(),
                error = chains(first),
                also = chains(further),
                "response ended"
            )
        };
    }
    if !first.is_empty() {
        event!(tracing::Level::WARN);
    } else {
        event!(tracing::Level::DEBUG);
    }
}

#[cfg(feature = "metrics")]
fn measure(report: &EndReport) {
    // A macro with literals: labels known at compile time are not allocated for each response.
    macro_rules! by_outcome {
        ($($outcome:ident $name:literal),*) => {
            match report.outcome() {
                $(Outcome::$outcome => (
                    metrics::counter!(
                        "bodyguard_responses_total", "outcome" => $name
                    ),
                    metrics::histogram!(
                        "bodyguard_response_duration_seconds", "outcome" => $name
                    ),
                ),)*
            }
        };
    }
    let (responses, durations) = by_outcome!(
        Complete "Complete",
        Truncated "Truncated",
        Failed "Failed",
        Panicked "Panicked",
        Stalled "Stalled",
        Shutdown "Shutdown",
        Cancelled "Cancelled",
        Disconnected "Disconnected",
        Dropped "Dropped"
    );
    responses.increment(1);
    metrics::counter!("bodyguard_response_bytes_total").increment(report.bytes);
    if let Some(first_frame) = report.first_frame {
        metrics::histogram!("bodyguard_first_frame_seconds").record(first_frame.as_secs_f64());
    }
    if let Some(duration) = report.duration {
        durations.record(duration.as_secs_f64());
    }
    if let Some(teardown) = report.teardown {
        metrics::histogram!("bodyguard_teardown_seconds").record(teardown.as_secs_f64());
    }
    let counts = &report.counts;
    metrics::counter!("bodyguard_closers_run_total").increment(counts.closers_run);
    metrics::counter!("bodyguard_closers_failed_total").increment(counts.closers_failed);
    metrics::counter!("bodyguard_closers_unrun_total").increment(counts.closers_unrun);
    metrics::counter!("bodyguard_tasks_joined_total").increment(counts.tasks_joined);
    metrics::counter!("bodyguard_tasks_failed_total").increment(counts.tasks_failed);
    metrics::counter!("bodyguard_tasks_panicked_total").increment(counts.tasks_panicked);
    metrics::counter!("bodyguard_tasks_cancelled_total").increment(counts.tasks_cancelled);
}
