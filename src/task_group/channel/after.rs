//! What a change of the state leaves to be done outside its lock.

use std::{
    mem,
    task::{Context, Waker},
};

use super::buffer::Spent;

/// What is left to do once the lock is released.
#[derive(Default)]
pub(super) struct After {
    pub(super) receiver: Option<Waker>,
    /// To be woken, in order.
    senders: Wakers,
    /// Only to be dropped.
    pub(super) stale: Option<Waker>,
    pub(super) spent: Spent,
}

/// Wakers in order. Mostly there is one, which needs no allocation.
#[derive(Default)]
struct Wakers {
    first: Option<Waker>,
    rest: Vec<Waker>,
}

impl After {
    /// Has one more sender, or watcher, woken.
    pub(super) fn wake(&mut self, waker: Waker) {
        match self.senders.first {
            None => self.senders.first = Some(waker),
            Some(_) => self.senders.rest.push(waker),
        }
    }

    pub(super) fn run(self) {
        for waker in self.senders.first.into_iter().chain(self.senders.rest) {
            waker.wake();
        }
        if let Some(waker) = self.receiver {
            waker.wake();
        }
    }
}

/// Keeps the waker current; the one replaced is dropped outside the lock.
pub(super) fn refresh(waker: &mut Waker, cx: &Context<'_>, after: &mut After) {
    if !waker.will_wake(cx.waker()) {
        after.stale = Some(mem::replace(waker, cx.waker().clone()));
    }
}
