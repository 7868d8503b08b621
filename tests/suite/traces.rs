//! Traces: what a collector gets to know of requests, and that a collector that is away harms nobody.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use serde_json::json;

use crate::process::{CREDENTIALS, Folder, Server, send, until};

const HOOK: &str = "/v1/customize-access-token";
const BASIC: &str = "Authorization: Basic aG9vazpob29r";
const BEARER: &str = "Authorization: Bearer admin-token";
const JSON: &str = "Content-Type: application/json";

/// What a request brought.
struct Received {
    path: String,
    content_type: String,
    export: ExportTraceServiceRequest,
}

/// A collector that keeps what it is sent.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let kept = Arc::clone(&received);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let kept = Arc::clone(&kept);
                let take = service_fn(move |request: Request<Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let path = request.uri().path().to_owned();
                        let content_type = request.headers()["content-type"].to_str().expect("text").to_owned();
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        let export = ExportTraceServiceRequest::decode(body).expect("spans");
                        kept.lock().expect("no test holds it").push(Received { path, content_type, export });
                        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), take));
            }
        });
        Self { address, received, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of a trace that have come so far, the last one to end last.
    fn spans_of(&self, trace: &str) -> Vec<Span> {
        let mut spans: Vec<_> = self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace).collect();
        spans.sort_by_key(|span| span.end_time_unix_nano);
        spans
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().expect("whole");
        let resources = received.iter().flat_map(|received| &received.export.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |value: Option<&AnyValue>| match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute.value.as_ref()))).collect()
}

fn environment<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    CREDENTIALS.iter().chain(more).copied().collect()
}

/// The body of a hook request.
fn asking(user: &str) -> String {
    json!({"user": {"id": user}, "client": {"id": "personal-client"}, "scopes": ["personal-scope"]}).to_string()
}

fn traceparent(trace: &str, flags: &str) -> String {
    format!("traceparent: 00-{trace}-00f067aa0ba902b7-{flags}")
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = send(server.operations, "GET", "/metrics", &[], "").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not there"))
}

#[test]
fn a_collector_gets_the_spans_of_requests_that_are_to_be_traced() {
    let (folder, collector) = (Folder::new(), Collector::start());
    let url = collector.url();
    let environment = environment(&[("TOLLGATE_OTLP_ENDPOINT", &url), ("TOLLGATE_OTLP_SHARE", "0")]);
    let mut server = Server::start(&folder, &[], &environment);
    let [written, asked, known, unsampled, refused] =
        ["a1", "a2", "a3", "a4", "a5"].map(|end| format!("4bf92f3577b34da6a3ce929d0e0e47{end}"));
    let created = json!({"name": "personal-scope"}).to_string();
    let sampled = traceparent(&written, "01");
    assert_eq!(send(server.main, "POST", "/v1/scopes", &[BEARER, JSON, &sampled], &created).status, 201);
    for (trace, flags) in [(&asked, "01"), (&known, "01"), (&unsampled, "00")] {
        let header = traceparent(trace, flags);
        let answer = send(server.main, "POST", HOOK, &[BASIC, JSON, &header], &asking("personal-user"));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let header = traceparent(&refused, "01");
    assert_eq!(send(server.main, "POST", HOOK, &[JSON, &header], &asking("personal-user")).status, 401);
    assert_eq!(send(server.main, "POST", HOOK, &[BASIC, JSON], &asking("personal-user")).status, 200);
    until("the spans", || (collector.spans_of(&refused).len() >= 2).then_some(()));
    server.stop();

    // When the catalogue is read again is nobody's business here.
    let spans_of = |trace: &str| {
        let mut spans = collector.spans_of(trace);
        spans.retain(|span| span.name != "read catalogue");
        spans
    };
    let names = |trace: &str| spans_of(trace).into_iter().map(|span| span.name).collect::<Vec<_>>();
    assert_eq!(names(&asked), ["authenticate", "read facts", "customize-access-token"]);
    assert_eq!(names(&known), ["authenticate", "customize-access-token"], "what is cached is not asked for");
    assert_eq!(names(&refused), ["authenticate", "customize-access-token"]);
    assert_eq!(names(&unsampled), [""; 0], "its caller does not trace it");
    let of_write = names(&written);
    assert!(of_write.contains(&"write".to_owned()) && of_write.ends_with(&["create-scope".to_owned()]), "{of_write:?}");
    let all = [&asked, &known, &refused, &written].map(|trace| collector.spans_of(trace).len()).iter().sum::<usize>();
    assert_eq!(collector.spans().len(), all, "a request without traceparent is not traced, for the share is 0");

    let spans = spans_of(&asked);
    let [authenticate, read, request] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind), ("00f067aa0ba902b7", SpanKind::Server as i32));
    for part in [authenticate, read] {
        assert_eq!((&part.parent_span_id, part.kind), (&request.span_id, SpanKind::Internal as i32));
        let lies_within = request.start_time_unix_nano <= part.start_time_unix_nano
            && part.start_time_unix_nano <= part.end_time_unix_nano
            && part.end_time_unix_nano <= request.end_time_unix_nano;
        assert!(lies_within, "{part:?} {request:?}");
    }
    let attributes = texts(&request.attributes);
    assert_eq!(
        (attributes["http.response.status_code"].as_str(), attributes["tollgate.outcome"].as_str()),
        ("200", "ok")
    );
    assert!(attributes["tollgate.request_id"].len() > 10);
    let failed = StatusCode::Error as i32;
    assert!(collector.spans().iter().all(|span| span.status.as_ref().is_none_or(|status| status.code != failed)));
    let received = collector.received.lock().expect("whole");
    for Received { path, content_type, export } in received.iter() {
        assert_eq!((path.as_str(), content_type.as_str()), ("/v1/traces", "application/x-protobuf"));
        let resource = texts(&export.resource_spans[0].resource.as_ref().expect("a resource").attributes);
        assert_eq!(resource["service.name"], "tollgate");
        assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(!format!("{export:?}").contains("personal"), "{export:?}");
    }
}

