//! Cloned requests: every attempt has a scope of its own, and its closers see its own ending.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bodyguard::{BoxError, Cleanup, CleanupLayer, Outcome, Supervisor, testing::Script};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

mod support;

type Boxed = BoxCloneSyncService<Request<()>, Response<Body>, BoxError>;

/// One line for each closer: attempt, outcome, status, success; and when it ran.
type Log = Arc<Mutex<Vec<(usize, Outcome, Option<u16>, bool)>>>;

fn scoped(supervisor: &Supervisor, inner: Boxed) -> Boxed {
    let layer = CleanupLayer::new().supervisor(supervisor);
    BoxCloneSyncService::new(layer.layer(inner).map_response(|r| r.map(Body::new)))
}

/// A handler whose attempts are numbered; each registers a closer and answers as `answer` says.
fn attempts<F, Fut>(log: &Log, answer: F) -> Boxed
where
    F: Fn(usize) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let (log, count) = (log.clone(), Arc::new(AtomicUsize::new(0)));
    BoxCloneSyncService::new(service_fn(move |request: Request<()>| {
        let attempt = count.fetch_add(1, SeqCst) + 1;
        let log = log.clone();
        Cleanup::of(&request)
            .unwrap()
            .defer(move |ending| async move {
                let status = ending.status().map(|status| status.as_u16());
                let line = (attempt, ending.outcome(), status, ending.succeeded());
                log.lock().unwrap().push(line);
                Ok(())
            });
        let answer = answer(attempt);
        async { Ok::<_, BoxError>(answer.await) }
    }))
}

fn stream() -> Body {
    Body::new(Script::new().data("a").pending().data("b"))
}

fn taken(log: &Log) -> Vec<(usize, Outcome, Option<u16>, bool)> {
    std::mem::take(&mut *log.lock().unwrap())
}

async fn torn_down(supervisor: &Supervisor) {
    support::eventually(|| supervisor.active() == 0).await;
}

#[derive(Clone)]
struct UntilFine;

impl tower::retry::Policy<Request<()>, Response<Body>, BoxError> for UntilFine {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<()>,
        result: &mut Result<Response<Body>, BoxError>,
    ) -> Option<Self::Future> {
        let fine = result
            .as_ref()
            .is_ok_and(|response| response.status().is_success());
        (!fine).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn retried_attempts_see_their_own_endings_at_their_own_time() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let seen_before = Arc::new(Mutex::new(Vec::new()));
    let (seen, so_far) = (seen_before.clone(), log.clone());
    let handler = attempts(&log, move |attempt| {
        let (seen, so_far) = (seen.clone(), so_far.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            seen.lock().unwrap().push(so_far.lock().unwrap().len());
            let mut response = Response::new(stream());
            if attempt < 3 {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    });
    let retry = tower::retry::Retry::new(UntilFine, scoped(&supervisor, handler));
    let service = scoped(&supervisor, BoxCloneSyncService::new(retry));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 200);
    // Each lost attempt was closed before the next one had its answer.
    assert_eq!(*seen_before.lock().unwrap(), [0, 1, 2]);
    let lost = [
        (1, Outcome::Dropped, Some(503), false),
        (2, Outcome::Dropped, Some(503), false),
    ];
    assert_eq!(taken(&log), lost);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ab"
    );
    assert_eq!(taken(&log), [(3, Outcome::Complete, Some(200), true)]);
    torn_down(&supervisor).await;
}

/// What came of an attempt that lost is told by its own report, and not by the winner's.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_closes_the_winner_hears_nothing_of_the_lost_attempt() {
    let supervisor = Supervisor::new();
    let handler = service_fn({
        let count = Arc::new(AtomicUsize::new(0));
        move |request: Request<()>| {
            let lost = count.fetch_add(1, SeqCst) == 0;
            Cleanup::of(&request).unwrap().defer(move |_| async move {
                match lost {
                    true => Err("rollback of the lost attempt failed".into()),
                    false => Ok(()),
                }
            });
            let status = if lost { 503 } else { 200 };
            let mut response = Response::new(stream());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            async { Ok::<_, BoxError>(response) }
        }
    });
    let inner = scoped(&supervisor, BoxCloneSyncService::new(handler));
    let retrying = tower::retry::Retry::new(UntilFine, inner);
    let succeeded = Arc::new(Mutex::new(None));
    let seen = succeeded.clone();
    let outer = service_fn(move |request: Request<()>| {
        let seen = seen.clone();
        Cleanup::of(&request)
            .unwrap()
            .defer_sync(move |ending| *seen.lock().unwrap() = Some(ending.succeeded()));
        retrying.clone().oneshot(request)
    });
    let service = scoped(&supervisor, BoxCloneSyncService::new(outer));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 200);
    let (parts, body) = response.into_parts();
    body.collect().await.unwrap();
    let response = Response::from_parts(parts, Body::empty());
    let report = bodyguard::close(response).await.unwrap().unwrap();
    assert_eq!(report.errors.len(), 0, "{report:?}");
    assert_eq!(report.counts.closers_failed, 1);
    let success = succeeded.lock().unwrap().take();
    assert_eq!(
        success,
        Some(true),
        "a lost attempt's rollback is not the answer's"
    );
}

