//! The managed scopes and their rules, which every hook request asks for.

use std::sync::Arc;

use super::{Ground, SnapshotCache};
use crate::{domain::catalogue::Catalogue, store};

/// The managed scopes and their rules.
pub type CatalogueCache = SnapshotCache<Catalogue>;

/// The catalogue, unloaded.
pub fn catalogue_cache(ground: Arc<Ground>) -> Arc<CatalogueCache> {
    SnapshotCache::new("read catalogue", ground, |ground| {
        Box::pin(async move {
            let lanes = ground.database.hooks();
            lanes.run(ground.query_timeout, async |lane| store::catalogue::load(lane).await).await
        })
    })
}
