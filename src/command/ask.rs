//! Plays Access at the command line: asks a running service what it would ask, and shows the decision.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tollgate::{
    config::{AskSettings, HookCredentials, Secret},
    http::client::{HttpClient, Reply},
    service::chain,
};

use super::plain;

/// The path of the hook.
const HOOK: &str = "/v1/customize-access-token";
/// The path of the explanation.
const EXPLAIN: &str = "/v1/explain";
/// The most that is read of an answer: more than a request of the largest size can be answered.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// The status of an answer that is one.
const OK: u16 = 200;

/// What a hook answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decision {
    remove_scopes: Vec<String>,
    additional_claims: Map<String, Value>,
}

/// What an explanation answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    at: String,
    scopes: Vec<Explained>,
    remove_scopes: Vec<String>,
    additional_claims: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Explained {
    scope: String,
    kept: bool,
    reason: String,
    unenforced: Option<String>,
    subscriptions: Vec<String>,
    next: Option<Next>,
}

#[derive(Debug, Deserialize)]
struct Next {
    at: String,
    kept: bool,
}

/// A problem document.
#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    errors: Vec<ProblemField>,
}

#[derive(Debug, Deserialize)]
struct ProblemField {
    pointer: String,
    detail: String,
}

/// Asks, and shows the answer.
///
/// # Errors
///
/// Why there is none.
pub async fn ask(settings: AskSettings) -> anyhow::Result<()> {
    let client = match &settings.authorities {
        Some(file) => HttpClient::trusting(file)?,
        None => HttpClient::new()?,
    };
    let request = request(&settings);
    let text = if settings.at.is_some() {
        explained(&client, &settings, &request).await?
    } else {
        decided(&client, &settings, &request).await?
    };
    io::stdout().write_all(text.as_bytes()).context("the answer cannot be written")
}

/// What Access would send.
fn request(settings: &AskSettings) -> Value {
    let AskSettings { user, client, scopes, .. } = settings;
    let mut request = json!({"client": {"id": client}, "scopes": scopes});
    if let Some(user) = user {
        request["user"] = json!({"id": user});
    }
    request
}

/// Asks the hook, and why it answers so when there is a token to ask with.
async fn decided(client: &HttpClient, settings: &AskSettings, request: &Value) -> anyhow::Result<String> {
    let credentials = match &settings.credentials {
        HookCredentials::None => None,
        HookCredentials::Basic(username, password) => {
            Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", username.expose(), password.expose()))))
        }
        HookCredentials::Bearer(token) => Some(format!("Bearer {}", token.expose())),
    };
    let url = format!("{}{HOOK}", settings.url);
    let (reply, took) = post(client, &url, credentials.as_deref(), request, settings).await?;
    if settings.is_raw {
        return raw(&reply, &url);
    }
    let Decision { remove_scopes, additional_claims } = answer(&reply, &url)?;
    let explanation = match &settings.api_token {
        Some(token) => Some(explanation(client, settings, token, &json!({"request": request})).await),
        None => None,
    };
    let mut text = format!("{url} answered in {}, connecting included.\n\n", milliseconds(took));
    let (why, mut notes) = match explanation {
        Some(Ok((explanation, _))) => {
            let agrees = explanation.remove_scopes == remove_scopes;
            let note = "The hook and the explanation differ: something was written in between, or the hook answered from \
                memory while the database could not be asked.";
            (explanation.scopes, if agrees { Vec::new() } else { vec![note.to_owned()] })
        }
        Some(Err(error)) => (Vec::new(), vec![format!("Why is not known: {error:#}.")]),
        None => {
            let note = "Set TOLLGATE_API_TOKEN, to a token with the role `reader`, to be told why.";
            (Vec::new(), vec![note.to_owned()])
        }
    };
    let mut seen = BTreeSet::new();
    let requested: Vec<_> = settings.scopes.iter().filter(|scope| seen.insert(scope.as_str())).collect();
    let width = width(requested.iter().map(|scope| scope.as_str()));
    for scope in &requested {
        let kept = !remove_scopes.contains(scope);
        let why = why.iter().find(|explained| explained.scope == **scope && explained.kept == kept).map(reason);
        line(&mut text, kept, scope, width, why.as_deref());
    }
    if requested.iter().all(|scope| remove_scopes.contains(scope)) {
        notes.insert(0, "No scope is left: Access refuses such a request.".to_owned());
    }
    end(&mut text, &additional_claims, &notes);
    Ok(text)
}

