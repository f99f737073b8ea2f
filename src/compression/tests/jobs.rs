//! Workers and the patience with them, without streams: on runtimes that are crowded or keep no time.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Handle, Runtime};

use super::{
    super::{
        encoder::Encoder,
        negotiation::Coding,
        options::{Core, Options},
        parallel::{LONG_BLOCK, Parallel},
        workers::{Job, Patience, STINT, TURN, Workers},
    },
    Taken, events, gunzip, layer,
    script::{Script, Step},
    stream,
    workers::plenty,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn core() -> Arc<Core> {
    Arc::new(Core::new(Options::default()))
}

/// A runtime with one blocking thread and no timers.
fn timerless() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.max_blocking_threads(1).build().unwrap()
}

/// Fails instead of hanging.
fn in_time<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || done.send(test()));
    finished.recv_timeout(DEADLINE).expect("panicked, or hangs")
}

/// The application's own work has the thread from the time this returns until the sender goes.
fn crowd(handle: &Handle) -> mpsc::Sender<()> {
    let (begins, begun) = mpsc::channel();
    let (done, waits) = mpsc::channel::<()>();
    drop(handle.spawn_blocking(move || {
        begins.send(()).unwrap();
        waits.recv()
    }));
    begun.recv_timeout(DEADLINE).expect("a thread");
    done
}

struct Does<F>(F);

impl<F: Fn() -> bool + Send + Sync> Job for Does<F> {
    fn run(&self) -> bool {
        (self.0)()
    }

    fn refuse(&self, _panicked: bool) {}
}

/// Work of some time.
fn last(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        thread::yield_now();
    }
}

/// Has a worker do something, so that the core has known one.
fn one_stint(core: &Arc<Core>, handle: &Handle) {
    let (done, finished) = mpsc::channel();
    let job = Does(move || done.send(()).is_err());
    Workers::submit(core, Arc::new(job), handle);
    finished.recv_timeout(DEADLINE).expect("a worker");
}

/// Holds up all workers but one until what is returned is dropped.
fn all_but_one(core: &Arc<Core>, handle: &Handle) -> Vec<mpsc::Sender<()>> {
    let (begins, begun) = mpsc::channel();
    let hold = |_| {
        let (release, held) = mpsc::channel::<()>();
        let (begins, held) = (begins.clone(), Mutex::new(held));
        let job = Does(move || {
            begins.send(()).unwrap();
            held.lock().unwrap().recv().is_ok()
        });
        Workers::submit(core, Arc::new(job), handle);
        begun.recv_timeout(DEADLINE).expect("a worker");
        release
    };
    (1..core.workers.limit()).map(hold).collect()
}

/// In which order the only worker does the blocks of two jobs.
fn order_of(blocks: usize, block: fn()) -> Vec<char> {
    let runtime = Builder::new_current_thread().build().unwrap();
    let core = core();
    let _held = all_but_one(&core, runtime.handle());
    let (tells, told) = mpsc::channel();
    let first = {
        let (core, handle) = (Arc::clone(&core), runtime.handle().clone());
        Does(move || {
            for name in ['a', 'b'] {
                let (tells, done) = (tells.clone(), AtomicUsize::new(0));
                let job = Does(move || {
                    block();
                    tells.send(name).is_ok() && done.fetch_add(1, SeqCst) + 1 < blocks
                });
                Workers::submit(&core, Arc::new(job), &handle);
            }
            false
        })
    };
    Workers::submit(&core, Arc::new(first), runtime.handle());
    (0..2 * blocks)
        .map(|_| told.recv_timeout(DEADLINE).expect("a worker"))
        .collect()
}

#[test]
fn a_worker_stays_with_a_job_for_a_turn_and_then_others_have_theirs() {
    let changes = |order: Vec<char>| order.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(changes(order_of(1000, || {})) < 500);
    assert!(changes(order_of(5, || last(TURN))) >= 7);
}

