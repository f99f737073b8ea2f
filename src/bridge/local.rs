//! The thread's half of a session: the loop, and the sync code around it.
//!
//! A current-thread runtime cannot be entered twice, so sync code is never run *inside* the loop.
//! The thread drives the loop until mail arrives that asks for sync code, **leaves** the loop, runs
//! the code on its own stack, and drives the loop again. Sync code that waits does the same one
//! level up: [`Cx::block_on`] drives the loop until its future is ready, and leaves it whenever a
//! nested call arrives. The future of an outer `block_on` rests on the stack meanwhile; local tasks
//! do not, since every level drives the same set of them.

use std::{
    any::{Any, TypeId},
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::{runtime::Runtime, task::LocalSet, time::Instant};

use super::{
    closer::{BoundCloser, Run},
    context::CloseReport,
    cx::Cx,
    error::BridgeError,
    finished::Finished,
    job::{Gone, Interrupt, Step, SyncJob},
    limits::Limits,
    session::Session,
};
use crate::{
    Cause,
    scope::{contained, quietly},
};

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// How often what destructors leave behind is dropped in turn.
const SWEEPS: usize = 16;

pub(super) struct Local {
    pub(super) session: Arc<Session>,
    pub(super) runtime: Runtime,
    pub(super) tasks: RefCell<Rc<LocalSet>>,
    pub(super) alive: Rc<Cell<usize>>,
    pub(super) values: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    pub(super) closers: RefCell<Vec<Option<BoundCloser>>>,
    /// How many pieces of sync code are on the stack.
    depth: Cell<usize>,
    /// Whether the loop is running right now, so that what runs is async code.
    driving: Cell<bool>,
    /// Of the innermost sync call: whether its caller has gone.
    gone: RefCell<Option<Gone>>,
    /// Of the same: whether it was told that nobody waits for it.
    told: Cell<bool>,
    stop_at: Cell<Interrupt>,
    /// Until when the closer that is running may wait.
    deadline: Cell<Option<Instant>>,
    /// How many pieces of sync code wait for a response's head.
    heads: Cell<usize>,
}

/// Where code runs, seen from a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Elsewhere,
    /// On the session's thread, in sync code.
    Sync,
    /// On the session's thread, in async code that its loop is running.
    Loop,
}

/// Where the calling code runs.
pub(super) fn place_of(session: &Arc<Session>) -> Place {
    with_current(|local| match local {
        Some(local) if Arc::ptr_eq(&local.session, session) => {
            if local.driving.get() {
                Place::Loop
            } else {
                Place::Sync
            }
        }
        _ => Place::Elsewhere,
    })
}

/// Whether the calling code is the very future that sync code of the session blocks on.
///
/// Local tasks are driven by nested calls as well; this future is not.
pub(super) fn is_blocking_directly(session: &Arc<Session>) -> bool {
    place_of(session) == Place::Loop && tokio::task::try_id().is_none()
}

/// The session of the calling thread.
pub(super) fn current() -> Option<Rc<Local>> {
    with_current(|local| local.cloned())
}

fn with_current<R>(f: impl FnOnce(Option<&Rc<Local>>) -> R) -> R {
    let mut f = Some(f);
    let seen = CURRENT.try_with(|current| {
        let current = current.try_borrow().ok();
        f.take()
            .map(|f| f(current.as_deref().and_then(Option::as_ref)))
    });
    match (seen, f) {
        (Ok(Some(result)), _) => result,
        // The thread is ending.
        (_, Some(f)) => f(None),
        (_, None) => unreachable!("called once"),
    }
}

/// What is left of a session after it was served.
pub(super) struct Served {
    /// The loop, if the session did not want it any more.
    pub(super) unused: Option<Runtime>,
    pub(super) finished: Option<Finished>,
    /// The thread is still in a tokio context of the request's, and is to serve no other.
    pub(super) spoilt: bool,
}

