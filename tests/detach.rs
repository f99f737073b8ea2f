//! Work that goes on after its client has left, because its handler chose so.
#![expect(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

use std::{
    convert::Infallible,
    future::{Future, IntoFuture, pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, routing::get};
use bodyguard::{
    Cleanup, Disconnect, DisconnectLayer, EndReport, Outcome, Stack, Supervisor,
    disconnect::{DisconnectBody, OnLeave},
    net,
    scope::{Movable, MovableBody, ScopeLayer},
    stack::AllViews,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

const LIMIT: Duration = Duration::from_secs(60);

type Handler = BoxCloneSyncService<Request<()>, Response<Rows>, Infallible>;
type Rows = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// What the work of a test wrote down.
#[derive(Clone, Default)]
struct Ledger {
    steps: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
    endings: Arc<Mutex<Vec<(Outcome, bool, bool)>>>,
    reports: Arc<Mutex<Vec<EndReport>>>,
}

impl Ledger {
    fn steps(&self) -> usize {
        self.steps.load(SeqCst)
    }

    /// Outcome, success, whether the client had gone.
    fn endings(&self) -> Vec<(Outcome, bool, bool)> {
        self.endings.lock().unwrap().clone()
    }

    fn layer(&self) -> ScopeLayer<AllViews, Movable> {
        let reports = self.reports.clone();
        ScopeLayer::new()
            .on_end(move |end| reports.lock().unwrap().push(end.clone()))
            .detachable(LIMIT)
    }

    /// Ten steps of a second each, in the handler or, with `streaming`, in its body.
    fn handler(&self, then: OnLeave, streaming: bool) -> Handler {
        let ledger = self.clone();
        BoxCloneSyncService::new(service_fn(move |request: Request<()>| {
            let ledger = ledger.clone();
            async move {
                let disconnect = Disconnect::of(&request).unwrap();
                disconnect.on_leave(then).unwrap();
                let endings = ledger.endings.clone();
                Cleanup::of(&request).unwrap().defer(move |end| async move {
                    let end = (end.outcome(), end.succeeded(), end.client_gone());
                    endings.lock().unwrap().push(end);
                    Ok(())
                });
                let step = async |ledger: &Ledger| {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    ledger.steps.fetch_add(1, SeqCst);
                    ledger.gone.fetch_or(disconnect.is_gone(), SeqCst);
                };
                if !streaming {
                    for _ in 0..10 {
                        step(&ledger).await;
                    }
                    return Ok(Response::new(Full::new(Bytes::from("made")).boxed_unsync()));
                }
                let rows = futures_util::stream::unfold(0, move |row| {
                    let (ledger, disconnect) = (ledger.clone(), disconnect.clone());
                    async move {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        ledger.steps.fetch_add(1, SeqCst);
                        ledger.gone.fetch_or(disconnect.is_gone(), SeqCst);
                        let frame = Frame::data(Bytes::from_static(b"row"));
                        (row < 10).then_some((Ok(frame), row + 1))
                    }
                });
                Ok(Response::new(StreamBody::new(rows).boxed_unsync()))
            }
        }))
    }
}

fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

async fn first_frame(body: &mut MovableBody) {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    frame.unwrap().unwrap();
}

async fn minutes(minutes: u64) {
    tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_finishes_without_its_client() {
    let ledger = Ledger::default();
    let service = ledger.layer().layer(ledger.handler(OnLeave::Detach, false));
    let mut response = Box::pin(service.oneshot(Request::new(())));
    assert!(poll_once(response.as_mut()).is_pending());
    drop(response);
    assert!(ledger.endings().is_empty());
    minutes(1).await;
    assert_eq!(ledger.steps(), 10);
    assert_eq!(ledger.endings(), [(Outcome::Complete, true, true)]);
    assert!(
        !ledger.gone.load(SeqCst),
        "the token of a detached handler is quiet"
    );
    let reports = ledger.reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].status().unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_finishes_without_its_client_and_its_frames_are_discarded() {
    let ledger = Ledger::default();
    let service = ledger.layer().layer(ledger.handler(OnLeave::Detach, true));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    first_frame(&mut body).await;
    drop(body);
    minutes(1).await;
    assert_eq!(ledger.steps(), 11);
    assert_eq!(ledger.endings(), [(Outcome::Complete, true, true)]);
    assert_eq!(ledger.reports.lock().unwrap()[0].bytes, 30);
}

#[tokio::test(start_paused = true)]
async fn grace_fires_the_token_first_and_is_the_limit() {
    for (grace, steps, ending) in [
        (3, 3, (Outcome::Dropped, false, true)),
        (30, 10, (Outcome::Complete, true, true)),
    ] {
        let ledger = Ledger::default();
        let then = OnLeave::Grace(Duration::from_millis(grace * 1_000 + 500));
        let service = ledger.layer().layer(ledger.handler(then, false));
        let mut response = Box::pin(service.oneshot(Request::new(())));
        assert!(poll_once(response.as_mut()).is_pending());
        drop(response);
        minutes(1).await;
        assert!(ledger.gone.load(SeqCst));
        assert_eq!(ledger.steps(), steps);
        assert_eq!(ledger.endings(), [ending]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_layers_limit_bounds_every_choice() {
    for then in [OnLeave::Detach, OnLeave::Grace(Duration::from_secs(3600))] {
        for streaming in [false, true] {
            let ledger = Ledger::default();
            let layer = ledger.layer().detachable(Duration::from_millis(4_500));
            let service = layer.layer(ledger.handler(then, streaming));
            let mut response = Box::pin(service.oneshot(Request::new(())));
            // Pending, or a response whose body is dropped with it.
            drop(poll_once(response.as_mut()));
            drop(response);
            minutes(1).await;
            assert_eq!(ledger.steps(), 4);
            assert_eq!(ledger.endings(), [(Outcome::Dropped, false, true)]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_is_the_default_and_can_be_chosen_again() {
    let ledger = Ledger::default();
    let service = ledger.layer().layer(ledger.handler(OnLeave::Cancel, false));
    let mut response = Box::pin(service.oneshot(Request::new(())));
    assert!(poll_once(response.as_mut()).is_pending());
    drop(response);
    minutes(1).await;
    assert_eq!(ledger.steps(), 0);
    assert_eq!(ledger.endings(), [(Outcome::Dropped, false, false)]);
}

/// The happy path costs no task: nothing but the test itself is alive at any moment.
#[tokio::test(start_paused = true)]
async fn a_response_that_is_read_spawns_nothing() {
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    for streaming in [false, true] {
        let ledger = Ledger::default();
        let service = ledger
            .layer()
            .layer(ledger.handler(OnLeave::Detach, streaming));
        let mut response = pin!(service.oneshot(Request::new(())));
        let mut most = 0;
        let response = poll_fn(|cx| {
            let polled = response.as_mut().poll(cx);
            most = most.max(alive());
            polled
        });
        let mut body = pin!(response.await.unwrap().into_body());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            frame.unwrap();
            most = most.max(alive());
        }
        assert_eq!(most.max(alive()), 0);
        assert_eq!(ledger.endings(), [(Outcome::Complete, true, false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panicked_is_not_run_on() {
    let ledger = Ledger::default();
    let handler = service_fn(|request: Request<()>| async move {
        let disconnect = Disconnect::of(&request).unwrap();
        disconnect.on_leave(OnLeave::Detach).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(request.uri().path() != "/", "a panic, as it should be");
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let service = ledger.layer().layer(handler);
    let task = tokio::spawn(service.oneshot(Request::new(())));
    assert!(task.await.unwrap_err().is_panic());
    minutes(2).await;
    let reports = ledger.reports.lock().unwrap();
    assert_eq!(reports[0].outcome(), Outcome::Panicked);
}

#[tokio::test(start_paused = true)]
async fn a_body_without_a_layer_finishes_too() {
    let steps = Arc::new(AtomicUsize::new(0));
    let (counted, reports) = (steps.clone(), Ledger::default().reports);
    let rows = futures_util::stream::unfold(0, move |row| {
        counted.fetch_add(1, SeqCst);
        let frame = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"row")));
        async move { (row < 5).then_some((frame, row + 1)) }
    });
    let seen = reports.clone();
    let body = DisconnectBody::new(StreamBody::new(rows))
        .on_end(move |end| seen.lock().unwrap().push(end.clone()))
        .detachable(LIMIT);
    body.disconnect().on_leave(OnLeave::Detach).unwrap();
    drop(body);
    minutes(1).await;
    assert_eq!(steps.load(SeqCst), 6);
    let reports = reports.lock().unwrap();
    assert_eq!(reports[0].outcome(), Outcome::Complete);
    assert!(reports[0].ending.client_gone());
}

#[tokio::test]
async fn without_an_armed_layer_the_error_names_it() {
    let app = Router::new().route(
        "/",
        get(|disconnect: Disconnect| async move { disconnect.on_leave(OnLeave::Detach) }),
    );
    let app = app.layer(Stack::new());
    let request = Request::new(axum::body::Body::empty());
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 500);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains(".detachable(limit)"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_detached_work_and_ends_it_in_time() {
    let (ledger, supervisor) = (Ledger::default(), Supervisor::new());
    let layer = ledger.layer().supervisor(&supervisor);
    for (deadline, ended) in [(40, Outcome::Complete), (8, Outcome::Shutdown)] {
        let supervisor = Supervisor::new();
        let ledger = Ledger::default();
        let layer = layer.clone().supervisor(&supervisor);
        let service = layer.layer(ledger.handler(OnLeave::Detach, false));
        let mut response = Box::pin(service.oneshot(Request::new(())));
        assert!(poll_once(response.as_mut()).is_pending());
        drop(response);
        let report = supervisor.drain(Duration::from_secs(deadline)).await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(ledger.endings()[0].0, ended);
    }
}

/// The owner further out ends with its client; the armed layer's own scope goes on.
#[tokio::test(start_paused = true)]
async fn armed_inside_a_layer_that_is_not() {
    for streaming in [false, true] {
        let (ledger, supervisor) = (Ledger::default(), Supervisor::new());
        let routed = DisconnectLayer::new().detachable(LIMIT);
        let inner = routed.layer(ledger.handler(OnLeave::Detach, streaming));
        let service = Stack::new().supervisor(&supervisor).layer(inner);
        let mut response = Box::pin(service.oneshot(Request::new(())));
        drop(poll_once(response.as_mut()));
        drop(response);
        let report = supervisor.drain(Duration::from_secs(60)).await;
        assert!(report.is_clean(), "{report}");
        assert!(ledger.steps() >= 10);
        assert_eq!(ledger.endings(), [(Outcome::Complete, true, true)]);
    }
}

/// hyper does not notice a client that left behind a pipelined byte; the watched connection does,
/// and the limit counts from then.
#[tokio::test]
async fn detached_by_the_connection_although_the_server_holds_on() {
    let (started, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let endings = Arc::new(Mutex::new(Vec::new()));
    let flags = (started.clone(), release.clone(), endings.clone());
    let handler = move |disconnect: Disconnect, cleanup: Cleanup| {
        let (started, release, endings) = flags.clone();
        async move {
            disconnect.on_leave(OnLeave::Grace(LIMIT)).unwrap();
            cleanup.defer_sync(move |end| {
                endings
                    .lock()
                    .unwrap()
                    .push((end.outcome(), end.client_gone()));
            });
            started.notify_one();
            disconnect.gone().await;
            release.notified().await;
            "done without you"
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .route("/hang", get(pending::<()>));
    let supervisor = Supervisor::new();
    let app = app.layer(Stack::new().supervisor(&supervisor).detachable(LIMIT));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let server = net::serve(listener, app)
        .supervisor(&supervisor)
        .shutdown(async move { stopped.notified().await });
    let server = tokio::spawn(server.into_future());
    let mut client = TcpStream::connect(addr).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    started.notified().await;
    client.shutdown().await.unwrap();
    // The work goes on and watches, and the socket is closed nevertheless: the client does not hang.
    let mut rest = Vec::new();
    let end = client.read_to_end(&mut rest);
    let end = tokio::time::timeout(Duration::from_secs(20), end).await;
    assert!(end.is_ok(), "the connection is still open");
    assert_eq!(supervisor.active(), 1);
    release.notify_one();
    tokio::time::timeout(Duration::from_secs(20), async {
        while endings.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the work ends");
    assert_eq!(*endings.lock().unwrap(), [(Outcome::Complete, true)]);
    stop.notify_one();
    assert!(server.await.unwrap().unwrap().is_clean());
}
