//! A child whose teardown fails, or does not get on: what its parent knows, and how long it waits.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::response::IntoResponse;
use bodyguard::{BoxError, Cleanup, CleanupLayer, cleanup::CleanupBody};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    task::{spawn_blocking, yield_now},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};

/// A child of which the closer was given up half-way has not done what it was to do: its parent must not commit.
#[tokio::test(start_paused = true)]
async fn a_closer_given_up_in_a_child_is_known_to_its_parent() {
    let told = Arc::new(Mutex::new(None));
    let attempt = CleanupLayer::new().layer(service_fn(|request: Request<()>| async move {
        let cleanup = Cleanup::of(&request)?;
        let key = cleanup.defer(|_| async {
            sleep(Duration::from_secs(5)).await;
            Ok(())
        });
        let closing = timeout(Duration::from_millis(10), key.close_now());
        assert!(closing.await.is_err());
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("whole"))))
    }));
    let noted = told.clone();
    let service = CleanupLayer::new().layer(service_fn(move |request: Request<()>| {
        let (attempt, noted) = (attempt.clone(), noted.clone());
        async move {
            Cleanup::of(&request)?.defer_sync(move |ending| {
                *noted.lock().unwrap() = Some(ending.succeeded());
            });
            attempt.oneshot(request.clone()).await
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let _ = response.into_body().collect().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*told.lock().unwrap(), Some(false));
}

/// An attempt that nobody polls any more tears down by itself, and its parent waits no longer for it than that.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_kept_and_not_polled_delays_its_parent_by_its_teardown_only() {
    let attempt = CleanupLayer::new().layer(service_fn(|request: Request<()>| async move {
        Cleanup::of(&request)?.defer(|_| async {
            sleep(Duration::from_millis(50)).await;
            Ok(())
        });
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::new())))
    }));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = kept.clone();
    let service = CleanupLayer::new().layer(service_fn(move |request: Request<()>| {
        let (attempt, kept) = (attempt.clone(), keeping.clone());
        async move {
            let mut attempt = Box::pin(attempt.oneshot(request.clone()));
            assert!((&mut attempt).now_or_never().is_none());
            kept.lock().unwrap().push(attempt);
            Ok::<_, BoxError>(Response::new(Full::new(Bytes::from("answer"))))
        }
    }));
    let start = Instant::now();
    let response = service.oneshot(Request::new(())).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "answer");
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// A child whose runtime is at rest is waited for as long as its parent joins tasks, and named.
#[tokio::test]
async fn a_child_whose_runtime_is_at_rest_is_left_behind() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let runtime = Arc::new(Mutex::new(Some(runtime)));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let (noting, driving) = (reports.clone(), runtime.clone());
    let layer = CleanupLayer::new().join_limit(Duration::from_millis(20));
    let layer = layer.on_end(move |end| noting.lock().unwrap().push(end.clone()));
    let service = layer.layer(service_fn(move |request: Request<()>| {
        let driving = driving.clone();
        async move {
            Cleanup::of(&request)?.defer_sync(|_| ());
            let making = spawn_blocking(move || {
                let driving = driving.lock().unwrap();
                driving.as_ref().unwrap().block_on(async {
                    let more = futures_util::stream::repeat_with(|| {
                        Ok::<_, BoxError>(Frame::data(Bytes::from("x")))
                    });
                    let body = CleanupBody::new(StreamBody::new(more));
                    body.defer(|_| async {
                        yield_now().await;
                        Ok(())
                    })
                })
            });
            Ok::<_, BoxError>(making.await?.into_response())
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let mut body = Box::pin(response.into_body());
    body.frame().await.unwrap().unwrap();
    drop(body);
    let ended = || reports.lock().unwrap().len() == 1;
    timeout(Duration::from_secs(30), async {
        while !ended() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the parent's end");
    let end = reports.lock().unwrap().pop().unwrap();
    assert_eq!(end.stuck, ["GET /: teardown of a scope under this one"]);
    assert!(
        end.errors
            .iter()
            .any(|error| error.to_string().contains("not back at the end"))
    );
    let runtime = runtime.lock().unwrap().take();
    runtime.unwrap().shutdown_background();
}
