use std::{
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    task::{Wake, Waker},
    thread,
    time::Duration,
};

use super::{
    super::{negotiation::Coding, options::Options},
    *,
};

const SIZE: usize = 2 << 10;

/// A runtime whose only blocking thread is taken.
struct Crowded {
    // Dropped first: it lets the thread go, which the runtime waits for.
    _taken: mpsc::Sender<()>,
    runtime: tokio::runtime::Runtime,
}

/// A station on which nobody works but the test, and the runtime that it asks for threads.
fn offload(home: Home) -> (Crowded, Offload) {
    offload_with(home, false)
}

fn offload_with(home: Home, flush_each: bool) -> (Crowded, Offload) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.max_blocking_threads(1).build().unwrap();
    let (_taken, waits) = mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || waits.recv()));
    let runtime = Crowded { _taken, runtime };
    let core = Arc::new(Core::new(Options::default()));
    let encoder = Encoder::for_stream(&core, Coding::Gzip);
    let offload = Offload::start(
        &core,
        runtime.runtime.handle().clone(),
        encoder,
        flush_each,
        home,
    );
    offload.station.state().engaged = Some(Engaged::new(&core));
    (runtime, offload)
}

fn home(offload: &mut Offload) -> Vec<u8> {
    match offload.harvest(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Harvest::Home { left, .. })) => left.concat(),
        Poll::Ready(_) => panic!("a frame or an error"),
        Poll::Pending => panic!("pending"),
    }
}

#[test]
fn what_no_worker_has_taken_comes_back_in_its_order() {
    let (_runtime, mut offload) = offload(Home::AsItIs);
    for text in ["one ", "two ", "three"] {
        offload.put(Bytes::from_static(text.as_bytes()));
    }
    offload.end(true);
    offload.station.refuse(false);
    assert_eq!(home(&mut offload), b"one two three");
}

/// Does what was sent, and takes the frame that a flush makes of it.
fn flushed(offload: &mut Offload) -> Bytes {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match offload.harvest(&mut cx) {
            Poll::Pending => {
                offload.station.run();
            }
            Poll::Ready(Ok(Harvest::Frame(frame))) => break frame,
            Poll::Ready(_) => panic!("home, with text inside"),
        }
    }
}

fn is_flushed(frame: &[u8]) -> bool {
    frame.ends_with(&[0, 0, 0xff, 0xff])
}

#[test]
fn an_encoder_whose_flush_is_slow_is_flushed_before_it_comes_home() {
    let (_runtime, mut offload) = offload(Home::Flushed);
    offload.put(Bytes::from_static(b"text"));
    assert!(!offload.station.run(), "all is done");
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), b"");
}

#[test]
fn an_encoder_that_is_flushed_at_the_end_only_stays_away_until_then() {
    let (_runtime, mut offload) = offload(Home::AtEnd);
    offload.put(Bytes::from_static(b"text"));
    assert!(!offload.station.run(), "all is done");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(offload.harvest(&mut cx).is_pending());
    assert!(!offload.is_busy(), "nothing is flushed");
    offload.end(false);
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), b"");
}

/// All frames that are left, to where nothing more is.
fn frames(offload: &mut Offload) -> Vec<u8> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut frames = Vec::new();
    loop {
        match offload.harvest(&mut cx) {
            Poll::Pending => drop(offload.station.run()),
            Poll::Ready(Ok(Harvest::Frame(frame))) => frames.extend_from_slice(&frame),
            Poll::Ready(Ok(Harvest::Last(frame))) => {
                frames.extend_from_slice(&frame);
                break frames;
            }
            Poll::Ready(_) => panic!("home, or an error"),
        }
    }
}

#[test]
fn a_busy_worker_writes_the_end_too_and_gives_the_compressor_back_first() {
    let (_runtime, mut offload) = offload(Home::AsItIs);
    offload.put(Bytes::from_static(b"text"));
    offload.end(true);
    offload.end(true);
    assert_eq!(offload.core.pool.lent(), 0, "not begun");
    assert!(!offload.station.run(), "all is done");
    assert_eq!(
        (offload.core.pool.resident(), offload.core.pool.lent()),
        (1, 0)
    );
    let member = frames(&mut offload);
    let mut text = String::new();
    let mut decoder = flate2::read::MultiGzDecoder::new(&member[..]);
    std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
    assert_eq!(text, "text");
    assert!(!is_flushed(&member[..member.len() - 8]));
}

