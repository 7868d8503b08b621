//! The rules against an oracle: random small worlds, decided once by `tollgate::domain` and once by brute force.
//!
//! The oracle shares no code with the rules. Its instants are whole numbers, it lives through every one of them, and
//! it answers with the words of the published interface.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::Value;
use tollgate::domain::{
    catalogue::{Catalogue, Requires, Rule},
    claims::{ClaimsPrefix, additional, held_until},
    decision::{Knowledge, OnUnknown, Outcome, Parties, Reason, Stance, Unmanaged, decide},
    entitlement::{Next, entitlements},
    explain,
    facts::Facts,
    holdings::Holdings,
    life::{Life, Term},
    scope::Scope,
    window::Window,
};
use uuid::Uuid;

/// The scopes that subscriptions and catalogues name. One begins another, one is a protocol scope.
const NAMES: [&str; 4] = ["b", "bb", "email", "A"];

/// What a request may hold besides: protocol scopes, near misses, and strings that are no scope token.
const OTHERS: [&str; 11] = ["openid", "offline_access", "B", "b ", " email", "a", "", " ", "\"", "\\", "🎫"];

/// From this instant on nothing changes: every bound lies before it.
const END: i64 = 14;

/// The first id of a client's subscriptions, beyond those of the user's.
const CLIENTS: u128 = 100;

/// One subscription to one scope.
#[derive(Debug, Clone, Copy)]
struct Raw {
    scope: &'static str,
    from: i64,
    until: Option<i64>,
    grace_until: Option<i64>,
    pause: Option<(i64, Option<i64>)>,
    canceled_at: Option<i64>,
}

#[derive(Debug, Clone)]
struct World {
    /// The managed scopes, each with who must hold it and whether it is enforced; a scope may be missing.
    rules: Vec<(&'static str, &'static str, bool)>,
    user: Option<Vec<Raw>>,
    client: Vec<Raw>,
    remove_unmanaged: bool,
    requested: Vec<String>,
}

// The oracle.

/// What became of a subscription by `now`, found by living through every instant until then.
fn fate(raw: Raw, now: i64) -> &'static str {
    let (mut fate, mut is_paused, mut is_canceled) = ("scheduled", false, false);
    for instant in 0..=now {
        if raw.until == Some(instant) && fate == "active" {
            fate = "grace";
        }
        if fate == "grace" && (raw.grace_until.is_none() || raw.grace_until == Some(instant)) {
            fate = "expired";
        }
        if raw.from == instant && fate == "scheduled" {
            fate = "active";
        }
        if let Some((from, until)) = raw.pause {
            is_paused = if from == instant { true } else { is_paused && until != Some(instant) };
        }
        is_canceled = is_canceled || raw.canceled_at == Some(instant);
    }
    match fate {
        _ if is_canceled => "canceled",
        "active" | "grace" if is_paused => "paused",
        fate => fate,
    }
}

/// The first reason that applies to any of the subscriptions, in the order in which the design lists them.
fn first_reason(subscriptions: &[Raw], scope: &str, now: i64) -> &'static str {
    for reason in ["active", "grace", "paused", "scheduled", "canceled", "expired"] {
        for raw in subscriptions {
            if raw.scope == scope && fate(*raw, now) == reason {
                return reason;
            }
        }
    }
    "no_subscription"
}

/// The ids of the subscriptions to a scope of which that became by `now`; the first one has the id `first`.
fn giving(subscriptions: &[Raw], scope: &str, reason: &str, now: i64, first: u128) -> Vec<Uuid> {
    let ids = (first..).zip(subscriptions).filter(|(_, raw)| raw.scope == scope && fate(**raw, now) == reason);
    ids.map(|(id, _)| Uuid::from_u128(id)).collect()
}

/// The ids of the subscriptions that an outcome rests on, in the words of its reason.
fn expected_deciders(world: &World, scope: &str, reason: &str, now: i64) -> Vec<Uuid> {
    let Some((_, requires, _)) = world.rules.iter().find(|(name, ..)| *name == scope) else { return Vec::new() };
    let user = |reason| giving(world.user.as_deref().unwrap_or_default(), scope, reason, now, 0);
    let client = |reason| giving(&world.client, scope, reason, now, CLIENTS);
    let of_user = world.user.as_deref().map(|user| first_reason(user, scope, now));
    match (*requires, of_user) {
        ("user", _) => user(reason),
        ("client", _) => client(reason),
        ("any", _) => [user(reason), client(reason)].concat(),
        (_, None) => Vec::new(),
        (_, Some(of_user)) if is_held(reason) => {
            [user(of_user), client(first_reason(&world.client, scope, now))].concat()
        }
        (_, Some(of_user)) if is_held(of_user) => client(reason),
        (_, Some(_)) => user(reason),
    }
}

