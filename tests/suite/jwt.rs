//! The tokens that Access signs for the hooks: every form that it has sent, its keys as they come and go, and what
//! somebody else might send in the place of it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use ring::hmac;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollgate::http::auth::{
    HookAuth,
    issuer::{Address, Pace, Source},
};

use crate::{
    issuer::{ACCESS_CLIENT, AUDIENCE, ISSUER, Issuer, Mode, SCOPE, SigningKey, claims, claims_with, part},
    support::{
        ACCESS_TOKEN, Answer, App, HOOK_CREDENTIALS, JSON, LEEWAY, MICROSECOND, Options, TOKEN, Trust, eventually,
        instant, measured, on_both, only_on,
    },
};

const BODY: &str = r#"{"client":{"id":"c"},"scopes":["openid"]}"#;
/// Longer than anything here should take.
const LONG: Duration = Duration::from_secs(30);

fn trusting(trust: Trust) -> Options {
    Options { hook_trust: Some((trust, vec![SCOPE.to_owned()])), ..Options::default() }
}

async fn ask(app: &App, token: &str) -> Answer {
    app.send("POST", ACCESS_TOKEN, &[("authorization", &format!("Bearer {token}")), JSON], BODY).await
}

async fn is_taken(app: &App, token: &str) -> bool {
    let answer = ask(app, token).await;
    match answer.status.as_u16() {
        200 => true,
        401 => {
            answer.expect_problem(401, "unauthorized");
            assert!(answer.header("www-authenticate").is_some_and(|challenge| challenge.contains("Bearer")));
            false
        }
        other => panic!("{other}: {}", answer.text()),
    }
}

