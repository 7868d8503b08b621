//! The soak: a bounded long run against faults, which prints what is promised beside what was measured.
//!
//! `make soak` runs it, `cargo test` does not. Arguments are names of faults (`F1`) or of rows (`F1-sqlite`), to run
//! these alone, and `--quick`, to see in a few minutes that everything works. The oracle of every row is written
//! apart from the rules of the service: plain integers and tuples.
//!
//! Everything happens on the loopback interface. Every process that a row starts ends with the row, also when it fails
//! or the run is interrupted.

mod client;
mod crash;
mod database;
mod harness;
mod import;
mod inside;
#[path = "../suite/issuer.rs"]
#[expect(dead_code, reason = "the suite uses the rest")]
mod issuer;
mod load;
mod measure;
mod outage;
mod proxy;
mod race;
mod strain;
mod tokens;

use std::{pin::Pin, process::ExitCode, sync::Arc, time::Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    database::Backend::{Postgres, Sqlite},
    harness::Ground,
    measure::{Report, duration},
    race::Mode,
};

type Running = Pin<Box<dyn Future<Output = anyhow::Result<Report>> + Send>>;

/// One promise about one fault, and what measures it.
struct Row {
    name: &'static str,
    fault: &'static str,
    promise: &'static str,
    run: Box<dyn Fn(Arc<Ground>) -> Running>,
}

