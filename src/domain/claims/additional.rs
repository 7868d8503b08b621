//! Which claims an answer gives: about the scopes that stay because they are held, and of those who grant them.

use std::{cmp::Reverse, collections::HashSet};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Claims, ClaimsPrefix, ENTITLED_UNTIL, ENTITLEMENTS, length};
use crate::domain::{
    catalogue::{Catalogue, Requires},
    decision::{Knowledge, Outcome, Parties},
    facts::Facts,
    life::{Life, Status},
    scope::Scope,
};

/// The most bytes of the claims of one answer, as JSON. A token travels in a header, for which servers commonly have
/// room for 8 KiB: these make 5.5 KiB of it in Base64, and Access has claims of its own to add.
pub const MAX_ANSWER_BYTES: usize = 4096;
/// A subscription with claims of its own: what has to be known of it to tell whether they are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearing {
    /// Its id, which ascends with the time of its creation.
    pub id: Uuid,
    /// When it grants its scopes.
    pub life: Life,
    /// Its scopes.
    pub scopes: Box<[Scope]>,
    /// Its claims.
    pub claims: Claims,
}

impl Bearing {
    fn is_granting(&self, now: DateTime<Utc>) -> bool {
        match self.life.status(now) {
            Status::Active | Status::Grace => true,
            Status::Scheduled | Status::Paused | Status::Canceled | Status::Expired => false,
        }
    }
}

/// The claims of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdditionalClaims {
    /// The claims, by name.
    pub claims: Map<String, Value>,
    /// How many there was no room for.
    pub left_out: usize,
}

/// A scope that stays because it is held.
struct Held<'a> {
    scope: &'a str,
    requires: Requires,
    until: Option<DateTime<Utc>>,
}

/// The claims about the scopes that stay because they are held at `now`; none when there is no such scope.
///
/// Scopes that stay for another reason earn none. The claims are, in this order:
///
/// 1. until when: the first of the ends below, in whole seconds since 1970, when one of the scopes ends;
/// 2. what is held: each scope, in requested order, with its end unless it has none;
/// 3. those of the subscriptions that grant one of these scopes to somebody who must hold it, the one created last first;
/// 4. those of the scopes in the catalogue, in requested order.
///
/// Of several claims of one name the first counts. Each is given that still fits into [`MAX_ANSWER_BYTES`]; what does
/// not fit is left out, and makes no room for another of its name. Names without the prefix are passed over: they were
/// written under another one.
///
/// Of a party that is not known nothing is told: an end may then be told too early, and never too late.
#[must_use]
pub fn additional(
    prefix: &ClaimsPrefix,
    catalogue: &Catalogue,
    parties: Parties<'_>,
    outcomes: &[Outcome<'_>],
    now: DateTime<Utc>,
) -> AdditionalClaims {
    let held: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.reason.is_held())
        .filter_map(|outcome| {
            let requires = catalogue.rule(outcome.scope)?.requires;
            let until = held_until(outcome.scope, requires, parties, now);
            Some(Held { scope: outcome.scope, requires, until })
        })
        .collect();
    let mut answer = AdditionalClaims::default();
    if held.is_empty() {
        return answer;
    }
    // The braces.
    let mut bytes = 2;
    if let Some(first) = held.iter().filter_map(|held| held.until).min() {
        answer.give(prefix.name(ENTITLED_UNTIL), first.timestamp().into(), &mut bytes);
    }
    answer.give(prefix.name(ENTITLEMENTS), held.iter().map(entitlement).collect(), &mut bytes);

    let bearings = bearings(parties, &held, now);
    let of_subscriptions = bearings.iter().map(|bearing| &bearing.claims);
    let of_scopes = held.iter().filter_map(|held| catalogue.claims(held.scope));
    let mut seen = HashSet::new();
    for (name, value) in of_subscriptions.chain(of_scopes).flat_map(|claims| &claims.0) {
        if prefix.check(name).is_ok() && seen.insert(&**name) {
            answer.give(name.to_string(), value.clone(), &mut bytes);
        }
    }
    answer
}

