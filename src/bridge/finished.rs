//! The last of a session: what its close came to goes to those who wait for it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{context::CloseReport, session::Session};
use crate::scope::quietly;

/// Tells those who wait for the close, once the thread is free again.
pub(super) struct Finished {
    session: Arc<Session>,
    report: CloseReport,
}

impl Finished {
    /// None if nobody waits: then the application's errors are dropped now, while the thread is taken.
    pub(super) fn new(session: Arc<Session>, report: CloseReport) -> Option<Self> {
        let finished = Self { session, report };
        finished.session.is_heard().then_some(finished)
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        let report = std::mem::take(&mut self.report);
        let mut closes = self.session.done();
        // It is given away, lest the last of an error is dropped on a thread that is free.
        let last = closes.pop();
        for close in closes {
            tell(Some(close), report.clone());
        }
        tell(last, report);
    }
}

/// Wakes whoever waits, by whatever waker that has.
fn tell(close: Option<oneshot::Sender<CloseReport>>, report: CloseReport) {
    quietly(|| {
        let unheard = match close {
            Some(close) => close.send(report).err(),
            None => Some(report),
        };
        let failures = unheard.into_iter().flat_map(|report| report.failures);
        // Singly: a second panic within one drop aborts.
        failures.for_each(|failure| quietly(|| drop(failure)));
    });
}
