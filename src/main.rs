//! The process: arguments, telemetry, wiring, serve, drain.

use std::{
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tollgate::{
    config::{self, ApiJwt, Command, ConfigError, HookJwt, Secret, ServeSettings, Trust},
    http::{
        App,
        admission::Admission,
        auth::{
            self, Gate, HookAuth, ManagementAuth,
            guard::{Allowance, Guard},
            issuer::{Issuer, KeyClient, Pace, Source},
            jwt::{Accept, Patience, Verifier},
        },
        collector::Collector,
        console::{Console, openid::OpenId},
        health,
        router::{Readiness, Router, Surface},
        server::{self, Limits},
        tls::{RELOAD_INTERVAL, Tls},
    },
    service::{self, FeedSettings, Metrics, Service, SystemClock, demo, trace::Tracer},
    store::{self, Database, schema::Migrated},
    telemetry,
};

mod command;
mod supervisor;

use supervisor::{State, Supervisor};

/// Hook requests that may wait for an issuer's keys at once: a quarter of those that may be under way.
const WAITING_HOOKS: usize = 256;
/// The same of the management API.
const WAITING_CALLERS: usize = 32;
/// A secret of fewer bytes is warned of.
const SHORT_SECRET_BYTES: usize = 16;
/// How long operators' requests may take to end, after all others have.
const OPERATIONS_DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to say goodbye to the database. One that does not answer must not hold up the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last traces may take to be sent.
const TRACES_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after the first try; each one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause: a database that is back is found within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match config::from_process() {
        Ok(command) => match run(command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("{error:#}")),
        },
        Err(ConfigError::Arguments(error)) => error.exit(),
        Err(error) => fail(&error.to_string()),
    }
}

#[expect(clippy::print_stderr, reason = "whoever started the process reads why it ends, whatever is logged")]
fn fail(reason: &str) -> ExitCode {
    eprintln!("tollgate: {reason}");
    ExitCode::FAILURE
}

#[expect(clippy::print_stdout, reason = "it is what was asked for")]
fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::OpenApi(contract) => print!("{}", contract.yaml()),
        Command::Migrate { database_url, log } => {
            start_logging(&log)?;
            block_on(async move { migrate(&connect(&database_url).await?).await })?;
        }
        Command::Token { command, database_url, log } => {
            start_logging(&log)?;
            block_on(async move { command::token(command, connect(&database_url).await?).await })?;
        }
        Command::Import { command, database_url, log } => {
            start_logging(&log)?;
            block_on(async move { command::files::import(command, connect(&database_url).await?).await })?;
        }
        Command::Export { command, database_url, log } => {
            start_logging(&log)?;
            block_on(async move { command::files::export(command, connect(&database_url).await?).await })?;
        }
        Command::Check(settings) => {
            start_logging(&settings.log)?;
            block_on(command::check::check(settings))?;
        }
        Command::Backup { file, database_url, log } => {
            start_logging(&log)?;
            block_on(async move { command::backup::backup(&file, &database_url).await })?;
        }
        Command::Ask(settings) => {
            start_logging(&settings.log)?;
            block_on(command::ask::ask(*settings))?;
        }
        Command::Health { address, is_tls } => {
            block_on(async move { Ok(health::ask(address, is_tls).await?) })?;
            println!("ready");
        }
        Command::Serve(settings) => {
            start_logging(&settings.log)?;
            block_on(serve(*settings))?;
        }
    }
    Ok(())
}

fn start_logging(log: &config::LogArgs) -> anyhow::Result<()> {
    telemetry::init(log).map_err(|error| anyhow::anyhow!("logging cannot begin: {error}"))
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let done = runtime.block_on(work);
    // Dropping it would wait for what blocks a thread, such as looking up a name.
    runtime.shutdown_background();
    done
}

async fn connect(url: &Secret) -> anyhow::Result<Database> {
    Ok(Database::connect(url.expose()).await?)
}

async fn migrate(database: &Database) -> anyhow::Result<()> {
    match store::schema::migrate(database).await.context("the tables cannot be brought up to date")? {
        Migrated::Nothing => tracing::debug!("the tables are up to date"),
        Migrated::Steps(steps) => tracing::info!(steps, "the tables were brought up to date"),
        Migrated::NewerSchema => tracing::warn!("the tables are those of a newer version; this one can live with them"),
    }
    Ok(())
}

