//! Who may do what: the credentials of hooks and of the management API, and the authorization table.

use std::fmt;

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

use super::problem::Problem;
use crate::{domain::token::Role, service::Origin};

/// The longest bearer token that is looked at, in bytes.
const MAX_BEARER_BYTES: usize = 8 * 1024;

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Access itself: the credentials of the hooks.
    Hook,
    /// A credential of the management API with at least this role.
    Api(Role),
}

/// The authorization table: what each operation asks of its caller. One that is not listed is refused to everybody.
pub const AUTHORIZATION: [(&str, Access); 14] = [
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
    ("patch-subscription", Access::Api(Role::Writer)),
    ("delete-subscription", Access::Api(Role::Writer)),
    ("cancel-subscription", Access::Api(Role::Writer)),
    ("get-entitlements", Access::Api(Role::Reader)),
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

/// The credentials that open the hooks.
#[derive(Debug, Clone, Default)]
pub struct HookAuth {
    basic: Option<SecretDigest>,
    allow_anonymous: bool,
}

impl HookAuth {
    /// Takes Basic credentials (RFC 7617).
    #[must_use]
    pub fn with_basic(self, username: &str, password: &str) -> Self {
        Self { basic: Some(SecretDigest::of(format!("{username}:{password}").as_bytes())), ..self }
    }

    /// Takes a request without credentials.
    #[must_use]
    pub fn with_none(self) -> Self {
        Self { allow_anonymous: true, ..self }
    }

    /// Checks the credentials of a request. The scheme of the header chooses the method, and a method that fails is
    /// final: the request falls through to no other, and not to none.
    fn check(&self, headers: &HeaderMap) -> std::result::Result<(), Problem> {
        let admitted = match (authorization(headers), &self.basic) {
            (Authorization::Scheme("basic", credentials), Some(basic)) => {
                STANDARD.decode(credentials).is_ok_and(|credentials| basic.matches(&credentials))
            }
            (Authorization::Absent | Authorization::Scheme(..), _) => self.allow_anonymous,
            (Authorization::Invalid, _) => false,
        };
        let challenge = HeaderValue::from_static(r#"Basic realm="tollgate", charset="UTF-8""#);
        if admitted { Ok(()) } else { Err(unauthorized(challenge)) }
    }
}

/// The credentials that open the management API.
#[derive(Debug, Clone, Default)]
pub struct ManagementAuth {
    bootstrap: Option<SecretDigest>,
}

impl ManagementAuth {
    /// The name under which changes of the bootstrap token are recorded.
    const BOOTSTRAP: &'static str = "bootstrap";

    /// Takes the bearer token of the bootstrap administrator.
    #[must_use]
    pub fn with_bootstrap(self, token: &str) -> Self {
        Self { bootstrap: Some(SecretDigest::of(token.as_bytes())) }
    }

    /// Checks the credentials of a request, and tells whose they are.
    fn check(&self, headers: &HeaderMap) -> std::result::Result<Caller, Problem> {
        let (token, challenge) = match authorization(headers) {
            Authorization::Scheme("bearer", token) => {
                (Some(token), r#"Bearer realm="tollgate", error="invalid_token""#)
            }
            _ => (None, r#"Bearer realm="tollgate""#),
        };
        match (token, &self.bootstrap) {
            (Some(token), Some(bootstrap))
                if token.len() <= MAX_BEARER_BYTES && bootstrap.matches(token.as_bytes()) =>
            {
                Ok(Caller { name: Self::BOOTSTRAP.to_owned(), role: Role::Admin })
            }
            _ => Err(unauthorized(HeaderValue::from_static(challenge))),
        }
    }
}

/// Whose credentials were accepted by the management API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name under which changes are recorded.
    pub name: String,
    /// What the caller may do.
    pub role: Role,
}

/// Checks that a request may call an operation, and gives the name of the credential that lets it.
///
/// # Errors
///
/// 401 with a challenge; 403 when the credential is not enough, or none is.
pub fn authorize(
    access: Option<Access>,
    hooks: &HookAuth,
    management: &ManagementAuth,
    headers: &HeaderMap,
) -> std::result::Result<String, Problem> {
    match access {
        Some(Access::Hook) => hooks.check(headers).map(|()| "access".to_owned()),
        Some(Access::Api(needed)) => match management.check(headers)? {
            Caller { name, role } if role >= needed => Ok(name),
            _ => Err(forbidden(format!("This needs the role `{}`.", needed.as_str()))),
        },
        None => Err(forbidden("No credential allows this.".to_owned())),
    }
}

fn forbidden(detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

/// The header `Authorization`.
enum Authorization<'a> {
    Absent,
    /// A known scheme in lower case, whatever its spelling, and what follows it; another scheme is `""`.
    Scheme(&'static str, &'a str),
    /// More than one header, or one that is no text.
    Invalid,
}

fn authorization(headers: &HeaderMap) -> Authorization<'_> {
    let mut lines = headers.get_all(header::AUTHORIZATION).into_iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Authorization::Absent,
        (Some(line), None) => line,
        (Some(_), Some(_)) => return Authorization::Invalid,
    };
    let Ok(line) = line.to_str() else { return Authorization::Invalid };
    let (scheme, credentials) = line.split_once(' ').unwrap_or((line, ""));
    let known = ["basic", "bearer"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known));
    Authorization::Scheme(known.unwrap_or_default(), credentials.trim_start_matches(' '))
}

fn unauthorized(challenge: HeaderValue) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "The credentials are missing or not valid.")
        .with_header(header::WWW_AUTHENTICATE, challenge)
}

/// A caller of the hooks whose credentials the router has checked.
#[derive(Debug)]
pub struct HookCaller;

/// A caller of the management API whose credentials the router has checked.
#[derive(Debug)]
pub struct ManagementCaller(pub Origin);

macro_rules! security_scheme {
    ($caller:ty, $name:literal, $scheme:literal, $description:literal, |$origin:ident| $admit:expr) => {
        impl<'a> ApiExtractor<'a> for $caller {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                let scheme = MetaSecurityScheme {
                    ty: "http",
                    description: Some($description),
                    name: None,
                    key_in: None,
                    scheme: Some($scheme),
                    bearer_format: None,
                    flows: None,
                    openid_connect_url: None,
                };
                registry.create_security_scheme($name, scheme);
            }

            fn security_schemes() -> Vec<&'static str> {
                vec![$name]
            }

            async fn from_request(
                request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> Result<Self> {
                // Only the router puts an origin there; a request that came another way is nobody's.
                let $origin = request.data::<Origin>().ok_or_else(|| Problem::of_status(StatusCode::FORBIDDEN))?;
                Ok($admit)
            }
        }
    };
}

security_scheme!(HookCaller, "basicAuth", "basic", "The credentials that Access is configured with.", |_origin| Self);
security_scheme!(ManagementCaller, "bearerAuth", "bearer", "A token of the management API.", |origin| Self(
    origin.clone()
));
