//! Subscriptions in the management API: `/v1/subscriptions`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    registry::MetaSchema,
};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{Body, MergePatch, Ok200, Optional},
    page::{Cursor, Limit, Page},
    problem::{self, FieldError, FieldErrors, Problem, Refusal},
    resource::{Created, Deleted, Found, IfMatch},
    wire::{
        ScopeToken, SubjectIdText, SubscriptionId, Timestamp, nullable, object, present, present_object, text, word,
    },
};
use crate::{
    domain::{
        life,
        scope::Scope,
        subject::{self, Subject},
        subscription::{MAX_SCOPES, ScopeSet, Subscription, SubscriptionPatch},
    },
    service::subscription::{NewSubscription, Shown},
    store::subscription::Filter,
};

/// The operations of the subscriptions.
#[derive(Debug, Clone, Copy)]
pub struct SubscriptionApi;

text! {
    /// The kind of a subject, as query parameter.
    SubjectTypeText, "string", |schema| {
        schema.enum_items = vec!["user".into(), "client".into()];
    }
}

text! {
    /// A status, as query parameter.
    StatusText, "string", |schema| {
        schema.enum_items = life::Status::ALL.iter().map(|status| status.as_str().into()).collect();
    }
}

/// The kind of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum SubjectType {
    /// A person.
    User,
    /// An OAuth client application.
    Client,
}

/// What a subscription is at the present: derived from its timestamps whenever it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its window has not begun.
    Scheduled,
    /// It grants its scopes.
    Active,
    /// It was canceled.
    Canceled,
    /// Its window has ended.
    Expired,
}

/// Who holds a subscription.
#[derive(Debug, Clone, Object, Serialize, Deserialize)]
#[oai(rename = "Subject")]
#[serde(deny_unknown_fields)]
pub struct SubjectBody {
    /// Whether it is a user or a client.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    kind: SubjectType,
    /// Its id, opaque and compared byte for byte.
    id: SubjectIdText,
}

/// Scopes that a subject holds for a window of time.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Subscription", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionBody {
    /// Its id.
    id: SubscriptionId,
    /// Who holds it.
    subject: SubjectBody,
    /// What it grants, in ascending order.
    scopes: Vec<ScopeToken>,
    /// The first instant of its window.
    valid_from: Timestamp,
    /// The first instant after its window; null when it is open-ended.
    valid_until: Option<Timestamp>,
    /// The first instant at which it is canceled; absent when it is not.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled_at: Option<Timestamp>,
    /// What it is now.
    status: Status,
    /// Counts its changes, from 1.
    version: i64,
    /// When it was recorded.
    created_at: Timestamp,
    /// When it was last changed.
    updated_at: Timestamp,
}

/// A subscription to be recorded.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "NewSubscription", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSubscriptionBody {
    /// Who holds it.
    #[serde(deserialize_with = "object")]
    subject: SubjectBody,
    /// What it grants: scopes of the catalogue, each once.
    #[oai(validator(min_items = 1, max_items = 100, unique_items))]
    scopes: Vec<ScopeToken>,
    /// The first instant of its window; the present when absent. It may lie in the past.
    #[serde(default, deserialize_with = "present")]
    valid_from: Option<Timestamp>,
    /// The first instant after its window. It has to be there: null says on purpose that it is open-ended.
    #[serde(deserialize_with = "nullable")]
    valid_until: Option<Timestamp>,
}

/// A change of a subscription: absent members stay as they are.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "SubscriptionPatch", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionPatchBody {
    /// Who holds it, which never changes: another one is refused.
    #[serde(default, deserialize_with = "present_object")]
    subject: Option<Option<SubjectBody>>,
    /// What it grants: scopes of the catalogue, each once.
    #[oai(validator(min_items = 1, max_items = 100, unique_items))]
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Option<Vec<ScopeToken>>>,
    /// The first instant of its window.
    #[serde(default, deserialize_with = "present")]
    valid_from: Option<Option<Timestamp>>,
    /// The first instant after its window; null makes it open-ended.
    #[serde(default, deserialize_with = "present")]
    valid_until: Option<Option<Timestamp>>,
}