impl AdditionalClaims {
    /// Gives a claim, if it still fits.
    fn give(&mut self, name: String, value: Value, bytes: &mut usize) {
        // Names need no escapes: two quotes, a colon, and a comma after another claim.
        let more = name.len() + 3 + length(&value) + usize::from(!self.claims.is_empty());
        if *bytes + more <= MAX_ANSWER_BYTES {
            *bytes += more;
            self.claims.insert(name, value);
        } else {
            self.left_out += 1;
        }
    }
}

fn entitlement(held: &Held<'_>) -> Value {
    let mut members = Map::from_iter([("scope".to_owned(), held.scope.into())]);
    if let Some(until) = held.until {
        members.insert("until".to_owned(), until.timestamp().into());
    }
    members.into()
}

/// The subscriptions with claims that grant a held scope to somebody who must hold it, the one created last first.
fn bearings<'a>(parties: Parties<'a>, held: &[Held<'_>], now: DateTime<Utc>) -> Vec<&'a Bearing> {
    let asked = |bearing: &Bearing, pointless: Requires| {
        bearing
            .scopes
            .iter()
            .any(|scope| held.iter().any(|held| held.scope == scope.as_str() && held.requires != pointless))
    };
    let of = |party: Option<Knowledge<'a>>, pointless| {
        let bearings = party.and_then(known).map_or(&[][..], Facts::bearings);
        bearings.iter().filter(move |bearing| bearing.is_granting(now) && asked(bearing, pointless))
    };
    let mut found: Vec<_> =
        of(parties.user, Requires::Client).chain(of(Some(parties.client), Requires::User)).collect();
    found.sort_unstable_by_key(|bearing| Reverse(bearing.id));
    found
}

/// The first instant after `now` at which a scope is no longer held by those who must hold it, when it is held at
/// `now`; none when that never comes.
#[must_use]
pub fn held_until(scope: &str, requires: Requires, parties: Parties<'_>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let (user, client) = (parties.user.and_then(known), known(parties.client));
    let of = |facts: Option<&Facts>| facts.and_then(|facts| facts.held_until(scope, now));
    match requires {
        Requires::User => of(user),
        Requires::Client => of(client),
        Requires::Any => Facts::held_by_any_until(user.into_iter().chain(client), scope, now),
        // Both hold it, so one without an end holds it for ever.
        Requires::All => of(user).into_iter().chain(of(client)).min(),
    }
}

