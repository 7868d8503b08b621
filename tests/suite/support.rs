//! What the tests stand on: a database of their own, the service over HTTP, a clock that they move.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request, StatusCode, header::HeaderName};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use ipnet::IpNet;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, DatabaseConnection, DbErr, RuntimeErr, Statement, TryGetable, sqlx,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tollgate::{
    domain::{facts::Facts, subject::Subject, token::Role},
    http::{
        self,
        admission::{Admission, Capacity},
        auth::{
            self, Gate, HookAuth, ManagementAuth,
            guard::{Allowance, Guard},
            issuer::{Address, Issuer, KeyClient, Pace, Source},
            jwt::{Accept, Patience, Verifier},
        },
        console::{
            Console,
            openid::{OpenId, OpenIdSettings},
        },
        router::{Readiness, Router, Surface},
        server::{self, Limits},
        tls::{Files, RELOAD_INTERVAL, Tls},
    },
    service::{Clock, FeedSettings, Metrics, Policy, Service},
    store::{self, Database, database::ConnectError, lane::Connection},
};

use crate::issuer::{self, ACCESS_CLIENT, AUDIENCE, ISSUER};

/// How long what a test stands on may take to come, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The path of the current hook.
pub const ACCESS_TOKEN: &str = "/v1/customize-access-token";
/// The path of the older hook.
pub const TOKEN: &str = "/v1/customize-token";
/// The header with the hooks' credentials, which are the demo's.
pub const HOOK_CREDENTIALS: (&str, &str) = ("authorization", "Basic aG9vazpob29r");
/// The header with the management API's credentials.
pub const ADMIN_CREDENTIALS: (&str, &str) = ("authorization", "Bearer admin-token");
/// The header that says that the body is JSON.
pub const JSON: (&str, &str) = ("content-type", "application/json");

/// Declares tests that run on both databases: each as `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($($(#[$attribute:meta])* async fn $name:ident($database:ident) $body:block)*) => {
        $(
            $(#[$attribute])*
            async fn $name($database: std::sync::Arc<$crate::support::TestDatabase>) $body

            mod $name {
                #[test]
                fn sqlite() {
                    $crate::support::run($crate::support::Backend::Sqlite, super::$name);
                }

                #[test]
                fn postgres() {
                    $crate::support::run($crate::support::Backend::Postgres, super::$name);
                }
            }
        )*
    };
}
pub(crate) use on_both;

/// Declares tests of what one of the databases alone does.
macro_rules! only_on {
    ($backend:ident: $(async fn $name:ident($database:ident) $body:block)*) => {
        $(
            #[test]
            fn $name() {
                async fn body($database: std::sync::Arc<$crate::support::TestDatabase>) $body
                $crate::support::run($crate::support::Backend::$backend, body);
            }
        )*
    };
}
pub(crate) use only_on;

/// Waits until something holds, for at most a bound, and tells how long that took.
macro_rules! eventually {
    ($what:expr, $bound:expr, $holds:expr) => {{
        let (start, bound): (std::time::Instant, std::time::Duration) = (std::time::Instant::now(), $bound);
        loop {
            let holds: bool = $holds;
            if holds {
                break;
            }
            assert!(start.elapsed() < bound, "{}: not within {bound:?}", $what);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        $crate::support::since(start)
    }};
}
pub(crate) use eventually;

/// A kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A file.
    Sqlite,
    /// The server that `TEST_DATABASE_URL` names.
    Postgres,
}

/// A database of one test, without tables until a service or the test makes them.
pub struct TestDatabase {
    /// Its kind.
    pub backend: Backend,
    /// Its address.
    pub url: String,
    name: String,
    services: Mutex<Vec<Arc<Service>>>,
    roles: Mutex<Vec<String>>,
}

