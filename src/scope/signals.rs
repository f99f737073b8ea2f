//! The tokens a scope fires, made only when someone asks.

use tokio_util::sync::CancellationToken;

use super::{failure::quietly, machine::Scope, state::Phase};
use crate::outcome::Outcome;

/// Each token is made at the first request for it, under the scope's lock.
#[derive(Default)]
pub(super) struct Signals {
    /// Any start of the end but a natural one.
    gone: Lazy,
    /// The same, as it is handed out. Apart, since a token wakes its children's waiters before its own: one
    /// whose waker panics would keep those from being told who wait for `gone`.
    handed_out: Lazy,
    /// Any start of the end.
    ended: Lazy,
    /// The teardown is finished and reported.
    done: Lazy,
}

/// A token that is made when somebody asks for it.
#[derive(Default)]
pub(crate) struct Lazy {
    fired: bool,
    token: Option<CancellationToken>,
}

impl Lazy {
    pub(crate) fn token(&mut self) -> CancellationToken {
        let fired = self.fired;
        let made = || {
            let token = CancellationToken::new();
            // Nobody waits for it yet. One that was there is cancelled by whoever fires it, unlocked.
            if fired {
                token.cancel();
            }
            token
        };
        self.token.get_or_insert_with(made).clone()
    }

    /// What there is to be cancelled, unlocked.
    pub(crate) fn fire(&mut self) -> Option<CancellationToken> {
        self.fired = true;
        self.token.clone()
    }
}

/// Tokens to be fired once the lock is released: their wakers run application code.
#[derive(Default)]
#[must_use = "the signals still have to be fired"]
pub(super) struct Fire([Option<CancellationToken>; 3]);

impl Fire {
    #[inline]
    pub(super) fn fire(self) {
        if self.0.iter().any(Option::is_some) {
            self.cancel();
        }
    }

    #[cold]
    fn cancel(self) {
        // A waker that panics keeps nobody from the signals that follow; of who waits for the same, some may
        // not be woken.
        for token in self.0.into_iter().flatten() {
            quietly(|| token.cancel());
        }
    }
}

impl Signals {
    /// Nobody has asked for a token.
    pub(super) fn are_unheard(&self) -> bool {
        let tokens = [&self.gone, &self.ended, &self.done, &self.handed_out];
        tokens.iter().all(|signal| signal.token.is_none())
    }

    pub(super) fn end_started(&mut self, natural: bool) -> Fire {
        let Fire([handed_out, gone, _]) = self.body_ended(natural);
        Fire([handed_out, gone, self.ended.fire()])
    }

    /// The body ended while holds keep the scope open: an unnatural end is known at once.
    pub(super) fn body_ended(&mut self, natural: bool) -> Fire {
        match natural {
            true => Fire::default(),
            // In this order: who hears of it finds his token cancelled.
            false => Fire([self.handed_out.fire(), self.gone.fire(), None]),
        }
    }

    pub(super) fn done(&mut self) -> Fire {
        Fire([self.done.fire(), None, None])
    }
}

impl Scope {
    /// Fires at any start of the end but a natural one. A child: cancelling it cancels nobody else.
    pub(crate) fn gone_token(&self) -> CancellationToken {
        self.lock().signals.handed_out.token().child_token()
    }

    /// Waits for any start of the end but a natural one.
    pub(crate) async fn gone(&self) {
        let token = self.lock().signals.gone.token();
        token.cancelled().await;
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.lock().signals.gone.fired
    }

    /// Waits for the start of the end; the outcome is provisional.
    pub(crate) async fn ended(&self) -> Outcome {
        let token = self.lock().signals.ended.token();
        token.cancelled().await;
        self.lock().outcome
    }

    /// Waits for the end of the teardown.
    pub(crate) async fn done(&self) {
        let token = self.lock().signals.done.token();
        token.cancelled().await;
    }

    pub(crate) fn is_live(&self) -> bool {
        self.lock().phase == Phase::Live
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::{Context, Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Wakers run application code: only whoever fires the signal, without the lock, wakes them.
    #[test]
    fn asking_for_a_token_wakes_nobody() {
        let mut signal = Lazy::default();
        let token = signal.token();
        let woken = Arc::new(Counting::default());
        let waker = Waker::from(woken.clone());
        let mut waits = std::pin::pin!(token.cancelled());
        let polled = waits.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        let fire = signal.fire();
        // Between the lock and the firing, somebody asks.
        let asked = signal.token();
        assert_eq!((woken.0.load(SeqCst), asked.is_cancelled()), (0, false));
        Fire([fire, None, None]).fire();
        assert_eq!((woken.0.load(SeqCst), asked.is_cancelled()), (1, true));
    }

    #[test]
    fn a_token_that_comes_late_is_cancelled_from_the_start() {
        let mut signal = Lazy::default();
        assert!(signal.fire().is_none());
        assert!(signal.token().is_cancelled());
    }
}
