//! The catalogue: one snapshot with a generation of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::{Found, Ground};
use crate::{domain::catalogue::Catalogue, store};

#[derive(Debug)]
struct Snapshot {
    catalogue: Arc<Catalogue>,
    generation: u64,
    asked_at: Instant,
}

/// The managed scopes and their rules.
#[derive(Debug)]
pub struct CatalogueCache {
    ground: Arc<Ground>,
    /// Counts the known changes, and the times when one may have been missed.
    generation: AtomicU64,
    snapshot: ArcSwapOption<Snapshot>,
    /// Held while a snapshot is loaded, so that loads follow one another and none stores older rules over newer ones.
    loading: Mutex<()>,
}

impl CatalogueCache {
    /// An unloaded catalogue.
    pub fn new(ground: Arc<Ground>) -> Arc<Self> {
        Arc::new(Self {
            ground,
            generation: AtomicU64::new(0),
            snapshot: ArcSwapOption::empty(),
            loading: Mutex::new(()),
        })
    }

    /// The catalogue, not older than any write that was answered before the call. It takes no longer than `timeout`.
    pub async fn get(self: &Arc<Self>, timeout: Duration) -> Found<Arc<Catalogue>> {
        let now = Instant::now();
        if let Some(catalogue) = self.fresh(now) {
            return Found::Fresh(catalogue);
        }
        if self.ground.breaker.allows(now) {
            // A task of its own: whoever hangs up must not cancel what others wait for.
            let load = tokio::spawn(Arc::clone(self).load());
            if let Ok(Ok(Ok(catalogue))) = tokio::time::timeout(timeout, load).await {
                return Found::Fresh(catalogue);
            }
        }
        self.stale().map_or(Found::Unknown, Found::Stale)
    }

    /// The catalogue as it was last read, however long ago, unless a change of it is known: enough to tell that a scope
    /// is not in it.
    pub fn last(&self) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_unchanged = snapshot.generation == self.generation.load(Ordering::SeqCst);
        is_unchanged.then(|| Arc::clone(&snapshot.catalogue))
    }

    /// Tells that a change of the catalogue was committed, or that one may have been missed. Whoever asks from now on
    /// gets rules that were read since.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn fresh(&self, now: Instant) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_fresh = snapshot.generation == self.generation.load(Ordering::SeqCst)
            && now < self.ground.right_until(snapshot.asked_at);
        is_fresh.then(|| Arc::clone(&snapshot.catalogue))
    }

    /// What was right a while ago: with no change known, and not for too long.
    fn stale(&self) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_usable = snapshot.generation == self.generation.load(Ordering::SeqCst)
            && Instant::now() < self.ground.right_until(snapshot.asked_at) + self.ground.ages.max_stale;
        is_usable.then(|| Arc::clone(&snapshot.catalogue))
    }

    async fn load(self: Arc<Self>) -> store::Result<Arc<Catalogue>> {
        let _loading = self.loading.lock().await;
        // Another one may have loaded it while this one waited.
        if let Some(catalogue) = self.fresh(Instant::now()) {
            return Ok(catalogue);
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let asked_at = Instant::now();
        let lanes = self.ground.database.hooks();
        let loaded = lanes.run(self.ground.query_timeout, async |lane| store::catalogue::load(lane).await).await;
        self.ground.note(&loaded);
        let catalogue = Arc::new(loaded?);
        let snapshot = Snapshot { catalogue: Arc::clone(&catalogue), generation, asked_at };
        self.snapshot.store(Some(Arc::new(snapshot)));
        Ok(catalogue)
    }
}
