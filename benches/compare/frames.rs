//! What a frame costs more through `Stack`, fixed and movable, without compression, than from the bare
//! body: with a closer registered, and with nothing.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{Cleanup, Stack};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service, service_fn};

use crate::support::{at_most, median, my_cpu, quick};

const ROUNDS: usize = 11;
const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn run() {
    let frames = if quick() { 500_000 } else { 3_000_000 };
    let handler = |closer: bool| {
        service_fn(move |request: Request<()>| {
            if closer {
                let cleanup = Cleanup::of(&request).expect("a layer");
                cleanup.defer_sync(drop);
            }
            std::future::ready(Ok::<_, Infallible>(Response::new(Many(frames))))
        })
    };
    let mut fixed = Stack::new().layer(handler(true));
    let mut unused = Stack::new().layer(handler(false));
    let mut movable = Stack::new().detachable(HOUR).layer(handler(true));
    let (mut through, mut past) = (Vec::new(), Vec::new());
    let (mut moved, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        through.push(drain(answer(&mut fixed), frames));
        bare.push(drain(Many(frames), frames));
        moved.push(drain(answer(&mut movable), frames));
        past.push(drain(answer(&mut unused), frames));
    }
    let more = |than_bare: &[f64]| -> Vec<f64> {
        than_bare.iter().zip(&bare).map(|(a, b)| a - b).collect()
    };
    let (fixed, movable, unused) = (more(&through), more(&moved), more(&past));
    println!(
        "a frame: {:.1} ns through Stack, {:.1} ns if nothing is registered, {:.1} ns if movable, \
         {:.1} ns bare",
        median(through),
        median(past),
        median(moved),
        median(bare)
    );
    at_most("frame_ns", fixed, 25.0);
    at_most("frame_unused_ns", unused, 25.0);
    at_most("frame_movable_ns", movable, 45.0);
}

fn answer<S, B>(service: &mut S) -> B
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(service.call(Request::new(()))).poll(&mut cx) {
        Poll::Ready(Ok(response)) => response.into_body(),
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => panic!("no head"),
    }
}

/// Nanoseconds of processor time a frame.
///
/// Behind a pointer, as servers have it: else the bare body would be read where it is made.
fn drain<E>(body: impl Body<Data = Bytes, Error = E> + 'static, frames: u64) -> f64 {
    let mut body: Pin<Box<dyn Body<Data = Bytes, Error = E>>> = black_box(Box::pin(body));
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
