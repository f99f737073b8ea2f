//! A scope for one body without a layer, and what can be set for one scope; and a body without a scope.

use std::{sync::Arc, time::Duration};

use http::{Extensions, Method, Request, Uri, Version};
use http_body::Body;

use super::{
    body::ScopeBody,
    judge::Held,
    machine::{Opening, Scope},
    movable::MovableBody,
    options::Options,
    stall::Watchdog,
};
use crate::{error::BoxError, outcome::EndReport};

impl Scope {
    /// A scope under a supervisor of its own, for a body that knows nothing of its request.
    pub(crate) fn standalone() -> Arc<Self> {
        let opening = Opening {
            method: &Method::GET,
            uri: &Uri::default(),
            // Unknown: what HTTP/2 may still send behind the promised length is not to be lost.
            version: Version::HTTP_2,
            extensions: &Extensions::new(),
            options: &Arc::default(),
            movable: true,
        };
        Self::open(&opening, None)
    }

    /// The same for the answer to a request, with a clock.
    pub(crate) fn answering<B>(request: &Request<B>) -> Arc<Self> {
        let options = Options {
            clock: true,
            ..Options::default()
        };
        let opening = Opening {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            extensions: request.extensions(),
            options: &Arc::new(options),
            movable: true,
        };
        Self::open(&opening, None)
    }

    /// Adds a hook for the end report.
    pub(crate) fn on_end(&self, hook: impl Fn(&EndReport) + Send + Sync + 'static) {
        self.set(|options| options.on_end.push(Arc::new(hook)));
    }

    /// Sets how long tasks are waited for.
    pub(crate) fn set_join_limit(&self, limit: Duration) {
        self.set(|options| options.join_limit = Some(limit));
    }

    /// Sets how long cancelled tasks have that are told.
    pub(crate) fn set_cancel_grace(&self, grace: Duration) {
        self.set(|options| options.cancel_grace = Some(grace));
    }

    /// Sets how long an error waits behind the last frame.
    pub(crate) fn set_error_gap(&self, gap: Duration) {
        self.set(|options| options.error_gap = Some(gap));
    }

    /// Lets the handler choose to run on without its client.
    pub(crate) fn detachable(&self, limit: Duration) {
        self.set(|options| options.detachable = Some(limit));
    }

    /// Sets the stall time-out; counts once the body is movable.
    pub(crate) fn stall_timeout(&self, timeout: Duration) {
        self.set(|options| options.stall = Some(Arc::new(Watchdog::new(timeout))));
    }

    fn set(&self, set: impl FnOnce(&mut Options)) {
        let mut state = self.lock();
        let mut options = state.options(self).clone();
        set(&mut options);
        let replaced = state.merged.replace(Arc::new(options));
        // Behind the lock: hooks are the application's.
        drop(state);
        drop(replaced);
    }
}

impl<B> ScopeBody<B>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Puts the body where it can be taken from its server.
    pub(crate) fn movable(self) -> MovableBody {
        MovableBody::new(self)
    }
}

/// An empty body that owns nothing: for a response made outside its layer.
impl<B> Default for ScopeBody<B> {
    fn default() -> Self {
        Self::over(Held::default(), None)
    }
}
