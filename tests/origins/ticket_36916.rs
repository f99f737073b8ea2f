//! Ticket 36916: responses that stream from task groups; and the behaviours matched beside it.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, handler::Handler, response::IntoResponse};
use bodyguard::{
    BodyError, Cleanup, CleanupLayer, CompressionLayer, Disconnect, DisconnectLayer, EndReport,
    FrameSender, Outcome, Stack, Supervisor, TaskGroup, TaskGroupBody, TaskGroupLayer,
    cleanup::CleanupBody,
    close, net,
    scope::Failure,
    task_group::{FrameBody, Sources},
};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tower::ServiceExt;

use crate::support::in_time;

const DEADLINE: Duration = Duration::from_secs(20);

/// Counts futures that exist, by guards in them.
#[derive(Clone, Default)]
struct Live(Arc<AtomicUsize>);

struct Guard(Arc<AtomicUsize>);

impl Live {
    fn guard(&self) -> Guard {
        self.0.fetch_add(1, Ordering::SeqCst);
        Guard(self.0.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Reports = Arc<Mutex<Vec<EndReport>>>;

/// An app with one handler under the `TaskGroupLayer`.
struct App {
    router: Router,
    supervisor: Supervisor,
    reports: Reports,
}

impl App {
    fn new<H: Handler<T, ()>, T: 'static>(handler: H) -> Self {
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let seen = reports.clone();
        let stack = Stack::new()
            .supervisor(&supervisor)
            .on_end(move |report| seen.lock().unwrap().push(report.clone()));
        Self {
            router: Router::new().fallback(handler).layer(stack),
            supervisor,
            reports,
        }
    }

    async fn get(&self) -> Response<Body> {
        self.router
            .clone()
            .oneshot(Request::new(Body::empty()))
            .await
            .unwrap()
    }

    /// The one report, once the scope is released.
    async fn report(&self) -> EndReport {
        until(|| self.supervisor.active() == 0).await;
        let reports = self.reports.lock().unwrap();
        assert_eq!(reports.len(), 1);
        reports[0].clone()
    }

    /// Serves it on a socket.
    async fn serve(&self) -> (std::net::SocketAddr, JoinSet<()>) {
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = net::serve(listener, self.router.clone()).supervisor(&self.supervisor);
        let mut serving = JoinSet::new();
        serving.spawn(async move { drop(server.await) });
        (addr, serving)
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn within<F: Future>(what: F) -> F::Output {
    let waited = in_time(DEADLINE, what).await;
    waited.expect("nothing happened before the deadline")
}

async fn text<B>(body: B) -> Result<String, B::Error>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let bytes = body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

fn boom(what: &str) -> bodyguard::BoxError {
    what.into()
}

fn messages(report: &EndReport) -> Vec<String> {
    report.errors.iter().map(ToString::to_string).collect()
}

// ---- the ticket ----

#[tokio::test(start_paused = true)]
async fn several_sources_are_merged_in_one_response() {
    async fn source(tx: FrameSender, name: &str, every: u64) -> bodyguard::TaskResult {
        for n in 0..3 {
            tokio::time::sleep(Duration::from_millis(every)).await;
            tx.send(format!("{name} {n}\n")).await?;
        }
        Ok(())
    }
    let body = TaskGroupBody::new(|group, tx| async move {
        group.spawn(source(tx.clone(), "news", 2))?;
        group.spawn(source(tx, "weather", 5))?;
        Ok(())
    });
    let text = text(body).await.unwrap();
    assert_eq!(
        text,
        "news 0\nnews 1\nweather 0\nnews 2\nweather 1\nweather 2\n"
    );
}

#[tokio::test(start_paused = true)]
async fn the_group_has_exited_before_the_consumer_goes_on_from_exhaustion() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        // It goes on for a while behind its last item.
        group.body(|tx| async move {
            let _guard = guard;
            tx.send("all").await?;
            drop(tx);
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(())
        })
    });
    assert_eq!(text(app.get().await.into_body()).await.unwrap(), "all");
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
    assert_eq!(app.report().await.counts.tasks_joined, 1);
}

#[tokio::test(start_paused = true)]
async fn the_group_has_exited_before_the_consumer_goes_on_from_an_error() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let (sibling, tasks) = (seen.guard(), group.clone());
        group.body(|tx| async move {
            let other = tx.clone();
            tasks.spawn(async move {
                let (_guard, _tx) = (sibling, other);
                pending().await
            })?;
            tx.send("some").await?;
            Err(boom("source lost"))
        })
    });
    let error = text(app.get().await.into_body())
        .await
        .unwrap_err()
        .into_inner();
    let error = error.downcast_ref::<BodyError>().unwrap();
    assert_eq!(error.cause().to_string(), "source lost");
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
    assert_eq!(app.report().await.outcome(), Outcome::Failed);
}

