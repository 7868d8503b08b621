//! The catalogue over HTTP: `/v1/scopes`.

use serde_json::{Value, json};

use crate::support::{ADMIN_CREDENTIALS, App, encoded, instant, on_both, path_of, with_cursor};

/// Names with every character that a scope token may have, and the longest one.
fn odd_names() -> Vec<String> {
    let allowed = (0x21..=0x7E_u8).filter(|byte| *byte != b'"' && *byte != b'\\').map(char::from);
    let each = allowed.clone().map(|character| format!("x{character}"));
    let more =
        ["/", "//", "a/b", "%", "%2F", "%zz", "?", "?a=b", "#", ":", ":name", "~", "'", "{name}", "*", "+", "&=;"];
    let long = [allowed.collect(), "x".repeat(255), "/".repeat(255)];
    each.chain(more.map(str::to_owned)).chain(long).collect()
}

/// The names on all pages of the list.
async fn names(app: &App, limit: usize) -> Vec<String> {
    let items = app.walk(&format!("/v1/scopes?limit={limit}")).await;
    items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

on_both! {
    async fn a_scope_is_registered_with_defaults_and_read_back(database) {
        let app = database.app().await;
        let created = app.call_with("POST", "/v1/scopes", &json!({"name": "email"})).await;
        let expected = json!({
            "name": "email", "requires": "any", "enforced": true, "version": 1,
            "createdAt": "2026-06-15T12:00:00Z", "updatedAt": "2026-06-15T12:00:00Z",
        });
        assert_eq!(created.expect(201), expected);
        assert_eq!((created.header("location"), created.header("etag")), (Some("/v1/scopes/email"), Some("\"1\"")));
        let read = app.call("GET", "/v1/scopes/email").await;
        assert_eq!(read.expect(200), expected);
        assert_eq!(read.header("etag"), Some("\"1\""));

        app.set_now(instant("2026-06-15T12:00:00.000001Z"));
        for (requires, enforced, description) in [
            ("user", true, ""), ("client", false, "a\nb \u{1b} <b> é 🎫"), ("any", true, " "), ("all", false, &"🎫".repeat(1024)),
        ] {
            let new = json!({"name": requires, "description": description, "requires": requires, "enforced": enforced});
            let created = app.call_with("POST", "/v1/scopes", &new).await.expect(201);
            for (member, value) in new.as_object().expect("an object") {
                assert_eq!(created[member], *value);
            }
            assert_eq!(created["createdAt"], "2026-06-15T12:00:00.000001Z");
            assert_eq!(app.call("GET", &format!("/v1/scopes/{requires}")).await.expect(200), created);
        }
        app.refuse("POST", "/v1/scopes", &json!({"name": "email"}), (409, "scope_exists"), &[]).await;
        assert_eq!(app.call("GET", "/v1/scopes/email").await.expect(200), expected, "the one that was there stays");
    }

    async fn every_name_that_a_scope_may_have_is_found_at_its_location(database) {
        let app = database.app().await;
        let mut expected = odd_names();
        for name in &expected {
            let created = app.call_with("POST", "/v1/scopes", &json!({"name": name})).await;
            assert_eq!(created.expect(201)["name"], **name);
            let location = created.header("location").expect("a location");
            let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            let segment = location.strip_prefix("/v1/scopes/").expect("the path of the list");
            assert!(segment.bytes().all(is_unreserved), "{location}");
            for path in [location, &format!("/v1/scopes/{}", encoded(name))] {
                assert_eq!(app.call("GET", path).await.expect(200)["name"], **name, "{path}");
            }
            let patched = app.call_with("PATCH", location, &json!({"name": name, "description": "x"})).await;
            assert_eq!(patched.expect(200)["description"], "x", "{name}");
        }
        expected.sort_unstable();
        assert_eq!(names(&app, 200).await, expected);
        for name in &expected {
            let body = json!({"subject": {"type": "user", "id": name}, "scopes": [name], "validUntil": null});
            app.call_with("POST", "/v1/subscriptions", &body).await.expect(201);
            assert!(app.removed(Some(name), "c", &[name]).await.is_empty(), "{name}");
            let found = app.call("GET", &format!("/v1/subscriptions?scope={}", encoded(name))).await.expect(200);
            assert_eq!(found["items"].as_array().map(Vec::len), Some(1), "{name}");
        }
        app.register("gone/%2F?").await;
        assert_eq!(app.call("DELETE", "/v1/scopes/gone%2F%252F%3F").await.status, 204);
        assert_eq!(names(&app, 200).await, expected);
    }

    async fn what_cannot_be_registered_is_refused_by_name(database) {
        let app = database.app().await;
        let x = |times| "x".repeat(times);
        let values = ["", " ", "a b", "\"", "\\", "é", "🎫", "a\u{0}", "a\n", "\u{7f}", &x(256)];
        for name in values {
            app.refuse("POST", "/v1/scopes", &json!({"name": name}), (422, "invalid_value"), &["#/name"]).await;
        }
        let body = json!({"name": " ", "description": x(1025)});
        app.refuse("POST", "/v1/scopes", &body, (422, "invalid_value"), &["#/name", "#/description"]).await;
        for description in [x(1025), "a\u{0}".to_owned(), "🎫".repeat(1025)] {
            let body = json!({"name": "x", "description": description});
            app.refuse("POST", "/v1/scopes", &body, (422, "invalid_value"), &["#/description"]).await;
        }
        for (body, pointer) in [
            (json!({}), "#/name"),
            (json!({"description": "x"}), "#/name"),
            (json!({"name": null}), "#/name"),
            (json!({"name": "x", "description": null}), "#/description"),
            (json!({"name": "x", "requires": null}), "#/requires"),
            (json!({"name": "x", "requires": "both"}), "#/requires"),
            (json!({"name": "x", "requires": "Any"}), "#/requires"),
            (json!({"name": "x", "requires": {"any": null}}), "#/requires"),
            (json!({"name": "x", "requires": ["any"]}), "#/requires"),
            (json!({"name": "x", "enforced": null}), "#/enforced"),
            (json!({"name": "x", "enforced": "true"}), "#/enforced"),
            (json!({"name": "x", "enforced": 1}), "#/enforced"),
            (json!({"name": "x", "version": 1}), "#/version"),
            (json!({"name": "x", "createdAt": "2026-01-01T00:00:00Z"}), "#/createdAt"),
            (json!(["x"]), "#"),
            (json!("x"), "#"),
            (json!(null), "#"),
        ] {
            app.refuse("POST", "/v1/scopes", &body, (400, "invalid_request"), &[pointer]).await;
        }
        assert_eq!(names(&app, 200).await, [""; 0]);
    }

    async fn the_list_goes_in_ascending_order_page_by_page(database) {
        let app = database.app().await;
        let mut expected = vec!["b", "B", "a", "a:b", "aa", "_", "~", "!", "0", "Z"];
        for name in &expected {
            app.register(name).await;
        }
        expected.sort_unstable();
        for limit in [1, 2, 3, 5, 9, 10, 11, 200] {
            assert_eq!(names(&app, limit).await, expected, "{limit}");
            let page = app.call("GET", &format!("/v1/scopes?limit={limit}")).await.expect(200);
            assert_eq!(page["items"].as_array().map(Vec::len), Some(limit.min(10)));
            assert_eq!(page["nextCursor"].is_string(), limit < 10, "{limit}");
            assert_eq!(page.as_object().map(serde_json::Map::len), Some(1 + usize::from(limit < 10)));
        }
        let first = &app.call("GET", "/v1/scopes?limit=1").await.expect(200);
        assert_eq!(first["items"][0], app.call("GET", "/v1/scopes/!").await.expect(200));
        // A scope that comes or goes while the pages are turned moves none of the others.
        let cursor = first["nextCursor"].as_str().expect("a cursor");
        app.register("\u{23}").await;
        assert_eq!(app.call("DELETE", "/v1/scopes/!").await.status, 204);
        let second = app.call("GET", &with_cursor("/v1/scopes?limit=2", cursor)).await.expect(200);
        assert_eq!([&second["items"][0]["name"], &second["items"][1]["name"]], ["#", "0"]);
        for number in 0..50 {
            app.register(&format!("number{number}")).await;
        }
        let page = app.call("GET", "/v1/scopes").await.expect(200);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(50), "the usual limit");
        for limit in ["0", "201", "", "-1", "+1", "1.0", "%201", "ten", "99999999999999999999", "%D9%A1"] {
            app.refuse_query(&format!("/v1/scopes?limit={limit}"), &["?limit"]).await;
        }
        let tampered = cursor.replacen(|_| true, if cursor.starts_with('A') { "B" } else { "A" }, 1);
        for cursor in ["", "x", "%00", &tampered, &cursor[1..], &format!("{cursor}A"), &"A".repeat(10_240)] {
            app.refuse_query(&format!("/v1/scopes?cursor={cursor}"), &["?cursor"]).await;
        }
        app.refuse_query("/v1/scopes?limit=0&cursor=x&after=a", &["?after"]).await;
    }

    async fn a_patch_changes_what_it_names_and_nothing_else(database) {
        let app = database.app().await;
        let new = json!({"name": "email", "description": "old", "requires": "user", "enforced": true});
        let mut expected = app.call_with("POST", "/v1/scopes", &new).await.expect(201);
        let (merge_patch, json) = ("application/merge-patch+json", "application/json");
        for (step, (media_type, patch, changes)) in [
            (json, json!({}), false),
            (merge_patch, json!({}), false),
            (merge_patch, json!({"description": "new"}), true),
            (json, json!({"description": "new"}), false),
            (json, json!({"requires": "all"}), true),
            (merge_patch, json!({"enforced": false, "requires": "all"}), true),
            (merge_patch, json!({"name": "email", "description": "new", "requires": "all", "enforced": false}), false),
            (merge_patch, json!({"description": null}), true),
            (json, json!({"description": null}), false),
            (json, json!({"description": "", "requires": "client", "enforced": true}), true),
        ].into_iter().enumerate() {
            app.set_now(instant(&format!("2026-06-15T12:00:{step:02}.5Z")));
            let headers = [ADMIN_CREDENTIALS, ("content-type", media_type)];
            let answer = app.send("PATCH", "/v1/scopes/email", &headers, patch.to_string()).await;
            if changes {
                for (member, value) in patch.as_object().expect("an object") {
                    expected[member] = value.clone();
                }
                if expected["description"].is_null() {
                    expected.as_object_mut().expect("an object").remove("description");
                }
                expected["version"] = (expected["version"].as_i64().expect("a version") + 1).into();
                expected["updatedAt"] = format!("2026-06-15T12:00:{step:02}.500000Z").into();
            }
            assert_eq!(answer.expect(200), expected, "{patch}");
            assert_eq!(answer.header("etag"), Some(&*format!("\"{}\"", expected["version"])));
            assert_eq!(app.call("GET", "/v1/scopes/email").await.expect(200), expected);
        }
        assert_eq!(expected["version"], 6);
    }

    async fn what_cannot_be_patched_is_refused_by_name(database) {
        let app = database.app().await;
        let before = app.register("email").await;
        let (invalid_value, invalid_request) = ((422, "invalid_value"), (400, "invalid_request"));
        let check = async |body: Value, problem, pointers: &[&str]| {
            app.refuse("PATCH", "/v1/scopes/email", &body, problem, pointers).await;
        };
        check(json!({"name": null}), invalid_value, &["#/name"]).await;
        check(json!({"name": "other"}), invalid_value, &["#/name"]).await;
        check(json!({"name": "Email"}), invalid_value, &["#/name"]).await;
        check(json!({"name": " "}), invalid_value, &["#/name"]).await;
        check(json!({"requires": null}), invalid_value, &["#/requires"]).await;
        check(json!({"enforced": null}), invalid_value, &["#/enforced"]).await;
        check(json!({"description": "x".repeat(1025)}), invalid_value, &["#/description"]).await;
        check(json!({"description": "\u{0}"}), invalid_value, &["#/description"]).await;
        let all = ["#/name", "#/requires", "#/enforced", "#/description"];
        let body = json!({"enforced": null, "requires": null, "name": null, "description": "\u{0}"});
        check(body, invalid_value, &all).await;
        for (member, value) in [
            ("description", json!(1)), ("description", json!(["x"])), ("requires", json!("both")), ("requires", json!({"all": null})),
            ("enforced", json!("true")), ("enforced", json!(0)), ("name", json!(true)), ("version", json!(1)),
            ("updatedAt", json!("2026-01-01T00:00:00Z")),
        ] {
            check(json!({member: value}), invalid_request, &[&format!("#/{member}")]).await;
        }
        for body in [json!([]), json!(null), json!("x"), json!(["email"])] {
            check(body, invalid_request, &["#"]).await;
        }
        assert_eq!(app.call("GET", "/v1/scopes/email").await.expect(200), before);
    }

    async fn a_scope_that_no_subscription_ever_named_can_be_deleted(database) {
        let app = database.app().await;
        for name in ["free", "used", "both"] {
            app.register(name).await;
        }
        assert_eq!(app.removed(Some("u"), "c", &["free"]).await, ["free"]);
        let deleted = app.call("DELETE", "/v1/scopes/free").await;
        assert_eq!((deleted.status.as_u16(), &*deleted.text()), (204, ""));
        assert!(app.removed(Some("u"), "c", &["free"]).await.is_empty(), "it is unmanaged");
        for method in ["DELETE", "GET"] {
            app.call(method, "/v1/scopes/free").await.expect_problem(404, "not_found");
        }
        app.refuse("PATCH", "/v1/scopes/free", &json!({}), (404, "not_found"), &[]).await;
        assert_eq!(app.register("free").await["version"], 1, "the name is free again");

        let used = app.subscribe("u", &["used", "both"], "2026-01-01T00:00:00Z", Some("2026-02-01T00:00:00Z")).await;
        let refused = async |name| {
            app.call("DELETE", &format!("/v1/scopes/{name}")).await.expect_problem(409, "scope_in_use");
            app.call("GET", &format!("/v1/scopes/{name}")).await.expect(200);
        };
        refused("used").await;
        refused("both").await;
        app.call_with("PATCH", &path_of(&used), &json!({"scopes": ["used"]})).await.expect(200);
        assert_eq!(app.call("DELETE", "/v1/scopes/both").await.status, 204, "no subscription names it any more");
        assert_eq!(app.call("DELETE", &path_of(&used)).await.status, 204);
        refused("used").await;
    }

    async fn a_name_that_is_no_scope_token_names_nothing(database) {
        let app = database.app().await;
        app.register("x").await;
        for segment in ["%22", "a%20b", "%C3%A9", "%00", "%0A", &"x".repeat(256), "X", "x%20"] {
            let path = format!("/v1/scopes/{segment}");
            for method in ["GET", "DELETE"] {
                app.call(method, &path).await.expect_refusal((404, "not_found"), &[], &path);
            }
            app.refuse("PATCH", &path, &json!({}), (404, "not_found"), &[]).await;
        }
        for path in ["/v1/scopes/", "/v1/scopes/x/", "/v1/scopes/a/b", "/v1//scopes", "/v1/Scopes", "/scopes"] {
            app.call("GET", path).await.expect_refusal((404, "not_found"), &[], path);
        }
    }
}
