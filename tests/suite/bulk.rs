//! Files of subscriptions: imported line by line, and exported so that they can be imported.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tollgate::http::transfer::CHUNK_LINES as CHUNK;

use crate::support::{
    ADMIN_CREDENTIALS, Answer, App, Backend, ByHand, Options, PATIENCE, eventually, on_both, only_on, path_of,
};

const IMPORT: &str = "/v1/subscriptions/import";
const EXPORT: &str = "/v1/subscriptions/export";
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const CSV: (&str, &str) = ("content-type", "text/csv");
const CHANGES: &str = "SELECT count(*) FROM change WHERE noun = 'subscription'";

fn line(id: &str, user: &str) -> Value {
    json!({
        "source": "billing", "externalId": id, "subject": {"type": "user", "id": user}, "scopes": ["email"],
        "validFrom": "2026-01-01T00:00:00Z", "validUntil": null,
    })
}

fn with(mut line: Value, member: &str, value: Value) -> Value {
    line[member] = value;
    line
}

fn file(lines: &[Value]) -> String {
    lines.iter().fold(String::new(), |mut file, line| {
        writeln!(file, "{line}").expect("written");
        file
    })
}

async fn import(app: &App, format: (&str, &str), query: &str, body: impl Into<bytes::Bytes>) -> Answer {
    app.send("POST", &format!("{IMPORT}{query}"), &[ADMIN_CREDENTIALS, format], body).await
}

/// The counts of a report: created, changed, unchanged, outdated and refused.
fn counts(report: &Value) -> [i64; 5] {
    ["created", "changed", "unchanged", "outdated", "refused"].map(|name| report[name].as_i64().expect("a count"))
}

fn problems(report: &Value) -> Vec<(i64, String, Vec<String>)> {
    let problems = report["problems"].as_array().expect("problems").iter().map(|problem| {
        let pointers = problem["problem"]["errors"].as_array().into_iter().flatten();
        let pointers = pointers.map(|error| error["pointer"].as_str().expect("a pointer").to_owned()).collect();
        let code = problem["problem"]["code"].as_str().expect("a code").to_owned();
        (problem["line"].as_i64().expect("a line"), code, pointers)
    });
    problems.collect()
}

/// What a list shows of each, but for what differs from database to database.
fn told(items: Vec<Value>) -> Vec<Value> {
    let mut items: Vec<_> = items
        .into_iter()
        .map(|mut item| {
            let item = item.as_object_mut().expect("an object");
            for member in ["id", "createdAt", "updatedAt", "version"] {
                item.remove(member);
            }
            Value::Object(item.clone())
        })
        .collect();
    items.sort_by_key(|item| item["externalId"].to_string());
    items
}

