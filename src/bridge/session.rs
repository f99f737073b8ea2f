//! The shared half of a request's session: its mail box, and where it stands.
//!
//! 1. `Queued` means that the pool holds an `Arc` of the session, in its line or on the way to a
//!    thread. Only the thread that turns `Queued` into `Open` serves it; a second `Arc` that
//!    arrives later finds it open and is dropped.
//! 2. Nothing of the user's is run or dropped under the lock.
//! 3. Whatever is in the mail box when the session ends is rejected with the reason, so nobody
//!    waits for an answer that does not come, and no closure keeps its handle, hence the session,
//!    alive in a circle.

use std::{
    collections::VecDeque,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::{self, ThreadId},
    time::Instant,
};

use tokio::sync::oneshot;

use super::{
    closer::Closer, context::CloseReport, cx::Cx, error::BridgeError, pool::Pool, stuck::Stuck,
};

/// Something to do on the thread, for someone who waits for its result.
pub(super) trait Job: Send {
    /// Whether its result is still wanted.
    fn is_live(&self) -> bool;
    fn run(self: Box<Self>, cx: &Cx);
    fn reject(self: Box<Self>, error: BridgeError);
}

/// Set once the caller has dropped its call.
pub(super) type Gone = Arc<AtomicBool>;

/// A sync call; it is run outside the loop, so that it can block on the loop.
pub(super) struct SyncJob {
    pub(super) job: Box<dyn Job>,
    pub(super) gone: Gone,
    pub(super) called_at: &'static Location<'static>,
    /// Whether the loop itself submitted it: then whoever waits for it may be what blocks it.
    pub(super) from_loop: bool,
}

/// What the code that is waiting on the loop has to do next.
pub(super) enum Step {
    Sync(SyncJob),
    /// Start a local task, from inside the loop.
    Local(Box<dyn Job>),
    EndTasks,
    Close,
    Interrupted,
}

/// How hard code that waits on the loop is being told to stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interrupt {
    None,
    /// Calls must stop waiting.
    Calls,
    /// Closers too: the close has taken too long.
    Closers,
}

pub(super) struct Session {
    pub(super) pool: Pool,
    inner: Mutex<Inner>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No thread, none asked for.
    Idle,
    Queued,
    Open,
    Ended,
}

struct Inner {
    state: State,
    closing: bool,
    interrupt: Interrupt,
    jobs: VecDeque<SyncJob>,
    locals: VecDeque<Box<dyn Job>>,
    closers: Vec<Closer>,
    /// Of the loop, when it waits for mail.
    waker: Option<Waker>,
    end_tasks: Vec<oneshot::Sender<usize>>,
    closes: Vec<oneshot::Sender<CloseReport>>,
    running: Vec<(&'static Location<'static>, Instant)>,
    thread: Option<(ThreadId, String)>,
}