async fn serve(settings: ServeSettings) -> anyhow::Result<()> {
    // Before anything is begun: what cannot be used needs a person.
    let supervisor = Supervisor::at(settings.notify_socket.as_deref())?;
    let tls = settings.tls.clone().map(Tls::open).transpose()?;
    let scratch = if settings.demo { Some(Scratch::new()?) } else { None };
    let url = scratch.as_ref().map_or_else(|| settings.database_url.clone(), Scratch::database_url);
    // From here on the end is an orderly one.
    let mut signals = StopSignals::new()?;
    let (service, mut feed) = tokio::select! {
        opened = open_patiently(&url, &settings) => opened?,
        () = signals.recv() => return Ok(()),
    };
    // Each address is taken before the first request is: a port that is in use ends the process at once.
    let hooks = bind(settings.listen).await?;
    let api = match settings.api_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let operations = bind(settings.ops_listen).await?;
    if settings.demo {
        let (hooks_at, api_at) = (hooks.local_addr()?, api.as_ref().unwrap_or(&hooks).local_addr()?);
        print_demo(&service, &settings, hooks_at, api_at, operations.local_addr()?).await?;
    }

    let readiness = Readiness::new();
    warn_of_short_secrets(&settings);
    let traces = Traces::begin(&service, &settings)?;
    let (gate, router) = router(&service, &settings, &readiness, traces.tracer.clone())?;
    tokio::select! {
        () = gate.begun() => {}
        () = signals.recv() => return Ok(()),
    }
    let console = console(&settings)?;
    let with_console = |router: Router| match &console {
        Some(console) => router.with_console(Arc::clone(console)),
        None => router,
    };
    let (stop, stopped) = watch::channel(false);
    let (drain_delay, drain_timeout) = (settings.drain_delay, settings.drain_timeout);
    let limits = Limits { drain_delay, drain_timeout, ..Limits::default() };
    let acceptor = |surface| tls.as_ref().map(|tls| tls.acceptor(surface));
    let serve = |listener, surface, router| {
        server::serve(listener, acceptor(surface), Arc::new(router), stopped.clone(), limits)
    };
    let mut serving = JoinSet::new();
    if let Some(api) = api {
        serving.spawn(serve(hooks, Surface::Hooks, router().with(Surface::Hooks)));
        serving.spawn(serve(api, Surface::Management, with_console(router().with(Surface::Management))));
    } else {
        let both = router().with(Surface::Hooks).with(Surface::Management);
        serving.spawn(serve(hooks, Surface::Hooks, with_console(both)));
    }
    // Operators can look until the last request has ended.
    let (stop_operations, operations_stopped) = watch::channel(false);
    let limits = Limits { drain_delay: Duration::ZERO, drain_timeout: OPERATIONS_DRAIN_TIMEOUT, ..limits };
    let operations_tls = settings.ops_tls.then(|| acceptor(Surface::Operations)).flatten();
    let operations_router = Arc::new(router().with(Surface::Operations));
    let operations = server::serve(operations, operations_tls, operations_router, operations_stopped, limits);
    let operations = tokio::spawn(operations);
    let mut renewal = JoinSet::new();
    if let Some(tls) = tls {
        renewal.spawn(tls.watch(Arc::clone(service.metrics()), RELOAD_INTERVAL));
    }
    tracing::info!(listen = %settings.listen, api = ?settings.api_listen, operations = %settings.ops_listen, "serving");
    supervisor.tell(State::Serving)?;

    tokio::select! {
        () = signals.recv() => {}
        // A process that does not hear of changes any more, or does not accept, is better begun anew than left alone.
        Some(ended) = feed.join_next() => anyhow::bail!("a task of the change feed has ended: {ended:?}"),
        Some(ended) = serving.join_next() => anyhow::bail!("a listener has ended: {ended:?}"),
        Some(ended) = renewal.join_next() => anyhow::bail!("nobody looks at the TLS files any more: {ended:?}"),
    }
    tracing::info!("stopping");
    if let Err(error) = supervisor.tell(State::Stopping) {
        tracing::warn!("{error:#}");
    }
    readiness.end();
    stop.send_replace(true);
    let drain = async {
        while let Some(ended) = serving.join_next().await {
            ended?;
        }
        drop(feed);
        stop_operations.send_replace(true);
        operations.await?;
        // At once, so that the end takes no longer than without traces.
        let ((), closed) = tokio::join!(traces.end(), timeout(CLOSE_TIMEOUT, service.close()));
        if closed.is_err() {
            tracing::warn!("the database did not let go of its connections in time");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        drained = drain => drained?,
        () = signals.recv() => tracing::warn!("told to stop a second time: requests under way are cut"),
    }
    tracing::info!("stopped");
    Ok(())
}

/// Opens the database, brings its tables up to date and begins to hear of changes. While the database cannot be reached
/// it tries again: a replica that starts during an outage must not have to be started again after it.
async fn open_patiently(url: &Secret, settings: &ServeSettings) -> anyhow::Result<(Arc<Service>, JoinSet<()>)> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match open(url, settings).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let is_outage = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(store::Error::Unavailable(_))));
        if !is_outage || started.elapsed() >= settings.startup_timeout || settings.demo {
            return Err(error);
        }
        tracing::warn!("the database cannot be reached yet: {error:#}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn open(url: &Secret, settings: &ServeSettings) -> anyhow::Result<(Arc<Service>, JoinSet<()>)> {
    let database = connect(url).await?;
    if settings.migrate || settings.demo {
        migrate(&database).await?;
    } else if !store::schema::is_current(&database).await? {
        anyhow::bail!("the tables are not up to date: run `tollgate migrate`, or set TOLLGATE_MIGRATE=true");
    }
    let service = Service::new(database, Arc::new(SystemClock), Arc::new(Metrics::new()?), settings.policy.clone());
    let feed = service.watch(FeedSettings { wake_up: settings.feed_wake_up }).await?;
    if let Err(error) = service.check_ready().await {
        tracing::warn!(%error, "not ready: the catalogue could not be read yet");
    }
    Ok((service, feed))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{address} cannot be listened on"))
}