/// An attempt that is over with its head is torn down before anybody knows that it is the answer.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_closes_a_winner_hears_what_failed_before_its_head() {
    let supervisor = Supervisor::new();
    let handler = service_fn(|request: Request<()>| {
        Cleanup::of(&request)
            .unwrap()
            .defer(|_| async { Err("commit failed".into()) });
        async { Ok::<_, BoxError>(Response::new(Body::from("ab"))) }
    });
    let inner = scoped(&supervisor, BoxCloneSyncService::new(handler));
    // Sends a copy, and keeps the request.
    let mirror = service_fn(move |request: Request<()>| inner.clone().oneshot(request.clone()));
    let service = scoped(&supervisor, BoxCloneSyncService::new(mirror));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 500);
    let error = bodyguard::close(response).await.unwrap_err();
    assert_eq!(error.errors().len(), 1, "{error:?}");
    assert_eq!(error.errors()[0].to_string(), "commit failed");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_attempt_under_way() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let handler = attempts(&log, |attempt| async move {
        if attempt == 2 {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    });
    let retry = tower::retry::Retry::new(UntilFine, scoped(&supervisor, handler));
    let service = scoped(&supervisor, BoxCloneSyncService::new(retry));
    let answering = service.oneshot(Request::new(()));
    tokio::time::timeout(Duration::from_secs(1), answering)
        .await
        .unwrap_err();
    torn_down(&supervisor).await;
    let expected = [
        // An empty body is over with its head; a 503 is complete, and no success.
        (1, Outcome::Complete, Some(503), false),
        (2, Outcome::Dropped, None, false),
    ];
    assert_eq!(taken(&log), expected);
}

#[derive(Clone)]
struct Hedged;

impl tower::hedge::Policy<Request<()>> for Hedged {
    fn clone_request(&self, request: &Request<()>) -> Option<Request<()>> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &Request<()>) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_has_a_winner_and_a_loser() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let handler = attempts(&log, |attempt| async move {
        if attempt == 1 {
            std::future::pending::<()>().await;
        }
        Response::new(stream())
    });
    let hedge = tower::hedge::Hedge::new_with_mock_latencies(
        scoped(&supervisor, handler),
        Hedged,
        1,
        0.5,
        Duration::from_secs(60),
        &[10, 10, 10],
    );
    let layer = CleanupLayer::new().supervisor(&supervisor);
    let mut service = layer.layer(hedge);
    let response = service
        .ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    // The loser went with the hedge's future, as soon as there was a winner.
    support::in_turns(|| !log.lock().unwrap().is_empty()).await;
    assert_eq!(taken(&log), [(1, Outcome::Dropped, None, false)]);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ab"
    );
    assert_eq!(taken(&log), [(2, Outcome::Complete, Some(200), true)]);
    torn_down(&supervisor).await;
}

/// Sends every request to both, and answers with the primary's response.
#[derive(Clone)]
struct Mirror {
    inner: Boxed,
    mirrored: Arc<Mutex<JoinSet<()>>>,
}

impl Service<Request<()>> for Mirror {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let mirrored = self.inner.clone().oneshot(request.clone());
        // The primary is called first, and is attempt 1.
        let primary = self.inner.call(request);
        self.mirrored.lock().unwrap().spawn(async move {
            let response = mirrored.await.unwrap();
            let _ = response.into_body().collect().await;
        });
        primary
    }
}

fn mirror(supervisor: &Supervisor, log: &Log) -> (Boxed, Arc<Mutex<JoinSet<()>>>) {
    let handler = attempts(log, |attempt| async move {
        if attempt == 2 {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Response::new(stream())
    });
    let mirrored = Arc::new(Mutex::new(JoinSet::new()));
    let mirror = Mirror {
        inner: scoped(supervisor, handler),
        mirrored: mirrored.clone(),
    };
    (
        scoped(supervisor, BoxCloneSyncService::new(mirror)),
        mirrored,
    )
}

#[tokio::test(start_paused = true)]
async fn a_mirror_does_not_delay_the_client_of_the_primary() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let (service, _mirrored) = mirror(&supervisor, &log);
    let start = Instant::now();
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ab"
    );
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(taken(&log), [(1, Outcome::Complete, Some(200), true)]);
    // The mirror's scope lives on, and ends by itself.
    assert_eq!(supervisor.active(), 1);
    torn_down(&supervisor).await;
    assert!(start.elapsed() >= Duration::from_secs(5));
    assert_eq!(taken(&log), [(2, Outcome::Complete, Some(200), true)]);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_the_primary_that_leaves_ends_the_mirror() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let (service, _mirrored) = mirror(&supervisor, &log);
    let start = Instant::now();
    let response = service.oneshot(Request::new(())).await.unwrap();
    // Let the mirror begin.
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(response);
    torn_down(&supervisor).await;
    assert!(start.elapsed() < Duration::from_secs(1));
    let mut lines = taken(&log);
    lines.sort_by_key(|line| line.0);
    let expected = [
        (1, Outcome::Dropped, Some(200), false),
        (2, Outcome::Dropped, None, false),
    ];
    assert_eq!(lines, expected);
}

/// Without a scope layer inside, all attempts are one request's: its closers see how that ends.
#[tokio::test(start_paused = true)]
async fn attempts_without_an_inner_layer_share_the_scope() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let handler = attempts(&log, |attempt| async move {
        let status = if attempt == 1 { 503 } else { 200 };
        Response::builder().status(status).body(stream()).unwrap()
    });
    let retry = tower::retry::Retry::new(UntilFine, handler);
    let service = scoped(&supervisor, BoxCloneSyncService::new(retry));
    let response = service.oneshot(Request::new(())).await.unwrap();
    response.into_body().collect().await.unwrap();
    let fine = |attempt| (attempt, Outcome::Complete, Some(200), true);
    assert_eq!(taken(&log), [fine(2), fine(1)]);
}