on_both! {
    async fn a_file_is_imported_line_by_line_and_again_without_harm(database) {
        let app = database.app().await;
        app.register("email").await;
        assert_eq!(app.removed(Some("u0"), "c", &["email"]).await, ["email"]);
        // More than a chunk, so that there is a next one.
        let lines: Vec<_> = (0..2_500).map(|number| line(&number.to_string(), &format!("u{number}"))).collect();
        let report = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!((counts(&report), &report["complete"], &report["dryRun"]), ([2_500, 0, 0, 0, 0], &json!(true), &json!(false)));
        assert_eq!(report["lines"], 2_500);
        // The hooks know it by the answer, though they had just said otherwise.
        for user in ["u0", "u999", "u1000", "u2499"] {
            assert!(app.removed(Some(user), "c", &["email"]).await.is_empty(), "{user}");
        }
        let by_hand = ByHand::open(&database.url).await;
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 2_500);
        let again = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!(counts(&again), [0, 0, 2_500, 0, 0]);
        assert_eq!(by_hand.ask::<i64>(CHANGES).await, 2_500, "what is there already is left");
        let found = app.call("GET", "/v1/subscriptions/by-external-id?source=billing&externalId=7").await.expect(200);
        let history = app.walk(&format!("{}/history", path_of(&found))).await;
        assert_eq!((&history[0]["action"], &history[0]["subscription"]["after"]), (&json!("put"), &found));
        assert_eq!((history.len(), history[0]["subscription"].get("before")), (1, None));
    }

    async fn what_is_new_and_what_is_known_may_come_in_any_order(database) {
        let app = database.app().await;
        app.register("email").await;
        // What is known, said twice or wrong stands in some of the chunks, and one of which all is new before most of
        // them: then the next one is taken to be so, too.
        let mut lines: Vec<Value> = (0..CHUNK * 15)
            .map(|number| with(line(&number.to_string(), &format!("u{number}")), "sourceVersion", json!(1)))
            .collect();
        let newer = |of: usize, version: i64| {
            let line = with(line(&of.to_string(), &format!("u{of}")), "sourceVersion", json!(version));
            with(line, "validUntil", json!(format!("20{}-01-01T00:00:00Z", 30 + version)))
        };
        lines[CHUNK * 2 + 100] = newer(CHUNK * 2 + 50, 2);
        lines[CHUNK * 2 + 150] = newer(CHUNK * 2 + 50, 4);
        lines[CHUNK * 2 + 200] = newer(CHUNK * 2 + 50, 3);
        lines[CHUNK * 4] = newer(7, 2);
        lines[CHUNK * 4 + 1] = newer(7, 1);
        lines[CHUNK * 5 + 1] = newer(7, 3);
        lines[CHUNK * 5 + 2] = newer(CHUNK * 5 + 3, 2);
        lines[CHUNK * 7] = with(lines[CHUNK * 7].clone(), "scopes", json!(["never-registered"]));
        lines[CHUNK * 8 + 9] = newer(CHUNK * 2 + 50, 5);
        lines[CHUNK * 8 + 10] = with(newer(CHUNK * 8 + 11, 2), "scopes", json!(["never-registered"]));

        // Were it new it would end before it begins, for what says no start begins now.
        let mut ended = with(newer(8, 2), "validUntil", json!("2026-01-02T00:00:00Z"));
        ended.as_object_mut().expect("an object").remove("validFrom");
        lines[CHUNK * 10 + 20] = ended;
        lines[CHUNK * 12 + 9] = with(lines[CHUNK * 12 + 8].clone(), "scopes", json!(["never-registered"]));
        lines[CHUNK * 12 + 10] = newer(CHUNK * 12 + 8, 2);
        lines[CHUNK * 14 + 3] = with(lines[CHUNK * 14 + 3].clone(), "validUntil", json!("2025-01-01T00:00:00Z"));

        let is_wrong =
            |line: &Value| line["scopes"] != json!(["email"]) || line["validUntil"] == "2025-01-01T00:00:00Z";
        let mut kept: BTreeMap<String, &Value> = BTreeMap::new();
        let [mut created, mut changed, mut outdated, mut refused] = [0; 4];
        for line in &lines {
            let name = line["externalId"].to_string();
            let version = |line: &Value| line["sourceVersion"].as_i64();
            let count = if is_wrong(line) {
                &mut refused
            } else if kept.get(&name).is_none_or(|there| version(there) < version(line)) {
                if kept.insert(name, line).is_none() { &mut created } else { &mut changed }
            } else {
                &mut outdated
            };
            *count += 1;
        }
        assert_eq!((changed, outdated, refused), (7, 3, 4));
        // Against what is recorded, which no line changes: the one that ends what is known by then has no start.
        let tried = import(&app, NDJSON, "?dryRun=true", file(&lines)).await.expect(200);
        assert_eq!((&tried["refused"], app.walk("/v1/subscriptions").await.len()), (&json!(refused + 1), 0), "{tried}");
        let report = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!(counts(&report), [created, changed, 0, outdated, refused], "{report}");
        let there = told(app.walk("/v1/subscriptions").await);
        assert_eq!(there.len(), kept.len());
        for (there, line) in there.iter().zip(kept.values()) {
            for name in ["externalId", "sourceVersion", "subject", "validUntil"] {
                assert_eq!(there[name], line[name], "{line}");
            }
        }
        let again = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!(counts(&again), [0, 0, 0, i64::try_from(lines.len()).expect("few") - 4, 4], "{again}");
    }

    async fn every_member_of_a_line_is_kept_in_either_format_and_comes_out_again(database) {
        let app = database.app().await;
        for name in ["email", "phone"] {
            app.register(name).await;
        }
        let full = json!({
            "source": "billing", "externalId": "a,\"b\"\n🎫", "sourceVersion": 7, "subject": {"type": "client", "id": "c, \"d\""},
            "scopes": ["email", "phone"], "validFrom": "2026-01-01T00:00:00.000001Z", "validUntil": "2026-08-01T00:00:00Z",
            "graceUntil": "2026-08-08T00:00:00Z", "pausedFrom": "2026-07-01T00:00:00Z", "pausedUntil": "2026-07-02T00:00:00Z",
            "canceledAt": "2026-08-04T00:00:00Z",
        });
        let lines = [full.clone(), line("plain", "u"), with(line("open", "v"), "pausedFrom", json!("2026-05-01T00:00:00Z"))];
        let report = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!(counts(&report), [3, 0, 0, 0, 0], "{report}");
        let there = told(app.walk("/v1/subscriptions").await);
        for (name, value) in full.as_object().expect("an object") {
            assert_eq!(there[0][name], *value, "{name}");
        }
        for (format, media) in [("ndjson", NDJSON), ("csv", CSV)] {
            let exported = app.call("GET", &format!("{EXPORT}?format={format}")).await;
            assert_eq!(exported.header("content-type"), Some(media.1));
            let exported = exported.text();
            let again = import(&app, media, "", exported.clone()).await.expect(200);
            assert_eq!(counts(&again)[2] + counts(&again)[3], 3, "{format}: {again}\n{exported}");
            // Into another database, where nothing is there yet.
            let by_hand = ByHand::open(&database.url).await;
            by_hand.run("DELETE FROM subscription_scope").await;
            by_hand.run("DELETE FROM subscription").await;
            let fresh = import(&app, media, "", exported).await.expect(200);
            assert_eq!(counts(&fresh), [3, 0, 0, 0, 0], "{format}: {fresh}");
            assert_eq!(told(app.walk("/v1/subscriptions").await), there, "{format}");
        }
    }

    async fn a_line_that_is_refused_is_told_and_the_others_are_imported(database) {
        let app = database.app().await;
        app.register("email").await;
        let taken = app.call_with("PUT", "/v1/subscriptions/by-external-id?source=billing&externalId=taken", &json!({
            "subject": {"type": "user", "id": "t"}, "scopes": ["email"], "validUntil": null, "sourceVersion": 5,
        })).await.expect(201);
        let without = |member: &str| {
            let mut line = line("x", "u");
            line.as_object_mut().expect("an object").remove(member);
            line.to_string()
        };
        let lines = [
            line("1", "a").to_string(),
            String::new(),
            "{".to_owned(),
            "[]".to_owned(),
            with(line("2", "b"), "scopes", json!(["phone", "email"])).to_string(),
            with(line("3", "b"), "validUntil", json!("2025-01-01T00:00:00Z")).to_string(),
            with(line("4", "b"), "validUntil", json!("soon")).to_string(),
            with(line("5", "b"), "unknown", json!(1)).to_string(),
            without("validUntil"),
            without("externalId"),
            without("source"),
            "  \r".to_owned(),
            with(line("taken", "t"), "sourceVersion", json!(4)).to_string(),
            line("taken", "t").to_string(),
            with(line("taken", "other"), "sourceVersion", json!(6)).to_string(),
            with(line("taken", "t"), "sourceVersion", json!(6)).to_string(),
            "x".repeat(300_000),
            with(line("1", "a"), "validUntil", json!("2027-01-01T00:00:00Z")).to_string(),
            line("6", "f").to_string() + "\r",
        ];
        for dry_run in [true, false] {
            let report = import(&app, NDJSON, &format!("?dryRun={dry_run}"), lines.join("\n")).await.expect(200);
            let expected: [(i64, &str, &[&str]); 12] = [
                (3, "invalid_json", &[]), (4, "invalid_request", &["#"]), (5, "unknown_scopes", &["#/scopes"]),
                (6, "invalid_value", &["#/validUntil"]), (7, "invalid_value", &["#/validUntil"]), (8, "invalid_request", &["#/unknown"]),
                (9, "invalid_request", &["#/validUntil"]), (10, "invalid_request", &["#/externalId"]), (11, "invalid_request", &["#/source"]),
                (14, "invalid_value", &["#/sourceVersion"]), (15, "invalid_value", &["#/subject"]), (17, "line_too_long", &[]),
            ];
            let expected: Vec<_> = expected.into_iter()
                .map(|(line, code, pointers)| (line, code.to_owned(), pointers.iter().map(|pointer| (*pointer).to_owned()).collect::<Vec<_>>()))
                .collect();
            assert_eq!(problems(&report), expected, "{report}");
            assert_eq!((counts(&report), &report["lines"], &report["complete"]), (if dry_run && database.backend == Backend::Postgres { [3, 1, 0, 1, 12] } else { [2, 2, 0, 1, 12] }, &json!(17), &json!(true)), "{report}");
            assert_eq!(report["dryRun"], dry_run);
            if dry_run {
                assert_eq!(app.walk("/v1/subscriptions").await, std::slice::from_ref(&taken), "nothing is kept of it");
                assert_eq!(app.removed(Some("a"), "c", &["email"]).await, ["email"]);
            }
        }
        assert_eq!(app.walk("/v1/subscriptions").await.len(), 3);
        let first = app.call("GET", "/v1/subscriptions/by-external-id?source=billing&externalId=1").await.expect(200);
        assert_eq!((&first["validUntil"], &first["version"]), (&json!("2027-01-01T00:00:00Z"), &json!(2)), "the later line of a file counts");
    }

    async fn a_file_that_is_wrong_as_a_whole_ends_early(database) {
        let app = database.app().await;
        app.register("email").await;
        let wrong: Vec<_> = (0..3_000).map(|number| with(line(&number.to_string(), "u"), "scopes", json!(["phone"]))).collect();
        let report = import(&app, NDJSON, "", file(&wrong)).await.expect(200);
        assert_eq!((&report["complete"], report["problems"].as_array().expect("problems").len()), (&json!(false), 1_000));
        assert!(report["lines"].as_i64().expect("a count") < 3_000);
        for (csv, code) in [
            ("source,externalId\n", "invalid_file"), ("subjectType,subjectId,scopes,validUntil,nonsense\n", "invalid_file"),
            ("subjectType,subjectId,scopes,validUntil,scopes\n", "invalid_file"), ("\u{0}", "invalid_file"),
        ] {
            import(&app, CSV, "", csv).await.expect_problem(400, code);
        }
        for (headers, body) in [(&[("content-type", "application/json")][..], "{}"), (&[], "{}"), (&[NDJSON, ("content-encoding", "gzip")], "{}")] {
            let answer = app.send("POST", IMPORT, &[headers, &[ADMIN_CREDENTIALS]].concat(), body).await;
            answer.expect_problem(415, "unsupported_media_type");
        }
        let keyed = app.send("POST", IMPORT, &[ADMIN_CREDENTIALS, NDJSON, ("idempotency-key", "k")], "").await;
        keyed.expect_refusal((400, "invalid_request"), &["idempotency-key"], "a key");
        import(&app, NDJSON, "?dryRun=yes", "").await.expect_refusal((400, "invalid_request"), &["?dryRun"], "dry run");
        // An empty file is one.
        for format in [NDJSON, CSV] {
            assert_eq!(import(&app, format, "", "").await.expect(200)["lines"], 0);
        }
        assert!(app.walk("/v1/subscriptions").await.is_empty());
    }

    async fn a_record_of_comma_separated_values_that_is_refused_is_told(database) {
        let app = database.app().await;
        app.register("email").await;
        let csv = "\
            scopes,subjectType,subjectId,validUntil,source,externalId,sourceVersion\n\
            email,user,a,never,billing,1,1\n\
            email,group,a,never,billing,2,1\n\
            email,user,a,never,billing,3,one\n\
            email,user,a,never,billing\n\
            email,user,\"a\n b\",2027-01-01T00:00:00Z,billing,4,\n\
            email  email,user,a,never,billing,5,\n\
            ,user,a,never,billing,6,\n\
            email,user,,never,billing,7,\n\
            email,user,a,,billing,8,\n\
            email,user,z,2027-01-01T00:00:00+02:00,billing,9,\n";
        let report = import(&app, CSV, "", csv).await.expect(200);
        let refused: Vec<_> = problems(&report).into_iter().map(|(line, _, pointers)| (line, pointers.join(" "))).collect();
        let expected = [
            (3, "#/subjectType"), (4, "#/sourceVersion"), (5, "#"), (8, "#/scopes"), (9, "#/scopes"), (10, "#/subject/id"), (11, "#/validUntil"),
        ];
        assert_eq!(refused, expected.map(|(line, pointer)| (line, pointer.to_owned())), "{report}");
        assert_eq!(counts(&report), [3, 0, 0, 0, 7]);
        let open = "scopes,subjectType,subjectId,validUntil,source,externalId\nemail,user,\"".to_owned() + &"a".repeat(2_000_000);
        import(&app, CSV, "", open).await.expect_problem(400, "invalid_file");
        // What is no UTF-8 is refused where it stands.
        let mut bytes = b"scopes,subjectType,subjectId,validUntil,source,externalId\nemail,user,\xff,never,billing,9\n".to_vec();
        bytes.extend_from_slice(b"email,user,b,never,billing,10\n");
        let report = import(&app, CSV, "", bytes).await.expect(200);
        assert_eq!((counts(&report), problems(&report)[0].0), ([1, 0, 0, 0, 1], 2), "{report}");
    }

    async fn what_was_exported_without_an_external_id_is_found_again_by_its_id(database) {
        let app = database.app().await;
        app.register("email").await;
        let created = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        let exported = app.call("GET", EXPORT).await.text();
        assert_eq!(counts(&import(&app, NDJSON, "", exported.clone()).await.expect(200)), [0, 0, 1, 0, 0]);
        app.call_with("PATCH", &path_of(&created), &json!({"validUntil": "2027-01-01T00:00:00Z"})).await.expect(200);
        assert_eq!(counts(&import(&app, NDJSON, "", exported.clone()).await.expect(200)), [0, 0, 0, 1, 0], "what was changed since is newer");
        let without = exported.replace("\"version\":1,", "");
        assert_ne!(without, exported);
        assert_eq!(counts(&import(&app, NDJSON, "", without).await.expect(200)), [0, 1, 0, 0, 0]);
        let back = app.call("GET", &path_of(&created)).await.expect(200);
        assert_eq!((&back["validUntil"], &back["version"]), (&Value::Null, &json!(3)));
        // Nor does an old file bring back what was deleted.
        app.call("DELETE", &path_of(&created)).await;
        assert_eq!(counts(&import(&app, NDJSON, "", exported.clone()).await.expect(200)), [0, 0, 0, 1, 0]);
        assert_eq!(app.removed(Some("u"), "c", &["email"]).await, ["email"]);
        let other = exported.replace(created["id"].as_str().expect("an id"), "018f0000-0000-7000-8000-00000000abcd");
        assert_eq!(counts(&import(&app, NDJSON, "", other).await.expect(200)), [1, 0, 0, 0, 0]);
        app.call("GET", "/v1/subscriptions/018f0000-0000-7000-8000-00000000abcd").await.expect(200);
        let wrong = exported.replace(created["id"].as_str().expect("an id"), "x");
        assert_eq!(problems(&import(&app, NDJSON, "", wrong).await.expect(200))[0].2, ["#/id"]);
    }

    async fn what_is_named_in_two_ways_is_one(database) {
        let app = database.app().await;
        app.register("email").await;
        let first = with(line("k", "u"), "validUntil", json!("2030-01-01T00:00:00Z"));
        import(&app, NDJSON, "", file(std::slice::from_ref(&first))).await.expect(200);
        let there = app.call("GET", "/v1/subscriptions/by-external-id?source=billing&externalId=k").await.expect(200);
        let changed = with(first.clone(), "validUntil", json!("2031-01-01T00:00:00Z"));
        let mut back = with(first, "id", there["id"].clone());
        for member in ["source", "externalId"] {
            back.as_object_mut().expect("an object").remove(member);
        }
        let report = import(&app, NDJSON, "", file(&[changed, back])).await.expect(200);
        assert_eq!(counts(&report), [0, 2, 0, 0, 0], "{report}");
        let now = app.call("GET", &path_of(&there)).await.expect(200);
        assert_eq!((&now["validUntil"], &now["externalId"]), (&json!("2030-01-01T00:00:00Z"), &json!("k")));
    }

    async fn an_export_holds_each_subscription_once_whatever_the_number_of_pages(database) {
        let app = database.app().await;
        app.register("email").await;
        let lines: Vec<_> = (0..2_000).map(|number| line(&number.to_string(), "u")).collect();
        import(&app, NDJSON, "", file(&lines)).await.expect(200);
        let gone = app.subscribe("gone", &["email"], "2026-01-01T00:00:00Z", None).await;
        app.call("DELETE", &path_of(&gone)).await;
        app.subscribe("other", &["email"], "2026-01-01T00:00:00Z", None).await;
        for (query, count) in [("", 2_001), ("?source=billing", 2_000), ("?source=crm", 0)] {
            let exported = app.call("GET", &format!("{EXPORT}{query}")).await.text();
            let ids: Vec<_> = exported.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].to_string()).collect();
            assert!(ids.is_sorted() && ids.len() == count && ids.iter().collect::<std::collections::BTreeSet<_>>().len() == count, "{query}: {}", ids.len());
        }
        let csv = app.call("GET", &format!("{EXPORT}?format=csv")).await.text();
        assert_eq!(csv.lines().count(), 2_002);
        app.refuse_query(&format!("{EXPORT}?format=xml"), &["?format"]).await;
        let empty = app.call("GET", &format!("{EXPORT}?format=csv&source=crm")).await.text();
        assert_eq!(empty.lines().count(), 1, "the names of the columns");
    }

    async fn while_a_file_is_waited_for_others_write_and_nothing_is_left_open(database) {
        let app = database.app().await;
        app.register("email").await;
        let lines: Vec<_> = (0..500).map(|number| line(&number.to_string(), &format!("u{number}"))).collect();
        let whole = file(&lines);
        let (name, value) = ADMIN_CREDENTIALS;
        let head = format!(
            "POST {IMPORT} HTTP/1.1\r\nhost: tollgate\r\n{name}: {value}\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
            NDJSON.1,
            2 * whole.len() + 1,
        );
        let mut stream = TcpStream::connect(app.address).await.expect("a connection");
        let hand = ByHand::open(&database.url).await;
        // The second time there is nothing to write, so that what was read last is what might be left.
        for part in [head + &whole, whole] {
            stream.write_all(part.as_bytes()).await.expect("sent");
            eventually!("the lines were imported", PATIENCE, {
                hand.ask::<i64>("SELECT count(*) FROM subscription WHERE source = 'billing'").await == 500
            });
            for number in 0..3 {
                app.subscribe(&format!("other{number}"), &["email"], "2026-01-01T00:00:00Z", None).await;
            }
            if database.backend == Backend::Postgres {
                eventually!("no session is left in a transaction", PATIENCE, {
                    hand.ask::<i64>(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL
                        AND pid <> pg_backend_pid()",
                    ).await == 0
                });
            }
        }
        stream.write_all(b"\n").await.expect("sent");
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.contains("\"created\":500") && answer.contains("\"unchanged\":500"), "{answer}");
    }

    async fn one_import_goes_on_at_a_time(database) {
        let app = database.app_with(Options::default()).await;
        app.register("email").await;
        let origin = tollgate::service::Origin { actor: "test".to_owned(), request_id: "r".to_owned(), idempotency: None };
        let first = app.service.begin_import(origin, false).expect("begun");
        let answer = import(&app, NDJSON, "", file(&[line("1", "u")])).await;
        answer.expect_problem(503, "import_under_way");
        assert_eq!(answer.header("retry-after"), Some("1"));
        drop(first);
        import(&app, NDJSON, "", file(&[line("1", "u")])).await.expect(200);
    }
}

