//! Slow clients, and a machine that runs out of something: descriptors, disk, time.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tollgate::service::{Clock as _, SystemClock};

use crate::{
    client::{Caller, Load, SCOPE, count_not_ok, first_not_ok, subscription, times},
    crash::integrity,
    database::{Backend, Sql, sqlite_url},
    harness::{self, Ground, Launch},
    measure::{Report, Times, duration},
};

/// When slow connections are to be closed: some time is for the way there and back.
const HEAD_LIMIT: Duration = Duration::from_secs(6);
const BODY_LIMIT: Duration = Duration::from_millis(11_500);
const READER_LIMIT: Duration = Duration::from_secs(85);

fn subject(number: u64) -> (String, bool) {
    let number = number % 50;
    (format!("h-{number}"), number.is_multiple_of(2))
}

/// F16, clients that take their time.
pub async fn slow_clients(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("slow")?;
    let url = ground.database().await?;
    let (tollgate, _) = Launch::new(&folder, &url)?.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    let sql = Sql::connect(&url).await?;
    sql.seed("h-", 50).await?;
    // A long page for the slow readers: each id takes a kilobyte.
    sql.seed(&format!("{}-", "x".repeat(1_000)), 400).await?;
    let load = async |seconds: u64| {
        let load = Load::start(tollgate.launch.listen, 8, Duration::from_millis(20), subject);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        load.end().await
    };
    load(1).await?; // to warm up
    let alone = load(ground.pick(15, 6)).await?;

    let (address, each) = (tollgate.launch.listen, ground.pick(150, 20));
    let (mut heads, mut bodies, mut readers) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    // The longest of these promises takes a minute and a half to see; a quick run goes without. What their pages cost is
    // not what is looked at here: they are made before.
    for _ in 0..ground.pick(8, 0) {
        readers.spawn(slow_reader(address));
    }
    tokio::time::sleep(Duration::from_secs(ground.pick(10, 0))).await;
    for _ in 0..each {
        heads.spawn(slow_head(address));
        bodies.spawn(slow_body(address));
    }
    let processor_before = tollgate.processor_time()?;
    let since = Instant::now();
    let beside = load(ground.pick(15, 6)).await?;
    let processor =
        tollgate.processor_time()?.saturating_sub(processor_before).as_secs_f64() / since.elapsed().as_secs_f64();
    let (heads, bodies) = (closed(heads).await?, closed(bodies).await?);
    let readers = closed(readers).await?;
    let cleared = Instant::now();
    let idle_before = tollgate.processor_time()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = tollgate.processor_time()?.saturating_sub(idle_before).as_secs_f64() / cleared.elapsed().as_secs_f64();

    let mut report = Report::default();
    let ratio = times(&beside).percentile(990).as_secs_f64() / times(&alone).percentile(990).as_secs_f64().max(1e-6);
    report.figure(format!("heads closed after: {}", heads.told()));
    report.figure(format!("bodies: {}", bodies.told()));
    if readers.len() > 0 {
        report.figure(format!("readers: {}", readers.told()));
    }
    report.figure(format!(
        "others alone: {}; beside: {}, ratio {ratio:.2}",
        times(&alone).told(),
        times(&beside).told()
    ));
    report.figure(format!("processor {:.0} % beside, {:.0} % after", processor * 100.0, idle * 100.0));
    report.require(heads.len() == each && heads.max() <= HEAD_LIMIT, "heads closed after 5 s");
    report.require(bodies.len() == each && bodies.max() <= BODY_LIMIT, "bodies closed after 10 s");
    report.require(readers.max() <= READER_LIMIT, "readers closed after 85 s");
    report.require(count_not_ok(&beside) == 0, format!("others are answered right ({})", first_not_ok(&beside)));
    report.require(ratio < 2.0, "others' p99 less than twice as long");
    report.require(idle < 0.2, "no spinning");
    Ok(report)
}

async fn closed(mut tasks: JoinSet<anyhow::Result<Duration>>) -> anyhow::Result<Times> {
    let mut times = Times::default();
    while let Some(closed) = tasks.join_next().await {
        times.push(closed??);
    }
    Ok(times)
}

/// Sends a head a byte a second: how long until the other end has had enough.
async fn slow_head(address: SocketAddr) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(address).await?;
    let start = Instant::now();
    stream.write_all(b"POST /v1/customize-token HTTP/1.1\r\nHost: soak\r\nX-Slow: ").await?;
    until_closed(stream, start, b"x", Duration::from_secs(1)).await
}

/// Sends a body a byte a second.
async fn slow_body(address: SocketAddr) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(address).await?;
    let start = Instant::now();
    let head = "POST /v1/customize-token HTTP/1.1\r\nHost: soak\r\nAuthorization: Basic aG9vazpob29r\r\n\
        Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    until_closed(stream, start, b" ", Duration::from_secs(1)).await
}

