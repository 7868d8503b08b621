//! Who may do what: the credentials of hooks and of the management API, and the authorization table.

use std::{
    borrow::Cow,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem::{
    Request, RequestBody, Result,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::{
    guard::{Attempt, Guard},
    jwt::{Accept, Verifier},
    remembered::{Proof, Remembered},
};
use super::problem::Problem;
use crate::{
    domain::token::{Role, SECRET_PREFIX},
    service::{Origin, Service, token::digest},
};

pub mod guard;
pub mod issuer;
pub mod jwk;
pub mod jwt;
pub mod remembered;

/// What stands before the subject of a token of an OpenID provider where a change is recorded. No name of a token of
/// ours has a colon.
const OPENID_PREFIX: &str = "openid:";
/// The longest part of such a subject that is recorded, in characters.
const MAX_ACTOR_LENGTH: usize = 255;

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Access itself: the credentials of the hooks.
    Hook,
    /// A credential of the management API with at least this role.
    Api(Role),
}

/// The authorization table: what each operation asks of its caller. One that is not listed is refused to everybody.
pub const AUTHORIZATION: [(&str, Access); 31] = [
    ("customize-access-token", Access::Hook),
    ("customize-token", Access::Hook),
    ("create-scope", Access::Api(Role::Admin)),
    ("list-scopes", Access::Api(Role::Reader)),
    ("get-scope", Access::Api(Role::Reader)),
    ("patch-scope", Access::Api(Role::Admin)),
    ("delete-scope", Access::Api(Role::Admin)),
    ("create-subscription", Access::Api(Role::Writer)),
    ("list-subscriptions", Access::Api(Role::Reader)),
    ("get-subscription", Access::Api(Role::Reader)),
    ("find-subscription", Access::Api(Role::Reader)),
    ("put-subscription", Access::Api(Role::Writer)),
    ("write-subscriptions", Access::Api(Role::Writer)),
    ("import-subscriptions", Access::Api(Role::Writer)),
    ("export-subscriptions", Access::Api(Role::Reader)),
    ("get-history", Access::Api(Role::Reader)),
    ("list-changes", Access::Api(Role::Reader)),
    ("patch-subscription", Access::Api(Role::Writer)),
    ("delete-subscription", Access::Api(Role::Writer)),
    ("cancel-subscription", Access::Api(Role::Writer)),
    ("uncancel-subscription", Access::Api(Role::Writer)),
    ("pause-subscription", Access::Api(Role::Writer)),
    ("resume-subscription", Access::Api(Role::Writer)),
    ("renew-subscription", Access::Api(Role::Writer)),
    ("restore-subscription", Access::Api(Role::Writer)),
    ("get-entitlements", Access::Api(Role::Reader)),
    ("explain", Access::Api(Role::Reader)),
    ("create-token", Access::Api(Role::Admin)),
    ("list-tokens", Access::Api(Role::Admin)),
    ("get-token", Access::Api(Role::Admin)),
    ("revoke-token", Access::Api(Role::Admin)),
];

/// What an operation asks of its caller; none when the table does not list it.
#[must_use]
pub fn access(operation: &str) -> Option<Access> {
    AUTHORIZATION.iter().find(|(id, _)| *id == operation).map(|(_, access)| *access)
}

/// The digest of a secret. Digests are compared in constant time, so neither the time that a comparison takes nor a
/// dump of this type tells the secret or its length.
#[derive(Clone)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// The digest of a secret.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    fn matches(&self, secret: &[u8]) -> bool {
        self.0.ct_eq(&Self::of(secret).0).into()
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest")
    }
}

/// Why credentials open nothing: for the log and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// There are none.
    Missing,
    /// There is more than one header, or it is no text.
    Ambiguous,
    /// The scheme is not one of those that are taken.
    Scheme,
    /// They are not of the form that their scheme has.
    Malformed,
    /// The secret is wrong.
    Secret,
    /// The token was not signed, or says something else than it must.
    Token(jwt::Reason),
    /// Whether they are right cannot be told now.
    Unavailable,
    /// They are right, and do not allow this.
    Role,
}

