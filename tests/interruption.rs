//! Ends that come from outside, and what must not slip through while they do.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bodyguard::{
    Cleanup, Disconnect, Outcome, Shutdown, Stack, Supervisor, TaskGroup, TaskGroupBody,
    cleanup::CleanupBody, disconnect::DisconnectBody, net,
};
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

mod support;

fn request() -> Request<Body> {
    Request::new(Body::empty())
}

/// Sets its flag when dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_rule_that_panics_is_no_success_and_loses_no_closer() {
    let ran = Arc::new(AtomicBool::new(false));
    let seen = ran.clone();
    let handler = move |cleanup: Cleanup| async move {
        cleanup.defer_sync(move |ending| seen.store(!ending.succeeded(), Ordering::SeqCst));
        "hello"
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().succeeded_when(|_, _| panic!("a rule that panics, as it should")));
    let response = app.oneshot(request()).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert!(ran.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_tasks_although_nobody_polls_the_body() {
    let gone = Arc::new(AtomicBool::new(false));
    let guard = Gone(gone.clone());
    let handler = |group: TaskGroup, disconnect: Disconnect| async move {
        group
            .spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
                Ok(())
            })
            .unwrap();
        disconnect.cancel();
        group.body(|tx| async move { Ok(tx.send("never read").await?) })
    };
    let once = Arc::new(std::sync::Mutex::new(Some(handler)));
    let app = Router::new()
        .route(
            "/",
            get(move |group: TaskGroup, disconnect: Disconnect| {
                let handler = once.lock().unwrap().take().unwrap();
                handler(group, disconnect)
            }),
        )
        .layer(Stack::new());
    let response = app.oneshot(request()).await.unwrap();
    support::in_turns(|| gone.load(Ordering::SeqCst)).await;
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn the_drain_waits_for_the_closers_of_a_standalone_body() {
    let supervisor = Supervisor::new();
    let closed = Arc::new(AtomicBool::new(false));
    let closing = closed.clone();
    let handler = move || async move {
        CleanupBody::new(Full::from("row"))
            .defer(move |_| async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                closing.store(true, Ordering::SeqCst);
                Ok(())
            })
            .into_response()
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().supervisor(&supervisor));
    let response = app.oneshot(request()).await.unwrap();
    drop(response);
    let report = supervisor.drain(Duration::from_secs(10)).await;
    assert!(report.is_clean(), "{report}");
    assert!(closed.load(Ordering::SeqCst));
}

/// A producer that hears of the shutdown and returns must not make a cut stream look whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_without_a_last_frame_never_ends_cleanly() {
    for round in 0..100 {
        let supervisor = Supervisor::new();
        let handler = |group: TaskGroup, disconnect: Disconnect| async move {
            group.body(|tx| async move {
                tx.send("half").await?;
                disconnect.gone().await;
                Ok(())
            })
        };
        let app = Router::new().route("/", get(handler)).layer(
            Stack::new()
                .supervisor(&supervisor)
                .shutdown(Shutdown::end_now()),
        );
        let response = app.oneshot(request()).await.unwrap();
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "half");
        let mut reader = tokio::task::JoinSet::new();
        reader.spawn(body.collect());
        let report = supervisor.drain(Duration::from_secs(20)).await;
        assert!(report.is_clean(), "{report}");
        let rest = reader.join_next().await.unwrap().unwrap();
        assert!(rest.is_err(), "round {round}: a clean end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_decides_before_the_truncation_it_causes() {
    let (tell, told) = std::sync::mpsc::channel();
    let handler = |group: TaskGroup| async move {
        let body = group.body(|tx| async move {
            tx.send("half").await?;
            panic!("a producer that panics, as it should")
        });
        ([("content-length", "1000")], body)
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().on_end(move |report| tell.send(report.outcome()).unwrap_or_default()));
    let response = app.oneshot(request()).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(told.recv().unwrap(), Outcome::Panicked);
}