/// Asks for one long page after the other, and reads hardly any of it.
async fn slow_reader(address: SocketAddr) -> anyhow::Result<Duration> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(address).await?;
    let start = Instant::now();
    let request = "GET /v1/subscriptions?limit=200 HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer admin-token\r\n\r\n";
    // Enough to fill whatever lies between.
    if stream.write_all(request.repeat(60).as_bytes()).await.is_err() {
        return Ok(start.elapsed());
    }
    let limit = READER_LIMIT + Duration::from_secs(5);
    let mut byte = [0; 1];
    // One byte every second: when nothing more comes, or the connection is reset, it was closed. What lies in buffers by
    // then hides the end, so the socket is asked for an error, too.
    while start.elapsed() < limit {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if stream.take_error()?.is_some() || !matches!(stream.try_read(&mut byte), Ok(1..)) {
            break;
        }
        if matches!(stream.try_write(b"\r\n"), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock) {
            break;
        }
    }
    Ok(start.elapsed())
}

/// Sends a little again and again until the connection is closed, or for two minutes.
async fn until_closed(stream: TcpStream, start: Instant, more: &[u8], pause: Duration) -> anyhow::Result<Duration> {
    let (mut from, mut to) = stream.into_split();
    let mut buffer = [0; 1024];
    while start.elapsed() < Duration::from_mins(2) {
        match tokio::time::timeout(pause, from.read(&mut buffer)).await {
            // An answer may come before the end.
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => break,
            Err(_) => {
                if to.write_all(more).await.is_err() {
                    break;
                }
            }
        }
    }
    Ok(start.elapsed())
}

