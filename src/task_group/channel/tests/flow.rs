//! Order, merging, the bound, ends.

use super::*;

#[test]
fn small_ready_frames_leave_as_one_and_large_ones_as_they_are() {
    let (sender, mut receiver) = channel(64 * 1024);
    let large = frame(8 * 1024);
    for part in ["a", "", "b", "c"] {
        sender.try_send(part).expect("room");
    }
    sender.try_send(large.clone()).expect("room");
    sender.try_send("d").expect("room");
    sender.try_send("e").expect("room");
    assert_eq!(take_data(&mut receiver), "abc");
    let passed = take_data(&mut receiver);
    assert_eq!(passed.as_ptr(), large.as_ptr(), "copied");
    assert_eq!(take_data(&mut receiver), "de");
    assert!(take(&mut receiver).is_pending());
}

#[test]
fn a_lone_small_frame_is_not_copied() {
    let (sender, mut receiver) = channel(1024);
    let lone = frame(10);
    sender.try_send(lone.clone()).expect("room");
    assert_eq!(take_data(&mut receiver).as_ptr(), lone.as_ptr());
}

#[test]
fn preserved_frames_leave_as_they_were_sent() {
    let (sender, mut receiver) = channel(1024);
    receiver.set_preserve_frames(true);
    for part in ["a", "b", "c"] {
        sender.try_send(part).expect("room");
    }
    for part in ["a", "b", "c"] {
        assert_eq!(take_data(&mut receiver), part);
    }
}

#[test]
fn empty_frames_are_dropped_even_without_room() {
    let (sender, mut receiver) = channel(4);
    fill(&sender, 4);
    assert_eq!(poll(&mut sender.send("")), Poll::Ready(Ok(())));
    sender.try_send("").expect("nothing to hold");
    assert_eq!(take_data(&mut receiver), "xxxx");
    assert!(take(&mut receiver).is_pending());
}

#[test]
fn nothing_runs_ahead_by_more_than_the_bound_or_one_frame() {
    let bound = 16 * 1024;
    for len in [
        1, 2, 63, 64, 1000, 2047, 2048, 4096, 5000, 16383, 16384, 16385, 100_000, 1_000_000,
    ] {
        let (sender, mut receiver) = channel(bound);
        let senders = [sender.clone(), sender];
        let piece = frame(len);
        let mut sends: Vec<_> = senders
            .iter()
            .map(|sender| sender.send(piece.clone()))
            .collect();
        let (mut accepted, mut taken) = (0, 0);
        for _ in 0..50 {
            // Every producer sends until it has to wait.
            let mut progress = true;
            while progress {
                progress = false;
                for (at, send) in sends.iter_mut().enumerate() {
                    if poll(send).is_ready() {
                        accepted += len;
                        progress = true;
                        *send = senders[at].send(piece.clone());
                    }
                }
                let ahead = accepted - taken;
                assert!(
                    ahead <= bound.max(len),
                    "{ahead} ahead with frames of {len}"
                );
            }
            assert!(
                accepted - taken > 0,
                "nothing accepted with frames of {len}"
            );
            taken += take_data(&mut receiver).len();
        }
        assert!(taken >= len);
    }
}

#[test]
fn an_oversized_frame_waits_until_it_is_alone_and_is_not_copied() {
    let (sender, mut receiver) = channel(8);
    let large = frame(100);
    sender.try_send("a").expect("room");
    let mut waits = sender.send(large.clone());
    assert!(poll(&mut waits).is_pending());
    assert_eq!(take_data(&mut receiver), "a");
    assert_eq!(poll(&mut waits), Poll::Ready(Ok(())));
    assert!(sender.try_send("b").expect_err("full").is_full());
    assert_eq!(take_data(&mut receiver).as_ptr(), large.as_ptr());
}

#[test]
fn a_bound_of_zero_still_passes_frames_one_by_one() {
    let (sender, mut receiver) = channel(0);
    sender.try_send("ab").expect("alone");
    assert!(sender.try_send("c").is_err());
    assert_eq!(take_data(&mut receiver), "ab");
    sender.try_send("c").expect("alone");
}

#[test]
fn senders_are_woken_at_half_empty_in_order_and_only_as_many_as_fit() {
    let (sender, mut receiver) = channel(16 * 1024);
    for _ in 0..4 {
        sender.try_send(frame(4096)).expect("room");
    }
    let (counts, wakers): (Vec<_>, Vec<_>) = (0..3).map(|_| Count::new()).unzip();
    let mut sends: Vec<_> = (0..3).map(|_| sender.send(frame(4096))).collect();
    for (send, waker) in sends.iter_mut().zip(&wakers) {
        assert!(poll_with(send, waker).is_pending());
    }
    let wakes = || counts.iter().map(|count| count.wakes()).collect::<Vec<_>>();
    take_data(&mut receiver);
    assert_eq!(wakes(), [0, 0, 0], "woken above half");
    take_data(&mut receiver);
    assert_eq!(wakes(), [1, 1, 0]);
    // A newcomer stays behind the one who still waits, whatever the room.
    assert!(
        sender
            .try_send("newcomer")
            .expect_err("behind the line")
            .is_full()
    );
    assert!(poll_with(&mut sends[2], &wakers[2]).is_pending());
    assert!(poll(&mut sends[1]).is_ready());
    assert!(poll(&mut sends[0]).is_ready());
    take_data(&mut receiver);
    take_data(&mut receiver);
    assert_eq!(wakes(), [1, 1, 1]);
}

