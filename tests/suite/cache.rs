//! The cache under load: loads are shared and bounded, and no answer is older than a write that was answered before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinSet;
use tollgate::{
    domain::{
        scope::Scope,
        subject::{Subject, SubjectId, SubjectType},
        subscription::{ScopeSet, SubscriptionPatch, SubscriptionState},
    },
    service::{
        Expected, FeedSettings, Origin, Service,
        decision::{DecisionRequest, Party},
        subscription::{NewSubscription, Write},
    },
};

use crate::{
    proxy::Proxy,
    support::{App, Backend, ByHand, Options, eventually, instant, measured, on_both, only_on},
};

/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);
/// The connections that hooks may open.
const HOOK_CONNECTIONS: u32 = 6;

const LOADS: &str = "tollgate_cache_loads_total";
const LOADED: &str = "tollgate_cache_loaded_subjects_total";
const CHANGES: &str = "tollgate_feed_changes_total";
const MISSES: &str = "tollgate_cache_lookups_total{result=\"miss\"}";

fn subject(kind: SubjectType, id: &str) -> Subject {
    Subject { kind, id: SubjectId::parse(id).expect("an id") }
}

/// Whether the user holds the scope `email`, as a hook decides it.
async fn holds(service: &Service, user: &str) -> bool {
    let (user, client) = (subject(SubjectType::User, user), subject(SubjectType::Client, "c"));
    let (user, client) = (Some(Party::Subject(user.borrowed())), Party::Subject(client.borrowed()));
    let decision = service
        .decide(DecisionRequest { user, client, scopes: &["email"], waited: Duration::ZERO })
        .await
        .expect("a decision");
    decision.removed().next().is_none()
}

/// Registers `email` as a scope that the user must hold, so that nobody asks for the client.
async fn register(app: &App) {
    app.call_with("POST", "/v1/scopes", &json!({"name": "email", "requires": "user"})).await.expect(201);
}

async fn count(app: &App, series: &str) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "a count")]
    let count = app.metric(series).await.round() as i64;
    count
}

/// Waits until the feed has shown the service so many changes of its own, each of which makes it ask once more.
async fn settle(app: &App, backend: Backend, writes: i64) {
    if backend == Backend::Postgres {
        eventually!("the feed has shown them", PATIENCE, count(app, CHANGES).await >= writes);
    }
}

fn open_hook_connections(app: &App) -> u32 {
    app.database.pool_use().iter().find(|pool| pool.pool == "hooks").expect("the pool of the hooks").open
}

