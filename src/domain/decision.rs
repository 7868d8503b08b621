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

/// So many scopes are compared one by one to find the repeated ones; more of them are hashed.
const FEW_SCOPES: usize = 16;

/// What happens to scopes that are not in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmanaged {
    /// They stay.
    #[default]
    Keep,
    /// They are removed, but for [`PROTOCOL_SCOPES`].
    Remove,
}

/// What happens to a managed scope when nothing is known of whether it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnknown {
    /// Nothing is decided: the caller is told so.
    #[default]
    Error,
    /// It is removed.
    Remove,
    /// It stays.
    Keep,
}

/// Why a scope was kept or removed: one reason each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is not in the catalogue.
    Unmanaged,
    /// Everyone who must hold it has an active subscription.
    Active,
    /// Everyone who must hold it does so, one of them in the grace after a window.
    Grace,
    /// It would have been removed, but its rule is not enforced.
    NotEnforced,
    /// The subscription is paused.
    Paused,
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
    /// Whether it is held is not known.
    Unknown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Unmanaged,
        Self::Active,
        Self::Grace,
        Self::NotEnforced,
        Self::Paused,
        Self::Scheduled,
        Self::Canceled,
        Self::Expired,
        Self::NoSubscription,
        Self::NoUser,
        Self::Unknown,
    ];

    /// The word for the reason in the API and in the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmanaged => "unmanaged",
            Self::Active => "active",
            Self::Grace => "grace",
            Self::NotEnforced => "not_enforced",
            Self::Paused => "paused",
            Self::Scheduled => "scheduled",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::NoSubscription => "no_subscription",
            Self::NoUser => "no_user",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the scope is held by everyone who must hold it.
    #[must_use]
    pub fn is_held(self) -> bool {
        match self {
            Self::Active | Self::Grace => true,
            Self::Unmanaged
            | Self::NotEnforced
            | Self::Paused
            | Self::Scheduled
            | Self::Canceled
            | Self::Expired
            | Self::NoSubscription
            | Self::NoUser
            | Self::Unknown => false,
        }
    }
}

impl From<Standing> for Reason {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Grace => Self::Grace,
            Standing::Paused => Self::Paused,
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

/// What is known of a party.
#[derive(Debug, Clone, Copy)]
pub enum Knowledge<'a> {
    /// Its facts.
    Known(&'a Facts),
    /// Nothing.
    Unknown,
}

impl Knowledge<'_> {
    fn standing(self, scope: &str, now: DateTime<Utc>) -> Option<Standing> {
        match self {
            Self::Known(facts) => Some(facts.standing(scope, now)),
            Self::Unknown => None,
        }
    }
}

/// The parties of one request, with what is known of each.
#[derive(Debug, Clone, Copy)]
pub struct Parties<'a> {
    /// The user; none when the request names none.
    pub user: Option<Knowledge<'a>>,
    /// The client.
    pub client: Knowledge<'a>,
}

/// What an operator decides about what the catalogue and the facts do not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stance {
    /// What happens to scopes that are not in the catalogue.
    pub unmanaged: Unmanaged,
    /// What happens to managed scopes of which nothing is known.
    pub on_unknown: OnUnknown,
}

/// Something that the decision needs is not known, and the operator wants no guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("whether a requested scope is held is not known")]
pub struct Undecidable;

/// Decides which of the requested scopes stay at `now`.
///
/// A scope string may be repeated, strange or no scope token at all: it is decided once, at its first place.
///
/// # Errors
///
/// [`Undecidable`] when the answer for an enforced scope rests on what is not known, and the stance is to say so.
pub fn decide<'a>(
    catalogue: &Catalogue,
    stance: Stance,
    parties: Parties<'_>,
    requested: &[&'a str],
    now: DateTime<Utc>,
) -> Result<Decision<'a>, Undecidable> {
    let mut seen = HashSet::new();
    let mut outcomes: Vec<Outcome<'a>> = Vec::with_capacity(requested.len());
    for scope in requested.iter().copied() {
        let is_repeated = if requested.len() <= FEW_SCOPES {
            outcomes.iter().any(|outcome| outcome.scope == scope)
        } else {
            !seen.insert(scope)
        };
        if is_repeated {
            continue;
        }
        outcomes.push(if let Some(rule) = catalogue.rule(scope) {
            let user = || parties.user.map(|user| user.standing(scope, now));
            let client = || parties.client.standing(scope, now);
            managed(scope, rule, stance.on_unknown, held(rule.requires, user, client))?
        } else {
            let kept = stance.unmanaged == Unmanaged::Keep || PROTOCOL_SCOPES.contains(&scope);
            Outcome { scope, kept, reason: Reason::Unmanaged, unenforced: None }
        });
    }
    Ok(Decision { outcomes })
}

