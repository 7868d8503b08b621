//! The facts of subjects, and the loads that fetch them.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use moka::sync::Cache;
use tokio::sync::oneshot;

use super::generations::{Generations, Stamp};
use crate::{
    domain::{facts::Facts, subject::Subject},
    service::{
        error::{Error, Result},
        metrics::Metrics,
    },
    store::{self, Database},
};

/// Room for the facts of subjects that hold something: about a million of them with a subscription or two each.
const HELD_BYTES: u64 = 512 * 1024 * 1024;
/// Room for the knowledge that a subject holds nothing, apart: a flood of random ids cannot evict paying ones.
const ABSENT_BYTES: u64 = 32 * 1024 * 1024;
/// What an entry takes beside its subject and its facts: its own fields and the map's bookkeeping, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 256;
/// Queries under way at once: enough to keep the database busy, few enough that a cold start does not flood it. While
/// they are under way, further misses gather for the next query.
const CONCURRENT_LOADS: usize = 4;
/// Subjects asked for in one query: it bounds the time that the first of them waits for the last.
const LOAD_BATCH: usize = 512;

/// What a load came to: the facts, or the error of the one query that several requests may have waited for.
type Loaded = std::result::Result<Arc<Facts>, Arc<store::Error>>;

#[derive(Debug)]
struct Entry {
    facts: Arc<Facts>,
    /// The knowledge that the facts were read at.
    stamp: Stamp,
    /// When their query began.
    asked_at: Instant,
}

/// The loads that are waited for.
#[derive(Debug, Default)]
struct Loads {
    /// Subjects that no query has taken yet.
    queue: HashMap<Subject, Vec<oneshot::Sender<Loaded>>>,
    /// Subjects that a query under way asks for, each with the stamp that was taken before the query began.
    flights: HashMap<(Subject, Stamp), Vec<oneshot::Sender<Loaded>>>,
    /// How many queries are under way.
    running: usize,
}

/// How full the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Subjects that hold something.
    pub held: u64,
    /// Bytes of these, as weighed.
    pub held_bytes: u64,
    /// Subjects known to hold nothing.
    pub absent: u64,
    /// Bytes of these, as weighed.
    pub absent_bytes: u64,
}

/// The facts of subjects.
#[derive(Debug)]
pub struct FactsCache {
    database: Database,
    metrics: Arc<Metrics>,
    max_age: Duration,
    generations: Generations,
    held: Cache<Subject, Arc<Entry>>,
    absent: Cache<Subject, Arc<Entry>>,
    /// Entries are written under this lock, so none can overtake another.
    loads: Mutex<Loads>,
}

impl FactsCache {
    /// An empty cache over a database.
    pub fn new(database: Database, metrics: Arc<Metrics>, max_age: Duration) -> Arc<Self> {
        let bounded = |bytes| Cache::builder().max_capacity(bytes).weigher(weight).build();
        Arc::new(Self {
            database,
            metrics,
            max_age,
            generations: Generations::new(),
            held: bounded(HELD_BYTES),
            absent: bounded(ABSENT_BYTES),
            loads: Mutex::default(),
        })
    }

    /// The facts of each of these subjects, none of them older than any write that was answered before the call.
    ///
    /// # Errors
    ///
    /// [`Error::Facts`] when they are not known and the database cannot be asked.
    pub async fn get(self: &Arc<Self>, subjects: &[Subject]) -> Result<Vec<Arc<Facts>>> {
        let known: Vec<_> = subjects.iter().map(|subject| self.fresh(subject)).collect();
        let hits = known.iter().flatten().count();
        self.metrics.count_cache_lookups(hits, subjects.len() - hits);
        if hits == subjects.len() {
            return Ok(known.into_iter().flatten().collect());
        }
        let waiting: Vec<_> = {
            let mut loads = self.lock_loads();
            let mut wait = |subject, known| match known {
                Some(facts) => Wait::Known(facts),
                None => self.wait_for(&mut loads, subject),
            };
            let waiting = subjects.iter().zip(known).map(|(subject, known)| wait(subject, known)).collect();
            self.start_loads(&mut loads);
            waiting
        };
        let mut facts = Vec::with_capacity(subjects.len());
        for wait in waiting {
            facts.push(match wait {
                Wait::Known(facts) => facts,
                // The sender is only dropped unused when the runtime shuts down.
                Wait::For(loaded) => {
                    loaded.await.unwrap_or_else(|_| Err(Arc::new(shut_down()))).map_err(Error::Facts)?
                }
            });
        }
        Ok(facts)
    }

    /// Tells that a change of the subject was committed. Whoever asks from now on gets facts that were read since.
    pub fn changed(&self, subject: &Subject) {
        self.generations.changed(subject);
    }

    /// How full the cache is.
    pub fn size(&self) -> CacheSize {
        CacheSize {
            held: self.held.entry_count(),
            held_bytes: self.held.weighted_size(),
            absent: self.absent.entry_count(),
            absent_bytes: self.absent.weighted_size(),
        }
    }

    fn entry(&self, subject: &Subject) -> Option<Arc<Entry>> {
        self.held.get(subject).or_else(|| self.absent.get(subject))
    }

