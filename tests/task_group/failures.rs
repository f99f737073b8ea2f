//! A failure is seen whatever else goes on: holds, other streams, late tasks, destructors.

use std::{
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bodyguard::{
    Cleanup, Outcome, TaskGroup, TaskGroupBody, TaskResult,
    scope::{FailurePolicy, Hold},
    task_group::{Closed, FrameBody, FrameSender},
};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time::Instant};

use crate::support::{App, Live, boom, drain, messages, until, within};

#[tokio::test(start_paused = true)]
async fn a_failed_producer_breaks_its_body_under_a_hold() {
    for policy in [FailurePolicy::CancelSiblings, FailurePolicy::KeepOthers] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = App::new(move |group: TaskGroup| async move {
            group.set_failure_policy(policy);
            *keep.lock().unwrap() = Some(group.hold());
            group.body(|tx| async move {
                tx.send("half").await?;
                Err(boom("disk"))
            })
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        assert_eq!(text, "half");
        let error = error.expect("half of it looks whole");
        assert_eq!(error.cause().to_string(), "disk");
        let hold = kept.lock().unwrap().take().unwrap();
        hold.finish(Outcome::Complete);
        let report = app.report().await;
        assert_eq!(report.outcome(), Outcome::Failed);
        assert_eq!(messages(&report), ["disk"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_failed_before_the_head_is_a_500_under_a_hold() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let app = App::new(move |group: TaskGroup| async move {
        group.set_failure_policy(FailurePolicy::KeepOthers);
        *keep.lock().unwrap() = Some(group.hold());
        group.spawn(async { Err(boom("disk")) }).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        StatusCode::OK
    });
    let response = within(app.get()).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    drop(kept.lock().unwrap().take());
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(report.status(), Some(StatusCode::INTERNAL_SERVER_ERROR));
}

/// The producer of a body that is asked behind a failure is not started, and that is no failure more.
#[tokio::test(start_paused = true)]
async fn a_body_asked_behind_a_failure_fails_for_that_alone() {
    for held in [false, true] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = App::new(move |group: TaskGroup| async move {
            *keep.lock().unwrap() = held.then(|| group.hold());
            group.spawn(async { Err(boom("disk")) }).unwrap();
            let body = group.body(|tx| async move { Ok(tx.send("more").await?) });
            tokio::time::sleep(Duration::from_secs(1)).await;
            body
        });
        let response = within(app.get()).await;
        let (text, error) = within(drain(response.into_body())).await;
        assert_eq!(text, "");
        assert_eq!(error.expect("it looks whole").cause().to_string(), "disk");
        drop(kept.lock().unwrap().take());
        let report = app.report().await;
        assert_eq!(report.outcome(), Outcome::Failed);
        assert_eq!(messages(&report), ["disk"]);
    }
}

/// Declared before a sender: goes behind it, and takes its time.
struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        let (_never, told) = mpsc::channel::<()>();
        let _ = told.recv_timeout(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_does_not_end_before_the_failure_of_its_last_sender_is_known() {
    for by_sibling in [false, true] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = App::new(move |group: TaskGroup| async move {
            *keep.lock().unwrap() = Some(group.hold());
            let tasks = group.clone();
            group.body(move |tx| async move {
                let fails = async move {
                    let _late = Late;
                    let tx = tx;
                    tx.send("half").await?;
                    Err(boom("disk"))
                };
                if by_sibling {
                    Ok(tasks.spawn(fails)?)
                } else {
                    fails.await
                }
            })
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        assert_eq!(text, "half");
        assert!(error.is_some(), "half of it looks whole");
        drop(kept.lock().unwrap().take());
        until(|| app.supervisor.active() == 0).await;
    }
}

/// A stage between two channels that dies: no task of the group, so nobody is told but its sender.
fn broken_stage() -> FrameSender {
    let (tx, stage) = FrameBody::channel(1024);
    drop(stage);
    tx
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_somebody_else_that_closes_is_a_failure() {
    let app = App::new(|group: TaskGroup| async move {
        group.body(|tx| async move {
            tx.send("half").await?;
            broken_stage().send("the rest").await?;
            Ok(())
        })
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!(text, "half");
    let error = error.expect("half of it looks whole");
    assert!(error.cause().downcast_ref::<Closed>().is_some());
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(report.counts.tasks_failed, 1);
}

#[tokio::test(start_paused = true)]
async fn another_group_that_refuses_a_task_is_a_failure() {
    for blocking in [false, true] {
        let other = TaskGroupBody::new(|_, _tx| async { Ok(()) });
        let ended = other.group().clone();
        drop(other);
        let app = App::new(move |group: TaskGroup| async move {
            let tasks = group.clone();
            group.body(move |tx| async move {
                tx.send("half").await?;
                // The sender stays until this returns, or is cancelled.
                let _tx = tx;
                if blocking {
                    tasks.spawn_blocking(move |_| Ok(ended.spawn(async { Ok(()) })?))?;
                    std::future::pending().await
                } else {
                    ended.spawn(async { Ok(()) })?;
                    Ok(())
                }
            })
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        assert_eq!(text, "half");
        assert!(error.is_some(), "half of it looks whole");
    }
}

/// Whatever ends the response, the sender's error is not the task's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_the_response_that_closes_is_no_failure() {
    for (held, head) in [(false, false), (true, false), (false, true)] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = App::new(move |group: TaskGroup| async move {
            *keep.lock().unwrap() = held.then(|| group.hold());
            let (tx, body) = FrameBody::channel(16);
            let task = async move {
                loop {
                    tx.send("tick tock ").await?;
                }
            };
            group.spawn_graceful(|_| task).unwrap();
            // Between the going of the stream and that of its body, others have time to be told.
            let late = Late;
            Body::new(body.map_frame(move |frame| {
                let _late = &late;
                frame
            }))
        });
        let mut request = Request::new(Body::empty());
        if head {
            *request.method_mut() = http::Method::HEAD;
        }
        let mut body = app.call(request).await.into_body();
        if !head {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        if let Some(hold) = kept.lock().unwrap().take() {
            hold.finish(Outcome::Complete);
        }
        let report = within(app.report()).await;
        assert_eq!((report.counts.tasks_failed, report.errors.len()), (0, 0));
        assert_eq!(report.outcome().is_complete(), head);
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_body_that_is_replaced_fails_nobody() {
    let app = App::new(|group: TaskGroup| async move {
        let (begun, begin) = tokio::sync::oneshot::channel();
        let tasks = group.clone();
        let body = group.body(move |tx| async move {
            tasks.spawn_graceful(|_| async move {
                let _ = begun.send(());
                loop {
                    tx.send(vec![b'x'; 9000]).await?;
                }
            })?;
            Ok(())
        });
        let mut body = Box::pin(body);
        body.frame().await.unwrap().unwrap();
        begin.await.unwrap();
        drop(body);
        tokio::time::sleep(Duration::from_secs(1)).await;
        "another"
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!((text.as_str(), error.is_none()), ("another", true));
    assert_eq!(app.report().await.outcome(), Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_failure_during_the_join_leaves_the_others_the_grace_only() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                std::future::pending().await
            })?;
            tasks.spawn(async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(boom("disk"))
            })?;
            Ok(tx.send("all").await?)
        })
    });
    let start = Instant::now();
    let (_, error) = drain(app.get().await.into_body()).await;
    assert_eq!(error.unwrap().cause().to_string(), "disk");
    let took = start.elapsed().as_millis();
    assert!((6000..6100).contains(&took), "{took} ms");
    let report = app.report().await;
    assert_eq!(messages(&report), ["disk"], "nothing has overrun");
    assert_eq!(report.counts.tasks_cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_spawned_behind_a_failure_is_given_back() {
    let live = Live::default();
    let seen = live.clone();
    let refused = Arc::new(Mutex::new(None));
    let refusal = refused.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let (tasks, guard) = (group.clone(), seen.guard());
        group.body(move |tx| async move {
            let late = tasks.clone();
            // Told to end, it goes on in new ways.
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                let spawned = late.spawn(async move {
                    let _guard = guard;
                    std::future::pending().await
                });
                *refusal.lock().unwrap() = Some(spawned.map_err(|error| error.is_full()));
                Ok(())
            })?;
            tx.send("half").await?;
            Err(boom("disk"))
        })
    });
    let start = Instant::now();
    let (_, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!(error.unwrap().cause().to_string(), "disk");
    assert!(start.elapsed() < Duration::from_millis(500), "no grace");
    assert_eq!(*refused.lock().unwrap(), Some(Err(false)));
    assert_eq!(live.count(), 0);
    assert_eq!(messages(&app.report().await), ["disk"]);
}

#[tokio::test(start_paused = true)]
async fn another_cap_on_tasks_strands_nobody_who_waits() {
    let app = App::new(|group: TaskGroup| async move {
        group.set_max_tasks(1);
        group.spawn(std::future::pending()).unwrap();
        let raising = async {
            tokio::task::yield_now().await;
            group.set_max_tasks(2);
        };
        let waits = group.spawn_when_free(async { Ok(()) });
        let (spawned, ()) = within(async { tokio::join!(waits, raising) }).await;
        assert!(spawned.is_ok());
        tokio::task::yield_now().await;
        group.cancel();
        "done"
    });
    app.get().await;
    assert_eq!(app.report().await.counts.tasks_joined, 1);
}

/// What a task panics with; it uses the scope, or panics again, as it goes.
struct Payload {
    _hold: Option<Hold>,
    bursts: bool,
}

impl Drop for Payload {
    fn drop(&mut self) {
        assert!(!self.bursts, "burst");
    }
}

#[test]
fn what_a_task_panics_with_may_use_the_scope_and_burst() {
    for bursts in [false, true] {
        let (done, finished) = mpsc::channel();
        // A thread of its own: what deadlocks is left behind.
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let report = runtime.block_on(async {
                let app = App::new(move |group: TaskGroup| async move {
                    let _hold = (!bursts).then(|| group.hold());
                    group.body(move |tx| async move {
                        tx.send("half").await?;
                        tokio::task::yield_now().await;
                        std::panic::resume_unwind(Box::new(Payload { _hold, bursts }))
                    })
                });
                let (text, error) = drain(app.get().await.into_body()).await;
                assert_eq!((text.as_str(), error.is_some()), ("half", true));
                app.report().await
            });
            done.send(report).unwrap();
        });
        let report = finished.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(report.outcome(), Outcome::Panicked);
        assert_eq!(report.counts.tasks_panicked, 1);
    }
}

/// A waker that uses the scope as it goes.
struct Comeback(TaskGroup);

impl Wake for Comeback {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Comeback {
    fn drop(&mut self) {
        drop(self.0.hold());
    }
}

/// Polls a body whose teardown waits, with one waker after the other.
async fn poll_with_comebacks(app: &App, group: &Mutex<Option<TaskGroup>>) {
    let mut body = app.get().await.into_body();
    body.frame().await.unwrap().unwrap();
    let group = group.lock().unwrap().take().unwrap();
    for _ in 0..3 {
        let waker = Waker::from(Arc::new(Comeback(group.clone())));
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
        // So that the body's own waker is another, and nobody else has this one.
        drop(waker);
    }
}

#[test]
fn wakers_of_who_waits_for_the_teardown_may_use_the_scope() {
    for by_task in [true, false] {
        let (done, finished) = mpsc::channel();
        std::thread::spawn(move || {
            let early = Arc::new(Mutex::new(JoinSet::new()));
            // Without timers, which keep wakers of their own.
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.build().unwrap().block_on(async {
                let kept = Arc::new(Mutex::new(None));
                let keep = kept.clone();
                let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
                    *keep.lock().unwrap() = Some(group.clone());
                    if by_task {
                        group.spawn(std::future::pending()).unwrap();
                    } else {
                        let key = cleanup.defer(|_| std::future::pending());
                        let close = key.close_now();
                        early.lock().unwrap().spawn(close);
                    }
                    group.body(|tx| async move { Ok(tx.send("x").await?) })
                });
                poll_with_comebacks(&app, &kept).await;
            });
            done.send(()).unwrap();
        });
        finished.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// Panics as it goes.
struct Burst;

impl Drop for Burst {
    fn drop(&mut self) {
        panic!("burst");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destructor_that_panics_at_the_abort_is_in_the_report() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn(async {
                let _burst = Burst;
                std::future::pending().await
            })?;
            tx.send("half").await?;
            std::future::pending().await
        })
    });
    let mut body = app.get().await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert_eq!(report.counts.tasks_panicked, 1);
    let errors = messages(&report);
    assert!(
        errors.len() == 1 && errors[0].ends_with("panicked: burst"),
        "{errors:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_destructor_that_panics_behind_an_error_hides_it_not() {
    for panics in [false, true] {
        let app = App::new(move |group: TaskGroup| async move {
            group.body(move |tx| {
                let sent = async move {
                    tx.send("half").await?;
                    if panics {
                        panic!("first");
                    }
                    Err(boom("first"))
                };
                Bursting(Box::pin(sent))
            })
        });
        let (_, error) = within(drain(app.get().await.into_body())).await;
        assert!(error.unwrap().cause().to_string().ends_with("first"));
        let report = app.report().await;
        let errors = messages(&report);
        assert!(errors.len() == 2, "{errors:?}");
        assert!(
            errors[0].ends_with("first") && errors[1].ends_with("burst"),
            "{errors:?}"
        );
    }
}

/// A future that is over and panics as it goes.
struct Bursting(Pin<Box<dyn Future<Output = TaskResult> + Send>>);

impl Future for Bursting {
    type Output = TaskResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TaskResult> {
        self.0.as_mut().poll(cx)
    }
}

impl Drop for Bursting {
    fn drop(&mut self) {
        panic!("burst");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_somebody_else_that_closes_is_a_failure_behind_the_end_too() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            let blocking = move |_| {
                let _late = Late;
                let tx = tx;
                tx.send_blocking("half")?;
                Ok(broken_stage().send_blocking("the rest")?)
            };
            Ok(tasks.spawn_blocking(blocking)?)
        })
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!(text, "half");
    assert!(error.is_some(), "half of it looks whole");
    assert_eq!(app.report().await.counts.tasks_failed, 1);
}

/// The refusal of its own group is none of its making, at a natural end too.
#[tokio::test(start_paused = true)]
async fn a_task_that_its_own_ending_group_refuses_has_not_failed() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            let late = tasks.clone();
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                Ok(late.spawn(async { Ok(()) })?)
            })?;
            Ok(tx.send("all").await?)
        })
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!(text, "all");
    // It overran the join limit, and that is all.
    assert!(error.unwrap().cause().to_string().contains("overran"));
    let report = app.report().await;
    assert_eq!((report.counts.tasks_failed, report.errors.len()), (0, 1));
}

