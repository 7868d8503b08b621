//! UNCACHED: what the service adds to the statement that it asks.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sea_orm::sqlx::{self, Connection as _, SqliteConnection};
use tokio::task::JoinSet;
use tollgate::store::facts;

use super::{Fresh, misses};
use crate::{
    ground::{Ground, Server, postmaster, seed, seed_sqlite},
    payload::{FIRST_USER, Question, scattered, user},
    processor,
    report::Report,
    sample::{Sample, Target, digits, float},
    wire::Load,
};

/// Connections of a run, with the share of the throughput that is to be left.
const RUNS: [(usize, f64); 3] = [(1, 0.6), (8, 0.6), (64, 0.9)];
/// The most processor time of Postgres for each check on 64 connections, in shares of that of pgbench.
const MOST_POSTGRES: f64 = 0.5;

/// UNCACHED.
pub async fn uncached(ground: &Ground) -> anyhow::Result<Report> {
    let mut report = Report::default();
    // Three parties share the processors here, and in the limit two: none of them is pinned.
    ground.pins.free(true)?;
    let measured = async {
        postgres(ground, &mut report).await?;
        sqlite(ground, &mut report).await
    };
    let measured = measured.await;
    ground.pins.free(false)?;
    measured?;
    Ok(report)
}

fn counted(connections: usize) -> String {
    if connections == 1 { "1 connection".to_owned() } else { format!("{connections} connections") }
}

/// What asks the service: the processor time that its checks take, and of whom.
struct Asking {
    tollgate: Server,
    load: Load,
    fresh: Fresh,
    block: usize,
}

impl Asking {
    /// Starts the service, with a cache that knows nothing of the users, and finds how many requests a block may have.
    async fn new(ground: &Ground, url: &str, users: u64, connections: usize, length: Duration) -> anyhow::Result<Self> {
        let tollgate = ground.tollgate_anywhere(url, &[]).await?;
        let load = Load::connect(tollgate.address, connections)?;
        let mut asking = Self { tollgate, load, fresh: Fresh::new(users), block: 50 * connections };
        asking.run().await?;
        let rate = asking.run().await?.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
        let block = (rate * length.as_secs_f64()) as usize;
        asking.block = block.max(connections);
        Ok(asking)
    }

    /// A block: checks a second, and the processor time of the service for each, in microseconds.
    async fn run(&mut self) -> anyhow::Result<(f64, f64)> {
        let questions = self.fresh.take(self.block);
        self.ask(&questions).await
    }

    /// The same for one user again and again, whom the cache knows.
    async fn run_cached(&mut self) -> anyhow::Result<(f64, f64)> {
        let questions = self.fresh.take(1);
        self.load.run(&questions, 1).await?;
        self.ask(&questions).await
    }

    async fn ask(&mut self, questions: &Arc<[Question]>) -> anyhow::Result<(f64, f64)> {
        let before = self.tollgate.time()?;
        let block = self.load.run(questions, self.block).await?;
        let time = self.tollgate.time()?.saturating_sub(before);
        Ok((block.rate(), time.as_secs_f64() * 1e6 / float(self.block)))
    }
}

