use std::{
    convert::Infallible,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Full, StreamBody};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    super::{Compress, CompressionLayer},
    answer, drain, events, get, gunzip, layer,
    script::{Script, Step, data},
    stream,
    streams::random,
};

fn full(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(text.into()))
}

#[test]
fn a_small_whole_body_keeps_an_exact_length() {
    let text = events(50).concat();
    let response = answer(&layer(), get("gzip"), full(text.clone()));
    let length: u64 = response.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(length));
    let taken = drain(response.into_body());
    assert_eq!(taken.wire.len() as u64, length);
    assert_eq!(taken.frames, 1);
    assert_eq!(gunzip(&taken.wire), text);
}

#[test]
fn a_whole_body_in_many_ready_frames_is_still_whole_and_a_pending_makes_it_a_stream() {
    let text = events(50).concat();
    let frames = || text.chunks(100).map(|chunk| data(chunk.to_vec()));
    let whole = Response::new(Script::new(frames()).promising(text.len() as u64));
    let response = answer(&layer(), get("gzip"), whole);
    assert!(response.headers().contains_key("content-length"));
    assert_eq!(gunzip(&drain(response.into_body()).wire), text);

    for at in [0, 1, 30] {
        let mut steps: Vec<_> = frames().collect();
        steps.insert(at, Step::Pending);
        let body = Response::new(Script::new(steps).promising(text.len() as u64));
        let response = answer(&layer(), get("gzip"), body);
        assert!(!response.headers().contains_key("content-length"));
        assert_eq!(gunzip(&drain(response.into_body()).wire), text);
    }
}

#[test]
fn what_does_not_shrink_goes_out_as_it_came() {
    let noise = random(1000);
    let mut response = full(noise.clone());
    response
        .headers_mut()
        .insert("etag", "\"1\"".parse().unwrap());
    response
        .headers_mut()
        .insert("accept-ranges", "bytes".parse().unwrap());
    let response = answer(&layer(), get("gzip"), response);
    assert!(!response.headers().contains_key("content-encoding"));
    assert_eq!(response.headers()["etag"], "\"1\"");
    assert_eq!(response.headers()["accept-ranges"], "bytes");
    assert_eq!(response.body().size_hint().exact(), Some(1000));
    assert_eq!(drain(response.into_body()).wire, noise);
}

#[test]
fn a_client_that_refuses_the_plain_form_gets_none() {
    for (accept, coding) in [
        ("gzip", None),
        ("gzip, identity;q=0", Some("gzip")),
        ("gzip, *;q=0", Some("gzip")),
        ("gzip, *;q=0, identity;q=0.1", None),
    ] {
        for text in [b"tiny".to_vec(), random(1000)] {
            for strict in [false, true] {
                let layer = layer().strict(strict);
                let response = answer(&layer, get(accept), full(text.clone()));
                let encoding = response.headers().get("content-encoding");
                assert_eq!(encoding.map(|name| name.to_str().unwrap()), coding);
                assert_eq!(
                    response.headers().contains_key("vary"),
                    coding.is_some() || text.len() > 4
                );
                let wire = drain(response.into_body()).wire;
                let plain = coding.map_or_else(|| wire.clone(), |_| gunzip(&wire));
                assert!(plain == text, "{accept}");
            }
        }
    }
    let empty = answer(&layer(), get("gzip, identity;q=0"), full(""));
    assert!(!empty.headers().contains_key("content-encoding"));
}

#[test]
fn a_handlers_word_is_honoured_and_removed() {
    let mut never = full(vec![b'x'; 1000]);
    never.extensions_mut().insert(Compress::Never);
    let response = answer(&layer(), get("gzip"), never);
    assert!(!response.headers().contains_key("content-encoding"));
    assert!(!response.headers().contains_key("vary"));
    assert!(response.extensions().get::<Compress>().is_none());

    let mut always = full(vec![b'x'; 150]);
    always.extensions_mut().insert(Compress::Always);
    always
        .headers_mut()
        .insert("content-type", "image/png".parse().unwrap());
    let layer = layer().compress_when(|_| false);
    let response = answer(&layer, get("gzip"), always);
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(response.extensions().get::<Compress>().is_none());
}

#[test]
fn the_predicate_sees_the_head() {
    let layer = layer().compress_when(|parts| !parts.headers.contains_key("x-plain"));
    let mut plain = full(vec![b'x'; 1000]);
    plain.headers_mut().insert("x-plain", "1".parse().unwrap());
    let response = answer(&layer, get("gzip"), plain);
    assert!(!response.headers().contains_key("content-encoding"));
    let response = answer(&layer, get("gzip"), full(vec![b'x'; 1000]));
    assert!(response.headers().contains_key("content-encoding"));
}

