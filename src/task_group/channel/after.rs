//! What a change of the state leaves to be done outside its lock.

use std::{
    mem,
    task::{Context, Waker},
};

use super::buffer::Spent;
use crate::scope::quietly;

/// What is left to do once the lock is released.
#[derive(Default)]
pub(super) struct After {
    pub(super) receiver: Option<Waker>,
    /// To be woken, in order. Mostly there is one at most, which needs no list.
    senders: Option<(Waker, Vec<Waker>)>,
    /// Only to be dropped.
    pub(super) stale: Option<Waker>,
    pub(super) spent: Spent,
}

impl After {
    /// Has one more sender, or watcher, woken.
    pub(super) fn wake(&mut self, waker: Waker) {
        match &mut self.senders {
            None => self.senders = Some((waker, Vec::new())),
            Some((_, more)) => more.push(waker),
        }
    }

    /// A waker that panics keeps it from nobody else: they hold grants, and are not woken again.
    ///
    /// In place: it is large, and there is seldom anything in it.
    #[inline]
    pub(super) fn run(&mut self) {
        if self.senders.is_some() {
            self.wake_senders();
        }
        if let Some(waker) = self.receiver.take() {
            quietly(|| waker.wake());
        }
    }

    fn wake_senders(&mut self) {
        if let Some((first, more)) = self.senders.take() {
            quietly(|| first.wake());
            more.into_iter().for_each(|waker| quietly(|| waker.wake()));
        }
    }
}

/// Keeps the waker current; the one replaced is dropped outside the lock.
pub(super) fn refresh(waker: &mut Waker, cx: &Context<'_>, after: &mut After) {
    if !waker.will_wake(cx.waker()) {
        after.stale = Some(mem::replace(waker, cx.waker().clone()));
    }
}
