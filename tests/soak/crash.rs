//! The process is killed, and started again.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chrono::DateTime;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    client::{Caller, SCOPE, subscription},
    database::{Backend, Sql},
    harness::{Ground, Launch},
    measure::{Random, Report, Times, duration},
};

/// Who writes at once.
const WRITERS: u64 = 4;
/// Subscriptions of one writer in one round: a page of the list holds them all.
const MOST_SUBSCRIPTIONS: usize = 150;
/// The seconds of the first end of a window; each write sets another one.
const FIRST_END: i64 = 4_102_444_800;

/// What the oracle knows of a subscription: the last value that was acknowledged, and the one that was sent and not
/// answered, which may be there or not.
#[derive(Debug, Clone, Copy)]
struct Known {
    acknowledged: (i64, bool),
    pending: Option<(i64, bool)>,
}

/// What one writer did in one round.
#[derive(Debug, Default)]
struct Written {
    user: String,
    known: BTreeMap<String, Known>,
    pending_create: bool,
    acknowledged: u64,
    unexpected: Vec<String>,
}

/// F1.
pub async fn kill_during_writes(ground: Arc<Ground>, backend: Backend) -> anyhow::Result<Report> {
    let folder = ground.folder("crash")?;
    let url = backend.make(&ground, &folder).await?;
    let launch = Launch::new(&folder, &url)?;
    let rounds = ground.pick(50_u64, 4);
    let (mut random, mut starts) = (Random::new(1), Times::default());
    let (mut all, mut wrong, mut unexpected) = (Vec::new(), Vec::new(), Vec::new());
    let (mut acknowledged, mut unanswered) = (0, 0);

    let (mut tollgate, _) = launch.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    tollgate.caller().register("soak-too").await?;
    for round in 0..rounds {
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let (caller, random) = (tollgate.caller(), Random::new(random.next()));
            writers.spawn(write_until_broken(caller, format!("r{round}w{number}"), random));
        }
        tokio::time::sleep(Duration::from_millis(10 + random.below(300))).await;
        tollgate.kill()?;
        let mut written = writers.join_all().await;
        let (again, start) = launch.start_ready().await?;
        tollgate = again;
        starts.push(start);
        for written in &mut written {
            acknowledged += written.acknowledged;
            unanswered += written.known.values().filter(|known| known.pending.is_some()).count();
            unanswered += usize::from(written.pending_create);
            unexpected.append(&mut written.unexpected);
            check(&tollgate.caller(), written, &mut wrong).await?;
        }
        if backend == Backend::Sqlite {
            check_integrity(&url, &mut wrong).await?;
        }
        all.append(&mut written);
    }
    // What was acknowledged in the first round has lived through all the kills.
    for written in &all {
        check(&tollgate.caller(), written, &mut wrong).await?;
    }
    let half_written = Sql::connect(&url).await?.half_written().await?;

    let mut report = Report::default();
    report.figure(format!("{rounds} kills, {acknowledged} acknowledged writes, {unanswered} unanswered ones"));
    report.figure(format!("{} lost or wrong, {half_written} half written", wrong.len()));
    report.figure(format!("ready again: {}", starts.told()));
    report.require(acknowledged > rounds, "there were hardly any writes");
    report.require(wrong.is_empty(), format!("nothing lost ({:?})", wrong.first()));
    report.require(unexpected.is_empty(), format!("nothing refused ({:?})", unexpected.first()));
    report.require(half_written == 0, "nothing half written");
    report.require(starts.max() < Duration::from_secs(2), "ready again in under 2 s");
    Ok(report)
}

async fn write_until_broken(caller: Caller, user: String, mut random: Random) -> Written {
    let mut written = Written { user, ..Written::default() };
    let mut end = FIRST_END;
    loop {
        end += 1;
        let live: Vec<String> =
            written.known.iter().filter(|(_, known)| !known.acknowledged.1).map(|(id, _)| id.clone()).collect();
        let chosen = usize::try_from(random.below(1 << 20)).unwrap_or_default();
        let chosen = live.get(chosen % live.len().max(1)).cloned();
        let outcome = match (random.below(5), chosen) {
            (0 | 1, Some(id)) => {
                let new = (end, false);
                let body = json!({"validUntil": timestamp(end)});
                change(&caller, &mut written, &id, new, "PATCH", &format!("/v1/subscriptions/{id}"), Some(body)).await
            }
            (2, Some(id)) => {
                let new = (written.known.get(&id).map_or(0, |known| known.acknowledged.0), true);
                change(&caller, &mut written, &id, new, "POST", &format!("/v1/subscriptions/{id}/cancel"), None).await
            }
            _ if written.known.len() < MOST_SUBSCRIPTIONS => create(&caller, &mut written, end).await,
            _ => continue,
        };
        if !outcome {
            return written;
        }
    }
}

