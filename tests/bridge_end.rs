//! The ends of the bridge: what is stopped stays stopped, and what did not run is said.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
use bodyguard::{
    BodyError, BoxError, Cleanup, CleanupLayer, DrainReport, EndReport, Supervisor,
    bridge::{
        Bridge, BridgeError, BridgeErrorKind as Kind, BridgeLayer, Context, Cx, Pool, SyncBody,
    },
    scope::{Failure, FailureKind},
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
};
use tower::ServiceExt as _;

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

fn background<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Handle::current().spawn(future)
}

async fn ask(app: Router) -> Response {
    within(app.oneshot(Request::new(Body::empty())))
        .await
        .unwrap()
}

fn endless() -> Body {
    Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>())
}

/// The layer on this pool, and the reports of the ends.
fn reporting(pool: &Pool) -> (BridgeLayer, mpsc::Receiver<EndReport>) {
    let (reported, reports) = mpsc::channel();
    let layer = BridgeLayer::new()
        .pool(pool)
        .on_end(move |report| reported.send(report.clone()).unwrap());
    (layer, reports)
}

async fn reported(reports: &mpsc::Receiver<EndReport>) -> EndReport {
    let mut report = None;
    eventually(|| {
        report = reports.try_recv().ok();
        report.is_some()
    })
    .await;
    report.unwrap()
}

/// Sets a flag when it is dropped.
struct Noted(Arc<AtomicBool>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sync code that holds the request's thread until it is let go.
struct Computing {
    release: mpsc::Sender<()>,
    done: JoinHandle<()>,
}

impl Computing {
    async fn on(bridge: &Bridge) -> Self {
        let (started, has_started) = oneshot::channel();
        let (release, released) = mpsc::channel();
        let call = bridge.call(move |_| {
            started.send(()).unwrap();
            let _ = released.recv();
        });
        let done = background(async move { call.await.unwrap() });
        within(has_started).await.unwrap();
        Self { release, done }
    }

    async fn end(self) {
        drop(self.release);
        within(self.done).await.unwrap();
    }
}

fn hasty() -> Pool {
    Pool::builder()
        .close_limit(Duration::from_millis(20))
        .build()
}

fn still_running(error: &Failure) -> &str {
    match error.kind() {
        FailureKind::StillRunning { what } => what,
        other => panic!("not what was expected: {other:?}"),
    }
}

/// Blocks when it is dropped, until it is let go.
struct Slow(mpsc::Receiver<()>);

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.recv();
    }
}

/// Says that it is dropped.
struct Notes(mpsc::Sender<()>);

impl Drop for Notes {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// What is thrown, and throws itself when it is caught and dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("again");
    }
}

/// Lets every task that is ready run once.
async fn turn(bridge: &Bridge) {
    within(bridge.run(tokio::task::yield_now)).await.unwrap();
}

#[tokio::test]
async fn an_aborted_task_that_is_then_dropped_stays_aborted() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let gone = Arc::new(AtomicBool::new(false));
    let note = Noted(Arc::clone(&gone));
    let spawned = bridge.call(move |cx| {
        let mut task = cx.spawn_local(async move {
            let _note = note;
            std::future::pending::<()>().await;
        });
        cx.block_on(tokio::task::yield_now()).unwrap();
        task.abort();
        drop(task);
    });
    within(spawned).await.unwrap();
    turn(&bridge).await;
    assert!(gone.load(Ordering::Acquire), "it runs on");
    assert_eq!(within(context.close()).await.tasks_cancelled(), 0);
}

#[tokio::test]
async fn a_task_aborted_and_dropped_before_its_start_is_never_started() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let computing = Computing::on(&bridge).await;
    let started = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&started);
    let mut task = bridge.spawn_local(move || async move { seen.store(true, Ordering::Release) });
    task.abort();
    drop(task);
    computing.end().await;
    turn(&bridge).await;
    assert!(!started.load(Ordering::Acquire), "it was started");
    within(context.close()).await;
}

#[tokio::test]
async fn a_body_whose_closer_does_not_come_back_fails_and_names_it() {
    let (release, released) = mpsc::channel::<()>();
    // Long enough for a thread to begin the first closer.
    let pool = Pool::builder().close_limit(Duration::from_millis(500));
    let body = SyncBody::in_pool(pool.build(), |bridge| {
        bridge.defer(|_| ()).unwrap();
        bridge
            .defer(move |_| {
                let _ = released.recv();
            })
            .unwrap();
        bridge.body_from_iter(["rows"])
    });
    let error: BodyError = within(body.collect()).await.unwrap_err();
    let what = still_running(error.downcast_ref().unwrap());
    assert!(what.contains("tests/bridge_end.rs"), "{what}");
    assert!(what.ends_with("; 1 closer has not run"), "{what}");
    drop(release);
}

