//! The history: who changed what, and when, and a feed of it that misses nothing.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::service::Policy;

use crate::support::{App, ByHand, JSON, Options, eventually, on_both, only_on, path_of, timestamp};

const CHANGES: &str = "/v1/changes";
/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

async fn history(app: &App, subscription: &Value) -> Vec<Value> {
    app.walk(&format!("{}/history?limit=3", path_of(subscription))).await
}

fn actions(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["action"].as_str().expect("an action")).collect()
}

/// All changes after a place, and the place to go on from.
async fn follow(app: &App, since: Option<String>, limit: u32) -> (Vec<Value>, String) {
    let (mut items, mut since) = (Vec::new(), since);
    loop {
        let from = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let page = app.call("GET", &format!("{CHANGES}?limit={limit}{from}")).await.expect(200);
        items.extend(page["items"].as_array().expect("items").iter().cloned());
        let next = page["next"].as_str().expect("a place").to_owned();
        if page["hasMore"] == false {
            return (items, next);
        }
        since = Some(next);
    }
}

/// All changes after a place, once so many of them show: on Postgres they wait for older transactions to end, be they
/// other tests' on the same server.
async fn settled(app: &App, since: Option<String>, limit: u32, count: usize) -> (Vec<Value>, String) {
    let started = Instant::now();
    loop {
        let page = follow(app, since.clone(), limit).await;
        if page.0.len() >= count {
            return page;
        }
        assert!(started.elapsed() < PATIENCE, "{} of {count} changes show", page.0.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

on_both! {
    async fn every_change_of_a_subscription_is_told_with_who_when_and_what(database) {
        let app = database.app().await;
        app.register("email").await;
        app.register("phone").await;
        let start = app.now();
        let token = app.issue("billing", "writer", None).await;
        let authorization = format!("Bearer {}", token["token"].as_str().expect("a secret"));
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", Some("2026-06-15T12:00:05Z")).await;
        let path = path_of(&created);
        let steps = [
            ("PATCH", String::new(), json!({"scopes": ["phone", "email"]}), "patch"), ("PATCH", String::new(), json!({"scopes": ["phone", "email"]}), ""),
            ("POST", "/pause".to_owned(), json!({}), "pause"), ("POST", "/resume".to_owned(), json!({}), "resume"),
            ("POST", "/renew".to_owned(), json!({"duration": "P1M"}), "renew"), ("POST", "/cancel".to_owned(), json!({}), "cancel"),
            ("POST", "/cancel".to_owned(), json!({}), ""), ("POST", "/uncancel".to_owned(), json!({}), "uncancel"),
            ("DELETE", String::new(), json!({}), "delete"), ("POST", "/restore".to_owned(), json!({}), "restore"),
        ];
        let mut expected = vec!["create"];
        let mut states = vec![created.clone()];
        for (number, (method, verb, body, action)) in steps.iter().enumerate() {
            app.set_now(start + TimeDelta::seconds(i64::try_from(number).expect("few") + 1));
            let id = format!("request-{number}");
            let headers = [("authorization", &*authorization), JSON, ("x-request-id", &*id)];
            app.send(method, &format!("{path}{verb}"), &headers, if *method == "DELETE" { String::new() } else { body.to_string() }).await;
            if !action.is_empty() {
                expected.push(action);
                let listed = app.walk("/v1/subscriptions?includeDeleted=true").await;
                states.push(listed[0].clone());
            }
        }
        let items = history(&app, &created).await;
        assert_eq!(actions(&items), expected);
        assert_eq!((&items[0]["actor"], items[0]["subscription"].get("before")), (&json!("bootstrap"), None));
        for (index, item) in items.iter().enumerate() {
            let change = &item["subscription"];
            assert_eq!((&change["id"], &change["subject"]), (&created["id"], &created["subject"]));
            assert_eq!(change["after"], states[index], "{index}");
            if index > 0 {
                assert_eq!(item["actor"], "billing");
                assert_eq!(item["at"], states[index]["updatedAt"]);
                let mut before = states[index - 1].clone();
                // Its status is the one at the change: the window may have ended since.
                before["status"] = change["before"]["status"].clone();
                assert_eq!(change["before"], before, "{index}");
            }
        }
        assert_eq!(items[4]["subscription"]["before"]["status"], "expired", "renewed at second 5, when it had run out");
        assert_eq!((&items[1]["requestId"], &items[3]["requestId"]), (&json!("request-0"), &json!("request-3")));
        // That of a deleted one is there, too; that of one that never was is not.
        app.call("DELETE", &path).await;
        assert_eq!(history(&app, &created).await.len(), expected.len() + 1);
        app.call("GET", "/v1/subscriptions/018f0000-0000-7000-8000-000000000000/history").await.expect_problem(404, "not_found");
        app.call("GET", "/v1/subscriptions/x/history").await.expect_problem(404, "not_found");
        let other = app.subscribe("v", &["email"], "2026-01-01T00:00:00Z", None).await;
        let page = app.call("GET", &format!("{path}/history?limit=1")).await.expect(200);
        let cursor = page["nextCursor"].as_str().expect("a cursor");
        app.refuse_query(&format!("{}/history?cursor={cursor}", path_of(&other)), &["?cursor"]).await;
    }

    async fn the_feed_tells_every_change_of_the_catalogue_and_of_subscriptions_once(database) {
        let app = database.app().await;
        let (none, start) = follow(&app, None, 10).await;
        assert_eq!(none, [Value::Null; 0]);
        let scope = app.register("email").await;
        app.call_with("PATCH", "/v1/scopes/email", &json!({"requires": "user"})).await.expect(200);
        app.issue("secret", "admin", None).await;
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        app.register("phone").await;
        app.call("DELETE", "/v1/scopes/phone").await;
        for limit in [1, 2, 200] {
            for since in [None, Some(start.clone())] {
                let (items, next) = settled(&app, since, limit, 5).await;
                assert_eq!(actions(&items), ["create", "patch", "create", "create", "delete"], "tokens are not in it");
                assert_eq!(items[0]["scope"], json!({"name": "email", "after": scope}));
                assert_eq!((&items[1]["scope"]["before"], &items[1]["scope"]["after"]["requires"]), (&scope, &json!("user")));
                assert_eq!(items[2]["subscription"]["after"], created);
                assert_eq!((&items[4]["scope"]["before"]["name"], items[4]["scope"].get("after")), (&json!("phone"), None));
                assert_eq!(follow(&app, Some(next.clone()), limit).await.0, [Value::Null; 0]);
            }
        }
        for (since, limit) in [("x", "1"), ("", "1"), (&*start, "0")] {
            let pointer = if limit == "0" { "?limit" } else { "?since" };
            app.refuse_query(&format!("{CHANGES}?since={since}&limit={limit}"), &[pointer]).await;
        }
        let list = app.call("GET", "/v1/subscriptions?limit=1").await.expect(200);
        assert_eq!(list.get("nextCursor"), None);
    }

    async fn a_reader_beside_many_writers_misses_nothing_and_sees_nothing_twice(database) {
        const WRITERS: usize = 6;
        const EACH: usize = 30;
        let app = Arc::new(database.app().await);
        let replica = Arc::new(database.app().await);
        app.register("email").await;
        eventually!("both know the scope", Duration::from_secs(30), replica.removed(Some("u"), "c", &["email"]).await == ["email"]);
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn({
            let (app, is_over) = (Arc::clone(&replica), Arc::clone(&is_over));
            async move {
                let (mut seen, mut since) = (Vec::new(), None);
                loop {
                    let is_last = is_over.load(Ordering::SeqCst);
                    let (items, next) = follow(&app, since, 7).await;
                    seen.extend(items);
                    since = Some(next);
                    if is_last {
                        return seen;
                    }
                }
            }
        });
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let app = Arc::clone(if writer % 2 == 0 { &app } else { &replica });
            writers.spawn(async move {
                let mut written = Vec::new();
                for number in 0..EACH {
                    let user = format!("u{writer}-{number}");
                    let created = app.subscribe(&user, &["email"], "2026-01-01T00:00:00Z", None).await;
                    written.push(created["id"].as_str().expect("an id").to_owned());
                }
                written
            });
        }
        let written: BTreeSet<String> = writers.join_all().await.into_iter().flatten().collect();
        if database.backend == crate::support::Backend::Postgres {
            // What was committed shows as soon as no older transaction is under way anywhere on the server.
            settled(&app, None, 200, WRITERS * EACH + 1).await;
        }
        is_over.store(true, Ordering::SeqCst);
        let seen = reader.await.expect("read");
        let ids: Vec<_> = seen.iter().filter_map(|item| item["subscription"]["id"].as_str()).map(str::to_owned).collect();
        assert_eq!(ids.len(), WRITERS * EACH);
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), written);
    }

    async fn what_is_kept_for_a_while_only_is_gone_for_whoever_asks_too_late(database) {
        let keep = Duration::from_hours(24);
        let app = database.app_with(Options { policy: Policy { keep_changes: Some(keep), ..Options::default().policy }, ..Options::default() }).await;
        app.register("email").await;
        let (items, next) = settled(&app, None, 10, 1).await;
        assert_eq!(items.len(), 1);
        let start = app.now();
        let day = TimeDelta::from_std(keep).expect("a day");
        // A minute less, for clocks that differ.
        let last = start + day - TimeDelta::minutes(1);
        app.set_now(last);
        let (_, fresh) = follow(&app, Some(next.clone()), 10).await;
        app.set_now(last + crate::support::MICROSECOND);
        let answer = app.call("GET", &format!("{CHANGES}?since={next}")).await;
        answer.expect_problem(410, "changes_gone");
        assert_eq!(follow(&app, Some(fresh), 10).await.0, [Value::Null; 0]);
        // By default they are kept for ever.
        let other = database.app().await;
        other.set_now(start + day * 10_000);
        assert_eq!(follow(&other, Some(next), 10).await.0, [Value::Null; 0]);
    }

    async fn changes_from_before_the_history_was_kept_are_told_without_what_they_changed(database) {
        let app = database.app().await;
        app.register("email").await;
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        ByHand::open(&database.url).await.run("UPDATE change SET before = NULL, after = NULL").await;
        let items = history(&app, &created).await;
        assert_eq!(actions(&items), ["create"]);
        assert_eq!(items[0]["subscription"], json!({"id": created["id"], "subject": created["subject"]}));
        assert_eq!(settled(&app, None, 10, 2).await.0.len(), 2);
    }
}

