//! What a supervisor lists of a response, from its start until nothing of it runs.

mod support;

use std::{convert::Infallible, sync::mpsc, time::Duration};

use bodyguard::{Cleanup, Phase, Shutdown, Stack, Supervisor, TaskGroup, testing::Script};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};

use support::eventually;

#[tokio::test]
async fn a_response_is_live_then_ending_then_stuck_then_gone() {
    let supervisor = Supervisor::new();
    let (release_task, task_held) = mpsc::channel::<()>();
    let (begin, begun) = mpsc::channel();
    let (release_closer, closer_held) = oneshot::channel::<()>();
    let held = std::sync::Mutex::new(Some((task_held, closer_held)));
    let service = service_fn(|request: Request<()>| {
        let (task_held, closer_held) = held.lock().unwrap().take().unwrap();
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer(|_| async move { Ok(closer_held.await?) });
        let group = TaskGroup::of(&request).unwrap();
        let begin = begin.clone();
        let stubborn = group.spawn_blocking(move |_| {
            begin.send(())?;
            let _ = task_held.recv();
            Ok(())
        });
        stubborn.unwrap();
        let body = group.body(|tx| async move {
            tx.closed().await;
            Ok(())
        });
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let layer = Stack::new().supervisor(&supervisor);
    let short = Duration::from_millis(20);
    let layer = layer.join_limit(short).cancel_grace(short);
    let request = Request::builder().uri("/stubborn").body(()).unwrap();
    let response = layer.layer(service).oneshot(request).await.unwrap();

    let phases = || {
        let live = supervisor.snapshot();
        live.iter().map(|scope| scope.phase).collect::<Vec<_>>()
    };
    assert_eq!(phases(), [Phase::Live]);
    // Until it has a thread it can be aborted.
    begun.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(response);
    assert_eq!(phases(), [Phase::Ending]);
    release_closer.send(()).unwrap();
    eventually(|| phases() == [Phase::Stuck]).await;
    assert_eq!(phases()[0].to_string(), "stuck");
    drop(release_task);
    eventually(|| phases().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_live_is_listed_with_what_it_has_and_has_sent() {
    let supervisor = Supervisor::new();
    let service = service_fn(|request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        cleanup.defer(|_| async { Ok(()) });
        cleanup.defer(|_| async { Ok(()) });
        let group = TaskGroup::of(&request).unwrap();
        group.spawn(std::future::pending()).unwrap();
        let body = group.body(|tx| async move {
            tx.send("three").await?;
            tx.closed().await;
            Ok(())
        });
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let service = Stack::new().supervisor(&supervisor).layer(service);
    let call = |uri| {
        let request = Request::builder().uri(uri).body(()).unwrap();
        service.clone().oneshot(request)
    };
    let mut first = call("/first").await.unwrap();
    let second = call("/second").await.unwrap();
    first.body_mut().frame().await.unwrap().unwrap();

    let live = supervisor.snapshot();
    let [one, other] = &live[..] else {
        panic!("two responses: {live:?}");
    };
    assert!(one.id < other.id);
    assert_eq!((one.uri.path(), other.uri.path()), ("/first", "/second"));
    assert!(one.age.unwrap() >= other.age.unwrap());
    eventually(|| supervisor.snapshot()[1].age > one.age).await;
    assert_eq!((one.frames, one.bytes), (1, 5));
    assert_eq!((other.frames, other.bytes), (0, 0));
    // The group's own future is a task of it, once the body is asked.
    assert_eq!((one.tasks, other.tasks), (2, 1));
    assert_eq!((one.closers, other.closers), (2, 2));
    drop((first, second));
    eventually(|| supervisor.snapshot().is_empty()).await;
}

/// Threads number their responses apart, so that a number says little of the age.
#[tokio::test]
async fn the_oldest_comes_first_whichever_thread_opened_it() {
    let supervisor = Supervisor::new();
    let service = Stack::new()
        .supervisor(&supervisor)
        .layer(service_fn(|_: Request<()>| async {
            let body = Script::new().data("a").pending();
            Ok::<_, Infallible>(Response::new(body))
        }));
    let call = |uri| {
        let request = Request::builder().uri(uri).body(()).unwrap();
        service.clone().oneshot(request)
    };
    // They count in this thread's numbers.
    for _ in 0..20 {
        drop(call("/before").await.unwrap());
    }
    let first = call("/first").await.unwrap();
    // More than the time between the looks at two of them.
    eventually(|| supervisor.snapshot()[0].age > Some(Duration::from_millis(50))).await;
    let (handle, late) = (tokio::runtime::Handle::current(), call("/second"));
    let elsewhere = move || handle.block_on(late).unwrap();
    let second = tokio::task::spawn_blocking(elsewhere).await.unwrap();
    let live = supervisor.snapshot();
    let paths: Vec<_> = live.iter().map(|scope| scope.uri.path()).collect();
    assert_eq!(paths, ["/first", "/second"]);
    assert!(live[0].id > live[1].id, "it proves nothing otherwise");
    drop((first, second));
}

/// What an `end_now` cannot reach, since it is not asked: the drain says so.
#[tokio::test(start_paused = true)]
async fn a_body_that_its_server_does_not_ask_is_named_whatever_the_policy() {
    let policies = [
        Shutdown::finish(),
        Shutdown::end_now(),
        Shutdown::end_now().last_frame("text/plain", "bye\n"),
        Shutdown::abort(),
    ];
    for policy in policies {
        let supervisor = Supervisor::new();
        let (close, mut closed) = oneshot::channel();
        let close = std::sync::Mutex::new(Some(close));
        let service = service_fn(|request: Request<()>| {
            let close = close.lock().unwrap().take().unwrap();
            let cleanup = Cleanup::of(&request).unwrap();
            cleanup.defer(|ending| async move {
                let _ = close.send(ending.outcome());
                Ok(())
            });
            let body = Script::new().data("a").pending();
            let response = Response::builder().header("content-type", "text/plain");
            async { Ok::<_, Infallible>(response.body(body).unwrap()) }
        });
        let layer = Stack::new()
            .supervisor(&supervisor)
            .shutdown(policy.clone());
        let response = layer
            .layer(service)
            .oneshot(Request::new(()))
            .await
            .unwrap();
        let report = supervisor.drain(Duration::from_secs(5)).await;
        let named = report
            .stuck
            .iter()
            .any(|what| what.contains("not released by its server"));
        assert!(named && !report.is_clean(), "{policy:?}: {report}");
        assert!(closed.try_recv().is_err(), "{policy:?}");
        drop(response);
        assert!(!closed.await.unwrap().is_complete(), "{policy:?}");
    }
}
