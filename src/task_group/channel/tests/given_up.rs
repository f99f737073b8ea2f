//! A writer or sink that is kept and not polled any more holds up nobody.

use std::time::Duration;

use futures_util::{Sink, SinkExt};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use super::*;
use crate::task_group::channel::{FrameSink, FrameWriter};

const BOUND: usize = 10;

/// A write that waits behind a full buffer, and is let go.
fn give_up_writing(sender: &FrameSender) -> FrameWriter {
    let mut writer = sender.clone().into_writer();
    assert!(write(&mut writer).is_pending());
    writer
}

fn write(writer: &mut FrameWriter) -> Poll<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    let written = pin!(writer).poll_write(&mut cx, &[b'w'; BOUND]);
    written.map(|written| written.expect("open"))
}

fn give_up_flushing(sender: &FrameSender) -> FrameSink {
    let mut sink = sender.clone().into_sink();
    pin!(&mut sink).start_send(frame(BOUND)).expect("open");
    assert!(flush(&mut sink).is_pending());
    sink
}

fn flush(sink: &mut FrameSink) -> Poll<Result<(), Closed>> {
    pin!(sink).poll_flush(&mut Context::from_waker(Waker::noop()))
}

/// Polls as often as it is woken for, like a server; gives what comes.
fn drain(receiver: &mut FrameReceiver) -> Vec<Bytes> {
    let (count, waker) = Count::new();
    let mut frames = Vec::new();
    loop {
        let woken = count.wakes();
        match receiver.poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(frame)) => frames.extend(frame.into_data()),
            Poll::Ready(None) => return frames,
            Poll::Pending if count.wakes() == woken => return frames,
            Poll::Pending => {}
        }
    }
}

/// Sends behind one who was granted room and does not come for it.
fn send_behind<T>(give_up: impl Fn(&FrameSender) -> T) -> (FrameSender, FrameReceiver, T) {
    let (sender, mut receiver) = channel(BOUND);
    fill(&sender, BOUND);
    let gone = give_up(&sender);
    let (count, waker) = Count::new();
    let mut behind = sender.send(frame(BOUND));
    assert!(poll_with(&mut behind, &waker).is_pending());
    assert_eq!(drain(&mut receiver).len(), 1);
    assert_eq!(count.wakes(), 1, "it waits for who does not come");
    assert_eq!(poll(&mut behind), Poll::Ready(Ok(())));
    drop(behind);
    (sender, receiver, gone)
}

#[test]
fn a_write_that_was_given_up_holds_up_nobody_and_may_come_back() {
    let (sender, mut receiver, mut writer) = send_behind(give_up_writing);
    // Back again, it is the first in line.
    assert!(write(&mut writer).is_pending());
    let mut later = sender.send("later");
    assert!(poll(&mut later).is_pending());
    assert_eq!(take_data(&mut receiver).len(), BOUND);
    let written = write(&mut writer);
    assert!(matches!(written, Poll::Ready(1..)), "{written:?}");
    assert_eq!(poll(&mut later), Poll::Ready(Ok(())));
    let all: Vec<u8> = drain(&mut receiver).concat();
    assert!(all.starts_with(b"w") && all.ends_with(b"later"));
}

#[test]
fn a_flush_that_was_given_up_holds_up_nobody_and_may_come_back() {
    let (_, mut receiver, mut sink) = send_behind(give_up_flushing);
    assert!(flush(&mut sink).is_pending());
    assert_eq!(take_data(&mut receiver).len(), BOUND);
    assert_eq!(flush(&mut sink), Poll::Ready(Ok(())));
    assert_eq!(take_data(&mut receiver).len(), BOUND);
}

#[test]
fn who_comes_late_or_last_is_not_held_up_either() {
    let (sender, mut receiver) = channel(BOUND);
    fill(&sender, BOUND);
    let (_writer, _sink) = (give_up_writing(&sender), give_up_flushing(&sender));
    assert_eq!(drain(&mut receiver).len(), 1);
    sender.try_send(frame(BOUND)).expect("all room is free");
    let mut last = Box::pin(sender.send_trailers(trailers()));
    assert_eq!(poll(&mut last), Poll::Ready(Ok(())));
    assert_eq!(drain(&mut receiver).len(), 1);
    assert!(is_end(&mut receiver));
}

