//! The upstream goes wrong: the client is told, and what was used is recorded.

use http_body_util::BodyExt;

use crate::{
    client::{PROTOCOLS, read_all, within},
    harness::{Relay, generate, tokens, used},
};

/// What the upstream has sent arrives; then the transfer breaks, over either protocol.
#[tokio::test]
async fn half_way() {
    for protocol in PROTOCOLS {
        for fault in ["fail", "panic", "close"] {
            let relay = Relay::start().await;
            let mut client = relay.client(protocol).await;
            let query = format!("tokens=40&every_ms=5&fault={fault}&at=7");
            let response = generate(&mut client, &query).await;
            assert_eq!(response.status(), 200);
            let read = read_all(&mut response.into_body()).await;
            assert_eq!(tokens(&read.text), 7, "{protocol:?}, {fault}");
            assert!(!read.text.contains("[DONE]"));
            read.end.expect_err("not a clean end");
            assert_eq!(
                relay.only_use().await,
                used(7, "Failed", 200, false),
                "{protocol:?}, {fault}"
            );
            assert_eq!(relay.upstream.sent(), 7);
        }
    }
}

#[tokio::test]
async fn before_the_first_token() {
    for protocol in PROTOCOLS {
        for fault in ["fail", "panic", "close"] {
            let relay = Relay::start().await;
            let mut client = relay.client(protocol).await;
            let query = format!("every_ms=5&fault={fault}&at=0");
            let response = generate(&mut client, &query).await;
            let read = read_all(&mut response.into_body()).await;
            read.end.expect_err("not a clean end");
            assert_eq!(relay.only_use().await, used(0, "Failed", 200, false));
        }
    }
}

#[tokio::test]
async fn by_refusing() {
    for protocol in PROTOCOLS {
        let relay = Relay::start().await;
        let mut client = relay.client(protocol).await;
        let response = generate(&mut client, "fault=busy").await;
        assert_eq!(response.status(), 502);
        let text = within(response.into_body().collect()).await.unwrap();
        assert!(text.to_bytes().starts_with(b"the upstream says 503"));
        assert_eq!(relay.only_use().await, used(0, "Complete", 502, false));
    }
}
