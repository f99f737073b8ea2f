//! One case for each row of what is known of hyper's endings, over real sockets.
//!
//! A row that hyper alone does not notice asserts just that: noticing is the peer watch's work
//! (`net::WatchedListener`; see the tests of disconnects).

mod support;

use std::{
    future::{IntoFuture, pending},
    io::Write,
    sync::{Arc, Mutex},
};

use axum::body::Body;
use bodyguard::{
    Outcome,
    testing::{Probe, Script},
};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use support::{Http2, Server, eventually, http1, http2, read_until, reset_on_drop, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tower::{Layer, ServiceExt};

// ---- HTTP/1: the client leaves ----

#[derive(Clone, Copy, Debug)]
enum Sends {
    Get,
    PipelinedGet,
    StrayCrlf,
    /// All of it in one segment with the head.
    SmallPost,
    /// More than the socket buffers take.
    LargePost,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Handler {
    Pending,
    /// One frame, and then nothing.
    BodyIdle,
    DropsRequestBody,
    HoldsRequestBody,
}

#[derive(Clone, Copy, Debug)]
enum Leaves {
    Fin,
    ShutdownWrite,
    Rst,
}

struct Leaving {
    sends: Sends,
    handler: Handler,
    half_close: bool,
    leaves: &'static [Leaves],
    /// hyper alone drops the handler or body; else it takes the peer watch.
    noticed: bool,
}

#[rustfmt::skip]
const LEAVING: &[Leaving] = {
    use {Handler::*, Leaves::*, Sends::*};
    const fn row(sends: Sends, handler: Handler, leaves: &'static [Leaves], noticed: bool) -> Leaving {
        Leaving { sends, handler, half_close: false, leaves, noticed }
    }
    &[
        row(Get, Pending, &[Fin, ShutdownWrite, Rst], true),
        row(Get, BodyIdle, &[Fin, ShutdownWrite, Rst], true),
        row(SmallPost, DropsRequestBody, &[Fin], true),
        // A held `Incoming` that was not read to its end: hyper has the body whole, and watches on.
        row(SmallPost, HoldsRequestBody, &[Fin], true),
        Leaving { sends: Get, handler: Pending, half_close: true, leaves: &[Fin, ShutdownWrite, Rst], noticed: false },
        row(PipelinedGet, Pending, &[Fin, Rst], false),
        row(PipelinedGet, BodyIdle, &[Fin, Rst], false),
        row(StrayCrlf, Pending, &[Fin, Rst], false),
        row(StrayCrlf, BodyIdle, &[Fin, Rst], false),
        row(LargePost, DropsRequestBody, &[Fin, Rst], false),
        row(LargePost, HoldsRequestBody, &[Fin], false),
    ]
};

#[tokio::test]
async fn http_1_clients_that_leave() {
    for case in LEAVING {
        for leaves in case.leaves {
            let name = format!("{:?} {:?} {leaves:?}", case.sends, case.handler);
            println!("{name} (half_close {})", case.half_close);
            leaving(case, *leaves).await;
        }
    }
}

async fn leaving(case: &Leaving, leaves: Leaves) {
    let does = case.handler;
    let mut server = Server::start(
        case.half_close,
        move |request: Request<Incoming>| async move {
            match does {
                Handler::BodyIdle => {
                    return Response::new(Body::new(Script::new().data("first").hang()));
                }
                Handler::DropsRequestBody => drop(request),
                Handler::Pending | Handler::HoldsRequestBody => {
                    let _held = request;
                    return pending().await;
                }
            }
            pending().await
        },
    )
    .await;
    let mut client = server.listening.connect().await;
    send(&mut client, case.sends).await;
    server.handler_runs().await;
    if does == Handler::BodyIdle {
        read_until(&mut client, "first").await;
    }
    let _half_open = leave(client, leaves);
    if case.noticed {
        let report = server.ended().await;
        assert_eq!(report.outcome(), Outcome::Dropped);
        assert!(!report.ending.succeeded());
    } else {
        server.assert_unnoticed().await;
        server.end_by_drain().await;
    }
}

async fn send(client: &mut TcpStream, sends: Sends) {
    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let text = match sends {
        Sends::Get => GET.to_owned(),
        Sends::PipelinedGet => format!("{GET}{GET}"),
        Sends::StrayCrlf => format!("{GET}\r\n"),
        Sends::SmallPost => {
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello".to_owned()
        }
        Sends::LargePost => {
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n".to_owned()
        }
    };
    client.write_all(text.as_bytes()).await.unwrap();
    if let Sends::LargePost = sends {
        // Until nothing more goes out for a while: the server reads none of it.
        let chunk = vec![b'x'; 64 * 1024];
        let write = |client: &mut TcpStream| client.try_write(&chunk).is_ok();
        let mut idle = 0;
        while idle < 10 {
            idle = if write(client) { 0 } else { idle + 1 };
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

fn leave(client: TcpStream, how: Leaves) -> Option<std::net::TcpStream> {
    match how {
        Leaves::Fin => drop(client),
        Leaves::Rst => {
            reset_on_drop(&client);
            drop(client);
        }
        Leaves::ShutdownWrite => {
            let client = client.into_std().unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            return Some(client);
        }
    }
    None
}

/// The read fails, the handler goes on: its own answer is the outcome.
#[tokio::test]
async fn end_of_file_while_the_handler_reads_the_body() {
    let mut server = Server::start(false, |request: Request<Incoming>| async {
        let read = request.into_body().collect().await;
        let status = if read.is_err() { 400 } else { 200 };
        Response::builder()
            .status(status)
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let mut client = server.listening.connect().await;
    let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\nhalf";
    client.write_all(head.as_bytes()).await.unwrap();
    server.handler_runs().await;
    drop(client);
    let report = server.ended().await;
    assert_eq!(report.outcome(), Outcome::Complete);
    assert_eq!(report.status().unwrap().as_u16(), 400);
    assert!(!report.ending.succeeded());
}

/// A body without end that counts what it was asked for.
fn endless() -> (Body, Probe) {
    let frame = vec![b'x'; 16 * 1024];
    // 64 MB: more than every buffer between here and the client.
    let script = (0..4096).fold(Script::new(), |script, _| script.data(frame.clone()));
    let probe = script.probe();
    (Body::new(script.hang()), probe)
}

/// Answers each request with the next of these bodies.
fn answers(body: Body) -> impl Fn(Request<Incoming>) -> std::future::Ready<Response<Body>> + Clone {
    let body = Arc::new(Mutex::new(Some(body)));
    move |_| {
        let body = body.lock().unwrap().take().unwrap_or_default();
        std::future::ready(Response::new(body))
    }
}

/// Waits until the body is not polled any more.
async fn stops_being_polled(probe: &Probe) -> usize {
    let mut before = usize::MAX;
    eventually(|| std::mem::replace(&mut before, probe.polls()) == probe.polls() && before > 0)
        .await;
    probe.polls()
}

#[tokio::test]
async fn a_client_that_reads_nothing() {
    // Connection open: the body is just not polled any more.
    let (body, probe) = endless();
    let mut server = Server::start(false, answers(body)).await;
    let mut client = server.listening.connect().await;
    send(&mut client, Sends::Get).await;
    server.handler_runs().await;
    stops_being_polled(&probe).await;
    server.assert_unnoticed().await;
    assert!(probe.polls() < 4096);
    // Then it closes: dropped at the write error.
    drop(client);
    assert_eq!(server.ended().await.outcome(), Outcome::Dropped);
    assert!(probe.is_dropped());
}

/// `None` is not "delivered": it was polled while the client had read nothing.
#[tokio::test]
async fn complete_means_handed_to_the_server() {
    let script = (0..20).fold(Script::new(), |script, _| script.data(vec![b'x'; 15_000]));
    let mut server = Server::start(false, answers(Body::new(script))).await;
    let mut client = server.listening.connect().await;
    send(&mut client, Sends::Get).await;
    let report = server.ended().await;
    assert_eq!(report.outcome(), Outcome::Complete);
    assert_eq!(report.bytes, 300_000);
}

// ---- Bodies that are not polled to `None`, on both protocols ----

struct Reading {
    row: &'static str,
    method: &'static str,
    status: u16,
    length: Option<&'static str>,
    body: fn() -> Script,
    outcome: Outcome,
    /// Polls of the handler's body, on HTTP/1.1 and HTTP/2.
    polls: [usize; 2],
    data: &'static str,
    whole: bool,
}

fn trailers() -> HeaderMap {
    [("checksum".parse().unwrap(), "7".parse().unwrap())]
        .into_iter()
        .collect()
}

fn exact(length: u64) -> SizeHint {
    SizeHint::with_exact(length)
}

#[rustfmt::skip]
fn reading() -> Vec<Reading> {
    use Outcome::*;
    let ok = |row, body, polls, data| Reading {
        row, method: "GET", status: 200, length: None, body, outcome: Complete, polls, data, whole: true,
    };
    let body: fn() -> Script = || Script::new().data("ab").data("c");
    vec![
        ok("end hint at the head", || Script::new().end_hint(), [0, 0], ""),
        Reading { method: "HEAD", ..ok("HEAD", body, [0, 0], "") },
        Reading { status: 204, ..ok("204", body, [0, 0], "") },
        Reading { status: 304, ..ok("304", body, [0, 0], "") },
        // HTTP/2 is asked: trailers may follow.
        ok("exact hint of 0", || Script::new().hint(exact(0)), [0, 1], ""),
        Reading { length: Some("3"), ..ok("Content-Length", body, [2, 3], "abc") },
        ok("exact hint", || Script::new().data("ab").data("c").exact_hint(), [2, 3], "abc"),
        ok("unknown length", body, [3, 3], "abc"),
        ok("end hint behind a frame", || Script::new().data("ab").data("c").end_hint(), [2, 2], "abc"),
        ok("trailers", || Script::new().data("ab").trailers(trailers()), [2, 2], "ab"),
        Reading {
            length: Some("2"), outcome: Failed, whole: false,
            ..ok("longer than promised", || Script::new().pending().data("ab").pending().data("c"), [2, 4], "")
        },
        Reading {
            length: Some("2"), outcome: Failed, whole: false,
            ..ok("longer than promised in one frame", || Script::new().pending().data("abc"), [2, 2], "")
        },
        Reading {
            length: Some("9"), outcome: Truncated, whole: false,
            ..ok("shorter than promised", || Script::new().data("ab").pending().data("c"), [4, 4], "abc")
        },
        Reading {
            outcome: Truncated, whole: false,
            ..ok("shorter than its hint", || Script::new().data("ab").data("c").hint(exact(9)), [3, 3], "abc")
        },
        Reading { outcome: Panicked, whole: false, ..ok("panic", || Script::new().data("ab").pending().panic("scripted"), [3, 3], "ab") },
        Reading { outcome: Failed, whole: false, ..ok("error", || Script::new().data("ab").error("disk"), [2, 2], "ab") },
    ]
}

#[tokio::test]
async fn bodies_to_their_ends() {
    for case in reading() {
        for (http_2, polls) in [(false, case.polls[0]), (true, case.polls[1])] {
            let name = format!(
                "{} over HTTP/{}",
                case.row,
                if http_2 { "2" } else { "1.1" }
            );
            println!("{name}");
            let script = (case.body)();
            let probe = script.probe();
            let mut response = Response::builder().status(case.status);
            if let Some(length) = case.length {
                response = response.header("content-length", length);
            }
            let response = Mutex::new(Some(response.body(Body::new(script)).unwrap()));
            let response = Arc::new(response);
            let mut server = Server::start(false, move |_| {
                std::future::ready(response.lock().unwrap().take().unwrap())
            })
            .await;
            let addr = server.listening.addr;
            let seen = if http_2 {
                http2(addr, case.method).await
            } else {
                http1(addr, "1.1", case.method).await
            };
            let report = server.ended().await;
            let overlong_on_1 = case.row == "longer than promised" && !http_2;
            if overlong_on_1 {
                // hyper would stop at the promised length, and so do we: the rest is never seen.
                assert_eq!(
                    (report.outcome(), seen.whole),
                    (Outcome::Complete, true),
                    "{name}"
                );
            } else {
                assert_eq!(report.outcome(), case.outcome, "{name}");
                assert_eq!(seen.whole, case.whole, "{name}: {seen:?}");
                assert_eq!(seen.data, case.data, "{name}");
            }
            assert_eq!(seen.status, case.status, "{name}");
            assert_eq!(probe.polls(), polls, "{name}: polls");
            assert!(
                probe.is_dropped() && !probe.was_polled_after_end(),
                "{name}"
            );
        }
    }
}

/// Where nothing is registered and nobody hears of the end, the client sees the same bodies.
#[tokio::test]
async fn bodies_whose_end_concerns_nobody() {
    for case in reading() {
        for http_2 in [false, true] {
            let script = (case.body)();
            let probe = script.probe();
            let mut response = Response::builder().status(case.status);
            if let Some(length) = case.length {
                response = response.header("content-length", length);
            }
            let response = Mutex::new(Some(response.body(script).unwrap()));
            let response = Arc::new(response);
            let app = bodyguard::CleanupLayer::new().layer(tower::service_fn(move |_| {
                let response = response.lock().unwrap().take().unwrap();
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            }));
            let listening = support::Listening::start(app, false).await;
            let seen = if http_2 {
                http2(listening.addr, case.method).await
            } else {
                http1(listening.addr, "1.1", case.method).await
            };
            let name = format!("{}, HTTP/2 {http_2}: {seen:?}", case.row);
            let longer = case.row == "longer than promised";
            // hyper stops at the promised length over HTTP/1.
            assert_eq!(seen.whole, case.whole || (longer && !http_2), "{name}");
            // Up to there nothing is held back.
            let data = if longer { "ab" } else { case.data };
            assert_eq!(seen.data, data, "{name}");
            assert_eq!(seen.status, case.status, "{name}");
            eventually(|| probe.is_dropped()).await;
            assert!(!probe.was_polled_after_end(), "{name}");
        }
    }
}

/// A token outlives the view it came from: whoever holds it is still to hear of the end.
#[tokio::test]
async fn an_end_that_only_a_token_hears_of() {
    for whole in [false, true] {
        let token = Arc::new(Mutex::new(None));
        let out = token.clone();
        let handler = tower::service_fn(move |request: Request<()>| {
            let disconnect = bodyguard::Disconnect::of(&request).unwrap();
            *out.lock().unwrap() = Some(disconnect.token());
            let script = Script::new().data("first").data("second");
            std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(script)))
        });
        let service = bodyguard::DisconnectLayer::new().layer(handler);
        let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
        let token = token.lock().unwrap().take().unwrap();
        body.frame().await.unwrap().unwrap();
        assert!(!token.is_cancelled());
        if whole {
            body.frame().await.unwrap().unwrap();
            assert!(body.frame().await.is_none());
        }
        drop(body);
        assert_eq!(token.is_cancelled(), !whole, "whole: {whole}");
    }
}

/// The handler cancels, lets its view go and answers all the same.
#[tokio::test]
async fn an_end_that_began_before_the_head() {
    for status in [200, 204] {
        let handler = tower::service_fn(move |request: Request<()>| async move {
            bodyguard::Disconnect::of(&request).unwrap().cancel();
            let script = Script::new().data("first").data("second");
            let response = Response::builder().status(status).body(script);
            Ok::<_, std::convert::Infallible>(response.unwrap())
        });
        let service = bodyguard::DisconnectLayer::new().layer(handler);
        let response = service.oneshot(Request::new(())).await.unwrap();
        if status == 204 {
            assert_eq!(response.status(), 500);
        } else {
            assert!(response.into_body().collect().await.is_err());
        }
    }
}

/// A response kept by a cache brings the scope of its first request along.
#[tokio::test]
async fn a_kept_response_ends_for_those_who_wait_for_it() {
    let kept = Arc::new(Mutex::new(None));
    let handler = tower::service_fn(move |_: Request<()>| {
        let mut kept = kept.lock().unwrap();
        let body = bodyguard::cleanup::CleanupBody::new(Script::new().data("first"));
        let mut response = body.into_http();
        *response.extensions_mut() = kept
            .get_or_insert_with(|| response.extensions().clone())
            .clone();
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
    });
    let service = bodyguard::CleanupLayer::new().layer(handler);
    for _ in 0..3 {
        let response = service.clone().oneshot(Request::new(())).await.unwrap();
        let _ = support::within(bodyguard::close(response)).await;
    }
}

/// Nor does its body outlive a client that only a watched connection knows to have gone.
#[cfg(feature = "net")]
#[tokio::test]
async fn a_client_that_leaves_a_body_whose_end_concerns_nobody() {
    use bodyguard::net::{Peer, WatchedListener};
    let script = Script::new().data("first").hang();
    let probe = script.probe();
    let body = Arc::new(Mutex::new(Some(script)));
    let app: axum::Router = axum::Router::new()
        .route(
            "/",
            axum::routing::get(move || {
                let body = body.lock().unwrap().take().unwrap();
                std::future::ready(Body::new(body))
            }),
        )
        .layer(bodyguard::CleanupLayer::new());
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = axum::serve::Listener::local_addr(&listener).unwrap();
    let service = app.into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service);
    let client = async {
        let mut client = TcpStream::connect(addr).await.unwrap();
        // hyper does not read behind a second request that waits.
        send(&mut client, Sends::PipelinedGet).await;
        read_until(&mut client, "first").await;
        assert!(!probe.is_dropped());
        drop(client);
        eventually(|| probe.is_dropped()).await;
    };
    tokio::select! {
        _ = server.into_future() => panic!("served no longer"),
        () = client => {}
    }
}

/// HEAD keeps the length that GET would have: axum reads it off the size hint.
#[tokio::test]
async fn head_keeps_the_length() {
    let app = axum::Router::new()
        .route("/", axum::routing::get(|| async { "hello" }))
        .layer(bodyguard::CleanupLayer::new());
    let listening = support::Listening::start(app, false).await;
    let seen = http1(listening.addr, "1.1", "HEAD").await;
    assert!(seen.head.contains("content-length: 5"), "{seen:?}");
}

/// hyper reads it off the hint of a body that has not ended, as ours has by then.
#[tokio::test]
async fn head_keeps_the_length_without_axum() {
    let hello = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Body::from("hello")))
    });
    let app = axum::Router::new().fallback_service(bodyguard::CleanupLayer::new().layer(hello));
    for http_2 in [false, true] {
        let listening = support::Listening::start(app.clone(), http_2).await;
        let (seen, wanted) = match http_2 {
            false => (
                http1(listening.addr, "1.1", "HEAD").await,
                "content-length: 5",
            ),
            true => (
                http2(listening.addr, "HEAD").await,
                "\"content-length\": \"5\"",
            ),
        };
        assert!(seen.head.contains(wanted), "{seen:?}");
    }
}

