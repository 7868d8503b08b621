//! Stamps: how facts are known to be older than a write.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::domain::subject::Subject;

/// How many counters all subjects share. A write makes the facts of one in so many subjects be asked again, so more
/// are better for hits; these take 32 KiB.
const STRIPES: usize = 4096;

/// The state of knowledge at an instant: facts read at a stamp know of every change that came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Counts the known changes of the subjects of one stripe.
    generation: u64,
    /// Counts the times when changes may have been missed.
    epoch: u64,
}

impl Stamp {
    /// Whether facts of this stamp may take the place of facts of another: nothing that these knew is unknown to them.
    pub fn supersedes(self, other: Self) -> bool {
        self.generation >= other.generation && self.epoch >= other.epoch
    }
}

/// The counters behind the stamps.
#[derive(Debug)]
pub struct Generations {
    stripes: Box<[AtomicU64]>,
    epoch: AtomicU64,
    hasher: RandomState,
}

impl Generations {
    pub fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            epoch: AtomicU64::new(0),
            hasher: RandomState::new(),
        }
    }

    /// The present stamp of a subject.
    pub fn stamp(&self, subject: &Subject) -> Stamp {
        Stamp { generation: self.stripe(subject).load(Ordering::SeqCst), epoch: self.epoch.load(Ordering::SeqCst) }
    }

    /// Makes everything that is known of the subject older than a change of it.
    pub fn changed(&self, subject: &Subject) {
        self.stripe(subject).fetch_add(1, Ordering::SeqCst);
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits choose the stripe")]
    fn stripe(&self, subject: &Subject) -> &AtomicU64 {
        &self.stripes[self.hasher.hash_one(subject) as usize % STRIPES]
    }
}
