//! The tokens of the management API: who they let in, until when exactly, and what is known of them where.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tollgate::{
    domain::token::{MAX_LIVE_TOKENS, Role, TokenName},
    http::auth::{AUTHORIZATION, Access, ManagementAuth},
    service::{FeedSettings, Origin, Policy, token::NewToken},
};

use crate::{
    described::{Document, Operation},
    support::{
        ADMIN_CREDENTIALS, App, Backend, ByHand, JSON, MICROSECOND, Options, TOKEN, TestDatabase, eventually, instant,
        measured, on_both, only_on, timestamp,
    },
};

/// The promised time until a change made elsewhere is seen, with every notification lost.
const BOUND: Duration = Duration::from_secs(5);
/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);
/// How fast a request is that waits for no database, on a machine that does much else.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A secret of the right form that no token has.
const GUESS: &str = "tollgate_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The secret of a token that was just made.
fn secret_of(issued: &Value) -> String {
    issued["token"].as_str().expect("a secret").to_owned()
}

fn path_of(issued: &Value) -> String {
    format!("/v1/tokens/{}", issued["id"].as_str().expect("an id"))
}

/// The status with which a list is answered to the bearer of a secret.
async fn status(app: &App, secret: &str) -> u16 {
    app.call_as(secret, "GET", "/v1/scopes").await.status.as_u16()
}

async fn revoke(app: &App, issued: &Value) -> Value {
    app.call("POST", &format!("{}/revoke", path_of(issued))).await.expect(200)
}

/// A literal of the bytes for the database.
fn binary(backend: Backend, bytes: &[u8]) -> String {
    let hexadecimal = bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    match backend {
        Backend::Sqlite => format!("x'{hexadecimal}'"),
        Backend::Postgres => format!("'\\x{hexadecimal}'::bytea"),
    }
}

/// Makes so many tokens by hand, which end at a timestamp.
fn insert_many(backend: Backend, count: u64, end: &str) -> String {
    let (numbers, id, digest) = match backend {
        Backend::Sqlite => (
            format!("WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"),
            "randomblob(16)",
            "randomblob(32)",
        ),
        Backend::Postgres => (
            format!("WITH numbers (n) AS (SELECT generate_series(1, {count}))"),
            "gen_random_uuid()",
            "sha256(n::text::bytea)",
        ),
    };
    format!(
        "{numbers} INSERT INTO api_token (id, name, digest, role, created_at, created_by, expires_at)
        SELECT {id}, 'many-' || n, {digest}, 'reader', '2026-01-01T00:00:00+00:00', 'hand', '{end}' FROM numbers"
    )
}

/// The digests that the database holds for a secret.
fn count_digests(backend: Backend, secret: &str) -> String {
    let digest = binary(backend, &Sha256::digest(secret));
    format!("SELECT count(*) FROM api_token WHERE digest = {digest}")
}

const CHANGES_OF_TOKENS: &str = "SELECT count(*) FROM change WHERE noun = 'token'";