/// A head that says `chunked` is sent in chunks whatever the body's size hint: what stands behind the last byte
/// still counts.
#[tokio::test]
async fn chunks_of_a_known_size() {
    let mut sums = HeaderMap::new();
    sums.insert("x-sum", "abc".parse().unwrap());
    for end in ["x-sum: abc", "", "0\r\n\r\n"] {
        let sums = sums.clone();
        let script = move || {
            let hello = Script::new().data("hello ".repeat(20)).exact_hint();
            let hello = hello.pending();
            match end {
                "" => hello.error("checksum"),
                "x-sum: abc" => hello.trailers(sums.clone()),
                _ => hello,
            }
        };
        for (layered, used, coding) in [
            (false, false, "identity"),
            (true, false, "identity"),
            (true, true, "identity"),
            (true, false, "gzip"),
            (true, true, "gzip"),
        ] {
            let script = script.clone();
            let handler = tower::service_fn(move |request: Request<Incoming>| {
                if used {
                    bodyguard::Cleanup::of(&request).unwrap().defer_sync(|_| ());
                }
                let response = Response::builder()
                    .header("transfer-encoding", "chunked")
                    .header("trailer", "x-sum")
                    .body(script());
                std::future::ready(Ok::<_, std::convert::Infallible>(response.unwrap()))
            });
            let listening = match layered {
                true => {
                    let layer = bodyguard::CompressionLayer::new()
                        .min_size(1)
                        .random_padding(0);
                    let layer = bodyguard::Stack::new().compression(layer);
                    support::Listening::start(layer.layer(handler), false).await
                }
                false => support::Listening::start(handler, false).await,
            };
            let mut client = within(TcpStream::connect(listening.addr)).await.unwrap();
            let request = "GET / HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close";
            let request = format!("{request}\r\naccept-encoding: {coding}\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let _ = within(client.read_to_end(&mut all)).await;
            let all = String::from_utf8_lossy(&all);
            let row = format!("layered {layered}, used {used}, {coding}, {end:?}: {all:?}");
            let encoded = all.contains("content-encoding: gzip");
            assert_eq!(encoded, coding == "gzip", "{row}");
            assert_eq!(all.contains("\r\n0\r\n"), !end.is_empty(), "{row}");
            assert!(all.trim_end().ends_with(end.trim_end()), "{row}");
        }
    }
}

/// Without a length only the end of the connection tells: a failure looks whole there, unless the
/// server resets the connection, which takes `net`.
#[tokio::test]
async fn http_1_0() {
    for (script, outcome) in [
        (
            Script::new().data("ab").pending().data("c"),
            Outcome::Complete,
        ),
        (Script::new().data("abc").error("disk"), Outcome::Failed),
    ] {
        let mut server = Server::start(false, answers(Body::new(script))).await;
        let seen = http1(server.listening.addr, "1.0", "GET").await;
        assert_eq!((seen.data.as_str(), seen.whole), ("abc", true));
        assert_eq!(server.ended().await.outcome(), outcome);
    }
}

/// A failing spawned producer behind a plain channel is a clean end; a task group's is not.
#[tokio::test]
async fn a_spawned_producer_that_fails() {
    for http_2 in [false, true] {
        let mut server = Server::start(false, |_| async {
            let (tx, rx) = mpsc::channel::<Result<Frame<bytes::Bytes>, std::io::Error>>(1);
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(async move {
                let _ = tx.send(Ok(Frame::data("half".into()))).await;
                panic!("scripted");
            });
            tasks.detach_all();
            let frames = tokio_stream::wrappers::ReceiverStream::new(rx);
            Response::new(Body::new(http_body_util::StreamBody::new(frames)))
        })
        .await;
        let addr = server.listening.addr;
        let seen = if http_2 {
            http2(addr, "GET").await
        } else {
            http1(addr, "1.1", "GET").await
        };
        assert_eq!((seen.data.as_str(), seen.whole), ("half", true));
        assert_eq!(server.ended().await.outcome(), Outcome::Complete);

        let mut server = Server::start(false, |_| async {
            let body = bodyguard::TaskGroupBody::new(|group, tx| async move {
                tx.send("half").await?;
                group.spawn(async { panic!("scripted") })?;
                Ok(())
            });
            body.into_http().map(Body::new)
        })
        .await;
        let addr = server.listening.addr;
        let seen = if http_2 {
            http2(addr, "GET").await
        } else {
            http1(addr, "1.1", "GET").await
        };
        assert!(!seen.whole, "{seen:?}");
        assert_ne!(server.ended().await.outcome(), Outcome::Complete);
    }
}

// ---- HTTP/2: the client leaves ----

#[tokio::test]
async fn http_2_reset_of_a_stream_and_loss_of_the_connection() {
    for lost in [false, true] {
        for idle_body in [false, true] {
            let mut server = Server::start(false, move |_| async move {
                if idle_body {
                    return Response::new(Body::new(Script::new().data("first").hang()));
                }
                pending().await
            })
            .await;
            let mut client = Http2::connect(server.listening.addr).await;
            let (response, mut stream) = client.request("GET");
            server.handler_runs().await;
            let mut response = Some(response);
            let mut body = None;
            if idle_body {
                let mut received = within(response.take().unwrap()).await.unwrap().into_body();
                within(received.data()).await.unwrap().unwrap();
                body = Some(received);
            }
            if lost {
                client.connection.shutdown().await;
            } else {
                stream.send_reset(h2::Reason::CANCEL);
            }
            assert_eq!(server.ended().await.outcome(), Outcome::Dropped);
            drop((response, body));
        }
    }
}

#[tokio::test]
async fn http_2_goaway_drops_nothing() {
    let mut server = Server::start(
        false,
        answers(Body::new(Script::new().data("first").hang())),
    )
    .await;
    let tcp = server.listening.connect().await.into_std().unwrap();
    let beside = tcp.try_clone().unwrap();
    let mut client = Http2::over(TcpStream::from_std(tcp).unwrap()).await;
    let (response, _stream) = client.request("GET");
    let mut body = within(response).await.unwrap().into_body();
    within(body.data()).await.unwrap().unwrap();
    // A GOAWAY frame by hand: last stream 0, no error.
    let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(beside.try_clone().unwrap().write(&goaway).unwrap(), 17);
    server.assert_unnoticed().await;
    server.end_by_drain().await;
}

#[tokio::test]
async fn http_2_zero_window() {
    let (body, probe) = endless();
    let mut server = Server::start(false, answers(body)).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = Http2::connect_with(server.listening.addr, &mut builder).await;
    let (response, mut stream) = client.request("GET");
    let response = within(response).await.unwrap();
    // One chunk is polled ahead and kept.
    assert_eq!(stops_being_polled(&probe).await, 1);
    server.assert_unnoticed().await;
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(server.ended().await.outcome(), Outcome::Dropped);
    drop(response);
}
