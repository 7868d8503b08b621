//! Bad input over HTTP, on the hooks and on the management API: whatever comes is answered with a problem that repeats
//! nothing of it, or ends the connection.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use serde_json::{Value, json};
use tollgate::http::auth::ManagementAuth;

use crate::support::{
    ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, HOOK_CREDENTIALS, JSON, MICROSECOND, Options, TOKEN, encoded,
    on_both, path_of,
};

/// What stands in values that are wrong, and must stand in no answer.
const SECRET: &str = "hunter2";
/// An id that no subscription has.
const NOBODY: &str = "/v1/subscriptions/00000000-0000-7000-8000-000000000000";
/// An id that no token has.
const NO_TOKEN: &str = "/v1/tokens/00000000-0000-7000-8000-000000000000";
/// The largest body of a hook request.
const HOOK_LIMIT: usize = 256 * 1024;
/// The largest body of a management request.
const API_LIMIT: usize = 1024 * 1024;

/// An operation with a body: its method, its path, a body that it takes, cut where a string belongs.
struct WithBody {
    method: &'static str,
    path: String,
    before: &'static str,
    after: &'static str,
    is_hook: bool,
    /// Whether it takes no body at all.
    is_optional: bool,
}

impl WithBody {
    /// All of them, on a subscription and a scope of their own.
    async fn all(app: &App) -> Vec<Self> {
        app.register("email").await;
        let subscription = path_of(&app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await);
        let new = |method, path: &str, before, after| Self {
            method,
            path: path.to_owned(),
            before,
            after,
            is_hook: path == ACCESS_TOKEN || path == TOKEN,
            is_optional: ["/cancel", "/pause", "/resume"].iter().any(|verb| path.ends_with(verb)),
        };
        vec![
            new("POST", ACCESS_TOKEN, r#"{"user":{"id":"#, r#"},"client":{"id":"c"},"scopes":[]}"#),
            new("POST", TOKEN, r#"{"client":{"id":"#, r#"},"scopes":[]}"#),
            new("POST", TOKEN, r#"{"client":{"id":"c"},"scopes":["a","#, "]}"),
            new("POST", "/v1/scopes", r#"{"description":"x","name":"#, "}"),
            new("PATCH", "/v1/scopes/email", r#"{"requires":"any","name":"#, "}"),
            new(
                "POST",
                "/v1/subscriptions",
                r#"{"subject":{"type":"user","id":"#,
                r#"},"scopes":["email"],"validUntil":null}"#,
            ),
            new(
                "POST",
                "/v1/subscriptions",
                r#"{"subject":{"type":"user","id":"u"},"scopes":["email","#,
                r#"],"validUntil":null}"#,
            ),
            new("PATCH", &subscription, r#"{"scopes":["email"],"validFrom":"#, "}"),
            new("POST", &format!("{subscription}/cancel"), "{", "}"),
            new("POST", &format!("{subscription}/pause"), r#"{"until":"#, "}"),
            new("POST", &format!("{subscription}/renew"), r#"{"duration":"#, "}"),
            new("POST", &format!("{subscription}/resume"), "{", "}"),
            new("POST", "/v1/tokens", r#"{"role":"reader","expiresAt":null,"name":"#, "}"),
            new("POST", "/v1/explain", r#"{"request":{"client":{"id":"c"},"scopes":["a","#, "]}}"),
        ]
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    async fn send(&self, app: &App, body: Vec<u8>) -> Answer {
        let credentials = if self.is_hook { HOOK_CREDENTIALS } else { ADMIN_CREDENTIALS };
        app.send(self.method, &self.path, &[credentials, JSON], body).await
    }

    /// Sends a body that cannot be taken.
    async fn refuse(&self, app: &App, body: Vec<u8>) -> Answer {
        let sent = format!("{}: {:?}", self.name(), String::from_utf8_lossy(&body[..body.len().min(200)]));
        let answer = self.send(app, body).await;
        assert_eq!(answer.status, 400, "{sent}: {}", answer.text());
        let code = serde_json::from_slice::<Value>(&answer.body).expect("JSON")["code"].clone();
        assert!(code == "invalid_json" || code == "invalid_request", "{sent}: {code}");
        answer.expect_problem(400, code.as_str().expect("a code"));
        assert!(!answer.text().contains(SECRET), "{sent}: {}", answer.text());
        answer
    }
}

/// The operations of the management API with the methods that their paths take.
fn paths() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("/v1/scopes", &["GET", "HEAD", "POST"]),
        ("/v1/scopes/email", &["DELETE", "GET", "HEAD", "PATCH"]),
        ("/v1/subscriptions", &["GET", "HEAD", "POST"]),
        (NOBODY, &["DELETE", "GET", "HEAD", "PATCH"]),
        ("/v1/subscriptions/x/cancel", &["POST"]),
        ("/v1/subscriptions/x/uncancel", &["POST"]),
        ("/v1/subscriptions/x/pause", &["POST"]),
        ("/v1/subscriptions/x/resume", &["POST"]),
        ("/v1/subscriptions/x/renew", &["POST"]),
        ("/v1/subscriptions/x/restore", &["POST"]),
        ("/v1/subscriptions/x/history", &["GET", "HEAD"]),
        ("/v1/subscriptions/by-external-id", &["GET", "HEAD", "PUT"]),
        ("/v1/subscriptions/batch", &["POST"]),
        ("/v1/subscriptions/import", &["POST"]),
        ("/v1/subscriptions/export", &["GET", "HEAD"]),
        ("/v1/changes", &["GET", "HEAD"]),
        ("/v1/entitlements", &["GET", "HEAD"]),
        ("/v1/explain", &["POST"]),
        ("/v1/tokens", &["GET", "HEAD", "POST"]),
        ("/v1/tokens/x", &["GET", "HEAD"]),
        ("/v1/tokens/x/revoke", &["POST"]),
        (ACCESS_TOKEN, &["POST"]),
        (TOKEN, &["POST"]),
        ("/docs", &["GET", "HEAD"]),
        ("/openapi/hooks.yaml", &["GET", "HEAD"]),
    ]
}

/// The head of a request.
fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n")
}

on_both! {
    async fn a_body_that_is_not_json_is_a_400_that_repeats_nothing(database) {
        let app = database.app().await;
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
        let strings: Vec<Vec<u8>> = [
            "hunter2", "'hunter2'", "\"hunter2", "\"hunter2\\q\"", "\"hunter2\\ud800\"", "\"hunter2\\udc00\\ud800\"", "\"hunter2\\u00\"",
            "\"hunter2\n\"", "\"hunter2\u{0}\"", "\"hunter2\u{1f}\"", "1e400", "-1e400", "01", "1.", "-", "+1", "NaN", "Infinity", "0x1",
            "True", "nul", "undefined", "", "/* hunter2 */ \"x\"", "\"x\" // hunter2", "\"x\",", "\"x\" \"hunter2\"", "\"x\"}", "\u{feff}\"x\"",
            &deep("[", "]"), &deep("{\"x\":", "}"), &"[".repeat(10_000),
        ].map(|text| text.as_bytes().to_vec()).into_iter().chain([
            b"\"hunter2\xff\"".to_vec(), b"\"hunter2\xed\xa0\x80\"".to_vec(), b"\"hunter2\xc0\x80\"".to_vec(), b"\"hunter2\xf0\x9f\"".to_vec(),
        ]).collect();
        for operation in WithBody::all(&app).await {
            let before = app.walk("/v1/scopes").await.into_iter().chain(app.walk("/v1/subscriptions").await).collect::<Vec<_>>();
            // Nothing at all is an empty object where the string would be the only thing.
            for string in strings.iter().filter(|string| !string.is_empty() || operation.before != "{") {
                operation.refuse(&app, [operation.before.as_bytes(), string, operation.after.as_bytes()].concat()).await;
            }
            // What a member holds is checked as closely where no type of ours reads it.
            let id = if operation.before == "{" { "" } else { "\"c\"" };
            let whole = format!("{}{id}{}", operation.before, operation.after);
            for (prefix, suffix) in [
                ("\u{feff}", ""), ("", " hunter2"), ("", "{}"), ("", "\u{0}"), ("", "]"), ("hunter2", ""), ("[", "]"), ("\u{b}", ""), ("\u{a0}", ""),
            ] {
                operation.refuse(&app, format!("{prefix}{whole}{suffix}").into_bytes()).await;
            }
            for end in 0..whole.len() {
                // An absent body may cancel, or pause.
                if end > 0 || !operation.is_optional {
                    operation.refuse(&app, whole.as_bytes()[..end].to_vec()).await;
                }
            }
            for whole in ["null", "true", "1", "\"hunter2\"", "[\"hunter2\"]", "[]", " ", "[{}]"] {
                operation.refuse(&app, whole.as_bytes().to_vec()).await;
            }
            for utf_16 in [b"\xff\xfe{\0}\0".to_vec(), b"\0{\0}".to_vec()] {
                operation.refuse(&app, utf_16).await;
            }
            let after = app.walk("/v1/scopes").await.into_iter().chain(app.walk("/v1/subscriptions").await).collect::<Vec<_>>();
            assert_eq!(after, before, "{}", operation.name());
        }
    }

    async fn a_value_of_another_type_is_named_and_not_repeated(database) {
        let app = database.app().await;
        let pointers = ["#/user/id", "#/client/id", "#/scopes/1", "#/name", "#/name", "#/subject/id", "#/scopes/1", "#/validFrom"];
        let values = [
            "12", "-0.5", "1e4", "true", "[\"hunter2\"]", "{\"hunter2\":\"hunter2\"}", "{}", "[]", "18446744073709551616",
            // What looks like one of our own words.
            "[\"hunter2`hunter2`, expected hunter2 at line 1\"]",
        ];
        for (operation, pointer) in WithBody::all(&app).await.into_iter().zip(pointers) {
            for value in values {
                let answer = operation.refuse(&app, format!("{}{value}{}", operation.before, operation.after).into_bytes()).await;
                assert_eq!(answer.pointers(), [pointer], "{} {value}", operation.name());
            }
            let answer = operation.send(&app, format!("{}null{}", operation.before, operation.after).into_bytes()).await;
            // In a merge patch null is understood: it takes away what cannot be.
            let expected = if operation.method == "PATCH" { (422, "invalid_value") } else { (400, "invalid_request") };
            answer.expect_refusal(expected, &[pointer], &operation.name());
        }
        for (body, pointer) in [
            (json!({"name": "x", "requires": SECRET}), "#/requires"),
            (json!({"name": "x", "requires": format!("{SECRET}`, expected `{SECRET}")}), "#/requires"),
            (json!({"name": "x", "enforced": SECRET}), "#/enforced"),
            (json!({"name": {"name": SECRET}}), "#/name"),
        ] {
            let answer = app.call_with("POST", "/v1/scopes", &body).await;
            answer.expect_refusal((400, "invalid_request"), &[pointer], &body.to_string());
            assert!(!answer.text().contains(SECRET), "{}", answer.text());
        }
        for (path, body) in [
            ("/v1/scopes", json!({"name": format!("{SECRET} ")})),
            ("/v1/scopes", json!({"name": "x", "description": format!("{SECRET}\u{0}")})),
            ("/v1/subscriptions", json!({"subject": {"type": "user", "id": format!("{SECRET}\u{0}")}, "scopes": ["email"], "validUntil": null})),
            ("/v1/subscriptions", json!({"subject": {"type": "user", "id": SECRET}, "scopes": ["email"], "validUntil": SECRET})),
            ("/v1/subscriptions", json!({"subject": {"type": "user", "id": SECRET}, "scopes": [format!("{SECRET}\\")], "validUntil": null})),
            ("/v1/subscriptions", json!({"subject": {"type": "user", "id": SECRET}, "scopes": ["none"], "validUntil": null})),
        ] {
            let answer = app.call_with("POST", path, &body).await;
            assert_eq!(answer.status, 422, "{body}");
            assert!(!answer.text().contains(SECRET), "{}", answer.text());
        }
        for path in [
            "/v1/scopes?limit=hunter2", "/v1/scopes?cursor=hunter2", "/v1/subscriptions?status=hunter2", "/v1/subscriptions?scope=hunter2%20",
            "/v1/subscriptions?activeAt=hunter2", "/v1/entitlements?subjectType=hunter2&subjectId=hunter2", "/v1/scopes?x=hunter2",
            "/v1/scopes/hunter2", "/v1/scopes/hunter2%ff", "/v1/subscriptions/hunter2", "/v1/hunter2", "/hunter2?hunter2",
        ] {
            let answer = app.call("GET", path).await;
            assert!(answer.status.is_client_error(), "{path}");
            assert!(!answer.text().contains(SECRET), "{path}: {}", answer.text());
        }
    }

    async fn a_member_that_is_unknown_or_repeated_is_named_and_cut(database) {
        let app = database.app().await;
        let operations = WithBody::all(&app).await;
        let long = "é".repeat(64);
        let members = [
            ("x", "x"), ("Name", "Name"), ("", ""), ("a/b~c", "a~1b~0c"), ("__proto__", "__proto__"), (&*format!("{long}{SECRET}"), &*long),
        ];
        for operation in operations.iter().filter(|operation| !operation.is_hook) {
            for (member, shown) in members {
                let rest = operation.before.strip_prefix('{').expect("an object");
                let value = if rest.is_empty() { String::new() } else { format!(",{rest}\"c\"") };
                let body = format!("{{{}:\"{SECRET}\"{value}{}", json!(member), operation.after);
                let answer = operation.refuse(&app, body.into_bytes()).await;
                assert_eq!(answer.pointers(), [format!("#/{shown}")], "{} {member}", operation.name());
                answer.expect_problem(400, "invalid_request");
            }
        }
        for (operation, body, pointer) in [
            (0, r#"{"user":{"id":"hunter2","id":"hunter2"},"client":{"id":"c"},"scopes":[]}"#, "#/user/id"),
            (0, r#"{"user":{"id":"c"},"client":{"id":"c"},"scopes":[],"user":null}"#, "#/user"),
            (1, r#"{"client":{"id":"hunter2"},"client":{"id":"c"},"scopes":[]}"#, "#/client"),
            (2, r#"{"client":{"id":"hunter2"},"scopes":[],"scopes":["hunter2"]}"#, "#/scopes"),
            (3, r#"{"name":"hunter2","name":"hunter2"}"#, "#/name"),
            (3, r#"{"name":"hunter2","enforced":true,"enforced":true}"#, "#/enforced"),
            (4, r#"{"description":"hunter2","description":null}"#, "#/description"),
            (4, r#"{"requires":null,"requires":"any"}"#, "#/requires"),
            (5, r#"{"subject":{"type":"user","id":"hunter2","type":"user"},"scopes":["email"],"validUntil":null}"#, "#/subject/type"),
            (5, r#"{"subject":{"type":"user","id":"u"},"scopes":["email"],"validUntil":null,"validUntil":"hunter2"}"#, "#/validUntil"),
            (7, r#"{"validUntil":null,"validUntil":null}"#, "#/validUntil"),
            (7, r#"{"validUntil":null,"valid\u0055ntil":null}"#, "#/validUntil"),
            (3, r#"{"name":"hunter2","subject":{"x":{"hunter2":1}}}"#, "#/subject"),
            (5, r#"{"subject":{"type":"user","id":"u","x":"hunter2"},"scopes":["email"],"validUntil":null}"#, "#/subject/x"),
            (0, r#"{"client":{"id":"c"}}"#, "#/scopes"),
            (0, r#"{"scopes":["hunter2"]}"#, "#/client"),
            (0, r#"{"client":{},"scopes":["hunter2"]}"#, "#/client/id"),
            (0, r#"{"client":null,"scopes":["hunter2"]}"#, "#/client"),
            (0, r#"{"client":["hunter2"],"scopes":["hunter2"]}"#, "#/client"),
            (0, r#"{"user":["hunter2"],"client":{"id":"c"},"scopes":[]}"#, "#/user"),
            (0, r#"{"user":{},"client":{"id":"c"},"scopes":[]}"#, "#/user/id"),
            (0, r#"{"client":{"id":"c"},"scopes":null}"#, "#/scopes"),
            (0, r#"{"client":{"id":"c"},"scopes":"hunter2"}"#, "#/scopes"),
        ] {
            let answer = operations[operation].refuse(&app, body.as_bytes().to_vec()).await;
            assert_eq!(answer.pointers(), [pointer], "{body}");
        }
        let ignored = r#"{"client":{"id":"c","x":1,"x":2},"scopes":["a"],"x":[{"x":null}],"x":1e400,"Client":null,"":{"a":"\u0000"}}"#;
        let answer = app.send("POST", TOKEN, &[HOOK_CREDENTIALS, JSON], ignored).await;
        assert_eq!(answer.expect(200), json!({"reducedScopes": ["a"]}), "hooks ignore what they do not know");
    }

    async fn a_timestamp_is_normalised_or_refused_alike_on_both_databases(database) {
        let app = database.app().await;
        app.register("email").await;
        let taken = [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01t00:00:00z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00+14:00", "2025-12-31T10:00:00Z"),
            ("2026-01-01T00:00:00-12:00", "2026-01-01T12:00:00Z"),
            ("2026-01-01T00:00:00-00:00", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00+05:45", "2025-12-31T18:15:00Z"),
            ("2026-01-01T00:00:00+23:59", "2025-12-31T00:01:00Z"),
            ("2026-01-01T00:00:00.0Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.100000Z"),
            ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.120000Z"),
            ("2026-01-01T00:00:00.123Z", "2026-01-01T00:00:00.123000Z"),
            ("2026-01-01T00:00:00.123456Z", "2026-01-01T00:00:00.123456Z"),
            ("2026-01-01T00:00:00.123456999Z", "2026-01-01T00:00:00.123456Z"),
            ("2026-01-01T00:00:00.000000999Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00.9999999999999999999Z", "2026-01-01T00:00:00.999999Z"),
            ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z"),
            ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
            ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.999999Z"),
            ("2017-01-01T00:59:60+01:00", "2016-12-31T23:59:59.999999Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("0001-01-01T00:00:00.000001-01:00", "0001-01-01T01:00:00.000001Z"),
            ("0000-12-31T23:59:59-00:01", "0001-01-01T00:00:59Z"),
            ("0999-12-31T23:59:59Z", "0999-12-31T23:59:59Z"),
            ("1582-10-10T00:00:00Z", "1582-10-10T00:00:00Z"),
            ("9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999999Z"),
            ("9999-12-31T23:59:59+00:01", "9999-12-31T23:58:59Z"),
        ];
        for (index, (sent, shown)) in taken.into_iter().enumerate() {
            // As start and as end, read back from the database, found by it, and as instant of a view.
            let user = format!("user{index}");
            let subject = json!({"type": "user", "id": user});
            let starts = json!({"subject": subject, "scopes": ["email"], "validFrom": sent, "validUntil": null});
            let created = app.call_with("POST", "/v1/subscriptions", &starts).await;
            assert_eq!(created.expect(201)["validFrom"], shown, "{sent}");
            assert_eq!(app.call("GET", &path_of(&created.expect(201))).await.expect(200), created.expect(201), "{sent}");
            if sent > "0001-01-02" {
                let ends = json!({"subject": subject, "scopes": ["email"], "validFrom": "0001-01-01T00:00:00Z", "validUntil": sent});
                let created = app.call_with("POST", "/v1/subscriptions", &ends).await;
                assert_eq!(created.expect(201)["validUntil"], shown, "{sent}");
                assert_eq!(app.call("GET", &path_of(&created.expect(201))).await.expect(200), created.expect(201), "{sent}");
                app.call("DELETE", &path_of(&created.expect(201))).await;
            }
            let held = format!("/v1/entitlements?subjectType=user&subjectId={user}&at={}", encoded(sent));
            let view = app.call("GET", &held).await.expect(200);
            assert_eq!((&view["at"], &view["items"][0]["held"]), (&json!(shown), &json!(true)), "{sent}");
            let active = format!("/v1/subscriptions?subjectType=user&subjectId={user}&activeAt={}", encoded(sent));
            assert_eq!(app.walk(&active).await, [created.expect(201)], "{sent}");
        }
        let refused = [
            "", " ", "now", "2026", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01 00:00:00Z", "2026-01-01_00:00:00Z", "2026-01-01T00:00Z",
            "2026-01-01T00:00:00 Z", " 2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z ", "2026-01-01T00:00:00ZZ", "2026-01-01T00:00:00+01",
            "2026-01-01T00:00:00+0100", "2026-01-01T00:00:00+01:00:00", "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+01:60",
            "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00,5Z", "2026-01-01T24:00:00Z", "2026-01-01T23:60:00Z", "2026-01-01T23:59:61Z",
            "2026-00-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-04-31T00:00:00Z", "2026-01-00T00:00:00Z",
            "26-01-01T00:00:00Z", "2026-1-1T00:00:00Z", "02026-01-01T00:00:00Z", "+2026-01-01T00:00:00Z", "-001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z", "0000-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01",
            "10000-01-01T00:00:00Z", "+10000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "1767225600", "2026-01-01T00:00:00\u{2212}01:00",
            "2026\u{2010}01\u{2010}01T00:00:00Z", "٢٠٢٦-01-01T00:00:00Z", "2026-01-01T00:00:00Z\u{0}", "2026-W01-1T00:00:00Z",
            "Thu, 01 Jan 2026 00:00:00 GMT", "infinity", "2026-01-01T00:00:00Europe/Paris", "2026-01-01T00:00:00[UTC]",
        ];
        let path = path_of(&app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await);
        for text in refused {
            for member in ["validFrom", "validUntil"] {
                let mut body = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null});
                body[member] = text.into();
                let pointer = format!("#/{member}");
                app.refuse("POST", "/v1/subscriptions", &body, (422, "invalid_value"), &[&pointer]).await;
                app.refuse("PATCH", &path, &json!({member: text}), (422, "invalid_value"), &[&pointer]).await;
            }
            app.refuse_query(&format!("/v1/subscriptions?activeAt={}", encoded(text)), &["?activeAt"]).await;
            app.refuse_query(&format!("/v1/entitlements?subjectType=user&subjectId=u&at={}", encoded(text)), &["?at"]).await;
        }
        for value in [json!(1_767_225_600), json!(1.5), json!(true), json!({}), json!(["2026-01-01T00:00:00Z"])] {
            for member in ["validFrom", "validUntil"] {
                let mut body = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null});
                body[member] = value.clone();
                let pointer = format!("#/{member}");
                app.refuse("POST", "/v1/subscriptions", &body, (400, "invalid_request"), &[&pointer]).await;
                app.refuse("PATCH", &path, &json!({member: value}), (400, "invalid_request"), &[&pointer]).await;
            }
        }
        let timestamps = [app.now() - MICROSECOND, app.now(), app.now() + TimeDelta::milliseconds(1)];
        for (now, shown) in timestamps.into_iter().zip(["2026-06-15T11:59:59.999999Z", "2026-06-15T12:00:00Z", "2026-06-15T12:00:00.001000Z"]) {
            app.set_now(now);
            let created = app.call_with("POST", "/v1/subscriptions", &json!({
                "subject": {"type": "user", "id": "now"}, "scopes": ["email"], "validUntil": null,
            })).await.expect(201);
            let read = app.call("GET", &path_of(&created)).await.expect(200);
            for member in ["validFrom", "createdAt", "updatedAt"] {
                assert_eq!((&created[member], &read[member]), (&json!(shown), &json!(shown)));
            }
        }
    }

    async fn a_query_holds_only_what_the_contract_lists(database) {
        let app = database.app().await;
        app.register("email").await;
        let (invalid_request, email) = ((400, "invalid_request"), "/v1/scopes/email");
        for (method, path) in [
            ("GET", "/v1/scopes"), ("POST", "/v1/scopes"), ("GET", email), ("PATCH", email), ("DELETE", email), ("GET", "/v1/subscriptions"),
            ("POST", "/v1/subscriptions"), ("GET", NOBODY), ("PATCH", NOBODY), ("DELETE", NOBODY), ("POST", &format!("{NOBODY}/cancel")),
            ("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("GET", "/v1/tokens/x"), ("POST", "/v1/tokens/x/revoke"),
        ] {
            let long = "é".repeat(64);
            for (query, pointers) in [
                ("x", &["?x"][..]), ("x=", &["?x"]), ("x=1&x=2", &["?x", "?x"]), ("LIMIT=1", &["?LIMIT"]), ("=1", &["?"]), ("limit%00=1", &["?limit\u{0}"]),
                (&*format!("{}hunter2=1", encoded(&long)), &[&*format!("?{long}")]),
                ("%ff", &["?"]), ("x=%ff", &["?"]), ("%ff=1", &["?"]), ("limit=%c3%28", &["?"]), ("x=%ed%a0%80", &["?"]),
            ] {
                let answer = app.call(method, &format!("{path}?{query}")).await;
                answer.expect_refusal(invalid_request, pointers, &format!("{method} {path}?{query}"));
            }
        }
        for (path, parameters) in [
            ("/v1/scopes", &["limit=1", "cursor=x"][..]),
            ("/v1/tokens", &["limit=1", "cursor=x"]),
            ("/v1/subscriptions", &["subjectType=user", "subjectId=u", "scope=a", "status=active", "activeAt=2026-01-01T00:00:00Z", "limit=1", "cursor=x"]),
        ] {
            for parameter in parameters {
                let name = parameter.split('=').next().expect("a name");
                app.refuse_query(&format!("{path}?{parameter}&{parameter}"), &[&format!("?{name}")]).await;
            }
        }
        for path in ["/v1/scopes?", "/v1/scopes?&", "/v1/scopes?%6cimit=1", "/v1/scopes?limit=%31"] {
            app.call("GET", path).await.expect(200);
        }
        for query in ["x=1", "x=1&x=2", "%ff"] {
            let answer = app.ask(&format!("{TOKEN}?{query}"), &json!({"client": {"id": "c"}, "scopes": []})).await;
            assert_eq!(answer.status, 200, "hooks ignore theirs");
        }
    }

    async fn a_body_of_another_media_type_is_a_415(database) {
        let app = database.app().await;
        let json_types = [
            "application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8", "APPLICATION/JSON", " application/json ",
        ];
        let merge_patch_types = ["application/merge-patch+json", "Application/Merge-Patch+JSON; charset=utf-8"];
        let other_types = [
            "", "text/plain", "application/jsonx", "application/json-patch+json", "application/vnd.api+json", "application", "json", "*/*",
            "application/*", "text/json", "application/x-www-form-urlencoded", "multipart/form-data", "application/json, text/plain", "/",
        ];
        for operation in WithBody::all(&app).await {
            let credentials = if operation.is_hook { HOOK_CREDENTIALS } else { ADMIN_CREDENTIALS };
            // Understood, and refused for what it says: so nothing changes.
            let body = format!("{}1{}", operation.before, operation.after);
            let check = async |headers: &[(&str, &str)], taken: bool| {
                let answer = app.send(operation.method, &operation.path, &[&[credentials], headers].concat(), body.clone()).await;
                if taken {
                    assert_eq!(answer.status, 400, "{} {headers:?}", operation.name());
                } else {
                    answer.expect_refusal((415, "unsupported_media_type"), &[], &format!("{} {headers:?}", operation.name()));
                }
            };
            for media_type in json_types {
                check(&[("content-type", media_type)], true).await;
                check(&[("content-type", media_type), ("content-encoding", "Identity")], true).await;
                for encoding in ["gzip", "GZIP", "br", "deflate", "zstd", "x", "identity, gzip", ""] {
                    check(&[("content-type", media_type), ("content-encoding", encoding)], false).await;
                }
            }
            for media_type in merge_patch_types {
                check(&[("content-type", media_type)], operation.method == "PATCH").await;
            }
            for media_type in other_types {
                check(&[("content-type", media_type)], false).await;
            }
            check(&[], false).await;
        }
    }

    async fn a_body_above_the_limit_is_a_413_and_the_end_of_the_connection(database) {
        let app = database.app().await;
        app.register("email").await;
        let hook = r#"{"client":{"id":"c"},"scopes":["a"]"#;
        let scope = r#"{"name":"email""#;
        for (path, credentials, limit, start, status) in [
            (TOKEN, HOOK_CREDENTIALS, HOOK_LIMIT, hook, 200), (ACCESS_TOKEN, HOOK_CREDENTIALS, HOOK_LIMIT, hook, 200),
            ("/v1/scopes", ADMIN_CREDENTIALS, API_LIMIT, scope, 409),
        ] {
            let padded = |size: usize| format!("{start}{}}}", " ".repeat(size - start.len() - 1));
            let close = ("connection", "close");
            for chunked in [false, true] {
                for (size, status) in [(limit - 1, status), (limit, status), (limit + 1, 413), (limit * 2, 413)] {
                    let (length, body) = (size.to_string(), padded(size));
                    let framing = if chunked { ("transfer-encoding", "chunked") } else { ("content-length", &*length) };
                    // A request that is refused closes by itself.
                    let framing = if status == 413 { vec![framing] } else { vec![framing, close] };
                    let head = head("POST", path, &[&[credentials, JSON], &*framing].concat());
                    let text = if chunked {
                        let (one, other) = body.as_bytes().split_at(size / 3);
                        let chunks = [one, other].map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
                        app.send_bytes(&[head.as_bytes(), &chunks[0], &chunks[1], b"0\r\n\r\n"]).await
                    } else {
                        app.send_bytes(&[head.as_bytes(), body.as_bytes()]).await
                    };
                    let answer = Answer::parse(&text);
                    assert_eq!(answer.status, status, "{path} {chunked} {size}: {text}");
                    if status == 413 {
                        answer.expect_problem(413, "body_too_large");
                    }
                    assert_eq!(answer.header("connection"), Some("close"), "{path} {chunked} {size}");
                }
            }
            // Declared and never sent.
            for length in [(limit + 1).to_string(), u64::from(u32::MAX).to_string(), (u64::MAX - 2).to_string()] {
                let head = head("POST", path, &[credentials, JSON, ("content-length", &length)]);
                let answer = Answer::parse(&app.send_bytes(&[head.as_bytes()]).await);
                answer.expect_problem(413, "body_too_large");
                assert_eq!(answer.header("connection"), Some("close"), "{path} {length}");
            }
        }
    }

    async fn a_request_whose_frame_lies_harms_nobody(database) {
        let app = database.app().await;
        app.register("email").await;
        let body = r#"{"client":{"id":"c"},"scopes":["a"]}"#;
        let with = |framing: &[(&str, &str)]| head("POST", TOKEN, &[&[HOOK_CREDENTIALS, JSON, ("connection", "close")], framing].concat());
        let check = async |name: &str, text: String, allowed: &[u16]| {
            let statuses: Vec<u16> = text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().expect("a status")).collect();
            assert!(statuses.iter().all(|status| allowed.contains(status)), "{name}: {text}");
            // Whatever came, the next one is served.
            app.ask(TOKEN, &json!({"client": {"id": "c"}, "scopes": []})).await.expect(200);
        };
        for size in ["zz", "-1", "0x10", "", " ", "ffffffffffffffffff", "5;\u{0}", "5\n", "+5", "1_0"] {
            let head = with(&[("transfer-encoding", "chunked")]);
            let text = app.send_bytes(&[head.as_bytes(), format!("{size}\r\nhello\r\n0\r\n\r\n").as_bytes()]).await;
            check(size, text, &[400]).await;
        }
        for (name, value) in [
            ("content-length", "x"), ("content-length", "-1"), ("content-length", "+36"), ("content-length", "36, 37"), ("content-length", ""),
            ("content-length", "99999999999999999999999"), ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked, gzip"),
            ("transfer-encoding", "identity"), ("x header", "x"), ("x-header ", "x"), ("x-header", "\u{0}"),
        ] {
            let text = app.send_bytes(&[with(&[(name, value)]).as_bytes(), body.as_bytes()]).await;
            check(&format!("{name}: {value}"), text, &[400]).await;
        }
        let text = app.send_bytes(&[with(&[("content-length", "36"), ("content-length", "35")]).as_bytes(), body.as_bytes()]).await;
        check("two lengths", text, &[400]).await;
        for request in ["\r\n\r\n\r\n\u{0}\r\n\r\n", "GET\r\n\r\n", "hello world\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "POST / HTTP/1.1\r\n: x\r\n\r\n"] {
            check(request, app.send_bytes(&[request.as_bytes()]).await, &[400]).await;
        }
        // Of two frames the chunks are the one that counts, so a length cannot hide a second request in the body.
        for lengths in [["content-length", "transfer-encoding"], ["transfer-encoding", "content-length"]] {
            for length in ["3", "36", "5000000000"] {
                let framing = lengths.map(|name| (name, if name == "content-length" { length } else { "chunked" }));
                let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                let text = app.send_bytes(&[with(&framing).as_bytes(), chunk.as_bytes()]).await;
                assert!(text.matches("HTTP/1.1 ").count() <= 1, "{text}");
                check(length, text, &[200, 400, 413]).await;
            }
        }
        // What follows a body that is shorter than it was is no part of it.
        let text = app.send_bytes(&[head("POST", TOKEN, &[HOOK_CREDENTIALS, JSON, ("content-length", "35")]).as_bytes(), body.as_bytes(), b"\r\n\r\n"]).await;
        check("a body that goes on", text, &[400]).await;
    }

    async fn headers_above_64_kib_are_a_431(database) {
        let app = database.app().await;
        let check = async |headers: &[(&str, &str)], status: u16| {
            let head = head("GET", "/v1/scopes", &[&[ADMIN_CREDENTIALS, ("connection", "close")], headers].concat());
            let answer = Answer::parse(&app.send_bytes(&[head.as_bytes()]).await);
            assert_eq!(answer.status, status);
        };
        check(&[("x-long", &"x".repeat(60 * 1024))], 200).await;
        check(&[("x-long", &"x".repeat(66 * 1024))], 431).await;
        check(&[("x-short", "x"); 50], 200).await;
        check(&vec![("x-many", "x"); 1000], 431).await;
        check(&[("x-many", &*"x".repeat(1000)); 99], 431).await;
    }

    async fn a_path_that_is_not_there_or_not_so_is_a_404_or_405_to_everybody(database) {
        let app = database.app().await;
        app.register("email").await;
        for path in [
            "/", "/v1", "/v1/", "/v2/scopes", "/v1/scopes/", "/v1/scopes/a/b", "/v1/subscriptions/", "/v1/subscriptions/x/", "/v1/subscriptions/x/freeze",
            "/v1/entitlements/", "/v1/entitlements/x", "//v1/scopes", "/V1/scopes", "/v1/scopes%2Femail", "/v1%2Fscopes", "/v1/../v1/scopes", "/livez",
            "/metrics", "/v1/customize-token/", "/openapi", "/favicon.ico", "/%", "/%ff", "/*", "/v1/{name}",
        ] {
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
                for headers in [&[][..], &[ADMIN_CREDENTIALS], &[("authorization", "Bearer wrong")]] {
                    app.send(method, path, headers, "").await.expect_refusal((404, "not_found"), &[], &format!("{method} {path}"));
                }
            }
        }
        for (path, allowed) in paths() {
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"] {
                let answer = app.send(method, path, &[], "x").await;
                if allowed.contains(&method) {
                    assert!(answer.status == 401 || answer.status == 200, "{method} {path}");
                } else {
                    answer.expect_refusal((405, "method_not_allowed"), &[], &format!("{method} {path}"));
                    assert_eq!(answer.header("allow"), Some(&*allowed.join(", ")), "{path}");
                }
            }
        }
    }

    async fn the_api_opens_to_its_own_token_only_before_anything_else_is_read(database) {
        let app = database.app().await;
        let closed = database.app_with(Options { management_auth: ManagementAuth::default(), ..Options::default() }).await;
        let operations: Vec<(&str, &str)> = paths().into_iter().filter(|(path, _)| path.starts_with("/v1/") && !path.contains("customize"))
            .flat_map(|(path, methods)| methods.iter().filter(|method| **method != "HEAD").map(move |method| (*method, path))).collect();
        assert_eq!(operations.len(), 29);
        let long = format!("Bearer {}", "x".repeat(8 * 1024 + 1));
        let refused = [
            "", "Bearer", "Bearer ", "Bearer admin-toke", "Bearer admin-token2", "Bearer admin-token ,", "Bearer Admin-Token", "admin-token",
            "Bearer \"admin-token\"", "Basic YWRtaW4tdG9rZW46", "Basic aG9vazpob29r", "Token admin-token", "Bearer  ", "Bearer=admin-token", "Bearer\tadmin-token", &long,
        ];
        let challenge = r#"Bearer realm="tollgate""#;
        let check = |answer: &Answer, request: &str| {
            answer.expect_refusal((401, "unauthorized"), &[], request);
            assert!(answer.header("www-authenticate").is_some_and(|header| header.starts_with(challenge)), "{request}");
        };
        for (method, path) in operations {
            for authorization in refused {
                let headers = [("authorization", authorization), ("content-encoding", "gzip")];
                check(&app.send(method, &format!("{path}?x=%ff"), &headers, "not JSON").await, &format!("{method} {path} {authorization}"));
            }
            check(&app.send(method, path, &[JSON], "not JSON").await, path);
            check(&app.send(method, path, &[ADMIN_CREDENTIALS, ADMIN_CREDENTIALS], "").await, "two tokens");
            check(&closed.send(method, path, &[ADMIN_CREDENTIALS], "").await, "without a token nobody is let in");
            for authorization in ["Bearer admin-token", "bearer admin-token", "BEARER   admin-token"] {
                let answer = app.send(method, &format!("{path}?x=%ff"), &[("authorization", authorization)], "").await;
                assert_eq!(answer.status, 400, "{method} {path} {authorization}");
            }
        }
        app.send("POST", TOKEN, &[ADMIN_CREDENTIALS, JSON], "{}").await.expect_problem(401, "unauthorized");
        let invalid = app.send("GET", "/v1/scopes", &[("authorization", "Bearer x")], "").await;
        assert_eq!(invalid.header("www-authenticate"), Some(r#"Bearer realm="tollgate", error="invalid_token""#));
        // A body that is announced and never sent.
        for path in ["/v1/scopes", TOKEN] {
            let head = head("POST", path, &[JSON, ("content-length", "100"), ("connection", "close")]);
            Answer::parse(&app.send_bytes(&[head.as_bytes()]).await).expect_problem(401, "unauthorized");
        }
        let longest = "x".repeat(8 * 1024);
        for (token, status) in [(longest.clone(), 200), (format!("{longest}x"), 401)] {
            let management_auth = ManagementAuth::default().with_bootstrap(&token);
            let app = database.app_with(Options { management_auth, ..Options::default() }).await;
            let answer = app.send("GET", "/v1/scopes", &[("authorization", &format!("Bearer {token}"))], "").await;
            assert_eq!(answer.status, status, "a token of {} bytes", token.len());
        }
    }

    async fn every_answer_has_a_request_id_the_callers_when_it_is_sane(database) {
        let app = database.app().await;
        app.register("email").await;
        let longest: String = ('!'..='~').chain('!'..='~').take(128).collect();
        let requests = [
            ("GET", "/v1/scopes", &[ADMIN_CREDENTIALS][..], 200), ("DELETE", "/v1/scopes/none", &[ADMIN_CREDENTIALS], 404),
            ("GET", "/nowhere", &[], 404), ("PUT", "/v1/scopes", &[], 405), ("GET", "/v1/scopes", &[], 401), ("POST", TOKEN, &[], 401),
            ("POST", TOKEN, &[HOOK_CREDENTIALS], 415), ("GET", "/v1/scopes?x", &[ADMIN_CREDENTIALS], 400),
        ];
        let mut made = BTreeSet::new();
        for (method, path, headers, status) in requests {
            for id in ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", &longest] {
                let answer = app.send(method, path, &[headers, &[("x-request-id", id)]].concat(), "").await;
                assert_eq!((answer.status.as_u16(), answer.header("x-request-id")), (status, Some(id)), "{path}");
            }
            for id in [None, Some(""), Some("a b"), Some("é"), Some("a\tb"), Some(&*format!("{longest}x"))] {
                let id = id.map(|id| ("x-request-id", id));
                let answer = app.send(method, path, &[headers, id.as_slice()].concat(), "").await;
                assert_eq!(answer.status, status, "{path}");
                let made_up = answer.header("x-request-id").expect("an id").to_owned();
                assert!(made_up.len() == 36 && made_up.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{made_up}");
                assert!(made.insert(made_up), "each has its own");
            }
        }
    }

    async fn head_answers_as_get_does_without_the_body(database) {
        let app = database.app().await;
        app.register("email").await;
        let subscription = path_of(&app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await);
        for path in [
            "/v1/scopes", "/v1/scopes/email", "/v1/scopes/none", "/v1/scopes?limit=0", "/v1/subscriptions?status=active", &subscription, NOBODY,
            "/v1/entitlements?subjectType=user&subjectId=u", "/v1/entitlements", "/docs", "/docs/hooks", "/openapi/management.yaml", "/nowhere",
        ] {
            let (get, head) = (app.call("GET", path).await, app.call("HEAD", path).await);
            assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
            assert!(!get.body.is_empty(), "{path}");
            for name in ["content-type", "etag"] {
                assert_eq!(head.header(name), get.header(name), "{path}");
            }
        }
        assert_eq!(app.send("HEAD", "/v1/scopes", &[], "").await.status, 401);
        assert_eq!(app.call("HEAD", TOKEN).await.status, 405);
        for path in ["/livez", "/readyz", "/metrics", "/version"] {
            let answer = app.send_to(app.operations, "HEAD", path, &[], "").await;
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{path}");
        }
    }

    async fn without_the_database_every_operation_of_the_api_is_a_503(database) {
        let app = database.app().await;
        app.register("email").await;
        let subscription = path_of(&app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await);
        app.database.close().await;
        let new = json!({"subject": {"type": "user", "id": "u"}, "scopes": ["email"], "validUntil": null});
        let operations = [
            ("POST", "/v1/scopes".to_owned(), json!({"name": "x"})),
            ("GET", "/v1/scopes".to_owned(), Value::Null),
            ("GET", "/v1/scopes/email".to_owned(), Value::Null),
            ("PATCH", "/v1/scopes/email".to_owned(), json!({})),
            ("DELETE", "/v1/scopes/email".to_owned(), Value::Null),
            ("POST", "/v1/subscriptions".to_owned(), new.clone()),
            ("GET", "/v1/subscriptions".to_owned(), Value::Null),
            ("GET", subscription.clone(), Value::Null),
            ("PATCH", subscription.clone(), json!({"validUntil": null})),
            ("DELETE", subscription.clone(), Value::Null),
            ("POST", format!("{subscription}/cancel"), json!({})),
            ("POST", format!("{subscription}/renew"), json!({"duration": "P1M"})),
            ("POST", format!("{subscription}/restore"), json!({})),
            ("GET", "/v1/subscriptions/by-external-id?source=s&externalId=1".to_owned(), Value::Null),
            ("PUT", "/v1/subscriptions/by-external-id?source=s&externalId=1".to_owned(), new.clone()),
            ("POST", "/v1/subscriptions/batch".to_owned(), json!({"items": [{"create": new}]})),
            ("GET", format!("{subscription}/history"), Value::Null),
            ("GET", "/v1/changes".to_owned(), Value::Null),
            ("GET", "/v1/subscriptions/export".to_owned(), Value::Null),
            ("GET", "/v1/entitlements?subjectType=user&subjectId=u".to_owned(), Value::Null),
            ("POST", "/v1/explain".to_owned(), json!({"request": {"client": {"id": "c"}, "scopes": []}})),
            ("POST", "/v1/tokens".to_owned(), json!({"name": "x", "role": "reader", "expiresAt": null})),
            ("GET", "/v1/tokens".to_owned(), Value::Null),
            ("GET", NO_TOKEN.to_owned(), Value::Null),
            ("POST", format!("{NO_TOKEN}/revoke"), json!({})),
        ];
        let mut seen = BTreeMap::<&str, usize>::new();
        for (method, path, body) in operations {
            let answer = if body.is_null() { app.call(method, &path).await } else { app.call_with(method, &path, &body).await };
            answer.expect_refusal((503, "unavailable"), &[], &format!("{method} {path}"));
            assert_eq!(answer.header("retry-after"), Some("1"), "{method} {path}");
            *seen.entry(method).or_default() += 1;
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [("DELETE", 2), ("GET", 11), ("PATCH", 2), ("POST", 9), ("PUT", 1)]);
        // What is wrong by itself needs no database to say so.
        app.refuse("POST", "/v1/scopes", &json!({"name": " "}), (422, "invalid_value"), &["#/name"]).await;
        app.refuse_query("/v1/scopes?limit=0", &["?limit"]).await;
        app.call("GET", "/v1/subscriptions/x").await.expect_problem(404, "not_found");
    }
}
