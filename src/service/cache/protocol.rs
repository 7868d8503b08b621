//! The protocol of the cache: stamps, entries, loads. It neither waits nor asks a database, so a model checker can
//! run every interleaving of it (`model/`).
//!
//! A *stamp* is the state of knowledge at an instant: it moves on with every known change of the subject, and every
//! time that changes may have been missed. A load takes the stamp before its query begins, and what it finds is kept
//! with that stamp. A writer commits, moves the stamp, and only then answers. So facts whose stamp is still the
//! present one know of every write that was answered before now.
//!
//! The stamps of all subjects stand in a limited number of counters. So that an import of subjects nobody asks for does
//! not make everything be asked again, a change moves the stamp only if the subject has an entry, or a load under way may
//! have asked for it: whatever begins later reads what was committed.

use std::{hash::BuildHasher as _, mem};

use super::platform::{
    AtomicU64, CROWD, Entries, FLIGHT_COUNTERS, HashMap, Instant, Key, KeyRef, Mutex, MutexGuard, Ordering,
    PoisonError, RandomState, STRIPES, Value, Waiter, borrowed, rules,
};

/// The state of knowledge about a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Counts the known changes of the subjects of one stripe.
    generation: u64,
    /// Counts the times when changes may have been missed.
    epoch: u64,
}

impl Stamp {
    /// Whether facts of this stamp may take the place of facts of another: they know all that these knew.
    pub fn supersedes(self, other: Self) -> bool {
        self.generation >= other.generation && self.epoch >= other.epoch
    }
}

/// Facts, and the knowledge that they were read at.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The facts.
    pub value: Value,
    /// The stamp that was taken before their query began.
    pub stamp: Stamp,
    /// When their query began.
    pub asked_at: Instant,
}

/// How an entry's stamp stands to the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Currency {
    /// No change has been answered since.
    Current,
    /// No change is known of, but one may have been missed.
    Unsure,
    /// A change was made since.
    Outdated,
}

/// How a subject that was asked for will be answered.
pub enum Enlisted {
    /// It is known by now.
    Known(Value),
    /// A load, under way or to come, will answer.
    Waiting,
}

/// The loads that are waited for.
#[derive(Debug)]
struct Loads {
    /// Subjects that no query has taken yet.
    queue: HashMap<Key, Vec<Waiter>>,
    /// Subjects that a query under way asks for, each with the stamp that was taken before the query began.
    flights: HashMap<(Key, Stamp), Vec<Waiter>>,
    /// How many queries are under way.
    running: usize,
}

/// The cache without what it runs on.
#[derive(Debug)]
pub struct Protocol {
    stripes: Box<[AtomicU64]>,
    /// Subjects whose loads are under way, from before the query begins until what it found is kept.
    flying: Box<[AtomicU64]>,
    epoch: AtomicU64,
    hasher: RandomState,
    /// Written under the lock of `loads` only, so that no store overtakes another.
    entries: Entries,
    loads: Mutex<Loads>,
}

