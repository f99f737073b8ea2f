//! Threads that cannot be started, at the moments that only the inside can arrange.

use std::{
    io,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use super::{Idle, Pool, Worker};
use crate::{
    bridge::{Bridge, Context, Cx, context::Close, error::BridgeError, session::Session},
    waits::in_time,
};

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
    let bridge = Bridge::new(Arc::clone(&session));
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
    let report = in_time(LIMIT, close).await.unwrap();
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
    let report = in_time(LIMIT, close).await.unwrap();
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
    let report = in_time(LIMIT, close).await.unwrap();
    assert_eq!((report.closers_run(), report.unrun()), (1, 0));
    seen.try_recv().unwrap();
    assert_eq!(pool.threads(), 1);
}

/// An error, or anything, that panics when dropped, and says that it is.
#[derive(Debug)]
struct Bomb(mpsc::Sender<()>);

impl Drop for Bomb {
    fn drop(&mut self) {
        let _ = self.0.send(());
        panic!("a bomb");
    }
}

impl std::fmt::Display for Bomb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a bomb")
    }
}

impl std::error::Error for Bomb {}

/// The next request finds the thread.
async fn serves(pool: &Pool) {
    let next = Context::new(pool.clone());
    let call = in_time(LIMIT, next.bridge().call(|_| 1));
    assert_eq!(call.await.expect("nobody serves").unwrap(), 1);
    assert_eq!(pool.threads(), 1);
}

#[tokio::test]
async fn errors_that_nobody_waited_for_may_panic_when_dropped() {
    let (pool, context) = taken().await;
    let (told, dropped) = mpsc::channel();
    for _ in 0..2 {
        let told = told.clone();
        let bridge = context.bridge();
        bridge.try_defer(move |_| Err(Bomb(told))).unwrap();
    }
    drop(context);
    for _ in 0..2 {
        dropped.recv_timeout(LIMIT).unwrap();
    }
    serves(&pool).await;
}

/// An error that is long in being dropped, and says that it is.
#[derive(Debug)]
struct Slow(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.send(());
        let _ = self.1.lock().unwrap().recv();
    }
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("slow")
    }
}

impl std::error::Error for Slow {}

/// Closes a context whose closer fails, and leaves: the next request is not kept waiting.
async fn a_long_drop_keeps_nobody_waiting(leave: impl FnOnce(Context)) {
    let pool = Pool::builder().max_threads(2).build();
    let context = Context::new(pool.clone());
    let ((told, dropping), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
    let error = Slow(told, Mutex::new(released));
    let (left, has_left) = mpsc::channel::<()>();
    let closer = move |_: &Cx| {
        let _ = has_left.recv();
        Err(error)
    };
    context.bridge().try_defer(closer).unwrap();
    leave(context);
    drop(left);
    dropping.recv_timeout(LIMIT).unwrap();
    let next = Context::new(pool.clone());
    let call = in_time(Duration::from_secs(1), next.bridge().call(|_| 1));
    let answer = call.await;
    drop(release);
    assert_eq!(answer.expect("nobody serves").unwrap(), 1);
}

#[tokio::test]
async fn a_thread_is_not_free_while_it_drops_errors() {
    a_long_drop_keeps_nobody_waiting(drop).await;
    a_long_drop_keeps_nobody_waiting(|context| drop(context.close())).await;
}

#[tokio::test]
async fn what_was_kept_for_a_session_may_panic_when_dropped() {
    let pool = Pool::builder().max_threads(1).build();
    let session = Session::alone(pool.clone());
    Bridge::new(Arc::clone(&session))
        .call(|_| ())
        .await
        .unwrap();
    let (told, dropped) = mpsc::channel();
    for _ in 0..2 {
        session.keep_until_done(Box::new(Bomb(told.clone())));
    }
    let close = Close::of(&session, false);
    in_time(LIMIT, close).await.expect("no report");
    for _ in 0..2 {
        dropped.recv_timeout(LIMIT).unwrap();
    }
    serves(&pool).await;
}

#[tokio::test]
async fn an_idle_thread_that_has_died_is_passed_over() {
    let pool = Pool::builder().max_threads(1).build();
    let (wake, _) = mpsc::channel();
    pool.handle.shared.lock().idle.push(Idle { id: 7, wake });
    serves(&pool).await;
}

#[test]
fn a_thread_that_panics_is_not_idle() {
    let pool = Pool::builder().max_threads(1).build();
    let shared = Arc::clone(&pool.handle.shared);
    shared.lock().threads = 1;
    let dies = std::thread::spawn(move || {
        let mut worker = Worker::new(shared, 7);
        worker.running = true;
        let (wake, _woken) = mpsc::channel();
        worker.check_in(&wake).unwrap();
        panic!("the worker");
    });
    dies.join().unwrap_err();
    assert_eq!((pool.threads(), pool.idle()), (0, 0));
}
