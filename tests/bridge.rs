//! The bridge without HTTP: one thread and one loop a request.

use std::{
    cell::RefCell,
    future::Future,
    io::{Read, Write},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bodyguard::bridge::{Bridge, BridgeError, BridgeErrorKind as Kind, Context, Pool};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
    sync::oneshot,
};

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

/// Polls on while the test does something else.
fn background<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Handle::current().spawn(future)
}

fn small(threads: usize) -> Pool {
    Pool::builder()
        .max_threads(threads)
        .wait_limit(Duration::from_millis(50))
        .build()
}

fn kind<T: std::fmt::Debug>(result: Result<T, BridgeError>) -> Kind {
    result.unwrap_err().kind()
}

/// Thread and runtime, as seen from async code on the loop.
async fn here() -> (thread::ThreadId, tokio::runtime::Id) {
    (thread::current().id(), Handle::current().id())
}

fn here_sync() -> (thread::ThreadId, tokio::runtime::Id) {
    (thread::current().id(), Handle::current().id())
}

#[test]
fn handles_can_be_sent_and_shared() {
    fn assert<T: Send + Sync + 'static>() {}
    fn assert_send<T: Send>(_: T) {}
    assert::<Bridge>();
    assert::<Context>();
    assert::<Pool>();
    assert::<BridgeError>();
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    assert_send(bridge.call(|_| ()));
    assert_send(bridge.run(|| async {
        Rc::new(1);
    }));
    assert_send(context.close());
}

#[tokio::test]
async fn unused_it_takes_no_thread() {
    let pool = Pool::new();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    assert_eq!(pool.threads(), 0);
    assert_eq!(bridge.thread_id(), None);
    drop(bridge.call(|_| ()));
    drop(bridge.run(|| async {}));
    assert_eq!(pool.threads(), 0);
    assert_eq!(within(context.close()).await.closers_run(), 0);
}

#[tokio::test]
async fn all_code_of_a_request_shares_thread_and_loop() {
    let pool = Pool::new();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();

    let first = within(bridge.call(|cx| (here_sync(), cx.block_on(here()).unwrap())))
        .await
        .unwrap();
    assert_eq!(first.0, first.1);
    assert_ne!(first.0, here_sync());
    let second = within(bridge.call(|cx| cx.block_on(here())))
        .await
        .unwrap()
        .unwrap();
    let run = within(bridge.run(here)).await.unwrap();
    let task = within(bridge.spawn_local(here)).await.unwrap();
    let (closed, at) = mpsc::channel();
    bridge
        .defer(move |cx| {
            closed
                .send((here_sync(), cx.block_on(here()).unwrap()))
                .unwrap()
        })
        .unwrap();
    within(context.close()).await;
    let closer = at.recv().unwrap();
    for seen in [second, run, task, closer.0, closer.1] {
        assert_eq!(seen, first.0);
    }
}

#[tokio::test]
async fn what_the_first_call_bound_to_the_loop_works_in_the_second() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let echo = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut byte = [0];
        while peer.read(&mut byte).unwrap() == 1 {
            peer.write_all(&byte).unwrap();
        }
    });
    within(bridge.call(move |cx| {
        let stream = cx
            .block_on(tokio::net::TcpStream::connect(address))
            .unwrap()
            .unwrap();
        cx.insert(RefCell::new(stream));
        // A task bound to the loop, too: it counts what it is sent.
        let (count, mut counted) = tokio::sync::mpsc::unbounded_channel::<oneshot::Sender<u32>>();
        cx.spawn_local(async move {
            let local = Rc::new(RefCell::new(0));
            while let Some(answer) = counted.recv().await {
                *local.borrow_mut() += 1;
                let _ = answer.send(*local.borrow());
            }
        })
        .detach();
        cx.insert(count);
    }))
    .await
    .unwrap();

    for expected in 1..=3_u32 {
        let (byte, count) = within(bridge.call(move |cx| {
            let stream = cx.get::<RefCell<tokio::net::TcpStream>>().unwrap();
            let mut stream = stream.borrow_mut();
            let byte = cx
                .block_on(async {
                    stream.write_all(&[expected as u8]).await.unwrap();
                    stream.read_u8().await.unwrap()
                })
                .unwrap();
            let (answer, counted) = oneshot::channel();
            let count = cx.get::<tokio::sync::mpsc::UnboundedSender<oneshot::Sender<u32>>>();
            count.unwrap().send(answer).unwrap();
            (byte, cx.block_on(counted).unwrap().unwrap())
        }))
        .await
        .unwrap();
        assert_eq!((byte as u32, count), (expected, expected));
    }
    within(context.close()).await;
    echo.join().unwrap();
}

