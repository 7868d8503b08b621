//! What asks the service over HTTP, measures, and survives whatever happens to the other end.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::measure::{Times, duration};

/// The scope under subscription that most rows ask for.
pub const SCOPE: &str = "soak";
/// The path of the hook.
pub const HOOK: &str = "/v1/customize-access-token";
/// The credentials of the hooks.
pub const BASIC: &str = "Basic aG9vazpob29r";
/// How long a caller waits, far longer than anything is promised to take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No connection was to be had, so nothing was sent.
    NoConnection,
    /// The connection broke, or the time was over.
    Broken(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConnection => f.write_str("no connection"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Failure {}

/// An answer that has arrived whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub took: Duration,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, of an answer that must be of this status.
    pub fn expect(&self, status: u16) -> anyhow::Result<Value> {
        anyhow::ensure!(self.status == status, "{} instead of {status}: {}", self.status, self.text());
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// Whether a hook's answer keeps the one scope that was asked for; none when it does not say.
    pub fn kept(&self) -> Option<bool> {
        if self.status != 200 {
            return None;
        }
        let answer: Value = serde_json::from_slice(&self.body).ok()?;
        match answer["removeScopes"].as_array()?.as_slice() {
            [] => Some(true),
            [removed] if removed == SCOPE => Some(false),
            _ => None,
        }
    }

    /// Whether it is a problem document that says to come again.
    pub fn is_unavailable(&self) -> bool {
        let header = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        self.status == 503
            && header("content-type") == Some("application/problem+json")
            && header("retry-after").is_some()
    }
}

/// What asks one listener.
#[derive(Debug, Clone)]
pub struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    pub address: SocketAddr,
}

impl Caller {
    /// Over connections that are kept.
    pub fn new(address: SocketAddr) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(connector()), address }
    }

    /// Over a new connection for each request.
    pub fn fresh(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector());
        Self { client, address }
    }

    /// Sends a request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        credentials: &str,
        body: Option<String>,
    ) -> Result<Reply, Failure> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        request = request.header("authorization", credentials);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let start = Instant::now();
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| {
                if error.is_connect() { Failure::NoConnection } else { Failure::Broken(format!("{error:?}")) }
            })?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| Failure::Broken(error.to_string()))?.to_bytes();
            Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body, took: start.elapsed() })
        };
        tokio::time::timeout(PATIENCE, answer).await.map_err(|_| Failure::Broken("no answer in 30 s".to_owned()))?
    }

    /// Gets a page that everybody may see.
    pub async fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.send(Method::GET, path, "", None).await
    }

    /// Asks the hook whether a user may have the scope under subscription.
    pub async fn ask(&self, user: &str) -> Result<Reply, Failure> {
        self.ask_with(user, BASIC).await
    }

    /// The same with other credentials.
    pub async fn ask_with(&self, user: &str, credentials: &str) -> Result<Reply, Failure> {
        self.send(Method::POST, HOOK, credentials, Some(question(user))).await
    }

    /// Asks the management API.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> Result<Reply, Failure> {
        let method = Method::from_bytes(method.as_bytes()).map_err(|error| Failure::Broken(error.to_string()))?;
        self.send(method, path, "Bearer admin-token", body.map(|body| body.to_string())).await
    }

    /// Registers a scope that the user must hold.
    pub async fn register(&self, scope: &str) -> anyhow::Result<()> {
        self.api("POST", "/v1/scopes", Some(json!({"name": scope, "requires": "user"}))).await?.expect(201)?;
        Ok(())
    }

    /// Records a subscription without end of a user: its id.
    pub async fn subscribe(&self, user: &str) -> anyhow::Result<String> {
        let reply = self.api("POST", "/v1/subscriptions", Some(subscription(user))).await?;
        Ok(reply.expect(201)?["id"].as_str().context("an id")?.to_owned())
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

/// What the hook is asked: whether a user may have the scope under subscription.
pub fn question(user: &str) -> String {
    format!(r#"{{"user":{{"id":"{user}"}},"client":{{"id":"c"}},"scopes":["{SCOPE}"]}}"#)
}

/// A subscription without end.
pub fn subscription(user: &str) -> Value {
    json!({
        "subject": {"type": "user", "id": user}, "scopes": [SCOPE],
        "validFrom": "2020-01-01T00:00:00Z", "validUntil": null,
    })
}

/// What came of one request of a load.
#[derive(Debug, Clone)]
pub struct Seen {
    /// For whom.
    pub user: String,
    /// When it began.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// What was answered, if anything was.
    pub status: Option<u16>,
    /// Whether a 200 kept or removed as the oracle does, or a 503 was a whole problem.
    pub right: bool,
}

/// Hook requests at a steady pace.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Seen>>,
}

impl Load {
    /// Begins to ask for a user after the other, each with what the oracle says of it: `callers` at a time, each with
    /// this pause from the start of one request to the next.
    pub fn start(
        address: SocketAddr,
        callers: u32,
        pause: Duration,
        next: impl Fn(u64) -> (String, bool) + Clone + Send + 'static,
    ) -> Self {
        Self::start_with(address, callers, pause, |_| BASIC.to_owned(), next)
    }

    /// The same with credentials that may differ from one request to the next.
    pub fn start_with(
        address: SocketAddr,
        callers: u32,
        pause: Duration,
        credentials: impl Fn(u64) -> String + Clone + Send + 'static,
        next: impl Fn(u64) -> (String, bool) + Clone + Send + 'static,
    ) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..callers {
            // Each has a connection of its own, so that none needs another one later.
            let (stop, count, caller) = (Arc::clone(&stop), Arc::clone(&count), Caller::new(address));
            let (credentials, next) = (credentials.clone(), next.clone());
            tasks.spawn(async move {
                let mut seen = Vec::new();
                // Spread, so that they do not all ask at the same instants.
                let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + pause * number / callers, pause);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let ((user, expected), credentials) = (next(number), credentials(number));
                    let at = Instant::now();
                    let reply = caller.ask_with(&user, &credentials).await;
                    let right = match &reply {
                        Ok(reply) if reply.status == 200 => reply.kept() == Some(expected),
                        Ok(reply) => reply.is_unavailable(),
                        Err(_) => false,
                    };
                    seen.push(Seen {
                        user,
                        at,
                        took: at.elapsed(),
                        status: reply.ok().map(|reply| reply.status),
                        right,
                    });
                }
                seen
            });
        }
        Self { stop, tasks }
    }

    /// Ends it: what came of each request, in order.
    pub async fn end(self) -> anyhow::Result<Vec<Seen>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen: Vec<Seen> = self.tasks.join_all().await.into_iter().flatten().collect();
        seen.sort_by_key(|seen| seen.at);
        Ok(seen)
    }
}

/// How long each request took.
pub fn times(seen: &[Seen]) -> Times {
    seen.iter().map(|seen| seen.took).collect()
}

/// How many requests were not answered as they should have been: with a right 200.
pub fn count_not_ok(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.status != Some(200) || !seen.right).count()
}

/// The first answer that was not as it should have been, in words.
pub fn first_not_ok(seen: &[Seen]) -> String {
    let not_ok = seen.iter().find(|seen| seen.status != Some(200) || !seen.right);
    not_ok.map_or_else(String::new, |seen| {
        let status = seen.status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
        format!("{status} for {} after {}", seen.user, duration(seen.took))
    })
}

/// How many answers were wrong, whatever their status.
pub fn count_wrong(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| !seen.right).count()
}
