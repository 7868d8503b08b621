//! The connections to one database, SQLite or Postgres.

use std::{
    path::PathBuf,
    str::FromStr as _,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{
    AccessMode, ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, IsolationLevel,
    SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement, TransactionOptions,
    TransactionTrait as _,
    sqlx::{
        self, ConnectOptions as _, Connection as _, Executor as _,
        postgres::{PgConnectOptions, PgConnection, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use super::{
    error::{Error, Result},
    lane::{Lanes, Opening, SESSION},
};

/// Connections that wait for hooks alone, so that slow reports and imports never queue before a login: one for each
/// load that may be under way, one for the catalogue, one to spare.
const HOOK_LANES: usize = 6;
/// Connections for the views of the management API.
const VIEW_LANES: usize = 2;
/// Connections of the management API on Postgres, and its readers on SQLite.
const API_CONNECTIONS: u32 = 8;
/// Connections of work apart: one is in use, and another one may be on its way back meanwhile.
const APART_CONNECTIONS: u32 = 2;
/// How long a query of the management API waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long SQLite waits for another process that writes to the same file.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause between two tries to open a file that others are creating.
const SQLITE_RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a pooled connection may take to show that it is alive.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// A pooled connection that was used this shortly ago is taken to be alive.
const PING_AFTER_IDLE: Duration = Duration::from_secs(1);
/// What makes every transaction of a connection to Postgres one that only reads.
const READ_ONLY: &str = "SET default_transaction_read_only = on";
/// Writes a copy of an SQLite database to a file.
const COPY: &str = "VACUUM INTO ?1";

/// What a database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Serving,
    Looking,
}

/// The file of an SQLite database that a URL names; none when it names another kind of database, or none at all.
#[must_use]
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    if !url.starts_with("sqlite:") {
        return None;
    }
    SqliteConnectOptions::from_str(url).ok().map(|options| options.get_filename().to_owned())
}

/// The connections to one database.
///
/// On SQLite one connection writes and the others cannot; on Postgres the API's pool does both.
#[derive(Debug, Clone)]
pub struct Database {
    hooks: Arc<Lanes>,
    views: Arc<Lanes>,
    feed: Arc<Lanes>,
    readers: DatabaseConnection,
    writers: DatabaseConnection,
    postgres: Option<Box<PgConnectOptions>>,
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
    Open(#[source] Error),
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
    /// How many it may open.
    pub limit: u32,
}

impl Database {
    /// Opens the database that a URL names: `sqlite://FILE?mode=rwc` or `postgres://...`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when the URL is of no use or the database cannot be opened now.
    pub async fn connect(url: &str) -> std::result::Result<Self, ConnectError> {
        Self::connect_for(url, Use::Serving).await
    }

    /// Opens the database that a URL names in order to look at it: no file is made, none is switched to another mode, and
    /// Postgres refuses to write.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] when the URL is of no use or the database cannot be opened now.
    pub async fn connect_to_read(url: &str) -> std::result::Result<Self, ConnectError> {
        Self::connect_for(url, Use::Looking).await
    }

    async fn connect_for(url: &str, purpose: Use) -> std::result::Result<Self, ConnectError> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Self::connect_sqlite(url, purpose).await,
            Some("postgres" | "postgresql") => Self::connect_postgres(url, purpose).await,
            _ => Err(ConnectError::UnknownScheme),
        }
    }

    async fn connect_sqlite(url: &str, purpose: Use) -> std::result::Result<Self, ConnectError> {
        let options = SqliteConnectOptions::from_str(url).map_err(|_| ConnectError::InvalidUrl)?;
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(ConnectError::InMemory);
        }
        let options = match purpose {
            Use::Serving => options.journal_mode(SqliteJournalMode::Wal),
            Use::Looking => options.create_if_missing(false),
        };
        let options = options
            // An acknowledged write survives the loss of power, which WAL with NORMAL does not promise.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = |size| {
            let options = SqlitePoolOptions::new().max_connections(size).acquire_timeout(ACQUIRE_TIMEOUT);
            options.test_before_acquire(false).idle_timeout(None).max_lifetime(None)
        };
        // The writer comes first: it creates the file and switches it to WAL.
        let started = Instant::now();
        let writers = loop {
            let writer = pool(1).after_release(|connection, _| Box::pin(is_reusable(connection)));
            match writer.connect_with(options.clone()).await.map_err(open_error) {
                // Several processes that create a file at once: SQLite does not wait for the one that switches it to
                // WAL, as it does for other locks.
                Err(ConnectError::Open(Error::Unavailable(_))) if started.elapsed() < SQLITE_BUSY_TIMEOUT => {
                    tokio::time::sleep(SQLITE_RETRY_PAUSE).await;
                }
                opened => break opened?,
            }
        };
        let reading = options.pragma("query_only", "on");
        let readers = pool(API_CONNECTIONS).connect_with(reading.clone()).await.map_err(open_error)?;
        let lanes = |size| Arc::new(Lanes::new(Opening::Sqlite(Box::new(reading.clone())), size));
        Ok(Self {
            hooks: lanes(HOOK_LANES),
            views: lanes(VIEW_LANES),
            feed: lanes(1),
            readers: SqlxSqliteConnector::from_sqlx_sqlite_pool(readers),
            writers: SqlxSqliteConnector::from_sqlx_sqlite_pool(writers),
            postgres: None,
        })
    }

    async fn connect_postgres(url: &str, purpose: Use) -> std::result::Result<Self, ConnectError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| ConnectError::InvalidUrl)?
            .application_name("tollgate")
            .disable_statement_logging();
        let api = postgres_pool(API_CONNECTIONS, purpose).connect_with(options.clone()).await.map_err(open_error)?;
        let api = SqlxPostgresConnector::from_sqlx_postgres_pool(api);
        let lanes = |size, plans_once| {
            let opening = Opening::Postgres { options: Box::new(options.clone()), plans_once };
            Arc::new(Lanes::new(opening, size))
        };
        Ok(Self {
            hooks: lanes(HOOK_LANES, true),
            views: lanes(VIEW_LANES, false),
            feed: lanes(1, false),
            readers: api.clone(),
            writers: api,
            postgres: Some(Box::new(options)),
        })
    }

    /// The same database with connections of its own for the management API's reads and writes, opened when they are
    /// needed: for a thread that may keep what it holds waiting, so that nobody else waits for it. They belong to the
    /// runtime that this is called in. On SQLite they are the same, for there one connection writes.
    #[must_use]
    pub fn apart(&self) -> Self {
        let Some(options) = &self.postgres else { return self.clone() };
        let pool = postgres_pool(APART_CONNECTIONS, Use::Serving).connect_lazy_with(options.as_ref().clone());
        if self.writers.get_postgres_connection_pool().is_closed() {
            // It is closed by the call. There is nothing to wait for, for nothing was opened.
            drop(pool.close());
        }
        let own = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
        Self { readers: own.clone(), writers: own, ..self.clone() }
    }

    /// Which database it is.
    #[must_use]
    pub fn backend(&self) -> DbBackend {
        self.writers.get_database_backend()
    }

    /// Connections for what hooks read.
    #[must_use]
    pub fn hooks(&self) -> &Lanes {
        &self.hooks
    }

    /// Connections for the management API's reads of what hooks read.
    #[must_use]
    pub fn views(&self) -> &Lanes {
        &self.views
    }

    /// Where the change feed gets its connection.
    #[must_use]
    pub fn feed(&self) -> &Lanes {
        &self.feed
    }

    /// Connections for the management API's reads.
    #[must_use]
    pub fn readers(&self) -> &DatabaseConnection {
        &self.readers
    }

    /// Connections for what is written outside of a transaction.
    #[must_use]
    pub fn writers(&self) -> &DatabaseConnection {
        &self.writers
    }

    /// How to open a connection to Postgres that listens; none on SQLite.
    #[must_use]
    pub fn postgres(&self) -> Option<&PgConnectOptions> {
        self.postgres.as_deref()
    }

    /// Begins a transaction that reads one state of the database, whatever is written meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when no connection is to be had.
    pub async fn begin_reading(&self) -> Result<DatabaseTransaction> {
        Ok(match self.backend() {
            DbBackend::Postgres => {
                let (isolation, access) = (IsolationLevel::RepeatableRead, AccessMode::ReadOnly);
                self.readers.begin_with_config(Some(isolation), Some(access)).await?
            }
            _ => self.readers.begin().await?,
        })
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

    /// Copies an SQLite database, as it is at one instant, into a file that is empty or not there. Writers go on meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when it cannot be read, or the file not be written.
    pub async fn copy_into(&self, path: &str) -> Result<()> {
        let statement = Statement::from_sql_and_values(DbBackend::Sqlite, COPY, [path.into()]);
        self.writers.execute_raw(statement).await?;
        Ok(())
    }

    /// How busy each pool is.
    #[must_use]
    pub fn pool_use(&self) -> Vec<PoolUse> {
        let lanes = |pool, lanes: &Lanes| {
            let (open, idle) = lanes.usage();
            pool_use(pool, open, idle, lanes.size())
        };
        let pool = |name, connection: &DatabaseConnection| {
            if connection.get_database_backend() == DbBackend::Postgres {
                let pool = connection.get_postgres_connection_pool();
                pool_use(name, pool.size() as usize, pool.num_idle(), pool.options().get_max_connections() as usize)
            } else {
                let pool = connection.get_sqlite_connection_pool();
                pool_use(name, pool.size() as usize, pool.num_idle(), pool.options().get_max_connections() as usize)
            }
        };
        let mut pools = vec![lanes("hooks", &self.hooks), lanes("views", &self.views), pool("api", &self.readers)];
        if self.backend() == DbBackend::Sqlite {
            pools.push(pool("writer", &self.writers));
        }
        pools
    }

    /// Closes the connections of work apart, after what is under way on them.
    pub async fn close_apart(&self) {
        if self.postgres.is_some() {
            // One that cannot say good-bye any more is gone already.
            let _ = self.writers.close_by_ref().await;
        }
    }

    /// Closes all connections, after what is under way on them.
    pub async fn close(&self) {
        for lanes in [&self.hooks, &self.views, &self.feed] {
            lanes.close().await;
        }
        for pool in [&self.readers, &self.writers] {
            // Closing a pool twice, or one whose database is gone, is no error worth telling.
            let _ = pool.close_by_ref().await;
        }
    }
}

