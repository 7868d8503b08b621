//! Processes, folders and ports, all of which end with their row or with the run.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{client::Caller, database};

/// Where programs are looked for: the environment of a process that is started is empty but for what it is given.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What runs now: process ids with the signal that ends each.
static ALIVE: Mutex<Vec<(u32, &'static str)>> = Mutex::new(Vec::new());

fn alive() -> MutexGuard<'static, Vec<(u32, &'static str)>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a process that must not outlive the run, and the signal that ends it.
pub fn note(pid: u32, signal: &'static str) {
    alive().push((pid, signal));
}

/// Forgets a process that has ended.
pub fn forget(pid: u32) {
    alive().retain(|(noted, _)| *noted != pid);
}

/// Ends whatever still runs.
pub fn end_all() {
    for (pid, signal) in std::mem::take(&mut *alive()) {
        // It may have ended by itself.
        let _ = send_signal(pid, signal);
    }
}

/// Sends a signal to a process that was started here.
pub fn send_signal(pid: u32, signal: &str) -> anyhow::Result<()> {
    let kill = format!("kill -{signal} {pid}");
    let status = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().context("sh")?;
    anyhow::ensure!(status.success(), "{kill}: {status}");
    Ok(())
}

/// What all rows stand on.
#[derive(Debug)]
pub struct Ground {
    /// Whether a small version is run.
    pub quick: bool,
    /// A folder for everything that is written.
    root: PathBuf,
    /// The tools of Postgres.
    pub postgres_tools: PathBuf,
    /// A server that rows share, which is fast and forgets everything at a crash.
    pub server: String,
    /// Databases that were made on it for the present row.
    databases: Mutex<Vec<String>>,
}

impl Ground {
    /// Finds the tools, and makes the folder.
    #[expect(clippy::disallowed_methods, reason = "tests/with-postgres tells where Postgres is")]
    pub fn new(quick: bool) -> anyhow::Result<Self> {
        let server = std::env::var("TEST_DATABASE_URL").context("TEST_DATABASE_URL: run this with `make soak`")?;
        let tools = std::env::var("TEST_POSTGRES_BIN").context("TEST_POSTGRES_BIN: run this with `make soak`")?;
        let root = std::env::temp_dir().join(format!("tollgate-soak.{}", std::process::id()));
        // Postgres, which may run as another user, has to get through.
        fs::DirBuilder::new().mode(0o755).create(&root).with_context(|| format!("{}", root.display()))?;
        Ok(Self { quick, root, postgres_tools: tools.into(), server, databases: Mutex::default() })
    }

    /// The number for a full run, or the one for a quick one.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A new folder.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = self.root.join(format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).with_context(|| format!("{}", folder.display()))?;
        Ok(folder)
    }

    /// A new folder in memory, where there is such a thing. It goes with its row.
    pub fn memory_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let shared = Path::new("/dev/shm").join(self.root.file_name().unwrap_or_default()).join(name);
        if fs::create_dir_all(&shared).is_ok() { Ok(shared) } else { self.folder(name) }
    }

    /// A new database on the shared server: its address.
    pub async fn database(&self) -> anyhow::Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("soak_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        database::Sql::connect(&self.server).await?.run(&format!("CREATE DATABASE {name}")).await?;
        self.databases.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        Ok(database::sibling(&self.server, &name))
    }

    /// Removes what a row has made.
    pub async fn clean_row(&self) {
        let names = std::mem::take(&mut *self.databases.lock().unwrap_or_else(PoisonError::into_inner));
        if let Ok(sql) = database::Sql::connect(&self.server).await {
            for name in names {
                // What is left goes with the server.
                let _ = sql.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
            }
        }
        self.clean_memory();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            // What is left goes at the end.
            let _ = fs::remove_dir_all(entry.path());
        }
    }

    fn clean_memory(&self) {
        // Where there is none, nothing was put there.
        let _ = fs::remove_dir_all(Path::new("/dev/shm").join(self.root.file_name().unwrap_or_default()));
    }

    /// Removes everything.
    pub fn clean_up(&self) {
        self.clean_memory();
        // What is left in the folder for temporary files does no harm.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A port that nothing listens on now. It lies below those that the system hands out by itself, so that no outgoing
/// connection takes it meanwhile.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 16_000).unwrap_or_default();
    for _ in 0..1000 {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 16_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port")
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], free_port()?)))
}

/// How to start the service.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Where the hooks and the API are served.
    pub listen: SocketAddr,
    /// Where operators look.
    pub ops: SocketAddr,
    settings: Vec<(String, String)>,
    shell: Option<String>,
    /// What it says.
    pub log: PathBuf,
}