/// A body that was made and not chosen, or begun and replaced, is no reason to take the end of another
/// stream for that of the response.
#[tokio::test(start_paused = true)]
async fn a_body_that_went_does_not_excuse_the_end_of_somebody_elses_stream() {
    for begun in [false, true] {
        let app = App::new(move |group: TaskGroup| async move {
            let mut other = group.body(|tx| async move {
                tx.send("other").await?;
                pending().await
            });
            if begun {
                other.frame().await.unwrap().unwrap();
            }
            drop(other);
            group.body(|tx| async move {
                tx.send("half").await?;
                let (audit, gone) = FrameBody::channel(10);
                drop(gone);
                audit.send("record").await?;
                tx.send("whole").await?;
                Ok(())
            })
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        assert_eq!(text, "half");
        let error = error.expect("half of it looks whole");
        assert!(error.downcast_ref::<Closed>().is_some());
        let report = app.report().await;
        assert_eq!(report.outcome(), Outcome::Failed);
        assert!(!report.ending.succeeded());
    }
}

/// What a response is made of that has no body of its group in it is not known.
#[tokio::test(start_paused = true)]
async fn a_body_that_was_never_begun_is_none_of_the_group() {
    let app = App::new(|group: TaskGroup| async move {
        drop(group.body(|_tx| async { Ok(()) }));
        let (tx, body) = FrameBody::channel(10);
        group
            .spawn(async move {
                tx.send("hello").await?;
                tx.send("behind the promised length").await?;
                Ok(())
            })
            .unwrap();
        http::Response::builder()
            .header("content-length", 5)
            .body(Body::new(body))
            .unwrap()
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!((text.as_str(), error.is_none()), ("hello", true));
    assert!(app.report().await.ending.succeeded());
}
