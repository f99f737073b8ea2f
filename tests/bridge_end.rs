//! The ends of the bridge: what is stopped stays stopped, and what did not run is said.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bodyguard::bridge::{Bridge, Context, Pool};
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle};

/// Nothing here may hang.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("took too long")
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
        let done = Handle::current().spawn(async move { call.await.unwrap() });
        soon(has_started).await.unwrap();
        Self { release, done }
    }

    async fn end(self) {
        drop(self.release);
        soon(self.done).await.unwrap();
    }
}

/// Lets every task that is ready run once.
async fn turn(bridge: &Bridge) {
    soon(bridge.run(tokio::task::yield_now)).await.unwrap();
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
    soon(spawned).await.unwrap();
    turn(&bridge).await;
    assert!(gone.load(Ordering::Acquire), "it runs on");
    assert_eq!(soon(context.close()).await.tasks_cancelled(), 0);
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
    soon(context.close()).await;
}
