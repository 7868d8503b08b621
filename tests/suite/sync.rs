//! What billing systems rely on: upserts that never go back, requests that count once, lists of what was changed.

use std::{collections::BTreeSet, sync::Arc};

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::service::FeedSettings;

use crate::support::{
    ADMIN_CREDENTIALS, Answer, App, ByHand, JSON, MICROSECOND, Options, encoded, eventually, on_both, only_on, path_of,
    timestamp,
};

const PUT: &str = "/v1/subscriptions/by-external-id?source=billing&externalId=";
const CHANGES: &str = "SELECT count(*) FROM change WHERE noun = 'subscription'";
const KEYS: &str = "SELECT count(*) FROM idempotency_key";

/// What billing says of a subscription of `email`.
fn state(user: &str, until: Option<&str>, version: Option<i64>) -> Value {
    let mut state = json!({
        "subject": {"type": "user", "id": user}, "scopes": ["email"], "validFrom": "2026-01-01T00:00:00Z", "validUntil": until,
    });
    if let Some(version) = version {
        state["sourceVersion"] = version.into();
    }
    state
}

async fn put(app: &App, id: &str, state: &Value) -> Answer {
    app.call_with("PUT", &format!("{PUT}{}", encoded(id)), state).await
}

/// Sends a POST with a key.
async fn post(app: &App, key: &str, path: &str, body: &Value) -> Answer {
    let headers = [ADMIN_CREDENTIALS, JSON, ("idempotency-key", key)];
    app.send("POST", path, &headers, body.to_string()).await
}

