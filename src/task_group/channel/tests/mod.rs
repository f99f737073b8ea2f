//! What the channel promises, one promise a test.

mod asked_again;
mod cancel;
mod flow;
mod given_up;
mod panics;
mod stress;
mod ways;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{Closed, FrameReceiver, FrameSender, channel};

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Count {
    fn new() -> (Arc<Self>, Waker) {
        let count = Arc::new(Self::default());
        (count.clone(), Waker::from(count))
    }

    fn wakes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(waker))
}

fn take(receiver: &mut FrameReceiver) -> Poll<Option<Frame<Bytes>>> {
    receiver.poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn take_data(receiver: &mut FrameReceiver) -> Bytes {
    match take(receiver) {
        Poll::Ready(Some(frame)) => frame.into_data().expect("data"),
        other => panic!("no data but {other:?}"),
    }
}

fn is_end(receiver: &mut FrameReceiver) -> bool {
    matches!(take(receiver), Poll::Ready(None))
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-rows", http::HeaderValue::from_static("3"));
    trailers
}

fn frame(len: usize) -> Bytes {
    vec![b'x'; len].into()
}

/// Fills the channel to the bound, so that the next byte has to wait.
fn fill(sender: &FrameSender, bound: usize) {
    sender.try_send(frame(bound)).expect("room for the bound");
}

#[test]
fn handles_are_send_and_sync() {
    fn check<T: Send + Sync + Unpin>() {}
    check::<FrameSender>();
    check::<super::SendFrame<'_>>();
    check::<super::FrameSink>();
    check::<super::FrameWriter>();
    check::<super::FrameBody>();
    check::<super::receiver::ChannelHandle>();
    fn check_send<T: Send>(_: &T) {}
    let (sender, _receiver) = channel(1);
    check_send(&sender.closed());
    check_send(&sender.send_trailers(HeaderMap::new()));
}

#[test]
fn every_closed_says_its_own_reason() {
    let (sender, receiver) = channel(8);
    let handle = receiver.handle();
    handle.close_senders();
    let refused = sender.try_send("a").expect_err("refused");
    let refused = std::error::Error::source(&refused)
        .expect("cause")
        .to_string();
    drop(receiver);
    let gone = sender.send_blocking("a").expect_err("gone").to_string();
    assert_ne!(refused, gone);
    assert!(gone.contains("client has left"), "{gone}");
}
