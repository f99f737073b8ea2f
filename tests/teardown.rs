//! Closers that hang, panic, fail, register others or come late; dead runtimes; holds; the drain.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bodyguard::{
    Cleanup, CleanupLayer, Disconnect, DisconnectLayer, EndReport, Hold, Outcome, Shutdown, Stack,
    Supervisor, TaskGroup,
    cleanup::{CleanupBody, Close},
    close,
    scope::{CloseError, Failure, FailureKind},
    testing::Script,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

mod support;

type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, what: impl Into<String>) {
    log.lock().unwrap().push(what.into());
}

fn lines(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

fn stream() -> Script {
    Script::new().data("a").pending().data("b")
}

type Reply = bodyguard::compression::CompressionBody<bodyguard::scope::ScopeBody<Script>>;

/// A response with this body, whose handler ran `prepare`.
async fn respond<T>(
    stack: &Stack,
    body: Script,
    prepare: impl FnOnce(&Request<()>) -> T,
) -> (Response<Reply>, T) {
    let mut once = Some((prepare, body));
    let made = Arc::new(Mutex::new(None));
    let make = made.clone();
    let service = service_fn(|request: Request<()>| {
        let (prepare, body) = once.take().unwrap();
        *make.lock().unwrap() = Some(prepare(&request));
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let response = stack
        .layer(service)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    let made = made.lock().unwrap().take().unwrap();
    (response, made)
}

fn cleanup(request: &Request<()>) -> Cleanup {
    Cleanup::of(request).unwrap()
}

/// Reads a body to its end, then gives the report of its teardown.
async fn read<B>(
    response: Response<B>,
) -> (Result<bytes::Bytes, bodyguard::BodyError>, Arc<EndReport>)
where
    B: Body<Data = bytes::Bytes, Error = bodyguard::BodyError>,
{
    let (parts, body) = response.into_parts();
    let read = body.collect().await.map(|all| all.to_bytes());
    let report = closed(Response::from_parts(parts, ())).await;
    (read, report)
}

/// Leaves, and gives the report.
async fn closed<B>(response: Response<B>) -> Arc<EndReport> {
    let ended = close(response).await;
    ended.map_or_else(CloseError::into_report, |report| {
        report.expect("something is registered")
    })
}

fn failure(report: &EndReport, nth: usize) -> &FailureKind {
    report.errors[nth].downcast_ref::<Failure>().unwrap().kind()
}

// ---- Closers, and their line in the report ----

#[tokio::test(start_paused = true)]
async fn a_closer_that_hangs_is_aborted_and_named() {
    for natural in [true, false] {
        let log = Log::default();
        let stack = Stack::new().closer_limit(Duration::from_secs(2));
        let (response, ()) = respond(&stack, stream(), |request| {
            let other = log.clone();
            cleanup(request).defer(|_| async move {
                note(&other, "the other ran");
                Ok(())
            });
            cleanup(request).defer(|_| std::future::pending());
        })
        .await;
        let start = tokio::time::Instant::now();
        let report = if natural {
            let (read, report) = read(response).await;
            let error = read.unwrap_err();
            assert!(error.downcast_ref::<Failure>().is_some());
            assert_eq!(report.outcome(), Outcome::Failed);
            report
        } else {
            closed(response).await
        };
        assert!(start.elapsed() >= Duration::from_secs(2));
        assert_eq!(
            (report.counts.closers_run, report.counts.closers_failed),
            (2, 1)
        );
        let FailureKind::OverranLimit { what, limit } = failure(&report, 0) else {
            panic!("{report:?}");
        };
        assert!(what.contains("tests/teardown.rs:"), "{what}");
        assert_eq!(*limit, Duration::from_secs(2));
        assert_eq!(lines(&log), ["the other ran"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_closer_has_a_limit_of_its_own() {
    let (response, ()) = respond(&Stack::new(), stream(), |request| {
        let within = Duration::from_millis(5);
        cleanup(request).defer_within(within, |_| std::future::pending());
    })
    .await;
    let start = tokio::time::Instant::now();
    assert_eq!(closed(response).await.counts.closers_failed, 1);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_closer_that_panics_is_contained_and_the_others_run() {
    let log = Log::default();
    let (response, ()) = respond(&Stack::new(), stream(), |request| {
        let cleanup = cleanup(request);
        let first = log.clone();
        cleanup.defer(|ending| async move {
            note(
                &first,
                format!("{} {}", ending.outcome(), ending.succeeded()),
            );
            Ok(())
        });
        cleanup.defer_sync(|_| panic!("sync"));
        cleanup.defer(|_| async { panic!("in its future") });
        cleanup.defer(|_| -> std::future::Ready<_> { panic!("before its future") });
    })
    .await;
    let (read, report) = read(response).await;
    read.unwrap_err();
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_failed),
        (4, 3)
    );
    for (nth, text) in ["before its future", "in its future", "sync"]
        .iter()
        .enumerate()
    {
        let FailureKind::Panicked { message, .. } = failure(&report, nth) else {
            panic!("{report:?}");
        };
        assert_eq!(message, text);
    }
    assert_eq!(lines(&log), ["Panicked false"]);
}

#[tokio::test(start_paused = true)]
async fn closers_still_to_run_see_the_failure_of_one() {
    let log = Log::default();
    let (response, ()) = respond(&Stack::new(), stream(), |request| {
        let cleanup = cleanup(request);
        let first = log.clone();
        cleanup.defer(|ending| async move {
            let cause = ending.cause().unwrap().to_string();
            note(
                &first,
                format!("{} {} {cause}", ending.outcome(), ending.succeeded()),
            );
            Err("second failure".into())
        });
        cleanup.defer(|ending| async move {
            assert!(ending.succeeded());
            Err("first failure".into())
        });
    })
    .await;
    let (read, report) = read(response).await;
    assert_eq!(read.unwrap_err().cause().to_string(), "first failure");
    assert_eq!(lines(&log), ["Failed false first failure"]);
    let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["first failure", "second failure"]);
}

#[tokio::test(start_paused = true)]
async fn a_closer_may_register_another() {
    let log = Log::default();
    let (response, ()) = respond(&Stack::new(), stream(), |request| {
        let (cleanup, log) = (cleanup(request), log.clone());
        let last = log.clone();
        cleanup.defer_sync(move |_| note(&last, "registered first"));
        let inside = cleanup.clone();
        cleanup.defer(move |_| async move {
            let another = log.clone();
            inside.defer_sync(move |_| note(&another, "registered by a closer"));
            note(&log, "registered second");
            Ok(())
        });
    })
    .await;
    let (read, report) = read(response).await;
    assert_eq!(read.unwrap(), "ab");
    assert_eq!(report.counts.closers_run, 3);
    let expected = [
        "registered second",
        "registered by a closer",
        "registered first",
    ];
    assert_eq!(lines(&log), expected);
}

/// A body whose closer is registered with its first frame, and fails.
fn registers_late(cleanup: Cleanup) -> axum::body::Body {
    let frames = futures_util::stream::once(async move {
        cleanup.defer(|_| async { Err("late rollback failed".into()) });
        Ok::<_, Infallible>("a")
    });
    axum::body::Body::from_stream(frames)
}

#[tokio::test(start_paused = true)]
async fn a_closed_response_tells_of_what_was_registered_after_its_head() {
    let handler = service_fn(|request: Request<()>| {
        let body = registers_late(cleanup(&request));
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let armed = DisconnectLayer::new().detachable(Duration::from_secs(60));
    let boxed = |body| axum::body::Body::new(body);
    let alone = CleanupLayer::new().layer(handler);
    let inside = armed.layer(handler).map_response(move |r| r.map(boxed));
    let own = service_fn(|_: Request<()>| {
        let view = Arc::new(Mutex::new(None::<Cleanup>));
        let later = view.clone();
        let frames = futures_util::stream::once(async move { later.lock().unwrap().take() });
        let frames = futures_util::StreamExt::flat_map(frames, |view| {
            registers_late(view.unwrap()).into_data_stream()
        });
        let body = CleanupBody::new(axum::body::Body::from_stream(frames));
        *view.lock().unwrap() = Some(body.cleanup().clone());
        std::future::ready(Ok::<_, Infallible>(body.into_http()))
    });
    let responses = [
        alone
            .oneshot(Request::new(()))
            .await
            .unwrap()
            .map(axum::body::Body::new),
        CleanupLayer::new()
            .layer(inside)
            .oneshot(Request::new(()))
            .await
            .unwrap()
            .map(axum::body::Body::new),
        own.oneshot(Request::new(()))
            .await
            .unwrap()
            .map(axum::body::Body::new),
    ];
    for response in responses {
        let (parts, body) = response.into_parts();
        body.collect().await.unwrap_err();
        let error = close(Response::from_parts(parts, ())).await.unwrap_err();
        assert_eq!(error.errors()[0].to_string(), "late rollback failed");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_after_the_end_runs_at_once() {
    let log = Log::default();
    let supervisor = Supervisor::new();
    let stack = Stack::new().supervisor(&supervisor);
    let (response, (cleanup, group)) = respond(&stack, stream(), |request| {
        (cleanup(request), TaskGroup::of(request).unwrap())
    })
    .await;
    closed(response).await;
    let late = log.clone();
    cleanup.defer_sync(move |ending| note(&late, format!("sync {}", ending.outcome())));
    assert_eq!(lines(&log), ["sync Dropped"]);
    let late = log.clone();
    cleanup.defer(move |ending| async move {
        note(&late, format!("async {}", ending.outcome()));
        Ok(())
    });
    let late = log.clone();
    cleanup.defer_after_end(move |_| async move {
        note(&late, "after the end");
        Ok(())
    });
    assert!(supervisor.drain(Duration::from_secs(1)).await.is_clean());
    assert_eq!(lines(&log), ["async Dropped", "after the end"]);
    // A task comes back to whoever wanted it.
    let refused = group.spawn(async { Ok(()) }).unwrap_err();
    refused.into_inner().await.unwrap();
}

struct Connection(Log);

impl Close for Connection {
    async fn close(self, ending: bodyguard::Ending) -> bodyguard::TaskResult {
        note(&self.0, format!("closed {}", ending.outcome()));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn keys_dismiss_closers_or_run_them_early() {
    let log = Log::default();
    let (response, keys) = respond(&Stack::new(), stream(), |request| {
        let cleanup = cleanup(request);
        let (a, b) = (log.clone(), log.clone());
        (
            cleanup.defer_sync(move |_| note(&a, "dismissed?")),
            cleanup.defer_close(Connection(b)),
            cleanup.defer(|_| async { Err("early".into()) }),
            cleanup.defer(|_| std::future::pending()),
            cleanup.defer_sync(|_| {}),
        )
    })
    .await;
    let (dismissed, early, failing, dropped, kept) = keys;
    assert!(dismissed.dismiss());
    assert!(early.close_now().await.unwrap());
    assert_eq!(lines(&log), ["closed Cancelled"]);
    assert_eq!(failing.close_now().await.unwrap_err().to_string(), "early");
    let dropping = tokio::time::timeout(Duration::from_secs(1), dropped.close_now());
    assert!(dropping.await.is_err());
    let (read, report) = read(response).await;
    // The failure counts like any other: nothing is committed behind it.
    assert!(!report.ending.succeeded());
    assert_eq!(read.unwrap(), "ab");
    let counts = report.counts;
    assert_eq!(
        (
            counts.closers_run,
            counts.closers_failed,
            counts.closers_unrun
        ),
        (3, 1, 1)
    );
    assert!(!kept.close_now().await.unwrap(), "it has run");
}

// ---- Threads and runtimes ----

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_closer_that_its_key_runs_early() {
    let stack = Stack::new();
    let (response, key) = respond(&stack, stream(), |request| {
        cleanup(request).defer(|_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err("late commit".into())
        })
    })
    .await;
    let start = tokio::time::Instant::now();
    let ((body, report), early) = tokio::join!(read(response), key.close_now());
    assert!(early.is_err());
    assert!(body.is_err(), "a commit that fails cannot look whole");
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_failed),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_closer_run_early_and_forgotten_does_not_hold_the_end_for_ever() {
    let stack = Stack::new().closer_limit(Duration::from_secs(3));
    let (response, key) = respond(&stack, stream(), |request| {
        cleanup(request).defer(|_| std::future::pending())
    })
    .await;
    let mut early = Box::pin(key.close_now());
    assert!(futures_util::poll!(&mut early).is_pending());
    let start = tokio::time::Instant::now();
    let (body, report) = read(response).await;
    assert_eq!(start.elapsed().as_secs(), 3, "it waited for the limit");
    // What may have been a commit has not come to its end.
    let error = body.unwrap_err();
    let overran = error.downcast_ref::<Failure>().map(Failure::kind);
    assert!(matches!(overran, Some(FailureKind::OverranLimit { .. })));
    assert!(report.stuck[0].contains(file!()), "{:?}", report.stuck);
    drop(early);
}

/// Who comes behind it must not commit, whatever the rule; and it is one failure, however it ends.
#[tokio::test(start_paused = true)]
async fn a_closer_run_early_and_given_up_has_failed() {
    for overruns in [true, false] {
        let stack = Stack::new()
            .closer_limit(Duration::from_secs(3))
            .succeeded_when(|_, status| status == Some(StatusCode::OK));
        let (tell, told) = mpsc::channel();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let (response, key) = respond(&stack, stream(), |request| {
            let cleanup = cleanup(request);
            cleanup.defer_sync(move |ending| tell.send(ending.succeeded()).unwrap());
            cleanup.defer(|_| async {
                finished.await?;
                Err("disk".into())
            })
        })
        .await;
        let mut early = Box::pin(key.close_now());
        assert!(futures_util::poll!(&mut early).is_pending());
        let (parts, body) = response.into_parts();
        body.collect().await.unwrap_err();
        assert_eq!(told.try_recv(), Ok(false), "it would have committed");
        let report = || closed(Response::from_parts(parts.clone(), ()));
        let counts = report().await.counts;
        assert_eq!((counts.closers_run, counts.closers_failed), (1, 1));
        if !overruns {
            finish.send(()).unwrap();
        }
        early.await.unwrap_err();
        let late = report().await;
        let counts = late.counts;
        assert_eq!((counts.closers_run, counts.closers_failed), (2, 1));
        assert_eq!(late.errors.len(), if overruns { 1 } else { 2 });
    }
}

/// Its own limit counts, and not that of the others.
#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_closer_with_a_long_limit_that_its_key_runs_early() {
    let stack = Stack::new().closer_limit(Duration::from_secs(3));
    let (response, key) = respond(&stack, stream(), |request| {
        cleanup(request).defer_within(Duration::from_secs(60), |_| async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(())
        })
    })
    .await;
    let (early, (body, report)) = tokio::join!(key.close_now(), read(response));
    assert_eq!(body.unwrap(), "ab");
    assert!(early.unwrap());
    assert_eq!(report.counts.closers_run, 1);
}

/// Each has its own time, from when it was begun.
#[tokio::test(start_paused = true)]
async fn closers_run_early_are_waited_for_one_by_one() {
    let stack = Stack::new().closer_limit(Duration::from_secs(30));
    let (response, keys) = respond(&stack, stream(), |request| {
        let hangs = cleanup(request).defer(|_| std::future::pending());
        let slow = cleanup(request).defer(|_| async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok(())
        });
        (hangs, slow)
    })
    .await;
    let (hangs, slow) = keys;
    let mut hanging = Box::pin(hangs.close_now());
    assert!(futures_util::poll!(&mut hanging).is_pending());
    let slow = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        slow.close_now().await
    };
    let ((body, report), slow) = tokio::join!(read(response), slow);
    assert!(slow.unwrap());
    body.unwrap_err();
    assert_eq!(report.counts.closers_run, 1);
    assert_eq!((report.stuck.len(), report.errors.len()), (1, 1));
}

/// A drain that has begun counts what is lost behind the end of its scope, too.
#[test]
fn closers_lost_behind_the_end_are_counted_by_the_drain() {
    let supervisor = Supervisor::new();
    let stack = Stack::new().supervisor(&supervisor);
    let runtime = runtime();
    let view = runtime.block_on(async {
        let (response, view) = respond(&stack, stream(), cleanup).await;
        view.defer_sync(|_| {});
        read(response).await.0.unwrap();
        view
    });
    supervisor.begin_shutdown();
    drop(runtime);
    view.defer(|_| async { Ok(()) });
    let waiting = tokio::runtime::Builder::new_current_thread();
    let waiting = { waiting }.enable_all().build().unwrap();
    let drained = waiting.block_on(supervisor.drain(Duration::from_secs(1)));
    assert_eq!(drained.unrun, 1, "{drained}");
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder
        .worker_threads(1)
        .thread_name("the runtime of the call");
    builder.enable_all().build().unwrap()
}

/// A stack whose reports go to a channel.
fn reporting() -> (Stack, mpsc::Receiver<EndReport>) {
    let (tx, rx) = mpsc::channel();
    let tx = Mutex::new(tx);
    let stack = Stack::new().on_end(move |report| drop(tx.lock().unwrap().send(report.clone())));
    (stack, rx)
}

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn a_drop_on_a_plain_thread_tears_down_on_the_runtime_of_the_call() {
    let runtime = runtime();
    let (stack, reports) = reporting();
    let (response, log) = runtime.block_on(respond(&stack, stream(), |request| {
        let log = Log::default();
        let seen = log.clone();
        cleanup(request).defer(|_| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            note(&seen, std::thread::current().name().unwrap());
            Ok(())
        });
        log
    }));
    std::thread::scope(|scope| scope.spawn(|| drop(response)).join().unwrap());
    let report = reports.recv_timeout(DEADLINE).unwrap();
    assert_eq!(report.counts.closers_run, 1);
    assert_eq!(lines(&log), ["the runtime of the call"]);
}

#[test]
fn a_runtime_that_dies_midway_leaves_nothing_uncounted() {
    let runtime = runtime();
    let (stack, reports) = reporting();
    let log = Log::default();
    let (started, running) = mpsc::channel();
    let (response, ()) = runtime.block_on(respond(&stack, stream(), |request| {
        let cleanup = cleanup(request);
        let sync = log.clone();
        cleanup.defer(|_| async { Ok(()) });
        cleanup.defer_sync(move |ending| note(&sync, format!("sync {}", ending.outcome())));
        cleanup.defer_sync(|_| panic!("contained here too"));
        cleanup.defer(move |_| async move {
            started.send(()).unwrap();
            std::future::pending().await
        });
    }));
    drop(response);
    running.recv_timeout(DEADLINE).unwrap();
    drop(runtime);
    let report = reports.recv_timeout(DEADLINE).unwrap();
    // The one in progress, and the one never begun.
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_unrun),
        (2, 2)
    );
    assert_eq!(lines(&log), ["sync Dropped"]);
}

#[test]
fn a_drop_after_the_runtime_runs_sync_closers_and_counts_the_others() {
    let runtime = runtime();
    let (stack, reports) = reporting();
    let (response, cleanup) = runtime.block_on(respond(&stack, stream(), |request| {
        let cleanup = cleanup(request);
        cleanup.defer_sync(|_| {});
        cleanup.defer(|_| async { Ok(()) });
        cleanup
    }));
    drop(runtime);
    drop(response);
    let report = reports.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_unrun),
        (1, 1)
    );
    // Late ones find no runtime either; the sync one runs.
    let log = Log::default();
    let late = log.clone();
    cleanup.defer(|_| async { Ok(()) });
    cleanup.defer_sync(move |_| note(&late, "late"));
    assert_eq!(lines(&log), ["late"]);
}

#[test]
fn a_call_outside_any_runtime_runs_sync_closers_only() {
    let (stack, reports) = reporting();
    let mut answering = pin!(respond(&stack, stream(), |request| {
        cleanup(request).defer_sync(|_| {});
        cleanup(request).defer(|_| async { Ok(()) });
    }));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready((response, ())) = answering.as_mut().poll(&mut cx) else {
        panic!("nothing to wait for");
    };
    drop(response);
    let report = reports.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        (report.counts.closers_run, report.counts.closers_unrun),
        (1, 1)
    );
}