/// How to cancel: an empty object, or no body at all.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancellation {}

/// A page of subscriptions.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionPage {
    /// The subscriptions, ascending by id.
    items: Vec<SubscriptionBody>,
    /// Where the next page begins; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<Cursor>,
}

const _: () = assert!(MAX_SCOPES == 100, "the contract names the limit");

#[OpenApi(prefix_path = "/v1", tag = "Tag::Subscriptions")]
impl SubscriptionApi {
    /// Record a subscription
    ///
    /// From the answer on its subject holds its scopes while the window lasts.
    #[oai(path = "/subscriptions", method = "post", operation_id = "create-subscription")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        new: Body<NewSubscriptionBody>,
    ) -> Result<Created<SubscriptionBody>, Refusal<problem::Create>> {
        let shown = app.service.create_subscription(caller.0, new.0.parse()?).await?;
        let location = format!("/v1/subscriptions/{}", shown.subscription.id);
        Ok(Created { version: shown.subscription.version, location, body: shown.into() })
    }

    /// List subscriptions
    ///
    /// Those that pass every filter that is given. All pages show the status at the present of the first one.
    #[oai(path = "/subscriptions", method = "get", operation_id = "list-subscriptions")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter of the contract")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        /// Held by a subject of this kind; goes with `subjectId`.
        #[oai(name = "subjectType")]
        subject_type: Query<Option<SubjectTypeText>>,
        /// Held by the subject of this id; goes with `subjectType`.
        #[oai(name = "subjectId")]
        subject_id: Query<Option<SubjectIdText>>,
        /// Naming this scope.
        scope: Query<Option<ScopeToken>>,
        /// Of this status now.
        status: Query<Option<StatusText>>,
        /// Active at this instant.
        #[oai(name = "activeAt")]
        active_at: Query<Option<Timestamp>>,
        limit: Query<Option<Limit>>,
        cursor: Query<Option<Cursor>>,
    ) -> Result<Ok200<SubscriptionPage>, Refusal<problem::List>> {
        let query = FilterQuery {
            subject_type: subject_type.0,
            subject_id: subject_id.0,
            scope: scope.0,
            status: status.0,
            active_at: active_at.0,
        };
        let (filter, filters) = (query.parse()?, query.binding());
        let page = Page::parse(limit.0.as_ref(), cursor.0.as_ref(), &filters)?;
        let now = page.position.as_ref().map_or_else(|| app.service.now(), |position| position.now);
        let after = page.position.as_ref().and_then(|position| Uuid::try_parse(&position.after).ok());
        let mut items = app.service.subscriptions(&filter, now, after, page.probe()).await?;
        let next_cursor = page.cut(&mut items, now, &filters, |subscription| subscription.id.to_string());
        let items = items.into_iter().map(|subscription| Shown { subscription, now }.into()).collect();
        Ok(Ok200(SubscriptionPage { items, next_cursor }))
    }

    /// Read a subscription
    #[oai(path = "/subscriptions/:id", method = "get", operation_id = "get-subscription")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        id: Path<SubscriptionId>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Read>> {
        Ok(found(app.service.subscription(identified(&id.0)?).await?))
    }

    /// Change a subscription
    ///
    /// A merge patch (RFC 7396): absent members stay as they are, and an empty object changes nothing. An expired
    /// subscription may be extended; a canceled one may not be changed.
    #[oai(path = "/subscriptions/:id", method = "patch", operation_id = "patch-subscription")]
    async fn patch(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be changed.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        patch: Body<SubscriptionPatchBody, MergePatch>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let (subject, patch) = patch.0.parse()?;
        Ok(found(app.service.patch_subscription(caller.0, id, expected, subject, patch).await?))
    }

    /// Delete a subscription
    ///
    /// From the answer on it counts in no decision and shows in no answer. Its row is kept.
    #[oai(path = "/subscriptions/:id", method = "delete", operation_id = "delete-subscription")]
    async fn delete(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be deleted.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<Deleted, Refusal<problem::Delete>> {
        let expected = if_match.expected(app.require_if_match)?;
        app.service.delete_subscription(caller.0, identified(&id.0)?, expected).await?;
        Ok(Deleted)
    }

    /// Cancel a subscription
    ///
    /// It ends now, whatever is left of its window.
    #[oai(path = "/subscriptions/:id/cancel", method = "post", operation_id = "cancel-subscription")]
    async fn cancel(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be canceled.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        _cancellation: Body<Cancellation, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        Ok(found(app.service.cancel_subscription(caller.0, identified(&id.0)?, expected).await?))
    }
}