async fn create(caller: &Caller, written: &mut Written, end: i64) -> bool {
    let mut body = subscription(&written.user);
    body["scopes"] = json!([SCOPE, "soak-too"]);
    body["validUntil"] = json!(timestamp(end));
    match caller.api("POST", "/v1/subscriptions", Some(body)).await {
        Ok(reply) if reply.status == 201 => {
            let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let id = body["id"].as_str().unwrap_or_default().to_owned();
            written.known.insert(id, Known { acknowledged: (end, false), pending: None });
            written.acknowledged += 1;
            true
        }
        other => {
            written.pending_create = true;
            note_unexpected(written, other);
            false
        }
    }
}

async fn change(
    caller: &Caller,
    written: &mut Written,
    id: &str,
    new: (i64, bool),
    method: &str,
    path: &str,
    body: Option<Value>,
) -> bool {
    let answer = caller.api(method, path, body).await;
    let Some(known) = written.known.get_mut(id) else { return false };
    match answer {
        Ok(reply) if reply.status == 200 => {
            known.acknowledged = new;
            written.acknowledged += 1;
            true
        }
        other => {
            known.pending = Some(new);
            note_unexpected(written, other);
            false
        }
    }
}

/// A connection that broke is what the row is about; any other answer than success is not.
fn note_unexpected(written: &mut Written, answer: Result<crate::client::Reply, crate::client::Failure>) {
    if let Ok(reply) = answer {
        written.unexpected.push(format!("{}: {}", reply.status, reply.text()));
    }
}

/// Compares what the service shows with what the oracle knows.
async fn check(caller: &Caller, written: &Written, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let path = format!("/v1/subscriptions?subjectType=user&subjectId={}&limit=200", written.user);
    let list = caller.api("GET", &path, None).await?.expect(200)?;
    let mut shown = BTreeMap::new();
    for item in list["items"].as_array().context("items")? {
        let until = item["validUntil"].as_str().context("validUntil")?.to_owned();
        let id = item["id"].as_str().context("an id")?.to_owned();
        if item["scopes"] != json!([SCOPE, "soak-too"]) {
            wrong.push(format!("{id} has the scopes {}", item["scopes"]));
        }
        shown.insert(id, (until, item["status"] == "canceled"));
    }
    for (id, known) in &written.known {
        let expected = |(end, canceled): (i64, bool)| Some((timestamp(end), canceled));
        let present = shown.remove(id);
        if present != expected(known.acknowledged) && known.pending.is_none_or(|pending| present != expected(pending)) {
            wrong.push(format!("{id} is {present:?} and not {known:?}"));
        }
    }
    if shown.len() > usize::from(written.pending_create) {
        wrong.push(format!("{} subscriptions that nobody asked for", shown.len()));
    }
    Ok(())
}

async fn check_integrity(url: &str, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    let answer = Sql::connect(url).await?.text("PRAGMA integrity_check").await?;
    if answer != "ok" {
        wrong.push(format!("integrity check: {answer}"));
    }
    Ok(())
}