async fn postgres(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let users = ground.pick(1_000_000, 50_000);
    let url = ground.database().await?;
    ground.tollgate(&url, &[]).await?.register()?;
    seed(&url, users, false).await?;
    let server = postmaster(&url).await?;
    let script = ground.folder()?.join("check.sql");
    let statement = facts::POSTGRES.replace("$1::text[]", "ARRAY[:kind]::text[]");
    let statement = statement.replace("$2::text[]", "ARRAY[:id]::text[]");
    let last = FIRST_USER + users - 1;
    std::fs::write(&script, format!("\\set id random({FIRST_USER}, {last})\n{};\n", statement.trim()))?;
    let (rounds, length) = ground.pick((6, Duration::from_secs(2)), (1, Duration::from_secs(1)));
    for (connections, target) in RUNS {
        let pgbench =
            Pgbench { tool: &ground.postgres_tools.join("pgbench"), url: &url, script: &script, server, connections };
        // To connect and to prepare is not what is compared.
        let opening = pgbench.run(&["-t", "1"])?.1;
        let mut asking = Asking::new(ground, &url, users, connections, length).await?;
        let misses_before = misses(&asking.tollgate)?;
        let [mut rate_ratios, mut time_ratios, mut rates, mut own_rates, mut times, mut own_times, mut service] =
            [const { Sample::new() }; 7];
        for _ in 0..rounds {
            let (mut rate, mut time) = ([0.0; 2], [0.0; 2]);
            for place in [0, 1, 1, 0] {
                if place == 0 {
                    let (transactions, taken) = pgbench.run(&["-T", &length.as_secs().to_string()])?;
                    rate[0] += transactions.rate / 2.0;
                    time[0] += taken.saturating_sub(opening).as_secs_f64() * 1e6 / transactions.count / 2.0;
                } else {
                    let before = processor::time_with_children(server)?;
                    let (checks, of_service) = asking.run().await?;
                    let taken = processor::time_with_children(server)?.saturating_sub(before);
                    rate[1] += checks / 2.0;
                    time[1] += taken.as_secs_f64() * 1e6 / float(asking.block) / 2.0;
                    service.push(of_service);
                }
            }
            rate_ratios.push(rate[1] / rate[0]);
            time_ratios.push(time[1] / time[0]);
            rates.push(rate[0]);
            own_rates.push(rate[1]);
            times.push(time[0]);
            own_times.push(time[1]);
        }
        let what = format!("uncached hook : pgbench, {}, ", counted(connections));
        report.target(format!("{what}throughput"), &rate_ratios, Target::AtLeast(target));
        if connections == 64 {
            report.target(format!("{what}CPU of Postgres a check"), &time_ratios, Target::AtMost(MOST_POSTGRES));
        } else {
            report.figure(format!("{what}CPU of Postgres a check"), time_ratios.told());
        }
        let missed = (misses(&asking.tollgate)? - misses_before) / float(2 * rounds * asking.block);
        let metric = |name| asking.tollgate.metric(name);
        let batch = metric("tollgate_cache_loaded_subjects_total")? / metric("tollgate_cache_loads_total")?;
        if connections == 1 {
            // They are to be compared with what was measured just before, in the same state of the machine.
            let mut cached = Sample::new();
            for _ in 0..2 * rounds {
                cached.push(asking.run_cached().await?.0);
            }
            let each = |rate: &Sample| 1e6 / rate.median();
            let (check, hook, statement) = (each(&own_rates), each(&cached), each(&rates));
            report.figure(
                "where the time of an uncached check goes, 1 connection",
                format!(
                    "{} µs from the request to the next: {} as long as a request that the cache answers, {} as long as \
                    pgbench takes for the statement, {} beyond both; so the ratio could be {} at most",
                    digits(check),
                    digits(hook),
                    digits(statement),
                    digits(check - hook - statement),
                    digits(statement / (hook + statement))
                ),
            );
        }
        report.figure(
            format!("uncached hook, {}", counted(connections)),
            format!(
                "{} a second, CPU a check: Postgres {} µs, service {} µs; {missed:.2} subjects a check \
                not in the cache, {batch:.1} of them a query; pgbench {} a second, Postgres {} µs",
                digits(own_rates.median()),
                digits(own_times.median()),
                digits(service.median()),
                digits(rates.median()),
                digits(times.median())
            ),
        );
    }
    report.note(format!(
        "Postgres: {users} users with a subscription each; {rounds} rounds of two blocks of {} each; nothing is pinned, \
        for three parties share the processors; of each request the user is looked up anew and the client is cached",
        crate::sample::duration(length)
    ));
    Ok(())
}

/// How to run pgbench.
struct Pgbench<'a> {
    tool: &'a Path,
    url: &'a str,
    script: &'a Path,
    server: u32,
    connections: usize,
}

/// What pgbench did.
struct Transactions {
    count: f64,
    /// A second, without the time to connect.
    rate: f64,
}