/// Asks what would be answered at an instant.
async fn explained(client: &HttpClient, settings: &AskSettings, request: &Value) -> anyhow::Result<String> {
    let question = json!({"request": request, "at": settings.at});
    let token = settings.api_token.as_ref().context("no token of the management API is set")?;
    if settings.is_raw {
        let url = format!("{}{EXPLAIN}", settings.api_url);
        let (reply, _) = post(client, &url, Some(&bearer(token)), &question, settings).await?;
        return raw(&reply, &url);
    }
    let (explanation, took) = explanation(client, settings, token, &question).await?;
    let mut text = format!(
        "At {}, by what is recorded now ({} answered in {}, connecting included):\n\n",
        plain(&explanation.at),
        settings.api_url,
        milliseconds(took)
    );
    let width = width(explanation.scopes.iter().map(|explained| explained.scope.as_str()));
    for explained in &explanation.scopes {
        line(&mut text, explained.kept, &explained.scope, width, Some(&reason(explained)));
    }
    let is_empty = explanation.scopes.iter().all(|explained| !explained.kept);
    let note = is_empty.then(|| "No scope is left: Access refuses such a request.".to_owned());
    end(&mut text, &explanation.additional_claims, note.as_slice());
    Ok(text)
}

async fn explanation(
    client: &HttpClient,
    settings: &AskSettings,
    token: &Secret,
    question: &Value,
) -> anyhow::Result<(Explanation, Duration)> {
    let url = format!("{}{EXPLAIN}", settings.api_url);
    let (reply, took) = post(client, &url, Some(&bearer(token)), question, settings).await?;
    Ok((answer(&reply, &url)?, took))
}

fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.expose())
}

async fn post(
    client: &HttpClient,
    url: &str,
    credentials: Option<&str>,
    body: &Value,
    settings: &AskSettings,
) -> anyhow::Result<(Reply, Duration)> {
    if credentials.is_some() && is_readable_by_others(url) {
        tracing::warn!("credentials are sent without TLS: whoever stands between can read them");
    }
    let started = Instant::now();
    let reply = client.post(url, credentials, body.to_string().into(), settings.timeout, MAX_ANSWER_BYTES).await;
    let took = started.elapsed();
    // The chain holds the address where it could not be asked, and never the credentials.
    let reply = reply.map_err(|error| anyhow::anyhow!("{url} cannot be asked: {}", chain(&error)))?;
    Ok((reply, took))
}

/// Whether what is sent to an address leaves this machine without TLS.
fn is_readable_by_others(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host != "localhost" && !host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The answer as it came; an error, too, when it is a refusal.
fn raw(reply: &Reply, url: &str) -> anyhow::Result<String> {
    let text = String::from_utf8(reply.body.to_vec()).context("the answer is not UTF-8")?;
    if reply.status == OK {
        return Ok(format!("{}\n", text.trim_end()));
    }
    writeln!(io::stdout(), "{}", text.trim_end()).context("the answer cannot be written")?;
    Err(refusal(reply, url))
}

/// What a reply answers, unless it refuses.
fn answer<'reply, T: Deserialize<'reply>>(reply: &'reply Reply, url: &str) -> anyhow::Result<T> {
    if reply.status != OK {
        return Err(refusal(reply, url));
    }
    serde_json::from_slice(&reply.body)
        .map_err(|_| anyhow::anyhow!("{url} answered something that Tollgate does not: is it Tollgate's address?"))
}

/// A refusal in words, with what to look at.
fn refusal(reply: &Reply, url: &str) -> anyhow::Error {
    let hint = match reply.status {
        401 => "look at the credentials here and in the settings of the service; its log says why",
        403 => "the token has not the role that is needed",
        404 | 405 => "look at the address: it is served on another listener, or by something else than Tollgate",
        413 => "the question is too large",
        429 => "too many wrong credentials came from here: wait a while",
        503 => "Tollgate does not know the answer now: look at the database, and at /readyz",
        _ => "look at the log of the service",
    };
    let told = match serde_json::from_slice::<Problem>(&reply.body) {
        Ok(Problem { code, detail, errors }) => {
            let mut told = format!("{}: {}", plain(&code), plain(&detail));
            for ProblemField { pointer, detail } in errors {
                // Writing into a string does not fail.
                let _ = write!(told, "; {}: {}", plain(&pointer), plain(&detail));
            }
            told
        }
        Err(_) => "no problem document, so perhaps not from Tollgate".to_owned(),
    };
    anyhow::anyhow!("{url} answered {} ({told}): {hint}", reply.status)
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1_000.0)
}

