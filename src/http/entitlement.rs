//! The entitlements view in the management API: `/v1/entitlements`.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{Enum, Object, OpenApi, param::Query};
use serde::Serialize;

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::Ok200,
    problem::{self, Problem, Refusal},
    subscription::{SubjectBody, SubjectTypeText, parse_subject},
    wire::{ScopeToken, SubjectIdText, SubscriptionId, Timestamp},
};
use crate::domain::{self, entitlement::Next, facts::Standing};

/// The operation of the entitlements view.
#[derive(Debug, Clone, Copy)]
pub struct EntitlementApi;

/// Why a subject holds a scope, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum EntitlementReason {
    /// A subscription is active.
    Active,
    /// A subscription is in the grace after its window: the scope is held all the same.
    Grace,
    /// The subscription is paused.
    Paused,
    /// No subscription has begun, one will.
    Scheduled,
    /// The subscription was canceled.
    Canceled,
    /// The subscription has run out.
    Expired,
    /// There is no subscription.
    NoSubscription,
}

/// How a subject stands to one catalogue scope.
#[derive(Debug, Object, Serialize)]
pub struct Entitlement {
    /// The scope.
    scope: ScopeToken,
    /// Whether the subject itself holds it.
    held: bool,
    /// Why, or why not.
    reason: EntitlementReason,
    /// The end of the unbroken run of time in which it is held; absent when it is open-ended, or not held.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    /// The subscriptions that make it so, ascending: those whose status is the reason.
    subscriptions: Vec<SubscriptionId>,
    /// When it is held no longer, or held at last; absent when it stays so as long as nothing is changed.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<NextEntitlement>,
}

/// When a subject comes to hold a scope, or holds it no longer, as long as nothing is changed.
#[derive(Debug, Object, Serialize)]
pub struct NextEntitlement {
    /// The first instant at which it does.
    at: Timestamp,
    /// Whether the subject itself holds the scope from then on.
    held: bool,
}

/// What a subject holds at an instant.
#[derive(Debug, Object, Serialize)]
pub struct Entitlements {
    /// The subject.
    subject: SubjectBody,
    /// The instant.
    at: Timestamp,
    /// One item for each scope of the catalogue, ascending.
    items: Vec<Entitlement>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Entitlements")]
impl EntitlementApi {
    /// Show what a subject holds
    ///
    /// Which scopes of the catalogue the subject itself holds, until when, and why it does not hold the others.
    #[oai(path = "/entitlements", method = "get", operation_id = "get-entitlements")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        /// The kind of the subject.
        #[oai(name = "subjectType")]
        subject_type: Query<SubjectTypeText>,
        /// The id of the subject.
        #[oai(name = "subjectId")]
        subject_id: Query<SubjectIdText>,
        /// The instant; the present when absent.
        at: Query<Option<Timestamp>>,
    ) -> Result<Ok200<Entitlements>, Refusal<problem::List>> {
        let subject = parse_subject(&subject_type.0, &subject_id.0)?;
        let at = at.0.map(|at| at.parse("?at")).transpose().map_err(|error| Problem::invalid_request(vec![error]))?;
        let (at, items) = app.service.entitlements(&subject, at).await?;
        let items = items.into_iter().map(Into::into).collect();
        Ok(Ok200(Entitlements { subject: subject.into(), at: at.into(), items }))
    }
}

impl From<domain::entitlement::Entitlement> for Entitlement {
    fn from(entitlement: domain::entitlement::Entitlement) -> Self {
        let domain::entitlement::Entitlement { scope, standing, until, subscriptions, next } = entitlement;
        Self {
            scope: (&scope).into(),
            held: standing.is_held(),
            reason: standing.into(),
            until: until.map(Into::into),
            subscriptions: subscriptions.into_iter().map(Into::into).collect(),
            next: next.map(|Next { at, held }| NextEntitlement { at: at.into(), held }),
        }
    }
}

impl From<Standing> for EntitlementReason {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Grace => Self::Grace,
            Standing::Paused => Self::Paused,
            Standing::Scheduled => Self::Scheduled,
            Standing::Canceled => Self::Canceled,
            Standing::Expired => Self::Expired,
            Standing::NoSubscription => Self::NoSubscription,
        }
    }
}
