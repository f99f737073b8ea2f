//! Heads of responses that carry no content: what they say of its length and coding.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::any,
};
use bodyguard::{Cleanup, Stack, testing::Script};
use futures_util::stream;
use http::{Method, Request, StatusCode, header::*};
use tower::{Layer, ServiceExt, service_fn};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Given {
    Nothing,
    Bytes(usize),
    Stream,
}

impl Given {
    fn body(self) -> Body {
        match self {
            Given::Nothing => Body::empty(),
            Given::Bytes(size) => Body::from("a".repeat(size)),
            Given::Stream => Body::from_stream(stream::iter([Ok::<_, std::io::Error>("abc")])),
        }
    }
}

/// The answer, as axum finishes it.
async fn head(
    method: &Method,
    accepts: &'static str,
    handler: impl Fn(Cleanup) -> Response + Clone + Send + Sync + 'static,
) -> Response {
    let handler = move |cleanup: Cleanup| std::future::ready(handler(cleanup));
    let app = Router::new().route("/", any(handler)).layer(Stack::new());
    let request = Request::builder()
        .method(method)
        .header(ACCEPT_ENCODING, accepts);
    app.oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn where_no_content_is_due_no_length_is_made_up() {
    use Given::{Bytes, Nothing, Stream};
    let (no_content, not_modified) = (StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED);
    let switching = StatusCode::SWITCHING_PROTOCOLS;
    for (method, status, given, length) in [
        // What GET would have given for a 200.
        (Method::GET, not_modified, Bytes(3), Some("3")),
        (Method::HEAD, not_modified, Bytes(3), Some("3")),
        (Method::GET, not_modified, Stream, None),
        // Nothing is no word on that.
        (Method::GET, not_modified, Nothing, None),
        (Method::HEAD, not_modified, Nothing, None),
        // RFC 9110, 8.6: not with these.
        (Method::GET, no_content, Nothing, None),
        (Method::GET, no_content, Bytes(3), None),
        (Method::HEAD, no_content, Bytes(3), None),
        (Method::GET, no_content, Stream, None),
        (Method::GET, switching, Nothing, None),
        // As ever.
        (Method::HEAD, StatusCode::OK, Bytes(3), Some("3")),
        (Method::GET, StatusCode::OK, Bytes(3), Some("3")),
        (Method::GET, StatusCode::OK, Nothing, Some("0")),
    ] {
        for used in [false, true] {
            let what = format!("{method} {status} {given:?} {used}");
            let response = head(&method, "identity", move |cleanup| {
                if used {
                    cleanup.defer_sync(|_| ());
                }
                (status, given.body()).into_response()
            });
            let response = response.await;
            let said = response.headers().get(CONTENT_LENGTH);
            let said = said.map(|value| value.to_str().unwrap());
            assert_eq!(said, length, "{what}");
        }
    }
}

/// A 304 speaks of the encoded form, whose length is not known.
#[tokio::test]
async fn the_length_of_the_plain_form_is_not_that_of_the_encoded_one() {
    for method in [Method::GET, Method::HEAD] {
        let answer = |_| {
            let typed = [(CONTENT_TYPE, "text/plain")];
            (StatusCode::NOT_MODIFIED, typed, Given::Bytes(9_000).body()).into_response()
        };
        let response = head(&method, "gzip", answer).await;
        assert_eq!(response.headers()[VARY], "accept-encoding");
        assert!(!response.headers().contains_key(CONTENT_LENGTH), "{method}");
    }
}

/// What comes in the place of a response that failed is the same to GET and HEAD.
#[tokio::test]
async fn a_failure_before_the_head_has_no_coding() {
    for method in [Method::GET, Method::HEAD] {
        let answer = |cleanup: Cleanup| {
            cleanup.defer(|_| async { Err("commit failed".into()) });
            Given::Bytes(9_000).body().into_response()
        };
        let response = head(&method, "gzip", answer).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers();
        assert_eq!(headers[CONTENT_LENGTH], "0", "{method}");
        assert_eq!(headers.len(), 1, "{method}: {headers:?}");
    }
}

/// Without axum, which does it itself: hyper would not ask a body that is over.
#[tokio::test]
async fn the_answer_to_head_says_how_long_that_to_get_is() {
    let (ok, not_modified) = (StatusCode::OK, StatusCode::NOT_MODIFIED);
    for (status, said, length, expected) in [
        (ok, None, 3, Some("3")),
        (ok, Some((CONTENT_LENGTH, "7")), 3, Some("7")),
        (ok, Some((TRANSFER_ENCODING, "chunked")), 3, None),
        (ok, None, 0, None),
        // It may go without, and what it has may be nothing (RFC 9110, 15.4.5).
        (not_modified, None, 3, None),
    ] {
        let service = service_fn(move |_: Request<()>| {
            let body = Script::new().data("a".repeat(length)).exact_hint();
            let mut response = http::Response::new(body);
            *response.status_mut() = status;
            if let Some((name, value)) = &said {
                let value = http::HeaderValue::from_static(value);
                response.headers_mut().insert(name, value);
            }
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let request = Request::builder().method(Method::HEAD).body(()).unwrap();
        let response = Stack::new().layer(service).oneshot(request).await.unwrap();
        let told = response.headers().get(CONTENT_LENGTH);
        let told = told.map(|value| value.to_str().unwrap());
        assert_eq!(told, expected, "{status} {length}");
    }
}
