//! A teardown that was pending once: it goes on whether its owner is polled or not.
//!
//! The owner stands in a body, and a server whose client does not read may not ask that again for long;
//! transactions and locks are not to wait for it. So two drive the teardown: the owner when it is polled, and
//! a task. Whoever is woken polls; who finds the other at it knocks, and is woken when that is done.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::runtime::Handle;

use super::{
    failure::quietly,
    state::Verdict,
    teardown::{self, Teardown},
};

/// The owner's part in it.
pub(super) struct Running {
    shared: Arc<Shared>,
    /// There was a runtime for the task.
    driven: bool,
}

struct Shared {
    work: Mutex<Work>,
    runtime: Option<Handle>,
    owner: Driver,
    task: Driver,
}

enum Work {
    UnderWay(Teardown),
    Over(Option<Verdict>),
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

impl Running {
    /// Has a teardown that is pending driven by a task too, if there is a runtime for that.
    pub(super) fn new(teardown: Teardown, runtime: Option<Handle>, cx: &Context<'_>) -> Self {
        let runtime = runtime.or_else(|| Handle::try_current().ok());
        let shared = Arc::new(Shared {
            work: Mutex::new(Work::UnderWay(teardown)),
            runtime: runtime.clone(),
            owner: Driver::default(),
            task: Driver::default(),
        });
        shared.owner.keep(cx.waker());
        let driven = runtime.is_some();
        if let Some(runtime) = runtime {
            runtime.spawn(Driving(shared.clone()));
        }
        Self { shared, driven }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        match self.shared.poll(Who::Owner, cx) {
            Poll::Ready(Some(verdict)) => Poll::Ready(verdict),
            // It is given once, and to nobody else.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The owner goes.
    pub(super) fn leave(self) {
        self.shared.owner.forget();
        if !self.driven {
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(Driving(self.shared));
            }
        }
    }
}

/// The task's part. Dropped unfinished, it leaves the owner to go on alone.
struct Driving(Arc<Shared>);

impl Future for Driving {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(Who::Task, cx).map(drop)
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.task.forget();
        self.0.owner.wake();
    }
}

impl Shared {
    /// Ready once it is over, for the owner with the verdict.
    fn poll(self: &Arc<Self>, who: Who, cx: &mut Context<'_>) -> Poll<Option<Verdict>> {
        let (this, other) = match who {
            Who::Owner => (&self.owner, &self.task),
            Who::Task => (&self.task, &self.owner),
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
        // Either of them may be the one that comes.
        let both = Waker::from(self.clone());
        let polled = teardown::poll(
            self.runtime.as_ref(),
            teardown,
            &mut Context::from_waker(&both),
        );
        let Poll::Ready(verdict) = polled else {
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

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.task.wake();
        self.owner.wake();
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
