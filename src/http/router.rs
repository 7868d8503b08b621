//! What reaches a handler at all: route, credentials, query, body, in this order.
//!
//! One table of routes is made from the contracts, so the paths, methods and parameters that are served are the ones
//! that are described. Everything that is refused is a problem document.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Either, Full, combinators::BoxBody};
use hyper::body::{Body as _, Incoming};
use poem::{
    Addr, Body, Endpoint, EndpointExt as _, IntoEndpoint, IntoResponse, Request, Response,
    endpoint::BoxEndpoint,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use poem_openapi::{OpenApi, registry::MetaParamIn};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    App,
    admission::Admitted,
    auth::{self, Access, Gate, Shown},
    console::{self, Console, Visitors},
    contract::{self, Contract, ManagementApi},
    headers::{self, Reader},
    hook::{self, HookApi},
    problem::{self, FieldError, Problem, outcome, shortened},
};
use crate::service::{
    self, Idempotency, Origin,
    metrics::{Hook, Shed},
    trace::{self, Caller, Traced, Tracer},
};

/// How long a body may take to arrive.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The body of a hook request: some thousand scopes and a user's claims.
const HOOK_BODY: BodyLimit = BodyLimit { bytes: 256 * 1024, time: BODY_TIMEOUT };
/// The body of a management request.
const API_BODY: BodyLimit = BodyLimit { bytes: 1024 * 1024, time: BODY_TIMEOUT };
/// What is read and thrown away of a body that is too large, so that its sender gets to read the answer.
const DISCARDED_BYTES: usize = 4 * 1024 * 1024;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest request id that is taken over from a caller, in characters.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// The operations whose body is a file of any length.
const UPLOADS: [&str; 1] = ["import-subscriptions"];

/// What stands for the operation in the log when a request is of none.
const UNKNOWN: &str = "none";

/// The longest key of a request that is to be done once, in characters: what Stripe's clients send, too.
pub(super) const MAX_KEY_LENGTH: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit {
    /// Its length at most.
    pub bytes: usize,
    /// How long it may take to arrive.
    pub time: Duration,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Surface {
    /// What Access calls.
    Hooks,
    /// What billing and support call, and the pages about it.
    Management,
    /// What operators and their tools call.
    Operations,
}

/// Whether the process takes on work; false from the moment it was told to stop.
#[derive(Debug)]
pub struct Readiness(AtomicBool);

impl Readiness {
    /// Ready, as far as this is concerned.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicBool::new(true)))
    }

    /// No longer ready, for good.
    pub fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The ends of the connection that a request came over.
#[derive(Debug)]
pub struct Ends {
    /// Our end of its connection.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Whether that speaks TLS.
    pub scheme: Scheme,
}

/// What a request is answered with: by a hook as a whole, by the rest through the library.
pub type Answer = hyper::Response<Either<Full<Bytes>, BoxBody<Bytes, io::Error>>>;

/// An answer that came about in the library.
fn answer(response: impl IntoResponse) -> Answer {
    hyper::Response::from(response.into_response()).map(Either::Right)
}

/// An operation of a contract.
struct Operation {
    id: &'static str,
    access: Option<Access>,
    handler: Handler,
}

/// What answers an operation.
enum Handler {
    /// A hook, which is called as the function that it is: the library's way to it costs more than all that it does.
    Hook(Hook),
    /// An operation of the management API, by way of the library.
    Management(Management),
}

/// An operation of the management API.
struct Management {
    parameters: Vec<(String, bool)>,
    /// Whether its body is a file, which its handler reads as it arrives.
    is_upload: bool,
    endpoint: Arc<BoxEndpoint<'static>>,
}

/// A path that answers the same to everybody.
enum Fixed {
    Live,
    Ready,
    Metrics,
    Version,
    /// What changes with the version only; a page says what it may do.
    File {
        content_type: &'static str,
        content: Bytes,
        policy: Option<HeaderValue>,
    },
}

enum Target {
    Operation(Operation),
    Fixed(Fixed),
}

/// The targets of one path, by method.
type Targets = Vec<(Method, Target)>;

/// What answers the requests of one listener.
pub struct Router {
    app: Arc<App>,
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    /// The pages for support staff, where they are served.
    console: Option<Arc<Console>>,
    /// None where nothing is traced.
    tracer: Option<Arc<Tracer>>,
    /// Targets by path. A path with parameters is a template such as `/v1/scopes/{name}`.
    plain: HashMap<String, Targets>,
    templates: Vec<(Vec<String>, Targets)>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("plain", &self.plain.keys()).finish_non_exhaustive()
    }
}

