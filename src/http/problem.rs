//! Errors as RFC 9457 problem documents: the one place where an error becomes a status.

use std::{borrow::Cow, fmt::Display, marker::PhantomData, sync::Arc};

use poem::{
    IntoResponse, Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::Type,
};
use serde::Serialize;

use crate::{
    domain::{
        life::TransitionError,
        scope::Scope,
        subscription::{PatchError, StateError},
    },
    service::{self, metrics::Outcome},
    store,
};

/// The media type of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";
/// What `code`s are made into, to be the URI that `type` has to be.
const TYPE_PREFIX: &str = "urn:tollgate:problem:";
/// Seconds after which a caller may try again what could not be done now.
pub(super) const RETRY_AFTER_S: &str = "1";
/// The longest name of a caller's that an error repeats, in characters.
const MAX_NAME_LENGTH: usize = 64;

/// A problem document (RFC 9457): why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Object, Serialize)]
#[oai(rename = "Problem")]
pub struct Document {
    /// A URI that names the kind of problem: `urn:tollgate:problem:` and the code.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    pub kind: String,
    /// The meaning of the status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, for people. It never repeats a value of the request.
    pub detail: String,
    /// A stable word for the kind of problem, for programs.
    pub code: String,
    /// The members or parameters that are wrong.
    #[oai(skip_serializing_if_is_empty, default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// A member or parameter that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Object, Serialize)]
#[oai(rename = "ProblemField")]
pub struct FieldError {
    /// A JSON pointer into the body as URI fragment (`#/scopes/0`), or the name of a query parameter (`?limit`).
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// An error of the member at a pointer such as `#/scopes/0`, or of a parameter such as `?limit`.
    pub fn new(pointer: impl Into<String>, detail: impl Display) -> Self {
        Self { pointer: pointer.into(), detail: detail.to_string() }
    }
}

/// 400: a parameter, or a member, that is no part of what the contract describes.
pub fn undescribed(pointer: &str, detail: &str) -> Problem {
    Problem::invalid_request(vec![FieldError::new(pointer, detail)])
}

/// The errors that were met while a body was parsed, so that one answer names all of them.
#[derive(Debug, Default)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// The value, or none with its error kept.
    pub fn take<T>(&mut self, parsed: Result<T, FieldError>) -> Option<T> {
        parsed.map_err(|error| self.0.push(error)).ok()
    }

    /// Keeps the error that a member which has to stay was set to null.
    pub fn refuse_null<T>(&mut self, member: &Option<Option<T>>, pointer: &str) {
        if matches!(member, Some(None)) {
            self.0.push(FieldError::new(pointer, "it cannot be taken away"));
        }
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing, when there were no errors.
    ///
    /// # Errors
    ///
    /// 422 with all of them.
    pub fn check(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid_value(self.0)) }
    }
}

impl From<FieldErrors> for Problem {
    fn from(errors: FieldErrors) -> Self {
        Self::invalid_value(errors.0)
    }
}

/// Why a request is not answered.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What lies behind it, for the log.
    cause: Option<Arc<service::Error>>,
}

impl Problem {
    /// A problem of a status, with a stable code and a detail that repeats no value of the request.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), headers: Vec::new(), cause: None }
    }

    /// 400: the request is not one that the contract describes.
    pub fn invalid_request(errors: Vec<FieldError>) -> Self {
        let detail = "The request is not one that the contract describes.";
        Self { errors, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail) }
    }

    /// 422: the request can be understood, and says what cannot be.
    pub fn invalid_value(errors: Vec<FieldError>) -> Self {
        let detail = "The request holds a value that is not possible.";
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", detail) }
    }

    /// 404: there is nothing at that place.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is no such resource.")
    }

    /// 428: this service wants to know which version is to be changed.
    pub fn if_match_required() -> Self {
        let detail = "This service requires If-Match on every change.";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "if_match_required", detail)
    }

    /// 503: it may be tried again.
    pub fn unavailable(code: &'static str, detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
            .with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S))
    }

    /// 503: too much is under way already.
    pub fn overloaded() -> Self {
        Self::unavailable("overloaded", "Too many requests are under way.")
    }

    /// The problem that a bare status stands for, where a library said no before any code of ours.
    pub fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => return Self::not_found(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("unsupported_media_type", "The body's media type is not supported."),
            StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "The body is too large."),
            status if status.is_client_error() => ("bad_request", "The request cannot be understood."),
            _ => ("internal", "Something went wrong; the request id finds it in the log."),
        };
        Self::new(status, code, detail)
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The same problem with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The problem as document.
    pub fn document(&self) -> Document {
        Document {
            kind: format!("{TYPE_PREFIX}{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Unknown").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone().into_owned(),
            code: self.code.to_owned(),
            errors: self.errors.clone(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.document()).unwrap_or_default();
        let mut response = Response::builder().status(self.status).content_type(CONTENT_TYPE).body(body);
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        if let Some(cause) = self.cause {
            response.set_data(cause);
        }
        response
    }
}

