//! The beginning of a long stream, encoded where it is polled, and what is not worth a worker.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    thread::available_parallelism,
};

use bytes::Bytes;
use http_body_util::BodyExt;

use super::{
    super::{CompressionLayer, options::BURST},
    Taken, events, gunzip, gunzip_prefix, layer, poll,
    script::{Script, Step, data},
    stream,
    streams::random,
    whole,
    workers::crowded,
};

const POLLS: usize = 200;

/// What a stream of `count` events gives while no worker has a thread.
fn without_threads(layer: &CompressionLayer, count: usize) -> (Vec<u8>, impl Sized) {
    let mut steps: Vec<_> = events(count).into_iter().map(Step::Data).collect();
    steps.extend((0..POLLS).map(|_| Step::Pending));
    let mut body = Box::pin(stream(layer, Script::new(steps)));
    let mut wire = Vec::new();
    // Several polls: on a busy machine a turn may be over after a few frames.
    for _ in 0..POLLS {
        if let Poll::Ready(Some(Ok(frame))) = poll(body.as_mut()) {
            wire.extend_from_slice(frame.data_ref().unwrap());
        }
    }
    (wire, body)
}

/// Its tables would be moved from one core's cache to another's.
#[test]
fn an_encoder_stays_for_a_burst_and_otherwise_goes_away_before_it_has_begun() {
    let (runtime, _done) = crowded();
    // Nobody loses patience.
    runtime.block_on(async { tokio::time::pause() });
    let _context = runtime.enter();
    let text = events(4_000).concat();
    let burst = events(100).concat();
    let layer = CompressionLayer::new();
    let (wire, _body) = without_threads(&layer, 100);
    assert_eq!(gunzip_prefix(&wire), burst);
    // Whoever is first to ask for workers, where there are several, has its beginning encoded here, by another encoder.
    // How much depends on what was ready in time.
    let bounds = match available_parallelism().unwrap().get() {
        1 => 0..=0,
        _ => BURST..=4 * BURST,
    };
    let is_lead = |wire: &[u8]| {
        let lead = gunzip_prefix(wire);
        bounds.contains(&lead.len()) && text.starts_with(&lead)
    };
    let (wire, first) = without_threads(&layer, 4_000);
    assert!(is_lead(&wire));
    let resident = layer.stats().resident;
    let (wire, second) = without_threads(&layer, 4_000);
    assert!(wire.is_empty());
    assert_eq!(layer.stats().resident, resident);
    drop((first, second));
    let (wire, _third) = without_threads(&layer, 4_000);
    assert!(is_lead(&wire));
}

/// To bring another thread in takes longer than a few kilobytes.
#[test]
fn what_little_is_left_behind_a_burst_needs_no_worker() {
    let (runtime, _done) = crowded();
    // Nobody loses patience.
    runtime.block_on(async { tokio::time::pause() });
    let _context = runtime.enter();
    let busy = CompressionLayer::new();
    let _at_work = without_threads(&busy, 4_000);
    // It is worth it sooner if it begins beside this one.
    let beside = match available_parallelism().unwrap().get() {
        1 => BURST / 2,
        _ => BURST / 8,
    };
    for (layer, more) in [
        (CompressionLayer::new(), beside),
        (busy.clone(), BURST / 2),
        (layer(), BURST / 2),
    ] {
        let most = BURST + more;
        for (length, stays) in [(most, true), (most + 1, false)] {
            let text = random(length);
            let mut body = Box::pin(stream(&layer, Script::new([data(text.clone())])));
            let mut taken = Taken::default();
            let ended = (0..POLLS).any(|_| match poll(body.as_mut()) {
                Poll::Ready(frame) => !taken.take(frame),
                Poll::Pending => false,
            });
            assert_eq!(ended, stays, "{length}");
            assert!(!ended || gunzip(&taken.wire) == text);
        }
    }
}

