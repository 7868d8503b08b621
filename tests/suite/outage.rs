//! Outages: what hooks and the management API answer while the database is gone, silent or slow, and after.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use serde_json::json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};
use tollgate::{
    domain::decision::OnUnknown,
    service::{FeedSettings, Policy},
};

use crate::{
    proxy::Proxy,
    support::{
        ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, Backend, ByHand, Options, TestDatabase, eventually,
        expect_within, instant, measured, on_both, only_on, stood_still, timestamp,
    },
};

/// The time in which a hook must be answered is 500 ms; on a machine that does much else, this, and as long as it stands
/// still.
const ANSWER: Duration = Duration::from_secs(2);
/// For what only has to come at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// The management API gives up after 8 s.
const API_ANSWER: Duration = Duration::from_secs(12);

const STALE: &str = "tollgate_answers_total{freshness=\"stale\"}";
const FRESH: &str = "tollgate_answers_total{freshness=\"fresh\"}";
const CHANGES: &str = "tollgate_feed_changes_total";
const DOUBTS: &str = "tollgate_feed_doubts_total";
const SKEW: &str = "tollgate_database_clock_skew_seconds";

/// As in production, but for what `change` changes.
fn options(change: impl FnOnce(&mut Policy)) -> Options {
    let mut policy = Policy::default();
    change(&mut policy);
    Options { policy, ..Options::default() }
}

/// A service behind a proxy, with two users that it knows: one who holds the scope `email`, and one who does not.
async fn behind(proxy: &Proxy, database: &TestDatabase, options: Options) -> App {
    let app = database.app_at(&proxy.url, options).await;
    prepare(&app).await;
    app
}

/// Makes two users that the service knows.
async fn prepare(app: &App) {
    app.call_with("POST", "/v1/scopes", &json!({"name": "email", "requires": "user"})).await.expect(201);
    give(app, "holder").await;
    // The feed shows a replica its own changes too, and makes it ask once more.
    eventually!("the feed has shown both", PATIENCE, app.metric(CHANGES).await > 1.5);
    know(app).await;
}

/// Makes the service know both users.
async fn know(app: &App) {
    eventually!("all is known", PATIENCE, is_held(app, "holder").await && is_removed(app, "other").await);
}

async fn give(app: &App, user: &str) -> String {
    let id = app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", None).await["id"].clone();
    format!("/v1/subscriptions/{}", id.as_str().expect("an id"))
}

/// Asks for the scope, and tells how long the answer took.
async fn ask(app: &App, user: &str) -> (Answer, Duration) {
    let body = json!({"user": {"id": user}, "client": {"id": "c"}, "scopes": ["email", "openid"]});
    let (start, stood_still) = (Instant::now(), stood_still());
    let answer = app.ask(ACCESS_TOKEN, &body).await;
    (answer, expect_within(ANSWER, start, stood_still))
}

fn keeps(answer: &Answer) -> bool {
    answer.status == 200 && answer.expect(200)["removeScopes"] == json!([])
}

fn removes(answer: &Answer) -> bool {
    answer.status == 200 && answer.expect(200)["removeScopes"] == json!(["email"])
}

async fn is_held(app: &App, user: &str) -> bool {
    keeps(&ask(app, user).await.0)
}

async fn is_removed(app: &App, user: &str) -> bool {
    removes(&ask(app, user).await.0)
}

/// Asks for the users that are known, who must be answered as ever, and tells how long the slower answer took.
async fn ask_known(app: &App) -> Duration {
    let (holder, other) = (ask(app, "holder").await, ask(app, "other").await);
    assert!(keeps(&holder.0), "{:?}", holder.0);
    assert!(removes(&other.0), "{:?}", other.0);
    holder.1.max(other.1)
}

/// Asks for a user who is not known, without whom nothing is answered.
async fn ask_unknown(app: &App, user: &str) {
    let (answer, _) = ask(app, user).await;
    answer.expect_problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
}

async fn is_ready(app: &App) -> bool {
    app.send_to(app.operations, "GET", "/readyz", &[], "").await.status == 200
}

async fn is_open(app: &App) -> bool {
    app.metric("tollgate_breaker_open").await > 0.5
}