/// Runs a test on a database of its own, and removes the database afterwards.
pub fn run<T: Future<Output = ()> + Send + 'static>(backend: Backend, test: fn(Arc<TestDatabase>) -> T) {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let database = Arc::new(TestDatabase::create(backend).await);
        let outcome = tokio::spawn(test(Arc::clone(&database))).await;
        database.remove().await;
        if let Err(error) = outcome {
            std::panic::resume_unwind(error.into_panic());
        }
    });
}

/// The address of the Postgres server. There is no test without: one that is skipped looks green.
#[expect(clippy::disallowed_methods, reason = "tests/with-postgres tells where the server is")]
fn postgres_url() -> String {
    std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL: run the tests with `make test`")
}

impl TestDatabase {
    async fn create(backend: Backend) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tollgate_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let url = match backend {
            Backend::Sqlite => {
                let folder = std::env::temp_dir().join(&name);
                std::fs::create_dir(&folder).expect("a folder");
                format!("sqlite://{}?mode=rwc", folder.join("tollgate.db").display())
            }
            Backend::Postgres => {
                let server = postgres_url();
                execute_on_server(&server, &format!("CREATE DATABASE {name}")).await;
                let (base, query) = server
                    .split_once('?')
                    .map_or((&*server, String::new()), |(base, query)| (base, format!("?{query}")));
                let (base, _) = base.rsplit_once('/').expect("a database in TEST_DATABASE_URL");
                format!("{base}/{name}{query}")
            }
        };
        Self { backend, url, name, services: Mutex::default(), roles: Mutex::default() }
    }

    async fn remove(&self) {
        let services = std::mem::take(&mut *self.services.lock().expect("no test holds it"));
        for service in services {
            service.close().await;
        }
        match self.backend {
            Backend::Sqlite => {
                // What is left in the folder for temporary files does no harm.
                let _ = std::fs::remove_dir_all(std::env::temp_dir().join(&self.name));
            }
            Backend::Postgres => {
                let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
                execute_on_server(&postgres_url(), &drop).await;
                let roles = std::mem::take(&mut *self.roles.lock().expect("no test holds it"));
                if !roles.is_empty() {
                    // After the database, in which they own and may do what keeps a role from being dropped.
                    let drop = format!("DROP ROLE IF EXISTS {}", roles.join(", "));
                    execute_on_server(&postgres_url(), &drop).await;
                }
            }
        }
    }

    /// The name of a role of this test alone, which goes with the database: roles belong to the whole server.
    pub fn role(&self, word: &str) -> String {
        let role = format!("{}_{word}", self.name);
        self.roles.lock().expect("no test holds it").push(role.clone());
        role
    }

    /// The address of the Postgres database for a role, whose password is its name.
    pub fn url_as(&self, role: &str) -> String {
        let (scheme, rest) = self.url.split_once("://").expect("an address");
        let (authority, database) = rest.split_once('/').expect("a database");
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{scheme}://{role}:{role}@{host}/{database}")
    }

    /// Opens the database, and brings its tables up to date.
    pub async fn connect(&self) -> Database {
        open(&self.url).await
    }

    /// Starts a service on the database.
    pub async fn app(&self) -> App {
        self.app_with(Options::default()).await
    }

    /// Starts a service on the database, otherwise than usual.
    pub async fn app_with(&self, options: Options) -> App {
        self.app_at(&self.url, options).await
    }

    /// Starts a service that finds the database at another address, such as a proxy's.
    pub async fn app_at(&self, url: &str, options: Options) -> App {
        let database = open(url).await;
        let clock = Arc::new(TestClock::default());
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let policy = options.policy.clone();
        let service = Service::new(database.clone(), Arc::clone(&clock) as Arc<dyn Clock>, metrics, policy);
        let feed = begin_to_watch(&service, options.feed).await;
        self.services.lock().expect("no test holds it").push(Arc::clone(&service));
        App::start(service, database, clock, feed, options).await
    }
}

