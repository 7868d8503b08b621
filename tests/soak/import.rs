//! A million lines: how fast, in how much memory, and what hooks notice of it.

use std::{
    fs::File,
    io::{BufWriter, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::sync::oneshot;
use tollgate::http::transfer::CHUNK_LINES as CHUNK;

use crate::{
    client::{Load, SCOPE, Seen, count_not_ok, first_not_ok, times},
    database::Sql,
    harness::{self, Ground, Launch},
    measure::{Report, duration, rate},
};

/// What is imported is told by this source.
const SOURCE: &str = "import";
/// The most memory that an import may add to what the service had, in kilobytes. Among it are the subjects whose facts
/// the hooks ask for beside it.
const MEMORY_LIMIT_KB: u64 = 128 * 1024;
/// Every other one of so many subjects of the hooks has a subscription.
const SEEDED: u64 = 40_000;
/// How long hooks are measured without it.
const ALONE: Duration = Duration::from_secs(20);

/// The subjects that hooks ask for again and again. They are believed for longer than the row takes, so that all parts of
/// it read the database for others alone.
const KNOWN: u64 = 500;

/// What hooks saw in a part of the row: of subjects that the cache knows, and of others.
struct Asked {
    cached: Vec<Seen>,
    uncached: Vec<Seen>,
}

impl Asked {
    fn both(&self) -> [(&'static str, &Vec<Seen>); 2] {
        [("cached", &self.cached), ("uncached", &self.uncached)]
    }

    fn told(&self) -> String {
        self.both().map(|(kind, seen)| format!("{kind} {}", times(seen).told())).join(", ")
    }
}

/// Hooks of both kinds that are asked all the time.
struct Hooks {
    cached: Load,
    uncached: Load,
}

impl Hooks {
    /// Begins to ask. Subjects from `first_unknown` on were not asked for before.
    fn start(address: SocketAddr, first_unknown: &Arc<AtomicU64>) -> Self {
        let known = |number: u64| (format!("h-{}", number % KNOWN), number.is_multiple_of(2));
        let next = Arc::clone(first_unknown);
        let unknown = move |_| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            (format!("h-{number}"), number.is_multiple_of(2) && number < SEEDED)
        };
        let pause = Duration::from_millis(20);
        Self { cached: Load::start(address, 4, pause, known), uncached: Load::start(address, 2, pause, unknown) }
    }

    async fn end(self) -> anyhow::Result<Asked> {
        Ok(Asked { cached: self.cached.end().await?, uncached: self.uncached.end().await? })
    }
}

/// IMPORT.
pub async fn million(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("import")?;
    let url = ground.database().await?;
    // So that what hooks notice is Tollgate's doing: a server that is as busy as this one shares no processor with a
    // service in production, nor with who asks, and the two that a small machine has are both taken by any COPY.
    let apart = harness::Apart::server(&Sql::connect(&url).await?).await;
    let (tollgate, _) = Launch::new(&folder, &url)?.with("TOLLGATE_MAX_AGE", "1h").start_ready().await?;
    let (caller, sql) = (tollgate.caller(), Sql::connect(&url).await?);
    caller.register(SCOPE).await?;
    sql.seed("h-", u32::try_from(SEEDED)?).await?;
    let lines: u64 = ground.pick(1_000_000, 50_000);
    let file = write_file(&folder, lines)?;

    let unknown = Arc::new(AtomicU64::new(KNOWN));
    let hooks = || Hooks::start(tollgate.launch.listen, &unknown);
    // A service that has run for a while.
    let warming = hooks();
    tokio::time::sleep(Duration::from_secs(5)).await;
    warming.end().await?;
    let ranked = if apart.is_ok() { harness::Apart::rank(&sql).await } else { Ok(()) };
    let apart = Arc::new(apart);
    let load = hooks();
    tokio::time::sleep(ground.pick(ALONE, ALONE / 4)).await;
    let alone = load.end().await?;

    let (before_kb, _) = tollgate.resident()?;
    let load = hooks();
    let start = Instant::now();
    let answer = upload(tollgate.launch.listen, &file, apart.is_ok()).await.with_context(|| tollgate.launch.said())?;
    let imported_in = start.elapsed();
    let beside = load.end().await?;
    let (_, most_kb) = tollgate.resident()?;
    let created = answer["created"].as_u64().unwrap_or_default();

    let start = Instant::now();
    let again = upload(tollgate.launch.listen, &file, apart.is_ok()).await?;
    let again_in = start.elapsed();

    let beside_postgres = beside_postgres(&sql, lines, hooks).await?;
    let copied_in = copy(&ground, &folder, &url, &apart).await?;
    let mut report = Report::default();
    report.figure(match (&*apart, ranked) {
        (Ok(_), Ok(())) => {
            "the service on a processor of its own, the sessions of hooks first on the database's".to_owned()
        }
        (Ok(_), Err(reason)) => format!("the service on a processor of its own, nobody first ({reason:#})"),
        (Err(reason), _) => format!("all on the same processors ({reason:#})"),
    });
    let (import_rate, copy_rate) = (rate(lines, imported_in), rate(lines, copied_in));
    report.figure(format!(
        "{lines} lines in {}: {import_rate:.0}/s; COPY of the same rows into the same tables in {}: {copy_rate:.0}/s; ratio {:.2}",
        duration(imported_in),
        duration(copied_in),
        import_rate / copy_rate
    ));
    report.figure(format!("again, nothing new: {:.0}/s", rate(lines, again_in)));
    report.figure(format!("memory {} MB before, {} MB at most", before_kb / 1024, most_kb / 1024));
    report.figure(format!("hooks alone: {}", alone.told()));
    report.figure(format!("hooks beside it: {}", beside.told()));
    report.figure(format!("hooks beside Postgres that writes the same rows by itself: {}", beside_postgres.told()));
    for ((kind, alone), (_, beside)) in alone.both().into_iter().zip(beside.both()) {
        let p99 = |seen: &[Seen]| times(seen).percentile(990);
        let ratio = p99(beside).as_secs_f64() / p99(alone).as_secs_f64().max(1e-6);
        report.figure(format!("p99 of {kind} ones beside it : alone {ratio:.2}"));
        report.require(ratio < 2.0, format!("p99 of {kind} hooks less than twice as long beside it"));
    }
    let all: Vec<&Vec<Seen>> =
        [&alone, &beside, &beside_postgres].into_iter().flat_map(|part| part.both().map(|(_, seen)| seen)).collect();
    let not_ok: usize = all.iter().map(|seen| count_not_ok(seen)).sum();
    if not_ok > 0 {
        let first: String = all.iter().map(|seen| first_not_ok(seen)).collect();
        report.figure(format!("{not_ok} not right: {first}"));
    }
    report.require(created == lines, format!("every line is imported: {answer}"));
    report.require(again["outdated"].as_u64() == Some(lines), format!("nothing is imported twice: {again}"));
    report.require(import_rate >= 0.5 * copy_rate, "at least half as fast as COPY");
    report.require(most_kb < before_kb + MEMORY_LIMIT_KB, "bounded memory");
    report.require(not_ok == 0, "every hook request is answered right");
    Ok(report)
}

fn write_file(folder: &Path, lines: u64) -> anyhow::Result<PathBuf> {
    let path = folder.join("import.ndjson");
    let mut file = BufWriter::new(File::create(&path)?);
    for number in 0..lines {
        writeln!(
            file,
            r#"{{"source":"{SOURCE}","externalId":"sub_{number}","sourceVersion":1,"subject":{{"type":"user","id":"customer-{number}"}},"scopes":["{SCOPE}"],"validFrom":"2026-01-01T00:00:00Z","validUntil":"2027-01-01T00:00:00Z"}}"#
        )?;
    }
    file.flush()?;
    Ok(path)
}

/// Sends a file on a thread of its own, and gives back the report. That thread is not on the processor of the service,
/// if it is apart: those who import have machines of their own, too.
async fn upload(address: SocketAddr, path: &Path, is_apart: bool) -> anyhow::Result<Value> {
    let (told, report) = oneshot::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let parted = if is_apart { harness::Apart::beside_server() } else { Ok(()) };
        // Nobody waits for it after the row was broken off.
        let _ = told.send(parted.and_then(|()| send_file(address, &path)));
    });
    report.await?
}