/// The words about a request that a log line has.
struct Line {
    operation: &'static str,
    request_id: HeaderValue,
    /// The caller's trace, when it names one.
    trace_id: Option<String>,
    /// Whether parts of its work have spans of their own.
    is_traced: bool,
    started: Instant,
}

impl Router {
    /// A router that serves nothing yet.
    #[must_use]
    pub fn new(app: Arc<App>, gate: Arc<Gate>, readiness: Arc<Readiness>) -> Self {
        let (plain, templates) = (HashMap::new(), Vec::new());
        Self { app, gate, readiness, console: None, tracer: None, plain, templates }
    }

    /// The same router, serving the pages for support staff, too. They have a table of routes of their own.
    #[must_use]
    pub fn with_console(self, console: Arc<Console>) -> Self {
        for route in &console::ROUTES {
            self.app.service.metrics().expect_operation(route.id);
        }
        Self { console: Some(console), ..self }
    }

    /// The same router, tracing what it answers if there is a tracer.
    #[must_use]
    pub fn traced(self, tracer: Option<Arc<Tracer>>) -> Self {
        Self { tracer, ..self }
    }

    /// The same router, serving a surface more.
    #[must_use]
    pub fn with(mut self, surface: Surface) -> Self {
        match surface {
            Surface::Hooks => self.add_hooks(),
            Surface::Management => {
                self.add_management();
                self.add_documents();
            }
            Surface::Operations => {
                self.add_fixed("/livez", Fixed::Live);
                self.add_fixed("/readyz", Fixed::Ready);
                self.add_fixed("/metrics", Fixed::Metrics);
                self.add_fixed("/version", Fixed::Version);
            }
        }
        self
    }

    fn add_hooks(&mut self) {
        for path in HookApi::meta().into_iter().flat_map(|api| api.paths) {
            for operation in path.operations {
                let hook = Hook::ALL.into_iter().find(|hook| Some(hook.as_str()) == operation.operation_id);
                if let Some(hook) = hook {
                    self.add_operation(&path.path, operation.method, hook.as_str(), Handler::Hook(hook));
                }
            }
        }
    }

    fn add_management(&mut self) {
        let endpoint: Arc<BoxEndpoint<'static>> = Arc::new(contract::management().into_endpoint().boxed());
        for path in ManagementApi::meta().into_iter().flat_map(|api| api.paths) {
            for operation in path.operations {
                let id = operation.operation_id.unwrap_or("unnamed");
                self.app.service.metrics().expect_operation(id);
                let in_query = operation.params.iter().filter(|parameter| parameter.in_type == MetaParamIn::Query);
                let management = Management {
                    parameters: in_query.map(|parameter| (parameter.name.clone(), parameter.required)).collect(),
                    is_upload: UPLOADS.contains(&id),
                    endpoint: Arc::clone(&endpoint),
                };
                self.add_operation(&path.path, operation.method, id, Handler::Management(management));
            }
        }
    }

    fn add_operation(&mut self, path: &str, method: Method, id: &'static str, handler: Handler) {
        self.add(path, method, Target::Operation(Operation { id, access: auth::access(id), handler }));
    }

    fn add_documents(&mut self) {
        for contract in Contract::ALL {
            let yaml = Fixed::File { content_type: "application/yaml", content: contract.yaml().into(), policy: None };
            self.add_fixed(&format!("/openapi/{}.yaml", contract.as_str()), yaml);
        }
        let page = |contract: Contract| {
            let page = contract.page();
            let policy = Some(headers::page_policy(&page));
            Fixed::File { content_type: "text/html", content: page.into(), policy }
        };
        self.add_fixed("/docs", page(Contract::Management));
        self.add_fixed("/docs/hooks", page(Contract::Hooks));
    }

