//! The other ways in: threads, writers, sinks, the public body.

use futures_util::{SinkExt, StreamExt, stream};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::*;
use crate::task_group::FrameBody;

#[test]
fn a_thread_without_a_runtime_sends_and_waits() {
    let (sender, mut receiver) = channel(8);
    let thread = std::thread::spawn(move || {
        for at in 0..1000_u32 {
            sender.send_blocking(at.to_be_bytes().to_vec())?;
        }
        Ok::<_, Closed>(())
    });
    let mut arrived = Vec::new();
    crate::sync::block_on(async {
        while let Some(frame) = std::future::poll_fn(|cx| receiver.poll_frame(cx)).await {
            arrived.extend(frame.into_data().expect("data"));
        }
    });
    thread.join().expect("no panic").expect("not closed");
    let expected: Vec<u8> = (0..1000_u32).flat_map(u32::to_be_bytes).collect();
    assert_eq!(arrived, expected);
}

#[test]
fn a_blocked_thread_is_released_when_the_receiver_goes() {
    let (sender, receiver) = channel(8);
    fill(&sender, 8);
    let thread = std::thread::spawn(move || sender.send_blocking("waits"));
    while receiver.waiting() == 0 {
        std::thread::yield_now();
    }
    drop(receiver);
    assert!(thread.join().expect("no panic").is_err());
}

#[tokio::test]
async fn a_writer_is_bounded_and_keeps_every_byte() {
    let (sender, body) = FrameBody::channel(1000);
    let data: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
    let mut writer = sender.into_writer();
    let write = async {
        for piece in data.chunks(777) {
            writer.write_all(piece).await?;
        }
        writer.flush().await?;
        writer.shutdown().await
    };
    let (written, collected) = tokio::join!(write, body.collect());
    written.expect("open");
    assert_eq!(collected.expect("never fails").to_bytes(), data);
}

#[test]
fn a_writer_takes_what_fits_and_no_more() {
    let (sender, mut receiver) = channel(10);
    let other = sender.clone();
    let mut writer = sender.into_writer();
    let mut cx = Context::from_waker(Waker::noop());
    let mut write = |data: &[u8]| match pin!(&mut writer).poll_write(&mut cx, data) {
        Poll::Ready(written) => Some(written.expect("open")),
        Poll::Pending => None,
    };
    assert_eq!(write(&[b'a'; 7]), Some(7));
    assert_eq!(write(&[b'b'; 7]), Some(3));
    assert_eq!(write(&[b'c'; 7]), None);
    assert_eq!(take_data(&mut receiver), "aaaaaaabbb");
    // It comes back with less than it waited with: the rest of its room is free again.
    assert_eq!(write(b"d"), Some(1));
    other.try_send(frame(9)).expect("nothing is reserved");
    assert_eq!(write(b""), Some(0));
}

#[test]
fn a_dropped_writer_gives_its_room_back() {
    let (sender, mut receiver) = channel(10);
    let other = sender.clone();
    fill(&other, 10);
    let mut writer = sender.into_writer();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pin!(&mut writer).poll_write(&mut cx, b"waits").is_pending());
    take_data(&mut receiver);
    drop(writer);
    fill(&other, 10);
}

#[tokio::test]
async fn a_writer_gets_a_broken_pipe_after_the_client_left() {
    let (sender, body) = FrameBody::channel(10);
    let mut writer = sender.into_writer();
    writer.write_all(b"heard").await.expect("open");
    drop(body);
    for error in [
        writer.write_all(b"unheard").await.expect_err("closed"),
        writer.flush().await.expect_err("closed"),
    ] {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        assert!(error.into_inner().expect("cause").is::<Closed>());
    }
    writer.shutdown().await.expect("nothing to do");
    assert!(writer.write_all(b"late").await.is_err());
}

#[tokio::test]
async fn a_sink_forwards_a_stream_and_ends_it() {
    let (sender, body) = FrameBody::channel(16);
    let mut sink = sender.into_sink();
    let forward = async move {
        let mut source = stream::iter(0..100_u8).map(|at| Ok(Bytes::from(vec![at; 10])));
        sink.send_all(&mut source).await?;
        sink.close().await?;
        assert!(sink.send("late".into()).await.is_err());
        Ok::<_, Closed>(())
    };
    let (sent, collected) = tokio::join!(forward, body.collect());
    sent.expect("open");
    let expected: Vec<u8> = (0..100_u8).flat_map(|at| [at; 10]).collect();
    assert_eq!(collected.expect("never fails").to_bytes(), expected);
}

#[test]
fn a_dropped_sink_gives_its_place_back() {
    let (sender, mut receiver) = channel(10);
    let other = sender.clone();
    fill(&other, 10);
    let mut sink = sender.into_sink();
    sink.start_send_unpin("pending".into()).expect("open");
    assert!(
        sink.poll_flush_unpin(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    );
    take_data(&mut receiver);
    drop(sink);
    fill(&other, 10);
    assert_eq!(take_data(&mut receiver), "xxxxxxxxxx");
}

#[tokio::test]
async fn a_sink_fails_with_closed_after_the_client_left() {
    let (sender, body) = FrameBody::channel(16);
    let mut sink = sender.into_sink();
    drop(body);
    assert!(sink.send("unheard".into()).await.is_err());
}

#[tokio::test]
async fn a_producer_whose_client_keeps_up_still_yields() {
    let (sender, mut receiver) = channel(1024);
    let sending = async move {
        while sender.send("a").await.is_ok() {
            assert!(take(&mut receiver).is_ready());
        }
    };
    tokio::select! {
        biased;
        () = sending => unreachable!("it never ends"),
        () = tokio::task::yield_now() => {}
    }
}

#[test]
fn the_body_knows_its_end_and_its_size() {
    let (sender, mut body) = FrameBody::channel(100);
    sender.try_send("abc").expect("room");
    assert_eq!(body.size_hint().lower(), 3);
    assert_eq!(body.size_hint().upper(), None);
    assert!(!body.is_end_stream());
    drop(sender);
    assert_eq!(body.size_hint().exact(), Some(3));
    assert!(!body.is_end_stream());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pin!(&mut body).poll_frame(&mut cx).is_ready());
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
}
