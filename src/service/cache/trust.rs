//! Whether changes made elsewhere would be known by now.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long the feed may be silent before what is cached counts as unsure. A change made elsewhere right after a poll
/// is followed by a poll a second later; three more may fail.
pub const TRUST_FOR: Duration = Duration::from_secs(4);

/// A value that no time in milliseconds since the start reaches.
const NEVER_WATCHED: u64 = u64::MAX;

/// When the feed was last heard of.
#[derive(Debug)]
pub struct Trust {
    start: Instant,
    /// Milliseconds from `start`; [`NEVER_WATCHED`] until there is a feed.
    heard_ms: AtomicU64,
}

impl Trust {
    /// Trust without a feed: it never ends, for nobody else writes.
    pub fn unwatched() -> Self {
        Self { start: Instant::now(), heard_ms: AtomicU64::new(NEVER_WATCHED) }
    }

    /// Tells that all changes which were committed before `asked_at` are known.
    pub fn heard(&self, asked_at: Instant) {
        let milliseconds = asked_at.saturating_duration_since(self.start).as_millis();
        self.heard_ms.store(u64::try_from(milliseconds).unwrap_or(NEVER_WATCHED - 1), Ordering::SeqCst);
    }

    /// When trust ends, or ended; none when it never does.
    pub fn ends_at(&self) -> Option<Instant> {
        match self.heard_ms.load(Ordering::SeqCst) {
            NEVER_WATCHED => None,
            heard_ms => Some(self.start + Duration::from_millis(heard_ms) + TRUST_FOR),
        }
    }

    /// How long the feed has been silent; none without a feed.
    pub fn silence(&self, now: Instant) -> Option<Duration> {
        self.ends_at().map(|ends_at| (now + TRUST_FOR).saturating_duration_since(ends_at))
    }
}
