//! Revocations: who asks after a write was answered must not be told of before it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::json;
use tokio::task::JoinSet;
use tollgate::{
    domain::subscription::SubscriptionPatch,
    service::{Expected, Service, SystemClock, subscription::Write},
};

use crate::{
    client::{Caller, SCOPE},
    database::{Backend, LISTENS, Server, Sql},
    harness::{Ground, Launch, Tollgate},
    inside,
    measure::{Random, Report, Times, duration, rate},
    proxy::Proxy,
};

/// What the writers and readers of one subject know, as counts of flips. The subject holds the scope when the count
/// is even.
#[derive(Debug, Default)]
struct Subject {
    begun: AtomicU64,
    answered: AtomicU64,
}

/// What all of them count.
#[derive(Debug, Default)]
struct Counts {
    flips: AtomicU64,
    reads: AtomicU64,
    stale: AtomicU64,
    stop: AtomicBool,
}

/// F9, one replica.
pub async fn flips(ground: Arc<Ground>, backend: Backend) -> anyhow::Result<Report> {
    const SUBJECTS: usize = 32;
    // In memory: what is looked at here does not depend on what survives a crash.
    let folder = ground.memory_folder("flips")?;
    let url = backend.make(&ground, &folder).await?;
    // Both databases together make a million flips, if the time allows.
    let (most, least) = (ground.pick(500_000, 5_000), ground.pick(100_000, 1_000));
    let limit = Duration::from_secs(ground.pick(300, 30));
    let (service, _feed) = inside::service(&url, Arc::new(SystemClock)).await?;
    inside::register(&service).await?;

    let (counts, start) = (Arc::new(Counts::default()), Instant::now());
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for number in 0..SUBJECTS {
        let (user, subject) = (format!("flip-{number}"), Arc::new(Subject::default()));
        readers.spawn(read(Arc::clone(&service), user.clone(), Arc::clone(&subject), Arc::clone(&counts)));
        writers.spawn(flip(Arc::clone(&service), user, subject, Arc::clone(&counts), most, start + limit));
    }
    let mut outcome = Ok(());
    while let Some(ended) = writers.join_next().await {
        outcome = outcome.and(ended?);
    }
    let took = start.elapsed();
    counts.stop.store(true, Ordering::SeqCst);
    readers.join_all().await;
    service.close().await;
    outcome?;

    let mut report = Report::default();
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let flips = count(&counts.flips).min(most);
    report.figure(format!("{flips} flips of {SUBJECTS} subjects in {} ({:.0}/s)", duration(took), rate(flips, took)));
    report.figure(format!("{} reads judged beside them", count(&counts.reads)));
    report.figure(format!("{} stale answers", count(&counts.stale)));
    report.require(count(&counts.stale) == 0, "no stale answer");
    report.require(flips >= least, format!("{least} flips within {}", duration(limit)));
    Ok(report)
}

