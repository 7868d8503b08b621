//! What the protocol runs on. The model checker's test brings another module of this name: its own threads and
//! atomics, a map that it can look into, and rules that it can break to see that the test would notice.

use std::sync::Arc;

use moka::sync::Cache;
use tokio::sync::oneshot;

use super::protocol::Entry;
use crate::{
    domain::{facts::Facts, subject::Subject},
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
/// What is cached.
pub type Value = Arc<Facts>;
/// Who waits for a load: it gets the facts, or the error of the one query that several may have waited for.
pub type Waiter = oneshot::Sender<Result<Value, Arc<store::Error>>>;

/// How many counters all subjects share. A write makes the facts of all subjects of its counter be asked again, and
/// unusable while the database cannot be asked: more counters are better for both, and these take 2 MiB.
pub const STRIPES: usize = 1 << 18;

/// How many subjects have to wait for each query under way before another one is begun beside it.
pub const CROWD: usize = 32;

/// Room for the facts of subjects that hold something: about a million of them with a subscription or two each.
const HELD_BYTES: u64 = 512 * 1024 * 1024;
/// Room for the knowledge that a subject holds nothing, apart: a flood of random ids cannot evict paying ones.
const ABSENT_BYTES: u64 = 32 * 1024 * 1024;
/// What an entry takes beside its subject and its facts: its own fields and the map's bookkeeping, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 256;

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
}

/// The entries, bounded in bytes: those who hold something apart from those who hold nothing.
#[derive(Debug)]
pub struct Entries {
    held: Cache<Key, Arc<Entry>, RandomState>,
    absent: Cache<Key, Arc<Entry>, RandomState>,
}

impl Default for Entries {
    fn default() -> Self {
        let bounded =
            |bytes| Cache::builder().max_capacity(bytes).weigher(weight).build_with_hasher(RandomState::default());
        Self { held: bounded(HELD_BYTES), absent: bounded(ABSENT_BYTES) }
    }
}

impl Entries {
    /// The entry of a subject.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.held.get(key).or_else(|| self.absent.get(key))
    }

    /// Puts an entry in the place of whatever is there. The caller sees to it that no two put at once.
    pub fn put(&self, key: Key, entry: Entry) {
        let (here, other) =
            if entry.value.is_empty() { (&self.absent, &self.held) } else { (&self.held, &self.absent) };
        other.invalidate(&key);
        here.insert(key, Arc::new(entry));
    }

    /// How full it is.
    pub fn size(&self) -> CacheSize {
        CacheSize {
            held: self.held.entry_count(),
            held_bytes: self.held.weighted_size(),
            absent: self.absent.entry_count(),
            absent_bytes: self.absent.weighted_size(),
        }
    }
}

fn weight(subject: &Key, entry: &Arc<Entry>) -> u32 {
    let bytes = ENTRY_OVERHEAD_BYTES + subject.id.as_str().len() + entry.value.heap_bytes();
    u32::try_from(bytes).unwrap_or(u32::MAX)
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
