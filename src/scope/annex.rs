//! The one door for what a view keeps beside tasks and closers, and the scope has to end with.
//!
//! The scope knows nothing of what it is: a view opens it when it is first used, the teardown ends
//! its tasks after the scope's own, and closes it once no closer is left.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    closers::Closer,
    failure::{Failure, FailureKind},
    machine::Scope,
    state::{Phase, State},
};
use crate::{error::Cause, outcome::Outcome};

/// What an annex was set up with by a layer; only the annex knows the type.
pub(super) type Settings = Arc<dyn Any + Send + Sync>;

/// A wait of the teardown.
pub(crate) type AnnexFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Something of a view's that ends with the scope.
///
/// Only [`end_tasks`](Self::end_tasks) and [`close`](Self::close) may run or drop values of the
/// application: the others are called while the scope is locked.
pub(crate) trait Annex: Send + Sync + 'static {
    /// For the view, which knows the type.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;

    /// Closes it if there is nothing to wait for, and nothing of the application's in it.
    fn close_if_idle(&self) -> bool;

    /// Whether a body of its is under way. Only that body knows when it is over, be it behind the
    /// length that its head promised.
    fn is_producing(&self) -> bool;

    /// Ends its tasks, starting now, and counts them; closers can still use it. Bounded: what ran, by
    /// name, if it did not answer in time.
    fn end_tasks(self: Arc<Self>) -> AnnexFuture<Result<u64, String>>;

    /// Ends it, starting now. Bounded; if it `overran` in `end_tasks`, and still does, it is not
    /// waited for again.
    fn close(self: Arc<Self>, overran: bool) -> AnnexFuture<AnnexClosed>;

    /// How long either of these may take.
    fn limit(&self) -> Duration;

    /// What of it runs now, by name.
    fn still_running(&self) -> Option<String>;

    /// Drops the value once nothing of it runs; at once if nothing does.
    fn keep(&self, value: Box<dyn Any + Send>);
}

/// What the close did.
#[derive(Default)]
pub(crate) struct AnnexClosed {
    pub(crate) tasks_cancelled: u64,
    pub(crate) closers_run: u64,
    pub(crate) closers_unrun: u64,
    pub(crate) failures: Vec<Cause>,
    /// What did not come back in time.
    pub(crate) stuck: Option<String>,
}

/// Where the annex of a scope stands.
#[derive(Default)]
pub(super) enum Slot {
    #[default]
    Unused,
    Open(Arc<dyn Annex>),
    Closing(Arc<dyn Annex>),
    Closed,
}

impl Slot {
    fn get(&self) -> Option<&Arc<dyn Annex>> {
        match self {
            Slot::Open(annex) | Slot::Closing(annex) => Some(annex),
            Slot::Unused | Slot::Closed => None,
        }
    }

    /// The teardown closes it now: nothing more is registered with it.
    pub(super) fn begin_close(&mut self) -> Option<Arc<dyn Annex>> {
        let Slot::Open(annex) = self else {
            return None;
        };
        let annex = annex.clone();
        *self = Slot::Closing(annex.clone());
        Some(annex)
    }

    /// Whether there is nothing to close, or it has just been closed.
    pub(super) fn close_if_idle(&mut self) -> bool {
        match self {
            Slot::Unused | Slot::Closed => true,
            Slot::Open(annex) => annex.close_if_idle(),
            Slot::Closing(_) => false,
        }
    }

    /// The scope is done; what is taken out is dropped outside the lock.
    #[must_use]
    pub(super) fn finish(&mut self) -> Option<Arc<dyn Annex>> {
        match std::mem::replace(self, Slot::Closed) {
            Slot::Open(annex) | Slot::Closing(annex) => Some(annex),
            Slot::Unused | Slot::Closed => None,
        }
    }

    pub(super) fn is_producing(&self) -> bool {
        self.get().is_some_and(|annex| annex.is_producing())
    }

    pub(super) fn still_running(&self) -> Option<String> {
        self.get()?.still_running()
    }
}

#[cfg_attr(
    not(feature = "bridge"),
    allow(dead_code, reason = "the door of the one view that has an annex")
)]
impl Scope {
    /// The annex of this scope, opened if it is the first use. `None` once it is closed.
    pub(crate) fn annex<A: Annex>(
        self: &Arc<Self>,
        open: impl FnOnce(Option<&(dyn Any + Send + Sync)>, Weak<Scope>) -> Arc<A>,
    ) -> Option<Arc<A>> {
        let mut state = self.lock();
        let annex = match &state.work().annex {
            Slot::Open(annex) | Slot::Closing(annex) => annex.clone(),
            Slot::Closed => return None,
            Slot::Unused => {
                let annex = open(state.options(self).annex.as_deref(), Arc::downgrade(self));
                state.work().annex = Slot::Open(annex.clone());
                state.used = true;
                return Some(annex);
            }
        };
        drop(state);
        annex.into_any().downcast().ok()
    }

