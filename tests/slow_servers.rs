//! Servers that come to the end of a body and then ask no more for long: the teardown goes on without them.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{
    BoxError, Cleanup, EndReport, Outcome, Stack, Supervisor, TaskGroup, net, scope::ScopeBody,
    testing::Script,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

mod support;
use support::{Http2, eventually, in_turns, within};

const LIMIT: Duration = Duration::from_secs(5);

type Reports = Arc<Mutex<Vec<EndReport>>>;
type Reply = bodyguard::compression::CompressionBody<ScopeBody<Script>>;

/// A response of one frame, with this closer behind it.
async fn respond<F, Fut>(reports: &Reports, closer: F) -> Pin<Box<Reply>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let told = reports.clone();
    let stack = Stack::new()
        .closer_limit(LIMIT)
        .on_end(move |report| told.lock().unwrap().push(report.clone()));
    let mut closer = Some(closer);
    let service = stack.layer(service_fn(|request: Request<()>| {
        let closer = closer.take().unwrap();
        Cleanup::of(&request).unwrap().defer(|_| closer());
        std::future::ready(Ok::<_, Infallible>(Response::new(Script::new().data("a"))))
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    Box::pin(response.into_body())
}

fn outcomes(reports: &Reports) -> Vec<Outcome> {
    reports
        .lock()
        .unwrap()
        .iter()
        .map(EndReport::outcome)
        .collect()
}

/// Asks for the frame, and once more: the end is held.
async fn to_the_end(body: &mut Pin<Box<Reply>>) {
    assert!(body.frame().await.unwrap().is_ok());
    assert!(futures_util::poll!(std::pin::pin!(body.frame())).is_pending());
}

#[tokio::test(start_paused = true)]
async fn closers_go_on_and_their_result_is_shown_to_who_asks_at_last() {
    for fails in [false, true] {
        let reports = Reports::default();
        let mut body = respond(&reports, move || async move {
            for _ in 0..4 {
                tokio::time::sleep(LIMIT / 5).await;
            }
            if fails {
                Err("disk full".into())
            } else {
                Ok(())
            }
        })
        .await;
        to_the_end(&mut body).await;
        tokio::time::sleep(LIMIT * 10).await;
        let expected = if fails {
            Outcome::Failed
        } else {
            Outcome::Complete
        };
        assert_eq!(outcomes(&reports), [expected]);
        match body.frame().await {
            None => assert!(!fails),
            Some(end) => {
                assert!(fails);
                assert_eq!(end.unwrap_err().cause().to_string(), "disk full");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_kept() {
    let reports = Reports::default();
    let mut body = respond(&reports, std::future::pending).await;
    to_the_end(&mut body).await;
    tokio::time::sleep(LIMIT + Duration::from_secs(1)).await;
    assert_eq!(outcomes(&reports), [Outcome::Failed]);
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(error.cause().to_string().contains("overran its limit"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_meanwhile_leaves_it_going_on() {
    let reports = Reports::default();
    let mut body = respond(&reports, || async {
        tokio::time::sleep(LIMIT / 2).await;
        Ok(())
    })
    .await;
    to_the_end(&mut body).await;
    tokio::time::sleep(LIMIT / 4).await;
    drop(body);
    tokio::time::sleep(LIMIT / 2).await;
    let reports = reports.lock().unwrap();
    assert_eq!(reports[0].outcome(), Outcome::Complete);
    assert!(reports[0].ending.client_gone());
    assert_eq!(reports[0].counts.closers_run, 1);
}

/// Pending so often, and woken at once.
async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

fn by_hand(body: &mut Pin<Box<Reply>>) -> Poll<Option<bool>> {
    let mut cx = Context::from_waker(Waker::noop());
    body.as_mut()
        .poll_frame(&mut cx)
        .map(|end| end.map(|end| end.is_ok()))
}

/// A runtime that nobody drives, and one that has gone: then whoever asks goes on alone.
#[test]
fn runtimes_that_do_nothing() {
    for gone in [false, true] {
        let reports = Reports::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let closer = || async {
            turns(3).await;
            Ok(())
        };
        let mut body = runtime.block_on(respond(&reports, closer));
        assert_eq!(by_hand(&mut body), Poll::Ready(Some(true)));
        assert!(by_hand(&mut body).is_pending());
        let runtime = (!gone).then_some(runtime);
        let polls = (0..100)
            .take_while(|_| by_hand(&mut body).is_pending())
            .count();
        assert!(polls < 10, "{polls} polls");
        assert_eq!(outcomes(&reports), [Outcome::Complete]);
        drop(runtime);
    }
}

/// One that dies while a server asks for nothing, whose body then goes.
#[test]
fn a_runtime_that_dies_in_the_middle() {
    let reports = Reports::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut body = runtime.block_on(async {
        let mut body = respond(&reports, std::future::pending).await;
        to_the_end(&mut body).await;
        turns(3).await;
        body
    });
    drop(runtime);
    assert!(by_hand(&mut body).is_pending());
    drop(body);
    let reports = reports.lock().unwrap();
    assert_eq!((reports.len(), reports[0].counts.closers_unrun), (1, 1));
}

/// What the closer waits for is its own, and keeps the waker it was polled with: nobody else does.
#[test]
fn a_runtime_that_dies_under_a_closer_that_waits_for_itself() {
    for by_its_task in [false, true] {
        let reports = Reports::default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (waits, waiting) = std::sync::mpsc::channel();
        let body = runtime.block_on(respond(&reports, move || async move {
            let never = tokio::sync::Notify::new();
            let mut never = std::pin::pin!(never.notified());
            let mut polls = 0;
            poll_fn(|cx| {
                let polled = never.as_mut().poll(cx);
                polls += 1;
                // Polled by the owner, and then once more with the waker of the drivers.
                if polls == 2 {
                    waits.send(()).unwrap();
                }
                polled
            })
            .await;
            Ok(())
        }));
        let reading = async move {
            let mut body = body;
            to_the_end(&mut body).await;
            match by_its_task {
                true => drop(body.frame().await),
                false => return Some(body),
            }
            None
        };
        let reading = {
            let _context = runtime.enter();
            let mut tasks = JoinSet::new();
            tasks.spawn(reading);
            tasks
        };
        waiting.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(runtime);
        drop(reading);
        let reports = reports.lock().unwrap();
        assert_eq!(reports.len(), 1, "by its task: {by_its_task}");
        assert_eq!(reports[0].counts.closers_unrun, 1);
    }
}

tokio::task_local! {
    static REQUEST_ID: u32;
}

/// Before the head there is a future that is polled: closers run in it, with what is set around it.
#[tokio::test]
async fn closers_before_the_head_keep_the_context_of_the_handler() {
    let stack = Stack::new();
    let service = stack.layer(service_fn(|request: Request<()>| {
        Cleanup::of(&request).unwrap().defer(|_| async {
            for _ in 0..5 {
                turns(1).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                assert_eq!(REQUEST_ID.get(), 7);
            }
            Ok(())
        });
        let whole = http_body_util::Full::new(Bytes::from("whole"));
        std::future::ready(Ok::<_, Infallible>(Response::new(whole)))
    }));
    let answered = REQUEST_ID.scope(7, service.oneshot(Request::new(())));
    assert_eq!(answered.await.unwrap().status(), 200);
}

/// Behind it, a server that comes when it is woken polls them in its own.
#[tokio::test]
async fn closers_behind_a_body_are_their_servers_as_long_as_it_comes() {
    let reports = Reports::default();
    let body = respond(&reports, || async {
        for _ in 0..5 {
            turns(1).await;
            assert_eq!(REQUEST_ID.get(), 8);
        }
        Ok(())
    });
    let body = body.await;
    let read = REQUEST_ID.scope(8, body.collect()).await;
    assert_eq!(read.unwrap().to_bytes(), "a");
}

/// Owner and task meet in every order: nothing is lost, nothing runs twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owner_and_task_meet() {
    let (reports, ran) = (Reports::default(), Arc::new(AtomicUsize::new(0)));
    let mut asking = JoinSet::new();
    const ALL: usize = 500;
    for nth in 0..ALL {
        let (reports, ran) = (reports.clone(), ran.clone());
        asking.spawn(async move {
            let mut body = respond(&reports, move || async move {
                for turn in 0..nth % 17 {
                    match (nth + turn) % 3 {
                        0 => turns(1).await,
                        1 => tokio::time::sleep(Duration::from_micros(50)).await,
                        _ => tokio::task::spawn_blocking(std::thread::yield_now)
                            .await
                            .unwrap(),
                    }
                }
                ran.fetch_add(1, SeqCst);
                Ok(())
            })
            .await;
            assert!(body.frame().await.unwrap().is_ok());
            match nth % 4 {
                // Asks when woken; at every turn; from another thread; leaves.
                0 => assert!(body.frame().await.is_none()),
                1 => {
                    poll_fn(|cx| {
                        let end = body.as_mut().poll_frame(cx);
                        if end.is_pending() {
                            cx.waker().wake_by_ref();
                        }
                        end.map(|end| assert!(end.is_none()))
                    })
                    .await;
                }
                2 => {
                    let asked = tokio::task::spawn_blocking(move || {
                        while by_hand(&mut body).is_pending() {
                            std::thread::yield_now();
                        }
                    });
                    asked.await.unwrap();
                }
                _ => {
                    let _ = futures_util::poll!(std::pin::pin!(body.frame()));
                    turns(nth % 5).await;
                    drop(body);
                }
            }
        });
    }
    while let Some(asked) = within(asking.join_next()).await {
        asked.unwrap();
    }
    eventually(|| reports.lock().unwrap().len() == ALL).await;
    assert_eq!(ran.load(SeqCst), ALL);
    assert!(
        outcomes(&reports)
            .iter()
            .all(|outcome| outcome.is_complete())
    );
}

/// Under an encoder whose output has nowhere to go, a transaction is not kept waiting.
#[tokio::test]
async fn a_client_that_pauses_near_the_end_of_a_compressed_response() {
    let (supervisor, reports) = (Supervisor::new(), Reports::default());
    let told = reports.clone();
    let mut state = 1_u64;
    let noise: Bytes = (0..80_000)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let whole = noise.len();
    let handler = move |cleanup: Cleanup, group: TaskGroup| async move {
        cleanup.defer(|_| async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        });
        group.body(|tx| async move { Ok(tx.send(noise).await?) })
    };
    let app = axum::Router::new()
        .route("/", axum::routing::get(handler))
        .layer(
            Stack::new()
                .supervisor(&supervisor)
                .on_end(move |report| told.lock().unwrap().push(report.clone())),
        );
    let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(std::future::IntoFuture::into_future(
        net::serve(listener, app).supervisor(&supervisor),
    ));
    let mut client = Http2::connect_with(address, &mut h2::client::Builder::new()).await;
    let (response, _stream) = client.request_coded("GET", "gzip");
    let mut body = within(response).await.unwrap().into_body();
    // Nothing is read, and the window is full.
    eventually(|| !reports.lock().unwrap().is_empty()).await;
    assert_eq!(outcomes(&reports), [Outcome::Complete]);
    assert_eq!(reports.lock().unwrap()[0].counts.closers_run, 1);
    let mut read = 0;
    while let Some(data) = within(body.data()).await {
        let data = data.unwrap();
        read += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(read > whole, "noise does not shrink: {read}");
    in_turns(|| supervisor.active() == 0).await;
}
