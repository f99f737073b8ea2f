//! Drives a body wrapper through every exit and checks that it keeps to the rules of bodies.

use std::{
    fmt::Debug,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::Buf;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, SizeHint};

use super::Script;

/// How long a wrapper may leave its task asleep although the inner body has woken it.
const ASLEEP: Duration = Duration::from_secs(600);

/// Drives a body wrapper through every exit; gives the number of runs.
///
/// For each of some twenty scripted bodies the wrapper is read to its end as hyper would, and dropped
/// after 0, 1, 2 … polls. It must
/// - poll the inner body never after its end, an error or its end hint, and not at all before it is
///   polled itself;
/// - end with an error if the inner body does, and pass its panic on;
/// - not sleep while the inner body is ready;
/// - give size hints that hold: at every moment, what then came lies between the bounds;
/// - say `is_end_stream` only when nothing more comes;
/// - stay at its end when polled again;
/// - drop the inner body when it is dropped.
///
/// It needs a tokio runtime with time; pause that (`start_paused = true`), or waits are real. What
/// the frames carry is not looked at: see [`conformance_of_content`] for wrappers that change nothing.
///
/// # Panics
/// With the name of the script and what went wrong.
pub async fn conformance<B>(wrap: impl FnMut(Script) -> B) -> usize
where
    B: Body,
    B::Error: Debug,
{
    Checks {
        wrap,
        content: false,
    }
    .run()
    .await
}

/// As [`conformance`], and data and trailers must pass unchanged, in any split of frames.
pub async fn conformance_of_content<B>(wrap: impl FnMut(Script) -> B) -> usize
where
    B: Body,
    B::Error: Debug,
{
    Checks {
        wrap,
        content: true,
    }
    .run()
    .await
}

/// A script and what a transparent wrapper gives for it.
struct Case {
    name: &'static str,
    script: fn() -> Script,
    expect: Expect,
}

#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Data(&'static str),
    DataAndTrailers(&'static str),
    Error,
    Panic,
    Hang,
}

fn trailers() -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("checksum", HeaderValue::from_static("7"));
    map
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("empty", Script::new, Expect::Data("")),
    case("empty, pending", || Script::new().pending(), Expect::Data("")),
    case("empty, end hint", || Script::new().end_hint(), Expect::Data("")),
    case("empty, exact hint", || Script::new().exact_hint(), Expect::Data("")),
    case("empty, both hints", || Script::new().exact_hint().end_hint(), Expect::Data("")),
    case("one frame", || Script::new().data("abc"), Expect::Data("abc")),
    case("one frame, end hint", || Script::new().data("abc").end_hint(), Expect::Data("abc")),
    case("one frame, exact hint", || Script::new().data("abc").exact_hint(), Expect::Data("abc")),
    case("one frame, both hints", || Script::new().data("abc").exact_hint().end_hint(), Expect::Data("abc")),
    case("frames", || Script::new().data("a").pending().data("b").data("c").pending(), Expect::Data("abc")),
    case("frames, end hint", || Script::new().pending().data("a").pending().data("bc").end_hint(), Expect::Data("abc")),
    case("frames, exact hint", || Script::new().data("a").pending().data("bc").pending().exact_hint(), Expect::Data("abc")),
    case("frames, both hints", || Script::new().data("a").pending().data("bc").exact_hint().end_hint(), Expect::Data("abc")),
    case("an upper bound", || Script::new().data("a").data("bc").hint(upper(5)), Expect::Data("abc")),
    case("empty frames", || Script::new().data("").pending().data("a").data(""), Expect::Data("a")),
    case("trailers", || Script::new().data("ab").pending().trailers(trailers()), Expect::DataAndTrailers("ab")),
    case("trailers, end hint", || Script::new().data("ab").trailers(trailers()).end_hint(), Expect::DataAndTrailers("ab")),
    case("trailers, exact hint", || Script::new().data("ab").pending().trailers(trailers()).exact_hint(), Expect::DataAndTrailers("ab")),
    case("trailers only", || Script::new().trailers(trailers()), Expect::DataAndTrailers("")),
    case("error", || Script::new().error("disk"), Expect::Error),
    case("error behind a frame", || Script::new().data("ab").pending().error("disk"), Expect::Error),
    case("panic", || Script::new().panic("scripted"), Expect::Panic),
    case("panic behind a frame", || Script::new().data("ab").pending().panic("scripted"), Expect::Panic),
    case("hang", || Script::new().hang(), Expect::Hang),
    case("hang behind a frame", || Script::new().data("ab").hang(), Expect::Hang),
];

const fn case(name: &'static str, script: fn() -> Script, expect: Expect) -> Case {
    Case {
        name,
        script,
        expect,
    }
}

fn upper(upper: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_upper(upper);
    hint
}

struct Checks<W> {
    wrap: W,
    content: bool,
}

/// How a run ended.
#[derive(Debug, PartialEq)]
enum End {
    Whole,
    Error,
    Panic,
    /// Dropped by the check.
    Left,
}

