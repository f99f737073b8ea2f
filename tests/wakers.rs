//! Wakers that panic: of who waits, and of who polls.
//!
//! tokio-util before 0.7.20 does not stand one at a token: its lock is poisoned, and a drop aborts the process.

use std::{
    convert::Infallible,
    future::{IntoFuture, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use axum::{Router, routing::get};
use bodyguard::{
    Cleanup, Disconnect, Phase, Stack, Supervisor, TaskGroup,
    net::{self, WatchedListener},
    testing::Script,
};
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
};
use tower::{Layer, ServiceExt, service_fn};

mod support;
use support::{eventually, within};

/// Wakes nobody, and panics.
struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("in a waker");
    }
}

/// An end from outside that finds wakers which panic: of who waits for the token, and of who polls the body.
#[tokio::test(start_paused = true)]
async fn wakers_that_panic() {
    for held in [false, true] {
        let (supervisor, ran) = (Supervisor::new(), Arc::new(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::new(PanickingWaker));
        let mut cx = Context::from_waker(&waker);
        let (mut left, mut hold) = (None, None);
        let service =
            Stack::new()
                .supervisor(&supervisor)
                .layer(service_fn(|request: Request<()>| {
                    let counted = ran.clone();
                    let cleanup = Cleanup::of(&request).unwrap();
                    cleanup.defer_sync(move |_| {
                        counted.fetch_add(1, SeqCst);
                    });
                    hold = held.then(|| cleanup.hold());
                    let disconnect = Disconnect::of(&request).unwrap();
                    left = Some(Box::pin(async move { disconnect.gone().await }));
                    let body = match held {
                        true => Script::new().data("a"),
                        false => Script::new().data("a").hang(),
                    };
                    std::future::ready(Ok::<_, Infallible>(Response::new(body)))
                }));
        let response = service.oneshot(Request::new(())).await.unwrap();
        let (mut left, mut later, mut second) = (left.unwrap(), JoinSet::new(), JoinSet::new());
        assert!(left.as_mut().poll(&mut cx).is_pending());
        let mut body = response.into_body();
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        if held {
            drop(body.collect().await.unwrap());
        } else {
            assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
            later.spawn(async move {
                tokio::time::sleep(Duration::from_secs(9)).await;
                drop(body.collect().await);
            });
        }
        let other = Stack::new()
            .supervisor(&supervisor)
            .layer(service_fn(|_: Request<()>| {
                std::future::pending::<Result<Response<Script>, Infallible>>()
            }));
        second.spawn(other.oneshot(Request::new(())));
        tokio::task::yield_now().await;
        let drained = supervisor.drain(Duration::from_secs(20)).await;
        assert_eq!((drained.aborted, ran.load(SeqCst)), (2, 1), "{drained}");
        assert!(second.join_next().await.unwrap().unwrap().is_ok());
        drop(hold);
    }
}

/// Who asked for a token has a waker that panics: whoever waits for the client's going hears of it.
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_at_a_token_keeps_nobody_asleep() {
    let waker = Waker::from(Arc::new(PanickingWaker));
    let mut views = None;
    let service = Stack::new().layer(service_fn(|request: Request<()>| {
        views = Some(Disconnect::of(&request).unwrap());
        let body = Script::new().data("a").hang();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let disconnect = views.unwrap();
    let token = disconnect.token();
    let mut cancelled = Box::pin(token.cancelled());
    let polled = cancelled.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { disconnect.gone().await });
    tokio::task::yield_now().await;
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let told = tokio::time::timeout(Duration::from_secs(1), waiting.join_next()).await;
    told.expect("nobody told it").unwrap().unwrap();
    assert!(token.is_cancelled());
}

/// Nor a connection that the server has to close.
#[tokio::test]
async fn a_waker_that_panics_at_a_shutdown_token_keeps_no_connection_open() {
    let (supervisor, kept) = (Supervisor::new(), Arc::new(Mutex::new(Vec::new())));
    let waiting = kept.clone();
    let handler = async move |disconnect: Disconnect| {
        let mut shutdown = Box::pin(disconnect.shutdown_token().cancelled_owned());
        let waker = Waker::from(Arc::new(PanickingWaker));
        let polled = shutdown.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        waiting.lock().unwrap().push(shutdown);
        "ok"
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().supervisor(&supervisor));
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = net::serve(listener, app).supervisor(&supervisor);
    let mut serving = JoinSet::new();
    serving.spawn(serve.deadline(Duration::from_secs(3600)).into_future());
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        let asked = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(asked).await.unwrap();
        support::read_until(&mut client, "ok").await;
        clients.push(client);
    }
    supervisor.begin_shutdown();
    for mut client in clients {
        let mut rest = Vec::new();
        within(client.read_to_end(&mut rest)).await.unwrap();
    }
}

/// Panics once it is told to.
struct Panics {
    armed: AtomicBool,
    waker: Waker,
}

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        assert!(!self.armed.load(SeqCst), "in a waker");
        self.waker.wake_by_ref();
    }
}

/// A task that does not stop is joined by whoever polled the handler; at its end that is long over.
#[tokio::test]
async fn a_waker_that_panics_keeps_no_scope_on_the_list() {
    let (supervisor, short) = (Supervisor::new(), Duration::from_millis(1));
    let (release, held) = mpsc::channel::<()>();
    let mut once = Some(held);
    let stack = Stack::new().supervisor(&supervisor).join_limit(short);
    let service = stack
        .cancel_grace(short)
        .layer(service_fn(|request: Request<()>| {
            let held = once.take().unwrap();
            let group = TaskGroup::of(&request).unwrap();
            let (begin, begun) = oneshot::channel();
            let blocking = group.spawn_blocking(move |_| {
                let _ = begin.send(());
                Ok(held.recv()?)
            });
            assert!(blocking.is_ok());
            async {
                begun.await.unwrap();
                Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
            }
        }));
    let mut answer = Box::pin(service.oneshot(Request::new(())));
    let waker = poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await;
    let panics = Arc::new(Panics {
        armed: AtomicBool::new(false),
        waker,
    });
    let waker = Waker::from(panics.clone());
    let polled = poll_fn(|_| answer.as_mut().poll(&mut Context::from_waker(&waker)));
    drop(within(polled).await);
    assert_eq!(supervisor.snapshot()[0].phase, Phase::Stuck);
    panics.armed.store(true, SeqCst);
    release.send(()).unwrap();
    eventually(|| supervisor.active() == 0).await;
}
