//! Compressed events can be read before the next one exists.

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use bodyguard::{Stack, TaskGroup};
use tokio::sync::mpsc;

use crate::{
    client::{Client, Gunzip, PROTOCOLS, serve, within},
    server::Newsroom,
};

/// The scope counts what the handler's body has given, before compression. If that is what the
/// client has unpacked, nothing produced waits in the compressor, and nothing pushed it out.
#[tokio::test]
async fn what_stream_has_produced_is_decodable_while_nothing_more_has_been() {
    for protocol in PROTOCOLS {
        let newsroom = Newsroom::start().await;
        let mut client = newsroom.client(protocol).await;
        let mut stream = Gunzip::new(client.get_gzip("/stream").await);
        let mut caught_up = 0;
        // A slow machine may see the next event before it has asked: then the moment is not counted.
        within(async {
            while caught_up < 5 {
                assert!(stream.more().await, "{protocol:?}: a feed has no end");
                let state = newsroom.state().await;
                let produced = state.live("/stream")[0]["bytes"].as_u64();
                if stream.text().ends_with("\n\n") && produced == Some(stream.text().len() as u64) {
                    caught_up += 1;
                }
            }
        })
        .await;
        assert!(stream.text().contains("event: news\ndata: {"));
        assert!(stream.text().contains("event: weather\ndata: {"));
    }
}

/// The producer goes on only when the client says, out of band, that it has read the last event.
#[tokio::test]
async fn every_event_is_decodable_before_the_next_one_is_produced() {
    for protocol in PROTOCOLS {
        let (read, acks) = mpsc::channel(1);
        let acks = std::sync::Arc::new(tokio::sync::Mutex::new(acks));
        let events = async move |group: TaskGroup| -> Response {
            let body = group.body(|tx| async move {
                for event in 0..50 {
                    tx.send(format!("data: {event}\n\n")).await?;
                    let () = acks
                        .lock()
                        .await
                        .recv()
                        .await
                        .ok_or("the client has left")?;
                }
                Ok(())
            });
            ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
        };
        let app = Router::new().route("/", get(events)).layer(Stack::new());
        let (addr, _server) = serve(app).await;

        let mut client = Client::connect(addr, protocol).await;
        let mut stream = Gunzip::new(client.get_gzip("/").await);
        let mut expected = String::new();
        for event in 0..50 {
            expected.push_str(&format!("data: {event}\n\n"));
            while stream.text() != expected {
                assert!(stream.more().await, "{protocol:?}: ended at event {event}");
            }
            read.send(()).await.unwrap();
        }
        assert_eq!(stream.finish().await, expected);
    }
}