/// Polls on this thread, with no runtime in context.
fn poll_here<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        assert!(start.elapsed() < DEADLINE, "it waits for ever");
        std::thread::yield_now();
    }
}

#[test]
fn a_body_read_on_a_plain_thread_finds_its_timers() {
    let runtime = runtime();
    let (stack, _reports) = reporting();
    let (response, ()) = runtime.block_on(respond(&stack, stream(), |request| {
        cleanup(request).defer(|_| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err("commit failed".into())
        });
    }));
    let error = poll_here(response.into_body().collect()).unwrap_err();
    assert_eq!(error.cause().to_string(), "commit failed");
}

#[test]
fn without_any_runtime_an_error_waits_for_no_timer() {
    let body = CleanupBody::new(Script::new().data("a").error("disk"));
    let mut body = pin!(body.collect());
    let mut cx = Context::from_waker(Waker::noop());
    // No wake-up will come: it must not ask for one.
    let Poll::Ready(Err(error)) = body.as_mut().poll(&mut cx) else {
        panic!("it waits for a timer that nobody can give it");
    };
    assert_eq!(error.cause().to_string(), "disk");
}

// ---- Order ----

/// Notes whether the signals had fired when it was dropped.
struct Watching(Disconnect, Log);

impl Drop for Watching {
    fn drop(&mut self) {
        note(
            &self.1,
            format!("inner body dropped, gone: {}", self.0.is_gone()),
        );
    }
}

