//! A scope for one body without a layer, and what can be set for it.

use std::{sync::Arc, time::Duration};

use http::{Extensions, Method, Request, Uri, Version};
use http_body::Body;

use super::{
    body::ScopeBody,
    connection::Connection,
    machine::{Opening, Scope},
    movable::MovableBody,
    options::Options,
    stall::Watchdog,
};
use crate::{error::BoxError, outcome::EndReport, supervisor::Supervisor};

impl Scope {
    /// A scope under a supervisor of its own, for a body that knows nothing of its request.
    pub(crate) fn standalone() -> Arc<Self> {
        Self::open(opening(&Extensions::new(), &Supervisor::private()), None)
    }

    /// The same for the answer to a request, with a clock.
    pub(crate) fn answering<B>(request: &Request<B>) -> Arc<Self> {
        let supervisor = Supervisor::private();
        let opening = Opening {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            clock: true,
            ..opening(request.extensions(), &supervisor)
        };
        Self::open(opening, None)
    }

    /// Adds a hook for the end report.
    pub(crate) fn on_end(&self, hook: impl Fn(&EndReport) + Send + Sync + 'static) {
        self.set(|options| options.on_end.push(Arc::new(hook)));
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
        set(Arc::make_mut(&mut self.lock().options));
    }
}

fn opening<'a>(extensions: &Extensions, supervisor: &'a Supervisor) -> Opening<'a> {
    Opening {
        method: Method::GET,
        uri: Uri::default(),
        // Unknown: what HTTP/2 may still send behind the promised length is not to be lost.
        version: Version::HTTP_2,
        connection: Connection::of(extensions),
        options: Arc::default(),
        supervisor,
        clock: false,
        movable: true,
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
