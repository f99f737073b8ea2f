//! Without random padding equal text gives equal bytes, in whatever frames it comes and whoever encodes it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::task::JoinSet;

use super::{
    super::Flush,
    drain, events, gunzip, layer,
    property::Random,
    script::{Script, Step, data},
    stream, whole,
};

/// `text` in frames of up to `most` bytes, not all of one length; pending between some of them if it `waits`.
fn in_frames(text: &Bytes, most: usize, waits: bool) -> Script {
    let mut random = Random(most as u64);
    let mut rest = text.clone();
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let length = most - random.below(most.div_ceil(2));
        steps.push(data(rest.split_to(length.min(rest.len()))));
        if waits && random.below(50) == 0 {
            steps.push(Step::Pending);
        }
    }
    Script::new(steps)
}

fn texts() -> [Bytes; 4] {
    let mut random = Random(1);
    let noise: Bytes = (0..200_000).map(|_| random.next() as u8).collect();
    // Matches everywhere, and more output than any buffer has room for.
    let words = (0..30_000).flat_map(|_| {
        let word = 7 * random.below(3_000);
        let literal = random.next() as u8;
        noise.slice(word..word + 6).into_iter().chain([literal])
    });
    let words = words.collect();
    [
        events(6_000).concat().into(),
        // So much that it is flushed before anything has come of it.
        vec![b'x'; 700_000].into(),
        words,
        noise,
    ]
}

#[test]
fn equal_text_gives_equal_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    for (flush, parallel) in [
        (Flush::WhenIdle, false),
        (Flush::Never, false),
        (Flush::WhenIdle, true),
    ] {
        for level in [1, 3, 6, 9] {
            for text in texts() {
                let layer = layer().flush(flush).level(level).parallel(parallel);
                let about = format!("{flush:?}, parallel {parallel}, level {level}");
                let mut wires = Vec::new();
                // At once, so that some find the workers busy; and then with what those have left in the pool.
                for _ in 0..2 {
                    let mut streams = JoinSet::new();
                    for most in [50, 1_000, 4_096, 5_000, 40_000, text.len()] {
                        let waits = flush == Flush::Never;
                        let body = stream(&layer, in_frames(&text, most, waits));
                        let wire = async { body.collect().await.unwrap().to_bytes() };
                        streams.spawn_on(wire, runtime.handle());
                    }
                    wires.extend(runtime.block_on(streams.join_all()));
                }
                if !parallel {
                    // No runtime, no worker.
                    let here = stream(&layer, in_frames(&text, 20_000, false));
                    wires.push(drain(here).wire.into());
                }
                assert_eq!(gunzip(&wires[0]), text, "{about}");
                wires.dedup();
                assert_eq!(wires.len(), 1, "{about}");
            }
        }
    }
}

/// How much is gathered before an encoder goes away is a matter of time.
#[test]
fn rows_that_take_their_time_give_the_bytes_of_those_that_are_there() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for length in [30, 33, 40, 48, 49, 100, 300].map(|kib| kib << 10) {
        let text = Bytes::from(events(6_000).concat()).slice(..length);
        for parallel in [false, true] {
            let layer = layer().parallel(parallel);
            let wire = |costs: Duration| {
                let rows = in_frames(&text, 3_000, false).map_frame(move |frame| {
                    let begun = Instant::now();
                    while begun.elapsed() < costs {
                        std::hint::spin_loop();
                    }
                    frame
                });
                let body = stream(&layer, rows);
                runtime.block_on(async { body.collect().await.unwrap().to_bytes() })
            };
            let ready = wire(Duration::ZERO);
            assert_eq!(gunzip(&ready), text);
            let slow = wire(Duration::from_micros(150));
            assert!(ready == slow, "{length}, parallel {parallel}");
        }
    }
}

/// What has a length and is short is encoded as a whole, if it is ready at once.
#[test]
fn a_stream_gives_the_bytes_of_a_whole_body() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let text = Bytes::from(events(1_500).concat());
    for flush in [Flush::WhenIdle, Flush::Never] {
        for (level, parallel) in (1..=9).flat_map(|level| [(level, false), (level, true)]) {
            let layer = layer().flush(flush).level(level).parallel(parallel);
            for text in [8, 30, 33, 40, 49, 64].map(|kib| text.slice(..kib << 10)) {
                let (all, here) = runtime.block_on(async {
                    let all = whole(&layer, text.clone()).await.unwrap();
                    assert_eq!(all.headers()["content-encoding"], "gzip");
                    assert!(all.headers().contains_key("content-length"));
                    let here = stream(&layer, in_frames(&text, 100, false));
                    (all.collect().await.unwrap(), here.collect().await.unwrap())
                });
                let (all, here) = (all.to_bytes(), here.to_bytes());
                assert!(gunzip(&all) == text);
                let about = format!("{} bytes, {layer:?}", text.len());
                assert!(all == here, "{about}");
            }
        }
    }
}
