use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::AssertSqlSafe;
use tokio::time::timeout;

use super::csv::AIRPORTS;
use super::*;

const LIMIT: Duration = Duration::from_secs(30);
/// More than the pool has connections: a leak of one an export would be seen.
const MANY: usize = 3 * CONNECTIONS as usize;

/// A database of a test's own.
struct Fresh {
    db: Db,
    /// SQLite's file; `None` is PostgreSQL.
    file: Option<PathBuf>,
}

/// Runs a test on SQLite, and on PostgreSQL too if `DATABASE_URL` names one; each time in tables of its own, which
/// a test that passes takes away again.
async fn each_database(test: impl AsyncFn(&Fresh)) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("newsroom_test_{}_{next}", std::process::id());

    let file = std::env::temp_dir().join(format!("{name}.sqlite"));
    let db = Db::open_file(&file).await.unwrap();
    test(&Fresh {
        db,
        file: Some(file.clone()),
    })
    .await;
    for suffix in ["", "-wal", "-shm"] {
        // The last two are gone already if the pool was closed.
        let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
    }

    let url = std::env::var("DATABASE_URL").unwrap_or_default();
    if url.starts_with("postgres") {
        let options = PgConnectOptions::from_str(&url).unwrap();
        let admin = PgPool::connect_with(options.clone()).await.unwrap();
        let run = async |sql: String| {
            sqlx::query(AssertSqlSafe(sql))
                .execute(&admin)
                .await
                .unwrap()
        };
        run(format!("CREATE SCHEMA {name}")).await;
        let db = Db::open_postgres(options.options([("search_path", &name)]))
            .await
            .unwrap();
        test(&Fresh { db, file: None }).await;
        run(format!("DROP SCHEMA {name} CASCADE")).await;
    }
}

async fn whole(export: &mut Export) -> String {
    let mut csv = String::new();
    while let Some(page) = export.next_csv().await.unwrap() {
        csv += &page;
        assert!(csv.len() < 2 * AIRPORTS.len(), "rows come twice");
    }
    csv
}

/// Polls a future once and drops it.
async fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

fn sorted_lines(csv: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = csv.lines().collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_whole_export_is_the_data_set_and_is_counted_once_committed() {
    each_database(async |Fresh { db, .. }| {
        let mut export = db.begin_export().await.unwrap();
        let csv = whole(&mut export).await;
        assert_eq!(sorted_lines(&csv), sorted_lines(AIRPORTS));
        assert_eq!(export.rows(), 3376);
        assert!(csv.starts_with("iata,"), "the header comes first, and once");

        assert_eq!(
            db.exports_committed().await.unwrap(),
            0,
            "not yet committed, so not seen"
        );
        export.commit().await.unwrap();
        assert_eq!(db.exports_committed().await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_rollback_leaves_nothing_and_the_connection_is_usable_at_once() {
    each_database(async |Fresh { db, .. }| {
        for _ in 0..MANY {
            let mut export = db.begin_export().await.unwrap();
            export.next_csv().await.unwrap().expect("a first page");
            export.rollback().await.unwrap();
        }
        assert_eq!(db.exports_committed().await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_producer_cancelled_in_the_middle_of_a_page_leaves_the_export_to_the_closer() {
    each_database(async |Fresh { db, .. }| {
        for _ in 0..MANY {
            let shared = db.begin_export().await.unwrap().shared();
            let producer = async {
                let mut export = shared.lock().await;
                whole(export.as_mut().expect("nobody has taken it")).await
            };
            // Dropped with a query under way, unless the database was that quick.
            polled_once(producer).await;
            let export = shared.lock().await.take().expect("still there");
            timeout(LIMIT, export.rollback())
                .await
                .expect("in time")
                .unwrap();
        }
        let mut export = db.begin_export().await.unwrap();
        assert_eq!(whole(&mut export).await.lines().count(), 3377);
        export.commit().await.unwrap();
        assert_eq!(db.exports_committed().await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_page_whose_reading_was_cancelled_is_read_again() {
    each_database(async |Fresh { db, .. }| {
        let mut export = db.begin_export().await.unwrap();
        let mut csv = String::new();
        // As often as there are pages, so that some of these polls find an answer half way here.
        for _ in 0..17 {
            csv += &polled_once(export.next_csv())
                .await
                .transpose()
                .unwrap()
                .flatten()
                .unwrap_or_default();
        }
        csv += &whole(&mut export).await;
        assert_eq!(sorted_lines(&csv), sorted_lines(AIRPORTS));
    })
    .await;
}

#[tokio::test]
async fn a_dropped_export_is_rolled_back_by_the_pool() {
    each_database(async |Fresh { db, .. }| {
        for _ in 0..MANY {
            drop(db.begin_export().await.unwrap());
        }
        assert_eq!(db.exports_committed().await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_second_start_finds_the_first_one_s_rows() {
    each_database(async |fresh| {
        let export = fresh.db.begin_export().await.unwrap();
        export.commit().await.unwrap();
        let again = match (&fresh.db, &fresh.file) {
            (_, Some(file)) => Db::open_file(file).await.unwrap(),
            (db, None) => db.clone().fill("again").await.unwrap(),
        };
        let mut export = again.begin_export().await.unwrap();
        assert_eq!(whole(&mut export).await.lines().count(), 3377);
        assert_eq!(again.exports_committed().await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_database_of_another_kind_is_refused() {
    let err = Db::open_url("mysql://localhost/x")
        .await
        .expect_err("not supported");
    assert!(matches!(err, Error::Configuration(_)), "{err}");
}