    fn add_fixed(&mut self, path: &str, fixed: Fixed) {
        self.add(path, Method::GET, Target::Fixed(fixed));
    }

    fn add(&mut self, path: &str, method: Method, target: Target) {
        if !path.contains('{') {
            self.plain.entry(path.to_owned()).or_default().push((method, target));
            return;
        }
        let template: Vec<_> = path.split('/').map(str::to_owned).collect();
        match self.templates.iter_mut().find(|(there, _)| *there == template) {
            Some((_, targets)) => targets.push((method, target)),
            None => self.templates.push((template, vec![(method, target)])),
        }
    }

    /// What is served, by method and path, but for the console; a path with parameters is a template.
    pub fn routes(&self) -> Vec<(Method, String)> {
        let templates = self.templates.iter().map(|(template, targets)| (template.join("/"), targets));
        let paths = self.plain.iter().map(|(path, targets)| (path.clone(), targets)).chain(templates);
        paths
            .flat_map(|(path, targets)| targets.iter().map(move |(method, _)| (method.clone(), path.clone())))
            .collect()
    }

    /// Answers a request.
    pub async fn respond(&self, request: hyper::Request<Incoming>, ends: &Ends) -> Answer {
        let mut line = Line {
            operation: UNKNOWN,
            request_id: self.request_id(request.headers()),
            trace_id: trace_id(request.headers()),
            is_traced: false,
            started: Instant::now(),
        };
        let (version, is_head) = (request.version(), request.method() == Method::HEAD);
        let is_tls = self.app.is_tls_everywhere && ends.scheme == Scheme::HTTPS;
        let (mut reader, mut is_page) = (Reader::Anybody, false);
        let mut answered = match self.target(request.method(), request.uri().path()) {
            Ok(Target::Operation(operation)) => {
                line.operation = operation.id;
                if let Handler::Hook(_) = operation.handler {
                    reader = Reader::Machine;
                }
                let answered = match self.begin_trace(operation, &request) {
                    None => or_failed(self.call(operation, &line, request, ends), &line).await.unwrap_or_else(answer),
                    Some(traced) => Box::pin(self.call_traced(traced, operation, &mut line, request, ends)).await,
                };
                self.count(operation, &line, answered.status());
                answered
            }
            Ok(Target::Fixed(fixed)) => {
                or_failed(Box::pin(self.fixed(fixed)).map(Ok), &line).await.unwrap_or_else(answer)
            }
            Err(problem) => match self.console.as_deref().filter(|_| console::is_below(request.uri().path())) {
                Some(console) => {
                    is_page = true;
                    Box::pin(self.show(console, &mut line, request, ends)).await
                }
                None => answer(problem),
            },
        };
        if !is_page && is_bare_error(&answered) {
            // A library said no before any code of ours; its words may repeat what was sent.
            answered = answer(Problem::of_status(answered.status()));
        }
        let is_cut_off = matches!(answered.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT);
        if is_cut_off && version < Version::HTTP_2 {
            // The rest of the body would be taken for the next request.
            answered.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if is_head {
            *answered.body_mut() = Either::Left(Full::default());
        }
        self.log(&line, &answered);
        answered.headers_mut().insert(X_REQUEST_ID, line.request_id);
        headers::protect(answered.headers_mut(), reader, is_tls);
        answered
    }

    fn target(&self, method: &Method, path: &str) -> Result<&Target, Problem> {
        let targets = self.plain.get(path).or_else(|| {
            let segments: Vec<_> = path.split('/').collect();
            let found = self.templates.iter().find(|(template, _)| matches(template, &segments));
            found.map(|(_, targets)| targets)
        });
        let targets = targets.ok_or_else(Problem::not_found)?;
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let found = targets.iter().find(|(method, _)| method == wanted);
        found.map(|(_, target)| target).ok_or_else(|| method_not_allowed(targets.iter().map(|(method, _)| method)))
    }

    /// Begins to trace a request, where there is a tracer and the request is to be traced.
    fn begin_trace(&self, operation: &Operation, request: &hyper::Request<Incoming>) -> Option<Traced> {
        let tracer = self.tracer.as_ref()?;
        let header = |name: HeaderName| request.headers().get(name)?.to_str().ok();
        tracer.begin(operation.id, &Caller { parent: header(TRACEPARENT), state: header(TRACESTATE) })
    }

    async fn call_traced(
        &self,
        traced: Traced,
        operation: &Operation,
        line: &mut Line,
        request: hyper::Request<Incoming>,
        ends: &Ends,
    ) -> Answer {
        line.trace_id = Some(traced.id());
        line.is_traced = true;
        let work = or_failed(self.call(operation, line, request, ends), line);
        let answered = traced.around(work).await.unwrap_or_else(answer);
        let status = answered.status();
        traced.end(status.as_u16(), outcome(status), line.request_id.to_str().unwrap_or_default().to_owned());
        answered
    }

    async fn call(
        &self,
        operation: &Operation,
        line: &Line,
        request: hyper::Request<Incoming>,
        ends: &Ends,
    ) -> Result<Answer, Problem> {
        let _place = self.admit(operation)?;
        let shown = Shown { headers: request.headers(), peer: Some(ends.remote.ip()), request_id: &line.request_id };
        let actor = if line.is_traced {
            Box::pin(trace::during("authenticate", self.gate.admit(operation.access, shown))).await?
        } else {
            self.gate.admit(operation.access, shown).await?
        };
        let (parts, body) = request.into_parts();
        match &operation.handler {
            Handler::Hook(hook) => {
                let waited = line.started.elapsed();
                let body = read_body(body, &parts.headers, HOOK_BODY).await?;
                Ok(hook::answer(*hook, &self.app, waited, &parts.headers, body).await?.map(Either::Left))
            }
            // Boxed, and so are the others that a hook seldom comes by: hyper moves what answers a request, and would move
            // the room for them with it.
            Handler::Management(management) => {
                Box::pin(self.manage(management, actor.into_owned(), line, (parts, body), ends)).await
            }
        }
    }

    async fn manage(
        &self,
        operation: &Management,
        actor: String,
        line: &Line,
        (parts, body): (Parts, Incoming),
        ends: &Ends,
    ) -> Result<Answer, Problem> {
        let [local, remote] = [ends.local, ends.remote].map(Addr::SocketAddr);
        let parts = (parts, LocalAddr(local), RemoteAddr(remote), ends.scheme.clone());
        let mut request = Request::from_parts(parts.into(), Body::empty());
        check_query(&operation.parameters, &request)?;
        let request_id = line.request_id.to_str().unwrap_or_default().to_owned();
        let mut origin = Origin { actor, request_id, idempotency: None };
        if operation.is_upload {
            if request.headers().contains_key(&IDEMPOTENCY_KEY) {
                let detail = "a file has none: its lines have names by which they are done once";
                return Err(problem::undescribed(IDEMPOTENCY_KEY.as_str(), detail));
            }
            request.set_body(body.map_err(io::Error::other).boxed());
        } else {
            let body = read_body(body, request.headers(), API_BODY).await?;
            if *request.method() == Method::POST {
                origin.idempotency = idempotency(&request, &body)?;
            }
            request.set_body(body);
        }
        request.set_data(origin);
        request.set_data(Arc::clone(&self.app));
        Ok(answer(operation.endpoint.get_response(request).await))
    }

    /// Answers with a page of the console.
    async fn show(&self, console: &Console, line: &mut Line, request: hyper::Request<Incoming>, ends: &Ends) -> Answer {
        let (parts, body) = request.into_parts();
        let route = match console::find(&parts.method, parts.uri.path()) {
            Ok(route) => route,
            Err(problem) => return answer(console.refuse(problem)),
        };
        line.operation = route.id;
        let line = &*line;
        let work = async {
            let admission = &self.app.admission;
            let place = match route.visitors() {
                // It is there at once, and holds nothing up.
                Visitors::Browsers => Some(None),
                Visitors::Strangers => admission.admit_stranger().map(Some),
                Visitors::SignedIn => admission.admit_management().map(Some),
            };
            let Some(_place) = place else {
                self.app.service.metrics().count_shed(Shed::Management);
                return Ok(answer(console.refuse(Problem::overloaded())));
            };
            let shown = Shown { headers: &parts.headers, peer: Some(ends.remote.ip()), request_id: &line.request_id };
            let is_secure = ends.scheme == Scheme::HTTPS || self.gate.is_forwarded_tls(shown);
            let asked = console::Asked { app: &self.app, gate: &self.gate, uri: &parts.uri, shown, is_secure };
            let read = |limit| read_body(body, &parts.headers, limit);
            Ok(answer(console.answer(route, &asked, read).await))
        };
        let answered = or_failed(Box::pin(work), line).await;
        let answered = answered.unwrap_or_else(|problem| answer(console.refuse(problem)));
        let metrics = self.app.service.metrics();
        metrics.count_api(route.id, outcome(answered.status()), line.started.elapsed());
        answered
    }

    fn admit(&self, operation: &Operation) -> Result<Admitted<'_>, Problem> {
        let admission = &self.app.admission;
        let (place, shed) = match operation.handler {
            Handler::Hook(_) => (admission.admit_hook(), Shed::Hooks),
            Handler::Management(_) => (admission.admit_management(), Shed::Management),
        };
        place.ok_or_else(|| {
            self.app.service.metrics().count_shed(shed);
            Problem::overloaded()
        })
    }

