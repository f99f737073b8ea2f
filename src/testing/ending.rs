//! Endings and reports for closers and hooks that are tested by themselves.

use http::{Method, StatusCode, Uri};

use crate::{
    Counts, EndReport, Ending, Outcome,
    outcome::{EndingParts, succeeded},
};

/// An ending as a closer is given it: of a GET, without a cause.
///
/// It has succeeded by the default rule, and `Disconnected` says that the client has gone.
///
/// ```
/// use bodyguard::{Ending, Outcome, testing::ending};
/// use http::StatusCode;
///
/// fn word(ending: &Ending) -> &'static str {
///     if ending.succeeded() { "commit" } else { "roll back" }
/// }
///
/// assert_eq!(word(&ending(Outcome::Complete, Some(StatusCode::OK))), "commit");
/// assert_eq!(word(&ending(Outcome::Complete, Some(StatusCode::CONFLICT))), "roll back");
/// assert_eq!(word(&ending(Outcome::Dropped, None)), "roll back");
/// ```
pub fn ending(outcome: Outcome, status: Option<StatusCode>) -> Ending {
    Ending::new(EndingParts {
        outcome,
        method: Method::GET,
        status,
        client_gone: outcome == Outcome::Disconnected,
        cause: None,
        succeeded: succeeded(outcome, status),
    })
}

/// A report as an `on_end` hook is given it, with nothing counted: its fields can be set.
///
/// ```
/// use bodyguard::{EndReport, Outcome, testing::{end_report, ending}};
///
/// fn line(report: &EndReport) -> String {
///     format!("{} after {} bytes", report.outcome(), report.bytes)
/// }
///
/// let mut report = end_report(ending(Outcome::Dropped, None));
/// report.bytes = 7;
/// assert_eq!(line(&report), "Dropped after 7 bytes");
/// ```
pub fn end_report(ending: Ending) -> EndReport {
    EndReport {
        id: 0,
        method: ending.method().clone(),
        uri: Uri::default(),
        ending,
        bytes: 0,
        frames: 0,
        first_frame: None,
        duration: None,
        teardown: None,
        counts: Counts::default(),
        errors: Vec::new(),
        stuck: Vec::new(),
    }
}
