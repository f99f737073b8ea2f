//! Heap of an idle stream with one producer: ours against `mpsc` and `ReceiverStream`.
//!
//! "Idle" is a stream whose producer waits for something else: before its first frame, and again
//! after a burst that filled the buffer and was taken. Bodies and producers are counted on both
//! sides; a producer is a boxed future that holds a sender.

use std::{
    hint::black_box,
    pin::Pin,
    task::{Context, Waker},
};

use bodyguard::{BodyError, task_group::FrameBody};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{live, support::at_most};

const BOUND: usize = 16 * 1024;
const STREAMS: usize = 1000;
const FRAME: usize = 64;

type Producer = Pin<Box<dyn Future<Output = ()> + Send>>;

fn ours(burst: usize) -> (impl Body<Data = Bytes, Error = BodyError> + Unpin, Producer) {
    let (sender, body) = FrameBody::channel(BOUND);
    let producer = Box::pin(async move {
        for _ in 0..burst {
            let _ = sender.send(Bytes::from(vec![0; FRAME])).await;
        }
        std::future::pending::<()>().await;
        drop(sender);
    });
    (body, producer)
}

fn theirs(burst: usize) -> (impl Body<Data = Bytes, Error = BodyError> + Unpin, Producer) {
    let (sender, receiver) = mpsc::channel::<Bytes>(BOUND / FRAME);
    let producer = Box::pin(async move {
        for _ in 0..burst {
            let _ = sender.send(Bytes::from(vec![0; FRAME])).await;
        }
        std::future::pending::<()>().await;
        drop(sender);
    });
    let body = StreamBody::new(ReceiverStream::new(receiver).map(|data| Ok(Frame::data(data))));
    (body, producer)
}

/// Bytes a stream, with everything it sent taken.
fn heap<B>(make: impl Fn() -> (B, Producer)) -> f64
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut streams = Vec::with_capacity(STREAMS);
    let before = live();
    for _ in 0..STREAMS {
        let (body, producer) = make();
        let (mut body, mut producer) = (Box::new(body), producer);
        loop {
            assert!(producer.as_mut().poll(&mut cx).is_pending());
            // Both sides end here with the body's waker registered.
            if Pin::new(&mut *body).poll_frame(&mut cx).is_pending() {
                break;
            }
            while Pin::new(&mut *body).poll_frame(&mut cx).is_ready() {}
        }
        streams.push((body, producer));
    }
    let after = live();
    black_box(&streams);
    (after - before) as f64 / STREAMS as f64
}

pub(crate) fn run() {
    let mut worst = 0.0_f64;
    for (name, burst) in [
        ("before its first frame", 0),
        ("after one frame", 1),
        ("after a burst", 600),
    ] {
        let (ours, theirs) = (heap(|| ours(burst)), heap(|| theirs(burst)));
        worst = worst.max(ours / theirs);
        println!("heap of an idle stream {name}: ours {ours:.0} B, theirs {theirs:.0} B");
    }
    at_most("heap_fan_in_vs_channel", vec![worst], 1.0);
}