only_on! { Sqlite:
    async fn a_file_that_was_put_back_has_not_reached_a_place(database) {
        let app = database.app().await;
        app.register("email").await;
        let (_, next) = follow(&app, None, 10).await;
        let by_hand = ByHand::open(&database.url).await;
        by_hand.run("DELETE FROM change").await;
        app.call("GET", &format!("{CHANGES}?since={next}")).await.expect(200);
        by_hand.run("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'change'").await;
        app.call("GET", &format!("{CHANGES}?since={next}")).await.expect_problem(410, "changes_gone");
    }

    async fn a_reader_that_lags_is_told_when_it_comes_too_late(database) {
        let keep = Duration::from_hours(24);
        let policy = Policy { keep_changes: Some(keep), ..Options::default().policy };
        let app = database.app_with(Options { policy, ..Options::default() }).await;
        let start = app.now();
        app.register("a").await;
        app.set_now(start + TimeDelta::hours(23));
        app.register("b").await;
        // It stands at the first change, however late it asked for it.
        let page = app.call("GET", &format!("{CHANGES}?limit=1")).await.expect(200);
        assert_eq!(page["hasMore"], true);
        app.set_now(start + TimeDelta::hours(24));
        app.call("GET", &format!("{CHANGES}?since={}", page["next"].as_str().expect("a place"))).await.expect_problem(410, "changes_gone");
    }

    async fn one_image_that_cannot_be_read_costs_itself_alone(database) {
        let app = database.app().await;
        app.register("email").await;
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        app.call("POST", &format!("{}/pause", path_of(&created))).await.expect(200);
        ByHand::open(&database.url).await.run("UPDATE change SET after = '{' WHERE action = 'create'").await;
        let (items, _) = follow(&app, None, 10).await;
        assert_eq!(actions(&items), ["create", "create", "pause"]);
        assert_eq!(items[1]["subscription"], json!({"id": created["id"], "subject": created["subject"]}));
        assert!(items[2]["subscription"]["after"].is_object());
    }
}

