//! Where the owner of a movable body is kept, so that an end from outside can take it.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http_body::SizeHint;

use super::{
    failure::{contained, quietly},
    limit::Limit,
    machine::Scope,
    movable::{Given, Owned, discard, ended, leave, run_on, runtime_of},
    stall::{Armed, Attention, Watchdog},
};
use crate::outcome::Outcome;

/// How often an interruption that met a poll looks whether that is over.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Where the body's owner is kept.
///
/// Its poller holds the lock while it polls, and an end from outside only tries it: so code of the
/// application that ends its own scope from within a poll does not wait for itself. What it cannot
/// take the poller sees when it is done; or, if it had looked just before, a task that tries again.
pub(super) struct Cell {
    attention: Attention,
    slot: Mutex<Slot>,
    pub(super) scope: Arc<Scope>,
}

enum Slot {
    Here(Owned),
    /// Torn down by a task; who has asked meanwhile.
    Away(Option<Waker>),
    /// Torn down. What it gave there goes first; the rest it gives as any owner.
    Back(Option<Given>, Option<Owned>),
}

impl Slot {
    /// Nothing follows.
    const OVER: Self = Slot::Back(None, None);

    fn is_end_stream(&self) -> bool {
        match self {
            Slot::Here(body) => body.is_end_stream(),
            Slot::Away(_) => false,
            Slot::Back(first, rest) => {
                first.is_none() && rest.as_ref().is_none_or(|body| body.is_end_stream())
            }
        }
    }

    /// Whether the owner is here and has not told its end.
    fn is_under_way(&self) -> bool {
        match self {
            Slot::Here(body) => body.scope().is_some() && body.is_under_way(),
            Slot::Away(_) | Slot::Back(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Slot::Here(body) => body.size_hint(),
            Slot::Away(_) | Slot::Back(Some(_), _) => SizeHint::default(),
            Slot::Back(None, Some(body)) => body.size_hint(),
            Slot::Back(None, None) => SizeHint::with_exact(0),
        }
    }
}

impl Cell {
    pub(super) fn new(body: Owned, scope: Arc<Scope>) -> Arc<Self> {
        Arc::new(Self {
            attention: Attention::default(),
            slot: Mutex::new(Slot::Here(body)),
            scope,
        })
    }

