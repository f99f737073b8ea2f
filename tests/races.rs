//! The end, a drop, a stall, late closers, tasks, holds, cancel and shutdown, all at once: 10,000
//! seeded schedules, half of them in the movable mode.
//!
//! loom does not reach here: tokio's tasks and timers are no model. `BODYGUARD_SEED` picks the first seed,
//! `BODYGUARD_SCHEDULES` how many follow.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use bodyguard::{
    Cleanup, CleanupLayer, Disconnect, EndReport, Outcome, Shutdown, Stack, Supervisor, TaskGroup,
    testing::Script,
};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn};

/// A small generator: the schedule is a function of the seed (and of the machine's mood).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn split(&mut self) -> Self {
        Self(self.next())
    }

    /// A moment of any length up to some microseconds, or a turn of the scheduler.
    async fn moment(&mut self) {
        for _ in 0..self.below(400) {
            std::hint::spin_loop();
        }
        if self.one_in(3) {
            tokio::task::yield_now().await;
        }
    }
}

#[derive(Default)]
struct Ledger {
    registered: AtomicUsize,
    ran: AtomicUsize,
    /// Closers registered by the handler, as they ran: last first.
    order: Mutex<Vec<usize>>,
    reports: Mutex<Vec<EndReport>>,
}

impl Ledger {
    fn closer(self: &Arc<Self>, cleanup: &Cleanup, kind: u64) {
        self.registered.fetch_add(1, SeqCst);
        let ledger = self.clone();
        let ran = move || ledger.ran.fetch_add(1, SeqCst);
        match kind {
            0 => drop(cleanup.defer_sync(move |_| {
                ran();
            })),
            1 => drop(cleanup.defer_after_end(move |_| async move {
                ran();
                Ok(())
            })),
            _ => drop(cleanup.defer(move |_| async move {
                tokio::task::yield_now().await;
                ran();
                Ok(())
            })),
        }
    }
}

fn body(random: &mut Random) -> Script {
    let script = Script::new().data("a").pending().data("b").pending();
    match random.below(5) {
        0 => script,
        1 => script.exact_hint(),
        2 => script.error("disk"),
        3 => script.data("c").end_hint(),
        _ => script.hang(),
    }
}

