//! The service inside a process of the bench: wired as the service's own process does it, but for what a row leaves out
//! or counts.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use stats_alloc::{Region, StatsAlloc};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tollgate::{
    config::{LogArgs, LogFormat},
    http::{
        App,
        admission::Admission,
        auth::{
            Gate, HookAuth, ManagementAuth,
            guard::{Allowance, Guard},
        },
        router::{Readiness, Router, Surface},
        server::{self, Limits},
    },
    service::{FeedSettings, Metrics, Policy, Service, SystemClock},
    store::{Database, schema},
    telemetry,
};

use crate::{
    ground::ADMIN_TOKEN,
    payload::{Question, questions},
    rows::USERS,
    rungs::{self, Rung},
    wire::Wire,
};

/// The service, for as long as this is kept.
#[derive(Debug)]
pub struct Inside {
    /// Where it is asked.
    pub address: SocketAddr,
    _feed: Option<JoinSet<()>>,
    _stop: watch::Sender<bool>,
    _serving: JoinHandle<()>,
}

/// Serves on a free port, with or without hearing of changes made elsewhere.
pub async fn serve(url: &str, is_watching: bool) -> anyhow::Result<Inside> {
    let log = LogArgs { filter: "info".to_owned(), format: LogFormat::Text };
    telemetry::init(&log).map_err(|error| anyhow::anyhow!("logging cannot begin: {error}"))?;
    let database = Database::connect(url).await?;
    schema::migrate(&database).await?;
    let service = Service::new(database, Arc::new(SystemClock), Arc::new(Metrics::new()?), Policy::default());
    let feed = if is_watching { Some(service.watch(FeedSettings { wake_up: true }).await?) } else { None };
    service.check_ready().await?;
    let app = App {
        service: Arc::clone(&service),
        require_if_match: false,
        is_tls_everywhere: false,
        admission: Admission::default(),
    };
    let hooks = HookAuth::default().with_basic("hook", "hook");
    let management = ManagementAuth::default().with_bootstrap(ADMIN_TOKEN);
    let guard = Guard::new(Allowance::default(), Vec::new());
    let gate = Gate::new(hooks, management, guard, Arc::clone(&service));
    let router = Router::new(Arc::new(app), Arc::new(gate), Readiness::new());
    let router = Arc::new(router.with(Surface::Hooks).with(Surface::Management));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(server::serve(listener, None, router, stopped, Limits::default()));
    Ok(Inside { address, _feed: feed, _stop: stop, _serving: serving })
}

/// What a request took of the allocator, by block of requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Blocks of memory that were asked for.
    pub allocations: Vec<f64>,
    /// Those whose size was changed.
    pub reallocations: Vec<f64>,
}

/// Counts what the allocator is asked for by requests to a rung of the ladder, or to the service on a database.
pub fn count(
    allocator: &StatsAlloc<std::alloc::System>,
    rung: Option<Rung>,
    url: Option<&str>,
) -> anyhow::Result<Counted> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build()?;
    let questions = questions(0..USERS);
    let (address, inside) = match (rung, url) {
        (Some(rung), _) => {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
            let address = listener.local_addr()?;
            runtime.spawn(rungs::accept(rung, listener));
            (address, None)
        }
        (None, url) => {
            let inside = runtime.block_on(serve(url.context("the address of a database")?, true))?;
            (inside.address, Some(inside))
        }
    };
    let is_echo = rung == Some(Rung::Echo);
    let mut wire = Wire::connect(address)?;
    let block = 4 * questions.len();
    ask(&mut wire, &questions, block, is_echo)?;
    let mut counted = Counted::default();
    for _ in 0..5 {
        let region = Region::new(allocator);
        ask(&mut wire, &questions, block, is_echo)?;
        let change = region.change();
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let each = |count: usize| count as f64 / block as f64;
        counted.allocations.push(each(change.allocations));
        counted.reallocations.push(each(change.reallocations));
    }
    drop(inside);
    Ok(counted)
}

/// Asks so many times, one after the other, without any memory to be had for it.
fn ask(wire: &mut Wire, questions: &[Question], count: usize, is_echo: bool) -> anyhow::Result<()> {
    for question in questions.iter().cycle().take(count) {
        let (status, body) = wire.exchange(&question.request)?;
        if !is_echo {
            question.check(status, body)?;
        }
    }
    Ok(())
}
