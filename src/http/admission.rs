//! How many requests are answered at once, and which are turned away first.
//!
//! A login waits for a hook, nobody waits for the management API as impatiently: so while too much is under way the
//! API is refused, and hooks only when there is nothing left to give up. Refusing is cheap, before credentials and body
//! are read; queueing instead would only make every answer late.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many requests may be under way at once, in one process.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Requests of any kind. A body is at most 256 KiB, so hooks take a quarter of a gibibyte at worst. An answer from
    /// the cache takes microseconds, so this many are under way only while the database stalls.
    pub all: usize,
    /// Requests of any kind from which on none to the management API is begun: half is kept free for hooks.
    pub all_for_management: usize,
    /// Requests to the management API: more than its database connections can serve at once, and each may bring 1 MiB.
    pub management: usize,
    /// Requests for the pages that need no session. Signing in takes a moment, and few do at once, so this many are
    /// enough; whoever has no credentials holds these and leaves the others to those who have.
    pub strangers: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { all: 1024, all_for_management: 512, management: 128, strangers: 16 }
    }
}

/// The requests that are under way, of all listeners together.
#[derive(Debug, Default)]
pub struct Admission {
    capacity: Capacity,
    all: AtomicUsize,
    management: AtomicUsize,
    strangers: AtomicUsize,
}

impl Admission {
    /// Nothing is under way yet.
    #[must_use]
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// A place for a hook request, unless there is none left.
    pub fn admit_hook(&self) -> Option<Admitted<'_>> {
        Some(Admitted { _all: Place::take(&self.all, self.capacity.all)?, _own: None })
    }

    /// A place for a request to the management API, unless hooks may need it.
    pub fn admit_management(&self) -> Option<Admitted<'_>> {
        self.admit_to(&self.management, self.capacity.management)
    }

    /// A place for a request that anybody may send to the console, unless hooks may need it. None of those to the
    /// management API is taken.
    pub fn admit_stranger(&self) -> Option<Admitted<'_>> {
        self.admit_to(&self.strangers, self.capacity.strangers)
    }

    fn admit_to<'a>(&'a self, count: &'a AtomicUsize, limit: usize) -> Option<Admitted<'a>> {
        let own = Place::take(count, limit)?;
        let all = Place::take(&self.all, self.capacity.all_for_management)?;
        Some(Admitted { _all: all, _own: Some(own) })
    }
}

/// A place among the requests under way. Dropping it gives it back: also when the client has hung up, and the request
/// is dropped half-way, or when its handler panics.
#[derive(Debug)]
pub struct Admitted<'a> {
    _all: Place<'a>,
    /// Of its kind, but for a hook.
    _own: Option<Place<'a>>,
}

#[derive(Debug)]
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        // Taken first and looked at then: two that look first could both take the last place.
        let place = (count.fetch_add(1, Ordering::Relaxed), Self(count));
        (place.0 < limit).then_some(place.1)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_refused_before_any_hook_and_places_come_back() {
        let admission = Admission::new(Capacity { all: 4, all_for_management: 3, management: 2, strangers: 1 });
        let management: Vec<_> = (0..3).filter_map(|_| admission.admit_management()).collect();
        assert_eq!(management.len(), 2, "its own limit");
        let stranger = admission.admit_stranger();
        assert!(stranger.is_some() && admission.admit_stranger().is_none(), "a limit of their own");
        drop(management);
        assert!(admission.admit_management().is_some(), "whatever strangers do");
        drop(stranger);
        let hooks: Vec<_> = (0..3).filter_map(|_| admission.admit_hook()).collect();
        assert_eq!(hooks.len(), 3);
        assert!(admission.admit_management().is_none(), "the last place is a hook's");
        assert!(admission.admit_stranger().is_none(), "and no stranger's");
        let last = admission.admit_hook();
        assert!(last.is_some() && admission.admit_hook().is_none());
        drop((hooks, last));
        assert!(admission.admit_management().is_some());
        let Admission { all, management, strangers, .. } = admission;
        assert_eq!(all.into_inner() + management.into_inner() + strangers.into_inner(), 0);
    }
}