/// Waits until the first answer of the issuer has come.
async fn with_keys(app: &App) {
    let read = format!(r#"tollgate_jwt_key_refreshes_total{{issuer="{ISSUER}",outcome="read",surface="hooks"}}"#);
    eventually!("keys", LONG, app.metric(&read).await > 0.5);
}

only_on! { Sqlite:
    async fn tokens_of_every_form_that_access_has_sent_are_taken(database) {
        let key = SigningKey::rsa("current");
        let issuer = Issuer::with(&[&key]).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        let clients = [json!({"client_id": null, "cid": ACCESS_CLIENT}), json!({}), json!({"cid": ACCESS_CLIENT})];
        let scopes = [
            json!({"scope": SCOPE}), json!({"scope": [SCOPE]}), json!({"scope": ["onewelcome_webhook_test", SCOPE]}),
            json!({"scope": format!("onewelcome_webhook_test {SCOPE}")}), json!({}),
        ];
        let audiences = [json!({}), json!({"aud": [AUDIENCE]}), json!({"aud": ["https://other.example.com", AUDIENCE]})];
        let others = [
            json!({}), json!({"jti": "AT.4027b2b3-b3f8-4ff9-bef7-c7a0f01d6bec", "iat": 1_781_524_800}),
            json!({"nbf": 1_781_524_800, "ver": "1.0", "nested": {"a": [1]}}), json!({"exp": 1_781_525_700.5}),
        ];
        let mut forms = vec![json!({})];
        for parts in [&clients[..], &scopes, &audiences, &others] {
            let mut longer = Vec::new();
            for form in &forms {
                for part in parts {
                    let mut form = form.clone();
                    form.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
                    longer.push(form);
                }
            }
            forms = longer;
        }
        for form in &forms {
            assert!(is_taken(&app, &key.sign(&claims_with(form))).await, "{form}");
        }
        assert_eq!(forms.len(), 180);
        for header in [
            json!({"alg": "RS256"}), json!({"alg": "RS256", "kid": null}), json!({"alg": "RS256", "kid": "current", "typ": "JWT"}),
            json!({"alg": "RS256", "kid": "current", "typ": "at+jwt", "x5t": "x", "cty": "y"}),
        ] {
            assert!(is_taken(&app, &key.sign_with(&header, &claims())).await, "{header}");
        }
        let token = key.sign(&claims());
        for scheme in ["bearer", "BEARER  "] {
            let answer = app.send("POST", TOKEN, &[("authorization", &format!("{scheme} {token}")), JSON], BODY).await;
            assert_eq!(answer.expect(200), json!({"reducedScopes": ["openid"]}), "the older hook");
        }
        assert_eq!(issuer.requests(), 1, "one look at the keys is enough for all");
    }

    async fn the_key_says_which_algorithms_it_is_good_for(database) {
        let mut keys = vec![SigningKey::rsa("current"), SigningKey::p256("p256"), SigningKey::p384("p384"), SigningKey::p521("p521")];
        let issuer = Issuer::with(&keys.iter().collect::<Vec<_>>()).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        let mut algorithms = BTreeSet::new();
        for signer in &keys {
            for algorithm in signer.algorithms() {
                algorithms.insert(*algorithm);
                for key in &keys {
                    let token = signer.sign_with(&json!({"alg": algorithm, "kid": key.id}), &claims());
                    assert_eq!(is_taken(&app, &token).await, key.id == signer.id, "{algorithm} by {} as {}", signer.id, key.id);
                }
                assert!(is_taken(&app, &signer.sign_with(&json!({"alg": algorithm}), &claims())).await, "{algorithm}");
            }
        }
        assert_eq!(algorithms.len(), 9, "{algorithms:?}");
        // Keys that say what they are for: one algorithm each, or something else altogether.
        keys.truncate(1);
        let key = &keys[0];
        let jwk = |id: &str, changes: Value| {
            let mut jwk = key.named(id).jwk();
            jwk.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
            jwk
        };
        issuer.publish_set(json!({"keys": [
            jwk("only-ps384", json!({"alg": "PS384"})), jwk("encrypts", json!({"use": "enc"})), jwk("wraps", json!({"key_ops": ["wrapKey"]})),
            jwk("verifies", json!({"use": null, "key_ops": ["verify"]})), jwk("unknown", json!({"alg": "RSA-OAEP"})), jwk("secret", json!({"kty": "oct", "k": "c2VjcmV0"})),
            jwk("no-modulus", json!({"n": ""})), jwk("padded", json!({"n": format!("{}==", key.jwk()["n"].as_str().expect("text"))})),
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "edwards"}, 5, {},
            serde_json::from_str::<Value>(include_str!("keys/weak.jwk.json")).expect("a key"),
        ]}));
        let app = database.app_with(trusting(issuer.trust())).await;
        for (id, algorithm, expected) in [
            ("only-ps384", "PS384", true), ("only-ps384", "PS256", false), ("only-ps384", "RS384", false), ("only-ps384", "RS256", false),
            ("verifies", "RS256", true), ("verifies", "PS512", true),
        ] {
            let token = key.sign_with(&json!({"alg": algorithm, "kid": id}), &claims());
            assert_eq!(is_taken(&app, &token).await, expected, "{id} {algorithm}");
        }
        for id in ["encrypts", "wraps", "unknown", "secret", "no-modulus", "padded", "edwards"] {
            assert!(!is_taken(&app, &key.sign_with(&json!({"alg": "RS256", "kid": id}), &claims())).await, "{id}");
        }
        assert!(!is_taken(&app, include_str!("keys/weak.jwt").trim()).await, "1,024 bits are too few");
        assert!((app.metric(&format!(r#"tollgate_jwt_keys{{issuer="{ISSUER}",surface="hooks"}}"#)).await - 2.0).abs() < 0.1);
    }

    async fn a_token_is_valid_until_the_microsecond_before_its_end(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        let (start, end) = (instant("2026-06-15T12:00:00Z"), instant("2026-06-15T12:15:00Z"));
        let token = key.sign(&claims());
        app.set_now(end + LEEWAY - MICROSECOND);
        assert!(is_taken(&app, &token).await, "seen for the first time");
        assert!(is_taken(&app, &token).await, "remembered");
        app.set_now(end + LEEWAY);
        assert!(!is_taken(&app, &token).await, "remembered, and over");
        assert!(!is_taken(&app, &key.sign(&claims_with(&json!({"jti": "first"})))).await, "seen for the first time, and over");
        let token = key.sign(&claims_with(&json!({"exp": 1_781_525_700.25})));
        app.set_now(end + TimeDelta::milliseconds(250) + LEEWAY - MICROSECOND);
        assert!(is_taken(&app, &token).await);
        app.set_now(end + TimeDelta::milliseconds(250) + LEEWAY);
        assert!(!is_taken(&app, &token).await);
        let token = key.sign(&claims_with(&json!({"nbf": start.timestamp()})));
        app.set_now(start - LEEWAY - MICROSECOND);
        assert!(!is_taken(&app, &token).await, "not yet");
        app.set_now(start - LEEWAY);
        assert!(is_taken(&app, &token).await);
    }

    async fn an_audience_is_compared_exactly_and_may_be_one_of_several(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let audiences = vec![AUDIENCE.to_owned(), "https://hooks.example.com/old/".to_owned()];
        let app = database.app_with(trusting(Trust { audiences, ..issuer.trust() })).await;
        for (audience, expected) in [
            (json!(AUDIENCE), true), (json!("https://hooks.example.com/old/"), true), (json!(["x", AUDIENCE]), true),
            (json!("https://hooks.example.com/"), false), (json!("https://hooks.example.com/old"), false), (json!("HTTPS://hooks.example.com"), false),
            (json!([]), false), (json!([format!("{AUDIENCE} x")]), false), (json!(""), false),
        ] {
            assert_eq!(is_taken(&app, &key.sign(&claims_with(&json!({"aud": audience})))).await, expected, "{audience}");
        }
    }

    async fn one_web_hook_alone_is_let_in_by_a_scope_of_its_own(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let scopes = vec![SCOPE.to_owned(), "onewelcome_webhook_test".to_owned()];
        let app = database.app_with(Options { hook_trust: Some((issuer.trust(), scopes)), ..Options::default() }).await;
        assert!(is_taken(&app, &key.sign(&claims())).await);
        for scope in [SCOPE.to_owned(), "onewelcome_webhook_test".to_owned(), format!("{SCOPE} onewelcome_webhook_other")] {
            assert!(!is_taken(&app, &key.sign(&claims_with(&json!({"scope": scope})))).await, "{scope}");
        }
    }

    async fn a_key_that_is_new_opens_at_once_while_the_budget_lasts_and_soon_after_it(database) {
        let keys = ["previous", "current", "next"].map(SigningKey::rsa);
        let [previous, current, next] = &keys;
        let issuer = Issuer::with(&[previous, current]).await;
        let mut trust = issuer.trust();
        trust.pace.budget = 2;
        let app = database.app_with(trusting(trust.clone())).await;
        for key in [previous, current] {
            assert!(is_taken(&app, &key.sign(&claims())).await);
        }
        let (old, token) = (previous.sign(&claims()), next.sign(&claims()));
        assert!(!is_taken(&app, &token).await, "it is not published yet");
        assert_eq!(issuer.requests(), 2, "and the issuer was asked");

        issuer.publish(&[current, next]);
        let begun = Instant::now();
        assert!(is_taken(&app, &token).await, "it is published");
        measured("a new key, until its first token is taken", begun.elapsed());
        assert!(!is_taken(&app, &old).await, "the previous key was withdrawn, and its tokens are not remembered");
        assert!(is_taken(&app, &current.sign(&claims())).await);
        assert_eq!(issuer.requests(), 3);

        // The budget is used up: nothing is asked any more, until the next look in the background.
        let newest = SigningKey::p256("newest");
        issuer.publish(&[&newest]);
        for _ in 0..20 {
            assert!(!is_taken(&app, &newest.sign(&claims())).await);
        }
        assert_eq!(issuer.requests(), 3);
        let interval = Duration::from_millis(300);
        let app = database.app_with(trusting(Trust { pace: Pace { interval, budget: 0, ..trust.pace }, ..trust })).await;
        assert!(is_taken(&app, &newest.sign(&claims())).await);
        issuer.publish(&[current]);
        let waited = eventually!("the new key", LONG, is_taken(&app, &current.sign(&claims())).await);
        measured("a new key without a budget, looked for each 300 ms", waited);
        assert!(!is_taken(&app, &newest.sign(&claims())).await, "withdrawn");
    }

    async fn a_token_that_is_remembered_ends_with_its_key(database) {
        let (key, other) = (SigningKey::p256("k"), SigningKey::p256("other"));
        let issuer = Issuer::with(&[&key]).await;
        let interval = Duration::from_millis(200);
        let mut trust = issuer.trust();
        trust.pace = Pace { interval, ..trust.pace };
        let app = database.app_with(trusting(trust)).await;
        let token = key.sign(&claims());
        assert!(is_taken(&app, &token).await && is_taken(&app, &token).await);
        issuer.publish(&[&key, &other]);
        let asked = issuer.requests();
        eventually!("two more looks", LONG, issuer.requests() >= asked + 2);
        assert!(is_taken(&app, &token).await, "its key is still there");
        issuer.publish(&[&other]);
        let waited = eventually!("the end of the token", LONG, !is_taken(&app, &token).await);
        measured("a withdrawn key, looked for each 200 ms", waited);
    }

    async fn many_that_need_a_new_key_ask_for_it_once(database) {
        let (key, next) = (SigningKey::p256("k"), SigningKey::p256("next"));
        let issuer = Issuer::with(&[&key]).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        with_keys(&app).await;
        issuer.publish(&[&key, &next]);
        issuer.set(Mode::Slow(Duration::from_millis(300)));
        let app = Arc::new(app);
        let mut asking = JoinSet::new();
        for number in 0..100 {
            let (app, token) = (Arc::clone(&app), next.sign(&claims_with(&json!({"jti": number.to_string()}))));
            asking.spawn(async move { is_taken(&app, &token).await });
        }
        assert!(asking.join_all().await.into_iter().all(|taken| taken));
        assert!(issuer.requests() <= 3, "{}", issuer.requests());
    }

    async fn few_may_wait_for_an_issuer_that_is_slow_and_good_tokens_need_not(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let mut trust = issuer.trust();
        trust.patience.places = 2;
        let app = Arc::new(database.app_with(trusting(trust)).await);
        let good = key.sign(&claims());
        assert!(is_taken(&app, &good).await);
        issuer.set(Mode::Slow(LONG));
        let mut waiting = JoinSet::new();
        for number in 0..2 {
            let (app, token) = (Arc::clone(&app), key.named(&format!("random-{number}")).sign(&claims()));
            waiting.spawn(async move { ask(&app, &token).await.status.as_u16() });
        }
        eventually!("the issuer was asked", LONG, issuer.requests() == 2);
        for number in 2..20 {
            assert!(!is_taken(&app, &key.named(&format!("random-{number}")).sign(&claims())).await);
            assert!(is_taken(&app, &good).await);
        }
        assert_eq!(waiting.len(), 2);
        assert_eq!(waiting.join_all().await, [503, 503], "those who waited got no answer");
    }

    async fn a_key_without_a_name_hides_no_other(database) {
        let (nameless, next) = (SigningKey::p256("k"), SigningKey::p256("next"));
        let mut jwk = nameless.jwk();
        jwk.as_object_mut().expect("an object").remove("kid");
        let issuer = Issuer::with(&[]).await;
        issuer.publish_set(json!({"keys": [jwk]}));
        let app = database.app_with(trusting(issuer.trust())).await;
        assert!(is_taken(&app, &nameless.sign(&claims())).await, "whatever it is called");
        issuer.publish_set(json!({"keys": [jwk, next.jwk()]}));
        assert!(is_taken(&app, &next.sign(&claims())).await, "the issuer is asked for it");
        assert_eq!(issuer.requests(), 2);
    }

    async fn without_keys_it_is_not_ready_where_tokens_are_all_there_is(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        issuer.set(Mode::Down);
        let mut trust = issuer.trust();
        trust.pace = Pace { retry: Duration::from_millis(50), ..trust.pace };
        let both = database.app_with(trusting(trust.clone())).await;
        let app = database.app_with(Options { hook_auth: HookAuth::default(), ..trusting(trust) }).await;
        let ready = async |app: &App| app.send_to(app.operations, "GET", "/readyz", &[], "").await;
        ready(&app).await.expect_problem(503, "keys_unavailable");
        assert_eq!(ready(&both).await.status, 200, "a password can be told from others");
        issuer.publish(&[&key]);
        eventually!("ready", LONG, ready(&app).await.status == 200);
        issuer.set(Mode::Down);
        assert_eq!(ready(&app).await.status, 200, "the last good keys will do");
    }

    async fn random_key_ids_reach_the_issuer_no_more_often_than_the_budget_says(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        let good = key.sign(&claims());
        assert!(is_taken(&app, &good).await);
        let begun = Instant::now();
        for number in 0..5000 {
            let token = key.sign_with(&json!({"alg": "ES256", "kid": format!("random-{number}")}), &claims());
            assert!(!is_taken(&app, &token).await);
            if number % 50 == 0 {
                assert!(is_taken(&app, &good).await);
            }
        }
        measured("5,000 random key ids, one after the other", begun.elapsed());
        assert_eq!(issuer.requests(), 3, "its start, and the budget of two");
    }

    async fn the_last_good_keys_stay_whatever_the_issuer_answers(database) {
        let (key, next) = (SigningKey::p256("k"), SigningKey::p256("next"));
        let issuer = Issuer::with(&[&key]).await;
        let elsewhere = Issuer::with(&[&next]).await;
        let many = json!({"keys": (0..65).map(|number| next.named(&number.to_string()).jwk()).collect::<Vec<_>>()}).to_string();
        let modes = [
            ("down", Mode::Down), ("slow", Mode::Slow(LONG)), ("garbage", Mode::Answer(200, b"<html>".to_vec())), ("nothing", Mode::Answer(200, Vec::new())),
            ("an error", Mode::Answer(500, json!({"keys": [next.jwk()]}).to_string().into_bytes())), ("no keys", Mode::Answer(200, br#"{"keys":[]}"#.to_vec())),
            ("no set", Mode::Answer(200, next.jwk().to_string().into_bytes())), ("too many", Mode::Answer(200, many.into_bytes())),
            ("elsewhere", Mode::Redirect(format!("{}/keys", elsewhere.base))), ("50 MB", Mode::Endless),
        ];
        let mut trust = issuer.trust();
        trust.pace = Pace { timeout: Duration::from_millis(500), budget: 1000, ..trust.pace };
        for (name, mode) in modes {
            issuer.publish(&[&key]);
            let app = database.app_with(trusting(trust.clone())).await;
            let good = key.sign(&claims());
            assert!(is_taken(&app, &good).await, "{name}");
            issuer.set(mode);
            let (asked, begun) = (issuer.requests(), Instant::now());
            let answer = ask(&app, &next.sign(&claims())).await;
            let waited = begun.elapsed();
            assert!(issuer.requests() > asked, "{name}: it was not asked");
            // Whether the key exists is not known from an issuer that gave no answer.
            answer.expect_problem(503, "keys_unavailable");
            assert!(answer.header("retry-after").is_some(), "{name}");
            assert!(waited < Duration::from_secs(5), "{name}: {waited:?}");
            assert!(is_taken(&app, &good).await, "{name}: remembered");
            assert!(is_taken(&app, &key.sign(&claims_with(&json!({"jti": name})))).await, "{name}: verified by the last good keys");
            issuer.publish(&[&key, &next]);
            assert!(is_taken(&app, &next.sign(&claims())).await, "{name}: it has come back");
        }
        assert_eq!(elsewhere.requests(), 0, "no redirect is followed");
        // What the kernel holds of a connection is taken from the issuer, and not read.
        assert!(issuer.written() < 16 * 1024 * 1024, "{} bytes of 50 MB were taken", issuer.written());
    }

    async fn without_any_keys_a_token_is_neither_right_nor_wrong(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        issuer.set(Mode::Down);
        let mut trust = issuer.trust();
        trust.pace = Pace { retry: Duration::from_millis(100), ..trust.pace };
        let app = database.app_with(trusting(trust)).await;
        for _ in 0..5 {
            let answer = ask(&app, &key.sign(&claims())).await;
            answer.expect_problem(503, "keys_unavailable");
            assert!(answer.header("retry-after").is_some());
        }
        assert!(!is_taken(&app, &key.sign(&claims_with(&json!({"aud": "x"})))).await, "this one is wrong with any key");
        app.send("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], BODY).await.expect(200);
        issuer.publish(&[&key]);
        let waited = eventually!("the issuer's return", LONG, ask(&app, &key.sign(&claims())).await.status == 200);
        measured("an issuer that comes back, looked for each 100 ms or more", waited);
    }

    async fn keys_may_be_found_by_the_description_of_the_issuer(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let described = Address::parse(&format!("{}/oauth/.well-known/openid-configuration", issuer.base)).expect("an address");
        let mut trust = Trust { issuers: vec![(ISSUER.to_owned(), Source::DescribedAt(described))], ..issuer.trust() };
        trust.pace.timeout = Duration::from_secs(5);
        issuer.set(Mode::Described(format!("{}/elsewhere/keys", issuer.base)));
        let app = database.app_with(trusting(trust.clone())).await;
        assert!(is_taken(&app, &key.sign(&claims())).await);
        assert_eq!(issuer.requests(), 2);
        issuer.set(Mode::Described("http://192.0.2.1/keys".to_owned()));
        let app = database.app_with(trusting(trust)).await;
        ask(&app, &key.sign(&claims())).await.expect_problem(503, "keys_unavailable");
    }

    async fn two_issuers_have_keys_of_their_own(database) {
        let (one, two) = (SigningKey::p256("k"), SigningKey::p256("k"));
        let (first, second) = (Issuer::with(&[&one]).await, Issuer::with(&[&two]).await);
        let other = "https://other.example.com/oauth";
        let mut trust = first.trust();
        trust.issuers.push((other.to_owned(), second.trust().issuers.remove(0).1));
        let app = database.app_with(trusting(trust)).await;
        for (key, name, expected) in [(&one, ISSUER, true), (&two, other, true), (&one, other, false), (&two, ISSUER, false)] {
            assert_eq!(is_taken(&app, &key.sign(&claims_with(&json!({"iss": name})))).await, expected, "{name}");
        }
        assert_eq!((first.requests(), second.requests()), (1, 1));
    }

    async fn a_method_that_fails_falls_through_to_no_other(database) {
        let key = SigningKey::p256("k");
        let issuer = Issuer::with(&[&key]).await;
        let open = Options { hook_auth: HookAuth::default().with_basic("hook", "hook").with_none(), ..trusting(issuer.trust()) };
        let app = database.app_with(open).await;
        let (good, bad) = (key.sign(&claims()), key.sign(&claims_with(&json!({"aud": "x"}))));
        for (authorization, expected) in [
            (None, 200), (Some("Basic aG9vazpob29r".to_owned()), 200), (Some(format!("Bearer {good}")), 200), (Some("Basic aG9vazp4".to_owned()), 401),
            (Some("Basic".to_owned()), 401), (Some(format!("Bearer {bad}")), 401), (Some("Bearer".to_owned()), 401),
            (Some("Bearer aG9vazpob29r".to_owned()), 401), (Some(format!("Basic {good}")), 401), (Some("Digest x".to_owned()), 401),
        ] {
            let headers = authorization.iter().map(|value| ("authorization", value.as_str())).chain([JSON]).collect::<Vec<_>>();
            let answer = app.send("POST", ACCESS_TOKEN, &headers, BODY).await;
            assert_eq!(answer.status, expected, "{authorization:?}");
        }
        let both = [("authorization", "Basic aG9vazpob29r"), ("authorization", &format!("Bearer {good}")), JSON];
        app.send("POST", ACCESS_TOKEN, &both, BODY).await.expect_problem(401, "unauthorized");
        // Each method alone, and how it asks for credentials.
        let closed = trusting(issuer.trust());
        let basic = database.app_with(Options::default()).await;
        let both = database.app_with(closed.clone()).await;
        let jwt = database.app_with(Options { hook_auth: HookAuth::default(), ..closed }).await;
        for (app, challenge, by_basic, by_token) in [
            (&basic, r#"Basic realm="tollgate", charset="UTF-8""#, 200, 401),
            (&both, r#"Basic realm="tollgate", charset="UTF-8", Bearer realm="tollgate""#, 200, 200),
            (&jwt, r#"Bearer realm="tollgate""#, 401, 200),
        ] {
            let answer = app.send("POST", ACCESS_TOKEN, &[JSON], BODY).await;
            answer.expect_problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some(challenge));
            assert_eq!(app.send("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], BODY).await.status, by_basic);
            assert_eq!(ask(app, &good).await.status, by_token);
        }
    }
}

/// What an attacker has: the public keys, keys of its own, a token of somewhere else, and imagination.
struct Attacker {
    real: SigningKey,
    curve: SigningKey,
    own: SigningKey,
    elsewhere: String,
    corpus: Vec<(String, String)>,
}

impl Attacker {
    fn add(&mut self, name: impl Into<String>, token: impl Into<String>) {
        self.corpus.push((name.into(), token.into()));
    }

    /// A header that the issuer would never write, signed by whom it says as well as that goes.
    fn header(&mut self, header: &Value) {
        let token = self.own.sign_with(header, &claims());
        self.add(format!("header {header}"), token);
    }

    /// Tokens without a signature, or with one that anybody can make.
    fn forge(&mut self) {
        for algorithm in
            ["none", "None", "NONE", "nOnE", "", "RS1", "EdDSA", "ES256K", "HS256", "rs256", "RS256 ", "RSA-OAEP"]
        {
            for signature in ["", "AA", "e30"] {
                let header = part(json!({"alg": algorithm, "kid": "current"}).to_string());
                let message = format!("{header}.{}", part(claims().to_string()));
                self.add(format!("{algorithm:?} with {signature:?}"), format!("{message}.{signature}"));
            }
        }
        let jwk = self.real.jwk();
        let modulus = jwk["n"].as_str().expect("text").to_owned();
        let secrets = [
            modulus.clone().into_bytes(),
            jwk.to_string().into_bytes(),
            modulus.as_bytes()[..32].to_vec(),
            Vec::new(),
            b"secret".to_vec(),
        ];
        for (algorithm, hmac_algorithm) in
            [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
        {
            for (number, secret) in secrets.iter().enumerate() {
                let header = part(json!({"alg": algorithm, "kid": "current"}).to_string());
                let message = format!("{header}.{}", part(claims().to_string()));
                let tag = hmac::sign(&hmac::Key::new(hmac_algorithm, secret), message.as_bytes());
                self.add(format!("{algorithm} with public knowledge {number}"), format!("{message}.{}", part(tag)));
            }
        }
        for key in ["current", "p256"] {
            for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"] {
                self.header(&json!({"alg": algorithm, "kid": key}));
            }
        }
    }

    fn headers(&mut self) {
        let (own, place) = (self.own.jwk(), format!("{}/evil/keys", self.elsewhere));
        for more in [
            json!({"jku": place}),
            json!({"x5u": place}),
            json!({"jwk": own}),
            json!({"x5c": ["MIIB"]}),
            json!({"jku": place, "kid": "own"}),
            json!({"crit": ["exp"]}),
            json!({"crit": []}),
            json!({"crit": null}),
            json!({"crit": "exp"}),
            json!({"b64": false, "crit": ["b64"]}),
        ] {
            let mut header = json!({"alg": "RS256", "kid": "current"});
            header.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            self.header(&header);
            if header.get("crit").is_some() {
                let token = self.real.sign_with(&header, &claims());
                self.add(format!("signed, with {header}"), token);
            }
        }
        for header in [
            json!({}),
            json!({"kid": "current"}),
            json!({"alg": null}),
            json!({"alg": 256}),
            json!({"alg": ["RS256"]}),
            json!({"alg": {"name": "RS256"}}),
            json!({"alg": "RS256", "kid": 5}),
            json!({"alg": "RS256", "kid": ["current"]}),
            json!(["RS256", "current"]),
            json!("RS256"),
            json!(null),
        ] {
            let token = self.real.sign_parts("RS256", header.to_string().as_bytes(), claims().to_string().as_bytes());
            self.add(format!("signed, with header {header}"), token);
        }
        // The issuer is not asked for a key that a token of these claims names.
        for id in [
            "../../etc/passwd",
            "' OR 1=1 --",
            "\u{0}",
            "http://127.0.0.1/keys",
            &"k".repeat(2000),
            "current\n",
            "CURRENT",
        ] {
            let token = self.own.sign_with(
                &json!({"alg": "RS256", "kid": id}),
                &claims_with(&json!({"aud": "https://other.example.com"})),
            );
            self.add(format!("kid {id:?}"), token);
        }
    }

    /// Claims that are wrong, signed by the real key: the issuer serves others too.
    fn claims(&mut self) {
        for (name, values) in [
            (
                "iss",
                json!([null, "", "https://tenant.example.com/oauth/", "https://tenant.example.com", "http://tenant.example.com/oauth", "HTTPS://TENANT.EXAMPLE.COM/oauth", 5, true, ["https://tenant.example.com/oauth"], {"iss": 1}, "https://tenant.example.com/oauth\u{0}", " https://tenant.example.com/oauth", self.elsewhere]),
            ),
            (
                "aud",
                json!([null, "", "https://hooks.example.com/", "https://hooks.example.co", "https://hooks.example.com.evil", "HTTPS://HOOKS.EXAMPLE.COM", 5, false, [], [[AUDIENCE]], {"aud": AUDIENCE}, [AUDIENCE, 5], "https://other.example.com", format!("{AUDIENCE} {AUDIENCE}")]),
            ),
            (
                "exp",
                json!([null, "1781525700", "", 0, -1, 1_781_524_770, 1_700_000_000, 1e20, -1e20, 1e300, true, [1_781_525_700], {"exp": 1_781_525_700}, 9_007_199_254_740_993_i64, i64::MAX, i64::MIN, u64::MAX]),
            ),
            ("nbf", json!([1_781_524_831, "1781524800", 1e20, true, [], 1_781_525_700])),
            (
                "scope",
                json!([null, "", "onewelcome_webhook", "onewelcome_webhooks2", "ONEWELCOME_WEBHOOKS", "openid profile", "onewelcome_webhooks,openid", "onewelcome_webhooks\topenid", [], ["openid"], [["onewelcome_webhooks"]], ["onewelcome_webhooks", 5], ["onewelcome_webhooks openid"], 5, true, {"onewelcome_webhooks": true}]),
            ),
            (
                "sub",
                json!([
                    null,
                    "",
                    "onewelcomeaccesswebhookclient",
                    "onewelcomeAccessWebHookClient ",
                    "somebody",
                    5,
                    [ACCESS_CLIENT]
                ]),
            ),
            ("client_id", json!([null, "", "onewelcomeAccessWebHookClient2", "somebody", 5, [ACCESS_CLIENT]])),
            ("cid", json!(["", "somebody", 5, [ACCESS_CLIENT]])),
        ] {
            for value in values.as_array().expect("a list") {
                let token = self.real.sign(&claims_with(&json!({name: value})));
                self.add(format!("{name} {value}"), token);
            }
        }
    }

    /// Texts that are hardly tokens.
    fn shapes(&mut self) {
        let good = self.real.sign(&claims());
        let (message, signature) = good.rsplit_once('.').expect("two dots");
        let (message, signature) = (message.to_owned(), signature.to_owned());
        for text in [
            "",
            ".",
            "..",
            "...",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "e30.e30.e30",
            "e30.e30.",
            "null.null.null",
            &message,
            &format!("{message}."),
        ] {
            self.add(format!("text {text:.20}"), text);
        }
        self.add("JWE", format!("{good}.{signature}.{signature}"));
        for (name, changed) in [
            ("padded", format!("{good}==")),
            ("quoted", format!("\"{good}\"")),
            ("twice", format!("{good},{good}")),
            ("more after it", format!("{good} x")),
            ("a blank inside", good.replacen('.', " .", 1)),
            ("plus and slash", format!("{message}.{}", STANDARD.encode([255; 256]))),
            (
                "nested",
                self.real.sign_parts("RS256", br#"{"alg":"RS256","kid":"current","cty":"JWT"}"#, good.as_bytes()),
            ),
            ("without its last letter", good[..good.len() - 1].to_owned()),
            ("with one letter more", format!("{good}A")),
        ] {
            self.add(name, changed);
        }
        for at in (0..signature.len()).step_by(17) {
            let mut changed = signature.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            self.add(
                format!("signature changed at {at}"),
                format!("{message}.{}", String::from_utf8(changed).expect("letters")),
            );
        }
        for length in [0, 1, 64, 128, 255, 257] {
            self.add(format!("{length} zeros as signature"), format!("{message}.{}", part(vec![0; length])));
        }
        let raised = part(claims_with(&json!({"scope": format!("{SCOPE} admin")})).to_string());
        self.add("claims exchanged", format!("{}.{raised}.{signature}", message.split('.').next().expect("a header")));
        let curve = self.curve.sign(&claims());
        let (message, signature) = curve.rsplit_once('.').expect("two dots");
        self.add("r and s exchanged", {
            let bytes = self.curve.signature("ES256", message.as_bytes());
            format!("{message}.{}", part([&bytes[32..], &bytes[..32]].concat()))
        });
        for signature in [
            vec![0; 64],
            vec![255; 64],
            [[0; 32], [1; 32]].concat(),
            vec![0; 96],
            b"\x30\x06\x02\x01\x01\x02\x01\x01".to_vec(),
        ] {
            self.add(format!("{} bytes on a curve", signature.len()), format!("{message}.{}", part(signature)));
        }
        self.add("a signature of RSA's length on a curve", format!("{message}.{}", signature.repeat(4)));
    }

    /// Claims in forms that JSON should not have, all of them signed.
    fn documents(&mut self) {
        let good = claims().to_string();
        let inside = good.trim_start_matches('{').to_owned();
        let exp = r#""exp":1781525700"#;
        for (name, text) in [
            ("a list", format!("[{good}]")),
            ("text", "\"claims\"".to_owned()),
            ("nothing", String::new()),
            ("cut off", good[..good.len() - 1].to_owned()),
            ("more after it", format!("{good}{good}")),
            ("a BOM", format!("\u{feff}{good}")),
            ("iss twice", format!(r#"{{"iss":"https://evil.example.com",{inside}"#)),
            ("aud twice", format!(r#"{{"aud":"https://evil.example.com",{inside}"#)),
            ("exp twice", format!(r#"{{"exp":1,{inside}"#)),
            ("exp 1e400", good.replace(exp, r#""exp":1e400"#)),
            ("exp NaN", good.replace(exp, r#""exp":NaN"#)),
            ("exp +1", good.replace(exp, r#""exp":+1781525700"#)),
            ("exp 0x", good.replace(exp, r#""exp":0x6A2FE8C4"#)),
            ("a comment", good.replacen('{', "{/**/", 1)),
            ("single quotes", good.replace('"', "'")),
            (
                "deep",
                good.replace(
                    "\"client_id\":",
                    &format!("\"scope\":{}{},\"client_id\":", "[".repeat(2500), "]".repeat(2500)),
                ),
            ),
            ("lone surrogate", format!(r#"{{"x":"\ud800","sub":"\ud800",{inside}"#)),
        ] {
            let token = self.real.sign_parts("RS256", br#"{"alg":"RS256","kid":"current"}"#, text.as_bytes());
            self.add(format!("claims with {name}"), token);
        }
        let invalid = [b"{\"sub\":\"\xff\",", inside.as_bytes()].concat();
        let token = self.real.sign_parts("RS256", br#"{"alg":"RS256","kid":"current"}"#, &invalid);
        self.add("claims that are no UTF-8", token);
        let token = self.real.sign_parts("RS256", br#"{"alg":"none","alg":"RS256","kid":"current"}"#, good.as_bytes());
        self.add("alg twice", token);
        let long = self.real.sign(&claims_with(&json!({"more": "x".repeat(6 * 1024)})));
        assert!(long.len() > 8 * 1024);
        self.add("longer than 8 KiB", long);
        self.add("1,024 bits", include_str!("keys/weak.jwt").trim());
    }
}

on_both! {
    async fn no_hostile_token_opens_anything_or_makes_anybody_be_asked(database) {
        let (real, curve) = (SigningKey::rsa("current"), SigningKey::p256("p256"));
        let issuer = Issuer::with(&[]).await;
        let weak: Value = serde_json::from_str(include_str!("keys/weak.jwk.json")).expect("a key");
        issuer.publish_set(json!({"keys": [real.jwk(), curve.jwk(), weak]}));
        let own = SigningKey::rsa("next").named("own");
        let elsewhere = Issuer::with(&[&own]).await;
        let app = database.app_with(trusting(issuer.trust())).await;
        assert!(is_taken(&app, &real.sign(&claims())).await && is_taken(&app, &curve.sign(&claims())).await);
        let mut attacker = Attacker { real: real.clone(), curve, own, elsewhere: elsewhere.base.clone(), corpus: Vec::new() };
        attacker.forge();
        attacker.headers();
        attacker.claims();
        attacker.shapes();
        attacker.documents();
        let corpus = attacker.corpus;
        let different: BTreeSet<&str> = corpus.iter().map(|(_, token)| token.as_str()).collect();
        assert!(different.len() >= 200, "{}", different.len());
        measured("hostile tokens", different.len());
        let asked = issuer.requests();
        for (name, token) in &corpus {
            for path in [ACCESS_TOKEN, TOKEN] {
                let answer = app.send("POST", path, &[("authorization", &format!("Bearer {token}")), JSON], BODY).await;
                assert_eq!(answer.status, 401, "{name}: {token}");
                answer.expect_problem(401, "unauthorized");
                assert!(answer.header("www-authenticate").is_some(), "{name}");
                assert!(token.len() < 20 || !answer.text().contains(&token[..20]), "{name} is echoed");
            }
        }
        let good = real.sign(&claims());
        for authorization in [
            "Bearer".to_owned(), format!("Bearer{good}"), format!("Bearer\t{good}"), format!("Bearer={good}"), format!("Bearer token={good}"), format!("JWT {good}"),
            format!("Basic {good}"), format!("DPoP {good}"), format!("Token {good}"), good.clone(), format!("Bearer, {good}"), format!("Bearer {good}, Basic aG9vazpob29r"),
            format!("Basic {}", STANDARD.encode(format!("bearer:{good}"))), format!("Negotiate {good}"), format!("Bearer Bearer {good}"),
        ] {
            let answer = app.send("POST", ACCESS_TOKEN, &[("authorization", &authorization), JSON], BODY).await;
            assert_eq!(answer.status, 401, "{authorization}");
        }
        let twice = [("authorization", &*format!("Bearer {good}")), ("authorization", &*format!("Bearer {good}")), JSON];
        assert_eq!(app.send("POST", ACCESS_TOKEN, &twice, BODY).await.status, 401);
        assert_eq!((issuer.requests() - asked, elsewhere.requests()), (0, 0), "somebody was asked");
        assert!(is_taken(&app, &good).await);
    }
}
