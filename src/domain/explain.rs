//! The explanation of a decision: which subscriptions it rests on, and when it will be another one.
//!
//! It decides nothing by itself: what it explains is what [`decide`] says of the same facts.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    catalogue::{Catalogue, Requires, Rule},
    decision::{self, Decision, Knowledge, OnUnknown, Stance, Undecidable, Unmanaged, decide, keeps},
    facts::Standing,
    holdings::{Holdings, first_change},
};

/// The parties of one request, with what each holds.
#[derive(Debug, Clone, Copy)]
pub struct Parties<'a> {
    /// The user; none when the request names none.
    pub user: Option<&'a Holdings>,
    /// The client.
    pub client: &'a Holdings,
}

impl<'a> Parties<'a> {
    /// What is known of them: all of it.
    #[must_use]
    pub fn known(self) -> decision::Parties<'a> {
        let known = |holdings: &'a Holdings| Knowledge::Known(holdings.facts());
        decision::Parties { user: self.user.map(known), client: known(self.client) }
    }
}

/// When a scope changes sides, as long as nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The first instant at which it does.
    pub at: DateTime<Utc>,
    /// Whether it is kept from then on.
    pub kept: bool,
}

/// What the outcome of one scope rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grounds {
    /// The subscriptions that decided it, ascending by id: those of the deciding parties whose status is the one behind
    /// the reason, also behind the one for which it would have been removed, were its rule enforced.
    pub subscriptions: Vec<Uuid>,
    /// When it is kept no longer, or kept again. None when it stays so for ever, as what is unmanaged or not enforced
    /// does.
    pub next: Option<Next>,
}

/// A decision with its grounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The decision.
    pub decision: Decision<'a>,
    /// The grounds of each of its outcomes, in their order.
    pub grounds: Vec<Grounds>,
}

/// Decides which of the requested scopes stay at `at`, and says what that rests on.
///
/// # Errors
///
/// [`Undecidable`] never comes, for everything is known; it is passed on so that no guess has to be made here.
pub fn explain<'a>(
    catalogue: &Catalogue,
    unmanaged: Unmanaged,
    parties: Parties<'_>,
    requested: &[&'a str],
    at: DateTime<Utc>,
) -> Result<Explanation<'a>, Undecidable> {
    let stance = Stance { unmanaged, on_unknown: OnUnknown::Error };
    let decision = decide(catalogue, stance, parties.known(), requested, at)?;
    let grounds = decision.outcomes.iter().map(|outcome| match catalogue.rule(outcome.scope) {
        Some(rule) => grounds(outcome.scope, rule, parties, at),
        None => Grounds::default(),
    });
    let grounds = grounds.collect();
    Ok(Explanation { decision, grounds })
}

fn grounds(scope: &str, rule: Rule, parties: Parties<'_>, at: DateTime<Utc>) -> Grounds {
    let Parties { user, client } = parties;
    let standing = |holdings: &Holdings| holdings.facts().standing(scope, at);
    let (by_user, by_client) = deciding(rule.requires, user.map(standing), standing(client));
    let deciders = [(user, by_user), (Some(client), by_client)];
    let deciders = deciders.into_iter().filter_map(|(holdings, standing)| holdings.zip(standing));
    let mut subscriptions: Vec<_> =
        deciders.flat_map(|(holdings, standing)| holdings.standing_so(scope, standing, at)).collect();
    subscriptions.sort_unstable();

    let nobody = Holdings::default();
    let kept = |[of_user, of_client]: [Standing; 2]| keeps(rule, user.map(|_| of_user), of_client);
    let next = first_change([user.unwrap_or(&nobody), client], scope, at, kept);
    Grounds { subscriptions, next: next.map(|(at, kept)| Next { at, kept }) }
}

