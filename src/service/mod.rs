//! Use cases: read the clock once, open the transaction, ask the domain, write, record the change, commit, bump.
//!
//! Architecture invariant: nothing here knows HTTP, and SQL stands in `store` alone. Every write is one visible
//! transaction, and no call leaves the process between its begin and its commit. A write is answered only after the
//! cache was told of it ([`Service::commit`]): the order in which promise 1 of [`cache`] lies.

use std::{
    fmt::Write as _,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    domain::{
        claims::ClaimsPrefix,
        decision::{OnUnknown, Unmanaged},
        subject::Subject,
    },
    store::{self, Database},
};

mod apart;
pub mod bulk;
pub mod cache;
pub mod catalogue;
pub mod clock;
pub mod decision;
pub mod demo;
pub mod entitlement;
pub mod error;
pub mod explain;
pub mod feed;
pub mod health;
pub mod history;
mod idempotency;
pub mod losses;
pub mod metrics;
pub mod refusals;
pub mod subscription;
pub mod token;
pub mod trace;

pub use apart::{Apart, give_way};
use cache::{
    Ages, Breaker, CatalogueCache, FactsCache, Found, Ground, TRUST_FOR, TokenCache, Trust, catalogue_cache,
    token_cache,
};
pub use clock::{Clock, SystemClock};
pub use error::{Error, Result};
use feed::Feed;
pub use feed::FeedSettings;
pub use idempotency::Idempotency;
use idempotency::Running;
use losses::Losses;
pub use metrics::Metrics;
use refusals::Refusals;
use token::Uses;

/// What an operator decides about the rules.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What happens to scopes that are not in the catalogue.
    pub unmanaged: Unmanaged,
    /// What happens to managed scopes when nothing is known of whether they are held.
    pub on_unknown: OnUnknown,
    /// What the names of claims in tokens begin with; without it, no claims are made.
    pub claims_prefix: Option<ClaimsPrefix>,
    /// How long facts are believed without asking again: it bounds how long a write by hand in the database goes
    /// unnoticed.
    pub max_age: Duration,
    /// How long facts are used when the database cannot be asked.
    pub max_stale: Duration,
    /// How long a hook may take to be answered.
    pub hook_timeout: Duration,
    /// How long changes are kept; for ever when nothing is said.
    pub keep_changes: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            unmanaged: Unmanaged::default(),
            on_unknown: OnUnknown::default(),
            claims_prefix: None,
            max_age: Duration::from_mins(1),
            max_stale: Duration::from_mins(10),
            hook_timeout: Duration::from_millis(400),
            keep_changes: None,
        }
    }
}

/// Where a write came from, for the record of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name of the credential that asked for it.
    pub actor: String,
    /// The id of the request.
    pub request_id: String,
    /// The key that makes it be done once, if its sender gave one.
    pub idempotency: Option<Idempotency>,
}

/// Which versions a writer is willing to change (`If-Match` of RFC 9110 section 13.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Whatever is there.
    Any,
    /// One of these versions.
    Versions(Vec<i64>),
}

impl Expected {
    fn check(&self, version: i64) -> Result<()> {
        match self {
            Self::Any => Ok(()),
            Self::Versions(versions) if versions.contains(&version) => Ok(()),
            Self::Versions(_) => Err(Error::VersionMismatch),
        }
    }
}

/// What a committed write made stale in the cache.
#[derive(Debug, Clone)]
enum Touched {
    Subject(Subject),
    Catalogue,
    Tokens,
}

/// How long a commit may take before its outcome counts as unknown.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a read of the tokens may take before it counts as unanswered.
const TOKENS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the management API waits for a use case.
const API_TIMEOUT: Duration = Duration::from_secs(6);
/// How long a batch, or a chunk of an import, may take: a thousand writes, several questions each, to a database that is
/// not near.
const BULK_TIMEOUT: Duration = Duration::from_mins(1);
/// Exports that go on at once: each holds a connection for a moment, again and again.
const CONCURRENT_EXPORTS: usize = 2;
/// Imports that go on at once: several would only share the database, and take more of it from the hooks.
const CONCURRENT_IMPORTS: usize = 1;
/// How long a write may take after nobody waits for it any more, before its connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// The use cases, with what they work on.
#[derive(Debug)]
pub struct Service {
    clock: Arc<dyn Clock>,
    database: Database,
    ground: Arc<Ground>,
    facts: Arc<FactsCache>,
    catalogue: Arc<CatalogueCache>,
    live_tokens: Arc<TokenCache>,
    uses: Uses,
    running: Arc<Running>,
    imports: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
    losses: Losses,
    refusals: Refusals,
    policy: Policy,
    /// When the log was last told that claims were left out.
    left_out_told: Mutex<Option<Instant>>,
}

