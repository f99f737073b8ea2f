//! Teardown step 2: the tasks of a scope are awaited, or cancelled, and joined.

use std::{
    future::{pending, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    failure::{Failure, FailureKind},
    limit::{Limit, within},
    machine::Scope,
    state::State,
    tasks::{Cancellation, TaskKind, Tasks},
};
use crate::outcome::Outcome;

impl Scope {
    /// Teardown step 2: awaits the tasks on a natural end, cancels and joins them on any other.
    pub(super) async fn join_tasks(&self) {
        let (awaited, join, grace) = {
            let mut state = self.lock();
            if state.work().tasks.close_if_idle() {
                return;
            }
            let awaited = state.natural && !state.work().tasks.cancelling;
            (
                awaited,
                state.options(self).join_limit(),
                state.options(self).cancel_grace(),
            )
        };
        if awaited && self.await_tasks(join).await {
            return;
        }
        self.cancel_tasks(Tasks::cancel_all);
        if self.join(grace, Tasks::is_idle).await {
            return;
        }
        self.abort_tasks();
        if !self.join(join, Tasks::is_idle).await {
            let mut state = self.lock();
            let work = state.work();
            work.stuck.extend(work.tasks.names());
        }
    }

    /// The join of a natural end: true if all are gone. A failure that cancels them ends it early,
    /// and what is left has the grace; otherwise what is left has overrun.
    async fn await_tasks(&self, limit: Duration) -> bool {
        let over = |tasks: &Tasks| tasks.cancelling || tasks.awaits_nobody();
        if !self.join(limit, over).await {
            self.lock()
                .overran(limit, |kind| kind != TaskKind::Background);
            return false;
        }
        if self.lock().work().tasks.cancelling {
            return false;
        }
        self.cancel_tasks(|tasks| tasks.cancellation(|kind| kind == TaskKind::Background));
        let idle = self.join(limit, Tasks::is_idle).await;
        if !idle {
            self.lock().overran(limit, |_| true);
        }
        idle
    }

    /// Aborts whatever can be: the runtime is gone, or nobody can wait.
    pub(super) fn abandon_tasks(&self) {
        self.cancel_tasks(Tasks::cancel_all);
        self.abort_tasks();
    }

    /// Carries out a cancellation that comes while the body goes on, whose server may not poll it for
    /// long: a task keeps the grace. True if that ends the body.
    pub(super) fn cancel_unpolled(self: &Arc<Self>, cancellation: Cancellation) -> bool {
        if cancellation.grace {
            self.keep_grace();
        }
        cancellation.carry_out()
    }

    fn keep_grace(self: &Arc<Self>) {
        let runtime = self.runtime.clone();
        let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) else {
            return;
        };
        let scope = Arc::downgrade(self);
        let grace = self.lock().options(self).cancel_grace();
        let keeper = runtime.spawn(async move {
            within(grace, pending::<()>()).await;
            if let Some(scope) = scope.upgrade() {
                scope.abort_tasks();
            }
        });
        let mut keeper = Some(keeper.abort_handle());
        {
            let mut state = self.lock();
            let tasks = &mut state.work().tasks;
            // Otherwise the last of them stops it.
            if !tasks.is_idle() {
                tasks.keeper = keeper.take();
            }
        }
        if let Some(keeper) = keeper {
            keeper.abort();
        }
    }

    fn abort_tasks(&self) {
        self.cancel_tasks(|tasks| tasks.cancellation(|_| true));
    }

    /// Takes no more tasks, and carries out what `choose` collects, outside the lock.
    fn cancel_tasks(&self, choose: impl FnOnce(&mut Tasks) -> Cancellation) {
        let cancellation = {
            let mut state = self.lock();
            let tasks = &mut state.work().tasks;
            tasks.open = false;
            choose(tasks)
        };
        cancellation.carry_out();
    }

    /// Waits for the tasks, up to the limit; false if the limit came first.
    async fn join(&self, limit: Duration, met: impl Fn(&Tasks) -> bool) -> bool {
        self.begin_step(limit);
        let mut limit = Limit::new(limit);
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let replaced = {
                let mut state = self.lock();
                let tasks = &mut state.work().tasks;
                if met(tasks) {
                    return Poll::Ready(true);
                }
                tasks.joiner.replace(waker)
            };
            drop(replaced);
            limit.poll(cx).map(|()| false)
        })
        .await
    }
}

impl State {
    /// The join limit of a natural end is over: what still runs is named, and the end has failed.
    fn overran(&mut self, limit: Duration, awaited: impl Fn(TaskKind) -> bool) {
        let slots = self.work().tasks.slots.iter();
        let slots = slots.filter(|(_, slot)| awaited(slot.kind));
        let names: Vec<_> = slots.map(|(_, slot)| slot.name()).collect();
        for what in names {
            let failure = Failure::new(FailureKind::OverranLimit { what, limit });
            self.work().tasks.failed = true;
            self.note_failure(Outcome::Failed, failure.into());
        }
    }
}
