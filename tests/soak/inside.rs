//! The service inside this process, where a million questions cost little and the clock can be moved.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, Connection as _, Executor as _, QueryBuilder};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tollgate::{
    domain::{
        catalogue::Requires,
        claims::Claims,
        scope::Scope,
        subject::{Subject, SubjectId, SubjectType},
        subscription::{ScopeSet, SubscriptionState},
    },
    http::{
        self,
        auth::{Gate, HookAuth, ManagementAuth, guard::Guard},
        router::{Readiness, Router, Surface},
        server,
    },
    service::{
        Clock, FeedSettings, Metrics, Origin, Policy, Service,
        catalogue::NewCatalogueScope,
        decision::{DecisionRequest, Party},
        subscription::{NewSubscription, Write},
    },
    store::{self, Database},
};
use uuid::Uuid;

use crate::{
    client::{Caller, SCOPE},
    database::Backend,
    harness::Ground,
    measure::{Random, Report, duration, rate},
};

/// A service on a database that is brought up to date first, watching for changes made elsewhere.
pub async fn service(url: &str, clock: Arc<dyn Clock>) -> anyhow::Result<(Arc<Service>, JoinSet<()>)> {
    let database = Database::connect(url).await?;
    store::schema::migrate(&database).await?;
    // What is measured here is whether answers are right, on a machine that is as busy as can be.
    let policy = Policy { hook_timeout: Duration::from_secs(20), ..Policy::default() };
    let service = Service::new(database, clock, Arc::new(Metrics::new()?), policy);
    let feed = service.watch(FeedSettings { wake_up: true }).await?;
    Ok((service, feed))
}

/// Who writes.
pub fn origin() -> Origin {
    Origin { actor: "soak".to_owned(), request_id: "soak".to_owned(), idempotency: None }
}

fn user(id: &str) -> anyhow::Result<Subject> {
    Ok(Subject { kind: SubjectType::User, id: SubjectId::parse(id)? })
}

/// Registers the scope under subscription.
pub async fn register(service: &Arc<Service>) -> anyhow::Result<()> {
    let new = NewCatalogueScope {
        name: Scope::parse(SCOPE)?,
        description: None,
        requires: Requires::User,
        enforced: true,
        claims: Claims::default(),
    };
    service.create_scope(origin(), new).await?;
    Ok(())
}

/// Records a subscription without end: its id.
pub async fn subscribe(service: &Arc<Service>, id: &str) -> anyhow::Result<Uuid> {
    let scopes = ScopeSet::new(vec![Scope::parse(SCOPE)?])?;
    let state = SubscriptionState::lasting(user(id)?, scopes, Some("2020-01-01T00:00:00Z".parse()?), None);
    let create = Write::Create(NewSubscription { state, external: None });
    Ok(service.write_subscription(origin(), create).await?.shown.subscription.id)
}

/// Whether a user keeps the scope under subscription.
pub async fn kept(service: &Service, id: &str) -> anyhow::Result<bool> {
    let (user, client) = (user(id)?, Subject { kind: SubjectType::Client, id: SubjectId::parse("c")? });
    let (user, client) = (Some(Party::Subject(user.borrowed())), Party::Subject(client.borrowed()));
    let request = DecisionRequest { user, client, scopes: &[SCOPE], waited: Duration::ZERO };
    Ok(service.decide(request).await?.kept().next().is_some())
}

tokio::task_local! {
    /// The present of one task, in microseconds: so each task can have one of its own.
    static NOW: Cell<i64>;
}

/// A clock that shows each task its own present, and the others the one that was set for all.
#[derive(Debug, Default)]
struct MovedClock(AtomicI64);

impl Clock for MovedClock {
    fn now(&self) -> DateTime<Utc> {
        let micros = NOW.try_with(Cell::get).unwrap_or_else(|_| self.0.load(Ordering::SeqCst));
        DateTime::from_timestamp_micros(micros).unwrap_or_default()
    }
}

