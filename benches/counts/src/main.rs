//! `counts ROW TIMES`: does one thing so many times, for an instruction counter to count.
//!
//! Rows come in pairs, with `Stack` and without: the difference is what the layer costs. Whoever
//! counts takes the difference of two values of TIMES too, so that the start-up cancels.

use std::{
    convert::Infallible,
    env,
    future::{Ready, ready},
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bodyguard::{Cleanup, Stack, task_group::FrameBody};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use tower_layer::Layer;
use tower_service::Service;

fn main() {
    let mut arguments = env::args().skip(1);
    let row = arguments.next().expect("a row");
    let times: u64 = arguments
        .next()
        .and_then(|n| n.parse().ok())
        .expect("TIMES");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let _context = runtime.enter();
    match &*row {
        "request_bare" => requests(times, Answer { closer: false }),
        "request" => requests(times, Stack::new().layer(Answer { closer: false })),
        "request_closer" => requests(times, Stack::new().layer(Answer { closer: true })),
        "frame_bare" => drain(Many(times)),
        "frame" => frames(times, true),
        "frame_unused" => frames(times, false),
        "group_frame" => group_frames(times),
        _ => panic!("no such row: {row}"),
    }
}

/// Hello world, from the request to the drop of its body.
fn requests<S, B>(times: u64, mut service: S)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    for _ in 0..times {
        drain(answer(&mut service).into_body());
    }
}

/// So many frames of one response, with something registered or not.
fn frames(frames: u64, closer: bool) {
    let mut service = Stack::new().layer(Stream { frames, closer });
    drain(answer(&mut service).into_body());
}

fn answer<S, B>(service: &mut S) -> Response<B>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_static("/");
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(service.call(black_box(request))).poll(&mut cx) {
        Poll::Ready(Ok(response)) => response,
        _ => panic!("no head"),
    }
}

fn drain<B: Body>(body: B) {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    while !body.is_end_stream() {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => drop(black_box(frame)),
            Poll::Ready(None) => break,
            Poll::Pending => panic!("every frame is ready"),
        }
    }
}

/// Frames of 64 bytes from a sender to the body of a channel, one by one.
fn group_frames(times: u64) {
    let (sender, body) = FrameBody::channel(16 * 1024);
    let mut body = pin!(body);
    let frame = Bytes::from_static(&[b'x'; 64]);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..times {
        let sent = pin!(sender.send(frame.clone())).poll(&mut cx);
        assert!(sent.is_ready(), "room for one");
        drop(black_box(body.as_mut().poll_frame(&mut cx)));
    }
}

/// Says hello; registers a closer if it is to.
struct Answer {
    closer: bool,
}

impl Service<Request<()>> for Answer {
    type Response = Response<Hello>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Hello>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        if self.closer {
            register(&request);
        }
        ready(Ok(Response::new(Hello(Some(Bytes::from_static(
            b"Hello, World!",
        ))))))
    }
}

fn register(request: &Request<()>) {
    let cleanup = Cleanup::of(request).expect("a layer");
    cleanup.defer(|ending| async move {
        black_box(ending.succeeded());
        Ok(())
    });
}

struct Hello(Option<Bytes>);

impl Body for Hello {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// Answers with so many frames.
struct Stream {
    frames: u64,
    closer: bool,
}

impl Service<Request<()>> for Stream {
    type Response = Response<Many>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Many>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        if self.closer {
            register(&request);
        }
        ready(Ok(Response::new(Many(self.frames))))
    }
}

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
