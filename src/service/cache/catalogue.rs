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

use crate::{
    domain::catalogue::Catalogue,
    service::{
        error::{Error, Result},
        metrics::Metrics,
    },
    store::{self, Database},
};

#[derive(Debug)]
struct Snapshot {
    catalogue: Arc<Catalogue>,
    generation: u64,
    asked_at: Instant,
}

/// The managed scopes and their rules.
#[derive(Debug)]
pub struct CatalogueCache {
    database: Database,
    metrics: Arc<Metrics>,
    max_age: Duration,
    generation: AtomicU64,
    snapshot: ArcSwapOption<Snapshot>,
    /// Held while a snapshot is loaded, so that loads follow one another and none stores older rules over newer ones.
    loading: Mutex<()>,
}

impl CatalogueCache {
    /// An unloaded catalogue of a database.
    pub fn new(database: Database, metrics: Arc<Metrics>, max_age: Duration) -> Arc<Self> {
        Arc::new(Self {
            database,
            metrics,
            max_age,
            generation: AtomicU64::new(0),
            snapshot: ArcSwapOption::empty(),
            loading: Mutex::new(()),
        })
    }

    /// The catalogue, not older than any write that was answered before the call.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when it is not known and the database cannot be asked.
    pub async fn get(self: &Arc<Self>) -> Result<Arc<Catalogue>> {
        if let Some(catalogue) = self.fresh() {
            return Ok(catalogue);
        }
        // A task of its own: whoever hangs up must not cancel what others wait for.
        match tokio::spawn(Arc::clone(self).load()).await {
            Ok(loaded) => loaded,
            Err(error) => Err(Error::Aborted(error)),
        }
    }

    /// Tells that a change of the catalogue was committed. Whoever asks from now on gets rules that were read since.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn fresh(&self) -> Option<Arc<Catalogue>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_fresh =
            snapshot.generation == self.generation.load(Ordering::SeqCst) && snapshot.asked_at.elapsed() < self.max_age;
        is_fresh.then(|| Arc::clone(&snapshot.catalogue))
    }

    async fn load(self: Arc<Self>) -> Result<Arc<Catalogue>> {
        let _loading = self.loading.lock().await;
        // Another one may have loaded it while this one waited.
        if let Some(catalogue) = self.fresh() {
            return Ok(catalogue);
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let asked_at = Instant::now();
        let loaded = store::catalogue::load(self.database.hooks()).await;
        let catalogue = Arc::new(loaded.inspect_err(|error| self.metrics.count_database_error(error))?);
        let snapshot = Snapshot { catalogue: Arc::clone(&catalogue), generation, asked_at };
        self.snapshot.store(Some(Arc::new(snapshot)));
        Ok(catalogue)
    }
}
