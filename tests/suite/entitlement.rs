//! The entitlements view over HTTP: `/v1/entitlements`.

use serde_json::{Value, json};

use crate::support::{App, MICROSECOND, encoded, instant, on_both, path_of, timestamp};

/// What the view shows of a user, at an instant when one is given: each scope with its reason and its end.
async fn items(app: &App, user: &str, at: Option<&str>) -> Vec<(String, String, Value)> {
    let at = at.map(|at| format!("&at={}", encoded(at))).unwrap_or_default();
    let path = format!("/v1/entitlements?subjectType=user&subjectId={}{at}", encoded(user));
    let view = app.call("GET", &path).await.expect(200);
    assert_eq!(view["subject"], json!({"type": "user", "id": user}));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let item = |item: &Value| {
        assert_eq!(item["held"], ["active", "grace"].contains(&item["reason"].as_str().expect("a reason")), "{item}");
        let more = usize::from(item["until"].is_string()) + usize::from(item["next"].is_object());
        assert_eq!(item.as_object().map(serde_json::Map::len), Some(4 + more));
        assert_eq!(item["subscriptions"] == json!([]), item["reason"] == "no_subscription", "{item}");
        if item["held"] == true {
            let next = if item["until"].is_null() { Value::Null } else { json!({"at": item["until"], "held": false}) };
            assert_eq!(item["next"], next);
        } else if item["next"].is_object() {
            assert_eq!(item["next"]["held"], true);
        }
        (text(&item["scope"]), text(&item["reason"]), item["until"].clone())
    };
    view["items"].as_array().expect("items").iter().map(item).collect()
}

