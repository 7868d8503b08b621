//! The life of a subscription over HTTP: paused, resumed, renewed, canceled and brought back, to the microsecond.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::{App, ByHand, MICROSECOND, TestDatabase, instant, on_both, path_of, timestamp};

const STATUSES: [&str; 6] = ["scheduled", "active", "paused", "grace", "canceled", "expired"];

/// An instant, in seconds after the one that all of these tests count from.
fn at(seconds: i64) -> DateTime<Utc> {
    instant("2026-07-01T00:00:00Z") + TimeDelta::seconds(seconds)
}

/// The same as timestamp.
fn second(seconds: i64) -> String {
    timestamp(at(seconds))
}

/// A subscription of a user to `x` from second 10 to 20, with a grace until second 30.
async fn create(app: &App, user: &str) -> Value {
    let body = json!({
        "subject": {"type": "user", "id": user}, "scopes": ["x"], "validFrom": second(10), "validUntil": second(20),
        "graceUntil": second(30),
    });
    app.call_with("POST", "/v1/subscriptions", &body).await.expect(201)
}

/// Does something to a subscription at an instant.
async fn act(app: &App, subscription: &Value, when: DateTime<Utc>, verb: &str, body: &Value) -> Value {
    app.set_now(when);
    if verb == "delete" {
        assert_eq!(app.call("DELETE", &path_of(subscription)).await.status, 204);
        return Value::Null;
    }
    app.call_with("POST", &format!("{}/{verb}", path_of(subscription)), body).await.expect(200)
}

/// Holds every answer about the one subscription of a user to a status.
async fn check(app: &App, subscription: &Value, now: DateTime<Utc>, status: &str, name: &str) {
    app.set_now(now);
    let user = subscription["subject"]["id"].as_str().expect("an id");
    let context = format!("{name}: {status} at {now}");
    let is_granted = ["active", "grace"].contains(&status);
    assert_eq!(app.call("GET", &path_of(subscription)).await.expect(200)["status"], status, "{context}");
    assert_eq!(app.removed(Some(user), "c", &["x"]).await.is_empty(), is_granted, "{context}");
    let subject = format!("subjectType=user&subjectId={user}");
    let view = app.call("GET", &format!("/v1/entitlements?{subject}")).await.expect(200);
    assert_eq!(
        (&view["items"][0]["reason"], &view["items"][0]["held"]),
        (&json!(status), &json!(is_granted)),
        "{context}"
    );
    for filter in STATUSES {
        let found = app.walk(&format!("/v1/subscriptions?{subject}&status={filter}")).await;
        assert_eq!(found.len(), usize::from(filter == status), "{filter}, but {context}");
    }
    let found = app.walk(&format!("/v1/subscriptions?{subject}&activeAt={}", timestamp(now))).await;
    assert_eq!(found.len(), usize::from(is_granted), "{context}");
}

/// What is done in a story, and when.
type Action = (DateTime<Utc>, &'static str, Value);

/// A story of a subscription: its name, what is done to it, and the instants at which its status changes, each with
/// the status from there on. Before the first of them it is scheduled.
type Story = (&'static str, Vec<Action>, Vec<(DateTime<Utc>, &'static str)>);

