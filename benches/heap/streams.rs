//! Allocations a request and a frame through `Stack`, and heap of an idle stream.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bodyguard::{BoxError, Stack, TaskGroup};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, Service, service_fn};

use crate::{
    allocations, live,
    support::{at_most, figure, stated},
};

type Boxed = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let a_frame = per_frame();
        at_most("heap_allocations_per_frame", vec![a_frame], 0.0);
        stated("heap_allocations_per_request", per_request(Stack::new()));
        for streams in [1_000, 10_000] {
            let plain = idle(streams, |_| boxed(Many(1))).await;
            let group = idle(streams, |group| {
                boxed(group.body(|sender| async move {
                    sender.send(Bytes::from_static(b"first")).await?;
                    std::future::pending::<()>().await;
                    Ok(())
                }))
            });
            let group = group.await;
            println!(
                "heap of one of {streams} idle streams: plain {plain:.0} B, task group {group:.0} B"
            );
            figure(&format!("heap_plain_{streams}"), plain);
            figure(&format!("heap_group_{streams}"), group);
        }
    });
}

fn boxed<B>(body: B) -> Boxed
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Allocations for each frame of a response.
fn per_frame() -> f64 {
    let frames = 100_000;
    let mut service = Stack::new().layer(service_fn(move |_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Many(frames))))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    let head = pin!(service.call(Request::new(()))).poll(&mut cx);
    let Poll::Ready(Ok(response)) = head else {
        panic!("no head")
    };
    let mut body = pin!(response.into_body());
    let before = allocations();
    for _ in 0..frames {
        drop(black_box(body.as_mut().poll_frame(&mut cx)));
    }
    (allocations() - before) as f64 / frames as f64
}

/// Allocations for a request that uses nothing, its own excepted.
fn per_request<L>(layer: L) -> f64
where
    L: Layer<Bare>,
    L::Service: Service<Request<()>, Response: IsResponse, Error = Infallible>,
{
    let requests = 1000;
    let mut service = layer.layer(Bare);
    let mut cx = Context::from_waker(Waker::noop());
    let before = allocations();
    for _ in 0..requests {
        let head = pin!(service.call(Request::new(()))).poll(&mut cx);
        assert!(head.is_ready(), "at once");
        drop(black_box(head));
    }
    (allocations() - before) as f64 / requests as f64
}

/// Any response, whatever its body.
trait IsResponse {}
impl<B> IsResponse for Response<B> {}

/// Answers with nothing.
struct Bare;

impl Service<Request<()>> for Bare {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(Empty::new())))
    }
}

/// Live heap of a stream that has given a frame and waits.
async fn idle(streams: usize, make: impl Fn(TaskGroup) -> Boxed + Clone) -> f64 {
    let mut service = Stack::new().layer(service_fn(move |request: Request<()>| {
        let group = TaskGroup::of(&request).expect("a layer");
        std::future::ready(Ok::<_, Infallible>(Response::new(make(group))))
    }));
    let mut bodies = Vec::with_capacity(streams);
    let before = live();
    for _ in 0..streams {
        let response = service.call(Request::new(())).await.expect("infallible");
        let mut body = Box::pin(response.into_body());
        let frame = body.frame().await;
        assert!(frame.is_some_and(|frame| frame.is_ok()), "a frame");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(body.as_mut().poll_frame(&mut cx).is_pending(), "no more");
        bodies.push(body);
    }
    (live() - before) as f64 / streams as f64
}

/// So many frames, and then nothing for ever.
struct Many(usize);

impl Body for Many {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.checked_sub(1) {
            None => Poll::Pending,
            Some(left) => {
                self.0 = left;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 64])))))
            }
        }
    }
}
