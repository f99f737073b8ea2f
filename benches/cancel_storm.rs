//! Many live groups of two tasks, all dropped at once: how the time grows with their number.
//!
//! Each group is the body of a response under `TaskGroupLayer` and one supervisor; its two tasks
//! wait for ever, one of them in a `send` that finds no room. The clock runs from the first drop
//! until the last task's future is gone, by guards in the tasks, and the supervisor is idle.
//!
//! `cargo bench --bench cancel_storm [-- --quick]`

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bodyguard::{Supervisor, TaskGroup, TaskGroupLayer, scope::ScopeBody, task_group::GroupBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};

const FEW: usize = 1_000;
const MANY: usize = 10_000;
const GOAL: f64 = 12.0;

struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self(live.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn main() {
    let rounds = if std::env::args().any(|arg| arg == "--quick") {
        3
    } else {
        11
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let (mut few, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        // Paired, in turns.
        let times = match round % 2 {
            0 => {
                let first = runtime.block_on(storm(FEW));
                (first, runtime.block_on(storm(MANY)))
            }
            _ => {
                let first = runtime.block_on(storm(MANY));
                (runtime.block_on(storm(FEW)), first)
            }
        };
        // The first round warms the allocator.
        if round > 0 {
            few.push(times.0.as_secs_f64() * 1e3);
            many.push(times.1.as_secs_f64() * 1e3);
            ratios.push(times.1.as_secs_f64() / times.0.as_secs_f64());
        }
    }
    println!("groups dropped at once | until the last task is gone, median");
    println!("{FEW} | {:.2} ms", median(&mut few));
    println!("{MANY} | {:.2} ms", median(&mut many));
    let ratio = median(&mut ratios);
    let verdict = if ratio <= GOAL { "ok" } else { "short" };
    println!("ratio cancel_storm {ratio:.2} goal {GOAL:.0} {verdict}");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The time that it takes to cancel and tear down this many groups.
async fn storm(groups: usize) -> Duration {
    let live = Arc::new(AtomicUsize::new(0));
    let supervisor = Supervisor::new();
    let mut bodies = Vec::with_capacity(groups);
    for _ in 0..groups {
        let mut body = respond(&supervisor, &live).await.into_body();
        body.frame().await.expect("a frame").expect("no error");
        bodies.push(body);
    }
    while live.load(Ordering::SeqCst) != 2 * groups {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    drop(bodies);
    while live.load(Ordering::SeqCst) > 0 || supervisor.active() > 0 {
        tokio::task::yield_now().await;
    }
    start.elapsed()
}

async fn respond(
    supervisor: &Supervisor,
    live: &Arc<AtomicUsize>,
) -> Response<ScopeBody<GroupBody>> {
    let handler = service_fn(|request: Request<()>| {
        let group = TaskGroup::of(&request).expect("a layer");
        let guards = [Guard::new(live), Guard::new(live)];
        let tasks = group.clone();
        let body = group.body(|tx| async move {
            let [waiting, sending] = guards;
            tasks.spawn(async move {
                let _guard = waiting;
                pending().await
            })?;
            tasks.spawn(async move {
                let _guard = sending;
                let frame = Bytes::from_static(&[b'x'; 16 * 1024]);
                loop {
                    tx.send(frame.clone()).await?;
                }
            })?;
            Ok(())
        });
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let service = TaskGroupLayer::new().supervisor(supervisor).layer(handler);
    match service.oneshot(Request::new(())).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
