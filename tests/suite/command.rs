//! What is done at the command line beside serving: asking as Access does, looking before a start, keeping what there is.

use std::fs;

use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::{
    issuer::{Issuer, SCOPE, SigningKey, claims},
    process::{Folder, output, stderr, stdout},
    support::{App, Options, only_on},
};

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
