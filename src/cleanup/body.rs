//! A body with closers, for use without a layer.

use std::future::Future;

use http::Request;
use http_body::Body;

use super::Cleanup;
use crate::{
    BoxError, Ending, TaskResult,
    scope::{Scope, ScopeBody, ViewBody, unknown},
};

/// Any body, with closers of its own. Needs no layer.
///
/// ```
/// # use bodyguard::cleanup::CleanupBody;
/// # use http_body_util::{BodyExt, Full};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let body = CleanupBody::new(Full::new(bytes::Bytes::from("hello")))
///     .defer(|ending| async move {
///         assert!(ending.succeeded());
///         Ok(())
///     });
/// assert_eq!(body.collect().await?.to_bytes(), "hello");
/// # Ok::<(), bodyguard::BoxError>(())
/// # }).unwrap();
/// ```
///
/// A body has one consumer, by ownership: a second one does not compile.
///
/// ```compile_fail,E0382
/// # use bodyguard::cleanup::CleanupBody;
/// # use http_body_util::{BodyExt, Full};
/// # async fn twice() {
/// let body = CleanupBody::new(Full::new(bytes::Bytes::from("hello")));
/// let first = body.collect().await;
/// let second = body.collect().await;
/// # }
/// ```
///
/// See [`ViewBody`] for what it has in common with the bodies of other views.
///
/// **On drop**: the inner body is dropped, then the closers run on the runtime where it was made.
pub type CleanupBody<B> = ViewBody<ScopeBody<B>, Cleanup>;

impl<B> CleanupBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Wraps a body; it passes through unchanged as long as nothing is registered.
    pub fn new(body: B) -> Self {
        Self::answering(&unknown(), body)
    }

    /// Wraps the body of the answer to a request, which [`Ending`] then names.
    pub fn answering<R>(request: &Request<R>, body: B) -> Self {
        Self::under(Scope::answering(request, false), body)
    }
}

impl<T> ViewBody<T, Cleanup> {
    /// Adds an async closer. See [`Cleanup::defer`].
    #[track_caller]
    pub fn defer<F, Fut>(self, closer: F) -> Self
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        self.view.defer(closer);
        self
    }

    /// Adds a synchronous closer. See [`Cleanup::defer_sync`].
    #[track_caller]
    pub fn defer_sync(self, closer: impl FnOnce(Ending) + Send + 'static) -> Self {
        self.view.defer_sync(closer);
        self
    }

    /// The body's cleanup, for registering more while it streams.
    pub fn cleanup(&self) -> &Cleanup {
        &self.view
    }
}