impl Reason {
    fn all() -> impl Iterator<Item = Self> {
        let own = [
            Self::Missing,
            Self::Ambiguous,
            Self::Scheme,
            Self::Malformed,
            Self::Secret,
            Self::Unavailable,
            Self::Role,
        ];
        own.into_iter().chain(jwt::Reason::ALL.map(Self::Token))
    }

    /// The method that refused them, and its reason.
    fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => ("none", "missing"),
            Self::Ambiguous => ("none", "ambiguous"),
            Self::Scheme => ("none", "scheme"),
            Self::Malformed => ("secret", "malformed"),
            Self::Secret => ("secret", "wrong"),
            Self::Token(reason) => ("jwt", reason.as_str()),
            Self::Unavailable => ("none", "unavailable"),
            Self::Role => ("none", "role"),
        }
    }
}

/// Why a caller is not let in.
#[derive(Debug)]
enum Denial {
    /// The credentials are not right. The name is the one that the secret was tried for.
    Refused(Reason, Option<String>),
    /// Whether they are right cannot be told.
    Unavailable(Box<Problem>),
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason, None)
    }
}

impl From<jwt::Failure> for Denial {
    fn from(failure: jwt::Failure) -> Self {
        match failure {
            jwt::Failure::Refused(reason) => Reason::Token(reason).into(),
            jwt::Failure::KeysUnavailable => Self::Unavailable(Box::new(Problem::unavailable(
                "keys_unavailable",
                "The keys of the token's issuer cannot be had; try again.",
            ))),
        }
    }
}

type Checked<T> = std::result::Result<T, Denial>;

/// The credentials that open the hooks.
#[derive(Debug, Clone, Default)]
pub struct HookAuth {
    basic: Vec<SecretDigest>,
    jwt: Option<Arc<Verifier<()>>>,
    allow_anonymous: bool,
}

impl HookAuth {
    /// Takes Basic credentials (RFC 7617), beside those that it takes already: two while they are exchanged.
    #[must_use]
    pub fn with_basic(mut self, username: &str, password: &str) -> Self {
        self.basic.push(SecretDigest::of(format!("{username}:{password}").as_bytes()));
        self
    }

    /// Takes tokens that Access has signed.
    #[must_use]
    pub fn with_jwt(self, verifier: Verifier<()>) -> Self {
        Self { jwt: Some(Arc::new(verifier)), ..self }
    }

    /// What a token of Access must say: it is about the client that Access calls its hooks as, was issued to it, and
    /// has every one of the scopes. Its older and its newer form are taken: `cid` or `client_id`, one of them is enough.
    pub fn accept(client: String, scopes: Vec<String>) -> Accept<()> {
        Box::new(move |claims| {
            let mut clients = claims.clients.iter().flatten().peekable();
            if claims.subject.as_ref() != Some(&client) || clients.peek().is_none() || clients.any(|id| *id != client) {
                return Err(jwt::Reason::Client);
            }
            let has_all = scopes.iter().all(|scope| claims.scopes.contains(scope));
            if has_all { Ok(()) } else { Err(jwt::Reason::Scope) }
        })
    }

    /// Takes a request without credentials.
    #[must_use]
    pub fn with_none(self) -> Self {
        Self { allow_anonymous: true, ..self }
    }

    /// Checks the credentials of a request. The scheme of the header chooses the method, and a method that fails is
    /// final: the request falls through to no other, and not to none.
    async fn check(&self, headers: &HeaderMap, service: &Service, remembered: &Remembered<()>) -> Checked<()> {
        let line = only_line(headers);
        if line.is_some_and(|line| remembered.find(line, || service.now()).is_some()) {
            return Ok(());
        }
        // Boxed, as what was not seen before is seldom come by.
        let proof = Box::pin(self.verify(headers, service)).await?;
        if let (Some(proof), Some(line)) = (proof, line) {
            remembered.add(line, &(), &proof, service.now());
        }
        Ok(())
    }