/// The timestamp of a number of seconds, as the API writes it.
fn timestamp(seconds: i64) -> String {
    let instant = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    instant.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// F2.
pub async fn kill_during_migration(ground: Arc<Ground>, backend: Backend) -> anyhow::Result<Report> {
    let rounds = ground.pick(60_u64, 5);
    let mut random = Random::new(2);
    let (mut none, mut all, mut partly, mut starts) = (0, 0, 0, Times::default());
    // How long it takes when nobody kills it, to kill it at any moment of that.
    let usual = {
        let folder = ground.folder("usual")?;
        let launch = Launch::new(&folder, &backend.make(&ground, &folder).await?)?;
        let start = Instant::now();
        launch.start_migration()?.end(Duration::from_secs(20)).await?;
        start.elapsed()
    };
    let usual_micros = u64::try_from(usual.as_micros()).unwrap_or(u64::MAX);
    let steps = steps();
    for _ in 0..rounds {
        let folder = ground.folder("migration")?;
        let url = backend.make(&ground, &folder).await?;
        let launch = Launch::new(&folder, &url)?;
        let mut migration = launch.start_migration()?;
        // The first part of that time goes by before there is a connection.
        tokio::time::sleep(Duration::from_micros(usual_micros / 4 + random.below(usual_micros))).await;
        migration.kill()?;
        match taken(&url).await? {
            0 => none += 1,
            taken if taken == steps => all += 1,
            _ => partly += 1,
        }
        let (tollgate, start) = launch.start_ready().await?;
        starts.push(start);
        tollgate.caller().register(SCOPE).await?;
        tollgate.caller().subscribe("u").await?;
        anyhow::ensure!(taken(&url).await? == steps, "steps are missing");
        drop(tollgate);
        std::fs::remove_dir_all(folder)?;
    }

    let (races, mut makers, mut failed) = (ground.pick(10_u64, 2), Vec::new(), 0);
    for _ in 0..races {
        let folder = ground.folder("five")?;
        let launch = Launch::new(&folder, &backend.make(&ground, &folder).await?)?.with("TOLLGATE_LOG", "info");
        let five = (0..5).map(|_| launch.start_migration()).collect::<anyhow::Result<Vec<_>>>()?;
        for mut migration in five {
            failed += usize::from(!migration.end(Duration::from_secs(30)).await?.success());
        }
        makers.push(launch.said().matches("the tables were brought up to date").count());
    }

    let mut report = Report::default();
    report.figure(format!(
        "{rounds} kills within {} of the start: {none} left no table, {all} all of them, {partly} a part",
        duration(usual * 5 / 4)
    ));
    report.figure(format!("next start ready: {}", starts.told()));
    report.figure(format!("{races} times five at once: {failed} failed"));
    report.require(partly == 0, "all or none");
    report.require(failed == 0, "all five end well");
    report.require(makers.iter().all(|makers| *makers == 1), format!("one makes the tables ({makers:?})"));
    Ok(report)
}

/// How many steps this version knows.
fn steps() -> i64 {
    use migration::MigratorTrait as _;
    i64::try_from(migration::Migrator::migrations().len()).unwrap_or(i64::MAX)
}

/// How many steps were taken on a database.
async fn taken(url: &str) -> anyhow::Result<i64> {
    let sql = Sql::connect(url).await?;
    let exists = if url.starts_with("sqlite") {
        "SELECT count(*) FROM sqlite_master WHERE name = 'seaql_migrations'"
    } else {
        "SELECT count(*) FROM pg_tables WHERE tablename = 'seaql_migrations'"
    };
    if sql.number(exists).await? == 0 {
        return Ok(0);
    }
    sql.number("SELECT count(*) FROM seaql_migrations").await
}

/// F18.
pub async fn newer_schema(ground: Arc<Ground>, backend: Backend) -> anyhow::Result<Report> {
    let folder = ground.folder("newer")?;
    let url = backend.make(&ground, &folder).await?;
    let launch = Launch::new(&folder, &url)?;
    let (old, _) = launch.start_ready().await?;
    old.caller().register(SCOPE).await?;
    old.caller().subscribe("before").await?;

    let sql = Sql::connect(&url).await?;
    sql.run(
        "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m20991231_000001_of_a_newer_version', 4102358400)",
    )
    .await?;
    sql.run("ALTER TABLE subscription ADD COLUMN of_a_newer_version text").await?;
    sql.run("CREATE TABLE of_a_newer_version (id integer PRIMARY KEY)").await?;

    let mut report = Report::default();
    let other = Launch::new(&folder, &url)?;
    let outcome = serves(&old.caller(), "running").await;
    report.require(outcome.is_ok(), format!("the one that runs goes on ({outcome:?})"));
    if backend == Backend::Sqlite {
        // One process serves a file.
        drop(old);
    }
    let (new, start) = other.start_ready().await?;
    let outcome = serves(&new.caller(), "started").await;
    report.require(outcome.is_ok(), format!("it serves and writes ({outcome:?})"));
    let migrated = launch.start_migration()?.end(Duration::from_secs(20)).await?;
    report.require(migrated.success(), "`tollgate migrate` ends well");
    let said = other.said();
    report.require(said.contains("newer version"), "it says that the tables are a newer version's");
    report.figure(format!("ready in {}, hook and API right, `tollgate migrate` {migrated}", duration(start)));
    Ok(report)
}

/// Whether the service decides, writes and reads.
async fn serves(caller: &Caller, user: &str) -> anyhow::Result<()> {
    let kept = async |user: &str| -> anyhow::Result<Option<bool>> { Ok(caller.ask(user).await?.kept()) };
    anyhow::ensure!(kept("before").await? == Some(true), "what was held is kept");
    anyhow::ensure!(kept(user).await? == Some(false), "what is not held is removed");
    let id = caller.subscribe(user).await?;
    anyhow::ensure!(kept(user).await? == Some(true), "what was bought is kept");
    caller.api("POST", &format!("/v1/subscriptions/{id}/cancel"), None).await?.expect(200)?;
    anyhow::ensure!(kept(user).await? == Some(false), "what was canceled is removed");
    caller.api("GET", &format!("/v1/subscriptions/{id}"), None).await?.expect(200)?;
    Ok(())
}

/// Whether a folder's database is whole.
pub async fn integrity(folder: &Path) -> anyhow::Result<String> {
    Sql::connect(&crate::database::sqlite_url(folder)).await?.text("PRAGMA integrity_check").await
}
