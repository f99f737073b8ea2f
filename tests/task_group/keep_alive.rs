//! `keep_alive`: what a body gives by itself while its producers are silent.

use std::{
    future::pending,
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::IntoResponse};
use bodyguard::{
    Cleanup, CompressionLayer, Outcome, Shutdown, Stack, Supervisor, TaskGroup, TaskGroupBody,
    TaskResult,
    task_group::{FrameSender, Sources, event},
};
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use crate::support::{App, boom, drain, within};

const EVERY: Duration = Duration::from_secs(15);
const BEAT: &str = ":\n\n";

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Sends after each of these seconds, then is silent for as long, then done.
async fn paced(tx: FrameSender, pace: &'static [u64], silent: u64) -> TaskResult {
    for wait in pace {
        sleep(secs(*wait)).await;
        tx.send("x").await?;
    }
    sleep(secs(silent)).await;
    Ok(())
}

async fn silent_for(time: u64) -> TaskResult {
    sleep(secs(time)).await;
    Ok(())
}

/// The frames, and the seconds at which they came.
async fn timed<B>(body: B) -> Vec<(u64, String)>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (start, mut frames) = (Instant::now(), Vec::new());
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        let data = frame.expect("whole").into_data().expect("data");
        let text = String::from_utf8(data.into()).unwrap();
        frames.push((start.elapsed().as_secs(), text));
    }
    frames
}

async fn next(body: &mut Body) -> Bytes {
    let frame = body.frame().await.expect("more").expect("whole");
    frame.into_data().expect("data")
}

fn at(times: &[(u64, &str)]) -> Vec<(u64, String)> {
    let own = |(at, text): &(u64, &str)| (*at, (*text).to_owned());
    times.iter().map(own).collect()
}

#[tokio::test(start_paused = true)]
async fn a_silent_body_gives_a_frame_counted_from_the_last_one() {
    let pace: &[u64] = &[0, 10, 40, 14, 14, 1];
    let expected = at(&[
        (0, "x"),
        (10, "x"),
        (25, BEAT),
        (40, BEAT),
        (50, "x"),
        (64, "x"),
        (78, "x"),
        (79, "x"),
        (94, BEAT),
    ]);
    let alone = TaskGroupBody::new(move |_, tx| paced(tx, pace, 16));
    assert_eq!(timed(alone.keep_alive(EVERY, BEAT)).await, expected);
    let app = App::new(move |group: TaskGroup| async move {
        let body = group.body(move |tx| paced(tx, pace, 16));
        body.keep_alive(EVERY, BEAT)
    });
    assert_eq!(timed(app.get().await.into_body()).await, expected);
    let report = app.report().await;
    assert_eq!(report.frames, expected.len() as u64);
    let bytes: usize = expected.iter().map(|(_, text)| text.len()).sum();
    assert_eq!(report.bytes, bytes as u64);
}

#[tokio::test(start_paused = true)]
async fn a_merged_body_counts_from_its_first_wait() {
    let silent = stream::once(async {
        sleep(secs(31)).await;
        Ok::<_, std::convert::Infallible>("x")
    });
    let body = TaskGroupBody::merge(Sources::new().source("news", silent));
    let expected = at(&[(15, BEAT), (30, BEAT), (31, "x")]);
    assert_eq!(timed(body.keep_alive(EVERY, BEAT)).await, expected);
}

