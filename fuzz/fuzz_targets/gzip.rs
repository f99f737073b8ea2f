//! Arbitrary bodies, chunkings, pendings and options, and a client that left an earlier response of the
//! same layer: one gzip member that decodes to the same text, and without padding the same bytes again where no
//! flush depends on the frames.
//!
//! `cargo +nightly fuzz run gzip`
#![no_main]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    io::Read,
    pin::Pin,
    task::{Context, Poll},
};

use bodyguard::compression::{CompressionLayer, Flush};
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tower_layer::Layer;
use tower_service::Service;

struct Script {
    steps: VecDeque<Option<Bytes>>,
    hints_end: bool,
    size: Option<u64>,
    ended: bool,
}

impl Body for Script {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        assert!(!self.ended, "polled after its end");
        match self.steps.pop_front() {
            Some(Some(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.hints_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

struct Handler(Option<Script>);

impl Service<Request<()>> for Handler {
    type Response = Response<Script>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Script>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(self.0.take().expect("called once"))))
    }
}

fn for_gzip() -> Request<()> {
    let mut request = Request::new(());
    let gzip = HeaderValue::from_static("gzip");
    request.headers_mut().append("accept-encoding", gzip);
    request
}

fuzz_target!(|input: &[u8]| {
    let Some((&[a, b, c, d, e, f], mut rest)) = input.split_first_chunk::<6>() else {
        return;
    };
    let flush = [Flush::WhenIdle, Flush::EveryFrame, Flush::Never][usize::from(a % 3)];
    let history = [0, 1, 100, 1 << 10, 4 << 10, 8 << 10, 32 << 10][usize::from(a / 3 % 7)];
    let layer = CompressionLayer::new()
        .flush(flush)
        .history(history)
        .level(u32::from(b % 9) + 1)
        .parallel(b & 0x80 != 0)
        .resident_limit(usize::from(c % 3))
        .random_padding(u16::from(d))
        .min_size(0);

    // Each control byte says how long the next chunk is, how often it is repeated, and whether the
    // body is pending after it: small inputs reach megabytes of text.
    let (mut text, mut steps) = (Vec::new(), VecDeque::new());
    while let Some((&control, behind)) = rest.split_first() {
        let length = (1 + usize::from(control & 0x3f)).min(behind.len());
        let (chunk, behind) = behind.split_at(length);
        let times = if control & 0x40 != 0 {
            1 + 40 * usize::from(e)
        } else {
            1
        };
        if text.len() + length * times <= 1 << 20 {
            let chunk = chunk.repeat(times);
            text.extend_from_slice(&chunk);
            steps.push_back(Some(chunk.into()));
        }
        if control & 0x80 != 0 {
            steps.push_back(None);
        }
        rest = behind;
    }
    let waits = steps.iter().any(Option::is_none);
    let repeats = match flush {
        _ if d > 0 || f & 2 != 0 => false,
        Flush::Never => !waits || b & 0x80 == 0,
        Flush::WhenIdle => !waits,
        _ => false,
    };
    // An earlier response, left after some frames.
    let left = (f & 8 != 0).then(|| Script {
        steps: steps.clone(),
        hints_end: false,
        size: None,
        ended: false,
    });
    let script = Script {
        steps,
        hints_end: f & 1 != 0,
        size: (f & 2 != 0).then_some(text.len() as u64),
        ended: false,
    };
    let mut request = Request::new(());
    // The tail of the same input is a hostile header half of the time.
    let hostile = HeaderValue::from_bytes(&input[input.len() / 2..])
        .ok()
        .filter(|_| f & 4 != 0);
    for value in hostile
        .into_iter()
        .chain([HeaderValue::from_static("gzip")])
    {
        request.headers_mut().append("accept-encoding", value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        if let Some(left) = left {
            let response = layer.layer(Handler(Some(left))).call(for_gzip()).await;
            let mut body = Box::pin(response.expect("infallible").into_body());
            for _ in 0..f >> 4 {
                if body.frame().await.is_none() {
                    break;
                }
            }
        }
        let response = layer
            .layer(Handler(Some(script)))
            .call(request)
            .await
            .expect("infallible");
        let encoded = response.headers().contains_key("content-encoding");
        let wire = response
            .into_body()
            .collect()
            .await
            .expect("no error")
            .to_bytes();
        if encoded {
            let mut decoded = Vec::new();
            let mut decoder = flate2::bufread::GzDecoder::new(&wire[..]);
            decoder.read_to_end(&mut decoded).expect("one gzip member");
            assert!(decoder.into_inner().is_empty(), "bytes behind the member");
            assert!(decoded == text, "text differs");
            if repeats && !text.is_empty() {
                let most = 1 + 40 * usize::from(f);
                let script = Script {
                    steps: text
                        .chunks(most)
                        .map(|chunk| Some(chunk.to_vec().into()))
                        .collect(),
                    hints_end: false,
                    size: None,
                    ended: false,
                };
                let response = layer.layer(Handler(Some(script))).call(for_gzip()).await;
                let again = response.expect("infallible").into_body().collect().await;
                assert!(again.expect("no error").to_bytes() == wire, "other bytes");
            }
        } else {
            assert!(wire == text, "plain text differs");
        }
        let stats = layer.stats();
        assert_eq!((stats.open, stats.parked), (0, 0));
    });
});
