//! A body with closers, for use without a layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::Cleanup;
use crate::{
    BodyError, BoxError, Ending, TaskResult,
    scope::{Scope, ScopeBody, Sealed},
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
/// It knows neither method nor status: a response that the server sends without its body (HEAD,
/// 204, 304) is a dropped body here. Make it in the runtime that is to run its closers.
///
/// **On drop**: the inner body is dropped, then the closers run on that runtime.
#[pin_project]
#[must_use = "a body does nothing unless it is polled"]
pub struct CleanupBody<B> {
    #[pin]
    body: ScopeBody<B>,
    cleanup: Cleanup,
}

impl<B> CleanupBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    /// Wraps a body; it passes through unchanged as long as nothing is registered.
    pub fn new(body: B) -> Self {
        let scope: Arc<Scope> = Scope::standalone();
        Self {
            body: ScopeBody::standalone(scope.clone(), body),
            cleanup: Cleanup::through(scope),
        }
    }

    /// Adds an async closer. See [`Cleanup::defer`].
    #[track_caller]
    pub fn defer<F, Fut>(self, closer: F) -> Self
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = TaskResult> + Send + 'static,
    {
        self.cleanup.defer(closer);
        self
    }

    /// Adds a synchronous closer. See [`Cleanup::defer_sync`].
    #[track_caller]
    pub fn defer_sync(self, closer: impl FnOnce(Ending) + Send + 'static) -> Self {
        self.cleanup.defer_sync(closer);
        self
    }

    /// How long an error waits behind the last frame (10 ms).
    ///
    /// Under a layer its own [`error_gap`](crate::scope::ScopeLayer::error_gap), which says what it is for,
    /// comes on top.
    pub fn error_gap(self, gap: Duration) -> Self {
        self.cleanup.scope().set_error_gap(gap);
        self
    }

    /// The body as a response with status 200, known to the scope of the request it answers.
    ///
    /// The drain of that scope's supervisor then waits for these closers. As an axum response it is
    /// so by itself.
    pub fn into_http(self) -> http::Response<Self> {
        let scope = self.cleanup.scope().clone();
        let mut response = http::Response::new(self);
        Scope::announce_in(scope, response.extensions_mut());
        response
    }

    /// The body's cleanup, for registering more while it streams.
    pub fn cleanup(&self) -> &Cleanup {
        &self.cleanup
    }
}

impl<B> Body for CleanupBody<B>
where
    B: Body,
    B::Data: 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for CleanupBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CleanupBody")
            .field("body", &self.body)
            .finish()
    }
}