on_both! {
    async fn a_source_records_and_changes_a_subscription_by_an_id_of_its_own(database) {
        let app = database.app().await;
        app.register("email").await;
        let answer = put(&app, "sub_1/é", &state("u", Some("2026-07-01T00:00:00Z"), None)).await;
        let created = answer.expect(201);
        assert_eq!(answer.header("location"), Some(&*path_of(&created)));
        assert_eq!((&created["source"], &created["externalId"], &created["version"]), (&json!("billing"), &json!("sub_1/é"), &json!(1)));
        assert_eq!(created.get("sourceVersion"), None);
        assert!(app.removed(Some("u"), "c", &["email"]).await.is_empty());
        // The same again changes nothing; something else does.
        assert_eq!(put(&app, "sub_1/é", &state("u", Some("2026-07-01T00:00:00Z"), None)).await.expect(200), created);
        app.set_now(app.now() + MICROSECOND);
        let changed = put(&app, "sub_1/é", &state("u", Some("2026-06-01T00:00:00Z"), None)).await;
        assert_eq!(changed.header("etag"), Some("\"2\""));
        let changed = changed.expect(200);
        assert_eq!((&changed["id"], &changed["version"], &changed["status"]), (&created["id"], &json!(2), &json!("expired")));
        assert_eq!(app.removed(Some("u"), "c", &["email"]).await, ["email"]);
        let found = format!("{PUT}{}", encoded("sub_1/é"));
        assert_eq!(app.call("GET", &found).await.expect(200), changed);
        assert_eq!(app.call("GET", &path_of(&created)).await.expect(200), changed);
        app.call("GET", &format!("{PUT}other")).await.expect_problem(404, "not_found");
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 2, "what changes nothing is no change");
    }

    async fn a_state_says_all_of_it(database) {
        let app = database.app().await;
        app.register("email").await;
        app.register("phone").await;
        let full = json!({
            "subject": {"type": "user", "id": "u"}, "scopes": ["phone", "email"], "validFrom": "2026-01-01T00:00:00Z",
            "validUntil": "2026-08-01T00:00:00Z", "graceUntil": "2026-08-08T00:00:00Z", "pausedFrom": "2026-07-01T00:00:00Z",
            "pausedUntil": "2026-07-02T00:00:00Z", "canceledAt": "2026-08-04T00:00:00Z", "sourceVersion": 1,
        });
        let created = put(&app, "a", &full).await.expect(201);
        for (name, value) in full.as_object().expect("an object") {
            if name != "scopes" {
                assert_eq!(&created[name], value, "{name}");
            }
        }
        let mut less = state("u", None, Some(2));
        less.as_object_mut().expect("an object").remove("validFrom");
        let left = put(&app, "a", &less).await.expect(200);
        assert_eq!(left["validFrom"], full["validFrom"], "the start that there is");
        for absent in ["graceUntil", "pausedFrom", "pausedUntil", "canceledAt"] {
            assert_eq!(left.get(absent), None, "{absent}");
        }
        assert_eq!((&left["scopes"], &left["validUntil"]), (&json!(["email"]), &Value::Null));
        // One that is canceled lives again when its source says so.
        let mut canceled = state("u", None, Some(3));
        canceled["canceledAt"] = "2026-06-01T00:00:00Z".into();
        assert_eq!(put(&app, "a", &canceled).await.expect(200)["status"], "canceled");
        assert_eq!(put(&app, "a", &state("u", None, Some(4))).await.expect(200)["status"], "active");
    }

    async fn an_older_message_never_overwrites_a_newer_one(database) {
        let app = database.app().await;
        app.register("email").await;
        put(&app, "a", &state("u", None, Some(7))).await.expect(201);
        let newest = put(&app, "a", &state("u", Some("2027-01-01T00:00:00Z"), Some(9))).await.expect(200);
        assert_eq!((&newest["sourceVersion"], &newest["version"]), (&json!(9), &json!(2)));
        for late in [0, 7, 8, 9] {
            assert_eq!(put(&app, "a", &state("u", Some("2026-02-01T00:00:00Z"), Some(late))).await.expect(200), newest, "{late}");
        }
        app.refuse("PUT", &format!("{PUT}a"), &state("u", None, None), (422, "invalid_value"), &["#/sourceVersion"]).await;
        // What support does in between is no message of the source's: the same one again leaves it, the next one counts.
        let patched = app.call_with("PATCH", &path_of(&newest), &json!({"validUntil": "2028-01-01T00:00:00Z"})).await.expect(200);
        assert_eq!(patched["sourceVersion"], 9);
        assert_eq!(put(&app, "a", &state("u", Some("2027-01-01T00:00:00Z"), Some(9))).await.expect(200), patched);
        let next = put(&app, "a", &state("u", Some("2027-01-01T00:00:00Z"), Some(i64::MAX))).await.expect(200);
        assert_eq!((&next["validUntil"], &next["sourceVersion"]), (&json!("2027-01-01T00:00:00Z"), &json!(i64::MAX)));
        // A newer version is kept even when all that it says is there already.
        let other = put(&app, "b", &state("u", None, Some(1))).await.expect(201);
        let same = put(&app, "b", &state("u", None, Some(2))).await.expect(200);
        assert_eq!((&same["sourceVersion"], &same["version"], &same["id"]), (&json!(2), &json!(2), &other["id"]));
    }

    async fn a_deleted_one_comes_back_by_news_alone(database) {
        let app = database.app().await;
        app.register("email").await;
        let created = put(&app, "a", &state("u", None, Some(5))).await.expect(201);
        assert_eq!(app.call("DELETE", &path_of(&created)).await.status, 204);
        app.call("GET", &format!("{PUT}a")).await.expect_problem(404, "not_found");
        let again = put(&app, "a", &state("u", None, Some(5))).await.expect(200);
        assert!(again["deletedAt"].is_string(), "{again}");
        assert_eq!(app.removed(Some("u"), "c", &["email"]).await, ["email"], "a message that is sent again is no news");
        let back = put(&app, "a", &state("u", None, Some(6))).await.expect(200);
        assert_eq!((back.get("deletedAt"), &back["id"]), (None, &created["id"]));
        assert!(app.removed(Some("u"), "c", &["email"]).await.is_empty());
    }

    async fn a_put_is_refused_by_name(database) {
        let app = database.app().await;
        app.register("email").await;
        let path = format!("{PUT}a");
        let created = put(&app, "a", &state("u", None, Some(1))).await.expect(201);
        let with = |name: &str, value: Value| {
            let mut state = state("u", None, Some(2));
            state[name] = value;
            state
        };
        for (body, problem, pointer) in [
            (with("subject", json!({"type": "user", "id": "v"})), (422, "invalid_value"), "#/subject"),
            (with("subject", json!({"type": "client", "id": "u"})), (422, "invalid_value"), "#/subject"),
            (with("validUntil", json!("2026-01-01T00:00:00Z")), (422, "invalid_value"), "#/validUntil"),
            (with("graceUntil", json!("2027-01-01T00:00:00Z")), (422, "invalid_value"), "#/graceUntil"),
            (with("pausedUntil", json!("2027-01-01T00:00:00Z")), (422, "invalid_value"), "#/pausedUntil"),
            (with("canceledAt", json!("yesterday")), (422, "invalid_value"), "#/canceledAt"),
            (with("sourceVersion", json!(-1)), (422, "invalid_value"), "#/sourceVersion"),
            (with("sourceVersion", json!("2")), (400, "invalid_request"), "#/sourceVersion"),
            (with("sourceVersion", json!(2.5)), (400, "invalid_request"), "#/sourceVersion"),
            (with("scopes", json!(["phone"])), (422, "unknown_scopes"), "#/scopes"),
            (with("source", json!("billing")), (400, "invalid_request"), "#/source"),
            (with("status", json!("active")), (400, "invalid_request"), "#/status"),
        ] {
            app.refuse("PUT", &path, &body, problem, &[pointer]).await;
        }
        let paused = json!({"pausedFrom": "2027-01-01T00:00:00Z", "pausedUntil": "2027-01-01T00:00:00Z"});
        let mut body = state("u", None, Some(2));
        body.as_object_mut().expect("an object").extend(paused.as_object().expect("an object").clone());
        app.refuse("PUT", &path, &body, (422, "invalid_value"), &["#/pausedUntil"]).await;
        for (query, pointer) in [
            ("externalId=a", "?source"), ("source=billing", "?externalId"), ("source=a%20b&externalId=a", "?source"),
            ("source=billing&externalId=", "?externalId"), ("source=billing&externalId=a%00", "?externalId"),
            ("source=billing&externalId=a&x=1", "?x"), ("source=billing&source=billing&externalId=a", "?source"),
        ] {
            let path = format!("/v1/subscriptions/by-external-id?{query}");
            app.refuse("PUT", &path, &state("u", None, Some(2)), (400, "invalid_request"), &[pointer]).await;
        }
        // The versions that may be changed, when the sender says so.
        let headers = |tag| [ADMIN_CREDENTIALS, JSON, ("if-match", tag)];
        let body = state("u", Some("2027-01-01T00:00:00Z"), Some(3)).to_string();
        app.send("PUT", &path, &headers("\"2\""), body.clone()).await.expect_problem(412, "version_mismatch");
        app.send("PUT", &format!("{PUT}new"), &headers("\"1\""), body.clone()).await.expect_problem(412, "version_mismatch");
        assert_eq!(app.call("GET", &path).await.expect(200), created);
        app.send("PUT", &path, &headers("\"1\""), body).await.expect(200);
    }

    async fn an_external_id_belongs_to_one_subscription_of_its_source(database) {
        let app = database.app().await;
        app.register("email").await;
        let new = |source: &str, id: &str| {
            let mut new = state("u", None, None);
            (new["source"], new["externalId"]) = (source.into(), id.into());
            new
        };
        let first = app.call_with("POST", "/v1/subscriptions", &new("billing", "a")).await.expect(201);
        app.call_with("POST", "/v1/subscriptions", &new("crm", "a")).await.expect(201);
        app.call_with("POST", "/v1/subscriptions", &new("billing", "A")).await.expect(201);
        app.call_with("POST", "/v1/subscriptions", &new("billing", "a")).await.expect_problem(409, "external_id_exists");
        app.call("DELETE", &path_of(&first)).await;
        app.call_with("POST", "/v1/subscriptions", &new("billing", "a")).await.expect_problem(409, "external_id_exists");
        for (member, value, pointer) in [("source", json!(null), "#/source"), ("sourceVersion", json!(-1), "#/sourceVersion")] {
            let mut body = new("billing", "z");
            body[member] = value;
            let answer = app.call_with("POST", "/v1/subscriptions", &body).await;
            assert_eq!(answer.pointers(), [pointer]);
        }
        for (member, pointer) in [("source", "#/source"), ("externalId", "#/externalId")] {
            let mut body = new("billing", "z");
            body.as_object_mut().expect("an object").remove(member);
            app.refuse("POST", "/v1/subscriptions", &body, (400, "invalid_request"), &[pointer]).await;
        }
    }

    async fn of_many_messages_at_once_the_newest_one_counts(database) {
        const MESSAGES: i64 = 40;
        let app = Arc::new(database.app().await);
        let replica = Arc::new(database.app().await);
        app.register("email").await;
        eventually!("both know the scope", std::time::Duration::from_secs(30), replica.removed(Some("u"), "c", &["email"]).await == ["email"]);
        let mut senders = JoinSet::new();
        for number in 0..MESSAGES {
            let app = Arc::clone(if number % 2 == 0 { &app } else { &replica });
            senders.spawn(async move {
                // In an order that is none.
                let version = (number * 17) % MESSAGES;
                let until = timestamp(app.now() + TimeDelta::days(version + 1));
                let answer = put(&app, "a", &state("u", Some(&until), Some(version))).await;
                let status = answer.status.as_u16();
                assert!([200, 201].contains(&status), "{}", answer.text());
                status
            });
        }
        let statuses = senders.join_all().await;
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
        let there = app.call("GET", &format!("{PUT}a")).await.expect(200);
        assert_eq!(there["sourceVersion"], MESSAGES - 1);
        assert_eq!(there["validUntil"], timestamp(app.now() + TimeDelta::days(MESSAGES)));
        assert_eq!(app.walk("/v1/subscriptions").await.len(), 1);
    }

    async fn a_request_with_a_key_is_done_once_and_answered_the_same(database) {
        let app = database.app().await;
        let by_hand = ByHand::open(&database.url).await;
        let scope = json!({"name": "email"});
        let first = post(&app, "k-scope", "/v1/scopes", &scope).await;
        let again = post(&app, "k-scope", "/v1/scopes", &scope).await;
        let told = |answer: &Answer| {
            (answer.status, answer.text(), ["etag", "location"].map(|name| answer.header(name).map(str::to_owned)))
        };
        assert_eq!(told(&first), told(&again));
        first.expect(201);
        let new = state("u", None, None);
        let created = post(&app, "k", "/v1/subscriptions", &new).await;
        let subscription = created.expect(201);
        let path = path_of(&subscription);
        app.set_now(app.now() + TimeDelta::hours(1));
        let pause = post(&app, "k-pause", &format!("{path}/pause"), &json!({})).await;
        pause.expect(200);
        app.set_now(app.now() + TimeDelta::hours(1));
        // However much has happened since: the answer is the first one, with the status of then.
        app.call("DELETE", &path).await;
        for _ in 0..3 {
            assert_eq!(told(&post(&app, "k", "/v1/subscriptions", &new).await), told(&created));
            assert_eq!(told(&post(&app, "k-pause", &format!("{path}/pause"), &json!({})).await), told(&pause));
        }
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 3, "created, paused and deleted once each");
        // Another key, another request; and no key, too.
        let other = post(&app, "k2", "/v1/subscriptions", &new).await.expect(201);
        assert_ne!(other["id"], subscription["id"]);
        assert_ne!(app.call_with("POST", "/v1/subscriptions", &new).await.expect(201)["id"], subscription["id"]);
    }

    async fn a_request_that_is_repeated_elsewhere_is_answered_once_the_cache_there_was_told(database) {
        const ROUNDS: usize = 20;
        let options = || Options { feed: FeedSettings { wake_up: false }, ..Options::default() };
        let (app, replica) = (database.app_with(options()).await, database.app_with(options()).await);
        app.register("email").await;
        eventually!("both know the scope", std::time::Duration::from_secs(30), replica.removed(Some("u"), "c", &["email"]).await == ["email"]);
        for round in 0..ROUNDS {
            let user = format!("u{round}");
            let created = app.subscribe(&user, &["email"], "2026-01-01T00:00:00Z", None).await;
            eventually!("it is held there", std::time::Duration::from_secs(30), replica.removed(Some(&user), "c", &["email"]).await.is_empty());
            let (cancel, key) = (format!("{}/cancel", path_of(&created)), format!("k{round}"));
            let batch = json!({"items": [{"id": created["id"], "cancel": {}}]});
            let (path, body) = if round % 2 == 0 { (&*cancel, &json!({})) } else { ("/v1/subscriptions/batch", &batch) };
            let first = post(&app, &key, path, body).await;
            assert!(first.status.is_success(), "{}", first.text());
            let again = post(&replica, &key, path, body).await;
            assert_eq!(again.text(), first.text());
            assert_eq!(replica.removed(Some(&user), "c", &["email"]).await, ["email"], "round {round}");
        }
    }

    async fn a_key_is_for_one_request_of_one_credential(database) {
        let app = database.app().await;
        app.register("email").await;
        let new = state("u", None, None);
        let created = post(&app, "k", "/v1/subscriptions", &new).await.expect(201);
        let mut other = new.clone();
        other["validUntil"] = "2027-01-01T00:00:00Z".into();
        post(&app, "k", "/v1/subscriptions", &other).await.expect_problem(422, "idempotency_key_reused");
        post(&app, "k", &format!("{}/cancel", path_of(&created)), &json!({})).await.expect_problem(422, "idempotency_key_reused");
        let headers = [ADMIN_CREDENTIALS, JSON, ("idempotency-key", "k"), ("if-match", "\"1\"")];
        app.send("POST", "/v1/subscriptions", &headers, new.to_string()).await.expect_problem(422, "idempotency_key_reused");
        // Another credential has keys of its own.
        let token = app.issue("billing", "writer", None).await;
        let authorization = format!("Bearer {}", token["token"].as_str().expect("a secret"));
        let headers = [("authorization", &*authorization), JSON, ("idempotency-key", "k")];
        let others = app.send("POST", "/v1/subscriptions", &headers, new.to_string()).await.expect(201);
        assert_ne!(others["id"], created["id"]);
        // What was refused is no answer that is kept.
        let canceled = format!("{}/cancel", path_of(&created));
        let impossible = json!({"at": "2020-01-01T00:00:00Z"});
        post(&app, "k3", &canceled, &impossible).await.expect_problem(422, "invalid_value");
        post(&app, "k3", &canceled, &json!({})).await.expect(200);
        for key in ["", "a b", "é", "a\tb", &"x".repeat(256)] {
            let answer = post(&app, key, "/v1/subscriptions", &new).await;
            answer.expect_refusal((400, "invalid_request"), &["idempotency-key"], key);
        }
        let headers = [ADMIN_CREDENTIALS, JSON, ("idempotency-key", "x"), ("idempotency-key", "x")];
        app.send("POST", "/v1/subscriptions", &headers, new.to_string()).await.expect_problem(400, "invalid_request");
        post(&app, &"x".repeat(255), "/v1/subscriptions", &new).await.expect(201);
    }

    async fn an_answer_is_kept_for_a_day_to_the_microsecond(database) {
        let app = database.app().await;
        app.register("email").await;
        let new = state("u", None, None);
        let start = app.now();
        let first = post(&app, "k", "/v1/subscriptions", &new).await.expect(201);
        let day = TimeDelta::hours(24);
        for later in [day - MICROSECOND, day] {
            app.set_now(start + later);
            assert_eq!(post(&app, "k", "/v1/subscriptions", &new).await.expect(201), first);
        }
        app.set_now(start + day + MICROSECOND);
        let second = post(&app, "k", "/v1/subscriptions", &new).await.expect(201);
        assert_ne!(second["id"], first["id"]);
        app.set_now(start + day + day);
        assert_eq!(post(&app, "k", "/v1/subscriptions", &new).await.expect(201), second);
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(KEYS).await, 1);
        let prune = async |before| tollgate::store::idempotency::prune(app.database.writers(), before).await.expect("pruned");
        assert_eq!(prune(start + day + MICROSECOND).await, 0);
        assert_eq!(prune(start + day + MICROSECOND + MICROSECOND).await, 1);
    }

    async fn of_requests_with_one_key_that_come_at_once_one_is_done(database) {
        let (app, replica) = (Arc::new(database.app().await), Arc::new(database.app().await));
        app.register("email").await;
        let by_hand = ByHand::open(&database.url).await;
        for round in 0..10 {
            let mut senders = JoinSet::new();
            for number in 0..8 {
                let app = Arc::clone(if number % 2 == 0 { &app } else { &replica });
                senders.spawn(async move {
                    let key = format!("k{round}");
                    let answer = post(&app, &key, "/v1/subscriptions", &state("u", None, None)).await;
                    if answer.status == 409 {
                        answer.expect_problem(409, "idempotency_key_in_use");
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        return None;
                    }
                    Some(answer.expect(201)["id"].to_string())
                });
            }
            let ids: BTreeSet<_> = senders.join_all().await.into_iter().flatten().collect();
            assert_eq!(ids.len(), 1, "{ids:?}");
            assert_eq!(by_hand.ask::<i64>(CHANGES).await, round + 1);
        }
    }

    async fn a_secret_is_told_once_and_a_revocation_is_repeated(database) {
        let app = database.app().await;
        let new = json!({"name": "billing", "role": "writer", "expiresAt": null});
        let made = post(&app, "k", "/v1/tokens", &new).await.expect(201);
        post(&app, "k", "/v1/tokens", &new).await.expect_problem(409, "secret_not_kept");
        let revoke = format!("/v1/tokens/{}/revoke", made["id"].as_str().expect("an id"));
        let revoked = post(&app, "r", &revoke, &json!({})).await.expect(200);
        assert_eq!(post(&app, "r", &revoke, &json!({})).await.expect(200), revoked);
        app.call("POST", &revoke).await.expect_problem(409, "already_revoked");
        let by_hand = ByHand::open(&database.url).await;
        let kept: Vec<String> = by_hand.column("SELECT answer FROM idempotency_key").await;
        assert!(kept.len() == 2 && kept.iter().all(String::is_empty), "nothing of a token is kept: {kept:?}");
    }

    async fn what_was_changed_since_an_instant_is_listed_in_the_order_of_the_changes(database) {
        let app = database.app().await;
        app.register("email").await;
        let start = app.now();
        let mut created = Vec::new();
        for number in 0..5 {
            app.set_now(start + MICROSECOND * number);
            created.push(put(&app, &number.to_string(), &state("u", None, None)).await.expect(201));
        }
        app.set_now(start + TimeDelta::seconds(1));
        app.call_with("PATCH", &path_of(&created[1]), &json!({"validUntil": "2027-01-01T00:00:00Z"})).await.expect(200);
        app.set_now(start + TimeDelta::seconds(2));
        app.call("DELETE", &path_of(&created[3])).await;
        let ids = |items: &[Value]| items.iter().map(|item| item["externalId"].as_str().expect("an id").to_owned()).collect::<Vec<_>>();
        let since = async |instant, more: &str| {
            ids(&app.walk(&format!("/v1/subscriptions?updatedSince={}&limit=2{more}", encoded(&timestamp(instant)))).await)
        };
        assert_eq!(since(start, "").await, ["0", "2", "4", "1"]);
        assert_eq!(since(start, "&includeDeleted=true").await, ["0", "2", "4", "1", "3"]);
        assert_eq!(since(start + MICROSECOND, "&includeDeleted=true").await, ["2", "4", "1", "3"]);
        assert_eq!(since(start + TimeDelta::seconds(2), "&includeDeleted=true").await, ["3"]);
        assert_eq!(since(start + TimeDelta::seconds(2) + MICROSECOND, "&includeDeleted=true").await, [""; 0]);
        assert_eq!(since(start, "&source=crm").await, [""; 0]);
        assert_eq!(since(start, "&source=billing&status=active").await, ["0", "2", "4", "1"]);
        // Several at one instant are told apart, page after page.
        for number in 5..12 {
            put(&app, &number.to_string(), &state("u", None, None)).await.expect(201);
        }
        let last = since(start + TimeDelta::seconds(2), "").await;
        assert_eq!(last.iter().collect::<BTreeSet<_>>().len(), 7, "{last:?}");
        for query in ["updatedSince=yesterday", "includeDeleted=1", "source=a%20b", "includeDeleted="] {
            let name = format!("?{}", query.split('=').next().expect("a name"));
            app.refuse_query(&format!("/v1/subscriptions?{query}"), &[&name]).await;
        }
    }
}

only_on! { Postgres:
    async fn a_key_that_another_replica_holds_is_in_use(database) {
        let app = database.app().await;
        app.register("email").await;
        let store = database.connect().await;
        let transaction = store.begin().await.expect("begun");
        let key = tollgate::store::idempotency::Key { actor: "bootstrap".to_owned(), key: "k".to_owned() };
        assert!(tollgate::store::idempotency::take(&transaction, &key).await.expect("taken"));
        let answer = post(&app, "k", "/v1/subscriptions", &state("u", None, None)).await;
        answer.expect_problem(409, "idempotency_key_in_use");
        assert_eq!(answer.header("retry-after"), Some("1"));
        post(&app, "other", "/v1/subscriptions", &state("u", None, None)).await.expect(201);
        drop(transaction);
        eventually!("it is free", std::time::Duration::from_secs(10), post(&app, "k", "/v1/subscriptions", &state("u", None, None)).await.status == 201);
    }
}
