//! The pools of connections to one database, SQLite or Postgres.

use std::{str::FromStr as _, time::Duration};

use sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, SqliteTransactionMode, SqlxPostgresConnector,
    SqlxSqliteConnector, TransactionOptions, TransactionTrait as _,
    sqlx::{
        self, ConnectOptions as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::error::{Error, Result};

/// Connections that wait for hooks alone, so that slow reports and imports never queue before a login.
const HOOK_CONNECTIONS: u32 = 8;
/// Connections of the management API on Postgres, and its readers on SQLite.
const API_CONNECTIONS: u32 = 8;
/// How long a query waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long SQLite waits for another process that writes to the same file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// A transaction that a dead client left open is ended by Postgres after this time, in milliseconds.
const IDLE_IN_TRANSACTION_TIMEOUT_MS: &str = "10000";

/// The connections to one database.
///
/// On SQLite one connection writes and the others cannot; on Postgres the API's pool does both.
#[derive(Debug, Clone)]
pub struct Database {
    hooks: DatabaseConnection,
    readers: DatabaseConnection,
    writers: DatabaseConnection,
}

/// The address of a database is not one that Tollgate can use. The message never holds the address: it may hold a
/// password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither `sqlite:` nor `postgres:`.
    #[error("the database URL begins with neither `sqlite:` nor `postgres:`")]
    UnknownScheme,
    /// The URL cannot be parsed.
    #[error("the database URL cannot be understood")]
    InvalidUrl,
    /// An in-memory SQLite database belongs to one connection, and would be another one for each.
    #[error("an in-memory SQLite database cannot be shared by connections; name a file")]
    InMemory,
    /// It cannot be opened.
    #[error("the database cannot be opened")]
    Open(#[source] sqlx::Error),
}

/// How busy a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// The pool's name, a metric label.
    pub pool: &'static str,
    /// Open connections.
    pub open: u32,
    /// Of these, the ones that nobody uses.
    pub idle: u32,
}

impl Database {
    /// Opens the database that a URL names: `sqlite://FILE?mode=rwc` or `postgres://...`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when the URL is of no use or the database cannot be opened now.
    pub async fn connect(url: &str) -> std::result::Result<Self, ConnectError> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Self::connect_sqlite(url).await,
            Some("postgres" | "postgresql") => Self::connect_postgres(url).await,
            _ => Err(ConnectError::UnknownScheme),
        }
    }

    async fn connect_sqlite(url: &str) -> std::result::Result<Self, ConnectError> {
        let options = SqliteConnectOptions::from_str(url).map_err(|_| ConnectError::InvalidUrl)?;
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(ConnectError::InMemory);
        }
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged write survives the loss of power, which WAL with NORMAL does not promise.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = || SqlitePoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).test_before_acquire(false);
        // The writer comes first: it creates the file and switches it to WAL.
        let writers = pool().max_connections(1).connect_with(options.clone()).await.map_err(ConnectError::Open)?;
        let read = |size| pool().max_connections(size).connect_with(options.clone().pragma("query_only", "on"));
        let hooks = read(HOOK_CONNECTIONS).await.map_err(ConnectError::Open)?;
        let readers = read(API_CONNECTIONS).await.map_err(ConnectError::Open)?;
        Ok(Self {
            hooks: SqlxSqliteConnector::from_sqlx_sqlite_pool(hooks),
            readers: SqlxSqliteConnector::from_sqlx_sqlite_pool(readers),
            writers: SqlxSqliteConnector::from_sqlx_sqlite_pool(writers),
        })
    }

    async fn connect_postgres(url: &str) -> std::result::Result<Self, ConnectError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| ConnectError::InvalidUrl)?
            .application_name("tollgate")
            .options([("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT_MS)])
            .disable_statement_logging();
        let pool = |size, options| {
            PgPoolOptions::new().max_connections(size).acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options)
        };
        let hooks = pool(HOOK_CONNECTIONS, options.clone()).await.map_err(ConnectError::Open)?;
        let api = pool(API_CONNECTIONS, options).await.map_err(ConnectError::Open)?;
        let api = SqlxPostgresConnector::from_sqlx_postgres_pool(api);
        Ok(Self { hooks: SqlxPostgresConnector::from_sqlx_postgres_pool(hooks), readers: api.clone(), writers: api })
    }

    /// Which database it is.
    #[must_use]
    pub fn backend(&self) -> DbBackend {
        self.writers.get_database_backend()
    }

    /// Connections for the hooks' reads.
    #[must_use]
    pub fn hooks(&self) -> &DatabaseConnection {
        &self.hooks
    }

    /// Connections for the management API's reads.
    #[must_use]
    pub fn readers(&self) -> &DatabaseConnection {
        &self.readers
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once: a transaction that began as a
    /// reader could not become a writer after another one wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when no connection is to be had.
    pub async fn begin(&self) -> Result<DatabaseTransaction> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(self.writers.begin_with_options(options).await?)
    }

    /// Asks the database for a sign of life on a connection of the hooks.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when there is none.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.hooks.ping().await?)
    }

    /// How busy each pool is.
    #[must_use]
    pub fn pool_use(&self) -> Vec<PoolUse> {
        let mut pools = vec![pool_use("hooks", &self.hooks), pool_use("api", &self.readers)];
        if self.backend() == DbBackend::Sqlite {
            pools.push(pool_use("writer", &self.writers));
        }
        pools
    }

    /// Closes all connections, after what is under way on them.
    pub async fn close(&self) {
        for pool in [&self.hooks, &self.readers, &self.writers] {
            // Closing a pool twice, or one whose database is gone, is no error worth telling.
            let _ = pool.close_by_ref().await;
        }
    }
}

/// Commits a transaction.
///
/// # Errors
///
/// [`Error::OutcomeUnknown`] when the connection broke before the answer came.
pub async fn commit(transaction: DatabaseTransaction) -> Result<()> {
    transaction.commit().await.map_err(Error::of_commit)
}

fn pool_use(pool: &'static str, connection: &DatabaseConnection) -> PoolUse {
    let (open, idle) = if connection.get_database_backend() == DbBackend::Postgres {
        let pool = connection.get_postgres_connection_pool();
        (pool.size(), pool.num_idle())
    } else {
        let pool = connection.get_sqlite_connection_pool();
        (pool.size(), pool.num_idle())
    };
    PoolUse { pool, open, idle: u32::try_from(idle).unwrap_or(u32::MAX) }
}
