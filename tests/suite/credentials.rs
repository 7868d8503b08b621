//! Who is let in where: every route with every kind of credential and every role, and what becomes of those who guess.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tollgate::http::auth::{HookAuth, guard::Allowance};

use crate::{
    issuer::{ACCESS_CLIENT, AUDIENCE, ISSUER, Issuer, SCOPE, SigningKey, claims, claims_with},
    support::{
        ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, ByHand, HOOK_CREDENTIALS, JSON, Options, TestDatabase, Trust,
        on_both, only_on,
    },
};

const BODY: &str = r#"{"client":{"id":"c"},"scopes":["openid"]}"#;
/// Whom the tokens of the OpenID provider are for.
const API: &str = "https://api.example.com";

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Needs {
    Nothing,
    Hook,
    Reader,
    Writer,
    Admin,
}

/// Every route, and who may call it. One that is added needs a row here.
const ROUTES: [(&str, &str, Needs); 40] = [
    ("POST", "/v1/customize-access-token", Needs::Hook),
    ("POST", "/v1/customize-token", Needs::Hook),
    ("GET", "/v1/scopes", Needs::Reader),
    ("POST", "/v1/scopes", Needs::Admin),
    ("GET", "/v1/scopes/{name}", Needs::Reader),
    ("PATCH", "/v1/scopes/{name}", Needs::Admin),
    ("DELETE", "/v1/scopes/{name}", Needs::Admin),
    ("GET", "/v1/subscriptions", Needs::Reader),
    ("POST", "/v1/subscriptions", Needs::Writer),
    ("GET", "/v1/subscriptions/{id}", Needs::Reader),
    ("PATCH", "/v1/subscriptions/{id}", Needs::Writer),
    ("DELETE", "/v1/subscriptions/{id}", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/cancel", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/uncancel", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/pause", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/resume", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/renew", Needs::Writer),
    ("POST", "/v1/subscriptions/{id}/restore", Needs::Writer),
    ("GET", "/v1/subscriptions/by-external-id", Needs::Reader),
    ("PUT", "/v1/subscriptions/by-external-id", Needs::Writer),
    ("POST", "/v1/subscriptions/batch", Needs::Writer),
    ("POST", "/v1/subscriptions/import", Needs::Writer),
    ("GET", "/v1/subscriptions/export", Needs::Reader),
    ("GET", "/v1/subscriptions/{id}/history", Needs::Reader),
    ("GET", "/v1/changes", Needs::Reader),
    ("GET", "/v1/entitlements", Needs::Reader),
    ("POST", "/v1/explain", Needs::Reader),
    ("GET", "/v1/tokens", Needs::Admin),
    ("POST", "/v1/tokens", Needs::Admin),
    ("GET", "/v1/tokens/{id}", Needs::Admin),
    ("POST", "/v1/tokens/{id}/revoke", Needs::Admin),
    ("GET", "/openapi/hooks.yaml", Needs::Nothing),
    ("GET", "/openapi/management.yaml", Needs::Nothing),
    ("GET", "/docs", Needs::Nothing),
    ("GET", "/docs/hooks", Needs::Nothing),
    ("GET", "/livez", Needs::Nothing),
    ("GET", "/readyz", Needs::Nothing),
    ("GET", "/metrics", Needs::Nothing),
    ("GET", "/version", Needs::Nothing),
    // A method that the router answers by itself, on any path.
    ("HEAD", "/v1/scopes", Needs::Reader),
];

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing that anybody takes.
    Nobody,
    /// What Access shows.
    Hook,
    /// One of the API that stands for no role.
    NoRole,
    /// One of the API.
    Api(Needs),
}

impl Kind {
    /// The status with which it is refused, if it is.
    fn refusal(self, needs: Needs) -> Option<u16> {
        match (needs, self) {
            (Needs::Nothing, _) | (Needs::Hook, Self::Hook) => None,
            (Needs::Hook, _) | (_, Self::Nobody | Self::Hook) => Some(401),
            (_, Self::NoRole) => Some(403),
            (needs, Self::Api(role)) => (role < needs).then_some(403),
        }
    }
}

