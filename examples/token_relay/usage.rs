//! The ledger: one row for each request, whatever became of it.

use std::str::FromStr;

use bodyguard::Ending;
use sqlx::{
    Error, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

/// The key makes a second record of a request an error.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS usage (
    request TEXT PRIMARY KEY, tokens INTEGER NOT NULL,
    outcome TEXT NOT NULL, status INTEGER, client_gone INTEGER NOT NULL)";
const INSERT: &str = "INSERT INTO usage (request, tokens, outcome, status, client_gone) \
    VALUES ($1, $2, $3, $4, $5)";
const SELECT: &str =
    "SELECT request, tokens, outcome, status, client_gone FROM usage ORDER BY rowid";

/// Request, tokens, outcome, status if it was answered, whether the client had gone.
pub(crate) type Row = (String, i64, String, Option<u16>, bool);

/// The table of tokens used. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ledger(SqlitePool);

impl Ledger {
    /// Opens, and if need be makes, the SQLite database at this URL.
    pub(crate) async fn open(url: &str) -> Result<Self, Error> {
        let options = SqliteConnectOptions::from_str(url)?.create_if_missing(true);
        // One connection, kept: SQLite has one writer, and a database in memory lives in it.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        sqlx::query(TABLE).execute(&pool).await?;
        Ok(Self(pool))
    }

    /// Writes down what a request has used. Once: the second time is an error.
    pub(crate) async fn record(
        &self,
        request: &str,
        tokens: u64,
        ending: &Ending,
    ) -> Result<(), Error> {
        sqlx::query(INSERT)
            .bind(request)
            .bind(i64::try_from(tokens).unwrap_or(i64::MAX))
            .bind(ending.outcome().as_str())
            .bind(ending.status().map(|status| status.as_u16()))
            .bind(ending.client_gone())
            .execute(&self.0)
            .await?;
        Ok(())
    }

    pub(crate) async fn rows(&self) -> Result<Vec<Row>, Error> {
        sqlx::query_as(SELECT).fetch_all(&self.0).await
    }
}
