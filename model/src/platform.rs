//! What the protocol runs on here: locks and atomics whose every interleaving the checker runs, a map that looks at
//! what is put into it, and rules that a test can break.

use std::{
    hash::{BuildHasherDefault, DefaultHasher},
    sync::mpsc,
};

use super::protocol::Entry;

pub use std::sync::PoisonError;

pub use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

/// Not random: the checker has to be able to repeat a run.
pub type RandomState = BuildHasherDefault<DefaultHasher>;
/// A map that is always gone through in the same order.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// What is cached of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(pub u8);

/// What is looked up.
pub type KeyRef<'a> = &'a Key;

/// What is looked up of what is cached of.
pub fn borrowed(key: &Key) -> KeyRef<'_> {
    key
}

/// What is cached: how many changes of the subject had been committed when it was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(pub u64);

/// Who waits for a load. The checker does not see this channel, and need not: nobody does anything while waiting.
pub type Waiter = mpsc::Sender<Option<Value>>;

/// The clock: it stands still unless a model says otherwise.
pub type Instant = u8;

/// A query is begun beside others for each subject that waits, so that there are several in the smallest world.
pub const CROWD: usize = 0;

/// All subjects share one counter.
pub const STRIPES: usize = 1;

/// And one for their loads.
pub const FLIGHT_COUNTERS: usize = 1;

/// The rules that a test can break, one at a time.
pub mod rules {
    use std::cell::Cell;

    /// A rule of the protocol.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Rule {
        /// Whoever commits a change tells of it before answering.
        ChangesAreToldBeforeTheAnswer,
        /// Facts are kept with the stamp that was taken before their query.
        StampComesBeforeTheQuery,
        /// Newer facts are not overwritten by older ones.
        OlderFactsDoNotOverwrite,
        /// Nobody joins a load that began before a change which is known by now.
        LateReadersDoNotJoin,
        /// Whether a load is under way is looked at before whether there is an entry.
        ChangesLookAtLoadsFirst,
        /// A load is under way until what it found is kept.
        LoadsAreUnderWayUntilTheyAreKept,
    }

    thread_local! {
        /// The checker runs all threads of a model in the one that called it.
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Breaks a rule, or none, from now on.
    pub fn break_only(rule: Option<Rule>) {
        BROKEN.set(rule);
    }

    fn holds(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }

    pub fn changes_are_told_before_the_answer() -> bool {
        holds(Rule::ChangesAreToldBeforeTheAnswer)
    }

    pub fn stamp_comes_before_the_query() -> bool {
        holds(Rule::StampComesBeforeTheQuery)
    }

    pub fn older_facts_do_not_overwrite() -> bool {
        holds(Rule::OlderFactsDoNotOverwrite)
    }

    pub fn late_readers_do_not_join() -> bool {
        holds(Rule::LateReadersDoNotJoin)
    }

    pub fn changes_look_at_loads_first() -> bool {
        holds(Rule::ChangesLookAtLoadsFirst)
    }

    pub fn loads_are_under_way_until_they_are_kept() -> bool {
        holds(Rule::LoadsAreUnderWayUntilTheyAreKept)
    }
}

/// The entries. Seeing to it that none is overwritten by older facts is the third promise.
#[derive(Debug, Default)]
pub struct Entries(Mutex<HashMap<Key, Entry>>);

impl Entries {
    /// The entry of a subject.
    pub fn get(&self, key: KeyRef<'_>) -> Option<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Whether there is an entry of a subject.
    pub fn contains(&self, key: KeyRef<'_>) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Puts an entry in the place of whatever is there, which must not know more.
    pub fn put(&self, key: KeyRef<'_>, entry: Entry) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = entry.stamp;
        if let Some(there) = entries.insert(key.clone(), entry) {
            assert!(stamp.supersedes(there.stamp), "older facts overwrote newer ones: {stamp:?}, {there:?}");
        }
    }
}