/// Asks the management API, and tells how long the answer took.
async fn timed(answer: impl Future<Output = Answer>) -> (Answer, Duration) {
    let (start, stood_still) = (Instant::now(), stood_still());
    let answer = answer.await;
    (answer, expect_within(API_ANSWER, start, stood_still))
}

only_on! { Postgres:
    async fn while_the_database_is_gone_the_known_are_answered_and_the_others_as_the_operator_says(database) {
        let proxy = Proxy::start(&database.url).await;
        let error = behind(&proxy, &database, options(|_| {})).await;
        let remove = database.app_at(&proxy.url, options(|policy| policy.on_unknown = OnUnknown::Remove)).await;
        let keep = database.app_at(&proxy.url, options(|policy| policy.on_unknown = OnUnknown::Keep)).await;
        let apps = [&error, &remove, &keep];
        for app in apps {
            know(app).await;
            eventually!("the breaker is closed", PATIENCE, { know(app).await; !is_open(app).await });
        }

        proxy.refuse();
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for app in apps {
            let before = app.metric(STALE).await;
            // First it is known to be right, then it was right a while ago.
            eventually!("answers from what was right a while ago", PATIENCE, {
                slowest = slowest.max(ask_known(app).await);
                app.metric(STALE).await > before + 9.5
            });
        }
        measured("until answers were stale", start.elapsed());
        measured("the slowest answer to a known subject while the database was gone", slowest);

        ask_unknown(&error, "never seen").await;
        assert!(is_removed(&remove, "never seen").await);
        assert!(is_held(&keep, "never seen").await);
        for app in apps {
            assert_eq!(app.removed(Some("never seen"), "c", &["openid", "unmanaged"]).await, [""; 0]);
            assert!(is_ready(app).await);
            eventually!("the breaker opens", PATIENCE, { ask_known(app).await; is_open(app).await });
        }

        // Connections to the database while every request would like to have one.
        let (start, before) = (Instant::now(), proxy.connections());
        while start.elapsed() < Duration::from_millis(1_500) {
            for app in apps {
                ask_known(app).await;
                ask(app, "never seen").await;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        let tries = (proxy.connections() - before) as f64 / start.elapsed().as_secs_f64() / 3.0;
        measured("connections that a replica tries in a second", tries);
        assert!(tries < 20.0, "{tries}");

        proxy.resume();
        let start = Instant::now();
        for app in apps {
            eventually!("it is back", PATIENCE, is_removed(app, "never seen").await && !is_open(app).await);
            let before = app.metric(FRESH).await;
            eventually!("all is right again", PATIENCE, {
                ask_known(app).await;
                app.metric(FRESH).await > before + 1.5
            });
        }
        measured("until all was normal after the database was back", start.elapsed());
        let path = give(&error, "never seen").await;
        eventually!("a change", PATIENCE, is_held(&remove, "never seen").await);
        error.call("POST", &format!("{path}/cancel")).await.expect(200);
        eventually!("another", PATIENCE, is_removed(&remove, "never seen").await);
    }

    async fn what_is_too_old_is_not_known(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = behind(&proxy, &database, options(|policy| {
            (policy.max_age, policy.max_stale) = (Duration::from_millis(500), Duration::from_secs(4));
        })).await;
        let unmanaged = async || app.removed(Some("holder"), "c", &["openid"]).await;
        let start = Instant::now();
        know(&app).await;
        // The catalogue is read again, the facts are not: they get too old before it does, by three seconds.
        eventually!("the catalogue is younger", PATIENCE, {
            assert_eq!(unmanaged().await, [""; 0]);
            start.elapsed() > Duration::from_millis(3_500)
        });
        proxy.refuse();
        eventually!("the facts are too old", PATIENCE, {
            let (answer, _) = ask(&app, "holder").await;
            assert!(answer.status == 503 || keeps(&answer), "{answer:?}");
            answer.status == 503
        });
        measured("until facts were too old, at 4.5 s", start.elapsed());
        assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
        assert!(is_ready(&app).await, "the catalogue is not");
        ask_unknown(&app, "holder").await;
        eventually!("the catalogue is too old", PATIENCE, !is_ready(&app).await);
        for user in ["holder", "other"] {
            ask_unknown(&app, user).await;
        }
        assert_eq!(unmanaged().await, [""; 0], "it was not in any catalogue");
        proxy.resume();
        know(&app).await;
        assert!(is_ready(&app).await);
    }

    async fn facts_that_are_known_to_be_outdated_are_not_used(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = behind(&proxy, &database, options(|_| {})).await;
        let replica = database.app_at(&proxy.url, options(|_| {})).await;
        let path = give(&app, "revoked").await;
        for app in [&app, &replica] {
            eventually!("it is known", PATIENCE, is_held(app, "revoked").await);
            know(app).await;
        }
        let before = replica.metric(CHANGES).await;
        app.call("POST", &format!("{path}/cancel")).await.expect(200);
        eventually!("the replica knows", PATIENCE, replica.metric(CHANGES).await > before + 0.5);
        proxy.refuse();
        for app in [&app, &replica] {
            ask_unknown(app, "revoked").await;
            ask_known(app).await;
        }
        proxy.resume();
        for app in [&app, &replica] {
            eventually!("it is back", PATIENCE, is_removed(app, "revoked").await);
        }
    }

    async fn connections_that_died_without_a_word_are_replaced(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = Arc::new(behind(&proxy, &database, options(|_| {})).await);
        let other = database.app().await;
        // What was used just now is not asked for a sign of life before it is used again.
        let path = give(&app, "u").await;
        eventually!("a connection lies idle", PATIENCE, {
            app.database.pool_use().iter().any(|pool| pool.pool == "api" && pool.idle == pool.open)
        });
        proxy.swallow_present();
        let start = Instant::now();
        let mut api = JoinSet::new();
        for round in 0..12 {
            let (app, path) = (Arc::clone(&app), path.clone());
            api.spawn(async move {
                let body = json!({"validUntil": "2027-01-01T00:00:00Z"});
                timed(async {
                    if round % 2 == 0 { app.call("GET", &path).await } else { app.call_with("PATCH", &path, &body).await }
                }).await
            });
        }
        let mut slowest = Duration::ZERO;
        let mut users = 0;
        eventually!("a user who was not known", PATIENCE, {
            slowest = slowest.max(ask_known(&app).await);
            users += 1;
            is_removed(&app, &format!("never seen {users}")).await
        });
        measured("until a hook was answered by another connection", start.elapsed());
        give(&other, "changed elsewhere").await;
        eventually!("a change", PATIENCE, is_held(&app, "changed elsewhere").await);
        // What was missed is covered by doubt; from then on each change is shown.
        eventually!("doubt", PATIENCE, app.metric(DOUBTS).await > 0.5);
        let path = give(&other, "changed again").await;
        eventually!("it is known", PATIENCE, is_held(&app, "changed again").await);
        let before = app.metric(CHANGES).await;
        other.call("POST", &format!("{path}/cancel")).await.expect(200);
        eventually!("the feed is heard again", PATIENCE, app.metric(CHANGES).await > before + 0.5);
        assert!(is_removed(&app, "changed again").await);
        measured("until the feed was heard again", start.elapsed());
        let mut longest = Duration::ZERO;
        while let Some(answer) = api.join_next().await {
            let (answer, time) = answer.expect("asked");
            assert!([200, 503].contains(&answer.status.as_u16()), "{answer:?}");
            (slowest, longest) = (slowest.max(ask_known(&app).await), longest.max(time));
        }
        measured("the slowest answer to a known subject meanwhile", slowest);
        measured("the slowest answer of the management API", longest);
        // Every connection of the API is good again.
        let mut api = JoinSet::new();
        for _ in 0..16 {
            let app = Arc::clone(&app);
            api.spawn(async move { timed(app.call("GET", "/v1/scopes")).await });
        }
        while let Some(answer) = api.join_next().await {
            answer.expect("asked").0.expect(200);
        }
    }

    async fn while_the_database_is_silent_no_answer_is_late(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = behind(&proxy, &database, options(|_| {})).await;
        proxy.swallow();
        let (start, mut slowest) = (Instant::now(), Duration::ZERO);
        let before = app.metric(STALE).await;
        eventually!("answers from what was right a while ago", PATIENCE, {
            slowest = slowest.max(ask_known(&app).await);
            ask_unknown(&app, "never seen").await;
            app.metric(STALE).await > before + 9.5
        });
        assert!(is_open(&app).await);
        assert!(is_ready(&app).await);
        measured("the slowest answer to a known subject while the database was silent", slowest);
        measured("until answers were stale", start.elapsed());
        proxy.resume();
        let start = Instant::now();
        eventually!("it is back", PATIENCE, is_removed(&app, "never seen").await && !is_open(&app).await);
        measured("until all was normal after the database was back", start.elapsed());
    }

    async fn while_the_database_is_slow_every_answer_comes_in_its_time(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = Arc::new(behind(&proxy, &database, options(|_| {})).await);
        proxy.delay(Duration::from_secs(1));
        let mut api = JoinSet::new();
        for user in ["a", "b"] {
            let app = Arc::clone(&app);
            api.spawn(async move {
                let body = json!({"subject": {"type": "user", "id": user}, "scopes": ["email"], "validUntil": null});
                timed(app.call_with("POST", "/v1/subscriptions", &body)).await
            });
        }
        let mut slowest = Duration::ZERO;
        let before = app.metric(STALE).await;
        eventually!("answers from what was right a while ago", PATIENCE, {
            slowest = slowest.max(ask_known(&app).await);
            app.metric(STALE).await > before + 9.5
        });
        measured("the slowest answer to a known subject while the database was slow", slowest);
        let mut created = 0;
        while let Some(answer) = api.join_next().await {
            let (answer, time) = answer.expect("asked");
            assert!([201, 503].contains(&answer.status.as_u16()), "{answer:?}");
            created += i64::from(answer.status == 201);
            measured("a write meanwhile", time);
        }
        proxy.resume();
        know(&app).await;
        let hand = ByHand::open(&database.url).await;
        let there: i64 = hand.ask("SELECT count(*) FROM subscription WHERE subject_id IN ('a', 'b')").await;
        assert!(there >= created);
    }

    async fn while_a_table_is_locked_few_sessions_wait_for_it(database) {
        let app = database.app_with(options(|_| {})).await;
        prepare(&app).await;
        let (hand, eye) = (ByHand::open(&database.url).await, ByHand::open(&database.url).await);
        hand.run("BEGIN; LOCK TABLE subscription IN ACCESS EXCLUSIVE MODE").await;
        let (start, mut most, mut users) = (Instant::now(), 0, 0);
        while start.elapsed() < Duration::from_secs(3) {
            ask_known(&app).await;
            for _ in 0..5 {
                users += 1;
                ask_unknown(&app, &format!("never seen {users}")).await;
            }
            most = most.max(eye.ask::<i64>(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            ).await);
        }
        hand.run("COMMIT").await;
        measured("sessions that waited for the table", most);
        assert!((1..=20).contains(&most), "{most}");
        let start = Instant::now();
        eventually!("it is back", PATIENCE, is_removed(&app, "never seen").await && !is_open(&app).await);
        measured("until all was normal after the table was free", start.elapsed());
    }

    async fn a_commit_without_an_answer_counts_and_is_said_to_be_unknown(database) {
        let proxy = Proxy::start(&database.url).await;
        // What is asked here is to be answered from the database, however slow the machine is.
        let patient = options(|policy| policy.hook_timeout = PATIENCE);
        let app = behind(&proxy, &database, Options { feed: FeedSettings { wake_up: false }, ..patient }).await;
        let path = give(&app, "u").await;
        assert!(is_held(&app, "u").await);
        proxy.lose_commits();
        app.call("POST", &format!("{path}/cancel")).await.expect_problem(503, "outcome_unknown");
        let (answer, _) = ask(&app, "u").await;
        assert!(removes(&answer), "the truth in the database: {answer:?}");
        let body = json!({"enforced": false});
        app.call_with("PATCH", "/v1/scopes/email", &body).await.expect_problem(503, "outcome_unknown");
        assert!(is_held(&app, "u").await);
        proxy.resume();
        assert_eq!(app.call("GET", &path).await.expect(200)["status"], "canceled");
        let errors = app.metric("tollgate_database_errors_total{kind=\"outcome_unknown\"}").await;
        assert!((1.5..2.5).contains(&errors), "{errors}");
    }

    async fn the_difference_of_the_clocks_is_shown(database) {
        let app = database.app().await;
        let hand = ByHand::open(&database.url).await;
        for minutes in [0, 5, -5] {
            let now: chrono::DateTime<chrono::Utc> = hand.ask("SELECT clock_timestamp()").await;
            app.set_now(now + TimeDelta::minutes(minutes));
            let expected = TimeDelta::minutes(-minutes).as_seconds_f64();
            eventually!("the difference", PATIENCE, {
                // The test's clock stands while the database's goes on.
                (expected - 0.5..expected + 15.0).contains(&app.metric(SKEW).await)
            });
        }
    }
}

on_both! {
    async fn decisions_follow_a_clock_that_jumps(database) {
        let app = database.app().await;
        app.register("email").await;
        let start = instant("2026-06-15T12:00:00Z");
        let minutes = |minutes| start + TimeDelta::minutes(minutes);
        app.subscribe("u", &["email"], &timestamp(minutes(-1)), Some(&timestamp(minutes(1)))).await;
        for jump in [0, 5, -5, 5, 0, -5, -1, 1, 0] {
            app.set_now(minutes(jump));
            let held = (-1..1).contains(&jump);
            assert_eq!(app.removed(Some("u"), "c", &["email"]).await.is_empty(), held, "{jump} minutes");
            let path = give(&app, &format!("written at {jump}")).await;
            app.call("POST", &format!("{path}/cancel")).await.expect(200);
        }
        assert!(is_ready(&app).await);
    }

    async fn a_client_that_hangs_up_leaves_whole_writes_behind_and_a_cache_that_knows_them(database) {
        let mut app = database.app_with(Options { feed: FeedSettings { wake_up: false }, ..Options::default() }).await;
        app.register("email").await;
        app.register("phone").await;
        let users: Vec<_> = (0..300).map(|number| format!("u{number}")).collect();
        let removed = async |app: &App, user: &str| app.removed(Some(user), "c", &["email", "phone"]).await;
        for user in &users {
            assert_eq!(removed(&app, user).await, ["email", "phone"]);
        }
        // Nobody but the write itself tells the cache.
        app.feed.shutdown().await;
        let mut clients = JoinSet::new();
        for (number, user) in users.iter().enumerate() {
            let body = json!({
                "subject": {"type": "user", "id": user}, "scopes": ["email", "phone"],
                "validFrom": "2026-01-01T00:00:00Z", "validUntil": null,
            }).to_string();
            let (name, value) = ADMIN_CREDENTIALS;
            let request = format!(
                "POST /v1/subscriptions HTTP/1.1\r\nhost: tollgate\r\n{name}: {value}\r\n\
                content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len(),
            );
            let address = app.address;
            clients.spawn(async move {
                let mut stream = TcpStream::connect(address).await.expect("a connection");
                stream.set_zero_linger().expect("an option");
                stream.write_all(request.as_bytes()).await.expect("sent");
                // At every stage of the write.
                tokio::time::sleep(Duration::from_micros(400) * u32::try_from(number % 40).expect("small")).await;
            });
            if clients.len() >= 8 {
                clients.join_next().await.expect("one").expect("hung up");
            }
        }
        clients.join_all().await;

        let hand = ByHand::open(&database.url).await;
        if database.backend == Backend::Postgres {
            eventually!("no session is left in a transaction", PATIENCE, {
                hand.ask::<i64>(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL
                    AND pid <> pg_backend_pid()",
                ).await == 0
            });
        }
        // A write that waits for its turn still comes; this one waits behind them all.
        let last = give(&app, "last").await;
        app.call("POST", &format!("{last}/cancel")).await.expect(200);
        let count = async |sql: &str| hand.ask::<i64>(sql).await;
        let mut there = 0;
        eventually!("all is quiet", PATIENCE, {
            let before = std::mem::replace(&mut there, count("SELECT count(*) FROM subscription").await);
            tokio::time::sleep(Duration::from_secs(1)).await;
            before == there
        });
        measured("subscriptions that were written, of 300", there - 1);
        assert!(there > 1);
        assert_eq!(count("SELECT count(*) FROM subscription_scope").await, (there - 1) * 2 + 1);
        assert_eq!(count("SELECT count(*) FROM change WHERE action = 'create' AND noun = 'subscription'").await, there);
        for user in &users {
            let written = count(&format!("SELECT count(*) FROM subscription WHERE subject_id = '{user}'")).await == 1;
            assert_eq!(removed(&app, user).await.is_empty(), written, "{user}");
        }
    }
}