#[test]
fn one_who_leaves_wakes_the_receiver_for_who_is_let_in_by_it() {
    let (sender, mut receiver) = channel(BOUND);
    fill(&sender, BOUND);
    let mut dropped = sender.send(frame(BOUND));
    assert!(poll(&mut dropped).is_pending());
    let _writer = give_up_writing(&sender);
    let (count, waker) = Count::new();
    let mut cx = Context::from_waker(&waker);
    assert!(receiver.poll_frame(&mut cx).is_ready());
    assert!(receiver.poll_frame(&mut cx).is_pending());
    drop(dropped);
    let mut behind = sender.send(frame(BOUND));
    assert!(poll(&mut behind).is_pending());
    assert_eq!(count.wakes(), 1);
    assert!(drain(&mut receiver).is_empty());
    assert_eq!(poll(&mut behind), Poll::Ready(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_timed_out_holds_up_nobody() {
    let (sender, mut receiver) = channel(BOUND);
    let patience = Duration::from_secs(1);
    let mut writer = sender.clone().into_writer();
    let write = writer.write_all(&[b'w'; 100]);
    timeout(patience, write).await.expect_err("nobody reads");
    let mut sink = sender.clone().into_sink();
    let forward = async {
        sink.feed(frame(BOUND)).await?;
        sink.flush().await
    };
    timeout(patience, forward).await.expect_err("nobody reads");
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        let mut read = 0;
        while let Some(frame) = std::future::poll_fn(|cx| receiver.poll_frame(cx)).await {
            read += frame.into_data().map_or(0, |data| data.len());
        }
        read
    });
    for _ in 0..100 {
        let sent = timeout(patience, sender.send(frame(BOUND))).await;
        sent.expect("held up").expect("open");
    }
    drop((sender, writer, sink));
    let read = reading.join_next().await.expect("spawned");
    assert_eq!(read.expect("no panic"), BOUND + 100 * BOUND);
}

/// A grant that can be taken back is worth as much as one that cannot.
#[tokio::test(start_paused = true)]
async fn a_writer_among_senders_that_never_stop_has_its_turn() {
    let (sender, mut receiver) = channel(BOUND);
    let mut producers = JoinSet::new();
    for _ in 0..3 {
        let sender = sender.clone();
        producers.spawn(async move { while sender.send(frame(BOUND)).await.is_ok() {} });
    }
    let mut writer = sender.into_writer();
    producers.spawn(async move { while writer.write_all(&[b'w'; BOUND]).await.is_ok() {} });
    let mut written = 0;
    for _ in 0..400 {
        let frame = std::future::poll_fn(|cx| receiver.poll_frame(cx)).await;
        let data = frame
            .and_then(|frame| frame.into_data().ok())
            .expect("open");
        written += data.iter().filter(|byte| **byte == b'w').count();
    }
    // A turn of the writer is half the bound.
    assert!(
        (400..1600).contains(&written),
        "{written} of {}",
        400 * BOUND
    );
}

/// One that is slow to wake, a thread with its own executor, comes to its turns all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_on_a_thread_of_its_own_has_its_turns_too() {
    let (sender, mut receiver) = channel(BOUND);
    let mut producers = JoinSet::new();
    for _ in 0..3 {
        let sender = sender.clone();
        producers.spawn(async move { while sender.send(frame(BOUND)).await.is_ok() {} });
    }
    let mut writer = sender.into_writer();
    let thread = std::thread::spawn(move || {
        let writing = async {
            for _ in 0..200 {
                writer.write_all(&[b'w'; BOUND]).await.expect("open");
            }
        };
        crate::sync::block_on(writing);
    });
    let mut frames = 0_u64;
    let all = async {
        while !thread.is_finished() {
            let frame = std::future::poll_fn(|cx| receiver.poll_frame(cx)).await;
            frames += u64::from(frame.is_some());
        }
    };
    let in_time = timeout(Duration::from_secs(20), all).await;
    drop(receiver);
    thread.join().expect("no panic");
    assert!(in_time.is_ok(), "starved: {frames} frames of others");
}