/// Field order is drop order: signals, inner body, teardown.
#[tokio::test(start_paused = true)]
async fn signals_fire_before_the_inner_body_goes_and_closers_run_after() {
    let log = Log::default();
    let service = service_fn(|request: Request<()>| {
        let seen = log.clone();
        cleanup(&request).defer_sync(move |_| note(&seen, "closer"));
        let watching = Watching(Disconnect::of(&request).unwrap(), log.clone());
        let frames = futures_util::stream::once(async move {
            let _watching = &watching;
            std::future::pending::<Result<http_body::Frame<bytes::Bytes>, Infallible>>().await
        });
        let body = http_body_util::StreamBody::new(frames);
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let response = Stack::new()
        .layer(service)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(closed(response).await.outcome(), Outcome::Dropped);
    assert_eq!(lines(&log), ["inner body dropped, gone: true", "closer"]);
}

// ---- Bodies that are misused ----

#[tokio::test(start_paused = true)]
async fn a_body_polled_again_after_a_caught_panic_fails_without_asking_its_inner_body() {
    let body = Script::new().data("a").panic("scripted");
    let probe = body.probe();
    let (response, ()) = respond(&Stack::new(), body, |request| {
        cleanup(request).defer(|ending| async move {
            assert_eq!(ending.outcome(), Outcome::Panicked);
            Ok(())
        });
    })
    .await;
    let (parts, body) = response.into_parts();
    let mut body = Box::pin(body);
    body.frame().await.unwrap().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    catch_unwind(AssertUnwindSafe(|| {
        body.as_mut().poll_frame(&mut cx).is_ready()
    }))
    .unwrap_err();
    body.frame().await.unwrap().unwrap_err();
    assert!(!probe.was_polled_after_end());
    let report = closed(Response::from_parts(parts, body)).await;
    assert_eq!(report.outcome(), Outcome::Panicked);
    assert_eq!(report.counts.closers_failed, 0);
}

/// A body that panics when it is dropped.
struct Fragile(Script);

impl Body for Fragile {
    type Data = bytes::Bytes;
    type Error = bodyguard::testing::ScriptError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("scripted drop");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_in_its_drop_is_not_committed() {
    let log = Log::default();
    let unknown = || Script::new().data("a").pending().data("b");
    for (body, status, held, seen) in [
        (unknown(), 200, false, 200),
        (unknown().exact_hint(), 200, false, 200),
        (unknown(), 200, true, 200),
        (Script::new().data("a").exact_hint(), 200, false, 500),
        (unknown(), 204, false, 500),
        (unknown(), 204, true, 500),
    ] {
        let hold = Arc::new(Mutex::new(None));
        let (kept, closer) = (hold.clone(), log.clone());
        let body = Mutex::new(Some(body));
        let service = service_fn(move |request: Request<()>| {
            let log = closer.clone();
            cleanup(&request).defer_sync(move |ending| {
                note(&log, format!("{} {}", ending.outcome(), ending.succeeded()));
            });
            let gone = Disconnect::of(&request).unwrap();
            *kept.lock().unwrap() = held.then(|| (cleanup(&request).hold(), gone));
            let mut response = Response::new(Fragile(body.lock().unwrap().take().unwrap()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let service = Stack::new().layer(service);
        let response = service.oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), seen);
        let (parts, body) = response.into_parts();
        let read = body.collect().await;
        assert_eq!(read.is_err(), seen == 200);
        let held = hold.lock().unwrap().take();
        if let Some((hold, disconnect)) = held {
            // Who holds on is told at once.
            let told = tokio::time::timeout(Duration::from_secs(1), disconnect.gone());
            told.await.unwrap();
            hold.finish(Outcome::Complete);
        }
        let report = closed(Response::from_parts(parts, ())).await;
        assert_eq!(report.outcome(), Outcome::Panicked);
        assert!(failure(&report, 0).eq(&FailureKind::Panicked {
            what: "response body".to_owned(),
            message: "scripted drop".to_owned(),
        }));
        assert_eq!(lines(&log), ["Panicked false"]);
    }
}

/// Under a hold the head does not wait for the commit of a body over before it; the outcome does.
#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_behind_an_empty_answer_under_a_hold_is_told() {
    let (log, hold) = (Log::default(), Arc::new(Mutex::new(None)));
    let (closer, kept) = (log.clone(), hold.clone());
    let service = service_fn(move |request: Request<()>| {
        let log = closer.clone();
        cleanup(&request).defer_sync(move |ending| note(&log, ending.outcome().as_str()));
        *kept.lock().unwrap() = Some(cleanup(&request).hold());
        let log = closer.clone();
        let body = CleanupBody::new(http_body_util::Empty::<Bytes>::new()).defer(|_| async move {
            note(&log, "commit");
            Err("commit failed".into())
        });
        std::future::ready(Ok::<_, Infallible>(body.into_http()))
    });
    let service = CleanupLayer::new().layer(service);
    let response = service.oneshot(Request::new(())).await.unwrap();
    let (parts, body) = response.into_parts();
    drop(body);
    support::in_turns(|| !log.lock().unwrap().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let hold = hold.lock().unwrap().take().unwrap();
    hold.finish(Outcome::Complete);
    let report = closed(Response::from_parts(parts, ())).await;
    assert_eq!(report.outcome(), Outcome::Failed);
    assert_eq!(lines(&log), ["commit", "Failed"]);
}

/// An error of the application whose sources never end, behind another one.
#[derive(Debug)]
struct Endless;

impl std::fmt::Display for Endless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("endless")
    }
}

impl std::error::Error for Endless {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self)
    }
}

#[tokio::test(start_paused = true)]
async fn errors_whose_sources_never_end_are_told_apart() {
    let (response, ()) = respond(&Stack::new(), stream(), |request| {
        for _ in 0..2 {
            cleanup(request).defer(|_| async { Err(Endless.into()) });
        }
    })
    .await;
    let (body, report) = read(response).await;
    body.unwrap_err();
    assert_eq!(report.errors.len(), 2);
}

// ---- Tasks: limits ----

#[tokio::test(start_paused = true)]
async fn tasks_have_limits_at_a_natural_end_and_after_a_cancel() {
    let stack = || {
        Stack::new()
            .join_limit(Duration::from_secs(3))
            .cancel_grace(Duration::from_secs(1))
    };
    let spawn = |request: &Request<()>| {
        let group = TaskGroup::of(request).unwrap();
        group.spawn_graceful(|_| std::future::pending()).unwrap();
    };
    // Natural: waited for up to the join limit, then told, then aborted; and the response fails.
    let start = tokio::time::Instant::now();
    let (response, ()) = respond(&stack(), stream(), spawn).await;
    let (body, report) = read(response).await;
    body.unwrap_err();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(matches!(
        failure(&report, 0),
        FailureKind::OverranLimit { .. }
    ));
    assert_eq!(report.counts.tasks_cancelled, 1);
    // Left: told at once, and aborted after the grace.
    let start = tokio::time::Instant::now();
    let (response, ()) = respond(&stack(), stream(), spawn).await;
    let report = closed(response).await;
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(2),
        "{took:?}"
    );
    assert_eq!((report.counts.tasks_cancelled, report.errors.len()), (1, 0));
}