/// Opens a database, and brings its tables up to date; again when it was slow to answer, as the process does.
pub async fn open(url: &str) -> Database {
    let start = Instant::now();
    loop {
        let error = match Database::connect(url).await {
            Ok(database) => match store::schema::migrate(&database).await {
                Ok(_) => return database,
                Err(error) => error,
            },
            Err(ConnectError::Open(error)) => error,
            Err(error) => panic!("no database: {error:?}"),
        };
        let is_slow = matches!(error, store::Error::Unavailable(_)) && start.elapsed() < PATIENCE;
        assert!(is_slow, "no database: {error:?}");
    }
}

/// Begins to watch for changes; again when the database was slow to answer, as the process does.
async fn begin_to_watch(service: &Arc<Service>, settings: FeedSettings) -> JoinSet<()> {
    let start = Instant::now();
    loop {
        match service.watch(settings).await {
            Ok(feed) => return feed,
            Err(error) => assert!(start.elapsed() < PATIENCE, "no feed: {error:?}"),
        }
    }
}

/// The facts of subjects, as the hooks read them.
pub async fn load_facts(database: &Database, subjects: &[Subject]) -> store::Result<Vec<Facts>> {
    let load = async |lane: &mut Connection| store::facts::load(lane, subjects).await;
    database.hooks().run(Duration::from_secs(10), load).await
}

/// One connection to a database beside those of the services, as a person or another program has it.
pub struct ByHand(DatabaseConnection);

impl ByHand {
    /// Opens it.
    pub async fn open(url: &str) -> Self {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
        Self(sea_orm::Database::connect(options).await.expect("a connection"))
    }

    /// Runs statements, and tells how many rows they touched.
    pub async fn run(&self, sql: &str) -> u64 {
        self.0.execute_unprepared(sql).await.expect("done").rows_affected()
    }

