//! The claims of the current hook: what tokens are told, and what is taken to be told.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde_json::{Value, json};
use tollgate::{
    domain::{claims::ClaimsPrefix, decision::OnUnknown},
    http::contract::Contract,
    service::Policy,
};

use crate::{
    described::{Document, has_null},
    support::{ACCESS_TOKEN, App, ByHand, MICROSECOND, Options, TOKEN, instant, on_both, path_of},
};

/// Long enough for ids to tell which of two subscriptions was recorded later.
const LATER: TimeDelta = TimeDelta::milliseconds(1);

/// The usual policy of tests, with a prefix.
fn policy(prefix: &str) -> Policy {
    Policy { claims_prefix: Some(ClaimsPrefix::parse(prefix).expect(prefix)), ..Options::default().policy }
}

fn with_prefix(prefix: &str) -> Options {
    Options { policy: policy(prefix), ..Options::default() }
}

/// What the current hook tells, which is always as the contract describes it and holds no null; the older hook answers
/// as ever beside it.
async fn told(app: &App, user: Option<&str>, client: &str, scopes: &[&str]) -> Value {
    let mut body = json!({"client": {"id": client}, "scopes": scopes});
    if let Some(user) = user {
        body["user"] = json!({"id": user});
    }
    let document = Document::of(Contract::Hooks);
    let operation = document.operation("customize-access-token");
    let schema = &operation.described["responses"]["200"]["content"]["application/json"]["schema"];
    let answer = app.ask(ACCESS_TOKEN, &body).await.expect(200);
    assert_eq!(document.violations(schema, &answer), [""; 0], "{answer}");
    assert!(!has_null(&answer), "{answer}");
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(2), "{answer}");
    let older = app.ask(TOKEN, &body).await.expect(200);
    let removed = answer["removeScopes"].as_array().expect("scopes");
    let mut kept: Vec<_> = scopes.iter().filter(|scope| !removed.contains(&json!(scope))).collect();
    let mut seen = BTreeSet::new();
    kept.retain(|scope| seen.insert(**scope));
    assert_eq!(older, json!({"reducedScopes": kept}));
    answer["additionalClaims"].clone()
}

/// What it tells a user beside what is held and until when.
async fn recorded(app: &App, user: &str, scopes: &[&str]) -> Value {
    let mut claims = told(app, Some(user), "c", scopes).await;
    let members = claims.as_object_mut().expect("an object");
    members.retain(|name, _| !name.ends_with(":entitlements") && !name.ends_with(":entitled_until"));
    claims
}

/// Registers a scope.
async fn register(app: &App, name: &str, requires: &str, claims: Value) -> Value {
    let body = json!({"name": name, "requires": requires, "claims": claims});
    app.call_with("POST", "/v1/scopes", &body).await.expect(201)
}

/// Records a subscription that began at the start of the year.
async fn subscribe(app: &App, subject: (&str, &str), scopes: &[&str], until: Option<&str>, claims: Value) -> Value {
    let (kind, id) = subject;
    let body = json!({
        "subject": {"type": kind, "id": id}, "scopes": scopes, "validFrom": "2026-01-01T00:00:00Z", "validUntil": until,
        "claims": claims,
    });
    app.call_with("POST", "/v1/subscriptions", &body).await.expect(201)
}

/// One subscription to one scope, until a timestamp or for ever.
async fn hold(app: &App, subject: (&str, &str), scope: &str, until: Option<&str>) -> Value {
    subscribe(app, subject, &[scope], until, json!({})).await
}

/// What is told of scopes that are held, each with its end.
fn held(prefix: &str, scopes: &[(&str, Option<i64>)]) -> Value {
    let item = |(scope, until): &(&str, Option<i64>)| match until {
        Some(until) => json!({"scope": scope, "until": until}),
        None => json!({"scope": scope}),
    };
    let items: Vec<_> = scopes.iter().map(item).collect();
    let mut claims = json!({format!("{prefix}entitlements"): items});
    if let Some(first) = scopes.iter().filter_map(|(_, until)| *until).min() {
        claims[format!("{prefix}entitled_until")] = json!(first);
    }
    claims
}