    /// The annex, if it is open or closing.
    pub(crate) fn opened_annex<A: Annex>(&self) -> Option<Arc<A>> {
        let annex = self.lock().work.as_ref()?.annex.get()?.clone();
        annex.into_any().downcast().ok()
    }

    /// Whether the annex is, or would be, of no use any more.
    pub(crate) fn is_annex_closed(&self) -> bool {
        matches!(self.lock().work().annex, Slot::Closing(_) | Slot::Closed)
    }

    /// A task of the annex has panicked, and nobody else hears of it: a failure like that of any task.
    pub(crate) fn annex_task_panicked(self: &Arc<Self>, cause: Cause) {
        let cancelled = {
            let mut state = self.lock();
            state.work().counts.tasks_panicked += 1;
            self.task_failed(&mut state, Outcome::Panicked, cause)
        };
        if let Some(cancelled) = cancelled {
            self.cancel_siblings(cancelled);
        }
    }

    /// Registers a closer that uses the annex; given back once that is closed.
    ///
    /// In one critical section with the teardown's word that no closer is left.
    pub(crate) fn defer_with_annex(&self, closer: Closer) -> Result<(), Closer> {
        let mut state = self.lock();
        if state.phase == Phase::Done
            || matches!(state.work().annex, Slot::Closing(_) | Slot::Closed)
        {
            return Err(closer);
        }
        state.used = true;
        state.work().closers.push(closer);
        Ok(())
    }
}

impl Scope {
    /// Teardown step 3. What ran, if the annex did not answer in time.
    pub(super) async fn end_annex_tasks(&self) -> Option<String> {
        let annex = match &self.lock().work().annex {
            Slot::Open(annex) => annex.clone(),
            _ => return None,
        };
        self.begin_step(annex.limit());
        let tasks = match annex.end_tasks().await {
            Ok(tasks) => tasks,
            Err(what) => return Some(what),
        };
        self.lock().work().counts.tasks_cancelled += tasks;
        None
    }

    /// The annex has closed, or was not waited for any longer: it goes into the account, and so does
    /// what `overran` before the closers and came back since.
    pub(super) fn annex_closed(
        &self,
        annex: &Arc<dyn Annex>,
        closed: AnnexClosed,
        overran: Option<String>,
    ) {
        {
            let mut state = self.lock();
            let counts = &mut state.work().counts;
            counts.tasks_cancelled += closed.tasks_cancelled;
            counts.closers_run += closed.closers_run;
            counts.closers_failed += closed.failures.len() as u64;
            counts.closers_unrun += closed.closers_unrun;
            for cause in closed.failures {
                state.note_failure(Outcome::Failed, cause);
            }
        }
        match (closed.stuck, overran) {
            (Some(what), _) => self.annex_stuck(annex, what),
            (None, Some(what)) => self.note_stuck(what),
            (None, None) => {}
        }
    }

    /// The runtime is gone: the annex closes by itself, and what runs now is named.
    pub(super) fn abandon_annex(&self, annex: &Arc<dyn Annex>) {
        drop(annex.clone().close(true));
        self.name_annex();
    }

    /// Names what runs in an annex that was being closed and is not waited for any longer.
    pub(super) fn name_annex(&self) {
        let annex = match &self.lock().work().annex {
            Slot::Closing(annex) => annex.clone(),
            _ => return,
        };
        if let Some(what) = annex.still_running() {
            self.annex_stuck(&annex, what);
        }
    }

    /// The scope does not wait for it; a drain does, and names it.
    fn annex_stuck(&self, annex: &Arc<dyn Annex>, what: String) {
        let name = self.named(&what);
        self.note_stuck(what);
        annex.keep(Box::new(self.supervisor().background(name)));
    }

    fn note_stuck(&self, what: String) {
        let mut state = self.lock();
        state.work().stuck.push(what.clone());
        let failure = Failure::new(FailureKind::StillRunning { what });
        state.note_failure(Outcome::Failed, failure.into());
    }
}

impl State {
    pub(super) fn is_annex_producing(&self) -> bool {
        let work = self.work.as_ref();
        work.is_some_and(|work| work.annex.is_producing())
    }

    /// What of the annex runs now, for the drain's account.
    pub(super) fn annex_running(&self) -> Option<String> {
        self.work.as_ref()?.annex.still_running()
    }
}
