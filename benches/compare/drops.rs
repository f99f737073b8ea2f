//! 10,000 streams dropped at once, against 1,000: every closer runs, and the time stays in line.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bodyguard::{Cleanup, Stack};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service, service_fn};

use crate::support::{at_least, at_most, my_cpu, quick};

pub(crate) fn run() {
    let rounds = if quick() { 7 } else { 15 };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (mut ratios, mut least) = (Vec::new(), usize::MAX);
        // Warms up.
        drop_at_once(10_000).await;
        for _ in 0..rounds {
            let (few, _) = drop_at_once(1_000).await;
            let (many, ran) = drop_at_once(10_000).await;
            least = least.min(ran);
            ratios.push(many.as_secs_f64() / few.as_secs_f64());
        }
        at_least("drop_closers_of_10000", vec![least as f64], 10_000.0);
        at_most("drop_10000_vs_1000", ratios, 12.0);
    });
}

/// Processor time from the drop to the last closer's end, and how many closers ran.
async fn drop_at_once(streams: usize) -> (Duration, usize) {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = ran.clone();
    let mut service = Stack::new().layer(service_fn(move |request: Request<()>| {
        let count = count.clone();
        let cleanup = Cleanup::of(&request).expect("a layer");
        cleanup.defer(|_| async move {
            tokio::task::yield_now().await;
            count.fetch_add(1, Relaxed);
            Ok(())
        });
        std::future::ready(Ok::<_, Infallible>(Response::new(Endless(true))))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    let mut bodies = Vec::with_capacity(streams);
    for _ in 0..streams {
        let response = service.call(Request::new(())).await.expect("infallible");
        let mut body = Box::pin(response.into_body());
        assert!(body.as_mut().poll_frame(&mut cx).is_ready(), "a frame");
        assert!(body.as_mut().poll_frame(&mut cx).is_pending(), "no more");
        bodies.push(body);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let before = my_cpu();
    drop(bodies);
    while ran.load(Relaxed) < streams && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    (my_cpu() - before, ran.load(Relaxed))
}

/// One frame, and then nothing for ever.
struct Endless(bool);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::mem::take(&mut self.0) {
            true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first"))))),
            false => Poll::Pending,
        }
    }
}
