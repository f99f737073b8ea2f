//! Time limits that survive a runtime without timers, or one that is gone.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{EnterGuard, Handle, Id},
    time::Sleep,
};

use super::failure::contained;

/// A time limit that costs nothing until it is first waited for.
///
/// tokio's timers panic where the runtime has no time driver or is shutting down; a limit that
/// cannot be kept is then no limit, and the guard of the teardown accounts for what is lost.
#[derive(Debug)]
pub(crate) struct Limit {
    duration: Duration,
    state: Timer,
}

#[derive(Debug)]
enum Timer {
    Unset,
    /// On this runtime.
    Running(Pin<Box<Sleep>>, Handle),
    Broken,
}

impl Limit {
    pub(crate) fn new(duration: Duration) -> Self {
        Self {
            duration,
            state: Timer::Unset,
        }
    }

    pub(super) fn duration(&self) -> Duration {
        self.duration
    }

    /// Ready once the time is over; starts counting at the first call.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(left) = self.to_be_set() {
            self.state = match (Handle::try_current(), timer(left)) {
                (Ok(here), Some(sleep)) => Timer::Running(Box::pin(sleep), here),
                _ => Timer::Broken,
            };
        }
        let Timer::Running(sleep, _) = &mut self.state else {
            return Poll::Pending;
        };
        let sleep = tokio::task::unconstrained(sleep.as_mut());
        contained(|| pin!(sleep).poll(cx)).unwrap_or_else(|_| {
            self.state = Timer::Broken;
            Poll::Pending
        })
    }

    /// The same, and at once where no timer can be had.
    pub(crate) fn poll_if_kept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll(cx) {
            Poll::Pending if !self.is_broken() => Poll::Pending,
            Poll::Pending | Poll::Ready(()) => Poll::Ready(()),
        }
    }

    /// Counts anew, from now on; what cannot be kept stays so.
    pub(crate) fn restart(&mut self, duration: Duration) {
        self.duration = duration;
        // Where that is too far to be told, the timer's own makes the best of it.
        let until = tokio::time::Instant::now().checked_add(duration);
        let reset = match (&mut self.state, until) {
            (Timer::Unset | Timer::Broken, _) => return,
            (Timer::Running(sleep, on), Some(until)) if is_kept_by(on) => {
                contained(|| sleep.as_mut().reset(until)).is_ok()
            }
            (Timer::Running(..), _) => false,
        };
        if !reset {
            self.state = Timer::Unset;
        }
    }

    /// How long a timer has to be set for, if one has: none is, or it is that of a runtime we have left,
    /// which may have gone.
    fn to_be_set(&self) -> Option<Duration> {
        match &self.state {
            Timer::Unset => Some(self.duration),
            Timer::Running(sleep, on) if !is_kept_by(on) => {
                let now = tokio::time::Instant::now();
                Some(sleep.deadline().saturating_duration_since(now))
            }
            Timer::Running(..) | Timer::Broken => None,
        }
    }

    /// Whether no timer could be had, so that waiting for it would be waiting for ever.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.state, Timer::Broken)
    }
}

/// The runtime that we are in.
fn here() -> Option<Id> {
    Handle::try_current().ok().map(|handle| handle.id())
}

/// Goes into the runtime of a call, for its timers, and what the application does there.
///
/// None is entered if we are there already, which is nearly always so; or if it has been shut down, when
/// its timers panic: then all is done where we are.
pub(super) fn enter(runtime: Option<&Handle>) -> Option<EnterGuard<'_>> {
    let runtime = runtime.filter(|runtime| here() != Some(runtime.id()))?;
    is_alive(runtime).then(|| runtime.enter())
}

/// Whether a timer of this runtime can be asked here: elsewhere it is set anew, and where there is no other
/// only as long as its own is there.
fn is_kept_by(runtime: &Handle) -> bool {
    match here() {
        Some(here) => here == runtime.id(),
        None => is_alive(runtime),
    }
}

/// tokio can only be asked by trying. What is alive does not finish this; what goes at this very moment
/// makes the timer panic, which is contained.
fn is_alive(runtime: &Handle) -> bool {
    let probe = runtime.spawn(std::future::pending::<()>());
    let alive = !probe.is_finished();
    probe.abort();
    alive
}

/// Waits for a future up to a limit; `None` if the limit came first.
pub(super) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let (mut limit, mut future) = (Limit::new(limit), pin!(future));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => limit.poll(cx).map(|()| None),
    })
    .await
}

/// A timer of the runtime that we are in; none if that has none, or there is no runtime.
///
/// tokio can only be asked by trying, and where there are no timers that is a panic, which the
/// process's hook prints. A runtime found without them is therefore left in peace for a while.
pub(crate) fn timer(duration: Duration) -> Option<Sleep> {
    let here = here()?;
    if TIMERLESS.has(here) {
        return None;
    }
    let sleep = contained(|| tokio::time::sleep(duration));
    sleep.inspect_err(|_| TIMERLESS.add(here)).ok()
}

/// How long a runtime is known to have no timers. Not for good: its id may come to be another's.
const KNOWN_FOR: Duration = Duration::from_secs(600);

static TIMERLESS: Timerless = Timerless {
    any: AtomicBool::new(false),
    seen: Mutex::new(Vec::new()),
};

/// Runtimes without timers, and when that was seen.
struct Timerless {
    /// Whether there ever was one: in most processes there is none, and nothing is locked.
    any: AtomicBool,
    seen: Mutex<Vec<(Id, Instant)>>,
}

impl Timerless {
    fn has(&self, runtime: Id) -> bool {
        self.any.load(Ordering::Relaxed)
            && self.with(|seen| seen.iter().any(|(id, _)| *id == runtime))
    }

    fn add(&self, runtime: Id) {
        self.any.store(true, Ordering::Relaxed);
        self.with(|seen| seen.push((runtime, Instant::now())));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<(Id, Instant)>) -> T) -> T {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(_, at)| at.elapsed() < KNOWN_FOR);
        f(&mut seen)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A timer needs no context to be asked.
    #[test]
    fn is_kept_by_a_thread_without_a_runtime() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut limit = Limit::new(Duration::from_millis(1));
        {
            let _context = runtime.enter();
            assert!(limit.poll(&mut cx).is_pending());
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while limit.poll(&mut cx).is_pending() {
            assert!(!limit.is_broken() && Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