#[tokio::test]
async fn a_value_that_does_not_drop_in_time_is_no_clean_close() {
    let context = Context::new(hasty());
    let (release, released) = mpsc::channel::<()>();
    let kept = context.bridge().call(move |cx| {
        cx.insert(Slow(released));
    });
    within(kept).await.unwrap();
    let report = within(context.close()).await;
    assert_eq!((report.unrun(), report.failures().len()), (0, 1));
    let what = still_running(report.failures()[0].downcast_ref().unwrap());
    // The call is over: it is not what keeps the thread.
    assert_eq!(
        what,
        "thread bridge-1, busy with the request's tasks or values"
    );
    drop(release);
}

#[tokio::test]
async fn a_closer_is_interrupted_once_its_close_has_overrun() {
    let pool = Pool::builder()
        .max_threads(1)
        .close_limit(Duration::from_millis(20))
        .closer_limit(Duration::from_secs(3600))
        .build();
    let context = Context::new(pool.clone());
    let (told, was_told) = oneshot::channel();
    let waits = move |cx: &Cx| {
        told.send(cx.block_on(std::future::pending::<()>()))
            .unwrap()
    };
    context.bridge().defer(waits).unwrap();
    let report = within(context.close()).await;
    let what = still_running(report.failures()[0].downcast_ref().unwrap());
    assert!(what.contains("tests/bridge_end.rs"), "{what}");
    let waited = within(was_told).await.unwrap();
    assert_eq!(waited.unwrap_err().kind(), Kind::Ended);
    eventually(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn a_second_close_waits_for_the_last_drop_too() {
    let context = Context::new(hasty());
    let (release, released) = mpsc::channel::<()>();
    let kept = context.bridge().call(move |cx| {
        cx.insert(Slow(released));
    });
    within(kept).await.unwrap();
    let closing = background(context.close());
    for report in [
        within(closing).await.unwrap(),
        within(context.close()).await,
    ] {
        still_running(report.failures()[0].downcast_ref().unwrap());
    }
    drop(release);
}

#[tokio::test]
async fn a_second_close_is_told_the_same() {
    let context = Context::new(Pool::new());
    let (release, released) = mpsc::channel::<()>();
    let (ran, has_run) = mpsc::channel();
    let closer = move |cx: &Cx| {
        cx.insert((Notes(ran), Slow(released)));
        Err(std::io::Error::other("disk full"))
    };
    context.bridge().try_defer(closer).unwrap();
    let first = background(context.close());
    has_run.recv_timeout(Duration::from_secs(10)).unwrap();
    let second = background(context.close());
    drop(release);
    for close in [first, second] {
        let report = within(close).await.unwrap();
        assert_eq!(report.failures()[0].to_string(), "disk full");
        assert_eq!(report.closers_run(), 1);
    }
}

#[tokio::test]
async fn closers_that_never_had_a_thread_are_no_clean_close() {
    let pool = Pool::builder()
        .max_threads(1)
        .close_limit(Duration::from_millis(20))
        .build();
    let (taken, context) = (Context::new(pool.clone()), Context::new(pool));
    within(taken.bridge().call(|_| ())).await.unwrap();
    context.bridge().defer(|_| ()).unwrap();
    let report = within(context.close()).await;
    assert_eq!(report.unrun(), 1);
    let error: &BridgeError = report.failures()[0].downcast_ref().unwrap();
    assert_eq!(error.kind(), Kind::Exhausted);
    within(taken.close()).await;
}

#[tokio::test]
async fn a_panic_that_panics_when_dropped_keeps_no_closer_from_running() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    bridge.defer(|_| ()).unwrap();
    bridge.defer(|_| std::panic::panic_any(Grenade)).unwrap();
    let report = within(context.close()).await;
    assert_eq!((report.closers_run(), report.failures().len()), (2, 1));
}

#[tokio::test]
async fn a_panic_that_panics_when_dropped_does_not_cost_the_thread() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let computing = Computing::on(&bridge).await;
    // Given up before it has started, so that the thread drops it.
    let thrown = Thrown;
    let mut task = bridge.spawn_local(move || async move { drop(thrown) });
    task.abort();
    computing.end().await;
    within(bridge.call(|_| ())).await.unwrap();
    assert!(within(context.close()).await.failures().is_empty());
}

/// Throws a grenade when it is dropped.
struct Thrown;

impl Drop for Thrown {
    fn drop(&mut self) {
        std::panic::panic_any(Grenade);
    }
}

