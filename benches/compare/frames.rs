//! What a frame costs more through `Stack`, without compression, than from the bare body.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bodyguard::Stack;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service, service_fn};

use crate::support::{at_most, median, my_cpu, quick};

const ROUNDS: usize = 11;

pub(crate) fn run() {
    let frames = if quick() { 500_000 } else { 3_000_000 };
    let mut service = Stack::new().layer(service_fn(move |_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Many(frames))))
    }));
    let (mut through, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut cx = Context::from_waker(Waker::noop());
        let head = pin!(service.call(Request::new(()))).poll(&mut cx);
        let Poll::Ready(Ok(response)) = head else {
            panic!("no head")
        };
        through.push(drain(response.into_body(), frames));
        bare.push(drain(Many(frames), frames));
    }
    let more: Vec<_> = through.iter().zip(&bare).map(|(a, b)| a - b).collect();
    println!(
        "a frame: {:.1} ns through Stack, {:.1} ns bare",
        median(through),
        median(bare)
    );
    at_most("frame_ns", more, 25.0);
    println!("the movable mode (`.detachable(limit)`) does not exist yet:");
    at_most("frame_movable_ns", vec![f64::NAN], 45.0);
}

/// Nanoseconds of processor time a frame.
fn drain(body: impl Body, frames: u64) -> f64 {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    let before = my_cpu();
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        drop(black_box(frame));
    }
    (my_cpu() - before).as_secs_f64() * 1e9 / frames as f64
}

/// So many frames of 64 bytes, all ready.
struct Many(u64);

impl Body for Many {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 -= 1;
        let data = Bytes::from_static(&[b'x'; 64]);
        Poll::Ready(Some(Ok(Frame::data(black_box(data)))))
    }
}
