//! How a body of its own ended is how its response ended, whatever it passed through on its way out.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bodyguard::{
    BodyError, CompressionLayer, DisconnectLayer, EndReport, Outcome, Stack, TaskGroupBody,
    cleanup::CleanupBody,
    scope::{Failure, FailureKind},
};
use futures_util::{FutureExt, stream};
use http::{
    Request, Response,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH},
};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

fn gzip() -> Request<()> {
    let request = Request::builder().header(ACCEPT_ENCODING, "gzip");
    request.body(()).unwrap()
}

/// The error the client sees of the response of this handler, and the report on it.
async fn broken(answer: impl Fn(&Request<()>) -> Response<Body>) -> (BodyError, EndReport) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    let stack = Stack::new().on_end(move |report| told.lock().unwrap().push(report.clone()));
    let handler = service_fn(|request: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(answer(&request)))
    });
    let response = stack.layer(handler).oneshot(gzip()).await.unwrap();
    let mut body = response.into_body();
    let error = loop {
        match body.frame().await.expect("it looks whole") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    drop(body);
    let report = reports.lock().unwrap().pop().unwrap();
    (error, report)
}

/// One that has sent something, and panics.
fn panics() -> TaskGroupBody {
    TaskGroupBody::new(|_, tx| async move {
        tx.send("a").await?;
        panic!("boom")
    })
}

fn assert_panicked(what: &str, (error, report): &(BodyError, EndReport)) {
    assert_eq!(report.outcome(), Outcome::Panicked, "{what}: {report:?}");
    assert!(!report.ending.succeeded());
    assert_eq!(report.errors.len(), 1, "{what}: {:?}", report.errors);
    assert!(error.causes().len() == 1, "{what}: {error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_body_of_its_own_is_one_of_the_response() {
    let seen = broken(|_| panics().into_http().map(Body::new)).await;
    assert_panicked("announced", &seen);
    assert_eq!(seen.1.counts.tasks_panicked, 1);
    let failure: &Failure = seen.0.downcast_ref().unwrap();
    assert!(matches!(failure.kind(), FailureKind::Panicked { .. }));

    let seen = broken(|_| Response::new(Body::new(panics()))).await;
    assert_panicked("known to nobody", &seen);
    let nested = || CleanupBody::new(CleanupBody::new(panics()));
    assert_panicked(
        "nested",
        &broken(|_| Response::new(Body::new(nested()))).await,
    );
    let nested = || nested().into_http().map(Body::new);
    assert_panicked("nested, announced", &broken(|_| nested()).await);
    let seen = broken(|_| {
        let wrapped = panics().map_err(io::Error::other);
        Response::new(Body::new(wrapped))
    });
    assert_panicked("wrapped", &seen.await);
}

/// The layers further in have a scope of their own, or encode.
#[tokio::test(start_paused = true)]
async fn it_is_so_through_layers() {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    let handler =
        service_fn(|_: Request<()>| std::future::ready(Ok::<_, Infallible>(panics().into_http())));
    let inner = DisconnectLayer::new().layer(handler);
    let inner = DisconnectLayer::new()
        .detachable(Duration::from_secs(1))
        .layer(CompressionLayer::new().layer(inner));
    let service = Stack::new()
        .on_end(move |report| told.lock().unwrap().push(report.clone()))
        .layer(inner);
    let response = service.oneshot(gzip()).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let report = reports.lock().unwrap().pop().unwrap();
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert_eq!((report.errors.len(), report.counts.tasks_panicked), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn so_are_a_cancelled_one_and_one_that_fails() {
    let (_, report) = broken(|_| {
        let body = TaskGroupBody::new(|group, tx| async move {
            tx.send("a").await?;
            group.cancel();
            Ok(())
        });
        body.into_http().map(Body::new)
    })
    .await;
    assert_eq!(report.outcome(), Outcome::Cancelled, "{report:?}");
    assert!(report.errors.is_empty());

    let (error, report) = broken(|_| {
        let body = TaskGroupBody::new(|_, tx| async move {
            tx.send("a").await?;
            // What it has read was broken by a panic; it was not.
            panics().collect().await?;
            Ok(())
        });
        body.into_http().map(Body::new)
    })
    .await;
    assert_eq!(report.outcome(), Outcome::Failed, "{report:?}");
    assert!(error.cause().is::<BodyError>());
}

#[tokio::test(start_paused = true)]
async fn so_is_a_broken_length_behind_an_encoder() {
    const GIVEN: u64 = 400;
    let short = FailureKind::Truncated {
        produced: GIVEN,
        promised: GIVEN + 1,
    };
    let long = FailureKind::Overlong {
        produced: GIVEN,
        promised: GIVEN - 1,
    };
    for (promised, outcome, kind) in [
        (GIVEN + 1, Outcome::Truncated, short),
        (GIVEN - 1, Outcome::Failed, long),
    ] {
        let (error, report) = broken(move |_| {
            let handler = service_fn(move |_: Request<()>| async move {
                let text = stream::iter([Ok::<_, io::Error>("x".repeat(GIVEN as usize))]);
                let head = Response::builder().header(CONTENT_LENGTH, promised);
                Ok::<_, Infallible>(head.body(Body::from_stream(text)).unwrap())
            });
            let encoded = CompressionLayer::new().layer(handler).oneshot(gzip());
            encoded.now_or_never().unwrap().unwrap().map(Body::new)
        })
        .await;
        let failure: &Failure = error.downcast_ref().expect("a failure of ours");
        assert_eq!(*failure.kind(), kind);
        assert_eq!(report.outcome(), outcome, "{report:?}");
        assert_eq!(report.errors.len(), 1, "{report:?}");
    }
}
