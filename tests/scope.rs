//! The owner of a response: every exit, with scripted bodies and no network.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bodyguard::{
    Cleanup, CleanupLayer, Disconnect, DisconnectLayer, Outcome, Supervisor, testing::Script,
};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::{Body, SizeHint};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, service_fn};

mod support;

type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

fn layer(supervisor: &Supervisor, log: &Log) -> CleanupLayer {
    let log = log.clone();
    CleanupLayer::new()
        .supervisor(supervisor)
        .on_end(move |report| note(&log, format!("report {}", report.outcome())))
}

/// Runs one request to its body's end; gives status, what arrived, and the log.
async fn run(response: Response<Script>, closer_fails: bool) -> (StatusCode, String, Vec<String>) {
    run_over(Version::HTTP_11, response, closer_fails).await
}

async fn run_over(
    version: Version,
    response: Response<Script>,
    closer_fails: bool,
) -> (StatusCode, String, Vec<String>) {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let (response, closer_log) = (Arc::new(Mutex::new(Some(response))), log.clone());
    let handler = service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let log = closer_log.clone();
        cleanup.defer(move |ending| async move {
            note(
                &log,
                format!("closer {} {}", ending.outcome(), ending.succeeded()),
            );
            if closer_fails {
                Err("commit failed".into())
            } else {
                Ok(())
            }
        });
        let response = response.lock().unwrap().take().unwrap();
        async move { Ok::<_, Infallible>(response) }
    });
    let response = layer(&supervisor, &log)
        .layer(handler)
        .oneshot(Request::builder().version(version).body(()).unwrap())
        .await
        .unwrap();
    let status = response.status();
    let mut body = std::pin::pin!(response.into_body());
    let mut seen = String::new();
    while !body.is_end_stream() {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) if frame.is_trailers() => seen.push_str("|trailers"),
            Some(Ok(frame)) => {
                seen.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
            }
            Some(Err(error)) => {
                let cause = std::error::Error::source(&error).unwrap();
                seen.push_str(&format!("|error: {cause}"));
                break;
            }
        }
    }
    assert_eq!(supervisor.active(), 0);
    let log = log.lock().unwrap().clone();
    (status, seen, log)
}

fn ok(body: Script) -> Response<Script> {
    Response::new(body)
}