async fn flip(
    service: Arc<Service>,
    user: String,
    subject: Arc<Subject>,
    counts: Arc<Counts>,
    most: u64,
    deadline: Instant,
) -> anyhow::Result<()> {
    let id = inside::subscribe(&service, &user).await?;
    let past = "2021-01-01T00:00:00Z".parse()?;
    while counts.flips.fetch_add(1, Ordering::SeqCst) < most && Instant::now() < deadline {
        let count = subject.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let holds = count.is_multiple_of(2);
        let patch = SubscriptionPatch {
            valid_until: Some(if holds { None } else { Some(past) }),
            ..SubscriptionPatch::default()
        };
        let patch = Write::Patch { id, expected: Expected::Any, subject: None, patch };
        service.write_subscription(inside::origin(), patch).await?;
        subject.answered.store(count, Ordering::SeqCst);
        if inside::kept(&service, &user).await? != holds {
            counts.stale.fetch_add(1, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Reads beside the writer. What it reads while a write is under way is not judged, but makes loads that later reads
/// must not be fooled by.
async fn read(service: Arc<Service>, user: String, subject: Arc<Subject>, counts: Arc<Counts>) {
    while !counts.stop.load(Ordering::SeqCst) {
        let (answered, begun) = (subject.answered.load(Ordering::SeqCst), subject.begun.load(Ordering::SeqCst));
        let Ok(kept) = inside::kept(&service, &user).await else { continue };
        // The subject has its first subscription from the first flip on for sure.
        if begun > 0 && answered == begun && subject.begun.load(Ordering::SeqCst) == begun {
            counts.reads.fetch_add(1, Ordering::SeqCst);
            if kept != begun.is_multiple_of(2) {
                counts.stale.fetch_add(1, Ordering::SeqCst);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What happens to the wake-ups while replicas are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They arrive.
    Notified,
    /// There are none.
    Polling,
    /// Their listeners are ended again and again.
    Killed,
}

/// F9 and F10, three replicas.
pub async fn replicas(ground: Arc<Ground>, mode: Mode) -> anyhow::Result<Report> {
    let folder = ground.folder("replicas")?;
    let url = ground.database().await?;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let launch = Launch::new(&folder, &url)?;
        let wake_up = if mode == Mode::Polling { "false" } else { "true" };
        replicas.push(launch.with("TOLLGATE_FEED_WAKE_UP", wake_up).start_ready().await?.0);
    }
    replicas[0].caller().register(SCOPE).await?;
    let lost_before = lost_wakeups(&replicas).await?;
    let killing = if mode == Mode::Killed { Some(tokio::spawn(kill_listeners(url))) } else { None };
    let callers: Vec<Caller> = replicas.iter().map(Tollgate::caller).collect();
    let visibility = watch_flips(&callers, ground.pick(if mode == Mode::Notified { 300 } else { 60 }, 5)).await?;
    let mut report = Report::default();
    visibility.report(&mut report, if mode == Mode::Notified { 990 } else { 500 });
    let lost = lost_wakeups(&replicas).await? - lost_before;
    if let Some(killing) = killing {
        killing.abort();
        // Aborted, it tells nothing; it has counted in a place of its own.
        let killed = KILLED.swap(0, Ordering::SeqCst);
        report.figure(format!("{killed} listeners killed, {lost} times counted as lost"));
        report.require(killed > 0 && lost > 0.5, "counted in tollgate_feed_wakeups_lost_total");
    }
    Ok(report)
}

/// How many listeners were killed.
static KILLED: AtomicU64 = AtomicU64::new(0);

async fn kill_listeners(url: String) -> anyhow::Result<()> {
    let sql = Sql::connect(&url).await?;
    loop {
        let killed = sql
            .number(&format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE application_name = 'tollgate' AND datname = current_database() AND {LISTENS}"
            ))
            .await?;
        KILLED.fetch_add(u64::try_from(killed)?, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn lost_wakeups(replicas: &[Tollgate]) -> anyhow::Result<f64> {
    let mut lost = 0.0;
    for replica in replicas {
        lost += replica.metric("tollgate_feed_wakeups_lost_total").await?;
    }
    Ok(lost)
}

/// F10, a listener that hears nothing although its connection is open.
pub async fn silent_listener(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("silent")?;
    let server = Server::start(&ground, "fsync = off").await?;
    let proxy = Proxy::start(server.port).await?;
    let (writer, _) = Launch::new(&folder, &server.url())?.start_ready().await?;
    let (reader, _) = Launch::new(&folder, &Server::url_through(proxy.port))?.start_ready().await?;
    writer.caller().register(SCOPE).await?;
    let callers = [writer.caller(), reader.caller()];
    // Everything works first.
    watch_flips(&callers, 2).await?;
    let mut report = Report::default();
    let (mut all, mut rebuilt) = (Visibility::default(), Times::default());
    for _ in 0..ground.pick(4, 1) {
        let lost_before = reader.metric("tollgate_feed_wakeups_lost_total").await?;
        let (silenced, at) = (proxy.kill_listeners_silently(), Instant::now());
        anyhow::ensure!(silenced == 1, "{silenced} listeners instead of one");
        all.append(watch_flips(&callers, ground.pick(8, 3)).await?);
        while proxy.listener_since().is_none_or(|since| since < at) {
            anyhow::ensure!(at.elapsed() < Duration::from_secs(20), "the listener was not built anew");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rebuilt.push(proxy.listener_since().context("a listener")?.duration_since(at));
        let lost = reader.metric("tollgate_feed_wakeups_lost_total").await? - lost_before;
        report.require(lost > 0.5, "counted in tollgate_feed_wakeups_lost_total");
    }
    all.report(&mut report, 500);
    report.figure(format!("listener built anew after: {}", rebuilt.told()));
    report.require(rebuilt.max() <= Duration::from_secs(10), "built anew within 10 s");
    Ok(report)
}

/// How long changes took to show elsewhere.
#[derive(Debug, Default)]
struct Visibility {
    elsewhere: Times,
    stale_here: u64,
    turned_back: u64,
}

impl Visibility {
    fn append(&mut self, other: Self) {
        self.elsewhere.append(other.elsewhere);
        self.stale_here += other.stale_here;
        self.turned_back += other.turned_back;
    }

    /// `usual` is the share, in thousandths, that must be seen within a second.
    fn report(&self, report: &mut Report, usual: usize) {
        let Self { elsewhere, stale_here, turned_back } = self;
        report.figure(format!("seen after: {}", elsewhere.told()));
        report.figure(format!("{stale_here} stale where it was written, {turned_back} forgotten again"));
        report.require(elsewhere.max() <= Duration::from_secs(5), "at most 5 s");
        report.require(elsewhere.percentile(usual) <= Duration::from_secs(1), "usually 1 s");
        report.require(*stale_here == 0 && *turned_back == 0, "right, and for good");
    }
}

/// Flips subjects on one replica after the other, and watches when the others know.
async fn watch_flips(replicas: &[Caller], rounds: usize) -> anyhow::Result<Visibility> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    const SUBJECTS: u64 = 8;
    let mut tasks = JoinSet::new();
    for number in 0..SUBJECTS {
        let replicas = replicas.to_vec();
        let user = format!("watched-{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let mut random = Random::new(number);
        tasks.spawn(async move {
            let mut visibility = Visibility::default();
            let path = format!("/v1/subscriptions/{}", replicas[0].subscribe(&user).await?);
            for round in 0..rounds {
                let holds = round % 2 == 1;
                // Everybody has the present state cached.
                for replica in &replicas {
                    until(replica, &user, !holds).await?;
                }
                tokio::time::sleep(Duration::from_millis(random.below(200))).await;
                let until_text = if holds { json!(null) } else { json!("2021-01-01T00:00:00Z") };
                let writer = round % replicas.len();
                let written = replicas[writer].api("PATCH", &path, Some(json!({"validUntil": until_text}))).await?;
                written.expect(200)?;
                let answered = Instant::now();
                if replicas[writer].ask(&user).await?.kept() != Some(holds) {
                    visibility.stale_here += 1;
                }
                let mut watching = JoinSet::new();
                for replica in
                    replicas.iter().enumerate().filter(|(index, _)| *index != writer).map(|(_, it)| it.clone())
                {
                    let user = user.clone();
                    watching.spawn(async move {
                        until(&replica, &user, holds).await?;
                        let seen = answered.elapsed();
                        let mut turned_back = 0;
                        for _ in 0..3 {
                            turned_back += u64::from(replica.ask(&user).await?.kept() == Some(!holds));
                        }
                        anyhow::Ok((seen, turned_back))
                    });
                }
                while let Some(seen) = watching.join_next().await {
                    let (seen, turned_back) = seen??;
                    visibility.elsewhere.push(seen);
                    visibility.turned_back += turned_back;
                }
            }
            anyhow::Ok(visibility)
        });
    }
    let mut all = Visibility::default();
    while let Some(visibility) = tasks.join_next().await {
        all.append(visibility??);
    }
    Ok(all)
}

/// Asks until the answer is this one.
async fn until(replica: &Caller, user: &str, holds: bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while replica.ask(user).await?.kept() != Some(holds) {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(20), "not seen within 20 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
