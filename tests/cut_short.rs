//! Ends that had come by themselves, and what cuts them short: the drain, a failed task, odd errors.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bodyguard::{
    Cleanup, Disconnect, Outcome, Shutdown, Stack, Supervisor, TaskGroup, close,
    scope::FailurePolicy, testing::Script,
};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};

type Endings = Arc<Mutex<Vec<(Outcome, bool)>>>;

/// How the task that holds the end up would run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Plain,
    IgnoresItsToken,
    Blocking,
}

fn spawn(group: &TaskGroup, task: Task) {
    match task {
        Task::Plain => drop(group.spawn(std::future::pending())),
        Task::IgnoresItsToken => drop(group.spawn_graceful(|_| std::future::pending())),
        Task::Blocking => drop(group.spawn_blocking(|token| {
            while !token.is_cancelled() {
                std::thread::yield_now();
            }
            Ok(())
        })),
    }
}

/// The body has ended and its end waits for a task, when the drain has no more time: tasks are cancelled,
/// and closers run, knowing that this was no success.
#[tokio::test(start_paused = true)]
async fn a_drain_aborts_what_waits_for_its_tasks() {
    for task in [Task::Plain, Task::IgnoresItsToken] {
        cut_short(task, Duration::from_secs(8)).await;
    }
}

/// The same for code on a thread, under a clock that runs.
#[tokio::test]
async fn a_drain_tells_blocking_tasks_that_are_waited_for() {
    cut_short(Task::Blocking, Duration::from_millis(200)).await;
}

async fn cut_short(task: Task, deadline: Duration) {
    let soon = Shutdown::finish_within(deadline / 4);
    for policy in [Shutdown::finish(), soon] {
        for left in [false, true] {
            let (endings, supervisor) = (Endings::default(), Supervisor::new());
            let log = endings.clone();
            let stack = Stack::new()
                .supervisor(&supervisor)
                .shutdown(policy.clone());
            let service = stack.layer(service_fn(move |request: Request<()>| {
                let log = log.clone();
                Cleanup::of(&request).unwrap().defer(|ending| async move {
                    let seen = (ending.outcome(), ending.succeeded());
                    log.lock().unwrap().push(seen);
                    Ok(())
                });
                spawn(&TaskGroup::of(&request).unwrap(), task);
                let body = Script::new().data("a").pending();
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            }));
            let response = service.oneshot(Request::new(())).await.unwrap();
            let mut body = response.into_body();
            body.frame().await.unwrap().unwrap();
            let held = tokio::time::timeout(deadline / 8, body.frame()).await;
            assert!(held.is_err(), "the end waits for the task");
            // Left by its reader, the teardown goes on by itself.
            let drain = supervisor.drain(deadline);
            let (drained, end) = if left {
                drop(body);
                (drain.await, None)
            } else {
                tokio::join!(drain, body.frame())
            };
            let what = format!("{task:?}, left: {left}: {drained}");
            assert_eq!(
                *endings.lock().unwrap(),
                [(Outcome::Shutdown, false)],
                "{what}"
            );
            assert_eq!((drained.aborted, drained.unrun), (1, 0), "{what}");
            assert!(drained.stuck.is_empty(), "{what}");
            assert!(left || end.unwrap().is_err(), "{what}");
        }
    }
}

/// A task fails, and with it the response, whose body then ends by itself: whoever watches is told, as by any
/// other failure.
#[tokio::test(start_paused = true)]
async fn a_failed_task_is_no_natural_end() {
    for policy in [FailurePolicy::CancelSiblings, FailurePolicy::KeepOthers] {
        for held in [false, true] {
            for fed in [false, true] {
                let mut made = None;
                let stack = Stack::new().failure_policy(policy);
                let service = stack.layer(service_fn(|request: Request<()>| {
                    let group = TaskGroup::of(&request).unwrap();
                    let disconnect = Disconnect::of(&request).unwrap();
                    let hold = held.then(|| Cleanup::of(&request).unwrap().hold());
                    made = Some((disconnect, hold));
                    let failing = async { Err::<(), bodyguard::BoxError>("disk".into()) };
                    let body = if fed {
                        let body = group.body(|tx| async move {
                            tx.send("a").await?;
                            failing.await
                        });
                        body.boxed_unsync()
                    } else {
                        drop(group.spawn(failing));
                        let body = Script::new().data("a").pending();
                        body.map_err(bodyguard::BodyError::new).boxed_unsync()
                    };
                    std::future::ready(Ok::<_, Infallible>(Response::new(body)))
                }));
                let mut response = service.oneshot(Request::new(())).await.unwrap();
                let (disconnect, hold) = made.unwrap();
                let token = disconnect.token();
                let what = format!("{policy:?}, held: {held}, fed: {fed}");
                assert!(!token.is_cancelled(), "{what}");
                response.body_mut().collect().await.unwrap_err();
                assert!(token.is_cancelled() && disconnect.is_gone(), "{what}");
                drop(hold);
                let report = close(response).await.unwrap_err().into_report();
                assert_eq!(report.outcome(), Outcome::Failed, "{what}");
            }
        }
    }
}

