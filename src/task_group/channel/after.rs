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
    /// To be woken, in order. Mostly there are two at most, which need no list.
    first: Option<Waker>,
    second: Option<Waker>,
    more: Vec<Waker>,
    /// Only to be dropped.
    pub(super) stale: Option<Waker>,
    pub(super) spent: Spent,
}

impl After {
    /// Has one more sender, or watcher, woken.
    pub(super) fn wake(&mut self, waker: Waker) {
        if self.first.is_none() {
            self.first = Some(waker);
        } else if self.second.is_none() {
            self.second = Some(waker);
        } else {
            self.more.push(waker);
        }
    }

    /// A waker that panics keeps it from nobody else: they hold grants, and are not woken again.
    ///
    /// Nothing is left in it then, of any field: it is forgotten, not dropped.
    #[inline]
    pub(super) fn run(&mut self) {
        if let Some(waker) = self.first.take() {
            wake(waker);
            if let Some(waker) = self.second.take() {
                wake(waker);
                mem::take(&mut self.more).into_iter().for_each(wake);
            }
        }
        if let Some(waker) = self.receiver.take() {
            wake(waker);
        }
        // A comparison each, where drops in their place would be calls.
        if let Some(waker) = self.stale.take() {
            let_go(waker);
        }
        let (frame, neighbour) = &mut self.spent;
        if let Some(frame) = frame.take() {
            let_go(frame);
        }
        if let Some(neighbour) = neighbour.take() {
            let_go(neighbour);
        }
    }
}

/// It may be the application's own memory, of another sender than the one who finds it here.
#[inline(never)]
fn let_go<T>(what: T) {
    quietly(|| drop(what));
}

#[inline(never)]
fn wake(waker: Waker) {
    quietly(|| waker.wake());
}

/// Keeps the waker current; the one replaced is dropped outside the lock.
pub(super) fn refresh(waker: &mut Waker, cx: &Context<'_>, after: &mut After) {
    if !waker.will_wake(cx.waker()) {
        after.stale = Some(mem::replace(waker, cx.waker().clone()));
    }
}
