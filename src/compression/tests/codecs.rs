use std::pin::pin;

use async_compression::tokio::bufread::{BrotliDecoder, ZlibDecoder, ZstdDecoder};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    super::{Coding, CompressionLayer, Flush},
    Taken, answer, drain, events, get, poll,
    script::{Script, Step, data},
};

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
