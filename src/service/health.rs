//! How this process is doing, for a person who looks; tools read the metrics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Service, cache::TRUST_FOR, metrics::Freshness, refusals::Refusal};

/// How this process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a sign of its own")]
pub struct Health {
    /// Whether it can decide.
    pub is_ready: bool,
    /// How long it has heard nothing of changes made elsewhere; none where nobody else writes.
    pub silence: Option<Duration>,
    /// Whether what it has cached counts as fresh, as far as that goes.
    pub is_trusted: bool,
    /// Whether it does not ask the database for a moment, as that gave no answers.
    pub is_breaker_open: bool,
    /// Whether the database answers just now.
    pub database_answers: bool,
    /// How many decisions rested on how fresh facts, since it began.
    pub answers: [(Freshness, u64); Freshness::ALL.len()],
    /// Subjects in the cache that hold something, and that hold nothing.
    pub cached: [u64; 2],
    /// Bytes that these take.
    pub cached_bytes: u64,
    /// The connections to the database: each pool with how many are open, and how many of these idle.
    pub pools: Vec<(&'static str, u32, u32)>,
    /// The last removals.
    pub refusals: Vec<Refusal>,
}

impl Service {
    /// How this process is doing.
    pub async fn health(self: &Arc<Self>) -> Health {
        let silence = self.ground.trust.silence(Instant::now());
        let size = self.facts.size();
        Health {
            is_ready: self.check_ready().await.is_ok(),
            silence,
            is_trusted: silence.is_none_or(|silence| silence < TRUST_FOR),
            is_breaker_open: self.ground.breaker.is_open(),
            database_answers: self.scopes(None, 1).await.is_ok(),
            answers: self.metrics.answers(),
            cached: [size.held, size.absent],
            cached_bytes: size.held_bytes + size.absent_bytes,
            pools: self.database.pool_use().iter().map(|pool| (pool.pool, pool.open, pool.idle)).collect(),
            refusals: self.refusals.all(),
        }
    }
}
