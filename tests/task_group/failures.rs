//! A failure is seen whatever else goes on: holds, other streams, late tasks, destructors.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use bodyguard::{Outcome, TaskGroup, scope::FailurePolicy};
use http::StatusCode;

use crate::support::{App, boom, drain, messages, until, within};

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
    assert_eq!(app.report().await.outcome(), Outcome::Failed);
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
