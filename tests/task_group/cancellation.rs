//! After the teardown no task is left, whatever its kind: counted by guards in the tasks.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use bodyguard::{Outcome, TaskGroup, close};
use http_body_util::BodyExt;
use tokio::{sync::oneshot, time::Instant};

use crate::support::{App, Live, until, within};

const GRACE: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn plain_tasks_are_gone_at_their_next_await() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            for _ in 0..50 {
                let guard = seen.guard();
                tasks.spawn(async move {
                    let _guard = guard;
                    pending().await
                })?;
            }
            tx.send("x").await?;
            Ok(())
        })
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(live.count(), 50);
    let start = Instant::now();
    let report = close(response).await.unwrap().unwrap();
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(report.counts.tasks_cancelled, 50);
}

#[tokio::test(start_paused = true)]
async fn graceful_tasks_get_their_grace_and_no_more() {
    for (needs, gets) in [
        (Duration::from_millis(400), Duration::from_millis(400)),
        (GRACE * 5, GRACE),
    ] {
        let live = Live::default();
        let seen = live.clone();
        let app = App::new(move |group: TaskGroup| async move {
            let guard = seen.guard();
            let tasks = group.clone();
            group.body(move |tx| async move {
                tasks.spawn_graceful(|cancel| async move {
                    let _guard = guard;
                    cancel.cancelled().await;
                    tokio::time::sleep(needs).await;
                    Ok(())
                })?;
                tx.send("x").await?;
                pending().await
            })
        });
        let mut response = app.get().await;
        response.body_mut().frame().await.unwrap().unwrap();
        let start = Instant::now();
        let report = close(response).await.unwrap().unwrap();
        assert_eq!(live.count(), 0);
        let took = start.elapsed();
        assert!(
            took >= gets && took < gets + Duration::from_millis(10),
            "{took:?}"
        );
        // The group's own future was cancelled, and the graceful one if it took too long.
        let late = u64::from(needs > GRACE);
        assert_eq!(report.counts.tasks_cancelled, 1 + late);
        assert_eq!(report.counts.tasks_joined, 1 - late);
    }
}

#[tokio::test(start_paused = true)]
async fn blocked_senders_of_every_kind_are_released() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(move |tx| async move {
            let chunk = || vec![b'x'; 9000];
            for _ in 0..20 {
                let (guard, tx) = (seen.guard(), tx.clone());
                tasks.spawn(async move {
                    let _guard = guard;
                    loop {
                        tx.send(chunk()).await?;
                    }
                })?;
            }
            for _ in 0..20 {
                let (guard, tx) = (seen.guard(), tx.clone());
                tasks.spawn_graceful(|_| async move {
                    let _guard = guard;
                    loop {
                        tx.send(chunk()).await?;
                    }
                })?;
            }
            for _ in 0..4 {
                let (guard, tx) = (seen.guard(), tx.clone());
                tasks.spawn_blocking(move |_| {
                    let _guard = guard;
                    loop {
                        tx.send_blocking(chunk())?;
                    }
                })?;
            }
            Ok(())
        })
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(live.count(), 44);
    let start = Instant::now();
    let report = close(response).await.unwrap().unwrap();
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert_eq!((report.counts.tasks_failed, report.errors.len()), (0, 0));
}

#[tokio::test]
async fn blocking_tasks_see_the_cancellation_and_are_waited_for() {
    let live = Live::default();
    let seen = live.clone();
    let (begun, begin) = oneshot::channel();
    let begun = Arc::new(Mutex::new(Some(begun)));
    let app = App::new(move |group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(move |tx| async move {
            let guard = seen.guard();
            tasks.spawn_blocking(move |cancel| {
                let _guard = guard;
                begun.lock().unwrap().take().unwrap().send(()).unwrap();
                // With a limit of its own, or the runtime of a failed test would wait for it.
                let start = std::time::Instant::now();
                while !cancel.is_cancelled() {
                    if start.elapsed() > Duration::from_secs(40) {
                        return Err("not told of the cancellation".into());
                    }
                    std::thread::yield_now();
                }
                Ok(())
            })?;
            tx.send("x").await?;
            pending().await
        })
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    within(begin).await.unwrap();
    assert_eq!(live.count(), 1);
    let report = within(close(response)).await.unwrap().unwrap();
    assert_eq!(live.count(), 0);
    assert_eq!(
        (report.counts.tasks_joined, report.counts.tasks_cancelled),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_cancels_tasks_of_every_kind() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let tasks = group.clone();
        let guards = [seen.guard(), seen.guard(), seen.guard()];
        group.body(move |tx| async move {
            let [plain, graceful, background] = guards;
            let held = tx.clone();
            tasks.spawn(async move {
                let (_guard, _held) = (plain, held);
                pending().await
            })?;
            tasks.spawn_graceful(|cancel| async move {
                let _guard = graceful;
                cancel.cancelled().await;
                Ok(())
            })?;
            tasks.spawn_background(async move {
                let _guard = background;
                pending().await
            })?;
            tx.send("x").await?;
            Err("lost".into())
        })
    });
    let mut body = app.get().await.into_body();
    body.frame().await.unwrap().unwrap();
    body.frame().await.unwrap().unwrap_err();
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_dropped_takes_its_tasks_along() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        group
            .spawn(async move {
                let _guard = guard;
                pending().await
            })
            .unwrap();
        pending::<&str>().await
    });
    let late = tokio::time::timeout(Duration::from_secs(1), app.get()).await;
    assert!(late.is_err());
    until(|| live.count() == 0 && app.supervisor.active() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_groups_dropped_at_once_leave_no_task() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let (waiting, sending) = (seen.guard(), seen.guard());
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn(async move {
                let _guard = waiting;
                pending().await
            })?;
            tasks.spawn_graceful(|_| async move {
                let _guard = sending;
                loop {
                    tx.send(vec![b'x'; 9000]).await?;
                }
            })?;
            Ok(())
        })
    });
    let mut bodies = Vec::new();
    for _ in 0..1000 {
        let mut body = app.get().await.into_body();
        within(body.frame()).await.unwrap().unwrap();
        bodies.push(body);
    }
    assert_eq!((live.count(), app.supervisor.active()), (2000, 1000));
    drop(bodies);
    until(|| app.supervisor.active() == 0).await;
    assert_eq!(live.count(), 0);
}