/// Whether that reason says that a scope is held.
fn is_held(reason: &str) -> bool {
    ["active", "grace"].contains(&reason)
}

/// The first instant after `now` at which `holds` is false, when it is true at `now` and not for ever.
fn first_gap(holds: impl Fn(i64) -> bool, now: i64) -> Option<i64> {
    let mut instant = now;
    while instant <= END && holds(instant) {
        instant += 1;
    }
    (instant > now && instant <= END).then_some(instant)
}

/// Scope, whether it is kept, why, and why it would not have been: what each outcome must say.
type Expected<'a> = (&'a str, bool, &'static str, Option<&'static str>);

fn expected_outcomes(world: &World, now: i64) -> Vec<Expected<'_>> {
    let mut outcomes: Vec<Expected<'_>> = Vec::new();
    for scope in &world.requested {
        if outcomes.iter().all(|(decided, ..)| decided != scope) {
            outcomes.push(expected_outcome(world, scope, now));
        }
    }
    outcomes
}

fn expected_outcome<'a>(world: &World, scope: &'a str, now: i64) -> Expected<'a> {
    let Some(&(_, requires, enforced)) = world.rules.iter().find(|(name, ..)| *name == scope) else {
        let protocol = "openid profile email address phone offline_access".split(' ').any(|name| name == scope);
        return (scope, protocol || !world.remove_unmanaged, "unmanaged", None);
    };
    let reason = match (requires, &world.user) {
        ("user" | "all", None) => "no_user",
        ("user", Some(user)) => first_reason(user, scope, now),
        ("all", Some(user)) => {
            let reasons = [first_reason(user, scope, now), first_reason(&world.client, scope, now)];
            let missing = reasons.into_iter().find(|reason| !is_held(reason));
            missing.unwrap_or(if reasons.contains(&"grace") { "grace" } else { "active" })
        }
        ("client", _) | ("any", None) => first_reason(&world.client, scope, now),
        // Either will do, so it is as if one party had all the subscriptions.
        ("any", Some(user)) => first_reason(&[user.as_slice(), &world.client].concat(), scope, now),
        (unknown, _) => panic!("no rule is called {unknown}"),
    };
    match (reason, enforced) {
        (reason, _) if is_held(reason) => (scope, true, reason, None),
        (_, true) => (scope, false, reason, None),
        (_, false) => (scope, true, "not_enforced", Some(reason)),
    }
}

// The same world in the words of the domain.

fn at(instant: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_767_225_600_000_000 + instant).expect("an instant")
}

fn scope(name: &str) -> Scope {
    Scope::parse(name).expect(name)
}

fn life(raw: Raw) -> Life {
    let window = |from, until: Option<i64>| Window::new(at(from), until.map(at)).expect("a window");
    Life {
        term: Term::new(window(raw.from, raw.until), raw.grace_until.map(at)).expect("a term"),
        pause: raw.pause.map(|(from, until)| window(from, until)),
        canceled_at: raw.canceled_at.map(at),
    }
}

fn facts(subscriptions: &[Raw]) -> Facts {
    Facts::new(subscriptions.iter().map(|raw| (scope(raw.scope), life(*raw))).collect())
}

/// The same with ids, which count from `first`.
fn holdings(subscriptions: &[Raw], first: u128) -> Holdings {
    let named = (first..).zip(subscriptions).map(|(place, raw)| (scope(raw.scope), Uuid::from_u128(place), life(*raw)));
    Holdings::new(named.collect())
}

fn catalogue(world: &World) -> Catalogue {
    let rule = |&(name, requires, enforced): &(&str, &str, bool)| {
        (scope(name), Rule { requires: Requires::parse(requires).expect(requires), enforced })
    };
    world.rules.iter().map(rule).collect()
}

fn outcomes(world: &World, now: i64) -> Vec<Outcome<'_>> {
    let unmanaged = if world.remove_unmanaged { Unmanaged::Remove } else { Unmanaged::Keep };
    let (user, client) = (world.user.as_deref().map(facts), facts(&world.client));
    let parties = Parties { user: user.as_ref().map(Knowledge::Known), client: Knowledge::Known(&client) };
    let requested: Vec<&str> = world.requested.iter().map(String::as_str).collect();
    let stance = Stance { unmanaged, on_unknown: OnUnknown::Error };
    decide(&catalogue(world), stance, parties, &requested, at(now)).expect("everything is known").outcomes
}