#[tokio::test]
async fn two_requests_at_a_time_have_two_threads() {
    let pool = Pool::new();
    let (one, two) = (Context::new(pool.clone()), Context::new(pool.clone()));
    let (a, b) = (
        within(one.bridge().run(here)).await.unwrap(),
        within(two.bridge().run(here)).await.unwrap(),
    );
    assert_ne!(a.0, b.0);
    assert_ne!(a.1, b.1);
    assert_eq!(pool.threads(), 2);
}

#[tokio::test]
async fn one_thread_serves_request_after_request_with_nothing_left_over() {
    let pool = small(1);
    let first = Context::new(pool.clone());
    let (gone, mut dropped) = oneshot::channel::<()>();
    let (spawned_gone, mut spawned_dropped) = oneshot::channel::<()>();
    let (was, handle) = within(first.bridge().call(move |cx| {
        cx.insert(7_u8);
        cx.spawn_local(async move {
            let _gone = gone;
            std::future::pending::<()>().await
        })
        .detach();
        // Not ours to track, but bound to the loop all the same.
        drop(Handle::current().spawn(async move {
            let _gone = spawned_gone;
            std::future::pending::<()>().await
        }));
        cx.block_on(tokio::task::yield_now()).unwrap();
        (here_sync(), Handle::current())
    }))
    .await
    .unwrap();
    let report = within(first.close()).await;
    assert_eq!(report.tasks_cancelled(), 1);
    assert!(
        dropped
            .try_recv()
            .is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
    );
    assert!(
        spawned_dropped
            .try_recv()
            .is_err_and(|e| e == oneshot::error::TryRecvError::Closed)
    );
    assert_eq!(pool.idle(), 1);

    let second = Context::new(pool.clone());
    let (now, left) = within(
        second
            .bridge()
            .call(|cx| (here_sync(), cx.get::<u8>().is_some())),
    )
    .await
    .unwrap();
    assert_eq!(now.0, was.0, "the thread is used again");
    assert_ne!(now.1, was.1, "the loop is not");
    assert!(!left);
    // A handle that request one kept leads nowhere.
    assert!(
        within(handle.spawn(async {}))
            .await
            .unwrap_err()
            .is_cancelled()
    );
    assert_eq!(pool.threads(), 1);
}

#[tokio::test]
async fn sync_in_async_in_sync_stays_on_the_thread() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let inner = bridge.clone();
    let (outer, nested) = within(bridge.call(move |cx| {
        let nested = cx
            .block_on(inner.call(|cx| (here_sync(), cx.block_on(here()).unwrap())))
            .unwrap()
            .unwrap();
        (here_sync(), nested)
    }))
    .await
    .unwrap();
    assert_eq!(nested, (outer, outer));

    // Also when the nested call comes from a local task, or from another thread.
    let inner = bridge.clone();
    let main = Handle::current();
    let seen = within(bridge.call(move |cx| {
        let here_too = inner.clone();
        let task = cx.spawn_local(async move { here_too.call(|_| here_sync()).await.unwrap() });
        let far = main.spawn(async move { inner.call(|_| here_sync()).await.unwrap() });
        (
            cx.block_on(task).unwrap().unwrap(),
            cx.block_on(far).unwrap().unwrap(),
        )
    }))
    .await
    .unwrap();
    assert_eq!(seen, (outer, outer));
}