/// Who comes behind it waits for one block or two, and not for all.
#[test]
fn of_a_stream_in_parallel_only_the_first_block_has_just_come() {
    let (runtime, core) = (timerless(), core());
    let _crowd = crowd(runtime.handle());
    let Encoder::Gzip(gzip) = Encoder::for_stream(&core, Coding::Gzip) else {
        panic!("another");
    };
    let mut parallel = Parallel::start(&core, runtime.handle().clone(), gzip).unwrap();
    parallel.put(vec![b'x'; 4 * LONG_BLOCK].into());
    let (fresh, all) = core.workers.queued();
    assert_eq!((fresh, all > 3), (1, true));
}

#[test]
fn jobs_that_panic_whatever_is_asked_of_them_cost_no_worker() {
    struct Bad;
    impl Job for Bad {
        fn run(&self) -> bool {
            panic!("run");
        }
        fn refuse(&self, _: bool) {
            panic!("refuse");
        }
    }
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("drop");
        }
    }
    let runtime = Builder::new_current_thread().build().unwrap();
    let core = core();
    for _ in 0..2 * core.workers.limit() {
        Workers::submit(&core, Arc::new(Bad), runtime.handle());
    }
    one_stint(&core, runtime.handle());
}

#[test]
fn a_refusal_that_panics_does_not_keep_the_others_from_theirs() {
    struct Refused(Arc<AtomicUsize>);
    impl Job for Refused {
        fn run(&self) -> bool {
            false
        }
        fn refuse(&self, _: bool) {
            self.0.fetch_add(1, SeqCst);
            panic!("refuse");
        }
    }
    let dead = {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.handle().clone()
    };
    let runtime = Builder::new_current_thread().build().unwrap();
    let core = core();
    // The only worker left comes to the end of its stint.
    let held = all_but_one(&core, runtime.handle());
    let refused = Arc::<AtomicUsize>::default();
    let last = {
        let (refused, core) = (Arc::clone(&refused), core.clone());
        Does(move || {
            last(STINT);
            // There are as many workers as there may be: these wait, and the next is to be of their runtime.
            for _ in 0..3 {
                let job = Arc::new(Refused(Arc::clone(&refused)));
                Workers::submit(&core, job, &dead);
            }
            false
        })
    };
    Workers::submit(&core, Arc::new(last), runtime.handle());
    in_time(move || {
        while refused.load(SeqCst) < 3 {
            thread::yield_now();
        }
    });
    drop(held);
}

#[test]
fn a_worker_hands_over_when_its_time_is_over_however_few_its_blocks() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let core = core();
    let (tells, told) = mpsc::channel();
    let job = {
        let core = Arc::clone(&core);
        Does(move || {
            last(STINT);
            tells.send(core.workers.stints()).is_ok()
        })
    };
    Workers::submit(&core, Arc::new(job), runtime.handle());
    for stint in 1..=3 {
        assert_eq!(told.recv_timeout(DEADLINE), Ok(stint));
    }
}

#[test]
fn without_timers_a_body_does_its_blocks_at_once_although_there_were_workers_before() {
    let done = in_time(|| {
        let (runtime, core) = (timerless(), core());
        one_stint(&core, runtime.handle());
        let _crowd = crowd(runtime.handle());
        runtime.block_on(until_done(&core, 3))
    });
    assert_eq!(done, 3);
}

/// A job of so many blocks, and a body that waits for it with patience.
async fn until_done(core: &Arc<Core>, blocks: usize) -> usize {
    let done = Arc::<AtomicUsize>::default();
    let job = {
        let done = Arc::clone(&done);
        Does(move || done.fetch_add(1, SeqCst) + 1 < blocks)
    };
    Workers::submit(core, Arc::new(job), &Handle::current());
    let mut patience = Patience::default();
    poll_fn(|cx| match done.load(SeqCst) {
        done if done == blocks => Poll::Ready(done),
        _ => {
            patience.poll(core, cx);
            Poll::Pending
        }
    })
    .await
}