/// The standings that are the reason of an outcome: the user's, the client's, both, or none when a user is missing.
fn deciding(requires: Requires, user: Option<Standing>, client: Standing) -> (Option<Standing>, Option<Standing>) {
    match (requires, user) {
        (Requires::User, user) => (user, None),
        (Requires::Client, _) | (Requires::Any, None) => (None, Some(client)),
        (Requires::Any, Some(user)) => ((user <= client).then_some(user), (client <= user).then_some(client)),
        (Requires::All, None) => (None, None),
        // Of two that hold it both are needed; of two that do not, the user's failure is told.
        (Requires::All, Some(user)) => match (user.is_held(), client.is_held()) {
            (true, true) => (Some(user), Some(client)),
            (true, false) => (None, Some(client)),
            (false, _) => (Some(user), None),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::domain::{
        decision::Reason,
        life::{Life, Term},
        scope::Scope,
        window::Window,
    };

    /// The ids of the one subscription of the user and of the client in the tables.
    const USER: u128 = 7;
    const CLIENT: u128 = 3;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).expect(text)
    }

    fn window(from: i64, until: Option<i64>) -> Window {
        Window::new(at(from), until.map(at)).expect("a window")
    }

    fn life(from: i64, until: Option<i64>, grace_until: Option<i64>) -> Life {
        Term::new(window(from, until), grace_until.map(at)).expect("a term").into()
    }

    fn holdings(lives: &[(&str, u128, Life)]) -> Holdings {
        Holdings::new(lives.iter().map(|(name, id, life)| (scope(name), Uuid::from_u128(*id), *life)).collect())
    }

    /// Lives of which one gives each standing at 10, the best first; of the last there is none.
    fn lives_by_standing() -> [Option<Life>; 7] {
        [
            Some(life(10, Some(11), None)),
            Some(life(0, Some(10), Some(11))),
            Some(Life { pause: Some(window(10, None)), ..life(0, None, None) }),
            Some(life(11, None, None)),
            Some(Life { canceled_at: Some(at(10)), ..life(0, None, None) }),
            Some(life(0, Some(10), None)),
            None,
        ]
    }

    fn catalogue(requires: Requires, enforced: bool) -> Catalogue {
        std::iter::once((scope("x"), Rule { requires, enforced })).collect()
    }

    fn explained<'a>(
        catalogue: &Catalogue,
        user: Option<&Holdings>,
        client: &Holdings,
        requested: &[&'a str],
        now: i64,
    ) -> Explanation<'a> {
        explain(catalogue, Unmanaged::Keep, Parties { user, client }, requested, at(now)).expect("everything is known")
    }

    #[test]
    fn those_who_decided_are_told_for_every_standing_of_user_and_client() {
        // The columns are the client: active, in grace, paused, scheduled, canceled, expired, without a subscription. The
        // rows are the user: the same, and no user. It was decided by the user, the client, both, or nobody's.
        let expected = [
            (Requires::User, ["uuuuuuu", "uuuuuuu", "uuuuuuu", "uuuuuuu", "uuuuuuu", "uuuuuuu", ".......", "......."]),
            (Requires::Client, ["cccccc."; 8]),
            (Requires::Any, ["buuuuuu", "cbuuuuu", "ccbuuuu", "cccbuuu", "ccccbuu", "cccccbu", "cccccc.", "cccccc."]),
            (Requires::All, ["bbcccc.", "bbcccc.", "uuuuuuu", "uuuuuuu", "uuuuuuu", "uuuuuuu", ".......", "......."]),
        ];
        let lives = lives_by_standing();
        let one = |id, life: Option<Life>| match life {
            // Others are no matter: of another scope, or worse than the one that decides.
            Some(life) => holdings(&[("x", id, life), ("xx", 1, lives[0].expect("a life"))]),
            None => holdings(&[("xx", 1, lives[0].expect("a life"))]),
        };
        for (requires, rows) in expected {
            for (row, user) in rows.into_iter().zip(lives.map(Some).into_iter().chain([None])) {
                for (decider, client) in row.chars().zip(lives) {
                    let (user, client) = (user.map(|life| one(USER, life)), one(CLIENT, client));
                    let ids: &[u128] = match decider {
                        'u' => &[USER],
                        'c' => &[CLIENT],
                        'b' => &[CLIENT, USER],
                        _ => &[],
                    };
                    let ids: Vec<_> = ids.iter().copied().map(Uuid::from_u128).collect();
                    for enforced in [true, false] {
                        let catalogue = catalogue(requires, enforced);
                        let found = explained(&catalogue, user.as_ref(), &client, &["x"], 10);
                        assert_eq!(found.grounds[0].subscriptions, ids, "{requires:?} {user:?} {client:?} {found:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_several_subscriptions_those_whose_status_is_the_reason_decided() {
        let active = life(0, Some(20), None);
        let user = holdings(&[
            ("x", 9, active),
            ("x", 4, life(5, None, None)),
            ("x", 5, life(0, Some(8), Some(12))),
            ("x", 6, life(11, None, None)),
            ("xx", 8, active),
        ]);
        let client = holdings(&[("x", 2, life(0, Some(8), Some(12))), ("x", 1, life(0, Some(8), None))]);
        let check = |requires, now, ids: &[u128], reason| {
            let found = explained(&catalogue(requires, true), Some(&user), &client, &["x"], now);
            let ids: Vec<_> = ids.iter().copied().map(Uuid::from_u128).collect();
            assert_eq!((found.decision.outcomes[0].reason, &found.grounds[0].subscriptions), (reason, &ids));
        };
        check(Requires::User, 10, &[4, 9], Reason::Active);
        check(Requires::User, 11, &[4, 6, 9], Reason::Active);
        check(Requires::Any, 10, &[4, 9], Reason::Active);
        check(Requires::Client, 7, &[1, 2], Reason::Active);
        check(Requires::Client, 8, &[2], Reason::Grace);
        check(Requires::Client, 12, &[1, 2], Reason::Expired);
        // Two that hold it for different reasons hold it together.
        check(Requires::All, 10, &[2, 4, 9], Reason::Grace);
        check(Requires::All, 12, &[1, 2], Reason::Expired);
    }

    #[test]
    fn the_next_change_is_the_first_instant_at_which_the_decision_is_another_one() {
        // Lives that begin, end, pause, have a grace and are canceled below 5; beyond that nothing changes.
        let mut lives = vec![None];
        for (from, until) in [(0, Some(2)), (0, None), (1, Some(3)), (3, None)] {
            for grace in [None, until.map(|until| until + 1)] {
                for pause in [None, Some((1, Some(2))), Some((3, None))] {
                    for canceled_at in [None, Some(3)] {
                        let pause = pause.map(|(from, until)| window(from, until));
                        let life = Life { pause, canceled_at: canceled_at.map(at), ..life(from, until, grace) };
                        lives.push(Some(life));
                    }
                }
            }
        }
        let one = |life: &Option<Life>| holdings(life.map(|life| ("x", 1, life)).as_slice());
        let mut seen = [0; 2];
        for (user, client) in lives.iter().flat_map(|user| lives.iter().map(move |client| (user, client))) {
            let (user, client) = (one(user), one(client));
            for requires in Requires::ALL {
                let catalogue = catalogue(requires, true);
                for user in [Some(&user), None] {
                    let kept = |now| explained(&catalogue, user, &client, &["x"], now).decision.outcomes[0].kept;
                    let kept: Vec<_> = (0..7).map(kept).collect();
                    for (now, kept_now) in (0..7).zip(&kept) {
                        let change = (0..7).zip(&kept).find(|(later, kept)| now < *later && *kept != kept_now);
                        let expected = change.map(|(change, kept)| Next { at: at(change), kept: *kept });
                        let found = explained(&catalogue, user, &client, &["x"], now).grounds[0].next;
                        assert_eq!(found, expected, "{requires:?} {user:?} {client:?} at {now}");
                        seen[usize::from(expected.is_some())] += 1;
                    }
                }
            }
        }
        assert!(seen.into_iter().all(|count| count > 10_000), "{seen:?}");
    }

    #[test]
    fn what_no_subscription_decides_has_no_grounds_and_stays_so() {
        let user = holdings(&[("x", 1, life(0, Some(20), None)), ("email", 2, life(0, Some(20), None))]);
        let catalogue = catalogue(Requires::All, false);
        let requested = ["email", "x", "é", "x", "email"];
        let found = explained(&catalogue, Some(&user), &Holdings::default(), &requested, 10);
        let scopes: Vec<_> = found.decision.outcomes.iter().map(|outcome| outcome.scope).collect();
        assert_eq!(scopes, ["email", "x", "é"]);
        assert_eq!(found.grounds, [Grounds::default(), Grounds::default(), Grounds::default()]);
    }

    #[test]
    fn tens_of_thousands_of_subscriptions_are_explained_in_a_moment() {
        // One after the other, so that the last of them tells when it ends: to look at all of them at each of their
        // boundaries would take minutes.
        let many = 40_000;
        let lives = (0..many).map(|number| ("x", u128::try_from(number).expect("a number"), number));
        let lives: Vec<_> =
            lives.map(|(name, id, number)| (name, id, life(number, Some(number + 1), Some(number + 2)))).collect();
        let user = holdings(&lives);
        let start = Instant::now();
        let found = explained(&catalogue(Requires::User, true), Some(&user), &Holdings::default(), &["x"], 0);
        assert_eq!(found.grounds[0].next, Some(Next { at: at(many + 1), kept: false }));
        assert_eq!(user.facts().held_until("x", at(0)), Some(at(many + 1)));
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}