impl Service {
    /// The use cases on a database.
    #[must_use]
    pub fn new(database: Database, clock: Arc<dyn Clock>, metrics: Arc<Metrics>, policy: Policy) -> Arc<Self> {
        metrics.observe_hook_timeout(policy.hook_timeout);
        let trust = Arc::new(Trust::unwatched());
        let ages = Ages { max_age: policy.max_age, max_stale: policy.max_stale };
        let ground = Arc::new(Ground {
            database: database.clone(),
            metrics: Arc::clone(&metrics),
            ages,
            // A request whose query gets no answer still has the time to be answered from what is known.
            query_timeout: policy.hook_timeout * 3 / 4,
            trust: Arc::clone(&trust),
            breaker: Breaker::default(),
        });
        let api_ground = Arc::new(Ground {
            database: database.clone(),
            metrics: Arc::clone(&metrics),
            ages,
            query_timeout: TOKENS_TIMEOUT,
            trust,
            breaker: Breaker::default(),
        });
        let facts = FactsCache::new(Arc::clone(&ground));
        let catalogue = catalogue_cache(Arc::clone(&ground));
        let live_tokens = token_cache(api_ground, Arc::clone(&clock));
        let feed = Feed::new(
            Arc::clone(&ground),
            Arc::clone(&facts),
            Arc::clone(&catalogue),
            Arc::clone(&live_tokens),
            Arc::clone(&clock),
            new_id(clock.now()),
        );
        let losses = Losses::new(clock.now());
        Arc::new(Self {
            clock,
            database,
            ground,
            facts,
            catalogue,
            live_tokens,
            uses: Uses::default(),
            running: Arc::default(),
            imports: Arc::new(Semaphore::new(CONCURRENT_IMPORTS)),
            exports: Arc::new(Semaphore::new(CONCURRENT_EXPORTS)),
            feed,
            metrics,
            losses,
            refusals: Refusals::default(),
            policy,
            left_out_told: Mutex::default(),
        })
    }

    /// Watches for changes made elsewhere, and does what is done from time to time, until the set is dropped. A service that is not alone on its database must
    /// be watching before it answers anything.
    ///
    /// # Errors
    ///
    /// [`store::Error::Unavailable`] when the database cannot be asked. It is told as the store's: whoever starts during
    /// an outage knows it by that, and tries again.
    pub async fn watch(self: &Arc<Self>, settings: FeedSettings) -> store::Result<JoinSet<()>> {
        let mut tasks = self.feed.watch(settings).await?;
        tasks.spawn(Arc::clone(self).go_on_writing_uses());
        tasks.spawn(Arc::clone(self).go_on_pruning());
        Ok(tasks)
    }

    /// The metrics of this service.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The present, as the service sees it.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Whether the service can decide: the catalogue has been read. Readiness outlives the database, for as long as
    /// cached answers can be given.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when it cannot.
    pub async fn check_ready(&self) -> Result<()> {
        match self.catalogue.get(self.policy.hook_timeout).await {
            Found::Fresh(_) | Found::Stale(_) => Ok(()),
            Found::Unknown => Err(Error::Unknown),
        }
    }

    /// The metrics in the text format of Prometheus, with the gauges read now.
    #[must_use]
    pub fn render_metrics(&self) -> String {
        self.metrics.observe_pools(&self.database.pool_use());
        self.metrics.observe_cache(&self.facts.size());
        let silence = self.ground.trust.silence(Instant::now());
        self.metrics.observe_feed(silence, TRUST_FOR, self.ground.breaker.is_open());
        self.metrics.render()
    }