/// Which secrets may be guessed: wrong guesses are counted, and do not make a right one fail. Those of the demo are known
/// anyway.
fn short_secrets(settings: &ServeSettings) -> Vec<&'static str> {
    if settings.demo {
        return Vec::new();
    }
    let passwords = settings.hook_basic.iter().map(|(_, password)| ("password of the hooks", password));
    let token = settings.admin_token.iter().map(|token| ("token of the bootstrap administrator", token));
    let short = passwords.chain(token).filter(|(_, secret)| secret.expose().len() < SHORT_SECRET_BYTES);
    short.map(|(what, _)| what).collect()
}

fn warn_of_short_secrets(settings: &ServeSettings) {
    for what in short_secrets(settings) {
        tracing::warn!(what, "a secret is shorter than {SHORT_SECRET_BYTES} bytes: choose a long random one");
    }
}

/// Makes routers that serve nothing yet, with the credentials that the settings name.
fn router(
    service: &Arc<Service>,
    settings: &ServeSettings,
    readiness: &Arc<Readiness>,
    tracer: Option<Arc<Tracer>>,
) -> anyhow::Result<(Arc<Gate>, impl Fn() -> Router)> {
    let app = Arc::new(App {
        service: Arc::clone(service),
        require_if_match: settings.require_if_match,
        // A browser that is told so takes it for all ports of the host.
        is_tls_everywhere: settings.tls.is_some() && settings.ops_tls,
        admission: Admission::default(),
    });
    let mut hook_auth = HookAuth::default();
    for (username, password) in &settings.hook_basic {
        hook_auth = hook_auth.with_basic(username.expose(), password.expose());
    }
    if let Some(HookJwt { trust, client, scopes }) = &settings.hook_jwt {
        // A hook that has to wait for keys may not take longer than any other.
        let limit = settings.policy.hook_timeout.min(Pace::default().timeout);
        let patience = Patience { limit, places: WAITING_HOOKS };
        let accept = HookAuth::accept(client.clone(), scopes.clone());
        hook_auth = hook_auth.with_jwt(verifier(service, auth::Surface::Hooks, trust, patience, accept)?);
    }
    if settings.hook_open {
        hook_auth = hook_auth.with_none();
    }
    let mut management_auth = ManagementAuth::default();
    if let Some(token) = &settings.admin_token {
        management_auth = management_auth.with_bootstrap(token.expose());
    }
    if let Some(ApiJwt { trust, scopes }) = &settings.api_jwt {
        let accept = ManagementAuth::accept(scopes.clone());
        let patience = Patience { limit: Pace::default().timeout, places: WAITING_CALLERS };
        let verifier = verifier(service, auth::Surface::Management, trust, patience, accept)?;
        management_auth = management_auth.with_jwt(verifier);
    }
    let guard = Guard::new(Allowance::default(), settings.trusted_proxies.clone());
    let gate = Arc::new(Gate::new(hook_auth, management_auth, guard, Arc::clone(service)));
    let readiness = Arc::clone(readiness);
    let router = {
        let gate = Arc::clone(&gate);
        move || Router::new(Arc::clone(&app), Arc::clone(&gate), Arc::clone(&readiness)).traced(tracer.clone())
    };
    Ok((gate, router))
}

