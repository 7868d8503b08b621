//! Many writes in one request: all or nothing, or each for itself.

use serde_json::{Value, json};

use crate::support::{ADMIN_CREDENTIALS, Answer, App, ByHand, JSON, MICROSECOND, Options, on_both, path_of};

const BATCH: &str = "/v1/subscriptions/batch";
const CHANGES: &str = "SELECT count(*) FROM change WHERE noun = 'subscription'";

fn new(user: &str) -> Value {
    json!({"subject": {"type": "user", "id": user}, "scopes": ["email"], "validFrom": "2026-01-01T00:00:00Z", "validUntil": null})
}

/// What billing says of a subscription.
fn state(user: &str, id: &str, version: i64) -> Value {
    let mut state = new(user);
    let more = json!({"source": "billing", "externalId": id, "sourceVersion": version});
    state.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    state
}

async fn send(app: &App, is_atomic: bool, items: &[Value]) -> Answer {
    app.call_with("POST", BATCH, &json!({"atomic": is_atomic, "items": items})).await
}

fn statuses(answer: &Value) -> Vec<u64> {
    answer["items"].as_array().expect("items").iter().map(|item| item["status"].as_u64().expect("a status")).collect()
}

fn outcomes(answer: &Value) -> Vec<&str> {
    let items = answer["items"].as_array().expect("items").iter();
    items.map(|item| item["outcome"].as_str().or(item["problem"]["code"].as_str()).expect("a word")).collect()
}

