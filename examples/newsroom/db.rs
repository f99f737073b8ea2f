//! The export's database: SQLite in a file, or PostgreSQL if `DATABASE_URL` says so.
//!
//! An [`Export`] is a transaction on a pooled connection that outlives the handler: the producer reads pages of rows
//! from it, and a closer commits it or rolls it back. The pool is small and does not wait for long, so a
//! connection that is not given back is noticed at the third export.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Error, PgPool, QueryBuilder, SqlitePool, Transaction};
use tokio::sync::Mutex;

use self::csv::{Airport, airports, push_row};

mod csv;

const CONNECTIONS: u32 = 2;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE: i64 = 200;

const COUNT_AIRPORTS: &str = "SELECT count(*) FROM newsroom_airports";
const CLEAR_AIRPORTS: &str = "DELETE FROM newsroom_airports";
const INSERT_AIRPORTS: &str =
    "INSERT INTO newsroom_airports (iata, name, city, state, country, latitude, longitude) ";
const NEXT_PAGE: &str = "SELECT iata, name, city, state, country, latitude, longitude \
     FROM newsroom_airports WHERE iata > $1 ORDER BY iata LIMIT $2";
const INSERT_EXPORT: &str =
    "INSERT INTO newsroom_exports (started, rows) VALUES ($1, 0) RETURNING id";
const UPDATE_EXPORT: &str = "UPDATE newsroom_exports SET rows = $1 WHERE id = $2";
const COUNT_EXPORTS: &str = "SELECT count(*) FROM newsroom_exports";

// The two databases differ in the identity column, and in the collation that makes keyset order byte order.
const SQLITE_TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS newsroom_airports (
         iata TEXT PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, state TEXT NOT NULL,
         country TEXT NOT NULL, latitude REAL NOT NULL, longitude REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS newsroom_exports (
         id INTEGER PRIMARY KEY, started INTEGER NOT NULL, rows INTEGER NOT NULL)",
];
const POSTGRES_TABLES: [&str; 3] = [
    // Two servers that start at once: the second waits here until the first has filled the tables.
    "SELECT pg_advisory_xact_lock(7305804402)",
    r#"CREATE TABLE IF NOT EXISTS newsroom_airports (
         iata TEXT COLLATE "C" PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, state TEXT NOT NULL,
         country TEXT NOT NULL, latitude DOUBLE PRECISION NOT NULL, longitude DOUBLE PRECISION NOT NULL)"#,
    "CREATE TABLE IF NOT EXISTS newsroom_exports (
         id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, started BIGINT NOT NULL, rows BIGINT NOT NULL)",
];

// SQLite: take the write lock at the start; a reader that turns writer later can be refused. PostgreSQL: all pages
// of an export see one snapshot.
const SQLITE_BEGIN: &str = "BEGIN IMMEDIATE";
const POSTGRES_BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";

/// A pool of connections to the database of the example. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Db {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// An export that a producer reads from and a closer ends: whoever comes last finds `None`.
pub(crate) type SharedExport = Arc<Mutex<Option<Export>>>;

/// One export: a transaction, how far it has read, and its row in `newsroom_exports`.
///
/// On drop the transaction is rolled back, by the pool and in the background; [`Export::rollback`] waits for it.
#[derive(Debug)]
pub(crate) struct Export {
    tx: Tx,
    id: i64,
    rows: i64,
    last: Option<String>,
    finished: bool,
}

#[derive(Debug)]
enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Runs the same statement on either connection: the SQL is common, the types are not.
macro_rules! on {
    ($tx:expr, $conn:ident => $run:expr) => {
        match $tx {
            Tx::Sqlite(tx) => {
                let $conn = &mut **tx;
                $run
            }
            Tx::Postgres(tx) => {
                let $conn = &mut **tx;
                $run
            }
        }
    };
}

impl Db {
    /// Opens the database that `DATABASE_URL` names, else a SQLite file beside the executable.
    ///
    /// Tables that are missing are created and filled, in one transaction.
    pub(crate) async fn open() -> Result<Self, Error> {
        match std::env::var("DATABASE_URL") {
            Ok(url) => Self::open_url(&url).await,
            Err(_) => Self::open_file(&default_file()).await,
        }
    }

    async fn open_url(url: &str) -> Result<Self, Error> {
        match url.split(':').next() {
            Some("postgres" | "postgresql") => {
                Self::open_postgres(PgConnectOptions::from_str(url)?).await
            }
            Some("sqlite") => Self::open_sqlite(SqliteConnectOptions::from_str(url)?).await,
            _ => Err(Error::Configuration(
                "DATABASE_URL is neither postgres:// nor sqlite:".into(),
            )),
        }
    }

    async fn open_file(path: &Path) -> Result<Self, Error> {
        Self::open_sqlite(SqliteConnectOptions::new().filename(path)).await
    }

    async fn open_sqlite(options: SqliteConnectOptions) -> Result<Self, Error> {
        let name = format!("SQLite, {}", options.get_filename().display());
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(ACQUIRE_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT);
        let db = Self::Sqlite(pool.connect_with(options).await?);
        db.fill(&name).await
    }

