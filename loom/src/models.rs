//! No lost wake-up, no lost frame. A lost wake-up shows as a deadlock, which loom reports.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_sink::Sink;
use loom::{future::block_on, model::Builder, thread};
use tokio::io::AsyncWrite;

use crate::channel::{FrameReceiver, FrameSender, channel};

/// Explores with a bound on preemptions, which keeps three threads within seconds.
pub(crate) fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(check);
}

/// All bytes up to the end.
fn collect(mut receiver: FrameReceiver) -> Vec<u8> {
    block_on(async {
        let mut data = Vec::new();
        while let Some(frame) = poll_fn(|cx| receiver.poll_frame(cx)).await {
            data.extend(frame.into_data().unwrap_or_default());
        }
        data
    })
}

fn is_order_of(data: &[u8], own: &[u8], others: &[u8]) -> bool {
    let kept: Vec<u8> = data
        .iter()
        .copied()
        .filter(|byte| own.contains(byte))
        .collect();
    kept == own && data.len() == own.len() + others.len()
}

#[test]
fn one_sender_that_has_to_wait_loses_nothing() {
    model(|| {
        let (sender, receiver) = channel(2);
        let sending = thread::spawn(move || {
            for part in ["ab", "c", "d"] {
                block_on(sender.send(part)).expect("open");
            }
        });
        assert_eq!(collect(receiver), b"abcd");
        sending.join().expect("no panic");
    });
}

/// As servers ask once more behind each flush.
#[test]
fn a_receiver_that_asks_again_misses_nothing() {
    model(|| {
        let (sender, mut receiver) = channel(1);
        let sending = thread::spawn(move || {
            for part in ["a", "b"] {
                block_on(sender.send(part)).expect("open");
            }
        });
        let data = block_on(async {
            // Loom's own does not know its clones again; a clone does.
            let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
            let mut twice = |_: &mut Context<'_>| {
                let mut cx = Context::from_waker(&waker);
                match receiver.poll_frame(&mut cx) {
                    Poll::Pending => receiver.poll_frame(&mut cx),
                    ready => ready,
                }
            };
            let mut data = Vec::new();
            while let Some(frame) = poll_fn(&mut twice).await {
                data.extend(frame.into_data().unwrap_or_default());
            }
            data
        });
        assert_eq!(data, b"ab");
        sending.join().expect("no panic");
    });
}

#[test]
fn two_senders_that_compete_for_room_lose_nothing() {
    model(|| {
        let (sender, receiver) = channel(1);
        let other = sender.clone();
        let first = thread::spawn(move || {
            for part in ["a", "b"] {
                block_on(sender.send(part)).expect("open");
            }
        });
        let second = thread::spawn(move || block_on(other.send("c")).expect("open"));
        let data = collect(receiver);
        assert!(is_order_of(&data, b"ab", b"c"), "{data:?}");
        first.join().expect("no panic");
        second.join().expect("no panic");
    });
}

#[test]
fn a_blocking_sender_is_unparked() {
    model(|| {
        let (sender, receiver) = channel(1);
        let sending = thread::spawn(move || {
            sender.send_blocking("a").expect("open");
            sender.send_blocking("b").expect("open");
        });
        assert_eq!(collect(receiver), b"ab");
        sending.join().expect("no panic");
    });
}

#[test]
fn the_last_sender_to_go_ends_the_stream() {
    model(|| {
        let (sender, receiver) = channel(8);
        let other = sender.clone();
        let first = thread::spawn(move || {
            sender.try_send("a").expect("room");
        });
        let second = thread::spawn(move || drop(other));
        assert_eq!(collect(receiver), b"a");
        first.join().expect("no panic");
        second.join().expect("no panic");
    });
}

#[test]
fn a_receiver_that_goes_releases_who_waits_and_who_watches() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let watching = sender.clone();
        let watch = thread::spawn(move || block_on(watching.closed()));
        let send = thread::spawn(move || block_on(sender.send("b")).is_err());
        drop(receiver);
        assert!(send.join().expect("no panic"), "sent into nothing");
        watch.join().expect("no panic");
    });
}

#[test]
fn a_receiver_that_goes_releases_a_thread_that_blocks() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let send = thread::spawn(move || sender.send_blocking("b").is_err());
        drop(receiver);
        assert!(send.join().expect("no panic"), "sent into nothing");
    });
}

