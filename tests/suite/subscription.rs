//! Subscriptions over HTTP: `/v1/subscriptions`.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::support::{
    ADMIN_CREDENTIALS, App, JSON, MICROSECOND, Options, encoded, instant, on_both, path_of, timestamp, with_cursor,
};

const INVALID_REQUEST: (u16, &str) = (400, "invalid_request");
const INVALID_VALUE: (u16, &str) = (422, "invalid_value");

/// A subscription that can be created.
fn example() -> Value {
    json!({
        "subject": {"type": "user", "id": "u"}, "scopes": ["email"],
        "validFrom": "2026-01-01T00:00:00Z", "validUntil": "2027-01-01T00:00:00Z",
    })
}

/// A value with other members.
fn with(mut value: Value, members: &Value) -> Value {
    for (name, member) in members.as_object().expect("an object") {
        value[name] = member.clone();
    }
    value
}

/// A value without a member.
fn without(mut value: Value, member: &str) -> Value {
    value.as_object_mut().expect("an object").remove(member);
    value
}

/// What a test knows of a subscription, to tell without asking which lists hold it.
struct Fixture {
    id: String,
    subject: (&'static str, &'static str),
    scopes: &'static [&'static str],
    window: (DateTime<Utc>, Option<DateTime<Utc>>),
    canceled_at: Option<DateTime<Utc>>,
}

impl Fixture {
    fn status(&self, now: DateTime<Utc>) -> &'static str {
        match self {
            Self { canceled_at: Some(canceled_at), .. } if *canceled_at <= now => "canceled",
            Self { window: (from, _), .. } if now < *from => "scheduled",
            Self { window: (_, Some(until)), .. } if *until <= now => "expired",
            Self { .. } => "active",
        }
    }
}

async fn create(app: &App, body: &Value) -> Value {
    app.call_with("POST", "/v1/subscriptions", body).await.expect(201)
}

async fn cancel(app: &App, subscription: &Value) -> Value {
    app.call("POST", &format!("{}/cancel", path_of(subscription))).await.expect(200)
}

/// The ids of subscriptions, in their order.
fn ids(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["id"].as_str().expect("an id")).collect()
}