on_both! {
    async fn without_a_prefix_no_claims_are_told_and_none_are_taken(database) {
        let app = database.app().await;
        let body = json!({"name": "email", "claims": {}});
        assert!(app.call_with("POST", "/v1/scopes", &body).await.expect(201).get("claims").is_none());
        let subscription = path_of(&hold(&app, ("user", "u"), "email", Some("2027-01-01T00:00:00Z")).await);
        assert_eq!(told(&app, Some("u"), "c", &["email"]).await, json!({}));
        let claims = json!({"x:a": 1});
        let invalid = (422, "invalid_value");
        app.refuse("POST", "/v1/scopes", &json!({"name": "other", "claims": claims}), invalid, &["#/claims"]).await;
        app.refuse("PATCH", "/v1/scopes/email", &json!({"claims": claims}), invalid, &["#/claims"]).await;
        app.refuse("PATCH", &subscription, &json!({"claims": claims}), invalid, &["#/claims"]).await;
        let new = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null, "claims": claims});
        let refused = app.call_with("POST", "/v1/subscriptions", &new).await;
        assert!(refused.expect_problem(422, "invalid_value")["errors"][0]["detail"].as_str().expect("words").contains("TOLLGATE_CLAIMS_PREFIX"));
        for nothing in [json!({}), json!(null), json!({"x:a": null})] {
            let patched = app.call_with("PATCH", &subscription, &json!({"claims": nothing})).await.expect(200);
            assert_eq!((&patched["version"], patched.get("claims")), (&json!(1), None));
        }
    }

    async fn what_is_held_is_told_with_its_end_in_whole_seconds_to_the_microsecond(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        for (name, requires) in [("user", "user"), ("client", "client"), ("any", "any"), ("all", "all"), ("open", "any")] {
            register(&app, name, requires, json!({})).await;
        }
        // 2026-07-01T00:00:00Z and its kin are these many seconds after 1970.
        let (july, august, september) = (1_782_864_000, 1_785_542_400, 1_788_220_800);
        let all = ["user", "client", "any", "all"];
        for scope in all {
            hold(&app, ("user", "u"), scope, Some("2026-07-01T00:00:00.999999Z")).await;
            hold(&app, ("client", "c"), scope, Some("2026-08-01T00:00:00Z")).await;
        }
        hold(&app, ("client", "c"), "open", None).await;
        app.register("unused").await;
        let requested = ["open", "user", "openid", "client", "any", "unused", "all", "user"];
        let expected = held("tg:", &[("open", None), ("user", Some(july)), ("client", Some(august)), ("any", Some(august)), ("all", Some(july))]);
        let end = instant("2026-07-01T00:00:00.999999Z");
        for now in [app.now(), end - MICROSECOND] {
            app.set_now(now);
            assert_eq!(told(&app, Some("u"), "c", &requested).await, expected, "at {now}");
        }
        app.set_now(end);
        let expected = held("tg:", &[("open", None), ("client", Some(august)), ("any", Some(august))]);
        assert_eq!(told(&app, Some("u"), "c", &requested).await, expected);
        assert_eq!(told(&app, None, "c", &requested).await, expected);
        assert_eq!(told(&app, None, "c", &["open"]).await, held("tg:", &[("open", None)]));
        assert_eq!(told(&app, Some("u"), "other", &requested).await, json!({}));
        // One's time follows on the other's: it is one run.
        hold(&app, ("user", "u"), "any", Some("2026-09-01T00:00:00Z")).await;
        assert_eq!(told(&app, Some("u"), "c", &["any"]).await, held("tg:", &[("any", Some(september))]));
        app.set_now(instant("2026-08-31T23:59:59.999999Z"));
        assert_eq!(told(&app, Some("u"), "c", &["any", "client"]).await, held("tg:", &[("any", Some(september))]));
    }

    async fn a_grace_counts_and_a_pause_or_a_cancellation_ends_it(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        register(&app, "email", "user", json!({"tg:scope": true})).await;
        let body = json!({
            "subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validFrom": "2026-01-01T00:00:00Z",
            "validUntil": "2026-07-01T00:00:00Z", "graceUntil": "2026-07-02T00:00:00Z", "claims": {"tg:plan": "gold"},
        });
        let path = path_of(&app.call_with("POST", "/v1/subscriptions", &body).await.expect(201));
        let check = async |now: &str, until: Option<i64>| {
            app.set_now(instant(now));
            let mut expected = json!({});
            if let Some(until) = until {
                expected = held("tg:", &[("email", Some(until))]);
                expected["tg:plan"] = json!("gold");
                expected["tg:scope"] = json!(true);
            }
            assert_eq!(told(&app, Some("u"), "c", &["email"]).await, expected, "{now}");
        };
        let (start_of_pause, grace_end) = (1_782_691_200, 1_782_950_400);
        check("2026-06-30T23:59:59.999999Z", Some(grace_end)).await;
        check("2026-07-01T00:00:00Z", Some(grace_end)).await;
        check("2026-07-01T23:59:59.999999Z", Some(grace_end)).await;
        check("2026-07-02T00:00:00Z", None).await;
        app.set_now(instant("2026-06-15T12:00:00Z"));
        let pause = json!({"from": "2026-06-29T00:00:00Z", "until": "2026-06-30T00:00:00Z"});
        app.call_with("POST", &format!("{path}/pause"), &pause).await.expect(200);
        check("2026-06-28T23:59:59.999999Z", Some(start_of_pause)).await;
        check("2026-06-29T00:00:00Z", None).await;
        check("2026-06-29T23:59:59.999999Z", None).await;
        check("2026-06-30T00:00:00Z", Some(grace_end)).await;
        let cancel = json!({"at": "2026-07-01T00:00:00.5Z"});
        app.call_with("POST", &format!("{path}/cancel"), &cancel).await.expect(200);
        check("2026-07-01T00:00:00.499999Z", Some(1_782_864_000)).await;
        check("2026-07-01T00:00:00.500000Z", None).await;
    }

    async fn a_scope_that_stays_without_being_held_earns_no_claims(database) {
        let options = Options { policy: Policy { on_unknown: OnUnknown::Keep, ..policy("tg:") }, ..Options::default() };
        let app = database.app_with(options).await;
        let body = json!({"name": "email", "enforced": false, "claims": {"tg:scope": 1}});
        app.call_with("POST", "/v1/scopes", &body).await.expect(201);
        register(&app, "other", "any", json!({"tg:other": 1})).await;
        assert_eq!(told(&app, Some("u"), "c", &["email", "openid"]).await, json!({}));
        hold(&app, ("user", "holder"), "email", None).await;
        assert_eq!(recorded(&app, "holder", &["email", "openid"]).await, json!({"tg:scope": 1}));
        app.database.close().await;
        // Of whom nothing is known: the policy keeps the scope, and nobody knows that it is held.
        assert_eq!(app.removed(Some("unknown"), "nobody", &["other"]).await, [""; 0]);
        assert_eq!(told(&app, Some("unknown"), "nobody", &["other"]).await, json!({}));
        assert_eq!(recorded(&app, "holder", &["email"]).await, json!({"tg:scope": 1}), "what is cached is known");
    }

    async fn claims_of_a_client_count_where_a_client_is_asked(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        for requires in ["user", "client", "all"] {
            register(&app, requires, requires, json!({})).await;
        }
        let all = ["user", "client", "all"];
        subscribe(&app, ("user", "u"), &all, None, json!({"tg:user": 1, "tg:both": "user"})).await;
        app.set_now(app.now() + LATER);
        subscribe(&app, ("client", "c"), &all, None, json!({"tg:client": 1, "tg:both": "client"})).await;
        let check = async |scopes: &[&str], expected: Value| {
            assert_eq!(recorded(&app, "u", scopes).await, expected, "{scopes:?}");
        };
        check(&["user"], json!({"tg:user": 1, "tg:both": "user"})).await;
        check(&["client"], json!({"tg:client": 1, "tg:both": "client"})).await;
        // The one that was recorded last.
        check(&["all"], json!({"tg:user": 1, "tg:client": 1, "tg:both": "client"})).await;
        check(&["client", "user"], json!({"tg:user": 1, "tg:client": 1, "tg:both": "client"})).await;
        assert_eq!(told(&app, Some("u"), "other", &["all"]).await, json!({}));
    }

    async fn of_one_name_the_later_subscription_wins_then_the_scope_requested_first(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        register(&app, "a", "any", json!({"tg:1": "a", "tg:2": "a", "tg:3": "a"})).await;
        register(&app, "b", "any", json!({"tg:1": "b", "tg:2": "b", "tg:3": "b"})).await;
        let both = ["a", "b"];
        let early = subscribe(&app, ("user", "u"), &both, None, json!({"tg:1": "early", "tg:2": "early"})).await;
        app.set_now(app.now() + LATER);
        let late = path_of(&subscribe(&app, ("client", "c"), &["b"], None, json!({"tg:1": "late"})).await);
        let check = async |scopes: &[&str], expected: Value| {
            assert_eq!(recorded(&app, "u", scopes).await, expected, "{scopes:?}");
        };
        check(&["a", "b"], json!({"tg:1": "late", "tg:2": "early", "tg:3": "a"})).await;
        check(&["b", "a"], json!({"tg:1": "late", "tg:2": "early", "tg:3": "b"})).await;
        check(&["a"], json!({"tg:1": "early", "tg:2": "early", "tg:3": "a"})).await;
        app.call("POST", &format!("{late}/cancel")).await.expect(200);
        check(&["b", "a"], json!({"tg:1": "early", "tg:2": "early", "tg:3": "b"})).await;
        app.call_with("PATCH", &path_of(&early), &json!({"claims": null})).await.expect(200);
        check(&["b", "a"], json!({"tg:1": "b", "tg:2": "b", "tg:3": "b"})).await;
    }

    async fn a_change_of_claims_is_told_right_after_it_was_answered(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        let check = async |expected: Value| assert_eq!(recorded(&app, "u", &["email"]).await, expected);
        assert_eq!(register(&app, "email", "any", json!({"tg:scope": 1})).await["claims"], json!({"tg:scope": 1}));
        let created = subscribe(&app, ("user", "u"), &["email"], None, json!({"tg:plan": {"tier": "gold", "seats": 5}})).await;
        let path = path_of(&created);
        assert_eq!(created["claims"], json!({"tg:plan": {"tier": "gold", "seats": 5}}));
        check(json!({"tg:scope": 1, "tg:plan": {"tier": "gold", "seats": 5}})).await;
        // (Which, its patch, all claims told afterwards, the version afterwards.)
        for (path, patch, told, version) in [
            (&*path, json!({"claims": {"tg:plan": {"seats": 6}}}), json!({"tg:scope": 1, "tg:plan": {"tier": "gold", "seats": 6}}), 2),
            (&path, json!({"claims": {"tg:plan": {"seats": 6}}}), json!({"tg:scope": 1, "tg:plan": {"tier": "gold", "seats": 6}}), 2),
            (&path, json!({"claims": {}}), json!({"tg:scope": 1, "tg:plan": {"tier": "gold", "seats": 6}}), 2),
            (&path, json!({"claims": {"tg:plan": {"tier": null}, "tg:more": [1]}}), json!({"tg:scope": 1, "tg:plan": {"seats": 6}, "tg:more": [1]}), 3),
            (&path, json!({"claims": {"tg:plan": null}}), json!({"tg:scope": 1, "tg:more": [1]}), 4),
            ("/v1/scopes/email", json!({"claims": {"tg:scope": 2}}), json!({"tg:scope": 2, "tg:more": [1]}), 2),
            (&path, json!({"claims": null}), json!({"tg:scope": 2}), 5),
            ("/v1/scopes/email", json!({"claims": {"tg:scope": null}}), json!({}), 3),
            (&path, json!({"claims": {"tg:a": "again"}}), json!({"tg:a": "again"}), 6),
        ] {
            let patched = app.call_with("PATCH", path, &patch).await.expect(200);
            assert_eq!(patched["version"], version, "{patch}");
            assert_eq!(app.call("GET", path).await.expect(200), patched);
            check(told).await;
        }
        assert!(app.call("GET", "/v1/scopes/email").await.expect(200).get("claims").is_none());
        assert_eq!(app.walk("/v1/subscriptions").await[0]["claims"], json!({"tg:a": "again"}));
        app.call("DELETE", &path).await;
        check(json!({})).await;
        assert_eq!(app.call("POST", &format!("{path}/restore")).await.expect(200)["claims"], json!({"tg:a": "again"}));
        check(json!({"tg:a": "again"})).await;
        // A transition leaves them.
        let renewed = app.call_with("POST", &format!("{path}/cancel"), &json!({"at": "2027-01-01T00:00:00Z"})).await.expect(200);
        assert_eq!(renewed["claims"], json!({"tg:a": "again"}));
        let another = database.app_with(with_prefix("tg:")).await;
        assert_eq!(recorded(&another, "u", &["email"]).await, json!({"tg:a": "again"}), "as another service reads it");
    }

    async fn claims_that_cannot_be_are_refused_and_named(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        app.register("email").await;
        let subscription = path_of(&hold(&app, ("user", "u"), "email", None).await);
        let (long, many): (String, Value) = (format!("tg:{}", "n".repeat(125)), (0..17).map(|number| (format!("tg:{number}"), json!(1))).collect());
        let cut: String = long.chars().take(64).collect();
        for (claims, pointer) in [
            (json!({"a": 1}), "#/claims/a".to_owned()),
            (json!({"tg:": 1}), "#/claims/tg:".to_owned()),
            (json!({"tg:a": 1, "tgx:a/b~": 1}), "#/claims/tgx:a~1b~0".to_owned()),
            (json!({"cid": "c"}), "#/claims/cid".to_owned()),
            (json!({"urn:onegini.com:oidc:a": "c"}), "#/claims/urn:onegini.com:oidc:a".to_owned()),
            (json!({"tg:entitlements": []}), "#/claims/tg:entitlements".to_owned()),
            (json!({"tg:entitled_until": 1}), "#/claims/tg:entitled_until".to_owned()),
            (json!({"tg:a b": 1}), "#/claims/tg:a b".to_owned()),
            (json!({format!("{long}n"): 1}), format!("#/claims/{cut}")),
            (json!({"tg:a": [null]}), "#/claims/tg:a".to_owned()),
            (json!({"tg:a": [{"b": null}]}), "#/claims/tg:a".to_owned()),
            (many, "#/claims".to_owned()),
            (json!({"tg:a": "x".repeat(1014)}), "#/claims".to_owned()),
        ] {
            let scope = json!({"name": "other", "claims": claims});
            let new = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null, "claims": claims});
            for (method, path, body) in [
                ("POST", "/v1/scopes", &scope), ("POST", "/v1/subscriptions", &new),
                ("PATCH", "/v1/scopes/email", &json!({"claims": claims})), ("PATCH", &subscription, &json!({"claims": claims})),
            ] {
                app.refuse(method, path, body, (422, "invalid_value"), &[&pointer]).await;
            }
        }
        let refused = json!({"name": "other", "claims": {"tg:a": null}});
        app.refuse("POST", "/v1/scopes", &refused, (422, "invalid_value"), &["#/claims/tg:a"]).await;
        for (claims, pointer) in [
            ("null", "#/claims"), ("[]", "#/claims"), ("\"hunter2\"", "#/claims"), (r#"{"tg:a":1,"tg:a":2}"#, "#/claims"),
            (r#"{"tg:a":{"hunter2":1,"hunter2":1}}"#, "#/claims/tg:a"),
        ] {
            let body = format!(r#"{{"name":"other","claims":{claims}}}"#);
            let headers = [crate::support::ADMIN_CREDENTIALS, crate::support::JSON];
            let answer = app.send("POST", "/v1/scopes", &headers, body.clone()).await;
            answer.expect_refusal((400, "invalid_request"), &[pointer], &body);
            assert!(!answer.text().contains("hunter2"), "{}", answer.text());
        }
        assert_eq!(app.call("GET", "/v1/scopes/other").await.status, 404);
        assert_eq!(told(&app, Some("u"), "c", &["email"]).await, held("tg:", &[("email", None)]));

        // As much as there may be, and whatever JSON can say, comes back as it was.
        for claims in [
            json!({"tg:a": "x".repeat(1013)}),
            json!({long: 1}),
            (0..16).map(|number| (format!("tg:{number}"), json!(number))).collect(),
            json!({"tg:a": ["a\u{0}b", "\"\\/'", "é e\u{301} 🎫", -1, 1.5, 1e300, u64::MAX, i64::MIN, true, {"": {"": []}}]}),
        ] {
            app.call_with("PATCH", &subscription, &json!({"claims": null})).await.expect(200);
            assert_eq!(app.call_with("PATCH", &subscription, &json!({"claims": claims})).await.expect(200)["claims"], claims);
            assert_eq!(app.call("GET", &subscription).await.expect(200)["claims"], claims);
            assert_eq!(recorded(&app, "u", &["email"]).await, claims);
        }
        let full = app.call("GET", &subscription).await.expect(200)["version"].clone();
        app.refuse("PATCH", &subscription, &json!({"claims": {"tg:b": "x".repeat(1000)}}), (422, "invalid_value"), &["#/claims"]).await;
        assert_eq!(app.call("GET", &subscription).await.expect(200)["version"], full, "a refused change changes nothing");
    }

    async fn what_has_no_room_is_left_out_and_counted_and_never_costs_the_answer(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        register(&app, "email", "any", json!({"tg:scope": "s".repeat(990), "tg:tiny": 1})).await;
        for number in 0..5 {
            app.set_now(app.now() + LATER);
            let claims = json!({format!("tg:{number}"): "x".repeat(1000), "tg:2": number});
            let claims = if number == 2 { json!({"tg:2": "x".repeat(1000)}) } else { claims };
            let taken = subscribe(&app, ("user", "u"), &["email"], Some("2027-01-01T00:00:00Z"), claims).await;
            assert_eq!(taken["version"], 1);
        }
        let before = app.metric("tollgate_claims_left_out_total").await;
        for round in 1..=2 {
            let claims = told(&app, Some("u"), "c", &["email"]).await;
            let names: Vec<_> = claims.as_object().expect("claims").keys().map(String::as_str).collect();
            // The latest first; the third loses its name to the fifth, and the first and the scope's have no room.
            assert_eq!(names, ["tg:1", "tg:2", "tg:3", "tg:4", "tg:entitled_until", "tg:entitlements", "tg:tiny"]);
            assert_eq!(claims["tg:2"], 4);
            assert!(claims.to_string().len() <= 4096, "{}", claims.to_string().len());
            let left_out = app.metric("tollgate_claims_left_out_total").await - before;
            assert!((left_out - 2.0 * f64::from(round)).abs() < 0.1, "{left_out}");
        }
    }

    async fn claims_of_another_prefix_are_left_out_and_can_be_taken_away(database) {
        let old = database.app_with(with_prefix("old:")).await;
        register(&old, "email", "any", json!({"old:scope": 1})).await;
        let path = path_of(&subscribe(&old, ("user", "u"), &["email"], None, json!({"old:plan": 1, "old:new:entitlements": 1})).await);
        let mut expected = held("old:", &[("email", None)]);
        for name in ["old:scope", "old:plan", "old:new:entitlements"] {
            expected[name] = json!(1);
        }
        assert_eq!(told(&old, Some("u"), "c", &["email"]).await, expected);
        let new = database.app_with(with_prefix("old:new:")).await;
        assert_eq!(told(&new, Some("u"), "c", &["email"]).await, held("old:new:", &[("email", None)]));
        let change = json!({"claims": {"old:new:plan": 2}});
        let patched = new.call_with("PATCH", &path, &change).await.expect(200);
        assert_eq!(patched["claims"], json!({"old:plan": 1, "old:new:entitlements": 1, "old:new:plan": 2}));
        assert_eq!(recorded(&new, "u", &["email"]).await, json!({"old:new:plan": 2}));
        new.refuse("PATCH", &path, &json!({"claims": {"old:plan": 2}}), (422, "invalid_value"), &["#/claims/old:plan"]).await;
        let unset = database.app().await;
        assert_eq!(told(&unset, Some("u"), "c", &["email"]).await, json!({}));
        let patched = unset.call_with("PATCH", &path, &json!({"claims": {"old:plan": null}})).await.expect(200);
        assert_eq!(patched["claims"], json!({"old:new:entitlements": 1, "old:new:plan": 2}));
        assert!(unset.call_with("PATCH", &path, &json!({"claims": null})).await.expect(200).get("claims").is_none());
        assert!(unset.call_with("PATCH", "/v1/scopes/email", &json!({"claims": null})).await.expect(200).get("claims").is_none());
    }

    async fn claims_that_somebody_broke_by_hand_cost_the_claims_and_not_the_login(database) {
        let app = database.app_with(with_prefix("tg:")).await;
        register(&app, "email", "any", json!({"tg:scope": 1})).await;
        let path = path_of(&subscribe(&app, ("user", "u"), &["email"], None, json!({"tg:plan": 1})).await);
        let hand = ByHand::open(&database.url).await;
        for broken in ["no JSON", "[]", "{\"tg:plan\":null}"] {
            hand.run(&format!("UPDATE subscription SET claims = '{broken}'")).await;
            hand.run(&format!("UPDATE catalogue_scope SET claims = '{broken}'")).await;
            let cold = database.app_with(with_prefix("tg:")).await;
            assert_eq!(told(&cold, Some("u"), "c", &["email"]).await, held("tg:", &[("email", None)]), "{broken}");
            assert_eq!(cold.call("GET", &path).await.status, 500, "whoever looks is told that something is wrong");
        }
    }
}
