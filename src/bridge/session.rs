//! The shared half of a request's session: its mail box, and where it stands.
//!
//! 1. `Queued` means that the pool holds an `Arc` of the session, in its line or on the way to a
//!    thread. Only the thread that turns `Queued` into `Open` serves it; a second `Arc` that
//!    arrives later finds it open and is dropped.
//! 2. Nothing of the user's is run or dropped under the lock.
//! 3. Whatever is in the mail box when the session ends is rejected with the reason, so nobody
//!    waits for an answer that does not come, and no closure keeps its handle, hence the session,
//!    alive in a circle.

mod ending;
mod thread;

use std::{
    any::Any,
    collections::VecDeque,
    panic::Location,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
    thread::ThreadId,
    time::Instant,
};

use tokio::sync::oneshot;

use super::{
    closer::Closer,
    context::CloseReport,
    error::{BridgeError, BridgeErrorKind},
    job::{Interrupt, Job, SyncJob},
    pool::Pool,
    stuck::Stuck,
};
use crate::{
    Cause,
    scope::{Scope, Span, quietly},
};

pub(super) struct Session {
    pub(super) pool: Pool,
    /// The scope that this is the bridge of: closers are kept there, so that all have one order.
    pub(super) scope: Option<Weak<Scope>>,
    inner: Mutex<Inner>,
    /// Bodies whose code runs, or is to run, here.
    bodies: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No thread, none asked for.
    Idle,
    Queued,
    Open,
    /// No closer is accepted any more, not even from a closer. Never before `closing`.
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
    /// Nothing of it runs, or ever will.
    done: bool,
    /// Of local tasks that nobody awaits, for the close to tell.
    panics: Vec<Cause>,
    /// Dropped when nothing of it runs any more.
    kept: Vec<Box<dyn Any + Send>>,
}

impl Session {
    pub(super) fn alone(pool: Pool) -> Arc<Self> {
        Self::with(pool, None)
    }

    pub(super) fn new(pool: Pool, scope: Weak<Scope>) -> Arc<Self> {
        Self::with(pool, Some(scope))
    }

    /// One that comes too late.
    pub(super) fn ended(pool: Pool) -> Arc<Self> {
        let session = Self::alone(pool);
        session.end_if_idle();
        session
    }

    fn with(pool: Pool, scope: Option<Weak<Scope>>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            scope,
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
                done: false,
                panics: Vec::new(),
                kept: Vec::new(),
            }),
            bodies: AtomicUsize::new(0),
        })
    }

    /// The span of its scope, if it has one.
    pub(super) fn scope_span(&self) -> Span {
        let scope = self.scope.as_ref().and_then(Weak::upgrade);
        scope.map(|scope| scope.span()).unwrap_or_default()
    }

    /// The span of the code that asks, or else that.
    pub(super) fn span_here(&self) -> Span {
        Span::current().or(|| self.scope_span())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
        if inner.closing {
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
        self.forget_dead(self.lock());
    }

    /// A caller gives up unless a thread has come: then its job, which `mark` makes dead, is forgotten
    /// before any could. False if one has, or the job is being answered.
    pub(super) fn withdraw(self: &Arc<Self>, mark: impl FnOnce()) -> bool {
        let inner = self.lock();
        let queued = inner.state == State::Queued;
        if queued {
            mark();
            self.forget_dead(inner);
        }
        queued
    }

    fn forget_dead(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let jobs = std::mem::take(&mut inner.jobs).into_iter();
        let (live, dead): (_, VecDeque<_>) = jobs.partition(SyncJob::is_live);
        inner.jobs = live;
        let locals = std::mem::take(&mut inner.locals).into_iter();
        let (live, dead_locals): (_, VecDeque<_>) = locals.partition(|job| job.is_live());
        inner.locals = live;
        let forget = inner.leave_line();
        let waker = inner.waker.take();
        drop(inner);
        if forget {
            self.pool.forget(self);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        for job in dead {
            quietly(|| drop(job));
        }
        for local in dead_locals {
            quietly(|| drop(local));
        }
    }

    /// Drops the value when the thread has left the session; now if it is not there.
    pub(super) fn keep_until_done(&self, value: Box<dyn Any + Send>) {
        let mut inner = self.lock();
        if inner.is_serving() {
            inner.kept.push(value);
            return;
        }
        drop(inner);
        drop(value);
    }

    /// A local task, or a call, has panicked that nobody awaits. Any other error stands for a task that did not run
    /// to its end, as it may.
    pub(super) fn panicked_unheard(&self, error: BridgeError) {
        if error.kind() != BridgeErrorKind::Panicked || error.is_excused() {
            return;
        }
        let cause: Cause = Arc::new(error);
        match &self.scope {
            Some(scope) => scope
                .upgrade()
                .into_iter()
                .for_each(|scope| scope.annex_task_panicked(cause.clone())),
            None => self.lock().panics.push(cause),
        }
    }

    /// What the thread does now, by name.
    pub(super) fn running_now(&self) -> Option<String> {
        if let Some(stuck) = self.stuck() {
            return Some(stuck.to_string());
        }
        let inner = self.lock();
        if !inner.is_serving() {
            return None;
        }
        let (_, name) = inner.thread.as_ref()?;
        Some(format!(
            "thread {name}, busy with the request's tasks or values"
        ))
    }

    pub(super) fn is_producing(&self) -> bool {
        self.bodies.load(Ordering::Relaxed) > 0
    }

    pub(super) fn is_queued(&self) -> bool {
        self.lock().state == State::Queued
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().state == State::Open
    }

    /// Whether the thread has not come round yet to ending the local tasks.
    pub(super) fn is_behind(&self) -> bool {
        !self.lock().end_tasks.is_empty()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Whether code that stops at `level` is being told to stop waiting.
    pub(super) fn is_interrupted(&self, level: Interrupt) -> bool {
        self.lock().interrupt >= level
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
}

/// A body of the session's code, for as long as there is one.
pub(super) struct Producing(pub(super) Arc<Session>);

impl Producing {
    pub(super) fn new(session: Arc<Session>) -> Self {
        session.bodies.fetch_add(1, Ordering::Relaxed);
        Self(session)
    }
}

impl Drop for Producing {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// A thread has come and not gone again.
    fn is_serving(&self) -> bool {
        self.thread.is_some() && !self.done
    }

    /// Waits for the report of the close.
    fn hear(&mut self) -> oneshot::Receiver<CloseReport> {
        let (done, closed) = oneshot::channel();
        self.closes.push(done);
        closed
    }

    fn is_wanted(&self) -> bool {
        !self.jobs.is_empty() || !self.locals.is_empty() || !self.closers.is_empty()
    }

    /// Whether nothing is left to wait in line for: the pool then has to forget the session.
    fn leave_line(&mut self) -> bool {
        let forget = self.state == State::Queued && !self.is_wanted();
        if forget {
            self.state = State::Idle;
        }
        forget
    }
}
