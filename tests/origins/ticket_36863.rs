//! Ticket 36863: one event loop per request for sync code.

mod freed;
mod misuse;
mod sockets;

use std::{
    collections::HashSet,
    convert::Infallible,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, ThreadId},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response, routing::get};
use bodyguard::{
    BodyError, BoxError, Cleanup, EndReport, Outcome, Stack,
    bridge::{
        Bridge, BridgeError, BridgeLayer, Cx, Next, NextError, Pool, from_fn_sync, sync_handler,
    },
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Handle, Id},
    sync::{Barrier, oneshot},
};
use tower::ServiceExt as _;

use crate::support::in_time;

type Here = (ThreadId, Id);
type Seen = Arc<Mutex<Vec<(&'static str, Here)>>>;
type Failed = NextError<Infallible>;

/// Nothing here may hang.
async fn soon<F: Future>(future: F) -> F::Output {
    let waited = in_time(Duration::from_secs(20), future).await;
    waited.expect("took too long")
}

async fn until(mut done: impl FnMut() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn here() -> Here {
    (thread::current().id(), Handle::current().id())
}

fn request() -> Request {
    Request::new(Body::empty())
}

async fn ask(app: &Router) -> Response {
    soon(app.clone().oneshot(request())).await.unwrap()
}

async fn text(response: Response) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap();
    String::from_utf8(bytes.to_bytes().to_vec()).unwrap()
}

/// One route under the layer, and the pool behind it.
fn app<H, T>(handler: H) -> (Router, Pool)
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let pool = Pool::new();
    let router = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    (router, pool)
}

#[tokio::test]
async fn middleware_handler_closer_and_streamed_body_share_one_thread_and_one_loop() {
    let seen = Seen::default();
    let note = {
        let seen = Arc::clone(&seen);
        move |who| seen.lock().unwrap().push((who, here()))
    };
    let pool = Pool::new();
    let in_middleware = note.clone();
    let middleware = move |cx: &Cx, request: Request, next: Next<Body, Body, Infallible>| {
        let note = in_middleware.clone();
        note("middleware");
        let closer = note.clone();
        cx.defer(move |_| closer("closer"))?;
        let response = next.run(cx, request)?;
        cx.block_on(async { note("middleware, async") })?;
        Ok::<_, Failed>(response)
    };
    let handler = move |bridge: Bridge| async move {
        let (first, second, body) = (note.clone(), note.clone(), note);
        bridge.call(move |_| first("first call")).await.unwrap();
        bridge.call(move |_| second("second call")).await.unwrap();
        bridge.body_writer(move |out| {
            body("body");
            out.write_all(b"rows")
        })
    };
    let app: Router = Router::new()
        .route("/", get(handler))
        .layer(from_fn_sync(middleware))
        .layer(BridgeLayer::new().pool(&pool));
    assert_eq!(text(ask(&app).await).await, "rows");
    // The end of the body came after the closers.
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert!(seen.iter().all(|(_, at)| *at == seen[0].1), "{seen:?}");
    assert_ne!(seen[0].1, here());
}

#[tokio::test]
async fn a_resource_bound_to_the_loop_in_the_first_call_works_in_the_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = async move {
        let (mut stream, _) = listener.accept().await?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        stream.write_all(&word).await
    };
    let (app, _) = app(move |bridge: Bridge| async move {
        let (ask, mut asked) = tokio::sync::mpsc::channel::<oneshot::Sender<u32>>(1);
        let connection = bridge.call(move |cx| {
            cx.spawn_local(async move {
                while let Some(answer) = asked.recv().await {
                    let _ = answer.send(42);
                }
            })
            .detach();
            cx.block_on(TcpStream::connect(address))
        });
        let mut connection = connection.await.unwrap().unwrap().unwrap();
        let answers = bridge.call(move |cx| {
            cx.block_on(async move {
                let (answer, answered) = oneshot::channel();
                ask.send(answer).await.unwrap();
                let mut word = [0; 4];
                connection.write_all(b"ping").await.unwrap();
                connection.read_exact(&mut word).await.unwrap();
                format!("{} {}", answered.await.unwrap(), word.escape_ascii())
            })
        });
        answers.await.unwrap().unwrap()
    });
    let (response, echoed) = tokio::join!(ask(&app), soon(echo));
    echoed.unwrap();
    assert_eq!(text(response).await, "42 ping");
}