#[tokio::test]
async fn calls_that_are_many_but_not_nested_wait_their_turn() {
    let context = Context::new(Pool::builder().max_depth(2).build());
    let bridge = context.bridge();
    let calls = (0..20_u32).map(|n| {
        bridge.call(move |cx| {
            cx.block_on(tokio::time::sleep(Duration::from_millis(1)))
                .unwrap();
            n
        })
    });
    let got = within(futures_util::future::try_join_all(calls))
        .await
        .unwrap();
    assert_eq!(got, (0..20).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_run_out_the_wait() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    // Longer than any limit by the test's clock, which jumps whenever its runtime is idle.
    let (release, released) = mpsc::channel::<()>();
    thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {
            thread::yield_now();
        }
        release.send(()).unwrap();
    });
    let call = bridge.call(move |_| released.recv().unwrap());
    call.await.unwrap();
    bridge.defer(|_| ()).unwrap();
    assert_eq!(context.close().await.closers_run(), 1);
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_thread_lives() {
    let pool = small(1);
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let before = within(bridge.call(|_| here_sync())).await.unwrap();
    let error = within(bridge.call(|_| -> () { panic!("row {}", 7) }))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.panic_message()),
        (Kind::Panicked, Some("row 7"))
    );
    assert!(error.called_at().unwrap().file().ends_with("bridge.rs"));
    let error = within(bridge.run(|| async { panic!("in the loop") }))
        .await
        .unwrap_err();
    assert_eq!(error.panic_message(), Some("in the loop"));
    let error = within(bridge.run(|| -> std::future::Ready<()> { panic!("no future") })).await;
    assert_eq!(error.unwrap_err().panic_message(), Some("no future"));
    // Out of `block_on`, through the loop.
    let error = within(bridge.call(|cx| cx.block_on(async { panic!("through") }))).await;
    let error = error.map(|r: Result<(), _>| r.unwrap()).unwrap_err();
    assert_eq!(error.panic_message(), Some("through"));
    assert_eq!(
        within(bridge.call(|cx| cx.block_on(here())))
            .await
            .unwrap()
            .unwrap(),
        before
    );
    within(context.close()).await;
    assert_eq!((pool.threads(), pool.idle()), (1, 1));
}

#[tokio::test]
async fn values_that_panic_when_dropped_do_not_cost_the_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let pool = small(1);
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    within(bridge.call(|cx| {
        cx.insert(Bomb);
        cx.spawn_local(async {
            let _bomb = Bomb;
            std::future::pending::<()>().await
        })
        .detach();
        cx.block_on(tokio::task::yield_now()).unwrap();
    }))
    .await
    .unwrap();
    within(context.close()).await;
    let next = Context::new(pool.clone());
    within(next.bridge().call(|_| ())).await.unwrap();
    assert_eq!(pool.threads(), 1);
}

#[tokio::test]
async fn closures_that_panic_when_dropped_unrun_do_not_cost_the_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped unrun");
        }
    }
    let pool = small(1);
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let (release, released) = mpsc::channel::<()>();
    let (running, is_running) = oneshot::channel();
    let busy = background(bridge.call(move |_| {
        running.send(()).unwrap();
        released.recv().unwrap();
    }));
    within(is_running).await.unwrap();
    // In the mail box of a busy thread when their callers give up.
    let (one, two) = (Bomb, Bomb);
    let mut call = Box::pin(bridge.call(move |_| drop(one)));
    let mut run = Box::pin(bridge.run(move || async move { drop(two) }));
    assert!(futures_util::poll!(&mut call).is_pending());
    assert!(futures_util::poll!(&mut run).is_pending());
    drop((call, run));
    release.send(()).unwrap();
    within(busy).await.unwrap().unwrap();
    assert_eq!(within(bridge.call(|_| 1)).await.unwrap(), 1);
    within(context.close()).await;
    assert_eq!((pool.threads(), pool.idle()), (1, 1));
}

#[tokio::test]
async fn closers_run_last_first_and_none_is_skipped() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let order = Arc::clone(&order);
        move || order.lock().unwrap().push(name)
    };
    let (first, bad, mid, late, value) = (
        note("first"),
        note("bad"),
        note("mid"),
        note("late"),
        note("value"),
    );
    bridge.defer(move |_| first()).unwrap();
    bridge
        .try_defer(move |_| {
            bad();
            Err("disk full")
        })
        .unwrap();
    within(bridge.call(move |cx| {
        let not_send = Rc::new(());
        cx.defer(move |cx| {
            drop(not_send);
            mid();
            cx.defer(move |_| late()).unwrap();
            panic!("closer");
        })
        .unwrap();
        struct OnDrop<F: Fn()>(F);
        impl<F: Fn()> Drop for OnDrop<F> {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        cx.insert(OnDrop(value));
    }))
    .await
    .unwrap();
    let report = within(context.close()).await;
    assert_eq!(
        *order.lock().unwrap(),
        ["mid", "late", "bad", "first", "value"]
    );
    assert_eq!(report.closers_run(), 4);
    let failures: Vec<_> = report
        .failures()
        .iter()
        .map(|cause| cause.to_string())
        .collect();
    let at = "bridge code panicked: closer (called at tests/bridge.rs:";
    assert!(failures[0].starts_with(at), "{failures:?}");
    assert_eq!(failures[1..], ["disk full"]);
}