    /// The same, for credentials that were not seen before; until when they need not be looked at again, if they had to.
    async fn verify(&self, headers: &HeaderMap, service: &Service) -> Checked<Option<Proof>> {
        match (authorization(headers), &self.jwt) {
            (Authorization::Scheme("basic", credentials), _) if !self.basic.is_empty() => {
                let credentials = STANDARD.decode(credentials).map_err(|_| Reason::Malformed)?;
                // All are compared, so that the time does not tell which one was nearly right.
                if self.basic.iter().fold(false, |matches, basic| matches | basic.matches(&credentials)) {
                    return Ok(Some(Proof::Lasting));
                }
                let name = credentials.split(|byte| *byte == b':').next().unwrap_or_default();
                Err(Denial::Refused(Reason::Secret, Some(String::from_utf8_lossy(name).into_owned())))
            }
            (Authorization::Scheme("bearer", token), Some(jwt)) => {
                let ((), proof) = jwt.verify(token, service.now()).await?;
                Ok(Some(proof))
            }
            (Authorization::Absent, _) if self.allow_anonymous => Ok(None),
            // Where no credentials are taken, those that Access may show all the same are not looked at.
            (Authorization::Scheme(..), None) if self.allow_anonymous && self.basic.is_empty() => Ok(None),
            (Authorization::Absent, _) => Err(Reason::Missing.into()),
            (Authorization::Scheme(..), _) => Err(Reason::Scheme.into()),
            (Authorization::Ambiguous, _) => Err(Reason::Ambiguous.into()),
        }
    }

    /// Whether those who come can be told from others: not while tokens are all there is, and there are no keys yet.
    fn is_ready(&self) -> bool {
        let is_other = self.allow_anonymous || !self.basic.is_empty();
        is_other || self.jwt.as_ref().is_none_or(|jwt| jwt.is_ready())
    }

    /// How to authenticate, for whoever has not (RFC 9110 section 11.6.1).
    fn challenge(&self) -> HeaderValue {
        const BASIC: &str = r#"Basic realm="tollgate", charset="UTF-8""#;
        const BEARER: &str = r#"Bearer realm="tollgate""#;
        HeaderValue::from_static(match (self.basic.is_empty(), &self.jwt) {
            (_, None) => BASIC,
            (true, Some(_)) => BEARER,
            (false, Some(_)) => r#"Basic realm="tollgate", charset="UTF-8", Bearer realm="tollgate""#,
        })
    }
}

/// The credentials that open the management API.
#[derive(Debug, Clone, Default)]
pub struct ManagementAuth {
    bootstrap: Option<SecretDigest>,
    jwt: Option<Arc<Verifier<Caller>>>,
}

impl ManagementAuth {
    /// The name under which changes of the bootstrap token are recorded.
    const BOOTSTRAP: &'static str = "bootstrap";

    /// Takes the bearer token of the bootstrap administrator.
    #[must_use]
    pub fn with_bootstrap(self, token: &str) -> Self {
        Self { bootstrap: Some(SecretDigest::of(token.as_bytes())), ..self }
    }

    /// Takes tokens of an OpenID provider.
    #[must_use]
    pub fn with_jwt(self, verifier: Verifier<Caller>) -> Self {
        Self { jwt: Some(Arc::new(verifier)), ..self }
    }

    /// Whose a token of an OpenID provider is, and which role its scopes stand for: the highest of those that it has.
    pub fn accept(scopes: [(Role, String); Role::ALL.len()]) -> Accept<Caller> {
        Box::new(move |claims| {
            let who = claims.subject.iter().chain(claims.clients.iter().flatten()).next();
            let who = who.ok_or(jwt::Reason::Client)?;
            let role = scopes.iter().filter(|(_, scope)| claims.scopes.contains(scope)).map(|(role, _)| *role).max();
            // It is written beside each change: neither as long as somebody likes, nor with line breaks.
            let who: String = who.chars().filter(|letter| !letter.is_control()).take(MAX_ACTOR_LENGTH).collect();
            Ok(Caller { name: format!("{OPENID_PREFIX}{who}"), role })
        })
    }

