//! A body fails with all that is known to have failed, not only with what failed first.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request},
    response::Response,
    routing::get,
};
use bodyguard::{
    BodyError, Cause, Cleanup, Outcome, Stack, TaskGroup, TaskGroupBody, TaskResult, close,
    compression::CompressionLayer,
    scope::{Failure, FailureKind, FailurePolicy},
    task_group::{FrameSender, SourceError, Sources},
    testing::Script,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::support::{App, body_error, boom, drain, messages, within};

fn texts(error: &BodyError) -> Vec<String> {
    let text = |cause: &Cause| match cause.downcast_ref().map(Failure::kind) {
        Some(FailureKind::Panicked { message, .. }) => format!("panic: {message}"),
        _ => cause.to_string(),
    };
    error.causes().iter().map(text).collect()
}

#[derive(Debug)]
struct Second;

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("second")
    }
}

impl std::error::Error for Second {}

/// Members that fail in turn: the host, on that a task that is told, then one that panics.
async fn fail_in_turn(group: TaskGroup, tx: FrameSender) -> TaskResult {
    group.spawn_graceful(|cancel| async move {
        cancel.cancelled().await;
        Err(Second.into())
    })?;
    group.spawn_graceful(|cancel| async move {
        cancel.cancelled().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        panic!("third")
    })?;
    group.spawn(std::future::pending())?;
    tx.send("half").await?;
    Err(boom("first"))
}

#[tokio::test(start_paused = true)]
async fn siblings_that_fail_while_they_are_cancelled_are_causes_too() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| fail_in_turn(tasks, tx))
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    let error = error.expect("half of it looks whole");
    assert_eq!(text, "half");
    assert_eq!(texts(&error), ["first", "second", "panic: third"]);
    assert_eq!(error.cause().to_string(), "first");
    assert!(error.downcast_ref::<Second>().is_some());
    assert_eq!(error.to_string(), "response body failed (3 causes)");
    let told = format!("{error:#}");
    let begins = "response body failed: first (also: second; task at ";
    assert!(told.starts_with(begins), "{told}");
    // They are those of the report, and no copies.
    let report = app.report().await;
    assert_eq!(report.errors.len(), 3);
    for (cause, error) in error.causes().iter().zip(&report.errors) {
        assert!(Arc::ptr_eq(cause, error));
    }
}