on_both! {
    async fn a_token_is_described_ever_after_and_its_secret_is_shown_once(database) {
        let app = database.app().await;
        let end = app.now() + TimeDelta::days(90);
        let issued = app.issue("billing", "writer", Some(&timestamp(end))).await;
        let secret = secret_of(&issued);
        let random = secret.strip_prefix("tollgate_").expect("the prefix");
        assert!(random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{secret}");
        let mut expected = issued.clone();
        expected.as_object_mut().expect("an object").remove("token");
        assert_eq!(expected, json!({
            "id": issued["id"], "name": "billing", "role": "writer", "status": "active", "expiresAt": timestamp(end),
            "createdAt": timestamp(app.now()), "createdBy": "bootstrap",
        }));
        assert_eq!(app.call("GET", &path_of(&issued)).await.expect(200), expected);
        let other = app.issue("support", "reader", None).await;
        assert_eq!((&other["expiresAt"], &other["status"]), (&json!(null), &json!("active")));
        assert_ne!(secret_of(&other), secret);

        app.set_now(end);
        assert_eq!(app.call("GET", &path_of(&issued)).await.expect(200)["status"], "expired");
        let revoked = revoke(&app, &other).await;
        assert_eq!((&revoked["status"], &revoked["revokedAt"]), (&json!("revoked"), &json!(timestamp(end))));
        let mut list = app.walk("/v1/tokens?limit=1").await;
        // Made at one instant, they are in no certain order.
        list.sort_by_key(|token| token["name"].to_string());
        let seen: Vec<_> = list.iter().map(|token| (token["name"].as_str(), token["status"].as_str())).collect();
        assert_eq!(seen, [(Some("billing"), Some("expired")), (Some("support"), Some("revoked"))]);
        assert!(list.iter().all(|token| token.get("token").is_none() && token.get("digest").is_none()), "{list:?}");
        app.call("GET", "/v1/tokens/x").await.expect_problem(404, "not_found");
        app.call("GET", &format!("/v1/tokens/{{{}}}", issued["id"].as_str().expect("an id"))).await.expect_problem(404, "not_found");
    }

    async fn pages_show_the_status_at_the_present_of_the_first_one(database) {
        let app = database.app().await;
        let end = app.now() + MICROSECOND;
        for name in ["a", "b"] {
            app.issue(name, "reader", Some(&timestamp(end))).await;
        }
        let first = app.call("GET", "/v1/tokens?limit=1").await.expect(200);
        app.set_now(end);
        let next = format!("/v1/tokens?limit=1&cursor={}", first["nextCursor"].as_str().expect("a cursor"));
        assert_eq!(app.call("GET", &next).await.expect(200)["items"][0]["status"], "active");
        assert_eq!(app.call("GET", "/v1/tokens").await.expect(200)["items"][0]["status"], "expired");
        app.refuse_query(&next.replace("/tokens?", "/scopes?"), &["?cursor"]).await;
    }

    async fn a_token_lets_in_until_it_ends_and_never_after(database) {
        let app = database.app().await;
        let end = app.now() + TimeDelta::hours(5);
        let secret = secret_of(&app.issue("limited", "reader", Some(&timestamp(end))).await);
        let endless = secret_of(&app.issue("endless", "reader", None).await);
        for (now, expected) in [(app.now(), 200), (end - MICROSECOND, 200), (end, 401), (end + MICROSECOND, 401), (end - MICROSECOND, 200)] {
            app.set_now(now);
            assert_eq!((status(&app, &secret).await, status(&app, &endless).await), (expected, 200), "{now}");
        }
        // Read anew long after it ended, it is not in memory any more; a clock that is set back finds it all the same.
        app.set_now(end + TimeDelta::days(1));
        app.issue("later", "reader", None).await;
        assert_eq!(status(&app, &secret).await, 401);
        for (now, expected) in [(end, 401), (end - MICROSECOND, 200), (end + TimeDelta::days(365), 401)] {
            app.set_now(now);
            assert_eq!((status(&app, &secret).await, status(&app, &endless).await), (expected, 200), "{now}");
        }
    }

    async fn an_end_lies_in_the_future_and_has_to_be_told(database) {
        let app = database.app().await;
        let body = |end: Value| json!({"name": "x", "role": "reader", "expiresAt": end});
        for end in [app.now(), app.now() - MICROSECOND, instant("0001-01-01T00:00:00Z")] {
            app.refuse("POST", "/v1/tokens", &body(json!(timestamp(end))), (422, "invalid_value"), &["#/expiresAt"]).await;
        }
        app.refuse("POST", "/v1/tokens", &body(json!("tomorrow")), (422, "invalid_value"), &["#/expiresAt"]).await;
        let missing = json!({"name": "x", "role": "reader"});
        app.refuse("POST", "/v1/tokens", &missing, (400, "invalid_request"), &["#/expiresAt"]).await;
        let issued = app.issue("x", "reader", Some(&timestamp(app.now() + MICROSECOND))).await;
        assert_eq!(status(&app, &secret_of(&issued)).await, 200);
    }

    async fn a_name_is_plain_not_reserved_and_given_once_for_ever(database) {
        let app = database.app().await;
        let body = |name: &str| json!({"name": name, "role": "reader", "expiresAt": null});
        for name in ["", "a b", "é", "command line", &"n".repeat(65), "bootstrap", "access", "Bootstrap"] {
            app.refuse("POST", "/v1/tokens", &body(name), (422, "invalid_value"), &["#/name"]).await;
        }
        let both = json!({"name": "", "role": "reader", "expiresAt": ""});
        app.refuse("POST", "/v1/tokens", &both, (422, "invalid_value"), &["#/name", "#/expiresAt"]).await;
        for role in ["Admin", "", "owner"] {
            let body = json!({"name": "x", "role": role, "expiresAt": null});
            app.refuse("POST", "/v1/tokens", &body, (400, "invalid_request"), &["#/role"]).await;
        }
        app.issue(&"n".repeat(64), "reader", None).await;
        let ended = app.issue("ended", "reader", Some(&timestamp(app.now() + MICROSECOND))).await;
        let revoked = app.issue("revoked", "reader", None).await;
        revoke(&app, &revoked).await;
        app.set_now(app.now() + TimeDelta::days(1));
        for name in [&ended["name"], &revoked["name"]] {
            app.refuse("POST", "/v1/tokens", &body(name.as_str().expect("a name")), (409, "token_exists"), &[]).await;
        }
    }

    async fn of_those_who_ask_for_a_name_at_once_one_gets_it(database) {
        let app = database.app().await;
        for round in 0..5 {
            let body = json!({"name": format!("wanted-{round}"), "role": "reader", "expiresAt": null});
            let answers = (0..8).map(|_| app.call_with("POST", "/v1/tokens", &body));
            let mut made = Vec::new();
            for answer in futures_util::future::join_all(answers).await {
                if answer.status == 201 {
                    made.push(secret_of(&answer.expect(201)));
                } else {
                    answer.expect_problem(409, "token_exists");
                }
            }
            assert_eq!(made.len(), 1);
            assert_eq!(status(&app, &made[0]).await, 200);
        }
    }

    async fn there_is_room_for_so_many_live_tokens_and_the_count_is_exact(database) {
        let app = database.app().await;
        let hand = ByHand::open(&database.url).await;
        let end = app.now() + TimeDelta::hours(1);
        hand.run(&insert_many(database.backend, MAX_LIVE_TOKENS - 1, "2026-06-15T13:00:00+00:00")).await;
        assert_eq!(timestamp(end), "2026-06-15T13:00:00Z");
        let body = |name: &str| json!({"name": name, "role": "reader", "expiresAt": null});
        // Two at once, and room for one.
        let (a, b) = (body("a"), body("b"));
        let answers = [app.call_with("POST", "/v1/tokens", &a), app.call_with("POST", "/v1/tokens", &b)];
        let mut statuses: Vec<_> = futures_util::future::join_all(answers).await.iter().map(|answer| answer.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409]);
        app.refuse("POST", "/v1/tokens", &body("c"), (409, "too_many_tokens"), &[]).await;
        app.set_now(end - MICROSECOND);
        app.refuse("POST", "/v1/tokens", &body("c"), (409, "too_many_tokens"), &[]).await;
        app.set_now(end);
        let made = app.call_with("POST", "/v1/tokens", &body("c")).await.expect(201);
        app.set_now(end - MICROSECOND);
        app.refuse("POST", "/v1/tokens", &body("d"), (409, "too_many_tokens"), &[]).await;
        revoke(&app, &made).await;
        hand.run("UPDATE api_token SET revoked_at = '2026-06-15T12:00:00+00:00' WHERE name = 'many-1'").await;
        app.call_with("POST", "/v1/tokens", &body("d")).await.expect(201);
        app.refuse("POST", "/v1/tokens", &body("e"), (409, "too_many_tokens"), &[]).await;
    }

    async fn a_revocation_holds_from_its_answer_on(database) {
        let app = Arc::new(database.app().await);
        for round in 0..20 {
            let issued = app.issue(&format!("t-{round}"), "reader", None).await;
            let secret = secret_of(&issued);
            assert_eq!(status(&app, &secret).await, 200, "a creation is seen by the next request");
            // Others ask meanwhile, so that a load is nearly always under way.
            let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let mut readers = JoinSet::new();
            for _ in 0..3 {
                let (app, secret, over, asked) = (Arc::clone(&app), secret.clone(), Arc::clone(&over), Arc::clone(&asked));
                readers.spawn(async move {
                    loop {
                        let was_over = over.load(Ordering::SeqCst);
                        let status = status(&app, &secret).await;
                        assert!(status == 401 || status == 200 && !was_over, "{status} after the revocation was answered");
                        asked.fetch_add(1, Ordering::SeqCst);
                        if was_over {
                            return;
                        }
                    }
                });
            }
            eventually!("they ask", PATIENCE, asked.load(Ordering::SeqCst) > 3);
            revoke(&app, &issued).await;
            over.store(true, Ordering::SeqCst);
            assert_eq!(status(&app, &secret).await, 401);
            while let Some(reader) = readers.join_next().await {
                reader.expect("none was let in");
            }
            app.call("POST", &format!("{}/revoke", path_of(&issued))).await.expect_problem(409, "already_revoked");
        }
    }

    async fn one_that_has_ended_may_be_revoked_and_a_revocation_is_for_good(database) {
        let app = database.app().await;
        let (start, end) = (app.now(), app.now() + TimeDelta::hours(1));
        let issued = app.issue("t", "reader", Some(&timestamp(end))).await;
        app.set_now(end);
        assert_eq!(revoke(&app, &issued).await["status"], "revoked");
        app.set_now(start);
        assert_eq!(app.call("GET", &path_of(&issued)).await.expect(200)["status"], "revoked");
        assert_eq!(status(&app, &secret_of(&issued)).await, 401);
        let strict = database.app_with(Options { require_if_match: true, ..Options::default() }).await;
        let other = strict.issue("other", "reader", None).await;
        assert_eq!(revoke(&strict, &other).await["status"], "revoked", "nothing holds a revocation up");
    }

    async fn each_role_may_call_what_the_table_says_and_no_more(database) {
        let app = database.app().await;
        let mut counts = [0, 0];
        for role in Role::ALL {
            let secret = secret_of(&app.issue(role.as_str(), role.as_str(), None).await);
            let bearer = format!("Bearer {secret}");
            for Operation { id, method, path, .. } in Document::all().iter().flat_map(Document::operations) {
                let (_, access) = AUTHORIZATION.iter().find(|(operation, _)| *operation == id).expect("listed");
                let path = path.replace("{name}", "none").replace("{id}", "none");
                let answer = app.send(&method, &path, &[("authorization", &bearer), JSON], "{").await;
                match access {
                    Access::Hook => _ = answer.expect_problem(401, "unauthorized"),
                    Access::Api(needed) if role < *needed => {
                        let problem = answer.expect_problem(403, "forbidden");
                        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(needed.as_str())), "{problem}");
                        counts[0] += 1;
                    }
                    Access::Api(_) => {
                        assert!(![401, 403].contains(&answer.status.as_u16()), "{role:?} {id}: {}", answer.text());
                        counts[1] += 1;
                    }
                }
            }
        }
        assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
    }

    async fn the_form_of_a_bearer_token_says_what_it_is_and_a_failure_is_final(database) {
        let bootstrap = "tollgate_bootstrap";
        let options = Options { management_auth: ManagementAuth::default().with_bootstrap(bootstrap), ..Options::default() };
        let (app, odd) = (database.app().await, database.app_with(options).await);
        let secret = secret_of(&app.issue("t", "admin", None).await);
        assert_eq!(status(&odd, bootstrap).await, 401, "it is an API token by its form, and none by its digest");
        for wrong in [
            GUESS, "tollgate_", &secret[..secret.len() - 1], &format!("{secret}="), &secret.to_uppercase(), &format!("{secret}{}", "A".repeat(8 * 1024)),
            secret.strip_prefix("tollgate_").expect("the prefix"), &format!("Tollgate_{}", &secret["tollgate_".len()..]), "tollgate_admin-token",
        ] {
            let answer = app.call_as(wrong, "GET", "/v1/scopes").await;
            answer.expect_problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some(r#"Bearer realm="tollgate", error="invalid_token""#));
        }
        for scheme in ["Basic", "Token", ""] {
            let header = format!("{scheme} {secret}");
            app.send("GET", "/v1/scopes", &[("authorization", header.trim())], "").await.expect_problem(401, "unauthorized");
        }
        let twice = [("authorization", &*format!("Bearer {secret}")), ADMIN_CREDENTIALS];
        app.send("GET", "/v1/scopes", &twice, "").await.expect_problem(401, "unauthorized");
        app.send("POST", TOKEN, &[twice[0], JSON], "{}").await.expect_problem(401, "unauthorized");
        assert_eq!((status(&app, &secret).await, status(&app, "admin-token").await), (200, 200));
    }

    async fn what_a_bearer_does_is_recorded_under_the_name_of_the_token(database) {
        let app = database.app().await;
        let hand = ByHand::open(&database.url).await;
        let secret = secret_of(&app.issue("root-2", "admin", None).await);
        let bearer = format!("Bearer {secret}");
        let headers = [("authorization", &*bearer), JSON, ("x-request-id", "r-1")];
        let body = json!({"name": "second", "role": "reader", "expiresAt": null}).to_string();
        let made = app.send("POST", "/v1/tokens", &headers, body).await.expect(201);
        assert_eq!(made["createdBy"], "root-2");
        app.send("POST", &format!("{}/revoke", path_of(&made)), &headers[..2], "").await.expect(200);
        for (actor, action) in [("bootstrap", "create"), ("root-2", "create"), ("root-2", "revoke")] {
            let count = format!("{CHANGES_OF_TOKENS} AND actor = '{actor}' AND action = '{action}' AND token_id IN (SELECT id FROM api_token)");
            assert_eq!(hand.ask::<i64>(&count).await, 1, "{actor} {action}");
        }
    }

    async fn the_database_holds_the_digest_alone(database) {
        let app = database.app().await;
        let secret = secret_of(&app.issue("t", "reader", None).await);
        assert_eq!(status(&app, &secret).await, 200);
        app.service.write_uses().await;
        let hand = ByHand::open(&database.url).await;
        assert_eq!(hand.ask::<i64>(&count_digests(database.backend, &secret)).await, 1);
        let random = secret.strip_prefix("tollgate_").expect("the prefix");
        match database.backend {
            Backend::Sqlite => {
                let file = database.url.strip_prefix("sqlite://").and_then(|url| url.split('?').next()).expect("a file");
                for file in [file.to_owned(), format!("{file}-wal")] {
                    let bytes = std::fs::read(&file).expect("the file");
                    assert!(!bytes.windows(random.len()).any(|window| window == random.as_bytes()), "{file}");
                }
            }
            Backend::Postgres => {
                for table in ["api_token", "change"] {
                    let count = format!("SELECT count(*) FROM {table} AS row WHERE row::text LIKE '%{random}%'");
                    assert_eq!(hand.ask::<i64>(&count).await, 0, "{table}");
                }
            }
        }
    }

    async fn a_secret_shows_in_no_dump(database) {
        let app = database.app().await;
        let origin = Origin { actor: "test".to_owned(), request_id: "r".to_owned(), idempotency: None };
        let name = TokenName::parse("t").expect("a name");
        let new = NewToken { name, role: Role::Reader, expires_at: None };
        let (shown, secret) = app.service.create_token(origin, new).await.expect("made");
        assert_eq!(status(&app, secret.expose()).await, 200);
        let dump = format!("{secret:?} {shown:?} {:?}", app.service);
        assert!(!dump.contains(&secret.expose()["tollgate_".len()..]), "{dump}");
    }

    async fn when_a_token_was_last_used_moves_forward_only_and_leaves_no_trace_else(database) {
        let (app, replica) = (database.app().await, database.app().await);
        let hand = ByHand::open(&database.url).await;
        let issued = app.issue("t", "reader", None).await;
        let (secret, start) = (secret_of(&issued), app.now());
        let last_used = async || app.call("GET", &path_of(&issued)).await.expect(200).get("lastUsedAt").cloned();
        eventually!("both know it", PATIENCE, status(&replica, &secret).await == 200);
        assert_eq!(last_used().await, None, "it is written from time to time, and not by the request");
        let changes: i64 = hand.ask(CHANGES_OF_TOKENS).await;
        let later = start + TimeDelta::minutes(5);
        for (who, used_at, expected) in [
            (&app, start, start), (&replica, later, later), (&app, start + TimeDelta::minutes(2), later), (&app, later + MICROSECOND, later + MICROSECOND),
        ] {
            who.set_now(used_at);
            assert_eq!(status(who, &secret).await, 200);
            who.service.write_uses().await;
            assert_eq!(last_used().await, Some(json!(timestamp(expected))), "{used_at}");
        }
        // What did not let anybody in is no use.
        app.set_now(later + TimeDelta::hours(1));
        assert_eq!(status(&app, GUESS).await, 401);
        revoke(&app, &issued).await;
        assert_eq!(status(&app, &secret).await, 401);
        app.service.write_uses().await;
        assert_eq!(last_used().await, Some(json!(timestamp(later + MICROSECOND))));
        assert_eq!(hand.ask::<i64>(CHANGES_OF_TOKENS).await, changes + 1, "the revocation");
    }

    async fn when_a_token_was_last_used_is_written_at_the_end(database) {
        let app = database.app().await;
        let secret = secret_of(&app.issue("t", "reader", None).await);
        assert_eq!(status(&app, &secret).await, 200);
        app.service.close().await;
        let hand = ByHand::open(&database.url).await;
        assert_eq!(hand.ask::<i64>("SELECT count(*) FROM api_token WHERE last_used_at IS NOT NULL").await, 1);
    }

    async fn without_the_database_nobody_is_let_in_from_a_memory_that_may_be_wrong(database) {
        let policy = Policy { max_age: Duration::from_secs(5), ..Options::default().policy };
        let app = database.app_with(Options { policy, ..Options::default() }).await;
        let secret = secret_of(&app.issue("t", "reader", None).await);
        assert_eq!(status(&app, &secret).await, 200);
        app.database.close().await;
        // What is known is known without a query: of one that would be asked the answer would be a 503.
        for _ in 0..20 {
            assert_eq!(status(&app, GUESS).await, 401, "a guess asks no database");
        }
        let who = "/v1/scopes?nonsense";
        app.call_as(&secret, "GET", who).await.expect_problem(400, "invalid_request");
        // It grows old, and it may have been revoked meanwhile.
        let took = eventually!("doubt", PATIENCE, app.call_as(&secret, "GET", who).await.status == 503);
        measured("doubt after", took);
        for secret in [&secret, GUESS] {
            let answer = app.call_as(secret, "GET", who).await;
            answer.expect_problem(503, "unavailable");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        app.call("GET", who).await.expect_problem(400, "invalid_request");
    }

    async fn what_is_changed_by_hand_is_seen_when_memory_is_old(database) {
        let policy = Policy { max_age: Duration::from_millis(300), ..Options::default().policy };
        let app = database.app_with(Options { policy, ..Options::default() }).await;
        let secret = secret_of(&app.issue("t", "reader", None).await);
        assert_eq!(status(&app, &secret).await, 200);
        let hand = ByHand::open(&database.url).await;
        hand.run("UPDATE api_token SET revoked_at = '2026-06-15T12:00:00+00:00'").await;
        eventually!("it is revoked", BOUND, status(&app, &secret).await == 401);
        hand.run("UPDATE api_token SET revoked_at = NULL").await;
        eventually!("it is not", BOUND, status(&app, &secret).await == 200);
    }
}

/// The second of two replicas hears of what the first one makes and revokes.
async fn follow(database: &Arc<TestDatabase>, prefix: &str, wake_up: bool) {
    let options = Options { feed: FeedSettings { wake_up }, ..Options::default() };
    let (writer, replica) = (database.app().await, database.app_with(options).await);
    assert_eq!(status(&replica, GUESS).await, 401, "its memory is filled");
    for round in 0..3 {
        let issued = writer.issue(&format!("{prefix}-{round}"), "reader", None).await;
        let secret = secret_of(&issued);
        let known = eventually!("it is known", BOUND, status(&replica, &secret).await == 200);
        revoke(&writer, &issued).await;
        let gone = eventually!("it is revoked", BOUND, status(&replica, &secret).await == 401);
        measured(prefix, (known, gone));
    }
}

only_on! { Postgres:
    async fn tokens_that_are_made_at_the_same_moment_count_each_other(database) {
        let app = Arc::new(database.app().await);
        let (hand, other) = (ByHand::open(&database.url).await, ByHand::open(&database.url).await);
        hand.run(&insert_many(database.backend, MAX_LIVE_TOKENS - 1, "2026-06-15T13:00:00+00:00")).await;
        // Both get as far as they can before the other one is there: to recording the change.
        hand.run("BEGIN; LOCK TABLE change IN EXCLUSIVE MODE").await;
        let mut making = JoinSet::new();
        for name in ["a", "b"] {
            let app = Arc::clone(&app);
            let body = json!({"name": name, "role": "reader", "expiresAt": null});
            making.spawn(async move { app.call_with("POST", "/v1/tokens", &body).await.status.as_u16() });
        }
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database \
            WHERE NOT granted AND datname = current_database()";
        eventually!("both wait", BOUND, other.ask::<i64>(waiting).await == 2);
        hand.run("COMMIT").await;
        let mut statuses = making.join_all().await;
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409]);
    }
}

