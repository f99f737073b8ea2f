//! Compressors that went back, and what the next stream makes of them.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::poll_fn};
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;

use super::{
    super::{Flush, output::LARGEST_SCRATCH},
    Taken, answer, drain, events, get, gunzip, gunzip_prefix, layer, poll,
    script::{Script, Step, data},
    stream,
    streams::random,
};
use crate::waits::in_time;

#[test]
fn a_stream_left_half_way_spoils_no_other_at_any_level() {
    let noise = random(200 << 10);
    let text = events(100).concat();
    for level in 1..=9 {
        for flush in [Flush::WhenIdle, Flush::EveryFrame, Flush::Never] {
            for polls in 0..4 {
                let layer = layer().level(level).flush(flush);
                let frames = noise.chunks(10_000).map(|chunk| data(chunk.to_vec()));
                let steps = frames.flat_map(|frame| [frame, Step::Pending]);
                let mut left = Box::pin(stream(&layer, Script::new(steps)));
                for _ in 0..polls {
                    drop(poll(left.as_mut()));
                }
                drop(left);
                assert_eq!(layer.core_lent(), 0);

                let case = format!("level {level}, {flush:?}, {polls} polls");
                let next = stream(&layer, Script::new([data(text.clone())]));
                assert!(gunzip(&drain(next).wire) == text, "{case}");
                let whole = Response::new(Full::new(Bytes::from(text[..1000].to_vec())));
                let whole = answer(&layer, get("gzip"), whole);
                assert!(
                    gunzip(&drain(whole.into_body()).wire) == text[..1000],
                    "{case}"
                );
            }
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_stream_counts_as_parked_while_it_waits_and_not_while_threads_work_for_it() {
    for parallel in [false, true] {
        let layer = layer().resident_limit(0).parallel(parallel);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let frames = poll_fn(move |cx| receiver.poll_recv(cx));
        let frames = frames.map(|text: Bytes| Ok::<_, std::io::Error>(Frame::data(text)));
        let mut body = pin!(stream(&layer, StreamBody::new(frames)));
        let (mut taken, mut told) = (Taken::default(), Vec::new());
        for text in [b"small".to_vec(), random(600 << 10), b"again".to_vec()] {
            told.extend_from_slice(&text);
            sender.send(Bytes::from(text)).unwrap();
            while gunzip_prefix(&taken.wire) != told {
                let frame = in_time(DEADLINE, body.frame()).await;
                taken.take(frame.expect("a frame"));
                if gunzip_prefix(&taken.wire) != told {
                    assert_eq!(layer.stats().parked, 0, "at work");
                }
            }
            assert!(poll(body.as_mut()).is_pending());
            assert_eq!((layer.stats().parked, layer.core_lent()), (1, 0));
        }
        drop(sender);
        while taken.take(body.frame().await) {}
        assert!(gunzip(&taken.wire) == told);
        assert_eq!((layer.stats().parked, layer.stats().open), (0, 1));
    }
}

#[tokio::test]
async fn a_buffer_that_has_grown_does_not_stay_with_its_compressor() {
    // Each block's output is all of it at once, and longer than its text.
    let layer = layer().parallel(true);
    let noise = random(4 << 20);
    let mut body = pin!(stream(&layer, Script::new([data(noise.clone())])));
    let mut taken = Taken::default();
    while taken.take(body.frame().await) {}
    assert!(gunzip(&taken.wire) == noise);
    let kept = layer.core_scratch();
    assert!(kept <= LARGEST_SCRATCH, "{kept} bytes");
}
