//! A snapshot of all that a table holds, with a generation of its own: for what is small and asked for by every request.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::{Found, Ground};
use crate::{service::trace, store};

/// Reads what a snapshot is of.
type Read<T> = Box<dyn Fn(Arc<Ground>) -> BoxFuture<'static, store::Result<T>> + Send + Sync>;

#[derive(Debug)]
struct Snapshot<T> {
    value: Arc<T>,
    generation: u64,
    epoch: u64,
    asked_at: Instant,
}

/// A value that is read as a whole, and known until it changes.
pub struct SnapshotCache<T> {
    /// What reading it is called in traces.
    name: &'static str,
    ground: Arc<Ground>,
    read: Read<T>,
    /// Counts the known changes.
    generation: AtomicU64,
    /// Counts the times when a change may have been missed.
    epoch: AtomicU64,
    snapshot: ArcSwapOption<Snapshot<T>>,
    /// Counts the loads that were begun.
    attempts: AtomicU64,
    /// The number of the last one that failed.
    failed: AtomicU64,
    /// Held while a snapshot is loaded, so that loads follow one another and none stores an older one over a newer one.
    loading: Mutex<()>,
}

impl<T> fmt::Debug for SnapshotCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotCache").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> SnapshotCache<T> {
    /// An unloaded snapshot, and what loads it.
    pub fn new(
        name: &'static str,
        ground: Arc<Ground>,
        read: impl Fn(Arc<Ground>) -> BoxFuture<'static, store::Result<T>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            ground,
            read: Box::new(read),
            generation: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            snapshot: ArcSwapOption::empty(),
            attempts: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            loading: Mutex::new(()),
        })
    }

    /// The value, not older than any write that was answered before the call. It takes no longer than `timeout`.
    pub async fn get(self: &Arc<Self>, timeout: Duration) -> Found<Arc<T>> {
        let now = Instant::now();
        self.get_until(now, now + timeout).await
    }

    /// The same, for who asks at `now` and waits until the deadline.
    pub async fn get_until(self: &Arc<Self>, now: Instant, deadline: Instant) -> Found<Arc<T>> {
        if let Some(value) = self.fresh(now) {
            return Found::Fresh(value);
        }
        if self.ground.breaker.allows(now) {
            // A task of its own: whoever hangs up must not cancel what others wait for.
            let load = tokio::spawn(Arc::clone(self).load(self.attempts.load(Ordering::SeqCst), now));
            let load = tokio::time::timeout_at(deadline.into(), load);
            if let Ok(Ok(Ok(value))) = Box::pin(trace::during(self.name, load)).await {
                return Found::Fresh(value);
            }
        }
        self.stale().map_or(Found::Unknown, Found::Stale)
    }

    /// The value as it was last read, however long ago, unless a change of it is known: enough to tell that a scope is
    /// not in the catalogue.
    pub fn last(&self) -> Option<Arc<T>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        self.is_unchanged(snapshot).then(|| Arc::clone(&snapshot.value))
    }

    /// Tells that a change was committed. Whoever asks from now on gets what was read since.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Tells that a change may have been missed.
    pub fn doubt(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    fn fresh(&self, now: Instant) -> Option<Arc<T>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let is_fresh = self.is_current(snapshot) && now < self.ground.right_until(snapshot.asked_at);
        is_fresh.then(|| Arc::clone(&snapshot.value))
    }

    /// What was read since an instant, which is right for whoever asked at that instant, even while changes made
    /// elsewhere are not heard of.
    fn read_since(&self, instant: Instant) -> Option<Arc<T>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        (self.is_current(snapshot) && snapshot.asked_at >= instant).then(|| Arc::clone(&snapshot.value))
    }

    /// What was right a while ago: with no change known, and not for too long.
    fn stale(&self) -> Option<Arc<T>> {
        let snapshot = self.snapshot.load();
        let snapshot = snapshot.as_ref()?;
        let right_until = if snapshot.epoch == self.epoch.load(Ordering::SeqCst) {
            self.ground.right_until(snapshot.asked_at)
        } else {
            // Since when it may be wrong is not known.
            snapshot.asked_at
        };
        let is_usable = self.is_unchanged(snapshot) && Instant::now() < right_until + self.ground.ages.max_stale;
        is_usable.then(|| Arc::clone(&snapshot.value))
    }

    fn is_unchanged(&self, snapshot: &Snapshot<T>) -> bool {
        snapshot.generation == self.generation.load(Ordering::SeqCst)
    }

    fn is_current(&self, snapshot: &Snapshot<T>) -> bool {
        self.is_unchanged(snapshot) && snapshot.epoch == self.epoch.load(Ordering::SeqCst)
    }

    async fn load(self: Arc<Self>, seen: u64, asked_since: Instant) -> store::Result<Arc<T>> {
        let _loading = self.loading.lock().await;
        // Another one may have loaded it while this one waited.
        if let Some(value) = self.fresh(Instant::now()).or_else(|| self.read_since(asked_since)) {
            return Ok(value);
        }
        if self.failed.load(Ordering::SeqCst) > seen {
            // One that began after this one was asked for got no answer: neither would this one, and many may wait.
            return Err(store::Error::unavailable("the database was asked in vain"));
        }
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        let generation = self.generation.load(Ordering::SeqCst);
        let epoch = self.epoch.load(Ordering::SeqCst);
        let asked_at = Instant::now();
        let loaded = (self.read)(Arc::clone(&self.ground)).await;
        self.ground.note(&loaded);
        let value = Arc::new(loaded.inspect_err(|_| self.failed.store(attempt, Ordering::SeqCst))?);
        let snapshot = Snapshot { value: Arc::clone(&value), generation, epoch, asked_at };
        self.snapshot.store(Some(Arc::new(snapshot)));
        Ok(value)
    }
}
