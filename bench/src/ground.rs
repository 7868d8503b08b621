//! What all rows stand on: processes, folders, databases. All of them end with the row or with the run.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sea_orm::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use serde_json::{Value, json};

use crate::{
    payload::{ENDED, FIRST_USER, HELD},
    processor::{self, Pins},
    rungs::Rung,
    wire::Wire,
};

/// Where programs are looked for: the environment of a process that is started is empty but for what it is given.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The token of the management API's bootstrap administrator.
pub const ADMIN_TOKEN: &str = "admin-token";
/// How long a server may take to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What all rows stand on.
#[derive(Debug)]
pub struct Ground {
    /// Whether a small version is run.
    pub quick: bool,
    /// Connections of the rows that ask as fast as they can.
    pub connections: usize,
    /// Who runs where.
    pub pins: Pins,
    /// The tools of Postgres.
    pub postgres_tools: PathBuf,
    /// The service's binary.
    tollgate: PathBuf,
    /// A Postgres server.
    server: String,
    /// A folder for everything that is written.
    root: PathBuf,
    /// Databases that were made for the present row.
    databases: Mutex<Vec<String>>,
}

impl Ground {
    /// Finds the tools, and makes the folder.
    #[expect(clippy::disallowed_methods, reason = "tests/with-postgres tells where Postgres is")]
    pub fn new(quick: bool, connections: usize, tollgate: PathBuf) -> anyhow::Result<Self> {
        let server = std::env::var("TEST_DATABASE_URL").context("TEST_DATABASE_URL: run this with `make bench`")?;
        let tools = std::env::var("TEST_POSTGRES_BIN").context("TEST_POSTGRES_BIN: run this with `make bench`")?;
        anyhow::ensure!(tollgate.is_file(), "{} is not there: run this with `make bench`", tollgate.display());
        let root = std::env::temp_dir().join(format!("tollgate-bench.{}", std::process::id()));
        fs::create_dir(&root).with_context(|| format!("{}", root.display()))?;
        let pins = Pins::take()?;
        let (postgres_tools, databases) = (tools.into(), Mutex::default());
        Ok(Self { quick, connections, pins, postgres_tools, tollgate, server, root, databases })
    }

    /// The number for a full run, or the one for a quick one.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A new folder.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = self.root.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&folder).with_context(|| format!("{}", folder.display()))?;
        Ok(folder)
    }

    /// A new database on the Postgres server: its address.
    pub async fn database(&self) -> anyhow::Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&mut PgConnection::connect(&self.server).await?, &format!("CREATE DATABASE {name}")).await?;
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let (base, query) =
            self.server.split_once('?').map_or((&*self.server, None), |(base, query)| (base, Some(query)));
        let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
        Ok(query.map_or_else(|| format!("{base}/{name}"), |query| format!("{base}/{name}?{query}")))
    }

    /// Removes what a row has made.
    pub async fn clean_row(&self) {
        let names = std::mem::take(&mut *self.databases.lock().unwrap_or_else(PoisonError::into_inner));
        if let Ok(mut connection) = PgConnection::connect(&self.server).await {
            for name in names {
                // What is left goes with the server.
                let _ = run(&mut connection, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            }
        }
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            // What is left goes at the end.
            let _ = fs::remove_dir_all(entry.path());
        }
    }

    /// Removes everything.
    pub fn clean_up(&self) {
        // What is left in the folder for temporary files does no harm.
        let _ = fs::remove_dir_all(&self.root);
    }

    /// Starts a server of the ladder, on the processor of the servers.
    pub fn rung(&self, rung: Rung) -> anyhow::Result<Server> {
        self.pins.on_servers(|| self.own(&["serve", rung.name()]))
    }

    /// Starts the service inside a process of the bench, on all processors; it may be kept from hearing of changes made
    /// elsewhere.
    pub fn inside(&self, url: &str, is_watching: bool) -> anyhow::Result<Server> {
        let arguments = if is_watching { &["inside", url][..] } else { &["inside", url, "--unwatched"] };
        self.pins.anywhere(|| self.own(arguments))
    }

    /// Starts this program as a server, which prints where it listens.
    fn own(&self, arguments: &[&str]) -> anyhow::Result<Server> {
        let log = File::create(self.folder()?.join("log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { child: command.spawn()?, address, operations: None };
        let mut line = String::new();
        BufReader::new(server.child.stdout.take().context("its output")?).read_line(&mut line)?;
        server.address = line.trim().parse().with_context(|| format!("{arguments:?} said {line:?}"))?;
        Ok(server)
    }

    /// Starts the service on a database, on the processor of the servers, with further settings, and waits until it is
    /// ready.
    pub async fn tollgate(&self, url: &str, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        self.pins.on_servers(|| self.start(url, settings))?.ready().await
    }

    /// The same, on all processors.
    pub async fn tollgate_anywhere(&self, url: &str, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        self.pins.anywhere(|| self.start(url, settings))?.ready().await
    }

    fn start(&self, url: &str, settings: &[(&str, &str)]) -> anyhow::Result<Server> {
        let (address, operations) = (free_address()?, free_address()?);
        let log = File::create(self.folder()?.join("tollgate.log"))?;
        let defaults = [
            ("PATH", PATH),
            ("TOLLGATE_DATABASE_URL", url),
            ("TOLLGATE_LISTEN", &address.to_string()),
            ("TOLLGATE_OPS_LISTEN", &operations.to_string()),
            ("TOLLGATE_HOOK_USERNAME", "hook"),
            ("TOLLGATE_HOOK_PASSWORD", "hook"),
            ("TOLLGATE_ADMIN_TOKEN", ADMIN_TOKEN),
        ];
        let mut command = Command::new(&self.tollgate);
        command.arg("serve").env_clear().envs(defaults).envs(settings.iter().copied());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Ok(Server { child: child.context("tollgate does not start")?, address, operations: Some(operations) })
    }
}

/// A port that nothing listens on now. It lies below those that the system hands out by itself, so that no outgoing
/// connection takes it meanwhile.
fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 16_000).unwrap_or_default();
    for _ in 0..1000 {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
        }
    }
    anyhow::bail!("no free port")
}