// The worlds.

fn raws(most: usize) -> impl Strategy<Value = Vec<Raw>> {
    let window = (0..6_i64, option::weighted(0.8, 1..=4_i64), option::weighted(0.4, 1..=4_i64));
    let pause = option::weighted(0.4, (0..10_i64, option::weighted(0.7, 1..=4_i64)));
    let raw = (select(&NAMES[..]), window, pause, option::weighted(0.3, 0..10_i64));
    let raw = raw.prop_map(|(scope, (from, length, grace), pause, canceled_at)| {
        let until = length.map(|length| from + length);
        let grace_until = until.zip(grace).map(|(until, grace)| until + grace);
        let pause = pause.map(|(from, length)| (from, length.map(|length| from + length)));
        Raw { scope, from, until, grace_until, pause, canceled_at }
    });
    vec(raw, 0..=most)
}

fn worlds() -> impl Strategy<Value = World> {
    let rule = option::weighted(0.8, (select(&["user", "client", "any", "all"][..]), proptest::bool::weighted(0.8)));
    let rules = [rule.clone(), rule.clone(), rule.clone(), rule].prop_map(|rules| {
        let rules = NAMES.into_iter().zip(rules);
        rules.filter_map(|(name, rule)| rule.map(|(requires, enforced)| (name, requires, enforced))).collect()
    });
    let requested = prop_oneof![
        6 => select(&NAMES[..]).prop_map(str::to_owned),
        3 => select(&OTHERS[..]).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => Just("b".repeat(300)),
    ];
    (rules, option::weighted(0.8, raws(6)), raws(6), any::<bool>(), vec(requested, 0..10)).prop_map(
        |(rules, user, client, remove_unmanaged, requested)| World { rules, user, client, remove_unmanaged, requested },
    )
}

