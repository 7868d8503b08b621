//! What is known of one subject: the facts that a decision compares with `now`.

use chrono::{DateTime, Utc};

use super::{
    life::{Life, Status},
    scope::Scope,
    window::Window,
};

/// How one subject stands to one scope at an instant: the best that any of its subscriptions gives.
///
/// The order is that of preference: several subscriptions make a union, and one that ends never takes away what
/// another still gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// One is active.
    Active,
    /// None is active, one is scheduled.
    Scheduled,
    /// None is active or scheduled, one was canceled.
    Canceled,
    /// All have expired.
    Expired,
    /// There is none.
    NoSubscription,
}

impl From<Status> for Standing {
    fn from(status: Status) -> Self {
        match status {
            Status::Active => Self::Active,
            Status::Scheduled => Self::Scheduled,
            Status::Canceled => Self::Canceled,
            Status::Expired => Self::Expired,
        }
    }
}

/// The lives of a subject's subscriptions, by scope. No verdict is in it: whether a scope is held is asked with `now`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Ascending by scope, so that one is found by bisection.
    lives: Box<[(Scope, Box<[Life]>)]>,
}

impl Facts {
    /// The facts that pairs of scope and life make, in whatever order they come.
    #[must_use]
    pub fn new(mut pairs: Vec<(Scope, Life)>) -> Self {
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let lives = pairs
            .chunk_by(|(a, _), (b, _)| a == b)
            .map(|chunk| (chunk[0].0.clone(), chunk.iter().map(|(_, life)| *life).collect()))
            .collect();
        Self { lives }
    }

    /// Whether the subject has no subscription at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// How the subject stands to a scope at `now`.
    #[must_use]
    pub fn standing(&self, scope: &str, now: DateTime<Utc>) -> Standing {
        let best = self.lives_of(scope).iter().map(|life| Standing::from(life.status(now))).min();
        best.unwrap_or(Standing::NoSubscription)
    }

    /// The first instant after `now` at which the scope is no longer held, when it is held at `now`; none when it is
    /// held for ever, or not held.
    #[must_use]
    pub fn held_until(&self, scope: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let granting: Vec<_> = self.lives_of(scope).iter().filter_map(Life::granting).collect();
        Window::end_of_run(&granting, now)
    }

    fn lives_of(&self, scope: &str) -> &[Life] {
        match self.lives.binary_search_by(|(name, _)| name.as_str().cmp(scope)) {
            Ok(index) => &self.lives[index].1,
            Err(_) => &[],
        }
    }
}