/// Serves one session on this thread, to its end.
pub(super) fn serve(session: Arc<Session>, runtime: Runtime) -> Served {
    if !session.open() {
        return Served {
            unused: Some(runtime),
            finished: None,
            spoilt: false,
        };
    }
    let local = Rc::new(Local::new(Arc::clone(&session), runtime));
    CURRENT.with(|current| *current.borrow_mut() = Some(Rc::clone(&local)));
    let cx = Cx::new(local);
    let (mut report, spoilt) = {
        let span = cx.local.session.scope_span();
        let entered = cx.local.runtime.enter();
        let report = cx.local.serve(&cx);
        // What it did there had spans of its own; while it waits, it is in none.
        let _in_span = span.enter();
        let cleared = (0..SWEEPS).any(|_| cx.local.sweep());
        CURRENT.with(|current| *current.borrow_mut() = None);
        if !cleared {
            // What comes again as it is dropped finds no session to come to.
            cx.local.sweep();
        }
        // Panics if code of the request has dropped such guards of its own out of order, or never.
        let spoilt = contained(|| drop(entered)).is_err();
        (report, spoilt)
    };
    if let Ok(local) = Rc::try_unwrap(cx.local) {
        quietly(move || local.shut_down());
    }
    // Also those that came to light as the last was dropped.
    report.failures.splice(0..0, session.panics());
    Served {
        unused: None,
        finished: Finished::new(session, report),
        spoilt,
    }
}

impl Local {
    fn new(session: Arc<Session>, runtime: Runtime) -> Self {
        Self {
            session,
            runtime,
            tasks: RefCell::new(Rc::new(LocalSet::new())),
            alive: Rc::default(),
            values: RefCell::default(),
            closers: RefCell::default(),
            depth: Cell::new(0),
            driving: Cell::new(false),
            gone: RefCell::new(None),
            told: Cell::new(false),
            stop_at: Cell::new(Interrupt::Calls),
            deadline: Cell::new(None),
            heads: Cell::new(0),
        }
    }