on_both! {
    async fn a_batch_does_its_writes_in_their_order_and_in_one_transaction(database) {
        let app = database.app().await;
        app.register("email").await;
        let old = app.subscribe("old", &["email"], "2026-01-01T00:00:00Z", None).await;
        let id = &old["id"];
        assert_eq!(app.removed(Some("a"), "c", &["email"]).await, ["email"]);
        let items = [
            json!({"create": new("a")}),
            json!({"put": state("b", "1", 1)}),
            json!({"put": state("b", "1", 2)}),
            json!({"put": state("b", "1", 2)}),
            json!({"id": id, "patch": {"validUntil": "2027-01-01T00:00:00Z"}}),
            json!({"id": id, "version": 2, "pause": {}}),
            json!({"id": id, "resume": {}}),
            json!({"id": id, "renew": {"duration": "P1M"}}),
            json!({"id": id, "cancel": {"atEnd": true}}),
            json!({"id": id, "uncancel": {}}),
            json!({"id": id, "delete": {}}),
            json!({"id": id, "restore": {}}),
            json!({"id": id, "patch": {}}),
        ];
        let answer = send(&app, true, &items).await.expect(200);
        assert_eq!(statuses(&answer), [201, 201, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 200]);
        assert_eq!(
            outcomes(&answer),
            [
                "created", "created", "changed", "outdated", "changed", "changed", "changed", "changed", "changed", "changed", "changed",
                "changed", "unchanged",
            ]
        );
        let last = &answer["items"][12]["subscription"];
        assert_eq!(app.call("GET", &path_of(&old)).await.expect(200), *last);
        assert_eq!((&last["validUntil"], &last["version"], &last["status"]), (&json!("2027-02-01T00:00:00Z"), &json!(9), &json!("active")));
        assert!(answer["items"][10]["subscription"]["deletedAt"].is_string());
        // The hooks know all of it by the answer.
        assert!(app.removed(Some("a"), "c", &["email"]).await.is_empty());
        assert!(app.removed(Some("b"), "c", &["email"]).await.is_empty());
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 12);
        if database.backend == crate::support::Backend::Postgres {
            assert_eq!(by_hand.ask::<i64>("SELECT count(DISTINCT xid) FROM change WHERE seq > (SELECT min(seq) + 1 FROM change)").await, 1);
        }
    }

    async fn an_atomic_batch_is_done_whole_or_not_at_all(database) {
        let app = database.app().await;
        app.register("email").await;
        let old = app.subscribe("old", &["email"], "2026-01-01T00:00:00Z", None).await;
        let id = &old["id"];
        let with = |value: Value| {
            let mut new = new("a");
            new.as_object_mut().expect("an object").extend(value.as_object().expect("an object").clone());
            json!({ "create": new })
        };
        let nobody = "018f0000-0000-7000-8000-000000000000";
        for (item, problem, pointers) in [
            (with(json!({"scopes": ["phone"]})), (422, "unknown_scopes"), &["#/items/2/create/scopes"][..]),
            (with(json!({"validUntil": "2025-01-01T00:00:00Z"})), (422, "invalid_value"), &["#/items/2/create/validUntil"]),
            (with(json!({"validFrom": "now", "graceUntil": "never"})), (422, "invalid_value"), &["#/items/2/create/validFrom", "#/items/2/create/graceUntil"]),
            (with(json!({"source": "x"})), (400, "invalid_request"), &["#/items/2/create/externalId"]),
            (json!({"put": new("a")}), (400, "invalid_request"), &["#/items/2/put/externalId"]),
            (json!({"put": state("other", "1", 9)}), (422, "invalid_value"), &["#/items/2/put/subject"]),
            (json!({"create": state("b", "1", 9)}), (409, "external_id_exists"), &["#/items/2/create"]),
            (json!({"id": id, "patch": {"scopes": []}}), (422, "invalid_value"), &["#/items/2/patch/scopes"]),
            (json!({"id": id, "version": 7, "cancel": {}}), (412, "version_mismatch"), &["#/items/2/cancel"]),
            (json!({"id": id, "resume": {}}), (409, "canceled"), &["#/items/2/resume"]),
            (json!({"id": id, "renew": {}}), (400, "invalid_request"), &["#/items/2/renew/validUntil"]),
            (json!({"id": id, "restore": {}}), (409, "not_deleted"), &["#/items/2/restore"]),
            (json!({"id": nobody, "delete": {}}), (404, "not_found"), &["#/items/2/delete"]),
            (json!({"id": "x", "delete": {}}), (404, "not_found"), &["#/items/2/id"]),
            (json!({"delete": {}}), (400, "invalid_request"), &["#/items/2/id"]),
            (json!({"id": id, "create": new("a")}), (400, "invalid_request"), &["#/items/2/id"]),
            (json!({"version": 1, "create": new("a")}), (400, "invalid_request"), &["#/items/2/version"]),
            (json!({"id": id}), (400, "invalid_request"), &["#/items/2"]),
            (json!({"id": id, "pause": {}, "resume": {}}), (400, "invalid_request"), &["#/items/2"]),
        ] {
            let items = [json!({"put": state("b", "1", 1)}), json!({"id": id, "cancel": {}}), item.clone(), json!({"create": new("z")})];
            send(&app, true, &items).await.expect_refusal(problem, pointers, &item.to_string());
            assert_eq!(app.walk("/v1/subscriptions").await, std::slice::from_ref(&old), "{item}");
        }
        assert!(app.removed(Some("old"), "c", &["email"]).await.is_empty());
        assert_eq!(app.removed(Some("z"), "c", &["email"]).await, ["email"]);
    }

    async fn without_that_each_write_has_a_status_of_its_own(database) {
        let app = database.app().await;
        app.register("email").await;
        let old = app.subscribe("old", &["email"], "2026-01-01T00:00:00Z", None).await;
        let id = &old["id"];
        let mut unknown = new("u");
        unknown["scopes"] = json!(["email", "phone"]);
        let mut reversed = new("u");
        reversed["validUntil"] = "2025-01-01T00:00:00Z".into();
        let items = [
            json!({"create": new("a")}), json!({"create": unknown}), json!({"create": reversed}), json!({"create": state("b", "1", 1)}),
            json!({"create": state("b", "1", 1)}), json!({"id": id, "version": 9, "delete": {}}), json!({"id": id, "resume": {}}),
            json!({"id": id}), json!({"id": id, "cancel": {}}), json!({"id": id, "cancel": {}}), json!({"create": new("z")}),
        ];
        let answer = send(&app, false, &items).await.expect(207);
        assert_eq!(statuses(&answer), [201, 422, 422, 201, 409, 412, 409, 400, 200, 409, 201]);
        assert_eq!(
            outcomes(&answer),
            [
                "created", "unknown_scopes", "invalid_value", "created", "external_id_exists", "version_mismatch", "not_paused",
                "invalid_request", "changed", "already_canceled", "created",
            ]
        );
        let pointer = |index: usize| &answer["items"][index]["problem"]["errors"][0];
        assert_eq!(pointer(1), &json!({"pointer": "#/items/1/create/scopes", "detail": "`phone` is not in the catalogue"}));
        assert_eq!(pointer(2)["pointer"], "#/items/2/create/validUntil");
        assert_eq!(pointer(7)["pointer"], "#/items/7");
        assert_eq!(app.walk("/v1/subscriptions").await.len(), 4);
        for (user, is_held) in [("a", true), ("b", true), ("z", true), ("old", false), ("u", false)] {
            assert_eq!(app.removed(Some(user), "c", &["email"]).await.is_empty(), is_held, "{user}");
        }
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 5, "one that is refused leaves no change");
    }

    async fn a_body_that_is_no_batch_is_refused_as_a_whole(database) {
        let app = database.app().await;
        app.register("email").await;
        let many = vec![json!({"create": new("a")}); 1001];
        for (body, pointer) in [
            (json!({}), "#/items"), (json!({"items": []}), "#/items"), (json!({"items": many}), "#/items"), (json!({"items": {}}), "#/items"),
            (json!({"items": [[]]}), "#/items/0"), (json!({"items": [null]}), "#/items/0"), (json!({"items": [{"create": []}]}), "#/items/0/create"),
            (json!({"items": [{"create": null}]}), "#/items/0/create"), (json!({"items": [{"destroy": {}}]}), "#/items/0/destroy"),
            (json!({"items": [{"create": new("a")}, {"id": 1, "delete": {}}]}), "#/items/1/id"),
            (json!({"items": [{"id": "x", "delete": {"now": true}}]}), "#/items/0/delete/now"),
            (json!({"atomic": "no", "items": [{"create": new("a")}]}), "#/atomic"), (json!({"items": [{"create": {"scopes": []}}]}), "#/items/0/create/subject"),
        ] {
            for is_atomic in [true, false] {
                let mut body = body.clone();
                if body.get("atomic").is_none() {
                    body["atomic"] = is_atomic.into();
                }
                app.refuse("POST", BATCH, &body, (400, "invalid_request"), &[pointer]).await;
            }
        }
        assert!(app.walk("/v1/subscriptions").await.is_empty());
        app.call("GET", BATCH).await.expect_problem(405, "method_not_allowed");
    }

    async fn a_thousand_writes_are_a_batch_and_a_batch_with_a_key_is_done_once(database) {
        let app = database.app().await;
        app.register("email").await;
        let items: Vec<_> = (0..1000).map(|number| json!({"put": state(&format!("u{number}"), &number.to_string(), 1)})).collect();
        let body = json!({"items": items}).to_string();
        let headers = [ADMIN_CREDENTIALS, JSON, ("idempotency-key", "k")];
        let first = app.send("POST", BATCH, &headers, body.clone()).await;
        assert_eq!(statuses(&first.expect(207)), [201; 1000]);
        app.set_now(app.now() + MICROSECOND);
        let again = app.send("POST", BATCH, &headers, body.clone()).await;
        assert_eq!((again.status, again.text()), (first.status, first.text()));
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 1000);
        let headers = [ADMIN_CREDENTIALS, JSON];
        let without = app.send("POST", BATCH, &headers, body).await.expect(207);
        assert!(outcomes(&without).iter().all(|outcome| *outcome == "outdated"));
    }

    async fn where_versions_are_required_the_items_name_theirs(database) {
        let app = database.app_with(Options { require_if_match: true, ..Options::default() }).await;
        app.register("email").await;
        let created = send(&app, true, &[json!({"create": new("a")}), json!({"put": state("b", "1", 1)})]).await.expect(200);
        let id = &created["items"][0]["subscription"]["id"];
        send(&app, true, &[json!({"id": id, "delete": {}})]).await.expect_problem(428, "if_match_required");
        let answer = send(&app, false, &[json!({"id": id, "delete": {}}), json!({"id": id, "version": 1, "delete": {}})]).await.expect(207);
        assert_eq!(statuses(&answer), [428, 200]);
    }
}