    async fn open_postgres(options: PgConnectOptions) -> Result<Self, Error> {
        let name = format!("PostgreSQL, {}:{}", options.get_host(), options.get_port());
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT);
        let db = Self::Postgres(pool.connect_with(options).await?);
        db.fill(&name).await
    }

    /// Makes sure that the tables are there, with the rows of the data set.
    async fn fill(self, name: &str) -> Result<Self, Error> {
        let airports = airports()?;
        let begun = Instant::now();
        let mut tx = match &self {
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with(SQLITE_BEGIN).await?),
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        };
        let tables = if matches!(tx, Tx::Sqlite(_)) {
            &SQLITE_TABLES[..]
        } else {
            &POSTGRES_TABLES
        };
        for &statement in tables {
            on!(&mut tx, conn => sqlx::query(statement).execute(conn).await.map(drop))?;
        }
        let found: i64 =
            on!(&mut tx, conn => sqlx::query_scalar(COUNT_AIRPORTS).fetch_one(conn).await)?;
        if usize::try_from(found) == Ok(airports.len()) {
            tx.commit().await?;
            println!("database: {name}: {found} airports");
            return Ok(self);
        }
        println!(
            "database: {name}: filling in {} airports ...",
            airports.len()
        );
        on!(&mut tx, conn => sqlx::query(CLEAR_AIRPORTS).execute(conn).await.map(drop))?;
        for some in airports.chunks(500) {
            on!(&mut tx, conn => {
                let mut insert = QueryBuilder::new(INSERT_AIRPORTS);
                insert.push_values(some, |mut row, airport| {
                    row.push_bind(&airport.0).push_bind(&airport.1).push_bind(&airport.2);
                    row.push_bind(&airport.3).push_bind(&airport.4);
                    row.push_bind(airport.5).push_bind(airport.6);
                });
                insert.build().execute(conn).await.map(drop)
            })?;
        }
        tx.commit().await?;
        println!(
            "database: {name}: ready after {} ms",
            begun.elapsed().as_millis()
        );
        Ok(self)
    }

    /// Begins an export: takes a connection, begins a transaction and notes the export in it.
    ///
    /// SQLite has one writer at a time, so there a second export waits for the first.
    ///
    /// # Errors
    /// `PoolTimedOut` if no connection is free for 5 s; "database is locked" if the writer stays that long.
    pub(crate) async fn begin_export(&self) -> Result<Export, Error> {
        let mut tx = match self {
            Self::Sqlite(pool) => Tx::Sqlite(pool.begin_with(SQLITE_BEGIN).await?),
            Self::Postgres(pool) => Tx::Postgres(pool.begin_with(POSTGRES_BEGIN).await?),
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let started = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let id = on!(&mut tx, conn => sqlx::query_scalar(INSERT_EXPORT).bind(started).fetch_one(conn).await)?;
        Ok(Export {
            tx,
            id,
            rows: 0,
            last: None,
            finished: false,
        })
    }

    /// How many exports have been committed since the database was made.
    pub(crate) async fn exports_committed(&self) -> Result<i64, Error> {
        match self {
            Self::Sqlite(pool) => sqlx::query_scalar(COUNT_EXPORTS).fetch_one(pool).await,
            Self::Postgres(pool) => sqlx::query_scalar(COUNT_EXPORTS).fetch_one(pool).await,
        }
    }
}

impl Export {
    /// How many rows have been read so far.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> i64 {
        self.rows
    }

    /// Whether all rows have been read: none are for a HEAD request, although its response is complete.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Wraps the export for a producer and a closer to share.
    pub(crate) fn shared(self) -> SharedExport {
        Arc::new(Mutex::new(Some(self)))
    }

    /// The next 200 rows as CSV, the first page with a header line; `None` after the last.
    ///
    /// Dropping the future loses no rows: the next call reads the same page again.
    pub(crate) async fn next_csv(&mut self) -> Result<Option<String>, Error> {
        let after = self.last.as_deref().unwrap_or_default();
        let page: Vec<Airport> = on!(&mut self.tx, conn => {
            sqlx::query_as(NEXT_PAGE).bind(after).bind(PAGE).fetch_all(conn).await
        })?;
        let Some((last, ..)) = page.last() else {
            self.finished = true;
            return Ok(None);
        };
        let mut csv = String::from(if self.last.is_none() { csv::HEADER } else { "" });
        for airport in &page {
            push_row(&mut csv, airport);
        }
        self.last = Some(last.clone());
        self.rows += i64::try_from(page.len()).unwrap_or_default();
        Ok(Some(csv))
    }

    /// Notes how many rows were read, and commits.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        let (rows, id) = (self.rows, self.id);
        on!(&mut self.tx, conn => sqlx::query(UPDATE_EXPORT).bind(rows).bind(id).execute(conn).await.map(drop))?;
        self.tx.commit().await
    }

    /// Rolls back and waits for it: nothing of this export remains, and its connection is clean.
    pub(crate) async fn rollback(self) -> Result<(), Error> {
        match self.tx {
            Tx::Sqlite(tx) => tx.rollback().await,
            Tx::Postgres(tx) => tx.rollback().await,
        }
    }
}

impl Tx {
    async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }
}

/// Beside the executable, so that `cargo clean` takes it away.
fn default_file() -> PathBuf {
    let exe = std::env::current_exe().ok();
    let folder = exe
        .as_deref()
        .and_then(Path::parent)
        .map_or_else(std::env::temp_dir, Path::to_owned);
    folder.join("newsroom.sqlite")
}

#[cfg(test)]
mod tests;
