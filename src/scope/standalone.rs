//! A scope for one body without a layer; and a body without a scope.

use std::sync::Arc;

use http::{Extensions, Method, Request, Uri, Version};
use http_body::Body;

use super::{
    body::ScopeBody,
    judge::Held,
    machine::{Opening, Scope},
    movable::MovableBody,
    options::Options,
};
use crate::error::BoxError;

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
