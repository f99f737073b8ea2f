//! Blocking code that waits for a thread: the only one is taken until a test is over.

use std::{
    future::pending,
    sync::mpsc::{Sender, channel},
    time::{Duration, Instant},
};

use bodyguard::{Cleanup, EndReport, Failure, FailureKind, Outcome, Stack, TaskGroup, close};
use http_body_util::BodyExt;
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinHandle, spawn_blocking},
};

use crate::support::{App, Live, drain, messages, within};

/// Longer than a test waits.
const LONG: Duration = Duration::from_secs(60);

fn one_thread() -> Runtime {
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1);
    runtime.build().unwrap()
}

/// The only blocking thread: the sender is to be dropped.
fn taken() -> (Sender<()>, JoinHandle<()>) {
    let (release, held) = channel();
    (
        release,
        spawn_blocking(move || {
            let _ = held.recv();
        }),
    )
}

/// Behind all that was in the queue.
async fn freed((release, thread): (Sender<()>, JoinHandle<()>)) {
    drop(release);
    within(thread).await.unwrap();
    within(spawn_blocking(|| ())).await.unwrap();
}

/// A handler with a closer, and blocking code that owns something, behind a body that ends by itself, or not.
struct Queued {
    app: App,
    closed: Live,
    exists: Live,
    began: Live,
}

impl Queued {
    fn new<T: Send + 'static>(stack: Stack, ends: bool, owned: fn() -> T) -> Self {
        let [closed, exists, began] = [(); 3].map(|()| Live::default());
        let live = [closed.clone(), exists.clone(), began.clone()];
        let app = App::with(
            stack,
            move |group: TaskGroup, cleanup: Cleanup| async move {
                let [closed, exists, began] = live;
                cleanup.defer(move |_| async move {
                    std::mem::forget(closed.guard());
                    Ok(())
                });
                let (owned, guard) = (owned(), exists.guard());
                let blocking = group.spawn_blocking(move |_| {
                    let _owned = (owned, guard);
                    std::mem::forget(began.guard());
                    Ok(())
                });
                blocking.unwrap();
                group.body(move |tx| async move {
                    tx.send("x").await?;
                    match ends {
                        true => Ok(()),
                        false => pending().await,
                    }
                })
            },
        );
        Self {
            app,
            closed,
            exists,
            began,
        }
    }

    /// Nothing is left, and the closer has run.
    fn assert_over(&self, report: &EndReport) {
        assert_eq!((self.exists.count(), self.closed.count()), (0, 1));
        assert!(report.stuck.is_empty(), "{report:?}");
        assert_eq!(report.counts.tasks_joined + self.began.count() as u64, 0);
    }
}

#[test]
fn what_is_cancelled_before_it_has_a_thread_is_gone_at_once() {
    one_thread().block_on(async {
        let thread = taken();
        let queued = Queued::new(
            Stack::new().cancel_grace(LONG).join_limit(LONG),
            false,
            || (),
        );
        let mut response = queued.app.get().await;
        response.body_mut().frame().await.unwrap().unwrap();
        let report = within(close(response)).await.unwrap().unwrap();
        queued.assert_over(&report);
        assert_eq!(report.outcome(), Outcome::Dropped);
        // With the producer.
        assert_eq!(report.counts.tasks_cancelled, 2);
        freed(thread).await;
        assert_eq!(queued.began.count(), 0);
    });
}

#[test]
fn a_natural_end_waits_for_a_thread_up_to_the_join_limit() {
    one_thread().block_on(async {
        let (thread, limit) = (taken(), Duration::from_millis(50));
        let queued = Queued::new(
            Stack::new().cancel_grace(LONG).join_limit(limit),
            true,
            || (),
        );
        let start = Instant::now();
        let (text, error) = within(drain(queued.app.get().await.into_body())).await;
        assert!(start.elapsed() >= limit);
        let error = error.expect("a body whose task has not run");
        let failure = error.downcast_ref::<Failure>().unwrap().kind();
        assert!(
            matches!(failure, FailureKind::OverranLimit { .. }),
            "{failure:?}"
        );
        let report = queued.app.report().await;
        assert_eq!((text.as_str(), report.outcome()), ("x", Outcome::Failed));
        assert_eq!(report.counts.tasks_cancelled, 1);
        assert_eq!((queued.exists.count(), queued.closed.count()), (0, 1));
        assert!(report.stuck.is_empty(), "{report:?}");
        freed(thread).await;
        assert_eq!(queued.began.count(), 0);
    });
}

#[test]
fn what_gets_its_thread_before_the_join_limit_runs() {
    one_thread().block_on(async {
        let thread = taken();
        let queued = Queued::new(Stack::new().join_limit(LONG), true, || ());
        let mut body = queued.app.get().await.into_body();
        body.frame().await.unwrap().unwrap();
        let (end, ()) = tokio::join!(within(body.frame()), freed(thread));
        assert!(end.is_none());
        let report = queued.app.report().await;
        assert_eq!(report.outcome(), Outcome::Complete);
        // With the producer.
        assert_eq!((report.counts.tasks_joined, queued.began.count()), (2, 1));
    });
}

#[test]
fn a_destructor_that_panics_is_in_the_report() {
    struct Loaded;
    impl Drop for Loaded {
        fn drop(&mut self) {
            panic!("loaded");
        }
    }

    one_thread().block_on(async {
        let thread = taken();
        let queued = Queued::new(Stack::new().cancel_grace(LONG), false, || Loaded);
        drop(queued.app.get().await);
        let report = queued.app.report().await;
        queued.assert_over(&report);
        assert_eq!(report.counts.tasks_panicked, 1);
        let messages = messages(&report);
        assert!(messages[0].ends_with("panicked: loaded"), "{messages:?}");
        freed(thread).await;
    });
}

#[test]
fn a_runtime_that_is_shut_down_leaves_none_of_it() {
    let runtime = one_thread();
    let queued = Queued::new(Stack::new(), false, || ());
    let (thread, response) = runtime.block_on(async { (taken(), queued.app.get().await) });
    assert_eq!(queued.exists.count(), 1);
    runtime.shutdown_background();
    drop(response);
    assert_eq!(
        (queued.app.supervisor.active(), queued.exists.count()),
        (0, 0)
    );
    // Its thread would run it even now.
    let (release, thread) = thread;
    drop(release);
    let deadline = Instant::now() + LONG;
    while !thread.is_finished() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(queued.began.count(), 0);
}

/// Its pool drops what comes then.
#[test]
fn a_runtime_that_has_been_shut_down_takes_none_of_it() {
    let runtime = one_thread();
    let live = Live::default();
    let (give, given) = channel();
    let app = App::new(move |group: TaskGroup| async move { give.send(group).unwrap() });
    let response = runtime.block_on(app.get());
    runtime.shutdown_background();
    let guard = live.guard();
    let spawned = given.recv().unwrap().spawn_blocking(move |_| {
        drop(guard);
        Ok(())
    });
    assert!(spawned.is_err() || live.count() == 0);
    drop((response, spawned));
    assert_eq!((app.supervisor.active(), live.count()), (0, 0));
}