impl From<Problem> for poem::Error {
    fn from(problem: Problem) -> Self {
        let cause = problem.cause.clone();
        let mut error = Self::from_response(problem.into_response());
        // poem puts an error's own data in the place of its response's.
        if let Some(cause) = cause {
            error.set_data(cause);
        }
        error
    }
}

/// What went wrong in a use case, as a status. Every error has its line here; none is mapped elsewhere.
impl From<service::Error> for Problem {
    fn from(error: service::Error) -> Self {
        use service::Error;
        let error = match error {
            Error::InBatch { error, .. } => *error,
            error => error,
        };
        let conflict = |code, detail| Self::new(StatusCode::CONFLICT, code, detail);
        let mut problem = match &error {
            Error::NotFound => Self::not_found(),
            Error::VersionMismatch => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "version_mismatch",
                "The resource is at another version than If-Match names; read it again.",
            ),
            Error::ScopeExists => conflict("scope_exists", "The scope is already in the catalogue."),
            Error::ScopeInUse => conflict("scope_in_use", "Subscriptions, maybe deleted ones, name the scope."),
            Error::UnknownScopes(scopes) => Self {
                code: "unknown_scopes",
                detail: "A subscription may only name scopes of the catalogue.".into(),
                ..Self::invalid_value(scopes.iter().map(unknown_scope).collect())
            },
            Error::AnotherSubject => {
                Self::invalid_value(vec![FieldError::new("#/subject", "a subscription stays with its subject")])
            }
            Error::State(error) => Self::of_state(*error),
            Error::Patch(error) => {
                let pointer = match error {
                    PatchError::Grace(_) => "#/graceUntil",
                    PatchError::Claims(_) => "#/claims",
                    PatchError::Window(_) | PatchError::Transition(_) => "#/validUntil",
                };
                Self::invalid_value(vec![FieldError::new(pointer, error)])
            }
            Error::ExternalIdExists => {
                conflict("external_id_exists", "Another subscription, maybe a deleted one, has that external id.")
            }
            Error::Claims(error) => Self::invalid_value(vec![FieldError::new("#/claims", error)]),
            Error::Transition(error) => Self::of_transition(*error),
            Error::NotDeleted => conflict("not_deleted", "The subscription was not deleted."),
            Error::KeyReused => Self {
                code: "idempotency_key_reused",
                detail: "Another request was done with that Idempotency-Key.".into(),
                ..Self::invalid_value(Vec::new())
            },
            Error::KeyInUse => conflict("idempotency_key_in_use", "A request with that Idempotency-Key is under way.")
                .with_header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S)),
            Error::ExportUnderWay => Self::unavailable("export_under_way", "Other exports are under way; try again."),
            Error::ImportUnderWay => Self::unavailable("import_under_way", "Another import is under way; try again."),
            Error::SecretNotKept => conflict(
                "secret_not_kept",
                "The token was made by this very request before; its secret was told then, and is not kept.",
            ),
            Error::ChangesGone => Self::new(
                StatusCode::GONE,
                "changes_gone",
                "Changes after that cursor are not kept any more, or the database is another one: begin anew.",
            ),
            Error::HistoryGone => {
                let detail = "the history does not reach back to it";
                Self::invalid_value(vec![FieldError::new("#/knownAt", detail)])
            }
            Error::TokenExists => conflict("token_exists", "A token of that name exists, or existed."),
            Error::TooManyTokens => {
                conflict("too_many_tokens", "There are too many live tokens; revoke some that nobody uses.")
            }
            Error::TokenExpiry(error) => Self::invalid_value(vec![FieldError::new("#/expiresAt", error)]),
            Error::TokenRevoked(_) => conflict("already_revoked", "The token is already revoked."),
            Error::Store(error) => Self::of_store(error),
            Error::Unknown => Self::unavailable("unavailable", "The database cannot be asked; try again."),
            Error::TimedOut => Self::outcome_unknown(),
            // Its own error was taken out above; in one that holds another batch there would be a mistake.
            Error::Aborted(_) | Error::NoRandomness | Error::InBatch { .. } => {
                Self::of_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        };
        problem.cause = Some(Arc::new(error));
        problem
    }
}

