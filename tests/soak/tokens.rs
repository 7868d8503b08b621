//! The tokens of the hooks while their issuer fails in every way, exchanges its keys, and strangers name keys that it
//! never had.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::service::{Clock as _, SystemClock};

use crate::{
    client::{Caller, Failure, Load, Reply, SCOPE, Seen, count_not_ok, first_not_ok, times},
    database::Sql,
    harness::{Ground, Launch, Tollgate},
    issuer::{AUDIENCE, ISSUER, Issuer, Mode, SigningKey, claims_with, part},
    measure::{Random, Report, Times, duration, rate},
};

/// No request is to wait longer.
const LONGEST: Duration = Duration::from_secs(2);
/// Within this a new key is known while the refresh budget lasts.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Within this it is known without one: the pause between two looks in the background, and the time that a look takes.
const SOON: Duration = Duration::from_secs(30);
/// Within this no token of a key that was withdrawn is taken any more.
const WITHDRAWN: Duration = Duration::from_mins(1);
/// How long to go on asking for what does not come.
const PATIENCE: Duration = Duration::from_secs(70);
/// By how much the memory may grow, in kilobytes: far less than one of the documents of 50 MB.
const GROWTH: u64 = 16 * 1024;
/// Tokens that are verified before memory is looked at: more than the service remembers.
const WARM_UP: u64 = 1_100;

/// What a token says that is good for an hour, and like no other.
fn good_claims(number: u64) -> Value {
    let now = SystemClock.now().timestamp();
    claims_with(&json!({"exp": now + 3600, "iat": now, "jti": format!("AT.{number:032x}")}))
}

/// The credentials with a token of a key, unlike those of another number.
fn bearer(key: &SigningKey, number: u64) -> String {
    format!("Bearer {}", key.sign(&good_claims(number)))
}