on_both! {
    async fn the_view_shows_each_catalogue_scope_with_its_reason(database) {
        let app = database.app().await;
        for (name, requires) in [("b", "client"), ("a", "all"), ("d", "user"), ("c", "any"), ("e", "any"), ("B", "any")] {
            app.call_with("POST", "/v1/scopes", &json!({"name": name, "requires": requires})).await.expect(201);
        }
        app.call_with("PATCH", "/v1/scopes/e", &json!({"enforced": false})).await.expect(200);
        let (past, ahead) = ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00.000001Z");
        let mut ids = vec![app.subscribe("u", &["a"], past, Some(ahead)).await["id"].clone()];
        ids.push(app.subscribe("u", &["b"], ahead, None).await["id"].clone());
        let canceled = app.subscribe("u", &["c"], past, None).await;
        app.call("POST", &format!("{}/cancel", path_of(&canceled))).await.expect(200);
        ids.push(canceled["id"].clone());
        ids.push(app.subscribe("u", &["d"], "2026-01-01T00:00:00Z", Some(past)).await["id"].clone());
        ids.push(app.subscribe("u", &["e"], past, None).await["id"].clone());
        let again = app.subscribe("u", &["e"], past, None).await["id"].clone();
        let mut both = [ids[4].as_str(), again.as_str()];
        both.sort_unstable();
        app.subscribe("other", &["B"], past, None).await;
        let client = json!({"subject": {"type": "client", "id": "u"}, "scopes": ["B", "c"], "validUntil": ahead});
        let of_client = app.call_with("POST", "/v1/subscriptions", &client).await.expect(201)["id"].clone();

        let view = app.call("GET", "/v1/entitlements?subjectType=user&subjectId=u").await;
        let until = "2026-07-01T00:00:00.000001Z";
        let expected = json!({"subject": {"type": "user", "id": "u"}, "at": "2026-06-15T12:00:00Z", "items": [
            {"scope": "B", "held": false, "reason": "no_subscription", "subscriptions": []},
            {"scope": "a", "held": true, "reason": "active", "until": until, "subscriptions": [ids[0]], "next": {"at": until, "held": false}},
            {"scope": "b", "held": false, "reason": "scheduled", "subscriptions": [ids[1]], "next": {"at": until, "held": true}},
            {"scope": "c", "held": false, "reason": "canceled", "subscriptions": [ids[2]]},
            {"scope": "d", "held": false, "reason": "expired", "subscriptions": [ids[3]]},
            {"scope": "e", "held": true, "reason": "active", "subscriptions": both},
        ]});
        assert_eq!(view.expect(200), expected);
        let view = app.call("GET", "/v1/entitlements?subjectId=u&subjectType=client").await.expect(200);
        assert_eq!(view["subject"], json!({"type": "client", "id": "u"}));
        let next = json!({"at": until, "held": false});
        assert_eq!(view["items"][0], json!({"scope": "B", "held": true, "reason": "active", "until": until, "subscriptions": [of_client], "next": next}));
        assert_eq!(view["items"][1], json!({"scope": "a", "held": false, "reason": "no_subscription", "subscriptions": []}));
        let nobody = items(&app, "nobody", None).await;
        assert!(nobody.len() == 6 && nobody.iter().all(|(_, reason, _)| reason == "no_subscription"), "{nobody:?}");
    }

    async fn the_view_changes_on_the_microsecond_now_and_at_any_other_instant(database) {
        let app = database.app().await;
        app.register("x").await;
        let at = |text| instant(text);
        let (from, until) = (at("2020-02-29T23:59:59.999999Z"), at("2031-01-01T00:00:00Z"));
        app.subscribe("u", &["x"], &timestamp(from), Some(&timestamp(until))).await;
        let held = json!("2031-01-01T00:00:00Z");
        for (now, reason, until) in [
            (from - MICROSECOND, "scheduled", &Value::Null), (from, "active", &held), (from + MICROSECOND, "active", &held),
            (until - MICROSECOND, "active", &held), (until, "expired", &Value::Null), (until + MICROSECOND, "expired", &Value::Null),
        ] {
            let expected = [("x".to_owned(), reason.to_owned(), until.clone())];
            assert_eq!(items(&app, "u", Some(&timestamp(now))).await, expected, "at {now}");
            app.set_now(now);
            assert_eq!(items(&app, "u", None).await, expected, "now {now}");
            app.set_now(at("2026-06-15T12:00:00Z"));
        }
        for (at, shown) in [
            ("2026-01-01T00:00:00+14:00", "2025-12-31T10:00:00Z"), ("2026-01-01t00:00:00.1234569z", "2026-01-01T00:00:00.123456Z"),
        ] {
            let path = format!("/v1/entitlements?subjectType=user&subjectId=u&at={}", encoded(at));
            assert_eq!(app.call("GET", &path).await.expect(200)["at"], shown);
        }
        // An instant of the past is seen with what is recorded now.
        let path = path_of(&app.subscribe("v", &["x"], "2026-01-01T00:00:00Z", None).await);
        app.call("POST", &format!("{path}/cancel")).await.expect(200);
        let canceled = |until: Value| [("x".to_owned(), if until.is_null() { "canceled" } else { "active" }.to_owned(), until)];
        assert_eq!(items(&app, "v", Some("2026-06-15T11:59:59.999999Z")).await, canceled("2026-06-15T12:00:00Z".into()));
        assert_eq!(items(&app, "v", Some("2026-06-15T12:00:00Z")).await, canceled(Value::Null));
        assert_eq!(app.call("DELETE", &path).await.status, 204);
        assert_eq!(items(&app, "v", None).await[0].1, "no_subscription");
        assert_eq!(items(&app, "v", Some("2026-03-01T00:00:00Z")).await[0].1, "no_subscription");
    }

    async fn until_is_the_end_of_the_whole_run_of_windows(database) {
        let app = database.app().await;
        let day = |day: u32| format!("2026-06-{day:02}T00:00:00Z");
        let check = async |user: &str, windows: &[(u32, Option<u32>)], until: Option<u32>| {
            for (from, until) in windows {
                app.subscribe(user, &["x"], &day(*from), until.map(day).as_deref()).await;
            }
            let until = until.map_or(Value::Null, |until| day(until).into());
            assert_eq!(items(&app, user, None).await, [("x".to_owned(), "active".to_owned(), until)], "{windows:?}");
        };
        app.register("x").await;
        check("one", &[(1, Some(20))], Some(20)).await;
        check("adjoining", &[(20, Some(25)), (1, Some(20)), (25, Some(26))], Some(26)).await;
        check("overlapping", &[(1, Some(20)), (16, Some(24)), (10, Some(18))], Some(24)).await;
        check("gap", &[(1, Some(20)), (21, Some(28))], Some(20)).await;
        check("open-ended", &[(1, Some(20)), (20, None), (3, Some(28))], None).await;
        check("open-ended after a gap", &[(1, Some(20)), (21, None)], Some(20)).await;
        // A canceled link breaks the chain, and the last microsecond counts.
        let link = app.subscribe("canceled", &["x"], &day(20), Some(&day(22))).await;
        app.call("POST", &format!("{}/cancel", path_of(&link))).await.expect(200);
        check("canceled", &[(1, Some(20)), (22, Some(28))], Some(20)).await;
        app.subscribe("microsecond", &["x"], "2026-06-20T00:00:00.000001Z", None).await;
        check("microsecond", &[(1, Some(20))], Some(20)).await;
    }

    async fn what_the_view_needs_is_named_when_it_is_missing_or_wrong(database) {
        let app = database.app().await;
        let both = "subjectType=user&subjectId=u";
        for (query, pointers) in [
            ("", &["?subjectType", "?subjectId"][..]),
            ("?", &["?subjectType", "?subjectId"]),
            ("?subjectType=user", &["?subjectId"]),
            ("?subjectId=u", &["?subjectType"]),
            ("?at=2026-01-01T00:00:00Z", &["?subjectType", "?subjectId"]),
            ("?subjecttype=user&subjectId=u", &["?subjecttype", "?subjectType"]),
            ("?subjectType=User&subjectId=u", &["?subjectType"]),
            ("?subjectType=&subjectId=u", &["?subjectType"]),
            ("?subjectType=user&subjectId=", &["?subjectId"]),
            ("?subjectType=user&subjectId=a%00b", &["?subjectId"]),
            (&*format!("?subjectType=user&subjectId={}", "x".repeat(1025)), &["?subjectId"]),
            (&format!("?{both}&subjectId=u"), &["?subjectId"]),
            (&format!("?{both}&at="), &["?at"]),
            (&format!("?{both}&at=now"), &["?at"]),
            (&format!("?{both}&at=2026-01-01"), &["?at"]),
            // The plus of an offset that was not encoded is a blank.
            (&format!("?{both}&at=2026-01-01T00:00:00+01:00"), &["?at"]),
            (&format!("?{both}&limit=1"), &["?limit"]),
        ] {
            app.refuse_query(&format!("/v1/entitlements{query}"), pointers).await;
        }
        assert_eq!(items(&app, &"é".repeat(512), None).await, []);
    }
}
