//! Policies, late tasks, standalone bodies under layers, shutdown through the encoder.

use std::{future::pending, io::Read, time::Duration};

use axum::{body::Body, extract::Request, response::IntoResponse};
use bodyguard::{Outcome, Shutdown, Stack, TaskGroup, TaskGroupBody, scope::FailurePolicy};
use http_body_util::BodyExt;

use crate::support::{App, Live, body_error, boom, drain, messages, until};

#[tokio::test(start_paused = true)]
async fn keep_others_lets_them_finish_and_fails_at_the_end() {
    for by_layer in [false, true] {
        let stack = match by_layer {
            true => Stack::new().failure_policy(FailurePolicy::KeepOthers),
            false => Stack::new(),
        };
        let app = App::with(stack, move |group: TaskGroup| async move {
            if !by_layer {
                group.set_failure_policy(FailurePolicy::KeepOthers);
            }
            let tasks = group.clone();
            group.body(|tx| async move {
                for n in 0..4_u64 {
                    let tx = tx.clone();
                    tasks.spawn(async move {
                        tokio::time::sleep(Duration::from_millis(10 * n)).await;
                        tx.send(format!("{n} ")).await?;
                        if n % 2 == 0 {
                            Err(boom(&format!("task {n}")))
                        } else {
                            Ok(())
                        }
                    })?;
                }
                tx.send("own ").await?;
                Err(boom("own"))
            })
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        let mut words: Vec<_> = text.split_whitespace().collect();
        words.sort_unstable();
        assert_eq!(words, ["0", "1", "2", "3", "own"]);
        let report = app.report().await;
        let mut errors = messages(&report);
        // The first is the body's; all are kept.
        assert_eq!(error.unwrap().cause().to_string(), errors[0]);
        errors.sort_unstable();
        assert_eq!(errors, ["own", "task 0", "task 2"]);
        assert_eq!(
            (report.counts.tasks_failed, report.counts.tasks_cancelled),
            (3, 0)
        );
        assert_eq!(report.outcome(), Outcome::Failed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_spawns_tasks_during_the_join_is_waited_for_with_them() {
    let live = Live::default();
    let seen = live.clone();
    for fails in [false, true] {
        let seen = seen.clone();
        let app = App::new(move |group: TaskGroup| async move {
            let tasks = group.clone();
            group.body(move |tx| async move {
                tx.send("all").await?;
                drop(tx);
                let tasks = tasks.clone();
                tokio::time::sleep(Duration::from_secs(1)).await;
                // The end of the stream was asked for long ago: this is inside the join.
                let (guard, again) = (seen.guard(), tasks.clone());
                tasks.spawn(async move {
                    let guard = guard;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    again.spawn(async move {
                        let _guard = guard;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        if fails {
                            Err(boom("grandchild"))
                        } else {
                            Ok(())
                        }
                    })?;
                    Ok(())
                })?;
                Ok(())
            })
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        assert_eq!((text.as_str(), error.is_some()), ("all", fails));
        assert_eq!((live.count(), app.supervisor.active()), (0, 0));
        assert_eq!(app.report().await.counts.tasks_joined, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_spawned_behind_the_end_is_given_back() {
    let kept = std::sync::Arc::new(std::sync::Mutex::new(None));
    let keep = kept.clone();
    let app = App::new(move |group: TaskGroup| async move {
        *keep.lock().unwrap() = Some(group.clone());
        group.body(|tx| async move { Ok(tx.send("x").await?) })
    });
    drain(app.get().await.into_body()).await;
    let group = kept.lock().unwrap().take().unwrap();
    let refused = group.spawn(async { Err(boom("mine")) }).unwrap_err();
    assert!(!refused.is_full());
    assert_eq!(refused.into_inner().await.unwrap_err().to_string(), "mine");
}

#[tokio::test(start_paused = true)]
async fn a_standalone_body_is_adopted_by_the_layers_its_response_passes() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |_: Request| async move {
        let guard = seen.guard();
        let body = TaskGroupBody::new(|group, tx| async move {
            group.spawn_graceful(|cancel| async move {
                let _guard = guard;
                cancel.cancelled().await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(())
            })?;
            tx.send("x").await?;
            pending().await
        });
        body.into_http().map(Body::new)
    });
    let mut body = app.get().await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    // The drain waits for the group of a body that no layer has made.
    let drained = app.supervisor.drain(Duration::from_secs(10)).await;
    assert_eq!((drained.complete, drained.stuck.len()), (1, 0), "{drained}");
    assert_eq!(live.count(), 0);
    let report = app.report().await;
    assert_eq!(
        report.counts.tasks_joined, 1,
        "the child's counts are in the report"
    );
    assert_eq!(report.counts.tasks_cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_group_of_an_adopted_body() {
    let live = Live::default();
    let seen = live.clone();
    let stack = Stack::new().shutdown(Shutdown::abort());
    let app = App::with(stack, move |_: Request| async move {
        let guard = seen.guard();
        TaskGroupBody::new(|_, tx| async move {
            let _guard = guard;
            tx.send("x").await?;
            pending().await
        })
        .into_response()
    });
    let mut body = app.get().await.into_body();
    body.frame().await.unwrap().unwrap();
    let reading = async { body.frame().await.unwrap().unwrap_err() };
    let drain = app.supervisor.drain(Duration::from_secs(10));
    let (error, drained) = tokio::join!(reading, drain);
    assert_eq!(
        body_error(error).cause().to_string(),
        "response was ended early: Shutdown"
    );
    assert_eq!((drained.aborted, drained.stuck.len()), (1, 0), "{drained}");
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn end_now_ends_a_compressed_group_body_with_its_last_frame() {
    for named in [true, false] {
        let live = Live::default();
        let seen = live.clone();
        let mut policy = Shutdown::end_now();
        if named {
            policy = policy.last_frame("text/event-stream", "event: bye\n\n");
        }
        let app = App::with(
            Stack::new().shutdown(policy),
            move |group: TaskGroup| async move {
                let guard = seen.guard();
                let body = group.body(|tx| async move {
                    let _guard = guard;
                    tx.send("data: 1\n\n").await?;
                    pending().await
                });
                ([("content-type", "text/event-stream")], Body::new(body))
            },
        );
        let request = Request::get("/").header("accept-encoding", "gzip");
        let response = app.call(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                    Err(error) => return Some(body_error(error)),
                }
            }
            None
        };
        let draining = async {
            until(|| app.supervisor.snapshot()[0].frames == 1).await;
            app.supervisor.drain(Duration::from_secs(10)).await
        };
        let (error, drained) = tokio::join!(reading, draining);
        assert_eq!((drained.ended, drained.stuck.len()), (1, 0), "{drained}");
        assert_eq!(live.count(), 0);
        let mut text = String::new();
        let whole = flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text);
        if named {
            // The encoder writes its tail: the stream is whole, and says so.
            assert!(error.is_none() && whole.is_ok());
            assert_eq!(text, "data: 1\n\nevent: bye\n\n");
        } else {
            assert!(error.is_some() && whole.is_err());
        }
        assert_eq!(app.report().await.outcome(), Outcome::Shutdown);
    }
}
