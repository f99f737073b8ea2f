//! A waker is the user's code: one that panics is let down, and nobody else.

use super::*;

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a test's own");
    }
}

fn panics() -> Waker {
    Waker::from(Arc::new(Panics))
}

#[test]
fn a_sender_whose_waker_panics_strands_no_other() {
    let (sender, mut receiver) = channel(10);
    fill(&sender, 10);
    let (count, waker) = Count::new();
    let (mut first, mut second) = (sender.send("aaaaa"), sender.send("bbbbb"));
    assert!(poll_with(&mut first, &panics()).is_pending());
    assert!(poll_with(&mut second, &waker).is_pending());
    assert_eq!(take_data(&mut receiver).len(), 10);
    assert_eq!(count.wakes(), 1);
    assert_eq!(poll(&mut second), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
}

#[test]
fn what_is_sent_to_a_receiver_whose_waker_panics_was_sent() {
    let (sender, mut receiver) = channel(10);
    let waker = panics();
    let polled = receiver.poll_frame(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    sender.try_send("aaaaa").expect("room");
    assert_eq!(take_data(&mut receiver), "aaaaa");
}

#[test]
fn the_end_is_told_past_a_waker_that_panics() {
    let (sender, receiver) = channel(10);
    fill(&sender, 10);
    let (count, waker) = Count::new();
    let mut watchers = [panics(), panics(), waker].map(|waker| (Box::pin(sender.closed()), waker));
    for (watcher, waker) in &mut watchers {
        assert!(poll_with(watcher, waker).is_pending());
    }
    drop(receiver);
    assert_eq!(count.wakes(), 1);
}

/// Small frames are copied together in the poll of whoever sends the next.
#[test]
fn a_frame_whose_memory_panics_is_its_own_and_not_the_next_senders() {
    struct Memory;
    impl AsRef<[u8]> for Memory {
        fn as_ref(&self) -> &[u8] {
            b"aaa"
        }
    }
    impl Drop for Memory {
        fn drop(&mut self) {
            panic!("a test's own");
        }
    }
    let (sender, mut receiver) = channel(100);
    let frame = || Bytes::from_owner(Memory);
    // Two at once would abort.
    assert_eq!(poll(&mut sender.send(frame())), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut sender.send(frame())), Poll::Ready(Ok(())));
    assert_eq!(poll(&mut sender.send("b")), Poll::Ready(Ok(())));
    assert_eq!(take_data(&mut receiver), "aaaaaab");
}
