//! Databases: raw SQL beside the service, and Postgres servers that a row may stop.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sea_orm::{ConnectOptions, ConnectionTrait as _, DatabaseConnection, Statement};

use crate::{
    client::SCOPE,
    harness::{self, Ground},
};

/// A kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file.
    Sqlite,
    /// A database on the shared server.
    Postgres,
}

impl Backend {
    /// A new database of this kind: its address.
    pub async fn make(self, ground: &Ground, folder: &Path) -> anyhow::Result<String> {
        match self {
            Self::Sqlite => Ok(sqlite_url(folder)),
            Self::Postgres => ground.database().await,
        }
    }
}

/// The address of a database file in a folder.
pub fn sqlite_url(folder: &Path) -> String {
    format!("sqlite://{}?mode=rwc", folder.join("tollgate.db").display())
}

/// The address of another database of the same server.
pub fn sibling(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, String::new()), |(base, query)| (base, format!("?{query}")));
    let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
    format!("{base}/{name}{query}")
}

/// One connection for raw SQL.
#[derive(Debug, Clone)]
pub struct Sql(pub DatabaseConnection);

impl Sql {
    /// Connects.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).connect_timeout(Duration::from_secs(5)).sqlx_logging(false);
        Ok(Self(sea_orm::Database::connect(options).await?))
    }

    /// Runs statements.
    pub async fn run(&self, statements: &str) -> anyhow::Result<()> {
        self.0
            .execute_unprepared(statements)
            .await
            .with_context(|| statements.chars().take(200).collect::<String>())?;
        Ok(())
    }

    /// The number that a query answers.
    pub async fn number(&self, query: &str) -> anyhow::Result<i64> {
        let row = self.0.query_one_raw(Statement::from_string(self.0.get_database_backend(), query)).await?;
        Ok(row.context("a row")?.try_get_by_index(0)?)
    }

    /// The text that a query answers.
    pub async fn text(&self, query: &str) -> anyhow::Result<String> {
        let row = self.0.query_one_raw(Statement::from_string(self.0.get_database_backend(), query)).await?;
        Ok(row.context("a row")?.try_get_by_index(0)?)
    }

    /// Subscriptions of which a part is missing: their scopes, or the record of a change. Each version of a
    /// subscription has its change, written in the same transaction.
    pub async fn half_written(&self) -> anyhow::Result<i64> {
        self.number(
            "SELECT count(*) FROM subscription WHERE
                NOT EXISTS (SELECT 1 FROM subscription_scope WHERE subscription_id = subscription.id)
                OR version <> (SELECT count(*) FROM change WHERE change.subscription_id = subscription.id)",
        )
        .await
    }

    /// Gives each user `PREFIX0`, `PREFIX2`, ... below a number a subscription without end, past the service. Postgres
    /// only.
    pub async fn seed(&self, prefix: &str, below: u32) -> anyhow::Result<()> {
        self.run(&format!(
            "WITH seeded AS (
                INSERT INTO subscription (id, subject_type, subject_id, valid_from, version, created_at, updated_at)
                SELECT gen_random_uuid(), 'user', '{prefix}' || number, '2020-01-01T00:00:00Z', 1,
                    '2020-01-01T00:00:00Z', '2020-01-01T00:00:00Z'
                FROM generate_series(0, {below} - 1, 2) AS number RETURNING id
            )
            INSERT INTO subscription_scope (subscription_id, scope) SELECT id, '{SCOPE}' FROM seeded"
        ))
        .await?;
        self.run("ANALYZE subscription, subscription_scope").await
    }

    /// How many sessions of the service there are, by a condition on them. Postgres only.
    pub async fn sessions(&self, condition: &str) -> anyhow::Result<i64> {
        self.number(&format!(
            "SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'tollgate' AND datname = current_database() AND {condition}"
        ))
        .await
    }
}

/// What says that a session listens for wake-ups.
pub const LISTENS: &str = "query ILIKE 'LISTEN%'";

/// The most connections that one replica is to have: 8 for the API, 6 for hooks, 2 for views, 1 for the feed and 1
/// that listens.
pub const MOST_CONNECTIONS: i64 = 18;

/// The most sessions that one replica is to have on a server which does not answer: past its time a hook's query leaves
/// its connection behind, and Postgres ends the session of it a second later. At four queries at once, each 300 ms, and
/// one try in 250 ms from the third failure on, these are eight at most.
pub const MOST_SESSIONS: i64 = MOST_CONNECTIONS + 8;

