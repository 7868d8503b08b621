//! The console over HTTP, without a browser: who gets in, what is offered, what forms do, and what data cannot do.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tollgate::http::{
    auth::{
        issuer::{Address, Pace, Source},
        jwt::Patience,
    },
    console::{ROUTES, openid::OpenIdSettings, session},
};

use crate::{
    issuer::{SigningKey, part},
    support::{
        ADMIN_CREDENTIALS, Answer, App, MICROSECOND, Options, Trust, encoded, eventually, on_both, path_of, timestamp,
    },
};

/// What no id may do to a page: end an element or an attribute, turn letters around, break lines.
const HOSTILE: &str = "\"'><script>alert(1)</script>&amp;\u{202e}evil\r\nnew line\n\ttab %41+ é🎫";

/// A browser that is signed in.
struct Browser<'a> {
    app: &'a App,
    cookie: String,
}

/// The headers of a form that a page of ours has sent.
const OUR_FORM: [(&str, &str); 2] =
    [("content-type", "application/x-www-form-urlencoded"), ("sec-fetch-site", "same-origin")];

fn form(fields: &[(String, String)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn try_token(app: &App, token: &str, headers: &[(&str, &str)]) -> Answer {
    let body = form(&pairs(&[("token", token)]));
    app.send("POST", "/console/sign-in", &[&OUR_FORM, headers].concat(), body).await
}

fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").expect("a cookie");
    cookie.split(';').next().expect("a pair").to_owned()
}

async fn sign_in<'a>(app: &'a App, token: &str) -> Browser<'a> {
    let answer = try_token(app, token, &[]).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    Browser { app, cookie: cookie_of(&answer) }
}

impl Browser<'_> {
    async fn get(&self, path: &str) -> Answer {
        self.app.send("GET", path, &[("cookie", &self.cookie)], "").await
    }

    async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    }

    async fn post(&self, path: &str, fields: &[(String, String)]) -> Answer {
        self.app.send("POST", path, &[&OUR_FORM[..], &[("cookie", &self.cookie)]].concat(), form(fields)).await
    }

    /// Looks at what a change would come to, and does it. Gives back the page that follows.
    async fn change(&self, preview: &str) -> String {
        let preview = self.page(preview).await;
        let done = self.post("/console/change", &hidden(&preview, "class=\"confirm\"")).await;
        assert_eq!(done.status, 303, "{}", done.text());
        let location = done.header("location").expect("a place").to_owned();
        self.page(location.split('#').next().expect("a path")).await
    }
}

/// The fields of the form of a page that begins with a text, as a browser would send them.
fn hidden(page: &str, form: &str) -> Vec<(String, String)> {
    let (_, rest) = page.split_once(form).unwrap_or_else(|| panic!("no form {form} in {page}"));
    let (form, _) = rest.split_once("</form>").expect("its end");
    let unescape =
        |text: &str| text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let fields = form.split("<input type=\"hidden\" name=\"").skip(1).map(|field| {
        let (name, rest) = field.split_once("\" value=\"").expect("a value");
        let (value, _) = rest.split_once("\">").expect("its end");
        // As browsers do.
        (unescape(name), unescape(value).replace("\r\n", "\n").replace('\n', "\r\n"))
    });
    fields.collect()
}

fn subject_path(id: &str) -> String {
    format!("/console/subject?type=user&id={}", encoded(id))
}

fn change_path(id: &str, verb: &str, subscription: &Value) -> String {
    let on = subscription["id"].as_str().expect("an id");
    format!("/console/change?type=user&id={}&verb={verb}&on={on}", encoded(id))
}

async fn history(app: &App, subscription: &Value) -> Vec<Value> {
    app.walk(&format!("{}/history", path_of(subscription))).await
}