on_both! {
    async fn many_who_ask_for_one_cold_user_share_one_load(database) {
        let app = Arc::new(database.app().await);
        register(&app).await;
        app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        settle(&app, database.backend, 2).await;
        let before = (count(&app, LOADS).await, count(&app, LOADED).await);
        let mut requests = JoinSet::new();
        for _ in 0..200 {
            let app = Arc::clone(&app);
            requests.spawn(async move { app.removed(Some("u"), "c", &["email"]).await });
        }
        for removed in requests.join_all().await {
            assert!(removed.is_empty());
        }
        assert_eq!((count(&app, LOADS).await, count(&app, LOADED).await), (before.0 + 1, before.1 + 1));
    }

    async fn ten_thousand_cold_users_at_once_are_answered_rightly_by_a_few_queries(database) {
        let app = database.app().await;
        register(&app).await;
        // Every third holds the scope.
        let id = match database.backend {
            Backend::Sqlite => "randomblob(16)",
            Backend::Postgres => "gen_random_uuid()",
        };
        let hand = ByHand::open(&database.url).await;
        hand.run(&format!(
            "INSERT INTO subscription (id, subject_type, subject_id, valid_from, version, created_at, updated_at)
            WITH RECURSIVE numbers (number) AS (SELECT 0 UNION ALL SELECT number + 3 FROM numbers WHERE number < 9997)
            SELECT {id}, 'user', 'u' || number, '2026-01-01T00:00:00+00:00', 1, '2026-01-01T00:00:00+00:00',
                '2026-01-01T00:00:00+00:00'
            FROM numbers;
            INSERT INTO subscription_scope (subscription_id, scope) SELECT id, 'email' FROM subscription;",
        )).await;
        let before = (count(&app, LOADS).await, count(&app, LOADED).await);
        let start = Instant::now();
        let mut requests = JoinSet::new();
        for number in 0..10_000 {
            let service = Arc::clone(&app.service);
            requests.spawn(async move { (number, holds(&service, &format!("u{number}")).await) });
        }
        let mut most_open = 0;
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND query LIKE '%unnest($1::text[], $2::text[])%' AND pid <> pg_backend_pid()";
        while let Some(answer) = requests.join_next().await {
            let (number, held) = answer.expect("an answer");
            assert_eq!(held, number % 3 == 0, "u{number}");
            if number % 100 == 0 {
                let open = match database.backend {
                    Backend::Sqlite => 0,
                    Backend::Postgres => u32::try_from(hand.ask::<i64>(sessions).await).expect("a count"),
                };
                most_open = most_open.max(open).max(open_hook_connections(&app));
            }
        }
        measured("10,000 cold users", start.elapsed());
        measured("connections for them", most_open);
        assert!(most_open <= HOOK_CONNECTIONS, "{most_open}");
        assert_eq!(count(&app, LOADED).await - before.1, 10_000);
        let loads = count(&app, LOADS).await - before.0;
        measured("queries for them", loads);
        assert!(loads <= 2_500, "{loads}");
    }

    async fn entries_outlive_the_writes_of_others(database) {
        let app = database.app().await;
        register(&app).await;
        let users: Vec<_> = (0..20).map(|number| format!("u{number}")).collect();
        for user in &users {
            app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", None).await;
        }
        settle(&app, database.backend, 21).await;
        for user in &users {
            assert!(holds(&app.service, user).await);
        }
        for _ in 0..10 {
            app.subscribe("other", &["email"], "2026-01-01T00:00:00Z", None).await;
        }
        let before = count(&app, MISSES).await;
        for user in &users {
            assert!(holds(&app.service, user).await);
        }
        // Subjects share counters, each with one in four thousand.
        assert!(count(&app, MISSES).await - before <= 1);
    }

    async fn no_answer_is_older_than_a_write_that_was_answered_before_it(database) {
        const FLIPS: u64 = 2_000;
        let app = database.app().await;
        register(&app).await;
        let origin = Origin { actor: "test".to_owned(), request_id: "r".to_owned(), idempotency: None };
        let email = Scope::parse("email").expect("a scope");
        let scopes = ScopeSet::new(vec![email]).expect("scopes");
        let holder = subject(SubjectType::User, "u");
        let state = SubscriptionState::lasting(holder, scopes, Some(instant("2026-01-01T00:00:00Z")), None);
        let create = Write::Create(NewSubscription { state, external: None });
        let created = app.service.write_subscription(origin.clone(), create).await.expect("created");
        let id = created.shown.subscription.id;
        // Writes that were begun, and writes that were answered. Each even one gives the scope, each odd one takes it.
        let (begun, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut readers = JoinSet::new();
        for _ in 0..3 {
            let (service, is_over) = (Arc::clone(&app.service), Arc::clone(&is_over));
            let (begun, answered) = (Arc::clone(&begun), Arc::clone(&answered));
            readers.spawn(async move {
                let mut checked = 0_u64;
                while !is_over.load(Ordering::SeqCst) {
                    let before = answered.load(Ordering::SeqCst);
                    let held = holds(&service, "u").await;
                    if begun.load(Ordering::SeqCst) == before {
                        // No write was under way from before the request to after it.
                        assert_eq!(held, before % 2 == 0, "after {before} writes");
                        checked += 1;
                    }
                    // The writer needs the machine too.
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
                checked
            });
        }
        let start = Instant::now();
        for flip in 1..=FLIPS {
            begun.store(flip, Ordering::SeqCst);
            let held = flip % 2 == 0;
            let valid_until = Some((!held).then(|| instant("2026-02-01T00:00:00Z")));
            let patch = SubscriptionPatch { valid_until, ..SubscriptionPatch::default() };
            let patch = Write::Patch { id, expected: Expected::Any, subject: None, patch };
            let written = app.service.write_subscription(origin.clone(), patch).await;
            answered.store(flip, Ordering::SeqCst);
            written.expect("written");
            assert_eq!(holds(&app.service, "u").await, held, "after {flip} writes");
        }
        measured("flips", start.elapsed());
        is_over.store(true, Ordering::SeqCst);
        let checked: u64 = readers.join_all().await.iter().sum();
        measured("answers of readers beside that were checked", checked);
        assert!(checked > 0);
    }
}

only_on! { Postgres:
    async fn a_load_goes_on_for_the_others_when_the_one_who_began_it_hangs_up(database) {
        let proxy = Proxy::start(&database.url).await;
        let app = Arc::new(database.app_at(&proxy.url, Options::default()).await);
        register(&app).await;
        app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await;
        let (loads, misses) = (count(&app, LOADS).await, count(&app, MISSES).await);
        proxy.delay(PATIENCE);
        let ask = || {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.removed(Some("u"), "c", &["email"]).await })
        };
        let first = ask();
        eventually!("the load is under way", PATIENCE, count(&app, LOADS).await == loads + 1);
        let others = [ask(), ask(), ask()];
        eventually!("the others wait for it", PATIENCE, count(&app, MISSES).await == misses + 4);
        first.abort();
        assert!(first.await.expect_err("it hung up").is_cancelled());
        proxy.resume();
        for other in others {
            assert!(other.await.expect("an answer").is_empty());
        }
        assert_eq!(count(&app, LOADS).await, loads + 1);
    }
}