#[expect(clippy::too_many_lines, reason = "a table of stories")]
fn stories() -> Vec<Story> {
    let nothing = || json!({});
    let (start, end, late) = ((at(10), "active"), (at(20), "grace"), (at(30), "expired"));
    vec![
        ("nothing is done", vec![], vec![start, end, late]),
        (
            "a pause in the window",
            vec![(at(12), "pause", json!({"until": second(15)}))],
            vec![start, (at(12), "paused"), (at(15), "active"), end, late],
        ),
        (
            "a pause that lies ahead",
            vec![(at(5), "pause", json!({"from": second(12), "until": second(15)}))],
            vec![start, (at(12), "paused"), (at(15), "active"), end, late],
        ),
        (
            "a pause over the end",
            vec![(at(15), "pause", json!({"from": second(15), "until": second(25)}))],
            vec![start, (at(15), "paused"), (at(25), "grace"), late],
        ),
        (
            "a pause over the start",
            vec![(at(5), "pause", json!({"until": second(12)}))],
            vec![(at(10), "paused"), (at(12), "active"), end, late],
        ),
        ("a pause in the grace", vec![(at(22), "pause", nothing())], vec![start, end, (at(22), "paused"), late]),
        (
            "paused and resumed",
            vec![(at(12), "pause", nothing()), (at(15), "resume", nothing())],
            vec![start, (at(12), "paused"), (at(15), "active"), end, late],
        ),
        (
            "resumed in the grace",
            vec![(at(12), "pause", nothing()), (at(25), "resume", nothing())],
            vec![start, (at(12), "paused"), (at(25), "grace"), late],
        ),
        (
            "resumed at the instant at which it was paused",
            vec![(at(12), "pause", nothing()), (at(12), "resume", nothing())],
            vec![start, end, late],
        ),
        (
            "resumed one microsecond later",
            vec![(at(12), "pause", nothing()), (at(12) + MICROSECOND, "resume", nothing())],
            vec![start, (at(12), "paused"), (at(12) + MICROSECOND, "active"), end, late],
        ),
        (
            "resumed one microsecond before the pause ends",
            vec![(at(12), "pause", json!({"until": second(15)})), (at(15) - MICROSECOND, "resume", nothing())],
            vec![start, (at(12), "paused"), (at(15) - MICROSECOND, "active"), end, late],
        ),
        (
            "resumed before the pause begins",
            vec![(at(5), "pause", json!({"from": second(12)})), (at(12) - MICROSECOND, "resume", nothing())],
            vec![start, end, late],
        ),
        ("canceled", vec![(at(15), "cancel", nothing())], vec![start, (at(15), "canceled")]),
        ("canceled before it begins", vec![(at(5), "cancel", nothing())], vec![(at(5), "canceled")]),
        (
            "canceled in a pause",
            vec![(at(12), "pause", nothing()), (at(15), "cancel", nothing())],
            vec![start, (at(12), "paused"), (at(15), "canceled")],
        ),
        (
            "canceled in the grace, ahead",
            vec![(at(5), "cancel", json!({"at": second(25)}))],
            vec![start, end, (at(25), "canceled")],
        ),
        ("canceled at the end", vec![(at(15), "cancel", json!({"atEnd": true}))], vec![start, (at(20), "canceled")]),
        (
            "canceled at the end of the grace",
            vec![(at(15), "cancel", json!({"at": second(30), "atEnd": false}))],
            vec![start, end, (at(30), "canceled")],
        ),
        (
            "a cancellation brought forward",
            vec![(at(5), "cancel", json!({"atEnd": true})), (at(12), "cancel", json!({"at": second(15)}))],
            vec![start, (at(15), "canceled")],
        ),
        (
            "uncanceled afterwards",
            vec![(at(15), "cancel", nothing()), (at(30) - MICROSECOND, "uncancel", nothing())],
            vec![start, end, late],
        ),
        (
            "uncanceled before it takes effect",
            vec![(at(5), "cancel", json!({"atEnd": true})), (at(20) - MICROSECOND, "uncancel", nothing())],
            vec![start, end, late],
        ),
        (
            "canceled in a pause and uncanceled",
            vec![(at(12), "pause", nothing()), (at(14), "cancel", nothing()), (at(16), "uncancel", nothing())],
            vec![start, (at(12), "paused"), late],
        ),
        (
            "renewed in the grace, which the new end leaves behind",
            vec![(at(25), "renew", json!({"validUntil": second(40)}))],
            vec![start, (at(40), "expired")],
        ),
        (
            "renewed within the grace",
            vec![(at(20), "renew", json!({"validUntil": second(25)}))],
            vec![start, (at(25), "grace"), late],
        ),
        (
            "renewed by a duration from the end, with a grace",
            vec![(at(25), "renew", json!({"duration": "PT20S", "from": "end", "graceUntil": second(50)}))],
            vec![start, (at(40), "grace"), (at(50), "expired")],
        ),
        (
            "renewed by a duration from now, expired already",
            vec![(at(35), "renew", json!({"duration": "PT10.000001S", "from": "now"}))],
            vec![start, (at(45) + MICROSECOND, "expired")],
        ),
        (
            "renewed for ever, without its grace",
            vec![(at(15), "renew", json!({"validUntil": null, "graceUntil": null}))],
            vec![start],
        ),
        (
            "renewed twice",
            vec![(at(5), "renew", json!({"duration": "PT5S"})), (at(15), "renew", json!({"duration": "PT1S"}))],
            vec![start, (at(26), "grace"), late],
        ),
        (
            "paused in the grace, renewed, resumed",
            vec![
                (at(22), "pause", nothing()),
                (at(24), "renew", json!({"validUntil": second(40)})),
                (at(26), "resume", nothing()),
            ],
            vec![start, (at(22), "paused"), (at(26), "active"), (at(40), "expired")],
        ),
        (
            "deleted and restored in a pause",
            vec![(at(12), "pause", nothing()), (at(14), "delete", nothing()), (at(16), "restore", nothing())],
            vec![start, (at(12), "paused"), late],
        ),
    ]
}