#[tokio::test]
async fn the_thread_is_the_requests_until_its_streamed_body_has_ended() {
    let (app, pool) = app(|bridge: Bridge| async move {
        bridge.call(|_| ()).await.unwrap();
        let (tx, rx) = tokio::sync::mpsc::channel::<Bytes>(1);
        let feed = bridge.spawn_local(move || async move {
            for part in ["a", "b"] {
                tx.send(Bytes::from(part)).await.unwrap();
            }
        });
        feed.detach();
        Body::from_stream(tokio_stream::StreamExt::map(
            tokio_stream::wrappers::ReceiverStream::new(rx),
            Ok::<_, Infallible>,
        ))
    });
    let mut body = ask(&app).await.into_body();
    soon(body.frame()).await.unwrap().unwrap();
    assert_eq!((pool.threads(), pool.idle()), (1, 0));
    soon(body.collect()).await.unwrap();
    // No wait: the client saw the end only when the thread was back.
    assert_eq!((pool.threads(), pool.idle()), (1, 1));
}

#[tokio::test]
async fn closers_run_at_the_close_and_a_failing_one_skips_none() {
    let (told, order) = mpsc::channel();
    let (reported, report) = mpsc::channel::<EndReport>();
    let handler = move |bridge: Bridge, cleanup: Cleanup| {
        let told = told.clone();
        async move {
            let note = |who| {
                let told = told.clone();
                move || told.send(who).unwrap()
            };
            let (first, second, third) = (note("bridge 1"), note("async 2"), note("bridge 3"));
            bridge.defer(move |_| first()).unwrap();
            cleanup.defer(move |ending| async move {
                second();
                // By now the two that were registered later have failed.
                assert!(!ending.succeeded());
                Ok(())
            });
            bridge
                .try_defer(move |_| {
                    third();
                    Err::<(), BoxError>("the driver said no".into())
                })
                .unwrap();
            bridge.defer(|_| panic!("a closer panics")).unwrap();
            bridge.body_writer(|out| out.write_all(b"rows"))
        }
    };
    let app: Router = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().on_end(move |report| reported.send(report.clone()).unwrap()));
    let error = soon(ask(&app).await.into_body().collect())
        .await
        .unwrap_err();
    let error = error.into_inner().downcast::<BodyError>().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("a closer panics"), "{cause}");
    assert_eq!(
        order.try_iter().collect::<Vec<_>>(),
        ["bridge 3", "async 2", "bridge 1"]
    );
    let report = report.try_recv().unwrap();
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_failed),
        (4, 2)
    );
    assert_eq!(report.errors.len(), 2);
    assert_eq!(report.errors[1].to_string(), "the driver said no");
}

#[tokio::test]
async fn the_scopes_memory_is_freed_at_the_end() {
    /// What the request's target is kept in, for as long as anybody keeps it.
    struct Target {
        _kept: Arc<()>,
    }
    impl AsRef<[u8]> for Target {
        fn as_ref(&self) -> &[u8] {
            b"/?held"
        }
    }
    let (app, _) = app(|bridge: Bridge| async move {
        let (kept, closed, local) = (bridge.clone(), bridge.clone(), bridge.clone());
        bridge
            .call(move |cx| {
                // Every circle that one can draw: through values, closers and tasks.
                cx.insert(kept);
                cx.defer(move |_| drop(closed)).unwrap();
                cx.spawn_local(async move {
                    let _held = local;
                    std::future::pending::<()>().await;
                })
                .detach();
            })
            .await
            .unwrap();
        let in_body = bridge.clone();
        bridge.body_writer(move |out| write!(out, "{:?}", in_body.is_ended()))
    });
    let target = Arc::new(());
    let freed = Arc::downgrade(&target);
    let mut request = request();
    let uri = Bytes::from_owner(Target { _kept: target });
    *request.uri_mut() = http::Uri::from_maybe_shared(uri).unwrap();
    let response = soon(app.oneshot(request)).await.unwrap();
    assert!(freed.upgrade().is_some(), "the scope knows the target");
    assert_eq!(text(response).await, "false");
    assert!(freed.upgrade().is_none());
}

