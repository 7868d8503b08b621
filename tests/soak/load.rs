//! Many requests at once, and restarts among them.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    client::{Caller, Failure, Load, SCOPE, Seen, count_not_ok, first_not_ok, subscription, times},
    database::{MOST_CONNECTIONS, Server, Sql},
    harness::{self, Ground, Launch, Tollgate},
    measure::{Random, Report, Times, duration, rate},
};

/// F7.
pub async fn busy_api(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("busy")?;
    let url = ground.database().await?;
    let (tollgate, _) = Launch::new(&folder, &url)?.start_ready().await?;
    let (caller, sql) = (tollgate.caller(), Sql::connect(&url).await?);
    caller.register(SCOPE).await?;
    sql.seed("h-", ground.pick(60_000, 10_000)).await?;
    let (rounds, long) = (ground.pick(4, 1), Duration::from_secs(4));

    // A tenth of the hook requests are for subjects that are asked for the first time.
    let cold = Arc::new(AtomicU64::new(1_000));
    let next = move |number: u64| {
        let number = if number.is_multiple_of(10) { cold.fetch_add(1, Ordering::Relaxed) } else { number % 500 };
        (format!("h-{number}"), number.is_multiple_of(2))
    };
    let hooks = async || {
        let load = Load::start(tollgate.launch.listen, 8, Duration::from_millis(40), next.clone());
        tokio::time::sleep(long).await;
        load.end().await
    };
    hooks().await?; // to warm up

    // With and without in turns, so that whatever else the machine does falls on all of them.
    let (mut alone, mut used_up, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let (mut waited, mut worked, mut failed) = (0, 0, 0);
    for _ in 0..rounds {
        alone.append(&mut hooks().await?);

        // Imports that wait for a lock, which lets hooks read: they hold every connection of the API, and more of them,
        // and reports, wait for one.
        let stop = Arc::new(AtomicBool::new(false));
        let locking = Sql::connect(&url).await?;
        let transaction = locking.0.begin().await?;
        transaction.execute_unprepared("LOCK TABLE subscription IN EXCLUSIVE MODE").await?;
        let waiting = bulk(&tollgate, &stop, 40, Duration::from_millis(100), "w");
        tokio::time::sleep(Duration::from_millis(500)).await;
        used_up.append(&mut hooks().await?);
        transaction.rollback().await?;
        stop.store(true, Ordering::Relaxed);
        waited += ended(waiting).await.0;

        // Reports and imports that are answered: 16 clients that create, and 4 that read page after page of all there
        // is, at a pace that leaves the processor, which all of this shares, some time.
        let stop = Arc::new(AtomicBool::new(false));
        let working = bulk(&tollgate, &stop, 20, Duration::from_millis(150), "b");
        beside.append(&mut hooks().await?);
        stop.store(true, Ordering::Relaxed);
        let (more_worked, more_failed) = ended(working).await;
        (worked, failed) = (worked + more_worked, failed + more_failed);
    }

    let mut report = Report::default();
    let p99 = |seen: &[Seen]| times(seen).percentile(990);
    let ratio = |seen: &[Seen]| p99(seen).as_secs_f64() / p99(&alone).as_secs_f64().max(1e-6);
    report.figure(format!("hooks alone: {}", times(&alone).told()));
    report.figure(format!(
        "while all connections of the API wait ({waited} requests): {}, ratio {:.2}",
        times(&used_up).told(),
        ratio(&used_up)
    ));
    report.figure(format!(
        "beside {worked} API requests ({:.0}/s, {failed} failed): {}, ratio {:.2}",
        rate(worked, long * rounds),
        times(&beside).told(),
        ratio(&beside)
    ));
    let not_ok = count_not_ok(&alone) + count_not_ok(&used_up) + count_not_ok(&beside);
    report.figure(format!("{not_ok} hook requests without a right 200"));
    report.require(ratio(&used_up) < 2.0, "p99 less than twice as long while connections are used up");
    report.require(ratio(&beside) < 2.0, "p99 less than twice as long beside bulk writes and reports");
    report.require(not_ok == 0, "every hook request is answered right");
    report.require(failed == 0, "the API answers");
    Ok(report)
}

/// Clients of the API, each with this pause after a request: of five, four create and one reads page after page.
fn bulk(
    tollgate: &Tollgate,
    stop: &Arc<AtomicBool>,
    clients: u64,
    pause: Duration,
    prefix: &'static str,
) -> JoinSet<(u64, u64)> {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (caller, stop) = (tollgate.caller(), Arc::clone(stop));
        tasks.spawn(async move {
            let (mut done, mut failed, mut cursor) = (0, 0, String::new());
            while !stop.load(Ordering::Relaxed) {
                let reply = if client % 5 == 0 {
                    let path = format!("/v1/subscriptions?status=active&limit=200{cursor}");
                    let reply = caller.api("GET", &path, None).await;
                    let page = reply.as_ref().ok().and_then(|reply| reply.expect(200).ok()).unwrap_or_default();
                    cursor = page["nextCursor"].as_str().map_or_else(String::new, |next| format!("&cursor={next}"));
                    reply
                } else {
                    caller
                        .api("POST", "/v1/subscriptions", Some(subscription(&format!("{prefix}-{client}-{done}"))))
                        .await
                };
                done += 1;
                failed += u64::from(!reply.is_ok_and(|reply| matches!(reply.status, 200 | 201)));
                // A page is read at leisure.
                tokio::time::sleep(if client % 5 == 0 { 3 * pause } else { pause }).await;
            }
            (done, failed)
        });
    }
    tasks
}

