//! A send that is dropped was not sent, and nobody waits for it.

use super::*;

/// Drops one of three waiting sends at one of its stages, then checks that the others, and only
/// they, arrive in order.
fn drop_one(victim: usize, granted: bool) {
    let (sender, mut receiver) = channel(10);
    fill(&sender, 10);
    let mut sends: Vec<_> = ["aaaaa", "bbbbb", "ccccc"]
        .map(|text| Some(sender.send(text)))
        .into();
    let (counts, wakers): (Vec<_>, Vec<_>) = (0..3).map(|_| Count::new()).unzip();
    for (send, waker) in sends.iter_mut().zip(&wakers) {
        assert!(poll_with(send.as_mut().unwrap(), waker).is_pending());
    }
    if granted {
        // Room for two: the first two hold a grant, the third waits.
        assert_eq!(take_data(&mut receiver).len(), 10);
        assert_eq!([0, 1, 2].map(|at| counts[at].wakes()), [1, 1, 0]);
        drop(sends[victim].take());
    } else {
        drop(sends[victim].take());
        assert_eq!(take_data(&mut receiver).len(), 10);
    }
    let mut arrived: Vec<u8> = Vec::new();
    let mut expected: Vec<u8> = Vec::new();
    for at in (0..3).filter(|at| *at != victim) {
        let send = sends[at].as_mut().unwrap();
        assert!(counts[at].wakes() >= 1, "{at} was not woken");
        assert_eq!(poll(send), Poll::Ready(Ok(())), "{at} was let down");
        expected.extend([b"aaaaa", b"bbbbb", b"ccccc"][at]);
    }
    while let Poll::Ready(Some(frame)) = take(&mut receiver) {
        arrived.extend(frame.into_data().expect("data"));
    }
    assert_eq!(arrived, expected);
    sender.try_send("0123456789").expect("all room is back");
}

#[test]
fn a_waiting_send_that_is_dropped_was_not_sent() {
    for victim in 0..3 {
        drop_one(victim, false);
    }
}

#[test]
fn a_granted_send_that_is_dropped_was_not_sent_and_passes_its_room_on() {
    for victim in 0..2 {
        drop_one(victim, true);
    }
}

#[test]
fn a_send_never_polled_was_not_sent() {
    let (sender, mut receiver) = channel(10);
    drop(sender.send("never"));
    assert!(take(&mut receiver).is_pending());
}

#[test]
fn a_dropped_giant_at_the_front_lets_the_small_ones_in() {
    let (sender, _receiver) = channel(10);
    sender.try_send("aaaaa").expect("room");
    let mut giant = sender.send(frame(1000));
    assert!(poll(&mut giant).is_pending());
    let (count, waker) = Count::new();
    let mut small = sender.send("bbb");
    assert!(poll_with(&mut small, &waker).is_pending());
    drop(giant);
    assert_eq!(count.wakes(), 1);
    assert_eq!(poll(&mut small), Poll::Ready(Ok(())));
}

#[test]
fn granted_trailers_that_are_dropped_let_the_stream_go_on() {
    let (sender, mut receiver) = channel(4);
    fill(&sender, 4);
    let mut before = sender.send("bbbb");
    let mut last = Box::pin(sender.send_trailers(trailers()));
    let mut behind = sender.send("cccc");
    assert!(poll(&mut before).is_pending());
    assert!(poll(&mut last).is_pending());
    assert!(poll(&mut behind).is_pending());
    assert_eq!(take_data(&mut receiver), "xxxx");
    assert_eq!(poll(&mut before), Poll::Ready(Ok(())));
    drop(last);
    assert_eq!(take_data(&mut receiver), "bbbb");
    assert_eq!(poll(&mut behind), Poll::Ready(Ok(())));
    assert_eq!(take_data(&mut receiver), "cccc");
}

#[test]
fn a_dropped_closed_future_leaves_nothing_behind() {
    let (sender, receiver) = channel(4);
    let (count, waker) = Count::new();
    let mut closed = Box::pin(sender.closed());
    assert!(poll_with(&mut closed, &waker).is_pending());
    drop(closed);
    drop(receiver);
    assert_eq!(count.wakes(), 0);
}

#[test]
fn a_waiting_send_is_woken_through_its_latest_waker() {
    let (sender, mut receiver) = channel(4);
    fill(&sender, 4);
    let ((old, old_waker), (new, new_waker)) = (Count::new(), Count::new());
    let mut send = sender.send("late");
    assert!(poll_with(&mut send, &old_waker).is_pending());
    assert!(poll_with(&mut send, &new_waker).is_pending());
    take_data(&mut receiver);
    assert_eq!((old.wakes(), new.wakes()), (0, 1));
}

/// A frame and a waker whose drop comes back to the channel: both must be dropped unlocked.
#[test]
fn user_code_that_runs_on_drop_may_use_the_channel() {
    struct Comeback(FrameSender);
    impl AsRef<[u8]> for Comeback {
        fn as_ref(&self) -> &[u8] {
            b"data"
        }
    }
    impl Drop for Comeback {
        fn drop(&mut self) {
            let _ = self.0.try_send("from drop");
        }
    }
    impl Wake for Comeback {
        fn wake(self: Arc<Self>) {}
    }
    let (sender, mut receiver) = channel(100);
    for _ in 0..3 {
        let owned = Bytes::from_owner(Comeback(sender.clone()));
        sender.try_send(owned).expect("room");
    }
    while take(&mut receiver).is_ready() {}
    // The channel holds the last reference to every waker but the latest.
    let waker = || Waker::from(Arc::new(Comeback(sender.clone())));
    let mut closed = Box::pin(sender.closed());
    for _ in 0..3 {
        while take(&mut receiver).is_ready() {}
        let _ = receiver.poll_frame(&mut Context::from_waker(&waker()));
        assert!(poll_with(&mut closed, &waker()).is_pending());
        let _ = sender.try_send("something is buffered");
        let mut send = sender.send(frame(1000));
        assert!(poll_with(&mut send, &waker()).is_pending());
        assert!(poll_with(&mut send, &waker()).is_pending());
    }
    drop(closed);
    let owned = Bytes::from_owner(Comeback(sender.clone()));
    sender.try_send(owned).expect("room");
    drop(receiver);
    assert!(sender.is_closed());
}
