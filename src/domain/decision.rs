//! The decision: which scopes of one hook request stay, and why.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::{
    catalogue::{Catalogue, Requires, Rule},
    facts::{Facts, Standing},
};

/// Unmanaged scopes that stay even when unmanaged scopes are removed, unless they are registered: the ones of
/// `OpenID` Connect Core section 5.4 and 11, without which logging in breaks.
pub const PROTOCOL_SCOPES: [&str; 6] = ["openid", "profile", "email", "address", "phone", "offline_access"];

/// What happens to scopes that are not in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmanaged {
    /// They stay.
    #[default]
    Keep,
    /// They are removed, but for [`PROTOCOL_SCOPES`].
    Remove,
}

/// Why a scope was kept or removed: one reason each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is not in the catalogue.
    Unmanaged,
    /// Everyone who must hold it has an active subscription.
    Active,
    /// It would have been removed, but its rule is not enforced.
    NotEnforced,
    /// The subscription has not begun.
    Scheduled,
    /// The subscription was canceled.
    Canceled,
    /// The subscription has run out.
    Expired,
    /// There never was a subscription.
    NoSubscription,
    /// A user must hold it, and the request names none.
    NoUser,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Unmanaged,
        Self::Active,
        Self::NotEnforced,
        Self::Scheduled,
        Self::Canceled,
        Self::Expired,
        Self::NoSubscription,
        Self::NoUser,
    ];

    /// The word for the reason in the API and in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmanaged => "unmanaged",
            Self::Active => "active",
            Self::NotEnforced => "not_enforced",
            Self::Scheduled => "scheduled",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::NoSubscription => "no_subscription",
            Self::NoUser => "no_user",
        }
    }
}

impl From<Standing> for Reason {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Scheduled => Self::Scheduled,
            Standing::Canceled => Self::Canceled,
            Standing::Expired => Self::Expired,
            Standing::NoSubscription => Self::NoSubscription,
        }
    }
}

/// What was decided for one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The scope as the request spelled it.
    pub scope: &'a str,
    /// Whether it stays.
    pub kept: bool,
    /// Why.
    pub reason: Reason,
    /// Why it would have been removed, were its rule enforced.
    pub unenforced: Option<Reason>,
}

/// The answer to one hook request: an outcome for each scope, in requested order, each scope once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The outcomes.
    pub outcomes: Vec<Outcome<'a>>,
}

impl<'a> Decision<'a> {
    /// The scopes that stay, in requested order.
    pub fn kept(&self) -> impl Iterator<Item = &'a str> {
        self.outcomes.iter().filter(|outcome| outcome.kept).map(|outcome| outcome.scope)
    }

    /// The scopes to remove, in requested order.
    pub fn removed(&self) -> impl Iterator<Item = &'a str> {
        self.outcomes.iter().filter(|outcome| !outcome.kept).map(|outcome| outcome.scope)
    }
}

/// The parties of one request, with what is known of each.
#[derive(Debug, Clone, Copy)]
pub struct Parties<'a> {
    /// The user's facts; none when the request names no user.
    pub user: Option<&'a Facts>,
    /// The client's facts.
    pub client: &'a Facts,
}

/// Decides which of the requested scopes stay at `now`.
///
/// A scope string may be repeated, strange or no scope token at all: it is decided once, at its first place.
#[must_use]
pub fn decide<'a>(
    catalogue: &Catalogue,
    unmanaged: Unmanaged,
    parties: Parties<'_>,
    requested: &[&'a str],
    now: DateTime<Utc>,
) -> Decision<'a> {
    let mut seen = HashSet::with_capacity(requested.len());
    let outcomes = requested
        .iter()
        .copied()
        .filter(|scope| seen.insert(*scope))
        .map(|scope| match catalogue.rule(scope) {
            Some(rule) => managed(scope, rule, parties, now),
            None => {
                let kept = unmanaged == Unmanaged::Keep || PROTOCOL_SCOPES.contains(&scope);
                Outcome { scope, kept, reason: Reason::Unmanaged, unenforced: None }
            }
        })
        .collect();
    Decision { outcomes }
}

fn managed<'a>(scope: &'a str, rule: Rule, parties: Parties<'_>, now: DateTime<Utc>) -> Outcome<'a> {
    match (held(scope, rule.requires, parties, now), rule.enforced) {
        (Reason::Active, _) => Outcome { scope, kept: true, reason: Reason::Active, unenforced: None },
        (reason, true) => Outcome { scope, kept: false, reason, unenforced: None },
        (reason, false) => Outcome { scope, kept: true, reason: Reason::NotEnforced, unenforced: Some(reason) },
    }
}

/// [`Reason::Active`] when everyone who must hold the scope does, else the first reason that applies.
fn held(scope: &str, requires: Requires, parties: Parties<'_>, now: DateTime<Utc>) -> Reason {
    let client = || parties.client.standing(scope, now);
    let user = || parties.user.map(|facts| facts.standing(scope, now));
    match requires {
        Requires::User => user().map_or(Reason::NoUser, Reason::from),
        Requires::Client => client().into(),
        Requires::Any => user().map_or_else(client, |user| user.min(client())).into(),
        Requires::All => match user() {
            None => Reason::NoUser,
            Some(Standing::Active) => client().into(),
            Some(user) => user.into(),
        },
    }
}
