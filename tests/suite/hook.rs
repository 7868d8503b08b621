//! The hooks as Access calls them: what they answer, to the byte, and when.

use serde_json::json;
use tollgate::{domain::decision::Unmanaged, http::auth::HookAuth, service::Policy};

use crate::support::{ACCESS_TOKEN, HOOK_CREDENTIALS, JSON, MICROSECOND, Options, TOKEN, instant, on_both, timestamp};

/// The example of the vendor's description of the hook, with every member that Access is known to send.
fn example() -> serde_json::Value {
    json!({
        "user": {"id": "myUserId22700111101"}, "client": {"id": "client"}, "scopes": ["profile", "email"],
        "userClaims": {"name": "John"},
        "executionContext": {"ipAddress": "203.0.113.7", "triggeredBy": ["/oauth/token"]},
        "contextCustomParams": {"on_behalf_of": ["user"]},
    })
}

on_both! {
    async fn the_demo_answers_the_example_to_the_byte(database) {
        let app = database.app().await;
        app.service.seed_demo().await.expect("seeded");
        let answer = app.ask(ACCESS_TOKEN, &example()).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, r#"{"removeScopes":["email"],"additionalClaims":{}}"#));
        let answer = app.ask(TOKEN, &example()).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, r#"{"reducedScopes":["profile"]}"#));
    }

    async fn a_subscription_counts_from_its_first_microsecond_to_its_last_cached_or_not(database) {
        let app = database.app().await;
        app.register("email").await;
        let (from, until) = (instant("2026-07-01T00:00:00Z"), instant("2026-08-01T00:00:00.000001Z"));
        app.subscribe("u", &["email"], &timestamp(from), Some(&timestamp(until))).await;
        let instants = [
            (from - MICROSECOND, false), (from, true), (from + MICROSECOND, true),
            (until - MICROSECOND, true), (until, false), (until + MICROSECOND, false),
        ];
        // The first round fills the cache at each instant anew; the second asks what is cached, forth and back.
        for (now, kept) in instants {
            let cold = database.app().await;
            cold.set_now(now);
            assert_eq!(cold.removed(Some("u"), "c", &["email"]).await.is_empty(), kept, "cold, at {now}");
        }
        for (now, kept) in instants.into_iter().chain(instants.into_iter().rev()) {
            app.set_now(now);
            assert_eq!(app.removed(Some("u"), "c", &["email"]).await.is_empty(), kept, "cached, at {now}");
        }
    }

    async fn each_rule_asks_those_who_must_hold_the_scope(database) {
        let app = database.app().await;
        for requires in ["user", "client", "any", "all"] {
            app.call_with("POST", "/v1/scopes", &json!({"name": requires, "requires": requires})).await.expect(201);
        }
        let all = ["user", "client", "any", "all"];
        for (kind, id) in [("user", "paying"), ("client", "paying")] {
            let body = json!({"subject": {"type": kind, "id": id}, "scopes": all, "validUntil": null});
            app.call_with("POST", "/v1/subscriptions", &body).await.expect(201);
        }
        let check = async |user: Option<&str>, client: &str, removed: &[&str]| {
            assert_eq!(app.removed(user, client, &all).await, removed, "{user:?} {client}");
        };
        check(Some("paying"), "paying", &[]).await;
        check(Some("paying"), "other", &["client", "all"]).await;
        check(Some("other"), "paying", &["user", "all"]).await;
        check(Some("other"), "other", &all).await;
        check(None, "paying", &["user", "all"]).await;
        check(None, "other", &all).await;
    }

    async fn an_absent_user_may_be_null_and_unknown_members_are_ignored(database) {
        let app = database.app().await;
        app.register("email").await;
        for user in [json!(null), json!({"id": "x", "name": 5, "more": {"id": 1}})] {
            let body = json!({
                "user": user, "client": {"id": "c", "secret": [1]}, "scopes": ["email", "openid"],
                "executionContext": {"triggeredBy": "/oauth/token"}, "contextCustomParams": null, "later": [{"a": null}],
            });
            assert_eq!(app.ask(ACCESS_TOKEN, &body).await.expect(200)["removeScopes"], json!(["email"]));
            assert_eq!(app.ask(TOKEN, &body).await.expect(200)["reducedScopes"], json!(["openid"]));
        }
    }

    async fn strange_and_repeated_scopes_are_answered_once_each_in_requested_order(database) {
        let app = database.app().await;
        app.register("email").await;
        let long = "x".repeat(10_000);
        let scopes = ["b", "email", "", " ", "\"", "🎫", "email", "a", "b", "a\u{0}b", &long, "{}", "Email"];
        let body = json!({"client": {"id": "c"}, "scopes": scopes});
        let expected = json!(["b", "", " ", "\"", "🎫", "a", "a\u{0}b", long, "{}", "Email"]);
        assert_eq!(app.ask(TOKEN, &body).await.expect(200)["reducedScopes"], expected);
        assert_eq!(app.ask(ACCESS_TOKEN, &body).await.expect(200)["removeScopes"], json!(["email"]));
        let none = json!({"client": {"id": "c"}, "scopes": []});
        assert_eq!(app.ask(TOKEN, &none).await.text(), r#"{"reducedScopes":[]}"#);
        assert_eq!(app.ask(ACCESS_TOKEN, &none).await.text(), r#"{"removeScopes":[],"additionalClaims":{}}"#);
    }

    async fn an_id_that_no_subscription_can_have_holds_nothing_and_never_reaches_the_database(database) {
        let app = database.app().await;
        app.register("email").await;
        let missed = app.metric("tollgate_cache_lookups_total{result=\"miss\"}").await;
        for id in ["", "a\u{0}b", &"x".repeat(1025), &"x".repeat(10_240)] {
            assert_eq!(app.removed(Some(id), id, &["email", "openid"]).await, ["email"]);
        }
        assert_eq!(app.metric("tollgate_cache_lookups_total{result=\"miss\"}").await.to_bits(), missed.to_bits());
    }

    async fn ids_are_compared_byte_for_byte(database) {
        let app = database.app().await;
        app.register("email").await;
        let ids = [
            "é", "e\u{301}", "A", "a", "a ", " a", "../a", "a%2Fb", "a/b", "' OR 1=1 --", "\"", "\\", "a\nb", "🎫", "\u{1b}[31m",
            "Straße", "STRASSE", "\u{feff}a", "%", "_", "\u{fffd}",
        ];
        for (index, holder) in ids.iter().enumerate() {
            let longest = "é".repeat(512);
            app.subscribe(holder, &["email"], "2026-01-01T00:00:00Z", None).await;
            for (other, id) in ids.iter().enumerate() {
                assert_eq!(app.removed(Some(id), "c", &["email"]).await.is_empty(), other <= index, "{holder:?} {id:?}");
            }
            assert_eq!(app.removed(Some(&longest), "c", &["email"]).await, ["email"]);
        }
        let longest = "é".repeat(512);
        app.subscribe(&longest, &["email"], "2026-01-01T00:00:00Z", None).await;
        assert!(app.removed(Some(&longest), "c", &["email"]).await.is_empty());
    }

    async fn a_scope_that_is_not_enforced_is_counted_and_kept(database) {
        let app = database.app().await;
        app.call_with("POST", "/v1/scopes", &json!({"name": "email", "enforced": false})).await.expect(201);
        assert!(app.removed(Some("u"), "c", &["email"]).await.is_empty());
        assert!(app.metric("tollgate_decisions_total{decision=\"kept\",reason=\"not_enforced\"}").await > 0.5);
        assert!(app.metric("tollgate_unenforced_removals_total{reason=\"no_subscription\"}").await > 0.5);
        app.call_with("PATCH", "/v1/scopes/email", &json!({"enforced": true})).await.expect(200);
        assert_eq!(app.removed(Some("u"), "c", &["email"]).await, ["email"]);
        assert!(app.metric("tollgate_decisions_total{decision=\"removed\",reason=\"no_subscription\"}").await > 0.5);
        assert!(app.metric("tollgate_scopes_removed_total").await > 0.5);
    }

    async fn unmanaged_scopes_can_be_removed_but_for_those_of_the_protocol(database) {
        let policy = Policy { unmanaged: Unmanaged::Remove, ..Options::default().policy };
        let app = database.app_with(Options { policy, ..Options::default() }).await;
        let scopes = ["openid", "profile", "email", "address", "phone", "offline_access", "other"];
        assert_eq!(app.removed(Some("u"), "c", &scopes).await, ["other"]);
        app.register("email").await;
        assert_eq!(app.removed(Some("u"), "c", &scopes).await, ["email", "other"]);
    }

    async fn a_write_counts_from_its_answer_on(database) {
        let app = database.app().await;
        let check = async |removed: &[&str]| assert_eq!(app.removed(Some("u"), "c", &["email"]).await, removed);
        check(&[]).await;
        app.register("email").await;
        check(&["email"]).await;
        let id = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await["id"].clone();
        let path = format!("/v1/subscriptions/{}", id.as_str().expect("an id"));
        check(&[]).await;
        app.call_with("PATCH", &path, &json!({"validUntil": "2026-02-01T00:00:00Z"})).await.expect(200);
        check(&["email"]).await;
        app.call_with("PATCH", &path, &json!({"validUntil": null})).await.expect(200);
        check(&[]).await;
        app.call("POST", &format!("{path}/cancel")).await.expect(200);
        check(&["email"]).await;
        let again = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await["id"].clone();
        check(&[]).await;
        assert_eq!(app.call("DELETE", &format!("/v1/subscriptions/{}", again.as_str().expect("an id"))).await.status, 204);
        check(&["email"]).await;
    }

    async fn credentials_are_checked_before_the_body_is_read(database) {
        let app = database.app().await;
        let check = async |headers: &[(&str, &str)], admitted: bool| {
            let answer = app.send("POST", ACCESS_TOKEN, &[headers, &[JSON]].concat(), "not JSON").await;
            if admitted {
                answer.expect_problem(400, "invalid_json");
            } else {
                answer.expect_problem(401, "unauthorized");
                assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"tollgate\", charset=\"UTF-8\""));
            }
        };
        check(&[HOOK_CREDENTIALS], true).await;
        for scheme in ["basic", "BASIC", "bAsIc", "Basic  "] {
            check(&[("authorization", &format!("{scheme} aG9vazpob29r"))], true).await;
        }
        let long = format!("Basic {}", "A".repeat(20_000));
        for wrong in [
            "", "Basic", "Basic ", "Basic aG9vazpob29", "Basic aG9vazpob29rcg==", "Basic aG9vaw==", "Basic !!!", "Basic /////w==",
            "Basic aG9vazo=", "Basic Omhvb2s=", "Bearer aG9vazpob29r", "Bearer admin-token", "Digest x", "aG9vazpob29r", &long,
        ] {
            check(&[("authorization", wrong)], false).await;
        }
        check(&[], false).await;
        check(&[HOOK_CREDENTIALS, HOOK_CREDENTIALS], false).await;
        check(&[("authorization", "Basic eDp5"), HOOK_CREDENTIALS], false).await;
    }

    async fn open_hooks_take_no_credentials_and_never_wrong_ones(database) {
        let open = HookAuth::default().with_none();
        let app = database.app_with(Options { hook_auth: open.clone(), ..Options::default() }).await;
        let body = json!({"client": {"id": "c"}, "scopes": []}).to_string();
        assert_eq!(app.send("POST", TOKEN, &[JSON], body.clone()).await.status, 200);
        let both = open.with_basic("hook", "hook");
        let app = database.app_with(Options { hook_auth: both, ..Options::default() }).await;
        assert_eq!(app.send("POST", TOKEN, &[JSON], body.clone()).await.status, 200);
        assert_eq!(app.send("POST", TOKEN, &[HOOK_CREDENTIALS, JSON], body.clone()).await.status, 200);
        let wrong = ("authorization", "Basic eDp5");
        app.send("POST", TOKEN, &[wrong, JSON], body).await.expect_problem(401, "unauthorized");
    }

    async fn without_the_database_nothing_is_guessed(database) {
        let app = database.app().await;
        app.register("email").await;
        assert_eq!(app.removed(Some("known"), "c", &["email"]).await, ["email"]);
        app.database.close().await;
        let unknown = json!({"user": {"id": "unknown"}, "client": {"id": "c"}, "scopes": ["email"]});
        for path in [ACCESS_TOKEN, TOKEN] {
            let answer = app.ask(path, &unknown).await;
            answer.expect_problem(503, "unavailable");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        assert_eq!(app.removed(Some("known"), "c", &["email"]).await, ["email"], "what is known and fresh is answered");
        assert_eq!(app.removed(Some("unknown"), "c", &["openid"]).await, [""; 0], "no fact is needed for this");
        assert!(app.metric("tollgate_hook_requests_total{hook=\"customize-token\",outcome=\"unavailable\"}").await > 0.5);
        assert!(app.metric("tollgate_database_errors_total{kind=\"unavailable\"}").await > 0.5);
    }
}
