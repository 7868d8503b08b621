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
    epoch: u64,
    asked_at: Instant,
}

/// The managed scopes and their rules.
#[derive(Debug)]
pub struct CatalogueCache {
    ground: Arc<Ground>,
    /// Counts the known changes.
    generation: AtomicU64,
    /// Counts the times when a change may have been missed.
    epoch: AtomicU64,
    snapshot: ArcSwapOption<Snapshot>,
    /// Counts the loads that were begun.
    attempts: AtomicU64,
    /// The number of the last one that failed.
    failed: AtomicU64,
    /// Held while a snapshot is loaded, so that loads follow one another and none stores older rules over newer ones.
    loading: Mutex<()>,
}

impl CatalogueCache {
    /// An unloaded catalogue.
    pub fn new(ground: Arc<Ground>) -> Arc<Self> {
        Arc::new(Self {
            ground,
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            snapshot: ArcSwapOption::empty(),
            attempts: AtomicU64::new(0),
            failed: AtomicU64::new(0),
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
            let load = tokio::spawn(Arc::clone(self).load(self.attempts.load(Ordering::SeqCst)));
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
        self.is_unchanged(snapshot).then(|| Arc::clone(&snapshot.catalogue))
    }

    /// Tells that a change of the catalogue was committed. Whoever asks from now on gets rules that were read since.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Tells that a change may have been missed.
    pub fn doubt(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    fn fresh(&self, now: Instant) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_fresh = self.is_unchanged(snapshot)
            && snapshot.epoch == self.epoch.load(Ordering::SeqCst)
            && now < self.ground.right_until(snapshot.asked_at);
        is_fresh.then(|| Arc::clone(&snapshot.catalogue))
    }

    /// What was right a while ago: with no change known, and not for too long.
    fn stale(&self) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let right_until = if snapshot.epoch == self.epoch.load(Ordering::SeqCst) {
            self.ground.right_until(snapshot.asked_at)
        } else {
            // Since when it may be wrong is not known.
            snapshot.asked_at
        };
        let is_usable = self.is_unchanged(snapshot) && Instant::now() < right_until + self.ground.ages.max_stale;
        is_usable.then(|| Arc::clone(&snapshot.catalogue))
    }

    fn is_unchanged(&self, snapshot: &Snapshot) -> bool {
        snapshot.generation == self.generation.load(Ordering::SeqCst)
    }

    async fn load(self: Arc<Self>, seen: u64) -> store::Result<Arc<Catalogue>> {
        let _loading = self.loading.lock().await;
        // Another one may have loaded it while this one waited.
        if let Some(catalogue) = self.fresh(Instant::now()) {
            return Ok(catalogue);
        }
        if self.failed.load(Ordering::SeqCst) > seen {
            // One that began after this one was asked for got no answer: neither would this one, and many may wait.
            return Err(store::Error::unavailable("the database was asked in vain"));
        }
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        let generation = self.generation.load(Ordering::SeqCst);
        let epoch = self.epoch.load(Ordering::SeqCst);
        let asked_at = Instant::now();
        let lanes = self.ground.database.hooks();
        let loaded = lanes.run(self.ground.query_timeout, async |lane| store::catalogue::load(lane).await).await;
        self.ground.note(&loaded);
        let catalogue = Arc::new(loaded.inspect_err(|_| self.failed.store(attempt, Ordering::SeqCst))?);
        let snapshot = Snapshot { catalogue: Arc::clone(&catalogue), generation, epoch, asked_at };
        self.snapshot.store(Some(Arc::new(snapshot)));
        Ok(catalogue)
    }
}