    /// Tries statements, and answers the SQLSTATE with which they were refused, if they were.
    pub async fn refusal(&self, sql: &str) -> Option<String> {
        match self.0.execute_unprepared(sql).await {
            Ok(_) => None,
            Err(DbErr::Exec(RuntimeErr::SqlxError(error))) => {
                Some(error.as_database_error().and_then(sqlx::error::DatabaseError::code).expect("a code").into_owned())
            }
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    /// Asks for the first column of some rows.
    pub async fn column<T: TryGetable>(&self, sql: &str) -> Vec<T> {
        let statement = Statement::from_string(self.0.get_database_backend(), sql);
        let rows = self.0.query_all_raw(statement).await.expect("an answer");
        rows.iter().map(|row| row.try_get_by_index(0).expect("a value")).collect()
    }

    /// Asks for one value.
    pub async fn ask<T: TryGetable>(&self, sql: &str) -> T {
        let statement = Statement::from_string(self.0.get_database_backend(), sql);
        let row = self.0.query_one_raw(statement).await.expect("an answer").expect("a row");
        row.try_get_by_index(0).expect("a value")
    }
}

/// How long ago that was; whoever does not ask need not look at it.
pub fn since(start: Instant) -> Duration {
    start.elapsed()
}

/// How long a machine that does much else has let this process wait since the first call: what an answer took can then
/// be told from what nobody got done meanwhile.
pub fn stood_still() -> Duration {
    static MICROSECONDS: AtomicU64 = AtomicU64::new(0);
    static WATCH: Once = Once::new();
    const GLANCE: Duration = Duration::from_millis(10);
    WATCH.call_once(|| {
        std::thread::spawn(|| {
            loop {
                let start = Instant::now();
                std::thread::sleep(GLANCE);
                let late = start.elapsed().saturating_sub(GLANCE).as_micros();
                MICROSECONDS.fetch_add(u64::try_from(late).unwrap_or(u64::MAX), Ordering::SeqCst);
            }
        });
    });
    Duration::from_micros(MICROSECONDS.load(Ordering::SeqCst))
}

/// Checks that something which has just ended took less than a bound, but for the time in which the machine stood
/// still; and tells how long it took.
#[track_caller]
pub fn expect_within(bound: Duration, start: Instant, stood_still_before: Duration) -> Duration {
    let time = start.elapsed();
    if time >= bound {
        // The one who watches may have been late, too, and has not told yet.
        std::thread::sleep(Duration::from_millis(100));
        let stood_still = stood_still().saturating_sub(stood_still_before);
        assert!(time < bound + stood_still, "{time:?}, while the machine stood still for {stood_still:?}");
    }
    time
}

/// Prints what was measured, for `--nocapture`.
#[expect(clippy::print_stderr, reason = "a measurement is for people")]
pub fn measured(what: &str, value: impl fmt::Debug) {
    eprintln!("measured: {what}: {value:.1?}");
}

async fn execute_on_server(url: &str, statement: &str) {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(url).await.expect("a Postgres server");
    let connection: DatabaseConnection = sea_orm::SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
    connection.execute_unprepared(statement).await.expect("done");
    connection.close().await.expect("closed");
}

/// Whose tokens a test's service believes.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The issuers, and where their keys are.
    pub issuers: Vec<(String, Source)>,
    /// Whom the tokens must be for.
    pub audiences: Vec<String>,
    /// How often keys are asked for.
    pub pace: Pace,
    /// How much waiting for them is borne.
    pub patience: Patience,
}

impl Trust {
    fn verifier<T: Clone>(&self, surface: auth::Surface, service: &Arc<Service>, accept: Accept<T>) -> Verifier<T> {
        let client = KeyClient::new().expect("a client");
        let issuer = |named: &(String, Source)| {
            Issuer::new(surface, named.clone(), client.clone(), self.pace, Arc::clone(service))
        };
        let issuers = self.issuers.iter().map(issuer).collect();
        Verifier::new(issuers, self.audiences.clone(), LEEWAY, self.patience, accept)
    }
}

impl issuer::Issuer {
    /// A service that believes its tokens: it asks for keys at its start, and again only for a token that needs it.
    pub fn trust(&self) -> Trust {
        let keys = Address::parse(&format!("{}/oauth/v1/keys", self.base)).expect("an address");
        let hour = Duration::from_hours(1);
        Trust {
            issuers: vec![(ISSUER.to_owned(), Source::At(keys))],
            audiences: vec![AUDIENCE.to_owned()],
            pace: Pace {
                interval: hour,
                retry: hour,
                refill: hour,
                timeout: Duration::from_secs(10),
                ..Pace::default()
            },
            patience: Patience { limit: Duration::from_secs(10), places: 200 },
        }
    }
}

/// How far an issuer's clock may be off.
pub const LEEWAY: TimeDelta = TimeDelta::seconds(30);

/// How a test's service differs from the usual one.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is decided where the rules leave it to the operator.
    pub policy: Policy,
    /// How the change feed works.
    pub feed: FeedSettings,
    /// Whether changes need `If-Match`.
    pub require_if_match: bool,
    /// The credentials of the hooks.
    pub hook_auth: HookAuth,
    /// The credentials of the management API.
    pub management_auth: ManagementAuth,
    /// The tokens that open the hooks, with the scopes that they must have.
    pub hook_trust: Option<(Trust, Vec<String>)>,
    /// The tokens that open the management API.
    pub api_trust: Option<Trust>,
    /// How people sign in to the console at an OpenID provider.
    pub console_openid: Option<OpenIdSettings>,
    /// How many wrong guesses are let pass.
    pub allowance: Allowance,
    /// The proxies whose word is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What its listeners allow.
    pub limits: Limits,
    /// The files that make the main listener one over TLS.
    pub tls: Option<Files>,
    /// How often they are looked at.
    pub reload_interval: Duration,
    /// How many requests may be under way.
    pub capacity: Capacity,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // A machine that runs many tests at once is slow to answer; what is tested in time sets a time of its own.
            policy: Policy { hook_timeout: Duration::from_secs(40), ..Policy::default() },
            feed: FeedSettings { wake_up: true },
            require_if_match: false,
            hook_auth: HookAuth::default().with_basic("hook", "hook"),
            management_auth: ManagementAuth::default().with_bootstrap("admin-token"),
            hook_trust: None,
            api_trust: None,
            console_openid: None,
            // A corpus of bad credentials is no attack.
            allowance: Allowance { burst: 100_000, ..Allowance::default() },
            trusted_proxies: Vec::new(),
            // No test waits for a load balancer.
            limits: Limits { drain_delay: Duration::ZERO, drain_timeout: Duration::from_secs(5), ..Limits::default() },
            tls: None,
            reload_interval: RELOAD_INTERVAL,
            capacity: Capacity::default(),
        }
    }
}