async fn schedule(seed: u64) -> Outcome {
    let mut random = Random(seed);
    let (ledger, supervisor) = (Arc::new(Ledger::default()), Supervisor::new());
    let reports = ledger.clone();
    let stack = Stack::new()
        .supervisor(&supervisor)
        .shutdown(Shutdown::abort())
        .error_gap(Duration::ZERO)
        .on_end(move |report| reports.reports.lock().unwrap().push(report.clone()));
    let layer = CleanupLayer::new();
    let views = Mutex::new(None);
    let body = Mutex::new(Some(body(&mut random)));
    let ordered = ledger.clone();
    let handler = service_fn(|request: Request<()>| {
        let cleanup = Cleanup::of(&request).unwrap();
        for number in 0..3 {
            let ledger = ordered.clone();
            ordered.registered.fetch_add(1, SeqCst);
            cleanup.defer_sync(move |_| {
                ledger.ran.fetch_add(1, SeqCst);
                ledger.order.lock().unwrap().push(number);
            });
        }
        let group = TaskGroup::of(&request).unwrap();
        let disconnect = Disconnect::of(&request).unwrap();
        *views.lock().unwrap() = Some((cleanup, group, disconnect));
        let body = body.lock().unwrap().take().unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let handler = layer.layer(handler);
    // Armed to stall, armed for nothing that will come, or not armed.
    let stalls = random.one_in(4);
    let timeout = Duration::from_millis(if stalls { 1 } else { 60_000 });
    let response = if stalls || random.one_in(3) {
        let service = stack.stall_timeout(timeout).layer(handler);
        let response = service.oneshot(Request::new(())).await.unwrap();
        response.map(BodyExt::boxed_unsync)
    } else {
        let response = stack.layer(handler).oneshot(Request::new(())).await;
        response.unwrap().map(BodyExt::boxed_unsync)
    };
    let (cleanup, group, disconnect) = views.lock().unwrap().take().unwrap();

    let mut racers = JoinSet::new();
    let mut owner = random.split();
    racers.spawn(async move {
        let mut body = Box::pin(response.into_body());
        let (polls, mut taken) = (owner.below(8), false);
        for poll in 0..16 {
            // The watchdog bites only after a frame that nobody follows up.
            if poll >= polls && (taken || !stalls) {
                break;
            }
            owner.moment().await;
            let poll = |cx: &mut std::task::Context<'_>| {
                let polled = Pin::new(&mut body).poll_frame(cx);
                taken = matches!(polled, Poll::Ready(Some(Ok(_))));
                Poll::Ready(matches!(polled, Poll::Ready(None | Some(Err(_)))))
            };
            if poll_fn(poll).await {
                break;
            }
        }
        if stalls && !owner.one_in(4) {
            // About the time at which the watchdog comes by, before or after the drop.
            tokio::time::sleep(Duration::from_micros(500 + owner.below(4_000))).await;
        }
    });
    if random.one_in(2) {
        let hold = disconnect.hold();
        let mut random = random.split();
        racers.spawn(async move {
            random.moment().await;
            if random.one_in(2) {
                hold.finish(Outcome::Complete);
            }
        });
    }
    // Others that end it would mostly come before a watchdog.
    let alone = stalls && !random.one_in(4);
    if !alone && random.one_in(2) {
        let mut random = random.split();
        racers.spawn(async move {
            random.moment().await;
            disconnect.cancel();
        });
    }
    if !alone && random.one_in(3) {
        let mut random = random.split();
        let supervisor = supervisor.clone();
        racers.spawn(async move {
            random.moment().await;
            supervisor.begin_shutdown();
        });
    }
    if random.one_in(2) {
        let mut random = random.split();
        racers.spawn(async move {
            random.moment().await;
            let fails = random.one_in(3);
            let _ = group.spawn(async move {
                tokio::task::yield_now().await;
                if fails { Err("task".into()) } else { Ok(()) }
            });
        });
    }
    for _ in 0..2 {
        let mut random = random.split();
        let (ledger, cleanup) = (ledger.clone(), cleanup.clone());
        racers.spawn(async move {
            for _ in 0..3 {
                random.moment().await;
                let kind = random.below(3);
                ledger.closer(&cleanup, kind);
            }
        });
    }
    while let Some(racer) = racers.join_next().await {
        racer.unwrap();
    }
    let done = supervisor.drain(Duration::from_secs(20)).await;
    assert!(done.is_clean(), "seed {seed}: {done}");
    let registered = ledger.registered.load(SeqCst);
    assert_eq!(ledger.ran.load(SeqCst), registered, "seed {seed}: closers");
    assert_eq!(registered, 9);
    assert_eq!(*ledger.order.lock().unwrap(), [2, 1, 0], "seed {seed}");
    assert_eq!(supervisor.active(), 0);
    let reports = ledger.reports.lock().unwrap();
    assert_eq!(reports.len(), 1, "seed {seed}: reports");
    assert_eq!(reports[0].counts.closers_unrun, 0, "seed {seed}");
    reports[0].outcome()
}

fn from_env(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_closer_runs_once_whatever_comes_together() {
    let first = from_env("BODYGUARD_SEED", 1);
    let schedules = from_env("BODYGUARD_SCHEDULES", 10_000);
    let mut outcomes = std::collections::BTreeMap::new();
    for seed in first..first + schedules {
        let running = tokio::time::timeout(Duration::from_secs(30), schedule(seed));
        let outcome = running
            .await
            .unwrap_or_else(|_| panic!("seed {seed} hangs"));
        *outcomes.entry(outcome.as_str()).or_insert(0) += 1;
    }
    println!("{schedules} schedules from seed {first}: {outcomes:?}");
    assert!(
        schedules < 1_000
            || (outcomes.len() >= 5 && outcomes.contains_key(Outcome::Stalled.as_str())),
        "{outcomes:?}"
    );
}
