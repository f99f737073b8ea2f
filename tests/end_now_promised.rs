//! `Shutdown::end_now` under a promised length: the body breaks, without a last frame, so that no
//! client takes what it has for the whole.

use std::{convert::Infallible, io::Write, net::SocketAddr, time::Duration};

use axum::body::Body;
use bodyguard::{CompressionLayer, Shutdown, Stack, Supervisor, testing::Script};
use bytes::Bytes;
use flate2::write::GzDecoder;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinSet};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

mod support;

use support::{Listening, within};

type Boxed = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

const BYE: &str = "data: bye\n\n";

#[derive(Clone, Copy, Debug)]
struct Case {
    http2: bool,
    gzip: bool,
    movable: bool,
    promised: usize,
}

/// Answers with half of what it promises, and then with nothing for ever.
fn app(case: Case, supervisor: &Supervisor) -> Boxed {
    let handler = service_fn(move |_: Request<Incoming>| async move {
        let half = "a line\n".repeat(case.promised / 14);
        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .header("content-length", case.promised)
            .body(Script::new().data(half).hang());
        Ok::<_, Infallible>(response.unwrap())
    });
    let stack = Stack::new()
        .compression(CompressionLayer::new())
        .supervisor(supervisor)
        .shutdown(Shutdown::end_now().last_frame("text/event-stream", BYE));
    if case.movable {
        let layered = stack
            .stall_timeout(Duration::from_secs(3600))
            .layer(handler);
        return Boxed::new(layered.map_response(|response| response.map(Body::new)));
    }
    Boxed::new(
        stack
            .layer(handler)
            .map_response(|response| response.map(Body::new)),
    )
}

async fn get(addr: SocketAddr, case: Case, driver: &mut JoinSet<()>) -> Response<Incoming> {
    let tcp = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let mut request = Request::get(format!("http://{addr}/")).header("host", "x");
    if case.gzip {
        request = request.header("accept-encoding", "gzip");
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    if case.http2 {
        let shake = http2::handshake(TokioExecutor::new(), tcp).await;
        let (mut sender, connection) = shake.unwrap();
        driver.spawn(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(tcp).await.unwrap();
        driver.spawn(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    }
}

async fn run(case: Case) {
    let supervisor = Supervisor::new();
    let mut server = Listening::start(app(case, &supervisor), false).await;
    let mut driver = JoinSet::new();
    let response = within(get(server.addr, case, &mut driver)).await;
    let encoded = response.headers().contains_key("content-encoding");
    assert_eq!(encoded, case.gzip, "{case:?}");
    assert_eq!(
        response.headers().contains_key("content-length"),
        !case.gzip,
        "{case:?}"
    );
    let (mut body, mut wire) = (response.into_body(), Vec::new());
    let half = case.promised / 14 * 7;
    // All that there is has come; then the shutdown.
    while text(&wire, case).0.len() < half {
        let frame = within(body.frame())
            .await
            .expect("not the end")
            .expect("no error");
        wire.extend_from_slice(&frame.into_data().unwrap());
    }
    let drain = supervisor.drain(Duration::from_secs(20));
    let rest = async {
        loop {
            match body.frame().await {
                None => return false,
                Some(Err(_)) => return true,
                Some(Ok(frame)) => wire.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    };
    let (report, broken) = within(async { tokio::join!(drain, rest) }).await;
    assert!(broken, "{case:?}: a clean end");
    assert_eq!(
        (report.ended, report.stuck.len()),
        (1, 0),
        "{case:?}: {report}"
    );
    let (text, whole) = text(&wire, case);
    assert_eq!(text, "a line\n".repeat(half / 7), "{case:?}: more, or less");
    assert!(!whole, "{case:?}: a gzip end");
    server.stop().await;
}

/// What the wire decodes to, and whether a gzip member is at its end.
fn text(wire: &[u8], case: Case) -> (String, bool) {
    if !case.gzip {
        return (String::from_utf8(wire.to_vec()).unwrap(), false);
    }
    let mut decoder = GzDecoder::new(Vec::new());
    decoder.write_all(wire).unwrap();
    decoder.flush().unwrap();
    let text = String::from_utf8(decoder.get_ref().clone()).unwrap();
    (text, !wire.is_empty() && decoder.try_finish().is_ok())
}

#[tokio::test]
async fn a_promised_length_breaks_and_gets_no_last_frame() {
    for http2 in [false, true] {
        for gzip in [false, true] {
            for movable in [false, true] {
                // Small enough to be compressed whole, had it all come at once; and a stream.
                for promised in [1_400, 140_000] {
                    run(Case {
                        http2,
                        gzip,
                        movable,
                        promised,
                    })
                    .await;
                }
            }
        }
    }
}