on_both! {
    async fn a_subscription_is_recorded_with_defaults_and_read_back(database) {
        let app = database.app().await;
        for name in ["email", "a", "Z"] {
            app.register(name).await;
        }
        app.set_now(instant("2026-06-15T12:00:00.00001Z"));
        let now = "2026-06-15T12:00:00.000010Z";
        let body = json!({"subject": {"type": "client", "id": "a/b é"}, "scopes": ["email", "a", "Z"], "validUntil": null});
        let created = app.call_with("POST", "/v1/subscriptions", &body).await;
        let shown = created.expect(201);
        let expected = json!({
            "id": shown["id"], "subject": {"type": "client", "id": "a/b é"}, "scopes": ["Z", "a", "email"], "validFrom": now,
            "validUntil": null, "status": "active", "version": 1, "createdAt": now, "updatedAt": now,
        });
        assert_eq!(shown, expected);
        assert_eq!((created.header("location"), created.header("etag")), (Some(&*path_of(&shown)), Some("\"1\"")));
        let read = app.call("GET", &path_of(&shown)).await;
        assert_eq!(read.expect(200), expected);
        assert_eq!(read.header("etag"), Some("\"1\""));

        for (from, until, status) in [
            ("1999-01-01T00:00:00Z", json!("1999-01-01T00:00:00.000001Z"), "expired"),
            ("2026-01-01T00:00:00Z", json!("2027-01-01T00:00:00Z"), "active"),
            ("2026-01-01T00:00:00Z", json!(null), "active"),
            ("2999-01-01T00:00:00Z", json!(null), "scheduled"),
        ] {
            let body = with(example(), &json!({"validFrom": from, "validUntil": until}));
            let created = create(&app, &body).await;
            let expected = with(body, &json!({
                "id": created["id"], "status": status, "version": 1, "createdAt": now, "updatedAt": now,
            }));
            assert_eq!(created, expected);
            assert_eq!(app.call("GET", &path_of(&created)).await.expect(200), expected);
        }
        let upper = path_of(&shown).to_uppercase().replace("/V1/SUBSCRIPTIONS", "/v1/subscriptions");
        assert_eq!(app.call("GET", &upper).await.expect(200), expected, "hexadecimal digits have no case");
    }

    async fn what_cannot_be_recorded_is_refused_by_name(database) {
        let app = database.app().await;
        for number in 0..=100 {
            app.register(&format!("s{number}")).await;
        }
        app.register("email").await;
        let check = async |members: Value, problem, pointers: &[&str]| {
            app.refuse("POST", "/v1/subscriptions", &with(example(), &members), problem, pointers).await;
        };
        for missing in ["subject", "scopes", "validUntil"] {
            let body = without(example(), missing);
            app.refuse("POST", "/v1/subscriptions", &body, INVALID_REQUEST, &[&format!("#/{missing}")]).await;
        }
        let names = |count| (0..count).map(|number| format!("s{number}")).collect::<Vec<_>>();
        let x = |times| "x".repeat(times);
        for (members, pointer) in [
            (json!({"validFrom": null}), "#/validFrom"),
            (json!({"subject": null}), "#/subject"),
            (json!({"scopes": null}), "#/scopes"),
            (json!({"scopes": "email"}), "#/scopes"),
            (json!({"scopes": {"0": "email"}}), "#/scopes"),
            (json!({"scopes": ["email", 1]}), "#/scopes/1"),
            (json!({"scopes": [null]}), "#/scopes/0"),
            (json!({"subject": "u"}), "#/subject"),
            (json!({"subject": ["user", "u"]}), "#/subject"),
            (json!({"subject": {"type": "user"}}), "#/subject/id"),
            (json!({"subject": {"id": "u"}}), "#/subject/type"),
            (json!({"subject": {"type": "User", "id": "u"}}), "#/subject/type"),
            (json!({"subject": {"type": {"user": null}, "id": "u"}}), "#/subject/type"),
            (json!({"subject": {"type": 1, "id": "u"}}), "#/subject/type"),
            (json!({"subject": {"type": null, "id": "u"}}), "#/subject/type"),
            (json!({"subject": {"type": "user", "id": 1}}), "#/subject/id"),
            (json!({"subject": {"type": "user", "id": null}}), "#/subject/id"),
            (json!({"subject": {"type": "user", "id": "u", "name": "x"}}), "#/subject/name"),
            (json!({"id": "x"}), "#/id"),
            (json!({"status": "active"}), "#/status"),
            (json!({"valid_until": null}), "#/valid_until"),
        ] {
            check(members, INVALID_REQUEST, &[pointer]).await;
        }
        app.refuse("POST", "/v1/subscriptions", &json!([example()]), INVALID_REQUEST, &["#"]).await;
        let array = json!([{"type": "user", "id": "u"}, ["email"], "2026-01-01T00:00:00Z", null]);
        app.refuse("POST", "/v1/subscriptions", &array, INVALID_REQUEST, &["#"]).await;
        for id in ["", "a\u{0}b", &x(1025), &"é".repeat(513)] {
            check(json!({"subject": {"type": "user", "id": id}}), INVALID_VALUE, &["#/subject/id"]).await;
        }
        check(json!({"scopes": []}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": names(101)}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": ["email", "s1", "email"]}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": ["email", " ", "s1", ""]}), INVALID_VALUE, &["#/scopes/1", "#/scopes/3"]).await;
        check(json!({"validFrom": "2027-01-01T00:00:00Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validFrom": "2027-01-01T00:00:00.0000009Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validFrom": "2027-01-01T00:00:00.000001Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validFrom": "2027-01-01T01:00:00+01:00"}), INVALID_VALUE, &["#/validUntil"]).await;
        let body = without(with(example(), &json!({"validUntil": "2026-06-15T12:00:00Z"})), "validFrom");
        app.refuse("POST", "/v1/subscriptions", &body, INVALID_VALUE, &["#/validUntil"]).await;
        let wrong = json!({"subject": {"type": "user", "id": ""}, "scopes": [" "], "validFrom": "x", "validUntil": "y"});
        check(wrong, INVALID_VALUE, &["#/subject/id", "#/scopes/0", "#/validFrom", "#/validUntil"]).await;

        let body = with(example(), &json!({"scopes": ["unknown:b", "email", "Email", "s1", "unknown:a"]}));
        let answer = app.call_with("POST", "/v1/subscriptions", &body).await;
        let problem = answer.expect_problem(422, "unknown_scopes");
        let details: Vec<_> = problem["errors"].as_array().expect("errors").iter().map(|error| error["detail"].clone()).collect();
        let expected = ["Email", "unknown:a", "unknown:b"].map(|name| format!("`{name}` is not in the catalogue"));
        assert_eq!(details, expected);
        assert_eq!(answer.pointers(), ["#/scopes"; 3]);
        assert_eq!(app.walk("/v1/subscriptions").await, [Value::Null; 0], "nothing of what was refused is there");

        check(json!({"scopes": ["email"], "validUntil": "x"}), INVALID_VALUE, &["#/validUntil"]).await;
        assert_eq!(create(&app, &with(example(), &json!({"scopes": names(100)}))).await["scopes"].as_array().map(Vec::len), Some(100));
        create(&app, &with(example(), &json!({"subject": {"type": "user", "id": "é".repeat(512)}}))).await;
    }

    async fn the_status_is_derived_to_the_microsecond(database) {
        let app = database.app().await;
        app.register("email").await;
        let at = |text: &str| instant(&format!("2026-07-01T00:00:{text}Z"));
        let window = |from: &str, until: Option<&str>| with(example(), &json!({
            "validFrom": timestamp(at(from)), "validUntil": until.map(|until| timestamp(at(until))),
        }));
        let check = async |shown: &Value, expected: &[(DateTime<Utc>, &str)]| {
            for (now, status) in expected {
                app.set_now(*now);
                assert_eq!(app.call("GET", &path_of(shown)).await.expect(200)["status"], *status, "{shown} at {now}");
            }
        };
        let (from, until, canceled) = (at("10"), at("20.5"), at("15.123456"));
        let lifetime = [
            (from - MICROSECOND, "scheduled"), (from, "active"), (from + MICROSECOND, "active"),
            (until - MICROSECOND, "active"), (until, "expired"), (until + MICROSECOND, "expired"),
        ];
        app.set_now(at("00"));
        let bounded = create(&app, &window("10", Some("20.5"))).await;
        let open_ended = create(&app, &window("10", None)).await;
        let midway = create(&app, &window("10", Some("20.5"))).await;
        let early = create(&app, &window("10", Some("20.5"))).await;
        check(&bounded, &lifetime).await;
        check(&open_ended, &[(from - MICROSECOND, "scheduled"), (from, "active"), (instant("9999-12-31T23:59:59.999999Z"), "active")]).await;

        app.set_now(at("05"));
        let shown = cancel(&app, &early).await;
        assert_eq!((&shown["status"], &shown["canceledAt"]), (&json!("canceled"), &json!("2026-07-01T00:00:05Z")));
        check(&early, &[(at("05") - MICROSECOND, "scheduled"), (at("05"), "canceled"), (from, "canceled"), (until, "canceled")]).await;
        app.set_now(canceled);
        cancel(&app, &midway).await;
        check(&midway, &[
            (from - MICROSECOND, "scheduled"), (from, "active"), (canceled - MICROSECOND, "active"), (canceled, "canceled"),
            (canceled + MICROSECOND, "canceled"), (until, "canceled"), (until + MICROSECOND, "canceled"),
        ]).await;
        app.set_now(canceled);
        let expected = with(midway.clone(), &json!({
            "status": "canceled", "canceledAt": timestamp(canceled), "version": 2, "updatedAt": timestamp(canceled),
        }));
        assert_eq!(app.call("GET", &path_of(&midway)).await.expect(200), expected);
    }

    async fn the_list_holds_what_passes_every_filter(database) {
        let app = database.app().await;
        for name in ["a", "b", "c"] {
            app.register(name).await;
        }
        let now = app.now();
        let windows = [
            (now - MICROSECOND * 2, Some(now)), (now - MICROSECOND, Some(now + MICROSECOND)), (now, None),
            (now, Some(now + MICROSECOND * 1000)), (now + MICROSECOND, None), (now - MICROSECOND * 1_000_000, Some(now - MICROSECOND)),
        ];
        let subjects = [("user", "x"), ("client", "x"), ("user", "X")];
        let scopes: [&[&str]; 3] = [&["a"], &["b", "a"], &["b"]];
        // One for each choice of window, subject and scopes; some of them are canceled, some deleted.
        let mut fixtures = Vec::new();
        for (number, (window, subject)) in windows.iter().flat_map(|window| subjects.map(|subject| (*window, subject))).enumerate() {
            for scopes in scopes {
                app.set_now(now - MICROSECOND * 2);
                let created = create(&app, &json!({
                    "subject": {"type": subject.0, "id": subject.1}, "scopes": scopes,
                    "validFrom": timestamp(window.0), "validUntil": window.1.map(timestamp),
                })).await;
                let mut canceled_at = None;
                let is_over = window.1.is_some_and(|until| until <= now - MICROSECOND * 2);
                if number % 4 == 1 && !is_over {
                    let instant = if number % 8 == 1 { now } else { now - MICROSECOND * 2 };
                    if window.1.is_none_or(|until| instant < until) {
                        app.set_now(instant);
                        cancel(&app, &created).await;
                        canceled_at = Some(instant);
                    }
                }
                if number % 7 == 3 {
                    assert_eq!(app.call("DELETE", &path_of(&created)).await.status, 204);
                } else {
                    let id = ids(std::slice::from_ref(&created))[0].to_owned();
                    fixtures.push(Fixture { id, subject, scopes, window, canceled_at });
                }
            }
        }
        app.set_now(now);
        fixtures.sort_by(|one, other| one.id.cmp(&other.id));
        let mut sizes = std::collections::BTreeMap::<&str, usize>::new();
        for subject in [None, Some(("user", "x")), Some(("client", "x")), Some(("user", "X")), Some(("client", "X"))] {
            for scope in [None, Some("a"), Some("b"), Some("c"), Some("unknown")] {
                for wanted in [None, Some("scheduled"), Some("active"), Some("canceled"), Some("expired")] {
                    for active_at in [None, Some(now), Some(now - MICROSECOND), Some(now + MICROSECOND), Some(now + MICROSECOND * 1000)] {
                        let parameters = [
                            subject.map(|(kind, id)| format!("subjectType={kind}&subjectId={id}")),
                            scope.map(|scope| format!("scope={scope}")),
                            wanted.map(|status| format!("status={status}")),
                            active_at.map(|at| format!("activeAt={}", timestamp(at))),
                        ];
                        let query = parameters.into_iter().flatten().collect::<Vec<_>>().join("&");
                        let page = app.call("GET", &format!("/v1/subscriptions?{query}&limit=200").replace("?&", "?")).await.expect(200);
                        let items = page["items"].as_array().expect("items");
                        let passes = |fixture: &&Fixture| {
                            subject.is_none_or(|subject| fixture.subject == subject)
                                && scope.is_none_or(|scope| fixture.scopes.contains(&scope))
                                && wanted.is_none_or(|wanted| fixture.status(now) == wanted)
                                && active_at.is_none_or(|at| fixture.status(at) == "active")
                        };
                        let expected: Vec<_> = fixtures.iter().filter(passes).map(|fixture| (&*fixture.id, fixture.status(now))).collect();
                        let found: Vec<_> = ids(items).into_iter().zip(items.iter().map(|item| item["status"].as_str().expect("a status"))).collect();
                        assert_eq!(found, expected, "{query}");
                        *sizes.entry(wanted.unwrap_or("any")).or_default() += found.len();
                    }
                }
            }
        }
        assert!(sizes.len() == 5 && sizes.values().all(|size| *size > 20), "the fixtures are of every status: {sizes:?}");
    }

    async fn a_filter_that_cannot_be_is_refused_by_name(database) {
        let app = database.app().await;
        for (query, pointers) in [
            ("subjectType=user", &["?subjectId"][..]),
            ("subjectId=u", &["?subjectType"]),
            ("subjectType=User&subjectId=u", &["?subjectType"]),
            ("subjectType=&subjectId=u", &["?subjectType"]),
            ("subjectType=user&subjectId=", &["?subjectId"]),
            ("subjectType=user&subjectId=%00", &["?subjectId"]),
            ("subjectType=user&subjectId=u&subjectId=u", &["?subjectId"]),
            ("scope=", &["?scope"]),
            ("scope=a%20b", &["?scope"]),
            ("scope=a&scope=b", &["?scope"]),
            ("status=", &["?status"]),
            ("status=Active", &["?status"]),
            ("status=gone", &["?status"]),
            ("status=active,expired", &["?status"]),
            ("activeAt=", &["?activeAt"]),
            ("activeAt=2026-01-01", &["?activeAt"]),
            ("activeAt=2026-01-01T00:00:00+01:00", &["?activeAt"]),
            ("limit=0", &["?limit"]),
            ("limit=201", &["?limit"]),
            ("limit=", &["?limit"]),
            ("cursor=", &["?cursor"]),
            ("Status=active", &["?Status"]),
            ("offset=1&page=2", &["?offset", "?page"]),
            ("subject_type=user&limit=1&limit=1", &["?subject_type", "?limit"]),
        ] {
            app.refuse_query(&format!("/v1/subscriptions?{query}"), pointers).await;
        }
    }

    async fn pages_share_the_filters_and_the_present_of_the_first_one(database) {
        let app = database.app().await;
        for name in ["a", "b"] {
            app.register(name).await;
        }
        let until = app.now() + MICROSECOND;
        let mut all = Vec::new();
        for number in 0..7 {
            let body = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["a"], "validUntil": timestamp(until)});
            let other = json!({"subject": {"type": "client", "id": number.to_string()}, "scopes": ["b"], "validUntil": null});
            all.extend([create(&app, &body).await, create(&app, &other).await]);
        }
        all.sort_by(|one, other| ids(std::slice::from_ref(one)).cmp(&ids(std::slice::from_ref(other))));
        for limit in [1, 3, 7, 13, 14, 15, 200] {
            assert_eq!(app.walk(&format!("/v1/subscriptions?limit={limit}")).await, all, "{limit}");
            let page = app.call("GET", &format!("/v1/subscriptions?limit={limit}")).await.expect(200);
            assert_eq!(page["items"].as_array().map(Vec::len), Some(limit.min(14)));
            assert_eq!(page["nextCursor"].is_string(), limit < 14, "{limit}");
            assert_eq!(page.as_object().map(serde_json::Map::len), Some(1 + usize::from(limit < 14)));
        }
        let list = "/v1/subscriptions?status=active&scope=a";
        let first = app.call("GET", &format!("{list}&limit=3")).await.expect(200);
        let cursor = first["nextCursor"].as_str().expect("a cursor");
        app.set_now(until);
        assert_eq!(app.call("GET", list).await.expect(200)["items"], json!([]), "all have expired by now");
        let second = app.call("GET", &with_cursor(&format!("{list}&limit=2"), cursor)).await.expect(200);
        let third = second["nextCursor"].as_str().expect("a cursor");
        let third = app.call("GET", &with_cursor(&format!("{list}&limit=200"), third)).await.expect(200);
        assert_eq!(third["nextCursor"], json!(null));
        let walked: Vec<_> = [&first, &second, &third].iter().flat_map(|page| page["items"].as_array().expect("items")).collect();
        let expected: Vec<_> = all.iter().filter(|item| item["scopes"] == json!(["a"])).collect();
        assert_eq!(walked, expected, "still as they were at the present of the first page");

        for other in [
            "", "?status=active", "?scope=a", "?status=active&scope=b", "?status=expired&scope=a",
            "?status=active&scope=a&activeAt=2026-06-15T12:00:00Z", "?status=active&scope=a&subjectType=user&subjectId=u",
        ] {
            app.refuse_query(&with_cursor(&format!("/v1/subscriptions{other}"), cursor), &["?cursor"]).await;
        }
        app.refuse_query(&with_cursor("/v1/scopes", cursor), &["?cursor"]).await;
        let other = app.call("GET", "/v1/scopes?limit=1").await.expect(200)["nextCursor"].as_str().expect("a cursor").to_owned();
        app.refuse_query(&with_cursor("/v1/subscriptions", &other), &["?cursor"]).await;
        for index in 0..cursor.len() {
            let mut tampered = cursor.to_owned();
            let letter = if tampered.as_bytes()[index] == b'A' { "B" } else { "A" };
            tampered.replace_range(index..=index, letter);
            app.refuse_query(&with_cursor(list, &tampered), &["?cursor"]).await;
        }
        for cursor in [&cursor[1..], &cursor[..cursor.len() - 1], &format!("{cursor}="), "null", "", &"A".repeat(10_240)] {
            app.refuse_query(&with_cursor(list, cursor), &["?cursor"]).await;
        }
    }

    async fn a_walk_under_writes_meets_each_row_that_stays_once(database) {
        let app = database.app().await;
        app.register("a").await;
        app.register("b").await;
        let (mut staying, mut going) = (Vec::new(), Vec::new());
        for number in 0..60 {
            // In the order of time, so that rows come, go and change before, at and after the page.
            app.set_now(app.now() + MICROSECOND * 1000);
            let created = app.subscribe("u", &["a"], "2026-01-01T00:00:00Z", None).await;
            if number % 3 == 0 { going.push(created) } else { staying.push(created) }
        }
        let (mut walked, mut path, mut step) = (Vec::new(), "/v1/subscriptions?limit=3".to_owned(), 0_usize);
        going.reverse();
        loop {
            let write = async {
                app.set_now(app.now() + MICROSECOND * 1000);
                // Ahead of the page and behind it, in turns.
                let gone = if step % 2 == 0 { going.pop() } else { going.first().cloned() };
                going.retain(|one| Some(one) != gone.as_ref());
                if let Some(gone) = gone {
                    assert_eq!(app.call("DELETE", &path_of(&gone)).await.status, 204);
                }
                app.subscribe("u", &["b"], "2026-01-01T00:00:00Z", None).await;
                let changed = &staying[step * 7 % staying.len()];
                app.call_with("PATCH", &path_of(changed), &json!({"scopes": [if step % 2 == 0 { "a" } else { "b" }]})).await.expect(200);
            };
            let (page, ()) = tokio::join!(app.call("GET", &path), write);
            let page = page.expect(200);
            walked.extend(page["items"].as_array().expect("items").iter().cloned());
            step += 1;
            assert!(step < 100, "the walk ends");
            // The rows that each step adds come last; the walk ends when it has met the last one that stays.
            let Some(cursor) = page["nextCursor"].as_str() else { break };
            if ids(&walked).contains(&ids(&staying)[staying.len() - 1]) {
                break;
            }
            path = with_cursor("/v1/subscriptions?limit=3", cursor);
        }
        let walked = ids(&walked);
        assert!(walked.is_sorted_by(|one, other| one < other), "ascending, none twice");
        let met: Vec<_> = walked.iter().filter(|id| ids(&staying).contains(id)).copied().collect();
        assert_eq!(met, ids(&staying));
        assert!(going.len() < 15, "rows went meanwhile");
    }

    async fn a_patch_changes_what_it_names_and_nothing_else(database) {
        let app = database.app().await;
        for name in ["email", "a", "b"] {
            app.register(name).await;
        }
        let mut expected = create(&app, &example()).await;
        let path = path_of(&expected);
        let (merge_patch, json) = ("application/merge-patch+json", "application/json");
        for (step, (media_type, patch, changes)) in [
            (json, json!({}), false),
            (merge_patch, json!({}), false),
            (json, json!({"subject": {"type": "user", "id": "u"}}), false),
            (merge_patch, json!({"scopes": ["b", "email"]}), true),
            (json, json!({"scopes": ["email", "b"]}), false),
            (merge_patch, json!({"scopes": ["a"]}), true),
            (merge_patch, json!({"validFrom": "2026-01-01T00:00:00.0000009+00:00"}), false),
            (merge_patch, json!({"validFrom": "2026-02-01T00:00:00Z"}), true),
            (json, json!({"validUntil": null}), true),
            (json, json!({"validUntil": null}), false),
            (json, json!({"validFrom": "2026-08-01T00:00:00Z", "validUntil": "2026-09-01T00:00:00.000001Z"}), true),
            (json, json!({"validFrom": "2026-01-01T00:00:00Z", "validUntil": "2026-02-01T00:00:00Z"}), true),
            // Expired by now, it may be extended.
            (merge_patch, json!({}), false),
            (merge_patch, json!({"scopes": ["a", "email"]}), true),
            (merge_patch, json!({"subject": {"id": "u", "type": "user"}, "validUntil": "2027-01-01T00:00:00Z"}), true),
        ].into_iter().enumerate() {
            app.set_now(instant(&format!("2026-06-15T12:00:{step:02}.5Z")));
            let headers = [ADMIN_CREDENTIALS, ("content-type", media_type)];
            let answer = app.send("PATCH", &path, &headers, patch.to_string()).await;
            if changes {
                expected = with(with(expected, &patch), &json!({"updatedAt": format!("2026-06-15T12:00:{step:02}.500000Z")}));
                expected["version"] = (expected["version"].as_i64().expect("a version") + 1).into();
                expected["scopes"].as_array_mut().expect("scopes").sort_by(|one, other| one.as_str().cmp(&other.as_str()));
                let until = expected["validUntil"].as_str().map(instant);
                let from = instant(expected["validFrom"].as_str().expect("a start"));
                let is_over = until.is_some_and(|until| until <= app.now());
                expected["status"] = if app.now() < from { "scheduled" } else if is_over { "expired" } else { "active" }.into();
            }
            assert_eq!(answer.expect(200), expected, "{patch}");
            assert_eq!(answer.header("etag"), Some(&*format!("\"{}\"", expected["version"])));
            assert_eq!(app.call("GET", &path).await.expect(200), expected);
            let active = expected["status"] == "active" && expected["scopes"].as_array().expect("scopes").contains(&json!("a"));
            assert_eq!(app.removed(Some("u"), "c", &["a"]).await.is_empty(), active, "{patch}");
        }
        assert_eq!(expected["version"], 9);
    }

    async fn what_cannot_be_patched_is_refused_by_name(database) {
        let app = database.app().await;
        app.register("email").await;
        let before = create(&app, &example()).await;
        let path = path_of(&before);
        let check = async |body: Value, problem, pointers: &[&str]| app.refuse("PATCH", &path, &body, problem, pointers).await;
        for (kind, id) in [("user", "U"), ("client", "u"), ("user", "u ")] {
            check(json!({"subject": {"type": kind, "id": id}}), INVALID_VALUE, &["#/subject"]).await;
        }
        check(json!({"subject": {"type": "user", "id": ""}}), INVALID_VALUE, &["#/subject/id"]).await;
        for member in ["subject", "scopes", "validFrom"] {
            check(json!({member: null}), INVALID_VALUE, &[&format!("#/{member}")]).await;
        }
        check(json!({"scopes": []}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": ["email", "email"]}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": ["a b"]}), INVALID_VALUE, &["#/scopes/0"]).await;
        check(json!({"scopes": (0..101).map(|number| number.to_string()).collect::<Vec<_>>()}), INVALID_VALUE, &["#/scopes"]).await;
        check(json!({"scopes": ["email", "z", "y"]}), (422, "unknown_scopes"), &["#/scopes", "#/scopes"]).await;
        check(json!({"validUntil": "2026-01-01T00:00:00Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validUntil": "2025-01-01T00:00:00Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validFrom": "2027-01-01T00:00:00Z"}), INVALID_VALUE, &["#/validUntil"]).await;
        check(json!({"validFrom": "tomorrow", "validUntil": ""}), INVALID_VALUE, &["#/validFrom", "#/validUntil"]).await;
        for (body, pointer) in [
            (json!({"subject": {"type": "user"}}), "#/subject/id"), (json!({"subject": {"type": "x", "id": "u"}}), "#/subject/type"),
            (json!({"subject": ["user", "u"]}), "#/subject"), (json!({"scopes": "email"}), "#/scopes"), (json!({"scopes": [1]}), "#/scopes/0"),
            (json!({"validUntil": 1_800_000_000}), "#/validUntil"), (json!({"validFrom": true}), "#/validFrom"),
            (json!({"status": "canceled"}), "#/status"), (json!({"version": 1}), "#/version"), (json!({"id": "x"}), "#/id"),
            (json!([]), "#"), (json!(null), "#"), (json!("x"), "#"),
        ] {
            check(body, INVALID_REQUEST, &[pointer]).await;
        }
        assert_eq!(app.call("GET", &path).await.expect(200), before);
        let canceled = cancel(&app, &before).await;
        for patch in [json!({"validUntil": null}), json!({"scopes": ["email"]}), json!({})] {
            check(patch, (409, "canceled"), &[]).await;
        }
        assert_eq!(app.call("GET", &path).await.expect(200), canceled);
    }

    async fn a_deleted_subscription_is_gone_from_every_answer(database) {
        let app = database.app().await;
        app.register("email").await;
        let subscription = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        let path = path_of(&subscription);
        assert!(app.removed(Some("u"), "c", &["email"]).await.is_empty());
        let deleted = app.call("DELETE", &path).await;
        assert_eq!((deleted.status.as_u16(), &*deleted.text()), (204, ""));
        assert_eq!(app.removed(Some("u"), "c", &["email"]).await, ["email"]);
        for query in ["", "?status=active", "?scope=email", "?subjectType=user&subjectId=u", "?activeAt=2026-06-15T12:00:00Z"] {
            assert_eq!(app.walk(&format!("/v1/subscriptions{query}")).await, [Value::Null; 0], "{query}");
        }
        let view = app.call("GET", "/v1/entitlements?subjectType=user&subjectId=u").await.expect(200);
        assert_eq!(view["items"], json!([{"scope": "email", "held": false, "reason": "no_subscription", "subscriptions": []}]));
        let never = "/v1/subscriptions/00000000-0000-7000-8000-000000000000";
        let no_id = ["x", "%20", "..", "'", "019", &path[18..53], &format!("{{{}}}", &path[18..]), &format!("urn:uuid:{}", &path[18..]), &path[18..].replace('-', "")];
        let paths = [path.clone(), never.to_owned()].into_iter().chain(no_id.map(|id| format!("/v1/subscriptions/{}", encoded(id))));
        for path in paths {
            for (method, path) in [("GET", path.clone()), ("DELETE", path.clone()), ("POST", format!("{path}/cancel"))] {
                app.call(method, &path).await.expect_refusal((404, "not_found"), &[], &format!("{method} {path}"));
            }
            app.refuse("PATCH", &path, &json!({"validUntil": null}), (404, "not_found"), &[]).await;
        }
    }

    async fn a_subscription_is_canceled_once_while_there_is_something_left(database) {
        let app = database.app().await;
        app.register("email").await;
        let bodies: [(&[(&str, &str)], &str); 5] = [
            (&[ADMIN_CREDENTIALS], ""), (&[ADMIN_CREDENTIALS, JSON], ""), (&[ADMIN_CREDENTIALS, ("content-type", "text/plain")], ""),
            (&[ADMIN_CREDENTIALS, JSON], "{}"), (&[ADMIN_CREDENTIALS, JSON], " {\n} "),
        ];
        for (from, until) in [
            ("2026-01-01T00:00:00Z", json!(null)), ("2026-01-01T00:00:00Z", json!("2026-06-15T12:00:00.000001Z")),
            ("2026-06-15T12:00:00.000001Z", json!(null)), ("2999-01-01T00:00:00Z", json!("2999-01-01T00:00:00.000001Z")),
        ] {
            for (headers, body) in bodies {
                let before = create(&app, &with(example(), &json!({"validFrom": from, "validUntil": until}))).await;
                let path = format!("{}/cancel", path_of(&before));
                let answer = app.send("POST", &path, headers, body).await;
                let now = "2026-06-15T12:00:00Z";
                let expected = with(before, &json!({"status": "canceled", "canceledAt": now, "version": 2}));
                assert_eq!(answer.expect(200), expected);
                assert_eq!(answer.header("etag"), Some("\"2\""));
                app.call("POST", &path).await.expect_problem(409, "already_canceled");
            }
        }
        let before = create(&app, &example()).await;
        let path = format!("{}/cancel", path_of(&before));
        for (body, pointer) in [
            (json!({"when": "2026-07-01T00:00:00Z"}), "#/when"), (json!({"reason": null}), "#/reason"), (json!([]), "#"), (json!(null), "#"),
            (json!("now"), "#"), (json!(1), "#"), (json!(true), "#"),
        ] {
            app.refuse("POST", &path, &body, INVALID_REQUEST, &[pointer]).await;
        }
        assert_eq!(app.call("GET", &path_of(&before)).await.expect(200), before);
        for (from, until) in [("2026-01-01T00:00:00Z", "2026-06-15T12:00:00Z"), ("1999-01-01T00:00:00Z", "2000-01-01T00:00:00Z")] {
            let expired = create(&app, &with(example(), &json!({"validFrom": from, "validUntil": until}))).await;
            app.call("POST", &format!("{}/cancel", path_of(&expired))).await.expect_problem(409, "expired");
            assert_eq!(app.call("GET", &path_of(&expired)).await.expect(200), expired);
        }
        app.set_now(instant("2027-01-01T00:00:00Z"));
        let canceled = app.walk("/v1/subscriptions?status=canceled").await;
        assert_eq!(canceled.len(), 20, "a canceled one does not expire");
        app.call("POST", &format!("{}/cancel", path_of(&canceled[0]))).await.expect_problem(409, "already_canceled");
    }

    async fn every_change_honours_if_match(database) {
        let app = database.app().await;
        let strict = database.app_with(Options { require_if_match: true, ..Options::default() }).await;
        // What changes a resource of version 2, how, and the status when it does.
        let operations = [
            ("PATCH", "scope", "", r#"{"description": "new"}"#, 200), ("PATCH", "scope", "", "{}", 200), ("DELETE", "scope", "", "", 204),
            ("PATCH", "subscription", "", r#"{"validUntil": null}"#, 200), ("PATCH", "subscription", "", "{}", 200),
            ("DELETE", "subscription", "", "", 204), ("POST", "subscription", "/cancel", "", 200), ("POST", "subscription", "/pause", "", 200),
            ("POST", "subscription", "/renew", r#"{"duration": "P1D"}"#, 200), ("POST", "subscription", "/resume", "", 200),
            ("POST", "subscription", "/uncancel", "", 200), ("POST", "subscription", "/restore", "", 200),
        ];
        let long = "\"1\", ".repeat(1000);
        let lines: [(&[&str], bool); 22] = [
            (&["\"2\""], true), (&["\"1\", \"2\", \"3\""], true), (&["\"1\",\"2\""], true), (&["\"1\"", "\"2\""], true), (&["*"], true),
            (&["W/\"2\", \"2\""], true), (&["\"x,y\", \"2\""], true), (&[" \"2\" "], true), (&[&long, "\"2\""], true),
            (&["\"1\""], false), (&["\"3\""], false), (&["W/\"2\""], false), (&["\"1\"", "\"3\""], false), (&["2"], false), (&["\"02\""], false),
            (&["\"+2\""], false), (&["\"\""], false), (&[""], false), (&["garbage"], false), (&["\"2"], false), (&["\"99999999999999999999\""], false),
            (&["W/\"*\""], false),
        ];
        app.register("used").await;
        let mut count = 0;
        for (method, noun, verb, body, success) in operations {
            let mut make = async || {
                count += 1;
                let path = if noun == "scope" {
                    app.register(&format!("scope{count}")).await;
                    format!("/v1/scopes/scope{count}")
                } else {
                    path_of(&app.subscribe("u", &["used"], "2026-01-01T00:00:00Z", None).await)
                };
                let change = if noun == "scope" { json!({"enforced": false}) } else { json!({"validUntil": "2999-01-01T00:00:00Z"}) };
                match verb {
                    "/resume" => app.call("POST", &format!("{path}/pause")).await,
                    "/uncancel" => app.call("POST", &format!("{path}/cancel")).await,
                    "/restore" => app.call("DELETE", &path).await,
                    _ => app.call_with("PATCH", &path, &change).await,
                };
                path
            };
            let send = async |app: &App, path: &str, lines: &[&str]| {
                let headers = [ADMIN_CREDENTIALS, JSON].into_iter().chain(lines.iter().map(|line| ("if-match", *line)));
                app.send(method, &format!("{path}{verb}"), &headers.collect::<Vec<_>>(), body).await
            };
            let is_as_before = async |path: &str| {
                if verb == "/restore" {
                    app.call("GET", path).await.expect_problem(404, "not_found");
                } else {
                    assert_eq!(app.call("GET", path).await.expect(200)["version"], 2);
                }
            };
            let mut path = make().await;
            for (lines, matches) in lines {
                for app in [&app, &strict] {
                    let answer = send(app, &path, lines).await;
                    if matches {
                        assert_eq!(answer.status, success, "{method} {noun}{verb} {body} {lines:?}: {}", answer.text());
                        path = make().await;
                    } else {
                        answer.expect_refusal((412, "version_mismatch"), &[], &format!("{method} {noun}{verb} {body} {lines:?}"));
                        is_as_before(&path).await;
                    }
                }
            }
            send(&strict, &path, &[]).await.expect_problem(428, "if_match_required");
            is_as_before(&path).await;
            assert_eq!(send(&app, &path, &[]).await.status, success);
            let nowhere = if noun == "scope" { "/v1/scopes/none" } else { "/v1/subscriptions/00000000-0000-7000-8000-000000000000" };
            for lines in [&["\"1\""][..], &["*"], &["garbage"]] {
                for app in [&app, &strict] {
                    send(app, nowhere, lines).await.expect_refusal((404, "not_found"), &[], &format!("{method} {noun} {lines:?}"));
                }
            }
        }
        let used = app.call("GET", "/v1/scopes/used").await.header("etag").expect("a tag").to_owned();
        let headers = [ADMIN_CREDENTIALS, ("if-match", &*used)];
        strict.send("DELETE", "/v1/scopes/used", &headers, "").await.expect_problem(409, "scope_in_use");
        let headers = [ADMIN_CREDENTIALS, ("if-match", "\"7\"")];
        strict.send("DELETE", "/v1/scopes/used", &headers, "").await.expect_problem(412, "version_mismatch");
    }
}