#[tokio::test]
async fn a_request_that_does_not_use_it_takes_no_thread() {
    // Allocations are counted in a process of their own: `tests/bridge_unused.rs`.
    let (app, pool) = app(|bridge: Bridge| async move {
        assert!(bridge.thread_id().is_none() && !bridge.is_ended());
        drop(bridge.call(|_| ()));
        "unused"
    });
    assert_eq!(text(ask(&app).await).await, "unused");
    assert_eq!(pool.threads(), 0);
}

#[tokio::test]
async fn nested_sync_in_async_in_sync_stays_on_the_thread() {
    fn dive(cx: &Cx, depth: usize, seen: &Mutex<Vec<Here>>) -> Result<(), BridgeError> {
        seen.lock().unwrap().push(here());
        if depth == 0 {
            return Ok(());
        }
        let bridge = cx.bridge();
        let inner = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&inner);
        cx.block_on(async move { bridge.call(move |cx| dive(cx, depth - 1, &noted)).await })???;
        seen.lock().unwrap().append(&mut inner.lock().unwrap());
        Ok(())
    }
    let (app, _) = app(sync_handler(|cx: &Cx, ()| {
        let seen = Mutex::default();
        dive(cx, 5, &seen).unwrap();
        let seen = seen.into_inner().unwrap();
        assert!(seen.iter().all(|at| *at == here()), "{seen:?}");
        seen.len().to_string()
    }));
    assert_eq!(text(ask(&app).await).await, "6");
}

#[tokio::test]
async fn two_requests_at_a_time_use_two_threads() {
    let both = Arc::new(Barrier::new(2));
    let (app, pool) = app(move |bridge: Bridge| {
        let both = Arc::clone(&both);
        async move {
            let at = bridge.call(move |cx| {
                cx.block_on(both.wait()).unwrap();
                here()
            });
            format!("{:?}", at.await.unwrap())
        }
    });
    let (one, two) = tokio::join!(ask(&app), ask(&app));
    assert_ne!(text(one).await, text(two).await);
    assert_eq!(pool.threads(), 2);
}

#[tokio::test]
async fn many_requests_share_few_threads_fairly() {
    const REQUESTS: usize = 5_000;
    const AT_ONCE: usize = 200;
    const THREADS: usize = 16;
    let pool = Pool::builder()
        .max_threads(THREADS)
        .thread_name("fair")
        .wait_limit(Duration::from_secs(20))
        .build();
    // Counted by the sync code itself: how much of it there is at a time, on which threads.
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let used = Arc::new(Mutex::new(HashSet::new()));
    let (high, on) = (Arc::clone(&most), Arc::clone(&used));
    let handler = sync_handler(move |cx: &Cx, ()| {
        high.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
        on.lock().unwrap().insert(thread::current().id());
        cx.block_on(tokio::task::yield_now()).unwrap();
        inside.fetch_sub(1, SeqCst);
        "done"
    });
    let app: Router = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (app, pool) = (app.clone(), pool.clone());
        clients.spawn(async move {
            let mut longest = Duration::ZERO;
            for round in 0..REQUESTS / AT_ONCE {
                let asked = std::time::Instant::now();
                let response = ask(&app).await;
                assert_eq!(response.status(), StatusCode::OK);
                assert_eq!(text(response).await, "done");
                longest = longest.max(asked.elapsed());
                assert!(pool.threads() <= THREADS);
                if round % 10 == 0 {
                    assert!(threads_named("fair-") <= THREADS);
                }
            }
            longest
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(wait) = clients.join_next().await {
        longest = longest.max(wait.unwrap());
    }
    // Read with `--nocapture`; a bound on it would be a bound on the machine.
    println!("{REQUESTS} requests, {AT_ONCE} at once, {THREADS} threads: max wait {longest:?}");
    assert_eq!(pool.idle(), pool.threads());
    let most = most.load(SeqCst);
    assert!(most <= THREADS, "{most} at a time");
    assert!(most > 1, "the clients did not meet");
    // None was started beside the pool's count, and none twice.
    assert!(used.lock().unwrap().len() <= THREADS);
    #[cfg(target_os = "linux")]
    assert_eq!(threads_named("fair-"), pool.threads());
}

/// The system's count of the process's threads whose name starts so; none where it cannot tell.
fn threads_named(prefix: &str) -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let named = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix))
    };
    tasks.flatten().map(named).filter(|named| *named).count()
}
