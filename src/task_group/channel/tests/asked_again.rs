//! A receiver that is asked again before anything has come, and whose waker it keeps.

use std::sync::{Mutex, Weak, mpsc};

use super::*;

fn ask(receiver: &mut FrameReceiver, waker: &Waker) -> bool {
    receiver
        .poll_frame(&mut Context::from_waker(waker))
        .is_ready()
}

#[test]
fn who_asked_last_is_woken_and_only_that() {
    let (sender, mut receiver) = channel(10);
    let ((first, one), (second, other)) = (Count::new(), Count::new());
    for waker in [&one, &one, &other, &other, &one, &other] {
        assert!(!ask(&mut receiver, waker));
    }
    sender.try_send("a").expect("room");
    assert_eq!((first.wakes(), second.wakes()), (0, 1));
    assert_eq!(take_data(&mut receiver), "a");
    assert!(!ask(&mut receiver, &one));
    assert!(!ask(&mut receiver, &one));
    sender.try_send("b").expect("room");
    assert_eq!((first.wakes(), second.wakes()), (1, 1));
    assert!(ask(&mut receiver, &one));
}

#[test]
fn no_waker_is_kept_behind_what_it_waited_for() {
    let ends: [fn(FrameSender, &mut FrameReceiver); 3] = [
        |sender, _| drop(sender),
        |_sender, receiver| receiver.close(),
        |sender, _| sender.try_send("a").expect("room"),
    ];
    for end in ends {
        let (sender, mut receiver) = channel(10);
        let (count, waker) = Count::new();
        assert!(!ask(&mut receiver, &waker));
        assert!(!ask(&mut receiver, &waker));
        drop(waker);
        end(sender, &mut receiver);
        assert_eq!(Arc::strong_count(&count), 1);
    }
}

type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that nobody but its wakers owns.
struct Task {
    work: Mutex<Option<Work>>,
    queue: mpsc::SyncSender<Arc<Task>>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let queue = self.queue.clone();
        let _ = queue.send(self);
    }
}

#[test]
fn a_body_keeps_its_own_task_only_while_it_may_be_woken() {
    let (sender, mut receiver) = channel(10);
    let (queue, woken) = mpsc::sync_channel(1);
    let held = Arc::new(());
    let seen: Weak<()> = Arc::downgrade(&held);
    let work: Work = Box::pin(async move {
        let _held = held;
        std::future::poll_fn(|cx| receiver.poll_frame(cx)).await;
    });
    let work = Mutex::new(Some(work));
    let task = Arc::new(Task { work, queue });
    let waker = Waker::from(task.clone());
    let polled = poll_with(task.work.lock().unwrap().as_mut().unwrap(), &waker);
    assert!(polled.is_pending());
    drop((task, waker, woken));
    assert!(seen.upgrade().is_some());
    drop(sender);
    assert!(seen.upgrade().is_none());
}