#[tokio::test(start_paused = true)]
async fn a_standalone_body_has_all_causes_and_its_last_words_see_them() {
    let body = TaskGroupBody::new(fail_in_turn)
        .on_failure(|error| Some(format!("|{}", texts(error).join(",")).into()));
    let (text, error) = within(drain(body)).await;
    assert_eq!(text, "half|first,second,panic: third");
    assert_eq!(error.unwrap().causes().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn all_that_fail_under_keep_others_are_causes() {
    let body = TaskGroupBody::new(|group, tx| async move {
        group.set_failure_policy(FailurePolicy::KeepOthers);
        for n in 1..4 {
            let tx = tx.clone();
            group.spawn(async move {
                tokio::time::sleep(Duration::from_millis(n)).await;
                tx.send(n.to_string()).await?;
                match n {
                    2 => panic!("2"),
                    n => Err(boom(&n.to_string())),
                }
            })?;
        }
        Ok(())
    });
    let (text, error) = within(drain(body)).await;
    assert_eq!(text, "123");
    assert_eq!(texts(&error.unwrap()), ["1", "panic: 2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn closers_that_fail_are_causes_behind_the_task() {
    for task_fails in [true, false] {
        let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
            cleanup.defer(|_| async { Err(boom("release")) });
            cleanup.defer_sync(|_| panic!("log"));
            cleanup.defer(|_| async { Err(boom("commit")) });
            // Behind the end that the client sees: for the report.
            cleanup.defer_after_end(|_| async { Err(boom("late")) });
            group.body(move |tx| async move {
                tx.send("half").await?;
                if task_fails {
                    Err(boom("disk"))
                } else {
                    Ok(())
                }
            })
        });
        let (_, error) = within(drain(app.get().await.into_body())).await;
        let error = error.expect("it looks whole");
        let mut expected = vec!["disk", "commit", "panic: log", "release"];
        expected.drain(..usize::from(!task_fails));
        assert_eq!(texts(&error), expected);
        let report = app.report().await;
        assert_eq!(report.errors.len(), expected.len() + 1);
        assert_eq!(messages(&report).last().unwrap(), "late");
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_and_a_task_are_both_causes_whichever_is_first() {
    for (task, first) in [(1, "disk"), (9, "body")] {
        let app = App::new(move |group: TaskGroup| async move {
            group.set_failure_policy(FailurePolicy::KeepOthers);
            let fails = async move {
                tokio::time::sleep(Duration::from_millis(task)).await;
                Err(boom("disk"))
            };
            group.spawn(fails).unwrap();
            let body = stream::unfold(false, |fails| async move {
                if fails {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let item = if fails { Err("body") } else { Ok("half") };
                Some((item, true))
            });
            Body::from_stream(body)
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        let error = error.expect("half of it looks whole");
        assert_eq!(text, "half");
        assert_eq!(texts(&error)[0], first);
        // Once the body has failed, the task is cancelled.
        let all: &[&str] = if task == 1 {
            &["disk", "body"]
        } else {
            &["body"]
        };
        assert_eq!(texts(&error), all);
        assert_eq!(messages(&app.report().await), all);
    }
}

#[tokio::test(start_paused = true)]
async fn merged_sources_that_fail_are_causes_by_name() {
    let failing = |millis, error: &'static str| {
        stream::once(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Err::<Bytes, _>(error)
        })
    };
    let app = App::new(move |group: TaskGroup| async move {
        group.set_failure_policy(FailurePolicy::KeepOthers);
        let sources = Sources::new()
            .optional("traffic", failing(1, "jam"))
            .source("news", failing(2, "no paper"))
            .source("weather", failing(3, "no sky"));
        group.merge(sources)
    });
    let (_, error) = within(drain(app.get().await.into_body())).await;
    let error = error.expect("it looks whole");
    let name = |cause: &Cause| {
        cause
            .downcast_ref::<SourceError>()
            .unwrap()
            .name()
            .to_owned()
    };
    let names: Vec<_> = error.causes().iter().map(name).collect();
    // What made it fail comes first; the rest as it was seen.
    assert_eq!(names, ["news", "traffic", "weather"]);
    assert_eq!(
        format!("{error:#}"),
        "response body failed: source news failed: no paper \
         (also: source traffic failed: jam; source weather failed: no sky)"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_known_under_a_hold_is_in_the_error() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let app = App::new(move |group: TaskGroup| async move {
        group.set_failure_policy(FailurePolicy::KeepOthers);
        *keep.lock().unwrap() = Some(group.hold());
        let tasks = group.clone();
        group.body(|tx| async move {
            for what in ["first", "second"] {
                let tx = tx.clone();
                tasks.spawn(async move {
                    tx.send("x").await?;
                    Err(boom(what))
                })?;
            }
            Ok(())
        })
    });
    let (_, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!(texts(&error.expect("it looks whole")), ["first", "second"]);
    drop(kept.lock().unwrap().take());
    assert_eq!(messages(&app.report().await), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn an_end_from_outside_is_the_first_cause_and_failures_on_it_follow() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                Err(Second.into())
            })?;
            tx.send("half").await?;
            tasks.cancel();
            std::future::pending().await
        })
    });
    let (_, error) = within(drain(app.get().await.into_body())).await;
    let error = error.expect("it looks whole");
    let ended = error.cause().downcast_ref().map(Failure::kind);
    let outcome = Outcome::Cancelled;
    assert_eq!(ended, Some(&FailureKind::Ended { outcome }));
    assert_eq!(texts(&error)[1..], ["second"]);
    assert_eq!(messages(&app.report().await), ["second"]);
}

/// Errors pass further scopes, boxes and encoders with all they have.
#[tokio::test(start_paused = true)]
async fn causes_pass_through_whatever_is_around_the_body() {
    async fn handler(Path(inner): Path<String>, cleanup: Cleanup, group: TaskGroup) -> Response {
        cleanup.defer(|_| async { Err(boom("commit")) });
        let body = TaskGroupBody::new(fail_in_turn);
        match &*inner {
            // Known to the scope around it, or not.
            "child" => body.into_http().map(Body::new),
            "stranger" => Response::new(Body::new(body)),
            _ => {
                let tasks = group.clone();
                Response::new(Body::new(group.body(|tx| fail_in_turn(tasks, tx))))
            }
        }
    }
    for inner in ["child", "stranger", "scope"] {
        for outside in [false, true] {
            let reports = Arc::new(Mutex::new(Vec::new()));
            let seen = reports.clone();
            let mut stack = Stack::new().on_end(move |report| {
                seen.lock().unwrap().push(report.clone());
            });
            if !outside {
                stack = stack.compression(CompressionLayer::new());
            }
            let mut app = Router::new().route("/{inner}", get(handler)).layer(stack);
            if outside {
                app = app.layer(CompressionLayer::new());
            }
            let request = Request::get(format!("/{inner}"))
                .header("accept-encoding", "gzip")
                .body(Body::empty())
                .unwrap();
            let response = app.oneshot(request).await.unwrap();
            assert!(response.headers().contains_key("content-encoding"));
            let error = within(response.into_body().collect()).await.unwrap_err();
            let error = body_error(error);
            let expected = ["first", "second", "panic: third", "commit"];
            // A box in between is named in the place of the first: with the same words here.
            let mut texts = texts(&error);
            if texts[0].starts_with("response body failed") {
                texts[0] = "first".to_owned();
            }
            assert_eq!(texts, expected, "{inner} {outside}");
            assert!(error.downcast_ref::<Second>().is_some());
            let reports = reports.lock().unwrap();
            assert_eq!(reports.len(), 1);
            assert_eq!(reports[0].errors.len(), expected.len(), "{:?}", reports[0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_alone_that_fails_has_one_cause() {
    let app = App::new(|| async { Body::new(Script::new().data("half").error("disk")) });
    let response = app.get().await;
    let (parts, body) = response.into_parts();
    let (_, error) = within(drain(body)).await;
    let error = error.expect("half of it looks whole");
    assert_eq!(error.causes().len(), 1);
    assert_eq!(error.to_string(), "response body failed");
    drop(close(Response::from_parts(parts, ())).await);
}