impl Session {
    pub(super) fn new(pool: Pool) -> Arc<Self> {
        Arc::new(Self {
            pool,
            inner: Mutex::new(Inner {
                state: State::Idle,
                closing: false,
                interrupt: Interrupt::None,
                jobs: VecDeque::new(),
                locals: VecDeque::new(),
                closers: Vec::new(),
                waker: None,
                end_tasks: Vec::new(),
                closes: Vec::new(),
                running: Vec::new(),
                thread: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- from any thread -------------------------------------------------------------------

    pub(super) fn push_sync(self: &Arc<Self>, job: SyncJob) -> Result<(), SyncJob> {
        self.push(job, |inner, job| inner.jobs.push_back(job))
    }

    pub(super) fn push_local(self: &Arc<Self>, job: Box<dyn Job>) -> Result<(), Box<dyn Job>> {
        self.push(job, |inner, job| inner.locals.push_back(job))
    }

    /// Registers a closer; given back when the closers are being run or have run.
    pub(super) fn push_closer(self: &Arc<Self>, closer: Closer) -> Result<(), Closer> {
        self.push(closer, |inner, closer| inner.closers.push(closer))
    }

    /// A closer from the thread itself: allowed as long as closers are still being run.
    pub(super) fn push_closer_here(&self, closer: Closer) -> Result<(), Closer> {
        let mut inner = self.lock();
        if inner.state == State::Ended {
            return Err(closer);
        }
        inner.closers.push(closer);
        Ok(())
    }

    fn push<T>(self: &Arc<Self>, item: T, put: impl FnOnce(&mut Inner, T)) -> Result<(), T> {
        let mut inner = self.lock();
        if inner.closing || inner.state == State::Ended {
            return Err(item);
        }
        put(&mut inner, item);
        let first = inner.state == State::Idle;
        if first {
            inner.state = State::Queued;
        }
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        if first {
            self.pool.submit(Arc::clone(self));
        }
        Ok(())
    }

    /// A caller has given up: forget what only it wanted, and tell code that waits for it.
    pub(super) fn abandon(self: &Arc<Self>) {
        let mut dead = (VecDeque::new(), VecDeque::new());
        let mut inner = self.lock();
        let forget = if inner.state == State::Open {
            false
        } else {
            let (live, gone) = std::mem::take(&mut inner.jobs)
                .into_iter()
                .partition(|job| !job.gone.load(Ordering::Acquire));
            inner.jobs = live;
            dead.0 = gone;
            let (live, gone) = std::mem::take(&mut inner.locals)
                .into_iter()
                .partition(|job| job.is_live());
            inner.locals = live;
            dead.1 = gone;
            let forget = inner.state == State::Queued && !inner.is_wanted();
            if forget {
                inner.state = State::Idle;
            }
            forget
        };
        let waker = inner.waker.take();
        drop(inner);
        if forget {
            self.pool.forget(self);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        drop(dead);
    }

    /// Asks for the local tasks to be ended; `None` if no thread was ever opened.
    pub(super) fn request_end_tasks(&self) -> Option<oneshot::Receiver<usize>> {
        let mut inner = self.lock();
        if inner.state != State::Open || inner.closing {
            return None;
        }
        let (done, ended) = oneshot::channel();
        inner.end_tasks.push(done);
        inner.interrupt = inner.interrupt.max(Interrupt::Calls);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(ended)
    }

    /// Ends the session: nothing more is accepted, waiting code is interrupted, closers run.
    pub(super) fn request_close(self: &Arc<Self>) -> Option<oneshot::Receiver<CloseReport>> {
        let mut inner = self.lock();
        if inner.state == State::Ended {
            return None;
        }
        inner.closing = true;
        inner.interrupt = inner.interrupt.max(Interrupt::Calls);
        let jobs = std::mem::take(&mut inner.jobs);
        let locals = std::mem::take(&mut inner.locals);
        let was = inner.state;
        let mut closed = None;
        if was == State::Open || !inner.closers.is_empty() {
            let (done, receiver) = oneshot::channel();
            inner.closes.push(done);
            closed = Some(receiver);
        } else {
            inner.state = State::Ended;
        }
        let waker = inner.waker.take();
        drop(inner);
        if closed.is_none() && was == State::Queued {
            self.pool.forget(self);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        reject(jobs, locals, &BridgeError::ENDED);
        closed
    }

    /// The close took too long: closers stop waiting, too.
    pub(super) fn interrupt_closers(&self) {
        let mut inner = self.lock();
        inner.interrupt = Interrupt::Closers;
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// No thread could be had: everyone who waits is told, and a later call may try again.
    pub(super) fn fail(&self, error: &BridgeError) {
        let mut inner = self.lock();
        if inner.state != State::Queued {
            return;
        }
        inner.state = if inner.closing {
            State::Ended
        } else {
            State::Idle
        };
        let jobs = std::mem::take(&mut inner.jobs);
        let locals = std::mem::take(&mut inner.locals);
        let closers = std::mem::take(&mut inner.closers);
        let closes = std::mem::take(&mut inner.closes);
        drop(inner);
        let report = CloseReport::unrun_for(closers.len(), error);
        for close in closes {
            let _ = close.send(report.clone());
        }
        reject(jobs, locals, error);
    }

    pub(super) fn is_queued(&self) -> bool {
        self.lock().state == State::Queued
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().state == State::Open
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub(super) fn is_ended(&self) -> bool {
        let inner = self.lock();
        inner.closing || inner.state == State::Ended
    }

    pub(super) fn thread_id(&self) -> Option<ThreadId> {
        Some(self.lock().thread.as_ref()?.0)
    }

    pub(super) fn pending_closers(&self) -> usize {
        self.lock().closers.len()
    }

    /// The innermost sync code on the thread.
    pub(super) fn stuck(&self) -> Option<Stuck> {
        let inner = self.lock();
        let (called_at, since) = *inner.running.last()?;
        Some(Stuck {
            thread: inner.thread.as_ref()?.1.clone(),
            called_at,
            running_for: since.elapsed(),
        })
    }

    // ---- from the session's thread ---------------------------------------------------------

    /// Whether this thread is to serve the session.
    pub(super) fn open(&self) -> bool {
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
    pub(super) fn poll_step(
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
    pub(super) fn has_jobs(&self) -> bool {
        !self.lock().jobs.is_empty()
    }

    pub(super) fn take_jobs(&self) -> VecDeque<SyncJob> {
        std::mem::take(&mut self.lock().jobs)
    }

    pub(super) fn enter(&self, called_at: &'static Location<'static>) {
        self.lock().running.push((called_at, Instant::now()));
    }

    pub(super) fn leave(&self) {
        self.lock().running.pop();
    }

    /// The local tasks have ended: those who asked are told, and calls may wait again.
    pub(super) fn tasks_ended(&self, cancelled: usize) {
        let mut inner = self.lock();
        let waiting = std::mem::take(&mut inner.end_tasks);
        if !inner.closing {
            inner.interrupt = Interrupt::None;
        }
        drop(inner);
        for done in waiting {
            let _ = done.send(cancelled);
        }
    }

    pub(super) fn pop_closer(&self) -> Option<Closer> {
        let mut inner = self.lock();
        let closer = inner.closers.pop();
        if closer.is_none() {
            // In one step with finding none left: a closer is run or refused, never lost.
            inner.state = State::Ended;
        }
        closer
    }

    /// Those who are to be told of the close.
    pub(super) fn take_closes(&self) -> Vec<oneshot::Sender<CloseReport>> {
        let mut inner = self.lock();
        inner.state = State::Ended;
        inner.waker = None;
        std::mem::take(&mut inner.closes)
    }
}

impl Inner {
    fn is_wanted(&self) -> bool {
        !self.jobs.is_empty() || !self.locals.is_empty() || !self.closers.is_empty()
    }
}

fn reject(jobs: VecDeque<SyncJob>, locals: VecDeque<Box<dyn Job>>, error: &BridgeError) {
    for job in jobs {
        job.job.reject(error.clone());
    }
    for local in locals {
        local.reject(error.clone());
    }
}