fn send_file(address: SocketAddr, path: &Path) -> anyhow::Result<Value> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut stream = TcpStream::connect(address)?;
    let head = format!(
        "POST /v1/subscriptions/import HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer admin-token\r\n\
        content-type: application/x-ndjson\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if stream.write_all(&buffer[..count]).is_err() {
            // It was answered before its end: the answer says why.
            break;
        }
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(serde_json::from_str(body)?)
}

/// What hooks see when the server writes what was imported once more, in transactions as long, and the service has no
/// part in it. It is about as much work for the server: it reads the rows from its tables, waits for nobody, and checks no
/// foreign keys.
async fn beside_postgres(sql: &Sql, lines: u64, hooks: impl Fn() -> Hooks) -> anyhow::Result<Asked> {
    sql.run(&format!(
        "CREATE SCHEMA again;
        CREATE TABLE again.subscription (LIKE subscription INCLUDING DEFAULTS INCLUDING INDEXES);
        CREATE TABLE again.subscription_scope (LIKE subscription_scope INCLUDING DEFAULTS INCLUDING INDEXES);
        CREATE TABLE again.change (LIKE change INCLUDING DEFAULTS INCLUDING INDEXES);
        CREATE TABLE again.numbered AS
            SELECT id, row_number() OVER (ORDER BY id) AS number FROM subscription WHERE source = '{SOURCE}';
        CREATE UNIQUE INDEX ON again.numbered (number);
        ANALYZE again.numbered"
    ))
    .await?;
    let load = hooks();
    let own = format!("SELECT id FROM again.numbered WHERE number > passed AND number <= passed + {CHUNK}");
    sql.run(&format!(
        "DO $$ BEGIN
            FOR passed IN 0 .. {lines} BY {CHUNK} LOOP
                INSERT INTO again.subscription SELECT * FROM subscription WHERE id IN ({own});
                INSERT INTO again.subscription_scope SELECT * FROM subscription_scope WHERE subscription_id IN ({own});
                INSERT INTO again.change SELECT * FROM change WHERE subscription_id IN ({own});
                COMMIT;
            END LOOP;
        END $$"
    ))
    .await?;
    let seen = load.end().await?;
    anyhow::ensure!(sql.number("SELECT count(*) FROM again.change").await? == i64::try_from(lines)?, "not all again");
    sql.run("DROP SCHEMA again CASCADE").await?;
    Ok(seen)
}