#[tokio::test]
async fn a_task_in_line_at_the_end_does_not_start_with_the_first_closer() {
    let pool = Pool::builder().max_threads(1).build();
    let (layer, reports) = reporting(&pool);
    let taken = Context::new(pool.clone());
    within(taken.bridge().call(|_| ())).await.unwrap();
    let (told, order) = mpsc::channel();
    let handler = move |bridge: Bridge| async move {
        let closer = told.clone();
        bridge
            .defer(move |_| closer.send("closer").unwrap())
            .unwrap();
        let task = bridge.spawn_local(move || async move { told.send("task").unwrap() });
        task.detach();
        endless()
    };
    let app = Router::new().route("/", get(handler)).layer(layer);
    drop(ask(app).await);
    // The teardown goes to where the closer waits for its thread.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.waiting(), 1);
    within(taken.close()).await;
    assert_eq!(reported(&reports).await.counts.closers_run, 1);
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["closer"]);
}

/// A client that leaves as soon as `started` says so.
async fn visit(app: Router, started: oneshot::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    background(async move { axum::serve(listener, app).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";
    client.write_all(head).await.unwrap();
    within(started).await.unwrap();
}

/// Computes until the flag says that it need not go on. False if it never does.
fn compute_until(ended: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !ended() {
        if begun.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[tokio::test]
async fn computing_code_sees_the_end_and_later_closers_do_not() {
    let pool = Pool::new();
    let (layer, reports) = reporting(&pool);
    let (started, has_started) = oneshot::channel();
    let (told, seen) = mpsc::channel();
    let parts = Arc::new(Mutex::new(Some((started, told))));
    let handler = move |bridge: Bridge| async move {
        let (started, told) = parts.lock().unwrap().take().unwrap();
        let (closing, by_closer) = (bridge.clone(), told.clone());
        let closer = move |cx: &Cx| {
            let flags = (cx.is_ended(), closing.is_ended());
            by_closer.send(("closer", flags.0, flags.1)).unwrap();
            assert_eq!(cx.block_on(async { 3 }).unwrap(), 3);
        };
        bridge.defer(closer).unwrap();
        let handle = bridge.clone();
        let call = bridge.call(move |cx| {
            started.send(()).unwrap();
            let by_cx = compute_until(|| cx.is_ended());
            let waited = cx.block_on(std::future::pending::<()>());
            assert_eq!(waited.unwrap_err().kind(), Kind::Ended);
            told.send(("call", by_cx, handle.is_ended())).unwrap();
        });
        // Its caller stays when the client leaves.
        background(call);
        endless()
    };
    visit(
        Router::new().route("/", get(handler)).layer(layer),
        has_started,
    )
    .await;
    assert_eq!(reported(&reports).await.errors.len(), 0);
    assert_eq!(
        seen.try_iter().collect::<Vec<_>>(),
        [("call", true, true), ("closer", false, false)]
    );
}

#[tokio::test]
async fn a_call_whose_caller_has_left_sees_it() {
    let pool = Pool::new();
    let (layer, reports) = reporting(&pool);
    let (started, has_started) = oneshot::channel();
    let (told, seen) = mpsc::channel();
    let parts = Arc::new(Mutex::new(Some((started, told))));
    let handler = move |bridge: Bridge| async move {
        let (started, told) = parts.lock().unwrap().take().unwrap();
        // Dropped with the handler, when its client leaves.
        let call = bridge.call(move |cx| {
            started.send(()).unwrap();
            told.send(compute_until(|| cx.is_ended())).unwrap();
        });
        call.await.unwrap();
    };
    visit(
        Router::new().route("/", get(handler)).layer(layer),
        has_started,
    )
    .await;
    reported(&reports).await;
    assert!(seen.try_recv().unwrap());
}

#[tokio::test]
async fn a_call_dropped_before_the_end_sees_it() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (started, has_started) = oneshot::channel();
    let (told, seen) = oneshot::channel();
    let call = bridge.call(move |cx| {
        started.send(()).unwrap();
        told.send(compute_until(|| cx.is_ended())).unwrap();
    });
    let caller = background(call);
    within(has_started).await.unwrap();
    assert!(!bridge.is_ended());
    caller.abort();
    assert!(within(seen).await.unwrap());
    assert!(!bridge.is_ended(), "the request goes on");
    within(context.close()).await;
    assert!(bridge.is_ended());
}

#[tokio::test]
async fn a_closer_without_a_layer_may_wait_and_is_told_so() {
    let context = Context::new(Pool::new());
    let (told, seen) = mpsc::channel();
    let closer = move |cx: &Cx| told.send((cx.is_ended(), cx.block_on(async {}).is_ok()));
    let deferred = context.bridge().try_defer(closer);
    deferred.unwrap();
    within(context.close()).await;
    assert_eq!(seen.try_recv().unwrap(), (false, true));
}

#[tokio::test]
async fn a_closer_for_which_no_thread_could_be_started_is_unrun() {
    let pool = Pool::builder().stack_size(1 << 60).build();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    bridge.defer(|_| ()).unwrap();
    let error = within(bridge.call(|_| ())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Start);
    let report = within(context.close()).await;
    assert_eq!((report.unrun(), report.closers_run()), (1, 0));
    let error: &BridgeError = report.failures()[0].downcast_ref().unwrap();
    assert_eq!(error.kind(), Kind::Start);
    assert_eq!((pool.threads(), pool.waiting()), (0, 0));
}

/// What a drain says of a response whose one closer gets no thread of the pool.
async fn drained_without_a_thread(pool: &Pool) -> (DrainReport, EndReport) {
    let (layer, reports) = reporting(pool);
    let supervisor = Supervisor::new();
    let handler = |bridge: Bridge| async move {
        bridge.defer(|_| ()).unwrap();
        endless()
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(layer.supervisor(&supervisor));
    drop(ask(app).await);
    let drained = within(supervisor.drain(Duration::from_secs(10))).await;
    (drained, reported(&reports).await)
}

fn assert_unrun((drained, report): (DrainReport, EndReport), kind: Kind) {
    assert_eq!((drained.unrun, drained.is_clean()), (1, false));
    let counts = report.counts;
    assert_eq!((counts.closers_run, counts.closers_unrun), (0, 1));
    assert_eq!(counts.closers_failed, 1);
    let error: &BridgeError = report.errors[0].downcast_ref().unwrap();
    assert_eq!((error.kind(), report.errors.len()), (kind, 1));
}

#[tokio::test]
async fn a_responses_closer_that_no_thread_came_free_for_is_unrun() {
    let pool = Pool::builder()
        .max_threads(1)
        .wait_limit(Duration::from_millis(20))
        .build();
    let taken = Context::new(pool.clone());
    within(taken.bridge().call(|_| ())).await.unwrap();
    assert_unrun(drained_without_a_thread(&pool).await, Kind::Exhausted);
    within(taken.close()).await;
}

#[tokio::test]
async fn a_responses_closer_that_no_thread_could_be_started_for_is_unrun() {
    let pool = Pool::builder().stack_size(1 << 60).build();
    assert_unrun(drained_without_a_thread(&pool).await, Kind::Start);
}

#[tokio::test]
async fn a_client_is_not_told_of_success_when_the_closer_did_not_run() {
    let pool = Pool::builder().stack_size(1 << 60).build();
    let (layer, reports) = reporting(&pool);
    let handler = |bridge: Bridge, cleanup: Cleanup| async move {
        cleanup.defer(|ending| async move { assert_not(ending.succeeded()) });
        bridge.defer(|_| ()).unwrap();
        "rows"
    };
    let app = Router::new().route("/", get(handler));
    let response = ask(app.layer(layer).layer(CleanupLayer::new())).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let report = reported(&reports).await;
    assert_eq!((report.counts.closers_run, report.errors.len()), (1, 1));
}

fn assert_not(succeeded: bool) -> Result<(), BoxError> {
    if succeeded {
        return Err("a closer before this one has not run".into());
    }
    Ok(())
}

/// Runs the test on a runtime that cannot keep time.
fn without_timers<F: Future<Output = ()> + Send + 'static>(test: F) {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(test);
        done.send(()).unwrap();
    });
    let result = finished.recv_timeout(Duration::from_secs(20));
    result.expect("panicked, or took too long");
}

#[test]
fn waits_without_timers_have_no_limit() {
    without_timers(async {
        let pool = Pool::builder().max_threads(1).build();
        let (taken, context) = (Context::new(pool.clone()), Context::new(pool.clone()));
        let (release, released) = mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let blocked = background(taken.bridge().call(move |_| {
            started.send(()).unwrap();
            released.recv().is_err()
        }));
        has_started.await.unwrap();
        let in_line = background(context.bridge().call(|_| 3));
        while pool.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let mut close = taken.close();
        tokio::select! {
            biased;
            _ = &mut close => panic!("the call is not back"),
            () = tokio::task::yield_now() => {}
        }
        drop(release);
        assert!(blocked.await.unwrap().unwrap());
        assert!(close.await.failures().is_empty());
        assert_eq!(in_line.await.unwrap().unwrap(), 3);
        assert!(context.close().await.failures().is_empty());
    });
}

#[test]
fn a_body_without_timers_fails_without_a_gap() {
    without_timers(async {
        let mut body = SyncBody::writer(|out| {
            out.write_all(b"rows")?;
            Err(std::io::Error::other("no more"))
        });
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "rows");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.cause().to_string(), "no more");
    });
}