/// A clock that stands until a test moves it.
#[derive(Debug)]
pub struct TestClock(Mutex<Option<DateTime<Utc>>>);

impl Default for TestClock {
    fn default() -> Self {
        Self(Mutex::new(Some(instant("2026-06-15T12:00:00Z"))))
    }
}

impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        let now = *self.0.lock().expect("no test holds it");
        now.expect("a test broke the clock, to see what a panic does")
    }
}

/// The instant of an RFC 3339 timestamp.
pub fn instant(text: &str) -> DateTime<Utc> {
    text.parse().expect("a timestamp")
}

/// The timestamp of an instant, as the API writes it.
pub fn timestamp(instant: DateTime<Utc>) -> String {
    http::wire::Timestamp::from(instant).0
}

/// One microsecond.
pub const MICROSECOND: TimeDelta = TimeDelta::microseconds(1);

/// A running service, and what it is asked with.
pub struct App {
    /// The use cases.
    pub service: Arc<Service>,
    /// The database below it.
    pub database: Database,
    clock: Arc<TestClock>,
    /// Where the hooks and the management API are served.
    pub address: SocketAddr,
    /// Where operators look.
    pub operations: SocketAddr,
    /// Every route of both, by method and path.
    pub routes: Vec<(Method, String)>,
    /// Whether it takes on work.
    pub readiness: Arc<Readiness>,
    /// The tasks that watch for changes made elsewhere: they go on until the test drops them.
    pub feed: JoinSet<()>,
    /// The task that looks at the files of TLS: it goes on until the test drops it.
    _renewal: JoinSet<()>,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl App {
    async fn start(
        service: Arc<Service>,
        database: Database,
        clock: Arc<TestClock>,
        feed: JoinSet<()>,
        options: Options,
    ) -> Self {
        let readiness = Readiness::new();
        let app = Arc::new(http::App {
            service: Arc::clone(&service),
            require_if_match: options.require_if_match,
            is_tls_everywhere: options.tls.is_some(),
            admission: Admission::new(options.capacity),
        });
        let (mut hook_auth, mut management_auth) = (options.hook_auth, options.management_auth);
        if let Some((trust, scopes)) = options.hook_trust {
            let accept = HookAuth::accept(ACCESS_CLIENT.to_owned(), scopes);
            hook_auth = hook_auth.with_jwt(trust.verifier(auth::Surface::Hooks, &service, accept));
        }
        if let Some(trust) = options.api_trust {
            let scopes = Role::ALL.map(|role| (role, format!("tollgate_{}", role.as_str())));
            let accept = ManagementAuth::accept(scopes);
            management_auth = management_auth.with_jwt(trust.verifier(auth::Surface::Management, &service, accept));
        }
        let guard = Guard::new(options.allowance, options.trusted_proxies);
        let gate = Arc::new(Gate::new(hook_auth, management_auth, guard, Arc::clone(&service)));
        let router = || Router::new(Arc::clone(&app), Arc::clone(&gate), Arc::clone(&readiness));
        let (stop, stopped) = watch::channel(false);
        let serve = async |tls, router: Router| {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            (address, tokio::spawn(server::serve(listener, tls, Arc::new(router), stopped.clone(), options.limits)))
        };
        let tls = options.tls.map(|files| Tls::open(files).expect("usable files"));
        let acceptor = tls.as_ref().map(|tls| tls.acceptor(Surface::Hooks));
        let console = Console::new(None).expect("a console");
        let console = Arc::new(match options.console_openid {
            Some(settings) => console.with_openid(OpenId::new(settings).expect("a client")),
            None => console,
        });
        let main = router().with(Surface::Hooks).with(Surface::Management).with_console(console);
        let (address, main) = serve(acceptor, main).await;
        let (operations, operator) = serve(None, router().with(Surface::Operations)).await;
        let mut renewal = JoinSet::new();
        if let Some(tls) = tls {
            renewal.spawn(tls.watch(Arc::clone(service.metrics()), options.reload_interval));
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        let every = router().with(Surface::Hooks).with(Surface::Management).with(Surface::Operations);
        Self {
            service,
            database,
            clock,
            address,
            operations,
            routes: every.routes(),
            readiness,
            feed,
            _renewal: renewal,
            stop,
            servers: vec![main, operator],
            client,
        }
    }

    /// The present of the service.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Moves the service's clock to an instant.
    pub fn set_now(&self, now: DateTime<Utc>) {
        *self.clock.0.lock().expect("no test holds it") = Some(now);
    }

    /// Makes whoever reads the service's clock panic, until it is set again.
    pub fn break_clock(&self) {
        *self.clock.0.lock().expect("no test holds it") = None;
    }

    /// Stops the service as a signal would, and waits until its last request has ended.
    pub async fn stop(&mut self) {
        self.readiness.end();
        self.stop.send_replace(true);
        for server in self.servers.drain(..) {
            server.await.expect("served");
        }
    }

    /// Sends a request as it is.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send_to(self.address, method, path, headers, body).await
    }

    /// Sends a request as it is to one of the listeners.
    pub async fn send_to(
        &self,
        address: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let response = self.client.request(request).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Asks a hook with the right credentials.
    pub async fn ask(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[HOOK_CREDENTIALS, JSON], body.to_string()).await
    }

    /// Which scopes the current hook removes for a user and a client.
    pub async fn removed(&self, user: Option<&str>, client: &str, scopes: &[&str]) -> Vec<String> {
        let mut body = json!({"client": {"id": client}, "scopes": scopes});
        if let Some(user) = user {
            body["user"] = json!({"id": user});
        }
        let answer = self.ask(ACCESS_TOKEN, &body).await.expect(200);
        serde_json::from_value(answer["removeScopes"].clone()).expect("a list of scopes")
    }

    /// Asks the management API without a body.
    pub async fn call(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[ADMIN_CREDENTIALS], "").await
    }