#[test]
fn a_request_that_says_nothing_of_traces_begins_one() {
    let (folder, collector) = (Folder::new(), Collector::start());
    let url = collector.url();
    let mut server = Server::start(&folder, &[], &environment(&[("TOLLGATE_OTLP_ENDPOINT", &url)]));
    for header in
        ["traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-00", "traceparent: nonsense", "x: y"]
    {
        assert_eq!(send(server.main, "POST", HOOK, &[BASIC, JSON, header], &asking("u")).status, 200);
    }
    // Signs of life are no requests of users.
    assert_eq!(send(server.operations, "GET", "/readyz", &[], "").status, 200);
    assert_eq!(send(server.main, "GET", "/nowhere", &[], "").status, 404);
    // It sends what it has when it ends.
    server.stop();
    let spans = collector.spans();
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "customize-access-token").collect();
    assert!(roots.len() == 3 && roots.iter().all(|span| span.parent_span_id.is_empty()), "{spans:?}");
    assert!(
        spans.iter().all(|span| ["customize-access-token", "authenticate", "read catalogue"].contains(&&*span.name)),
        "{spans:?}"
    );
}

#[test]
fn nothing_is_traced_unless_a_collector_is_named() {
    let (folder, collector) = (Folder::new(), Collector::start());
    let url = collector.url();
    // What other programs take for a collector is none here.
    let elsewhere = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let mut server = Server::start(&folder, &[], &environment(&elsewhere));
    let header = traceparent("4bf92f3577b34da6a3ce929d0e0e4736", "01");
    for _ in 0..50 {
        assert_eq!(send(server.main, "POST", HOOK, &[BASIC, JSON, &header], &asking("u")).status, 200);
    }
    for outcome in ["sent", "failed", "dropped"] {
        let count = metric(&server, &format!(r#"tollgate_trace_spans_total{{outcome="{outcome}"}}"#));
        assert!(count.abs() < 0.5, "{outcome}: {count}");
    }
    server.stop();
    assert_eq!(collector.received.lock().expect("whole").len(), 0);
}

#[test]
fn a_collector_that_is_away_or_silent_costs_hooks_nothing_and_is_told_of() {
    // One refuses connections, the other takes them and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    for (url, fate, count) in [
        (format!("http://{closed}"), "failed", 50),
        (format!("http://{}", silent.local_addr().expect("an address")), "dropped", 4_000),
    ] {
        let folder = Folder::new();
        let mut server = Server::start(&folder, &[], &environment(&[("TOLLGATE_OTLP_ENDPOINT", &url)]));
        let mut longest = Duration::ZERO;
        for _ in 0..count {
            let start = Instant::now();
            let answer = send(server.main, "POST", HOOK, &[BASIC, JSON], &asking("u"));
            longest = longest.max(start.elapsed());
            assert_eq!(answer.status, 200, "{url}: {}", answer.body);
        }
        // A request that waited for the collector would have taken five seconds.
        assert!(longest < Duration::from_secs(4), "{url}: {longest:?}");
        let name = format!(r#"tollgate_trace_spans_total{{outcome="{fate}"}}"#);
        until(&name, || (metric(&server, &name) > 0.5).then_some(()));
        let start = Instant::now();
        server.stop();
        assert!(start.elapsed() < Duration::from_secs(20), "{url}: it ends all the same");
        let log = server.log();
        let told = log.lines().filter(|line| line.contains("traces cannot be sent")).count();
        assert!(told <= 1 && (fate != "failed" || told == 1), "{log}");
    }
}
