use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_compression::tokio::bufread::{BrotliDecoder, ZlibDecoder, ZstdDecoder};
use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncRead, AsyncReadExt};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    super::{
        Coding, CompressionLayer, Flush,
        encoder::Encoder,
        options::{Core, Options},
    },
    Fixed, Taken, answer, drain, events, get, poll,
    script::{Script, Step, data},
};
use crate::waits::in_time;

const DEADLINE: Duration = Duration::from_secs(20);
const CODINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Deflate];

fn layer() -> CompressionLayer {
    CompressionLayer::new().br(true).zstd(true).deflate(true)
}

/// What can be decoded of `wire`, and whether that is all.
async fn decode(coding: Coding, wire: &[u8]) -> (Vec<u8>, bool) {
    let mut decoder: Box<dyn AsyncRead + Unpin + '_> = match coding {
        Coding::Brotli => Box::new(BrotliDecoder::new(wire)),
        Coding::Zstd => Box::new(ZstdDecoder::new(wire)),
        _ => Box::new(ZlibDecoder::new(wire)),
    };
    let mut text = Vec::new();
    let complete = decoder.read_to_end(&mut text).await.is_ok();
    (text, complete)
}

/// The lowest levels of Brotli encode each write by itself, and all have 8 MB made for the second.
#[tokio::test]
async fn what_is_small_is_written_at_once() {
    let text = Bytes::from(events(1_100).concat()).slice(..60 << 10);
    for coding in CODINGS {
        let options = Options {
            br_level: 1,
            ..Options::default()
        };
        let at_once = Encoder::whole(&Arc::new(Core::new(options)), coding, &text).unwrap();
        let layer = layer().br_level(1);
        let request = get(coding.as_str());
        let mut full = Some(Response::new(Full::new(text.clone())));
        let mut service = layer.layer(Fixed(|| full.take().unwrap()));
        let answer = service.call(request).await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], coding.as_str());
        let wire = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(wire == at_once, "{coding:?}: {}", wire.len());
    }
}

/// A codec may gather megabytes before it gives anything: a client of a long body does not wait for them all.
#[tokio::test]
async fn what_is_taken_is_given_within_a_few_hundred_kilobytes() {
    let event = Bytes::from_static(b"data: {\"id\":1,\"name\":\"some name\"}\n\n");
    for text in [vec![event; 60_000], events(40_000)] {
        let whole: Vec<u8> = text.concat();
        for coding in [Coding::Gzip].into_iter().chain(CODINGS) {
            let taken = Arc::<AtomicUsize>::default();
            let counts = taken.clone();
            let counted = text.iter().cloned().inspect(move |event| {
                counts.fetch_add(event.len(), Relaxed);
            });
            let script = StreamBody::new(stream::iter(
                counted.map(|event| Ok::<_, Infallible>(Frame::data(event))),
            ));
            let response = answer(&layer(), get(coding.as_str()), Response::new(script));
            let mut body = pin!(response.into_body());
            let (mut wire, mut most) = (Vec::new(), 0);
            while let Some(frame) = body.frame().await {
                let frame = frame.unwrap().into_data().unwrap();
                // The queues of the worker, on both sides, and what the codec gathers.
                most = most.max(taken.swap(0, Relaxed)).max(frame.len());
                wire.extend_from_slice(&frame);
            }
            assert!(most <= 1 << 20, "{coding:?}: {most} bytes");
            let decoded = match coding {
                Coding::Gzip => (super::gunzip(&wire), true),
                coding => decode(coding, &wire).await,
            };
            assert!(decoded == (whole.clone(), true), "{coding:?}");
            println!("{coding:?}: {} bytes, at most {most}", wire.len());
        }
    }
}

#[tokio::test]
async fn every_event_is_decodable_before_the_next() {
    let events = events(50);
    for coding in CODINGS {
        let script = events
            .iter()
            .flat_map(|event| [data(event.clone()), Step::Pending]);
        let response = answer(
            &layer(),
            get(coding.as_str()),
            Response::new(Script::new(script)),
        );
        assert_eq!(response.headers()["content-encoding"], coding.as_str());
        let mut body = pin!(response.into_body());
        let (mut taken, mut told) = (Taken::default(), Vec::new());
        for event in &events {
            let std::task::Poll::Ready(frame) = poll(body.as_mut()) else {
                panic!("{coding:?} holds an event back");
            };
            taken.take(frame);
            told.extend_from_slice(event);
            assert_eq!(
                decode(coding, &taken.wire).await,
                (told.clone(), false),
                "{coding:?}"
            );
        }
        while let std::task::Poll::Ready(frame) = poll(body.as_mut()) {
            if !taken.take(frame) {
                break;
            }
        }
        assert_eq!(
            decode(coding, &taken.wire).await,
            (told, true),
            "{coding:?}"
        );
    }
}

