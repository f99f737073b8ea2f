//! The relay is shut down in the middle.

use crate::{
    client::{PROTOCOLS, Protocol, read_all, read_until},
    harness::{Relay, generate, read_tokens, tokens, used},
};

const FIVE: &str = "tokens=40&every_ms=1&fault=hang&at=5";

#[tokio::test]
async fn its_clients_are_told_and_what_was_used_is_recorded() {
    for protocol in PROTOCOLS {
        let mut relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let mut body = generate(&mut client, FIVE).await.into_body();
        read_tokens(&mut body, 5).await;
        let (report, read) = tokio::join!(relay.stop(), read_all(&mut body));
        assert!(
            read.text.trim_start().starts_with("event: error\n"),
            "{}",
            read.text
        );
        read.end.expect("ended by a last event");
        assert!(report.is_clean() && report.ended == 1, "{report}");
        assert_eq!(
            relay.only_use().await,
            used(5, "Shutdown", 200, false),
            "{protocol:?}"
        );
        assert_eq!(relay.upstream.abandoned(), 1);
    }
}

#[tokio::test]
async fn its_clients_can_read_what_they_are_told_behind_half_an_event() {
    let mut relay = Relay::start().await;
    let mut client = relay.client(Protocol::Http1).await;
    let cut = "tokens=40&every_ms=1&fault=cut&at=5";
    let mut body = generate(&mut client, cut).await.into_body();
    let text = read_until(&mut body, |text| text.ends_with("data: {\"tok")).await;
    assert_eq!(tokens(&text), 5);
    let (_, read) = tokio::join!(relay.stop(), read_all(&mut body));
    read.end.expect("ended by a last event");
    // A blank line ends an event, and a line that is not blank belongs to the one before.
    let text = text + &read.text;
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: error\n"), "{last}");
    assert_eq!(relay.only_use().await, used(5, "Shutdown", 200, false));
}

#[tokio::test]
async fn so_is_what_runs_on_without_its_client() {
    for protocol in PROTOCOLS {
        let mut relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let detached = format!("on_leave=finish&{FIVE}");
        let mut body = generate(&mut client, &detached).await.into_body();
        read_tokens(&mut body, 5).await;
        drop((client, body));
        let report = relay.stop().await;
        assert!(report.is_clean(), "{report}");
        let (tokens, outcome, status, _) = relay.only_use().await;
        assert_eq!(
            (tokens, outcome.as_str(), status),
            (5, "Shutdown", Some(200))
        );
        assert_eq!(relay.upstream.abandoned(), 1);
    }
}
