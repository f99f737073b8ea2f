//! A teardown behind a body that was pending once: it goes on whether the body is polled or not.
//!
//! A server whose client does not read may not ask the body again for long; transactions and locks are not to
//! wait for it. So a task stands by. Each wake of the teardown is the owner's first: it polls in the server's
//! context. If it has not come after a while, or has gone, the task polls, and from then on both do: whoever
//! finds the other at it knocks, and is woken when that is done.
//!
//! The waker that the teardown is polled with owns the drivers and not the teardown: what it waits for may be
//! inside it, and keep that waker.

use std::{
    future::{Future, poll_fn},
    sync::{Arc, PoisonError, TryLockError, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::{
    failure::quietly,
    limit::Limit,
    teardown::{self, Teardown},
    verdict::Verdict,
};
// As the model check in `loom/` has them.
use crate::sync::{AtomicBool, Handle, Mutex, MutexGuard, fence};

/// How long the owner has to come when it is woken, before the task steps in.
const OWNERS_TURN: Duration = Duration::from_millis(10);

/// The owner's part in it.
pub(super) struct Driven {
    shared: Arc<Shared>,
    /// There was a runtime for the task.
    has_task: bool,
}

struct Shared {
    work: Mutex<Work>,
    runtime: Option<Handle>,
    drivers: Arc<Drivers>,
}

enum Work {
    UnderWay(Teardown),
    Over(Option<Verdict>),
}

#[derive(Default)]
struct Drivers {
    owner: Driver,
    task: Driver,
    /// Woken, and the owner has not come since.
    unanswered: AtomicBool,
    /// The owner comes no more.
    left: AtomicBool,
    over: AtomicBool,
}

#[derive(Default)]
struct Driver {
    waker: Mutex<Option<Waker>>,
    /// It came while the other was at it.
    knocked: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Owner,
    Task,
}

impl Driven {
    /// Has a task stand by for a teardown that is pending, if there is a runtime for that.
    pub(super) fn new(teardown: Teardown, runtime: Option<Handle>) -> Self {
        let runtime = runtime.or_else(|| Handle::try_current().ok());
        let shared = Arc::new(Shared {
            work: Mutex::new(Work::UnderWay(teardown)),
            runtime: runtime.clone(),
            drivers: Arc::default(),
        });
        let has_task = runtime.is_some();
        if let Some(runtime) = runtime {
            runtime.spawn(shared.clone().stand_by());
        }
        Self { shared, has_task }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        self.shared
            .drivers
            .unanswered
            .store(false, Ordering::SeqCst);
        match self.shared.poll(Who::Owner, cx) {
            Poll::Ready(Some(verdict)) => Poll::Ready(verdict),
            // It is given once, and to nobody else.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The owner goes. Without a runtime the teardown is dropped, and its guard accounts for it.
    pub(super) fn leave(self) {
        let drivers = &self.shared.drivers;
        drivers.left.store(true, Ordering::SeqCst);
        drivers.owner.forget();
        drivers.task.wake();
        if !self.has_task {
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(self.shared.stand_by());
            }
        }
    }
}

impl Shared {
    /// The task. Dropped unfinished, it leaves the owner to go on alone.
    fn stand_by(self: Arc<Self>) -> impl Future<Output = ()> + Send {
        let gone = Gone(self.drivers.clone());
        async move {
            let _gone = gone;
            while !self.drivers.is_due() {
                poll_fn(|cx| self.drivers.poll_woken(cx)).await;
                let mut turn = Limit::new(OWNERS_TURN);
                poll_fn(|cx| self.drivers.poll_turn(&mut turn, cx)).await;
            }
            if !self.drivers.over.load(Ordering::SeqCst) {
                poll_fn(|cx| self.poll(Who::Task, cx)).await;
            }
        }
    }

    /// Ready once it is over, for the owner with the verdict.
    fn poll(&self, who: Who, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        let (this, other) = match who {
            Who::Owner => (&self.drivers.owner, &self.drivers.task),
            Who::Task => (&self.drivers.task, &self.drivers.owner),
        };
        this.keep(cx.waker());
        let Some(mut work) = self.work_of(this) else {
            return Poll::Pending;
        };
        let teardown = match &mut *work {
            Work::UnderWay(teardown) => teardown,
            Work::Over(verdict) => {
                return Poll::Ready(verdict.take_if(|_| who == Who::Owner));
            }
        };
        let both = Waker::from(self.drivers.clone());
        let mut cx = Context::from_waker(&both);
        let Poll::Ready(verdict) = teardown::poll(self.runtime.as_ref(), teardown, &mut cx) else {
            drop(work);
            // Either we see its knock, or it sees that the lock is free.
            fence(Ordering::SeqCst);
            if other.knocked.swap(false, Ordering::Relaxed) {
                other.wake();
            }
            return Poll::Pending;
        };
        let (kept, given) = match who {
            Who::Owner => (None, Some(verdict)),
            Who::Task => (Some(verdict), None),
        };
        let over = std::mem::replace(&mut *work, Work::Over(kept));
        // Behind the lock: what it has kept is the application's.
        drop(work);
        drop(over);
        self.drivers.over.store(true, Ordering::SeqCst);
        other.wake();
        Poll::Ready(given)
    }

    /// The work, unless the other is at it, who wakes us then.
    fn work_of(&self, this: &Driver) -> Option<MutexGuard<'_, Work>> {
        self.try_work().or_else(|| {
            this.knocked.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.try_work()
        })
    }

    fn try_work(&self) -> Option<MutexGuard<'_, Work>> {
        match self.work.try_lock() {
            Ok(work) => Some(work),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drivers {
    /// The owner has had its turn.
    fn is_due(&self) -> bool {
        self.unanswered.load(Ordering::SeqCst) || self.is_without_owner()
    }

    /// It has gone, or is done.
    fn is_without_owner(&self) -> bool {
        self.left.load(Ordering::SeqCst) || self.over.load(Ordering::SeqCst)
    }

    fn poll_woken(&self, cx: &Context<'_>) -> Poll<()> {
        self.task.keep(cx.waker());
        match self.is_due() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn poll_turn(&self, turn: &mut Limit, cx: &mut Context<'_>) -> Poll<()> {
        self.task.keep(cx.waker());
        match self.is_without_owner() {
            true => Poll::Ready(()),
            false => turn.poll_if_kept(cx),
        }
    }
}

impl Wake for Drivers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unanswered.store(true, Ordering::SeqCst);
        self.owner.wake();
        self.task.wake();
    }
}

/// The task goes.
struct Gone(Arc<Drivers>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.task.forget();
        self.0.owner.wake();
    }
}

impl Driver {
    fn keep(&self, waker: &Waker) {
        if self
            .lock()
            .as_ref()
            .is_some_and(|kept| kept.will_wake(waker))
        {
            return;
        }
        let waker = waker.clone();
        let replaced = self.lock().replace(waker);
        drop(replaced);
    }

    fn forget(&self) {
        let waker = self.lock().take();
        drop(waker);
    }

    fn wake(&self) {
        let waker = self.lock().take();
        waker.into_iter().for_each(|waker| quietly(|| waker.wake()));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