#[tokio::test(start_paused = true)]
async fn the_group_has_exited_before_the_consumer_goes_on_from_an_early_break() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        group.body(|tx| async move {
            let _guard = guard;
            loop {
                tx.send("more").await?;
            }
        })
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(live.count(), 1);
    let report = close(response).await.unwrap().unwrap();
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert_eq!((live.count(), app.supervisor.active()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn there_is_nothing_to_enter_the_body_owns_its_group() {
    let live = Live::default();
    let guard = live.guard();
    let body = TaskGroupBody::new(|group, tx| async move {
        group.spawn(async move {
            let _guard = guard;
            Ok(tx.send("x").await?)
        })?;
        Ok(())
    });
    // Iterating is all there is, and taking the body away takes the group away.
    assert_eq!(text(body).await.unwrap(), "x");
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn text_and_bytes_are_coerced() {
    let body = TaskGroupBody::new(|_, tx| async move {
        tx.send("str ").await?;
        tx.send(String::from("string ")).await?;
        tx.send(b"slice ".as_slice()).await?;
        tx.send(b"vec ".to_vec()).await?;
        tx.send(Bytes::from_static(b"bytes")).await?;
        Ok(())
    });
    assert_eq!(text(body).await.unwrap(), "str string slice vec bytes");
}

#[tokio::test(start_paused = true)]
async fn new_content_replaces_the_old_whose_group_is_torn_down() {
    for polled in [false, true] {
        let live = Live::default();
        let seen = live.clone();
        let (supervisor, reports) = (Supervisor::new(), Reports::default());
        let log = reports.clone();
        let handler = move || async move {
            let guard = seen.guard();
            TaskGroupBody::new(|group, tx| async move {
                let other = tx.clone();
                group.spawn(async move {
                    let (_guard, _tx) = (guard, other);
                    pending().await
                })?;
                tx.send("old").await?;
                pending().await
            })
        };
        let replace = move |mut response: axum::response::Response| async move {
            if polled {
                response.body_mut().frame().await.unwrap().unwrap();
            }
            "new".into_response()
        };
        let app = Router::new()
            .fallback(handler)
            .layer(axum::middleware::map_response(replace))
            .layer(
                TaskGroupLayer::new()
                    .supervisor(&supervisor)
                    .on_end(move |report| log.lock().unwrap().push(report.clone())),
            );
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(text(response.into_body()).await.unwrap(), "new");
        until(|| live.count() == 0).await;
        let reports = reports.lock().unwrap();
        assert_eq!(reports[0].outcome(), Outcome::Complete, "polled: {polled}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_content_replaces_a_body_under_the_scope_of_the_request() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        let mut old = group.body(|tx| async move {
            let _guard = guard;
            tx.send("old").await?;
            pending().await
        });
        old.frame().await.unwrap().unwrap();
        drop(old);
        "new"
    });
    assert_eq!(text(app.get().await.into_body()).await.unwrap(), "new");
    assert_eq!(live.count(), 0);
    assert_eq!(app.report().await.outcome(), Outcome::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_single_producer_with_a_queue_and_a_sentinel() {
    let body = TaskGroupBody::new(|group, tx| async move {
        let (queue, mut items) = mpsc::channel(1);
        group.spawn(async move {
            for item in ["a", "b", "c"] {
                queue.send(Some(item)).await?;
            }
            queue.send(None).await?;
            // Left in the queue behind the sentinel: never asked for.
            let _ = queue.send(Some("d")).await;
            Ok(())
        })?;
        while let Some(Some(item)) = items.recv().await {
            tx.send(item).await?;
        }
        Ok(())
    });
    assert_eq!(text(body).await.unwrap(), "abc");
}

#[tokio::test(start_paused = true)]
async fn several_producers_share_a_queue_of_one() {
    let body = TaskGroupBody::new(|group, tx| async move {
        let (queue, mut items) = mpsc::channel::<u32>(1);
        for producer in 0..3 {
            let queue = queue.clone();
            group.spawn(async move {
                for n in 0..10 {
                    queue.send(producer * 100 + n).await?;
                }
                Ok(())
            })?;
        }
        drop(queue);
        while let Some(item) = items.recv().await {
            tx.send(format!("{item} ")).await?;
        }
        Ok(())
    });
    let text = text(body).await.unwrap();
    let items: Vec<u32> = text
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    assert_eq!(items.len(), 30);
    for producer in 0..3 {
        let own = items
            .iter()
            .filter(|n| **n / 100 == producer)
            .map(|n| n % 100);
        assert!(own.eq(0..10), "{items:?}");
    }
    // The channel of the body itself, with room for one byte, does the same.
    let (tx, body) = FrameBody::channel(1);
    let mut producers = JoinSet::new();
    for _ in 0..3 {
        let tx = tx.clone();
        producers.spawn(async move {
            for _ in 0..10 {
                tx.send("x").await.unwrap();
            }
        });
    }
    drop(tx);
    assert_eq!(self::text(body).await.unwrap().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_body_goes_through_every_layer() {
    async fn answer(request: Request) -> Response<Body> {
        let which = request.uri().path();
        let stream = tokio_stream::iter(["a", "bc"]);
        let frames = tokio_stream::iter(
            ["a", "bc"].map(|data| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(data)))),
        );
        match which {
            "/full" => Response::new(Body::new(Full::new(Bytes::from("abc")))),
            "/stream" => Response::new(Body::new(StreamBody::new(frames))),
            "/frame" => {
                let (tx, body) = FrameBody::channel(16);
                tx.try_send("a").unwrap();
                tx.try_send("bc").unwrap();
                body.into_response()
            }
            "/cleanup" => CleanupBody::new(Full::new(Bytes::from("abc"))).into_response(),
            "/merge" => {
                let stream = tokio_stream::StreamExt::map(stream, Ok::<_, Infallible>);
                TaskGroupBody::merge(Sources::new().source("s", stream)).into_response()
            }
            "/group" => TaskGroupBody::new(|_, tx| async move {
                tx.send("a").await?;
                tokio::task::yield_now().await;
                Ok(tx.send("bc").await?)
            })
            .into_response(),
            other => panic!("{other}"),
        }
    }
    let routers = [
        Router::new().fallback(answer).layer(CleanupLayer::new()),
        Router::new().fallback(answer).layer(TaskGroupLayer::new()),
        Router::new().fallback(answer).layer(DisconnectLayer::new()),
        Router::new()
            .fallback(answer)
            .layer(CompressionLayer::new()),
        Router::new().fallback(answer).layer(Stack::new()),
    ];
    for (layer, router) in routers.into_iter().enumerate() {
        for path in ["/full", "/stream", "/frame", "/cleanup", "/merge", "/group"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let text = text(response.into_body()).await.unwrap();
            assert_eq!(text, "abc", "{path} through layer {layer}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn gzip_keeps_the_protocol_of_group_bodies() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |request: Request| async move {
        let endless = request.uri().path() == "/endless";
        let guard = seen.guard();
        TaskGroupBody::new(move |_, tx| async move {
            let _guard = guard;
            for n in 0.. {
                if n == 1000 && !endless {
                    break;
                }
                tx.send(format!("line {n}\n")).await?;
            }
            Ok(())
        })
    });
    let get = |path: &'static str| {
        let request = Request::get(path).header("accept-encoding", "gzip");
        app.router
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
    };
    // Round trip.
    let response = get("/").await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(!response.headers().contains_key("content-length"));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
    std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
    assert_eq!(
        text,
        (0..1000).map(|n| format!("line {n}\n")).collect::<String>()
    );
    assert_eq!(live.count(), 0);
    // Early drop.
    let mut response = get("/endless").await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(live.count(), 1);
    drop(response);
    until(|| live.count() == 0 && app.supervisor.active() == 0).await;
}

/// A client that has read the head, and some of the body.
async fn client(addr: std::net::SocketAddr, request: &str) -> TcpStream {
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut some = [0; 256];
    assert!(within(client.read(&mut some)).await.unwrap() > 0);
    client
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_disconnect_cancels_the_group_and_its_cancellation_is_awaited() {
    let live = Live::default();
    let (seen, cleaned) = (live.clone(), Arc::new(AtomicUsize::new(0)));
    let done = cleaned.clone();
    let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
        let (plain, graceful, tasks) = (seen.guard(), seen.guard(), group.clone());
        let order = done.clone();
        cleanup.defer_sync(move |_| {
            // Closers run behind the tasks.
            assert_eq!(order.swap(2, Ordering::SeqCst), 1);
        });
        group.body(|tx| async move {
            let _guard = plain;
            tasks.spawn_graceful(|cancel| async move {
                let _guard = graceful;
                cancel.cancelled().await;
                // Its cleanup may await.
                tokio::time::sleep(Duration::from_millis(20)).await;
                done.store(1, Ordering::SeqCst);
                Ok(())
            })?;
            tx.send("hello").await?;
            pending().await
        })
    });
    let (addr, _serving) = app.serve().await;
    drop(client(addr, GET).await);
    let report = app.report().await;
    assert!(report.ending.client_gone());
    assert_eq!(report.outcome(), Outcome::Disconnected);
    assert_eq!(report.counts.closers_failed, 0);
    assert_eq!((live.count(), cleaned.load(Ordering::SeqCst)), (0, 2));
}

// ---- more behaviours ----

#[tokio::test(start_paused = true)]
async fn a_disconnect_before_the_first_poll_starts_nothing_and_tears_down() {
    let live = Live::default();
    let seen = live.clone();
    let started = Arc::new(AtomicUsize::new(0));
    let starts = started.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        group.body(move |_| {
            starts.fetch_add(1, Ordering::SeqCst);
            async move {
                let _guard = guard;
                Ok(())
            }
        })
    });
    drop(app.get().await);
    assert_eq!(app.report().await.outcome(), Outcome::Dropped);
    assert_eq!((live.count(), started.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_never_polled_never_starts_its_producers() {
    let started = Arc::new(AtomicUsize::new(0));
    let starts = started.clone();
    let body = TaskGroupBody::new(move |_, _| {
        starts.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(started.load(Ordering::SeqCst), 0);
    assert_eq!(text(body).await.unwrap(), "");
    assert_eq!(started.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_in_the_turn_of_the_completion_gives_one_outcome() {
    // Dropped after each number of polls from the last frame on.
    for polls in 0..3 {
        let app = App::new(|group: TaskGroup| async move {
            group.body(|tx| async move { Ok(tx.send("all").await?) })
        });
        let mut body = app.get().await.into_body();
        body.frame().await.unwrap().unwrap();
        let mut ended = false;
        for _ in 0..polls {
            // As many polls as one turn of the loop allows; the end may be among them.
            tokio::select! {
                biased;
                end = body.frame() => ended = end.is_none(),
                () = std::future::ready(()) => {}
            }
            tokio::task::yield_now().await;
        }
        drop(body);
        let report = app.report().await;
        match report.outcome() {
            Outcome::Complete => {
                assert!(polls > 0);
                assert!(report.errors.is_empty(), "{report:?}");
            }
            Outcome::Dropped => {
                assert!(!ended);
                // At most what says that it was dropped.
                assert!(
                    report.errors.iter().all(|error| error.is::<Failure>()),
                    "{report:?}"
                );
            }
            other => panic!("{other}"),
        }
        assert_eq!(report.counts.tasks_failed + report.counts.tasks_panicked, 0);
    }
}

#[tokio::test]
async fn a_disconnect_with_an_unread_or_half_read_request_body_ends_the_group() {
    for read in [false, true] {
        let live = Live::default();
        let seen = live.clone();
        let app = App::new(move |group: TaskGroup, request: Request| async move {
            let guard = seen.guard();
            group.body(move |tx| async move {
                let _guard = guard;
                let mut upload = request.into_body();
                if read {
                    upload.frame().await.unwrap()?;
                }
                tx.send("hello").await?;
                let _upload = upload;
                pending().await
            })
        });
        let (addr, _serving) = app.serve().await;
        let upload = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nhalf of it";
        let client = client(addr, upload).await;
        assert_eq!(live.count(), 1);
        drop(client);
        let report = app.report().await;
        assert!(!report.outcome().is_complete());
        assert!(report.ending.client_gone(), "read: {read}");
        assert_eq!(live.count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_catches_the_signal_and_cleans_up() {
    let cleaned = Arc::new(AtomicUsize::new(0));
    let done = cleaned.clone();
    let app = App::new(move |group: TaskGroup, gone: Disconnect| async move {
        group
            .clone()
            .spawn_graceful(|_| async move {
                gone.gone().await;
                // Cleanup after the cancel may await.
                tokio::time::sleep(Duration::from_millis(100)).await;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
            .unwrap();
        group.body(|tx| async move {
            tx.send("x").await?;
            pending().await
        })
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_eq!(app.report().await.counts.tasks_joined, 1);
    assert_eq!(cleaned.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_infinite_stream_stops_when_the_client_leaves() {
    let live = Live::default();
    let seen = live.clone();
    let app = App::new(move |group: TaskGroup| async move {
        let guard = seen.guard();
        group.body(|tx| async move {
            let _guard = guard;
            loop {
                tx.send("again and again ").await?;
            }
        })
    });
    let (addr, _serving) = app.serve().await;
    drop(client(addr, GET).await);
    let report = app.report().await;
    assert!(report.ending.client_gone());
    assert!(report.counts.tasks_failed == 0, "{report:?}");
    assert_eq!(live.count(), 0);
}

#[tokio::test]
async fn a_write_error_is_a_disconnect_and_no_failure() {
    let app = App::new(|group: TaskGroup| async move {
        group.body(|tx| async move {
            loop {
                tx.send(vec![b'x'; 64 * 1024]).await?;
            }
        })
    });
    let (addr, _serving) = app.serve().await;
    // Unread data in the client's socket makes its close a reset.
    drop(client(addr, GET).await);
    let report = app.report().await;
    let outcome = report.outcome();
    assert!(
        matches!(outcome, Outcome::Disconnected | Outcome::Dropped),
        "{outcome}"
    );
    assert!(report.ending.client_gone());
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(report.counts.tasks_failed + report.counts.tasks_panicked, 0);
}

/// Nobody watches the connection: all there is to see is the drop of the body.
#[tokio::test]
async fn a_write_error_on_a_plain_listener_is_no_failure_either() {
    let app = App::new(|group: TaskGroup| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            let other = tx.clone();
            tasks.spawn(async move {
                loop {
                    other.send(vec![b'x'; 64 * 1024]).await?;
                }
            })?;
            loop {
                tx.send(vec![b'y'; 64 * 1024]).await?;
            }
        })
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    let router = app.router.clone();
    serving.spawn(async move { drop(axum::serve(listener, router).await) });
    drop(client(addr, GET).await);
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Dropped);
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(report.counts.tasks_failed + report.counts.tasks_panicked, 0);
}

#[tokio::test(start_paused = true)]
async fn background_work_does_not_delay_the_last_byte() {
    let live = Live::default();
    let seen = live.clone();
    let (finish, finished) = oneshot::channel::<()>();
    let finished = Arc::new(Mutex::new(Some(finished)));
    let app = App::new(move |group: TaskGroup, cleanup: Cleanup| async move {
        let guard = seen.guard();
        group
            .spawn_background(async move {
                let _guard = guard;
                pending().await
            })
            .unwrap();
        let finished = finished.lock().unwrap().take().unwrap();
        cleanup.defer_after_end(move |_| async move { Ok(finished.await?) });
        group.body(|tx| async move { Ok(tx.send("all").await?) })
    });
    let start = tokio::time::Instant::now();
    assert_eq!(text(app.get().await.into_body()).await.unwrap(), "all");
    assert_eq!(start.elapsed(), Duration::ZERO);
    // The background task is gone; what comes after the end still runs.
    assert_eq!((live.count(), app.supervisor.active()), (0, 1));
    finish.send(()).unwrap();
    let report = app.report().await;
    assert_eq!(report.outcome(), Outcome::Complete);
    assert_eq!(
        (report.counts.tasks_cancelled, report.counts.closers_run),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failing_child_cancels_its_siblings_and_its_host() {
    let live = Live::default();
    let (sibling, host) = (live.guard(), live.guard());
    let body = TaskGroupBody::new(|group, tx| async move {
        let _host = host;
        let held = tx.clone();
        group.spawn(async move {
            let (_guard, _held) = (sibling, held);
            pending().await
        })?;
        group.spawn(async { Err(boom("child")) })?;
        let _held = tx;
        pending().await
    });
    let error = text(body).await.unwrap_err();
    assert_eq!(error.cause().to_string(), "child");
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failing_host_cancels_its_children() {
    let live = Live::default();
    let children = [live.guard(), live.guard()];
    let body = TaskGroupBody::new(|group, tx| async move {
        for child in children {
            let held = tx.clone();
            group.spawn(async move {
                let (_guard, _held) = (child, held);
                pending().await
            })?;
        }
        tokio::task::yield_now().await;
        Err(boom("host"))
    });
    let error = text(body).await.unwrap_err();
    assert_eq!(error.cause().to_string(), "host");
    assert_eq!(live.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn all_errors_are_kept() {
    let app = App::new(|group: TaskGroup, cleanup: Cleanup| async move {
        cleanup.defer(|_| async { Err(boom("closer")) });
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn_graceful(|cancel| async move {
                cancel.cancelled().await;
                Err(boom("while ending"))
            })?;
            tx.send("x").await?;
            tasks.spawn(async { Err(boom("first")) })?;
            pending().await
        })
    });
    let error = text(app.get().await.into_body())
        .await
        .unwrap_err()
        .into_inner();
    let error = error.downcast_ref::<BodyError>().unwrap();
    assert_eq!(error.cause().to_string(), "first");
    let report = app.report().await;
    assert_eq!(messages(&report), ["first", "while ending", "closer"]);
    assert_eq!(
        (report.counts.tasks_failed, report.counts.closers_failed),
        (2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn an_item_being_received_is_not_lost_on_cancel() {
    let body = TaskGroupBody::new(|_, tx| async move {
        for n in 0..20 {
            tokio::time::sleep(Duration::from_millis(7)).await;
            tx.send(format!("{n} ")).await?;
        }
        Ok(())
    })
    .preserve_frames();
    let mut body = std::pin::pin!(body);
    let (mut text, mut cancelled) = (String::new(), 0);
    loop {
        match tokio::time::timeout(Duration::from_millis(3), body.frame()).await {
            Err(_) => cancelled += 1,
            Ok(None) => break,
            Ok(Some(frame)) => {
                let data = frame.unwrap().into_data().unwrap();
                text.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
    }
    assert!(cancelled >= 20);
    assert_eq!(text, (0..20).map(|n| format!("{n} ")).collect::<String>());
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_sending_was_cancelled_was_not_sent_and_can_be_sent_again() {
    let body = TaskGroupBody::new(|_, tx| async move {
        let big = Bytes::from(vec![b'b'; 16 * 1024]);
        tx.send(big).await?;
        // No room until the consumer comes.
        loop {
            let item = tokio::time::timeout(Duration::from_millis(3), tx.send("item"));
            if item.await.is_ok() {
                return Ok(());
            }
        }
    });
    let mut body = std::pin::pin!(body);
    // Starts the producers, then is late.
    let first = tokio::time::timeout(Duration::ZERO, body.frame()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut len = first.map_or(0, |frame| {
        frame.unwrap().unwrap().into_data().unwrap().len()
    });
    while let Some(frame) = body.frame().await {
        len += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(len, 16 * 1024 + 4);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_producer_is_released_when_the_consumer_goes() {
    let (told, tell) = oneshot::channel();
    let app = App::new({
        let told = Arc::new(Mutex::new(Some(told)));
        move |group: TaskGroup| async move {
            let told = told.lock().unwrap().take().unwrap();
            let tasks = group.clone();
            group.body(|tx| async move {
                // Graceful, so that it is the channel that releases it and no abort.
                tasks.spawn_graceful(|_| async move {
                    let result = loop {
                        if let Err(closed) = tx.send("more ").await {
                            break closed;
                        }
                    };
                    told.send(()).unwrap();
                    Err(result.into())
                })?;
                Ok(())
            })
        }
    });
    let mut response = app.get().await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    within(tell).await.unwrap();
    let report = app.report().await;
    assert_eq!(
        (report.outcome(), report.counts.tasks_failed),
        (Outcome::Dropped, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_last_item_is_not_lost() {
    for late in [Duration::ZERO, Duration::from_secs(1)] {
        let body = TaskGroupBody::new(move |group, tx| async move {
            group.spawn(async move {
                tx.send("all of it").await?;
                drop(tx);
                tokio::time::sleep(late).await;
                Err(boom("not stored"))
            })?;
            Ok(())
        });
        let mut body = std::pin::pin!(body);
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "all of it");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.cause().to_string(), "not stored");
    }
}

#[tokio::test(start_paused = true)]
async fn two_requests_never_see_each_others_cancellation() {
    let app = App::new(|group: TaskGroup, gone: Disconnect| async move {
        let tasks = group.clone();
        group.body(|tx| async move {
            tasks.spawn_graceful(|cancel| async move {
                tokio::select! {
                    () = cancel.cancelled() => tx.send("cancelled").await?,
                    _ = gone.gone() => tx.send("gone").await?,
                    () = tokio::time::sleep(Duration::from_secs(1)) => tx.send("whole").await?,
                }
                Ok(())
            })?;
            Ok(())
        })
    });
    let (mut first, second) = (app.get().await, app.get().await);
    assert!(
        tokio::time::timeout(Duration::ZERO, first.body_mut().frame())
            .await
            .is_err()
    );
    let reading = text(second.into_body());
    let (second, ()) = tokio::join!(reading, async { drop(first) });
    assert_eq!(second.unwrap(), "whole");
    until(|| app.supervisor.active() == 0).await;
    let reports = app.reports.lock().unwrap();
    let outcomes: Vec<_> = reports.iter().map(EndReport::outcome).collect();
    assert_eq!(outcomes, [Outcome::Dropped, Outcome::Complete]);
}