/// A standalone body has a supervisor of its own; what it leaves running is still named by ours.
#[tokio::test]
async fn the_drain_names_what_a_standalone_body_leaves_running() {
    let supervisor = Supervisor::new();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = std::sync::mpsc::channel();
    let held = Arc::new(std::sync::Mutex::new(Some((begin, held))));
    let handler = move || {
        let (begin, held) = held.lock().unwrap().take().unwrap();
        async move {
            TaskGroupBody::new(move |group, tx| async move {
                group.spawn_blocking(move |_ignored| {
                    begin.send(())?;
                    let _ = held.recv();
                    Ok(())
                })?;
                tx.send("first").await?;
                tx.closed().await;
                Ok(())
            })
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().supervisor(&supervisor));
    let mut body = app.oneshot(request()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    // Until it has a thread it can be aborted.
    begun.recv_timeout(Duration::from_secs(20)).unwrap();
    drop(body);
    let report = supervisor.drain(Duration::from_millis(200)).await;
    assert!(!report.stuck.is_empty(), "a thread is running: {report}");
    drop(release);
    let report = supervisor.drain(Duration::from_secs(20)).await;
    assert!(report.is_clean(), "{report}");
}

/// A request whose head was half sent at the signal is served, and is in the report.
#[tokio::test]
async fn serve_accounts_for_a_request_that_was_half_sent_at_the_signal() {
    let supervisor = Supervisor::new();
    let app = Router::new()
        .route("/", get(|| async { "whole" }))
        .layer(Stack::new().supervisor(&supervisor));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = net::serve(listener, app)
        .supervisor(&supervisor)
        .deadline(Duration::from_secs(20))
        .shutdown(async { stopped.await.unwrap_or_default() })
        .into_future();
    let client = async {
        let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
        let whole = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        socket.write_all(whole).await.unwrap();
        let mut first = [0; 512];
        assert!(socket.read(&mut first).await.unwrap() > 0);
        let mut fresh = tokio::net::TcpStream::connect(addr).await.unwrap();
        fresh.write_all(&whole[..10]).await.unwrap();
        // The server has taken the connection once it answers a later one.
        let mut later = tokio::net::TcpStream::connect(addr).await.unwrap();
        later.write_all(whole).await.unwrap();
        assert!(later.read(&mut first).await.unwrap() > 0);
        stop.send(()).unwrap();
        support::eventually(|| supervisor.is_draining()).await;
        fresh.write_all(&whole[10..]).await.unwrap();
        let mut answer = String::new();
        fresh.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (report, answer) = tokio::join!(server, client);
    assert!(answer.ends_with("whole"), "{answer:?}");
    assert_eq!(report.unwrap().complete, 1);
}

/// What `Disconnect::gone` documents: who is dropped is not told.
#[tokio::test(start_paused = true)]
async fn a_handler_of_its_own_future_is_dropped_and_not_told() {
    let told = Arc::new(AtomicBool::new(false));
    let dropped = Arc::new(AtomicBool::new(false));
    let (flag, guard) = (told.clone(), Gone(dropped.clone()));
    let (give, view) = tokio::sync::oneshot::channel();
    let once = Arc::new(std::sync::Mutex::new(Some((guard, give))));
    let handler = move |disconnect: Disconnect| async move {
        let (_guard, give) = once.lock().unwrap().take().unwrap();
        give.send(disconnect.clone()).unwrap();
        disconnect.gone().await;
        flag.store(true, Ordering::SeqCst);
    };
    let app = Router::new().route("/", get(handler)).layer(Stack::new());
    let watched = async {
        let disconnect: Disconnect = view.await.unwrap();
        disconnect.cancel();
        // Whoever is not the handler hears of it.
        disconnect.gone().await;
    };
    let (response, ()) = tokio::join!(app.oneshot(request()), watched);
    assert!(response.unwrap().status().is_server_error());
    assert!(dropped.load(Ordering::SeqCst) && !told.load(Ordering::SeqCst));
}

/// Arming it once more arms it for both: the watchdog finds the body where it is kept already.
#[tokio::test(start_paused = true)]
async fn a_detachable_body_can_be_given_a_stall_timeout() {
    let script = bodyguard::testing::Script::new()
        .data("row")
        .data("row")
        .hang();
    let probe = script.probe();
    let mut body = DisconnectBody::new(script)
        .detachable(Duration::from_secs(3600))
        .stall_timeout(Duration::from_secs(3600))
        .stall_timeout(Duration::from_secs(1));
    let disconnect = body.disconnect().clone();
    body.frame().await.unwrap().unwrap();
    // The server asks for no more.
    let ended = tokio::time::timeout(Duration::from_secs(10), disconnect.ended());
    assert_eq!(ended.await.unwrap(), Outcome::Stalled);
    assert!(probe.is_dropped());
}

/// What an end from outside has the body say last is delivered before its error: hyper throws away what it
/// has buffered when a body fails at once.
#[tokio::test(start_paused = true)]
async fn the_last_words_of_an_armed_body_stand_before_its_error() {
    for waits in [true, false] {
        let (tell, told) = std::sync::mpsc::channel();
        let handler = move |group: TaskGroup| async move {
            tell.send(group.clone()).unwrap();
            group.body(says_one).on_failure(|_| Some("!".into()))
        };
        let app = Router::new()
            .route("/", get(handler))
            .layer(Stack::new().stall_timeout(Duration::from_secs(60)));
        let mut body = app.oneshot(request()).await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "1");
        let cancel = || told.recv().unwrap().cancel();
        let last = if waits {
            // The server is waiting as the end comes.
            let (last, ()) = tokio::join!(body.frame(), async { cancel() });
            last
        } else {
            // Or comes to ask when all is over.
            cancel();
            tokio::time::sleep(Duration::from_secs(1)).await;
            body.frame().await
        };
        assert_eq!(last.unwrap().unwrap().into_data().unwrap(), "!");
        let at = tokio::time::Instant::now();
        assert!(body.frame().await.unwrap().is_err());
        assert!(at.elapsed() >= Duration::from_millis(10), "{waits}");
        assert!(body.frame().await.is_none());
    }
}

async fn says_one(tx: bodyguard::task_group::FrameSender) -> bodyguard::TaskResult {
    tx.send("1").await?;
    std::future::pending().await
}

#[tokio::test]
async fn a_client_reads_the_last_words_of_an_armed_body() {
    let (tell, told) = std::sync::mpsc::channel();
    let handler = move |group: TaskGroup| async move {
        tell.send(group.clone()).unwrap();
        group.body(says_one).on_failure(|_| Some("!".into()))
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().detachable(Duration::from_secs(60)));
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(net::serve(listener, app).into_future());
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    socket.write_all(asked).await.unwrap();
    support::read_until(&mut socket, "\r\n1\r\n").await;
    told.recv().unwrap().cancel();
    support::read_until(&mut socket, "\r\n!\r\n").await;
}