async fn ended(tasks: JoinSet<(u64, u64)>) -> (u64, u64) {
    let ended = tasks.join_all().await;
    ended.into_iter().fold((0, 0), |(done, failed), (more, failures)| (done + more, failed + failures))
}

/// F8.
pub async fn hang_ups(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("hang-ups")?;
    let url = ground.database().await?;
    let (tollgate, _) = Launch::new(&folder, &url)?.start_ready().await?;
    let (caller, sql) = (tollgate.caller(), Sql::connect(&url).await?);
    caller.register(SCOPE).await?;
    let (clients, mut random) = (ground.pick(5_000_u64, 300), Random::new(8));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for client in 0..clients {
        let (address, random) = (tollgate.launch.listen, Random::new(random.next()));
        tasks.spawn(async move { hang_up(address, client, random).await });
        if tasks.len() >= 64 {
            tasks.join_next().await.context("a task")???;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let took = start.elapsed();
    // What was sent whole is carried out to its end, though nobody waits for it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = sql.sessions("state LIKE 'idle in transaction%'").await?;
    let active = sql.sessions("state = 'active'").await?;
    let half_written = sql.half_written().await?;
    let written = sql.number("SELECT count(*) FROM subscription").await?;
    let mut report = Report::default();
    report.figure(format!("{clients} clients hung up in {}; {written} subscriptions were written", duration(took)));
    report.figure(format!("{half_written} half written, {idle} sessions idle in a transaction, {active} at work"));
    report.require(half_written == 0, "nothing half written");
    report.require(idle == 0 && active == 0, "no session left over");
    report.require(written > 0 && u64::try_from(written)? < clients, "some hang up before, some after");
    let works = caller.subscribe("after").await;
    report.require(works.is_ok() && caller.ask("after").await?.kept() == Some(true), "it goes on");
    Ok(report)
}

async fn hang_up(address: SocketAddr, client: u64, mut random: Random) -> anyhow::Result<()> {
    let body = subscription(&format!("gone-{client}")).to_string();
    let head = format!(
        "POST /v1/subscriptions HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer admin-token\r\n\
        Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = head + &body;
    // Two of three send everything, the others a part.
    let sent = if random.below(3) == 0 { usize::try_from(random.below(request.len() as u64))? } else { request.len() };
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request.as_bytes()[..sent]).await?;
    tokio::time::sleep(Duration::from_micros(random.below(20_000))).await;
    if random.below(2) == 0 {
        // Without a farewell: the other end gets a reset.
        stream.set_zero_linger()?;
    }
    Ok(())
}

/// F14.
pub async fn cold_start(ground: Arc<Ground>) -> anyhow::Result<Report> {
    const CONNECTIONS: u64 = 1_000;
    let subjects = ground.pick(10_000_u64, 1_000);
    let folder = ground.folder("cold")?;
    // The server tells of every query with its parameters: whom it asks for.
    let settings = "fsync = off\nlog_min_duration_statement = 0\nlog_parameter_max_length = -1";
    let server = Server::start(&ground, settings).await?;
    let launch = Launch::new(&folder, &server.url())?;
    // What is measured is how often the database is asked.
    let (tollgate, _) = launch.with("TOLLGATE_HOOK_TIMEOUT", "20s").start_ready().await?;
    let (caller, sql) = (tollgate.caller(), Sql::connect(&server.url()).await?);
    caller.register(SCOPE).await?;
    sql.seed("cold.", u32::try_from(subjects)?).await?;
    sql.seed("hot.", 1).await?;

    let done = Arc::new(AtomicBool::new(false));
    let sampling = {
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let (mut most, mut most_active) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                most = most.max(sql.sessions("true").await?);
                most_active = most_active.max(sql.sessions("state = 'active'").await?);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok((most, most_active))
        })
    };
    // All connections are open before the first question is asked.
    let barrier = Arc::new(tokio::sync::Barrier::new(usize::try_from(CONNECTIONS)?));
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (address, barrier) = (tollgate.launch.listen, Arc::clone(&barrier));
        tasks.spawn(async move {
            let caller = Caller::new(address);
            let (mut wrong, mut took) = (0, Times::default());
            let opened = caller.get("/").await;
            barrier.wait().await;
            wrong += usize::from(opened.is_err());
            for number in (connection..subjects).step_by(usize::try_from(CONNECTIONS)?) {
                let reply = caller.ask(&format!("cold.{number}")).await;
                wrong += usize::from(reply.as_ref().ok().and_then(crate::client::Reply::kept) != Some(number % 2 == 0));
                took.push(reply?.took);
            }
            let reply = caller.ask("hot.0").await?;
            wrong += usize::from(reply.kept() != Some(true));
            anyhow::Ok((wrong, took))
        });
    }
    let (start, mut wrong, mut took) = (Instant::now(), 0, Times::default());
    while let Some(ended) = tasks.join_next().await {
        let (more_wrong, more_took) = ended??;
        wrong += more_wrong;
        took.append(more_took);
    }
    let all = start.elapsed();
    done.store(true, Ordering::Relaxed);
    let (most, most_active) = sampling.await??;
    let (loads, queries) = loads(&server.log(), subjects)?;

    let mut report = Report::default();
    let repeated = loads.iter().filter(|count| **count > 1).count();
    let never = loads.iter().filter(|count| **count == 0).count();
    report.figure(format!(
        "{subjects} cold subjects over {CONNECTIONS} connections in {}: {wrong} wrong, {}",
        duration(all),
        took.told()
    ));
    report.figure(format!("{queries} queries; {repeated} subjects asked for twice, {never} never"));
    let hot = loads.last().copied().unwrap_or_default();
    report.figure(format!("one key that {CONNECTIONS} ask for: {hot} load"));
    report.figure(format!("at most {most} connections, {most_active} at work"));
    report.require(wrong == 0, "all right");
    report.require(repeated == 0 && never == 0 && hot == 1, "one load a key");
    report.require(most <= MOST_CONNECTIONS, "connections are capped");
    Ok(report)
}