#[test]
fn strict_refuses_without_calling_the_service_and_the_default_does_not() {
    struct Unreachable;
    impl Service<Request<()>> for Unreachable {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Request<()>) -> Self::Future {
            panic!("called");
        }
    }
    let mut service = layer().strict(true).layer(Unreachable);
    let future = pin!(service.call(get("br, identity;q=0")));
    let Poll::Ready(Ok(response)) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("not ready");
    };
    assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
    assert_eq!(response.headers()["vary"], "accept-encoding");
    assert!(response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(0));

    let response = answer(&layer(), get("br, identity;q=0"), full(vec![b'x'; 1000]));
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(drain(response.into_body()).wire.len(), 1000);
}

#[test]
fn several_header_lines_and_hostile_ones_reach_the_negotiation() {
    let request = Request::builder()
        .header("accept-encoding", "identity;q=0.1")
        .header(
            "accept-encoding",
            http::HeaderValue::from_bytes(b"\xff, ,gzip").unwrap(),
        )
        .body(())
        .unwrap();
    let response = answer(&layer(), request, full(vec![b'x'; 1000]));
    assert_eq!(response.headers()["content-encoding"], "gzip");
}

#[test]
fn a_service_without_gzip_is_transparent() {
    let layer = CompressionLayer::new().gzip(false);
    let response = answer(&layer, get("gzip"), full(vec![b'x'; 1000]));
    assert!(!response.headers().contains_key("content-encoding"));
    assert!(!response.headers().contains_key("vary"));
    assert_eq!(drain(response.into_body()).wire.len(), 1000);
}

#[test]
fn foreign_body_types_pass() {
    let frames = futures_util::stream::iter(
        events(3)
            .into_iter()
            .map(|data| Ok::<_, std::io::Error>(http_body::Frame::data(data))),
    );
    let response = answer(
        &layer(),
        get("gzip"),
        Response::new(StreamBody::new(frames)),
    );
    assert_eq!(
        gunzip(&drain(response.into_body()).wire),
        events(3).concat()
    );
}

#[test]
fn head_decides_as_get_does_with_a_scope_inside() {
    for (length, encoded) in [(5, false), (5_000, true)] {
        for method in ["GET", "HEAD"] {
            let stack = crate::Stack::new().compression(layer());
            let mut body = Some(full(vec![b'x'; length]));
            let mut service = stack.layer(super::Fixed(|| body.take().expect("called once")));
            let mut request = get("gzip");
            *request.method_mut() = method.parse().unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
                panic!("the head is held back");
            };
            let headers = response.headers();
            assert_eq!(
                (
                    headers.contains_key("content-encoding"),
                    headers.contains_key("vary")
                ),
                (encoded, encoded),
                "{method} {length}"
            );
        }
    }
}

#[test]
fn trailers_that_speak_of_the_plain_content_are_not_passed_on() {
    let mut trailers = http::HeaderMap::new();
    for name in ["content-digest", "repr-digest", "x-sum"] {
        trailers.insert(name, http::HeaderValue::from_static("1"));
    }
    trailers.insert("etag", http::HeaderValue::from_static("\"a\""));
    for length in [None, Some(1_000)] {
        let text = data(vec![b'x'; 1_000]);
        let mut script = Script::new([text, Step::Trailers(trailers.clone())]);
        if let Some(length) = length {
            script = script.promising(length);
        }
        let taken = drain(stream(&layer(), script));
        let given = taken.trailers.expect("trailers");
        assert_eq!(given.len(), 2);
        assert_eq!(
            (&given["x-sum"], &given["etag"]),
            (&"1".parse().unwrap(), &"W/\"a\"".parse().unwrap())
        );
    }
}

/// The `ETag` of what answers `method`, in the head and in the trailers.
fn tags(method: &http::Method, promised: Option<u64>) -> [String; 2] {
    let tag = http::HeaderMap::from_iter([(http::header::ETAG, "\"2\"".parse().unwrap())]);
    let mut script = Script::new([data(vec![b'x'; 1_000]), Step::Trailers(tag.clone())]);
    if let Some(length) = promised {
        script = script.promising(length);
    }
    let mut response = Response::new(script);
    *response.headers_mut() = tag;
    let mut request = get("gzip");
    *request.method_mut() = method.clone();
    let (head, body) = answer(&layer(), request, response).into_parts();
    assert_eq!(head.headers["content-encoding"], "gzip");
    let trailers = drain(body).trailers.expect("trailers");
    [head.headers, trailers].map(|fields| fields["etag"].to_str().unwrap().to_owned())
}

#[test]
fn an_etag_that_is_not_of_the_content_stays_strong() {
    use http::Method;

    for promised in [None, Some(1_000)] {
        let search = Method::from_bytes(b"SEARCH").unwrap();
        for method in [Method::GET, Method::OPTIONS, search] {
            assert_eq!(tags(&method, promised), ["W/\"2\"", "W/\"2\""], "{method}");
        }
        for method in [Method::PUT, Method::PATCH, Method::POST, Method::DELETE] {
            assert_eq!(tags(&method, promised), ["\"2\"", "\"2\""], "{method}");
        }
    }
}