fn found(shown: Shown) -> Found<SubscriptionBody> {
    Found { version: shown.subscription.version, body: shown.into() }
}

/// The id of a path. A text that is no id names nothing.
fn identified(id: &SubscriptionId) -> Result<Uuid, Problem> {
    id.parse().ok_or_else(Problem::not_found)
}

/// The subject that two query parameters name.
///
/// # Errors
///
/// 400, naming the parameter that is wrong.
pub fn parse_subject(kind: &SubjectTypeText, id: &SubjectIdText) -> Result<Subject, Problem> {
    let kind = subject::SubjectType::parse(&kind.0)
        .ok_or_else(|| invalid_parameter("?subjectType", "expected `user` or `client`"))?;
    let id = id.parse("?subjectId").map_err(|error| Problem::invalid_request(vec![error]))?;
    Ok(Subject { kind, id })
}

fn invalid_parameter(pointer: &str, detail: &str) -> Problem {
    Problem::invalid_request(vec![FieldError::new(pointer, detail)])
}

/// The filters of a list, as they came.
#[derive(Debug, Serialize)]
struct FilterQuery {
    subject_type: Option<SubjectTypeText>,
    subject_id: Option<SubjectIdText>,
    scope: Option<ScopeToken>,
    status: Option<StatusText>,
    active_at: Option<Timestamp>,
}

impl FilterQuery {
    fn parse(&self) -> Result<Filter, Problem> {
        let refuse = |error| Problem::invalid_request(vec![error]);
        let status = |text: &StatusText| {
            let expected = "expected `scheduled`, `active`, `canceled` or `expired`";
            life::Status::parse(&text.0).ok_or_else(|| invalid_parameter("?status", expected))
        };
        let subject = match (&self.subject_type, &self.subject_id) {
            (Some(kind), Some(id)) => Some(parse_subject(kind, id)?),
            (Some(_), None) => return Err(invalid_parameter("?subjectId", "it goes with `subjectType`")),
            (None, Some(_)) => return Err(invalid_parameter("?subjectType", "it goes with `subjectId`")),
            (None, None) => None,
        };
        Ok(Filter {
            subject,
            scope: self.scope.as_ref().map(|scope| scope.parse("?scope")).transpose().map_err(refuse)?,
            status: self.status.as_ref().map(status).transpose()?,
            active_at: self.active_at.as_ref().map(|at| at.parse("?activeAt")).transpose().map_err(refuse)?,
        })
    }