only_on! { Postgres:
    async fn a_load_that_began_before_a_write_answers_nobody_who_asks_after_it(database) {
        let proxy = Proxy::start(&database.url).await;
        let unwoken = Options { feed: FeedSettings { wake_up: false }, ..Options::default() };
        let app = Arc::new(database.app_at(&proxy.url, unwoken).await);
        register(&app).await;
        settle(&app, Backend::Postgres, 1).await;
        // The statement is known to the connection, so that a load is one question and one answer.
        assert_eq!(app.removed(Some("other"), "c", &["email"]).await, ["email"]);
        let ask = || {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.removed(Some("u"), "c", &["email"]).await.is_empty() })
        };
        for is_asked_meanwhile in [false, true] {
            let id = app.subscribe("u", &["email"], "2026-01-01T00:00:00Z", None).await["id"].clone();
            let cancel = format!("/v1/subscriptions/{}/cancel", id.as_str().expect("an id"));
            let held = proxy.held();
            proxy.hold_facts();
            let before = ask();
            eventually!("the database has answered a load", PATIENCE, proxy.held() > held);
            app.call("POST", &cancel).await.expect(200);
            let misses = count(&app, MISSES).await;
            let meanwhile = is_asked_meanwhile.then(&ask);
            if is_asked_meanwhile {
                eventually!("it waits", PATIENCE, count(&app, MISSES).await > misses);
            }
            proxy.resume();
            // The one who asked before the write may be told what was right then.
            before.await.expect("an answer");
            if let Some(meanwhile) = meanwhile {
                assert!(!meanwhile.await.expect("an answer"), "it was asked after the write");
            }
            assert!(!ask().await.expect("an answer"), "what arrived late was kept as if it were new");
        }
    }
}

only_on! { Sqlite:
    async fn a_flood_of_users_who_hold_nothing_is_bounded_and_evicts_nobody_who_does(database) {
        let app = database.app().await;
        register(&app).await;
        for user in ["a", "b", "c"] {
            app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", None).await;
            assert!(holds(&app.service, user).await);
        }
        // As long as they may be: together they take more than there is room for.
        let (floods, users, length) = (30, 1_000, 1_000);
        let start = Instant::now();
        for flood in 0..floods {
            let mut requests = JoinSet::new();
            for number in 0..users {
                let service = Arc::clone(&app.service);
                requests.spawn(async move { holds(&service, &format!("{flood}{number:0length$}")).await });
            }
            assert!(requests.join_all().await.into_iter().all(|held| !held));
        }
        measured("30,000 users who hold nothing", start.elapsed());
        let bytes = async || app.metric("tollgate_cache_bytes{cache=\"absent\"}").await;
        let room = 32.0 * 1024.0 * 1024.0;
        // What is too much is thrown out a while after it was put in.
        eventually!("they are bounded", PATIENCE, {
            holds(&app.service, "nobody").await;
            (1.0..=room).contains(&bytes().await)
        });
        measured("bytes of them", bytes().await);
        assert!(count(&app, "tollgate_cache_entries{cache=\"absent\"}").await < floods * users);
        let before = count(&app, MISSES).await;
        for user in ["a", "b", "c"] {
            assert!(holds(&app.service, user).await);
        }
        assert_eq!(count(&app, MISSES).await, before);
    }
}
