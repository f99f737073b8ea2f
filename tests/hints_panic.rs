//! A body that panics when it is asked for its hints has panicked, like one that does when it is polled.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bodyguard::{BodyError, Cleanup, EndReport, Ending, Outcome, Stack};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

const END: usize = 0;
const HINT: usize = 1;

/// Three frames, the last of them empty; panics the `nth` time that it is asked this.
struct Odd {
    left: Vec<&'static str>,
    sized: bool,
    panics: (usize, usize),
    asked: [AtomicUsize; 2],
}

impl Odd {
    fn new(kind: usize, nth: usize, sized: bool) -> Self {
        Self {
            left: vec!["", "second", "first"],
            sized,
            panics: (kind, nth),
            asked: Default::default(),
        }
    }

    fn ask(&self, kind: usize) {
        let nth = self.asked[kind].fetch_add(1, SeqCst);
        assert_ne!((kind, nth), self.panics);
    }
}

impl Body for Odd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.pop();
        Poll::Ready(next.map(|data| Ok(Frame::data(data.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ask(END);
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.ask(HINT);
        match self.sized {
            true => SizeHint::with_exact(self.left.concat().len() as u64),
            false => SizeHint::default(),
        }
    }
}

/// What the server does about the panic.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Unwinds,
    Drops,
    AsksAgain,
}

struct Seen {
    closers: Vec<Outcome>,
    report: EndReport,
    /// What the body fails with when it is asked again.
    error: Option<BodyError>,
}

/// `None` if nothing has panicked.
async fn serve(odd: Odd, server: Server, version: Version) -> Option<Seen> {
    let closers = Arc::<Mutex<Vec<Outcome>>>::default();
    let reports = Arc::<Mutex<Vec<EndReport>>>::default();
    let (told, log) = (closers.clone(), reports.clone());
    let odd = Mutex::new(Some(odd));
    let handler = service_fn(move |request: Request<()>| {
        let told = told.clone();
        let closer = move |ending: Ending| told.lock().unwrap().push(ending.outcome());
        Cleanup::of(&request).unwrap().defer_sync(closer);
        let body = odd.lock().unwrap().take().unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let stack = Stack::new().on_end(move |report| log.lock().unwrap().push(report.clone()));
    let request = Request::builder().version(version).body(()).unwrap();
    let mut answer = Box::pin(stack.layer(handler).oneshot(request));
    let mut error = None;
    let panicked = match server {
        Server::Unwinds => {
            let reads = AssertUnwindSafe(async {
                let mut body = answer.await.unwrap().into_body();
                while asks(&body) {
                    match body.frame().await {
                        Some(frame) => drop(frame.unwrap()),
                        None => break,
                    }
                }
            });
            reads.catch_unwind().await.is_err()
        }
        Server::Drops | Server::AsksAgain => {
            match AssertUnwindSafe(&mut answer).catch_unwind().await {
                Err(_) => {
                    drop(answer);
                    true
                }
                Ok(response) => {
                    let mut body = response.unwrap().into_body();
                    let panicked = loop {
                        let asks = catch_unwind(AssertUnwindSafe(|| asks(&body)));
                        let frame = match asks {
                            Ok(true) => AssertUnwindSafe(body.frame()).catch_unwind().await,
                            Ok(false) => break false,
                            Err(payload) => Err(payload),
                        };
                        match frame {
                            Ok(Some(frame)) => drop(frame.unwrap()),
                            Ok(None) => break false,
                            Err(_) => break true,
                        }
                    };
                    if panicked {
                        body.size_hint();
                    }
                    if panicked && server == Server::AsksAgain {
                        error = body.frame().await.unwrap().err();
                        assert!(error.is_some(), "more comes behind a panic");
                    }
                    panicked
                }
            }
        }
    };
    // The teardown of what was dropped is a task.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = reports.lock().unwrap().pop();
    let closers = std::mem::take(&mut *closers.lock().unwrap());
    panicked.then(|| Seen {
        closers,
        report: report.expect("no report"),
        error,
    })
}

/// As hyper does ahead of a poll.
fn asks<B: Body>(body: &B) -> bool {
    body.size_hint();
    !body.is_end_stream()
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_hints_panic_has_panicked() {
    let mut seen = [0; 2];
    for server in [Server::Unwinds, Server::Drops, Server::AsksAgain] {
        for (version, sized) in [
            (Version::HTTP_11, false),
            (Version::HTTP_11, true),
            (Version::HTTP_2, true),
        ] {
            for (kind, nth) in (0..2).flat_map(|kind| (0..9).map(move |nth| (kind, nth))) {
                let odd = Odd::new(kind, nth, sized);
                let Some(told) = serve(odd, server, version).await else {
                    continue;
                };
                seen[kind] += 1;
                let case = format!("{server:?} {version:?} {sized} {kind} {nth}");
                let report = told.report;
                assert_eq!(report.outcome(), Outcome::Panicked, "{case}: {report:?}");
                assert_eq!(told.closers, [Outcome::Panicked], "{case}");
                let text = "response body panicked: see the panic's own report";
                assert_eq!(report.errors.len(), 1, "{case}: {report:?}");
                assert_eq!(report.errors[0].to_string(), text, "{case}");
                let cause = told.error.map(|error| error.cause().to_string());
                assert!(cause.is_none_or(|cause| cause == text), "{case}");
            }
        }
    }
    // At the head, at frames, at the length, and by the server.
    assert!(seen[0] > 20 && seen[1] > 10, "{seen:?}");
}
