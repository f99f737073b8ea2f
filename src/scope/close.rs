//! Awaited close: for code that consumes a response inside the process and leaves it early.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Response, response::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::machine::Scope;
use crate::{error::Cause, outcome::EndReport};

/// A response's way back to its scope, in its extensions: it survives boxing and foreign wrappers.
#[derive(Clone, Debug)]
pub(super) struct ResponseScope(Arc<Scope>);

impl ResponseScope {
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self(scope)
    }

    pub(super) fn take(extensions: &mut http::Extensions) -> Option<Arc<Scope>> {
        extensions.remove::<Self>().map(|Self(scope)| scope)
    }
}

/// Closes a response and waits for its teardown.
///
/// The body is dropped first, so a response that was not consumed ends as `Dropped`; one that was
/// is reported as it ended. `Ok(None)` for a response without a scope, or whose scope nobody had asked
/// for by the time of the head: it is just dropped.
///
/// # Errors
/// [`CloseError`] if a task, a closer or the body failed; it carries the report.
///
/// **On drop**: the teardown goes on; nobody is told its result.
pub async fn close<B>(response: Response<B>) -> Result<Option<Arc<EndReport>>, CloseError> {
    let (parts, body) = response.into_parts();
    close_parts(parts, body).await
}

async fn close_parts<B>(parts: Parts, body: B) -> Result<Option<Arc<EndReport>>, CloseError> {
    let Some(ResponseScope(scope)) = parts.extensions.get::<ResponseScope>().cloned() else {
        return Ok(None);
    };
    // Whoever closes a response wants it to end.
    scope.end_when_left();
    drop(body);
    drop(parts);
    scope.done().await;
    match scope.report() {
        Some(report) if report.errors.is_empty() => Ok(Some(report)),
        Some(report) => Err(CloseError { report }),
        None => Ok(None),
    }
}

/// Guards a response for a loop that may break: iterate its body, then close it.
///
/// ```
/// # use bodyguard::closing;
/// # use http_body_util::{BodyExt, Full};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// # let response = http::Response::new(Full::new(bytes::Bytes::from("a")));
/// let mut response = closing(response);
/// while let Some(frame) = response.frame().await {
///     let _frame = frame?;
///     break;
/// }
/// response.close().await?;
/// # Ok::<(), bodyguard::BoxError>(())
/// # }).unwrap();
/// ```
///
/// **On drop** without [`Closing::close`]: the response is dropped; its teardown is not awaited.
pub fn closing<B>(response: Response<B>) -> Closing<B> {
    let (parts, body) = response.into_parts();
    Closing { parts, body }
}

/// A response under [`closing`]: an `http_body::Body` that can be closed and waited for.
#[pin_project]
#[derive(Debug)]
#[must_use = "close it, or it is just dropped"]
pub struct Closing<B> {
    parts: Parts,
    #[pin]
    body: B,
}

impl<B> Closing<B> {
    /// The response's head.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Drops the body and waits for the teardown. See [`close`].
    ///
    /// # Errors
    /// As [`close`].
    pub async fn close(self) -> Result<Option<Arc<EndReport>>, CloseError> {
        close_parts(self.parts, self.body).await
    }
}

impl<B: Body> Body for Closing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The cleanup of a closed response failed; the report says what.
#[derive(Clone, Debug)]
pub struct CloseError {
    report: Arc<EndReport>,
}

impl CloseError {
    /// How the response ended.
    pub fn report(&self) -> &EndReport {
        &self.report
    }

    /// The same, to be kept.
    pub fn into_report(self) -> Arc<EndReport> {
        self.report
    }

    /// Every failure, in the order they were seen.
    pub fn errors(&self) -> &[Cause] {
        &self.report.errors
    }
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "response closed with {} failures",
            self.report.errors.len()
        )
    }
}

impl Error for CloseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let first = self.report.errors.first()?;
        Some(&**first)
    }
}