/// How often each cold subject was asked for, and the hot one last; and the number of queries that did.
fn loads(log: &Path, subjects: u64) -> anyhow::Result<(Vec<u32>, usize)> {
    let mut loads = vec![0_u32; usize::try_from(subjects)? + 1];
    let (mut queries, text) = (0, fs::read_to_string(log)?);
    // A query is told of with its parameters once it was carried out: `$1 = '{user}', $2 = '{cold.1,cold.2}'`.
    let mut is_execution = false;
    for line in text.lines() {
        if line.contains("LOG:  duration:") {
            is_execution = line.contains("execute ");
        }
        let lower = line.to_ascii_lowercase();
        let Some((_, parameters)) = lower.split_once("parameters: ") else { continue };
        let Some((_, ids)) = parameters.split_once("$2 = '{") else { continue };
        if !is_execution || !(ids.starts_with("cold.") || ids.starts_with("hot.")) {
            continue;
        }
        queries += 1;
        for id in ids.trim_end_matches(['\'', '}']).split(',') {
            let place = match id.strip_prefix("cold.") {
                Some(number) => number.parse()?,
                None => usize::try_from(subjects)?,
            };
            *loads.get_mut(place).context("a subject")? += 1;
        }
    }
    Ok((loads, queries))
}

/// F15, the signal alone: clients go on to the second replica when the first takes no connection any more.
pub async fn terminated(ground: Arc<Ground>) -> anyhow::Result<Report> {
    const DRAIN: Duration = Duration::from_secs(5);
    let folder = ground.folder("terminated")?;
    let url = ground.database().await?;
    let launch = Launch::new(&folder, &url)?.with("TOLLGATE_DRAIN_TIMEOUT", "5s");
    let (second, _) = Launch::new(&folder, &url)?.start_ready().await?;
    second.caller().register(SCOPE).await?;
    Sql::connect(&url).await?.seed("h-", 100).await?;
    let rounds = ground.pick(15, 2);
    let (mut exits, mut bad_exits, mut slow_exit) = (Times::default(), 0, Duration::ZERO);
    let (mut requests, mut failed, mut to_second) = (0_usize, Vec::new(), 0_usize);
    for round in 0..rounds {
        let (mut first, _) = launch.start_ready().await?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for client in 0..16_u64 {
            let (one, two) = (Caller::fresh(first.launch.listen), Caller::fresh(second.launch.listen));
            tasks.spawn(ask_first_or_second(one, two, client, Arc::clone(&stop)));
        }
        // In the last round one client never ends its request: it must not hold up the exit for longer than the drain.
        let _held = if round + 1 == rounds { Some(hold(first.launch.listen).await?) } else { None };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let signaled = Instant::now();
        harness::send_signal(first.pid(), "TERM")?;
        let status = first.end(Duration::from_mins(1)).await?;
        let took = signaled.elapsed();
        bad_exits += usize::from(!status.success());
        if round + 1 == rounds {
            slow_exit = took;
        } else {
            exits.push(took);
        }
        stop.store(true, Ordering::Relaxed);
        for (asked, second, mut failures) in tasks.join_all().await {
            requests += asked;
            to_second += second;
            failed.append(&mut failures);
        }
    }
    let mut report = Report::default();
    report.figure(format!(
        "{rounds} signals, {requests} requests, {to_second} of them to the second, {} failed",
        failed.len()
    ));
    report.figure(format!("exit: {}", exits.told()));
    report.figure(format!("exit with a request that never ends, to drain 5 s: {}", duration(slow_exit)));
    report.require(failed.is_empty(), format!("no failed request ({:?})", failed.first()));
    report.require(exits.max().max(slow_exit) <= DRAIN + Duration::from_secs(10), "exit within the drain and 10 s");
    report.require(bad_exits == 0, "exit code 0");
    Ok(report)
}