impl Launch {
    /// With a database, on free ports, logging into a folder.
    pub fn new(folder: &Path, url: &str) -> anyhow::Result<Self> {
        let (listen, ops) = (free_address()?, free_address()?);
        let settings = [
            ("PATH", PATH),
            ("TOLLGATE_DATABASE_URL", url),
            ("TOLLGATE_LISTEN", &listen.to_string()),
            ("TOLLGATE_OPS_LISTEN", &ops.to_string()),
            ("TOLLGATE_HOOK_USERNAME", "hook"),
            ("TOLLGATE_HOOK_PASSWORD", "hook"),
            ("TOLLGATE_ADMIN_TOKEN", "admin-token"),
            ("TOLLGATE_LOG", "warn"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Ok(Self { listen, ops, settings, shell: None, log: folder.join(format!("tollgate-{}.log", listen.port())) })
    }

    /// With another setting.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(set, _)| set != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Through a shell that runs something first.
    pub fn after(mut self, first: &str) -> Self {
        self.shell = Some(format!("{first}; exec \"$0\" \"$@\""));
        self
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let binary = env!("CARGO_BIN_EXE_tollgate");
        let mut command = match &self.shell {
            Some(shell) => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", shell, binary]);
                command
            }
            None => Command::new(binary),
        };
        let log = File::options().create(true).append(true).open(&self.log)?;
        let settings = self.settings.iter().map(|(name, value)| (name, value));
        command.args(arguments).env_clear().envs(settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// Starts `tollgate serve`, without waiting for it.
    pub fn start(&self) -> anyhow::Result<Tollgate> {
        Tollgate::spawn(self.command(&["serve"])?, self)
    }

    /// Starts `tollgate migrate`, without waiting for it.
    pub fn start_migration(&self) -> anyhow::Result<Tollgate> {
        Tollgate::spawn(self.command(&["migrate"])?, self)
    }

    /// Starts `tollgate serve`, and waits until it is ready: how long that took.
    pub async fn start_ready(&self) -> anyhow::Result<(Tollgate, Duration)> {
        let start = Instant::now();
        let mut tollgate = self.start()?;
        tollgate.ready(start, Duration::from_secs(20)).await?;
        Ok((tollgate, start.elapsed()))
    }

    /// What the process said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A process of the service. It is killed when this is dropped.
#[derive(Debug)]
pub struct Tollgate {
    child: Child,
    /// How it was started.
    pub launch: Launch,
}

impl Tollgate {
    fn spawn(mut command: Command, launch: &Launch) -> anyhow::Result<Self> {
        let child = command.spawn().context("tollgate does not start")?;
        note(child.id(), "KILL");
        Ok(Self { child, launch: launch.clone() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What asks it, over connections that are kept.
    pub fn caller(&self) -> Caller {
        Caller::new(self.launch.listen)
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self, since: Instant, limit: Duration) -> anyhow::Result<()> {
        let operations = Caller::new(self.launch.ops);
        loop {
            if operations.get("/readyz").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("tollgate ended with {status}: {}", self.launch.said());
            }
            anyhow::ensure!(since.elapsed() < limit, "not ready within {limit:?}: {}", self.launch.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it, as a machine that loses its power would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        forget(self.pid());
        Ok(())
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            forget(self.pid());
        }
        Ok(status)
    }

    /// Waits until it ends.
    pub async fn end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            anyhow::ensure!(start.elapsed() < limit, "tollgate did not end within {limit:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The value of a metric, by its name with labels as it is written.
    pub async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let text = Caller::new(self.launch.ops).get("/metrics").await?.text();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no {series}"))?;
        Ok(value.parse()?)
    }

    /// The processor time that it has taken so far.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // User and system time stand 14th and 15th of all, in hundredths of a second.
        let ticks = |index: usize| -> anyhow::Result<u64> { Ok(fields.get(index).context("a field")?.parse()?) };
        Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
    }

    /// The memory that it has resident now, and had at most, in kilobytes.
    pub fn resident(&self) -> anyhow::Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kilobytes = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok((kilobytes("VmRSS:")?, kilobytes("VmHWM:")?))
    }
}

impl Drop for Tollgate {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        forget(self.pid());
    }
}

/// Runs a program to its end, and gives back what it printed.
pub fn output(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{}", program.display()))?;
    let (printed, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{}: {}: {error}", program.display(), output.status);
    Ok(printed.into_owned())
}

/// The server of a database on a processor of its own, as if it had a machine of its own, until this is dropped. This
/// process and what it starts have the others.
#[derive(Debug)]
pub struct Apart {
    others: String,
    before: Vec<(u32, String)>,
}

impl Apart {
    /// Parts the server that a connection leads to from what this process starts next; none, with the reason, where
    /// that cannot be done.
    pub async fn server(sql: &database::Sql) -> anyhow::Result<Self> {
        let backend = sql.number("SELECT pg_backend_pid()::bigint").await?;
        let status = fs::read_to_string(format!("/proc/{backend}/status")).context("no server on this machine")?;
        let postmaster = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        let postmaster: u32 = postmaster.context("the server has no parent")?;
        let available = std::thread::available_parallelism()?.get();
        anyhow::ensure!(available > 1, "a single processor");
        let mut apart = Self { others: format!("1-{}", available - 1), before: Vec::new() };
        // With those that it has started already.
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
        for process in children.split_whitespace().filter_map(|child| child.parse().ok()).chain([postmaster]) {
            apart.pin(process, "0")?;
        }
        apart.pin(std::process::id(), &apart.others.clone())?;
        Ok(apart)
    }

    /// Lets the threads that this process has by now go before all else, as if those who ask had a machine of their own,
    /// and of the server the sessions that the service has by now, as if it had processors to spare for them.
    pub async fn rank(sql: &database::Sql) -> anyhow::Result<()> {
        rank(std::process::id(), &["--fifo", "--reset-on-fork"], 1)?;
        let sessions = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
            WHERE application_name = 'tollgate' AND datname = current_database()";
        let sessions = sql.text(sessions).await?;
        // They end with the service.
        sessions.split_whitespace().try_for_each(|session| rank(session.parse()?, &["--fifo"], 1))
    }

    /// Lets the present thread, a new one without a rank, share the processor with the server of the database.
    pub fn beside_server() -> anyhow::Result<()> {
        let link = fs::read_link("/proc/thread-self").context("/proc/thread-self")?;
        let thread = link.file_name().and_then(|name| name.to_str()).context("the number of this thread")?;
        output(Path::new("taskset"), &["-c", "-p", "0", thread]).map(|_| ())
    }

    /// Runs a program to its end where the server does not run, and gives back what it printed.
    pub fn output(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let program = program.to_str().context("a path that is text")?;
        output(Path::new("taskset"), &[&["-c", &self.others, program], arguments].concat())
    }

    fn pin(&mut self, process: u32, processors: &str) -> anyhow::Result<()> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let list = list.context("no processors")?.trim().to_owned();
        pin(process, processors)?;
        if self.before.iter().all(|(pinned, _)| *pinned != process) {
            self.before.push((process, list));
        }
        Ok(())
    }
}

fn pin(process: u32, processors: &str) -> anyhow::Result<()> {
    output(Path::new("taskset"), &["-a", "-c", "-p", processors, &process.to_string()]).map(|_| ())
}

/// Gives all threads of a process a rank before the system.
fn rank(process: u32, policy: &[&str], priority: u8) -> anyhow::Result<()> {
    let (priority, process) = (priority.to_string(), process.to_string());
    output(Path::new("chrt"), &[policy, &["--all-tasks", "--pid", &priority, &process]].concat()).map(|_| ())
}

impl Drop for Apart {
    fn drop(&mut self) {
        // A rank that was not given is not missed.
        let _ = rank(std::process::id(), &["--other"], 0);
        for (process, processors) in &self.before {
            // One that has ended meanwhile runs nowhere.
            let _ = pin(*process, processors);
        }
    }
}

/// The number of the user that runs this.
pub fn own_user() -> anyhow::Result<u32> {
    Ok(output(Path::new("id"), &["-u"])?.trim().parse()?)
}

/// Another user than root, for Postgres refuses to serve root: its user and group number.
pub fn server_user() -> anyhow::Result<Option<(u32, u32)>> {
    if own_user()? != 0 {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(user) = output(Path::new("id"), &["-u", name]) {
            let group = output(Path::new("id"), &["-g", name])?;
            return Ok(Some((user.trim().parse()?, group.trim().parse()?)));
        }
    }
    anyhow::bail!("Postgres does not run as root, and there is no user postgres or nobody for it")
}

/// Gives a folder to another user.
pub fn give(folder: &Path, (user, group): (u32, u32)) -> anyhow::Result<()> {
    chown(folder, Some(user), Some(group)).with_context(|| format!("{}", folder.display()))
}
