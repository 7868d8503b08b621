//! Subscriptions in the management API: `/v1/subscriptions`.

use std::sync::Arc;

use chrono::DateTime;
use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    registry::MetaSchema,
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{Body, MergePatch, Ok200, Optional},
    page::{Cursor, Limit, Page},
    problem::{self, Problem, Refusal, undescribed},
    resource::{Created, Deleted, Found, IfMatch, Put},
    wire::{ExternalIdText, ScopeToken, SourceText, SubjectIdText, SubscriptionId, Timestamp, text},
};
use crate::{
    domain::{
        external::ExternalKey,
        life::{self, Transition},
        subject::{self, Subject},
        subscription::Subscription,
    },
    service::subscription::{Outcome, Shown, Write, Written},
    store::subscription::{After, Filter},
};

mod body;

pub use body::{
    Cancellation, NewSubscriptionBody, Nothing, Pause, Renewal, RenewedFrom, Status, SubjectBody, SubjectType,
    SubscriptionBody, SubscriptionPatchBody, SubscriptionStateBody,
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

text! {
    /// Yes or no, as query parameter.
    BooleanText, "boolean", |schema| {
        schema.default = Some(false.into());
    }
}

impl BooleanText {
    /// Whether it says yes.
    ///
    /// # Errors
    ///
    /// 400 at `pointer` when it is neither `true` nor `false`.
    pub fn parse(&self, pointer: &str) -> Result<bool, Problem> {
        match self.0.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(undescribed(pointer, "expected `true` or `false`")),
        }
    }
}

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
        let shown = app
            .service
            .write_subscription(caller.0, Write::Create(new.0.parse(app.service.claims_prefix())?))
            .await?
            .shown;
        Ok(Created { version: shown.subscription.version, location: location(&shown), body: shown.into() })
    }

    /// Record what a system says of one of its subscriptions
    ///
    /// Whether it is there already or not; a deleted one is there again. An older message never overwrites a newer one:
    /// with `sourceVersion`, only a greater one than the last says anything, and the answer is the subscription as it
    /// is. Without, the last one that arrives counts; once there was a version, one is needed.
    #[oai(path = "/subscriptions/by-external-id", method = "put", operation_id = "put-subscription")]
    async fn put(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        /// The system that knows it by an id of its own.
        source: Query<SourceText>,
        /// The id that this system knows it by.
        #[oai(name = "externalId")]
        external_id: Query<ExternalIdText>,
        /// The versions that may be changed; none of a subscription that is not there yet. It is never required here.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        state: Body<SubscriptionStateBody>,
    ) -> Result<Put<SubscriptionBody>, Refusal<problem::Put>> {
        let key = external_key(&source.0, &external_id.0)?;
        let write = state.0.parse(key, if_match.expected(false)?, app.service.claims_prefix())?;
        let Written { shown, outcome } = app.service.write_subscription(caller.0, write).await?;
        let version = shown.subscription.version;
        Ok(match outcome {
            Outcome::Created => Put::Created(Created { version, location: location(&shown), body: shown.into() }),
            Outcome::Changed | Outcome::Unchanged | Outcome::Outdated => Put::Found(found(shown)),
        })
    }

    /// Read a subscription by its external id
    #[oai(path = "/subscriptions/by-external-id", method = "get", operation_id = "find-subscription")]
    async fn find(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        /// The system that knows it by an id of its own.
        source: Query<SourceText>,
        /// The id that this system knows it by.
        #[oai(name = "externalId")]
        external_id: Query<ExternalIdText>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Read>> {
        let key = external_key(&source.0, &external_id.0)?;
        Ok(found(app.service.subscription_known_as(&key).await?))
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
        /// Granting its scopes at this instant: active, or in grace.
        #[oai(name = "activeAt")]
        active_at: Query<Option<Timestamp>>,
        /// Known to this system by an id of its own.
        source: Query<Option<SourceText>>,
        /// Changed at this instant or later. The list is then ordered by the last change, and one that is changed while
        /// the pages are read comes again. What was written at about that instant may show up a minute later.
        #[oai(name = "updatedSince")]
        updated_since: Query<Option<Timestamp>>,
        /// Whether deleted ones are listed, too.
        #[oai(name = "includeDeleted")]
        include_deleted: Query<Option<BooleanText>>,
        limit: Query<Option<Limit>>,
        cursor: Query<Option<Cursor>>,
    ) -> Result<Ok200<SubscriptionPage>, Refusal<problem::List>> {
        let query = FilterQuery {
            subject_type: subject_type.0,
            subject_id: subject_id.0,
            scope: scope.0,
            status: status.0,
            active_at: active_at.0,
            source: source.0,
            updated_since: updated_since.0,
            include_deleted: include_deleted.0,
        };
        let (filter, filters) = (query.parse()?, query.binding());
        let page = Page::parse(limit.0.as_ref(), cursor.0.as_ref(), &filters)?;
        let now = page.position.as_ref().map_or_else(|| app.service.now(), |position| position.now);
        let after = page.position.as_ref().and_then(|position| after(&position.after));
        let mut items = app.service.subscriptions(&filter, now, after, page.probe()).await?;
        let next_cursor = page.cut(&mut items, now, &filters, place);
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
    /// subscription may be extended; a canceled one may not be changed. A grace that stays has to end after the window.
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
        let (subject, patch) = patch.0.parse(app.service.claims_prefix())?;
        let write = Write::Patch { id, expected, subject, patch };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Delete a subscription
    ///
    /// From the answer on it counts in no decision and shows in no answer, until it is restored.
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
        let write = Write::Delete { id: identified(&id.0)?, expected };
        app.service.write_subscription(caller.0, write).await?;
        Ok(Deleted)
    }

    /// Cancel a subscription
    ///
    /// It ends, whatever is left of it: now, at an instant, or at the end of its window. A cancellation that lies ahead
    /// is replaced.
    #[oai(path = "/subscriptions/:id/cancel", method = "post", operation_id = "cancel-subscription")]
    async fn cancel(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be canceled.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        cancellation: Body<Cancellation, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let cancel = Transition::Cancel(cancellation.0.parse()?);
        let write = Write::Transition { id, expected, transition: cancel };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Take back a cancellation
    ///
    /// As if there had been none, whether it lies ahead or not: what was removed meanwhile stays so, and it has to be
    /// one that has not expired as well.
    #[oai(path = "/subscriptions/:id/uncancel", method = "post", operation_id = "uncancel-subscription")]
    async fn uncancel(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be changed.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        _nothing: Body<Nothing, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let write = Write::Transition { id, expected, transition: Transition::Uncancel };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Pause a subscription
    ///
    /// While it is paused it grants nothing, and its window goes on. There is one pause at a time: the next one can be
    /// asked for when the last one is over.
    #[oai(path = "/subscriptions/:id/pause", method = "post", operation_id = "pause-subscription")]
    async fn pause(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be paused.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        pause: Body<Pause, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let pause = pause.0.parse()?;
        let write = Write::Transition { id, expected, transition: pause };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Resume a subscription
    ///
    /// A pause ends now; one that lies ahead is taken back.
    #[oai(path = "/subscriptions/:id/resume", method = "post", operation_id = "resume-subscription")]
    async fn resume(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be resumed.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        _nothing: Body<Nothing, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let write = Write::Transition { id, expected, transition: Transition::Resume };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Renew a subscription
    ///
    /// Its window gets a later end. An expired one may be renewed; one that is canceled, or will be by the old end, may
    /// not. Counted from the old end, a renewal that is sent twice counts twice: `If-Match` keeps it from that.
    #[oai(path = "/subscriptions/:id/renew", method = "post", operation_id = "renew-subscription")]
    async fn renew(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be renewed.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        renewal: Body<Renewal>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let id = identified(&id.0)?;
        let renew = Transition::Renew(renewal.0.parse()?);
        let write = Write::Transition { id, expected, transition: renew };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }

    /// Restore a deleted subscription
    ///
    /// From the answer on it counts and shows again, as it was before it was deleted.
    #[oai(path = "/subscriptions/:id/restore", method = "post", operation_id = "restore-subscription")]
    async fn restore(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<SubscriptionId>,
        /// The versions that may be restored: deleting it made a version, too.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        _nothing: Body<Nothing, Optional>,
    ) -> Result<Found<SubscriptionBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let write = Write::Restore { id: identified(&id.0)?, expected };
        Ok(found(app.service.write_subscription(caller.0, write).await?.shown))
    }
}

/// The place of a subscription in a list, for a cursor.
fn place(subscription: &Subscription) -> String {
    format!("{} {}", subscription.updated_at.timestamp_micros(), subscription.id)
}

/// Where a list goes on after such a place.
fn after(place: &str) -> Option<After> {
    let (updated_at, id) = place.split_once(' ')?;
    let updated_at = DateTime::from_timestamp_micros(updated_at.parse().ok()?)?;
    Some(After { id: Uuid::try_parse(id).ok()?, updated_at })
}

/// The id by which a source knows a subscription, from two query parameters.
fn external_key(source: &SourceText, id: &ExternalIdText) -> Result<ExternalKey, Problem> {
    let refuse = |error| Problem::invalid_request(vec![error]);
    Ok(ExternalKey { source: source.parse("?source").map_err(refuse)?, id: id.parse("?externalId").map_err(refuse)? })
}

fn location(shown: &Shown) -> String {
    format!("/v1/subscriptions/{}", shown.subscription.id)
}

fn found(shown: Shown) -> Found<SubscriptionBody> {
    Found { version: shown.subscription.version, body: shown.into() }
}

/// The id of a path. A text that is no id names nothing.
///
/// # Errors
///
/// 404.
pub fn identified(id: &SubscriptionId) -> Result<Uuid, Problem> {
    id.parse().ok_or_else(Problem::not_found)
}

/// The subject that two query parameters name.
///
/// # Errors
///
/// 400, naming the parameter that is wrong.
pub fn parse_subject(kind: &SubjectTypeText, id: &SubjectIdText) -> Result<Subject, Problem> {
    let kind = subject::SubjectType::parse(&kind.0)
        .ok_or_else(|| undescribed("?subjectType", "expected `user` or `client`"))?;
    let id = id.parse("?subjectId").map_err(|error| Problem::invalid_request(vec![error]))?;
    Ok(Subject { kind, id })
}

/// The filters of a list, as they came.
#[derive(Debug, Serialize)]
struct FilterQuery {
    subject_type: Option<SubjectTypeText>,
    subject_id: Option<SubjectIdText>,
    scope: Option<ScopeToken>,
    status: Option<StatusText>,
    active_at: Option<Timestamp>,
    source: Option<SourceText>,
    updated_since: Option<Timestamp>,
    include_deleted: Option<BooleanText>,
}

impl FilterQuery {
    fn parse(&self) -> Result<Filter, Problem> {
        let refuse = |error| Problem::invalid_request(vec![error]);
        let status = |text: &StatusText| {
            let expected = "expected `scheduled`, `active`, `paused`, `grace`, `canceled` or `expired`";
            life::Status::parse(&text.0).ok_or_else(|| undescribed("?status", expected))
        };
        let subject = match (&self.subject_type, &self.subject_id) {
            (Some(kind), Some(id)) => Some(parse_subject(kind, id)?),
            (Some(_), None) => return Err(undescribed("?subjectId", "it goes with `subjectType`")),
            (None, Some(_)) => return Err(undescribed("?subjectType", "it goes with `subjectId`")),
            (None, None) => None,
        };
        Ok(Filter {
            subject,
            scope: self.scope.as_ref().map(|scope| scope.parse("?scope")).transpose().map_err(refuse)?,
            status: self.status.as_ref().map(status).transpose()?,
            active_at: self.active_at.as_ref().map(|at| at.parse("?activeAt")).transpose().map_err(refuse)?,
            source: self.source.as_ref().map(|source| source.parse("?source")).transpose().map_err(refuse)?,
            updated_since: self
                .updated_since
                .as_ref()
                .map(|since| since.parse("?updatedSince"))
                .transpose()
                .map_err(refuse)?,
            with_deleted: self
                .include_deleted
                .as_ref()
                .map(|text| text.parse("?includeDeleted"))
                .transpose()?
                .unwrap_or_default(),
        })
    }

    /// What a cursor of this list is bound to.
    fn binding(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
