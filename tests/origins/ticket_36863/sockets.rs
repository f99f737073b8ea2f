//! Over real sockets: clients that leave, sync code that stays.

use std::sync::atomic::{AtomicBool, Ordering};

use bodyguard::{DrainReport, Supervisor, net};
use tokio::task::JoinHandle;

use super::*;

struct Server {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    report: JoinHandle<std::io::Result<DrainReport>>,
}

impl Server {
    async fn start(app: Router, supervisor: &Supervisor, deadline: Duration) -> Self {
        let listener = net::WatchedListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serve = net::serve(listener, app)
            .supervisor(supervisor)
            .deadline(deadline)
            .shutdown(async { drop(stopped.await) });
        let report = Handle::current().spawn(serve.into_future());
        Self {
            address,
            stop,
            report,
        }
    }

    async fn get(&self) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        client.write_all(head).await.unwrap();
        client
    }

    async fn drained(self) -> DrainReport {
        drop(self.stop);
        soon(self.report).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_disconnect_is_a_broken_pipe_and_gives_the_thread_back() {
    let (told, end) = mpsc::channel();
    let pool = Pool::new();
    let handler = move |bridge: Bridge| {
        let told = told.clone();
        async move {
            bridge.body_writer(move |out| {
                let chunk = [b'x'; 16 * 1024];
                let error = loop {
                    if let Err(error) = out.write_all(&chunk) {
                        break error;
                    }
                };
                told.send((error.kind(), out.write(&chunk).unwrap_err().kind()))
                    .unwrap();
                Err(error)
            })
        }
    };
    let supervisor = Supervisor::new();
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().bridge_pool(&pool).supervisor(&supervisor));
    let server = Server::start(app, &supervisor, Duration::from_secs(10)).await;
    let mut client = server.get().await;
    soon(client.read_exact(&mut [0; 64 * 1024])).await.unwrap();
    assert_eq!((pool.threads(), pool.idle()), (1, 0));
    drop(client);
    let mut kinds = None;
    until(|| {
        kinds = kinds.or(end.try_recv().ok());
        kinds.is_some()
    })
    .await;
    let broken = std::io::ErrorKind::BrokenPipe;
    assert_eq!(kinds, Some((broken, broken)));
    until(|| pool.idle() == 1 && supervisor.active() == 0).await;
    assert!(server.drained().await.is_clean());
}

#[tokio::test]
async fn after_a_disconnect_the_iterator_is_dropped_on_its_own_thread() {
    struct Rows(mpsc::Sender<ThreadId>);
    impl Iterator for Rows {
        type Item = Bytes;
        fn next(&mut self) -> Option<Bytes> {
            Some(Bytes::from_static(&[b'x'; 16 * 1024]))
        }
    }
    impl Drop for Rows {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }
    let (dropped, dropped_on) = mpsc::channel();
    let (told, runs_on) = mpsc::channel();
    let pool = Pool::new();
    let handler = move |bridge: Bridge| {
        let (dropped, told) = (dropped.clone(), told.clone());
        async move {
            let id = bridge.call(|_| thread::current().id()).await.unwrap();
            told.send(id).unwrap();
            bridge.body_from_iter(Rows(dropped))
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    let server = Server::start(app, &Supervisor::new(), Duration::from_secs(10)).await;
    let mut client = server.get().await;
    soon(client.read_exact(&mut [0; 64 * 1024])).await.unwrap();
    drop(client);
    until(|| pool.idle() == 1).await;
    assert_eq!(dropped_on.try_recv().unwrap(), runs_on.recv().unwrap());
}

#[tokio::test]
async fn while_a_write_waits_for_a_slow_client_tasks_and_runs_go_on() {
    let pool = Pool::new();
    let (told, told_by) = tokio::sync::mpsc::unbounded_channel();
    let full = Arc::new(AtomicBool::new(false));
    let filled = Arc::clone(&full);
    let handler = move |bridge: Bridge| {
        let (told, full) = (told.clone(), Arc::clone(&filled));
        async move {
            let (ticks, runs, runner) = (told.clone(), told, bridge.clone());
            bridge
                .spawn_local(move || async move {
                    while ticks.send("tick").is_ok() {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                })
                .detach();
            Handle::current().spawn(async move {
                while runner.run(|| async {}).await.is_ok() {
                    let _ = runs.send("run");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
            bridge.body_writer(move |out| {
                for _ in 0..1_024 {
                    out.write_all(&[b'x'; 16 * 1024])?;
                }
                full.store(true, Ordering::SeqCst);
                Ok(())
            })
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(BridgeLayer::new().pool(&pool));
    let server = Server::start(app, &Supervisor::new(), Duration::from_secs(10)).await;
    let mut client = server.get().await;
    // Until nothing goes through any more; then both still tick.
    let mut told_by = told_by;
    let (mut ticks, mut runs) = (0, 0);
    soon(async {
        while ticks < 50 || runs < 50 {
            match told_by.recv().await.unwrap() {
                "tick" => ticks += 1,
                _ => runs += 1,
            }
        }
    })
    .await;
    assert!(!full.load(Ordering::SeqCst), "16 MiB fit in the way");
    let mut whole = Vec::new();
    soon(client.read_to_end(&mut whole)).await.unwrap();
    assert!(whole.len() > 16 * 1024 * 1024);
    assert!(full.load(Ordering::SeqCst));
    until(|| pool.idle() == 1).await;
}

/// Sync code that returns when the test says so.
fn stuck_app(
    pool: &Pool,
    supervisor: &Supervisor,
) -> (Router, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (started, has_started) = mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    let handler = sync_handler(move |_: &Cx, ()| {
        started.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
    });
    let app = Router::new()
        .route("/", get(handler))
        .layer(Stack::new().bridge_pool(pool).supervisor(supervisor));
    (app, release, has_started)
}

#[tokio::test]
async fn sync_code_that_never_returns_is_named_by_the_drain_and_does_not_block_it() {
    let (pool, supervisor) = (Pool::new(), Supervisor::new());
    let (app, release, started) = stuck_app(&pool, &supervisor);
    let server = Server::start(app, &supervisor, Duration::from_millis(200)).await;
    let _client = server.get().await;
    until(|| started.try_recv().is_ok()).await;
    let report = server.drained().await;
    assert_eq!(report.stuck.len(), 1, "{report}");
    let named = &report.stuck[0];
    assert!(
        named.starts_with("GET /: sync code called at tests/origins/")
            && named.contains("bridge-1"),
        "{named}"
    );
    // It comes back after all: nothing is lost.
    release.send(()).unwrap();
    until(|| pool.idle() == 1 && supervisor.active() == 0).await;
}

#[tokio::test]
async fn a_response_does_not_wait_for_it_for_ever_and_the_drain_still_names_it() {
    let pool = Pool::builder()
        .close_limit(Duration::from_millis(20))
        .build();
    let supervisor = Supervisor::new();
    let (app, release, started) = stuck_app(&pool, &supervisor);
    let server = Server::start(app, &supervisor, Duration::from_millis(200)).await;
    let client = server.get().await;
    until(|| started.try_recv().is_ok()).await;
    drop(client);
    // The scope is done, but the thread is not back: G12.
    until(|| supervisor.active() == 0).await;
    let report = server.drained().await;
    assert_eq!(report.stuck.len(), 1, "{report}");
    assert!(
        report.stuck[0].contains("sync code called at tests/origins/"),
        "{report}"
    );
    release.send(()).unwrap();
    until(|| pool.idle() == 1).await;
    assert!(
        soon(supervisor.drain(Duration::from_secs(5)))
            .await
            .is_clean()
    );
}
