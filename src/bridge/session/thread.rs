//! What only the session's own thread does with it.

use std::{
    collections::VecDeque,
    panic::Location,
    task::{Context, Poll},
    thread,
    time::Instant,
};

use tokio::sync::oneshot;

use super::{Session, State};
use crate::{
    Cause,
    bridge::{
        closer::Closer,
        context::CloseReport,
        job::{Interrupt, Step, SyncJob},
    },
    scope::quietly,
};

impl Session {
    /// Whether this thread is to serve the session.
    pub(in crate::bridge) fn open(&self) -> bool {
        let mut inner = self.lock();
        if inner.state != State::Queued {
            return false;
        }
        if !inner.is_wanted() {
            inner.state = State::Idle;
            return false;
        }
        inner.state = State::Open;
        let thread = thread::current();
        inner.thread = Some((thread.id(), thread.name().unwrap_or("bridge").to_owned()));
        true
    }

    /// What comes next for code that waits on the loop, `depth` sync calls down.
    pub(in crate::bridge) fn poll_step(
        &self,
        cx: &mut Context<'_>,
        depth: usize,
        stop_at: Interrupt,
        too_deep: &mut VecDeque<SyncJob>,
    ) -> Poll<Step> {
        let mut inner = self.lock();
        if depth > 0 && inner.interrupt >= stop_at {
            return Poll::Ready(Step::Interrupted);
        }
        if depth == 0 && inner.closing {
            return Poll::Ready(Step::Close);
        }
        if depth == 0 && !inner.end_tasks.is_empty() {
            return Poll::Ready(Step::EndTasks);
        }
        if let Some(local) = inner.locals.pop_front() {
            return Poll::Ready(Step::Local(local));
        }
        if depth < self.pool.config().max_depth {
            if let Some(job) = inner.jobs.pop_front() {
                return Poll::Ready(Step::Sync(job));
            }
        } else if inner.jobs.iter().any(|job| job.from_loop) {
            let (deeper, later) = std::mem::take(&mut inner.jobs)
                .into_iter()
                .partition(|job| job.from_loop);
            inner.jobs = later;
            *too_deep = deeper;
        }
        match &mut inner.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether calls from elsewhere wait because the thread is as deep as it may be.
    pub(in crate::bridge) fn has_jobs(&self) -> bool {
        !self.lock().jobs.is_empty()
    }

    pub(in crate::bridge) fn take_jobs(&self) -> VecDeque<SyncJob> {
        std::mem::take(&mut self.lock().jobs)
    }

    pub(in crate::bridge) fn enter(&self, called_at: &'static Location<'static>) {
        self.lock().running.push((called_at, Instant::now()));
    }

    pub(in crate::bridge) fn leave(&self) {
        self.lock().running.pop();
    }

    /// The local tasks have ended: those who asked are told, and calls may wait again.
    pub(in crate::bridge) fn tasks_ended(&self, cancelled: usize) {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.end_tasks);
        if !inner.closing {
            inner.interrupt = Interrupt::None;
        }
        drop(inner);
        for done in waiting {
            // As in `Finished`: whoever waits has any waker.
            quietly(|| {
                let _ = done.send(cancelled);
            });
        }
    }

    pub(in crate::bridge) fn panics(&self) -> Vec<Cause> {
        self.lock().panics.clone()
    }

    pub(in crate::bridge) fn pop_closer(&self) -> Option<Closer> {
        let mut inner = self.lock();
        let closer = inner.closers.pop();
        if closer.is_none() {
            // In one step with finding none left: a closer is run or refused, never lost.
            inner.state = State::Ended;
        }
        closer
    }

    /// Whether anybody waits for the close.
    pub(in crate::bridge) fn is_heard(&self) -> bool {
        self.lock().closes.iter().any(|close| !close.is_closed())
    }

    /// The thread has left: what was kept until now may go. Gives those who are to be told.
    pub(in crate::bridge) fn done(&self) -> Vec<oneshot::Sender<CloseReport>> {
        let mut inner = self.lock();
        inner.done = true;
        inner.waker = None;
        let kept = std::mem::take(&mut inner.kept);
        let closes = std::mem::take(&mut inner.closes);
        drop(inner);
        for value in kept {
            quietly(|| drop(value));
        }
        closes
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::Pin,
        sync::Arc,
        task::{Wake, Waker},
    };

    use tokio::sync::oneshot::Receiver;

    use super::*;
    use crate::{
        bridge::{closer::Run, error::BridgeError, pool::Pool},
        scope::Span,
    };

    /// Whose wake panics.
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker");
        }
    }

    /// Several who wait for the same, the first of them with a waker that panics.
    fn waiting<T>(ask: impl Fn() -> Option<Receiver<T>>) -> [Receiver<T>; 2] {
        let [mut first, second] = [(); 2].map(|()| ask().unwrap());
        let panics = Waker::from(Arc::new(Panics));
        let polled = Pin::new(&mut first).poll(&mut Context::from_waker(&panics));
        assert!(polled.is_pending());
        [first, second]
    }

    fn session(state: State) -> Arc<Session> {
        let session = Session::alone(Pool::new());
        session.lock().state = state;
        session
    }

    #[test]
    fn the_end_of_the_tasks_is_told_past_a_waker_that_panics() {
        let session = session(State::Open);
        let told = waiting(|| session.request_end_tasks());
        session.tasks_ended(3);
        for mut told in told {
            assert_eq!(told.try_recv().unwrap(), 3);
        }
    }

    #[test]
    fn a_failure_to_start_is_told_past_a_waker_that_panics() {
        let session = session(State::Queued);
        let closer = Closer {
            run: Run::Send(Box::new(|_| Ok(()))),
            called_at: Location::caller(),
            span: Span::default(),
        };
        session.lock().closers.push(closer);
        let told = waiting(|| session.request_close());
        session.fail(&BridgeError::ENDED);
        for mut told in told {
            assert_eq!(told.try_recv().unwrap().unrun(), 1);
        }
    }
}
