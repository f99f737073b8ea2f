//! The state behind its lock, and the count of its senders.

use std::{
    mem,
    sync::{PoisonError, atomic::Ordering},
};

use super::{after::After, state::State};
use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard};

pub(super) struct Shared {
    state: Mutex<State>,
    senders: AtomicUsize,
    /// The receiver's waker is in the state, as invariant 5 has it. Written under the lock.
    waits: AtomicBool,
}

impl Shared {
    /// With one sender.
    pub(super) fn new(bound: usize) -> Self {
        Self {
            state: Mutex::new(State::new(bound)),
            senders: AtomicUsize::new(1),
            waits: AtomicBool::new(false),
        }
    }

    /// Changes the state under the lock, then wakes and drops what is to be, outside it.
    #[inline]
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut State, &mut After) -> R) -> R {
        let mut after = After::default();
        let mut state = self.lock();
        let result = change(&mut state, &mut after);
        let awaited = state.awaited().is_some();
        if self.waits.load(Ordering::Relaxed) != awaited {
            self.waits.store(awaited, Ordering::Release);
        }
        drop(state);
        after.run();
        // It is empty, and to look through it for what to drop costs as much as to run it.
        mem::forget(after);
        result
    }

    /// The state, to be looked at. A panic under the lock can only be the allocator's or a waker's
    /// `clone`, and neither leaves the state half changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the receiver's waker is where it left it, to be woken by whatever comes: then it would find
    /// nothing. Servers ask again behind each flush.
    ///
    /// Without the lock this rests on the executor: what happened before a wake is seen by the poll behind it. That is
    /// what wakers are for, and tokio's do it.
    #[inline]
    pub(super) fn is_awaited(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    pub(super) fn add_sender(&self) {
        // Relaxed: whoever adds one holds one, so the count cannot reach 0 meanwhile. A handle may
        // come too late, and then finds the end under the lock.
        self.senders.fetch_add(1, Ordering::Relaxed);
    }

    /// Relaxed: a hint, to be confirmed under the lock.
    pub(super) fn has_senders(&self) -> bool {
        self.senders.load(Ordering::Relaxed) > 0
    }

    pub(super) fn remove_sender(&self) {
        // What this sender put in is published by the lock; the count itself orders who is last.
        if self.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.with(State::senders_gone);
        }
    }
}
