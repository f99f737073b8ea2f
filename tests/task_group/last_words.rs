//! `on_failure`: the last frame of a body that fails, then the error.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{extract::Request, response::IntoResponse};
use bodyguard::{
    BodyError, Cleanup, Outcome, TaskGroup, TaskGroupBody, close, net,
    scope::{Failure, FailureKind},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::support::{App, boom, drain, messages, within};

fn event(error: &BodyError) -> Option<Bytes> {
    Some(format!("event: error\ndata: {}\n\n", error.cause()).into())
}

#[tokio::test(start_paused = true)]
async fn a_failing_body_says_why_and_then_fails() {
    let app = App::new(|group: TaskGroup| async move {
        group
            .body(|tx| async move {
                tx.send("data: 1\n\n").await?;
                Err(boom("no more news"))
            })
            .on_failure(event)
    });
    let mut body = app.get().await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: 1\n\n");
    let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(last, "event: error\ndata: no more news\n\n");
    // The gap is behind the last frame.
    let start = Instant::now();
    body.frame().await.unwrap().unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(10));
    assert!(body.frame().await.is_none());
    assert_eq!(app.report().await.outcome(), Outcome::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_standalone_body_has_last_words_too() {
    let body = TaskGroupBody::new(|_, tx| async move {
        tx.send("1").await?;
        panic!("out of luck")
    })
    .on_failure(|error| {
        let failure = error.downcast_ref::<Failure>()?;
        let FailureKind::Panicked { message, .. } = failure.kind() else {
            return None;
        };
        Some(format!("|{message}").into())
    });
    let (text, error) = drain(body).await;
    assert_eq!(text, "1|out of luck");
    assert!(error.is_some());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_under_a_promised_length_nor_at_a_whole_end() {
    for (length, fails, expected) in [
        (None, false, "four"),
        (None, true, "four!"),
        (Some(10), true, "four"),
        (Some(4), true, ""),
        (Some(4), false, "four"),
    ] {
        let app = App::new(move |group: TaskGroup| async move {
            let body = group
                .body(move |tx| async move {
                    tx.send("four").await?;
                    if fails { Err(boom("late")) } else { Ok(()) }
                })
                .on_failure(|_| Some("!".into()));
            let mut response = body.into_response();
            if let Some(length) = length {
                let headers = response.headers_mut();
                headers.insert("content-length", length.into());
            }
            response
        });
        let (text, error) = drain(app.get().await.into_body()).await;
        assert_eq!(
            (text.as_str(), error.is_some()),
            (expected, fails),
            "{length:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn silence_and_a_panic_in_it_leave_the_error_as_it_is() {
    for words in [
        (|_| None) as fn(&BodyError) -> Option<Bytes>,
        |_| Some(Bytes::new()),
        |_| panic!("speechless"),
    ] {
        let body = TaskGroupBody::new(|_, tx| async move {
            tx.send("1").await?;
            Err(boom("lost"))
        })
        .on_failure(words);
        let (text, error) = drain(body).await;
        assert_eq!(
            (text.as_str(), error.unwrap().cause().to_string().as_str()),
            ("1", "lost")
        );
    }
}

/// The application's own words fail: the report tells, and so does the error.
#[tokio::test(start_paused = true)]
async fn a_panic_in_it_is_a_failure_of_the_report() {
    for held in [false, true] {
        let kept = Arc::new(Mutex::new(None));
        let keep = kept.clone();
        let app = App::new(move |group: TaskGroup| async move {
            *keep.lock().unwrap() = held.then(|| group.hold());
            let body = group.body(|tx| async move {
                tx.send("1").await?;
                Err(boom("lost"))
            });
            body.on_failure(|error| panic!("speechless: {}", error.causes().len()))
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        let error = error.expect("it looks whole");
        assert_eq!(text, "1");
        drop(kept.lock().unwrap().take());
        let report = app.report().await;
        assert_eq!(report.outcome(), Outcome::Failed);
        assert_eq!(
            messages(&report),
            ["lost", "on_failure panicked: speechless: 1"]
        );
        assert!(Arc::ptr_eq(&error.causes()[1], &report.errors[1]));
    }
}

/// It is asked once, of all that has failed, before the report is drawn up.
#[tokio::test(start_paused = true)]
async fn it_is_asked_once_and_behind_the_closers() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = asked.clone();
    let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
        cleanup.defer_after_end(|_| async { Ok(()) });
        cleanup.defer(|_| async { Err(boom("commit")) });
        let body = group.body(|tx| async move { Ok(tx.send("1").await?) });
        body.on_failure(move |error| {
            asking.lock().unwrap().push(error.cause().to_string());
            Some("|".into())
        })
    });
    let (text, error) = within(drain(app.get().await.into_body())).await;
    assert_eq!((text.as_str(), error.is_some()), ("1|", true));
    app.report().await;
    assert_eq!(*asked.lock().unwrap(), ["commit"]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_replaced_speaks_for_no_other() {
    let app = App::new(|group: TaskGroup| async move {
        drop(
            group
                .body(|_| pending())
                .on_failure(|_| Some("old!".into())),
        );
        group.body(|tx| async move {
            tx.send("new").await?;
            Err(boom("lost"))
        })
    });
    let (text, error) = drain(app.get().await.into_body()).await;
    assert_eq!((text.as_str(), error.is_some()), ("new", true));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_to_a_client_that_has_gone() {
    let app = App::new(|group: TaskGroup| async move {
        let body = group.body(|tx| async move {
            tx.send("1").await?;
            pending().await
        });
        body.on_failure(|_| panic!("asked for last words"))
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    let report = close(response).await.unwrap().unwrap();
    assert_eq!(report.outcome(), Outcome::Dropped);
}

#[tokio::test(start_paused = true)]
async fn what_it_captures_is_freed_with_the_scope() {
    let held = std::sync::Arc::new(());
    let watch = std::sync::Arc::downgrade(&held);
    let body = TaskGroupBody::new(|_, tx| async move { Ok(tx.send("1").await?) });
    // The group leads back to the scope that keeps the closure.
    let group = body.group().clone();
    let body = body.on_failure(move |_| {
        let _ = (&held, &group);
        None
    });
    assert_eq!(drain(body).await.0, "1");
    assert!(watch.upgrade().is_none());
}

#[tokio::test]
async fn it_arrives_over_sockets_through_gzip_too() {
    for gzip in [false, true] {
        let app = App::new(|_: Request| async move {
            TaskGroupBody::new(|_, tx| async move {
                tx.send("data: 1\n\n").await?;
                Err(boom("no more news"))
            })
            .on_failure(event)
        });
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = net::serve(listener, app.router.clone()).supervisor(&app.supervisor);
        let mut serving = JoinSet::new();
        serving.spawn(async move { drop(server.await) });
        let mut client = TcpStream::connect(addr).await.unwrap();
        let accept = if gzip {
            "accept-encoding: gzip\r\n"
        } else {
            ""
        };
        let head = format!("GET / HTTP/1.0\r\nhost: x\r\n{accept}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        let _ = within(client.read_to_end(&mut raw)).await;
        let head_end = raw
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .unwrap();
        let raw = &raw[head_end + 4..];
        let text = if gzip {
            let mut decoder = flate2::write::GzDecoder::new(Vec::new());
            std::io::Write::write_all(&mut decoder, raw).unwrap();
            std::io::Write::flush(&mut decoder).unwrap();
            assert!(decoder.try_finish().is_err(), "a whole gzip member");
            decoder.get_ref().clone()
        } else {
            raw.to_vec()
        };
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "data: 1\n\nevent: error\ndata: no more news\n\n");
    }
}
