//! Bodies that blocking code writes: backpressure, endings, and the thread they run on.

use std::{
    io::{self, ErrorKind, Read, Write},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bodyguard::{
    BodyError,
    bridge::{BridgeError, BridgeErrorKind as Kind, Context, Cx, Pool, SyncBody},
};
use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::{runtime::Handle, sync::oneshot};

#[path = "support/waits.rs"]
mod waits;
use waits::{eventually, within};

fn pool(threads: usize) -> Pool {
    Pool::builder()
        .max_threads(threads)
        .wait_limit(Duration::from_millis(50))
        .build()
}

async fn next(body: &mut SyncBody) -> Option<Result<Bytes, BodyError>> {
    within(body.frame())
        .await
        .map(|frame| frame.map(|frame| frame.into_data().unwrap()))
}

/// Reads to the end: what arrived, and how it ended.
async fn drain(mut body: SyncBody) -> (Vec<u8>, Result<(), BodyError>) {
    let mut all = Vec::new();
    loop {
        match next(&mut body).await {
            Some(Ok(data)) => all.extend_from_slice(&data),
            Some(Err(error)) => {
                assert!(next(&mut body).await.is_none());
                return (all, Err(error));
            }
            None => return (all, Ok(())),
        }
    }
}

fn here() -> (thread::ThreadId, tokio::runtime::Id) {
    (thread::current().id(), Handle::current().id())
}

/// Says on which thread it was dropped.
struct Dropped(Option<oneshot::Sender<thread::ThreadId>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(thread::current().id());
    }
}

#[test]
fn bodies_can_be_sent_and_shared() {
    fn assert<T: Send + Sync + Unpin + 'static>(_: &T) {}
    assert(&SyncBody::writer(|_| Ok(())));
}

#[tokio::test]
async fn all_chunks_arrive_in_order() {
    let (all, end) = drain(SyncBody::from_iter((0..1_000).map(|n| format!("{n}\n")))).await;
    end.unwrap();
    let expected: String = (0..1_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(all, expected.as_bytes());

    let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
    let expected = data.clone();
    let body = SyncBody::writer(move |out| {
        let mut rest = &data[..];
        for len in (1..).map(|n| n * 37 % 9_000) {
            let (now, later) = rest.split_at(len.min(rest.len()));
            out.write_all(now)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        out.flush()
    });
    let (all, end) = drain(body).await;
    end.unwrap();
    assert!(all == expected);
    let (all, end) = drain(SyncBody::from_iter(["", "a", "", "b"])).await;
    assert_eq!((all, end.is_ok()), (b"ab".to_vec(), true));
}

#[tokio::test]
async fn the_body_shares_thread_and_loop_with_the_request() {
    let context = Context::new(pool(1));
    let bridge = context.bridge();
    let first = within(bridge.call(|cx| {
        // Something that cannot leave the thread, for the body to use.
        cx.insert(Rc::new(String::from("engine")));
        here()
    }))
    .await
    .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (by_iter, by_writer) = (Arc::clone(&seen), Arc::clone(&seen));
    let body = bridge.body_from_iter_with(move |cx: &Cx| {
        let engine = cx.get::<Rc<String>>().unwrap();
        (0..2).map(move |_| {
            by_iter.lock().unwrap().push(here());
            engine.to_uppercase()
        })
    });
    let (all, end) = drain(body).await;
    assert_eq!((all, end.is_ok()), (b"ENGINEENGINE".to_vec(), true));
    let body = bridge.body_writer(move |_| {
        let on_loop = Cx::with_current(|cx| cx.block_on(async { here() })).unwrap();
        by_writer.lock().unwrap().extend([here(), on_loop.unwrap()]);
        Ok(())
    });
    drain(body).await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), [first; 4]);
}

