//! What operators see: signs of life, the version, and metrics whose names and labels are relied upon.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use tollgate::{
    domain::decision::Reason,
    http::{
        auth::{AUTHORIZATION, Access, jwt},
        console,
    },
    service::metrics::{Freshness, Hook, ImportedLine, Outcome, SpanFate, TlsReload},
};

use crate::support::{ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, HOOK_CREDENTIALS, JSON, Options, TOKEN, on_both};

const PATHS: [&str; 4] = ["/livez", "/readyz", "/metrics", "/version"];
const TEXT: Option<&str> = Some("text/plain; charset=utf-8");

async fn look(app: &App, path: &str) -> Answer {
    app.send_to(app.operations, "GET", path, &[], "").await
}

/// The metrics: every series as it is written, with its value.
async fn series(app: &App) -> BTreeMap<String, f64> {
    let answer = look(app, "/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    parse(&answer.text())
}

/// Reads the text format of Prometheus, strictly: help and type before the series of a metric, no series twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let mut series = BTreeMap::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(helped.insert(name) && help.ends_with('.') || name.starts_with("process_"), "{line}");
            current = name;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, current, "the help comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kinds.insert(name, kind), None, "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (left, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) =
                left.split_once('{').map_or((left, ""), |(name, rest)| (name, rest.strip_suffix('}').expect("}")));
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
                "{line}"
            );
            assert!(name.starts_with("tollgate_") || name.starts_with("process_"), "{line}");
            let suffix = name.strip_prefix(current).unwrap_or_else(|| panic!("{line} stands under {current}"));
            let allowed: &[&str] = if kinds[current] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once('=').expect("a label");
                assert!(label.bytes().all(|byte| byte.is_ascii_lowercase()), "{line}");
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect("quotes");
                assert!(!value.contains(['"', '\\']), "{line}");
            }
            let value: f64 = value.parse().expect("a number");
            assert!(value >= 0.0, "{line}");
            assert_eq!(series.insert(left.to_owned(), value), None, "{line} stands twice");
        }
    }
    assert_eq!(kinds.keys().copied().collect::<BTreeSet<_>>(), helped);
    check_histograms(&series);
    series
}