/// Half of what is ready, up to a bound; and the client need not wait for all of that.
#[test]
fn the_first_burst_goes_out_by_itself() {
    let (runtime, _done) = crowded();
    // Nobody loses patience.
    runtime.block_on(async { tokio::time::pause() });
    let _context = runtime.enter();
    let text = random(20 * BURST);
    let mut body = Box::pin(stream(
        &CompressionLayer::new(),
        Script::new([data(text.clone())]),
    ));
    let (mut wire, mut flushed) = (Vec::new(), Vec::new());
    for _ in 0..POLLS {
        if let Poll::Ready(Some(Ok(frame))) = poll(body.as_mut()) {
            wire.extend_from_slice(frame.data_ref().unwrap());
            flushed.push(gunzip_prefix(&wire).len());
        }
    }
    if available_parallelism().unwrap().get() > 1 {
        assert!(flushed.contains(&BURST), "{flushed:?}");
        assert_eq!(flushed.last(), Some(&(4 * BURST)));
    }
    assert!(text.starts_with(&gunzip_prefix(&wire)));
}

#[test]
fn a_stream_dropped_while_its_beginning_is_encoded_leaves_nothing() {
    for polls in 0..20 {
        let (runtime, _done) = crowded();
        let _context = runtime.enter();
        let layer = CompressionLayer::new().level(9);
        let text = vec![data(random(200 << 10))];
        let mut body = Box::pin(stream(&layer, Script::new(text)));
        for _ in 0..polls {
            let _ = poll(body.as_mut());
        }
        drop(body);
        assert_eq!(layer.stats().open, 0);
        // One that is dropped in the middle of its text is no use to others.
        assert!(layer.stats().resident <= 1, "{polls}");
    }
}

/// In turns each would have a compressor of its own, hundreds of kilobytes, and find its tables cold.
#[test]
fn a_crowd_shares_the_compressors_of_a_few() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let text = events(1_100).concat();
    let layer = CompressionLayer::new().resident_limit(1000);
    runtime.block_on(async {
        let mut crowd = tokio::task::JoinSet::new();
        for length in [30, 34, 38, 44, 50, 60].map(|kib| kib << 10) {
            let text = Bytes::copy_from_slice(&text[..length]);
            for _ in 0..20 {
                let whole = whole(&layer, text.clone());
                let chunks = text.chunks(4 << 10).map(|chunk| data(chunk.to_vec()));
                let streamed = stream(&layer, Script::new(chunks));
                crowd.spawn(async { whole.await.unwrap().collect().await.unwrap().to_bytes() });
                crowd.spawn(async { streamed.collect().await.unwrap().to_bytes() });
            }
        }
        while let Some(wire) = crowd.join_next().await {
            assert!(text.starts_with(&gunzip(&wire.unwrap())));
        }
    });
    // With each worker, with the beginning beside half of them, and here.
    let cores = available_parallelism().unwrap().get();
    let most = cores + cores / 2 + 1;
    let resident = layer.stats().resident;
    assert!(resident <= most, "{resident} of {most}");
}

#[test]
fn a_whole_body_dropped_while_it_is_encoded_leaves_nothing_and_counts_for_nothing() {
    let text = random(60 << 10);
    for polls in 0..12 {
        let (runtime, _done) = crowded();
        // Nobody loses patience.
        runtime.block_on(async { tokio::time::pause() });
        let _context = runtime.enter();
        let layer = CompressionLayer::new().level(9);
        let mut future = Box::pin(whole(&layer, text.clone()));
        for _ in 0..polls {
            let polled = future
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "no worker has a thread");
        }
        drop(future);
        assert_eq!(layer.core_lent(), 0, "{polls}");
        let stats = layer.stats();
        assert_eq!((stats.open, stats.bytes_in, stats.bytes_out), (0, 0, 0));
    }
}

#[test]
fn what_has_encoded_a_beginning_is_for_others_as_soon_as_that_is_handed_on() {
    let (runtime, _done) = crowded();
    let _context = runtime.enter();
    let layer = CompressionLayer::new();
    let mut body = pin!(stream(&layer, Script::new([data(events(4_000).concat())])));
    // Without end where there is one core, and so no beginning of its own.
    let given = (0..200).filter(|_| poll(body.as_mut()).is_ready()).count();
    assert!(given > 0 || available_parallelism().unwrap().get() == 1);
    assert_eq!(layer.core_lent(), 0);
}
