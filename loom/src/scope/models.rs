//! Whoever drives a teardown, it comes to its end, and its owner hears of it. A lost wake-up shows as a deadlock, which
//! loom reports.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use loom::{
    future::block_on,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{driving::Driven, limit, teardown::Teardown, verdict::Verdict};
use crate::{models::model, runtime::Handle};

/// What a teardown waits for, or tells of.
#[derive(Default)]
struct Event(Mutex<(bool, Option<Waker>)>);

impl Event {
    fn fire(&self) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0 = true;
            state.1.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap();
        if state.0 {
            return Poll::Ready(());
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wait(&self) {
        block_on(poll_fn(|cx| self.poll(cx)));
    }
}

/// A teardown that waits for so many events, one by one, and tells of its end.
struct Case<const N: usize> {
    events: [Arc<Event>; N],
    ended: Arc<Event>,
    runtime: Handle,
}

impl<const N: usize> Case<N> {
    /// Timers go off, or do not; tasks are run, or polled once and dropped.
    fn new(turns_end: bool, lives: bool) -> Self {
        limit::set(turns_end);
        Self {
            events: [(); N].map(|()| Arc::default()),
            ended: Arc::default(),
            runtime: Handle {
                lives,
                polled: Arc::default(),
            },
        }
    }

    fn teardown(&self) -> Teardown {
        let (events, ended) = (self.events.clone(), self.ended.clone());
        let polled = self.runtime.polled.clone();
        Box::pin(async move {
            for event in &events {
                poll_fn(|cx| {
                    let poll = event.poll(cx);
                    polled.load(Ordering::Relaxed);
                    poll
                })
                .await;
            }
            ended.fire();
            Verdict
        })
    }

    fn driven(&self) -> Driven {
        Driven::new(self.teardown(), Some(self.runtime.clone()))
    }

    /// All that it waits for comes.
    fn fires(&self) -> thread::JoinHandle<()> {
        let events = self.events.clone();
        thread::spawn(move || events.iter().for_each(|event| event.fire()))
    }
}

/// The first poll of an owner, whose waker stays.
fn begin(driven: &mut Driven) -> Poll<Verdict> {
    block_on(poll_fn(|cx| Poll::Ready(driven.poll(cx))))
}

fn finish(driven: &mut Driven) -> Verdict {
    block_on(poll_fn(|cx| driven.poll(cx)))
}

/// Whether the task steps in, stands by, goes, or is not there: the owner that polls has the verdict.
#[test]
fn an_owner_that_is_polled_has_the_verdict() {
    for (turns_end, lives) in [(true, true), (true, false), (false, true)] {
        model(move || {
            let case = Case::<1>::new(turns_end, lives);
            let mut driven = case.driven();
            let firing = case.fires();
            assert_eq!(finish(&mut driven), Verdict);
            firing.join().unwrap();
        });
    }
    model(|| {
        let case = Case::<1>::new(true, true);
        let mut driven = Driven::new(case.teardown(), None);
        let firing = case.fires();
        assert_eq!(finish(&mut driven), Verdict);
        firing.join().unwrap();
    });
}

#[test]
fn a_teardown_that_waits_twice() {
    model(|| {
        let case = Case::<2>::new(true, true);
        let mut driven = case.driven();
        let firing = case.fires();
        assert_eq!(finish(&mut driven), Verdict);
        firing.join().unwrap();
    });
}

/// A server whose client does not read asks once, and no more: also at the very moment when there is more to do, and
/// the task comes in vain.
#[test]
fn an_owner_that_is_not_polled_again_holds_nothing_up() {
    model(|| {
        let case = Case::<1>::new(true, true);
        let mut driven = case.driven();
        let firing = case.fires();
        if begin(&mut driven).is_pending() {
            case.ended.wait();
            // Its verdict is kept.
            assert_eq!(finish(&mut driven), Verdict);
        }
        firing.join().unwrap();
    });
}

/// At any moment, whatever turn it is.
#[test]
fn an_owner_that_leaves_leaves_it_to_the_task() {
    for turns_end in [true, false] {
        model(move || {
            let case = Case::<1>::new(turns_end, true);
            let mut driven = case.driven();
            let firing = case.fires();
            let _ = begin(&mut driven);
            driven.leave();
            case.ended.wait();
            firing.join().unwrap();
        });
    }
}

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Its guard accounts for it.
#[test]
fn a_teardown_that_nobody_can_drive_is_dropped() {
    model(|| {
        let dropped = Arc::new(AtomicBool::new(false));
        let guard = Dropped(dropped.clone());
        let event = Arc::new(Event::default());
        let waits = event.clone();
        let teardown: Teardown = Box::pin(async move {
            let _guard = guard;
            poll_fn(|cx| waits.poll(cx)).await;
            Verdict
        });
        let mut driven = Driven::new(teardown, None);
        assert!(begin(&mut driven).is_pending());
        driven.leave();
        assert!(dropped.load(Ordering::Acquire));
        event.fire();
    });
}