#[tokio::test]
async fn whole_and_large_bodies_come_out_as_they_went_in() {
    for coding in CODINGS {
        for (count, flush) in [
            (20, Flush::WhenIdle),
            (5_000, Flush::WhenIdle),
            (300, Flush::EveryFrame),
        ] {
            let text = events(count).concat();
            let layer = layer().flush(flush);
            let whole = Response::new(Full::new(Bytes::from(text.clone())));
            let wire = answer_on(&layer, coding, whole).await;
            assert_eq!(
                decode(coding, &wire).await,
                (text.clone(), true),
                "{coding:?} {count}"
            );

            let frames = Script::new(events(count).into_iter().map(Step::Data));
            let wire = answer_on(&layer, coding, Response::new(frames)).await;
            assert_eq!(
                decode(coding, &wire).await,
                (text, true),
                "{coding:?} {count}"
            );
        }
    }
}

async fn answer_on<B>(layer: &CompressionLayer, coding: Coding, response: Response<B>) -> Bytes
where
    B: http_body::Body<Data: 'static, Error: Into<crate::BoxError>>,
{
    use tower::ServiceExt;
    use tower_layer::Layer;
    let mut response = Some(response);
    let service = layer.layer(super::Fixed(|| response.take().unwrap()));
    let response = service.oneshot(get(coding.as_str())).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], coding.as_str());
    response.into_body().collect().await.unwrap().to_bytes()
}

#[test]
fn a_failure_is_not_an_end_in_any_coding() {
    for coding in CODINGS {
        let script = Script::new([data("text"), Step::Fail]);
        let response = answer(&layer(), get(coding.as_str()), Response::new(script));
        assert!(drain(response.into_body()).error.is_some());
    }
}

#[test]
fn the_servers_order_settles_equal_weights_and_gzip_alone_is_on_by_default() {
    let all = "gzip, br, zstd, deflate";
    let chosen = |layer: &CompressionLayer, accept: &str| {
        let body = Full::new(Bytes::from(vec![b'x'; 1000]));
        let response = answer(layer, get(accept), Response::new(body));
        response.headers()["content-encoding"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(chosen(&CompressionLayer::new(), all), "gzip");
    assert_eq!(chosen(&layer(), all), "zstd");
    assert_eq!(chosen(&layer(), "gzip, br"), "br");
    assert_eq!(chosen(&layer(), "gzip, br;q=0.9"), "gzip");
    assert_eq!(chosen(&layer().prefer([Coding::Deflate]), all), "deflate");
    let late = CompressionLayer::new()
        .prefer([Coding::Gzip, Coding::Brotli])
        .br(true);
    assert_eq!(chosen(&late, all), "gzip");
    assert_eq!(
        chosen(&layer().gzip(false).zstd(false).br(false), all),
        "deflate"
    );
}

/// Levels whose first byte, or whose flush, takes many milliseconds.
fn slow() -> [(Coding, CompressionLayer); 2] {
    [
        (Coding::Brotli, layer().br_level(11)),
        (Coding::Zstd, layer().zstd_level(19)),
    ]
}

#[test]
fn nothing_slow_is_encoded_where_it_is_polled() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let (_done, waits) = std::sync::mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || waits.recv()));
    let _context = runtime.enter();
    let slow = slow().map(|(coding, layer)| (coding, layer, true));
    let fast = CODINGS.map(|coding| (coding, layer(), false));
    for (coding, layer, away) in slow.into_iter().chain(fast) {
        let script = Script::new([data("an event"), Step::Pending]);
        let response = answer(&layer, get(coding.as_str()), Response::new(script));
        let polled = poll(pin!(response.into_body()));
        assert_eq!(polled.is_pending(), away, "{coding:?}");
    }
}

