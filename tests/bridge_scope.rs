//! How the bridge's end is tied to its response's.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use axum::{Extension, Router, body::Body, extract::Request, response::Response, routing::get};
use bodyguard::{
    Cleanup, EndReport, Outcome, Stack, TaskGroup,
    bridge::{Bridge, BridgeLayer, Context, Cx, Pool, sync_handler},
    scope::{Failure, FailureKind},
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, sync::oneshot};
use tower::ServiceExt as _;

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

async fn ask(app: Router) -> Response {
    within(app.oneshot(Request::new(Body::empty())))
        .await
        .unwrap()
}

async fn text(response: Response) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap();
    String::from_utf8(bytes.to_bytes().to_vec()).unwrap()
}

fn reporting(pool: &Pool) -> (BridgeLayer, mpsc::Receiver<EndReport>) {
    let (reported, reports) = mpsc::channel();
    let layer = BridgeLayer::new()
        .pool(pool)
        .on_end(move |report| reported.send(report.clone()).unwrap());
    (layer, reports)
}

fn endless() -> Body {
    Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>())
}

/// Notes its drop.
struct Noted(&'static str, mpsc::Sender<&'static str>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.1.send(self.0).unwrap();
    }
}

#[tokio::test]
async fn tasks_then_local_tasks_then_closers_then_values() {
    let (told, order) = mpsc::channel();
    let pool = Pool::new();
    let app = Router::new()
        .route(
            "/",
            get(
                |bridge: Bridge, group: TaskGroup, cleanup: Cleanup| async move {
                    let note = |what| Noted(what, told.clone());
                    let (task, local, value) = (note("task"), note("local task"), note("value"));
                    let (bound, closer) = (note("bound closer"), note("closer"));
                    group
                        .spawn(async move {
                            let _task = task;
                            std::future::pending().await
                        })
                        .unwrap();
                    cleanup.defer(|_| async {
                        drop(closer);
                        Ok(())
                    });
                    let set_up = bridge.call(move |cx| {
                        cx.insert(value);
                        cx.defer(move |_| drop(bound)).unwrap();
                        cx.spawn_local(async move {
                            let _local = local;
                            std::future::pending::<()>().await;
                        })
                        .detach();
                    });
                    set_up.await.unwrap();
                    // So that the local task has begun.
                    bridge.run(tokio::task::yield_now).await.unwrap();
                    endless()
                },
            ),
        )
        .layer(Stack::new().bridge_pool(&pool));
    drop(ask(app).await);
    eventually(|| pool.idle() == 1).await;
    assert_eq!(
        order.try_iter().collect::<Vec<_>>(),
        ["task", "local task", "bound closer", "closer", "value"]
    );
}

#[tokio::test]
async fn a_closer_before_the_head_fails_the_response() {
    let pool = Pool::new();
    let (layer, reports) = reporting(&pool);
    let app = Router::new()
        .route(
            "/",
            get(sync_handler(|cx: &Cx, ()| {
                cx.try_defer(|_| Err::<(), _>("no commit")).unwrap();
                "rows"
            })),
        )
        .layer(layer);
    let response = ask(app).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let report = reports.try_recv().unwrap();
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(report.errors[0].to_string(), "no commit");
    assert_eq!(pool.idle(), 1);
}

#[tokio::test]
async fn closers_are_told_how_the_response_ended() {
    // By both doors, and by what comes of the response.
    for (status, leave, expected) in [
        (200, false, (Outcome::Complete, true)),
        (500, false, (Outcome::Complete, false)),
        (200, true, (Outcome::Dropped, false)),
    ] {
        let (told, endings) = mpsc::channel();
        let pool = Pool::new();
        let app = Router::new()
            .route(
                "/",
                get(move |bridge: Bridge| async move {
                    let first = told.clone();
                    bridge
                        .try_defer(move |cx| first.send(cx.ending().cloned()))
                        .unwrap();
                    let set_up = bridge.call(move |cx| {
                        assert!(cx.ending().is_none(), "it goes on");
                        let bound = std::rc::Rc::new(told);
                        cx.defer(move |cx| bound.send(cx.ending().cloned()).unwrap())
                    });
                    set_up.await.unwrap().unwrap();
                    let rows = tokio_stream::once(Ok::<_, std::io::Error>("rows"));
                    let body = match leave {
                        true => endless(),
                        false => Body::from_stream(rows),
                    };
                    Response::builder().status(status).body(body).unwrap()
                }),
            )
            .layer(BridgeLayer::new().pool(&pool));
        let response = ask(app).await;
        match leave {
            true => drop(response),
            false => drop(text(response).await),
        }
        eventually(|| pool.idle() == 1).await;
        let endings: Vec<_> = endings.try_iter().collect();
        assert_eq!(endings.len(), 2);
        for ending in endings {
            let ending = ending.expect("it is over");
            assert_eq!((ending.outcome(), ending.succeeded()), expected);
        }
    }
}