    /// Checks the credentials of a request, and tells whose they are. The form of the token chooses the method.
    async fn check(&self, headers: &HeaderMap, service: &Service, remembered: &Remembered<Caller>) -> Checked<Caller> {
        let line = only_line(headers).unwrap_or_default();
        if let Some(caller) = remembered.find(line, || service.now()) {
            return Ok(caller);
        }
        let token = match authorization(headers) {
            Authorization::Scheme("bearer", token) => token,
            Authorization::Scheme(..) => return Err(Reason::Scheme.into()),
            Authorization::Absent => return Err(Reason::Missing.into()),
            Authorization::Ambiguous => return Err(Reason::Ambiguous.into()),
        };
        if token.len() > jwt::MAX_TOKEN_BYTES {
            return Err(Reason::Malformed.into());
        }
        match (&self.jwt, &self.bootstrap) {
            _ if token.starts_with(SECRET_PREFIX) => {
                let found = service.authenticate(&digest(token), service.now()).await;
                let found = found.map_err(|error| Denial::Unavailable(Box::new(error.into())))?;
                let (name, role) = found.ok_or(Reason::Secret)?;
                Ok(Caller { name: name.to_string(), role: Some(role) })
            }
            (Some(jwt), _) if jwt::has_form(token) => {
                let (caller, proof) = jwt.verify(token, service.now()).await?;
                remembered.add(line, &caller, &proof, service.now());
                Ok(caller)
            }
            (_, Some(bootstrap)) if bootstrap.matches(token.as_bytes()) => {
                Ok(Caller { name: Self::BOOTSTRAP.to_owned(), role: Some(Role::Admin) })
            }
            _ => Err(Reason::Secret.into()),
        }
    }

    /// How to authenticate (RFC 6750 section 3).
    fn challenge(is_missing: bool) -> HeaderValue {
        HeaderValue::from_static(if is_missing {
            r#"Bearer realm="tollgate""#
        } else {
            r#"Bearer realm="tollgate", error="invalid_token""#
        })
    }
}

/// Whose credentials were accepted by the management API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name under which changes are recorded.
    pub name: String,
    /// What the caller may do; none for somebody who is known and has no business here.
    pub role: Option<Role>,
}

impl Caller {
    /// Whether the caller's role is enough for an operation of the management API.
    #[must_use]
    pub fn may(&self, operation: &str) -> bool {
        matches!(access(operation), Some(Access::Api(needed)) if self.role >= Some(needed))
    }
}

/// What decides who is let in.
#[derive(Debug)]
pub struct Gate {
    hooks: HookAuth,
    management: ManagementAuth,
    service: Arc<Service>,
    guard: Guard,
    remembered_hooks: Remembered<()>,
    remembered_callers: Remembered<Caller>,
}

/// What a request shows of its caller.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The other end of its connection.
    pub peer: Option<IpAddr>,
    /// Its id, for the log.
    pub request_id: &'a HeaderValue,
}

impl Gate {
    /// A gate that opens to these credentials.
    #[must_use]
    pub fn new(hooks: HookAuth, management: ManagementAuth, guard: Guard, service: Arc<Service>) -> Self {
        for surface in Surface::ALL {
            for (method, reason) in Reason::all().map(Reason::labels) {
                service.metrics().expect_denial(surface.as_str(), method, reason);
            }
        }
        let (remembered_hooks, remembered_callers) = Default::default();
        Self { hooks, management, service, guard, remembered_hooks, remembered_callers }
    }

    /// Whether Access can be told from others.
    pub fn is_ready(&self) -> bool {
        self.hooks.is_ready()
    }

    /// Waits until the issuers of tokens for the hooks were asked for their keys once, whatever came of it: the first
    /// request of Access need not wait.
    pub async fn begun(&self) {
        if let Some(jwt) = &self.hooks.jwt {
            jwt.begun().await;
        }
    }

