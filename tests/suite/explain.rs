//! The explanation over HTTP: `/v1/explain`; and the promise that hooks, explanations and entitlements never differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::{collection::vec, option, prelude::*, sample, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value, json};
use tollgate::{
    domain::{
        decision::{OnUnknown, PROTOCOL_SCOPES, Unmanaged},
        life::Life,
        scope::Scope,
        subject::{Subject, SubjectId, SubjectType},
        subscription::{ScopeSet, Subscription},
        window::Window,
    },
    service::Policy,
    store::{self, lane::Connection},
};
use uuid::Uuid;

use crate::support::{
    ACCESS_TOKEN, App, ByHand, MICROSECOND, Options, TOKEN, encoded, expect_within, instant, measured, on_both,
    path_of, since, stood_still, timestamp,
};

/// How many random worlds are tried on each database.
const WORLDS: usize = 24;

/// An instant, in seconds after the one that all of these tests count from.
fn at(seconds: i64) -> DateTime<Utc> {
    instant("2026-07-01T00:00:00Z") + TimeDelta::seconds(seconds)
}

/// The same as timestamp.
fn second(seconds: i64) -> String {
    timestamp(at(seconds))
}

/// A hook request.
fn request(user: Option<&str>, client: &str, scopes: &[&str]) -> Value {
    let mut request = json!({"client": {"id": client}, "scopes": scopes});
    if let Some(user) = user {
        request["user"] = json!({"id": user});
    }
    request
}

/// The explanation of a hook request, now or at an instant.
async fn explain(app: &App, request: &Value, at: Option<DateTime<Utc>>) -> Value {
    let mut question = json!({"request": request});
    if let Some(at) = at {
        question["at"] = timestamp(at).into();
    }
    app.call_with("POST", "/v1/explain", &question).await.expect(200)
}

/// Records a subscription that begins at second 10, and gives its id.
async fn create(app: &App, kind: &str, id: &str, scopes: &[&str], until: Option<i64>) -> Value {
    let body = json!({
        "subject": {"type": kind, "id": id}, "scopes": scopes, "validFrom": second(10), "validUntil": until.map(second),
    });
    app.call_with("POST", "/v1/subscriptions", &body).await.expect(201)["id"].clone()
}

async fn cancel(app: &App, id: &Value) {
    let path = format!("/v1/subscriptions/{}/cancel", id.as_str().expect("an id"));
    app.call("POST", &path).await.expect(200);
}

/// Ids in ascending order.
fn sorted(ids: &[&Value]) -> Value {
    let mut ids: Vec<_> = ids.iter().map(|id| id.as_str().expect("an id")).collect();
    ids.sort_unstable();
    json!(ids)
}