#[tokio::test]
async fn a_dropped_context_closes_on_its_own() {
    let pool = small(1);
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let (ran, has_run) = oneshot::channel();
    bridge
        .defer(move |_| ran.send(here_sync().0).unwrap())
        .unwrap();
    let thread = within(bridge.call(|_| here_sync().0)).await.unwrap();
    drop(context);
    assert_eq!(within(has_run).await.unwrap(), thread);
    eventually(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn a_closer_that_was_registered_in_line_still_runs() {
    let pool = small(1);
    let holder = Context::new(pool.clone());
    within(holder.bridge().call(|_| ())).await.unwrap();
    let context = Context::new(pool.clone());
    let (ran, has_run) = oneshot::channel();
    context
        .bridge()
        .defer(move |_| ran.send(()).unwrap())
        .unwrap();
    let close = context.close();
    drop(context);
    within(holder.close()).await;
    assert_eq!(within(close).await.closers_run(), 1);
    within(has_run).await.unwrap();
}

#[tokio::test]
async fn local_tasks_and_runs_go_on_while_sync_code_waits() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let ticks = Arc::new(AtomicUsize::new(0));
    let (count, seen) = (Arc::clone(&ticks), Arc::clone(&ticks));
    bridge
        .spawn_local(move || async move {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
        .detach();
    let (release, released) = oneshot::channel::<()>();
    let waits = background(bridge.call(move |cx| {
        let before = seen.load(Ordering::Relaxed);
        cx.block_on(released).unwrap().unwrap();
        seen.load(Ordering::Relaxed) - before
    }));
    // Both `run` and `call` get through to a thread whose sync code waits.
    assert_eq!(within(bridge.run(|| async { 1 })).await.unwrap(), 1);
    assert_eq!(within(bridge.call(|_| 2)).await.unwrap(), 2);
    let at = ticks.load(Ordering::Relaxed);
    eventually(|| ticks.load(Ordering::Relaxed) > at + 100).await;
    release.send(()).unwrap();
    assert!(within(waits).await.unwrap().unwrap() > 100);
}

#[tokio::test]
async fn a_dropped_call_interrupts_the_wait_of_its_code() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (waiting, is_waiting) = oneshot::channel();
    let (told, was_told) = oneshot::channel();
    let mut call = Box::pin(bridge.call(move |cx| {
        let result = cx.block_on(async {
            waiting.send(()).unwrap();
            std::future::pending::<()>().await
        });
        told.send(result).unwrap();
    }));
    assert!(futures_util::poll!(&mut call).is_pending());
    within(is_waiting).await.unwrap();
    drop(call);
    assert_eq!(kind(within(was_told).await.unwrap()), Kind::Cancelled);
    within(bridge.call(|_| ())).await.unwrap();
}

#[tokio::test]
async fn a_nested_call_that_is_over_leaves_its_caller_able_to_see_that() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (waiting, is_waiting) = oneshot::channel();
    let (told, was_told) = oneshot::channel();
    let inner = bridge.clone();
    let mut call = Box::pin(bridge.call(move |cx| {
        let nested = cx.block_on(inner.call(|_| 5)).unwrap().unwrap();
        let result = cx.block_on(async {
            waiting.send(nested).unwrap();
            std::future::pending::<()>().await
        });
        told.send(result).unwrap();
    }));
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(within(is_waiting).await.unwrap(), 5);
    drop(call);
    assert_eq!(kind(within(was_told).await.unwrap()), Kind::Cancelled);
}

#[tokio::test]
async fn a_dropped_run_is_cancelled_and_a_dropped_task_is_not() {
    let context = Context::new(Pool::new());
    let bridge = context.bridge();
    let (held, released) = oneshot::channel::<()>();
    let mut run = Box::pin(bridge.run(move || async move {
        let _held = held;
        std::future::pending::<()>().await
    }));
    assert!(futures_util::poll!(&mut run).is_pending());
    within(bridge.run(tokio::task::yield_now)).await.unwrap();
    drop(run);
    assert!(within(released).await.is_err());

    let (held, released) = oneshot::channel::<()>();
    let mut task = bridge.spawn_local(move || async move {
        let _held = held;
        std::future::pending::<()>().await
    });
    task.abort();
    assert!(within(released).await.is_err());
    assert_eq!(kind(within(task).await), Kind::Cancelled);

    let (go, gone) = oneshot::channel::<()>();
    let (done, is_done) = oneshot::channel();
    drop(bridge.spawn_local(move || async move {
        gone.await.unwrap();
        done.send(()).unwrap();
    }));
    within(bridge.run(tokio::task::yield_now)).await.unwrap();
    go.send(()).unwrap();
    within(is_done).await.unwrap();
}

#[tokio::test]
async fn memory_is_freed_at_the_end_whoever_captured_the_bridge() {
    let pool = Pool::new();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let token = Arc::new(());
    let weak = Arc::downgrade(&token);
    // The handle is captured everywhere it could close a circle.
    let (b1, b2, b3) = (bridge.clone(), bridge.clone(), bridge.clone());
    let (t1, t2, t3) = (token.clone(), token.clone(), token.clone());
    bridge.defer(move |_| drop((b1, t1))).unwrap();
    bridge
        .spawn_local(move || async move {
            let _kept = (b2, t2);
            std::future::pending::<()>().await
        })
        .detach();
    within(bridge.call(move |cx| cx.insert((b3, t3)).is_none()))
        .await
        .unwrap();
    drop(token);
    within(context.close()).await;
    assert!(weak.upgrade().is_none());
    drop((context, bridge));

    // In line for a thread there never was, the same.
    let pool = small(1);
    let holder = Context::new(pool.clone());
    within(holder.bridge().call(|_| ())).await.unwrap();
    let context = Context::new(pool.clone());
    let (bridge, token) = (context.bridge(), Arc::new(()));
    let weak = Arc::downgrade(&token);
    let inner = bridge.clone();
    bridge
        .spawn_local(move || async move { drop((inner, token)) })
        .detach();
    drop(context);
    assert!(weak.upgrade().is_none());
    assert_eq!(pool.waiting(), 0);
}

#[tokio::test]
async fn sync_code_that_does_not_come_back_is_named() {
    let pool = Pool::builder()
        .max_threads(1)
        .close_limit(Duration::from_millis(20))
        .thread_name("reports")
        .build();
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let (release, released) = mpsc::channel::<()>();
    let (running, is_running) = oneshot::channel();
    bridge.defer(|_| ()).unwrap();
    let line = line!() + 1;
    let call = background(bridge.call(move |_| {
        running.send(()).unwrap();
        released.recv().unwrap();
    }));
    within(is_running).await.unwrap();
    assert!(
        pool.stuck().is_empty(),
        "a request that has not ended is not stuck"
    );
    let report = within(context.close()).await;
    let stuck = report.stuck().expect("named").clone();
    assert_eq!(
        (stuck.thread(), stuck.called_at().line()),
        ("reports-1", line)
    );
    assert_eq!(report.unrun(), 1);
    assert_eq!(pool.stuck().len(), 1);
    drop(context);
    // It comes back after all: the closer runs, the thread is free.
    release.send(()).unwrap();
    within(call).await.unwrap().unwrap();
    eventually(|| pool.idle() == 1).await;
    assert!(pool.stuck().is_empty());
}

/// Keeps its code on the thread until it is told to go on.
async fn does_not_come_back(context: Context) -> (mpsc::Sender<()>, impl Future<Output = ()>) {
    let (release, released) = mpsc::channel::<()>();
    let (running, is_running) = oneshot::channel();
    let call = background(context.bridge().call(move |_| {
        running.send(()).unwrap();
        released.recv().unwrap();
    }));
    within(is_running).await.unwrap();
    within(context.close()).await;
    (release, async { within(call).await.unwrap().unwrap() })
}

#[tokio::test]
async fn it_is_named_on_a_thread_that_was_idle_or_had_a_line_too() {
    let pool = Pool::builder()
        .max_threads(1)
        .close_limit(Duration::from_millis(20))
        .build();
    let first = Context::new(pool.clone());
    within(first.bridge().call(|_| ())).await.unwrap();
    within(first.close()).await;
    eventually(|| pool.idle() == 1).await;
    let (release, back) = does_not_come_back(Context::new(pool.clone())).await;
    assert_eq!(pool.stuck().len(), 1);

    let in_line = background(does_not_come_back(Context::new(pool.clone())));
    eventually(|| pool.waiting() == 1).await;
    release.send(()).unwrap();
    back.await;
    let (release, back) = within(in_line).await.unwrap();
    assert_eq!((pool.stuck().len(), pool.threads()), (1, 1));
    release.send(()).unwrap();
    back.await;
    eventually(|| pool.stuck().is_empty()).await;
}

#[tokio::test]
async fn a_blocking_task_of_the_loop_holds_up_neither_its_close_nor_its_thread() {
    let pool = small(1);
    let context = Context::new(pool.clone());
    let (release, released) = mpsc::channel::<()>();
    let (ended, has_ended) = oneshot::channel();
    within(context.bridge().call(move |_| {
        drop(tokio::task::spawn_blocking(move || {
            released.recv().unwrap();
            ended.send(()).unwrap();
        }));
    }))
    .await
    .unwrap();
    let report = within(context.close()).await;
    assert!(report.stuck().is_none());
    let next = Context::new(pool.clone());
    assert_eq!(within(next.bridge().call(|_| 7)).await.unwrap(), 7);
    // It goes on to its end.
    release.send(()).unwrap();
    within(has_ended).await.unwrap();
}

#[tokio::test]
async fn a_closer_that_waits_for_ever_is_interrupted() {
    let pool = Pool::builder()
        .max_threads(1)
        .closer_limit(Duration::from_millis(20))
        .build();
    let context = Context::new(pool.clone());
    let (told, was_told) = oneshot::channel();
    context
        .bridge()
        .defer(move |cx| {
            told.send(cx.block_on(std::future::pending::<()>()))
                .unwrap()
        })
        .unwrap();
    drop(context);
    assert_eq!(kind(within(was_told).await.unwrap()), Kind::Ended);
    eventually(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn idle_threads_retire() {
    let pool = Pool::builder()
        .idle_timeout(Duration::from_millis(20))
        .build();
    let contexts: Vec<_> = (0..4).map(|_| Context::new(pool.clone())).collect();
    for context in &contexts {
        within(context.bridge().call(|_| ())).await.unwrap();
    }
    assert_eq!(pool.threads(), 4);
    drop(contexts);
    eventually(|| pool.threads() == 0).await;
    let context = Context::new(pool.clone());
    within(context.bridge().call(|_| ())).await.unwrap();
    assert_eq!(pool.threads(), 1);
}

#[tokio::test]
async fn many_requests_share_few_threads_fairly() {
    const REQUESTS: usize = 5_000;
    const CONCURRENT: usize = 200;
    const THREADS: usize = 16;
    let pool = Pool::builder()
        .max_threads(THREADS)
        .wait_limit(Duration::from_secs(20))
        .build();
    let order = Arc::new(Mutex::new(Vec::with_capacity(REQUESTS)));
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONCURRENT {
        let (pool, order, next) = (pool.clone(), Arc::clone(&order), Arc::clone(&next));
        clients.spawn(async move {
            let mut longest = Duration::ZERO;
            loop {
                // No await between taking the number and getting in line: the order is known.
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    return longest;
                }
                let (context, asked) = (Context::new(pool.clone()), Instant::now());
                let served = Arc::clone(&order);
                let call = context.bridge().call(move |cx| {
                    served.lock().unwrap().push(number);
                    let waited = asked.elapsed();
                    cx.block_on(tokio::task::yield_now()).unwrap();
                    waited
                });
                longest = longest.max(call.await.unwrap());
                assert!(pool.threads() <= THREADS);
                context.close().await;
            }
        });
    }
    let longest = within(async {
        let mut longest = Duration::ZERO;
        while let Some(client) = clients.join_next().await {
            longest = longest.max(client.unwrap());
        }
        longest
    })
    .await;
    let order = order.lock().unwrap();
    assert_eq!(order.len(), REQUESTS, "all answered");
    let overtaken = order
        .iter()
        .enumerate()
        .map(|(at, number)| at.saturating_sub(*number))
        .max();
    println!("longest wait {longest:?}, overtaken by {overtaken:?} at most");
}

#[tokio::test]
async fn the_line_is_first_come_first_served() {
    let pool = Pool::builder().max_threads(1).build();
    let holder = Context::new(pool.clone());
    within(holder.bridge().call(|_| ())).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for number in 0..200 {
        let (context, order) = (Context::new(pool.clone()), Arc::clone(&order));
        let mut call = Box::pin(context.bridge().call(move |_| {
            order.lock().unwrap().push(number);
        }));
        assert!(futures_util::poll!(&mut call).is_pending());
        waiting.push(async move {
            call.await.unwrap();
            context.close().await;
        });
    }
    assert_eq!(pool.waiting(), 200);
    drop(holder);
    // Polled in reverse, so that it is the line that decides.
    within(futures_util::future::join_all(waiting.into_iter().rev())).await;
    assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
}
