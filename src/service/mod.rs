//! Use cases: read the clock once, open the transaction, ask the domain, write, record the change, commit, bump.
//!
//! Architecture invariant: nothing here knows HTTP, and SQL stands in `store` alone. Every write is one visible
//! transaction, and no call leaves the process between its begin and its commit. A write is answered only after the
//! cache was told of it ([`Service::commit`]): the order in which promise 1 of [`cache`] lies.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    domain::{decision::Unmanaged, subject::Subject},
    store::{self, Database},
};

pub mod cache;
pub mod catalogue;
pub mod clock;
pub mod decision;
pub mod demo;
pub mod entitlement;
pub mod error;
pub mod metrics;
pub mod subscription;

use cache::{CatalogueCache, FactsCache};
pub use clock::{Clock, SystemClock};
pub use error::{Error, Result};
pub use metrics::Metrics;

/// What an operator decides about the rules.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// What happens to scopes that are not in the catalogue.
    pub unmanaged: Unmanaged,
    /// How long facts are believed without asking again: it bounds how long a write by hand in the database goes
    /// unnoticed.
    pub max_age: Duration,
}

/// Where a write came from, for the record of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name of the credential that asked for it.
    pub actor: String,
    /// The id of the request.
    pub request_id: String,
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
enum Touched<'a> {
    Subject(&'a Subject),
    Catalogue,
}

/// The use cases, with what they work on.
#[derive(Debug)]
pub struct Service {
    clock: Arc<dyn Clock>,
    database: Database,
    facts: Arc<FactsCache>,
    catalogue: Arc<CatalogueCache>,
    metrics: Arc<Metrics>,
    policy: Policy,
}

impl Service {
    /// The use cases on a database.
    #[must_use]
    pub fn new(database: Database, clock: Arc<dyn Clock>, metrics: Arc<Metrics>, policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            facts: FactsCache::new(database.clone(), Arc::clone(&metrics), policy.max_age),
            catalogue: CatalogueCache::new(database.clone(), Arc::clone(&metrics), policy.max_age),
            clock,
            database,
            metrics,
            policy,
        })
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

    /// Whether the service can decide: the catalogue is known and the database answers.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn check_ready(&self) -> Result<()> {
        self.database.ping().await?;
        self.catalogue.get().await?;
        Ok(())
    }

    /// The metrics in the text format of Prometheus, with the gauges read now.
    #[must_use]
    pub fn render_metrics(&self) -> String {
        self.metrics.observe_pools(&self.database.pool_use());
        self.metrics.observe_cache(&self.facts.size());
        self.metrics.render()
    }

    /// Closes the database, after what is under way.
    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Commits a write, then makes sure that no request which starts after the answer sees facts from before it.
    ///
    /// When nobody can tell whether the commit was done, the cache is told as if it had been.
    async fn commit(&self, transaction: DatabaseTransaction, touched: Touched<'_>) -> Result<()> {
        let committed = store::database::commit(transaction).await;
        if matches!(committed, Ok(()) | Err(store::Error::OutcomeUnknown(_))) {
            match touched {
                Touched::Subject(subject) => self.facts.changed(subject),
                Touched::Catalogue => self.catalogue.changed(),
            }
        }
        Ok(committed?)
    }
}

/// An id that ascends with `now` and cannot be guessed.
#[must_use]
pub fn new_id(now: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
}

/// Runs a use case to its end even when the one who asked for it hangs up: a write that is dropped half-way leaves a
/// transaction open and, committed or not, a cache that was not told.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Aborted(error)),
    }
}