// ---- Holds ----

fn held(request: &Request<()>) -> (Hold, Disconnect) {
    let disconnect = Disconnect::of(request).unwrap();
    (disconnect.hold(), disconnect)
}

#[tokio::test(start_paused = true)]
async fn a_hold_keeps_the_scope_open_past_its_body() {
    for (how, outcome) in [
        (Some(Outcome::Complete), Outcome::Complete),
        (Some(Outcome::Failed), Outcome::Failed),
        (None, Outcome::Cancelled),
    ] {
        let (supervisor, log) = (Supervisor::new(), Log::default());
        let stack = Stack::new().supervisor(&supervisor);
        let (response, (hold, disconnect)) = respond(&stack, stream(), |request| {
            let seen = log.clone();
            cleanup(request).defer(|ending| async move {
                note(
                    &seen,
                    format!("{} {:?}", ending.outcome(), ending.status().unwrap()),
                );
                Ok(())
            });
            held(request)
        })
        .await;
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "ab"
        );
        assert_eq!(lines(&log), [""; 0]);
        assert!(hold.is_live() && !disconnect.is_gone());
        match how {
            Some(how) => hold.finish(how),
            None => drop(hold),
        }
        assert!(supervisor.drain(Duration::from_secs(1)).await.is_clean());
        assert_eq!(lines(&log), [format!("{outcome} 200")]);
        assert_eq!(disconnect.is_gone(), outcome != Outcome::Complete);
    }
}