    /// Checks that a request may call an operation, and gives the name of the credential that lets it.
    ///
    /// # Errors
    ///
    /// 401 with a challenge; 429 for a secret that was wrong too often; 403 when the credential is not enough, or none
    /// is; 503 when whether it is right cannot be told.
    pub async fn admit(
        &self,
        access: Option<Access>,
        shown: Shown<'_>,
    ) -> std::result::Result<Cow<'static, str>, Problem> {
        match access {
            Some(Access::Hook) => {
                let checked = self.hooks.check(shown.headers, &self.service, &self.remembered_hooks).await;
                checked.map_err(|denial| self.deny(Surface::Hooks, denial, shown))?;
                Ok("access".into())
            }
            Some(Access::Api(needed)) => {
                let caller = self.caller(shown).await?;
                self.permit(&caller, needed, shown)?;
                Ok(caller.name.into())
            }
            None => Err(forbidden("No credential allows this.".to_owned())),
        }
    }

    /// Checks the credentials of a request to the management API, and tells whose they are.
    ///
    /// # Errors
    ///
    /// Those of [`Gate::admit`], but for a role that is missing.
    pub async fn caller(&self, shown: Shown<'_>) -> std::result::Result<Caller, Problem> {
        let checked = self.management.check(shown.headers, &self.service, &self.remembered_callers);
        Box::pin(checked).await.map_err(|denial| self.deny(Surface::Management, denial, shown))
    }

    /// Checks that a caller has at least a role.
    ///
    /// # Errors
    ///
    /// 403.
    pub fn permit(&self, caller: &Caller, needed: Role, shown: Shown<'_>) -> std::result::Result<(), Problem> {
        if caller.role >= Some(needed) {
            return Ok(());
        }
        let (method, reason) = Reason::Role.labels();
        self.service.metrics().count_denial(Surface::Management.as_str(), method, reason);
        let request_id = shown.request_id.to_str().unwrap_or_default();
        tracing::info!(actor = caller.name, needed = needed.as_str(), request_id, "a role was missing");
        Err(forbidden(format!("This needs the role `{}`.", needed.as_str())))
    }

    /// Whether what a request came over is TLS, by the word of a proxy of ours.
    pub fn is_forwarded_tls(&self, shown: Shown<'_>) -> bool {
        self.guard.is_forwarded_tls(shown.peer, shown.headers)
    }

    /// Counts and logs that somebody was not let in. The log gets the reason, the caller does not.
    fn deny(&self, surface: Surface, denial: Denial, shown: Shown<'_>) -> Problem {
        let (reason, name, unavailable) = match denial {
            Denial::Refused(reason, name) => (reason, name, None),
            Denial::Unavailable(problem) => (Reason::Unavailable, None, Some(problem)),
        };
        let (method, label) = reason.labels();
        self.service.metrics().count_denial(surface.as_str(), method, label);
        let attempt = match reason {
            Reason::Secret => Attempt::Secret(name.as_deref()),
            _ => Attempt::Other,
        };
        let source = self.guard.source(shown.peer, shown.headers);
        let verdict = self.guard.fail(source, attempt, Instant::now());
        if verdict.is_heard {
            let (surface, source) = (surface.as_str(), source.map(tracing::field::display));
            let request_id = shown.request_id.to_str().unwrap_or_default();
            tracing::warn!(surface, method, reason = label, source, request_id, "credentials were refused");
        }
        if let Some(problem) = unavailable {
            return *problem;
        }
        if reason == Reason::Secret && !verdict.pause.is_zero() {
            return too_many_failures(verdict.pause);
        }
        unauthorized(match surface {
            Surface::Hooks => self.hooks.challenge(),
            Surface::Management => ManagementAuth::challenge(reason == Reason::Missing),
        })
    }
}

/// What a credential is for, as metrics and the log name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// What Access calls.
    Hooks,
    /// What billing and support call.
    Management,
}

impl Surface {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hooks, Self::Management];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Management => "management",
        }
    }
}

