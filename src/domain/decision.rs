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
        .map(|scope| {
            if let Some(rule) = catalogue.rule(scope) {
                managed(scope, rule, parties, now)
            } else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{life::Life, scope::Scope, window::Window};

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn facts(lives: &[(&str, i64, Option<i64>, Option<i64>)]) -> Facts {
        let pair = |&(scope, from, until, canceled_at): &(&str, i64, Option<i64>, Option<i64>)| {
            let window = Window::new(at(from), until.map(at)).expect("a window");
            (Scope::parse(scope).expect(scope), Life { window, canceled_at: canceled_at.map(at) })
        };
        Facts::new(lives.iter().map(pair).collect())
    }

    fn catalogue(rules: &[(&str, Requires, bool)]) -> Catalogue {
        let pair = |&(scope, requires, enforced): &(&str, Requires, bool)| {
            (Scope::parse(scope).expect(scope), Rule { requires, enforced })
        };
        rules.iter().map(pair).collect()
    }

    /// What rules 2 and 7 of the design say of every pair of a user's and a client's standing.
    #[test]
    fn each_rule_gives_its_reason_for_every_standing_of_user_and_client() {
        use Reason::{Active as A, Canceled as C, Expired as E, NoSubscription as N, NoUser as U, Scheduled as S};
        // The columns are the client: active, scheduled, canceled, expired, without a subscription.
        let expected = [
            (
                Requires::User,
                [
                    [A, A, A, A, A], // an active user
                    [S, S, S, S, S], // scheduled
                    [C, C, C, C, C], // canceled
                    [E, E, E, E, E], // expired
                    [N, N, N, N, N], // without a subscription
                    [U, U, U, U, U], // no user
                ],
            ),
            (
                Requires::Client,
                [
                    [A, S, C, E, N], // an active user
                    [A, S, C, E, N], // scheduled
                    [A, S, C, E, N], // canceled
                    [A, S, C, E, N], // expired
                    [A, S, C, E, N], // without a subscription
                    [A, S, C, E, N], // no user
                ],
            ),
            (
                Requires::Any,
                [
                    [A, A, A, A, A], // an active user
                    [A, S, S, S, S], // scheduled
                    [A, S, C, C, C], // canceled
                    [A, S, C, E, E], // expired
                    [A, S, C, E, N], // without a subscription
                    [A, S, C, E, N], // no user
                ],
            ),
            (
                Requires::All,
                [
                    [A, S, C, E, N], // an active user
                    [S, S, S, S, S], // scheduled
                    [C, C, C, C, C], // canceled
                    [E, E, E, E, E], // expired
                    [N, N, N, N, N], // without a subscription
                    [U, U, U, U, U], // no user
                ],
            ),
        ];
        // At 10: active, scheduled, canceled, expired, without a subscription.
        let standings = [
            facts(&[("x", 10, Some(11), None)]),
            facts(&[("x", 11, None, None)]),
            facts(&[("x", 0, None, Some(10))]),
            facts(&[("x", 0, Some(10), None)]),
            facts(&[("y", 0, None, None)]),
        ];
        for (requires, rows) in expected {
            for (user, row) in standings.iter().map(Some).chain([None]).zip(rows) {
                for (client, reason) in standings.iter().zip(row) {
                    for enforced in [true, false] {
                        let outcome = match (reason, enforced) {
                            (A, _) => Outcome { scope: "x", kept: true, reason: A, unenforced: None },
                            (_, true) => Outcome { scope: "x", kept: false, reason, unenforced: None },
                            (_, false) => Outcome {
                                scope: "x",
                                kept: true,
                                reason: Reason::NotEnforced,
                                unenforced: Some(reason),
                            },
                        };
                        let catalogue = catalogue(&[("x", requires, enforced)]);
                        for unmanaged in [Unmanaged::Keep, Unmanaged::Remove] {
                            let decision = decide(&catalogue, unmanaged, Parties { user, client }, &["x"], at(10));
                            let parties = (requires, user, client);
                            assert_eq!(decision.outcomes, [outcome], "{parties:?}, enforced {enforced}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_decision_changes_on_the_microsecond() {
        let catalogue = catalogue(&[("x", Requires::User, true)]);
        let check = |life: (i64, Option<i64>, Option<i64>), now, kept, reason| {
            let (from, until, canceled_at) = life;
            let parties = Parties { user: Some(&facts(&[("x", from, until, canceled_at)])), client: &facts(&[]) };
            let outcomes = decide(&catalogue, Unmanaged::Keep, parties, &["x"], at(now)).outcomes;
            assert_eq!(outcomes, [Outcome { scope: "x", kept, reason, unenforced: None }], "{life:?} at {now}");
        };
        check((10, Some(20), None), 9, false, Reason::Scheduled);
        check((10, Some(20), None), 10, true, Reason::Active);
        check((10, Some(20), None), 11, true, Reason::Active);
        check((10, Some(20), None), 19, true, Reason::Active);
        check((10, Some(20), None), 20, false, Reason::Expired);
        check((10, Some(20), None), 21, false, Reason::Expired);
        check((10, Some(20), Some(15)), 14, true, Reason::Active);
        check((10, Some(20), Some(15)), 15, false, Reason::Canceled);
        check((10, Some(20), Some(15)), 16, false, Reason::Canceled);
        check((10, Some(20), Some(15)), 20, false, Reason::Canceled);
        check((10, None, None), 9, false, Reason::Scheduled);
        check((10, None, None), 10, true, Reason::Active);
        check((10, None, None), i64::from(i32::MAX), true, Reason::Active);
    }

    #[test]
    fn unmanaged_scopes_stay_or_go_by_the_setting_but_protocol_scopes_always_stay() {
        let nobody = facts(&[]);
        let check = |scope, unmanaged, kept| {
            let parties = Parties { user: None, client: &nobody };
            let outcomes = decide(&Catalogue::default(), unmanaged, parties, &[scope], at(0)).outcomes;
            assert_eq!(
                outcomes,
                [Outcome { scope, kept, reason: Reason::Unmanaged, unenforced: None }],
                "{unmanaged:?}"
            );
        };
        for scope in ["openid", "profile", "email", "address", "phone", "offline_access"] {
            check(scope, Unmanaged::Keep, true);
            check(scope, Unmanaged::Remove, true);
        }
        for scope in ["x", "OpenID", "openid ", " email", "emails", "offline", "", " ", "\"", "🎫"] {
            check(scope, Unmanaged::Keep, true);
            check(scope, Unmanaged::Remove, false);
        }
        assert_eq!(Unmanaged::default(), Unmanaged::Keep);
    }

    #[test]
    fn a_registered_protocol_scope_is_managed_like_any_other() {
        let catalogue = catalogue(&[("email", Requires::Any, true), ("phone", Requires::Any, true)]);
        let parties = Parties { user: Some(&facts(&[("phone", 0, None, None)])), client: &facts(&[]) };
        for unmanaged in [Unmanaged::Keep, Unmanaged::Remove] {
            let outcomes = decide(&catalogue, unmanaged, parties, &["openid", "email", "phone"], at(0)).outcomes;
            let outcome = |scope, kept, reason| Outcome { scope, kept, reason, unenforced: None };
            let expected = [
                outcome("openid", true, Reason::Unmanaged),
                outcome("email", false, Reason::NoSubscription),
                outcome("phone", true, Reason::Active),
            ];
            assert_eq!(outcomes, expected, "{unmanaged:?}");
        }
    }

    #[test]
    fn strange_and_repeated_scopes_are_decided_once_where_they_first_stand() {
        let long = "x".repeat(100_000);
        let catalogue = catalogue(&[("x", Requires::Any, true), ("y", Requires::Any, true)]);
        let parties = Parties { user: None, client: &facts(&[("y", 0, None, None)]) };
        let requested = [
            "🎫", "y", "", "x", " ", "\"", "x", "y", "🎫", &long, "x ", "X", "é", "e\u{301}", "\0", "", &long, " ",
            "\"", "\\",
        ];
        let strange = ["🎫", "", " ", "\"", &long, "x ", "X", "é", "e\u{301}", "\0", "\\"];
        let once = ["🎫", "y", "", "x", " ", "\"", &long, "x ", "X", "é", "e\u{301}", "\0", "\\"];
        let decision = decide(&catalogue, Unmanaged::Remove, parties, &requested, at(0));
        assert_eq!(decision.outcomes.iter().map(|outcome| outcome.scope).collect::<Vec<_>>(), once);
        assert_eq!(decision.kept().collect::<Vec<_>>(), ["y"]);
        let decision = decide(&catalogue, Unmanaged::Keep, parties, &requested, at(0));
        assert_eq!(decision.removed().collect::<Vec<_>>(), ["x"]);
        for outcome in decision.outcomes {
            assert_eq!(outcome.reason == Reason::Unmanaged, strange.contains(&outcome.scope), "{outcome:?}");
        }
    }

    #[test]
    fn kept_and_removed_share_out_the_request_and_keep_its_order() {
        // Every request of up to five of: a held scope, one not held, one that stays, one that goes.
        let names = ["held", "not-held", "openid", "other"];
        let catalogue = catalogue(&[("held", Requires::Any, true), ("not-held", Requires::Any, true)]);
        let parties = Parties { user: Some(&facts(&[("held", 0, None, None)])), client: &facts(&[]) };
        let mut requests: Vec<Vec<&str>> = vec![vec![]];
        let mut done = 0;
        while requests[done].len() < 5 {
            requests.extend(names.map(|name| [requests[done].as_slice(), &[name]].concat()));
            done += 1;
        }
        for request in requests {
            let first = |&(place, name): &(usize, &str)| !request[..place].contains(&name);
            let distinct = request.iter().copied().enumerate().filter(first).map(|(_, name)| name);
            let (kept, removed): (Vec<_>, Vec<_>) = distinct.partition(|name| ["held", "openid"].contains(name));
            let decision = decide(&catalogue, Unmanaged::Remove, parties, &request, at(0));
            assert_eq!(decision.kept().collect::<Vec<_>>(), kept, "{request:?}");
            assert_eq!(decision.removed().collect::<Vec<_>>(), removed, "{request:?}");
        }
    }

    #[test]
    fn a_word_names_each_reason() {
        let words =
            ["unmanaged", "active", "not_enforced", "scheduled", "canceled", "expired", "no_subscription", "no_user"];
        assert_eq!(Reason::ALL.map(Reason::as_str), words);
    }
}
