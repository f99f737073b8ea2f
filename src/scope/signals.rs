//! The tokens a scope fires, made only when someone asks.

use tokio_util::sync::CancellationToken;

use super::{machine::Scope, state::Phase};
use crate::outcome::Outcome;

/// Each token is made at the first request for it, under the scope's lock.
#[derive(Default)]
pub(super) struct Signals {
    /// Any start of the end but a natural one.
    gone: Lazy,
    /// Any start of the end.
    ended: Lazy,
    /// The teardown is finished and reported.
    done: Lazy,
}

#[derive(Default)]
struct Lazy {
    fired: bool,
    token: Option<CancellationToken>,
}

impl Lazy {
    fn token(&mut self) -> CancellationToken {
        let token = self.token.get_or_insert_with(CancellationToken::new);
        if self.fired {
            token.cancel();
        }
        token.clone()
    }

    fn fire(&mut self) -> Option<CancellationToken> {
        self.fired = true;
        self.token.clone()
    }
}

/// Tokens to be fired once the lock is released: their wakers run application code.
#[must_use = "the signals still have to be fired"]
pub(super) struct Fire(Option<CancellationToken>, Option<CancellationToken>);

impl Fire {
    pub(super) fn fire(self) {
        if let Some(token) = self.0 {
            token.cancel();
        }
        if let Some(token) = self.1 {
            token.cancel();
        }
    }
}

impl Signals {
    /// Nobody has asked for a token.
    pub(super) fn are_unheard(&self) -> bool {
        let tokens = [&self.gone, &self.ended, &self.done];
        tokens.iter().all(|signal| signal.token.is_none())
    }

    pub(super) fn end_started(&mut self, natural: bool) -> Fire {
        let gone = if natural { None } else { self.gone.fire() };
        Fire(gone, self.ended.fire())
    }

    /// The body ended while holds keep the scope open: an unnatural end is known at once.
    pub(super) fn body_ended(&mut self, natural: bool) -> Fire {
        Fire(if natural { None } else { self.gone.fire() }, None)
    }

    pub(super) fn done(&mut self) -> Fire {
        Fire(self.done.fire(), None)
    }
}

impl Scope {
    /// Fires at any start of the end but a natural one. Shared: hand out children of it.
    pub(crate) fn gone_token(&self) -> CancellationToken {
        self.lock().signals.gone.token()
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

    pub(super) fn is_tearing_down(&self) -> bool {
        let state = self.lock();
        state.owner_ended && state.phase != Phase::Live
    }

    pub(crate) fn is_live(&self) -> bool {
        self.lock().phase == Phase::Live
    }
}