/// A process that serves. It is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it is asked.
    pub address: SocketAddr,
    /// Where operators look, if it is the service.
    operations: Option<SocketAddr>,
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that it has taken so far.
    pub fn time(&self) -> anyhow::Result<Duration> {
        processor::time(self.pid())
    }

    async fn ready(mut self) -> anyhow::Result<Self> {
        let started = Instant::now();
        let operations = self.operations.context("the service")?;
        loop {
            if let Ok(mut wire) = Wire::connect(operations) {
                let (status, _) = wire.exchange(b"GET /readyz HTTP/1.1\r\nHost: bench\r\n\r\n")?;
                if status == 200 {
                    return Ok(self);
                }
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("tollgate ended with {status}");
            }
            anyhow::ensure!(started.elapsed() < START_TIMEOUT, "tollgate is not ready in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks the management API, and gives back its answer, of which the status must be this.
    pub fn api(&self, method: &str, path: &str, body: &Value, expected: u16) -> anyhow::Result<Value> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nContent-Type: application/json\r\n\
            Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut wire = Wire::connect(self.address)?;
        let (status, answer) = wire.exchange(request.as_bytes())?;
        anyhow::ensure!(status == expected, "{method} {path}: {status} {}", String::from_utf8_lossy(answer));
        Ok(serde_json::from_slice(answer)?)
    }

    /// Registers the scopes under subscription.
    pub fn register(&self) -> anyhow::Result<()> {
        for scope in [HELD, ENDED] {
            self.api("POST", "/v1/scopes", &json!({"name": scope}), 201)?;
        }
        Ok(())
    }

    /// The value of a metric, by its name with labels as it is written.
    pub fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let mut wire = Wire::connect(self.operations.context("the service")?)?;
        let (_, text) = wire.exchange(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let text = str::from_utf8(text)?;
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no {series}"))?;
        Ok(value.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs statements.
pub async fn run(connection: &mut PgConnection, statements: &str) -> anyhow::Result<()> {
    let run = sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await;
    run.with_context(|| statements.chars().take(200).collect::<String>())?;
    Ok(())
}

/// Gives users 0, 1, ... below a number a subscription without end, past the service, and if they shall have two, one
/// that has ended.
pub async fn seed(url: &str, below: u64, with_ended: bool) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    // Whether each scope is in the catalogue need not be asked millions of times.
    run(&mut connection, "SET session_replication_role = replica").await?;
    // Ids in ascending order, as the service makes them.
    let kinds = [(HELD, "NULL", "0a"), (ENDED, "'2021-01-01T00:00:00Z'", "0b")];
    for (scope, until, prefix) in kinds.into_iter().take(1 + usize::from(with_ended)) {
        run(
            &mut connection,
            &format!(
                "INSERT INTO subscription (id, subject_type, subject_id, valid_from, valid_until, version, created_at,
                    updated_at)
                SELECT ('{prefix}' || lpad(to_hex(number), 30, '0'))::uuid, 'user', ({FIRST_USER} + number)::text,
                    '2020-01-01T00:00:00Z', {until}, 1, '2020-01-01T00:00:00Z', '2020-01-01T00:00:00Z'
                FROM generate_series(0, {below} - 1) AS number;
                INSERT INTO subscription_scope (subscription_id, scope)
                SELECT ('{prefix}' || lpad(to_hex(number), 30, '0'))::uuid, '{scope}'
                FROM generate_series(0, {below} - 1) AS number"
            ),
        )
        .await?;
    }
    run(&mut connection, "VACUUM ANALYZE").await?;
    run(&mut connection, "CHECKPOINT").await
}

/// The same in a file of SQLite, which no service may have open: one subscription each.
pub async fn seed_sqlite(url: &str, below: u64) -> anyhow::Result<()> {
    let mut connection = SqliteConnection::connect(url).await?;
    let numbers = format!(
        "WITH RECURSIVE numbers (number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM numbers WHERE number < {below} - 1)"
    );
    let at = "2020-01-01T00:00:00+00:00";
    let statements = format!(
        "PRAGMA synchronous = OFF; BEGIN;
        {numbers} INSERT INTO subscription (id, subject_type, subject_id, valid_from, valid_until, version, created_at,
            updated_at)
        SELECT unhex(printf('0a%030x', number)), 'user', CAST({FIRST_USER} + number AS text), '{at}', NULL, 1, '{at}', '{at}'
        FROM numbers;
        {numbers} INSERT INTO subscription_scope (subscription_id, scope)
        SELECT unhex(printf('0a%030x', number)), '{HELD}' FROM numbers;
        COMMIT; PRAGMA wal_checkpoint(TRUNCATE)"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// The process of the Postgres server that a database is on.
pub async fn postmaster(url: &str) -> anyhow::Result<u32> {
    let mut connection = PgConnection::connect(url).await?;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let parent = processor::parent(u32::try_from(backend)?).context("is Postgres on another machine?")?;
    Ok(parent)
}

/// Runs a program to its end, and gives back what it printed.
pub fn output(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{}", program.display()))?;
    let (printed, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{}: {}: {error}", program.display(), output.status);
    Ok(printed.into_owned())
}