/// Buckets ascend, and the last one holds all.
fn check_histograms(series: &BTreeMap<String, f64>) {
    let mut checked = 0;
    for (name, count) in series.iter().filter(|(name, _)| name.contains("_count")) {
        let bucket = name.replace("_count", "_bucket").trim_end_matches('}').to_owned();
        let mut buckets: Vec<(f64, f64)> = series
            .iter()
            .filter_map(|(name, value)| {
                let bound = name
                    .strip_prefix(&bucket)?
                    .trim_start_matches([',', '{'])
                    .strip_prefix("le=\"")?
                    .strip_suffix("\"}")?;
                Some((bound.parse().ok()?, *value))
            })
            .collect();
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        assert!(buckets.len() > 5 && buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        let (bound, all) = buckets[buckets.len() - 1];
        assert!(bound.is_infinite() && all.to_bits() == count.to_bits(), "{name}: {buckets:?}");
        checked += 1;
    }
    assert!(checked >= 10, "{checked}");
}

/// The series that exist from the start, but for buckets and for what the process and the pools are at.
fn expected() -> BTreeSet<String> {
    let mut expected = BTreeSet::new();
    let operations = AUTHORIZATION.iter().filter(|(_, access)| *access != Access::Hook).map(|(id, _)| *id);
    let operations = operations.chain(console::ROUTES.iter().map(|route| route.id));
    for outcome in Outcome::ALL.map(Outcome::as_str) {
        for hook in Hook::ALL.map(Hook::as_str) {
            expected.insert(format!(r#"tollgate_hook_requests_total{{hook="{hook}",outcome="{outcome}"}}"#));
            expected.insert(format!(r#"tollgate_hook_duration_seconds_count{{hook="{hook}",outcome="{outcome}"}}"#));
        }
        for operation in operations.clone() {
            expected.insert(format!(r#"tollgate_api_requests_total{{operation="{operation}",outcome="{outcome}"}}"#));
        }
    }
    for operation in operations {
        expected.insert(format!(r#"tollgate_api_duration_seconds_count{{operation="{operation}"}}"#));
    }
    for reason in Reason::ALL.map(Reason::as_str) {
        for decision in ["kept", "removed"] {
            expected.insert(format!(r#"tollgate_decisions_total{{decision="{decision}",reason="{reason}"}}"#));
        }
        expected.insert(format!(r#"tollgate_unenforced_removals_total{{reason="{reason}"}}"#));
    }
    let own = [
        ("none", "missing"),
        ("none", "ambiguous"),
        ("none", "scheme"),
        ("none", "unavailable"),
        ("none", "role"),
        ("secret", "malformed"),
        ("secret", "wrong"),
    ];
    let denials = own.into_iter().chain(jwt::Reason::ALL.map(|reason| ("jwt", reason.as_str())));
    for (method, reason) in denials {
        for surface in ["hooks", "management"] {
            expected.insert(format!(
                r#"tollgate_authentication_failures_total{{method="{method}",reason="{reason}",surface="{surface}"}}"#
            ));
        }
    }
    for freshness in Freshness::ALL.map(Freshness::as_str) {
        expected.insert(format!(r#"tollgate_answers_total{{freshness="{freshness}"}}"#));
    }
    for surface in ["hooks", "management", "connection"] {
        expected.insert(format!(r#"tollgate_shed_requests_total{{surface="{surface}"}}"#));
    }
    for name in [
        "tollgate_breaker_open",
        "tollgate_cache_loaded_subjects_total",
        "tollgate_cache_loads_total",
        "tollgate_change_visibility_seconds_count",
        "tollgate_claims_left_out_total",
        "tollgate_feed_changes_total",
        "tollgate_feed_doubts_total",
        "tollgate_feed_wakeups_lost_total",
        "tollgate_scopes_removed_total",
        "tollgate_tls_handshake_failures_total",
    ] {
        expected.insert(name.to_owned());
    }
    for result in ["hit", "miss"] {
        expected.insert(format!(r#"tollgate_cache_lookups_total{{result="{result}"}}"#));
    }
    for cache in ["held", "absent"] {
        expected.insert(format!(r#"tollgate_cache_entries{{cache="{cache}"}}"#));
        expected.insert(format!(r#"tollgate_cache_bytes{{cache="{cache}"}}"#));
    }
    for outcome in TlsReload::ALL.map(TlsReload::as_str) {
        expected.insert(format!(r#"tollgate_tls_reloads_total{{outcome="{outcome}"}}"#));
    }
    for outcome in SpanFate::ALL.map(SpanFate::as_str) {
        expected.insert(format!(r#"tollgate_trace_spans_total{{outcome="{outcome}"}}"#));
    }
    for outcome in ImportedLine::ALL.map(ImportedLine::as_str) {
        expected.insert(format!(r#"tollgate_import_lines_total{{outcome="{outcome}"}}"#));
    }
    for kind in ["unavailable", "duplicate", "reference", "outcome_unknown", "unexpected"] {
        expected.insert(format!(r#"tollgate_database_errors_total{{kind="{kind}"}}"#));
    }
    expected
}

/// By how much a series has grown between two looks.
fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, i64> {
    let changed = after.iter().map(|(name, value)| (name, value - before.get(name).copied().unwrap_or_default()));
    #[expect(clippy::cast_possible_truncation, reason = "these are small counts")]
    let counted = changed.map(|(name, growth)| (name.clone(), growth.round() as i64));
    let is_counter = |name: &str| name.contains("_total") && !name.starts_with("process_");
    counted.filter(|(name, growth)| is_counter(name) && *growth != 0).collect()
}

on_both! {
    async fn every_series_exists_from_the_start_at_zero(database) {
        let app = database.app().await;
        let series = series(&app).await;
        for name in expected() {
            assert!(series.get(&name).is_some_and(|value| value.abs() < 0.5), "{name}: {:?}", series.get(&name));
        }
        let counted: BTreeSet<_> = series.keys().filter(|name| name.contains("_total") && !name.starts_with("process_")).cloned().collect();
        assert!(counted.is_subset(&expected()), "a counter that no test knows: {:?}", counted.difference(&expected()));
        let build = format!(r#"tollgate_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
        assert!(series[&build] > 0.5);
        for pool in ["hooks", "api"] {
            for state in ["idle", "used"] {
                let name = format!(r#"tollgate_database_pool_connections{{pool="{pool}",state="{state}"}}"#);
                assert!(series.contains_key(&name), "{name}");
            }
            let limit = format!(r#"tollgate_database_pool_max_connections{{pool="{pool}"}}"#);
            assert!(series[&limit] > 0.5);
        }
        assert!((series["tollgate_hook_timeout_seconds"] - Options::default().policy.hook_timeout.as_secs_f64()).abs() < 0.001);
        assert!(series["tollgate_ready"] > 0.5);
        assert!(series.contains_key("process_resident_memory_bytes"));
    }

    async fn each_request_is_counted_once_under_its_own_outcome(database) {
        let mut app = database.app().await;
        // It counts what it sees, and what it asks in vain, whenever it looks.
        app.feed.shutdown().await;
        app.register("email").await;
        let ask = json!({"user": {"id": "u"}, "client": {"id": "c"}, "scopes": ["email", "openid"]}).to_string();
        for (hook, path) in [("customize-access-token", ACCESS_TOKEN), ("customize-token", TOKEN)] {
            for (headers, body, outcome) in [
                (&[HOOK_CREDENTIALS, JSON][..], ask.clone(), "ok"),
                (&[JSON], ask.clone(), "unauthorized"),
                (&[HOOK_CREDENTIALS, JSON], "{".to_owned(), "refused"),
                (&[HOOK_CREDENTIALS, JSON], " ".repeat(300_000), "refused"),
            ] {
                let before = series(&app).await;
                app.send("POST", path, headers, body).await;
                let grown = growth(&before, &series(&app).await);
                let name = format!(r#"tollgate_hook_requests_total{{hook="{hook}",outcome="{outcome}"}}"#);
                assert_eq!(grown.get(&name), Some(&1), "{grown:?}");
                let decided = grown.keys().any(|name| name.starts_with("tollgate_decisions_total"));
                let denied = r#"tollgate_authentication_failures_total{method="none",reason="missing",surface="hooks"}"#;
                assert_eq!(grown.contains_key(denied), outcome == "unauthorized", "{grown:?}");
                assert_eq!(decided, outcome == "ok", "{grown:?}");
                if decided {
                    assert_eq!(grown["tollgate_scopes_removed_total"], 1);
                    assert_eq!(grown[r#"tollgate_decisions_total{decision="removed",reason="no_subscription"}"#], 1);
                    assert_eq!(grown[r#"tollgate_decisions_total{decision="kept",reason="unmanaged"}"#], 1);
                }
            }
        }
        for (operation, method, path, headers, body, outcome) in [
            ("create-scope", "POST", "/v1/scopes", &[ADMIN_CREDENTIALS, JSON][..], r#"{"name":"new"}"#, "ok"),
            ("create-scope", "POST", "/v1/scopes", &[ADMIN_CREDENTIALS, JSON], "{}", "refused"),
            ("create-scope", "POST", "/v1/scopes", &[HOOK_CREDENTIALS, JSON], r#"{"name":"new"}"#, "unauthorized"),
            ("get-scope", "GET", "/v1/scopes/personal", &[ADMIN_CREDENTIALS], "", "refused"),
            ("get-scope", "GET", "/v1/scopes/new", &[ADMIN_CREDENTIALS], "", "ok"),
            ("list-subscriptions", "GET", "/v1/subscriptions?x=personal", &[ADMIN_CREDENTIALS], "", "refused"),
            ("get-entitlements", "GET", "/v1/entitlements?subjectType=user&subjectId=u", &[ADMIN_CREDENTIALS], "", "ok"),
            ("explain", "POST", "/v1/explain", &[ADMIN_CREDENTIALS, JSON], r#"{"request":{"client":{"id":"c"},"scopes":["email"]}}"#, "ok"),
            ("explain", "POST", "/v1/explain", &[HOOK_CREDENTIALS, JSON], "{}", "unauthorized"),
        ] {
            let before = series(&app).await;
            app.send(method, path, headers, body).await;
            let grown = growth(&before, &series(&app).await);
            let name = format!(r#"tollgate_api_requests_total{{operation="{operation}",outcome="{outcome}"}}"#);
            assert_eq!(grown.get(&name), Some(&1), "{grown:?}");
            let counted = grown.keys().filter(|name| name.starts_with("tollgate_api_requests_total"));
            assert_eq!(counted.count(), 1, "{grown:?}");
        }
        let before = series(&app).await;
        app.call_with("POST", "/v1/scopes", &json!({"name": "new"})).await.expect_problem(409, "scope_exists");
        app.database.close().await;
        app.call("GET", "/v1/scopes").await.expect_problem(503, "unavailable");
        app.ask(TOKEN, &json!({"user": {"id": "absent"}, "client": {"id": "c"}, "scopes": ["email"]})).await.expect_problem(503, "unavailable");
        let grown = growth(&before, &series(&app).await);
        for name in [
            r#"tollgate_api_requests_total{operation="create-scope",outcome="refused"}"#,
            r#"tollgate_api_requests_total{operation="list-scopes",outcome="unavailable"}"#,
            r#"tollgate_hook_requests_total{hook="customize-token",outcome="unavailable"}"#,
        ] {
            assert_eq!(grown.get(name), Some(&1), "{name}: {grown:?}");
        }
        let unavailable = grown.get(r#"tollgate_database_errors_total{kind="unavailable"}"#);
        assert_eq!(unavailable, Some(&2), "one for each query: {grown:?}");
    }

    async fn lines_of_an_import_are_counted_by_what_became_of_them_but_for_dry_runs(database) {
        let app = database.app().await;
        app.register("email").await;
        let line = |id: &str, version: i64, scope: &str| {
            json!({"source": "billing", "externalId": id, "sourceVersion": version, "subject": {"type": "user", "id": "u"},
                "scopes": [scope], "validFrom": "2026-01-01T00:00:00Z", "validUntil": null}).to_string()
        };
        let file = [line("a", 1, "email"), line("b", 2, "email"), line("c", 1, "unknown"), "{".to_owned()].join("\n");
        let import = async |query: &str, body: String| {
            let before = series(&app).await;
            let path = format!("/v1/subscriptions/import{query}");
            let ndjson = ("content-type", "application/x-ndjson");
            app.send("POST", &path, &[ADMIN_CREDENTIALS, ndjson], body).await.expect(200);
            let mut grown = growth(&before, &series(&app).await);
            grown.retain(|name, _| name.starts_with("tollgate_import_lines_total"));
            grown.into_iter().map(|(name, count)| (name.split('"').nth(1).unwrap_or_default().to_owned(), count)).collect::<Vec<_>>()
        };
        let counted = |lines: &[(&str, i64)]| lines.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Vec<_>>();
        assert_eq!(import("?dryRun=true", file.clone()).await, []);
        assert_eq!(import("", file).await, counted(&[("created", 2), ("refused", 2)]));
        let again = [line("a", 1, "email"), line("b", 1, "email"), line("b", 3, "email")].join("\n");
        assert_eq!(import("", again).await, counted(&[("changed", 1), ("outdated", 2)]));
    }

    async fn the_cache_tells_what_it_finds_and_holds(database) {
        let app = database.app().await;
        app.register("email").await;
        app.subscribe("holder", &["email"], "2026-01-01T00:00:00Z", None).await;
        let (hit, miss) = (r#"tollgate_cache_lookups_total{result="hit"}"#, r#"tollgate_cache_lookups_total{result="miss"}"#);
        let check = async |user: &str, client: &str, hits: Option<i64>, misses: Option<i64>| {
            let before = series(&app).await;
            app.removed(Some(user), client, &["email"]).await;
            let grown = growth(&before, &series(&app).await);
            assert_eq!((grown.get(hit).copied(), grown.get(miss).copied()), (hits, misses), "{user} {client}");
        };
        check("holder", "c", None, Some(2)).await;
        check("holder", "c", Some(2), None).await;
        check("stranger", "c", Some(1), Some(1)).await;
        check("stranger", "c", Some(2), None).await;
        app.subscribe("stranger", &["email"], "2026-01-01T00:00:00Z", None).await;
        check("stranger", "c", Some(1), Some(1)).await;
        let before = series(&app).await;
        assert_eq!(app.removed(Some("nobody"), "nothing", &["openid"]).await, [""; 0]);
        let grown = growth(&before, &series(&app).await);
        assert!(!grown.contains_key(hit) && !grown.contains_key(miss), "no fact is needed for this: {grown:?}");
        // The cache counts its entries when it tidies up, which reading drives on.
        let mut sizes = (0.0, 0.0);
        for _ in 0..1_000 {
            app.removed(Some("holder"), "c", &["email"]).await;
            let series = series(&app).await;
            sizes = (series[r#"tollgate_cache_entries{cache="held"}"#], series[r#"tollgate_cache_entries{cache="absent"}"#]);
            if (sizes.0 - 2.0).abs() < 0.5 && (sizes.1 - 1.0).abs() < 0.5 {
                assert!(series[r#"tollgate_cache_bytes{cache="held"}"#] > 100.0);
                break;
            }
        }
        assert!((sizes.0 - 2.0).abs() < 0.5 && (sizes.1 - 1.0).abs() < 0.5, "two hold something, one does not: {sizes:?}");
    }

    async fn what_is_asked_never_becomes_a_label(database) {
        let app = database.app().await;
        app.register("email").await;
        app.register("personal-scope").await;
        // A first request of each kind, so that what is compared is what further ones add.
        app.removed(Some("first"), "c", &["email"]).await;
        let names = async || series(&app).await.into_keys().collect::<BTreeSet<_>>();
        let before = names().await;
        app.subscribe("personal-1", &["personal-scope"], "2026-01-01T00:00:00Z", None).await;
        app.removed(Some("personal-1"), "personal-2", &["personal-scope", "personal-3"]).await;
        for path in ["/personal-4", "/v1/personal-5", "/v1/scopes/personal-6", "/v1/scopes/personal-7/x", "/personal-8?personal-9", "/v1/subscriptions/personal-10"] {
            for method in ["GET", "POST", "PERSONAL"] {
                let answer = app.send(method, path, &[ADMIN_CREDENTIALS, ("x-request-id", "personal-11"), ("user-agent", "personal-12")], "").await;
                assert!(answer.status.is_client_error(), "{method} {path}: {}", answer.status);
            }
        }
        assert_eq!(names().await, before, "no series comes into being later");
        assert!(!look(&app, "/metrics").await.text().contains("personal"));
    }

    async fn signs_of_life_tell_an_outage_from_an_end(database) {
        let app = database.app().await;
        for path in ["/livez", "/readyz"] {
            let answer = look(&app, path).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str(), answer.header("content-type")), (200, "ok\n", TEXT));
        }
        let version = look(&app, "/version").await.expect(200);
        assert_eq!(version, json!({"name": "tollgate", "version": env!("CARGO_PKG_VERSION")}));
        app.database.close().await;
        assert_eq!(look(&app, "/readyz").await.status, 200, "what is cached can still be answered");
        assert_eq!(look(&app, "/livez").await.status, 200, "a restart would not bring the database back");
        look(&app, "/metrics").await;
        let never_read = database.app().await;
        never_read.database.close().await;
        let answer = look(&never_read, "/readyz").await;
        answer.expect_problem(503, "unavailable");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(look(&never_read, "/livez").await.status, 200);
        assert!(series(&app).await["tollgate_ready"] > 0.5 && series(&never_read).await["tollgate_ready"] < 0.5);
        app.readiness.end();
        look(&app, "/readyz").await.expect_problem(503, "stopping");
        assert!(series(&app).await["tollgate_ready"] < 0.5);
        assert_eq!(look(&app, "/livez").await.status, 200);

        let app = database.app().await;
        app.readiness.end();
        look(&app, "/readyz").await.expect_problem(503, "stopping");
        assert_eq!(app.removed(Some("u"), "c", &["openid"]).await, [""; 0], "what still comes is still answered");

        let app = database.app().await;
        app.database.close().await;
        look(&app, "/readyz").await.expect_problem(503, "unavailable");
        assert_eq!(look(&app, "/livez").await.status, 200);

        let mut app = database.app().await;
        app.stop().await;
        for address in [app.address, app.operations] {
            assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
        }
    }

    async fn each_listener_serves_its_own_paths_only(database) {
        let app = database.app().await;
        for path in PATHS {
            for method in ["GET", "POST", "HEAD"] {
                let answer = app.send(method, path, &[ADMIN_CREDENTIALS], "").await;
                assert_eq!(answer.status, 404, "{method} {path}");
            }
            let head = app.send_to(app.operations, "HEAD", path, &[], "").await;
            assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{path}");
            let posted = app.send_to(app.operations, "POST", path, &[], "").await;
            posted.expect_problem(405, "method_not_allowed");
            assert_eq!(posted.header("allow"), Some("GET, HEAD"));
        }
        let body = json!({"client": {"id": "c"}, "scopes": []}).to_string();
        for (method, path, credentials) in [
            ("POST", ACCESS_TOKEN, HOOK_CREDENTIALS), ("POST", TOKEN, HOOK_CREDENTIALS), ("GET", "/v1/scopes", ADMIN_CREDENTIALS),
            ("GET", "/docs", ADMIN_CREDENTIALS), ("GET", "/openapi/hooks.yaml", ADMIN_CREDENTIALS),
        ] {
            let answer = app.send_to(app.operations, method, path, &[credentials, JSON], body.clone()).await;
            answer.expect_problem(404, "not_found");
        }
    }
}

#[test]
#[should_panic(expected = "stands twice")]
fn the_reader_of_metrics_refuses_a_series_that_stands_twice() {
    parse("# HELP tollgate_x_total X.\n# TYPE tollgate_x_total counter\ntollgate_x_total 1\ntollgate_x_total 2\n");
}
