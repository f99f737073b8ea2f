//! Compression inside of a `Stack`: its options are handed out, and the request's terms stay those of who asked.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
};
use bodyguard::{CompressionLayer, Stack};
use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;

fn text() -> String {
    "some text ".repeat(100)
}

/// The answer to a client that accepts this: its coding, and what it varies by.
async fn ask(app: &Router, accepts: &str) -> (StatusCode, Option<String>, Option<String>) {
    let request = Request::builder().header(header::ACCEPT_ENCODING, accepts);
    let request = request.body(Body::empty()).unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name| {
        let value = head.headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let coding = header(header::CONTENT_ENCODING);
    assert_eq!(body.starts_with(&[0x1f, 0x8b]), coding.is_some());
    (head.status, coding, header(header::VARY))
}

/// The options further in win, as those of other layers do.
#[tokio::test]
async fn what_is_encoded_inside_a_stack_is_by_the_inner_options() {
    // So small, what is padded may be larger than plain.
    let default = || CompressionLayer::new().random_padding(0);
    let stack = |layer| Stack::new().compression(layer);
    for (outer, inner, encoded) in [
        (default(), default().min_size(1), true),
        (default().min_size(1), default(), false),
        (default().min_size(1), default().gzip(false), false),
        (default().gzip(false), default().min_size(1), true),
    ] {
        for stacked in [true, false] {
            let app = Router::new().fallback(|| async { "a ".repeat(60) });
            let app = match stacked {
                true => app.layer(stack(inner.clone())),
                false => app.layer(inner.clone()),
            };
            let request = Request::builder().header("accept-encoding", "gzip");
            let request = request.body(Body::empty()).unwrap();
            let app = app.layer(stack(outer.clone()));
            let (head, body) = app.oneshot(request).await.unwrap().into_parts();
            assert_eq!(head.headers.contains_key("content-encoding"), encoded);
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(body.starts_with(b"a a "), !encoded);
            assert_eq!(head.headers["content-length"], body.len().to_string());
        }
    }
}

/// A cache between the two answers others by what it has kept, extensions and all.
#[tokio::test]
async fn a_response_kept_in_between_serves_each_client_in_its_coding() {
    for first in ["gzip", "identity", ""] {
        let kept = Arc::new(Mutex::new(None::<http::Response<Bytes>>));
        let cache = from_fn(move |request: Request, next: Next| {
            let kept = kept.clone();
            async move {
                let hit = kept.lock().unwrap().clone();
                if let Some(hit) = hit {
                    return hit.map(Body::from);
                }
                let (head, body) = next.run(request).await.into_parts();
                assert_eq!(head.headers[header::VARY], "accept-encoding");
                let body = body.collect().await.unwrap().to_bytes();
                let response = Response::from_parts(head, body);
                *kept.lock().unwrap() = Some(response.clone());
                response.map(Body::from)
            }
        });
        let app = Router::new().fallback(|| async { text() });
        let app = app.layer(CompressionLayer::new()).layer(cache);
        let app = app.layer(Stack::new());
        for accepts in [first, "gzip", "identity", "gzip;q=0", "x-gzip", ""] {
            let (status, coding, vary) = ask(&app, accepts).await;
            let expected = matches!(accepts, "gzip" | "x-gzip").then(|| "gzip".to_owned());
            assert_eq!((status, coding), (StatusCode::OK, expected), "{accepts:?}");
            assert_eq!(vary.as_deref(), Some("accept-encoding"));
        }
    }
}

/// A handler that asks a service of its own, on behalf of its request, asks for what it likes itself.
#[tokio::test]
async fn what_a_sub_request_accepts_is_not_what_the_client_does() {
    for asked in [None, Some("gzip"), Some("identity")] {
        let inner = Router::new().fallback(|| async { text() });
        let inner = inner.layer(CompressionLayer::new());
        let handler = move |request: Request| async move {
            let mut asking = Request::new(Body::empty());
            *asking.extensions_mut() = request.extensions().clone();
            if let Some(asked) = asked {
                let headers = asking.headers_mut();
                headers.insert(header::ACCEPT_ENCODING, asked.parse().unwrap());
            }
            inner.oneshot(asking).await.unwrap()
        };
        let app = Router::new().fallback(handler).layer(Stack::new());
        assert_eq!(ask(&app, "gzip").await.1.as_deref(), Some("gzip"));
        assert_eq!(ask(&app, "identity").await.1, None);
    }
}

/// What no layer has on offer is refused if one of them is strict.
#[tokio::test]
async fn a_strict_layer_refuses_what_the_other_has_not() {
    let strict = |strict| CompressionLayer::new().strict(strict);
    for (inner, outer) in [(false, false), (true, false), (false, true), (true, true)] {
        let app = Router::new().fallback(|| async { text() });
        let app = app.layer(strict(inner).gzip(false));
        let app = app.layer(Stack::new().compression(strict(outer)));
        for (accepts, served) in [
            ("gzip", true),
            ("identity", true),
            ("gzip, identity;q=0", !inner && !outer),
            ("identity;q=0", !inner && !outer),
        ] {
            let (status, coding, _) = ask(&app, accepts).await;
            assert_eq!(
                status == StatusCode::OK,
                served,
                "{inner} {outer} {accepts}"
            );
            assert_eq!(served, status != StatusCode::NOT_ACCEPTABLE);
            assert_eq!(coding, None);
        }
    }
}