/// Asks the first replica, and the second one when the first takes no connection: how many, how many of the second,
/// and which failed.
async fn ask_first_or_second(
    one: Caller,
    two: Caller,
    client: u64,
    stop: Arc<AtomicBool>,
) -> (usize, usize, Vec<String>) {
    let (mut asked, mut second, mut failed) = (0, 0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let number = (client * 7 + asked as u64) % 100;
        let user = format!("h-{number}");
        let mut reply = one.ask(&user).await;
        if matches!(reply, Err(Failure::NoConnection)) {
            second += 1;
            reply = two.ask(&user).await;
        }
        asked += 1;
        match reply {
            Ok(reply) if reply.kept() == Some(number.is_multiple_of(2)) => {}
            Ok(reply) => failed.push(format!("{}: {}", reply.status, reply.text())),
            Err(failure) => failed.push(failure.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (asked, second, failed)
}

/// Begins a request whose body never ends.
async fn hold(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let head = "POST /v1/customize-token HTTP/1.1\r\nHost: soak\r\nAuthorization: Basic aG9vazpob29r\r\n\
        Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// `HAProxy` in front of replicas. It is killed when this is dropped.
struct Balancer {
    child: Child,
    address: SocketAddr,
}

impl Balancer {
    fn start(folder: &Path, replicas: &[Launch]) -> anyhow::Result<Self> {
        let program = find_haproxy()?;
        let address = SocketAddr::from(([127, 0, 0, 1], harness::free_port()?));
        // A hook changes nothing, so it may be sent again when a replica goes away with it.
        let mut configuration = format!(
            "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  timeout server 10s\n  \
            retries 3\n  option redispatch 1\n  retry-on conn-failure empty-response\n\
            frontend hooks\n  bind {address}\n  default_backend replicas\n\
            backend replicas\n  option httpchk GET /readyz\n"
        );
        for (number, replica) in replicas.iter().enumerate() {
            // Writing into a string does not fail.
            let _ = writeln!(
                configuration,
                "  server replica{number} {} check addr 127.0.0.1 port {} inter 200ms fall 1 rise 1",
                replica.listen,
                replica.ops.port()
            );
        }
        let file = folder.join("haproxy.cfg");
        fs::write(&file, configuration)?;
        let log = fs::File::create(folder.join("haproxy.log"))?;
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().context("haproxy")?;
        harness::note(child.id(), "KILL");
        Ok(Self { child, address })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        harness::forget(self.child.id());
    }
}

/// Where `HAProxy` is; it is installed where that is allowed.
fn find_haproxy() -> anyhow::Result<PathBuf> {
    let find = || harness::PATH.split(':').map(|folder| Path::new(folder).join("haproxy")).find(|path| path.exists());
    if let Some(program) = find() {
        return Ok(program);
    }
    // The outcome shows in whether it is there then.
    let _ = harness::output(
        Path::new("sh"),
        &["-c", "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy </dev/null"],
    );
    find().context("not run: there is no haproxy, and it could not be installed")
}

/// F15, as an operator does it.
pub async fn rolling(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("rolling")?;
    let url = ground.database().await?;
    let launches = [Launch::new(&folder, &url)?, Launch::new(&folder, &url)?];
    let mut replicas = Vec::new();
    for launch in &launches {
        replicas.push(launch.start_ready().await?.0);
    }
    replicas[0].caller().register(SCOPE).await?;
    Sql::connect(&url).await?.seed("h-", 100).await?;
    let balancer = Balancer::start(&folder, &launches)?;
    let through = Caller::new(balancer.address);
    let start = Instant::now();
    while !through.ask("h-0").await.is_ok_and(|reply| reply.status == 200) {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(10), "haproxy does not serve");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let load = Load::start(balancer.address, 16, Duration::from_millis(20), |number| {
        let number = number % 100;
        (format!("h-{number}"), number.is_multiple_of(2))
    });
    let (rounds, mut exits) = (ground.pick(6, 1), Times::default());
    for _ in 0..rounds {
        for (replica, launch) in replicas.iter_mut().zip(&launches) {
            let signaled = Instant::now();
            harness::send_signal(replica.pid(), "TERM")?;
            replica.end(Duration::from_mins(1)).await?;
            exits.push(signaled.elapsed());
            *replica = launch.start_ready().await?.0;
            // Until the balancer has seen that it is back.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    let seen = load.end().await?;
    let mut report = Report::default();
    report.figure(format!("{rounds} times both restarted, {} requests, {} failed", seen.len(), count_not_ok(&seen)));
    report.figure(format!("answers: {}; exits: {}", times(&seen).told(), exits.told()));
    report.require(count_not_ok(&seen) == 0, format!("no failed request ({})", first_not_ok(&seen)));
    report.require(exits.max() <= Duration::from_secs(20), "exit within the drain and 10 s");
    Ok(report)
}