only_on! { Postgres:
    async fn another_replica_hears_of_a_token_and_of_its_end(database) {
        follow(&database, "woken", true).await;
        follow(&database, "unwoken", false).await;
    }

    async fn writing_when_a_token_was_used_holds_nobody_up_and_is_done_later(database) {
        let app = database.app().await;
        let hand = ByHand::open(&database.url).await;
        let issued = app.issue("t", "reader", None).await;
        let secret = secret_of(&issued);
        assert_eq!(status(&app, &secret).await, 200);
        hand.run("BEGIN").await;
        hand.run("SELECT 1 FROM api_token FOR UPDATE").await;
        let service = Arc::clone(&app.service);
        let writing = tokio::spawn(async move { service.write_uses().await });
        for _ in 0..20 {
            let asked = std::time::Instant::now();
            assert_eq!(status(&app, &secret).await, 200);
            assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
        }
        // The lock is waited for no longer than the session's limit; what could not be written is kept.
        writing.await.expect("it ends");
        assert_eq!(hand.ask::<i64>("SELECT count(*) FROM api_token WHERE last_used_at IS NOT NULL").await, 0);
        hand.run("ROLLBACK").await;
        app.service.write_uses().await;
        assert_eq!(hand.ask::<i64>("SELECT count(*) FROM api_token WHERE last_used_at IS NOT NULL").await, 1);
    }

    async fn while_changes_made_elsewhere_are_not_heard_of_those_who_guess_share_their_queries(database) {
        let policy = Policy { max_age: Duration::ZERO, ..Options::default().policy };
        let app = Arc::new(database.app_with(Options { policy, ..Options::default() }).await);
        let hand = ByHand::open(&database.url).await;
        let secret = secret_of(&app.issue("t", "reader", None).await);
        // Nothing is believed for any time, so each request asks; while one query waits, all others wait for the next.
        hand.run("BEGIN").await;
        hand.run("LOCK TABLE api_token IN ACCESS EXCLUSIVE MODE").await;
        let mut asking = JoinSet::new();
        for index in 0..50 {
            let (app, secret) = (Arc::clone(&app), if index % 2 == 0 { secret.clone() } else { GUESS.to_owned() });
            asking.spawn(async move { status(&app, &secret).await });
        }
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually!("a query waits", PATIENCE, hand.ask::<i64>(waiting).await > 0);
        assert_eq!(hand.ask::<i64>(waiting).await, 1);
        hand.run("ROLLBACK").await;
        let mut statuses = BTreeSet::new();
        while let Some(status) = asking.join_next().await {
            statuses.insert(status.expect("an answer"));
        }
        assert_eq!(statuses, BTreeSet::from([200, 401]));
    }
}
