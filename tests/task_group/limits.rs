//! Limits: who is blamed when they are over, and how many tasks may run.

use std::{future::pending, sync::mpsc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
};
use bodyguard::{
    Stack, TaskGroup, TaskGroupBody, TaskGroupLayer,
    scope::{Failure, FailureKind},
    task_group::FrameSender,
};
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time::Instant};
use tower::ServiceExt;

use crate::support::{App, boom, drain, messages, within};

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

/// The layer's limit, and the handler's.
#[tokio::test(start_paused = true)]
async fn the_most_tasks_are_those_of_the_layer_unless_the_handler_sets_others() {
    for own in [None, Some(2)] {
        let app = App::with(
            Stack::new().max_tasks(1),
            move |group: TaskGroup| async move {
                if let Some(own) = own {
                    group.set_max_tasks(own);
                }
                let spawned = (0..3).filter(|_| group.spawn(pending()).is_ok()).count();
                group.cancel();
                spawned.to_string()
            },
        );
        app.get().await;
        let report = app.report().await;
        let most = own.unwrap_or(1);
        assert_eq!(report.counts.tasks_cancelled, most as u64);
    }
}

/// A middleware between two layers has used the outer one's limit, or set its own.
#[tokio::test(start_paused = true)]
async fn the_most_tasks_are_those_of_the_innermost_layer_that_sets_them() {
    for own in [None, Some(3)] {
        let handler = |group: TaskGroup| async move {
            // What the middleware spawned counts under its own limit.
            assert!(group.spawn_background(pending()).is_ok());
            assert!(group.spawn_background(pending()).is_ok());
            let refused = group.spawn_background(pending());
            assert!(refused.unwrap_err().is_full());
        };
        let spawns = from_fn(move |request: Request, next: Next| async move {
            let group = TaskGroup::of(&request).unwrap();
            if let Some(own) = own {
                group.set_max_tasks(own);
            }
            group.spawn_background(pending()).unwrap();
            next.run(request).await
        });
        let inner = TaskGroupLayer::new().max_tasks(2);
        let app = Router::new().fallback(handler).layer(inner).layer(spawns);
        let service = app.layer(Stack::new().max_tasks(8));
        let response = service.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 200, "{own:?}");
    }
}

/// Who waits for a place under an outer layer's limit has one under the inner layer's.
#[tokio::test(start_paused = true)]
async fn an_inner_layer_s_places_are_for_those_who_wait_already() {
    let waits = from_fn(|request: Request, next: Next| async move {
        let group = TaskGroup::of(&request).unwrap();
        let mut waits = JoinSet::new();
        waits.spawn(async move { group.spawn_when_free(async { Ok(()) }).await.is_ok() });
        tokio::task::yield_now().await;
        let response = next.run(request).await;
        let spawned = within(waits.join_next()).await.unwrap();
        assert!(spawned.unwrap());
        response
    });
    let inner = TaskGroupLayer::new().max_tasks(1);
    let app = Router::new().fallback(|| async { "done" });
    let app = app.layer(inner).layer(waits);
    let service = app.layer(Stack::new().max_tasks(0));
    let response = service.oneshot(Request::new(Body::empty())).await.unwrap();
    let (text, error) = drain(response.into_body()).await;
    assert_eq!((text.as_str(), error.is_none()), ("done", true));
}

#[tokio::test(start_paused = true)]
async fn a_group_without_a_layer_has_limits_of_its_own() {
    for cancelled in [false, true] {
        let body = TaskGroupBody::new(move |group, tx| async move {
            group.spawn_graceful(|_| pending())?;
            tx.send("all").await?;
            match cancelled {
                true => Err(boom("disk")),
                false => Ok(()),
            }
        });
        body.group().set_join_limit(Duration::from_secs(5));
        body.group().set_cancel_grace(Duration::from_secs(3));
        let start = Instant::now();
        let (text, error) = within(drain(body)).await;
        assert_eq!((text.as_str(), error.is_some()), ("all", true));
        let took = start.elapsed().as_millis();
        let waits = if cancelled { 3000 } else { 8000 };
        assert!((waits..waits + 100).contains(&took), "{took} ms");
    }
}

/// `maxsize=1`: the second frame waits until the first is taken.
#[tokio::test(start_paused = true)]
async fn a_buffer_of_one_holds_one_frame() {
    let (tell, told) = mpsc::channel();
    let producer = move |tx: FrameSender| async move {
        for _ in 0..3 {
            tx.send(vec![b'x'; 100]).await?;
            tell.send(())?;
        }
        Ok(())
    };
    let theirs = producer.clone();
    let app = App::new(move |group: TaskGroup| {
        let producer = theirs.clone();
        async move { group.body(producer).buffer(1) }
    });
    let standalone = TaskGroupBody::new(move |_, tx| producer(tx)).buffer(1);
    let grouped = app.get().await.into_body();
    for mut body in [grouped, axum::body::Body::new(standalone)] {
        let mut sent = 0;
        for taken in 1..=3 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().len(), 100);
            tokio::time::sleep(Duration::from_millis(10)).await;
            sent += told.try_iter().count();
            assert!(sent <= taken + 1, "{sent} sent, {taken} taken");
        }
        assert!(body.frame().await.is_none());
    }
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