only_on! { Postgres:
    async fn changes_of_another_server_s_dump_are_made_this_one_s(database) {
        let app = database.app().await;
        app.register("email").await;
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        let by_hand = ByHand::open(&database.url).await;
        by_hand.run("UPDATE change SET xid = '99999999999'").await;
        assert_eq!(follow(&app, None, 10).await.0, [Value::Null; 0], "to this server they lie in the future");
        let migrated = tollgate::store::schema::migrate(&app.database).await.expect("adopted");
        assert_eq!(migrated, tollgate::store::schema::Migrated::Nothing);
        app.call("POST", &format!("{}/pause", path_of(&created))).await.expect(200);
        let (items, _) = settled(&app, None, 10, 3).await;
        assert_eq!(actions(&items), ["create", "create", "pause"]);
    }

    async fn what_an_older_transaction_may_still_write_before_is_waited_for(database) {
        let app = database.app().await;
        app.register("email").await;
        let store = database.connect().await;
        let open = store.begin().await.expect("begun");
        let by_hand = ByHand::open(&database.url).await;
        // It takes its place now, and is committed last.
        sea_orm::ConnectionTrait::execute_unprepared(&open, "INSERT INTO change (at, actor, request_id, noun, action, scope) VALUES (now(), 'slow', 'r', 'catalogue', 'create', 'slow')").await.expect("written");
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        let (items, next) = settled(&app, None, 10, 1).await;
        assert_eq!(actions(&items), ["create"], "the subscription waits for the one before it");
        assert_eq!(by_hand.ask::<i64>("SELECT count(*) FROM change").await, 2);
        tollgate::store::database::commit(open).await.expect("committed");
        eventually!("both show, the older one first", PATIENCE, {
            let (items, _) = follow(&app, Some(next.clone()), 10).await;
            items.len() == 2 && items[0]["actor"] == "slow" && items[1]["subscription"]["id"] == created["id"]
        });
    }

    async fn transactions_are_told_in_the_order_of_their_numbers_however_many_digits_those_have(database) {
        let app = database.app().await;
        app.register("email").await;
        let mut created = Vec::new();
        for user in ["a", "b", "c", "d"] {
            created.push(app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", None).await["id"].clone());
        }
        // 8 and 9, then 10, 11 and 12.
        ByHand::open(&database.url).await.run("UPDATE change SET xid = (7 + seq - (SELECT min(seq) - 1 FROM change))::text::xid8").await;
        for limit in [1, 2, 3, 200] {
            let (items, _) = settled(&app, None, limit, 5).await;
            let told: Vec<_> = items[1..].iter().map(|item| item["subscription"]["id"].clone()).collect();
            assert_eq!(told, created, "by {limit}");
        }
    }

    async fn a_place_that_the_database_has_not_reached_is_gone(database) {
        let app = database.app().await;
        app.register("email").await;
        let by_hand = ByHand::open(&database.url).await;
        by_hand.run("UPDATE change SET xid = (pg_current_xact_id()::text::bigint)::text::xid8").await;
        let (_, next) = follow(&app, None, 10).await;
        app.call("GET", &format!("{CHANGES}?since={next}")).await.expect(200);
        let ahead = tollgate::http::page::Position { now: app.now(), after: format!("{} 1", 1_u64 << 40) }.encode("changes");
        app.call("GET", &format!("{CHANGES}?since={ahead}")).await.expect_problem(410, "changes_gone");
    }
}

on_both! {
    async fn what_was_decided_at_an_instant_can_be_told_as_it_was_known_then(database) {
        let app = database.app().await;
        let start = app.now();
        let second = |number| start + TimeDelta::seconds(number);
        let request = json!({"user": {"id": "u"}, "client": {"id": "c"}, "scopes": ["email", "other"]});
        let mut answers = Vec::new();
        let mut note = async |number: i64| {
            app.set_now(second(number));
            answers.push((second(number), app.removed(Some("u"), "c", &["email", "other"]).await));
        };
        note(0).await;
        app.set_now(second(1));
        app.register("email").await;
        note(2).await;
        app.set_now(second(3));
        let first = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        note(4).await;
        app.set_now(second(5));
        app.call_with("PATCH", &path_of(&first), &json!({"validUntil": "2026-02-01T00:00:00Z"})).await.expect(200);
        note(6).await;
        app.set_now(second(7));
        let other = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        note(8).await;
        app.set_now(second(9));
        app.call("DELETE", &path_of(&other)).await;
        note(10).await;
        app.set_now(second(11));
        app.call_with("PATCH", "/v1/scopes/email", &json!({"enforced": false})).await.expect(200);
        note(12).await;
        app.set_now(second(13));
        app.register("other").await;
        note(14).await;
        app.set_now(second(15));
        app.call("POST", &format!("{}/restore", path_of(&other))).await.expect(200);
        note(16).await;
        app.set_now(second(100));
        let removed: Vec<_> = answers.iter().map(|(_, removed)| removed.len()).collect();
        assert_eq!(removed, [0, 1, 0, 1, 0, 1, 0, 1, 1], "{answers:?}");
        for (at, removed) in &answers {
            for known_at in [*at, *at + TimeDelta::milliseconds(999)] {
                let question = json!({"request": request, "at": timestamp(*at), "knownAt": timestamp(known_at)});
                let explained = app.call_with("POST", "/v1/explain", &question).await.expect(200);
                assert_eq!(explained["removeScopes"], json!(removed), "{at} {known_at}: {explained}");
            }
        }
        // Known a microsecond before it was recorded, it was not known; at that instant it was.
        for (known_at, is_removed) in [(second(3) - crate::support::MICROSECOND, true), (second(3), false)] {
            let question = json!({"request": request, "at": timestamp(second(3)), "knownAt": timestamp(known_at)});
            let explained = app.call_with("POST", "/v1/explain", &question).await.expect(200);
            assert_eq!(explained["removeScopes"] == json!(["email"]), is_removed, "{explained}");
        }
        // As it is known now, the answer of then is another one.
        let question = json!({"request": request, "at": timestamp(second(6))});
        assert_eq!(app.call_with("POST", "/v1/explain", &question).await.expect(200)["scopes"][0]["reason"], "active");
        let wrong = json!({"request": request, "knownAt": "then"});
        app.refuse("POST", "/v1/explain", &wrong, (422, "invalid_value"), &["#/knownAt"]).await;
        ByHand::open(&database.url).await.run("UPDATE change SET before = NULL, after = NULL").await;
        let question = json!({"request": request, "knownAt": timestamp(second(6))});
        app.refuse("POST", "/v1/explain", &question, (422, "invalid_value"), &["#/knownAt"]).await;
    }
}