#[test]
fn without_timers_a_body_learns_that_the_worker_has_found_no_successor() {
    const BLOCKS: usize = 1000;
    in_time(|| {
        let (runtime, core) = (timerless(), core());
        let (sees, seen) = mpsc::channel::<()>();
        let (began, begins) = mpsc::channel::<()>();
        let seen = Mutex::new(Some(seen));
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let done = Arc::<AtomicUsize>::default();
        let job = {
            let (waker, done) = (Arc::clone(&waker), Arc::clone(&done));
            move || {
                // The worker's first block lasts until the body waits.
                if let Some(seen) = seen.lock().unwrap().take() {
                    began.send(()).unwrap();
                    seen.recv().unwrap();
                }
                let more = done.fetch_add(1, SeqCst) + 1 < BLOCKS;
                if !more {
                    waker.lock().unwrap().take().unwrap().wake();
                }
                more
            }
        };
        Workers::submit(&core, Arc::new(Does(job)), runtime.handle());
        begins.recv_timeout(DEADLINE).expect("a worker");
        // Behind the worker, and before any other.
        let (_done, waits) = mpsc::channel::<()>();
        drop(runtime.spawn_blocking(move || waits.recv()));
        let mut patience = Patience::default();
        let mut sees = Some(sees);
        runtime.block_on(poll_fn(|cx| {
            *waker.lock().unwrap() = Some(cx.waker().clone());
            if done.load(SeqCst) == BLOCKS {
                return Poll::Ready(());
            }
            patience.poll(&core, cx);
            if let Some(sees) = sees.take() {
                sees.send(()).unwrap();
            }
            Poll::Pending
        }));
    });
}

#[test]
fn with_timers_a_body_waits_for_one_limit_whatever_was_before() {
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let core = core();
    one_stint(&core, runtime.handle());
    let _crowd = crowd(runtime.handle());
    let done = Arc::<AtomicUsize>::default();
    let job = {
        let done = Arc::clone(&done);
        Does(move || done.fetch_add(1, SeqCst) > 0)
    };
    Workers::submit(&core, Arc::new(job), runtime.handle());
    let mut patience = Patience::default();
    runtime.block_on(async {
        for (advance, blocks) in [(0, 0), (49, 0), (2, 1)] {
            tokio::time::advance(Duration::from_millis(advance)).await;
            patience.poll(&core, &mut Context::from_waker(Waker::noop()));
            assert_eq!(done.load(SeqCst), blocks, "after {advance} ms more");
        }
    });
}

#[test]
fn streams_go_on_without_timers_and_threads_after_others_that_had_them() {
    let drained = in_time(|| {
        let runtime = timerless();
        let layer = layer();
        let drain = || async {
            let script = Script::new(plenty().into_iter().map(Step::Data));
            let mut body = Box::pin(stream(&layer, script));
            let mut taken = Taken::default();
            while taken.take(body.frame().await) {}
            taken
        };
        let first = runtime.block_on(drain());
        let _crowd = crowd(runtime.handle());
        let all = futures_util::future::join_all((0..3).map(|_| drain()));
        let mut all = runtime.block_on(all);
        all.push(first);
        all
    });
    let text = plenty().concat();
    for taken in drained {
        assert!(gunzip(&taken.wire) == text);
    }
}

/// A body's job is done by another body, which leaves it with more to do.
#[test]
fn bodies_on_several_threads_without_timers_wait_for_nobody() {
    for _ in 0..5 {
        let drained = in_time(|| {
            let runtime = Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(1)
                .build()
                .unwrap();
            let _crowd = crowd(runtime.handle());
            let layer = layer();
            let bodies: Vec<_> = (0..4)
                .map(|_| {
                    let script = Script::new(events(4_000).into_iter().map(Step::Data));
                    let body = stream(&layer, script);
                    runtime.spawn(async { body.collect().await.unwrap().to_bytes() })
                })
                .collect();
            let all = futures_util::future::join_all(bodies);
            let all = runtime.block_on(all);
            all.into_iter().map(Result::unwrap).collect::<Vec<Bytes>>()
        });
        for wire in drained {
            assert_eq!(gunzip(&wire).len(), events(4_000).concat().len());
        }
    }
}
