use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};

use super::{
    super::CompressionLayer,
    Taken, answer, drain, events, get, gunzip_prefix, layer, poll,
    script::{Script, Step, data},
    stream,
};
use crate::scope::{Failure, FailureKind};

/// Says at its drop how many compressors the layer had lent then.
struct Witness {
    script: Script,
    layer: CompressionLayer,
    seen: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        let stats = self.layer.stats();
        self.seen
            .lock()
            .unwrap()
            .push((stats.open, self.layer.core_lent()));
    }
}

impl Body for Witness {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.script).poll_frame(cx)
    }
}

#[test]
fn early_drop_at_every_poll_drops_the_inner_body_first_then_frees_the_compressor() {
    let events = events(12);
    let steps: Vec<_> = events
        .iter()
        .flat_map(|event| [data(event.clone()), Step::Pending, Step::Pending])
        .collect();
    for limit in [0, 4] {
        // Two polls an event: its frame, and a wait. The next one would be the end.
        for polls in 0..=2 * events.len() {
            let layer = layer().resident_limit(limit);
            let seen = Arc::default();
            let mut body = Box::pin(stream(
                &layer,
                Witness {
                    script: Script::new(steps.clone()),
                    layer: layer.clone(),
                    seen: Arc::clone(&seen),
                },
            ));
            let mut taken = Taken::default();
            for _ in 0..polls {
                if let Poll::Ready(frame) = poll(body.as_mut()) {
                    taken.take(frame);
                }
            }
            let lent = layer.core_lent();
            drop(body);
            // The compressor was still lent when the inner body went, and is back now.
            assert_eq!(*seen.lock().unwrap(), [(1, lent)], "after {polls} polls");
            assert_eq!(layer.core_lent(), 0);
            assert_eq!((layer.stats().open, layer.stats().parked), (0, 0));
            assert!(layer.stats().resident <= limit);
            // No end was written.
            gunzip_prefix(&taken.wire);
        }
    }
}

#[test]
fn an_inner_error_is_passed_on_after_what_came_before_it() {
    for before in [
        vec![],
        vec![data("text")],
        vec![data("te"), Step::Pending, data("xt")],
    ] {
        let text = if before.is_empty() { "" } else { "text" };
        let script = Script::new(before.into_iter().chain([Step::Fail]));
        let layer = layer();
        let taken = drain(stream(&layer, script));
        assert_eq!(gunzip_prefix(&taken.wire), text.as_bytes());
        let error = taken.error.expect("an error");
        assert_eq!(
            error.downcast_ref::<std::io::Error>().unwrap().to_string(),
            "script"
        );
        assert_eq!(layer.core_lent(), 0);
    }
}

#[test]
fn a_panic_in_the_inner_body_never_becomes_an_end() {
    let mut body = Box::pin(stream(
        &layer(),
        Script::new([data("text"), Step::Pending, Step::Panic]),
    ));
    let mut taken = Taken::default();
    let Poll::Ready(frame) = poll(body.as_mut()) else {
        panic!()
    };
    taken.take(frame);
    assert!(catch_unwind(AssertUnwindSafe(|| poll(body.as_mut()))).is_err());
    let Poll::Ready(Some(Err(error))) = poll(body.as_mut()) else {
        panic!("not an error")
    };
    assert_eq!(error.outcome(), crate::Outcome::Panicked);
    assert!(matches!(poll(body.as_mut()), Poll::Ready(None)));
    assert_eq!(gunzip_prefix(&taken.wire), b"text");
}

#[test]
fn a_length_that_is_not_kept_is_an_error() {
    // (promise in the header, in the hint, bytes given, trailers)
    for (header, hint, given) in [
        (Some(500), None, 400),
        (None, Some(500), 400),
        (Some(500), Some(400), 400),
        (Some(300), None, 400),
        (None, Some(300), 400),
        (Some(70_000), None, 69_999),
        (None, Some(70_000), 70_001),
    ] {
        for (hinting, pending) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut steps = vec![
                data(vec![b'x'; given / 2]),
                data(vec![b'y'; given - given / 2]),
            ];
            if pending {
                steps.insert(1, Step::Pending);
            }
            let mut script = Script::new(steps);
            if hinting {
                script = script.hinting_end();
            }
            if let Some(hint) = hint {
                script = script.promising(hint);
            }
            let mut response = Response::new(script);
            if let Some(header) = header {
                response
                    .headers_mut()
                    .insert("content-length", header.into());
            }
            let response = answer(&layer(), get("gzip"), response);
            assert!(!response.headers().contains_key("content-length"));
            let taken = drain(response.into_body());
            let error = taken.error.expect("an error");
            let produced = given as u64;
            let promised = header.or(hint).expect("a promise");
            let kind = match produced < promised {
                true => FailureKind::Truncated { produced, promised },
                false => FailureKind::Overlong { produced, promised },
            };
            let failure = error.downcast_ref::<Failure>().expect("of ours");
            assert_eq!(*failure.kind(), kind);
            gunzip_prefix(&taken.wire);
        }
    }
}

#[test]
fn a_body_that_hangs_at_its_promised_length_ends_as_it_would_over_http_1() {
    let hang = |_: &mut Context<'_>| -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Pending
    };
    struct Hang<F>(Option<Bytes>, F);
    impl<F> Body for Hang<F>
    where
        F: FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> + Unpin,
    {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            match self.0.take() {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => (self.1)(cx),
            }
        }
    }
    for length in [1000_usize, 100_000] {
        let mut response = Response::new(Hang(Some(Bytes::from(vec![b'x'; length])), hang));
        response
            .headers_mut()
            .insert("content-length", length.into());
        let response = answer(&layer(), get("gzip"), response);
        assert_eq!(
            super::gunzip(&drain(response.into_body()).wire).len(),
            length
        );
    }
}

#[test]
fn the_inner_body_is_gone_before_the_encoded_end_is_given() {
    let script = Script::new([data("text"), Step::Pending]);
    let dropped = Arc::clone(&script.dropped);
    let layer = layer();
    let mut body = pin!(stream(&layer, script));
    let mut taken = Taken::default();
    while !body.is_end_stream() {
        assert!(!dropped.load(SeqCst));
        if let Poll::Ready(frame) = body
            .as_mut()
            .poll_frame(&mut Context::from_waker(Waker::noop()))
        {
            taken.take(frame);
        }
    }
    assert!(dropped.load(SeqCst));
    assert_eq!(
        layer.core_lent(),
        0,
        "the compressor is back before the body is dropped"
    );
    assert_eq!(super::gunzip(&taken.wire), b"text");
}