/// Windows of one subject: from and until, in microseconds. It holds the scope while any of them is open.
type Windows = Vec<(i64, Option<i64>)>;

/// Where the windows lie: the middle of 2026, in microseconds.
const BEGIN: i64 = 1_781_524_800_000_000;

/// F11.
pub async fn boundaries(ground: Arc<Ground>, backend: Backend) -> anyhow::Result<Report> {
    const WINDOWS_EACH: usize = 100;
    // Both databases together hold a million windows.
    let subjects = ground.pick(5_000, 50);
    let (over_http, tasks) = (ground.pick(20, 2), 4);
    let folder = ground.folder("boundaries")?;
    let url = backend.make(&ground, &folder).await?;
    let clock = Arc::new(MovedClock(AtomicI64::new(BEGIN)));
    let (service, _feed) = service(&url, Arc::clone(&clock) as Arc<dyn Clock>).await?;
    register(&service).await?;
    let mut random = Random::new(11);
    let oracle: Arc<Vec<Windows>> = Arc::new((0..subjects).map(|_| windows(&mut random, WINDOWS_EACH)).collect());
    let start = Instant::now();
    write(&url, &oracle).await?;
    let written = start.elapsed();

    let start = Instant::now();
    let mut asking = JoinSet::new();
    for task in 0..tasks {
        let (service, oracle) = (Arc::clone(&service), Arc::clone(&oracle));
        asking.spawn(NOW.scope(Cell::new(0), async move {
            let (mut asked, mut wrong) = (0_u64, 0_u64);
            for (number, windows) in oracle.iter().enumerate().skip(task).step_by(tasks) {
                let id = format!("w{number}");
                for now in instants(windows) {
                    NOW.with(|present| present.set(now));
                    asked += 1;
                    wrong += u64::from(kept(&service, &id).await? != is_open(windows, now));
                }
            }
            anyhow::Ok((asked, wrong))
        }));
    }
    let (mut asked, mut wrong) = (0, 0);
    while let Some(ended) = asking.join_next().await {
        let (more_asked, more_wrong) = ended??;
        (asked, wrong) = (asked + more_asked, wrong + more_wrong);
    }
    let took = start.elapsed();

    let (address, _serving) = serve(&service).await?;
    let caller = Caller::new(address);
    let (mut http_asked, mut http_wrong) = (0_u64, 0_u64);
    for (number, windows) in oracle.iter().enumerate().take(over_http) {
        for now in instants(windows) {
            clock.0.store(now, Ordering::SeqCst);
            http_asked += 1;
            http_wrong += u64::from(caller.ask(&format!("w{number}")).await?.kept() != Some(is_open(windows, now)));
        }
    }
    service.close().await;

    let mut report = Report::default();
    let windows: usize = oracle.iter().map(Vec::len).sum();
    report.figure(format!("{windows} windows of {subjects} subjects, written in {}", duration(written)));
    report.figure(format!("{asked} questions in {} ({:.0}/s), {wrong} wrong", duration(took), rate(asked, took)));
    report.figure(format!("{http_asked} of them over HTTP, too, {http_wrong} wrong"));
    report.require(wrong == 0 && http_wrong == 0, "no wrong answer");
    Ok(report)
}

/// Windows of one subject: short and long ones, apart, touching and overlapping, and at times one without end.
fn windows(random: &mut Random, count: usize) -> Windows {
    let mut windows = Vec::with_capacity(count);
    let micros = |random: &mut Random, below: u64| i64::try_from(random.below(below)).unwrap_or_default();
    let mut from = BEGIN;
    for number in 0..count {
        // Lengths from a microsecond to three hours.
        let most = [2, 1_000, 1_000_000, 3 * 3_600_000_000][usize::try_from(random.below(4)).unwrap_or_default()];
        let until = from + 1 + micros(random, most);
        let is_endless = number + 1 == count && random.below(4) == 0;
        windows.push((from, if is_endless { None } else { Some(until) }));
        from = match random.below(4) {
            // Touching, a microsecond apart, overlapping, far apart.
            0 => until,
            1 => until + 1,
            2 => from + micros(random, 1_000_000).min(until - from),
            _ => until + 1 + micros(random, 3_600_000_000),
        };
    }
    windows
}

