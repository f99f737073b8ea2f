//! Streams and bodies that are encoded on other threads.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};

use super::{
    super::{
        CompressionLayer,
        headers::Form,
        negotiation::Coding,
        options::{Core, Flush, Options},
        whole::Whole,
    },
    Taken, answer, drain, events, get, gunzip, gunzip_prefix, layer, poll,
    script::{Script, Step, data},
    stream,
    streams::random,
    whole,
};
use crate::scope::{Failure, FailureKind};
use crate::waits::in_time;

/// Enough ready text to be encoded by a worker.
fn sustained() -> Vec<Step> {
    events(4_000).into_iter().map(Step::Data).collect()
}

/// More than may wait for a worker.
pub(super) fn plenty() -> Vec<Bytes> {
    events(20_000)
}

#[tokio::test]
async fn the_end_hint_comes_with_the_last_frame_of_a_worker() {
    let mut body = pin!(stream(&layer(), Script::new(sustained())));
    let mut last = false;
    while let Some(frame) = body.frame().await {
        frame.unwrap();
        last = body.is_end_stream();
    }
    assert!(last);
}

#[test]
fn each_frame_is_flushed_by_itself_where_workers_are_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    runtime.shutdown_background();
    let _context = handle.enter();
    let mut steps = vec![data(vec![b'x'; 40 << 10])];
    steps.extend((0..5).map(|_| data(&b"0123456789"[..])));
    let layer = layer().flush(Flush::EveryFrame);
    let wire = drain(stream(&layer, Script::new(steps))).wire;
    let flushed = |four: &&[u8]| *four == [0, 0, 0xff, 0xff];
    assert_eq!(wire.windows(4).filter(flushed).count(), 6);
}

#[tokio::test]
async fn a_failure_while_a_worker_encodes_comes_after_all_that_was_given() {
    let text = events(4_000).concat();
    for parallel in [false, true] {
        let layer = layer().parallel(parallel);
        let mut steps = sustained();
        steps.push(Step::Fail);
        let mut body = pin!(stream(&layer, Script::new(steps)));
        let mut taken = Taken::default();
        while taken.take(body.frame().await) {}
        assert!(taken.error.is_some());
        assert!(gunzip_prefix(&taken.wire) == text);
        assert_eq!(layer.core_lent(), 0);
    }
}

#[tokio::test]
async fn a_short_body_is_an_error_with_workers_too() {
    let text = events(4_000).concat();
    for parallel in [false, true] {
        let script = Script::new(sustained()).promising(text.len() as u64 + 1);
        let mut body = pin!(stream(&layer().parallel(parallel), script));
        let mut taken = Taken::default();
        while taken.take(body.frame().await) {}
        let error = taken.error.expect("an error");
        let produced = text.len() as u64;
        assert_eq!(
            error.downcast_ref::<Failure>().map(Failure::kind),
            Some(&FailureKind::Truncated {
                produced,
                promised: produced + 1
            })
        );
        assert!(gunzip_prefix(&taken.wire) == text);
    }
}

#[tokio::test]
async fn a_panic_while_a_worker_encodes_never_becomes_an_end() {
    let mut steps = sustained();
    steps.extend([Step::Panic]);
    let layer = layer();
    let mut body = Box::pin(stream(&layer, Script::new(steps)));
    let mut taken = Taken::default();
    let mut panicked = false;
    loop {
        let polled = std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx))) {
                Ok(polled) => polled.map(Ok),
                Err(_) => Poll::Ready(Err(())),
            }
        });
        match polled.await {
            Err(()) => panicked = true,
            Ok(frame) => {
                if !taken.take(frame) {
                    break;
                }
            }
        }
    }
    assert!(panicked && taken.error.is_some());
    gunzip_prefix(&taken.wire);
    drop(body);
    tokio::time::timeout(Duration::from_secs(10), async {
        while layer.core_lent() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the compressor is back");
}

#[test]
fn a_stream_outlives_the_runtime_whose_threads_it_used() {
    let text = plenty().concat();
    for parallel in [false, true] {
        let layer = layer().parallel(parallel);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut body = Box::pin(stream(
            &layer,
            Script::new(plenty().into_iter().map(Step::Data)),
        ));
        let mut taken = Taken::default();
        runtime.block_on(async {
            if let Poll::Ready(frame) = poll(body.as_mut()) {
                taken.take(frame);
            }
        });
        drop(runtime);
        let rest = drain(body);
        taken.wire.extend_from_slice(&rest.wire);
        assert!(rest.error.is_none());
        assert!(gunzip(&taken.wire) == text);
    }
}

/// Text that comes while a worker is at the end of its turn is not lost with the worker's return.
#[test]
fn text_that_waits_when_the_encoder_comes_home_is_encoded() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    for round in 0..200 {
        let noise = random(600 << 10);
        // Frames that are copied together, each behind a moment without one.
        let frames = noise
            .chunks(5_000 + round)
            .map(|chunk| data(chunk.to_vec()));
        let steps = [data(vec![b'x'; 200 << 10])].into_iter().chain(frames);
        let steps = steps.flat_map(|step| [step, Step::Pending]);
        let mut body = Box::pin(stream(&layer(), Script::new(steps)));
        let taken = runtime.block_on(async {
            let mut taken = Taken::default();
            while taken.take(body.frame().await) {}
            taken
        });
        assert!(taken.error.is_none());
        let text = gunzip(&taken.wire);
        assert_eq!(text.len(), (200 << 10) + noise.len(), "round {round}");
        assert!(text[200 << 10..] == noise);
    }
}