/// A token of the management API.
async fn create_token(app: &App, name: &str, role: &str, expires_at: Option<&str>) -> Value {
    let body = json!({"name": name, "role": role, "expiresAt": expires_at});
    app.call_with("POST", "/v1/tokens", &body).await.expect(201)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// What the OpenID provider writes into a token for the API.
fn api_claims(subject: &str, scope: &str) -> Value {
    claims_with(&json!({"aud": API, "sub": subject, "scope": scope, "client_id": "console"}))
}

struct Stage {
    app: App,
    key: SigningKey,
    _issuer: Issuer,
}

/// A service that takes every kind of credential, of one issuer for both.
async fn stage(database: &TestDatabase) -> Stage {
    let key = SigningKey::p256("k");
    let issuer = Issuer::with(&[&key]).await;
    let options = Options {
        hook_trust: Some((issuer.trust(), vec![SCOPE.to_owned()])),
        api_trust: Some(Trust { audiences: vec![API.to_owned()], ..issuer.trust() }),
        ..Options::default()
    };
    Stage { app: database.app_with(options).await, key, _issuer: issuer }
}

/// Every kind of credential, as the header `Authorization`.
async fn credentials(Stage { app, key, .. }: &Stage) -> Vec<(&'static str, String, Kind)> {
    let mut all = vec![
        ("another scheme", "Digest x".to_owned(), Kind::Nobody),
        ("a wrong password", "Basic aG9vazp3cm9uZw==".to_owned(), Kind::Nobody),
        ("a wrong token", bearer("wrong"), Kind::Nobody),
        ("an unknown token", bearer(&format!("tollgate_{}", "A".repeat(43))), Kind::Nobody),
        ("a password", HOOK_CREDENTIALS.1.to_owned(), Kind::Hook),
        ("a token of Access", bearer(&key.sign(&claims())), Kind::Hook),
        ("the bootstrap token", ADMIN_CREDENTIALS.1.to_owned(), Kind::Api(Needs::Admin)),
        ("OpenID without a role", bearer(&key.sign(&api_claims("alice", "openid"))), Kind::NoRole),
        ("OpenID without a scope", bearer(&key.sign(&api_claims("alice", ""))), Kind::NoRole),
        ("OpenID of the hooks' scope", bearer(&key.sign(&api_claims(ACCESS_CLIENT, SCOPE))), Kind::NoRole),
        ("the hooks' audience", bearer(&key.sign(&claims_with(&json!({"scope": "tollgate_admin"})))), Kind::Nobody),
        ("OpenID that is over", bearer(&key.sign(&claims_with(&json!({"aud": API, "exp": 1})))), Kind::Nobody),
    ];
    for (role, scope, needs) in [
        ("reader", "tollgate_reader", Needs::Reader),
        ("writer", "openid tollgate_writer", Needs::Writer),
        ("admin", "tollgate_reader tollgate_admin", Needs::Admin),
    ] {
        let token = create_token(app, role, role, None).await;
        all.push((role, bearer(token["token"].as_str().expect("a secret")), Kind::Api(needs)));
        all.push((role, bearer(&key.sign(&api_claims("alice", scope))), Kind::Api(needs)));
    }
    let soon = crate::support::timestamp(app.now() + crate::support::MICROSECOND);
    let expired = create_token(app, "expired", "admin", Some(&soon)).await;
    all.push(("an expired token", bearer(expired["token"].as_str().expect("a secret")), Kind::Nobody));
    let revoked = create_token(app, "revoked", "admin", None).await;
    let id = revoked["id"].as_str().expect("an id");
    app.call("POST", &format!("/v1/tokens/{id}/revoke")).await.expect(200);
    all.push(("a revoked token", bearer(revoked["token"].as_str().expect("a secret")), Kind::Nobody));
    app.set_now(app.now() + crate::support::MICROSECOND);
    all
}

/// How a route of the table answers to a credential.
async fn ask(app: &App, method: &str, path: &str, authorization: Option<&str>) -> Answer {
    let path = path.replace("{name}", "absent").replace("{id}", "018f0000-0000-7000-8000-000000000000");
    let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().chain([JSON]).collect();
    let is_operators = ["/livez", "/readyz", "/metrics", "/version"].contains(&path.as_str());
    let address = if is_operators { app.operations } else { app.address };
    app.send_to(address, method, &path, &headers, if method == "GET" { "" } else { "{}" }).await
}

on_both! {
    async fn every_route_opens_to_its_own_credentials_and_to_no_other(database) {
        let stage = stage(&database).await;
        let app = &stage.app;
        let listed: BTreeSet<(&str, &str)> =
            ROUTES.iter().filter(|(method, ..)| *method != "HEAD").map(|(method, path, _)| (*method, *path)).collect();
        let served: BTreeSet<(&str, &str)> = app.routes.iter().map(|(method, path)| (method.as_str(), path.as_str())).collect();
        assert_eq!(listed, served, "a route without a row, or a row without a route");
        let credentials = credentials(&stage).await;
        assert!(credentials.len() >= 19);
        for (method, path, needs) in ROUTES {
            let nobody = ask(app, method, path, None).await;
            assert_eq!(refusal(&nobody), Kind::Nobody.refusal(needs), "{method} {path} without credentials");
            for (name, authorization, kind) in &credentials {
                let answer = ask(app, method, path, Some(authorization)).await;
                assert_eq!(refusal(&answer), kind.refusal(needs), "{method} {path} with {name}: {}", answer.text());
                assert!(answer.status.as_u16() < 500, "{method} {path} with {name}: {}", answer.text());
            }
        }
    }

    async fn the_credential_that_acts_is_the_actor_of_the_change(database) {
        let stage = stage(&database).await;
        let app = &stage.app;
        let by_hand = ByHand::open(&database.url).await;
        let token = create_token(app, "billing", "admin", None).await;
        let register = async |name: &str, authorization: &str| {
            let headers = [("authorization", authorization), JSON];
            app.send("POST", "/v1/scopes", &headers, json!({"name": name}).to_string()).await.expect(201);
            by_hand.ask::<String>("SELECT actor FROM change ORDER BY seq DESC LIMIT 1").await
        };
        assert_eq!(register("a", ADMIN_CREDENTIALS.1).await, "bootstrap");
        assert_eq!(register("b", &bearer(token["token"].as_str().expect("a secret"))).await, "billing");
        let alice = stage.key.sign(&api_claims("alice", "tollgate_admin"));
        assert_eq!(register("c", &bearer(&alice)).await, "openid:alice");
        let long = format!("x\u{0}y\n{}", "z".repeat(1000));
        let long = stage.key.sign(&api_claims(&long, "tollgate_admin"));
        assert_eq!(register("d", &bearer(&long)).await, format!("openid:xy{}", "z".repeat(253)));
        let client = claims_with(&json!({"aud": API, "sub": null, "scope": "tollgate_admin", "client_id": "sync"}));
        assert_eq!(register("e", &bearer(&stage.key.sign(&client))).await, "openid:sync");
    }
}

/// The status, when it is one with which credentials are refused.
fn refusal(answer: &Answer) -> Option<u16> {
    let status = answer.status.as_u16();
    assert!(status != 429, "a guess too many");
    if status == 401 {
        assert!(answer.header("www-authenticate").is_some());
    }
    [401, 403].contains(&status).then_some(status)
}

only_on! { Sqlite:
    async fn two_passwords_are_live_while_one_is_exchanged_for_the_other(database) {
        let hook_auth = HookAuth::default().with_basic("hook", "hook").with_basic("next", "secret");
        let app = database.app_with(Options { hook_auth, ..Options::default() }).await;
        for (credentials, expected) in [
            ("Basic aG9vazpob29r", 200),     // hook:hook
            ("Basic bmV4dDpzZWNyZXQ=", 200), // next:secret
            ("Basic aG9vazpzZWNyZXQ=", 401), // hook:secret
            ("Basic bmV4dDpob29r", 401),     // next:hook
        ] {
            let answer = app.send("POST", ACCESS_TOKEN, &[("authorization", credentials), JSON], BODY).await;
            assert_eq!(answer.status, expected, "{credentials}");
        }
    }

    async fn who_guesses_too_often_is_told_so_and_who_knows_is_let_in(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let options = Options {
            hook_trust: Some((issuer.trust(), vec![SCOPE.to_owned()])),
            allowance: Allowance { burst: 3, refill: Duration::from_hours(1) },
            trusted_proxies: vec!["127.0.0.0/8".parse().expect("a network")],
            ..Options::default()
        };
        let app = database.app_with(options).await;
        let hook = async |authorization: &str, from: &str| {
            let headers = [("authorization", authorization), ("x-forwarded-for", from), JSON];
            app.send("POST", ACCESS_TOKEN, &headers, BODY).await
        };
        let (good, wrong) = (HOOK_CREDENTIALS.1, "Basic aG9vazp3cm9uZw==");
        for _ in 0..3 {
            hook(wrong, "192.0.2.1").await.expect_problem(401, "unauthorized");
        }
        for _ in 0..3 {
            let answer = hook(wrong, "192.0.2.1").await;
            answer.expect_problem(429, "too_many_failures");
            let pause: u64 = answer.header("retry-after").expect("a pause").parse().expect("seconds");
            assert!((3500..=3600).contains(&pause), "{pause}");
            hook(good, "192.0.2.1").await.expect(200);
        }
        // The name was tried too often, from wherever; other names were not.
        hook(wrong, "192.0.2.2").await.expect_problem(429, "too_many_failures");
        hook("Basic b3RoZXI6d3Jvbmc=", "192.0.2.2").await.expect_problem(401, "unauthorized");
        // What is no guess is refused and nothing else, however often.
        for _ in 0..10 {
            hook("Basic !", "192.0.2.1").await.expect_problem(401, "unauthorized");
            hook("Digest x", "192.0.2.1").await.expect_problem(401, "unauthorized");
            hook(&bearer(&key.sign(&claims_with(&json!({"aud": "x"})))), "192.0.2.1").await.expect_problem(401, "unauthorized");
        }
        hook(&bearer(&key.sign(&claims())), "192.0.2.1").await.expect(200);
        // Tokens of the API are secrets too.
        let api = async |token: &str, from: &str| {
            let authorization = bearer(token);
            app.send("GET", "/v1/scopes", &[("authorization", &*authorization), ("x-forwarded-for", from)], "").await
        };
        for _ in 0..3 {
            api(&format!("tollgate_{}", "A".repeat(43)), "198.51.100.1").await.expect_problem(401, "unauthorized");
        }
        for token in ["tollgate_x", "guess"] {
            api(token, "198.51.100.1").await.expect_problem(429, "too_many_failures");
            api(token, "198.51.100.2, 198.51.100.1").await.expect_problem(429, "too_many_failures");
        }
        api("guess", "198.51.100.1, 198.51.100.2").await.expect_problem(401, "unauthorized");
        api("admin-token", "198.51.100.1").await.expect(200);
        let counted = r#"tollgate_authentication_failures_total{method="secret",reason="wrong",surface="hooks"}"#;
        assert!((app.metric(counted).await - 8.0).abs() < 0.1);
    }

    async fn a_stranger_s_word_on_where_it_comes_from_is_not_believed(database) {
        let allowance = Allowance { burst: 3, refill: Duration::from_hours(1) };
        let app = database.app_with(Options { allowance, ..Options::default() }).await;
        let mut seen = Vec::new();
        for number in 0..6 {
            let from = format!("192.0.2.{number}");
            let name = ["Basic YTp3", "Basic Yjp3", "Basic Yzp3", "Basic ZDp3", "Basic ZTp3", "Basic Zjp3"][number];
            let headers = [("authorization", name), ("x-forwarded-for", &*from), JSON];
            seen.push(app.send("POST", ACCESS_TOKEN, &headers, BODY).await.status.as_u16());
        }
        assert_eq!(seen, [401, 401, 401, 429, 429, 429]);
    }

    async fn the_issuers_of_hooks_and_of_the_api_do_not_open_each_other_s_doors(database) {
        let (access, provider) = (SigningKey::p256("k"), SigningKey::p256("k"));
        let (first, second) = (Issuer::with(&[&access]).await, Issuer::with(&[&provider]).await);
        let app = database.app_with(Options {
            hook_trust: Some((first.trust(), vec![SCOPE.to_owned()])),
            api_trust: Some(Trust { audiences: vec![API.to_owned()], ..second.trust() }),
            ..Options::default()
        }).await;
        let all = json!({"iss": ISSUER, "aud": [AUDIENCE, API], "sub": ACCESS_CLIENT, "scope": format!("{SCOPE} tollgate_admin")});
        for (key, on_hook, on_api) in [(&access, 200, 401), (&provider, 401, 200)] {
            let authorization = bearer(&key.sign(&claims_with(&all)));
            let headers = [("authorization", &*authorization), JSON];
            assert_eq!(app.send("POST", ACCESS_TOKEN, &headers, BODY).await.status, on_hook);
            assert_eq!(app.send("GET", "/v1/scopes", &headers, "").await.status, on_api);
        }
    }
}