/// The pages for support staff, where they are served.
fn console(settings: &ServeSettings) -> anyhow::Result<Option<Arc<Console>>> {
    if !settings.console {
        return Ok(None);
    }
    let key = settings.console_key.as_ref().map(|key| key.expose().as_bytes());
    let console = Console::new(key).context("the console cannot begin")?;
    Ok(Some(Arc::new(match settings.console_openid.clone() {
        Some(openid) => console.with_openid(OpenId::new(openid)?),
        None => console,
    })))
}

/// Verifies the tokens of the issuers that the settings name.
fn verifier<T: Clone>(
    service: &Arc<Service>,
    surface: auth::Surface,
    trust: &Trust,
    patience: Patience,
    accept: Accept<T>,
) -> anyhow::Result<Verifier<T>> {
    let client = KeyClient::new()?;
    let issuer = |named: &(String, Source)| {
        Issuer::new(surface, named.clone(), client.clone(), Pace::default(), Arc::clone(service))
    };
    let issuers = trust.issuers.iter().map(issuer).collect();
    let leeway = chrono::TimeDelta::from_std(trust.leeway)?;
    Ok(Verifier::new(issuers, trust.audiences.clone(), leeway, patience, accept))
}

/// What traces requests and sends that to a collector, where the settings name one.
struct Traces {
    tracer: Option<Arc<Tracer>>,
    /// How to end the sending, and its end.
    sending: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Traces {
    fn begin(service: &Service, settings: &ServeSettings) -> anyhow::Result<Self> {
        let Some(config::Traces { collector, share }) = &settings.traces else {
            return Ok(Self { tracer: None, sending: None });
        };
        let metrics = service.metrics();
        let (tracer, ended) = Tracer::new(*share, service::new_id(service.now()), Arc::clone(metrics));
        let collector = Collector::new(collector.clone(), ended, Arc::clone(metrics))?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self { tracer: Some(tracer), sending: Some((stop, tokio::spawn(collector.run(stopped)))) })
    }

    /// Sends what is left, if that does not take long.
    async fn end(self) {
        let Some((stop, sending)) = self.sending else { return };
        // Whether it is told or has ended already, its end is what is waited for.
        let _ = stop.send(());
        if timeout(TRACES_TIMEOUT, sending).await.is_err() {
            tracing::warn!("the last traces could not be sent in time");
        }
    }
}

/// SIGTERM and SIGINT: the first asks the process to stop, the second to stop at once.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A folder for the demo's database, which goes when the demo ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("tollgate-demo-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("{} cannot be created", folder.display()))?;
        Ok(Self(folder))
    }

    fn database_url(&self) -> Secret {
        format!("sqlite://{}?mode=rwc", self.0.join("tollgate.db").display()).as_str().into()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in the folder for temporary files does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Fills the demo's database, and tells what to try.
#[expect(clippy::print_stdout, reason = "the demo is for a person at a terminal")]
async fn print_demo(
    service: &Arc<Service>,
    settings: &ServeSettings,
    hooks: SocketAddr,
    api: SocketAddr,
    operations: SocketAddr,
) -> anyhow::Result<()> {
    let cancelable = service.seed_demo().await.context("the demo's data cannot be written")?.id;
    let user = demo::USER;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let operations_scheme = if settings.ops_tls { "https" } else { "http" };
    let basic = settings
        .hook_basic
        .first()
        .map_or_else(String::new, |(username, password)| format!(" -u {}:{}", username.expose(), password.expose()));
    let token = settings.admin_token.as_ref().map_or("", Secret::expose);
    println!(
        "Tollgate's demo: a temporary database with a small catalogue and subscriptions of every status.

The hook, as Access calls it ('email' has expired, 'profile' is not managed):
  curl -s{basic} -H 'Content-Type: application/json' {scheme}://{hooks}/v1/customize-access-token \\
    -d '{{\"user\":{{\"id\":\"{user}\"}},\"client\":{{\"id\":\"client\"}},\"scopes\":[\"profile\",\"email\"]}}'

What that user holds, until when, and why not:
  curl -s -H 'Authorization: Bearer {token}' '{scheme}://{api}/v1/entitlements?subjectType=user&subjectId={user}'

Cancel the user's 'reports' subscription, then ask again:
  curl -s -X POST -H 'Authorization: Bearer {token}' {scheme}://{api}/v1/subscriptions/{cancelable}/cancel

The console to look at it with the token '{token}': {scheme}://{api}/console

The API to browse: {scheme}://{api}/docs     Metrics: {operations_scheme}://{operations}/metrics     Stop: Ctrl-C
"
    );
    Ok(())
}
