//! A commit in a closer: what the client sees when it fails, and when it must not even be tried.

mod support;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Redirect},
    routing::{any, get},
};
use bodyguard::{
    BodyError, Cleanup, CleanupLayer, Outcome, Stack, cleanup::CleanupBody, testing::Script,
};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::SizeHint;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use support::{Listening, Seen, http1, http2};

async fn failing_commit(cleanup: &Cleanup) {
    cleanup.defer(|ending| async move {
        assert!(ending.succeeded(), "nothing else has failed");
        tokio::task::yield_now().await;
        Err("commit failed".into())
    });
}

fn trailers() -> HeaderMap {
    [("a".parse().unwrap(), "b".parse().unwrap())]
        .into_iter()
        .collect()
}

/// What the handler answers before its commit fails.
fn answer(kind: &str) -> Response<Body> {
    let stream = |script: Script| Response::new(Body::new(script));
    let two_frames = || Script::new().data("ab").pending().data("c");
    match kind {
        "chunked" => stream(two_frames()),
        "ready-chunked" => stream(Script::new().data("abc")),
        "length" => {
            let mut response = stream(two_frames());
            response.headers_mut().insert("content-length", 3.into());
            response
        }
        "exact-hint" => stream(two_frames().exact_hint()),
        "end-hint" => stream(two_frames().end_hint()),
        "trailers" => stream(Script::new().data("abc").pending().trailers(trailers())),
        "created" => StatusCode::CREATED.into_response(),
        "no-content" => StatusCode::NO_CONTENT.into_response(),
        "redirect" => Redirect::to("/elsewhere").into_response(),
        "json" => Json(serde_json::json!({"saved": true})).into_response(),
        "not-modified" => StatusCode::NOT_MODIFIED.into_response(),
        other => panic!("no answer {other}"),
    }
}

const STREAMS: [&str; 6] = [
    "chunked",
    "ready-chunked",
    "length",
    "exact-hint",
    "end-hint",
    "trailers",
];
const BEFORE_THE_HEAD: [&str; 5] = ["created", "no-content", "redirect", "json", "not-modified"];

/// The server answers in one way only, so that the clients of `support` can ask for `/`.
async fn serve(kind: &'static str, compressed: bool) -> Listening {
    let handler = any(move |cleanup: Cleanup| async move {
        failing_commit(&cleanup).await;
        answer(kind)
    });
    let app = Router::new().route("/", handler);
    let app = if compressed {
        app.layer(Stack::new())
    } else {
        app.layer(CleanupLayer::new())
    };
    Listening::start(app, false).await
}

async fn ask(server: &Listening, http_2: bool, method: &str) -> Seen {
    if http_2 {
        http2(server.addr, method).await
    } else {
        http1(server.addr, "1.1", method).await
    }
}

