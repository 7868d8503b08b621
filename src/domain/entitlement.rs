//! Entitlements: what one subject holds by itself, scope by scope.

use chrono::{DateTime, Utc};

use super::{catalogue::Catalogue, facts::{Facts, Standing}, scope::Scope};

/// How a subject stands to one catalogue scope at an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlement {
    /// The scope.
    pub scope: Scope,
    /// How the subject stands to it; it holds the scope when this is [`Standing::Active`].
    pub standing: Standing,
    /// The end of the unbroken run of windows in which it is held; none when it is open-ended, or not held.
    pub until: Option<DateTime<Utc>>,
}

/// What a subject holds at `now`: an entitlement for each catalogue scope, in ascending order.
#[must_use]
pub fn entitlements(catalogue: &Catalogue, facts: &Facts, now: DateTime<Utc>) -> Vec<Entitlement> {
    let entitlement = |scope: Scope| Entitlement {
        standing: facts.standing(scope.as_str(), now),
        until: facts.held_until(scope.as_str(), now),
        scope,
    };
    catalogue.scopes().into_iter().map(entitlement).collect()
}
