//! Reports count what the client was given: not what was held back and then given up.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bodyguard::{
    Cleanup, Disconnect, EndReport, Hold, Outcome, Shutdown, Stack, Supervisor, TaskGroup,
    testing::{Script, Taken, take_frames},
};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body;
use tokio::sync::Notify;
use tower::{Layer, service_fn};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Nothing,
    Commits,
    FailsToCommit,
    FailsInATask,
    /// The response goes out while a hold keeps the scope open.
    Holds,
    HoldsAndFails,
    IsCancelled,
}

const DOES: [Does; 7] = [
    Does::Nothing,
    Does::Commits,
    Does::FailsToCommit,
    Does::FailsInATask,
    Does::Holds,
    Does::HoldsAndFails,
    Does::IsCancelled,
];

fn bodies() -> Vec<(&'static str, Script)> {
    let trailers: HeaderMap = [("a".parse().unwrap(), "b".parse().unwrap())]
        .into_iter()
        .collect();
    let two = || Script::new().data("first").pending().data("second");
    let one = || Script::new().data("only");
    vec![
        ("nothing", Script::new().end_hint()),
        ("one", one()),
        ("one sized", one().exact_hint()),
        ("one sized that says its end", one().exact_hint().end_hint()),
        (
            "one that waits",
            Script::new().pending().data("only").exact_hint(),
        ),
        ("two", two()),
        ("two sized", two().exact_hint()),
        ("two that say their end", two().end_hint()),
        (
            "two sized that say their end",
            two().exact_hint().end_hint(),
        ),
        (
            "ready",
            Script::new().data("first").data("second").exact_hint(),
        ),
        ("an empty one last", two().data("").end_hint()),
        ("trailers", two().trailers(trailers.clone())),
        ("sized with trailers", two().exact_hint().trailers(trailers)),
        ("an error", two().error("scripted")),
        ("sized with an error", two().exact_hint().error("scripted")),
        (
            "too short",
            two().end_hint().hint(http_body::SizeHint::with_exact(99)),
        ),
        ("too long", two().hint(http_body::SizeHint::with_exact(7))),
    ]
}

struct Told(Arc<Mutex<Vec<EndReport>>>);

impl Told {
    fn new() -> (Self, Stack) {
        let reports = Arc::<Mutex<Vec<EndReport>>>::default();
        let log = reports.clone();
        let stack = Stack::new().on_end(move |end| log.lock().unwrap().push(end.clone()));
        (Self(reports), stack)
    }

    fn report(&self) -> EndReport {
        let mut reports = self.0.lock().unwrap();
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }
}

fn registers(does: Does, request: &Request<()>) -> Option<Hold> {
    let (cleanup, group) = (
        Cleanup::of(request).unwrap(),
        TaskGroup::of(request).unwrap(),
    );
    match does {
        Does::Nothing => {}
        Does::Commits => drop(cleanup.defer(|_| async {
            tokio::task::yield_now().await;
            Ok(())
        })),
        Does::FailsToCommit | Does::HoldsAndFails => drop(cleanup.defer(|_| async {
            tokio::task::yield_now().await;
            Err("no commit".into())
        })),
        Does::FailsInATask => group
            .spawn(async {
                // Behind whatever is ready.
                tokio::time::sleep(Duration::from_millis(1)).await;
                Err("no row".into())
            })
            .unwrap(),
        Does::Holds => drop(cleanup.defer(|_| async { Ok(()) })),
        Does::IsCancelled => {
            cleanup.defer(|_| async { Ok(()) });
            group.cancel();
        }
    }
    let holds = matches!(does, Does::Holds | Does::HoldsAndFails);
    holds.then(|| Disconnect::of(request).unwrap().hold())
}

async fn taken(does: Does, body: Script, version: Version, frames: usize) -> (Taken, EndReport) {
    let (told, stack) = Told::new();
    let (body, held) = (Mutex::new(Some(body)), Mutex::new(None));
    let service = service_fn(|request: Request<()>| {
        *held.lock().unwrap() = registers(does, &request);
        let body = body.lock().unwrap().take().unwrap();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let request = Request::builder().version(version).body(()).unwrap();
    let service = stack.layer(service);
    let finished = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(hold) = held.lock().unwrap().take() {
            hold.finish(Outcome::Complete);
        }
    };
    let (taken, ()) = tokio::join!(take_frames(service, request, frames), finished);
    (taken.unwrap(), told.report())
}

#[tokio::test(start_paused = true)]
async fn a_report_counts_what_its_client_was_given() {
    for does in DOES {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for frames in 0..5 {
                for (name, body) in bodies() {
                    // Whole with its head, and given with it.
                    if frames == 0 && name.starts_with("one sized") {
                        continue;
                    }
                    let (taken, report) = taken(does, body, version, frames).await;
                    let given = (taken.frames.len() as u64, taken.data().len() as u64);
                    assert_eq!(
                        (report.frames, report.bytes),
                        given,
                        "{name} {does:?} {version:?}, {frames} frames: {taken:?}"
                    );
                    assert_eq!(report.first_frame.is_some(), given.0 > 0, "{name} {does:?}");
                }
            }
        }
    }
}

