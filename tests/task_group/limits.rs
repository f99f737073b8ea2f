//! Limits: who is blamed when they are over, and how many tasks may run.

use std::{future::pending, sync::mpsc, time::Duration};

use bodyguard::{
    Stack, TaskGroup,
    scope::{Failure, FailureKind},
};
use tokio::task::JoinSet;

use crate::support::{App, drain, messages, within};

#[tokio::test(start_paused = true)]
async fn only_tasks_that_were_waited_for_overrun_the_join() {
    let (tell, told) = mpsc::channel();
    let stack = Stack::new().join_limit(Duration::from_secs(2));
    let app = App::with(stack, move |group: TaskGroup| {
        let tell = tell.clone();
        async move {
            let tasks = group.clone();
            group.body(move |tx| async move {
                tasks.spawn_background(pending())?;
                tell.send(line!() + 1)?;
                tasks.spawn(pending())?;
                Ok(tx.send("all").await?)
            })
        }
    });
    let (_, error) = drain(app.get().await.into_body()).await;
    let (error, line) = (error.unwrap(), told.recv().unwrap());
    match error.downcast_ref::<Failure>().unwrap().kind() {
        FailureKind::OverranLimit { what, .. } => {
            assert!(what.ends_with(&format!("limits.rs:{line}")), "{what}");
        }
        other => panic!("{other:?}"),
    }
    let report = app.report().await;
    assert_eq!(report.errors.len(), 1, "{:?}", messages(&report));
    assert_eq!(report.counts.tasks_cancelled, 2);
}

#[tokio::test(start_paused = true)]
async fn with_no_place_at_all_every_task_is_refused_until_there_is_one() {
    let app = App::new(|group: TaskGroup| async move {
        group.set_max_tasks(0);
        assert!(group.spawn(pending()).unwrap_err().is_full());
        let raising = async {
            tokio::task::yield_now().await;
            group.set_max_tasks(1);
        };
        let waits = group.spawn_when_free(async { Ok(()) });
        let (spawned, ()) = within(async { tokio::join!(waits, raising) }).await;
        assert!(spawned.is_ok());
        "done"
    });
    app.get().await;
    assert_eq!(app.report().await.counts.tasks_joined, 1);
}

/// Nobody of the group: a natural end does not wait for it.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_that_never_comes_is_released_at_the_end() {
    let (tell, told) = mpsc::channel();
    let app = App::new(move |group: TaskGroup| {
        let tell = tell.clone();
        async move {
            group.set_max_tasks(0);
            let mut waits = JoinSet::new();
            waits.spawn(async move {
                let waited = group.spawn_when_free(pending()).await;
                waited.map_err(|error| error.is_full())
            });
            tell.send(waits).unwrap();
            tokio::task::yield_now().await;
            "done"
        }
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!((text.as_str(), error.is_none()), ("done", true));
    let mut waits = told.recv().unwrap();
    let waited = within(waits.join_next()).await.unwrap();
    assert_eq!(waited.unwrap(), Err(false));
}
