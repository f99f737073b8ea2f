//! A shutdown that lets responses finish for a time: whose time it is, from when it counts, and what is left of it.

use std::{convert::Infallible, time::Duration};

use bodyguard::{
    Cleanup, CleanupLayer, Shutdown, Stack, Supervisor, TaskGroupLayer, testing::Script,
};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

type Answer = Result<Response<Script>, Infallible>;

/// Has a closer, and this body.
async fn answer(request: Request<()>, body: Script) -> Answer {
    Cleanup::of(&request).unwrap().defer_sync(|_| {});
    Ok(Response::new(body))
}

fn endless() -> Script {
    Script::new().data("a").hang()
}

fn stack(supervisor: &Supervisor, within: Duration) -> Stack {
    let policy = Shutdown::finish_within(within);
    Stack::new().supervisor(supervisor).shutdown(policy)
}

/// With a drain or without, and not anew with the next.
#[tokio::test(start_paused = true)]
async fn it_counts_from_the_announcement() {
    for dropped_drain in [false, true] {
        let supervisor = Supervisor::new();
        let handler = service_fn(|request| answer(request, endless()));
        let service = stack(&supervisor, SECOND).layer(handler);
        let response = service.oneshot(Request::new(())).await.unwrap();
        let mut body = std::pin::pin!(response.into_body().collect());
        if dropped_drain {
            let drain = supervisor.drain(MINUTE);
            assert!(timeout(SECOND / 10, drain).await.is_err());
        } else {
            supervisor.begin_shutdown();
        }
        let early = timeout(SECOND / 2, body.as_mut()).await;
        assert!(early.is_err(), "it has a second");
        supervisor.begin_shutdown();
        let late = timeout(SECOND * 6 / 10, body).await;
        assert!(late.expect("no second begins anew").is_err());
        assert_eq!(supervisor.active(), 0);
    }
}

/// Also where that joins behind the announcement.
#[tokio::test(start_paused = true)]
async fn it_is_that_of_the_innermost_layer() {
    for (outer, inner, over_at) in [
        (MINUTE, Shutdown::finish_within(SECOND), Some(SECOND)),
        (SECOND, Shutdown::finish(), None),
        (SECOND, Shutdown::finish_within(MINUTE), Some(MINUTE)),
    ] {
        let supervisor = Supervisor::new();
        let handler = service_fn(|request| answer(request, endless()));
        let inner = CleanupLayer::new().shutdown(inner).layer(handler);
        let between = service_fn(|request: Request<()>| {
            supervisor.begin_shutdown();
            let inner = inner.clone();
            async move {
                sleep(SECOND / 10).await;
                inner.oneshot(request).await
            }
        });
        let service = stack(&supervisor, outer).layer(between);
        let response = service.oneshot(Request::new(())).await.unwrap();
        let begun = Instant::now();
        let ended = timeout(10 * MINUTE, response.into_body().collect()).await;
        assert_eq!(ended.is_ok(), over_at.is_some(), "{over_at:?}");
        if let Some(at) = over_at {
            // Behind it comes the gap of the error.
            let took = begun.elapsed();
            assert!((at..at + SECOND / 50).contains(&took), "{took:?}");
        }
    }
}

/// Whoever serves on behind the announcement keeps no task, and no timer, of a response that is done.
#[tokio::test(start_paused = true)]
async fn it_ends_with_its_response() {
    let supervisor = Supervisor::new();
    let handler = service_fn(|request| answer(request, Script::new().data("ab")));
    let service = stack(&supervisor, MINUTE).layer(handler);
    supervisor.begin_shutdown();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for _ in 0..10 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        assert!(metrics.num_alive_tasks() > before, "its time runs");
        let read = response.into_body().collect().await.unwrap();
        assert_eq!(read.to_bytes(), "ab");
        tokio::task::yield_now().await;
        assert_eq!(metrics.num_alive_tasks(), before);
    }
}

/// An attempt of a cloned request has the time of the scope around it, and goes into the account as that does.
#[tokio::test(start_paused = true)]
async fn an_attempt_is_aborted_with_its_response() {
    let supervisor = Supervisor::new();
    let handler = service_fn(|request| answer(request, endless()));
    let inner = TaskGroupLayer::new().layer(handler);
    let between = service_fn(|request: Request<()>| {
        // It may be sent again.
        drop(request.clone());
        let inner = inner.clone();
        async move {
            let response = inner.oneshot(request).await;
            sleep(SECOND / 10).await;
            response
        }
    });
    let service = stack(&supervisor, SECOND).layer(between);
    supervisor.begin_shutdown();
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(supervisor.active(), 2);
    let reads = response.into_body().collect();
    let (report, read) = tokio::join!(supervisor.drain(MINUTE), reads);
    assert!(read.is_err());
    assert_eq!((report.aborted, report.complete), (2, 0), "{report}");
}