/// An event stream's last frame, of a shutdown or of `on_failure`, is content like any other.
#[tokio::test(start_paused = true)]
async fn last_frames_count() {
    for (shut, held) in [(false, false), (false, true), (true, false)] {
        let (told, stack) = Told::new();
        let hold = Mutex::new(None);
        let supervisor = Supervisor::new();
        let frame = Shutdown::end_now().last_frame("text/event-stream", "event: bye\n\n");
        let service = service_fn(|request: Request<()>| {
            let group = TaskGroup::of(&request).unwrap();
            if held {
                *hold.lock().unwrap() = Some(group.hold());
            }
            let body = group.body(move |tx| async move {
                tx.send("first").await?;
                match shut {
                    true => std::future::pending().await,
                    false => Err("late".into()),
                }
            });
            let body = body.on_failure(|_| Some("event: error\n\n".into()));
            let response = Response::builder().header("content-type", "text/event-stream");
            async { Ok::<_, Infallible>(response.body(body).unwrap()) }
        });
        let service = stack.supervisor(&supervisor).shutdown(frame).layer(service);
        let drained = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(hold.lock().unwrap().take());
            supervisor.drain(Duration::from_secs(1)).await
        };
        let (taken, _) = tokio::join!(take_frames(service, Request::new(()), 9), drained);
        let (taken, report) = (taken.unwrap(), told.report());
        assert_eq!((taken.frames.len(), taken.error.is_none()), (2, shut));
        assert_eq!(
            (report.frames, report.bytes),
            (2, taken.data().len() as u64)
        );
    }
}

/// What is answered in the place of a handler that came too late is none of its body.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_replaced_was_not_given() {
    let (told, stack) = Told::new();
    let service = service_fn(|request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        let group = TaskGroup::of(&request).unwrap();
        cleanup.defer(|_| async { Err("no commit".into()) });
        async move {
            group.cancel();
            Ok::<_, Infallible>(Response::new(Script::new().data("late").exact_hint()))
        }
    });
    let service = stack.layer(service);
    let taken = take_frames(service, Request::new(()), 9).await.unwrap();
    let report = told.report();
    assert_eq!(taken.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((report.frames, report.bytes, taken.data().len()), (0, 0, 0));
}

/// A client that leaves while the last frame waits for a closer does not get it.
#[tokio::test(start_paused = true)]
async fn what_is_held_back_from_a_client_that_leaves_was_not_given() {
    for reads in [false, true] {
        let (told, stack) = Told::new();
        let notify = Arc::new(Notify::new());
        let committed = notify.clone();
        let service = service_fn(move |request: Request<()>| {
            let committed = committed.clone();
            Cleanup::of(&request).unwrap().defer(|_| async move {
                committed.notified().await;
                Ok(())
            });
            let body = Script::new().data("first").pending().data("second");
            async { Ok::<_, Infallible>(Response::new(body.end_hint())) }
        });
        let response = tower::ServiceExt::oneshot(stack.layer(service), Request::new(()));
        let mut body = Box::pin(response.await.unwrap().into_body());
        let mut cx = Context::from_waker(Waker::noop());
        let mut given = 0;
        while let Poll::Ready(frame) = body.as_mut().poll_frame(&mut cx) {
            given += frame.unwrap().unwrap().into_data().unwrap().len();
        }
        // The script was pending; now the last frame is held back.
        assert!(body.as_mut().poll_frame(&mut cx).is_pending());
        if reads {
            notify.notify_one();
            tokio::time::sleep(Duration::from_millis(1)).await;
            match body.as_mut().poll_frame(&mut cx) {
                Poll::Ready(frame) => {
                    given += frame.unwrap().unwrap().into_data().unwrap().len();
                }
                Poll::Pending => panic!("the closer has run"),
            }
        }
        drop(body);
        notify.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let report = told.report();
        assert_eq!(
            (report.bytes, report.outcome()),
            (given as u64, Outcome::Complete)
        );
    }
}