/// Copies what was imported into another database with the same tables: how long the writing took.
async fn copy(
    ground: &Ground,
    folder: &Path,
    from: &str,
    apart: &Arc<anyhow::Result<harness::Apart>>,
) -> anyhow::Result<Duration> {
    let to = ground.database().await?;
    let (tollgate, _) = Launch::new(folder, &to)?.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    drop(tollgate);
    let psql = ground.postgres_tools.join("psql");
    let run = async |url: &str, command: String| {
        let (psql, url, apart) = (psql.clone(), url.to_owned(), Arc::clone(apart));
        let run = move || {
            let arguments = ["-X", "-q", "-v", "ON_ERROR_STOP=1", &url, "-c", &command];
            match &*apart {
                Ok(apart) => apart.output(&psql, &arguments),
                Err(_) => harness::output(&psql, &arguments),
            }
        };
        tokio::task::spawn_blocking(run).await?
    };
    let own = format!("SELECT id FROM subscription WHERE source = '{SOURCE}'");
    let parts = [
        ("subscription", format!("id IN ({own})")),
        ("subscription_scope", format!("subscription_id IN ({own})")),
        ("change", format!("subscription_id IN ({own})")),
    ];
    let mut took = Duration::ZERO;
    for (table, condition) in parts {
        let file = folder.join(table);
        run(from, format!("\\copy (SELECT * FROM {table} WHERE {condition}) TO '{}'", file.display())).await?;
        let start = Instant::now();
        run(&to, format!("\\copy {table} FROM '{}'", file.display())).await?;
        took += start.elapsed();
    }
    Ok(took)
}