/// No file of failures is kept: what is found becomes a named test.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_decision_is_what_the_oracle_says(world in worlds()) {
        for now in 0..10 {
            let in_words = |Outcome { scope, kept, reason, unenforced }| {
                (scope, kept, Reason::as_str(reason), unenforced.map(Reason::as_str))
            };
            let found: Vec<_> = outcomes(&world, now).into_iter().map(in_words).collect();
            prop_assert_eq!(found, expected_outcomes(&world, now), "at {}", now);
        }
    }

    #[test]
    fn one_more_subscription_never_takes_away_a_scope(world in worlds(), more in raws(1), for_user in any::<bool>()) {
        let mut richer = world.clone();
        if let (true, Some(user)) = (for_user, richer.user.as_mut()) {
            user.extend(more);
        } else {
            richer.client.extend(more);
        }
        for now in 0..10 {
            for (before, after) in outcomes(&world, now).into_iter().zip(outcomes(&richer, now)) {
                prop_assert!(after.kept || !before.kept, "{before:?} became {after:?} at {now}");
            }
        }
    }

    #[test]
    fn a_claim_ends_when_the_hook_would_first_remove_its_scope(world in worlds()) {
        // Enforced, so that not to be held is to be removed.
        let rules = world.rules.iter().map(|&(name, requires, _)| (name, requires, true)).collect();
        let world = World { rules, ..world };
        let (user, client) = (world.user.as_deref().map(facts), facts(&world.client));
        let parties = Parties { user: user.as_ref().map(Knowledge::Known), client: Knowledge::Known(&client) };
        let (catalogue, prefix) = (catalogue(&world), ClaimsPrefix::parse("x:").expect("a prefix"));
        for now in 0..10 {
            let outcomes = outcomes(&world, now);
            let mut expected = Vec::new();
            for outcome in outcomes.iter().filter(|outcome| outcome.kept && outcome.reason != Reason::Unmanaged) {
                let kept = |instant| {
                    self::outcomes(&world, instant).iter().any(|later| later.scope == outcome.scope && later.kept)
                };
                let until = first_gap(kept, now).map(at);
                let requires = catalogue.rule(outcome.scope).expect("a managed scope").requires;
                prop_assert_eq!(held_until(outcome.scope, requires, parties, at(now)), until, "{} at {}", outcome.scope, now);
                expected.push((outcome.scope, until.map(|until| until.timestamp())));
            }
            let told = additional(&prefix, &catalogue, parties, &outcomes, at(now)).claims;
            let items = told.get("x:entitlements").and_then(Value::as_array).cloned().unwrap_or_default();
            let items: Vec<_> =
                items.iter().map(|item| (item["scope"].as_str().expect("a scope"), item["until"].as_i64())).collect();
            prop_assert_eq!(&items, &expected, "at {}", now);
            let first = expected.iter().filter_map(|(_, until)| *until).min();
            prop_assert_eq!(told.get("x:entitled_until").and_then(Value::as_i64), first, "at {}", now);
        }
    }

    #[test]
    fn entitlements_are_what_the_oracle_says(world in worlds()) {
        let (catalogue, holdings) = (catalogue(&world), holdings(&world.client, 0));
        let mut names: Vec<_> = world.rules.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        for now in 0..10 {
            let items = entitlements(&catalogue, &holdings, at(now));
            prop_assert_eq!(items.iter().map(|item| item.scope.as_str()).collect::<Vec<_>>(), &names[..]);
            for (item, name) in items.into_iter().zip(&names) {
                let reason = |instant| first_reason(&world.client, name, instant);
                prop_assert_eq!(Reason::from(item.standing).as_str(), reason(now), "{} at {}", name, now);
                let until = first_gap(|instant| is_held(reason(instant)), now);
                prop_assert_eq!(item.until, until.map(at), "{} at {}", name, now);
                let is_held_at = |instant| is_held(reason(instant));
                let change = (now..=END).find(|later| is_held_at(*later) != is_held_at(now));
                let next = change.map(|change| Next { at: at(change), held: is_held_at(change) });
                prop_assert_eq!(item.next, next, "{} at {}", name, now);
                prop_assert_eq!(item.subscriptions, giving(&world.client, name, reason(now), now, 0), "{} at {}", name, now);
            }
        }
    }

    #[test]
    fn an_explanation_is_what_the_oracle_says(world in worlds()) {
        let unmanaged = if world.remove_unmanaged { Unmanaged::Remove } else { Unmanaged::Keep };
        let requested: Vec<&str> = world.requested.iter().map(String::as_str).collect();
        let (user, client) = (world.user.as_deref().map(|user| holdings(user, 0)), holdings(&world.client, CLIENTS));
        let parties = explain::Parties { user: user.as_ref(), client: &client };
        for now in 0..10 {
            let found = explain::explain(&catalogue(&world), unmanaged, parties, &requested, at(now)).expect("everything is known");
            prop_assert_eq!(&found.decision.outcomes, &outcomes(&world, now));
            prop_assert_eq!(found.grounds.len(), found.decision.outcomes.len());
            for (outcome, grounds) in found.decision.outcomes.iter().zip(found.grounds) {
                let (scope, kept, reason, unenforced) = expected_outcome(&world, outcome.scope, now);
                let kept_at = |instant| expected_outcome(&world, scope, instant).1;
                let change = (now..=END).find(|later| kept_at(*later) != kept);
                let next = change.map(|change| explain::Next { at: at(change), kept: !kept });
                prop_assert_eq!(grounds.next, next, "{} at {}", scope, now);
                let ids = expected_deciders(&world, scope, unenforced.unwrap_or(reason), now);
                prop_assert_eq!(grounds.subscriptions, ids, "{} at {}", scope, now);
            }
        }
    }

    #[test]
    fn facts_know_each_scope_in_whatever_order_the_subscriptions_come(
        raws in raws(8),
        order in Just(vec![0, 1, 2, 3, 4, 5, 6, 7]).prop_shuffle(),
    ) {
        let shuffled: Vec<_> = order.into_iter().filter_map(|index: usize| raws.get(index).copied()).collect();
        let facts = facts(&shuffled);
        prop_assert_eq!(facts.is_empty(), raws.is_empty());
        for now in 0..10 {
            for name in NAMES.into_iter().chain(OTHERS) {
                let reason = |instant| first_reason(&raws, name, instant);
                let standing = facts.standing(name, at(now));
                prop_assert_eq!(Reason::from(standing).as_str(), reason(now), "{} at {}", name, now);
                let until = first_gap(|instant| is_held(reason(instant)), now);
                prop_assert_eq!(facts.held_until(name, at(now)), until.map(at), "{} at {}", name, now);
            }
        }
    }

    #[test]
    fn a_run_ends_at_the_first_gap_on_the_line_of_instants(raws in raws(8)) {
        let held: BTreeSet<_> = raws.iter().flat_map(|raw| raw.from..raw.until.unwrap_or(END + 1)).collect();
        let windows: Vec<_> = raws.iter().map(|raw| life(*raw).term.window()).collect();
        for now in 0..10 {
            let expected = first_gap(|instant| held.contains(&instant), now).map(at);
            prop_assert_eq!(Window::end_of_run(&windows, at(now)), expected, "at {}", now);
        }
    }
}