impl Protocol {
    /// A cache that holds nothing.
    pub fn empty() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            flying: (0..FLIGHT_COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            epoch: AtomicU64::new(0),
            hasher: RandomState::default(),
            entries: Entries::default(),
            loads: Mutex::new(Loads { queue: HashMap::default(), flights: HashMap::default(), running: 0 }),
        }
    }

    /// The entries.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The entry of a subject, and how it stands to the present.
    pub fn look_up(&self, key: KeyRef<'_>) -> Option<(Entry, Currency)> {
        let entry = self.entries.get(key)?;
        let present = self.stamp(key);
        let currency = if entry.stamp == present {
            Currency::Current
        } else if entry.stamp.generation == present.generation {
            Currency::Unsure
        } else {
            Currency::Outdated
        };
        Some((entry, currency))
    }

    /// Tells that a change of the subject was committed. Whoever looks from now on gets facts that were read since.
    pub fn changed(&self, key: &Key) {
        let key = borrowed(key);
        let is_flying = || self.flying(key).load(Ordering::SeqCst) > 0;
        let is_kept = || self.entries.contains(key);
        let matters = if rules::changes_look_at_loads_first() {
            // A load that is not under way any more has kept what it found.
            is_flying() || is_kept()
        } else {
            let is_kept = is_kept();
            is_flying() || is_kept
        };
        if matters {
            self.stripe(key).fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Tells that so many subjects were changed that naming them is not worth it.
    pub fn all_changed(&self) {
        for stripe in &self.stripes {
            stripe.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Tells that changes may have been missed.
    pub fn doubt(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets each waiter wait for the facts of its subject: from the query under way that began at the present stamp, or
    /// from the next one. Answers whether another runner of loads has to be started.
    pub fn enlist(
        &self,
        wanted: impl IntoIterator<Item = (Key, Waiter)>,
        is_good: impl Fn(&Entry, Currency) -> bool,
        most_running: usize,
    ) -> (Vec<Enlisted>, bool) {
        let mut loads = self.lock();
        let enlisted = wanted
            .into_iter()
            .map(|(key, waiter)| {
                // A load may have ended since the caller looked.
                if let Some((entry, currency)) = self.look_up(borrowed(&key))
                    && is_good(&entry, currency)
                {
                    return Enlisted::Known(entry.value);
                }
                let present = self.stamp(borrowed(&key));
                loads.wait(key, present, waiter);
                Enlisted::Waiting
            })
            .collect();
        // One runner takes all that gathers while its query is under way; more of them help only where much gathers.
        let start = loads.queue.len() > loads.running * CROWD && loads.running < most_running;
        if start {
            loads.running += 1;
        }
        (enlisted, start)
    }

    /// Takes at most `most` subjects off the queue, with the stamps that their query begins at. None ends the runner.
    pub fn take_batch(&self, most: usize) -> Option<Vec<(Key, Stamp)>> {
        let mut loads = self.lock();
        if loads.queue.is_empty() {
            loads.running -= 1;
            return None;
        }
        let mut queue = mem::take(&mut loads.queue);
        if queue.len() > most {
            let later: Vec<_> = queue.keys().skip(most).cloned().collect();
            loads.queue = later.into_iter().filter_map(|key| queue.remove_entry(&key)).collect();
        }
        let take_off = |(key, waiters): (Key, Vec<Waiter>)| {
            self.flying(borrowed(&key)).fetch_add(1, Ordering::SeqCst);
            let flight = (key.clone(), self.stamp(borrowed(&key)));
            loads.flights.entry(flight.clone()).or_default().extend(waiters);
            flight
        };
        Some(queue.into_iter().map(take_off).collect())
    }

    /// Ends the query of a batch: keeps what it found, unless newer facts are there, and gives back who waited for it.
    /// `values` holds one for each subject of the batch, or none where it could not be read.
    pub fn finish(
        &self,
        batch: Vec<(Key, Stamp)>,
        values: impl IntoIterator<Item = Option<Value>>,
        asked_at: Instant,
    ) -> Vec<(Vec<Waiter>, Option<Value>)> {
        let mut loads = self.lock();
        let mut values = values.into_iter();
        batch
            .into_iter()
            .map(|flight| {
                let waiters = loads.flights.remove(&flight).unwrap_or_default();
                let value = values.next().flatten();
                let land = || self.flying(borrowed(&flight.0)).fetch_sub(1, Ordering::SeqCst);
                if !rules::loads_are_under_way_until_they_are_kept() {
                    land();
                }
                if let Some(value) = &value {
                    self.keep(borrowed(&flight.0), value.clone(), flight.1, asked_at);
                }
                if rules::loads_are_under_way_until_they_are_kept() {
                    land();
                }
                (waiters, value)
            })
            .collect()
    }

    /// Called under the lock of `loads` only.
    fn keep(&self, key: KeyRef<'_>, value: Value, stamp: Stamp, asked_at: Instant) {
        let stamp = if rules::stamp_comes_before_the_query() { stamp } else { self.stamp(key) };
        if rules::older_facts_do_not_overwrite()
            && self.entries.get(key).is_some_and(|there| !stamp.supersedes(there.stamp))
        {
            return;
        }
        self.entries.put(key, Entry { value, stamp, asked_at });
    }

    fn stamp(&self, key: KeyRef<'_>) -> Stamp {
        let generation = self.stripe(key).load(Ordering::SeqCst);
        Stamp { generation, epoch: self.epoch.load(Ordering::SeqCst) }
    }

    fn stripe(&self, key: KeyRef<'_>) -> &AtomicU64 {
        &self.stripes[self.place(key) % STRIPES]
    }

    fn flying(&self, key: KeyRef<'_>) -> &AtomicU64 {
        &self.flying[self.place(key) % FLIGHT_COUNTERS]
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose a counter")]
    fn place(&self, key: KeyRef<'_>) -> usize {
        self.hasher.hash_one(key) as usize
    }

    /// Nothing panics while the lock is held, so what a poisoned one guards is still whole.
    fn lock(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loads {
    /// Waits for the query under way that began at the subject's present stamp, or for the next one.
    fn wait(&mut self, key: Key, present: Stamp, waiter: Waiter) {
        let joined = if rules::late_readers_do_not_join() {
            self.flights.get_mut(&(key.clone(), present))
        } else {
            self.flights.iter_mut().find(|((flying, _), _)| *flying == key).map(|(_, waiters)| waiters)
        };
        match joined {
            Some(waiters) => waiters.push(waiter),
            None => self.queue.entry(key).or_default().push(waiter),
        }
    }
}
