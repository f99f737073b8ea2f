//! The tests of Django's GZip middleware, translated: the behaviour each name says.

use std::{convert::Infallible, io::Read};

use bodyguard::compression::{CompressionBody, CompressionLayer};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, ServiceExt, service_fn};

const SHORT: &[u8] = b"This string is too short to be worth compressing.";

fn compressible() -> Vec<u8> {
    b"a".repeat(500)
}

/// 500 bytes drawn from a fixed generator: deflate gains nothing on them.
fn incompressible() -> Vec<u8> {
    let mut state = 42_u64;
    (0..500)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

fn sequence() -> Vec<Bytes> {
    [500, 0, 200, 0, 300]
        .map(|length| Bytes::from(b"a".repeat(length)))
        .to_vec()
}

async fn process<B>(layer: &CompressionLayer, response: Response<B>) -> Response<CompressionBody<B>>
where
    B: Body<Data: 'static, Error: Into<bodyguard::BoxError>>,
{
    let mut response = Some(response);
    let service = layer.layer(service_fn(|_: Request<()>| {
        let response = response.take().expect("called once");
        async { Ok::<_, Infallible>(response) }
    }));
    let request = Request::builder()
        .header("accept-encoding", "gzip, deflate")
        .header(
            "user-agent",
            "Mozilla/5.0 (Windows NT 5.1; rv:9.0.1) Gecko/20100101 Firefox/9.0.1",
        )
        .body(())
        .expect("a request");
    match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn response(content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let content = content.into();
    Response::builder()
        .header("content-type", "text/html; charset=UTF-8")
        .header("content-length", content.len())
        .body(Full::new(content))
        .expect("a response")
}

fn streaming(
    chunks: Vec<Bytes>,
) -> Response<impl Body<Data = Bytes, Error = Infallible> + Send + 'static> {
    let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(chunk)));
    Response::builder()
        .header("content-type", "text/html; charset=UTF-8")
        .body(StreamBody::new(stream::iter(frames)))
        .expect("a response")
}

async fn content<B>(body: CompressionBody<B>) -> Bytes
where
    B: Body<Data: 'static, Error: Into<bodyguard::BoxError>>,
{
    body.collect().await.expect("no error").to_bytes()
}

/// Decodes, and fails on anything behind the first member.
fn decompress(gzipped: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut decoder = flate2::bufread::GzDecoder::new(gzipped);
    decoder.read_to_end(&mut text).expect("gzip");
    assert!(decoder.into_inner().is_empty());
    text
}

#[tokio::test]
async fn compress_response() {
    let response = process(&CompressionLayer::new(), response(compressible())).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let length: usize = response.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let body = content(response.into_body()).await;
    assert_eq!(decompress(&body), compressible());
    assert_eq!(body.len(), length);
}

#[tokio::test]
async fn compress_streaming_response() {
    let response = process(&CompressionLayer::new(), streaming(sequence())).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(
        decompress(&content(response.into_body()).await),
        sequence().concat()
    );
}

#[tokio::test]
async fn compress_async_streaming_response() {
    let frames = stream::unfold(sequence().into_iter(), |mut rest| async {
        tokio::task::yield_now().await;
        let chunk = rest.next()?;
        Some((Ok::<_, Infallible>(Frame::data(chunk)), rest))
    });
    let response = process(
        &CompressionLayer::new(),
        Response::new(StreamBody::new(frames)),
    )
    .await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(
        decompress(&content(response.into_body()).await),
        sequence().concat()
    );
}

#[tokio::test]
async fn compress_streaming_response_unicode() {
    let chunks: Vec<_> = ["a\u{e9}\u{20ac}", "\u{1f600}".repeat(100).leak()]
        .map(|text| Bytes::from_static(text.as_bytes()))
        .to_vec();
    let response = process(&CompressionLayer::new(), streaming(chunks.clone())).await;
    assert_eq!(
        decompress(&content(response.into_body()).await),
        chunks.concat()
    );
}

#[tokio::test]
async fn compress_file_response() {
    let file = std::fs::read(file!()).expect("this file");
    let response = process(&CompressionLayer::new(), response(file.clone())).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(decompress(&content(response.into_body()).await), file);
}

#[tokio::test]
async fn compress_non_200_response() {
    let mut missing = response(compressible());
    *missing.status_mut() = StatusCode::NOT_FOUND;
    let response = process(&CompressionLayer::new(), missing).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(
        decompress(&content(response.into_body()).await),
        compressible()
    );
}

#[tokio::test]
async fn no_compress_short_response() {
    let response = process(&CompressionLayer::new(), response(SHORT)).await;
    assert!(!response.headers().contains_key("content-encoding"));
    assert_eq!(content(response.into_body()).await, SHORT);
}

#[tokio::test]
async fn no_compress_compressed_response() {
    let mut deflated = response(compressible());
    deflated
        .headers_mut()
        .insert("content-encoding", "deflate".parse().unwrap());
    let response = process(&CompressionLayer::new(), deflated).await;
    assert_eq!(response.headers()["content-encoding"], "deflate");
    assert_eq!(content(response.into_body()).await, compressible());
}

#[tokio::test]
async fn no_compress_incompressible_response() {
    let response = process(&CompressionLayer::new(), response(incompressible())).await;
    assert!(!response.headers().contains_key("content-encoding"));
    assert_eq!(content(response.into_body()).await, incompressible());
}

#[tokio::test]
async fn compress_deterministic() {
    // Without padding the same content gives the same bytes, so no time stamp is in them.
    let layer = CompressionLayer::new().random_padding(0);
    let first = content(process(&layer, response(compressible())).await.into_body()).await;
    let second = content(process(&layer, response(compressible())).await.into_body()).await;
    assert_eq!(first, second);
    assert_eq!(first[4..8], [0; 4], "the header's modification time");
}

#[tokio::test]
async fn random_bytes() {
    let layer = CompressionLayer::new();
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let body = content(process(&layer, response(compressible())).await.into_body()).await;
        assert_eq!(decompress(&body), compressible());
        lengths.insert(body.len());
    }
    assert!(lengths.len() > 10, "{lengths:?}");
}

#[tokio::test]
async fn random_bytes_streaming_response() {
    let layer = CompressionLayer::new();
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let body = content(process(&layer, streaming(sequence())).await.into_body()).await;
        assert_eq!(decompress(&body), sequence().concat());
        lengths.insert(body.len());
    }
    assert!(lengths.len() > 10, "{lengths:?}");
}

#[tokio::test]
async fn strong_etag_modified() {
    let mut strong = response(compressible());
    strong
        .headers_mut()
        .insert("etag", "\"eggs\"".parse().unwrap());
    let response = process(&CompressionLayer::new(), strong).await;
    assert_eq!(response.headers()["etag"], "W/\"eggs\"");
}

#[tokio::test]
async fn weak_etag_not_modified() {
    let mut weak = response(compressible());
    weak.headers_mut()
        .insert("etag", "W/\"eggs\"".parse().unwrap());
    let response = process(&CompressionLayer::new(), weak).await;
    assert_eq!(response.headers()["etag"], "W/\"eggs\"");
}

#[tokio::test]
async fn etag_match() {
    // A handler that answers 304 to a strong tag names the representation the client has: the
    // compressed one, whose tag is weak.
    let not_modified = Response::builder()
        .status(StatusCode::NOT_MODIFIED)
        .header("etag", "\"eggs\"")
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = process(&CompressionLayer::new(), not_modified).await;
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(response.headers()["etag"], "W/\"eggs\"");
    assert_eq!(response.headers()["vary"], "accept-encoding");
}