/// A Postgres server of a row's own, which keeps what it acknowledged. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Server {
    tools: PathBuf,
    folder: PathBuf,
    user: Option<(u32, u32)>,
    pid: u32,
    pub port: u16,
}

impl Server {
    /// Makes and starts one, with further settings.
    pub async fn start(ground: &Arc<Ground>, settings: &'static str) -> anyhow::Result<Self> {
        let ground = Arc::clone(ground);
        tokio::task::spawn_blocking(move || Self::start_now(&ground, settings)).await?
    }

    fn start_now(ground: &Ground, settings: &str) -> anyhow::Result<Self> {
        let (folder, user) = (ground.folder("postgres")?, harness::server_user()?);
        if let Some(user) = user {
            harness::give(&folder, user)?;
        }
        let mut server =
            Self { tools: ground.postgres_tools.clone(), folder, user, pid: 0, port: harness::free_port()? };
        let data = server.data();
        let data = data.to_str().context("a path")?;
        let make = ["-D", data, "--encoding=UTF8", "--locale=C", "--auth=trust", "--username=postgres", "--no-sync"];
        server.tool("initdb", &make)?;
        let mut configuration = OpenOptions::new().append(true).open(server.data().join("postgresql.conf"))?;
        writeln!(
            configuration,
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nport = {}\nmax_connections = 100\n\
            shared_buffers = 64MB\nfsync = on\nsynchronous_commit = on\nlogging_collector = off\n{settings}",
            server.port
        )?;
        server.start_again()?;
        Ok(server)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server said.
    pub fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let tool = self.tools.join(name);
        let said = self.folder.join("tools.log");
        let mut command = match self.user {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user.to_string(), "--regid", &group.to_string(), "--clear-groups"]);
                command.arg(tool);
                command
            }
            None => Command::new(tool),
        };
        // A server that inherited a pipe would keep it open.
        let log = || File::options().create(true).append(true).open(&said);
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null()).stdout(log()?).stderr(log()?);
        let status = command.status().with_context(|| name.to_owned())?;
        anyhow::ensure!(status.success(), "{name}: {status}: {}", fs::read_to_string(&said).unwrap_or_default());
        Ok(())
    }

    fn control(&self, what: &str, more: &[&str]) -> anyhow::Result<()> {
        let (data, log) = (self.data(), self.log());
        let (data, log) = (data.to_str().context("a path")?, log.to_str().context("a path")?);
        let arguments = [&[what, "-D", data, "-s", "-w", "-t", "60"], more].concat();
        let arguments = if what == "stop" { arguments } else { [&arguments[..], &["-l", log]].concat() };
        self.tool("pg_ctl", &arguments)
    }

    /// Starts it, and waits until it accepts.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.control("start", &[])?;
        self.note_pid()
    }

    /// Ends it as a crash would, without waiting for anybody.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.control("stop", &["-m", "immediate"])?;
        harness::forget(self.pid);
        self.pid = 0;
        Ok(())
    }

    /// Ends it as a crash would and starts it, and waits until it accepts.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.control("restart", &["-m", "immediate"])?;
        harness::forget(self.pid);
        self.note_pid()
    }

    fn note_pid(&mut self) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.data().join("postmaster.pid"))?;
        self.pid = text.lines().next().context("a process id")?.trim().parse()?;
        // The signal that makes Postgres end at once, and its sessions with it.
        harness::note(self.pid, "QUIT");
        Ok(())
    }

    /// The address of its database, through a port.
    pub fn url_through(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }

    /// The address of its database.
    pub fn url(&self) -> String {
        Self::url_through(self.port)
    }

    /// Waits until it accepts a connection: when it did.
    pub async fn accepts(&self, limit: Duration) -> anyhow::Result<Instant> {
        let start = Instant::now();
        loop {
            if let Ok(sql) = Sql::connect(&self.url()).await
                && sql.run("SELECT 1").await.is_ok()
            {
                return Ok(Instant::now());
            }
            anyhow::ensure!(start.elapsed() < limit, "Postgres does not accept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.pid != 0 {
            // A signal would do, too; this waits until nothing is left of it.
            let _ = self.stop();
        }
    }
}

/// Does something with a server that takes its time, without holding up what else is going on.
pub async fn with_server(
    mut server: Server,
    work: impl FnOnce(&mut Server) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Server> {
    tokio::task::spawn_blocking(move || work(&mut server).map(|()| server)).await?
}
