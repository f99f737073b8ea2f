//! The client leaves half way.

use http::Request;

use crate::{
    client::{Client, PROTOCOLS, Protocol, read_until},
    harness::{Relay, generate, read_tokens, tokens, used},
};

/// The upstream says five tokens and then nothing: only a cancel ends its request.
const FIVE: &str = "tokens=40&every_ms=1&fault=hang&at=5";

#[tokio::test]
async fn by_closing_its_connection() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let mut body = generate(&mut client, FIVE).await.into_body();
        read_tokens(&mut body, 5).await;
        assert_eq!(relay.upstream.live(), 1);
        drop(client);
        assert_eq!(
            relay.only_use().await,
            used(5, "Disconnected", 200, true),
            "{protocol:?}"
        );
        assert_eq!((relay.upstream.sent(), relay.upstream.abandoned()), (5, 1));
    }
}

#[tokio::test]
async fn by_resetting_its_connection() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = Client::connect_to_reset(relay.addr, protocol).await;
        let mut body = generate(&mut client, FIVE).await.into_body();
        read_tokens(&mut body, 5).await;
        drop(client);
        assert_eq!(
            relay.only_use().await,
            used(5, "Disconnected", 200, true),
            "{protocol:?}"
        );
        assert_eq!((relay.upstream.sent(), relay.upstream.abandoned()), (5, 1));
    }
}

/// The connection stays, so the relay cannot know that it was the client.
#[tokio::test]
async fn by_resetting_its_stream() {
    let relay = Relay::start().await;
    let mut client = relay.client(Protocol::Http2).await;
    let mut body = generate(&mut client, FIVE).await.into_body();
    read_tokens(&mut body, 5).await;
    drop(body);
    assert_eq!(relay.only_use().await, used(5, "Dropped", 200, true));
    assert_eq!(relay.upstream.abandoned(), 1);
    let mut body = generate(&mut client, "tokens=3&every_ms=1")
        .await
        .into_body();
    read_tokens(&mut body, 3).await;
}

#[tokio::test]
async fn while_the_upstream_has_not_answered() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        tokio::select! {
            _ = generate(&mut client, "fault=mute") => panic!("a mute upstream has answered"),
            () = relay.until(|relay| relay.upstream.live() == 1) => {}
        }
        drop(client);
        assert_eq!(
            relay.only_use().await,
            used(0, "Disconnected", None, true),
            "{protocol:?}"
        );
        assert_eq!(relay.upstream.abandoned(), 1);
    }
}

/// Tokens may be on their way then. Those that the relay has taken are recorded: at least what its
/// client has read, at most what the upstream has sent.
#[tokio::test]
async fn while_tokens_are_flowing() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let endless = "tokens=1000000&every_ms=1";
        let mut body = generate(&mut client, endless).await.into_body();
        let text = read_until(&mut body, |text| tokens(text) >= 20).await;
        drop(client);
        let (recorded, _, _, gone) = relay.only_use().await;
        assert!(gone);
        let (read, sent) = (tokens(&text) as i64, relay.upstream.sent() as i64);
        assert!(
            read <= recorded && recorded <= sent,
            "{read} {recorded} {sent}"
        );
        assert_eq!(relay.upstream.abandoned(), 1);
    }
}

#[tokio::test]
async fn and_has_it_finished() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let finish = "on_leave=finish&tokens=400&every_ms=5";
        let mut body = generate(&mut client, finish).await.into_body();
        read_tokens(&mut body, 3).await;
        drop(client);
        assert_eq!(
            relay.only_use().await,
            used(400, "Complete", 200, true),
            "{protocol:?}"
        );
        assert_eq!(
            (relay.upstream.sent(), relay.upstream.abandoned()),
            (400, 0)
        );
    }
}

#[tokio::test]
async fn before_the_first_token_and_has_it_finished() {
    let relay = Relay::start().await;
    let mut client = relay.client(Protocol::Http1).await;
    let request = Request::post("/v1/generate?on_leave=finish&tokens=2&every_ms=1000");
    tokio::select! {
        // Gone with the head, or before it: the tokens come later in any case.
        _ = client.send(request, "to be") => {}
        () = relay.until(|relay| relay.upstream.live() == 1) => {}
    }
    drop(client);
    let (tokens, outcome, _, gone) = relay.only_use().await;
    assert_eq!((tokens, outcome.as_str(), gone), (2, "Complete", true));
}

#[tokio::test]
async fn and_what_is_to_be_finished_fails() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let fails = "on_leave=finish&tokens=400&every_ms=5&fault=fail&at=200";
        let mut body = generate(&mut client, fails).await.into_body();
        read_tokens(&mut body, 3).await;
        drop(client);
        assert_eq!(
            relay.only_use().await,
            used(200, "Failed", 200, true),
            "{protocol:?}"
        );
    }
}