    /// Counts a connection that did not come to speak TLS.
    pub fn count_failed_handshake(&self) {
        self.app.service.metrics().count_tls_handshake_failure();
    }

    /// Counts a connection that was turned away because there were too many.
    pub fn count_refused_connection(&self) {
        self.app.service.metrics().count_shed(Shed::Connection);
    }

    async fn fixed(&self, fixed: &Fixed) -> Answer {
        let text = |text: String| Response::builder().content_type("text/plain; charset=utf-8").body(text);
        answer(match fixed {
            Fixed::Live => text("ok\n".to_owned()),
            Fixed::Ready => match self.check_ready().await {
                Ok(()) => text("ok\n".to_owned()),
                Err(problem) => problem.into_response(),
            },
            Fixed::Metrics => {
                self.app.service.metrics().observe_ready(self.check_ready().await.is_ok());
                Response::builder()
                    .content_type("text/plain; version=0.0.4; charset=utf-8")
                    .body(self.app.service.render_metrics())
            }
            Fixed::Version => {
                super::body::json(&serde_json::json!({"name": "tollgate", "version": env!("CARGO_PKG_VERSION")}))
            }
            Fixed::File { content_type, content, policy } => {
                let mut response =
                    Response::builder().content_type(format!("{content_type}; charset=utf-8")).body(content.clone());
                response.headers_mut().insert(header::CACHE_CONTROL, headers::SHORTLY);
                if let Some(policy) = policy {
                    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy.clone());
                }
                response
            }
        })
    }

    async fn check_ready(&self) -> Result<(), Problem> {
        if !self.readiness.is_on() {
            return Err(Problem::unavailable("stopping", "The service is stopping."));
        }
        if !self.gate.is_ready() {
            let detail = "The keys of an issuer of tokens were never read.";
            return Err(Problem::unavailable("keys_unavailable", detail));
        }
        Ok(self.app.service.check_ready().await?)
    }

    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let given = headers.get(&X_REQUEST_ID).filter(|id| {
            (1..=MAX_REQUEST_ID_LENGTH).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        let make = || {
            let id = service::new_id(self.app.service.now());
            HeaderValue::from_str(id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
        };
        given.cloned().map_or_else(make, Ok).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }

    fn count(&self, operation: &Operation, line: &Line, status: StatusCode) {
        let (outcome, duration) = (outcome(status), line.started.elapsed());
        let metrics = self.app.service.metrics();
        match operation.handler {
            Handler::Hook(hook) => metrics.count_hook(hook, outcome, duration),
            Handler::Management(_) => metrics.count_api(operation.id, outcome, duration),
        }
    }

    /// One line a request, without anything personal: not its path, its query or its address.
    fn log(&self, line: &Line, answer: &Answer) {
        let status = answer.status().as_u16();
        let request_id = line.request_id.to_str().unwrap_or_default();
        let duration_us = || u64::try_from(line.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (operation, trace_id) = (line.operation, line.trace_id.as_deref());
        if let Some(cause) = answer.extensions().get::<Arc<service::Error>>() {
            if let service::Error::Store(error) = &**cause {
                self.app.service.metrics().count_database_error(error);
            }
            if answer.status().is_server_error() {
                let error = service::chain(&**cause);
                tracing::error!(
                    operation,
                    status,
                    duration_us = duration_us(),
                    request_id,
                    trace_id,
                    error,
                    "request failed"
                );
                return;
            }
        }
        // Hooks and signs of life are asked too often for a line each; what goes well is counted.
        let is_frequent = operation == UNKNOWN || Hook::ALL.iter().any(|hook| hook.as_str() == operation);
        // Credentials that were refused have a line of their own, as long as there are not too many.
        let is_told = matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS);
        if is_told || (answer.status().is_success() && is_frequent) {
            tracing::debug!(operation, status, duration_us = duration_us(), request_id, trace_id, "request");
        } else {
            tracing::info!(operation, status, duration_us = duration_us(), request_id, trace_id, "request");
        }
    }
}

/// The outcome of a request's work, or 500 when it panicked: its client gets an answer, and the other requests of an
/// HTTP/2 connection theirs. The panic itself was printed where it happened.
async fn or_failed(work: impl Future<Output = Result<Answer, Problem>>, line: &Line) -> Result<Answer, Problem> {
    // What the work had borrowed is the request, which is dropped, and the app, whose parts stand a panic at any await.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        let request_id = line.request_id.to_str().unwrap_or_default();
        tracing::error!(operation = line.operation, request_id, "a handler panicked");
        Err(Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR))
    })
}