#[tokio::test]
async fn a_context_serves_no_response_that_could_end() {
    let context = Context::new(Pool::new());
    let (told, seen) = mpsc::channel();
    let closer = move |cx: &Cx| told.send(cx.ending().is_none()).unwrap();
    context.bridge().defer(closer).unwrap();
    assert_eq!(within(context.close()).await.closers_run(), 1);
    assert!(seen.try_recv().unwrap());
}

#[tokio::test]
async fn a_closer_may_use_the_bridge_and_register_others() {
    let (told, order) = mpsc::channel();
    let pool = Pool::new();
    let app = Router::new()
        .route(
            "/",
            get(|bridge: Bridge, cleanup: Cleanup| async move {
                // The first use of the bridge is in a closer.
                cleanup.defer(move |_| async move {
                    let late = told.clone();
                    bridge.defer(move |_| late.send("last").unwrap())?;
                    let waited = bridge.call(move |cx| {
                        cx.block_on(async { told.send("first").unwrap() }).unwrap();
                    });
                    Ok(waited.await?)
                });
                "rows"
            }),
        )
        .layer(Stack::new().bridge_pool(&pool));
    assert_eq!(text(ask(app).await).await, "rows");
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["first", "last"]);
    assert_eq!(pool.idle(), 1);
}

#[tokio::test]
async fn sync_code_that_does_not_come_back_breaks_the_end_and_is_in_the_report() {
    let pool = Pool::builder()
        .close_limit(Duration::from_millis(20))
        .build();
    let (layer, reports) = reporting(&pool);
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(Some(released)));
    let app = Router::new()
        .route(
            "/",
            get(move |bridge: Bridge| async move {
                let released = released.lock().unwrap().take().unwrap();
                let (started, has_started) = oneshot::channel();
                Handle::current().spawn(bridge.call(move |_| {
                    started.send(()).unwrap();
                    let _ = released.recv();
                }));
                has_started.await.unwrap();
                Body::from_stream(tokio_stream::once(Ok::<_, std::io::Error>("rows")))
            }),
        )
        .layer(layer);
    let broken = within(ask(app).await.into_body().collect()).await;
    assert!(broken.is_err(), "the end is not what it should be");
    let report = reports.try_recv().unwrap();
    assert_eq!(report.stuck.len(), 1);
    assert!(
        report.stuck[0].contains("tests/bridge_scope.rs"),
        "{report:?}"
    );
    let failure = report.errors[0].downcast_ref::<Failure>().unwrap();
    assert!(matches!(failure.kind(), FailureKind::StillRunning { .. }));
    drop(release);
    eventually(|| pool.idle() == 1).await;
}

#[test]
fn a_dead_runtime_is_accounted_for_and_the_thread_comes_back() {
    let pool = Pool::new();
    let (layer, reports) = reporting(&pool);
    let (release, released) = mpsc::channel::<()>();
    let (dropped, has_dropped) = mpsc::channel();
    let released = Arc::new(Mutex::new(Some((released, dropped))));
    let app = Router::new()
        .route(
            "/",
            get(move |bridge: Bridge| async move {
                let (released, dropped) = released.lock().unwrap().take().unwrap();
                bridge.defer(|_| ()).unwrap();
                let (started, has_started) = oneshot::channel();
                let call = bridge.call(move |cx| {
                    cx.insert(Noted("value", dropped));
                    started.send(()).unwrap();
                    let _ = released.recv();
                });
                Handle::current().spawn(call);
                has_started.await.unwrap();
                endless()
            }),
        )
        .layer(layer);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let response = runtime.block_on(ask(app));
    drop(runtime);
    drop(response);
    let report = reports.try_recv().unwrap();
    assert_eq!(report.counts.closers_unrun, 1);
    assert_eq!(report.stuck.len(), 1, "{report:?}");
    // The bridge has its own loop: it closes all the same.
    drop(release);
    let limit = Duration::from_secs(20);
    assert_eq!(has_dropped.recv_timeout(limit).unwrap(), "value");
}

#[tokio::test]
async fn the_innermost_pool_counts_wherever_the_layers_stand() {
    let (outer, inner) = (Pool::new(), Pool::new());
    let handler = |bridge: Bridge| async move { bridge.call(|_| "done").await.unwrap() };
    let app = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&inner))
        .layer(Stack::new().bridge_pool(&outer));
    assert_eq!(text(ask(app).await).await, "done");
    assert_eq!((outer.threads(), inner.threads()), (0, 1));
}

#[tokio::test]
async fn the_bridge_is_that_of_the_layer_whatever_was_put_there_by_hand() {
    let (own, layers) = (Pool::new(), Pool::new());
    let context = Context::new(own.clone());
    let app = Router::new()
        .route("/", get(sync_handler(|_: &Cx, ()| "done")))
        .layer(Extension(context.bridge()))
        .layer(BridgeLayer::new().pool(&layers));
    assert_eq!(text(ask(app).await).await, "done");
    assert_eq!((own.threads(), layers.threads()), (0, 1));
    within(context.close()).await;
}
