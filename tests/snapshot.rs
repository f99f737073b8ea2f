//! What a supervisor lists of a response, from its start until nothing of it runs.

mod support;

use std::{convert::Infallible, sync::mpsc, time::Duration};

use bodyguard::{Cleanup, Phase, Stack, Supervisor, TaskGroup};
use http::{Request, Response};
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