/// The trace id of a `traceparent` header (W3C Trace Context, version 00), for the log.
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (_, trace_id, _, _) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_id = trace_id.len() == 32 && trace_id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (is_id && trace_id.bytes().any(|byte| byte != b'0')).then(|| trace_id.to_owned())
}

fn matches(template: &[String], segments: &[&str]) -> bool {
    let fits = |(template, segment): (&String, &&str)| {
        if template.starts_with('{') { !segment.is_empty() } else { template == segment }
    };
    template.len() == segments.len() && template.iter().zip(segments).all(fits)
}

pub(super) fn method_not_allowed<'a>(methods: impl Iterator<Item = &'a Method>) -> Problem {
    let mut allowed: BTreeSet<&str> = methods.map(Method::as_str).collect();
    if allowed.contains("GET") {
        allowed.insert("HEAD");
    }
    let allowed = allowed.into_iter().collect::<Vec<_>>().join(", ");
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The method is not allowed here.");
    match HeaderValue::try_from(allowed) {
        Ok(allowed) => problem.with_header(header::ALLOW, allowed),
        Err(_) => problem,
    }
}

/// Refuses a query with parameters that are unknown, repeated, missing or not UTF-8. Hooks ignore theirs.
fn check_query(parameters: &[(String, bool)], request: &Request) -> Result<(), Problem> {
    let query = request.uri().query().unwrap_or_default();
    if percent_encoding::percent_decode_str(query).decode_utf8().is_err() {
        return Err(Problem::invalid_request(vec![FieldError::new("?", "the query is not UTF-8")]));
    }
    let given: Vec<(String, String)> = request.params().unwrap_or_default();
    let mut errors = Vec::new();
    let mut refuse = |name: &str, detail| errors.push(FieldError::new(format!("?{}", shortened(name)), detail));
    let mut seen = BTreeSet::new();
    for (name, _) in &given {
        if !parameters.iter().any(|(known, _)| known == name) {
            refuse(name, "there is no such parameter");
        } else if !seen.insert(name) {
            refuse(name, "the parameter is repeated");
        }
    }
    for (name, _) in parameters.iter().filter(|(name, required)| *required && !seen.contains(name)) {
        refuse(name, "the parameter is missing");
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid_request(errors)) }
}