/// A stream that is never flushed has much inside at its end.
#[test]
fn the_end_of_a_slow_stream_is_not_encoded_where_it_is_polled() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let some_inline = [
        (Coding::Brotli, layer().br_level(7)),
        (Coding::Zstd, layer().zstd_level(10)),
    ];
    for (coding, layer) in slow().into_iter().chain(some_inline) {
        for (fails, pauses) in [(false, false), (false, true), (true, true)] {
            runtime.block_on(end_of_a_slow_stream(coding, &layer, fails, pauses));
        }
    }
}

async fn end_of_a_slow_stream(coding: Coding, layer: &CompressionLayer, fails: bool, pauses: bool) {
    let text = Bytes::from(events(600).concat());
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let inner = http_body_util::StreamBody::new(frames);
    let layer = layer.clone().flush(Flush::Never);
    let response = answer(&layer, get(coding.as_str()), Response::new(inner));
    let mut body = pin!(response.into_body());
    let mut taken = Taken::default();
    for part in text.chunks(5_000) {
        sender.send(Ok(Frame::data(text.slice_ref(part)))).unwrap();
    }
    take_ready(body.as_mut(), &mut taken);
    // Behind the worker, which is at its end by then.
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel();
    drop(tokio::task::spawn_blocking(move || {
        begin.send(()).unwrap();
        hold.recv()
    }));
    let begun = in_time(DEADLINE, begun).await;
    begun.expect("the worker is at work").unwrap();
    if pauses {
        take_ready(body.as_mut(), &mut taken);
    }
    if fails {
        sender.send(Err(std::io::Error::other("gone"))).unwrap();
    }
    drop(sender);
    let polled = poll(body.as_mut());
    assert!(polled.is_pending(), "{coding:?} {fails} {pauses}");
    drop(release);
    while taken.take(in_time(DEADLINE, body.frame()).await.unwrap()) {}
    assert_eq!(taken.error.is_some(), fails);
    let decoded = decode(coding, &taken.wire).await;
    assert_eq!(decoded, (text.to_vec(), !fails), "{coding:?}");
}

/// Takes what there is without waiting.
fn take_ready<B>(mut body: std::pin::Pin<&mut B>, taken: &mut Taken)
where
    B: http_body::Body<Data = Bytes, Error = crate::BodyError>,
{
    while let std::task::Poll::Ready(frame) = poll(body.as_mut()) {
        taken.take(frame);
    }
}

#[tokio::test]
async fn what_is_encoded_slowly_is_decodable_before_the_next_too() {
    let events = events(20);
    for (coding, layer) in slow() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let frames =
            futures_util::StreamExt::map(frames, |text| Ok::<_, std::io::Error>(Frame::data(text)));
        let body = http_body_util::StreamBody::new(frames);
        let response = answer(&layer, get(coding.as_str()), Response::new(body));
        let mut body = pin!(response.into_body());
        let (mut taken, mut told) = (Taken::default(), Vec::new());
        for event in &events {
            sender.send(event.clone()).unwrap();
            told.extend_from_slice(event);
            while decode(coding, &taken.wire).await.0 != told {
                let frame = in_time(DEADLINE, body.frame()).await;
                taken.take(frame.unwrap_or_else(|| {
                    panic!("{coding:?} holds an event back: {} {:?}", told.len(), taken)
                }));
            }
        }
        drop(sender);
        while taken.take(body.frame().await) {}
        assert_eq!(decode(coding, &taken.wire).await, (told, true));
    }
}

#[tokio::test]
async fn a_whole_body_is_encoded_slowly_too() {
    let text = events(20).concat();
    for (coding, layer) in slow() {
        let whole = Response::new(Full::new(Bytes::from(text.clone())));
        let wire = answer_on(&layer, coding, whole).await;
        assert_eq!(decode(coding, &wire).await, (text.clone(), true));
    }
}

#[cfg(feature = "br")]
#[test]
fn what_a_first_write_makes_is_made_where_it_is_polled_unless_that_is_slow() {
    let quick = Arc::new(Core::new(Options::default()));
    let mut encoder = Encoder::for_stream(&quick, Coding::Brotli);
    assert!(encoder.is_to_be_made());
    encoder.write(b"text").unwrap();
    assert!(!encoder.is_to_be_made());
    let slow = Arc::new(Core::new(Options {
        br_level: 11,
        ..Options::default()
    }));
    assert!(!Encoder::for_stream(&slow, Coding::Brotli).is_to_be_made());
}