on_both! {
    async fn each_scope_is_explained_by_those_who_decided_it(database) {
        let app = database.app().await;
        app.set_now(at(10));
        for (name, requires, enforced) in [
            ("u", "user", true), ("c", "client", true), ("any", "any", true), ("all", "all", true), ("none", "any", true),
            ("off", "any", false), ("on", "any", false),
        ] {
            let scope = json!({"name": name, "requires": requires, "enforced": enforced});
            app.call_with("POST", "/v1/scopes", &scope).await.expect(201);
        }
        let of_user = create(&app, "user", "x", &["u", "any", "all", "on"], Some(20)).await;
        let of_client = create(&app, "client", "x", &["c", "any", "all"], Some(15)).await;
        let better = create(&app, "user", "x", &["any"], Some(30)).await;
        let gone = create(&app, "user", "x", &["off", "u", "any"], Some(40)).await;
        cancel(&app, &gone).await;
        let deleted = create(&app, "user", "x", &["u", "none"], None).await;
        assert_eq!(app.call("DELETE", &format!("/v1/subscriptions/{}", deleted.as_str().expect("an id"))).await.status, 204);
        create(&app, "user", "other", &["none", "u"], None).await;

        let all = ["none", "u", "c", "any", "all", "off", "on", "other", "openid"];
        let removed_at = |seconds| json!({"at": second(seconds), "kept": false});
        let explained = explain(&app, &request(Some("x"), "x", &all), None).await;
        assert_eq!(explained, json!({
            "at": second(10),
            "scopes": [
                {"scope": "none", "kept": false, "reason": "no_subscription", "subscriptions": []},
                {"scope": "u", "kept": true, "reason": "active", "subscriptions": [of_user], "next": removed_at(20)},
                {"scope": "c", "kept": true, "reason": "active", "subscriptions": [of_client], "next": removed_at(15)},
                {"scope": "any", "kept": true, "reason": "active", "subscriptions": sorted(&[&of_user, &of_client, &better]), "next": removed_at(30)},
                {"scope": "all", "kept": true, "reason": "active", "subscriptions": sorted(&[&of_user, &of_client]), "next": removed_at(15)},
                {"scope": "off", "kept": true, "reason": "not_enforced", "unenforced": "canceled", "subscriptions": [gone]},
                {"scope": "on", "kept": true, "reason": "active", "subscriptions": [of_user]},
                {"scope": "other", "kept": true, "reason": "unmanaged", "subscriptions": []},
                {"scope": "openid", "kept": true, "reason": "unmanaged", "subscriptions": []},
            ],
            "removeScopes": ["none"],
            "additionalClaims": {},
        }));
        let explained = explain(&app, &request(None, "x", &all[1..5]), Some(at(15))).await;
        assert_eq!(explained, json!({
            "at": second(15),
            "scopes": [
                {"scope": "u", "kept": false, "reason": "no_user", "subscriptions": []},
                {"scope": "c", "kept": false, "reason": "expired", "subscriptions": [of_client]},
                {"scope": "any", "kept": false, "reason": "expired", "subscriptions": [of_client]},
                {"scope": "all", "kept": false, "reason": "no_user", "subscriptions": []},
            ],
            "removeScopes": ["u", "c", "any", "all"],
            "additionalClaims": {},
        }));
    }

    async fn an_explanation_changes_on_the_microsecond_now_and_at_any_other_instant(database) {
        let app = database.app().await;
        app.register("x").await;
        app.set_now(at(0));
        let id = create(&app, "user", "u", &["x"], Some(20)).await;
        let pause = json!({"from": second(12), "until": second(15)});
        app.call_with("POST", &format!("/v1/subscriptions/{}/pause", id.as_str().expect("an id")), &pause).await.expect(200);
        let asked = request(Some("u"), "c", &["x"]);
        let changes = [(at(10), "active"), (at(12), "paused"), (at(15), "active"), (at(20), "expired")];
        let mut status = "scheduled";
        for (place, (change, after)) in changes.into_iter().enumerate() {
            let next = |place: usize| changes.get(place).map(|(change, status)| json!({"at": timestamp(*change), "kept": *status == "active"}));
            for (now, status, next) in [
                (change - MICROSECOND, status, next(place)), (change, after, next(place + 1)), (change + MICROSECOND, after, next(place + 1)),
            ] {
                let mut scope = json!({"scope": "x", "kept": status == "active", "reason": status, "subscriptions": [id]});
                if let Some(next) = next {
                    scope["next"] = next;
                }
                app.set_now(at(0));
                let asked_at = explain(&app, &asked, Some(now)).await;
                assert_eq!((&asked_at["at"], &asked_at["scopes"]), (&json!(timestamp(now)), &json!([scope])));
                app.set_now(now);
                assert_eq!(explain(&app, &asked, None).await, asked_at);
            }
            status = after;
        }
        for (sent, shown) in [
            ("2026-01-01T00:00:00+14:00", "2025-12-31T10:00:00Z"), ("2026-01-01t00:00:00.1234569z", "2026-01-01T00:00:00.123456Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"), ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ] {
            let question = json!({"request": asked, "at": sent});
            assert_eq!(app.call_with("POST", "/v1/explain", &question).await.expect(200)["at"], shown);
        }
    }

    async fn a_request_is_taken_as_the_hooks_take_it(database) {
        let app = database.app().await;
        app.set_now(at(10));
        app.register("x").await;
        create(&app, "user", "u", &["x"], None).await;
        let long = "x".repeat(1025);
        for id in ["", "a\u{0}b", &long, "U", "u ", "é", "u"] {
            let mut asked = request(Some(id), id, &["x", "", " ", "x", "a b", "\u{0}", "é", "x", &long]);
            asked["executionContext"] = json!({"triggeredBy": [1, null]});
            asked["user"]["more"] = json!([]);
            asked["scope"] = json!(5);
            let explained = explain(&app, &asked, None).await;
            let hook = app.ask(ACCESS_TOKEN, &asked).await.expect(200);
            assert_eq!(explained["removeScopes"], hook["removeScopes"], "{id:?}");
            let scopes: Vec<_> = explained["scopes"].as_array().expect("scopes").iter().map(|scope| scope["scope"].clone()).collect();
            assert_eq!(json!(scopes), json!(["x", "", " ", "a b", "\u{0}", "é", long]));
            assert_eq!(explained["scopes"][0]["reason"], if id == "u" { "active" } else { "no_subscription" });
        }
        let mut null = request(None, "u", &["x"]);
        null["user"] = Value::Null;
        assert_eq!(explain(&app, &null, None).await, explain(&app, &request(None, "u", &["x"]), None).await);
        assert_eq!(explain(&app, &request(None, "u", &[]), None).await["scopes"], json!([]));

        let good = request(Some("u"), "c", &["x"]);
        let with = |member: &str, value: Value| {
            let mut request = good.clone();
            request[member] = value;
            json!({"request": request})
        };
        for (body, problem, pointer) in [
            (json!({}), (400, "invalid_request"), "#/request"),
            (json!({"request": null}), (400, "invalid_request"), "#/request"),
            (json!({"request": []}), (400, "invalid_request"), "#/request"),
            (json!({"request": good, "request2": 1}), (400, "invalid_request"), "#/request2"),
            (json!({"request": good, "scopes": ["x"]}), (400, "invalid_request"), "#/scopes"),
            (json!({"request": good, "at": null}), (400, "invalid_request"), "#/at"),
            (json!({"request": good, "at": 5}), (400, "invalid_request"), "#/at"),
            (json!({"request": good, "at": "2026-01-01"}), (422, "invalid_value"), "#/at"),
            (json!({"request": good, "at": "2026-01-01 00:00:00Z"}), (422, "invalid_value"), "#/at"),
            (json!({"request": {"client": {"id": "c"}}}), (400, "invalid_request"), "#/request/scopes"),
            (json!({"request": {"scopes": []}}), (400, "invalid_request"), "#/request/client"),
            (with("user", json!({"id": 5})), (400, "invalid_request"), "#/request/user/id"),
            (with("client", json!({"id": false})), (400, "invalid_request"), "#/request/client/id"),
            (with("client", json!(["c"])), (400, "invalid_request"), "#/request/client"),
            (with("scopes", json!(["x", 5])), (400, "invalid_request"), "#/request/scopes/1"),
            (with("scopes", json!("x")), (400, "invalid_request"), "#/request/scopes"),
        ] {
            app.refuse("POST", "/v1/explain", &body, problem, &[pointer]).await;
        }
    }

    async fn what_is_not_managed_goes_by_the_policy_and_nothing_is_unknown(database) {
        let all = ["x", "email", "phone", "other", ""];
        for (unmanaged, on_unknown, removed) in [
            (Unmanaged::Keep, OnUnknown::Keep, &["x"][..]),
            (Unmanaged::Keep, OnUnknown::Remove, &["x"]),
            (Unmanaged::Remove, OnUnknown::Keep, &["x", "other", ""]),
        ] {
            let policy = Policy { unmanaged, on_unknown, ..Options::default().policy };
            let app = database.app_with(Options { policy, ..Options::default() }).await;
            if app.call("GET", "/v1/scopes/x").await.status == 404 {
                app.register("x").await;
            }
            let explained = explain(&app, &request(Some("u"), "c", &all), None).await;
            assert_eq!(explained["removeScopes"], json!(removed), "{unmanaged:?} {on_unknown:?}");
            for (scope, name) in explained["scopes"].as_array().expect("scopes").iter().zip(all).skip(1) {
                let expected = json!({"scope": name, "kept": !removed.contains(&name), "reason": "unmanaged", "subscriptions": []});
                assert_eq!(*scope, expected);
            }
            assert_eq!(app.removed(Some("u"), "c", &all).await, removed);
        }
    }

    async fn what_is_recorded_is_explained_whatever_the_hooks_remember(database) {
        let mut app = database.app().await;
        app.set_now(at(10));
        app.register("x").await;
        create(&app, "user", "u", &["x"], None).await;
        let asked = request(Some("u"), "c", &["x"]);
        assert!(app.removed(Some("u"), "c", &["x"]).await.is_empty());
        let decisions = r#"tollgate_decisions_total{decision="kept",reason="active"}"#;
        let before = app.metric(decisions).await;
        app.feed.shutdown().await;
        ByHand::open(&database.url).await.run("UPDATE subscription SET canceled_at = valid_from").await;
        assert_eq!(explain(&app, &asked, None).await["scopes"][0]["reason"], "canceled");
        let view = app.call("GET", "/v1/entitlements?subjectType=user&subjectId=u").await.expect(200);
        assert_eq!(view["items"][0]["reason"], "canceled");
        assert!((app.metric(decisions).await - before).abs() < 0.5, "an explanation is no decision");
    }

    async fn one_state_of_the_database_is_explained(database) {
        let app = database.app().await;
        app.set_now(at(10));
        app.register("x").await;
        create(&app, "user", "u", &["x"], None).await;
        let subject = [Subject { kind: SubjectType::User, id: SubjectId::parse("u").expect("an id") }];
        let read = async |is_torn: bool| {
            let read = async |lane: &mut Connection| {
                let catalogue = store::catalogue::load(lane).await?;
                if is_torn {
                    app.register("y").await;
                    create(&app, "user", "u", &["y"], None).await;
                }
                Ok((catalogue, store::facts::load_holdings(lane, &subject).await?))
            };
            let (catalogue, holdings) = app.database.views().run_at_once(Duration::from_secs(30), read).await.expect("read");
            let knows = |name: &str| !holdings[0].standing_so(name, holdings[0].facts().standing(name, at(10)), at(10)).is_empty();
            (catalogue.len(), knows("x"), knows("y"))
        };
        assert_eq!(read(false).await, (1, true, false));
        assert_eq!(read(true).await, (1, true, false), "what is written meanwhile is not seen");
        assert_eq!(read(false).await, (2, true, true), "and seen the next time");
    }

    async fn thousands_of_subscriptions_of_one_subject_are_explained_in_time(database) {
        const MANY: i64 = 5_000;
        let app = database.app().await;
        app.register("x").await;
        let transaction = app.database.begin().await.expect("begun");
        for number in 0..MANY {
            // One after the other, each a second long: the last of them tells until when the scope is held.
            let window = Window::new(at(number), Some(at(number + 1))).expect("a window");
            let subscription = Subscription {
                id: Uuid::from_u128(u128::try_from(number).expect("a number")),
                subject: Subject { kind: SubjectType::User, id: SubjectId::parse("u").expect("an id") },
                scopes: ScopeSet::new(vec![Scope::parse("x").expect("a scope")]).expect("a set"),
                life: Life::from(window),
                external: None,
                claims: tollgate::domain::claims::Claims::default(),
                deleted_at: None,
                version: 1,
                created_at: at(0),
                updated_at: at(0),
            };
            store::subscription::insert(&transaction, &subscription).await.expect("inserted");
        }
        store::database::commit(transaction).await.expect("committed");
        let (stood_still_before, start) = (stood_still(), Instant::now());
        let explained = explain(&app, &request(Some("u"), "c", &["x"]), Some(at(0))).await;
        // The database itself is given five seconds.
        let time = expect_within(Duration::from_secs(5), start, stood_still_before);
        measured("an explanation from 5,000 subscriptions", time);
        assert_eq!(explained["scopes"][0]["next"], json!({"at": second(MANY), "kept": false}));
        let after = explain(&app, &request(Some("u"), "c", &["x"]), Some(at(MANY))).await;
        assert_eq!(after["scopes"][0]["subscriptions"].as_array().map(Vec::len), Some(5_000));
        let view = format!("/v1/entitlements?subjectType=user&subjectId=u&at={}", second(0));
        assert_eq!(app.call("GET", &view).await.expect(200)["items"][0]["until"], second(MANY));
    }

    async fn the_hooks_the_explanation_and_the_entitlements_never_differ(database) {
        let policy = Policy { unmanaged: Unmanaged::Remove, ..Options::default().policy };
        let app = database.app_with(Options { policy, ..Options::default() }).await;
        let start = Instant::now();
        let (worlds, mut runner, mut seen) = (worlds(), TestRunner::default(), Seen::default());
        for number in 0..WORLDS {
            let world = worlds.new_tree(&mut runner).expect("a world").current();
            let live = live_through(&app, &world, number, &mut seen).await;
            check(&app, &world, &live, &mut seen).await;
        }
        measured("worlds", (WORLDS, since(start), &seen));
        let Seen { taken, refused, answers, kept, removed, changes } = seen;
        assert!(taken > WORLDS && refused > 0, "{taken} of what was done was taken, {refused} refused");
        assert!(answers > 20 * WORLDS && kept > answers / 10 && removed > answers / 10 && changes > answers / 10);
    }
}