#[test]
fn a_receiver_that_goes_releases_a_writer() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let write = thread::spawn(move || {
            let mut writer = sender.into_writer();
            block_on(poll_fn(|cx| pin!(&mut writer).poll_write(cx, b"b"))).is_err()
        });
        drop(receiver);
        assert!(write.join().expect("no panic"), "written into nothing");
    });
}

/// Trailers need no room: they wait for those in line before them.
#[test]
fn a_receiver_that_goes_releases_trailers() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let last = sender.clone();
        let mut ahead = sender.send("b");
        let polled = pin!(&mut ahead).poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        let send =
            thread::spawn(move || block_on(last.send_trailers(http::HeaderMap::new())).is_err());
        drop(receiver);
        assert!(send.join().expect("no panic"), "sent into nothing");
    });
}

#[test]
fn closing_the_senders_races_with_a_send() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let handle = receiver.handle();
        let send = thread::spawn(move || block_on(sender.send("b")).is_ok());
        let close = thread::spawn(move || handle.close_senders());
        let data = collect(receiver);
        let sent = send.join().expect("no panic");
        close.join().expect("no panic");
        assert_eq!(data, if sent { &b"ab"[..] } else { &b"a"[..] });
    });
}

/// One sender gives up after it has begun to wait, at whatever moment: its room must go on to the
/// other, and its frame must not arrive.
#[test]
fn a_send_given_up_passes_its_turn_on() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let other = sender.clone();
        let gives_up = thread::spawn(move || {
            let mut send = sender.send("b");
            let polled = pin!(&mut send).poll(&mut Context::from_waker(Waker::noop()));
            matches!(polled, Poll::Ready(Ok(())))
        });
        let goes_on = thread::spawn(move || block_on(other.send("c")).expect("open"));
        let mut data = collect(receiver);
        let sent = gives_up.join().expect("no panic");
        goes_on.join().expect("no panic");
        data.sort_unstable();
        assert_eq!(data, if sent { &b"abc"[..] } else { &b"ac"[..] });
    });
}

#[test]
fn trailers_come_last_and_once() {
    model(|| {
        let (sender, mut receiver) = channel(1);
        sender.try_send("a").expect("room");
        let other = sender.clone();
        let data = thread::spawn(move || block_on(other.send("b")).is_ok());
        let last = thread::spawn(move || {
            block_on(sender.send_trailers(http::HeaderMap::new())).expect("open");
        });
        let (bytes, trailers) = block_on(async {
            let (mut bytes, mut trailers) = (Vec::<Bytes>::new(), 0);
            while let Some(frame) = poll_fn(|cx| receiver.poll_frame(cx)).await {
                match frame.into_data() {
                    Ok(data) => {
                        assert_eq!(trailers, 0, "data behind trailers");
                        bytes.push(data);
                    }
                    Err(_) => trailers += 1,
                }
            }
            (bytes.concat(), trailers)
        });
        let sent = data.join().expect("no panic");
        last.join().expect("no panic");
        assert_eq!(trailers, 1);
        assert_eq!(bytes, if sent { &b"ab"[..] } else { &b"a"[..] });
    });
}

/// A sink is granted room and not polled again: its room must go on to the other.
#[test]
fn a_sink_given_up_and_kept_holds_up_nobody() {
    model(|| {
        let (sender, receiver) = channel(1);
        sender.try_send("a").expect("room");
        let other = sender.clone();
        let gives_up = thread::spawn(move || {
            let mut sink = sender.into_sink();
            let mut cx = Context::from_waker(Waker::noop());
            pin!(&mut sink)
                .start_send(Bytes::from_static(b"b"))
                .expect("open");
            let sent = pin!(&mut sink).poll_flush(&mut cx).is_ready();
            (sink, sent)
        });
        let goes_on = thread::spawn(move || block_on(other.send("c")).expect("open"));
        let collects = thread::spawn(move || collect(receiver));
        // Kept until the other has sent.
        goes_on.join().expect("no panic");
        let (sink, sent) = gives_up.join().expect("no panic");
        drop(sink);
        let mut data = collects.join().expect("no panic");
        data.sort_unstable();
        assert_eq!(data, if sent { &b"abc"[..] } else { &b"ac"[..] });
    });
}
