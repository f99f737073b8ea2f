//! Without random padding equal text gives equal bytes, in whatever frames it comes and whoever encodes it.

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::task::JoinSet;

use super::{
    super::Flush,
    drain, events, gunzip, layer,
    property::Random,
    script::{Script, Step, data},
    stream,
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

fn texts() -> [Bytes; 3] {
    let mut random = Random(1);
    [
        events(6_000).concat().into(),
        // So much that it is flushed before anything has come of it.
        vec![b'x'; 700_000].into(),
        (0..200_000).map(|_| random.next() as u8).collect(),
    ]
}

#[test]
fn equal_text_gives_equal_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
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
                let mut streams = JoinSet::new();
                // At once, so that some find the workers busy.
                for most in [50, 1_000, 4_096, 5_000, 40_000, text.len()] {
                    let waits = flush == Flush::Never;
                    let body = stream(&layer, in_frames(&text, most, waits));
                    let wire = async { body.collect().await.unwrap().to_bytes() };
                    streams.spawn_on(wire, runtime.handle());
                }
                let mut wires = runtime.block_on(streams.join_all());
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