impl Problem {
    fn outcome_unknown() -> Self {
        let detail = "No answer came to whether the write was done: it may or may not have been. Read it again.";
        Self::unavailable("outcome_unknown", detail)
    }

    fn of_state(error: StateError) -> Self {
        let pointer = match error {
            StateError::Window(_) => "#/validUntil",
            StateError::Grace(_) => "#/graceUntil",
            StateError::Pause => "#/pausedUntil",
            StateError::AnotherSubject => "#/subject",
            StateError::Unversioned => "#/sourceVersion",
        };
        Self::invalid_value(vec![FieldError::new(pointer, error)])
    }

    /// The same problem of a part of the body: what it names lies below a pointer such as `#/items/0`.
    #[must_use]
    pub fn below(mut self, place: &str) -> Self {
        if self.errors.is_empty() {
            self.errors.push(FieldError::new("#", "this is refused"));
        }
        for error in &mut self.errors {
            if let Some(rest) = error.pointer.strip_prefix('#') {
                error.pointer = format!("{place}{rest}");
            }
        }
        self
    }

    fn of_transition(error: TransitionError) -> Self {
        let conflict = |code, detail| Self::new(StatusCode::CONFLICT, code, detail);
        let impossible = |pointer| Self::invalid_value(vec![FieldError::new(pointer, error)]);
        match error {
            TransitionError::AlreadyCanceled => conflict("already_canceled", "The subscription is already canceled."),
            TransitionError::Expired => {
                conflict("expired", "The subscription has expired, or will have: there is nothing left of it.")
            }
            TransitionError::Canceled => {
                conflict("canceled", "The subscription is canceled, or will be by its end, so it cannot be changed.")
            }
            TransitionError::NotCanceled => conflict("not_canceled", "The subscription is not canceled."),
            TransitionError::WindowEnded => {
                conflict("window_ended", "The window has ended already; the grace can be canceled now.")
            }
            TransitionError::OpenEnded => conflict("open_ended", "The window is open-ended, so it has no end."),
            TransitionError::AlreadyPaused => {
                conflict("already_paused", "The subscription is paused already, or will be; resume it first.")
            }
            TransitionError::NotPaused => {
                conflict("not_paused", "The subscription is not paused, and no pause lies ahead.")
            }
            TransitionError::NotLonger => {
                conflict("not_longer", "A renewal makes the window longer; PATCH can make it shorter.")
            }
            TransitionError::CanceledInPast => impossible("#/at"),
            TransitionError::PausedInPast => impossible("#/from"),
            TransitionError::InvalidPause => impossible("#/until"),
            TransitionError::TooLong => impossible("#/duration"),
            TransitionError::Grace(_) => impossible("#/graceUntil"),
        }
    }

    fn of_store(error: &store::Error) -> Self {
        use store::Error;
        match error {
            Error::Unavailable(_) => Self::unavailable("unavailable", "The database cannot be asked; try again."),
            Error::OutcomeUnknown(_) => Self::outcome_unknown(),
            // The use cases turn the verdicts that they expect into errors of their own; what is left is a fault.
            Error::Duplicate(_) | Error::Reference(_) | Error::Unexpected(_) => {
                Self::of_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

fn unknown_scope(scope: &Scope) -> FieldError {
    FieldError::new("#/scopes", format!("`{scope}` is not in the catalogue"))
}

/// A name that the caller gave, cut to what an error may repeat.
pub fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME_LENGTH).collect()
}

/// How a status is counted.
pub fn outcome(status: StatusCode) -> Outcome {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Outcome::Unauthorized,
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Unavailable,
        status if status.is_client_error() => Outcome::Refused,
        status if status.is_server_error() => Outcome::Failed,
        _ => Outcome::Ok,
    }
}

/// The statuses with which a kind of operation can be refused, for its contract.
pub trait Statuses: Send + Sync + 'static {
    /// The statuses, ascending.
    const STATUSES: &'static [u16];
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = [$($status:literal),*];)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name;
            impl Statuses for $name {
                const STATUSES: &'static [u16] = &[$($status),*];
            }
        )*
    };
}

