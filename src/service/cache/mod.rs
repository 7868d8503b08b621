//! The cache: facts, not verdicts.
//!
//! What a subject holds changes when somebody writes; whether it is active changes by itself. So the cache keeps the
//! subject's subscriptions as intervals, each request compares them with its own `now`, and no timer can be late.
//!
//! Three promises:
//!
//! 1. A request that starts after a write's success was answered never sees facts read before that commit: not from
//!    an entry, not by joining a load that was under way, not because a slow load was stored late.
//! 2. Entries outlive doubt. What is uncertain is asked again, and not thrown away: when the database cannot be
//!    asked, it is used for as long as the operator allows.
//! 3. An entry is never overwritten by older facts: by ones that know less of what was answered or heard of. What
//!    nobody was told of yet may be known to one load and not to the next.
//!
//! The [`protocol`] keeps them within this process, [`trust`] tells whether the feed of changes made elsewhere is
//! heard, and the [`breaker`] keeps an outage from being asked about by every request.

mod breaker;
mod catalogue;
mod facts;
mod platform;
mod protocol;
mod snapshot;
mod token;
mod trust;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use breaker::Breaker;
pub use catalogue::{CatalogueCache, catalogue_cache};
pub use facts::FactsCache;
pub use platform::CacheSize;
pub use snapshot::SnapshotCache;
pub use token::{KEPT_AFTER_EXPIRY, TokenCache, token_cache};
pub use trust::{TRUST_FOR, Trust};

use super::metrics::Metrics;
use crate::store::{self, Database};

/// How long what was read is believed.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// Without asking again.
    pub max_age: Duration,
    /// When the database cannot be asked, counted from the last instant at which it was known to be right.
    pub max_stale: Duration,
}

/// What caches stand on: those of the hooks on one ground, that of the management API's tokens on another, so that the
/// trouble of one is not the other's.
#[derive(Debug)]
pub struct Ground {
    /// The database.
    pub database: Database,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How long what was read is believed.
    pub ages: Ages,
    /// How long one query may take before it counts as unanswered.
    pub query_timeout: Duration,
    /// Whether changes made elsewhere would be known by now.
    pub trust: Arc<Trust>,
    /// Whether the database is asked at all.
    pub breaker: Breaker,
}

impl Ground {
    /// Until when what was read at an instant is known to be right, were no change of it made known.
    fn right_until(&self, asked_at: Instant) -> Instant {
        let aged = asked_at + self.ages.max_age;
        self.trust.ends_at().map_or(aged, |ends_at| aged.min(ends_at))
    }

    /// Notes how a query ended.
    fn note<T>(&self, answer: &store::Result<T>) {
        match answer {
            Ok(_) => self.breaker.succeeded(),
            Err(error) => {
                self.metrics.count_database_error(error);
                if matches!(error, store::Error::Unavailable(_)) {
                    self.breaker.failed(Instant::now());
                }
            }
        }
    }
}

/// What is known of what was asked for.
#[derive(Debug, Clone)]
pub enum Found<T> {
    /// It is right.
    Fresh(T),
    /// The database cannot be asked. It was right a while ago, and no change of it is known.
    Stale(T),
    /// The database cannot be asked, and nothing is known that may be used.
    Unknown,
}