/// F16, file descriptors.
pub async fn file_descriptors(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("files")?;
    let url = ground.database().await?;
    let (tollgate, _) = Launch::new(&folder, &url)?.after("ulimit -n 64").start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    Sql::connect(&url).await?.seed("h-", 50).await?;
    // These are connected before the descriptors run out.
    let load = Load::start(tollgate.launch.listen, 4, Duration::from_millis(20), subject);
    tokio::time::sleep(Duration::from_secs(ground.pick(10, 4))).await;
    let exhausted_at = Instant::now();
    let processor_before = tollgate.processor_time()?;
    // The system itself takes on as many as may wait to be accepted, and leaves the others without an answer.
    let mut connecting = JoinSet::new();
    for _ in 0..200 {
        connecting.spawn(tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(tollgate.launch.listen)));
    }
    let idle: Vec<TcpStream> = connecting.join_all().await.into_iter().flatten().flatten().collect();
    tokio::time::sleep(Duration::from_secs(ground.pick(10, 4))).await;
    let refused_since = Instant::now();
    let stranger = Caller::fresh(tollgate.launch.listen);
    let is_exhausted = tokio::time::timeout(Duration::from_secs(1), stranger.ask("h-0")).await.is_err();
    let seconds = exhausted_at.elapsed().as_secs_f64();
    let processor = tollgate.processor_time()?.saturating_sub(processor_before).as_secs_f64() / seconds;
    let seen = load.end().await?;
    let idle_count = idle.len();
    drop(idle);
    let freed = Instant::now();
    while !Caller::fresh(tollgate.launch.listen).ask("h-0").await.is_ok_and(|reply| reply.kept() == Some(true)) {
        anyhow::ensure!(freed.elapsed() < Duration::from_secs(20), "it takes no connection any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recovery = freed.elapsed();
    let said = tollgate.launch.said().lines().count();

    let mut report = Report::default();
    let (before, during): (Vec<_>, Vec<_>) = seen.into_iter().partition(|seen| seen.at < exhausted_at);
    let during: Vec<_> = during.into_iter().filter(|seen| seen.at < refused_since).collect();
    let ratio = times(&during).percentile(990).as_secs_f64() / times(&before).percentile(990).as_secs_f64().max(1e-6);
    report.figure(format!("64 descriptors, {idle_count} connections more: processor {:.0} %", processor * 100.0));
    report.figure(format!(
        "connected ones before: {}; during: {}, ratio {ratio:.2}",
        times(&before).told(),
        times(&during).told()
    ));
    report.figure(format!("new connections again after {}; {said} log lines", duration(recovery)));
    report.require(is_exhausted, "the descriptors were exhausted");
    report
        .require(count_not_ok(&during) == 0, format!("connected ones are answered right ({})", first_not_ok(&during)));
    report.require(ratio < 2.0, "connected ones' p99 less than twice as long");
    report.require(processor < 0.5, "no spinning");
    report.require(recovery < Duration::from_secs(2), "new connections again within 2 s");
    Ok(report)
}

/// F17, a limit on the size of files: writing past it is an error of input and output.
pub async fn file_size(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let folder = ground.folder("size")?;
    // The signal that comes with the error would end the process. A unit of the limit is 512 bytes.
    let launch = Launch::new(&folder, &sqlite_url(&folder))?.after("trap '' XFSZ; ulimit -f 1200");
    let (mut tollgate, _) = launch.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    let mut report = Report::default();
    let written = write_until_refused(&tollgate.caller(), &mut report).await?;
    reads_go_on(&tollgate.caller(), &written, &mut report).await?;
    tollgate.kill()?;
    // Without the limit everything is there, and writes go on.
    let (tollgate, _) = Launch::new(&folder, &sqlite_url(&folder))?.start_ready().await?;
    everything_is_there(&tollgate.caller(), &written, &folder, &mut report).await?;
    Ok(report)
}

/// A file system in memory. It is unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> anyhow::Result<Self> {
        let target = folder.to_str().context("a path")?;
        harness::output(Path::new("mount"), &["-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", target])?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, should somebody still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// F17, no room.
pub async fn disk_full(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let (folder, logs) = (ground.folder("full")?, ground.folder("full-logs")?);
    anyhow::ensure!(harness::own_user()? == 0, "not run: only root may mount a small file system");
    let _disk = SmallDisk::mount(&folder).context("not run: no small file system could be mounted")?;
    // What takes the room can be removed later.
    let filler = folder.join("filler");
    fs::write(&filler, vec![0; 1024 * 1024])?;
    let launch = Launch::new(&logs, &sqlite_url(&folder))?;
    let (mut tollgate, _) = launch.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    let mut report = Report::default();
    let mut written = write_until_refused(&tollgate.caller(), &mut report).await?;
    reads_go_on(&tollgate.caller(), &written, &mut report).await?;
    fs::remove_file(&filler)?;
    let freed = Instant::now();
    while tollgate.caller().subscribe("room-again").await.is_err() {
        anyhow::ensure!(freed.elapsed() < Duration::from_secs(10), "writes fail although there is room again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    written.push("room-again".to_owned());
    report.figure(format!("writes again {} after there was room", duration(freed.elapsed())));
    everything_is_there(&tollgate.caller(), &written, &folder, &mut report).await?;
    tollgate.kill()?;
    let (tollgate, _) = launch.start_ready().await?;
    everything_is_there(&tollgate.caller(), &written, &folder, &mut report).await?;
    Ok(report)
}

/// Writes until there is no room for more, then some times more: which users were answered a success.
async fn write_until_refused(caller: &Caller, report: &mut Report) -> anyhow::Result<Vec<String>> {
    let (mut written, mut refused, mut other) = (Vec::new(), 0, Vec::new());
    for number in 0..20_000 {
        let user = format!("{number}-{}", "x".repeat(500));
        let reply = caller.api("POST", "/v1/subscriptions", Some(subscription(&user))).await?;
        match reply.status {
            201 => written.push(user),
            _ if reply.is_unavailable() => refused += 1,
            status => other.push(format!("{status}: {}", reply.text())),
        }
        if refused + other.len() == 20 {
            break;
        }
    }
    report.figure(format!(
        "{} writes, then {refused} times 503 and {} times another answer",
        written.len(),
        other.len()
    ));
    report.require(refused > 0 && other.is_empty(), format!("writes get a 503 problem ({:?})", other.first()));
    report.require(!written.is_empty(), "there was room at first");
    Ok(written)
}

async fn reads_go_on(caller: &Caller, written: &[String], report: &mut Report) -> anyhow::Result<()> {
    let (mut asked, mut wrong) = (0, 0);
    for user in written.iter().step_by(7) {
        asked += 2;
        wrong += usize::from(caller.ask(user).await?.kept() != Some(true));
        wrong += usize::from(caller.ask(&format!("no-{user}")).await?.kept() != Some(false));
    }
    for _ in 0..10 {
        asked += 1;
        wrong += usize::from(caller.api("GET", "/v1/subscriptions?limit=200", None).await?.status != 200);
    }
    report.figure(format!("{asked} reads meanwhile, {wrong} wrong"));
    report.require(wrong == 0, "reads go on");
    Ok(())
}

async fn everything_is_there(
    caller: &Caller,
    written: &[String],
    folder: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut lost = 0;
    for user in written {
        lost += usize::from(caller.ask(user).await?.kept() != Some(true));
    }
    let integrity = integrity(folder).await?;
    let half_written = Sql::connect(&sqlite_url(folder)).await?.half_written().await?;
    let writes = caller.subscribe("after").await;
    report.figure(format!("{lost} lost, {half_written} half written, integrity {integrity}"));
    report.require(lost == 0 && half_written == 0, "nothing acknowledged is lost");
    report.require(integrity == "ok", "integrity check ok");
    report.require(writes.is_ok(), format!("writes go on ({writes:?})"));
    Ok(())
}

/// F19.
pub async fn clock_jumps(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let library = find_faketime()?;
    let folder = ground.folder("jumps")?;
    let url = Backend::Postgres.make(&ground, &folder).await?;
    let offset = folder.join("offset");
    let set = |seconds: i64| fs::write(&offset, format!("{seconds:+}\n"));
    set(0)?;
    let launch = Launch::new(&folder, &url)?
        .with("LD_PRELOAD", library.to_str().context("a path")?)
        .with("FAKETIME_TIMESTAMP_FILE", offset.to_str().context("a path")?)
        .with("FAKETIME_NO_CACHE", "1")
        // Timers follow the other clock, which does not jump on a real machine either.
        .with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .with("DONT_FAKE_MONOTONIC", "1");
    let (mut tollgate, _) = launch.start_ready().await?;
    let caller = tollgate.caller();
    caller.register(SCOPE).await?;

    // Who holds the scope, as seconds from now: from and until.
    let subjects: [(&str, i64, i64); 3] = [("ends", -3600, 120), ("begins", 120, 3600), ("began", -120, 3600)];
    let begin = SystemClock.now();
    for (user, from, until) in subjects {
        let mut body = subscription(user);
        (body["validFrom"], body["validUntil"]) = (json!(at(begin, from)), json!(at(begin, until)));
        caller.api("POST", "/v1/subscriptions", Some(body)).await?.expect(201)?;
    }
    let load = Load::start(tollgate.launch.listen, 2, Duration::from_millis(20), |_| ("nobody".to_owned(), false));
    let (mut wrong, mut asked, mut worst_skew) = (Vec::new(), 0, 0.0_f64);
    let jumps: &[i64] = if ground.quick { &[0, 300, -300, 0] } else { &[0, 300, 0, -300, 300, -300, 3600, -3600, 0] };
    for &jump in jumps {
        set(jump)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (user, from, until) in subjects {
            asked += 1;
            let (reply, now) = (caller.ask(user).await?, SystemClock.now());
            // Every window is a minute or more away from every present that is tried.
            let present = (now - begin).num_seconds() + jump;
            if reply.kept() != Some(from <= present && present < until) {
                wrong.push(format!("{user} at {jump:+}"));
            }
        }
        // What is written is written at the new present.
        let id = caller.subscribe(&format!("written-{asked}")).await?;
        let shown = caller.api("GET", &format!("/v1/subscriptions/{id}"), None).await?.expect(200)?;
        let created: DateTime<Utc> = shown["createdAt"].as_str().context("createdAt")?.parse()?;
        if (created - SystemClock.now() - TimeDelta::seconds(jump)).num_seconds().abs() > 5 {
            wrong.push(format!("createdAt at {jump:+}"));
        }
        // The feed compares the clocks at each look, once a second.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let skew = tollgate.metric("tollgate_database_clock_skew_seconds").await?;
        #[expect(clippy::cast_precision_loss, reason = "some thousands at most")]
        let expected = -(jump as f64);
        worst_skew = worst_skew.max((skew - expected).abs());
    }
    let seen = load.end().await?;
    let is_running = tollgate.ended()?.is_none();
    tollgate.kill()?;
    for left in ["faketime_shm_", "sem.faketime_sem_"] {
        // The library leaves these behind when its process is killed.
        let _ = fs::remove_file(format!("/dev/shm/{left}{}", tollgate.pid()));
    }
    let said = launch.said();
    let panics = said.matches("panicked").count();
    let mut report = Report::default();
    report.figure(format!("{} jumps ({jumps:?} s), {asked} decisions, {} wrong", jumps.len(), wrong.len()));
    report.figure(format!("skew metric off by {worst_skew:.3} s at most; {panics} panics"));
    report.figure(format!(
        "beside it {} hook requests, {} failed, {}",
        seen.len(),
        count_not_ok(&seen),
        times(&seen).told()
    ));
    report.require(wrong.is_empty(), format!("decisions follow the present ({:?})", wrong.first()));
    report.require(worst_skew < 1.0, "the metric shows the skew");
    report.require(panics == 0 && is_running, "no panic");
    report.require(count_not_ok(&seen) == 0, format!("hooks are answered all the while ({})", first_not_ok(&seen)));
    Ok(report)
}

fn at(begin: DateTime<Utc>, seconds: i64) -> String {
    (begin + TimeDelta::seconds(seconds)).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Where the library is that shows a process another time; it is installed where that is allowed.
fn find_faketime() -> anyhow::Result<PathBuf> {
    let find = || {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
        folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
    };
    if let Some(library) = find() {
        return Ok(library);
    }
    // The outcome shows in whether it is there then.
    let _ = harness::output(
        Path::new("sh"),
        &["-c", "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends faketime </dev/null"],
    );
    find().context("not run: there is no libfaketime, and it could not be installed")
}
