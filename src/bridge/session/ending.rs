//! How a session is ended, and what becomes of those who wait in its mail box.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::oneshot;

use super::{Session, State};
use crate::{
    bridge::{
        context::CloseReport,
        error::BridgeError,
        job::{Interrupt, Job, SyncJob},
    },
    scope::quietly,
};

impl Session {
    /// Asks for the local tasks to be ended; `None` if no thread was ever opened.
    ///
    /// Those that have not started never do: they would in the middle of the owner's closers.
    pub(in crate::bridge) fn request_end_tasks(
        self: &Arc<Self>,
    ) -> Option<oneshot::Receiver<usize>> {
        let mut inner = self.lock();
        if inner.closing || !matches!(inner.state, State::Queued | State::Open) {
            return None;
        }
        let locals = std::mem::take(&mut inner.locals);
        let mut ending = None;
        if inner.state == State::Open {
            let (done, ended) = oneshot::channel();
            inner.end_tasks.push(done);
            inner.interrupt = inner.interrupt.max(Interrupt::Calls);
            ending = Some(ended);
        }
        let forget = inner.leave_line();
        let waker = inner.waker.take();
        drop(inner);
        if forget {
            self.pool.forget(self);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        reject(VecDeque::new(), locals, &BridgeError::ENDED);
        ending
    }

    /// Ends the session: nothing more is accepted, waiting code is interrupted, closers run.
    pub(in crate::bridge) fn request_close(
        self: &Arc<Self>,
    ) -> Option<oneshot::Receiver<CloseReport>> {
        self.close(true)
    }

    /// The same for one who does not want the report: its errors are dropped where they can do no harm.
    pub(in crate::bridge) fn close_unheard(self: &Arc<Self>) {
        self.close(false);
    }

    fn close(self: &Arc<Self>, hears: bool) -> Option<oneshot::Receiver<CloseReport>> {
        let mut inner = self.lock();
        if inner.state == State::Ended {
            // What was kept may still be dropped, and the loop be shut down.
            return (hears && inner.is_serving()).then(|| inner.hear());
        }
        inner.closing = true;
        inner.interrupt = inner.interrupt.max(Interrupt::Calls);
        let jobs = std::mem::take(&mut inner.jobs);
        let locals = std::mem::take(&mut inner.locals);
        let was = inner.state;
        let runs = was == State::Open || !inner.closers.is_empty();
        let closed = (runs && hears).then(|| inner.hear());
        match (runs, was) {
            (true, State::Idle) => inner.state = State::Queued,
            (true, _) => {}
            (false, _) => inner.state = State::Ended,
        }
        let waker = inner.waker.take();
        drop(inner);
        match (runs, was) {
            (false, State::Queued) => self.pool.forget(self),
            // Closers whose earlier attempt to get a thread has failed.
            (true, State::Idle) => self.pool.submit(Arc::clone(self)),
            _ => {}
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        reject(jobs, locals, &BridgeError::ENDED);
        closed
    }

    /// Ends a session that nobody uses: no value of anybody's is in it.
    pub(in crate::bridge) fn end_if_idle(&self) -> bool {
        let mut inner = self.lock();
        let idle = matches!(inner.state, State::Idle | State::Ended) && !inner.is_serving();
        if idle {
            inner.closing = true;
            inner.state = State::Ended;
        }
        idle
    }

    /// The close took too long: closers stop waiting, too.
    pub(in crate::bridge) fn interrupt_closers(&self) {
        let mut inner = self.lock();
        inner.interrupt = Interrupt::Closers;
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No thread could be had: everyone who waits is told, and a later call may try again.
    ///
    /// Closers were accepted, and nobody waits for them: they stay for the next attempt, the last of
    /// which is the close.
    pub(in crate::bridge) fn fail(&self, error: &BridgeError) {
        let mut inner = self.lock();
        if inner.state != State::Queued {
            return;
        }
        let mut closers = Vec::new();
        if inner.closing {
            inner.state = State::Ended;
            closers = std::mem::take(&mut inner.closers);
        } else {
            inner.state = State::Idle;
        }
        let jobs = std::mem::take(&mut inner.jobs);
        let locals = std::mem::take(&mut inner.locals);
        let closes = std::mem::take(&mut inner.closes);
        drop(inner);
        let report = CloseReport::unrun_for(closers.len(), error);
        for close in closes {
            quietly(|| drop(close.send(report.clone())));
        }
        reject(jobs, locals, error);
        for closer in closers {
            quietly(|| drop(closer));
        }
    }
}

/// A closure that panics when dropped unrun must not reach a teardown.
fn reject(jobs: VecDeque<SyncJob>, locals: VecDeque<Box<dyn Job>>, error: &BridgeError) {
    for job in jobs {
        quietly(|| job.job.reject(error.clone()));
    }
    for local in locals {
        quietly(|| local.reject(error.clone()));
    }
}