#[tokio::test(start_paused = true)]
async fn no_time_between_or_nothing_to_give_is_none_and_for_ever_is_long() {
    for (every, frame) in [
        (Duration::ZERO, BEAT),
        (EVERY, ""),
        (Duration::MAX, BEAT),
        (secs(60 * 60 * 24 * 365 * 50), BEAT),
    ] {
        let body = TaskGroupBody::new(|_, tx| paced(tx, &[0, 100], 100));
        let expected = at(&[(0, "x"), (100, "x")]);
        assert_eq!(timed(body.keep_alive(every, frame)).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_asked_gives_one_when_it_is() {
    let body = TaskGroupBody::new(|_, tx| paced(tx, &[0], 200)).keep_alive(EVERY, BEAT);
    let mut body = Body::new(body);
    assert_eq!(next(&mut body).await, "x");
    for silent in [100, 3, 61] {
        sleep(secs(silent)).await;
        let start = Instant::now();
        assert_eq!(next(&mut body).await, BEAT);
        let wait = secs(15_u64.saturating_sub(silent));
        assert_eq!(start.elapsed(), wait, "{silent}");
    }
    // What a producer sent meanwhile goes first.
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let body = TaskGroupBody::new(|_, tx| async move {
        told.await?;
        tx.send("x").await?;
        pending().await
    });
    let mut body = Body::new(body.keep_alive(EVERY, BEAT));
    assert_eq!(next(&mut body).await, BEAT);
    tell.send(()).unwrap();
    sleep(secs(100)).await;
    assert_eq!(next(&mut body).await, "x");
    let start = Instant::now();
    assert_eq!(next(&mut body).await, BEAT);
    assert_eq!(start.elapsed(), EVERY);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_behind_the_last_frame_of_its_producers() {
    // In the teardown of a whole body, and of one that has failed.
    for fails in [false, true] {
        let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
            group.set_cancel_grace(secs(25));
            cleanup.defer(|_| silent_for(16));
            let tasks = group.clone();
            let body = group.body(move |tx| async move {
                tasks.spawn_graceful(|_| silent_for(10))?;
                tx.send("x").await?;
                if fails { Err(boom("disk")) } else { Ok(()) }
            });
            body.keep_alive(EVERY, BEAT)
                .on_failure(|error| Some(event("error", &format!("{error:#}")).into()))
        });
        let (text, error) = within(drain(app.get().await.into_body())).await;
        assert_eq!(error.is_some(), fails);
        let expected = match fails {
            true => "xevent: error\ndata: response body failed: disk\n\n",
            false => "x",
        };
        assert_eq!(text, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_behind_trailers() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        let body = group.body(move |tx| async move {
            tx.send("x").await?;
            tasks.spawn(silent_for(20))?;
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse()?);
            Ok(tx.send_trailers(trailers).await?)
        });
        body.keep_alive(EVERY, BEAT)
    });
    let whole = within(app.get().await.into_body().collect()).await.unwrap();
    assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
    assert_eq!(whole.to_bytes(), "x");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_behind_the_last_frame_of_a_shutdown() {
    const BYE: &str = "event: bye\ndata: {}\n\n";
    let supervisor = Supervisor::new();
    let goodbye = Shutdown::end_now().last_frame("text/event-stream", BYE);
    let handler = |group: TaskGroup, cleanup: Cleanup| async move {
        cleanup.defer(|_| silent_for(20));
        let body = group.body(|tx| async move {
            tx.send("x").await?;
            pending().await
        });
        let body = body.keep_alive(EVERY, BEAT);
        ([("content-type", "text/event-stream")], body).into_response()
    };
    let stack = Stack::new().supervisor(&supervisor).shutdown(goodbye);
    let app = Router::new().fallback(handler).layer(stack);
    let request = Request::new(Body::empty());
    let mut body = app.oneshot(request).await.unwrap().into_body();
    assert_eq!(next(&mut body).await, "x");
    assert_eq!(next(&mut body).await, BEAT);
    let drains = supervisor.clone();
    let (rest, _) = tokio::join!(timed(body), async move {
        sleep(secs(14)).await;
        drains.drain(secs(60)).await
    });
    let rest: String = rest.into_iter().map(|(_, text)| text).collect();
    assert_eq!(rest, BYE);
}

#[tokio::test(start_paused = true)]
async fn a_gzip_client_reads_each_at_once() {
    let handler = |group: TaskGroup| async move {
        let body = group.body(|tx| paced(tx, &[0, 50], 20));
        let body = body.keep_alive(EVERY, BEAT);
        ([("content-type", "text/event-stream")], body)
    };
    // In the stack, and around it.
    let inside = Stack::new().compression(CompressionLayer::new());
    let inside = Router::new().fallback(handler).layer(inside);
    let around = Router::new().fallback(handler).layer(Stack::new());
    let around = around.layer(CompressionLayer::new());
    for app in [inside, around] {
        let request = Request::get("/").header("accept-encoding", "gzip");
        let request = request.body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let (start, mut body) = (Instant::now(), response.into_body());
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        let mut seen = Vec::new();
        while let Some(frame) = body.frame().await {
            decoder
                .write_all(&frame.unwrap().into_data().unwrap())
                .unwrap();
            decoder.flush().unwrap();
            let plain = std::mem::take(decoder.get_mut());
            if !plain.is_empty() {
                let text = String::from_utf8(plain).unwrap();
                seen.push((start.elapsed().as_secs(), text));
            }
        }
        decoder.try_finish().expect("a whole member");
        let beats = [
            (0, "x"),
            (15, BEAT),
            (30, BEAT),
            (45, BEAT),
            (50, "x"),
            (65, BEAT),
        ];
        assert_eq!(seen, at(&beats));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_asking_has_still_stalled() {
    let outcome = Arc::new(Mutex::new(None));
    let seen = outcome.clone();
    let handler = |group: TaskGroup| async move {
        let body = group.body(|tx| async move {
            tx.send("x").await?;
            pending().await
        });
        body.keep_alive(EVERY, BEAT)
    };
    let stack = Stack::new().stall_timeout(secs(60));
    let stack = stack.on_end(move |report| *seen.lock().unwrap() = Some(report.outcome()));
    let app = Router::new().fallback(handler).layer(stack);
    let request = Request::new(Body::empty());
    let mut body = app.oneshot(request).await.unwrap().into_body();
    assert_eq!(next(&mut body).await, "x");
    // Far longer than the time-out: it is asked.
    for _ in 0..40 {
        assert_eq!(next(&mut body).await, BEAT);
    }
    sleep(secs(90)).await;
    assert_eq!(*outcome.lock().unwrap(), Some(Outcome::Stalled));
    drop(body);
}