#[tokio::test]
async fn a_streaming_client_never_sees_a_whole_body() {
    for kind in STREAMS {
        for stack in [false, true] {
            let server = serve(kind, stack).await;
            for http_2 in [false, true] {
                let seen = ask(&server, http_2, "GET").await;
                assert_eq!(seen.status, 200, "{kind}: {seen:?}");
                assert!(!seen.whole, "{kind}, http_2 {http_2}: {seen:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_response_that_is_whole_with_its_head_becomes_a_500() {
    for kind in BEFORE_THE_HEAD {
        for stack in [false, true] {
            let server = serve(kind, stack).await;
            for http_2 in [false, true] {
                let seen = ask(&server, http_2, "POST").await;
                assert_eq!(
                    (seen.status, seen.data.as_str()),
                    (500, ""),
                    "{kind}: {seen:?}"
                );
                assert!(
                    seen.whole && !seen.head.contains("location"),
                    "{kind}: {seen:?}"
                );
            }
        }
    }
}

/// HEAD of a stream ends at its head as well.
#[tokio::test]
async fn head_becomes_a_500() {
    let server = serve("chunked", false).await;
    for http_2 in [false, true] {
        assert_eq!(ask(&server, http_2, "HEAD").await.status, 500);
    }
}

/// Bodies of no bytes, with a scope of their own whose commit fails.
fn own_scope(kind: &str) -> CleanupBody<Body> {
    let body = match kind {
        "empty" => Body::new(Empty::<Bytes>::new()),
        "full" => Body::new(Full::<Bytes>::from("")),
        // Its size says so, and nothing else.
        _ => Body::new(Script::new().hint(SizeHint::with_exact(0))),
    };
    CleanupBody::new(body).defer(|_| async {
        tokio::task::yield_now().await;
        Err("commit failed".into())
    })
}

const OWN_SCOPE: [&str; 3] = ["empty", "full", "sized"];

#[tokio::test]
async fn an_empty_body_with_a_scope_of_its_own_under_a_layer_is_no_clean_answer() {
    for kind in OWN_SCOPE {
        for status in [200, 204, 304] {
            let (reports, mut report) = tokio::sync::mpsc::unbounded_channel();
            let layer = CleanupLayer::new().on_end(move |end| drop(reports.send(end.clone())));
            let handler = get(move || async move {
                let status = StatusCode::from_u16(status).unwrap();
                (status, own_scope(kind)).into_response()
            });
            let app = Router::new().route("/", handler).layer(layer);
            let server = Listening::start(app, false).await;
            for http_2 in [false, true] {
                let seen = ask(&server, http_2, "GET").await;
                // HTTP/2 could have had trailers, and so has its head.
                let broken = http_2 && status == 200 && !seen.whole;
                assert!(
                    seen.status == 500 || broken,
                    "{kind} {status} http_2 {http_2}: {seen:?}"
                );
                let report = support::within(report.recv()).await.unwrap();
                assert_eq!(report.outcome(), Outcome::Failed, "{kind} {status}");
                assert_eq!(report.errors.len(), 1, "{kind} {status}: {report:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_empty_body_with_a_scope_of_its_own_and_no_layer_is_a_broken_transfer() {
    for kind in OWN_SCOPE {
        let service =
            tower::service_fn(move |_: http::Request<hyper::body::Incoming>| async move {
                Ok::<_, Infallible>(Response::new(own_scope(kind)).map(box_it))
            });
        let server = Listening::start(service, false).await;
        for http_2 in [false, true] {
            let seen = ask(&server, http_2, "GET").await;
            assert_eq!(seen.status, 200);
            assert!(!seen.whole, "{kind} http_2 {http_2}: {seen:?}");
        }
    }
}

fn box_it(body: CleanupBody<Body>) -> UnsyncBoxBody<Bytes, BodyError> {
    body.boxed_unsync()
}

/// Where someone else answers for a handler that failed, the closer is told not to commit.
#[tokio::test]
async fn what_is_answered_for_rolls_back() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let handler = get(move |Path(kind): Path<String>, cleanup: Cleanup| {
        let log = log.clone();
        let name = kind.clone();
        cleanup.defer(move |ending| async move {
            let status = ending.status().unwrap().as_u16();
            log.lock().unwrap().push((name, status, ending.succeeded()));
            Ok(())
        });
        async move {
            match kind.as_str() {
                "error" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                "slow" => std::future::pending().await,
                "panic" => panic!("scripted"),
                "client-error" => StatusCode::CONFLICT.into_response(),
                _ => "fine".into_response(),
            }
        }
    });
    let caught = || {
        tower_http::catch_panic::CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            // Someone who answers for a panic with a success.
            Response::new(Body::from("nothing happened"))
        })
    };
    let slow = || {
        tower_http::timeout::TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            Duration::from_millis(20),
        )
    };
    // Once inside the only scope layer, once between two of them.
    for joined in [false, true] {
        told.lock().unwrap().clear();
        let mut app = Router::new().route("/{kind}", handler.clone());
        if joined {
            app = app.layer(CleanupLayer::new());
        }
        let app = app.layer(slow()).layer(caught()).layer(CleanupLayer::new());
        for (kind, status, succeeded) in [
            ("fine", 200, true),
            ("error", 500, false),
            ("client-error", 409, false),
            ("slow", 408, false),
            // A lone outer layer sees a fine answer only; the joined one saw the handler go.
            ("panic", 200, !joined),
        ] {
            let request = http::Request::builder().uri(format!("/{kind}"));
            let request = request.body(Body::empty()).unwrap();
            let response = tower::ServiceExt::oneshot(app.clone(), request)
                .await
                .unwrap();
            let (parts, body) = response.into_parts();
            assert_eq!(parts.status, status, "{kind}");
            axum::body::to_bytes(body, 1000).await.unwrap();
            let seen = told.lock().unwrap().pop().unwrap();
            assert_eq!(
                seen,
                (kind.to_owned(), status, succeeded),
                "joined {joined}"
            );
        }
    }
}

/// Frames sent just before a late failure arrive: of the body's own error, and of a failed commit.
#[tokio::test]
async fn what_was_sent_before_a_late_failure_arrives() {
    for commit in [false, true] {
        let handler = get(move |cleanup: Cleanup| async move {
            if commit {
                failing_commit(&cleanup).await;
                return Body::new(Script::new().data("sent before"));
            }
            Body::new(Script::new().data("sent before").error("late"))
        });
        let app = Router::new().route("/", handler).layer(CleanupLayer::new());
        let server = Listening::start(app, false).await;
        for http_2 in [false, true] {
            let mut arrived = 0;
            for _ in 0..100 {
                let seen = ask(&server, http_2, "GET").await;
                assert!(!seen.whole);
                arrived += usize::from(seen.data == "sent before");
            }
            println!("commit fails: {commit}, HTTP/2: {http_2}: {arrived} of 100 arrived");
            assert_eq!(arrived, 100);
        }
    }
}