    /// Runs code that waits for the head of a response.
    pub(super) fn awaiting_head<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.heads.set(self.heads.get() + 1);
        let result = wait();
        self.heads.set(self.heads.get() - 1);
        result
    }

    /// Whether code further down the stack waits for a head, which goes nowhere before this code ends.
    pub(super) fn is_head_awaited(&self) -> bool {
        self.heads.get() > 0
    }

    fn serve(&self, cx: &Cx) -> CloseReport {
        loop {
            match self.drive(cx, |_| Poll::<()>::Pending) {
                Driven::Step(Step::Sync(job)) => self.run_sync(cx, job),
                Driven::Step(Step::EndTasks) => self.session.tasks_ended(self.end_tasks()),
                Driven::Step(Step::Close) => break,
                // Local jobs are started by `drive`, and nothing is waiting at this level.
                Driven::Step(Step::Local(_) | Step::Interrupted) | Driven::Done(()) => {}
            }
        }
        let mut report = CloseReport {
            tasks_cancelled: self.end_tasks(),
            ..CloseReport::default()
        };
        self.session.tasks_ended(report.tasks_cancelled);
        self.run_closers(cx, &mut report);
        report
    }

    /// Drops what is kept; true if there was nothing. What that leaves behind is for the next sweep.
    fn sweep(&self) -> bool {
        self.end_tasks();
        let values = self.values.take();
        // Those that their scope gave up.
        let unrun = self.closers.take();
        let nothing = values.is_empty() && unrun.is_empty() && self.alive.get() == 0;
        (values.into_values()).for_each(|value| quietly(|| drop(value)));
        (unrun.into_iter()).for_each(|closer| quietly(|| drop(closer)));
        nothing
    }

    /// Drops what was spawned on the runtime; does not wait for its blocking threads.
    fn shut_down(self) {
        self.runtime.shutdown_background();
    }

    /// Blocks on `future`, and does whatever else arrives for this thread meanwhile.
    pub(super) fn block_on<F: Future>(&self, cx: &Cx, future: F) -> Result<F::Output, BridgeError> {
        if self.driving.get() {
            return Err(BridgeError::INSIDE_LOOP);
        }
        let mut future = std::pin::pin!(future);
        loop {
            match self.drive(cx, |task| future.as_mut().poll(task)) {
                Driven::Done(output) => return Ok(output),
                Driven::Step(Step::Sync(job)) => self.run_sync(cx, job),
                Driven::Step(_) => {
                    self.tell();
                    return Err(self.interruption());
                }
            }
        }
    }

    /// The code that runs is told that nobody waits for it.
    pub(super) fn tell(&self) {
        self.told.set(true);
    }

    /// Whether it was: what it makes of that is no failure.
    pub(super) fn was_told(&self) -> bool {
        self.told.get()
    }

    fn interruption(&self) -> BridgeError {
        if self.session.is_closing() || !self.is_gone() {
            BridgeError::ENDED
        } else {
            BridgeError::CANCELLED
        }
    }

    fn is_gone(&self) -> bool {
        let gone = self.gone.borrow();
        gone.as_ref()
            .is_some_and(|gone| gone.load(Ordering::Acquire))
    }

    /// Whether sync code that waits now would be interrupted.
    pub(super) fn is_wait_over(&self) -> bool {
        let late = self.deadline.get().is_some_and(|at| at <= Instant::now());
        late || self.is_gone()
            || self.session.is_interrupted(self.stop_at.get())
            || (self.depth.get() == 0 && self.session.is_closing())
    }

    /// Runs the loop until `poll` is ready, or there is something to do outside the loop.
    fn drive<T>(&self, cx: &Cx, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Driven<T> {
        let tasks = Rc::clone(&self.tasks.borrow());
        let _driving = Driving::new(&self.driving);
        let mut limits = Limits::default();
        self.runtime.block_on(tasks.run_until(poll_fn(|task| {
            if let Poll::Ready(output) = poll(task) {
                return Poll::Ready(Driven::Done(output));
            }
            self.poll_mail(cx, task, &mut limits).map(Driven::Step)
        })))
    }

    fn poll_mail(&self, cx: &Cx, task: &mut Context<'_>, limits: &mut Limits) -> Poll<Step> {
        let depth = self.depth.get();
        loop {
            if depth > 0 && self.is_gone() {
                return Poll::Ready(Step::Interrupted);
            }
            let mut too_deep = VecDeque::new();
            let step = self
                .session
                .poll_step(task, depth, self.stop_at.get(), &mut too_deep);
            let limit = self.session.pool.config().max_depth;
            self.reject_too_deep(too_deep);
            match step {
                Poll::Ready(Step::Local(job)) => quietly(|| {
                    if job.is_live() {
                        job.run(cx);
                    }
                }),
                Poll::Ready(step) => return Poll::Ready(step),
                Poll::Pending => {
                    if limits.closer_is_late(task, self.deadline.get()) {
                        return Poll::Ready(Step::Interrupted);
                    }
                    if depth >= limit && limits.waited_too_deep(task, &self.session) {
                        self.reject_too_deep(self.session.take_jobs());
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn reject_too_deep(&self, jobs: VecDeque<SyncJob>) {
        let limit = self.session.pool.config().max_depth;
        for job in jobs {
            quietly(|| job.job.reject(BridgeError::too_deep(limit)));
        }
    }

    fn run_sync(&self, cx: &Cx, job: SyncJob) {
        if !job.is_live() {
            quietly(|| drop(job));
            return;
        }
        let SyncJob {
            job,
            gone,
            called_at,
            ..
        } = job;
        let outer = self.gone.replace(Some(gone));
        let (told, heads) = (self.told.replace(false), self.heads.get());
        self.session.enter(called_at);
        self.depth.set(self.depth.get() + 1);
        // The job answers for its own panic; this is for values that panic when dropped.
        quietly(|| job.run(cx));
        self.depth.set(self.depth.get() - 1);
        self.session.leave();
        self.told.set(told);
        // Also where a panic came out of the wait.
        self.heads.set(heads);
        self.gone.replace(outer);
    }

    /// Drops every local task, and says how many there were.
    fn end_tasks(&self) -> usize {
        let tasks = self.tasks.replace(Rc::new(LocalSet::new()));
        let cancelled = self.alive.get();
        // Code that runs in a `Drop` may block on the loop, as sync code one level down.
        self.depth.set(self.depth.get() + 1);
        quietly(|| drop(tasks));
        self.depth.set(self.depth.get() - 1);
        cancelled
    }

    fn run_closers(&self, cx: &Cx, report: &mut CloseReport) {
        self.stop_at.set(Interrupt::Closers);
        self.depth.set(1);
        while let Some(closer) = self.session.pop_closer() {
            let run: BoundCloser = match closer.run {
                Run::Send(run) => run,
                Run::Bound(index) => match self.closers.borrow_mut()[index].take() {
                    Some(run) => run,
                    None => continue,
                },
            };
            let limit = self.session.pool.config().closer_limit;
            self.deadline.set(Instant::now().checked_add(limit));
            self.session.enter(closer.called_at);
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _in_span = closer.span.enter();
                run(cx)
            }));
            self.session.leave();
            report.closers_run += 1;
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => report.failures.push(Cause::from(error)),
                Err(panic) => {
                    let error = BridgeError::panicked(panic, Some(closer.called_at));
                    report.failures.push(Arc::new(error));
                }
            }
        }
        self.deadline.set(None);
        self.depth.set(0);
    }
}

enum Driven<T> {
    Done(T),
    Step(Step),
}

/// Marks the loop as running, also when a future panics out of it.
struct Driving<'a>(&'a Cell<bool>);

impl<'a> Driving<'a> {
    fn new(driving: &'a Cell<bool>) -> Self {
        driving.set(true);
        Self(driving)
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