    /// Asks the management API with a JSON body.
    pub async fn call_with(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, &[ADMIN_CREDENTIALS, JSON], body.to_string()).await
    }

    /// Registers a scope of the usual rules.
    pub async fn register(&self, name: &str) -> Value {
        self.call_with("POST", "/v1/scopes", &json!({"name": name})).await.expect(201)
    }

    /// Records a subscription of a user, whose window is given by timestamps.
    pub async fn subscribe(&self, user: &str, scopes: &[&str], from: &str, until: Option<&str>) -> Value {
        let body = json!({
            "subject": {"type": "user", "id": user}, "scopes": scopes, "validFrom": from, "validUntil": until,
        });
        self.call_with("POST", "/v1/subscriptions", &body).await.expect(201)
    }

    /// Makes a token of a role, which ends at a timestamp or never.
    pub async fn issue(&self, name: &str, role: &str, end: Option<&str>) -> Value {
        let body = json!({"name": name, "role": role, "expiresAt": end});
        self.call_with("POST", "/v1/tokens", &body).await.expect(201)
    }

    /// Asks the management API without a body, with the secret of a token.
    pub async fn call_as(&self, secret: &str, method: &str, path: &str) -> Answer {
        self.send(method, path, &[("authorization", &format!("Bearer {secret}"))], "").await
    }

    /// Asks the management API for what it must refuse with this status and code, naming these members.
    pub async fn refuse(&self, method: &str, path: &str, body: &Value, problem: (u16, &str), pointers: &[&str]) {
        let answer = self.call_with(method, path, body).await;
        answer.expect_refusal(problem, pointers, &format!("{method} {path} {body}"));
    }

    /// Asks the management API with a query that it must refuse, naming these parameters.
    pub async fn refuse_query(&self, path: &str, pointers: &[&str]) {
        self.call("GET", path).await.expect_refusal((400, "invalid_request"), pointers, path);
    }

    /// All items of a list, page by page.
    pub async fn walk(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut page = self.call("GET", path).await.expect(200);
        loop {
            items.extend(page["items"].as_array().expect("items").iter().cloned());
            let Some(cursor) = page["nextCursor"].as_str() else { return items };
            page = self.call("GET", &with_cursor(path, cursor)).await.expect(200);
        }
    }

    /// Sends bytes on a connection of their own, and reads until the service closes it. A request that it would answer
    /// and keep the connection has to ask it not to.
    pub async fn send_bytes(&self, parts: &[&[u8]]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        let mut received = Vec::new();
        let exchange = async {
            for part in parts {
                // It may answer and close before it has read everything.
                if stream.write_all(part).await.is_err() {
                    break;
                }
            }
            // A reset after the answer loses nothing that was received.
            let _ = stream.read_to_end(&mut received).await;
        };
        tokio::time::timeout(Duration::from_secs(30), exchange).await.expect("the connection is closed in time");
        String::from_utf8(received).expect("UTF-8")
    }

    /// The value of a metric, by its name with labels as it is written.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.send_to(self.operations, "GET", "/metrics", &[], "").await.text();
        let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().expect("a value");
        value.parse().expect("a number")
    }
}

