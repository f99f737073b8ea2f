//! Trailers are the last of a stream: what comes behind them is lost, and that is an error.

use std::time::Duration;

use bodyguard::{TaskGroup, TaskGroupBody};
use http::HeaderMap;

use crate::support::{App, drain};

#[tokio::test(start_paused = true)]
async fn a_send_behind_trailers_fails_whether_they_are_delivered_or_not() {
    for late in [Duration::ZERO, Duration::from_millis(50)] {
        let app = App::new(move |group: TaskGroup| async move {
            let tasks = group.clone();
            group.body(move |tx| async move {
                let last = tx.clone();
                tasks.spawn(async move {
                    tokio::time::sleep(late).await;
                    Ok(last.send("lost").await?)
                })?;
                tx.send("first").await?;
                Ok(tx.send_trailers(HeaderMap::new()).await?)
            })
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        assert_eq!(text, "first");
        assert!(error.is_some(), "{late:?}: what was lost looks whole");
        assert_eq!(app.report().await.counts.tasks_failed, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_standalone_body_fails_for_it_too() {
    let body = TaskGroupBody::new(|group, tx| async move {
        let late = tx.clone();
        group.spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(late.send("lost").await?)
        })?;
        Ok(tx.send_trailers(HeaderMap::new()).await?)
    });
    assert!(drain(body).await.1.is_some());
}

/// The client has left before them: nothing was to be delivered any more.
#[tokio::test(start_paused = true)]
async fn a_send_behind_trailers_that_nobody_took_is_no_failure() {
    let app = App::new(move |group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(move |tx| async move {
            let late = tx.clone();
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                Ok(late.send("lost").await?)
            })?;
            tx.send("first").await?;
            tx.send("second").await?;
            Ok(tx.send_trailers(HeaderMap::new()).await?)
        })
    });
    let mut body = app.get().await.into_body();
    http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    drop(body);
    assert_eq!(app.report().await.counts.tasks_failed, 0);
}
