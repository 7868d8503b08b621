//! Lanes: connections that can be left behind.
//!
//! What a login waits for must not wait for a connection that has died unnoticed. A pool keeps a connection for as
//! long as its last query goes on, and pings it before it is used again: on a connection whose other end has vanished
//! each takes minutes. A lane's connection is owned by the one query on it: past the deadline it is dropped, socket
//! and all, and the next query opens another. In good times nothing is pinged.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::sqlx::{
    ConnectOptions as _, Connection as _, Executor as _,
    postgres::{PgConnectOptions, PgConnection},
    sqlite::{SqliteConnectOptions, SqliteConnection},
};
use tokio::sync::Semaphore;

use super::error::{Error, Result};

/// A connection that lay unused for longer may have been cut by a proxy or a firewall: it is replaced, unasked.
const IDLE_LIMIT: Duration = Duration::from_mins(4);

/// What is set on every connection to Postgres, so that it gives up what nobody waits for any more: a statement, a
/// lock, a transaction that a dead client left open. In a statement, for a proxy may refuse or drop what is asked for
/// while connecting.
pub const SESSION: &str =
    "SET statement_timeout = '5s'; SET lock_timeout = '3s'; SET idle_in_transaction_session_timeout = '10s'";

/// What is set besides where a statement is planned once a connection, and not anew whenever it runs: for the hook's,
/// planning takes twice as long as the rest. So the plan has to be right however the tables grow afterwards: nothing is
/// read as a whole or sorted that an index holds in order, though it would be cheaper while the tables are small. What
/// an older server does not know is left out.
const PLANNING: &str = "SET plan_cache_mode = force_generic_plan; \
    SELECT set_config(name, 'off', false) FROM pg_settings \
    WHERE name IN ('enable_bitmapscan', 'enable_memoize', 'enable_seqscan', 'enable_sort', 'jit')";

/// A connection of its own.
#[derive(Debug)]
pub enum Connection {
    /// To Postgres.
    Postgres(PgConnection),
    /// To a file.
    Sqlite(Box<SqliteConnection>),
}

impl Connection {
    async fn begin_reading(&mut self) -> Result<()> {
        match self {
            Self::Postgres(connection) => {
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            }
            // The state is the one that the first query finds.
            Self::Sqlite(connection) => {
                connection.execute("BEGIN").await?;
            }
        }
        Ok(())
    }

    async fn end_reading(&mut self) -> Result<()> {
        match self {
            Self::Postgres(connection) => {
                connection.execute("ROLLBACK").await?;
            }
            Self::Sqlite(connection) => {
                connection.execute("ROLLBACK").await?;
            }
        }
        Ok(())
    }
}

/// How to open one.
#[derive(Clone)]
pub enum Opening {
    /// To Postgres.
    Postgres {
        /// Where, and as whom.
        options: Box<PgConnectOptions>,
        /// Whether a statement is planned once, and not anew whenever it runs. It is only for statements that a test
        /// holds to their plan.
        plans_once: bool,
    },
    /// To a file.
    Sqlite(Box<SqliteConnectOptions>),
}

impl Opening {
    async fn open(&self) -> Result<Connection> {
        Ok(match self {
            Self::Postgres { options, plans_once } => {
                let mut connection = options.connect().await?;
                connection.execute(SESSION).await?;
                if *plans_once {
                    connection.execute(PLANNING).await?;
                }
                Connection::Postgres(connection)
            }
            Self::Sqlite(options) => Connection::Sqlite(Box::new(options.connect().await?)),
        })
    }
}

/// A few connections for short reads.
pub struct Lanes {
    opening: Opening,
    slots: Semaphore,
    idle: Mutex<Vec<(Connection, Instant)>>,
    size: usize,
}

/// The options may hold a password.
impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Lanes {
    /// At most `size` connections, opened when they are needed.
    pub fn new(opening: Opening, size: usize) -> Self {
        Self { opening, slots: Semaphore::new(size), idle: Mutex::default(), size }
    }

    /// Asks something on a connection of its own, within `timeout`, opening included.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when no answer came in time; else what `ask` answers.
    pub async fn run<T>(&self, timeout: Duration, ask: impl AsyncFnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let asked = async {
            let _slot = self.slots.acquire().await.map_err(|_| Error::unavailable("the database is closed"))?;
            // From here on the connection is owned by this future: it is dropped when the time is over.
            let mut connection = match self.take_idle() {
                Some(connection) => connection,
                None => self.opening.open().await?,
            };
            let answer = ask(&mut connection).await;
            if !matches!(answer, Err(Error::Unavailable(_))) {
                self.lock().push((connection, Instant::now()));
            }
            answer
        };
        let answer = tokio::time::timeout(timeout, asked).await;
        if matches!(answer, Err(_) | Ok(Err(Error::Unavailable(_)))) {
            // What broke one connection has most likely broken the others.
            self.lock().clear();
        }
        answer.unwrap_or_else(|_| Err(Error::unavailable("no answer came in time")))
    }

    /// Asks several things of one state of the database, whatever is written meanwhile, within `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Lanes::run`].
    pub async fn run_at_once<T>(
        &self,
        timeout: Duration,
        ask: impl AsyncFnOnce(&mut Connection) -> Result<T>,
    ) -> Result<T> {
        let ask_at_once = async |connection: &mut Connection| {
            connection.begin_reading().await?;
            let answer = ask(connection).await;
            // Also after an error, so that the next one does not ask in the same state.
            connection.end_reading().await?;
            answer
        };
        self.run(timeout, ask_at_once).await
    }

    /// Opens a connection for somebody who keeps it, within `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] when it is not open in time.
    pub async fn open(&self, timeout: Duration) -> Result<Connection> {
        let opened = tokio::time::timeout(timeout, self.opening.open()).await;
        opened.unwrap_or_else(|_| Err(Error::unavailable("no connection came in time")))
    }

    /// Open connections, and the ones of them that nobody uses.
    pub fn usage(&self) -> (usize, usize) {
        let idle = self.lock().len();
        (self.size - self.slots.available_permits() + idle, idle)
    }

    /// How many connections there may be.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Closes all connections, and refuses new ones.
    pub async fn close(&self) {
        self.slots.close();
        let idle = std::mem::take(&mut *self.lock());
        for (connection, _) in idle {
            // One that cannot say good-bye any more is gone already.
            let _ = match connection {
                Connection::Postgres(connection) => connection.close().await,
                Connection::Sqlite(connection) => connection.close().await,
            };
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        // The last one that was used is the one most likely to be alive; older ones are let go.
        let mut idle = self.lock();
        let (connection, since) = idle.pop()?;
        if since.elapsed() < IDLE_LIMIT {
            return Some(connection);
        }
        idle.clear();
        None
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