#[test]
fn an_end_that_is_no_work_does_not_wait_for_a_worker() {
    let (_runtime, mut offload) = offload(Home::AsItIs);
    offload.put(Bytes::from_static(b"text"));
    assert!(!offload.station.run(), "all is done");
    offload.end(true);
    assert!(!offload.is_busy());
    assert_eq!(home(&mut offload), b"");
}

#[test]
fn a_slow_end_is_a_workers_without_a_flush_before_it() {
    for at in [Home::Flushed, Home::AtEnd] {
        let (_runtime, mut offload) = offload(at);
        offload.put(Bytes::from_static(b"text"));
        assert!(!offload.station.run(), "all is done");
        offload.end(true);
        assert!(offload.is_busy());
        let member = frames(&mut offload);
        assert!(!is_flushed(&member[..member.len() - 8]));
    }
}

#[test]
fn a_body_is_woken_for_room_while_it_may_put_more_in_and_not_behind_its_end() {
    for (ends, wakes) in [(false, true), (true, false)] {
        let (_runtime, mut offload) = offload(Home::AsItIs);
        offload.put(Bytes::from(vec![b'x'; 2 * BLOCK]));
        if ends {
            offload.end(true);
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(
            offload
                .harvest(&mut Context::from_waker(&waker))
                .is_pending()
        );
        assert!(offload.station.run(), "more to do");
        assert_eq!(woken.0.load(Relaxed), wakes);
        while offload.station.run() {}
        assert!(woken.0.load(Relaxed), "the end is told");
    }
}

#[test]
fn flushed_frames_are_told_before_the_end() {
    let (_runtime, mut offload) = offload_with(Home::AsItIs, true);
    for _ in 0..4 {
        offload.put(Bytes::from(vec![b'x'; BLOCK / 2]));
    }
    offload.end(true);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    assert!(offload.harvest(&mut cx).is_pending());
    assert!(offload.station.run(), "more to do");
    assert!(woken.0.load(Relaxed));
}

#[test]
fn a_turn_and_a_queue_are_bounded_in_frames_too() {
    let (_runtime, mut offload) = offload_with(Home::AsItIs, true);
    let mut put = 0;
    while offload.has_room() {
        offload.put(Bytes::from_static(b"x"));
        put += 1;
    }
    assert!(put <= BOUND / EACH, "{put}");
    assert!(offload.station.run(), "more to do");
    assert!(offload.station.state().output.len() <= BLOCK / EACH + 1);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// A user's own memory, whose drop lasts.
struct Slow {
    text: Vec<u8>,
    drops: mpsc::Sender<()>,
    dropped: mpsc::Receiver<()>,
}

impl AsRef<[u8]> for Slow {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.drops.send(()).unwrap();
        let _ = self.dropped.recv();
    }
}

#[test]
fn a_body_does_not_wait_for_the_drop_of_what_was_encoded() {
    const DEADLINE: Duration = Duration::from_secs(20);
    let (_runtime, mut offload) = offload(Home::AsItIs);
    let (drops, is_dropped) = mpsc::channel();
    let (end_drop, dropped) = mpsc::channel();
    offload.put(Bytes::from_owner(Slow {
        text: vec![b'x'; SIZE],
        drops,
        dropped,
    }));
    let station = Arc::clone(&offload.station);
    let works = thread::spawn(move || station.run());
    is_dropped.recv_timeout(DEADLINE).expect("a drop");
    let (told, looks) = mpsc::channel();
    let looking = thread::spawn(move || {
        told.send(offload.has_room()).unwrap();
        offload
    });
    let looked = looks.recv_timeout(DEADLINE);
    end_drop.send(()).unwrap();
    assert!(looked.expect("the lock is held"));
    works.join().unwrap();
    looking.join().unwrap();
}

#[test]
fn a_drop_that_panics_costs_only_itself() {
    struct Panics;
    impl AsRef<[u8]> for Panics {
        fn as_ref(&self) -> &[u8] {
            &[b'x'; SIZE]
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a user's own memory");
        }
    }
    let (_runtime, mut offload) = offload(Home::Flushed);
    offload.put(Bytes::from_owner(Panics));
    assert!(!offload.station.run(), "all is done");
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), b"");
}

#[test]
fn a_stream_that_goes_leaves_nothing_in_the_queue() {
    let (_runtime, mut offload) = offload_with(Home::AsItIs, true);
    for _ in 0..3 {
        offload.put(Bytes::from(vec![b'x'; BLOCK]));
    }
    assert!(offload.station.run(), "more to do");
    let queued = Arc::clone(&offload.station);
    assert!(!queued.state().output.is_empty());
    drop(offload);
    let state = queued.state();
    assert!(state.output.is_empty() && state.input.is_empty() && state.encoder.is_none());
}