impl Pgbench<'_> {
    /// Runs it: what it did, and the processor time that Postgres took for it.
    fn run(&self, length: &[&str]) -> anyhow::Result<(Transactions, Duration)> {
        let before = processor::time_with_children(self.server)?;
        let mut command = Command::new(self.tool);
        command.args(["-n", "-M", "prepared", "-D", "kind=user", "-j", "1", "-c", &self.connections.to_string()]);
        command.arg("-f").arg(self.script).args(length).arg(self.url);
        let output = command.stdin(Stdio::null()).output().context("pgbench")?;
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "pgbench: {}: {error}", output.status);
        // Its sessions end after it does.
        std::thread::sleep(Duration::from_millis(100));
        let taken = processor::time_with_children(self.server)?.saturating_sub(before);
        let number = |before: &str| -> anyhow::Result<f64> {
            let line = said.lines().find_map(|line| line.strip_prefix(before)).with_context(|| said.to_string())?;
            let digits = line.trim_start().split([' ', '/']).next().unwrap_or_default();
            Ok(digits.parse()?)
        };
        let transactions =
            Transactions { count: number("number of transactions actually processed:")?, rate: number("tps =")? };
        Ok((transactions, taken))
    }
}

async fn sqlite(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let users = ground.pick(1_000_000, 50_000);
    let url = format!("sqlite://{}?mode=rwc", ground.folder()?.join("tollgate.db").display());
    ground.tollgate(&url, &[]).await?.register()?;
    seed_sqlite(&url, users).await?;
    let (rounds, length) = ground.pick((4, Duration::from_secs(1)), (1, Duration::from_millis(500)));
    for (connections, target) in RUNS {
        let mut looping = Looping::new(&url, users, connections).await?;
        let mut asking = Asking::new(ground, &url, users, connections, length).await?;
        let [mut ratios, mut rates, mut own_rates, mut service] = [const { Sample::new() }; 4];
        for _ in 0..rounds {
            let mut rate = [0.0; 2];
            for place in [0, 1, 1, 0] {
                rate[place] += if place == 0 {
                    looping.run(length).await? / 2.0
                } else {
                    let (checks, of_service) = asking.run().await?;
                    service.push(of_service);
                    checks / 2.0
                };
            }
            ratios.push(rate[1] / rate[0]);
            rates.push(rate[0]);
            own_rates.push(rate[1]);
        }
        let what =
            format!("uncached hook : the prepared statement in a loop, SQLite, {}, throughput", counted(connections));
        report.target(what, &ratios, Target::AtLeast(target));
        report.figure(
            format!("uncached hook, SQLite, {}", counted(connections)),
            format!(
                "{} a second, CPU of the service with SQLite in it {} µs a check; the loop {} a second",
                digits(own_rates.median()),
                digits(service.median()),
                digits(rates.median())
            ),
        );
    }
    report.note(format!(
        "SQLite: {users} users with a subscription each; {rounds} rounds of two blocks of {} each; the loop is sqlx's, each \
        connection with a thread of its own",
        crate::sample::duration(length)
    ));
    Ok(())
}

/// Connections, on each of which the statement of the service runs again when it has been answered.
struct Looping {
    connections: Vec<SqliteConnection>,
    users: u64,
    next: u64,
}

impl Looping {
    async fn new(url: &str, users: u64, connections: usize) -> anyhow::Result<Self> {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(SqliteConnection::connect(url).await?);
        }
        Ok(Self { connections: open, users, next: 0 })
    }

    /// How often in a second.
    async fn run(&mut self, length: Duration) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let until = begun + length;
        let connections = self.connections.len();
        let mut tasks = JoinSet::new();
        let skip = usize::try_from(self.next % self.users)?;
        for (number, mut connection) in self.connections.drain(..).enumerate() {
            let mut users = scattered(self.users).skip(skip + number).step_by(connections);
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < until {
                    let wanted = format!(r#"[["user","{}"]]"#, user(users.next().unwrap_or_default()));
                    let rows = sqlx::query(facts::SQLITE).bind(wanted).fetch_all(&mut connection).await?;
                    anyhow::ensure!(rows.len() == 1, "{} rows", rows.len());
                    count += 1;
                }
                anyhow::Ok((connection, count))
            });
        }
        let mut total = 0;
        while let Some(ended) = tasks.join_next().await {
            let (connection, count) = ended??;
            self.connections.push(connection);
            total += count;
        }
        self.next += total as u64;
        Ok(float(total) / begun.elapsed().as_secs_f64())
    }
}
