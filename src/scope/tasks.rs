//! The tasks of a scope: none outlives its join, and no failure is lost.

use std::{panic::Location, sync::Arc, task::Waker};

use slab::Slab;
use tokio::{sync::Semaphore, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::{
    failure::{Failure, FailureKind, named, quietly},
    options::FailurePolicy,
    stream_id::StreamId,
};
use crate::{error::Cause, outcome::Outcome};

/// How a task is treated at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Awaited on a natural end; aborted at its next await on any other.
    Plain,
    /// As `Plain`, but told first, and given the grace.
    Graceful,
    /// Aborted on a natural end too.
    Background,
    /// On a blocking thread: told, and waited for; aborted only while it has none yet.
    Blocking,
}

impl TaskKind {
    /// Cancelled, it is told, and has time to end by itself.
    fn has_grace(self) -> bool {
        matches!(self, Self::Graceful | Self::Blocking)
    }
}

/// How a task is made to end that does not look at its token.
pub(super) enum Abort {
    Task(AbortHandle),
    /// Only while it waits for a thread.
    Queued(Arc<dyn Withdraw>),
}

impl Abort {
    /// What it drops there and then is the application's: outside the lock.
    pub(super) fn carry_out(&self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Queued(code) => code.withdraw(),
        }
    }
}

/// Code that may not have begun.
pub(super) trait Withdraw: Send + Sync {
    /// Then it never does, and has ended.
    fn withdraw(&self);
}

/// Finds a task again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskKey {
    pub(super) key: usize,
    pub(super) number: u64,
}

/// The stream of a body that tasks of the scope feed.
pub(crate) trait Feed: Send + Sync {
    /// A failure cancels the siblings: takes nothing more, so that the body ends.
    ///
    /// False if that body is gone already, so that it cannot end anything.
    fn refuse(&self) -> bool;

    /// Which it is, if its body went before its senders did.
    fn cut(&self) -> Option<StreamId>;

    /// Keeps its end back: a task is polled that may drop the last sender, and then fail.
    fn enter(&self);

    /// The task waits, or the scope knows how it ended.
    fn leave(&self);
}

pub(super) struct Tasks {
    pub(super) slots: Slab<Slot>,
    pub(super) spawned: u64,
    /// New tasks are taken.
    pub(super) open: bool,
    /// All were told to end, and so is whoever comes late.
    pub(super) cancelling: bool,
    pub(super) failed: bool,
    pub(super) failure: Option<(Outcome, Cause)>,
    cancel: Option<CancellationToken>,
    pub(super) joiner: Option<Waker>,
    /// Aborts what is left after the grace of tasks that were cancelled under a body nobody may poll.
    pub(super) keeper: Option<AbortHandle>,
    pub(super) feeds: Vec<Arc<dyn Feed>>,
    /// How many tasks may run at once, once somebody has asked.
    pub(super) places: Option<Arc<Semaphore>>,
}

pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) kind: TaskKind,
    pub(super) at: &'static Location<'static>,
    /// Known once it is spawned.
    pub(super) abort: Option<Abort>,
    /// It is to be aborted, as soon as it is known how.
    pub(super) abort_due: bool,
    /// The scope has told it to end, so that its end is no failure.
    pub(super) told: bool,
}

impl Slot {
    /// It has to end. Gives what aborts it, outside the lock; if that is not known yet, whoever comes
    /// with it aborts it.
    pub(super) fn abort(&mut self) -> Option<Abort> {
        self.told = true;
        self.abort_due = true;
        self.abort.take()
    }

    pub(super) fn name(&self) -> String {
        named("task", self.at)
    }

    pub(super) fn panicked(&self, message: String) -> Failure {
        let what = self.name();
        Failure::new(FailureKind::Panicked { what, message })
    }
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self {
            slots: Slab::new(),
            spawned: 0,
            open: true,
            cancelling: false,
            failed: false,
            failure: None,
            cancel: None,
            joiner: None,
            keeper: None,
            feeds: Vec::new(),
            places: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn live(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.slots.iter().map(|(_, slot)| slot.name())
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn refuse_new(&mut self) {
        self.open = false;
    }

    /// A failure, or the end, has closed the streams.
    pub(super) fn refuses_frames(&self, policy: FailurePolicy) -> bool {
        let failed = self.failed && policy == FailurePolicy::CancelSiblings;
        failed || self.cancelling
    }

    /// The first failure while the scope is live.
    pub(super) fn failure(&self) -> Option<&(Outcome, Cause)> {
        self.failure.as_ref()
    }

    pub(super) fn take_failure(&mut self) -> Option<(Outcome, Cause)> {
        self.failure.take()
    }

    /// Takes no more tasks if none is left: one step, so that none slips in between.
    pub(super) fn close_if_idle(&mut self) -> bool {
        self.open &= !self.is_idle();
        self.is_idle()
    }

    /// Takes no more tasks; true if none is left.
    pub(super) fn close(&mut self) -> bool {
        self.open = false;
        self.slots.is_empty()
    }

    pub(super) fn token(&mut self) -> &CancellationToken {
        let cancelling = self.cancelling;
        self.cancel.get_or_insert_with(|| {
            let token = CancellationToken::new();
            if cancelling {
                token.cancel();
            }
            token
        })
    }

    /// What has to be aborted and told, outside the lock, to cancel the tasks of these kinds.
    pub(super) fn cancellation(&mut self, of: impl Fn(TaskKind) -> bool) -> Cancellation {
        let mut aborts = Vec::new();
        for (_, slot) in &mut self.slots {
            if of(slot.kind) {
                aborts.extend(slot.abort());
            }
        }
        Cancellation {
            aborts,
            ..Cancellation::default()
        }
    }

    /// Cancels all, once: graceful tasks and running code by their token, the others by abort. What they
    /// feed takes nothing more.
    pub(super) fn cancel_all(&mut self) -> Cancellation {
        if std::mem::replace(&mut self.cancelling, true) {
            return Cancellation::default();
        }
        let mut grace = false;
        for (_, slot) in &mut self.slots {
            slot.told = true;
            grace |= slot.kind.has_grace();
        }
        Cancellation {
            token: self.cancel.clone(),
            feeds: std::mem::take(&mut self.feeds),
            grace,
            ..self.cancellation(|kind| kind != TaskKind::Graceful)
        }
    }

    pub(super) fn slot_of(&mut self, key: usize, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(key).filter(|slot| slot.number == number)
    }

    pub(super) fn awaits_nobody(&self) -> bool {
        self.slots
            .iter()
            .all(|(_, slot)| slot.kind == TaskKind::Background)
    }
}

/// What is left to do once the lock is released.
#[derive(Default)]
#[must_use]
pub(super) struct Cancellation {
    aborts: Vec<Abort>,
    token: Option<CancellationToken>,
    feeds: Vec<Arc<dyn Feed>>,
    /// Some have time to end by themselves.
    pub(super) grace: bool,
}

impl Cancellation {
    /// True if that ends a body.
    pub(super) fn carry_out(self) -> bool {
        // Each of them, whatever the others do. Whose token is behind a waker that panics may not be woken,
        // and is aborted once the grace is over.
        if let Some(token) = self.token {
            quietly(|| token.cancel());
        }
        for abort in self.aborts {
            quietly(|| abort.carry_out());
        }
        let mut ends = false;
        for feed in self.feeds {
            quietly(|| ends |= feed.refuse());
        }
        ends
    }
}
