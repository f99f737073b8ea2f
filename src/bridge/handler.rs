//! axum: handlers written as blocking functions, and bodies and errors as responses.

use std::{fmt, future::Future, panic::Location, pin::Pin};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    handler::Handler,
    response::{IntoResponse, Response},
};

use super::{
    cx::Cx,
    error::{BridgeError, BridgeErrorKind},
    handle::Bridge,
    sync_body::SyncBody,
};

/// Makes an axum handler of a blocking function that runs on the request's thread.
///
/// The function is given the [`Cx`], and what one extractor gives it, if it takes one; a tuple of
/// extractors is one. They are extracted in async code, before the function is called.
///
/// ```
/// use axum::{Router, extract::{Path, Query}, routing::get};
/// use bodyguard::bridge::{BridgeError, BridgeLayer, Cx, sync_handler};
///
/// fn report(cx: &Cx, (Path(id), Query(q)): (Path<u32>, Query<Vec<(String, String)>>)) -> Result<String, BridgeError> {
///     let looked_up = cx.block_on(async move { id * 2 })?;
///     Ok(format!("{looked_up} {}", q.len()))
/// }
///
/// fn thread(_: &Cx) -> String {
///     format!("{:?}", std::thread::current().id())
/// }
///
/// let app: Router = Router::new()
///     .route("/report/{id}", get(sync_handler(report)))
///     .route("/thread", get(sync_handler(thread)))
///     .layer(BridgeLayer::new());
/// ```
///
/// # Errors
/// Without a [`BridgeLayer`](super::BridgeLayer) around it, and on a panic, it answers 500; when no
/// thread can be had, 503. The [`BridgeError`] is in the response's extensions, and in the log (feature
/// `tracing`).
#[track_caller]
pub fn sync_handler<F>(f: F) -> SyncHandler<F> {
    SyncHandler {
        f,
        at: Location::caller(),
    }
}

/// The handler made by [`sync_handler`].
#[derive(Clone)]
#[must_use = "a handler does nothing unless it is routed to"]
pub struct SyncHandler<F> {
    f: F,
    at: &'static Location<'static>,
}

impl<F> fmt::Debug for SyncHandler<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncHandler")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

// Or they are what the compiler proposes to whoever has an error in an async handler.
#[diagnostic::do_not_recommend]
impl<F, T, R, M, S> Handler<(M, T, R), S> for SyncHandler<F>
where
    F: Fn(&Cx, T) -> R + Clone + Send + Sync + 'static,
    T: FromRequest<S, M> + Send + 'static,
    R: IntoResponse,
    S: Send + Sync + 'static,
{
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, state: S) -> Self::Future {
        Box::pin(async move {
            let bridge = match Bridge::find(request.extensions()) {
                Ok(bridge) => bridge,
                Err(missing) => return missing.into_response(),
            };
            let extracted = match T::from_request(request, &state).await {
                Ok(extracted) => extracted,
                Err(rejection) => return rejection.into_response(),
            };
            let f = self.f;
            bridge
                .call_from(self.at, move |cx| f(cx, extracted).into_response())
                .await
                .unwrap_or_else(IntoResponse::into_response)
        })
    }
}

/// The same of a function that takes nothing of the request.
#[diagnostic::do_not_recommend]
impl<F, R, S> Handler<((), R), S> for SyncHandler<F>
where
    F: Fn(&Cx) -> R + Clone + Send + Sync + 'static,
    R: IntoResponse,
    S: Send + Sync + 'static,
{
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, state: S) -> Self::Future {
        // An extractor of nothing, so that the request is not kept while the function runs.
        let f = move |cx: &Cx, (): ()| (self.f)(cx);
        let handler = SyncHandler { f, at: self.at };
        Handler::<(_, (), R), S>::call(handler, request, state)
    }
}

/// Status 503 when no thread could be had, else 500; empty, but for the text of `Missing`.
///
/// The error is in the response's extensions, and in the log (feature `tracing`).
impl IntoResponse for BridgeError {
    fn into_response(self) -> Response {
        let text = (self.kind() == BridgeErrorKind::Missing).then(|| self.to_string());
        let (parts, body) = self.answer::<Body>().into_parts();
        match text {
            Some(text) => (parts.status, parts.extensions, text).into_response(),
            None => Response::from_parts(parts, body),
        }
    }
}

impl IntoResponse for SyncBody {
    fn into_response(self) -> Response {
        Response::new(Body::new(self))
    }
}
