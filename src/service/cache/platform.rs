//! What the protocol runs on. The model checker's test brings another module of this name: its own threads and
//! atomics, a map that it can look into, and rules that it can break to see that the test would notice.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use quick_cache::{
    Equivalent, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use tokio::sync::oneshot;

use super::protocol::Entry;
use crate::{
    domain::{
        facts::Facts,
        subject::{Subject, SubjectRef, SubjectType},
    },
    store,
};

// Its key is random, and who finds two ids of one hash all the same has found two that are looked up a little slower.
pub use foldhash::quality::RandomState;
pub use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// What is cached of.
pub type Key = Subject;
/// What is looked up.
pub type KeyRef<'a> = SubjectRef<'a>;
/// What is cached.
pub type Value = Facts;
/// Who waits for a load: it gets the facts, or the error of the one query that several may have waited for.
pub type Waiter = oneshot::Sender<Result<Value, Arc<store::Error>>>;

/// What is looked up of what is cached of.
pub fn borrowed(key: &Key) -> KeyRef<'_> {
    key.borrowed()
}

/// How many counters all subjects share. A write to a subject that is known makes the facts of all subjects of its
/// counter be asked again, and unusable while the database cannot be asked: more counters are better for both, and these
/// take 2 MiB.
pub const STRIPES: usize = 1 << 18;

/// How many counters the subjects share whose loads are under way, some thousands at most.
pub const FLIGHT_COUNTERS: usize = 1 << 14;

/// How many subjects have to wait for each query under way before another one is begun beside it.
pub const CROWD: usize = 32;

/// Room for the facts of subjects that hold something: two millions of them and more with a subscription or two each.
const HELD_BYTES: u64 = 512 * 1024 * 1024;
/// Room for the knowledge that a subject holds nothing, apart: a flood of random ids cannot evict paying ones.
const ABSENT_BYTES: u64 = 32 * 1024 * 1024;
/// What an entry takes in the map, of which a slot holds it, and a table the slot's number.
const SLOT_BYTES: usize = size_of::<(PackedSubject, Entry)>() + 24;
/// What the allocator adds to what is on the heap, of the subject and of the facts.
const HEAP_OVERHEAD_BYTES: usize = 32;
/// Parts of the map, each with a lock of its own that readers share. One that grows keeps its readers waiting: more of
/// them are smaller.
const PARTS: usize = 64;
/// The share of the entries that may have been evicted whose hash is still known, to tell the ones that come back.
const GHOSTS: f64 = 0.1;

/// The rules of the protocol that the model checker's test breaks, one at a time; here they always hold.
pub mod rules {
    /// Facts are kept with the stamp that was taken before their query.
    pub const fn stamp_comes_before_the_query() -> bool {
        true
    }

    /// Newer facts are not overwritten by older ones.
    pub const fn older_facts_do_not_overwrite() -> bool {
        true
    }

    /// Nobody joins a load that began before a change which is known by now.
    pub const fn late_readers_do_not_join() -> bool {
        true
    }

    /// Whether a load is under way is looked at before whether there is an entry.
    pub const fn changes_look_at_loads_first() -> bool {
        true
    }

    /// A load is under way until what it found is kept.
    pub const fn loads_are_under_way_until_they_are_kept() -> bool {
        true
    }
}

type Bounded = Cache<PackedSubject, Entry, Weigh, RandomState>;

/// The entries, bounded in bytes: those who hold something apart from those who hold nothing.
#[derive(Debug)]
pub struct Entries {
    held: Bounded,
    absent: Bounded,
}

impl Default for Entries {
    fn default() -> Self {
        Self { held: bounded(HELD_BYTES), absent: bounded(ABSENT_BYTES) }
    }
}

impl Entries {
    /// The entry of a subject.
    pub fn get(&self, key: KeyRef<'_>) -> Option<Entry> {
        self.held.get(&key).or_else(|| self.absent.get(&key))
    }

    /// Whether there is an entry of a subject.
    pub fn contains(&self, key: KeyRef<'_>) -> bool {
        self.held.contains_key(&key) || self.absent.contains_key(&key)
    }

    /// Puts an entry in the place of whatever is there. The caller sees to it that no two put at once.
    pub fn put(&self, key: KeyRef<'_>, entry: Entry) {
        let (here, other) =
            if entry.value.is_empty() { (&self.absent, &self.held) } else { (&self.held, &self.absent) };
        other.remove(&key);
        here.insert(PackedSubject::new(key), entry);
    }

    /// How full it is.
    pub fn size(&self) -> CacheSize {
        let entries = |cache: &Bounded| u64::try_from(cache.len()).unwrap_or(u64::MAX);
        CacheSize {
            held: entries(&self.held),
            held_bytes: self.held.weight(),
            absent: entries(&self.absent),
            absent_bytes: self.absent.weight(),
        }
    }
}

fn bounded(bytes: u64) -> Bounded {
    let least = u64::try_from(SLOT_BYTES + HEAP_OVERHEAD_BYTES).unwrap_or(u64::MAX);
    let most_entries = usize::try_from(bytes / least).unwrap_or(usize::MAX);
    let mut options = OptionsBuilder::new();
    options.weight_capacity(bytes).estimated_items_capacity(most_entries).shards(PARTS).ghost_allocation(GHOSTS);
    let options = options.build().expect("both capacities are set");
    Cache::with_options(options, Weigh, RandomState::default(), DefaultLifecycle::default())
}

/// A subject in one piece: a letter for its kind, and its id. It is never printed.
#[derive(PartialEq, Eq)]
struct PackedSubject(Box<str>);

impl PackedSubject {
    fn new(subject: KeyRef<'_>) -> Self {
        let letter = match subject.kind() {
            SubjectType::User => 'u',
            SubjectType::Client => 'c',
        };
        let mut text = String::with_capacity(1 + subject.id().len());
        text.push(letter);
        text.push_str(subject.id());
        Self(text.into())
    }

    fn parts(&self) -> (SubjectType, &str) {
        let kind = if self.0.starts_with('u') { SubjectType::User } else { SubjectType::Client };
        (kind, self.0.get(1..).unwrap_or_default())
    }
}

/// As what it is looked up by.
impl Hash for PackedSubject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Equivalent<PackedSubject> for SubjectRef<'_> {
    fn equivalent(&self, packed: &PackedSubject) -> bool {
        (self.kind(), self.id()) == packed.parts()
    }
}

/// Weighs in bytes.
#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<PackedSubject, Entry> for Weigh {
    fn weight(&self, subject: &PackedSubject, entry: &Entry) -> u64 {
        let bytes = SLOT_BYTES + HEAP_OVERHEAD_BYTES + subject.0.len() + entry.value.heap_bytes();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
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

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;
    use crate::domain::subject::SubjectId;

    #[test]
    fn a_subject_is_found_by_its_kind_and_its_id_and_no_other_is() {
        let state = RandomState::default();
        let ids = ["u", "c", "uu", "cu", "a", "é", "🎫"].map(|id| SubjectId::parse(id).expect("an id"));
        let all = SubjectType::ALL.map(|kind| ids.clone().map(|id| Subject { kind, id })).concat();
        for one in &all {
            let packed = PackedSubject::new(one.borrowed());
            assert_eq!(state.hash_one(&packed), state.hash_one(one.borrowed()));
            for other in &all {
                assert_eq!(other.borrowed().equivalent(&packed), one == other);
                assert_eq!(PackedSubject::new(other.borrowed()) == packed, one == other);
            }
        }
    }
}