    /// Closes the database, after what is under way.
    pub async fn close(&self) {
        self.write_last_uses().await;
        self.database.close().await;
    }

    /// Commits the writes of a transaction, then makes sure that no request which starts after the answer sees facts
    /// from before it. `seqs` are the places of its changes.
    ///
    /// The cache is told whatever the commit came to: an error may hide that it was done.
    async fn commit(
        self: &Arc<Self>,
        commit: impl Future<Output = store::Result<()>> + Send + 'static,
        seqs: Vec<i64>,
        touched: Vec<Touched>,
    ) -> Result<()> {
        self.feed.making(&seqs);
        let (service, (sender, answered)) = (Arc::clone(self), oneshot::channel());
        // A task of its own, whoever still waits: past the deadline the commit may still be done, and what was read until
        // then would be kept as if it were newer. It tells the cache then, and again when it ends.
        tokio::spawn(async move {
            let mut commit = pin!(commit);
            let in_time = tokio::time::timeout(COMMIT_TIMEOUT, commit.as_mut()).await;
            let (committed, waiting) = if let Ok(committed) = in_time {
                (committed, Some(sender))
            } else {
                service.feed.unsure_of(&seqs);
                service.tell(&touched).await;
                // Who waited may have gone.
                let _ = sender.send(Err(Error::TimedOut));
                (commit.await, None)
            };
            if committed.is_err() {
                service.feed.unsure_of(&seqs);
            }
            service.tell(&touched).await;
            if let Some(waiting) = waiting {
                let _ = waiting.send(committed.map_err(Error::from));
            }
        });
        // Without an answer the task has come to an end by itself, which is as good as none in time.
        answered.await.unwrap_or(Err(Error::TimedOut))
    }

    /// Tells the cache, and other replicas soon, of what was committed.
    async fn tell(self: &Arc<Self>, touched: &[Touched]) {
        if apart::has_stepped_back() {
            let (service, touched) = (Arc::clone(self), touched.to_vec());
            apart::on_service_runtime(async move { service.tell_here(&touched).await }).await;
        } else {
            self.tell_here(touched).await;
        }
    }

    async fn tell_here(&self, touched: &[Touched]) {
        for touched in touched {
            match touched {
                Touched::Subject(subject) => self.facts.changed(subject),
                Touched::Catalogue => {
                    self.catalogue.changed();
                    // Read before the answer, so that the rules are known even if the database goes away right after.
                    self.catalogue.get(self.policy.hook_timeout).await;
                }
                Touched::Tokens => {
                    self.live_tokens.changed();
                    self.live_tokens.get(TOKENS_TIMEOUT).await;
                }
            }
        }
        self.feed.committed();
        if touched.len() > 1 {
            // The feed shows those of an import now, and not with others of a whole second, too many to name.
            self.feed.look_soon();
        }
    }
}

/// An id that ascends with `now` and cannot be guessed.
#[must_use]
pub fn new_id(now: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
}

/// The same for many writes, which take longer.
async fn all_to_their_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match trace::during("write many", tokio::spawn(tokio::time::timeout(BULK_TIMEOUT, work))).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::TimedOut),
        Err(error) => Err(Error::Aborted(error)),
    }
}

/// Runs a write to its end even when the one who asked for it hangs up: one that is dropped half-way leaves a
/// transaction open and, committed or not, a cache that was not told.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let work = tokio::spawn(tokio::time::timeout(WRITE_TIMEOUT, work));
    match trace::during("write", tokio::time::timeout(API_TIMEOUT, work)).await {
        Ok(Ok(Ok(result))) => result,
        Ok(Err(error)) => Err(Error::Aborted(error)),
        Ok(Ok(Err(_))) | Err(_) => Err(Error::TimedOut),
    }
}

/// Reads, for no longer than the management API waits.
async fn in_time<T>(read: impl Future<Output = store::Result<T>>) -> Result<T> {
    let read = trace::during("read", tokio::time::timeout(API_TIMEOUT, read)).await;
    Ok(read.unwrap_or_else(|_| Err(store::Error::unavailable("no answer came in time")))?)
}

/// An error and all that lies behind it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing into a string does not fail.
        let _ = write!(line, ": {error}");
        source = error.source();
    }
    line
}