statuses! {
    /// A hook.
    Hook = [400, 401, 408, 413, 415, 429, 500, 503];
    /// Reading a list or a view.
    List = [400, 401, 403, 429, 500, 503];
    /// Reading one resource.
    Read = [400, 401, 403, 404, 429, 500, 503];
    /// Asking a view by a body.
    View = [400, 401, 403, 408, 413, 415, 422, 429, 500, 503];
    /// Creating a resource.
    Create = [400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503];
    /// Changing a resource.
    Change = [400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 428, 429, 500, 503];
    /// Recording a resource by a name of another system's.
    Put = [400, 401, 403, 408, 409, 412, 413, 415, 422, 429, 500, 503];
    /// Doing something to a resource without a version.
    Act = [400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503];
    /// Sending a file.
    Upload = [400, 401, 403, 408, 415, 429, 500, 503];
    /// Reading a feed that does not reach back for ever.
    Feed = [400, 401, 403, 410, 429, 500, 503];
    /// Deleting a resource that nothing can refer to.
    Delete = [400, 401, 403, 404, 412, 428, 429, 500, 503];
    /// Deleting a resource that others may refer to.
    DeleteReferred = [400, 401, 403, 404, 409, 412, 428, 429, 500, 503];
}

/// A problem as the answer of an operation whose contract lists the statuses `S`.
#[derive(Debug)]
pub struct Refusal<S>(Box<Problem>, PhantomData<S>);

impl<S, E: Into<Problem>> From<E> for Refusal<S> {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()), PhantomData)
    }
}

impl<S> Refusal<S> {
    /// The problem.
    pub fn into_problem(self) -> Problem {
        *self.0
    }
}

impl<S> From<Refusal<S>> for poem::Error {
    fn from(Refusal(problem, _): Refusal<S>) -> Self {
        (*problem).into()
    }
}

impl<S> IntoResponse for Refusal<S>
where
    S: Send,
{
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl<S: Statuses> ApiResponse for Refusal<S> {
    fn meta() -> MetaResponses {
        MetaResponses { responses: S::STATUSES.iter().map(|status| refusal_meta(*status)).collect() }
    }

    fn register(registry: &mut Registry) {
        Document::register(registry);
    }
}

fn refusal_meta(status: u16) -> MetaResponse {
    let description = match status {
        400 => "The request is not one that this contract describes.",
        401 => "The credentials are missing or not valid.",
        403 => "The credentials do not allow this.",
        404 => "There is no such resource.",
        408 => "The body did not arrive in time.",
        409 => "The state of the resource does not allow this.",
        410 => "What was asked for is not kept any more.",
        412 => "The resource is at another version than `If-Match` names.",
        413 => "The body is too large.",
        415 => "The body's media type or encoding is not supported.",
        422 => "The request holds a value that is not possible.",
        428 => "This service requires `If-Match` on every change.",
        429 => "Too many attempts with wrong credentials came from there, or with that name.",
        503 => "It cannot be answered now, and may be tried again.",
        _ => "Something went wrong in the service.",
    };
    let header = match status {
        401 => Some(("WWW-Authenticate", "The scheme to authenticate with.")),
        429 | 503 => Some(("Retry-After", "Seconds to wait before trying again.")),
        _ => None,
    };
    let headers = header.into_iter().map(|(name, description)| MetaHeader {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        required: false,
        deprecated: false,
        schema: String::schema_ref(),
    });
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType { content_type: CONTENT_TYPE, schema: Document::schema_ref() }],
        headers: headers.collect(),
    }
}
