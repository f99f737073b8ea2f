use std::task::Waker;

use super::{
    super::{negotiation::Coding, options::Options},
    *,
};

/// A station on which nobody works but the test, and a runtime that it would ask for threads.
fn offload(home: Home) -> (tokio::runtime::Runtime, Offload) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let core = Arc::new(Core::new(Options::default()));
    let encoder = Encoder::for_stream(&core, Coding::Gzip);
    let offload = Offload::start(&core, runtime.handle().clone(), encoder, false, home);
    offload.station.state().scheduled = true;
    (runtime, offload)
}

fn home(offload: &mut Offload) -> Bytes {
    match offload.harvest(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Harvest::Home { left, .. })) => left,
        Poll::Ready(_) => panic!("a frame or an error"),
        Poll::Pending => panic!("pending"),
    }
}

#[test]
fn a_worker_that_ends_behind_the_look_that_found_it_busy_takes_nothing_with_it() {
    let (_runtime, mut offload) = offload(Home::AsItIs);
    offload.put(Bytes::from_static(b"small"));
    assert!(offload.is_busy());
    assert!(!offload.station.run(), "nothing was sent");
    assert_eq!(home(&mut offload), "small");
}

#[test]
fn what_was_sent_comes_back_before_what_was_not() {
    let (_runtime, mut offload) = offload(Home::AsItIs);
    for text in ["one ", "two "] {
        offload.put(Bytes::from_static(text.as_bytes()));
        offload.put_gathered();
    }
    offload.put(Bytes::from_static(b"three"));
    offload.station.refuse(false);
    assert_eq!(home(&mut offload), "one two three");
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
    offload.put_gathered();
    assert!(!offload.station.run(), "all is done");
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), "");
}

#[test]
fn what_came_behind_the_look_is_flushed_with_the_rest() {
    let (_runtime, mut offload) = offload(Home::Flushed);
    offload.put(Bytes::from_static(b"text"));
    offload.put_gathered();
    offload.put(Bytes::from_static(b" and more"));
    assert!(!offload.station.run(), "all that was sent is done");
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), "");
}

#[test]
fn an_encoder_that_is_flushed_at_the_end_only_stays_away_until_then() {
    let (_runtime, mut offload) = offload(Home::AtEnd);
    offload.put(Bytes::from_static(b"text"));
    offload.put_gathered();
    assert!(!offload.station.run(), "all is done");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(offload.harvest(&mut cx).is_pending());
    assert!(!offload.is_busy(), "nothing is flushed");
    offload.end();
    assert!(is_flushed(&flushed(&mut offload)));
    assert_eq!(home(&mut offload), "");
}