/// How wide the column of the scopes is.
fn width<'a>(scopes: impl Iterator<Item = &'a str>) -> usize {
    scopes.map(|scope| plain(scope).chars().count()).max().unwrap_or_default()
}

fn line(text: &mut String, kept: bool, scope: &str, width: usize, why: Option<&str>) {
    let (verdict, scope) = (if kept { "kept" } else { "removed" }, plain(scope));
    let line = format!("  {verdict:<7}  {scope:<width$}  {}", why.unwrap_or_default());
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Why a scope is kept or removed, in a few words.
fn reason(explained: &Explained) -> String {
    let Explained { scope: _, kept: _, reason, unenforced, subscriptions, next } = explained;
    let mut text = plain(reason);
    // Writing into a string does not fail.
    if let Some(unenforced) = unenforced {
        let _ = write!(text, ", else removed: {}", plain(unenforced));
    }
    if !subscriptions.is_empty() {
        let ids: Vec<_> = subscriptions.iter().map(|id| plain(id)).collect();
        let _ = write!(text, ", by {}", ids.join(" and "));
    }
    if let Some(Next { at, kept }) = next {
        let _ = write!(text, ", {} from {} on", if *kept { "kept" } else { "removed" }, plain(at));
    }
    text
}

fn end(text: &mut String, claims: &Map<String, Value>, notes: &[String]) {
    text.push('\n');
    if claims.is_empty() {
        text.push_str("No claims.\n");
    } else {
        text.push_str("Claims:\n");
        for (name, value) in claims {
            // JSON has no control characters, but for those that only look like others.
            let _ = writeln!(text, "  {}: {}", plain(name), plain(&value.to_string()));
        }
    }
    for note in notes {
        let _ = writeln!(text, "\n{note}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, body: body.to_owned().into() }
    }

    #[test]
    fn credentials_that_leave_the_machine_in_the_clear_are_noticed() {
        for (url, expected) in [
            ("http://10.0.0.1:8080", true),
            ("http://hooks.example.com/x", true),
            ("http://localhost.example.com", true),
            ("https://hooks.example.com", false),
            ("http://localhost:8080", false),
            ("http://127.0.0.1:8080/v1", false),
            ("http://[::1]:8080", false),
            ("http://[2001:db8::1]", true),
        ] {
            assert_eq!(is_readable_by_others(url), expected, "{url}");
        }
    }

    #[test]
    fn a_refusal_says_what_came_and_what_to_look_at() {
        let body = r#"{"code":"unauthorized","detail":"The credentials\u001b[31m are wrong."}"#;
        let told = refusal(&reply(401, body), "http://x").to_string();
        assert!(
            told.starts_with("http://x answered 401 (unauthorized: ") && told.contains("credentials here"),
            "{told}"
        );
        assert!(!told.contains('\u{1b}'), "{told}");
        let told = refusal(&reply(502, "<html>"), "http://x").to_string();
        assert!(told.contains("not from Tollgate"), "{told}");
        assert!(answer::<Decision>(&reply(200, "{}"), "http://x").is_err());
    }

    #[test]
    fn a_reason_tells_by_what_and_until_when() {
        let explained = |text| reason(&serde_json::from_str(text).expect("one"));
        assert_eq!(
            explained(
                r#"{"scope":"a","kept":true,"reason":"active","subscriptions":["x"],"next":{"at":"T","kept":false}}"#
            ),
            "active, by x, removed from T on"
        );
        assert_eq!(
            explained(r#"{"scope":"a","kept":true,"reason":"not_enforced","unenforced":"expired","subscriptions":[]}"#),
            "not_enforced, else removed: expired"
        );
    }
}