#[tokio::test(start_paused = true)]
async fn a_whole_body_is_complete_before_its_end_is_seen() {
    for body in [
        Script::new().data("ab").pending().data("c"),
        Script::new().data("ab").data("c").end_hint(),
        Script::new().data("abc").hint(SizeHint::with_exact(3)),
        Script::new()
            .pending()
            .data("abc")
            .hint(SizeHint::with_exact(3)),
        Script::new()
            .data("a")
            .data("bc")
            .hint(SizeHint::with_exact(3)),
    ] {
        let probe = body.probe();
        let (status, seen, log) = run(ok(body), false).await;
        assert_eq!((status, seen.as_str()), (StatusCode::OK, "abc"));
        assert_eq!(log, ["closer Complete true", "report Complete"]);
        assert!(probe.is_dropped() && !probe.was_polled_after_end());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_closer_breaks_a_streaming_body() {
    for body in [
        Script::new().data("ab").pending().data("c"),
        Script::new().data("ab").trailers(http::HeaderMap::new()),
        Script::new()
            .pending()
            .data("ab")
            .data("c")
            .hint(SizeHint::with_exact(3)),
    ] {
        let (status, seen, log) = run(ok(body), true).await;
        assert_eq!(status, StatusCode::OK);
        assert!(seen.ends_with("|error: commit failed"), "{seen}");
        assert!(!seen.contains("abc") || seen.starts_with("abc|"), "{seen}");
        assert_eq!(log, ["closer Complete true", "report Failed"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_closer_before_the_head_is_a_500() {
    let status = |status: u16, body: Script| {
        let mut response = ok(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    };
    for response in [
        status(201, Script::new().end_hint()),
        status(204, Script::new()),
        status(303, Script::new().hint(SizeHint::with_exact(0))),
        status(200, Script::new().data("{}").hint(SizeHint::with_exact(2))),
    ] {
        let (status, seen, log) = run(response, true).await;
        assert_eq!(
            (status, seen.as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, "")
        );
        assert_eq!(log, ["closer Complete true", "report Failed"]);
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_status_that_was_sent_is_reported() {
    for fails in [false, true] {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let seen = statuses.clone();
        let handler = service_fn(move |request: Request<()>| {
            let commit = Cleanup::of(&request).unwrap();
            commit.defer(|_| async { Err("commit failed".into()) });
            let answer = if fails {
                Err("refused")
            } else {
                Ok(Response::new(Script::new().end_hint()))
            };
            std::future::ready(answer)
        });
        let layer = CleanupLayer::new().on_end(move |end| seen.lock().unwrap().push(end.status()));
        let answer = layer.layer(handler).oneshot(Request::new(())).await;
        // Whoever gets the error answers for it, with a status of their own.
        let sent = answer.ok().map(|response| response.status());
        assert_eq!(sent, (!fails).then_some(StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(*statuses.lock().unwrap(), [sent]);
    }
}

/// hyper sends an empty 500 in place of an interim status; 101 is final.
#[tokio::test(start_paused = true)]
async fn an_interim_status_is_no_success() {
    for (status, succeeded) in [
        (100, false),
        (103, false),
        (101, true),
        (200, true),
        (304, true),
    ] {
        let seen = Arc::new(Mutex::new(None));
        let told = seen.clone();
        let handler = service_fn(move |request: Request<()>| {
            let told = told.clone();
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer_sync(move |ending| *told.lock().unwrap() = Some(ending.succeeded()));
            let response = Response::builder().status(status);
            std::future::ready(Ok::<_, Infallible>(
                response.body(Script::new().end_hint()).unwrap(),
            ))
        });
        let answer = CleanupLayer::new()
            .layer(handler)
            .oneshot(Request::new(()))
            .await;
        drop(answer);
        assert_eq!(*seen.lock().unwrap(), Some(succeeded), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn short_and_long_bodies_are_broken() {
    let short = ok(Script::new().data("ab").hint(SizeHint::with_exact(3)));
    let (_, seen, log) = run(short, false).await;
    assert_eq!(seen, "ab|error: body ended after 2 of 3 promised bytes");
    assert_eq!(log, ["closer Truncated false", "report Truncated"]);

    let long = ok(Script::new()
        .pending()
        .data("abcd")
        .hint(SizeHint::with_exact(3)));
    let (_, seen, log) = run(long, false).await;
    assert_eq!(seen, "|error: body gave 4 bytes where 3 were promised");
    assert_eq!(log, ["closer Failed false", "report Failed"]);
}

/// HTTP/2 goes on behind the promised length, and so do those who read it.
#[tokio::test(start_paused = true)]
async fn an_empty_frame_at_the_promised_length_hides_nothing_behind_it() {
    let abc = || Script::new().hint(SizeHint::with_exact(3)).data("abc");
    let empties = || abc().data("").data("");
    let pending = || abc().pending().data("").pending();
    let trailers = HeaderMap::new;
    let late = || empties().pending().error("late");
    for (body, status, seen) in [
        (empties().trailers(trailers()), 200, "abc|trailers"),
        (pending().trailers(trailers()), 200, "abc|trailers"),
        (empties().error("late"), 500, ""),
        (late(), 200, "|error: late"),
        (pending().error("late"), 200, "|error: late"),
        (empties().end_hint(), 200, "abc"),
        (empties(), 200, "abc"),
        (empties().data("d"), 500, ""),
    ] {
        let ran = run_over(Version::HTTP_2, ok(body), false).await;
        assert_eq!((ran.0.as_u16(), ran.1.as_str()), (status, seen));
        let complete = seen.starts_with("abc");
        let closer = if complete {
            "closer Complete true"
        } else {
            "closer Failed false"
        };
        assert_eq!(ran.2[0], closer);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_body_comes_after_the_teardown_and_the_gap() {
    let body = Script::new().data("ab").error("disk");
    let (_, seen, log) = run(ok(body), false).await;
    assert_eq!(seen, "ab|error: disk");
    assert_eq!(log, ["closer Failed false", "report Failed"]);
}

#[tokio::test(start_paused = true)]
async fn layers_in_any_order_share_one_scope() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let inner_log = log.clone();
    let handler = service_fn(move |request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let disconnect = Disconnect::of(&request).unwrap();
        let log = inner_log.clone();
        cleanup.defer_sync(move |ending| note(&log, ending.outcome().as_str()));
        async move {
            assert!(!disconnect.is_gone());
            Ok::<_, Infallible>(ok(Script::new().data("a").data("b")))
        }
    });
    let service = DisconnectLayer::new()
        .supervisor(&supervisor)
        .layer(layer(&Supervisor::new(), &log).layer(handler));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(supervisor.active(), 1);
    assert_eq!(response.collect().await.unwrap().to_bytes(), "ab");
    assert_eq!(*log.lock().unwrap(), ["Complete", "report Complete"]);
    assert_eq!(supervisor.active(), 0);
}

/// Clocks are read where somebody asks: also if that is a layer further in than the one that opened.
#[tokio::test(start_paused = true)]
async fn a_hook_of_an_inner_layer_is_told_how_long_it_took() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let handler = service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Script::new().data("a")))
    });
    let inner = DisconnectLayer::new().on_end(move |end| {
        let times = [end.first_frame, end.duration, end.teardown];
        seen.lock().unwrap().push(times.map(|time| time.is_some()));
    });
    let service = CleanupLayer::new().layer(inner.layer(handler));
    let response = service.oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(*times.lock().unwrap(), [[true; 3]]);
}

#[tokio::test(start_paused = true)]
async fn dropping_at_every_point_tears_down_once() {
    for polls in 0..6 {
        let (supervisor, log) = (Supervisor::new(), Log::default());
        let closer_log = log.clone();
        let body = Script::new().data("a").pending().data("b").data("c");
        let probe = body.probe();
        let body = Arc::new(Mutex::new(Some(body)));
        let handler = service_fn(move |request: Request<()>| {
            let cleanup = Cleanup::of(&request).unwrap();
            for number in 1..=3 {
                let (log, probe) = (closer_log.clone(), probe.clone());
                cleanup.defer(move |ending| async move {
                    assert!(probe.is_dropped());
                    note(&log, format!("{number} {}", ending.outcome()));
                    Ok(())
                });
            }
            let body = body.lock().unwrap().take().unwrap();
            async move { Ok::<_, Infallible>(ok(body)) }
        });
        let mut service = layer(&supervisor, &log).layer(handler);
        let response = service.call(Request::new(())).await.unwrap();
        let mut body = Box::pin(response.into_body());
        let waker = futures_util::task::noop_waker();
        let mut cx = std::task::Context::from_waker(&waker);
        let mut over = false;
        for _ in 0..polls {
            over = matches!(
                body.as_mut().poll_frame(&mut cx),
                std::task::Poll::Ready(None)
            );
        }
        drop(body);
        support::in_turns(|| supervisor.active() == 0).await;
        let outcome = if over {
            Outcome::Complete
        } else {
            Outcome::Dropped
        };
        let expected = [
            format!("3 {outcome}"),
            format!("2 {outcome}"),
            format!("1 {outcome}"),
            format!("report {outcome}"),
        ];
        assert_eq!(*log.lock().unwrap(), expected, "after {polls} polls");
    }
}

/// The report comes before the release: whoever waits for the supervisor misses none.
#[tokio::test]
async fn the_scope_is_active_until_it_has_been_reported() {
    for read in [true, false] {
        let (supervisor, log) = (Supervisor::new(), Log::default());
        let (active, noted) = (supervisor.clone(), log.clone());
        let layer = CleanupLayer::new()
            .supervisor(&supervisor)
            .on_end(move |_| note(&noted, format!("{} active", active.active())));
        let handler = service_fn(|request: Request<()>| async move {
            Cleanup::of(&request).unwrap().defer(|_| async {
                tokio::task::yield_now().await;
                Ok(())
            });
            Ok::<_, Infallible>(ok(Script::new().data("a")))
        });
        let response = layer
            .layer(handler)
            .oneshot(Request::new(()))
            .await
            .unwrap();
        if read {
            response.into_body().collect().await.unwrap();
        } else {
            drop(response);
            support::in_turns(|| supervisor.active() == 0).await;
        }
        assert_eq!(*log.lock().unwrap(), ["1 active"], "read: {read}");
        assert_eq!(supervisor.active(), 0);
    }
}