/// A service that takes the tokens of an issuer at its hooks, and knows its keys.
async fn trusting(ground: &Ground, issuer: &Issuer) -> anyhow::Result<Tollgate> {
    let folder = ground.folder("tokens")?;
    let url = ground.database().await?;
    let launch = Launch::new(&folder, &url)?
        .with("TOLLGATE_HOOK_AUTH", "basic,jwt")
        .with("TOLLGATE_HOOK_JWT_ISSUERS", ISSUER)
        .with("TOLLGATE_HOOK_JWT_AUDIENCE", AUDIENCE)
        .with("TOLLGATE_HOOK_JWT_JWKS_URL", &format!("{}/oauth/v1/keys", issuer.base));
    let (tollgate, _) = launch.start_ready().await?;
    tollgate.caller().register(SCOPE).await?;
    Sql::connect(&url).await?.seed("h-", 50).await?;
    let (start, keys) = (Instant::now(), format!(r#"tollgate_jwt_keys{{issuer="{ISSUER}",surface="hooks"}}"#));
    while tollgate.metric(&keys).await? < 0.5 {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(10), "the keys are not read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(tollgate)
}

/// Hook requests with good tokens: of four, three have one that was seen before.
fn good_load(tollgate: &Tollgate, key: &SigningKey) -> Load {
    let (key, seen_before) = (key.clone(), bearer(key, 0));
    let credentials = move |number: u64| {
        if number.is_multiple_of(4) { bearer(&key, number + 1) } else { seen_before.clone() }
    };
    let next = |number: u64| (format!("h-{}", number % 50), number.is_multiple_of(2));
    Load::start_with(tollgate.launch.listen, 4, Duration::from_millis(20), credentials, next)
}

/// Makes tokens whose every claim is right, and whose key nobody has.
#[derive(Clone)]
struct Stranger {
    random: Random,
    /// Claims and signature.
    rest: String,
}

impl Stranger {
    fn new(seed: u64) -> Self {
        let rest = format!("{}.{}", part(good_claims(0).to_string()), part([1; 256]));
        Self { random: Random::new(seed), rest }
    }

    fn next(&mut self) -> String {
        let header = format!(r#"{{"alg":"RS256","kid":"{:016x}"}}"#, self.random.next());
        format!("Bearer {}.{}", part(header), self.rest)
    }
}

/// What strangers were answered.
#[derive(Debug, Default)]
struct Answered {
    by_status: BTreeMap<u16, u64>,
    took: Times,
}

impl Answered {
    fn push(&mut self, reply: Result<Reply, Failure>, took: Duration) {
        // Nothing at all counts as 0.
        *self.by_status.entry(reply.map_or(0, |reply| reply.status)).or_default() += 1;
        self.took.push(took);
    }

    fn append(&mut self, other: Self) {
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        self.took.append(other.took);
    }

    /// Whether every answer was one of these.
    fn are_all(&self, statuses: &[u16]) -> bool {
        self.by_status.keys().all(|status| statuses.contains(status))
    }

    fn told(&self) -> String {
        let counts = self.by_status.iter().map(|(status, count)| format!("{count} times {status}"));
        format!("{} ({})", counts.collect::<Vec<_>>().join(", "), self.took.told())
    }
}

/// Asks with a token again and again until it is answered this status: how long that took.
async fn until(caller: &Caller, credentials: &str, status: u16) -> anyhow::Result<Duration> {
    let start = Instant::now();
    loop {
        let answered = caller.ask_with("h-0", credentials).await?.status;
        if answered == status {
            return Ok(start.elapsed());
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "still {answered} instead of {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Verifies more tokens than are remembered, so that the memory for them is taken.
async fn warm_up(caller: &Caller, key: &SigningKey) -> anyhow::Result<()> {
    for number in 0..WARM_UP {
        caller.ask_with("h-0", &bearer(key, (1 << 40) + number)).await?.expect(200)?;
    }
    Ok(())
}

/// F12.
pub async fn endpoint_fails(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let current = SigningKey::rsa("current");
    let issuer = Issuer::with(&[&current]).await;
    let elsewhere = Issuer::with(&[&SigningKey::p256("elsewhere")]).await;
    let tollgate = trusting(&ground, &issuer).await?;
    let caller = tollgate.caller();
    warm_up(&caller, &current).await?;
    let load = good_load(&tollgate, &current);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (resident, most_before) = tollgate.resident()?;

    let modes = [
        ("down", Mode::Down),
        ("slow", Mode::Slow(Duration::from_hours(1))),
        ("garbage", Mode::Answer(200, b"<html>not a key</html>".repeat(1_000))),
        ("50 MB", Mode::Endless),
        ("redirecting", Mode::Redirect(format!("{}/keys", elsewhere.base))),
    ];
    let (mut report, mut stranger, mut answered) = (Report::default(), Stranger::new(12), Answered::default());
    let (mut told, mut slowest, mut published) = (String::new(), Duration::ZERO, vec![current.clone()]);
    let last = modes.len() - 1;
    for (number, (name, mode)) in modes.into_iter().enumerate() {
        issuer.set(mode);
        let (begun, asked_before) = (Instant::now(), issuer.requests());
        let asked = || issuer.requests() - asked_before;
        // Some seconds at least, and until the issuer was asked: in vain it is asked ever more rarely.
        while begun.elapsed() < Duration::from_secs(ground.pick(8, 2)) || asked() < ground.pick(3, 1) {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "{name}: the issuer is not asked");
            let at = Instant::now();
            answered.push(caller.ask_with("h-0", &stranger.next()).await, at.elapsed());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let (asked, lasted) = (asked(), begun.elapsed());
        write!(told, "{name} for {}, asked {asked} times", duration(lasted))?;
        // A quick run waits for the return once.
        if !ground.quick || number == last {
            published.push(SigningKey::p256(name));
            issuer.publish(&published.iter().collect::<Vec<_>>());
            let recovery = until(&caller, &bearer(&published[published.len() - 1], 0), 200).await?;
            write!(told, ", a new key {} after", duration(recovery))?;
            slowest = slowest.max(recovery);
        }
        told.push_str(if number == last { "" } else { "; " });
    }
    let seen = load.end().await?;
    let (resident_after, most_after) = tollgate.resident()?;

    report.figure(told);
    report.figure(format!("good tokens: {} not answered a right 200, {}", count_not_ok(&seen), times(&seen).told()));
    report.figure(format!("unknown keys: {}", answered.told()));
    report.figure(format!(
        "resident memory {resident} kB before, {resident_after} kB after; the most grew by {} kB; {} kB of 50 MB taken",
        most_after - most_before,
        issuer.written() / 1024
    ));
    report.require(count_not_ok(&seen) == 0, format!("every good token is taken ({})", first_not_ok(&seen)));
    report.require(answered.are_all(&[401, 503]), "a token of an unknown key is never taken");
    report.require(times(&seen).max().max(answered.took.max()) <= LONGEST, "no request waits longer than 2 s");
    report.require(most_after - most_before <= GROWTH, format!("memory grows by less than {GROWTH} kB"));
    report.require(slowest <= SOON, "a new key is known within 30 s after the return");
    report.require(elsewhere.requests() == 0, "no redirect is followed");
    Ok(report)
}

/// Tokens of keys that nobody has, as fast as a machine makes them, up to a rate.
struct Flood {
    stop: Arc<AtomicBool>,
    begun: Instant,
    tasks: JoinSet<Answered>,
}

impl Flood {
    const A_SECOND: u32 = 5_000;
    const CALLERS: u32 = 16;

    fn start(address: SocketAddr, seed: u64) -> Self {
        let (stop, mut tasks) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for number in 0..Self::CALLERS {
            let (stop, caller) = (Arc::clone(&stop), Caller::new(address));
            let mut stranger = Stranger::new(seed << 32 | u64::from(number));
            tasks.spawn(async move {
                let mut answered = Answered::default();
                // What a pause of the machine has left out is made up for.
                let mut ticks = tokio::time::interval(Duration::from_secs(1) * Self::CALLERS / Self::A_SECOND);
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let at = Instant::now();
                    answered.push(caller.ask_with("h-0", &stranger.next()).await, at.elapsed());
                }
                answered
            });
        }
        Self { stop, begun: Instant::now(), tasks }
    }

    /// Ends it: what was answered, and how long it took.
    async fn end(self) -> (Answered, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Answered::default();
        for answered in self.tasks.join_all().await {
            all.append(answered);
        }
        (all, self.begun.elapsed())
    }
}

/// How often an issuer that always answers may have been asked: at the start, each 25 s in the background, and by
/// requests twice at once and once more each 30 s.
fn allowed(time: Duration) -> u64 {
    1 + time.as_secs() / 25 + 2 + time.as_secs() / 30
}

/// F13.
pub async fn rotation(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let [previous, current, next] = ["previous", "current", "next"].map(SigningKey::rsa);
    let issuer = Issuer::with(&[&previous, &current]).await;
    let begun = Instant::now();
    let tollgate = trusting(&ground, &issuer).await?;
    let (caller, address) = (tollgate.caller(), tollgate.launch.listen);
    let mut report = Report::default();

    // While the budget lasts: a key that was announced beside those in use, then one that takes the place of all.
    let load = good_load(&tollgate, &current);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let announced = SigningKey::p256("announced");
    issuer.publish(&[&previous, &current, &announced]);
    let overlapping = until(&caller, &bearer(&announced, 0), 200).await?;
    let mut other = load.end().await?;
    issuer.publish(&[&next]);
    let abrupt = until(&caller, &bearer(&next, 0), 200).await?;
    let old = caller.ask_with("h-0", &bearer(&current, 0)).await?.status;
    report.figure(format!(
        "within the budget: overlapping {}, abrupt {}, an old token then {old}",
        duration(overlapping),
        duration(abrupt)
    ));
    report.require(overlapping.max(abrupt) <= AT_ONCE, "a new key is taken within 2 s while the budget lasts");
    report.require(old == 401, "tokens of a withdrawn key end with it");

    // With and without in turns, so that whatever else the machine does falls on both.
    let (mut alone, mut beside): (Vec<Seen>, Vec<Seen>) = (Vec::new(), Vec::new());
    let (mut answered, mut flooded) = (Answered::default(), Duration::ZERO);
    warm_up(&caller, &next).await?;
    let (resident, most_before) = tollgate.resident()?;
    for round in 0..ground.pick(4, 1) {
        let load = async || {
            let load = good_load(&tollgate, &next);
            tokio::time::sleep(Duration::from_secs(ground.pick(5, 3))).await;
            load.end().await
        };
        alone.append(&mut load().await?);
        let flood = Flood::start(address, round);
        beside.append(&mut load().await?);
        let (more, time) = flood.end().await;
        answered.append(more);
        flooded += time;
    }

    // Strangers use up whatever there is of the budget.
    let flood = Flood::start(address, 100);
    let load = good_load(&tollgate, &next);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = SigningKey::p256("second");
    issuer.publish(&[&next, &second]);
    let overlapping = until(&caller, &bearer(&second, 0), 200).await?;
    other.append(&mut load.end().await?);
    // The token in question is remembered by now.
    let (old_token, third) = (bearer(&next, 0), SigningKey::p256("third"));
    until(&caller, &old_token, 200).await?;
    issuer.publish(&[&third]);
    let third_token = bearer(&third, 0);
    let (abrupt, withdrawn) = tokio::join!(until(&caller, &third_token, 200), until(&caller, &old_token, 401));
    let (abrupt, withdrawn) = (abrupt?, withdrawn?);
    let (more, time) = flood.end().await;
    answered.append(more);
    flooded += time;
    let (asked, lasted, most) = (issuer.requests(), begun.elapsed(), tollgate.resident()?.1);

    let sent = answered.took.len() as u64;
    report.figure(format!(
        "{:.0} random key ids a second for {}: {}",
        rate(sent, flooded),
        duration(flooded),
        answered.told()
    ));
    let ratio = times(&beside).percentile(990).as_secs_f64() / times(&alone).percentile(990).as_secs_f64().max(1e-6);
    report.figure(format!(
        "good tokens alone: {}; beside them: {}, p99 ratio {ratio:.2}",
        times(&alone).told(),
        times(&beside).told()
    ));
    report.figure(format!(
        "beside them: overlapping {}, abrupt {}, a withdrawn key's token refused after {}",
        duration(overlapping),
        duration(abrupt),
        duration(withdrawn)
    ));
    report.figure(format!(
        "the issuer was asked {asked} times in {}, of {} allowed; resident memory {resident} kB, the most grew by {} kB",
        duration(lasted),
        allowed(lasted),
        most - most_before
    ));
    let seen = [alone, beside, other].concat();
    report.figure(format!("{} of {} good tokens not answered a right 200", count_not_ok(&seen), seen.len()));
    report.require(count_not_ok(&seen) == 0, format!("every good token is taken ({})", first_not_ok(&seen)));
    report.require(answered.are_all(&[401, 503]), "a token of an unknown key is never taken");
    report.require(overlapping.max(abrupt) <= SOON, "a new key is taken within 30 s without a budget");
    report.require(withdrawn <= WITHDRAWN, "a withdrawn key's token is refused within a minute");
    report.require(asked as u64 <= allowed(lasted), "the issuer is asked no more often than is allowed");
    report.require(most - most_before <= GROWTH, format!("memory grows by less than {GROWTH} kB"));
    Ok(report)
}
