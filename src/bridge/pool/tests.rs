//! Threads that cannot be started, at the moments that only the inside can arrange.

use std::{
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{Pool, Worker};
use crate::bridge::{Context, context::Close, error::BridgeError, session::Session};

const LIMIT: Duration = Duration::from_secs(20);

/// A pool whose only thread is taken, and the context that has it.
async fn taken() -> (Pool, Context) {
    let pool = Pool::builder().max_threads(1).build();
    let context = Context::new(pool.clone());
    context.bridge().call(|_| ()).await.unwrap();
    (pool, context)
}

/// A session in line with a closer, and what that says.
fn in_line(pool: &Pool) -> (Arc<Session>, mpsc::Receiver<()>) {
    let session = Session::alone(pool.clone());
    let (told, seen) = mpsc::channel();
    let bridge = crate::bridge::Bridge::new(Arc::clone(&session));
    bridge.defer(move |_| told.send(()).unwrap()).unwrap();
    assert_eq!(pool.waiting(), 1);
    (session, seen)
}

#[tokio::test]
async fn a_thread_that_came_free_meanwhile_serves_the_session() {
    let (pool, context) = taken().await;
    let (session, seen) = in_line(&pool);
    // As a session is that waits for its thread to be started.
    let taken_out = pool.handle.shared.lock().queue.pop_front().unwrap();
    context.close().await;
    assert_eq!(pool.idle(), 1);
    pool.handle
        .shared
        .not_started(taken_out, io::Error::other("no more"));
    let close = Close::of(&session, false);
    let report = tokio::time::timeout(LIMIT, close).await.unwrap();
    assert_eq!((report.closers_run(), report.unrun()), (1, 0));
    seen.try_recv().unwrap();
}

#[tokio::test]
async fn closers_wait_for_the_next_attempt_to_get_a_thread() {
    let (pool, context) = taken().await;
    let (session, seen) = in_line(&pool);
    session.fail(&BridgeError::start(io::Error::other("not now")));
    context.close().await;
    let close = Close::of(&session, false);
    let report = tokio::time::timeout(LIMIT, close).await.unwrap();
    assert_eq!((report.closers_run(), report.unrun()), (1, 0));
    seen.try_recv().unwrap();
}

#[tokio::test]
async fn a_thread_that_panics_leaves_another_in_its_place() {
    let pool = Pool::builder().max_threads(1).build();
    let shared = Arc::clone(&pool.handle.shared);
    shared.lock().threads = 1;
    let (session, seen) = in_line(&pool);
    let dies = std::thread::spawn(move || {
        let mut worker = Worker::new(shared, 7);
        worker.running = true;
        panic!("the worker");
    });
    dies.join().unwrap_err();
    let close = Close::of(&session, false);
    let report = tokio::time::timeout(LIMIT, close).await.unwrap();
    assert_eq!((report.closers_run(), report.unrun()), (1, 0));
    seen.try_recv().unwrap();
    assert_eq!(pool.threads(), 1);
}
