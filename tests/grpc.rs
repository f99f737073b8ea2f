//! Calls that fail with an HTTP status of 200: gRPC tells it in trailers, or in the head.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bodyguard::{Cleanup, Outcome, Stack, cleanup::CleanupBody, testing::Script};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

fn status(status: &str) -> HeaderMap {
    let name = "grpc-status".parse().unwrap();
    [(name, status.parse().unwrap())].into_iter().collect()
}

/// Whether the closers were told that it succeeded, and the hook.
async fn call(stack: Stack, answer: Response<Script>, version: Version) -> (Vec<bool>, Outcome) {
    let (told, reported) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
    let (seen, report, answer) = (told.clone(), reported.clone(), Mutex::new(Some(answer)));
    let stack = stack.on_end(move |end| *report.lock().unwrap() = Some(end.clone()));
    let service = stack.layer(service_fn(move |request: Request<()>| {
        let seen = seen.clone();
        Cleanup::of(&request)
            .unwrap()
            .defer_sync(move |ending| seen.lock().unwrap().push(ending.succeeded()));
        let answer = answer.lock().unwrap().take().unwrap();
        std::future::ready(Ok::<_, Infallible>(answer))
    }));
    let mut request = Request::new(());
    *request.version_mut() = version;
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let report = reported.lock().unwrap().take().unwrap();
    let mut told = told.lock().unwrap().clone();
    told.push(report.ending.succeeded());
    (told, report.outcome())
}

fn streamed(script: Script) -> Response<Script> {
    Response::new(script)
}

fn head_only(head: HeaderMap, script: Script) -> Response<Script> {
    let mut response = Response::new(script);
    *response.headers_mut() = head;
    response
}

fn answers(code: &str) -> Vec<Response<Script>> {
    let message = || Script::new().data("message");
    vec![
        streamed(message().pending().trailers(status(code))),
        streamed(message().trailers(status(code))),
        streamed(Script::new().trailers(status(code))),
        // The length is known, and trailers follow it.
        streamed(message().pending().trailers(status(code)).exact_hint()),
        streamed(message().trailers(status(code)).exact_hint()),
        head_only(status(code), Script::new().end_hint()),
        head_only(status(code), Script::new()),
        head_only(status("0"), message().trailers(status(code))),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_not_committed() {
    for (code, succeeds) in [("0", true), ("5", false), ("13", false)] {
        for (at, answer) in answers(code).into_iter().enumerate() {
            let (told, outcome) = call(Stack::new(), answer, Version::HTTP_2).await;
            assert_eq!(told, [succeeds; 2], "{code} {at}");
            // The body is whole: that is another matter.
            assert_eq!(outcome, Outcome::Complete);
        }
    }
    let other = streamed(Script::new().data("a").trailers(HeaderMap::new()));
    let (told, _) = call(Stack::new(), other, Version::HTTP_2).await;
    assert_eq!(told, [true; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_rule_of_the_application_decides_alone() {
    for answer in answers("5") {
        let stack = Stack::new().succeeded_when(|outcome, _| outcome.is_complete());
        let (told, _) = call(stack, answer, Version::HTTP_2).await;
        assert_eq!(told, [true; 2]);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_layer_too() {
    let (tell, told) = std::sync::mpsc::channel();
    let body = Script::new().data("message").trailers(status("5"));
    let body = CleanupBody::new(body).defer(move |ending| async move {
        tell.send(ending.succeeded())?;
        Ok(())
    });
    body.collect().await.unwrap();
    assert_eq!(told.recv_timeout(Duration::ZERO), Ok(false));
}
