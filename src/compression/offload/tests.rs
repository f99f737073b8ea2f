use std::task::Waker;

use super::{
    super::{negotiation::Coding, options::Options},
    *,
};

/// A station on which nobody works but the test.
fn offload(runtime: &tokio::runtime::Runtime, settle: bool) -> Offload {
    let core = Arc::new(Core::new(Options::default()));
    let encoder = Encoder::for_stream(&core, Coding::Gzip);
    let offload = Offload::start(&core, runtime.handle().clone(), encoder, false, settle);
    offload.station.state().scheduled = true;
    offload
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut offload = offload(&runtime, false);
    offload.put(Bytes::from_static(b"small"));
    assert!(offload.is_busy());
    assert!(!offload.station.run(), "nothing was sent");
    assert_eq!(home(&mut offload), "small");
}

#[test]
fn what_was_sent_comes_back_before_what_was_not() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut offload = offload(&runtime, false);
    for text in ["one ", "two "] {
        offload.put(Bytes::from_static(text.as_bytes()));
        offload.put_gathered();
    }
    offload.put(Bytes::from_static(b"three"));
    offload.station.refuse(false);
    assert_eq!(home(&mut offload), "one two three");
}

#[test]
fn an_encoder_whose_flush_is_slow_is_flushed_before_it_comes_home() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut offload = offload(&runtime, true);
    offload.put(Bytes::from_static(b"text"));
    offload.put_gathered();
    assert!(!offload.station.run(), "all is done");
    let mut cx = Context::from_waker(Waker::noop());
    let frame = loop {
        match offload.harvest(&mut cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(Harvest::Frame(frame))) => break frame,
            Poll::Ready(_) => panic!("home, with text inside"),
        }
    };
    assert!(frame.ends_with(&[0, 0, 0xff, 0xff]), "not flushed");
    assert_eq!(home(&mut offload), "");
}