#[test]
fn senders_that_never_stop_are_served_in_turn() {
    let (sender, mut receiver) = channel(1000);
    receiver.set_preserve_frames(true);
    let names = [b"a", b"b", b"c", b"d"].map(|name| Bytes::from(name.repeat(250)));
    // One of them fills the buffer, then everybody wants in, that one first.
    let mut sends: Vec<_> = names.iter().map(|name| sender.send(name.clone())).collect();
    for _ in 0..4 {
        sender.try_send(names[0].clone()).expect("room");
    }
    let mut counts = [0_usize; 4];
    for send in &mut sends {
        assert!(poll(send).is_pending());
    }
    for _ in 0..400 {
        let name = take_data(&mut receiver);
        let at = names.iter().position(|other| *other == name).expect("name");
        counts[at] += 1;
        // The greedy one is polled first, and as often as it likes.
        for at in 0..4 {
            while poll(&mut sends[at]).is_ready() {
                sends[at] = sender.send(names[at].clone());
            }
        }
    }
    let (least, most) = (counts.iter().min(), counts.iter().max());
    assert!(most.unwrap() - least.unwrap() <= 4, "{counts:?}");
}

#[test]
fn the_end_comes_behind_what_is_buffered() {
    let (sender, mut receiver) = channel(100);
    let (count, waker) = Count::new();
    let second = sender.clone();
    second.try_send("last").expect("room");
    drop(second);
    assert_eq!(take_data(&mut receiver), "last");
    assert!(
        receiver
            .poll_frame(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(sender);
    assert_eq!(count.wakes(), 1);
    assert!(is_end(&mut receiver));
}

#[test]
fn the_receiver_is_woken_once_for_many_frames() {
    let (sender, mut receiver) = channel(100);
    let (count, waker) = Count::new();
    assert!(
        receiver
            .poll_frame(&mut Context::from_waker(&waker))
            .is_pending()
    );
    for _ in 0..10 {
        sender.try_send("a").expect("room");
    }
    assert_eq!(count.wakes(), 1);
}

#[test]
fn dropping_the_receiver_releases_everybody_and_frees_the_buffer() {
    let (sender, receiver) = channel(4);
    let data = frame(4);
    sender.try_send(data.clone()).expect("room");
    assert!(!data.is_unique());
    let (count, waker) = Count::new();
    let mut send = sender.send("waits");
    assert!(poll_with(&mut send, &waker).is_pending());
    let mut closed = Box::pin(sender.closed());
    assert!(poll_with(&mut closed, &waker).is_pending());
    drop(receiver);
    assert_eq!(count.wakes(), 2);
    assert!(matches!(poll(&mut send), Poll::Ready(Err(Closed { .. }))));
    assert!(poll(&mut closed).is_ready());
    assert!(sender.is_closed() && data.is_unique());
    let back = sender.try_send("mine").expect_err("closed");
    assert!(back.is_closed());
    assert_eq!(back.into_bytes(), "mine");
    assert!(matches!(poll(&mut sender.send("")), Poll::Ready(Err(_))));
}

#[test]
fn closed_senders_leave_what_is_buffered_but_no_trailers() {
    let (sender, mut receiver) = channel(8);
    let handle = receiver.handle();
    fill(&sender, 8);
    assert!(!handle.is_closed());
    let mut send = sender.send("waits");
    assert!(poll(&mut send).is_pending());
    handle.close_senders();
    assert!(handle.is_closed() && sender.is_closed());
    assert!(matches!(poll(&mut send), Poll::Ready(Err(_))));
    assert_eq!(take_data(&mut receiver).len(), 8);
    assert!(is_end(&mut receiver));

    let (sender, mut receiver) = channel(8);
    assert!(poll(&mut Box::pin(sender.send_trailers(trailers()))).is_ready());
    receiver.handle().close_senders();
    assert!(is_end(&mut receiver), "a failed stream looked whole");
}

#[test]
fn closing_the_senders_wakes_the_receiver() {
    let (_sender, mut receiver) = channel(8);
    let (count, waker) = Count::new();
    assert!(
        receiver
            .poll_frame(&mut Context::from_waker(&waker))
            .is_pending()
    );
    receiver.handle().close_senders();
    assert_eq!(count.wakes(), 1);
    assert!(is_end(&mut receiver));
}

#[test]
fn trailers_end_the_stream_behind_those_who_waited() {
    let (sender, mut receiver) = channel(4);
    fill(&sender, 4);
    let mut before = sender.send("bbbb");
    let mut last = Box::pin(sender.send_trailers(trailers()));
    let mut behind = sender.send("cccc");
    assert!(poll(&mut before).is_pending());
    assert!(poll(&mut last).is_pending());
    assert!(poll(&mut behind).is_pending());
    assert_eq!(take_data(&mut receiver), "xxxx");
    assert!(poll(&mut last).is_pending(), "overtook a granted frame");
    assert_eq!(poll(&mut before), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut last), Poll::Ready(Ok(())));
    assert!(matches!(poll(&mut behind), Poll::Ready(Err(_))));
    assert!(sender.try_send("late").expect_err("ended").is_closed());
    assert_eq!(take_data(&mut receiver), "bbbb");
    match take(&mut receiver) {
        Poll::Ready(Some(frame)) => {
            assert_eq!(frame.into_trailers().expect("trailers"), trailers())
        }
        other => panic!("no trailers but {other:?}"),
    }
    assert!(is_end(&mut receiver));
}

#[test]
fn a_burst_leaves_no_memory_behind() {
    let (sender, mut receiver) = channel(1000);
    receiver.set_preserve_frames(true);
    for _ in 0..1000 {
        sender.try_send("a").expect("room");
    }
    let mut sends: Vec<_> = (0..100).map(|_| sender.send("b")).collect();
    for send in &mut sends {
        assert!(poll(send).is_pending());
    }
    assert!(receiver.slots() >= 1100);
    drop(sends);
    while take(&mut receiver).is_ready() {}
    assert!(receiver.slots() <= 8);
}