#[tokio::test(start_paused = true)]
async fn the_outcome_is_decided_when_the_last_hold_goes() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let stack = Stack::new().supervisor(&supervisor);
    let (response, (first, second)) = respond(&stack, stream(), |request| {
        let seen = log.clone();
        cleanup(request).defer_sync(move |ending| note(&seen, ending.outcome().as_str()));
        (held(request).0, held(request).0)
    })
    .await;
    response.into_body().collect().await.unwrap();
    first.finish(Outcome::Failed);
    tokio::task::yield_now().await;
    assert!(second.is_live());
    assert_eq!(lines(&log), [""; 0]);
    second.finish(Outcome::Complete);
    tokio::task::yield_now().await;
    assert_eq!(lines(&log), ["Failed"]);
}

/// The hold keeps the scope, not the truth, from the client.
#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_under_a_hold_is_broken_for_its_client() {
    let length = |n| http_body::SizeHint::with_exact(n);
    for (body, outcome) in [
        (Script::new().data("a").error("disk"), Outcome::Failed),
        (Script::new().data("a").hint(length(9)), Outcome::Truncated),
        (
            Script::new().pending().data("abc").hint(length(2)),
            Outcome::Failed,
        ),
    ] {
        let (stack, reports) = reporting();
        let (response, (hold, disconnect)) = respond(&stack, body, held).await;
        response.into_body().collect().await.unwrap_err();
        assert!(disconnect.is_gone(), "its tokens fire at once");
        hold.finish(Outcome::Complete);
        assert_eq!(reports.recv().unwrap().outcome(), outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_over_at_its_head_under_a_hold() {
    // Broken already: a 500, although the scope stays open.
    let (stack, reports) = reporting();
    let body = Script::new().end_hint();
    let hold = Mutex::new(None);
    let service = service_fn(|request: Request<()>| {
        *hold.lock().unwrap() = Some(held(&request).0);
        let response = Response::builder().header("content-length", 5);
        std::future::ready(Ok::<_, Infallible>(
            response.body(Script::new().end_hint()).unwrap(),
        ))
    });
    drop(body);
    let response = stack
        .layer(service)
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_eq!(response.status(), 500);
    hold.lock()
        .unwrap()
        .take()
        .unwrap()
        .finish(Outcome::Complete);
    assert_eq!(reports.recv().unwrap().outcome(), Outcome::Truncated);
}

/// Each key is that of its own closer, also among those that the client does not wait for.
#[tokio::test(start_paused = true)]
async fn keys_of_closers_behind_the_end() {
    let log = Log::default();
    let (response, keys) = respond(&Stack::new(), stream(), |request| {
        let register = |name: &'static str| {
            let seen = log.clone();
            cleanup(request).defer_after_end(move |_| async move {
                note(&seen, name);
                Ok(())
            })
        };
        ["one", "two", "three", "four"].map(register)
    })
    .await;
    let [_, two, three, four] = keys;
    assert!(three.dismiss());
    assert!(two.close_now().await.unwrap());
    assert_eq!(lines(&log), ["two"]);
    response.into_body().collect().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(lines(&log), ["four", "one"]);
    assert!(!four.dismiss(), "it has run");
}

// ---- The drain ----

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_streams_that_finish_and_for_their_closers() {
    let (supervisor, log) = (Supervisor::new(), Log::default());
    let stack = Stack::new().supervisor(&supervisor);
    let (response, disconnect) = respond(&stack, stream(), |request| {
        let seen = log.clone();
        cleanup(request).defer(|_| async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            note(&seen, "closed");
            Ok(())
        });
        Disconnect::of(request).unwrap()
    })
    .await;
    let told = disconnect.shutdown_token();
    let reading = async {
        told.cancelled().await;
        response.into_body().collect().await.unwrap()
    };
    let (report, read) = tokio::join!(supervisor.drain(Duration::from_secs(60)), reading);
    assert_eq!(read.to_bytes(), "ab");
    assert_eq!((report.complete, report.is_clean()), (1, true));
    assert_eq!(lines(&log), ["closed"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_streams_by_their_policy() {
    let hang = || Script::new().data("a").hang();
    let second = Duration::from_secs(1);
    for (policy, whole, text, (ended, aborted)) in [
        (
            Shutdown::end_now().last_frame("", "bye"),
            true,
            "bye",
            (1, 0),
        ),
        (Shutdown::end_now(), false, "", (1, 0)),
        (Shutdown::abort(), false, "", (0, 1)),
        (Shutdown::finish_within(second), false, "", (0, 1)),
        (Shutdown::finish(), false, "", (0, 1)),
    ] {
        let outcomes = Log::default();
        let supervisor = Supervisor::new();
        let stack = Stack::new()
            .supervisor(&supervisor)
            .shutdown(policy.clone());
        let (response, ()) = respond(&stack, hang(), |request| {
            let outcomes = outcomes.clone();
            cleanup(request).defer_sync(move |ending| note(&outcomes, ending.outcome().as_str()));
        })
        .await;
        let body = response.into_body().collect();
        let (report, read) = tokio::join!(supervisor.drain(Duration::from_secs(60)), body);
        assert_eq!(read.is_ok(), whole, "{policy:?}");
        if let Ok(read) = read {
            assert_eq!(read.to_bytes(), text);
        }
        assert!(report.is_clean(), "{policy:?}: {report}");
        assert_eq!(
            (report.ended, report.aborted),
            (ended, aborted),
            "{policy:?}: {report}"
        );
        assert_eq!(lines(&outcomes), ["Shutdown"], "{policy:?}");
        // Those that begin while it drains go the same way, with a time of their own if the policy has one.
        let (response, ()) = respond(&stack, hang(), |request| {
            cleanup(request).defer_sync(|_| {});
        })
        .await;
        let left = tokio::time::timeout(Duration::from_secs(5), response.into_body().collect());
        let soon = left.await.is_ok();
        let waits = format!("{policy:?}").contains("within: None");
        assert_eq!(soon, !waits, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_names_what_does_not_stop() {
    let supervisor = Supervisor::new();
    let stack = Stack::new()
        .supervisor(&supervisor)
        .closer_limit(Duration::from_secs(3600));
    // A response that its server does not let go of; a closer; and a late closer.
    let (unreleased, ()) = respond(&stack, stream(), |request| {
        cleanup(request).defer_sync(|_| {});
    })
    .await;
    let (left, late) = respond(&stack, stream(), |request| {
        cleanup(request).defer(|_| std::future::pending());
        cleanup(request)
    })
    .await;
    drop(left);
    let (over, after) = respond(&stack, stream(), cleanup).await;
    closed_or_dropped(over).await;
    after.defer(|_| std::future::pending());
    let report = supervisor.drain(Duration::from_secs(10)).await;
    let mut stuck = report.stuck.clone();
    stuck.sort();
    assert_eq!(stuck.len(), 3, "{report}");
    assert!(stuck[0].contains("closer at tests/teardown.rs"), "{report}");
    assert!(stuck[1].contains("closer at tests/teardown.rs"), "{report}");
    assert!(stuck[2].contains("not released by its server"), "{report}");
    assert!(!report.is_clean());
    drop((unreleased, late));
}

async fn closed_or_dropped<B>(response: Response<B>) {
    let _ = close(response).await;
}

#[tokio::test]
async fn blocking_code_that_does_not_stop_is_named_until_it_does() {
    let supervisor = Supervisor::new();
    let (stack, reports) = reporting();
    let limit = Duration::from_millis(20);
    let stack = stack
        .supervisor(&supervisor)
        .join_limit(limit)
        .cancel_grace(limit);
    let (release, released) = mpsc::channel::<()>();
    let (start, started) = mpsc::channel();
    let (response, ()) = respond(&stack, stream(), move |request| {
        let group = TaskGroup::of(request).unwrap();
        let blocking = group.spawn_blocking(move |_| {
            start.send(())?;
            Ok(released.recv()?)
        });
        blocking.unwrap();
    })
    .await;
    // Until it has a thread it can be aborted.
    started.recv_timeout(DEADLINE).unwrap();
    drop(response);
    let report = tokio::task::spawn_blocking(move || reports.recv_timeout(DEADLINE).unwrap());
    let report = report.await.unwrap();
    assert!(
        report.stuck[0].contains("task at tests/teardown.rs"),
        "{report:?}"
    );
    let drained = supervisor.drain(Duration::from_millis(50)).await;
    assert!(
        drained.stuck[0].contains("task at tests/teardown.rs"),
        "{drained}"
    );
    release.send(()).unwrap();
    let start = Instant::now();
    while supervisor.active() > 0 {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Ended before its head, it has an answer all the same, by which it can be closed.
#[tokio::test(start_paused = true)]
async fn close_of_a_response_that_was_cancelled_before_its_head() {
    let service = Stack::new().layer(service_fn(|request: Request<()>| async move {
        cleanup(&request).defer(|_| async { Err("rollback failed".into()) });
        Disconnect::of(&request).unwrap().cancel();
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(Response::new(stream()))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 500);
    let error = close(response).await.unwrap_err();
    assert_eq!(error.errors()[0].to_string(), "rollback failed");
}

/// What it was to do is half done: no success, and a failure in the account.
#[tokio::test(start_paused = true)]
async fn a_closer_run_by_its_key_and_given_up() {
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    let service = Stack::new().layer(service_fn(|request: Request<()>| {
        let tell = tell.clone();
        async move {
            cleanup(&request).defer_sync(move |end| *tell.lock().unwrap() = Some(end.succeeded()));
            let key = cleanup(&request).defer(|_| std::future::pending());
            let second = Duration::from_secs(1);
            tokio::time::timeout(second, key.close_now())
                .await
                .unwrap_err();
            Ok::<_, Infallible>(Response::new(Script::new().data("a")))
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    let error = close(response).await.unwrap_err();
    assert_eq!(*told.lock().unwrap(), Some(false));
    let failure: &Failure = error.errors()[0].downcast_ref().unwrap();
    assert!(matches!(failure.kind(), FailureKind::GivenUp { .. }));
    let counts = &error.report().counts;
    assert_eq!((counts.closers_unrun, counts.closers_failed), (1, 0));
}
