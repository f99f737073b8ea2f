//! What the bridge does for those who have gone, and says of what came back late.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, routing::get};
use bodyguard::{
    Cleanup, EndReport, Outcome, Stack,
    bridge::{Bridge, BridgeErrorKind as Kind, Context, Cx, Pool, SyncBody},
    scope::{Failure, FailureKind},
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, sync::oneshot};
use tower::ServiceExt as _;

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

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
        started = within(has_started) => started.unwrap(),
    }
    drop(body);
    eventually(|| pool.idle() == 1).await;
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
async fn calls_given_up_do_not_pile_up_while_the_thread_is_busy() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (started, has_started) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let busy = Handle::current().spawn(bridge.call(move |_| {
        started.send(()).unwrap();
        let _ = released.recv();
    }));
    has_started.await.unwrap();
    let kept = Arc::new(());
    let (called, ran) = (Arc::clone(&kept), Arc::clone(&kept));
    let mut call = Box::pin(bridge.call(move |_| drop(called)));
    let mut run = Box::pin(bridge.run(move || async { drop(ran) }));
    assert!(call.as_mut().now_or_never().is_none());
    assert!(run.as_mut().now_or_never().is_none());
    assert_eq!(Arc::strong_count(&kept), 3);
    drop((call, run));
    assert_eq!(Arc::strong_count(&kept), 1);
    drop(release);
    within(busy).await.unwrap().unwrap();
    within(context.close()).await;
}

#[tokio::test]
async fn code_that_got_no_thread_does_not_run_after_its_error() {
    let pool = Pool::builder()
        .max_threads(1)
        .wait_limit(Duration::from_millis(10))
        .build();
    let taken = Context::new(pool.clone());
    taken.bridge().call(|_| ()).await.unwrap();
    let late = Context::new(pool.clone());
    let bridge = late.bridge();
    let ran = Arc::new(AtomicUsize::new(0));
    let (by_call, by_run) = (Arc::clone(&ran), Arc::clone(&ran));
    let mut call = Box::pin(bridge.call(move |_| by_call.fetch_add(1, Ordering::Relaxed)));
    let mut run = Box::pin(bridge.run(move || async move {
        by_run.fetch_add(1, Ordering::Relaxed);
    }));
    // Both are told, and nobody has dropped them when the thread comes free.
    let errors = within(async { tokio::join!(call.as_mut(), run.as_mut()) }).await;
    assert_eq!(errors.0.unwrap_err().kind(), Kind::Exhausted);
    assert_eq!(errors.1.unwrap_err().kind(), Kind::Exhausted);
    within(taken.close()).await;
    within(bridge.call(|_| ())).await.unwrap();
    assert_eq!(ran.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&ran), 1);
    drop((call, run));
    within(late.close()).await;
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
    let response = within(app.oneshot(Request::new(Body::empty()))).await;
    let broken = within(response.unwrap().into_body().collect()).await;
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

/// Runs in its drop, on the request's thread.
struct AtDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for AtDrop<F> {
    fn drop(&mut self) {
        self.0.take().unwrap()();
    }
}

#[tokio::test]
async fn values_that_leave_others_behind_and_panic_cost_no_thread() {
    let pool = Pool::builder().max_threads(1).build();
    let context = Context::new(pool.clone());
    let told = Arc::new(());
    let refused = Arc::clone(&told);
    let dropped = Arc::new(AtomicBool::new(false));
    let was_dropped = Arc::clone(&dropped);
    let set_up = context.bridge().call(move |cx| {
        cx.insert(AtDrop(Some(move || {
            Cx::with_current(move |cx| {
                let closer = Arc::clone(&refused);
                let late = cx.defer(move |_| drop(closer)).unwrap_err();
                assert_eq!(late.kind(), Kind::Ended);
                let at_once = Arc::strong_count(&refused) == 2;
                was_dropped.store(at_once, Ordering::Relaxed);
                let panics = || panic!("second value");
                cx.insert(AtDrop(Some(panics)));
                cx.spawn_local(async move {
                    let _refused = refused;
                    std::future::pending::<()>().await;
                })
                .detach();
            })
            .unwrap();
        })));
    });
    within(set_up).await.unwrap();
    let next = Context::new(pool.clone());
    let waiting = Handle::current().spawn(next.bridge().call(|_| "served"));
    eventually(|| pool.waiting() == 1).await;
    within(context.close()).await;
    assert!(dropped.load(Ordering::Relaxed), "with its refusal");
    assert_eq!(within(waiting).await.unwrap().unwrap(), "served");
    assert_eq!((pool.threads(), Arc::strong_count(&told)), (1, 1));
    within(next.close()).await;
}

/// A task that starts the like of it as it is dropped, as long as it can.
struct Respawns;

impl Respawns {
    fn spawn(cx: &Cx) {
        let again = Respawns;
        cx.spawn_local(async move {
            let _again = again;
            std::future::pending::<()>().await;
        })
        .detach();
    }
}

impl Drop for Respawns {
    fn drop(&mut self) {
        Cx::with_current(Respawns::spawn);
    }
}

/// A value that is there again as soon as it has gone.
struct Returns(Arc<()>);

impl Drop for Returns {
    fn drop(&mut self) {
        Cx::with_current(|cx| cx.insert(Returns(Arc::clone(&self.0))));
    }
}

#[tokio::test]
async fn what_comes_again_as_it_is_dropped_costs_no_thread() {
    let pool = Pool::builder().max_threads(1).build();
    let told = Arc::new(());
    for tasks in [true, false] {
        let context = Context::new(pool.clone());
        let value = Returns(Arc::clone(&told));
        let set_up = context.bridge().call(move |cx| {
            if tasks {
                Respawns::spawn(cx);
            }
            cx.insert(value);
        });
        within(set_up).await.unwrap();
        within(context.close()).await;
        eventually(|| pool.idle() == 1).await;
        assert_eq!(Arc::strong_count(&told), 1);
    }
}
