//! One replica and the database, with what a request has to see.

use std::sync::mpsc;

use super::{
    platform::{AtomicU64, Instant, Key, Mutex, MutexGuard, Ordering, PoisonError, Value, rules},
    protocol::{Currency, Enlisted, Entry, Protocol},
};

/// How long an entry is believed without asking again.
const MAX_AGE: Instant = 1;

/// The subjects are those of the keys 0, 1, ...
const SUBJECTS: usize = 2;

/// A replica and its database.
pub struct World {
    protocol: Protocol,
    database: Mutex<Database>,
    limits: Limits,
    /// The newest change of each subject that was answered, or told by the feed. No request that starts from now on sees
    /// less.
    told: [AtomicU64; SUBJECTS],
    /// The newest change of each when changes were last said to have been missed. It may be missing in an outage only.
    doubted: [AtomicU64; SUBJECTS],
}

/// How much is loaded at once.
pub struct Limits {
    /// Queries under way.
    pub most_running: usize,
    /// Subjects in a query.
    pub batch: usize,
}

struct Database {
    /// How many of each subject.
    changes: [u64; SUBJECTS],
    is_down: bool,
}

/// A request that was made. What it got is known when nothing runs any more.
pub struct Request {
    key: Key,
    told: u64,
    doubted: u64,
    answer: mpsc::Receiver<Option<Value>>,
}

impl World {
    /// A world in which nothing was changed and nothing is cached.
    pub fn new(limits: Limits) -> Self {
        Self {
            protocol: Protocol::empty(),
            database: Mutex::new(Database { changes: [0; SUBJECTS], is_down: false }),
            limits,
            told: std::array::from_fn(|_| AtomicU64::new(0)),
            doubted: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Asks for a subject as the service's cache does: uses what is fresh, and enlists for what is not.
    pub fn ask(&self, key: &Key, now: Instant) -> Request {
        let place = place(key);
        let (told, doubted) = (self.told[place].load(Ordering::Acquire), self.doubted[place].load(Ordering::Acquire));
        let is_fresh = |entry: &Entry, currency| currency == Currency::Current && now < entry.asked_at + MAX_AGE;
        let (waiter, answer) = mpsc::channel();
        let request = Request { key: key.clone(), told, doubted, answer };
        let cached = self.protocol.look_up(key);
        if let Some((entry, currency)) = &cached {
            request.check_usable(entry, *currency);
        }
        let mut known =
            cached.filter(|(entry, currency)| is_fresh(entry, *currency)).map(|(entry, _)| entry.value.clone());
        if known.is_none() {
            let wanted = [(key.clone(), waiter.clone())];
            let (enlisted, start) = self.protocol.enlist(wanted, is_fresh, self.limits.most_running);
            if start {
                // A task of its own in the service. This thread would do nothing now but wait for it.
                self.run_loads(now);
            }
            known = enlisted.into_iter().find_map(|enlisted| match enlisted {
                Enlisted::Known(value) => Some(value),
                Enlisted::Waiting => None,
            });
        }
        if let Some(value) = known {
            waiter.send(Some(value)).expect("the request is here");
        }
        request
    }

    fn run_loads(&self, now: Instant) {
        while let Some(batch) = self.protocol.take_batch(self.limits.batch) {
            let values = self.query(batch.iter().map(|(key, _)| key));
            for (waiters, value) in self.protocol.finish(batch, values, now) {
                for waiter in waiters {
                    waiter.send(value.clone()).expect("nobody hangs up");
                }
            }
        }
    }

    fn query<'a>(&self, subjects: impl Iterator<Item = &'a Key>) -> Vec<Option<Value>> {
        let database = self.database();
        subjects.map(|key| (!database.is_down).then(|| Value(database.changes[place(key)]))).collect()
    }

    /// Makes a change elsewhere: it is committed, and nobody here knows.
    pub fn change_elsewhere(&self, key: &Key) -> u64 {
        let changes = &mut self.database().changes[place(key)];
        *changes += 1;
        *changes
    }

    /// Makes a change here: commits it, tells of it, answers.
    pub fn change(&self, key: &Key) {
        let change = self.change_elsewhere(key);
        let answer = || self.told[place(key)].fetch_max(change, Ordering::AcqRel);
        if rules::changes_are_told_before_the_answer() {
            self.protocol.changed(key);
            answer();
        } else {
            answer();
            self.protocol.changed(key);
        }
    }

    /// Lets the feed look for changes that were made elsewhere, and find so many that it does not name them.
    pub fn poll(&self) {
        let changes = self.database().changes;
        self.protocol.all_changed();
        raise(&self.told, changes);
    }

    /// Lets the feed notice that it may have missed changes.
    pub fn doubt(&self) {
        let changes = self.database().changes;
        self.protocol.doubt();
        raise(&self.doubted, changes);
    }

    /// Takes the database down.
    pub fn take_down(&self) {
        self.database().is_down = true;
    }

    /// Whether there is an entry of the subject with no change known since.
    pub fn is_kept(&self, key: &Key) -> bool {
        self.protocol.entries().get(key).is_some()
            && self.protocol.look_up(key).is_some_and(|(_, currency)| currency != Currency::Outdated)
    }

    /// Whether there is an entry of the subject that is used as it is.
    pub fn is_known(&self, key: &Key) -> bool {
        self.protocol.look_up(key).is_some_and(|(_, currency)| currency == Currency::Current)
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(key: &Key) -> usize {
    key.0.into()
}

/// What never rises is left alone: the checker would run what comes before and after it.
fn raise(newest: &[AtomicU64; SUBJECTS], changes: [u64; SUBJECTS]) {
    for (newest, change) in newest.iter().zip(changes).filter(|(_, change)| *change > 0) {
        newest.fetch_max(change, Ordering::AcqRel);
    }
}

impl Request {
    /// How many changes what the request got knows of, once nothing runs any more. None if it got nothing.
    pub fn seen(self, world: &World) -> Option<u64> {
        let answer = self.answer.try_recv().expect("no request is left waiting");
        assert!(self.answer.try_recv().is_err(), "a request was answered twice");
        if let Some(Value(seen)) = answer {
            let least = self.told.max(self.doubted);
            assert!(seen >= least, "an answer saw {seen} changes of {least}");
            return Some(seen);
        }
        // The query failed.
        let (entry, currency) = world.protocol.look_up(&self.key)?;
        self.check_usable(&entry, currency);
        (currency != Currency::Outdated).then_some(entry.value.0)
    }

    /// Were the database down, this entry would be used unless it is outdated.
    fn check_usable(&self, entry: &Entry, currency: Currency) {
        let least = match currency {
            Currency::Current => self.told.max(self.doubted),
            Currency::Unsure => self.told,
            Currency::Outdated => 0,
        };
        let seen = entry.value.0;
        assert!(seen >= least, "an entry that counts as {currency:?} saw {seen} changes of {least}");
    }
}
