//! What the bridge does for those who have gone, and says of what came back late.

use std::{future::Future, sync::mpsc, thread, time::Duration};

use axum::{Router, body::Body, extract::Request, routing::get};
use bodyguard::{
    Cleanup, EndReport, Outcome, Stack,
    bridge::{Bridge, Pool, SyncBody},
    scope::{Failure, FailureKind},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, sync::oneshot};
use tower::ServiceExt as _;

/// Nothing here may hang.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("took too long")
}

async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[allow(clippy::disallowed_methods, reason = "code that computes")]
fn compute() {
    thread::sleep(Duration::from_millis(5));
}

/// Polls a body, whose code writes nothing, and drops it; the thread has to come free.
async fn is_left(make: impl FnOnce(&Bridge, oneshot::Sender<()>) -> SyncBody) {
    let pool = Pool::builder().max_threads(1).build();
    let (started, has_started) = oneshot::channel();
    let mut body = SyncBody::in_pool(pool.clone(), |bridge| make(bridge, started));
    tokio::select! {
        _ = body.frame() => panic!("nothing is written"),
        started = soon(has_started) => started.unwrap(),
    }
    drop(body);
    until(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn code_that_makes_empty_chunks_learns_that_its_body_has_gone() {
    is_left(|bridge, started| {
        let mut started = Some(started);
        bridge.body_from_iter(std::iter::repeat_with(move || {
            started.take().map(|started| started.send(()));
            compute();
            Bytes::new()
        }))
    })
    .await;
}

#[tokio::test]
async fn code_that_writes_nothing_or_only_flushes_learns_that_its_body_has_gone() {
    for flushes in [false, true] {
        is_left(move |bridge, started| {
            bridge.body_writer(move |out| {
                started.send(()).unwrap();
                loop {
                    compute();
                    match flushes {
                        true => out.flush()?,
                        false => out.write_all(b"").and_then(|()| out.write(b"").map(drop))?,
                    }
                }
            })
        })
        .await;
    }
}

#[tokio::test]
async fn code_that_came_back_late_is_named_by_where_it_was_called() {
    let pool = Pool::builder()
        .close_limit(Duration::from_millis(20))
        .build();
    let (reported, reports) = mpsc::channel();
    let app = Router::new()
        .route(
            "/",
            get(|bridge: Bridge, cleanup: Cleanup| async move {
                let (started, has_started) = oneshot::channel();
                let (release, released) = mpsc::channel::<()>();
                Handle::current().spawn(bridge.call(move |_| {
                    started.send(()).unwrap();
                    let _ = released.recv();
                }));
                has_started.await.unwrap();
                cleanup.defer(move |_| async move {
                    drop(release);
                    // The thread is back, and has nothing to do.
                    Ok(bridge.call(|_| ()).await?)
                });
                Body::from_stream(tokio_stream::once(Ok::<_, std::io::Error>("rows")))
            }),
        )
        .layer(
            Stack::new()
                .bridge_pool(&pool)
                .on_end(move |report: &EndReport| reported.send(report.clone()).unwrap()),
        );
    let response = soon(app.oneshot(Request::new(Body::empty()))).await;
    let broken = soon(response.unwrap().into_body().collect()).await;
    assert!(broken.is_err());
    let report = reports.try_recv().unwrap();
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(report.errors.len(), 1, "{report:?}");
    let failure = report.errors[0].downcast_ref::<Failure>().unwrap();
    let FailureKind::StillRunning { what } = failure.kind() else {
        panic!("{failure:?}");
    };
    assert!(what.contains("tests/bridge_given_up.rs"), "{what}");
    assert_eq!(report.stuck, [what.as_str()]);
    assert_eq!(pool.idle(), 1);
}