/// The key by which a request is done once, if it has one.
fn idempotency(request: &Request, body: &Bytes) -> Result<Option<Idempotency>, Problem> {
    let mut lines = request.headers().get_all(IDEMPOTENCY_KEY).into_iter();
    let Some(line) = lines.next() else { return Ok(None) };
    let is_key = (1..=MAX_KEY_LENGTH).contains(&line.len()) && line.as_bytes().iter().all(u8::is_ascii_graphic);
    let key = line.to_str().ok().filter(|_| is_key && lines.next().is_none()).ok_or_else(|| {
        let expected = format!("expected one key of 1 to {MAX_KEY_LENGTH} visible characters of ASCII");
        Problem::invalid_request(vec![FieldError::new(IDEMPOTENCY_KEY.as_str(), expected)])
    })?;
    // All that the answer depends on. The parts are told apart by a line break, which no target holds.
    let mut digest = Sha256::new();
    digest.update(request.method().as_str());
    digest.update(request.uri().path_and_query().map_or("/", |target| target.as_str()));
    for version in request.headers().get_all(header::IF_MATCH) {
        digest.update([b'\n']);
        digest.update(version);
    }
    digest.update([b'\n', b'\n']);
    digest.update(body);
    Ok(Some(Idempotency { key: key.to_owned(), digest: digest.finalize().into() }))
}