fn known(party: Knowledge<'_>) -> Option<&Facts> {
    match party {
        Knowledge::Known(facts) => Some(facts),
        Knowledge::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        catalogue::Rule,
        claims::tests::{claims, object, prefix},
        decision::{OnUnknown, Stance, Unmanaged, decide},
        life::Term,
        window::Window,
    };

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn scope(name: &str) -> Scope {
        Scope::parse(name).expect(name)
    }

    fn window(from: i64, until: Option<i64>) -> Window {
        Window::new(at(from), until.map(at)).expect("a window")
    }

    /// Facts of lives of the scope "x".
    fn facts(lives: &[Life]) -> Facts {
        Facts::new(lives.iter().map(|life| (scope("x"), *life)).collect())
    }

    fn told(
        rules: &[(&str, Requires, bool)],
        user: Option<&Facts>,
        client: &Facts,
        requested: &[&str],
        now: i64,
    ) -> AdditionalClaims {
        let rules = rules.iter().map(|&(name, requires, enforced)| (scope(name), Rule { requires, enforced }));
        let catalogue: Catalogue = rules.collect();
        let parties = Parties { user: user.map(Knowledge::Known), client: Knowledge::Known(client) };
        let decision = decide(&catalogue, Stance::default(), parties, requested, at(now)).expect("decided");
        additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(now))
    }

    #[test]
    fn the_end_of_a_scope_is_the_first_instant_at_which_it_would_be_removed() {
        const S: i64 = 1_000_000;
        // [0, 10 s) and a half; with a grace until 12 s; paused from 5 s on; canceled at 3 s; [8 s, ...).
        let plain = Life::from(window(0, Some(10 * S + S / 2)));
        let graced = Life::from(Term::new(window(0, Some(10 * S)), Some(at(12 * S + S - 1))).expect("a term"));
        let paused = Life { pause: Some(window(5 * S, None)), ..plain };
        let canceled = Life { canceled_at: Some(at(3 * S)), ..plain };
        let open = Life::from(window(8 * S, None));
        let nobody = facts(&[]);
        let check = |requires, user: Option<&[Life]>, client: &[Life], now, expected: Option<Option<i64>>| {
            let user = user.map(facts);
            let told = told(&[("x", requires, true)], user.as_ref(), &facts(client), &["x", "other", "x"], now);
            let claims = Value::Object(told.claims);
            let expected = match expected {
                None => json!({}),
                Some(None) => json!({"x:entitlements": [{"scope": "x"}]}),
                Some(Some(until)) => {
                    json!({"x:entitlements": [{"scope": "x", "until": until}], "x:entitled_until": until})
                }
            };
            assert_eq!((claims, told.left_out), (expected, 0), "{requires:?} {user:?} at {now}");
        };
        for requires in [Requires::User, Requires::Any] {
            let check = |lives: &[Life], now, expected| check(requires, Some(lives), &[], now, expected);
            // Half a second is rounded down, and the scope is held to the last microsecond.
            check(&[plain], 0, Some(Some(10)));
            check(&[plain], -1, None);
            check(&[plain], 10 * S + S / 2 - 1, Some(Some(10)));
            check(&[plain], 10 * S + S / 2, None);
            check(&[graced], 10 * S - 1, Some(Some(12)));
            check(&[graced], 10 * S, Some(Some(12)));
            check(&[graced], 12 * S + S - 2, Some(Some(12)));
            check(&[graced], 12 * S + S - 1, None);
            check(&[paused], 5 * S - 1, Some(Some(5)));
            check(&[paused], 5 * S, None);
            check(&[canceled], 3 * S - 1, Some(Some(3)));
            check(&[canceled], 3 * S, None);
            check(&[open], 8 * S - 1, None);
            check(&[open], 8 * S, Some(None));
            check(&[plain, open], 0, Some(None));
            check(&[paused, open], 0, Some(Some(5)));
        }
        // Either party's time follows on the other's.
        check(Requires::Any, Some(&[plain]), &[open], 0, Some(None));
        check(Requires::Any, Some(&[canceled]), &[paused], 0, Some(Some(5)));
        check(Requires::Any, Some(&[]), &[plain], 0, Some(Some(10)));
        check(Requires::Any, None, &[plain], 0, Some(Some(10)));
        check(Requires::All, Some(&[plain]), &[paused], 0, Some(Some(5)));
        check(Requires::All, Some(&[paused]), &[plain], 0, Some(Some(5)));
        check(Requires::All, Some(&[open]), &[plain], 9 * S, Some(Some(10)));
        check(Requires::All, Some(&[plain]), &[open], 9 * S, Some(Some(10)));
        check(Requires::All, Some(&[open]), &[open], 9 * S, Some(None));
        check(Requires::All, Some(&[plain]), &[open], 0, None);
        check(Requires::Client, Some(&[plain]), &[paused], 0, Some(Some(5)));
        check(Requires::Client, Some(&[plain]), &[], 0, None);
        check(Requires::User, Some(&[paused]), &[plain], 0, Some(Some(5)));
        assert_eq!(told(&[("x", Requires::User, true)], None, &nobody, &["x"], 0), AdditionalClaims::default());
    }

    #[test]
    fn a_scope_that_stays_without_being_held_earns_nothing() {
        let (holder, nobody) = (facts(&[Life::from(window(0, Some(10)))]), facts(&[]));
        let unenforced = [("x", Requires::User, false)];
        assert_eq!(told(&unenforced, Some(&nobody), &holder, &["x", "openid"], 0), AdditionalClaims::default());
        assert_eq!(told(&unenforced, Some(&holder), &nobody, &["x", "openid"], 10), AdditionalClaims::default());
        assert_eq!(told(&[], Some(&holder), &holder, &["x", "openid"], 0), AdditionalClaims::default());
        // One that is held is told of, whether it is enforced or not.
        assert_eq!(told(&unenforced, Some(&holder), &nobody, &["x"], 0).claims.len(), 2);

        // What is not known is not told, and shortens no end of what is.
        let catalogue = Catalogue::from_iter([(scope("x"), Rule { requires: Requires::Any, enforced: true })]);
        let catalogue = catalogue.with_claims([(scope("x"), claims(json!({"x:a": 1})))].into());
        let stance = Stance { unmanaged: Unmanaged::Keep, on_unknown: OnUnknown::Keep };
        let claims = |user, client| {
            let parties = Parties { user, client };
            let decision = decide(&catalogue, stance, parties, &["x"], at(0)).expect("decided");
            assert!(decision.outcomes[0].kept);
            Value::Object(additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(0)).claims)
        };
        assert_eq!(claims(Some(Knowledge::Unknown), Knowledge::Unknown), json!({}));
        let expected = json!({"x:a": 1, "x:entitlements": [{"scope": "x", "until": 0}], "x:entitled_until": 0});
        assert_eq!(claims(Some(Knowledge::Known(&holder)), Knowledge::Unknown), expected);
    }

    /// A subscription with claims, which grants scopes in [0, 10).
    fn bearing(id: u128, scopes: &[&str], members: Value) -> Bearing {
        Bearing {
            id: Uuid::from_u128(id),
            life: window(0, Some(10)).into(),
            scopes: scopes.iter().map(|name| scope(name)).collect(),
            claims: Claims::of(object(members)),
        }
    }

    fn holder(bearings: Vec<Bearing>) -> Facts {
        let pair = |bearing: &Bearing| bearing.scopes.iter().map(|scope| (scope.clone(), bearing.life)).collect();
        Facts::new(bearings.iter().flat_map::<Vec<_>, _>(pair).collect()).with_bearings(bearings)
    }

    /// The catalogue of "a", "b" and "c", each held by whom its rule says and with claims.
    fn catalogue(requires: [Requires; 3], of_scopes: [Value; 3]) -> Catalogue {
        let rules = ["a", "b", "c"].into_iter().zip(requires);
        let rules: Catalogue = rules.map(|(name, requires)| (scope(name), Rule { requires, enforced: true })).collect();
        let of_scopes = ["a", "b", "c"].into_iter().zip(of_scopes);
        rules.with_claims(of_scopes.map(|(name, members)| (scope(name), claims(members))).collect())
    }

    fn given(catalogue: &Catalogue, user: &Facts, client: &Facts, requested: &[&str], now: i64) -> Value {
        let parties = Parties { user: Some(Knowledge::Known(user)), client: Knowledge::Known(client) };
        let decision = decide(catalogue, Stance::default(), parties, requested, at(now)).expect("decided");
        let mut told = additional(&prefix("x:"), catalogue, parties, &decision.outcomes, at(now));
        assert_eq!(told.left_out, 0);
        told.claims.remove("x:entitlements");
        told.claims.remove("x:entitled_until");
        Value::Object(told.claims)
    }

    #[test]
    fn a_subscription_beats_a_scope_a_later_one_an_earlier_and_a_scope_one_requested_after_it() {
        let catalogue = catalogue(
            [Requires::Any; 3],
            [json!({"x:1": "a", "x:2": "a", "x:3": "a"}), json!({"x:1": "b", "x:4": "b"}), json!({"x:5": "c"})],
        );
        let user = holder(vec![
            bearing(3, &["a"], json!({"x:1": "third", "x:6": "third"})),
            bearing(1, &["a", "b"], json!({"x:1": "first", "x:2": "first", "x:7": "first"})),
        ]);
        let client = holder(vec![bearing(2, &["b"], json!({"x:2": "second", "x:6": "second", "x:4": {"deep": [1]}}))]);
        let check = |requested: &[&str], now, expected: Value| {
            assert_eq!(given(&catalogue, &user, &client, requested, now), expected, "{requested:?} at {now}");
        };
        let of_subscriptions =
            json!({"x:1": "third", "x:2": "second", "x:4": {"deep": [1]}, "x:6": "third", "x:7": "first"});
        let mut all = of_subscriptions.clone();
        all["x:3"] = json!("a");
        check(&["a", "b", "c"], 0, all.clone());
        check(&["b", "a"], 9, all);
        check(&["b", "a"], 10, json!({}));
        check(&["a"], 0, json!({"x:1": "third", "x:2": "first", "x:3": "a", "x:6": "third", "x:7": "first"}));
        check(&["c"], 0, json!({}));
        let plain = holder(vec![bearing(1, &["a", "b"], json!({}))]);
        let nobody = Facts::default();
        let of_scopes = |requested: &[&str]| given(&catalogue, &plain, &nobody, requested, 0);
        assert_eq!(of_scopes(&["a", "b"]), json!({"x:1": "a", "x:2": "a", "x:3": "a", "x:4": "b"}));
        assert_eq!(of_scopes(&["b", "a"]), json!({"x:1": "b", "x:2": "a", "x:3": "a", "x:4": "b"}));
    }

    #[test]
    fn a_subscription_counts_while_it_grants_itself_to_somebody_who_is_asked() {
        let requires = [Requires::User, Requires::Client, Requires::All];
        let catalogue = catalogue(requires, [json!({}), json!({}), json!({})]);
        let of_user = bearing(1, &["a", "b"], json!({"x:user": 1}));
        let of_client = bearing(2, &["a", "b"], json!({"x:client": 1}));
        let (user, client) = (holder(vec![of_user.clone()]), holder(vec![of_client]));
        assert_eq!(given(&catalogue, &user, &client, &["a"], 0), json!({"x:user": 1}));
        assert_eq!(given(&catalogue, &user, &client, &["b"], 0), json!({"x:client": 1}));
        assert_eq!(given(&catalogue, &user, &client, &["b", "a"], 0), json!({"x:user": 1, "x:client": 1}));
        let both = |id, name: &str| {
            holder(vec![bearing(id, &["c"], Value::Object(Map::from_iter([(name.to_owned(), json!(1))])))])
        };
        let (user_c, client_c) = (both(1, "x:user"), both(2, "x:client"));
        assert_eq!(given(&catalogue, &user_c, &client_c, &["c"], 0), json!({"x:user": 1, "x:client": 1}));
        assert_eq!(given(&catalogue, &user_c, &user, &["c"], 0), json!({}));
        // Another subscription keeps the scope, so it is held while this one is not granting.
        let check = |life: Life, now, is_given| {
            let plain = bearing(3, &["a"], json!({}));
            let bearing = Bearing { life, ..of_user.clone() };
            let user = holder(vec![bearing, Bearing { life: window(0, None).into(), ..plain }]);
            let expected = if is_given { json!({"x:user": 1}) } else { json!({}) };
            assert_eq!(given(&catalogue, &user, &Facts::default(), &["a"], now), expected, "{life:?} at {now}");
        };
        let life = Life::from(window(5, Some(10)));
        for (now, is_given) in [(4, false), (5, true), (9, true), (10, false)] {
            check(life, now, is_given);
        }
        let graced = Life::from(Term::new(window(5, Some(10)), Some(at(12))).expect("a term"));
        for (now, is_given) in [(10, true), (11, true), (12, false)] {
            check(graced, now, is_given);
        }
        let paused = Life { pause: Some(window(6, Some(8))), ..life };
        for (now, is_given) in [(5, true), (6, false), (7, false), (8, true)] {
            check(paused, now, is_given);
        }
        let canceled = Life { canceled_at: Some(at(7)), ..life };
        for (now, is_given) in [(6, true), (7, false), (9, false)] {
            check(canceled, now, is_given);
        }
    }

    #[test]
    fn claims_that_were_written_under_another_prefix_are_passed_over() {
        let catalogue = catalogue([Requires::Any; 3], [json!({"x:1": 1}), json!({}), json!({})]);
        let of_another =
            json!({"y:1": 1, "cid": 1, "x:entitlements": 1, "x:entitled_until": 1, "x:": 1, "x:a b": 1, "x:2": 2});
        let user = holder(vec![bearing(1, &["a"], of_another)]);
        assert_eq!(given(&catalogue, &user, &Facts::default(), &["a"], 0), json!({"x:1": 1, "x:2": 2}));
    }

    #[test]
    fn what_has_no_room_is_left_out_in_a_known_order_and_makes_none_for_what_it_beat() {
        let filled = |rest: usize| "v".repeat(rest);
        let rules = [("a", Requires::Any)].map(|(name, requires)| (scope(name), Rule { requires, enforced: true }));
        let full_of = |of_scope: Value, bearings: Vec<Bearing>| {
            let catalogue = Catalogue::from_iter(rules.clone());
            let of_scope = Claims::from_json(&of_scope.to_string()).expect("claims");
            let catalogue = catalogue.with_claims([(scope("a"), of_scope)].into());
            let (user, client) = (holder(bearings), Facts::default());
            let parties = Parties { user: Some(Knowledge::Known(&user)), client: Knowledge::Known(&client) };
            let decision = decide(&catalogue, Stance::default(), parties, &["a"], at(0)).expect("decided");
            additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(0))
        };
        let own = Value::Object(full_of(json!({}), vec![bearing(1, &["a"], json!({}))]).claims).to_string().len();
        // `,"x:big":""` has eleven bytes.
        let exactly = MAX_ANSWER_BYTES - own - 11;
        let with = |length| full_of(json!({}), vec![bearing(1, &["a"], json!({"x:big": filled(length)}))]);
        let full = with(exactly);
        assert_eq!((full.claims.len(), full.left_out), (3, 0));
        assert_eq!(Value::Object(full.claims).to_string().len(), MAX_ANSWER_BYTES);
        let over = with(exactly + 1);
        assert_eq!((over.claims.len(), over.left_out), (2, 1));

        let half = MAX_ANSWER_BYTES / 2;
        let bearings = vec![
            bearing(1, &["a"], json!({"x:early": filled(half), "x:small": 1})),
            bearing(2, &["a"], json!({"x:late": filled(half)})),
        ];
        let told = full_of(json!({"x:early": 0, "x:scope": filled(half), "x:tiny": 2}), bearings);
        let names: Vec<_> = told.claims.keys().map(String::as_str).collect();
        assert_eq!(names, ["x:entitled_until", "x:entitlements", "x:late", "x:small", "x:tiny"]);
        assert_eq!(told.left_out, 2);

        // So many scopes that naming them takes more than there is.
        let names: Vec<_> = (0..300).map(|number| format!("scope-{number}")).collect();
        let rules: Vec<_> = names.iter().map(|name| (&**name, Requires::Any, true)).collect();
        let requested: Vec<_> = names.iter().map(String::as_str).collect();
        let pairs = names.iter().map(|name| (scope(name), Life::from(window(0, Some(10)))));
        let told = self::told(&rules, Some(&Facts::new(pairs.collect())), &Facts::default(), &requested, 0);
        assert_eq!((Value::Object(told.claims), told.left_out), (json!({"x:entitled_until": 0}), 1));
    }

    #[test]
    fn the_memory_of_claims_is_counted_and_a_subject_without_pays_nothing() {
        let plain = holder(vec![]).heap_bytes();
        assert_eq!(plain, 0);
        let without = Facts::new(vec![(scope("a"), window(0, None).into())]);
        let bearing = |text: &str| bearing(1, &["a"], json!({"x:a": text, "x:b": [{"c": [text]}]}));
        let with = |text: &str| without.clone().with_bearings(vec![bearing(text)]).heap_bytes();
        let least = without.heap_bytes() + size_of::<Bearing>() + size_of::<Scope>();
        assert!(with("") > least, "{} and {least}", with(""));
        assert_eq!(with(&"t".repeat(400)) - with(""), 800);
    }
}