impl<W, B> Checks<W>
where
    W: FnMut(Script) -> B,
    B: Body,
    B::Error: Debug,
{
    async fn run(mut self) -> usize {
        let mut runs = 0;
        for case in CASES {
            if case.expect != Expect::Hang {
                self.run_out(case).await;
                runs += 1;
            }
            let mut polls = 0;
            while self.dropped_after(case, polls).await == End::Left {
                runs += 1;
                polls += 1;
                // A hanging body can be dropped after any number of polls.
                if polls > 12 {
                    break;
                }
            }
        }
        runs
    }

    async fn run_out(&mut self, case: &Case) {
        let name = case.name;
        let script = (case.script)();
        let probe = script.probe();
        let wrapped = catch_unwind(AssertUnwindSafe(|| (self.wrap)(script)));
        let Ok(wrapped) = wrapped else {
            assert!(case.expect == Expect::Panic, "{name}: making it panicked");
            return;
        };
        assert_eq!(probe.polls(), 0, "{name}: polled before it was asked");
        let mut run = Run::new(name, wrapped);
        let end = run.read().await;
        let after_end = probe.was_polled_after_end();
        assert!(!after_end, "{name}: inner body polled after its end");
        match case.expect {
            Expect::Data(_) | Expect::DataAndTrailers(_) => assert_eq!(end, End::Whole, "{name}"),
            Expect::Error => assert_eq!(end, End::Error, "{name}"),
            Expect::Panic => assert_eq!(end, End::Panic, "{name}"),
            Expect::Hang => {}
        }
        if end == End::Whole {
            run.check_hints();
        }
        if end != End::Panic {
            run.poll_again();
        }
        if self.content {
            run.check_content(case);
        }
        drop(run);
        assert!(
            probe.is_dropped(),
            "{name}: inner body outlives its wrapper"
        );
        let after_end = probe.was_polled_after_end();
        assert!(!after_end, "{name}: polled again, it polled its inner body");
    }

    async fn dropped_after(&mut self, case: &Case, polls: usize) -> End {
        let name = case.name;
        let script = (case.script)();
        let probe = script.probe();
        let Ok(wrapped) = catch_unwind(AssertUnwindSafe(|| (self.wrap)(script))) else {
            return End::Panic;
        };
        let mut run = Run::new(name, wrapped);
        let end = run.poll_times(polls).await;
        drop(run);
        assert!(
            probe.is_dropped(),
            "{name}: dropped after {polls} polls, the inner body lives on"
        );
        let after_end = probe.was_polled_after_end();
        assert!(!after_end, "{name}: inner body polled after its end");
        end
    }
}

/// One body being read, and what was seen on the way.
struct Run<B> {
    name: &'static str,
    body: Pin<Box<B>>,
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// Size hints, each with the number of bytes that had come before.
    hints: Vec<(u64, SizeHint)>,
}

impl<B: Body> Run<B>
where
    B::Error: Debug,
{
    fn new(name: &'static str, body: B) -> Self {
        Self {
            name,
            body: Box::pin(body),
            data: Vec::new(),
            trailers: None,
            hints: Vec::new(),
        }
    }

    /// Reads as hyper does: to `None`, an error, the end hint or trailers.
    async fn read(&mut self) -> End {
        let mut asleep = pin!(tokio::time::sleep(ASLEEP));
        poll_fn(|cx| {
            // First: that it is over would be a poll that nobody asked for, and find what nobody was told of.
            if asleep.as_mut().poll(cx).is_ready() {
                panic!("{}: it sleeps, and nobody wakes it", self.name);
            }
            loop {
                match self.step(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(end)) => return Poll::Ready(end),
                    Poll::Ready(None) => {}
                }
            }
        })
        .await
    }

    async fn poll_times(&mut self, polls: usize) -> End {
        for _ in 0..polls {
            let mut end = None;
            poll_fn(|cx| {
                end = match self.step(cx) {
                    Poll::Ready(end) => end,
                    Poll::Pending => None,
                };
                Poll::Ready(())
            })
            .await;
            if let Some(end) = end {
                return end;
            }
            // Whatever it has set going elsewhere gets its turn.
            tokio::task::yield_now().await;
        }
        End::Left
    }

    /// One poll; `Ready(Some)` at an end.
    fn step(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<End>> {
        if self.body.is_end_stream() {
            return Poll::Ready(Some(End::Whole));
        }
        self.hints
            .push((self.data.len() as u64, self.body.size_hint()));
        let polled = catch_unwind(AssertUnwindSafe(|| self.body.as_mut().poll_frame(cx)));
        let Ok(polled) = polled else {
            return Poll::Ready(Some(End::Panic));
        };
        polled.map(|frame| match frame {
            None => Some(End::Whole),
            Some(Err(_)) => Some(End::Error),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => {
                    self.data.extend(data.copy_to_bytes(data.remaining()));
                    None
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    Some(End::Whole)
                }
            },
        })
    }

    fn check_hints(&self) {
        let total = self.data.len() as u64;
        for (before, hint) in &self.hints {
            let rest = total - before;
            let holds = hint.lower() <= rest && hint.upper().is_none_or(|upper| rest <= upper);
            assert!(
                holds,
                "{}: after {before} bytes the size hint was {hint:?}, and {rest} bytes came",
                self.name
            );
        }
    }

    /// At its end it stays there. A wrapper that has only said so by a hint is not polled.
    fn poll_again(&mut self) {
        if self.body.is_end_stream() || self.trailers.is_some() {
            return;
        }
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let again = catch_unwind(AssertUnwindSafe(|| {
            let polled = self.body.as_mut().poll_frame(&mut cx);
            matches!(polled, Poll::Ready(None))
        }));
        assert!(
            matches!(again, Ok(true)),
            "{}: polled after its end it does not stay there",
            self.name
        );
    }

    fn check_content(&self, case: &Case) {
        let (data, with_trailers) = match case.expect {
            Expect::Data(data) => (data, false),
            Expect::DataAndTrailers(data) => (data, true),
            Expect::Error | Expect::Panic | Expect::Hang => return,
        };
        assert_eq!(self.data, data.as_bytes(), "{}: data", self.name);
        let expected = with_trailers.then(trailers);
        assert_eq!(self.trailers, expected, "{}: trailers", self.name);
    }
}
