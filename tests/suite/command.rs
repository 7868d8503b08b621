//! What is done at the command line beside serving: asking as Access does, looking before a start, keeping what there is.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tollgate::store::{
    database::sqlite_file,
    inspection::{Finding, inspect},
    schema::migrate,
};

use crate::{
    issuer::{Issuer, Mode, SCOPE, SigningKey, claims},
    process::{Folder, free_addresses, output, stderr, stdout},
    support::{ADMIN_CREDENTIALS, App, Backend, ByHand, Options, TestDatabase, eventually, on_both, only_on, path_of},
};

/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);
const HOOK: [(&str, &str); 2] = [("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "hook")];
const API: (&str, &str) = ("TOLLGATE_API_TOKEN", "admin-token");

/// Runs a command while the services of the test go on, and tells its exit code, what it printed, and what it said.
fn run(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = block_in_place(|| output(folder, arguments, environment));
    (output.status.code(), stdout(&output), stderr(&output))
}

/// Asks a service, as Access does.
fn ask(app: &App, more: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let url = format!("http://{}/", app.address);
    let question =
        ["ask", "--url", &url, "--client", "portal", "--scope", "email", "--scope", "openid", "--scope", "email"];
    run(&Folder::new(), &[&question[..], more].concat(), environment)
}

only_on! { Sqlite:
    async fn who_asks_is_told_the_decision_and_with_a_token_why(database) {
        let app = database.app().await;
        app.register("email").await;
        let until = "2026-06-30T00:00:00Z";
        let subscription = app.subscribe("joe", &["email"], "2026-06-01T00:00:00Z", Some(until)).await;
        let id = subscription["id"].as_str().expect("an id");
        let joe = ["--user", "joe"];

        let (code, told, said) = ask(&app, &joe, &[&HOOK[..], &[API]].concat());
        assert_eq!((code, said.as_str()), (Some(0), ""), "{told}");
        let first = format!("http://{}/v1/customize-access-token answered in ", app.address);
        assert!(told.starts_with(&first), "{told}");
        let email = format!("\n  kept     email   active, by {id}, removed from {until} on\n  kept     openid  unmanaged\n\nNo claims.\n");
        assert!(told.ends_with(&email), "{told}");

        let (code, told, _) = ask(&app, &["--user", "ann"], &HOOK);
        assert_eq!(code, Some(0), "{told}");
        let expected = "\n  removed  email\n  kept     openid\n\nNo claims.\n\nSet TOLLGATE_API_TOKEN";
        assert!(told.contains(expected), "{told}");
        let (_, told, _) = ask(&app, &[], &[&HOOK[..], &[API]].concat());
        assert!(told.contains("removed  email   no_subscription\n"), "{told}");

        for (at, expected) in [
            (until, "removed  email   expired, by"),
            ("2026-06-29T23:59:59.999999Z", "kept     email   active, by"),
            ("2026-06-30T01:59:59.999999+02:00", "kept     email   active, by"),
            ("2026-05-31T00:00:00Z", "removed  email   scheduled, by"),
        ] {
            let (code, told, said) = ask(&app, &["--user", "joe", "--at", at], &[API]);
            assert!(code == Some(0) && told.starts_with("At 2026-") && told.contains(expected), "{at}: {told}{said}");
        }

        let (code, told, said) = ask(&app, &["--user", "ann", "--json"], &HOOK);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        assert_eq!(told, "{\"removeScopes\":[\"email\"],\"additionalClaims\":{}}\n");
        let (code, told, _) = ask(&app, &["--user", "joe", "--json", "--at", until], &[API]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!((code, &told["removeScopes"], &told["at"]), (Some(0), &json!(["email"]), &json!(until)));
    }

    async fn who_asks_and_is_refused_is_told_why_and_ends_with_1(database) {
        let mut app = database.app().await;
        let wrong = [("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "secret-1")];
        for (more, environment, expected) in [
            (&[][..], &wrong[..], "answered 401 (unauthorized: "),
            (&[], &[], "answered 401 (unauthorized: "),
            (&["--at", "2026-01-01T00:00:00Z"], &[("TOLLGATE_API_TOKEN", "secret-2")], "/v1/explain answered 401 (unauthorized: "),
            (&["--at", "2026-01-01T00:00:00Z"], &HOOK, "TOLLGATE_API_TOKEN must be set"),
            (&[], &HOOK[..1], "must both be set, or neither"),
            (&["--url", "nonsense"], &HOOK, "nonsense/v1/customize-access-token cannot be asked"),
            (&["--url", "ftp://127.0.0.1"], &HOOK, "not an absolute http or https URL"),
        ] {
            let url = if more.contains(&"--url") { String::new() } else { format!("http://{}", app.address) };
            let url = if url.is_empty() { vec![] } else { vec!["--url", url.as_str()] };
            let question = [&["ask", "--client", "c", "--scope", "email"], &url[..], more].concat();
            let (code, told, said) = run(&Folder::new(), &question, environment);
            assert_eq!((code, told.as_str()), (Some(1), ""), "{more:?}: {said}");
            assert!(said.starts_with("tollgate: ") && said.contains(expected) && !said.contains("secret-"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let (code, told, said) = ask(&app, &["--json"], &wrong);
        let told: Value = serde_json::from_str(&told).expect("the problem document");
        assert_eq!((code, &told["code"]), (Some(1), &json!("unauthorized")), "{said}");
        // The hook has answered, so that is told; why it did so is another question.
        let (code, told, _) = ask(&app, &[], &[&HOOK[..], &[("TOLLGATE_API_TOKEN", "secret-2")]].concat());
        assert!(code == Some(0) && told.contains("Why is not known: ") && told.contains("answered 401"), "{told}");
        app.stop().await;
        let (code, told, said) = ask(&app, &[], &HOOK);
        assert_eq!((code, told.as_str()), (Some(1), ""), "{said}");
        assert!(said.contains("cannot be asked: no connection"), "{said}");
    }

    async fn who_asks_may_show_a_token_of_access(database) {
        let key = SigningKey::rsa("current");
        let issuer = Issuer::with(&[&key]).await;
        let app = database.app_with(Options { hook_trust: Some((issuer.trust(), vec![SCOPE.to_owned()])), ..Options::default() }).await;
        let folder = Folder::new();
        let file = folder.0.join("token");
        fs::write(&file, format!("{}\n", key.sign(&claims()))).expect("written");
        let token = ("TOLLGATE_HOOK_TOKEN_FILE", file.to_str().expect("a path"));
        let wrong = ("TOLLGATE_HOOK_PASSWORD", "wrong");
        let (code, told, said) = ask(&app, &[], &[token, HOOK[0], wrong]);
        assert!(code == Some(0) && told.contains("kept     openid"), "{told}{said}");
        fs::write(&file, key.sign(&crate::issuer::claims_with(&json!({"aud": "https://other.example.com"})))).expect("written");
        let (code, _, said) = ask(&app, &[], &[token]);
        assert!(code == Some(1) && said.contains("answered 401"), "{said}");
    }
}

#[test]
fn the_demo_can_be_asked_with_its_own_credentials() {
    let folder = Folder::new();
    let server = crate::process::Server::start(&folder, &["serve", "--demo"], &[]);
    let url = format!("http://{}", server.main);
    let question = ["ask", "--demo", "--url", &url, "--user", "myUserId22700111101", "--client", "client"];
    let scopes = ["--scope", "profile", "--scope", "email", "--scope", "insights"];
    let answered = output(&folder, &[&question[..], &scopes].concat(), &[]);
    let told = stdout(&answered);
    assert_eq!((answered.status.code(), stderr(&answered).as_str()), (Some(0), ""), "{told}");
    for expected in [
        "kept     profile   unmanaged",
        "removed  email     expired, by ",
        "kept     insights  not_enforced, else removed: canceled, by ",
    ] {
        assert!(told.contains(expected), "{told}");
    }
}

/// The lines of a look, each with its check, its status and the rest.
fn lines(told: &str) -> Vec<(String, String, String)> {
    let word = |text: &str| text.split_once("  ").map(|(word, rest)| (word.to_owned(), rest.trim_start().to_owned()));
    let line = |line: &str| {
        let (status, rest) = word(line).expect("a status");
        let (check, detail) = word(&rest).expect("a check");
        (check, status, detail)
    };
    told.lines().map(line).collect()
}

#[track_caller]
fn expect_line(told: &str, check: &str, status: &str, detail: &str) {
    let found = lines(told).into_iter().any(|(a, b, rest)| a == check && b == status && rest.contains(detail));
    assert!(found, "no line `{check}`, `{status}`, `{detail}` in\n{told}");
}

/// Settings with which a start would succeed, on addresses that are free.
fn startable(url: &str) -> Vec<(&'static str, String)> {
    let [hooks, operations] = free_addresses().map(|address| address.to_string());
    let secrets =
        ["TOLLGATE_HOOK_PASSWORD", "TOLLGATE_ADMIN_TOKEN"].map(|name| (name, "long-enough-for-all".to_owned()));
    let rest = [
        ("TOLLGATE_DATABASE_URL", url.to_owned()),
        ("TOLLGATE_HOOK_USERNAME", "hook".to_owned()),
        ("TOLLGATE_LISTEN", hooks),
        ("TOLLGATE_OPS_LISTEN", operations),
    ];
    secrets.into_iter().chain(rest).collect()
}

/// Looks, with some settings in the place of others.
fn check(environment: &[(&'static str, String)], more: &[(&'static str, &str)]) -> (Option<i32>, String, String) {
    let is_replaced = |name: &str| more.iter().any(|(other, _)| *other == name);
    let kept = environment.iter().filter(|(name, _)| !is_replaced(name)).map(|(name, value)| (*name, value.as_str()));
    let all: Vec<_> = kept.chain(more.iter().copied().filter(|(_, value)| !value.is_empty())).collect();
    run(&Folder::new(), &["check"], &all)
}

on_both! {
    async fn a_look_before_a_start_tells_what_the_start_will_find(database) {
        let environment = startable(&database.url);
        let (code, told, said) = check(&environment, &[]);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{told}");
        expect_line(&told, "settings", "ok", "hooks on 127.0.0.1:");
        match database.backend {
            Backend::Sqlite => {
                expect_line(&told, "database", "warning", "the start makes an empty database");
                let file = sqlite_file(&database.url).expect("a file");
                assert!(!file.exists(), "a look makes nothing");
                let (code, told, _) = check(&environment, &[("TOLLGATE_MIGRATE", "false")]);
                assert_eq!(code, Some(1), "{told}");
                let (code, told, _) = check(&environment, &[("TOLLGATE_DATABASE_URL", "sqlite:///absent/x.db?mode=rwc")]);
                assert_eq!(code, Some(1));
                expect_line(&told, "database", "error", "there is no folder /absent");
            }
            Backend::Postgres => {
                expect_line(&told, "database", "ok", "PostgreSQL ");
                expect_line(&told, "tables", "warning", "9 steps are to be taken");
                let (code, told, said) = check(&environment, &[("TOLLGATE_MIGRATE", "false")]);
                assert_eq!((code, said.as_str()), (Some(1), "tollgate: 1 error\n"), "{told}");
                expect_line(&told, "tables", "error", "run `tollgate migrate`");
            }
        }
        let app = database.app().await;
        let (code, told, _) = check(&environment, &[]);
        assert_eq!(code, Some(0), "{told}");
        expect_line(&told, "tables", "ok", "up to date");
        expect_line(&told, "rights", "ok", "all that the service needs");
        assert!(lines(&told).iter().all(|(_, status, _)| status == "ok"), "{told}");
        assert_eq!(lines(&told).iter().filter(|(check, _, _)| check == "listener").count(), 2, "{told}");
        let is_postgres = database.backend == Backend::Postgres;
        assert_eq!(lines(&told).iter().any(|(check, _, _)| check == "clock"), is_postgres, "{told}");

        // What keeps it from starting, one thing after the other.
        let taken = app.address.to_string();
        for (more, name, status, detail) in [
            (&[("TOLLGATE_LISTEN", &*taken)][..], "listener", "error", "(hooks): Address already in use"),
            (&[("TOLLGATE_API_LISTEN", &*environment[4].1)], "listener", "error", "(management API): Address already in use"),
            (&[("TOLLGATE_HOOK_PASSWORD", "")], "settings", "error", "TOLLGATE_HOOK_USERNAME and TOLLGATE_HOOK_PASSWORD must be set"),
            (&[("TOLLGATE_HOOK_PASSWORD", "short")], "settings", "warning", "the password of the hooks is short"),
            (&[("TOLLGATE_HOOK_AUTH", "basic,none")], "settings", "warning", "without credentials"),
            (&[("TOLLGATE_DATABASE_URL", "postgres://u:secret-1@127.0.0.1:1/x")], "database", "error", "cannot be opened"),
            (&[("TOLLGATE_DATABASE_URL", "nonsense")], "database", "error", "neither `sqlite:` nor `postgres:`"),
            (&[("TOLLGATE_TLS_CERT_FILE", "/absent.crt"), ("TOLLGATE_TLS_KEY_FILE", "/absent.key")], "certificate", "error", "cannot be read"),
        ] {
            let (code, told, said) = check(&environment, more);
            expect_line(&told, name, status, detail);
            assert_eq!(code, Some(i32::from(status == "error")), "{told}{said}");
            assert!(!told.contains("secret-") && !said.contains("secret-"), "{told}{said}");
        }

        let all: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (code, told, _) = run(&Folder::new(), &["check", "--json", "--listen", &taken], &all);
        let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
        let errors: Vec<_> = told.iter().filter(|line| line["status"] == "error").collect();
        assert_eq!((code, errors.len(), &errors[0]["check"]), (Some(1), 1, &json!("listener")), "{told:?}");
    }

    async fn the_data_are_looked_at_while_a_service_goes_on(database) {
        let url = [("TOLLGATE_DATABASE_URL", &*database.url)];
        let (code, told, _) = run(&Folder::new(), &["check", "--data"], &url);
        assert_eq!(code, Some(1), "{told}");
        let app = fill(&database).await;
        let (code, told, said) = run(&Folder::new(), &["check", "--data"], &url);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{told}");
        expect_line(&told, "data", "ok", "2105 subscriptions, 4 scopes, ");
        expect_line(&told, "data", "ok", ": 0 findings");
        let hand = ByHand::open(&database.url).await;
        hand.run("UPDATE subscription SET version = 7 WHERE subject_id = 'joe'").await;
        hand.run("UPDATE catalogue_scope SET enforced = NOT enforced WHERE name = 'reports'").await;
        let (code, told, said) = run(&Folder::new(), &["check", "--data"], &url);
        assert_eq!((code, said.as_str()), (Some(1), "tollgate: 2 errors\n"), "{told}");
        expect_line(&told, "data", "error", "catalogue_scope reports: it says something else than its last change, ");
        expect_line(&told, "data", "error", ": it is of version 7, its last change, ");
        let (_, told, _) = run(&Folder::new(), &["check", "--data", "--json"], &url);
        let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
        assert_eq!((&told[0]["table"], &told[0]["id"]), (&json!("catalogue_scope"), &json!("reports")), "{told:?}");
        assert_eq!(told.len(), 3, "{told:?}");
        // It changed nothing, and the service goes on.
        app.call("GET", "/v1/scopes").await.expect(200);
    }

    async fn each_kind_of_damage_is_found_by_table_and_id(database) {
        let app = fill(&database).await;
        let backend = database.backend;
        let joe = app.walk("/v1/subscriptions?subjectType=user&subjectId=joe").await.remove(0);
        let id = joe["id"].as_str().expect("an id").to_owned();
        let literal = match backend {
            Backend::Sqlite => format!("x'{}'", id.replace('-', "")),
            Backend::Postgres => format!("'{id}'"),
        };
        let strange = match backend {
            Backend::Sqlite => ("x'00000000000040008000000000000001'", "00000000-0000-4000-8000-000000000001"),
            Backend::Postgres => ("'00000000-0000-4000-8000-000000000001'", "00000000-0000-4000-8000-000000000001"),
        };
        let token = app.walk("/v1/tokens").await.remove(0)["id"].as_str().expect("an id").to_owned();
        let hand = ByHand::open(&database.url).await;
        let last: i64 = hand.ask(&format!("SELECT max(seq) FROM change WHERE subscription_id = {literal}")).await;
        let of_joe = |set: &str| format!("UPDATE subscription SET {set} WHERE id = {literal}");
        let of_last = |set: &str| format!("UPDATE change SET {set} WHERE seq = {last}");
        let (s, named, c, t) = ("subscription", "subscription_scope", "change", "api_token");
        let mut damages = vec![
            (of_joe("valid_until = valid_from"), s, &*id, "column `valid_until` holds an impossible value"),
            (of_joe("grace_until = valid_from"), s, &id, "column `grace_until`"),
            (of_joe("paused_from = valid_until, paused_until = valid_from"), s, &id, "column `paused_until`"),
            (of_joe("paused_until = valid_until"), s, &id, "it has the end of a pause, and no start"),
            (of_joe("subject_type = 'group'"), s, &id, "column `subject_type`"),
            (of_joe("subject_id = ''"), s, &id, "column `subject_id`"),
            (of_joe("claims = '[]'"), s, &id, "column `claims`"),
            (of_joe("source = NULL"), s, &id, "an external id without a source"),
            (of_joe("source = 'a b'"), s, &id, "column `source`"),
            (of_joe("external_id = NULL"), s, &id, "it has a source's version, and no external id"),
            (of_joe("version = 0"), s, &id, "its version is below 1"),
            (of_joe("version = version + 1"), s, &id, "it is of version 3, its last change, "),
            (of_joe("valid_until = '2031-01-01T00:00:00+00:00'"), s, &id, "in its window, grace, pause or cancellation"),
            (of_joe("deleted_at = updated_at"), s, &id, "in when it was deleted"),
            (of_joe("created_at = '2031-01-01T00:00:00+00:00'"), s, &id, "it was changed before it was made"),
            (format!("DELETE FROM subscription_scope WHERE subscription_id = {literal}"), s, &id, "column `scopes`"),
            (format!("DELETE FROM subscription_scope WHERE subscription_id = {literal} AND scope = 'email'"), s, &id, "in its scopes"),
            (format!("UPDATE subscription_scope SET scope = 'ghost' WHERE subscription_id = {literal} AND scope = 'email'"), named, &id, "names the scope `ghost`, which is not in the catalogue"),
            (format!("INSERT INTO subscription_scope (subscription_id, scope) VALUES ({}, 'email')", strange.0), named, strange.1, "for a subscription that is not there"),
            (format!("DELETE FROM subscription_scope WHERE subscription_id = {literal}; DELETE FROM subscription WHERE id = {literal}"), c, "", "which is not there"),
            (format!("UPDATE subscription SET id = {} WHERE id = {literal}", strange.0), s, strange.1, "column `scopes`"),
            (format!("UPDATE subscription_scope SET subscription_id = {0} WHERE subscription_id = {literal}; UPDATE subscription SET id = {0} WHERE id = {literal}", strange.0), s, strange.1, "its id is no UUID of version 7"),
            (format!("DELETE FROM change WHERE subscription_id = {literal}"), s, &id, "and no change tells of it"),
            ("DROP INDEX subscription_by_external_id; UPDATE subscription SET source = 'billing', external_id = 'sub_1', source_version = 2 WHERE subject_id = 'ann'".to_owned(), s, "", "another one has the same external id"),
            (of_last("after = '{'"), c, "", "column `image`"),
            (of_last("noun = 'thing'"), c, "", "column `noun`"),
            (of_last("subject_id = 'other'"), c, "", "of another subject than the subscription"),
            (of_last("subscription_id = NULL"), c, "", "column `subscription_id`"),
            (of_last("before = replace(before, '\"version\":1', '\"version\":7')"), c, "", "it makes version 2 of version 7"),
            ("UPDATE catalogue_scope SET requires = 'nobody' WHERE name = 'unused'".to_owned(), "catalogue_scope", "unused", "column `requires`"),
            ("UPDATE catalogue_scope SET version = 4 WHERE name = 'unused'".to_owned(), "catalogue_scope", "unused", "it is of version 4, its last change, "),
            ("UPDATE catalogue_scope SET name = 'a b' WHERE name = 'unused'".to_owned(), "catalogue_scope", "a b", "column `scope`"),
            ("DELETE FROM catalogue_scope WHERE name = 'unused'".to_owned(), "catalogue_scope", "unused", "it is not there, and its last change, "),
            ("UPDATE api_token SET role = 'king'".to_owned(), t, &token, "column `role`"),
            ("UPDATE api_token SET role = 'admin'".to_owned(), t, &token, "it says something else than its last change, "),
            ("UPDATE api_token SET name = 'a b'".to_owned(), t, &token, "column `name`"),
            ("DELETE FROM api_token".to_owned(), c, "", "it is of the token "),
        ];
        match backend {
            Backend::Sqlite => damages.extend([
                (of_joe("updated_at = 'yesterday'"), s, &*id, "it cannot be read"),
                (format!("UPDATE subscription SET id = x'07' WHERE id = {literal}"), s, "x'07'", "it cannot be read"),
                ("UPDATE api_token SET digest = x'07'".to_owned(), t, &token, "column `digest`"),
                ("DELETE FROM sqlite_sequence WHERE name = 'change'".to_owned(), c, "", "would be given again"),
            ]),
            Backend::Postgres => damages.extend([
                ("UPDATE api_token SET digest = '\\x07'".to_owned(), t, &*token, "column `digest`"),
                ("ALTER TABLE change ALTER COLUMN seq RESTART WITH 1".to_owned(), c, "", "would be given again"),
                ("UPDATE change SET xid = '99999999999'".to_owned(), c, "", "run `tollgate migrate`"),
            ]),
        }
        // What keeps such rows out has to be taken away first; all of it comes back with the end of the transaction.
        let unprotected = match backend {
            Backend::Sqlite => "PRAGMA ignore_check_constraints = on; PRAGMA defer_foreign_keys = on",
            Backend::Postgres => {
                "SET LOCAL session_replication_role = replica;
                DO $$ DECLARE item record; BEGIN
                    FOR item IN SELECT conrelid::regclass AS name, conname FROM pg_constraint
                        WHERE contype = 'c' AND connamespace = current_schema()::regnamespace
                    LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', item.name, item.conname); END LOOP;
                END $$"
            }
        };
        assert_eq!(inspected(&app, &[]).await, [], "nothing is found where nothing is wrong");
        for (damage, table, id, problem) in damages {
            let findings = inspected(&app, &[unprotected, &damage]).await;
            let is_it = |finding: &&Finding| finding.table == table && (id.is_empty() || finding.id == id) && finding.problem.contains(problem);
            assert!(findings.iter().any(|finding| is_it(&finding)), "{damage}: {findings:?}");
            assert!(findings.iter().all(|finding| !finding.problem.contains("joe")), "{findings:?}");
        }
        assert_eq!(inspected(&app, &[]).await, [], "all of it was taken back");
    }
}

/// What is found after some statements, which are taken back.
async fn inspected(app: &App, statements: &[&str]) -> Vec<Finding> {
    let transaction = app.database.begin().await.expect("a transaction");
    for statement in statements {
        transaction.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    let mut findings = Vec::new();
    inspect(&transaction, &mut |finding| findings.push(finding)).await.expect("looked at");
    transaction.rollback().await.expect("taken back");
    findings
}

/// A service on a database with a little of everything, and more subscriptions than are read at once.
async fn fill(database: &Arc<TestDatabase>) -> App {
    let app = database.app().await;
    for scope in ["email", "reports", "unused", "gone"] {
        app.register(scope).await;
    }
    assert_eq!(app.call("DELETE", "/v1/scopes/gone").await.status, 204);
    app.register("gone").await;
    app.set_now(app.now() + TimeDelta::hours(1));
    app.issue("support", "reader", None).await;
    let put = json!({
        "sourceVersion": 1, "subject": {"type": "user", "id": "joe"}, "scopes": ["email", "reports"],
        "validFrom": "2026-01-01T00:00:00Z", "validUntil": "2030-01-01T00:00:00Z",
    });
    let path = "/v1/subscriptions/by-external-id?source=billing&externalId=sub_1";
    app.call_with("PUT", path, &put).await.expect(201);
    let put = json!({
        "sourceVersion": 2, "subject": {"type": "user", "id": "joe"}, "scopes": ["email", "reports"],
        "validFrom": "2026-01-01T00:00:00Z", "validUntil": "2030-02-01T00:00:00Z", "claims": {},
    });
    app.call_with("PUT", path, &put).await.expect(200);
    let mut made = Vec::new();
    for user in ["ann", "bob", "eve", "kim"] {
        made.push(app.subscribe(user, &["email"], "2026-01-01T00:00:00Z", Some("2030-01-01T00:00:00Z")).await);
    }
    for (subscription, verb) in made.iter().zip(["cancel", "pause"]) {
        app.call("POST", &format!("{}/{verb}", path_of(subscription))).await.expect(200);
    }
    assert_eq!(app.call("DELETE", &path_of(&made[2])).await.status, 204);
    let many: String = (0..2100)
        .fold("source,externalId,subjectType,subjectId,scopes,validUntil\n".to_owned(), |file, at| {
            file + &format!("crm,{at},user,many-{at},email,never\n")
        });
    let imported =
        app.send("POST", "/v1/subscriptions/import", &[ADMIN_CREDENTIALS, ("content-type", "text/csv")], many).await;
    assert_eq!(imported.expect(200)["created"], 2100);
    app
}

only_on! { Postgres:
    async fn changes_of_another_server_are_told_before_a_start(database) {
        let app = fill(&database).await;
        let hand = ByHand::open(&database.url).await;
        hand.run("UPDATE change SET xid = '99999999999' WHERE seq < 5").await;
        let environment = startable(&database.url);
        let (code, told, _) = check(&environment, &[]);
        assert_eq!(code, Some(1), "{told}");
        expect_line(&told, "tables", "error", "restored from another server's dump");
        migrate(&app.database).await.expect("adopted");
        let (code, told, _) = check(&environment, &[]);
        assert_eq!(code, Some(0), "{told}");
    }
}

only_on! { Sqlite:
    async fn keys_are_asked_for_before_a_start(database) {
        let key = SigningKey::rsa("current");
        let issuer = Issuer::with(&[&key]).await;
        let keys = format!("{}/oauth/v1/keys", issuer.base);
        let environment = startable(&database.url);
        let more = [
            ("TOLLGATE_HOOK_AUTH", "jwt"), ("TOLLGATE_HOOK_JWT_ISSUERS", "https://tenant.example.com/oauth"),
            ("TOLLGATE_HOOK_JWT_AUDIENCE", "https://hooks.example.com"), ("TOLLGATE_HOOK_JWT_JWKS_URL", &keys),
        ];
        let (code, told, _) = check(&environment, &more);
        assert_eq!(code, Some(0), "{told}");
        expect_line(&told, "keys", "ok", "https://tenant.example.com/oauth (hooks): 1 of 1 keys can be used");
        issuer.publish_set(json!({"keys": [{"kty": "oct", "k": "AAAA"}]}));
        let (code, told, _) = check(&environment, &more);
        assert_eq!(code, Some(1), "{told}");
        issuer.set(Mode::Answer(503, Vec::new()));
        let (code, told, _) = check(&environment, &more);
        assert_eq!(code, Some(1), "{told}");
        expect_line(&told, "keys", "error", "the status is 503");
    }

    async fn a_copy_is_whole_while_the_service_writes_and_is_never_written_over(database) {
        let app = fill(&database).await;
        let folder = Folder::new();
        let url = [("TOLLGATE_DATABASE_URL", &*database.url)];
        let (writing, done) = (AtomicBool::new(true), AtomicU32::new(0));
        let write = async {
            while writing.load(Ordering::SeqCst) {
                app.subscribe("late", &["email"], "2026-01-01T00:00:00Z", None).await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        };
        let copy = async {
            // So that it is certain that writes go on before and after it.
            eventually!("a write", PATIENCE, done.load(Ordering::SeqCst) > 0);
            let copied = run(&folder, &["backup", "copy.db"], &url);
            let before = done.load(Ordering::SeqCst);
            eventually!("another write", PATIENCE, done.load(Ordering::SeqCst) > before);
            writing.store(false, Ordering::SeqCst);
            copied
        };
        let ((), (code, told, said)) = tokio::join!(write, copy);
        assert_eq!((code, told.as_str()), (Some(0), ""), "{said}");
        assert_eq!(folder.files(), ["copy.db"]);
        let file = folder.0.join("copy.db");
        assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        let copy = format!("sqlite://{}", file.display());
        let (code, told, _) = run(&Folder::new(), &["check", "--data"], &[("TOLLGATE_DATABASE_URL", &copy)]);
        assert_eq!(code, Some(0), "{told}");
        let hand = ByHand::open(&copy).await;
        let (late, all) = (hand.ask::<i64>("SELECT count(*) FROM subscription WHERE subject_id = 'late'").await, done.load(Ordering::SeqCst));
        assert!((1..=i64::from(all)).contains(&late), "{late} of {all}");

        let before = fs::read(&file).expect("the copy");
        for (arguments, environment, expected) in [
            (&["backup", "copy.db"][..], &url[..], "is there already, and is not written over"),
            (&["backup", "absent/copy.db"], &url, "cannot be made"),
            (&["backup", "other.db"], &[("TOLLGATE_DATABASE_URL", "sqlite:///absent/x.db?mode=rwc")], "there is no database /absent/x.db"),
            (&["backup", "other.db"], &[("TOLLGATE_DATABASE_URL", "postgres://127.0.0.1/x")], "use `pg_dump`"),
        ] {
            let (code, _, said) = run(&folder, arguments, environment);
            assert!(code == Some(1) && said.contains(expected), "{said}");
        }
        assert_eq!((folder.files(), fs::read(&file).expect("the copy") == before), (vec!["copy.db".to_owned()], true));
    }
}
