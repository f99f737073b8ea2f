//! A shutdown that lets a response finish, for a time.

use std::{
    future::pending,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::task::AbortHandle;

use super::{
    limit::within,
    machine::Scope,
    options::Shutdown,
    state::{Phase, State},
};
use crate::supervisor::Member;

/// The policy whose time runs, and what waits for it to be over.
pub(super) struct Finishing {
    policy: Arc<Shutdown>,
    timer: Option<Timer>,
}

/// A task that ends with the scope.
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Scope {
    /// Aborts the scope after this time, if it still goes by the policy then. Counts once for each policy.
    ///
    /// Without a runtime, or one with timers, only the end of a drain does.
    pub(super) fn finish_within(self: &Arc<Self>, policy: &Arc<Shutdown>, time: Duration) {
        if self.parent_goes_by(policy) {
            return;
        }
        let replaced = {
            let mut state = self.lock();
            if state.phase == Phase::Done || state.is_finishing_by(policy) {
                return;
            }
            state.finishing.replace(Finishing {
                policy: policy.clone(),
                timer: None,
            })
        };
        drop(replaced);
        let Some(runtime) = &self.runtime else {
            return;
        };
        let (scope, by) = (Arc::downgrade(self), policy.clone());
        let task = runtime.spawn(async move {
            within(time, pending::<()>()).await;
            // An inner layer may have set another.
            let scope = scope.upgrade().filter(|scope| scope.goes_by(&by));
            if let Some(scope) = scope {
                scope.abort();
            }
        });
        let mut timer = Some(Timer(task.abort_handle()));
        let mut state = self.lock();
        if state.is_finishing_by(policy) {
            if let Some(finishing) = &mut state.finishing {
                finishing.timer = timer.take();
            }
        }
        drop(state);
        // Over meanwhile, or another's.
        drop(timer);
    }

    fn goes_by(&self, policy: &Arc<Shutdown>) -> bool {
        let state = self.lock();
        let mine = state.options(self).shutdown.as_ref();
        mine.is_some_and(|mine| Arc::ptr_eq(mine, policy))
    }

    /// It ends with the scope around it, and is accounted for as that is.
    fn parent_goes_by(&self, policy: &Arc<Shutdown>) -> bool {
        let parent = self.parent.get().and_then(Weak::upgrade);
        parent.is_some_and(|parent| {
            parent.is_live() && parent.supervisor().is(self.supervisor()) && parent.goes_by(policy)
        })
    }
}

impl State {
    fn is_finishing_by(&self, policy: &Arc<Shutdown>) -> bool {
        let mine = self.finishing.as_ref();
        mine.is_some_and(|mine| Arc::ptr_eq(&mine.policy, policy))
    }
}