    fn fresh(&self, subject: &Subject) -> Option<Arc<Facts>> {
        let entry = self.entry(subject)?;
        let is_fresh = entry.stamp == self.generations.stamp(subject) && entry.asked_at.elapsed() < self.max_age;
        is_fresh.then(|| Arc::clone(&entry.facts))
    }

    /// Joins the query under way that began at the present stamp, or the next one: never one that began before a
    /// change which is known by now.
    fn wait_for(&self, loads: &mut Loads, subject: &Subject) -> Wait {
        // A load may have ended since the caller looked.
        if let Some(facts) = self.fresh(subject) {
            return Wait::Known(facts);
        }
        let (sender, receiver) = oneshot::channel();
        let flight = (subject.clone(), self.generations.stamp(subject));
        match loads.flights.get_mut(&flight) {
            Some(waiters) => waiters.push(sender),
            None => loads.queue.entry(flight.0).or_default().push(sender),
        }
        Wait::For(receiver)
    }

    fn start_loads(self: &Arc<Self>, loads: &mut Loads) {
        if !loads.queue.is_empty() && loads.running < CONCURRENT_LOADS {
            loads.running += 1;
            // A task of its own: whoever hangs up must not cancel what others wait for.
            tokio::spawn(Arc::clone(self).run_loads());
        }
    }

    /// Loads what is queued, batch after batch, until nothing is.
    async fn run_loads(self: Arc<Self>) {
        while let Some(batch) = self.take_batch() {
            let subjects: Vec<Subject> = batch.iter().map(|(subject, _)| subject.clone()).collect();
            let asked_at = Instant::now();
            let database = self.database.clone();
            // In a task, so that a panic below would end as an error for those who wait, and not as silence.
            let loading = tokio::spawn(async move { store::facts::load(database.hooks(), &subjects).await });
            let loaded = loading.await.unwrap_or_else(|_| Err(shut_down()));
            self.finish(batch, loaded, asked_at);
        }
    }

    /// Takes subjects off the queue, with the stamps that their query begins at; none when the queue is empty.
    fn take_batch(&self) -> Option<Vec<(Subject, Stamp)>> {
        let mut loads = self.lock_loads();
        if loads.queue.is_empty() {
            loads.running -= 1;
            return None;
        }
        let mut queue = mem::take(&mut loads.queue);
        if queue.len() > LOAD_BATCH {
            let later: Vec<_> = queue.keys().skip(LOAD_BATCH).cloned().collect();
            loads.queue = later.into_iter().filter_map(|subject| queue.remove_entry(&subject)).collect();
        }
        let batch = queue.into_iter().map(|(subject, waiters)| {
            let flight = (subject.clone(), self.generations.stamp(&subject));
            loads.flights.entry(flight.clone()).or_default().extend(waiters);
            flight
        });
        Some(batch.collect())
    }

    /// Keeps what a query found, and hands it to those who waited for it.
    fn finish(&self, batch: Vec<(Subject, Stamp)>, loaded: store::Result<Vec<Facts>>, asked_at: Instant) {
        let loaded: Box<dyn Iterator<Item = Loaded>> = match loaded {
            Ok(facts) => Box::new(facts.into_iter().map(|facts| Ok(Arc::new(facts)))),
            Err(error) => {
                self.metrics.count_database_error(&error);
                Box::new(std::iter::repeat(Err(Arc::new(error))))
            }
        };
        let mut answers = Vec::with_capacity(batch.len());
        let mut loads = self.lock_loads();
        for (flight, loaded) in batch.into_iter().zip(loaded) {
            let waiters = loads.flights.remove(&flight).unwrap_or_default();
            if let Ok(facts) = &loaded {
                let (subject, stamp) = flight;
                self.keep(subject, Entry { facts: Arc::clone(facts), stamp, asked_at });
            }
            answers.push((waiters, loaded));
        }
        drop(loads);
        for (waiters, loaded) in answers {
            for waiter in waiters {
                // Whoever hung up does not need the answer.
                let _ = waiter.send(loaded.clone());
            }
        }
    }

    /// Keeps facts, unless newer ones are there. Called under the lock of `loads` only.
    fn keep(&self, subject: Subject, entry: Entry) {
        if self.entry(&subject).is_some_and(|there| !entry.stamp.supersedes(there.stamp)) {
            return;
        }
        let (here, other) =
            if entry.facts.is_empty() { (&self.absent, &self.held) } else { (&self.held, &self.absent) };
        other.invalidate(&subject);
        here.insert(subject, Arc::new(entry));
    }

    /// The lock of the loads. Nothing panics while it is held, so what a poisoned one guards is still whole.
    fn lock_loads(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Facts that a request has, or waits for.
enum Wait {
    Known(Arc<Facts>),
    For(oneshot::Receiver<Loaded>),
}

fn weight(subject: &Subject, entry: &Arc<Entry>) -> u32 {
    let bytes = ENTRY_OVERHEAD_BYTES + subject.id.as_str().len() + entry.facts.heap_bytes();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn shut_down() -> store::Error {
    store::Error::Unavailable(sea_orm::DbErr::Custom("the load was aborted".to_owned()))
}