on_both! {
    async fn a_token_opens_the_console_and_nothing_else_does(database) {
        let app = &database.app().await;
        for route in &ROUTES {
            let answer = app.send(route.method.as_str(), route.path, &OUR_FORM, "").await;
            if route.operation.is_some() {
                assert_eq!(answer.status, 303, "{}", route.path);
                assert!(answer.header("location").expect("a place").starts_with("/console/sign-in"), "{}", route.path);
            } else {
                assert!(!answer.status.is_redirection() && answer.status.as_u16() < 500, "{}", route.path);
            }
            // The API's own header is not the way in here: it would let a page of another site in.
            let answer = app.send(route.method.as_str(), route.path, &[&OUR_FORM[..], &[ADMIN_CREDENTIALS]].concat(), "").await;
            assert_eq!(answer.status.is_redirection(), route.operation.is_some(), "{}", route.path);
        }
        for wrong in ["", "wrong", "tollgate_wrong", "a.b.c", "é", "x\ny"] {
            let answer = try_token(app, wrong, &[]).await;
            let expected = if wrong.is_empty() { 422 } else { 401 };
            assert_eq!(answer.status, expected, "{wrong:?}");
            assert_eq!(answer.header("set-cookie"), None);
            assert!(!wrong.starts_with("tollgate") || !answer.text().contains(wrong), "a token is not repeated");
        }
        let browser = sign_in(app, "admin-token").await;
        assert!(browser.page("/console").await.contains("Signed in as"));
        let sealed = browser.cookie.split_once('=').expect("a pair").1;
        assert!(!sealed.contains("admin"));
        let other = Browser { app, cookie: format!("tollgate-console={}", sealed.replace(&sealed[20..30], "AAAAAAAAAA")) };
        assert_eq!(other.get("/console").await.status, 303);
    }

    async fn a_session_ends_with_its_day_its_token_and_at_a_sign_out(database) {
        let app = &database.app().await;
        let token = app.issue("support", "reader", None).await;
        let secret = token["token"].as_str().expect("a secret");
        let browser = sign_in(app, secret).await;
        let start = app.now();
        app.set_now(start + session::LENGTH - MICROSECOND);
        assert_eq!(browser.get("/console").await.status, 200);
        app.set_now(start + session::LENGTH);
        assert_eq!(browser.get("/console").await.status, 303, "a working day is over");

        let browser = sign_in(app, secret).await;
        let page = browser.page("/console").await;
        let foreign = browser.app.send("POST", "/console/sign-out", &[("cookie", &browser.cookie)], "").await;
        assert_eq!(foreign.status, 403, "no page of ours has sent it");
        let out = browser.post("/console/sign-out", &hidden(&page, "action=\"/console/sign-out\"")).await;
        assert_eq!((out.status.as_u16(), out.header("location")), (303, Some("/console/sign-in?out=1")));
        assert!(out.header("set-cookie").expect("a cookie").contains("=; Path=/; Max-Age=0;"));

        let id = token["id"].as_str().expect("an id");
        app.call("POST", &format!("/v1/tokens/{id}/revoke")).await.expect(200);
        assert_eq!(browser.get("/console").await.status, 303, "its token lets nobody in any more");
        assert_eq!(try_token(app, secret, &[]).await.status, 401);
    }

    async fn what_a_browser_is_given_keeps_others_out(database) {
        let trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
        let app = &database.app_with(Options { trusted_proxies, ..Options::default() }).await;
        let plain = try_token(app, "admin-token", &[]).await;
        let cookie = plain.header("set-cookie").expect("a cookie");
        let (pair, attributes) = cookie.split_once("; ").expect("attributes");
        assert!(pair.starts_with("tollgate-console="));
        assert_eq!(attributes, "Path=/; Max-Age=28800; HttpOnly; SameSite=Strict");
        let secure = try_token(app, "admin-token", &[("x-forwarded-proto", "https")]).await;
        let cookie = secure.header("set-cookie").expect("a cookie");
        assert!(cookie.starts_with("__Host-tollgate-console=") && cookie.ends_with("; SameSite=Strict; Secure"), "{cookie}");

        let browser = Browser { app, cookie: cookie_of(&plain) };
        let policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
            form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
        let paths =
            ["/console", "/console/sign-in", "/console/subject?type=user&id=x", "/console/subject?type=x", "/console/nothing"];
        for path in paths {
            let answer = browser.get(path).await;
            assert_eq!(answer.header("content-security-policy"), Some(policy), "{path}");
            assert_eq!(answer.header("referrer-policy"), Some("same-origin"), "{path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
            let text = answer.text();
            for inline in ["style=", "onclick=", "<style", "javascript:"] {
                assert!(!text.contains(inline), "{path} has {inline}");
            }
            assert!(!text.contains("http://") && !text.contains("https://"), "{path} names another place");
        }
        let script = browser.get("/console/console.js").await;
        assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(browser.get("/console/nothing").await.status, 404);
        let wrong = app.send("PUT", "/console/change", &[("cookie", &browser.cookie)], "").await;
        assert_eq!((wrong.status.as_u16(), wrong.header("allow")), (405, Some("GET, HEAD, POST")));
        // Who follows a link from another site comes without the cookie: the page asks for itself again.
        let linked = app.send("GET", "/console/subject?type=user&id=%22x", &[("sec-fetch-site", "cross-site")], "").await;
        assert_eq!(linked.status, 200);
        assert!(linked.text().contains("<meta http-equiv=\"refresh\" content=\"0; url=/console/subject?type=user&amp;id=%22x\">"));
    }

    async fn a_form_that_no_page_of_the_session_has_made_is_refused(database) {
        let app = &database.app().await;
        app.register("email").await;
        let subscription = app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", None).await;
        let browser = sign_in(app, "admin-token").await;
        let preview = browser.page(&change_path("jane", "cancel", &subscription)).await;
        let fields = hidden(&preview, "class=\"confirm\"");
        let cookie = ("cookie", browser.cookie.as_str());
        let kind = OUR_FORM[0];
        let host = format!("http://{}", app.address);
        let foreign: [&[(&str, &str)]; 6] = [
            &[cookie, kind],
            &[cookie, kind, ("sec-fetch-site", "cross-site")],
            &[cookie, kind, ("sec-fetch-site", "same-site"), ("origin", &host)],
            &[cookie, kind, ("sec-fetch-site", "none")],
            &[cookie, kind, ("origin", "http://evil.example")],
            &[cookie, kind, ("origin", "null")],
        ];
        for headers in foreign {
            let answer = app.send("POST", "/console/change", headers, form(&fields)).await;
            assert_eq!(answer.status, 403, "{headers:?}");
        }
        let without: Vec<_> = fields.iter().filter(|(name, _)| name != "form_token").cloned().collect();
        assert_eq!(browser.post("/console/change", &without).await.status, 403);
        // Another session of the same token has forms of its own.
        let other = sign_in(app, "admin-token").await;
        assert_eq!(other.post("/console/change", &fields).await.status, 403);
        for headers in [&foreign[1][1..], &foreign[4][1..], &foreign[0][1..]] {
            let answer = app.send("POST", "/console/sign-in", headers, "token=admin-token").await;
            assert_eq!((answer.status.as_u16(), answer.header("set-cookie")), (403, None), "{headers:?}");
        }
        assert_eq!(app.call("GET", &path_of(&subscription)).await.expect(200)["status"], "active");
        let ours = app.send("POST", "/console/change", &[cookie, kind, ("origin", &host)], form(&fields)).await;
        assert_eq!(ours.status, 303, "a browser that tells the origin alone");
        assert_eq!(app.call("GET", &path_of(&subscription)).await.expect(200)["status"], "canceled");
    }

    async fn what_a_role_may_not_do_is_neither_offered_nor_done(database) {
        let app = &database.app().await;
        app.register("email").await;
        let subscription = app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", None).await;
        let reader = app.issue("reader", "reader", None).await;
        let reader = sign_in(app, reader["token"].as_str().expect("a secret")).await;
        let writer = app.issue("writer", "writer", None).await;
        let writer = sign_in(app, writer["token"].as_str().expect("a secret")).await;
        let offered = |page: &str| page.contains("/console/change");
        let seen = reader.page(&subject_path("jane")).await;
        assert!(!offered(&seen) && seen.contains("1 kept, 0 removed"), "{seen}");
        assert!(offered(&writer.page(&subject_path("jane")).await));
        for verb in ["renew", "pause", "resume", "cancel", "uncancel", "delete", "restore", "add"] {
            let path = change_path("jane", verb, &subscription);
            assert_eq!(reader.get(&path).await.status, 403, "{verb}");
        }
        let preview = writer.page(&change_path("jane", "cancel", &subscription)).await;
        let mut fields = hidden(&preview, "class=\"confirm\"");
        let page = reader.page("/console").await;
        let own = hidden(&page, "action=\"/console/sign-out\"");
        fields.retain(|(name, _)| name != "form_token");
        fields.extend(own);
        assert_eq!(reader.post("/console/change", &fields).await.status, 403);
        assert_eq!(history(app, &subscription).await.len(), 1);
    }

    async fn each_verb_is_shown_first_then_does_what_the_api_does_and_can_be_undone(database) {
        let app = &database.app().await;
        app.register("email").await;
        let writer = app.issue("support", "writer", None).await;
        let browser = sign_in(app, writer["token"].as_str().expect("a secret")).await;
        let expired = app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", Some("2026-06-01T00:00:00Z")).await;
        let read = async || app.call("GET", &path_of(&expired)).await;
        let page = browser.page(&subject_path("jane")).await;
        assert!(page.contains("0 kept, 1 removed") && page.contains("the subscription has expired"), "{page}");
        assert!(page.contains("14 days ago"), "{page}");

        let path = change_path("jane", "renew", &expired);
        let preview = browser.page(&path).await;
        assert!(preview.contains("1</strong> scope would be kept from now on"), "{preview}");
        assert_eq!(read().await.expect(200)["version"], 1, "looking changes nothing");
        let page = browser.change(&path).await;
        assert!(page.contains("is renewed") && page.contains("1 kept, 0 removed"), "{page}");
        let renewed = read().await.expect(200);
        // A month from now, and not from the old end: it had passed.
        assert_eq!(renewed["validUntil"], "2026-07-15T12:00:00Z");
        let last = history(app, &expired).await.pop().expect("a change");
        assert_eq!((&last["action"], &last["actor"]), (&json!("renew"), &json!("support")));
        assert!(page.contains(last["requestId"].as_str().expect("an id")), "the request can be found in the log");
        assert_eq!(app.removed(Some("jane"), "client", &["email"]).await, Vec::<String>::new());

        let undo = hidden(&page, "<form method=\"post\" action=\"/console/change\"");
        assert_eq!(browser.post("/console/change", &undo).await.status, 303);
        assert_eq!(read().await.expect(200)["validUntil"], "2026-06-01T00:00:00Z", "as it was");
        assert_eq!(browser.post("/console/change", &undo).await.status, 412, "somebody was faster");
        browser.change(&format!("{path}&chosen=1&length=until&until=2027-01-01T00:00&base=end")).await;
        assert_eq!(read().await.expect(200)["validUntil"], "2027-01-01T00:00:00Z");

        for (verb, status, undone) in [("pause", "paused", "active"), ("cancel", "canceled", "active")] {
            let page = browser.change(&change_path("jane", verb, &expired)).await;
            assert_eq!(read().await.expect(200)["status"], status);
            assert!(page.contains("0 kept, 1 removed"), "{page}");
            app.set_now(app.now() + TimeDelta::minutes(1));
            let undo = hidden(&page, "<form method=\"post\" action=\"/console/change\"");
            let done = browser.post("/console/change", &undo).await;
            assert_eq!(done.status, 303, "{}", done.text());
            assert_eq!(read().await.expect(200)["status"], undone);
        }
        let page = browser.change(&change_path("jane", "delete", &expired)).await;
        assert_eq!(read().await.status, 404);
        let undo = hidden(&page, "<form method=\"post\" action=\"/console/change\"");
        assert_eq!(browser.post("/console/change", &undo).await.status, 303);
        assert_eq!(read().await.expect(200)["status"], "active");
        let later = timestamp(app.now() + TimeDelta::days(1));
        let cancel = change_path("jane", "cancel", &expired);
        browser.change(&format!("{cancel}&chosen=1&when=at&cancel_at={}", &later[..19])).await;
        assert_eq!(read().await.expect(200)["canceledAt"], later);
        browser.change(&change_path("jane", "uncancel", &expired)).await;
        browser.change(&change_path("jane", "pause", &expired)).await;
        browser.change(&change_path("jane", "resume", &expired)).await;
        let actions: Vec<_> = history(app, &expired).await.iter().map(|change| change["action"].as_str().expect("a word").to_owned()).collect();
        let expected = [
            "create", "renew", "patch", "renew", "pause", "resume", "cancel", "uncancel", "delete", "restore", "cancel",
            "uncancel", "pause", "resume",
        ];
        assert_eq!(actions, expected);
    }

    async fn what_the_domain_refuses_is_told_before_and_not_done(database) {
        let app = &database.app().await;
        app.register("email").await;
        let browser = sign_in(app, "admin-token").await;
        let subscription = app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", Some("2026-07-01T00:00:00Z")).await;
        let refused = [
            ("renew", "&chosen=1&length=until&until=2026-06-20T00:00", 409, "longer"),
            ("renew", "&chosen=1&length=until", 422, "Length"),
            ("renew", "&chosen=1&length=P1X", 422, "Length"),
            ("cancel", "&chosen=1&when=at&cancel_at=2026-01-01T00:00", 422, "in the past"),
            ("pause", "&chosen=1&pause_until=2026-01-01", 422, "a pause ends after it starts"),
            ("uncancel", "", 409, "is not canceled"),
            ("resume", "", 409, "is not paused"),
            ("restore", "", 409, "was not deleted"),
            ("add", "&chosen=1&add=unknown&open=1", 422, "not in the catalogue"),
            ("add", "&chosen=1&add=email", 422, "End"),
        ];
        for (verb, options, status, words) in refused {
            let path = format!("{}{options}", change_path("jane", verb, &subscription));
            let answer = browser.get(&path).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            let text = answer.text();
            assert!(verb == "renew" && words == "Length" || text.contains(words), "{path}: {text}");
            assert!(text.contains("role=\"alert\"") && !text.contains("class=\"confirm\""), "{path}");
        }
        let nobody = browser.get(&change_path("nobody", "cancel", &subscription)).await;
        assert_eq!(nobody.status, 404, "a subscription of somebody else");
        assert_eq!(browser.get("/console/change?type=user&id=jane&verb=burn").await.status, 400);
        assert_eq!(browser.get("/console/subject?type=user&id=%ff").await.status, 400);
        assert_eq!(browser.get("/console/subject?type=user").await.status, 400);
        assert_eq!(history(app, &subscription).await.len(), 1);
    }

    async fn a_subscription_is_added_once_though_its_button_is_pressed_twice(database) {
        let app = &database.app().await;
        for scope in ["email", "reports"] {
            app.register(scope).await;
        }
        let browser = sign_in(app, "admin-token").await;
        let path = format!("/console/change?type=user&id={}&verb=add", encoded(HOSTILE));
        assert!(browser.page(&path).await.contains("Choose at least one scope"));
        let preview = browser.page(&format!("{path}&chosen=1&add=email&add=reports&start=2026-06-01&end=2026-07-01T00:00")).await;
        assert!(preview.contains("2</strong> scopes would be kept from now on"), "{preview}");
        let fields = hidden(&preview, "class=\"confirm\"");
        for _ in 0..2 {
            assert_eq!(browser.post("/console/change", &fields).await.status, 303);
        }
        let list = format!("/v1/subscriptions?subjectType=user&subjectId={}", encoded(HOSTILE));
        let added = app.walk(&list).await;
        assert_eq!(added.len(), 1, "{added:?}");
        assert_eq!(added[0]["subject"]["id"], HOSTILE, "byte for byte");
        assert_eq!((&added[0]["validFrom"], &added[0]["scopes"]), (&json!("2026-06-01T00:00:00Z"), &json!(["email", "reports"])));
    }

    async fn hostile_names_are_shown_and_carried_and_do_nothing(database) {
        let app = &database.app().await;
        let scope = "<b>'&<script>";
        app.register(scope).await;
        let browser = sign_in(app, "admin-token").await;
        for id in [HOSTILE, &"\u{202e}".repeat(341), &"<i>".repeat(341)] {
            let subscription = app.subscribe(id, &[scope], "2026-01-01T00:00:00Z", None).await;
            let other = format!("{id}\n");
            let page = browser.page(&format!("{}&other={}", subject_path(id), encoded(&other))).await;
            assert!(page.contains("1 kept, 0 removed"), "{page}");
            for page in [page, browser.page(&change_path(id, "cancel", &subscription)).await] {
                for raw in ["<script>", "<b>", "<i>", "\u{202e}", "alert(1)</script>"] {
                    assert!(!page.contains(raw), "{raw:?} in {page}");
                }
            }
            let page = browser.change(&change_path(id, "cancel", &subscription)).await;
            assert!(page.contains("0 kept, 1 removed") && page.contains("is canceled"), "{page}");
            let change = history(app, &subscription).await.pop().expect("a change");
            assert_eq!(change["subscription"]["subject"]["id"], id);
        }
    }

    async fn the_page_answers_what_the_hook_answers_at_any_instant(database) {
        let app = &database.app().await;
        for scope in ["email", "reports"] {
            app.register(scope).await;
        }
        let client = json!({
            "subject": {"type": "client", "id": "shop"}, "scopes": ["reports"], "validUntil": null,
            "validFrom": "2026-01-01T00:00:00Z",
        });
        app.call_with("POST", "/v1/subscriptions", &client).await.expect(201);
        app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", Some("2026-07-01T00:00:00Z")).await;
        let browser = sign_in(app, "admin-token").await;
        let check = async |query: &str, expected: &str| {
            let page = browser.page(&format!("{}{query}", subject_path("jane"))).await;
            assert!(page.contains(expected), "{query}: {page}");
        };
        check("", "1 kept, 1 removed").await;
        check("&other=shop", "2 kept, 0 removed").await;
        check("&other=shop&at=2026-06-30T23:59:59", "2 kept, 0 removed").await;
        check("&other=shop&at=2026-07-01T00:00", "1 kept, 1 removed").await;
        check("&at=2025-12-31", "0 kept, 2 removed").await;
        check("&scope=email+openid", "2 kept, 0 removed").await;
        check("&scope=email&scope=reports", "1 kept, 1 removed").await;
        let page = browser.page("/console/subject?type=client&id=shop&other=jane").await;
        assert!(page.contains("2 kept, 0 removed"), "{page}");
        assert!(browser.get(&format!("{}&at=tomorrow", subject_path("jane"))).await.status == 400);
    }

    async fn the_catalogue_tells_who_holds_a_scope_and_who_would_have_lost_it(database) {
        let app = &database.app().await;
        app.register("email").await;
        app.call_with("POST", "/v1/scopes", &json!({"name": "insights", "enforced": false, "description": "<b>"})).await.expect(201);
        for user in ["jane", "joe"] {
            app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", None).await;
        }
        // Twice the same subject, and one that holds it no more.
        app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", None).await;
        app.subscribe("late", &["email"], "2026-01-01T00:00:00Z", Some("2026-02-01T00:00:00Z")).await;
        for user in ["a", "b", "a"] {
            assert_eq!(app.removed(Some(user), "client", &["insights"]).await, Vec::<String>::new());
        }
        let admin = sign_in(app, "admin-token").await;
        let page = admin.page("/console/catalogue").await;
        assert!(page.contains("data-label=\"Who holds it now\">2<"), "{page}");
        let counted = "about <strong>2</strong> subjects would have lost it, in 3 decisions, of those that this replica \
            decided since";
        assert!(page.contains(counted) && page.contains("&lt;b&gt;"), "{page}");
        let found = admin.page("/console/catalogue?search=EMA").await;
        assert!(found.contains("1 scope found") && !found.contains("insights"), "{found}");

        let writer = app.issue("writer", "writer", None).await;
        let writer = sign_in(app, writer["token"].as_str().expect("a secret")).await;
        assert!(!writer.page("/console/catalogue").await.contains("/console/enforced"));
        assert_eq!(writer.get("/console/enforced?scope=insights").await.status, 403);
        assert_eq!(admin.get("/console/enforced?scope=absent").await.status, 404);

        let preview = admin.page("/console/enforced?scope=insights").await;
        assert!(preview.contains(counted), "{preview}");
        let fields = hidden(&preview, "class=\"confirm\"");
        let done = admin.post("/console/enforced", &fields).await;
        let location = done.header("location").expect("a place").to_owned();
        assert_eq!(app.removed(Some("a"), "client", &["insights"]).await, ["insights"]);
        assert_eq!(admin.post("/console/enforced", &fields).await.status, 412, "it was switched since");
        let page = admin.page(location.split('#').next().expect("a path")).await;
        assert!(page.contains("is enforced from now on"), "{page}");
        let undo = hidden(&page, "class=\"confirm\"");
        assert_eq!(admin.post("/console/enforced", &undo).await.status, 303);
        assert_eq!(app.removed(Some("a"), "client", &["insights"]).await, Vec::<String>::new());
        let mut as_writer = undo;
        as_writer.retain(|(name, _)| name != "form_token");
        as_writer.extend(hidden(&writer.page("/console").await, "action=\"/console/sign-out\""));
        assert_eq!(writer.post("/console/enforced", &as_writer).await.status, 403);
    }

    async fn the_page_of_the_service_tells_what_was_removed_lately(database) {
        let app = &database.app().await;
        app.register("email").await;
        let reader = app.issue("reader", "reader", None).await;
        let browser = sign_in(app, reader["token"].as_str().expect("a secret")).await;
        assert!(browser.page("/console/service").await.contains("Nothing, as far as is known"));
        assert_eq!(app.removed(Some(HOSTILE), "client", &["email", "openid"]).await, ["email"]);
        let page = browser.page("/console/service").await;
        assert!(page.contains("email</bdi>: there is no subscription"), "{page}");
        assert!(page.contains("id=%22%27%3E%3Cscript%3E") && !page.contains("<script>alert"), "{page}");
        assert!(page.contains("possible") && page.contains("answers") && page.contains("Decisions on fresh facts"), "{page}");
    }

    async fn a_file_is_tried_then_imported_and_the_page_tells_what_came_of_it(database) {
        let app = &database.app().await;
        app.register("email").await;
        let reader = app.issue("reader", "reader", None).await;
        let reader = sign_in(app, reader["token"].as_str().expect("a secret")).await;
        assert_eq!(reader.get("/console/import").await.status, 403);
        assert!(!reader.page("/console").await.contains("/console/import"));
        let writer = app.issue("writer", "writer", None).await;
        let writer = sign_in(app, writer["token"].as_str().expect("a secret")).await;
        let token = hidden(&writer.page("/console/import").await, "enctype=\"multipart/form-data\"").remove(0).1;
        let file = "source,externalId,subjectType,subjectId,scopes,validUntil\n\
            crm,1,user,jane,email,never\n\
            crm,2,user,<script>,email,2027-01-01T00:00:00Z\n\
            crm,3,user,joe,<b>,never\n";
        let upload = async |browser: &Browser<'_>, token: &str, mode: &str| {
            let field = |name: &str, value: &str| format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            let body = format!(
                "{}{}{}--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"A.CSV\"\r\n\
                content-type: text/csv\r\n\r\n{file}\r\n--xyz--\r\n",
                field("form_token", token), field("format", ""), field("mode", mode)
            );
            let headers = [
                ("content-type", "multipart/form-data; boundary=xyz"), ("sec-fetch-site", "same-origin"),
                ("cookie", browser.cookie.as_str()),
            ];
            app.send("POST", "/console/import", &headers, body).await
        };
        let ended = async || {
            let mut page;
            eventually!("the import", Duration::from_secs(30), {
                let answer = writer.get("/console/import").await;
                let is_running = answer.header("refresh").is_some();
                page = answer.text();
                assert_eq!(is_running, page.contains("It goes on"), "{page}");
                !is_running
            });
            page
        };
        assert_eq!(upload(&writer, "other", "import").await.status, 403);
        assert_eq!(upload(&reader, &token, "import").await.status, 403);
        assert_eq!(upload(&writer, &token, "burn").await.status, 400);
        let list = "/v1/subscriptions?source=crm";

        assert_eq!(upload(&writer, &token, "try").await.status, 303);
        let page = ended().await;
        assert!(page.contains("Trial ended: the whole file was read. Nothing was kept."), "{page}");
        assert!(page.contains("<dt>New</dt><dd>2</dd>") && page.contains("<dt>Refused</dt><dd>1</dd>"), "{page}");
        assert!(page.contains("data-label=\"Line\">4</th>") && !page.contains("<b>"), "{page}");
        assert_eq!(app.walk(list).await.len(), 0);

        assert_eq!(upload(&writer, &token, "import").await.status, 303);
        let page = ended().await;
        assert!(page.contains("Import ended: the whole file was read.") && page.contains("<dt>New</dt><dd>2</dd>"), "{page}");
        let imported = app.walk(list).await;
        assert_eq!(imported.len(), 2);
        assert_eq!(history(app, &imported[1]).await[0]["actor"], "writer");
        assert_eq!(upload(&writer, &token, "import").await.status, 303);
        assert!(ended().await.contains("<dt>There already</dt><dd>2</dd>"));
    }

    async fn people_sign_in_at_the_openid_provider(database) {
        let key = SigningKey::p256("api");
        let provider = Provider::start(&key).await;
        let settings = |client_secret: Option<&str>| OpenIdSettings {
            issuer: provider.base.clone(),
            description: Address::of_description(&provider.base).expect("an address"),
            client_id: "console".to_owned(),
            client_secret: client_secret.map(str::to_owned),
            scopes: vec!["tollgate_reader".to_owned(), "tollgate_writer".to_owned()],
            base: "http://tollgate.example".to_owned(),
        };
        let keys = Address::parse(&format!("{}/keys", provider.base)).expect("an address");
        let trust = Trust {
            issuers: vec![(provider.base.clone(), Source::At(keys))],
            audiences: vec!["tollgate".to_owned()],
            pace: Pace { timeout: Duration::from_secs(10), ..Pace::default() },
            patience: Patience { limit: Duration::from_secs(10), places: 10 },
        };
        let console_openid = Some(settings(Some("se:cret")));
        let app = &database.app_with(Options { api_trust: Some(trust), console_openid, ..Options::default() }).await;
        app.register("email").await;
        let subscription = app.subscribe("jane", &["email"], "2026-01-01T00:00:00Z", None).await;

        let sign_in_page = app.send("GET", "/console/sign-in?next=/console/subject?type=user%26id=jane", &[], "").await.text();
        assert!(sign_in_page.contains("href=\"/console/openid?next=%2Fconsole%2Fsubject"), "{sign_in_page}");
        let begun = app.send("GET", "/console/openid?next=/console/catalogue", &[], "").await;
        let cookie = begun.header("set-cookie").expect("a cookie").to_owned();
        assert!(cookie.starts_with("tollgate-sign-in=") && cookie.contains("Max-Age=900; HttpOnly; SameSite=Lax"), "{cookie}");
        let location = begun.header("location").expect("a place").to_owned();
        assert!(location.starts_with(&format!("{}/authorize?response_type=code&client_id=console&", provider.base)), "{location}");
        assert!(location.contains("redirect_uri=http%3A%2F%2Ftollgate.example%2Fconsole%2Fopenid%2Fcallback&scope=openid%20tollgate_reader"));
        let asked = |name: &str| {
            let start = location.split_once(&format!("&{name}=")).expect(name).1;
            start.split('&').next().expect("a value").to_owned()
        };
        let (state, nonce, challenge) = (asked("state"), asked("nonce"), asked("code_challenge"));
        assert_eq!(asked("code_challenge_method"), "S256");
        let kept = cookie_of(&begun);
        let callback = async |query: &str, cookie: &str| {
            app.send("GET", &format!("/console/openid/callback?{query}"), &[("cookie", cookie), ("sec-fetch-site", "cross-site")], "").await
        };
        let end = app.now().timestamp() + 900;
        let access = key.sign(&json!({
            "iss": provider.base, "aud": "tollgate", "sub": "alice", "scope": "openid tollgate_writer", "exp": end,
        }));
        let id_token = |changes: &Value| {
            let mut claims = json!({"iss": provider.base, "aud": "console", "sub": "alice", "exp": end, "nonce": nonce});
            for (name, value) in changes.as_object().expect("an object") {
                claims[name] = value.clone();
            }
            key.sign(&claims)
        };
        let answer = |id_token: &str| json!({"access_token": access, "token_type": "Bearer", "id_token": id_token});
        let good = format!("code=c%2F1&state={state}");

        // What is no answer to this browser's question.
        provider.answer_with(&answer(&id_token(&json!({}))));
        for (query, cookie, status) in [
            (good.as_str(), "a=b", 400),
            ("code=c&state=other", &kept, 400),
            ("code=c", &kept, 400),
            (&format!("{good}&iss=https%3A%2F%2Fevil.example"), &kept, 400),
            (&format!("error=access_denied&state={state}"), &kept, 401),
        ] {
            let refused = callback(query, cookie).await;
            assert_eq!((refused.status.as_u16(), refused.header("set-cookie")), (status, None), "{query}");
        }
        assert_eq!(provider.forms().len(), 0, "the provider was not asked for any of these");
        for changes in [json!({"nonce": "other"}), json!({"aud": "another"}), json!({"iss": "https://evil.example"})] {
            provider.answer_with(&answer(&id_token(&changes)));
            assert_eq!(callback(&good, &kept).await.status, 502, "{changes}");
        }
        provider.answer_with(&json!({"access_token": "x.y.z", "token_type": "Bearer", "id_token": id_token(&json!({}))}));
        assert_eq!(callback(&good, &kept).await.status, 401, "a token that the API does not take");

        provider.answer_with(&answer(&id_token(&json!({"aud": ["other", "console"]}))));
        let done = callback(&good, &kept).await;
        assert_eq!(done.status, 200, "{}", done.text());
        assert!(done.text().contains("content=\"0; url=/console/catalogue\""), "{}", done.text());
        let (head, form) = provider.forms().pop().expect("a form");
        // "console:se%3Acret"
        assert!(head.contains("authorization: Basic Y29uc29sZTpzZSUzQWNyZXQ="), "{head}");
        assert!(form.starts_with("grant_type=authorization_code&code=c%2F1&redirect_uri=http%3A%2F%2Ftollgate.example"), "{form}");
        let verifier = form.rsplit_once("code_verifier=").expect("a verifier").1;
        assert_eq!(part(ring::digest::digest(&ring::digest::SHA256, verifier.as_bytes())), challenge);

        let cookies: Vec<_> = done.headers.get_all("set-cookie").iter().map(|cookie| cookie.to_str().expect("text")).collect();
        assert!(cookies[0].contains("SameSite=Strict") && cookies[1].starts_with("tollgate-sign-in=; Path=/; Max-Age=0"), "{cookies:?}");
        let browser = Browser { app, cookie: cookies[0].split(';').next().expect("a pair").to_owned() };
        assert!(browser.page("/console").await.contains("openid:alice</bdi> (writer)"));
        browser.change(&change_path("jane", "cancel", &subscription)).await;
        assert_eq!(history(app, &subscription).await.pop().expect("a change")["actor"], "openid:alice");
        // Anybody may begin a sign-in; that does not make the service ask the provider each time.
        let try_again = async || app.send("GET", "/console/openid", &[], "").await.status.as_u16();
        assert_eq!((try_again().await, try_again().await, provider.descriptions()), (303, 303, 1));
        app.set_now(app.now() + TimeDelta::minutes(1));
        assert_eq!((try_again().await, try_again().await, provider.descriptions()), (303, 303, 2));
        app.set_now(app.now() + TimeDelta::minutes(19));
        assert_eq!(browser.get("/console").await.status, 303, "its token has ended");
        app.set_now(app.now() - TimeDelta::minutes(2));
        assert_eq!(callback(&good, &kept).await.status, 400, "it took too long");
    }
}