/// The application's own work has all of the blocking pool, for as long as this says.
pub(super) fn crowded() -> (tokio::runtime::Runtime, std::sync::mpsc::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let (done, waits) = std::sync::mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || waits.recv()));
    (runtime, done)
}

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn streams_go_on_when_the_blocking_pool_has_no_thread() {
    let text = plenty().concat();
    for parallel in [false, true] {
        let (runtime, _done) = crowded();
        let layer = layer().parallel(parallel);
        let streams = runtime.block_on(async {
            let streams = (0..3).map(|_| async {
                let script = Script::new(plenty().into_iter().map(Step::Data));
                let mut body = Box::pin(stream(&layer, script));
                let mut taken = Taken::default();
                while taken.take(body.frame().await) {}
                taken
            });
            let all = futures_util::future::join_all(streams);
            in_time(DEADLINE, all).await
        });
        for taken in streams.expect("nobody waits for the pool") {
            assert!(taken.error.is_none());
            assert!(gunzip(&taken.wire) == text);
        }
        assert_eq!(layer.core_lent(), 0);
    }
}

#[test]
fn whole_bodies_do_not_wait_for_the_blocking_pool() {
    let (runtime, _done) = crowded();
    let layer = layer();
    let text = events(800).concat();
    assert!((33 << 10..64 << 10).contains(&text.len()));
    let answer = whole(&layer, text.clone());
    let response = runtime.block_on(async { in_time(DEADLINE, answer).await });
    let Some(Ok(response)) = response else {
        panic!("the head is held back");
    };
    assert!(gunzip(&drain(response.into_body()).wire) == text);
}

/// The runtime is shutting down under a poll: all that is refused is encoded there.
#[test]
fn a_runtime_that_refuses_its_threads_holds_no_poll_up() {
    let text = random(2 << 20);
    for parallel in [false, true] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _context = handle.enter();
        // Of the size that files are read in.
        let frames = text.chunks(64 << 10).map(|chunk| data(chunk.to_vec()));
        let taken = drain(stream(&layer().parallel(parallel), Script::new(frames)));
        assert!(taken.error.is_none());
        assert!(gunzip(&taken.wire) == text);
    }
}

#[tokio::test]
async fn a_whole_body_counts_if_it_goes_out_compressed() {
    let layer = CompressionLayer::new();
    let text = events(1_100).concat();
    for (text, encoded) in [(random(60 << 10), false), (text[..60 << 10].into(), true)] {
        let length = text.len() as u64;
        let response = whole(&layer, text).await.unwrap();
        assert_eq!(response.headers().contains_key("content-encoding"), encoded);
        let given = response.into_body().collect().await.unwrap().to_bytes();
        let stats = layer.stats();
        let counted = match encoded {
            true => (length, given.len() as u64),
            false => (0, 0),
        };
        assert_eq!((stats.bytes_in, stats.bytes_out), counted);
        assert_eq!((stats.open, layer.core_lent()), (0, 0));
    }
}

#[test]
fn a_whole_body_that_is_refused_is_encoded_where_it_is() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let _context = handle.enter();
    let text = Bytes::from(events(1_100).concat()).slice(..60 << 10);
    let response = Response::new(Full::new(text.clone()));
    let response = answer(&layer(), get("gzip"), response);
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(response.headers().contains_key("content-length"));
    assert!(gunzip(&drain(response.into_body()).wire) == text);
}

#[test]
fn a_whole_body_whose_encoder_panics_is_not_encoded_again() {
    // There is no such level.
    let core = Arc::new(Core::new(Options {
        level: 99,
        random_padding: 0,
        ..Options::default()
    }));
    let text = Bytes::from(events(1_100).concat()).slice(..60 << 10);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for (only_encoded, status, content) in [(false, 200, &text[..]), (true, 500, b"")] {
        let answered = runtime.block_on(async {
            let form = Form::new(Coding::Gzip, &Method::GET);
            let mut head = Response::new(()).into_parts().0;
            head.headers
                .insert("content-type", HeaderValue::from_static("text/plain"));
            let whole = Whole::start(&core, form, head, text.clone(), None, only_encoded);
            let mut whole = whole.ok().expect("too large to be encoded at once");
            poll_fn(|cx| whole.poll::<Full<Bytes>>(cx)).await
        });
        assert_eq!(answered.status(), status);
        assert!(!answered.headers().contains_key("content-encoding"));
        let plain = answered.headers().contains_key("content-type");
        assert_eq!(plain, !only_encoded);
        assert!(drain(answered.into_body()).wire == content);
    }
}