fn managed(scope: &str, rule: Rule, on_unknown: OnUnknown, held: Reason) -> Result<Outcome<'_>, Undecidable> {
    let kept = match (held, rule.enforced, on_unknown) {
        (Reason::Active | Reason::Grace, _, _) | (Reason::Unknown, true, OnUnknown::Keep) => true,
        (reason, false, _) => {
            return Ok(Outcome { scope, kept: true, reason: Reason::NotEnforced, unenforced: Some(reason) });
        }
        (Reason::Unknown, true, OnUnknown::Error) => return Err(Undecidable),
        (_, true, _) => false,
    };
    Ok(Outcome { scope, kept, reason: held, unenforced: None })
}

/// Whether a managed scope stays when its parties stand to it like this; no user when the request names none.
pub(super) fn keeps(rule: Rule, user: Option<Standing>, client: Standing) -> bool {
    let held = held(rule.requires, || user.map(Some), || Some(client));
    managed("", rule, OnUnknown::Error, held).is_ok_and(|outcome| outcome.kept)
}

/// [`Reason::Active`] or [`Reason::Grace`] when everyone who must hold the scope does, else the first reason that applies.
///
/// More knowledge can only make a standing better, so what is held is so whatever is not known.
fn held(
    requires: Requires,
    user: impl FnOnce() -> Option<Option<Standing>>,
    client: impl FnOnce() -> Option<Standing>,
) -> Reason {
    let reason = |standing: Option<Standing>| standing.map_or(Reason::Unknown, Reason::from);
    match requires {
        Requires::User => user().map_or(Reason::NoUser, reason),
        Requires::Client => reason(client()),
        Requires::Any => match (user(), client()) {
            (Some(Some(user)), Some(client)) => user.min(client).into(),
            (Some(Some(held)), None) | (Some(None), Some(held)) if held.is_held() => held.into(),
            (Some(_), _) => Reason::Unknown,
            (None, client) => reason(client),
        },
        Requires::All => match user() {
            None => Reason::NoUser,
            // Of two that hold it the worse counts; one that does not is worse than any that does.
            Some(Some(user)) if user.is_held() => reason(client().map(|client| user.max(client))),
            Some(user) => reason(user),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        life::{Life, Term},
        scope::Scope,
        window::Window,
    };

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn facts(lives: &[(&str, i64, Option<i64>, Option<i64>)]) -> Facts {
        let pair = |&(scope, from, until, canceled_at): &(&str, i64, Option<i64>, Option<i64>)| {
            let window = Window::new(at(from), until.map(at)).expect("a window");
            (Scope::parse(scope).expect(scope), Life { canceled_at: canceled_at.map(at), ..window.into() })
        };
        Facts::new(lives.iter().map(pair).collect())
    }

    /// Facts of one life of "x": [0, 10) with a grace until 11, and paused at 10 or not.
    fn late(is_paused: bool) -> Facts {
        let term = Term::new(Window::new(at(0), Some(at(10))).expect("a window"), Some(at(11))).expect("a term");
        let pause = is_paused.then(|| Window::new(at(10), None).expect("a pause"));
        Facts::new(vec![(Scope::parse("x").expect("x"), Life { pause, ..term.into() })])
    }

    fn catalogue(rules: &[(&str, Requires, bool)]) -> Catalogue {
        let pair = |&(scope, requires, enforced): &(&str, Requires, bool)| {
            (Scope::parse(scope).expect(scope), Rule { requires, enforced })
        };
        rules.iter().map(pair).collect()
    }

    /// Parties of which everything is known.
    #[derive(Clone, Copy)]
    struct Parties<'a> {
        user: Option<&'a Facts>,
        client: &'a Facts,
    }

    /// Decides with everything known.
    fn decide<'a>(
        catalogue: &Catalogue,
        unmanaged: Unmanaged,
        parties: Parties<'_>,
        requested: &[&'a str],
        now: DateTime<Utc>,
    ) -> Decision<'a> {
        let stance = Stance { unmanaged, on_unknown: OnUnknown::Error };
        let (user, client) = (parties.user.map(Knowledge::Known), Knowledge::Known(parties.client));
        super::decide(catalogue, stance, super::Parties { user, client }, requested, now).expect("everything is known")
    }

    /// What is active whatever the unknown party holds is kept, and nothing else is guessed.
    #[test]
    fn what_is_not_known_is_decided_only_where_it_makes_no_difference() {
        use Knowledge::{Known, Unknown};
        use Reason::{Active as A, NoUser as U, Unknown as X};
        let (active, grace, nothing) = (facts(&[("x", 10, None, None)]), late(false), Facts::default());
        let (active, grace, nothing) = (Known(&active), Known(&grace), Known(&nothing));
        let g = Reason::Grace;
        let expected = [
            // The user and the client, and the reasons for: user, client, any, all.
            (Some(Unknown), Unknown, [X, X, X, X]),
            (Some(Unknown), active, [X, A, A, X]),
            (Some(Unknown), nothing, [X, Reason::NoSubscription, X, X]),
            (Some(active), Unknown, [A, X, A, X]),
            (Some(grace), Unknown, [g, X, g, X]),
            (Some(Unknown), grace, [X, g, g, X]),
            (Some(nothing), Unknown, [Reason::NoSubscription, X, X, Reason::NoSubscription]),
            (None, Unknown, [U, X, X, U]),
        ];
        for (user, client, reasons) in expected {
            for (requires, reason) in Requires::ALL.into_iter().zip(reasons) {
                for (enforced, on_unknown) in [
                    (true, OnUnknown::Error),
                    (true, OnUnknown::Remove),
                    (true, OnUnknown::Keep),
                    (false, OnUnknown::Error),
                ] {
                    let stance = Stance { unmanaged: Unmanaged::Keep, on_unknown };
                    let catalogue = catalogue(&[("x", requires, enforced)]);
                    let parties = super::Parties { user, client };
                    let decided = super::decide(&catalogue, stance, parties, &["x"], at(10));
                    let outcome = |kept, reason, unenforced| {
                        Ok(Decision { outcomes: vec![Outcome { scope: "x", kept, reason, unenforced }] })
                    };
                    let expected = match (reason, enforced, on_unknown) {
                        (Reason::Active | Reason::Grace, ..) => outcome(true, reason, None),
                        (reason, false, _) => outcome(true, Reason::NotEnforced, Some(reason)),
                        (Reason::Unknown, true, OnUnknown::Error) => Err(Undecidable),
                        (Reason::Unknown, true, on_unknown) => outcome(on_unknown == OnUnknown::Keep, X, None),
                        (reason, true, _) => outcome(false, reason, None),
                    };
                    assert_eq!(decided, expected, "{user:?} {client:?} {requires:?} {enforced} {on_unknown:?}");
                }
            }
        }
    }

    /// What rules 2 and 7 of the design say of every pair of a user's and a client's standing.
    #[test]
    fn each_rule_gives_its_reason_for_every_standing_of_user_and_client() {
        use Reason::{
            Active as A, Canceled as C, Expired as E, Grace as G, NoSubscription as N, NoUser as U, Paused as P,
            Scheduled as S,
        };
        // The columns are the client: active, in grace, paused, scheduled, canceled, expired, without a subscription.
        let expected = [
            (
                Requires::User,
                [
                    [A, A, A, A, A, A, A], // an active user
                    [G, G, G, G, G, G, G], // in grace
                    [P, P, P, P, P, P, P], // paused
                    [S, S, S, S, S, S, S], // scheduled
                    [C, C, C, C, C, C, C], // canceled
                    [E, E, E, E, E, E, E], // expired
                    [N, N, N, N, N, N, N], // without a subscription
                    [U, U, U, U, U, U, U], // no user
                ],
            ),
            (
                Requires::Client,
                [
                    [A, G, P, S, C, E, N], // an active user
                    [A, G, P, S, C, E, N], // in grace
                    [A, G, P, S, C, E, N], // paused
                    [A, G, P, S, C, E, N], // scheduled
                    [A, G, P, S, C, E, N], // canceled
                    [A, G, P, S, C, E, N], // expired
                    [A, G, P, S, C, E, N], // without a subscription
                    [A, G, P, S, C, E, N], // no user
                ],
            ),
            (
                Requires::Any,
                [
                    [A, A, A, A, A, A, A], // an active user
                    [A, G, G, G, G, G, G], // in grace
                    [A, G, P, P, P, P, P], // paused
                    [A, G, P, S, S, S, S], // scheduled
                    [A, G, P, S, C, C, C], // canceled
                    [A, G, P, S, C, E, E], // expired
                    [A, G, P, S, C, E, N], // without a subscription
                    [A, G, P, S, C, E, N], // no user
                ],
            ),
            (
                Requires::All,
                [
                    [A, G, P, S, C, E, N], // an active user
                    [G, G, P, S, C, E, N], // in grace
                    [P, P, P, P, P, P, P], // paused
                    [S, S, S, S, S, S, S], // scheduled
                    [C, C, C, C, C, C, C], // canceled
                    [E, E, E, E, E, E, E], // expired
                    [N, N, N, N, N, N, N], // without a subscription
                    [U, U, U, U, U, U, U], // no user
                ],
            ),
        ];
        // At 10, in that order.
        let standings = [
            facts(&[("x", 10, Some(11), None)]),
            late(false),
            late(true),
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
                            (A | G, _) => Outcome { scope: "x", kept: true, reason, unenforced: None },
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
            "unmanaged active grace not_enforced paused scheduled canceled expired no_subscription no_user unknown";
        assert_eq!(Reason::ALL.map(Reason::as_str).join(" "), words);
    }
}