#[tokio::test]
async fn a_body_that_is_never_polled_never_starts() {
    let pool = pool(1);
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let body = SyncBody::in_pool(pool.clone(), |bridge| {
        bridge.body_writer(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    });
    drop(body);
    assert_eq!((pool.threads(), started.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(Arc::strong_count(&started), 1);
}

/// Code that makes one chunk for each number it is sent, and waits for the next without the loop.
async fn is_given_at_once(make: impl FnOnce(std::sync::mpsc::Receiver<u8>) -> SyncBody) {
    let (ask, asked) = std::sync::mpsc::channel();
    let mut body = make(asked);
    for n in 0..20 {
        // In this order: the reader waits before there is anything.
        let asking = async { ask.send(n).unwrap() };
        let (given, ()) = futures_util::future::join(next(&mut body), asking).await;
        assert_eq!(given.unwrap().unwrap(), [n].as_slice());
    }
    drop(ask);
    let (rest, end) = drain(body).await;
    assert_eq!((rest.len(), end.is_ok()), (0, true));
}

#[tokio::test]
async fn a_chunk_is_given_while_the_code_works_on_the_next() {
    is_given_at_once(|asked| SyncBody::from_iter(asked.into_iter().map(|n| vec![n]))).await;
}

#[tokio::test]
async fn what_is_written_is_given_while_the_code_goes_on() {
    is_given_at_once(|asked| {
        SyncBody::writer(move |out| asked.into_iter().try_for_each(|n| out.write_all(&[n])))
    })
    .await;
}

#[tokio::test]
async fn a_write_that_waits_goes_on_as_soon_as_there_is_room() {
    let (wrote, written) = std::sync::mpsc::channel();
    let mut body = SyncBody::writer(move |out| {
        for n in 0..4 {
            out.write_all(&[n; 1_000])?;
            wrote.send(n).unwrap();
        }
        Ok(())
    })
    .buffer(1_000);
    let mut last = None;
    for n in 0..4 {
        let data = next(&mut body).await.unwrap().unwrap();
        assert_eq!(data, [n; 1_000].as_slice());
        // Nobody polls the body meanwhile.
        eventually(|| {
            last = written.try_iter().last().or(last);
            last >= Some((n + 1).min(3))
        })
        .await;
    }
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn the_producer_stays_within_the_buffer() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let mut body = SyncBody::from_iter((0..1_000).map(move |_| {
        count.fetch_add(100, Ordering::Relaxed);
        vec![0_u8; 100]
    }))
    .buffer(1_000);
    let mut read = 0;
    while let Some(frame) = next(&mut body).await {
        read += frame.unwrap().len();
        // The bound, and the one chunk that waits for room.
        assert!(made.load(Ordering::Relaxed) <= read + 1_000 + 100);
        // It is let in again at a quarter, and is never far behind.
        eventually(|| made.load(Ordering::Relaxed) >= (read + 250).min(100_000)).await;
    }
    assert_eq!(read, 100_000);
}

#[tokio::test]
async fn tasks_and_runs_go_on_while_a_write_waits() {
    let context = Context::new(pool(1));
    let bridge = context.bridge();
    let ticks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ticks);
    bridge
        .spawn_local(move || async move {
            loop {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
        .detach();
    let mut body = bridge
        .body_writer(|out| out.write_all(&[1; 3_000]))
        .buffer(1_000);
    assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 1_000);
    // Nobody reads now: the write waits, the request does not.
    let at = ticks.load(Ordering::Relaxed);
    eventually(|| ticks.load(Ordering::Relaxed) > at + 100).await;
    assert_eq!(within(bridge.run(|| async { 5 })).await.unwrap(), 5);
    assert_eq!(
        within(bridge.call(|cx| cx.block_on(async { 6 })))
            .await
            .unwrap()
            .unwrap(),
        6
    );
    let (rest, end) = drain(body).await;
    assert_eq!((rest.len(), end.is_ok()), (2_000, true));
}

#[tokio::test]
async fn after_a_drop_a_waiting_write_and_the_next_get_broken_pipe() {
    let pool = pool(1);
    let (told, was_told) = oneshot::channel();
    let mut body = SyncBody::in_pool(pool.clone(), |bridge| {
        bridge.body_writer(move |out| {
            let waiting = out.write_all(&[1; 3_000]).unwrap_err().kind();
            let next = out.write(b"more").unwrap_err().kind();
            told.send((waiting, next)).unwrap();
            Ok(())
        })
    })
    .buffer(1_000);
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    let kinds = within(was_told).await.unwrap();
    assert_eq!(kinds, (ErrorKind::BrokenPipe, ErrorKind::BrokenPipe));
    eventually(|| pool.idle() == 1).await;
}

#[tokio::test]
async fn the_iterator_is_dropped_on_its_own_thread() {
    let pool = pool(1);
    let context = Context::new(pool.clone());
    let bridge = context.bridge();
    let thread = within(bridge.call(|_| here().0)).await.unwrap();
    let (dropped, was_dropped) = oneshot::channel();
    let on_drop = Dropped(Some(dropped));
    let mut body = bridge.body_from_iter((0_u64..).map(move |n| {
        let _ = &on_drop;
        n.to_string()
    }));
    next(&mut body).await.unwrap().unwrap();
    drop(body);
    assert_eq!(within(was_dropped).await.unwrap(), thread);
    // And the request goes on with its thread.
    within(bridge.call(|_| ())).await.unwrap();
    within(context.close()).await;
    assert_eq!(pool.idle(), 1);
}

#[tokio::test]
async fn errors_and_panics_are_never_a_clean_end() {
    let body = SyncBody::writer(|out| {
        out.write_all(b"head")?;
        Err(io::Error::other("disk"))
    });
    let (all, end) = drain(body).await;
    let error = end.unwrap_err();
    assert_eq!(all, b"head");
    assert_eq!(
        error.downcast_ref::<io::Error>().unwrap().to_string(),
        "disk"
    );

    let body = SyncBody::writer(|out| {
        out.write_all(b"head")?;
        panic!("row 7")
    });
    let (all, end) = drain(body).await;
    let error = end.unwrap_err();
    assert_eq!(all, b"head");
    let error = error.downcast_ref::<BridgeError>().unwrap();
    assert_eq!(error.panic_message(), Some("row 7"));

    let (all, end) = drain(SyncBody::try_from_iter([Ok("a"), Err("bad"), Ok("c")])).await;
    assert_eq!(
        (all, end.unwrap_err().cause().to_string()),
        (b"a".to_vec(), "bad".into())
    );

    let mut left = 2;
    let body = SyncBody::from_iter(std::iter::from_fn(move || {
        left -= 1;
        if left == 0 {
            panic!("iterator")
        } else {
            Some("a")
        }
    }));
    let (all, end) = drain(body).await;
    let error = end.unwrap_err();
    assert_eq!(all, b"a");
    assert!(error.downcast_ref::<BridgeError>().unwrap().kind() == Kind::Panicked);
}

#[tokio::test]
async fn without_a_thread_or_after_the_end_the_body_fails() {
    let pool = pool(1);
    let holder = Context::new(pool.clone());
    within(holder.bridge().call(|_| ())).await.unwrap();
    let body = SyncBody::in_pool(pool.clone(), |bridge| bridge.body_from_iter(["a"]));
    let (all, end) = drain(body).await;
    let error = end.unwrap_err();
    assert!(all.is_empty());
    assert_eq!(
        error.downcast_ref::<BridgeError>().unwrap().kind(),
        Kind::Exhausted
    );

    let bridge = holder.bridge();
    let mut body = bridge
        .body_writer(|out| out.write_all(&[1; 3_000]))
        .buffer(1_000);
    next(&mut body).await.unwrap().unwrap();
    within(holder.close()).await;
    // The request ended under the writer; what it had written comes, the end is an error.
    let (all, end) = drain(body).await;
    assert!(all.len() <= 1_000);
    let error = end.unwrap_err();
    assert_eq!(
        error.downcast_ref::<io::Error>().unwrap().kind(),
        ErrorKind::BrokenPipe
    );
    let (_, end) = drain(bridge.body_from_iter(["a"])).await;
    let error = end.unwrap_err();
    assert_eq!(
        error.downcast_ref::<BridgeError>().unwrap().kind(),
        Kind::Ended
    );
}

#[tokio::test]
async fn closers_of_its_own_run_before_the_end_is_seen() {
    let pool = pool(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    let (by_body, by_closer) = (Arc::clone(&order), Arc::clone(&order));
    let body = SyncBody::in_pool(pool.clone(), |bridge| {
        bridge
            .defer(move |_| by_closer.lock().unwrap().push("closer"))
            .unwrap();
        bridge.body_writer(move |out| {
            by_body.lock().unwrap().push("body");
            out.write_all(b"a")
        })
    });
    let (all, end) = drain(body).await;
    assert_eq!((all, end.is_ok()), (b"a".to_vec(), true));
    assert_eq!(*order.lock().unwrap(), ["body", "closer"]);
    assert_eq!(pool.idle(), 1);

    let body = SyncBody::in_pool(pool.clone(), |bridge| {
        bridge.try_defer(|_| Err("commit failed")).unwrap();
        bridge.body_from_iter(["a"])
    });
    let (all, end) = drain(body).await;
    assert_eq!(
        (all, end.unwrap_err().cause().to_string()),
        (b"a".to_vec(), "commit failed".into())
    );

    let body = SyncBody::in_pool(pool, |bridge| {
        bridge.try_defer(|_| Err("release failed")).unwrap();
        bridge.try_defer(|_| Err("commit failed")).unwrap();
        bridge.body_try_from_iter([Err::<&str, _>("row failed")])
    });
    let error = drain(body).await.1.unwrap_err();
    let causes: Vec<_> = error.causes().iter().map(ToString::to_string).collect();
    assert_eq!(causes, ["row failed", "commit failed", "release failed"]);
}

#[tokio::test]
async fn an_error_waits_for_its_gap() {
    let gap = Duration::from_millis(80);
    let body = SyncBody::try_from_iter([Ok("a"), Err("disk")]).error_gap(gap);
    let start = Instant::now();
    assert!(drain(body).await.1.is_err());
    assert!(start.elapsed() >= gap);
}

#[tokio::test]
async fn sync_code_may_collect_a_body_of_its_own_request() {
    let context = Context::new(pool(1));
    let bridge = context.bridge();
    let inner = bridge.clone();
    let len = within(bridge.call(move |cx| {
        let body = inner
            .body_writer(|out| out.write_all(&[1; 100_000]))
            .buffer(1_000);
        cx.block_on(body.collect())
            .unwrap()
            .unwrap()
            .to_bytes()
            .len()
    }))
    .await
    .unwrap();
    assert_eq!(len, 100_000);
    // In a local task it keeps its bound, since the task is driven by the write that waits.
    let inner = bridge.clone();
    let len = within(bridge.call(move |cx| {
        let body = inner
            .body_writer(|out| out.write_all(&[1; 100_000]))
            .buffer(1_000);
        let task = cx.spawn_local(async move { body.collect().await.unwrap().to_bytes().len() });
        cx.block_on(task).unwrap().unwrap()
    }))
    .await
    .unwrap();
    assert_eq!(len, 100_000);
}

#[tokio::test]
async fn another_requests_body_keeps_its_bound_when_sync_code_reads_it() {
    let pool = pool(2);
    let (reader, writer) = (Context::new(pool.clone()), Context::new(pool));
    let mut body = writer
        .bridge()
        .body_writer(|out| out.write_all(&[1; 100_000]))
        .buffer(1_000);
    let largest = within(reader.bridge().call(move |cx| {
        cx.block_on(async {
            let mut largest = 0;
            while let Some(frame) = body.frame().await {
                largest = largest.max(frame.unwrap().into_data().unwrap().len());
            }
            largest
        })
    }))
    .await
    .unwrap()
    .unwrap();
    assert!(largest <= 1_000);
}

#[tokio::test]
async fn the_end_is_an_end() {
    let mut body = SyncBody::from_iter(["a"]);
    assert!(!body.is_end_stream());
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "a");
    assert!(next(&mut body).await.is_none());
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(next(&mut body).await.is_none());
}

/// Serves one body to every request, over a real socket.
async fn serve<F>(make: F) -> std::net::SocketAddr
where
    F: Fn() -> SyncBody + Clone + Send + Sync + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(move || {
        let body = make();
        async move { axum::body::Body::new(body) }
    });
    let server = axum::serve(listener, app);
    Handle::current().spawn(async move { server.await.unwrap() });
    address
}

/// Sends a request and reads up to `most` bytes, off the runtime.
async fn get(address: std::net::SocketAddr, most: usize) -> Vec<u8> {
    let client = tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut got = Vec::new();
        socket.take(most as u64).read_to_end(&mut got).unwrap();
        got
    });
    within(client).await.unwrap()
}

#[tokio::test]
async fn over_a_socket_a_failure_is_a_broken_transfer_with_all_frames_before_it() {
    for _ in 0..20 {
        let address = serve(|| {
            SyncBody::writer(|out| {
                out.write_all(b"head")?;
                Err(io::Error::other("disk"))
            })
        })
        .await;
        let got = String::from_utf8(get(address, usize::MAX).await).unwrap();
        assert!(got.contains("4\r\nhead\r\n"), "{got}");
        assert!(!got.ends_with("0\r\n\r\n"), "{got}");
    }
    let address = serve(|| SyncBody::from_iter(["head"])).await;
    assert!(
        get(address, usize::MAX)
            .await
            .ends_with(b"4\r\nhead\r\n0\r\n\r\n")
    );
}

#[tokio::test]
async fn over_a_socket_a_disconnect_frees_the_thread() {
    let pool = pool(1);
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let (shared, seen) = (pool.clone(), Arc::clone(&kinds));
    let address = serve(move || {
        let seen = Arc::clone(&seen);
        SyncBody::in_pool(shared.clone(), |bridge| {
            bridge.body_writer(move |out| {
                let error = loop {
                    if let Err(error) = out.write_all(&[b'x'; 8 * 1024]) {
                        break error;
                    }
                };
                seen.lock().unwrap().push(error.kind());
                Err(error)
            })
        })
    })
    .await;
    for round in 1..=3 {
        assert_eq!(get(address, 100_000).await.len(), 100_000);
        eventually(|| kinds.lock().unwrap().len() == round && pool.idle() == 1).await;
    }
    assert_eq!(*kinds.lock().unwrap(), [ErrorKind::BrokenPipe; 3]);
    assert_eq!(pool.threads(), 1);
}