/// The path of a list's page, given the path of its first one and a cursor.
pub fn with_cursor(path: &str, cursor: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}cursor={cursor}")
}

/// A text as part of a query, each byte of it in hexadecimal.
pub fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| format!("{encoded}%{byte:02X}"))
}

/// The path of a subscription that was answered.
pub fn path_of(subscription: &Value) -> String {
    format!("/v1/subscriptions/{}", subscription["id"].as_str().expect("an id"))
}

/// A response that has arrived whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("UTF-8")
    }

    /// A header, which must be there at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        assert!(self.headers.get_all(name).into_iter().count() <= 1, "{name} is repeated");
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// The JSON body of an answer that must be of this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The problem document of an answer that must be of this status and code; checks that it is whole.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["type"], format!("urn:tollgate:problem:{code}"));
        assert_eq!(problem["title"], self.status.canonical_reason().expect("a reason"));
        assert!(problem["detail"].is_string());
        problem
    }

    /// Checks that the answer is a whole problem of this status and code that names these members.
    #[track_caller]
    pub fn expect_refusal(&self, (status, code): (u16, &str), pointers: &[&str], request: &str) {
        let request = request.chars().take(200).collect::<String>();
        assert_eq!(self.status, status, "{request}: {}", self.text());
        self.expect_problem(status, code);
        assert_eq!(self.pointers(), pointers, "{request}");
    }

    /// The answer that was read from a connection.
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"))
        });
        Self { status: status.parse().expect("a status"), headers: headers.collect(), body: body.to_owned().into() }
    }

    /// The pointers of the errors that a problem lists.
    pub fn pointers(&self) -> Vec<String> {
        let problem: Value = serde_json::from_slice(&self.body).expect("JSON");
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect()
    }
}