/// A microsecond before, at and after each boundary.
fn instants(windows: &Windows) -> impl Iterator<Item = i64> {
    let boundaries = windows.iter().flat_map(|(from, until)| [Some(*from), *until]).flatten();
    boundaries.flat_map(|boundary| [boundary - 1, boundary, boundary + 1])
}

/// The oracle.
fn is_open(windows: &Windows, now: i64) -> bool {
    windows.iter().any(|&(from, until)| from <= now && until.is_none_or(|until| now < until))
}

/// Writes windows past the service, many at a time.
async fn write(url: &str, oracle: &[Windows]) -> anyhow::Result<()> {
    // Written for both databases in one text; a subscription has eight values of its own.
    macro_rules! write_all {
        ($database:ty, $connection:expr) => {{
            let mut connection = $connection;
            let created: DateTime<Utc> = DateTime::from_timestamp_micros(BEGIN).unwrap_or_default();
            let mut transaction = connection.begin().await?;
            let rows =
                oracle.iter().enumerate().flat_map(|(n, windows)| windows.iter().map(move |window| (n, *window)));
            let rows: Vec<(Uuid, usize, (i64, Option<i64>))> =
                rows.enumerate().map(|(index, (n, window))| (Uuid::from_u128(index as u128 + 1), n, window)).collect();
            for chunk in rows.chunks(2000) {
                let mut insert: QueryBuilder<$database> = QueryBuilder::new(
                    "INSERT INTO subscription \
                    (id, subject_type, subject_id, valid_from, valid_until, version, created_at, updated_at) ",
                );
                insert.push_values(chunk, |mut row, (id, number, (from, until))| {
                    row.push_bind(*id).push_bind("user").push_bind(format!("w{number}"));
                    row.push_bind(DateTime::from_timestamp_micros(*from).unwrap_or_default());
                    row.push_bind(until.map(|until| DateTime::from_timestamp_micros(until).unwrap_or_default()));
                    row.push_bind(1_i64).push_bind(created).push_bind(created);
                });
                transaction.execute(insert.build()).await?;
                let mut insert: QueryBuilder<$database> =
                    QueryBuilder::new("INSERT INTO subscription_scope (subscription_id, scope) ");
                insert.push_values(chunk, |mut row, (id, ..)| {
                    row.push_bind(*id).push_bind(SCOPE);
                });
                transaction.execute(insert.build()).await?;
            }
            transaction.commit().await?;
            connection.execute("ANALYZE").await?;
            connection.close().await?;
        }};
    }
    if url.starts_with("sqlite") {
        write_all!(sqlx::Sqlite, sqlx::sqlite::SqliteConnection::connect(url).await?);
    } else {
        write_all!(sqlx::Postgres, sqlx::postgres::PgConnection::connect(url).await?);
    }
    Ok(())
}

/// Serves the hooks on a free port, until the task is dropped.
async fn serve(service: &Arc<Service>) -> anyhow::Result<(SocketAddr, Serving)> {
    let app = Arc::new(http::App {
        service: Arc::clone(service),
        require_if_match: false,
        is_tls_everywhere: false,
        admission: http::admission::Admission::default(),
    });
    let hook_auth = HookAuth::default().with_basic("hook", "hook");
    let gate = Gate::new(hook_auth, ManagementAuth::default(), Guard::default(), Arc::clone(&app.service));
    let router = Router::new(app, Arc::new(gate), Readiness::new()).with(Surface::Hooks);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(server::serve(
        listener,
        None,
        Arc::new(router),
        stopped,
        server::Limits {
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(1),
            ..server::Limits::default()
        },
    ));
    Ok((address, Serving { _stop: stop, task }))
}

/// A listener that is served.
struct Serving {
    _stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}