fn postgres_pool(size: u32, purpose: Use) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(SESSION).await?;
                match purpose {
                    Use::Serving => {}
                    Use::Looking => {
                        connection.execute(READ_ONLY).await?;
                    }
                }
                Ok(())
            })
        })
        // The pool's own pings have no time limit, so a connection whose other end has vanished would hold its
        // place in the pool for minutes: one that has does not pass these, which come first.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { if meta.idle_for > PING_AFTER_IDLE { ping(connection).await } else { Ok(true) } })
        })
        .after_release(|connection, _| Box::pin(ping(connection)))
}

/// Commits a transaction.
///
/// # Errors
///
/// [`Error::OutcomeUnknown`] when the connection broke before the answer came.
pub async fn commit(transaction: DatabaseTransaction) -> Result<()> {
    transaction.commit().await.map_err(Error::of_commit)
}

fn open_error(error: sqlx::Error) -> ConnectError {
    ConnectError::Open(error.into())
}

/// Whether a connection is alive; an error closes it without another word on it.
async fn ping(connection: &mut PgConnection) -> std::result::Result<bool, sqlx::Error> {
    tokio::time::timeout(PING_TIMEOUT, connection.ping()).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
    Ok(true)
}

/// Whether the writer's connection can write again; if not, it is closed and another one is opened.
///
/// When the disk is full or fails, SQLite takes the transaction back by itself. The driver then cannot, goes on counting
/// it as begun, and would nest every later transaction in one that is never committed: each would be answered a
/// success, and lost.
async fn is_reusable(connection: &mut SqliteConnection) -> std::result::Result<bool, sqlx::Error> {
    // It comes after the roll-back, for which nobody has waited.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

fn pool_use(pool: &'static str, open: usize, idle: usize, limit: usize) -> PoolUse {
    let count = |connections| u32::try_from(connections).unwrap_or(u32::MAX);
    PoolUse { pool, open: count(open), idle: count(idle), limit: count(limit) }
}