/// A subscription that is bought at second 0.
#[derive(Debug, Clone)]
struct Bought {
    kind: &'static str,
    scopes: Vec<usize>,
    from: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
    grace_until: Option<DateTime<Utc>>,
}

/// What is done to one of the subscriptions, and when; a scope in the body is the place of its rule.
#[derive(Debug, Clone)]
struct Step {
    when: DateTime<Utc>,
    which: sample::Index,
    verb: &'static str,
    body: Value,
}

#[derive(Debug, Clone)]
struct World {
    /// Who must hold each scope, and whether it is enforced.
    rules: Vec<(&'static str, bool)>,
    has_user: bool,
    bought: Vec<Bought>,
    steps: Vec<Step>,
    /// The places of the requested scopes; beyond the rules they are not managed.
    requested: Vec<usize>,
}

/// The world as the service has it.
#[derive(Debug)]
struct Live {
    /// The id of the user, and of the client.
    id: String,
    names: Vec<String>,
    subscriptions: Vec<Value>,
}

/// How much of what there is was met.
#[derive(Debug, Default)]
struct Seen {
    taken: usize,
    refused: usize,
    answers: usize,
    kept: usize,
    removed: usize,
    changes: usize,
}

/// What is requested beside the managed scopes.
const OTHERS: [&str; 5] = ["openid", "email", "unmanaged", "", "a b"];
const SCOPES: usize = 4;

fn instants() -> impl Strategy<Value = DateTime<Utc>> {
    (0..12_i64, 0..2_i64).prop_map(|(seconds, microseconds)| at(seconds) + TimeDelta::microseconds(microseconds))
}

fn scope_sets() -> impl Strategy<Value = Vec<usize>> {
    sample::subsequence((0..SCOPES).collect::<Vec<_>>(), 1..=SCOPES)
}

fn bought() -> impl Strategy<Value = Bought> {
    let ends = (option::weighted(0.8, 1..8_i64), option::weighted(0.4, 1..5_i64));
    let kinds = sample::select(&["user", "client"][..]);
    (kinds, scope_sets(), instants(), ends).prop_map(|(kind, scopes, from, (length, grace))| {
        let until = length.map(|length| from + TimeDelta::seconds(length));
        let grace_until = until.zip(grace).map(|(until, grace)| until + TimeDelta::seconds(grace));
        Bought { kind, scopes, from, until, grace_until }
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let nothing = || Just(json!({}));
    let until = || instants().prop_map(timestamp);
    let patch =
        (option::of(scope_sets()), option::of(until()), option::of(option::of(until())), option::of(Just(Value::Null)));
    let patch = patch.prop_map(|(scopes, from, until, grace)| {
        let mut patch = json!({});
        let members = [
            ("scopes", scopes.map(|scopes| json!(scopes))),
            ("validFrom", from.map(Into::into)),
            ("validUntil", until.map(|until| json!(until))),
            ("graceUntil", grace),
        ];
        for (name, value) in members {
            if let Some(value) = value {
                patch[name] = value;
            }
        }
        ("patch", patch)
    });
    let cancel = prop_oneof![nothing(), Just(json!({"atEnd": true})), until().prop_map(|at| json!({"at": at}))];
    let pause = prop_oneof![
        nothing(),
        until().prop_map(|until| json!({"until": until})),
        (until(), until()).prop_map(|(from, until)| json!({"from": from, "until": until})),
    ];
    let renew = prop_oneof![
        until().prop_map(|until| json!({"validUntil": until})),
        (1..5_i64).prop_map(|seconds| json!({"duration": format!("PT{seconds}S")})),
        Just(json!({"duration": "PT2S", "from": "now"})),
        Just(json!({"validUntil": null, "graceUntil": null})),
    ];
    let action = prop_oneof![
        cancel.prop_map(|body| ("cancel", body)),
        nothing().prop_map(|body| ("uncancel", body)),
        pause.prop_map(|body| ("pause", body)),
        nothing().prop_map(|body| ("resume", body)),
        renew.prop_map(|body| ("renew", body)),
        nothing().prop_map(|body| ("delete", body)),
        nothing().prop_map(|body| ("restore", body)),
        patch,
    ];
    (instants(), any::<sample::Index>(), action).prop_map(|(when, which, (verb, body))| Step {
        when,
        which,
        verb,
        body,
    })
}

fn worlds() -> impl Strategy<Value = World> {
    let rule = (sample::select(&["user", "client", "any", "all"][..]), proptest::bool::weighted(0.8));
    let requested = vec(0..SCOPES + OTHERS.len(), 6..16);
    (vec(rule, SCOPES), proptest::bool::weighted(0.85), vec(bought(), 1..7), vec(steps(), 4..16), requested).prop_map(
        |(rules, has_user, bought, mut steps, requested)| {
            steps.sort_by_key(|step| step.when);
            World { rules, has_user, bought, steps, requested }
        },
    )
}

/// Brings a world about, with the clock at each step.
async fn live_through(app: &App, world: &World, number: usize, seen: &mut Seen) -> Live {
    let names: Vec<String> = (0..SCOPES).map(|place| format!("w{number}.{place}")).collect();
    app.set_now(at(0));
    for (name, (requires, enforced)) in names.iter().zip(&world.rules) {
        let scope = json!({"name": name, "requires": requires, "enforced": enforced});
        app.call_with("POST", "/v1/scopes", &scope).await.expect(201);
    }
    let id = format!("w{number}");
    let of_places = |places: &[usize]| places.iter().map(|place| names[*place].clone()).collect::<Vec<_>>();
    let mut paths = Vec::new();
    for Bought { kind, scopes, from, until, grace_until } in &world.bought {
        let mut body = json!({
            "subject": {"type": kind, "id": id}, "scopes": of_places(scopes), "validFrom": timestamp(*from),
            "validUntil": until.map(timestamp),
        });
        if let Some(grace_until) = grace_until {
            body["graceUntil"] = timestamp(*grace_until).into();
        }
        paths.push(path_of(&app.call_with("POST", "/v1/subscriptions", &body).await.expect(201)));
    }
    for Step { when, which, verb, body } in &world.steps {
        app.set_now(*when);
        let mut body = body.clone();
        if let Some(places) = body.get("scopes").cloned() {
            body["scopes"] = json!(of_places(&serde_json::from_value::<Vec<usize>>(places).expect("places")));
        }
        let path = which.get(&paths);
        let answer = match *verb {
            "delete" => app.call("DELETE", path).await,
            "patch" => app.call_with("PATCH", path, &body).await,
            verb => app.call_with("POST", &format!("{path}/{verb}"), &body).await,
        };
        match answer.status.as_u16() {
            200 | 204 => seen.taken += 1,
            404 | 409 | 422 => seen.refused += 1,
            status => panic!("{verb} {body}: {status} {}", answer.text()),
        }
    }
    let mut subscriptions = Vec::new();
    for kind in ["user", "client"] {
        subscriptions.extend(app.walk(&format!("/v1/subscriptions?subjectType={kind}&subjectId={id}")).await);
    }
    Live { id, names, subscriptions }
}

/// Each instant at which something may change, one microsecond before and one after, and one long after all of them.
fn presents(subscriptions: &[Value]) -> BTreeSet<DateTime<Utc>> {
    let members = ["validFrom", "validUntil", "graceUntil", "pausedFrom", "pausedUntil", "canceledAt"];
    let boundaries = subscriptions.iter().flat_map(|subscription| members.map(|member| subscription[member].as_str()));
    let boundaries = boundaries.flatten().map(instant).chain([at(0), instant("2999-01-01T00:00:00Z")]);
    boundaries.flat_map(|at| [at - MICROSECOND, at, at + MICROSECOND]).collect()
}

/// What a subject's entitlements say of each scope at an instant.
async fn entitlements(app: &App, kind: &str, id: &str, at: DateTime<Utc>) -> BTreeMap<String, Value> {
    let path = format!("/v1/entitlements?subjectType={kind}&subjectId={id}&at={}", encoded(&timestamp(at)));
    let view = app.call("GET", &path).await.expect(200);
    let items = view["items"].as_array().expect("items").iter();
    items.map(|item| (item["scope"].as_str().expect("a scope").to_owned(), item.clone())).collect()
}

/// Whether a scope is kept by what is held, in the words of its rule.
fn is_kept((requires, enforced): (&str, bool), user: Option<bool>, client: bool) -> bool {
    let is_held = match requires {
        "user" => user == Some(true),
        "client" => client,
        "any" => user == Some(true) || client,
        "all" => user == Some(true) && client,
        other => panic!("no rule is called {other}"),
    };
    is_held || !enforced
}

/// Holds the answers about a world to each other, at each instant of it.
async fn check(app: &App, world: &World, live: &Live, seen: &mut Seen) {
    let Live { id, names, subscriptions } = live;
    let all: Vec<&str> = names.iter().map(String::as_str).chain(OTHERS).collect();
    let requested: Vec<&str> = world.requested.iter().map(|place| all[*place]).collect();
    let asked = request(world.has_user.then_some(id), id, &requested);
    let mut distinct = requested.clone();
    let mut met = BTreeSet::new();
    distinct.retain(|scope| met.insert(*scope));
    let context = |now: DateTime<Utc>| format!("at {now}: {world:#?} {live:#?}");

    let mut explanations = Vec::new();
    let mut hooks = Vec::new();
    for now in presents(subscriptions) {
        // Asked from elsewhere first, and then at that instant itself.
        app.set_now(at(6));
        let explained = explain(app, &asked, Some(now)).await;
        let of_user = entitlements(app, "user", id, now).await;
        let of_client = entitlements(app, "client", id, now).await;
        app.set_now(now);
        let hook = app.ask(ACCESS_TOKEN, &asked).await.expect(200);
        let older = app.ask(TOKEN, &asked).await.expect(200);
        assert_eq!(explain(app, &asked, None).await, explained, "{}", context(now));
        assert_eq!(explained["removeScopes"], hook["removeScopes"], "{}", context(now));
        assert_eq!(explained["additionalClaims"], hook["additionalClaims"], "{}", context(now));
        let scopes = explained["scopes"].as_array().expect("scopes").clone();
        let told = |kept: bool| {
            scopes.iter().filter(|scope| scope["kept"] == kept).map(|scope| scope["scope"].clone()).collect::<Value>()
        };
        assert_eq!(
            (told(false), told(true)),
            (hook["removeScopes"].clone(), older["reducedScopes"].clone()),
            "{}",
            context(now)
        );
        assert_eq!(
            json!(scopes.iter().map(|scope| &scope["scope"]).collect::<Vec<_>>()),
            json!(distinct),
            "{}",
            context(now)
        );
        for scope in &scopes {
            let name = scope["scope"].as_str().expect("a name");
            let Some(place) = names.iter().position(|managed| managed == name) else {
                let expected = json!({"scope": name, "kept": PROTOCOL_SCOPES.contains(&name), "reason": "unmanaged", "subscriptions": []});
                assert_eq!(*scope, expected);
                continue;
            };
            let (user, client) = (&of_user[name], &of_client[name]);
            let user = world.has_user.then_some(user);
            let is_held = |item: &Value| item["held"] == true;
            let kept = is_kept(world.rules[place], user.map(is_held), is_held(client));
            assert_eq!(scope["kept"], kept, "{name} {scope} {user:?} {client} {}", context(now));
            let reason = scope.get("unenforced").unwrap_or(&scope["reason"]);
            let deciding: &[Option<&Value>] = match world.rules[place].0 {
                "client" => &[Some(client)],
                "all" if user.is_some_and(is_held) && is_held(client) => &[user, Some(client)],
                "all" if user.is_some_and(is_held) => &[Some(client)],
                "user" | "all" => &[user],
                _ => &[
                    user.filter(|item| item["reason"] == *reason),
                    Some(client).filter(|item| item["reason"] == *reason),
                ],
            };
            let ids = deciding.iter().flatten().flat_map(|item| item["subscriptions"].as_array().expect("ids"));
            assert_eq!(scope["subscriptions"], sorted(&ids.collect::<Vec<_>>()), "{name} {scope} {}", context(now));
            *(if kept { &mut seen.kept } else { &mut seen.removed }) += 1;
            seen.changes += usize::from(scope["next"].is_object());
            seen.answers += 1;
        }
        let removed: Vec<String> = serde_json::from_value(hook["removeScopes"].clone()).expect("scopes");
        hooks.push((now, removed));
        explanations.push((now, scopes));
    }
    // What comes next is what the hook answers next.
    for (now, scopes) in explanations {
        for scope in scopes {
            let name = scope["scope"].as_str().expect("a name");
            let is_kept = |removed: &[String]| !removed.iter().any(|removed| removed == name);
            let change = hooks.iter().find(|(later, removed)| now < *later && scope["kept"] != is_kept(removed));
            let next = change
                .map_or(Value::Null, |(later, removed)| json!({"at": timestamp(*later), "kept": is_kept(removed)}));
            assert_eq!(scope["next"], next, "{name} {scope} {}", context(now));
        }
    }
}