    /// What a cursor of this list is bound to.
    fn binding(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl SubjectBody {
    fn parse(self, pointer: &str) -> Result<Subject, FieldError> {
        let Self { kind, id } = self;
        Ok(Subject { kind: kind.into(), id: id.parse(&format!("{pointer}/id"))? })
    }
}

fn parse_scopes(scopes: &[ScopeToken], errors: &mut FieldErrors) -> Option<ScopeSet> {
    let parse = |(index, scope): (usize, &ScopeToken)| errors.take(scope.parse(&format!("#/scopes/{index}")));
    let parsed: Vec<_> = scopes.iter().enumerate().map(parse).collect();
    let scopes = parsed.into_iter().collect::<Option<Vec<Scope>>>()?;
    errors.take(ScopeSet::new(scopes).map_err(|error| FieldError::new("#/scopes", error)))
}

fn parse_instant(
    timestamp: Option<&Timestamp>,
    pointer: &str,
    errors: &mut FieldErrors,
) -> Option<Option<DateTime<Utc>>> {
    errors.take(timestamp.map(|timestamp| timestamp.parse(pointer)).transpose())
}

impl NewSubscriptionBody {
    fn parse(self) -> Result<NewSubscription, Problem> {
        let Self { subject, scopes, valid_from, valid_until } = self;
        let mut errors = FieldErrors::default();
        let subject = errors.take(subject.parse("#/subject"));
        let scopes = parse_scopes(&scopes, &mut errors);
        let valid_from = parse_instant(valid_from.as_ref(), "#/validFrom", &mut errors);
        let valid_until = parse_instant(valid_until.as_ref(), "#/validUntil", &mut errors);
        match (subject, scopes, valid_from, valid_until) {
            (Some(subject), Some(scopes), Some(valid_from), Some(valid_until)) => {
                Ok(NewSubscription { subject, scopes, valid_from, valid_until })
            }
            _ => Err(errors.into()),
        }
    }
}

impl SubscriptionPatchBody {
    fn parse(self) -> Result<(Option<Subject>, SubscriptionPatch), Problem> {
        let Self { subject, scopes, valid_from, valid_until } = self;
        let mut errors = FieldErrors::default();
        errors.refuse_null(&subject, "#/subject");
        errors.refuse_null(&scopes, "#/scopes");
        errors.refuse_null(&valid_from, "#/validFrom");
        let subject = subject.flatten().and_then(|subject| errors.take(subject.parse("#/subject")));
        let scopes = scopes.flatten().and_then(|scopes| parse_scopes(&scopes, &mut errors));
        let valid_from = parse_instant(valid_from.flatten().as_ref(), "#/validFrom", &mut errors).flatten();
        let valid_until = valid_until.map(|until| parse_instant(until.as_ref(), "#/validUntil", &mut errors).flatten());
        errors.check()?;
        Ok((subject, SubscriptionPatch { scopes, valid_from, valid_until }))
    }
}

impl From<Subject> for SubjectBody {
    fn from(subject: Subject) -> Self {
        let Subject { kind, id } = subject;
        Self { kind: kind.into(), id: SubjectIdText(id.as_str().to_owned()) }
    }
}

impl From<Shown> for SubscriptionBody {
    fn from(Shown { subscription, now }: Shown) -> Self {
        let status = subscription.status(now).into();
        let Subscription { id, subject, scopes, life, version, created_at, updated_at } = subscription;
        Self {
            id: id.into(),
            subject: subject.into(),
            scopes: scopes.as_slice().iter().map(Into::into).collect(),
            valid_from: life.window.from().into(),
            valid_until: life.window.until().map(Into::into),
            canceled_at: life.canceled_at.map(Into::into),
            status,
            version,
            created_at: created_at.into(),
            updated_at: updated_at.into(),
        }
    }
}

impl<'de> Deserialize<'de> for SubjectType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, |text| subject::SubjectType::parse(text).map(Into::into), &["user", "client"])
    }
}

impl From<SubjectType> for subject::SubjectType {
    fn from(kind: SubjectType) -> Self {
        match kind {
            SubjectType::User => Self::User,
            SubjectType::Client => Self::Client,
        }
    }
}

impl From<subject::SubjectType> for SubjectType {
    fn from(kind: subject::SubjectType) -> Self {
        match kind {
            subject::SubjectType::User => Self::User,
            subject::SubjectType::Client => Self::Client,
        }
    }
}

impl From<life::Status> for Status {
    fn from(status: life::Status) -> Self {
        match status {
            life::Status::Scheduled => Self::Scheduled,
            life::Status::Active => Self::Active,
            life::Status::Canceled => Self::Canceled,
            life::Status::Expired => Self::Expired,
        }
    }
}
