//! Where other people's layers go: what reports say of their time-outs and caught panics.

use std::time::Duration;

use axum::{Router, body::Body, routing::get};
use bodyguard::{EndReport, Outcome, Stack};
use http::{Request, StatusCode};
use tokio::sync::mpsc;
use tower::ServiceExt;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer, trace::TraceLayer};

#[derive(Clone, Copy, Debug)]
enum Their {
    Inside,
    Outside,
}

async fn panics() {
    panic!("scripted")
}

/// What the client got, and how the response ended.
async fn ask(path: &str, their: Their) -> (StatusCode, Outcome, bool) {
    let (report, mut reports) = mpsc::unbounded_channel();
    let stack = Stack::new().on_end(move |end: &EndReport| drop(report.send(end.clone())));
    let app = Router::new()
        .route("/panic", get(panics))
        .route("/slow", get(std::future::pending::<()>));
    let timeout = Duration::from_millis(50);
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, timeout);
    let app = match their {
        Their::Inside => app
            .layer(timeout)
            .layer(CatchPanicLayer::new())
            .layer(TraceLayer::new_for_http())
            .layer(stack),
        Their::Outside => app
            .layer(stack)
            .layer(timeout)
            .layer(CatchPanicLayer::new())
            .layer(TraceLayer::new_for_http()),
    };
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let (head, body) = app.oneshot(request).await.unwrap().into_parts();
    axum::body::to_bytes(body, 1000).await.unwrap();
    let report = tokio::time::timeout(Duration::from_secs(20), reports.recv());
    let report = report.await.unwrap().unwrap();
    (head.status, report.outcome(), report.ending.succeeded())
}

#[tokio::test]
async fn a_time_out_inside_answers_and_one_outside_gives_up() {
    let status = StatusCode::REQUEST_TIMEOUT;
    let inside = ask("/slow", Their::Inside).await;
    assert_eq!(inside, (status, Outcome::Complete, false));
    let outside = ask("/slow", Their::Outside).await;
    assert_eq!(outside, (status, Outcome::Dropped, false));
}

#[tokio::test]
async fn a_panic_is_reported_as_one_if_it_is_caught_outside() {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let inside = ask("/panic", Their::Inside).await;
    assert_eq!(inside, (status, Outcome::Complete, false));
    let outside = ask("/panic", Their::Outside).await;
    assert_eq!(outside, (status, Outcome::Panicked, false));
}