fn forbidden(detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

fn too_many_failures(pause: Duration) -> Problem {
    let detail = "Too many attempts with wrong credentials came from there, or with that name; wait.";
    // Rounded up: whoever comes back then finds room.
    let seconds = pause.as_millis().div_ceil(1000);
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail).with_header(
        header::RETRY_AFTER,
        HeaderValue::try_from(seconds.to_string()).unwrap_or_else(|_| HeaderValue::from_static("60")),
    )
}

/// The header `Authorization`.
enum Authorization<'a> {
    Absent,
    /// A known scheme in lower case, whatever its spelling, and what follows it; another scheme is `""`.
    Scheme(&'static str, &'a str),
    /// More than one header, or one that is no text.
    Ambiguous,
}

/// The header, as it came, when there is exactly one.
fn only_line(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(header::AUTHORIZATION).into_iter();
    let line = lines.next()?;
    lines.next().is_none().then(|| line.as_bytes())
}

fn authorization(headers: &HeaderMap) -> Authorization<'_> {
    let mut lines = headers.get_all(header::AUTHORIZATION).into_iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Authorization::Absent,
        (Some(line), None) => line,
        (Some(_), Some(_)) => return Authorization::Ambiguous,
    };
    let Ok(line) = line.to_str() else { return Authorization::Ambiguous };
    let (scheme, credentials) = line.split_once(' ').unwrap_or((line, ""));
    let known = ["basic", "bearer"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known));
    Authorization::Scheme(known.unwrap_or_default(), credentials.trim_start_matches(' '))
}

fn unauthorized(challenge: HeaderValue) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "The credentials are missing or not valid.")
        .with_header(header::WWW_AUTHENTICATE, challenge)
}

/// A caller of the hooks whose credentials the router has checked, and how long that took.
#[derive(Debug)]
pub struct HookCaller(pub Duration);

/// A caller of the management API whose credentials the router has checked.
#[derive(Debug)]
pub struct ManagementCaller(pub Origin);

/// A way to authenticate, as a contract describes it.
struct Method {
    name: &'static str,
    scheme: &'static str,
    format: Option<&'static str>,
    description: &'static str,
}

impl Method {
    fn register(&self, registry: &mut Registry) {
        let described = MetaSecurityScheme {
            ty: "http",
            description: Some(self.description),
            name: None,
            key_in: None,
            scheme: Some(self.scheme),
            bearer_format: self.format,
            flows: None,
            openid_connect_url: None,
        };
        registry.create_security_scheme(self.name, described);
    }
}

macro_rules! security_schemes {
    ($caller:ty, $methods:expr, $admitted:expr) => {
        impl<'a> ApiExtractor<'a> for $caller {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                for method in &$methods {
                    method.register(registry);
                }
            }

            fn security_schemes() -> Vec<&'static str> {
                // One requirement each: any of them will do.
                $methods.iter().map(|method| method.name).collect()
            }

            async fn from_request(
                request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> Result<Self> {
                // Only the router lets anybody in; a request that came another way is nobody's.
                let admitted: fn(&Request) -> Option<Self> = $admitted;
                Ok(admitted(request).ok_or_else(|| Problem::of_status(StatusCode::FORBIDDEN))?)
            }
        }
    };
}

const HOOK_METHODS: [Method; 2] = [
    Method {
        name: "basicAuth",
        scheme: "basic",
        format: None,
        description: "The user name and password that Access is configured with.",
    },
    Method {
        name: "bearerAuth",
        scheme: "bearer",
        format: Some("JWT"),
        description: "A token that Access has signed for its web hooks.",
    },
];

const MANAGEMENT_METHODS: [Method; 1] = [Method {
    name: "bearerAuth",
    scheme: "bearer",
    format: None,
    description: "A token of the management API, or one of the OpenID provider that the service is configured with.",
}];

// The router calls the hooks itself.
security_schemes!(HookCaller, HOOK_METHODS, |_| None);
security_schemes!(ManagementCaller, MANAGEMENT_METHODS, |request| request.data::<Origin>().cloned().map(Self));
