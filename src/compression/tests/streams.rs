use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
    // It takes one once there is enough to be encoded.
    for (length, resident) in [(1000, 0), (10_000, 1)] {
        let steps = [data(vec![b'x'; length]), Step::Pending];
        let mut body = pin!(stream(&layer, Script::new(steps)));
        assert!(poll(body.as_mut()).is_pending());
        assert_eq!(
            (layer.stats().resident, layer.stats().parked),
            (resident, 0)
        );
    }
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

/// Rows that are always ready, and cost their maker time.
struct Rows {
    left: usize,
    made: Arc<AtomicUsize>,
    costs: Duration,
}

impl Body for Rows {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        let begun = Instant::now();
        while begun.elapsed() < self.costs {
            std::hint::spin_loop();
        }
        self.left = left;
        self.made.fetch_add(1, Relaxed);
        Poll::Ready(Some(Ok(http_body::Frame::data(vec![b'x'; 1000].into()))))
    }
}

/// A turn is eight of them.
#[test]
fn a_poll_that_takes_its_time_takes_a_few_frames_and_then_others_have_their_turn() {
    const ROWS: usize = 1_000;
    let layers = || {
        let flushes = [Flush::WhenIdle, Flush::EveryFrame, Flush::Never].into_iter();
        flushes.flat_map(|flush| [false, true].map(|many| layer().flush(flush).parallel(many)))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    for (layer, away) in layers().flat_map(|layer| [(layer.clone(), false), (layer, true)]) {
        let all = async {
            let made = Arc::<AtomicUsize>::default();
            let rows = Rows {
                left: ROWS,
                made: made.clone(),
                costs: Duration::from_micros(50),
            };
            let mut body = pin!(stream(&layer, rows));
            let mut taken = Taken::default();
            let mut most = 0;
            std::future::poll_fn(|cx| {
                loop {
                    let polled = body.as_mut().poll_frame(cx);
                    most = most.max(made.swap(0, Relaxed));
                    match polled {
                        Poll::Ready(frame) => {
                            if !taken.take(frame) {
                                return Poll::Ready(());
                            }
                        }
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
            .await;
            assert_eq!(gunzip(&taken.wire).len(), 1000 * ROWS);
            assert!(most <= 9, "{most} in one poll, away: {away}, {layer:?}");
        };
        match away {
            true => runtime.block_on(all),
            false => {
                // Woken by itself, or it would stand still.
                let waker = Arc::new(Woken::default());
                let mut all = pin!(all);
                let handle = Arc::clone(&waker).into();
                let mut cx = Context::from_waker(&handle);
                while all.as_mut().poll(&mut cx).is_pending() {
                    assert!(waker.0.swap(false, Relaxed));
                }
            }
        }
    }
}

/// Others are those too who wait for a socket, of which a runtime hears only once its tasks rest.
#[test]
fn sockets_have_their_turn_beside_a_body_that_is_always_ready() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut one, mut other) = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let connects = tokio::net::TcpStream::connect(addr);
            let (one, other) = tokio::join!(connects, listener.accept());
            (one.unwrap(), other.unwrap().0)
        };
        let mut echo = tokio::task::JoinSet::new();
        echo.spawn(async move {
            let (mut reader, mut writer) = other.split();
            tokio::io::copy(&mut reader, &mut writer).await
        });
        let rows = Rows {
            left: 20_000,
            made: Arc::default(),
            costs: Duration::from_micros(25),
        };
        let mut bodies = tokio::task::JoinSet::new();
        bodies.spawn(stream(&layer(), rows).collect());
        let mut there_and_back = 0;
        while !bodies.is_empty() {
            let pings = async {
                one.write_all(b"?").await.unwrap();
                one.read_exact(&mut [0]).await.unwrap();
            };
            tokio::select! {
                biased;
                () = pings => there_and_back += 1,
                Some(body) = bodies.join_next() => drop(body.unwrap().unwrap()),
            }
        }
        assert!(there_and_back >= 8, "{there_and_back}");
    });
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn codings_are_send_and_bodies_too() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<CompressionLayer>();
    is_shared::<super::super::CompressionBody<http_body_util::Full<Bytes>>>();
    is_shared::<super::super::CompressionFuture<std::future::Ready<()>>>();
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

/// Frames without data are passed over, and others still have their turn.
#[test]
fn frames_without_data_do_not_hold_a_poll() {
    struct Empty;
    impl Body for Empty {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
        }
    }
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut body = pin!(stream(&layer(), Empty));
    for _ in 0..10 {
        let polled = body.as_mut().poll_frame(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        assert!(woken.0.swap(false, Relaxed), "it asks again");
    }
}