/// Reads a body within its limit.
async fn read_body(mut body: Incoming, headers: &HeaderMap, limit: BodyLimit) -> Result<Bytes, Problem> {
    let too_large = || Problem::of_status(StatusCode::PAYLOAD_TOO_LARGE);
    let declared: Option<u64> =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|declared| declared > limit.bytes as u64) {
        discard(&mut body.into_data_stream()).await;
        return Err(too_large());
    }
    let read = async {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Problem::new(StatusCode::BAD_REQUEST, "body_broken_off", "The body did not arrive whole.")
            })?;
            // What follows the data is nobody's business.
            let Ok(part) = frame.into_data() else { continue };
            if whole.len() + part.len() > limit.bytes {
                return Err(too_large());
            }
            // Most bodies come in one part, which is not copied.
            if whole.is_empty() && body.is_end_stream() {
                return Ok(part);
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    };
    let read = tokio::time::timeout(limit.time, read).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time."))
    });
    if let Err(problem) = &read
        && problem.status() == StatusCode::PAYLOAD_TOO_LARGE
    {
        discard(&mut body.into_data_stream()).await;
    }
    read
}

/// Reads on for a moment, and throws it away: a connection that is closed while its sender still sends is reset, and the answer lost.
pub(super) async fn discard<E>(stream: &mut (impl futures_util::Stream<Item = Result<Bytes, E>> + Unpin)) {
    let discarding = async {
        let mut left = DISCARDED_BYTES;
        while let Some(Ok(part)) = stream.next().await {
            left = left.saturating_sub(part.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whether all of it came or not, the answer is the same.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, discarding).await;
}

fn is_bare_error(answer: &Answer) -> bool {
    let status = answer.status();
    let is_problem = || answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == problem::CONTENT_TYPE);
    (status.is_client_error() || status.is_server_error()) && !is_problem()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_taken_from_a_whole_traceparent_only() {
        let check = |header: &str, expected: Option<&str>| {
            let headers =
                HeaderMap::from_iter([("traceparent".parse().expect("a name"), header.parse().expect(header))]);
            assert_eq!(trace_id(&headers).as_deref(), expected, "{header}");
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        check(&format!("00-{id}-00f067aa0ba902b7-01"), Some(id));
        check(&format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()), None);
        check(&format!("00-{id}"), None);
        check(&format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None);
        check("00-personal data-00f067aa0ba902b7-01", None);
        check("", None);
    }
}