only_on! { Postgres:
    async fn what_somebody_is_at_does_not_end_an_import(database) {
        let app = database.app().await;
        app.register("email").await;
        let known = with(line("k", "u"), "sourceVersion", json!(1));
        import(&app, NDJSON, "", file(std::slice::from_ref(&known))).await.expect(200);
        let by_hand = ByHand::open(&database.url).await;
        by_hand.run("BEGIN; UPDATE subscription SET updated_at = updated_at WHERE external_id = 'k'").await;
        // In a chunk that is taken to be new, for the one before was.
        let mut lines: Vec<_> = (0..CHUNK * 2).map(|number| line(&number.to_string(), "v")).collect();
        lines[CHUNK + 7] = known;
        let report = import(&app, NDJSON, "", file(&lines)).await.expect(200);
        assert_eq!(counts(&report), [i64::try_from(CHUNK * 2).expect("few") - 1, 0, 0, 1, 0], "{report}");
        by_hand.run("ROLLBACK").await;
    }

    async fn what_a_file_says_once_more_is_known_from_the_answer_on(database) {
        let app = database.app().await;
        app.register("email").await;
        // Whoever wrote it may have got no answer, and told nobody.
        for (user, version, expected) in [("u", None, [0, 0, 1, 0, 0]), ("v", Some(7), [0, 0, 0, 1, 0])] {
            let ended = json!("2026-02-01T00:00:00Z");
            let open = line(user, user);
            let open = version.map_or(open.clone(), |version| with(open, "sourceVersion", json!(version)));
            let report = import(&app, NDJSON, "", file(&[with(open.clone(), "validUntil", ended)])).await.expect(200);
            assert_eq!(counts(&report), [1, 0, 0, 0, 0], "{report}");
            let removed = async || app.removed(Some(user), "c", &["email"]).await;
            assert_eq!(removed().await, ["email"]);
            let hand = ByHand::open(&database.url).await;
            let undo = format!("UPDATE subscription SET valid_until = NULL WHERE subject_id = '{user}'");
            assert_eq!(hand.run(&undo).await, 1);
            assert_eq!(removed().await, ["email"], "what was not told is cached");
            let report = import(&app, NDJSON, "", file(&[open])).await.expect(200);
            assert_eq!(counts(&report), expected, "{report}");
            assert!(removed().await.is_empty());
        }
    }
}
