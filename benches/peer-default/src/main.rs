//! `peer-default FILE CHUNK`: compresses FILE in ready chunks, prints nanoseconds, processor time, bytes.

use std::{convert::Infallible, env, fs, time::Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::compression::CompressionLayer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let mut text = Bytes::from(fs::read(arguments.next().ok_or("no file")?)?);
    let size: usize = arguments.next().ok_or("no chunk size")?.parse()?;
    let mut chunks = Vec::new();
    while !text.is_empty() {
        chunks.push(text.split_to(size.min(text.len())));
    }
    let before = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let before: u64 = before
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (time, bytes) = runtime.block_on(async move {
        let service = ServiceBuilder::new()
            .layer(CompressionLayer::new())
            .service(service_fn(move |_: Request<()>| {
                let frames = chunks
                    .clone()
                    .into_iter()
                    .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
                let body = StreamBody::new(futures_util::stream::iter(frames));
                async { Ok::<_, Infallible>(Response::new(body)) }
            }));
        let request = Request::builder()
            .header("accept-encoding", "gzip")
            .body(())
            .unwrap();
        let begin = Instant::now();
        let mut body = Box::pin(service.oneshot(request).await.unwrap().into_body());
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        (begin.elapsed(), bytes)
    });
    // One thread does it all; its processor time is the first number of its schedstat.
    let cpu = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let cpu: u64 = cpu
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    println!("{} {} {bytes}", time.as_nanos(), cpu.saturating_sub(before));
    Ok(())
}