impl Row {
    fn new<T: Future<Output = anyhow::Result<Report>> + Send + 'static>(
        name: &'static str,
        fault: &'static str,
        promise: &'static str,
        run: impl Fn(Arc<Ground>) -> T + 'static,
    ) -> Self {
        Self { name, fault, promise, run: Box::new(move |ground| Box::pin(run(ground))) }
    }

    /// Whether the filter names it: its fault, or the row alone.
    fn is_named(&self, filter: &[String]) -> bool {
        let fault = self.name.split('-').next().unwrap_or(self.name);
        filter.is_empty() || filter.iter().any(|name| name == self.name || name == fault)
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let killed = "no acknowledged write lost, none half written; ready again in under 2 s";
    let migrated = "all of the tables or none; the next start completes; of five at once one makes the tables";
    let flips = "no read that starts after the answer of a write shows what was before it, in 500,000 flips, or as many as 5 minutes allow";
    let seen = "seen by the other replicas within 5 s, usually within 1 s";
    let windows = "no wrong answer one microsecond before, at and after each boundary";
    let newer = "starts, serves and writes; the one that runs goes on";
    vec![
        Row::new("F1-sqlite", "kill -9 during writes, SQLite", killed, |g| crash::kill_during_writes(g, Sqlite)),
        Row::new("F1-postgres", "kill -9 during writes, Postgres", killed, |g| crash::kill_during_writes(g, Postgres)),
        Row::new("F2-sqlite", "kill -9 during a migration; five at once, SQLite", migrated, |g| {
            crash::kill_during_migration(g, Sqlite)
        }),
        Row::new("F2-postgres", "kill -9 during a migration; five at once, Postgres", migrated, |g| {
            crash::kill_during_migration(g, Postgres)
        }),
        Row::new(
            "F3",
            "Postgres restarted (immediate) under load",
            "cached subjects: always 200, right, within 500 ms; the rest within 2 s after Postgres accepts; no bad connection after",
            outage::restarts,
        ),
        Row::new(
            "F4",
            "Postgres stopped",
            "cached answers up to max_stale, then 503 with Retry-After, each within 500 ms; at most 20 connection attempts a second; normal in under 2 s after",
            outage::stopped,
        ),
        Row::new(
            "F5",
            "tables locked",
            "hooks answered within 500 ms; API answered within 7 s, be it a 503; at most 26 sessions; normal in under 2 s after",
            outage::locked,
        ),
        Row::new(
            "F6",
            "half-open connections to Postgres",
            "hooks answered within 500 ms; cold subjects known again within 1 s; news within 5 s; listener rebuilt within 10 s",
            outage::half_open,
        ),
        Row::new(
            "F7",
            "bulk writes and slow reports use up the API's connections",
            "hook p99 less than twice as long as without",
            load::busy_api,
        ),
        Row::new(
            "IMPORT",
            "a million subscriptions are imported, Postgres",
            "at least half as fast as COPY into the same tables; bounded memory; hook p99 less than twice as long, cached or not",
            import::million,
        ),
        Row::new(
            "F8",
            "clients hang up in the middle of writes",
            "no session left idle in a transaction; nothing half written",
            load::hang_ups,
        ),
        Row::new("F9-flips-sqlite", "revocation race, one replica, SQLite", flips, |g| race::flips(g, Sqlite)),
        Row::new("F9-flips-postgres", "revocation race, one replica, Postgres", flips, |g| race::flips(g, Postgres)),
        Row::new("F9-notified", "revocation race, three replicas", seen, |g| race::replicas(g, Mode::Notified)),
        Row::new("F9-polling", "revocation race, three replicas, every notification lost", seen, |g| {
            race::replicas(g, Mode::Polling)
        }),
        Row::new(
            "F10-killed",
            "listeners killed again and again",
            "seen by the other replicas within 5 s, usually within 1 s; counted",
            |g| race::replicas(g, Mode::Killed),
        ),
        Row::new(
            "F10-silent",
            "listener behind a dead socket",
            "seen by the other replicas within 5 s, usually within 1 s; counted",
            race::silent_listener,
        ),
        Row::new("F11-sqlite", "windows opening and closing, SQLite", windows, |g| inside::boundaries(g, Sqlite)),
        Row::new("F11-postgres", "windows opening and closing, Postgres", windows, |g| inside::boundaries(g, Postgres)),
        Row::new(
            "F12",
            "the issuer's keys cannot be had: down, slow, garbage, 50 MB, redirecting",
            "every good token taken; no request waits longer than 2 s; memory flat; a new key known within 30 s after",
            tokens::endpoint_fails,
        ),
        Row::new(
            "F13",
            "keys rotate, overlapping and abruptly; 5,000 random key ids a second",
            "a new key taken within 2 s while the refresh budget lasts, else within 30 s; every good token taken; the issuer asked within the budget; a withdrawn key's token refused within a minute",
            tokens::rotation,
        ),
        Row::new(
            "F14",
            "10,000 cold subjects at once; one hot key",
            "all right; each subject asked for once; at most 18 connections",
            load::cold_start,
        ),
        Row::new(
            "F15-signal",
            "SIGTERM under load",
            "no failed request; exit within the time to drain and 10 s",
            load::terminated,
        ),
        Row::new("F15-rolling", "rolling restart of two replicas behind HAProxy", "no failed request", load::rolling),
        Row::new(
            "F16-slow",
            "slow heads, bodies and readers",
            "closed after 5 s (heads) and 10 s (bodies), readers after 85 s; other clients' p99 less than twice as long",
            strain::slow_clients,
        ),
        Row::new(
            "F16-files",
            "file descriptors exhausted",
            "does not spin; those connected are served; all are again within 2 s after",
            strain::file_descriptors,
        ),
        Row::new(
            "F17-size",
            "writes to the SQLite file fail (limit on file sizes)",
            "writes get a 503 problem; reads go on; nothing acknowledged is lost; integrity check ok",
            strain::file_size,
        ),
        Row::new(
            "F17-full",
            "disk full under SQLite (small tmpfs)",
            "writes get a 503 problem; reads go on; writes go on when there is room; nothing acknowledged is lost; integrity check ok",
            strain::disk_full,
        ),
        Row::new("F18-sqlite", "newer schema, SQLite", newer, |g| crash::newer_schema(g, Sqlite)),
        Row::new("F18-postgres", "newer schema, Postgres", newer, |g| crash::newer_schema(g, Postgres)),
        Row::new(
            "F19",
            "wall clock jumps 5 minutes either way",
            "no panic; decisions follow the new present; skew shown as a metric",
            strain::clock_jumps,
        ),
    ]
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("soak: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Runs the rows that the arguments name; whether all of them passed.
fn run() -> anyhow::Result<bool> {
    let (options, filter): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument.starts_with('-'));
    let quick = options.iter().any(|option| option == "--quick");
    if let Some(unknown) = options.iter().find(|option| *option != "--quick") {
        anyhow::bail!("unknown option {unknown}; there is --quick alone, and names of rows");
    }
    let rows = rows();
    if let Some(unknown) = filter.iter().find(|name| !rows.iter().any(|row| row.is_named(&[(*name).clone()]))) {
        let names: Vec<_> = rows.iter().map(|row| row.name).collect();
        anyhow::bail!("no row is named {unknown}; there are {}", names.join(", "));
    }
    let chosen: Vec<Row> = rows.into_iter().filter(|row| row.is_named(&filter)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
    let outcome = runtime.block_on(async {
        let ground = Arc::new(Ground::new(quick)?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let outcome = tokio::select! {
            passed = all(&chosen, &ground) => Ok(passed),
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        };
        harness::end_all();
        ground.clean_up();
        outcome
    });
    runtime.shutdown_background();
    outcome
}

/// Runs rows one after the other, each printed when it has run, and whether all of them passed.
async fn all(rows: &[Row], ground: &Arc<Ground>) -> bool {
    let start = Instant::now();
    say(if ground.quick { "A quick run: its figures show that the rows work, no more.\n" } else { "A full run.\n" });
    say("| row | fault | promise | measured | took | pass or fail |\n| --- | --- | --- | --- | --- | --- |");
    let mut failed = 0_u32;
    for row in rows {
        let row_start = Instant::now();
        // In a task, so that a panic is the failure of its row.
        let outcome = tokio::spawn((row.run)(Arc::clone(ground))).await;
        let (measured, passed) = match outcome {
            Ok(Ok(report)) => report.told(),
            Ok(Err(error)) => (format!("not measured: {error:#}"), false),
            Err(error) => (format!("not measured: {error}"), false),
        };
        failed += u32::from(!passed);
        let (measured, took) = (measured.replace(['|', '\n'], " "), duration(row_start.elapsed()));
        let verdict = if passed { "pass" } else { "FAIL" };
        say(&format!("| {} | {} | {} | {measured} | {took} | {verdict} |", row.name, row.fault, row.promise));
        harness::end_all();
        ground.clean_row().await;
    }
    say(&format!("\n{} rows in {}, {failed} failed.", rows.len(), duration(start.elapsed())));
    failed == 0
}

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn say(line: &str) {
    println!("{line}");
}
