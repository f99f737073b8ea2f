//! Extractors and `IntoResponse` for axum.

use axum::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, request::Parts};

use crate::{
    Cleanup, Disconnect, MissingLayer, TaskGroup,
    disconnect::NotDetachable,
    scope::{MovableBody, ScopeBody, Standalone, View, ViewBody},
    task_group::{FrameBody, GroupBody, SpawnError},
};

/// 500, with the text; which is in the log as well (feature `tracing`).
impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        #[cfg(feature = "tracing")]
        crate::scope::quietly(|| {
            tracing::error!(target: "bodyguard", view = self.view(), layer = self.layer(), "{self}");
        });
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl IntoResponse for NotDetachable {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// 503: the response is ending, or has as many tasks as it may.
impl<T> IntoResponse for SpawnError<T> {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// Each view is extracted the same way; a missing layer answers 500 and names it.
macro_rules! extract {
    ($($view:ty),*) => {$(
        impl<S: Sync> FromRequestParts<S> for $view {
            type Rejection = MissingLayer;

            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
                Self::from_extensions(&parts.extensions)
            }
        }

        impl<S: Sync> OptionalFromRequestParts<S> for $view {
            type Rejection = std::convert::Infallible;

            async fn from_request_parts(
                parts: &mut Parts,
                _: &S,
            ) -> Result<Option<Self>, Self::Rejection> {
                Ok(Self::from_extensions(&parts.extensions).ok())
            }
        }
    )*};
}

extract!(Cleanup, Disconnect, TaskGroup);
#[cfg(feature = "bridge")]
extract!(crate::bridge::Bridge);

/// Our bodies are responses as they are, with status 200.
macro_rules! respond {
    ($($body:ty $(where $b:ident)?),*) => {$(
        impl$(<$b>)? IntoResponse for $body
        $(where
            $b: http_body::Body<Data = Bytes> + Send + 'static,
            $b::Error: Into<crate::BoxError>,)?
        {
            fn into_response(self) -> Response {
                Response::new(Body::new(self))
            }
        }
    )*};
}

respond!(FrameBody, GroupBody, MovableBody, ScopeBody<B> where B);

// These have a scope of their own, which the layers around have to know. One impl for each kind of body
// and not one for all: it says what data an inner body has to have.
impl<B, V> IntoResponse for ViewBody<ScopeBody<B>, V>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<crate::BoxError>,
    V: Standalone + Send + 'static,
{
    fn into_response(self) -> Response {
        self.into_http().map(Body::new)
    }
}

impl<V: Standalone + Send + 'static> IntoResponse for ViewBody<MovableBody, V> {
    fn into_response(self) -> Response {
        self.into_http().map(Body::new)
    }
}