/// An OpenID provider as far as the console knows it.
struct Provider {
    base: String,
    answer: Arc<Mutex<String>>,
    forms: Arc<Mutex<Vec<(String, String)>>>,
    descriptions: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Provider {
    async fn start(key: &SigningKey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let description = json!({
            "issuer": base, "authorization_endpoint": format!("{base}/authorize"), "token_endpoint": format!("{base}/token"),
            "jwks_uri": format!("{base}/keys"),
        });
        let keys = json!({"keys": [key.jwk()]});
        let (answer, forms) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Vec::new())));
        let (answer_there, forms_there) = (Arc::clone(&answer), Arc::clone(&forms));
        let descriptions = Arc::new(AtomicUsize::new(0));
        let descriptions_there = Arc::clone(&descriptions);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
                let (head, body) = loop {
                    let length = stream.read(&mut buffer).await.expect("a request");
                    received.extend_from_slice(&buffer[..length]);
                    let text = String::from_utf8_lossy(&received).into_owned();
                    if let Some((head, body)) = text.split_once("\r\n\r\n") {
                        let wanted = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                        if body.len() >= wanted.map_or(0, |length| length.parse().expect("a number")) || length == 0 {
                            break (head.to_owned(), body.to_owned());
                        }
                    } else {
                        assert!(length > 0, "a request that breaks off");
                    }
                };
                let body = match head.split(' ').nth(1).expect("a path") {
                    "/keys" => keys.to_string(),
                    "/token" => {
                        forms_there.lock().expect("no panic").push((head, body));
                        answer_there.lock().expect("no panic").clone()
                    }
                    _ => {
                        descriptions_there.fetch_add(1, Ordering::Relaxed);
                        description.to_string()
                    }
                };
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.expect("written");
            }
        });
        Self { base, answer, forms, descriptions, _serving: serving }
    }

    fn answer_with(&self, tokens: &Value) {
        *self.answer.lock().expect("no panic") = tokens.to_string();
    }

    /// How often it was asked for its description.
    fn descriptions(&self) -> usize {
        self.descriptions.load(Ordering::Relaxed)
    }

    fn forms(&self) -> Vec<(String, String)> {
        self.forms.lock().expect("no panic").clone()
    }
}
