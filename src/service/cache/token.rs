//! The live tokens of the management API, which every request to it asks for.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Ground, SnapshotCache};
use crate::{
    domain::token::Token,
    service::Clock,
    store::{self, token::Digest},
};

/// How long tokens stay in memory after they expired: a clock may be set back by less unnoticed.
pub const KEPT_AFTER_EXPIRY: TimeDelta = TimeDelta::minutes(1);

/// The tokens that are live, or were a moment ago, by the digest of their secret.
///
/// It tells nothing of the digests: what is looked up was hashed before, so neither the time that it takes nor what it
/// finds tells a caller how to come nearer to one.
#[derive(Debug)]
pub struct LiveTokens {
    /// The present when they were read: none that was live then is missing.
    pub read_at: DateTime<Utc>,
    /// The tokens.
    pub tokens: HashMap<Digest, Token>,
}

/// The live tokens.
pub type TokenCache = SnapshotCache<LiveTokens>;

/// The live tokens, unloaded.
pub fn token_cache(ground: Arc<Ground>, clock: Arc<dyn Clock>) -> Arc<TokenCache> {
    SnapshotCache::new("read tokens", ground, move |ground| {
        let clock = Arc::clone(&clock);
        Box::pin(async move {
            let read_at = clock.now();
            let load = async |lane: &mut _| store::token::load(lane, read_at - KEPT_AFTER_EXPIRY).await;
            let tokens = ground.database.views().run(ground.query_timeout, load).await?;
            Ok(LiveTokens { read_at, tokens: tokens.into_iter().collect() })
        })
    })
}