/// An error that looks at its response when it is asked for its source.
#[derive(Debug)]
struct Looks(Disconnect);

impl std::fmt::Display for Looks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "looked: {}", self.0.is_gone())
    }
}

impl std::error::Error for Looks {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let _ = self.0.is_gone();
        None
    }
}

/// Errors are the application's code: they are asked nothing under a lock.
#[test]
fn errors_that_look_at_their_response() {
    look(true);
    look(false);
}

/// Failures that end the body, or that wait for its end.
fn look(ends: bool) {
    let (done, ended) = std::sync::mpsc::channel();
    // A thread that would stay behind, if it waited for itself.
    let run = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let report = runtime.unwrap().block_on(async {
            let policy = match ends {
                true => FailurePolicy::CancelSiblings,
                false => FailurePolicy::KeepOthers,
            };
            let stack = Stack::new().failure_policy(policy);
            let service = stack.layer(service_fn(|request: Request<()>| {
                let group = TaskGroup::of(&request).unwrap();
                let disconnect = Disconnect::of(&request).unwrap();
                for _ in 0..3 {
                    let error = Looks(disconnect.clone());
                    drop(group.spawn(async { Err(error.into()) }));
                }
                let error = Looks(disconnect);
                Cleanup::of(&request)
                    .unwrap()
                    .defer(|_| async { Err(error.into()) });
                let body = match ends {
                    true => Script::new().data("a").hang(),
                    false => Script::new().data("a").pending(),
                };
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            }));
            let mut response = service.oneshot(Request::new(())).await.unwrap();
            let error = response.body_mut().collect().await.unwrap_err();
            assert_eq!(error.causes().len(), if ends { 2 } else { 4 });
            close(response).await.unwrap_err().into_report()
        });
        done.send(report.errors.len()).unwrap();
    });
    let failures = if ends { 2 } else { 4 };
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(failures));
    run.join().unwrap();
}

/// The client has been promised no more, and is to have what it was promised.
#[tokio::test(start_paused = true)]
async fn a_source_that_stays_open_behind_its_length_is_not_waited_for_for_ever() {
    let limit = Duration::from_secs(3);
    for body in [Script::new(), Script::new().pending()] {
        let body = body.data("hello").hang();
        let (endings, probe) = (Endings::default(), body.probe());
        let log = endings.clone();
        let mut body = Some(body);
        let service = service_fn(move |request: Request<()>| {
            let log = log.clone();
            Cleanup::of(&request).unwrap().defer_sync(move |ending| {
                log.lock()
                    .unwrap()
                    .push((ending.outcome(), ending.succeeded()));
            });
            let response = Response::builder().header("content-length", 5);
            let response = response.body(body.take().unwrap()).unwrap();
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let request = Request::builder().version(http::Version::HTTP_2);
        let stack = Stack::new().join_limit(limit);
        let response = stack.layer(service).oneshot(request.body(()).unwrap());
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let begun = tokio::time::Instant::now();
        let read = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((&read[..], begun.elapsed()), (&b"hello"[..], limit));
        assert!(probe.is_dropped());
        assert_eq!(endings.lock().unwrap()[..], [(Outcome::Complete, true)]);
    }
}

/// It ends at its next await; what has none is named, and has failed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_task_that_never_awaits_is_no_clean_end() {
    let stuck = Arc::new(AtomicBool::new(true));
    let (started, has_started) = oneshot::channel();
    let (blocks, ends) = (stuck.clone(), Endings::default());
    let log = ends.clone();
    let mut started = Some(started);
    let service = service_fn(move |request: Request<()>| {
        let (stuck, log, started) = (blocks.clone(), log.clone(), started.take().unwrap());
        let spawned = TaskGroup::of(&request)
            .unwrap()
            .spawn_background(async move {
                started.send(()).unwrap();
                let begun = Instant::now();
                while stuck.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(20) {
                    std::thread::yield_now();
                }
                Ok(())
            });
        spawned.unwrap();
        Cleanup::of(&request).unwrap().defer_sync(move |ending| {
            log.lock()
                .unwrap()
                .push((ending.outcome(), ending.succeeded()));
        });
        let body = Script::new().pending().data("all");
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let limit = Duration::from_millis(20);
    let stack = Stack::new().join_limit(limit).cancel_grace(limit);
    let response = stack.layer(service).oneshot(Request::new(())).await;
    has_started.await.unwrap();
    let error = response.unwrap().into_body().collect().await.unwrap_err();
    stuck.store(false, Ordering::Relaxed);
    let cause = error.cause();
    assert!(cause.to_string().contains("limit"), "{cause}");
    assert_eq!(ends.lock().unwrap()[..], [(Outcome::Failed, false)]);
}