    /// Can be taken from its scope from now on, and is looked after by the scope's watchdog, if one is set.
    pub(super) fn watched(self: &Arc<Self>) -> Armed {
        let watchdog = self.scope.kept_in(self);
        // An end that came before found nothing to take.
        if self.scope.is_interrupted() {
            self.scope.take_over();
        }
        watchdog.map_or_else(Armed::default, |dog| dog.watch(self))
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poll_frame(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Given>> {
        let mut slot = self.lock();
        let Slot::Here(body) = &mut *slot else {
            return Self::poll_away(slot, cx);
        };
        let mut polled = body.as_mut().poll_frame(cx);
        let given = matches!(polled, Poll::Ready(Some(Ok(_))));
        self.attention.asked(given);
        let waits = polled.is_pending();
        // An end from outside that found the lock taken may rely on this look: the server may not ask
        // again for long.
        if (given || waits) && self.scope.is_interrupted() {
            self.drive(slot, waits.then(|| cx.waker().clone()));
        } else if waits && self.scope.has_left() {
            polled = self.let_go(slot);
        }
        polled
    }

    /// The body is driven elsewhere, or has been.
    #[cold]
    fn poll_away(mut slot: MutexGuard<'_, Slot>, cx: &mut Context<'_>) -> Poll<Option<Given>> {
        let replaced = match &mut *slot {
            Slot::Here(_) => None,
            Slot::Away(waker) => waker.replace(cx.waker().clone()),
            Slot::Back(first, rest) => {
                return match (first.take(), rest) {
                    (None, Some(body)) => body.as_mut().poll_frame(cx),
                    (first, _) => Poll::Ready(first),
                };
            }
        };
        drop(slot);
        drop(replaced);
        Poll::Pending
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }

    /// What the watchdog looks at.
    pub(super) fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Whether there is work left in the body, and nobody asks for it at this moment.
    pub(super) fn is_left(&self) -> bool {
        self.try_lock().is_some_and(|slot| slot.is_under_way())
    }

    /// The slot, unless the body is being polled.
    fn try_lock(&self) -> Option<MutexGuard<'_, Slot>> {
        match self.slot.try_lock() {
            Ok(slot) => Some(slot),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The connection has gone and the body goes on without it: the server gets an error.
    fn let_go(&self, mut slot: MutexGuard<'_, Slot>) -> Poll<Option<Given>> {
        let taken = std::mem::replace(&mut *slot, Slot::OVER);
        drop(slot);
        if let Slot::Here(body) = taken {
            if let Some((scope, limit)) = leave(&*body) {
                run_on(&scope, limit, discard(body));
            }
        }
        Poll::Ready(Some(Err(ended(Outcome::Disconnected))))
    }

    /// The server has dropped the body.
    pub(super) fn drop_body(&self) {
        let slot = std::mem::replace(&mut *self.lock(), Slot::OVER);
        if let Slot::Here(body) = slot {
            match leave(&*body) {
                Some((scope, limit)) => run_on(&scope, limit, discard(body)),
                None => drop(body),
            }
        }
    }

    /// The end has come from outside: the body is torn down, although the server does not poll.
    fn take_over(self: &Arc<Self>) {
        // Whoever waits for a frame has been woken, and asks again.
        match self.try_lock() {
            Some(slot) => self.drive(slot, None),
            // It is being polled, and may have looked before the interruption was stored.
            None => {
                if let Some(runtime) = runtime_of(&self.scope) {
                    runtime.spawn(self.clone().drive_once_polled());
                }
            }
        }
    }

    /// Drives the body once its poll is over. It does not wait for the lock: the poll may be waiting for
    /// this thread.
    async fn drive_once_polled(self: Arc<Self>) {
        let mut timers = true;
        loop {
            if let Some(slot) = self.try_lock() {
                return self.drive(slot, None);
            }
            if timers {
                let mut pause = Limit::new(BETWEEN_LOOKS);
                timers = poll_fn(|cx| match pause.poll(cx) {
                    Poll::Pending if pause.is_broken() => Poll::Ready(false),
                    polled => polled.map(|()| true),
                })
                .await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Has a task tear the body down, if it is here, on behalf of one who waits for it.
    fn drive(self: &Arc<Self>, mut slot: MutexGuard<'_, Slot>, waits: Option<Waker>) {
        let Some(runtime) = runtime_of(&self.scope) else {
            drop(slot);
            return;
        };
        let body = match std::mem::replace(&mut *slot, Slot::Away(waits)) {
            Slot::Here(body) if !body.is_end_stream() => body,
            other => {
                let waits = std::mem::replace(&mut *slot, other);
                drop(slot);
                drop(waits);
                return;
            }
        };
        drop(slot);
        let mut driven = Driven {
            body: Some(body),
            back: None,
            cell: self.clone(),
        };
        let span = self.scope.span();
        let _entered = span.enter();
        // The inner body goes here and now, and its panic is not the caller's.
        if contained(|| driven.cut()).is_ok() {
            runtime.spawn(span.clone().around(async move { driven.run().await }));
        }
    }
}

/// A body that was taken from its server. Is put back once it is torn down, or its task is dropped.
struct Driven {
    body: Option<Owned>,
    back: Option<Slot>,
    cell: Arc<Cell>,
}

impl Driven {
    fn cut(&mut self) {
        if let Some(body) = &mut self.body {
            body.as_mut().cut();
        }
    }

    /// Up to the first that it gives, behind its teardown. An error that waits behind a last frame is for
    /// whoever takes that.
    async fn run(&mut self) {
        let Some(body) = &mut self.body else { return };
        let first = poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
        self.back = Some(Slot::Back(first, self.body.take()));
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        drop(self.body.take());
        let back = self.back.take().unwrap_or_else(|| {
            let outcome = self.cell.scope.ending().outcome();
            Slot::Back(Some(Err(ended(outcome))), None)
        });
        let waker = {
            let mut slot = self.cell.lock();
            match &mut *slot {
                Slot::Away(waker) => {
                    let waker = waker.take();
                    *slot = back;
                    waker
                }
                // Dropped meanwhile.
                Slot::Here(_) | Slot::Back(..) => None,
            }
        };
        if let Some(waker) = waker {
            quietly(|| waker.wake());
        }
    }
}

impl Scope {
    /// Its body can be taken from here from now on. Gives the watchdog to watch it, if one is set.
    fn kept_in(&self, cell: &Arc<Cell>) -> Option<Arc<Watchdog>> {
        let mut state = self.lock();
        state.cell = Arc::downgrade(cell);
        state.options(self).stall.clone()
    }

    /// Has its body torn down, if it is kept where it can be taken.
    pub(super) fn take_over(&self) {
        let cell = self.lock().cell.upgrade();
        if let Some(cell) = cell {
            cell.take_over();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scope::body::ScopeBody,
        testing::{Probe, Script},
    };

    fn kept() -> (Arc<Cell>, Probe) {
        let script = Script::new().data("first").hang();
        let probe = script.probe();
        let scope = Scope::standalone();
        let body = ScopeBody::standalone(scope.clone(), script);
        let cell = Cell::new(Box::pin(body), scope);
        assert!(cell.scope.kept_in(&cell).is_none(), "no watchdog is set");
        (cell, probe)
    }

    /// The poller has looked, and still holds the lock: the narrow place.
    #[tokio::test(start_paused = true)]
    async fn an_interruption_behind_the_last_look_of_a_poll() {
        let (cell, probe) = kept();
        let polling = cell.lock();
        assert!(cell.scope.interrupt(Outcome::Cancelled, None));
        assert!(!probe.is_dropped(), "not under the poller's hands");
        drop(polling);
        within_a_second(cell.scope.done()).await;
        assert!(probe.is_dropped());
        // And the server is told, although the body is not with it any more.
        let next = poll_fn(|cx| cell.poll_frame(cx));
        assert!(matches!(within_a_second(next).await, Some(Err(_))));
    }

    /// A poll that lasts is waited for without a thread.
    #[tokio::test(start_paused = true)]
    async fn an_interruption_waits_for_a_long_poll() {
        let (cell, probe) = kept();
        let mut trying = Box::pin(cell.clone().drive_once_polled());
        let polling = cell.lock();
        assert!(cell.scope.interrupt(Outcome::Cancelled, None));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(trying.as_mut().poll(&mut cx).is_pending());
        drop(polling);
        within_a_second(trying).await;
        within_a_second(cell.scope.done()).await;
        assert!(probe.is_dropped());
    }

    async fn within_a_second<F: Future>(what: F) -> F::Output {
        let waited = crate::waits::in_time(Duration::from_secs(1), what).await;
        waited.expect("within a second")
    }
}