/// What was done, and when, with what, and with which code something else is refused.
type Conflict = (Vec<Action>, DateTime<Utc>, &'static str, Value, &'static str);

/// What was done last, as it is recorded.
async fn last_action(database: &Arc<TestDatabase>) -> String {
    ByHand::open(&database.url).await.ask("SELECT action FROM change ORDER BY seq DESC LIMIT 1").await
}

on_both! {
    async fn every_story_has_its_statuses_to_the_microsecond_and_all_answers_agree(database) {
        let app = database.app().await;
        app.register("x").await;
        for (number, (name, actions, changes)) in stories().into_iter().enumerate() {
            app.set_now(at(0));
            let subscription = create(&app, &format!("u{number}")).await;
            let mut version = 1;
            for (when, verb, body) in actions {
                let shown = act(&app, &subscription, when, verb, &body).await;
                version += 1;
                if shown.is_object() {
                    assert_eq!((&shown["version"], &shown["updatedAt"]), (&json!(version), &json!(timestamp(when))), "{name}");
                }
            }
            let mut status = "scheduled";
            for (when, next) in changes {
                for (now, status) in [(when - MICROSECOND, status), (when, next), (when + MICROSECOND, next)] {
                    // Where the next boundary is that close, it has its own turn.
                    if now <= when || !name.contains("one microsecond") {
                        check(&app, &subscription, now, status, name).await;
                    }
                }
                status = next;
            }
            check(&app, &subscription, instant("2999-01-01T00:00:00Z"), status, name).await;
        }
    }

    async fn an_answer_shows_what_was_done_and_nothing_besides(database) {
        let app = database.app().await;
        app.register("x").await;
        app.set_now(at(12));
        let mut expected = create(&app, "u").await;
        assert_eq!(expected["graceUntil"], second(30));
        let steps = [
            ("pause", json!({"from": second(14), "until": second(16)}), json!({"pausedFrom": second(14), "pausedUntil": second(16)})),
            ("resume", json!({}), json!({"pausedFrom": null, "pausedUntil": null})),
            ("pause", json!({}), json!({"pausedFrom": second(12), "status": "paused"})),
            ("cancel", json!({"atEnd": true}), json!({"canceledAt": second(20)})),
            ("uncancel", json!({}), json!({"canceledAt": null})),
            ("renew", json!({"validUntil": second(30)}), json!({"validUntil": second(30), "graceUntil": null})),
            ("cancel", json!({}), json!({"canceledAt": second(12), "status": "canceled"})),
        ];
        for (verb, body, changes) in steps {
            let answer = app.call_with("POST", &format!("{}/{verb}", path_of(&expected)), &body).await;
            let object = expected.as_object_mut().expect("an object");
            for (name, value) in changes.as_object().expect("an object") {
                if value.is_null() { object.remove(name) } else { object.insert(name.clone(), value.clone()) };
            }
            expected["version"] = (expected["version"].as_i64().expect("a version") + 1).into();
            assert_eq!(answer.expect(200), expected, "{verb}");
            assert_eq!(answer.header("etag"), Some(&*format!("\"{}\"", expected["version"])));
            assert_eq!(app.call("GET", &path_of(&expected)).await.expect(200), expected, "{verb}");
            assert_eq!(last_action(&database).await, verb);
        }
    }

    async fn what_makes_no_sense_is_a_conflict_and_changes_nothing(database) {
        let app = database.app().await;
        app.register("x").await;
        let (pause, cancel, nothing) = (|when| (when, "pause", json!({})), |when| (when, "cancel", json!({})), json!({}));
        let until = |seconds: i64| json!({"validUntil": second(seconds)});
        let last = MICROSECOND;
        let conflicts: Vec<Conflict> = vec![
            (vec![], at(30), "cancel", nothing.clone(), "expired"),
            (vec![], at(15), "cancel", json!({"at": timestamp(at(30) + last)}), "expired"),
            (vec![], at(20) + last, "cancel", json!({"atEnd": true}), "window_ended"),
            (vec![cancel(at(15))], at(15), "cancel", nothing.clone(), "already_canceled"),
            (vec![cancel(at(15))], at(40), "cancel", json!({"atEnd": true}), "already_canceled"),
            (vec![], at(15), "uncancel", nothing.clone(), "not_canceled"),
            (vec![cancel(at(15))], at(30), "uncancel", nothing.clone(), "expired"),
            (vec![], at(30), "pause", nothing.clone(), "expired"),
            (vec![cancel(at(15))], at(15), "pause", nothing.clone(), "canceled"),
            (vec![pause(at(12))], at(12), "pause", nothing.clone(), "already_paused"),
            (vec![(at(5), "pause", json!({"from": second(12), "until": second(15)}))], at(15) - last, "pause", nothing.clone(), "already_paused"),
            (vec![(at(5), "pause", json!({"from": second(12)}))], at(6), "pause", nothing.clone(), "already_paused"),
            (vec![], at(15), "resume", nothing.clone(), "not_paused"),
            (vec![(at(12), "pause", json!({"until": second(15)}))], at(15), "resume", nothing.clone(), "not_paused"),
            (vec![pause(at(12)), cancel(at(14))], at(15), "resume", nothing.clone(), "canceled"),
            (vec![cancel(at(15))], at(15), "renew", until(40), "canceled"),
            (vec![(at(5), "cancel", json!({"atEnd": true}))], at(15), "renew", until(40), "canceled"),
            (vec![], at(15), "renew", until(20), "not_longer"),
            (vec![], at(15), "renew", until(15), "not_longer"),
            (vec![], at(5), "renew", json!({"duration": "PT15S", "from": "now"}), "not_longer"),
            (vec![(at(5), "renew", json!({"validUntil": null}))], at(15), "renew", json!({"duration": "P1M"}), "open_ended"),
            (vec![(at(5), "renew", json!({"validUntil": null}))], at(15), "renew", json!({"validUntil": null}), "not_longer"),
            (vec![(at(5), "renew", json!({"validUntil": null}))], at(15), "cancel", json!({"atEnd": true}), "open_ended"),
            (vec![], at(15), "restore", nothing.clone(), "not_deleted"),
        ];
        for (number, (actions, when, verb, body, code)) in conflicts.into_iter().enumerate() {
            app.set_now(at(0));
            let subscription = create(&app, &format!("u{number}")).await;
            for (when, verb, body) in actions {
                act(&app, &subscription, when, verb, &body).await;
            }
            app.set_now(when);
            let before = app.call("GET", &path_of(&subscription)).await.expect(200);
            let path = format!("{}/{verb}", path_of(&subscription));
            app.call_with("POST", &path, &body).await.expect_refusal((409, code), &[], &format!("{number}: {verb} {body}"));
            assert_eq!(app.call("GET", &path_of(&subscription)).await.expect(200), before, "{verb} {body}");
        }
    }

    async fn a_value_that_cannot_be_is_refused_by_name(database) {
        let app = database.app().await;
        app.register("x").await;
        app.set_now(at(15));
        let subscription = create(&app, "u").await;
        let past = timestamp(at(15) - MICROSECOND);
        for (verb, body, pointer) in [
            ("cancel", json!({"at": past}), "#/at"),
            ("cancel", json!({"at": "tomorrow"}), "#/at"),
            ("pause", json!({"from": past}), "#/from"),
            ("pause", json!({"from": second(16), "until": second(16)}), "#/until"),
            ("pause", json!({"until": second(15)}), "#/until"),
            ("pause", json!({"until": ""}), "#/until"),
            ("renew", json!({"validUntil": ""}), "#/validUntil"),
            ("renew", json!({"validUntil": second(25), "graceUntil": second(25)}), "#/graceUntil"),
            ("renew", json!({"validUntil": null, "graceUntil": second(25)}), "#/graceUntil"),
            ("renew", json!({"duration": "P8000Y"}), "#/duration"),
            ("renew", json!({"duration": "P1M", "graceUntil": "later"}), "#/graceUntil"),
        ] {
            app.refuse("POST", &format!("{}/{verb}", path_of(&subscription)), &body, (422, "invalid_value"), &[pointer]).await;
        }
        for duration in ["", "P", "P0D", "-P1M", "1 month", "p1m", "P1M ", "P1.5M", "PT", "P1H", "month"] {
            let body = json!({"duration": duration, "from": "now"});
            app.refuse("POST", &format!("{}/renew", path_of(&subscription)), &body, (422, "invalid_value"), &["#/duration"]).await;
        }
        for (verb, body, pointer) in [
            ("cancel", json!({"at": second(20), "atEnd": true}), "#/atEnd"),
            ("cancel", json!({"at": null}), "#/at"),
            ("cancel", json!({"atEnd": "true"}), "#/atEnd"),
            ("cancel", json!({"atEnd": null}), "#/atEnd"),
            ("cancel", json!({"at_end": true}), "#/at_end"),
            ("pause", json!({"until": null}), "#/until"),
            ("pause", json!({"from": 5}), "#/from"),
            ("pause", json!({"at": second(20)}), "#/at"),
            ("renew", json!({}), "#/validUntil"),
            ("renew", json!({"graceUntil": null}), "#/validUntil"),
            ("renew", json!({"validUntil": second(25), "duration": "P1M"}), "#/duration"),
            ("renew", json!({"validUntil": second(25), "from": "now"}), "#/from"),
            ("renew", json!({"from": "end"}), "#/from"),
            ("renew", json!({"duration": null}), "#/duration"),
            ("renew", json!({"duration": "P1M", "from": "start"}), "#/from"),
            ("renew", json!({"duration": "P1M", "from": {"end": null}}), "#/from"),
            ("resume", json!({"at": second(20)}), "#/at"),
            ("uncancel", json!({"at": second(20)}), "#/at"),
            ("restore", json!([]), "#"),
        ] {
            app.refuse("POST", &format!("{}/{verb}", path_of(&subscription)), &body, (400, "invalid_request"), &[pointer]).await;
        }
        let new = |end: Option<i64>, grace: Value| json!({
            "subject": {"type": "user", "id": "u"}, "scopes": ["x"], "validUntil": end.map(second), "graceUntil": grace,
        });
        for (body, problem) in [
            (new(Some(20), second(20).into()), (422, "invalid_value")), (new(None, second(20).into()), (422, "invalid_value")),
            (new(Some(20), "x".into()), (422, "invalid_value")), (new(Some(20), Value::Null), (400, "invalid_request")),
        ] {
            app.refuse("POST", "/v1/subscriptions", &body, problem, &["#/graceUntil"]).await;
        }
        for patch in [json!({"graceUntil": second(20)}), json!({"validUntil": second(30)}), json!({"validUntil": null})] {
            app.refuse("PATCH", &path_of(&subscription), &patch, (422, "invalid_value"), &["#/graceUntil"]).await;
        }
        assert_eq!(app.call("GET", &path_of(&subscription)).await.expect(200), subscription);
        let patched = app.call_with("PATCH", &path_of(&subscription), &json!({"graceUntil": second(31)})).await.expect(200);
        assert_eq!((&patched["graceUntil"], &patched["version"]), (&json!(second(31)), &json!(2)));
        let patched = app.call_with("PATCH", &path_of(&subscription), &json!({"graceUntil": null})).await.expect(200);
        assert_eq!(patched.get("graceUntil"), None);
    }

    async fn a_month_is_a_month_of_the_calendar(database) {
        let app = database.app().await;
        app.register("x").await;
        for (end, duration, renewed) in [
            ("2027-01-31T12:00:00Z", "P1M", "2027-02-28T12:00:00Z"), ("2028-01-31T12:00:00.5Z", "P1M", "2028-02-29T12:00:00.500000Z"),
            ("2028-02-29T00:00:00Z", "P1Y", "2029-02-28T00:00:00Z"), ("2026-12-31T00:00:00Z", "P1M", "2027-01-31T00:00:00Z"),
            ("2026-10-24T12:00:00Z", "P1D", "2026-10-25T12:00:00Z"), ("2026-10-24T12:00:00Z", "P1Y2M1W3DT4H", "2028-01-03T16:00:00Z"),
        ] {
            let subscription = app.subscribe("u", &["x"], "2026-01-01T00:00:00Z", Some(end)).await;
            let path = format!("{}/renew", path_of(&subscription));
            let shown = app.call_with("POST", &path, &json!({"duration": duration})).await.expect(200);
            assert_eq!(shown["validUntil"], renewed, "{end} and {duration}");
        }
        app.set_now(instant("2026-05-31T09:00:00.000001Z"));
        let subscription = app.subscribe("u", &["x"], "2026-01-01T00:00:00Z", Some("2026-06-01T00:00:00Z")).await;
        let path = format!("{}/renew", path_of(&subscription));
        let shown = app.call_with("POST", &path, &json!({"duration": "P1M", "from": "now"})).await.expect(200);
        assert_eq!(shown["validUntil"], "2026-06-30T09:00:00.000001Z");
    }

    async fn what_was_deleted_is_restored_as_it_was(database) {
        let app = database.app().await;
        app.register("x").await;
        app.set_now(at(15));
        let before = create(&app, "u").await;
        let restore = format!("{}/restore", path_of(&before));
        for round in 0..2 {
            act(&app, &before, at(15), "delete", &json!({})).await;
            assert_eq!(app.removed(Some("u"), "c", &["x"]).await, ["x"]);
            for (verb, body) in [("cancel", json!({})), ("pause", json!({})), ("renew", json!({"duration": "P1M"})), ("resume", json!({})), ("uncancel", json!({}))] {
                app.refuse("POST", &format!("{}/{verb}", path_of(&before)), &body, (404, "not_found"), &[]).await;
            }
            app.set_now(at(16));
            let mut expected = before.clone();
            expected["version"] = (3 + 2 * round).into();
            expected["updatedAt"] = second(16).into();
            assert_eq!(app.call("POST", &restore).await.expect(200), expected);
            assert_eq!(last_action(&database).await, "restore");
            assert_eq!(app.call("GET", &path_of(&before)).await.expect(200), expected);
            assert!(app.removed(Some("u"), "c", &["x"]).await.is_empty());
            app.call("POST", &restore).await.expect_problem(409, "not_deleted");
        }
        let never = "/v1/subscriptions/00000000-0000-7000-8000-000000000000/restore";
        app.call("POST", never).await.expect_problem(404, "not_found");
        // Meanwhile the scope could not go.
        act(&app, &before, at(17), "delete", &json!({})).await;
        app.call("DELETE", "/v1/scopes/x").await.expect_problem(409, "scope_in_use");
    }
}
