//! Clients that stop reading, on real sockets, with a real transaction behind them.
#![expect(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use bodyguard::{
    Cleanup, DrainReport, EndReport, Outcome, Stack, Supervisor, TaskGroup,
    disconnect::DisconnectBody,
    net::{self, Peer, WatchedListener},
    task_group::FrameBody,
};
use http::Request;
use sqlx::{
    Sqlite, Transaction,
    sqlite::{SqlitePool, SqlitePoolOptions},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Mutex, Notify, mpsc},
    task::JoinHandle,
};

mod support;
use support::{Http2, eventually, within};

const TIMEOUT: Duration = Duration::from_millis(700);

/// An export of endless rows inside a transaction, one connection in the pool.
struct Server {
    addr: std::net::SocketAddr,
    pool: SqlitePool,
    producers: Arc<AtomicUsize>,
    supervisor: Supervisor,
    reports: mpsc::UnboundedReceiver<EndReport>,
    stop: Arc<Notify>,
    running: JoinHandle<std::io::Result<DrainReport>>,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn export(
    cleanup: Cleanup,
    group: TaskGroup,
    pool: SqlitePool,
    producers: Arc<AtomicUsize>,
    pause: Duration,
) -> impl axum::response::IntoResponse {
    let mut transaction: Transaction<'static, Sqlite> = pool.begin().await.unwrap();
    let note = "insert into exports (name) values ('under way')";
    sqlx::query(note).execute(&mut *transaction).await.unwrap();
    let shared = Arc::new(Mutex::new(Some(transaction)));
    let of_task = shared.clone();
    cleanup.defer(move |ending| async move {
        let transaction = shared.lock().await.take().unwrap();
        if ending.succeeded() {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(())
    });
    producers.fetch_add(1, SeqCst);
    let counted = Counted(producers);
    group.body(move |tx| async move {
        let _counted = counted;
        loop {
            let row: String = {
                let mut transaction = of_task.lock().await;
                let transaction = transaction.as_mut().ok_or("over")?;
                let row = sqlx::query_scalar("select hex(randomblob(8000))");
                row.fetch_one(&mut **transaction).await?
            };
            tx.send(row).await?;
            tokio::time::sleep(pause).await;
        }
    })
}

impl Server {
    /// Small socket buffers: the kernel then takes a few hundred KB, and not megabytes.
    async fn start(pause: Duration) -> Self {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(20))
            .connect("sqlite::memory:")
            .await
            .unwrap();
        let table = "create table exports (name text)";
        sqlx::query(table).execute(&pool).await.unwrap();
        let producers = Arc::new(AtomicUsize::new(0));
        let (report, reports) = mpsc::unbounded_channel();
        let supervisor = Supervisor::new();
        let state = (pool.clone(), producers.clone());
        let app = Router::new()
            .route(
                "/",
                get(move |cleanup: Cleanup, group: TaskGroup| {
                    let (pool, producers) = state.clone();
                    export(cleanup, group, pool, producers, pause)
                }),
            )
            .layer(
                Stack::new()
                    .supervisor(&supervisor)
                    .on_end(move |end| drop(report.send(end.clone())))
                    .stall_timeout(TIMEOUT),
            );
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = WatchedListener::from(socket.listen(16).unwrap());
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        let server = net::serve(listener, app)
            .supervisor(&supervisor)
            .deadline(Duration::from_secs(4))
            .shutdown(async move { stopped.notified().await });
        Self {
            addr,
            pool,
            producers,
            supervisor,
            reports,
            stop,
            running: tokio::spawn(server.into_future()),
        }
    }

    async fn get(&self) -> TcpStream {
        self.get_coded("identity").await
    }

    async fn get_coded(&self, coding: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        let mut client = within(socket.connect(self.addr)).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: {coding}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    /// The response has stalled: nothing of it is left.
    async fn stalled(&mut self, since: Instant) {
        let report = within(self.reports.recv()).await.unwrap();
        println!("{:?} after {:?}", report.outcome(), since.elapsed());
        assert_eq!(report.outcome(), Outcome::Stalled);
        assert_eq!(report.counts.closers_run, 1);
        assert_eq!(report.counts.closers_failed, 0, "{:?}", report.errors);
        assert_eq!(self.producers.load(SeqCst), 0);
        assert_eq!(self.supervisor.active(), 0);
        let count = "select count(*) from exports";
        let rows: i64 = within(sqlx::query_scalar(count).fetch_one(&self.pool))
            .await
            .unwrap();
        assert_eq!(
            rows, 0,
            "rolled back, and the connection is back in its pool"
        );
    }

    async fn stop(self) {
        self.stop.notify_one();
        let report = within(self.running).await.unwrap().unwrap();
        assert!(report.is_clean(), "{report}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_over_http1_loses_its_socket() {
    let mut server = Server::start(Duration::ZERO).await;
    let mut client = server.get().await;
    let asked = Instant::now();
    server.stalled(asked).await;
    // What was queued may still come, and then no clean end.
    let mut all = Vec::new();
    let end = within(client.read_to_end(&mut all)).await;
    assert!(end.is_err(), "reset, not closed: {} bytes", all.len());
    server.stop().await;
}

/// An encoder polls its source until that is pending, and then may have more than its server takes.
#[tokio::test]
async fn a_client_that_reads_nothing_of_a_compressed_stream() {
    // Producers that fill the buffer, and such as are slower than the encoder.
    for pause in [Duration::ZERO, Duration::from_millis(1)] {
        let mut server = Server::start(pause).await;
        let client = server.get_coded("gzip").await;
        let asked = Instant::now();
        server.stalled(asked).await;
        drop(client);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(10_000);
        let mut client = Http2::connect_with(server.addr, &mut builder).await;
        let (response, _stream) = client.request_coded("GET", "gzip");
        let response = within(response).await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let asked = Instant::now();
        server.stalled(asked).await;
        drop((response, client));
        server.stop().await;
    }
}

#[tokio::test]
async fn a_window_that_stays_shut_over_http2_ends_the_stream_alone() {
    let mut server = Server::start(Duration::ZERO).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(10_000);
    let mut client = Http2::connect_with(server.addr, &mut builder).await;
    let (response, _stream) = client.request("GET");
    let mut body = within(response).await.unwrap().into_body();
    let asked = Instant::now();
    server.stalled(asked).await;
    // The window opens: the stream has failed, the connection lives.
    let mut read = 0;
    let error = loop {
        match within(body.data()).await.expect("a clean end") {
            Ok(data) => {
                read += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            Err(error) => break error,
        }
    };
    assert!(error.is_reset(), "{error} after {read} bytes");
    let (response, _stream) = client.request("GET");
    assert_eq!(within(response).await.unwrap().status(), 200);
    drop(client);
    drop(body);
    eventually(|| server.supervisor.active() == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_slow_but_steady_reader_is_left_alone() {
    // Four time-outs long, a little every tenth of one: the server has always something to ask for.
    let mut server = Server::start(Duration::from_millis(5)).await;
    let mut client = server.get().await;
    let (mut buffer, mut read) = (vec![0; 128 << 10], 0);
    for _ in 0..40 {
        tokio::time::sleep(TIMEOUT / 10).await;
        read += within(client.read(&mut buffer)).await.unwrap();
        assert!(server.reports.try_recv().is_err(), "after {read} bytes");
    }
    println!("{read} bytes in {:?}", TIMEOUT * 4);
    drop(client);
    let report = within(server.reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Disconnected);
    server.stop().await;
}

#[tokio::test]
async fn a_body_without_a_layer_stalls_and_closes_its_socket() {
    let (report, mut reports) = mpsc::unbounded_channel();
    let app = Router::new().route(
        "/",
        get(move |request: Request<axum::body::Body>| {
            let report = report.clone();
            async move {
                assert!(Peer::from_extensions(request.extensions()).is_some());
                let rows = FrameBody::channel(1 << 16);
                let (tx, body) = rows;
                tokio::spawn(async move { while tx.send(vec![b'x'; 8_000]).await.is_ok() {} });
                DisconnectBody::answering(&request, body)
                    .on_end(move |end| drop(report.send(end.clone())))
                    .stall_timeout(TIMEOUT)
            }
        }),
    );
    let listener = WatchedListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(net::serve(listener, app).into_future());
    let mut client = within(TcpStream::connect(addr)).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let report = within(reports.recv()).await.unwrap();
    assert_eq!(report.outcome(), Outcome::Stalled);
    assert!(report.duration.is_some());
    let end = within(client.read_to_end(&mut Vec::new())).await;
    assert!(end.is_err());
    serving.abort();
}
