use std::{pin::pin, task::Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Body;

use super::{
    super::{CompressionLayer, Flush},
    Taken, drain, events, gunzip, gunzip_prefix, layer, poll,
    script::{Script, Step, data},
    stream,
};

/// Each event followed by one `Pending`.
fn live(events: &[Bytes]) -> Script {
    Script::new(
        events
            .iter()
            .flat_map(|event| [data(event.clone()), Step::Pending]),
    )
}

#[test]
fn every_event_is_decodable_before_the_next_whether_parked_or_not() {
    let events = events(200);
    for (limit, history) in [(0, 0), (0, 100), (0, 8 << 10), (0, 32 << 10), (8, 8 << 10)] {
        let layer = layer().resident_limit(limit).history(history);
        let mut body = pin!(stream(&layer, live(&events)));
        let mut taken = Taken::default();
        let mut told = Vec::new();
        for event in &events {
            let Poll::Ready(frame) = poll(body.as_mut()) else {
                panic!("an event is held back");
            };
            taken.take(frame);
            told.extend_from_slice(event);
            assert_eq!(gunzip_prefix(&taken.wire), told);
            // hyper polls on until nothing is ready.
            let parked = usize::from(limit == 0);
            assert_eq!(layer.stats().parked, parked);
            assert_eq!(layer.stats().resident, 1 - parked);
            assert_eq!(layer.stats().open, 1);
        }
        while let Poll::Ready(frame) = poll(body.as_mut()) {
            if !taken.take(frame) {
                break;
            }
        }
        assert_eq!(
            gunzip(&taken.wire),
            told,
            "limit {limit}, history {history}"
        );
        assert_eq!(layer.stats().parked, 0);
        assert_eq!(layer.stats().bytes_in, told.len() as u64);
        assert_eq!(layer.stats().bytes_out, taken.wire.len() as u64);
    }
}

#[test]
fn history_makes_parked_events_smaller() {
    let events = events(300);
    let wire = |layer: CompressionLayer| drain(stream(&layer, live(&events))).wire.len();
    let kept = wire(layer());
    let some = wire(layer().resident_limit(0).history(8 << 10));
    let none = wire(layer().resident_limit(0).history(0));
    assert!(kept <= some && some < none, "{kept} {some} {none}");
}

#[test]
fn pending_without_news_says_nothing() {
    let layer = layer().resident_limit(0);
    let mut body = pin!(stream(
        &layer,
        Script::new([
            Step::Pending,
            data("a"),
            Step::Pending,
            Step::Pending,
            data("")
        ])
    ));
    assert!(poll(body.as_mut()).is_pending());
    assert_eq!(
        layer.stats().resident,
        0,
        "no compressor before the first byte"
    );
    assert!(poll(body.as_mut()).is_ready());
    assert!(poll(body.as_mut()).is_pending());
}

#[test]
fn flush_policies() {
    let script = || Script::new([data("one "), data("two "), Step::Pending, data("three")]);
    for (flush, frames) in [
        (Flush::WhenIdle, 2),
        (Flush::EveryFrame, 4),
        (Flush::Never, 1),
    ] {
        let layer = layer().flush(flush).resident_limit(0);
        let taken = drain(stream(&layer, script()));
        assert_eq!(gunzip(&taken.wire), b"one two three");
        assert_eq!(taken.frames, frames, "{flush:?}");
    }
}

#[test]
fn an_unfinished_body_without_flushes_keeps_its_compressor() {
    let layer = layer().flush(Flush::Never).resident_limit(0);
    let mut body = pin!(stream(&layer, Script::new([data("text"), Step::Pending])));
    assert!(poll(body.as_mut()).is_pending());
    assert_eq!((layer.stats().resident, layer.stats().parked), (1, 0));
}

#[test]
fn frames_out_are_few_and_large() {
    let noise = random(1 << 20);
    let steps = noise.chunks(1000).map(|chunk| data(chunk.to_vec()));
    let taken = drain(stream(&layer(), Script::new(steps)));
    assert_eq!(gunzip(&taken.wire), noise);
    assert!(
        taken.frames <= 33,
        "{} frames for a megabyte of noise",
        taken.frames
    );
}

#[test]
fn trailers_follow_the_gzip_end() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    let steps = [
        data("text"),
        Step::Pending,
        Step::Trailers(trailers.clone()),
    ];
    let taken = drain(stream(&layer(), Script::new(steps)));
    assert_eq!(gunzip(&taken.wire), b"text");
    assert_eq!(taken.trailers, Some(trailers.clone()));

    let only = drain(stream(
        &layer(),
        Script::new([Step::Trailers(trailers.clone())]),
    ));
    assert_eq!(gunzip(&only.wire), b"");
    assert_eq!(only.trailers, Some(trailers));
}

#[test]
fn an_end_hint_is_an_end() {
    // The script panics if it is polled after its hint.
    let body = stream(&layer(), Script::new([data("a"), data("b")]).hinting_end());
    let taken = drain(body);
    assert_eq!(gunzip(&taken.wire), b"ab");
}

#[test]
fn the_end_hint_and_the_size_hint_are_true_at_every_step() {
    let mut body = pin!(stream(&layer(), Script::new([data("a"), Step::Pending])));
    assert_eq!(body.size_hint().exact(), None);
    loop {
        assert!(!body.is_end_stream());
        match poll(body.as_mut()) {
            Poll::Ready(Some(Ok(frame))) if body.is_end_stream() => {
                assert!(frame.is_data());
                assert_eq!(body.size_hint().exact(), Some(0));
                break;
            }
            Poll::Ready(None) => panic!("the end was not hinted at"),
            _ => {}
        }
    }
    assert!(matches!(poll(body.as_mut()), Poll::Ready(None)));
    assert!(matches!(poll(body), Poll::Ready(None)));
}

/// Bytes of the block that a flush ends with.
const EMPTY_STORED_BLOCK: usize = 5;

#[test]
fn output_is_a_function_of_input_without_padding_and_varies_in_length_with_it() {
    let wire = |layer: &CompressionLayer| drain(stream(layer, live(&events(20)))).wire;
    let plain = layer();
    assert_eq!(wire(&plain), wire(&plain));

    let padded = CompressionLayer::new().random_padding(100);
    let lengths: std::collections::BTreeSet<_> = (0..50)
        .map(|_| {
            let wire = wire(&padded);
            assert_eq!(gunzip(&wire), events(20).concat());
            wire.len()
        })
        .collect();
    assert!(lengths.len() > 10, "{lengths:?}");
    let base = wire(&plain).len();
    // Where the padding makes a buffer end just behind a flush, zlib writes the marker once more (`deflate`
    // in zlib.h).
    let most = base + 100 + EMPTY_STORED_BLOCK;
    assert!(
        lengths.iter().all(|length| (base..=most).contains(length)),
        "{base}: {lengths:?}"
    );
}

#[test]
fn codings_are_send_and_bodies_too() {
    fn is_send<T: Send + Sync>() {}
    is_send::<CompressionLayer>();
    fn body_is_send<T: Send>() {}
    body_is_send::<super::super::CompressionBody<Script>>();
    body_is_send::<super::super::CompressionFuture<std::future::Ready<()>>>();
}

pub(super) fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
