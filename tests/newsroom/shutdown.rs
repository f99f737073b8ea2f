//! Ctrl-C: every stream is told, the process ends, and says what it left.

use http_body_util::BodyExt;

use crate::{
    client::{Gunzip, Protocol, read_all, read_until, within},
    server::Newsroom,
};

const BYE: &str = "event: bye\ndata: {}\n\n";

#[tokio::test]
async fn three_open_streams_get_a_last_event_and_a_clean_end() {
    let newsroom = Newsroom::start().await;
    let mut plain = newsroom.client(Protocol::Http1).await;
    let mut packed = newsroom.client(Protocol::Http1).await;
    let mut h2 = newsroom.client(Protocol::Http2).await;
    let mut plain = plain.get("/stream").await.into_body();
    let mut packed = Gunzip::new(packed.get_gzip("/stream").await);
    let mut h2 = h2.get("/stream").await.into_body();
    let event = |text: &str| text.ends_with("\n\n");
    read_until(&mut plain, event).await;
    read_until(&mut h2, event).await;
    while !event(packed.text()) {
        assert!(packed.more().await);
    }

    newsroom.interrupt().await;
    for stream in [&mut plain, &mut h2] {
        let read = read_all(stream).await;
        assert!(read.text.ends_with(BYE), "{}", read.text);
        assert_eq!(read.text.matches("event: bye").count(), 1);
        read.end.expect("a clean end");
    }
    let text = packed.finish().await;
    assert!(text.ends_with(BYE), "{text}");

    let ended = newsroom.ended().await;
    let report = "drained: 0 complete, 3 ended, 0 aborted, 0 closers unrun, 0 stuck\n";
    assert!(ended.stdout.ends_with(report), "{}", ended.stdout);
    assert_eq!(ended.code, Some(0));
}

#[tokio::test]
async fn a_producer_that_ignores_its_signal_is_named_and_left() {
    let newsroom = Newsroom::start().await;
    let mut client = newsroom.client(Protocol::Http1).await;
    let mut body = client.get("/stubborn").await.into_body();
    read_until(&mut body, |text| text.ends_with(".\n")).await;

    newsroom.interrupt().await;
    assert!(within(body.collect()).await.is_err(), "not a clean end");
    let ended = newsroom.ended().await;
    assert!(ended.stdout.contains(", 1 stuck\n"), "{}", ended.stdout);
    let named = ended.stdout.lines().last().unwrap();
    assert!(named.starts_with("  stuck: GET /stubborn: "), "{named}");
    assert!(named.contains("examples/newsroom/main.rs:"), "{named}");
    assert_eq!(ended.code, Some(0));
}
