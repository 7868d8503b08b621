//! The explanation of a hook's answer in the management API: `/v1/explain`.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{Enum, Object, OpenApi, types::Example};
use serde::{Deserialize, Serialize};

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{Ok200, Unread},
    claims::ClaimsObject,
    hook::HookRequest,
    problem::{self, FieldErrors, Problem, Refusal},
    wire::{SubscriptionId, Timestamp, object, present},
};
use crate::{
    domain::{
        decision::{Outcome, Reason},
        explain::{self, Grounds, Next},
    },
    service::{self, explain as question},
};

/// The operation of the explanation.
#[derive(Debug, Clone, Copy)]
pub struct ExplainApi;

/// A hook request that is to be explained.
#[derive(Debug, Object, Deserialize)]
#[oai(example = true, rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplanationRequest<'body> {
    /// What Access sent, or would send. What is not listed in it is ignored, as on the hooks.
    #[serde(borrow, deserialize_with = "object")]
    request: HookRequest<'body>,
    /// The instant; the present when absent.
    #[serde(default, deserialize_with = "present")]
    at: Option<Timestamp>,
    /// As of when what is recorded counts: with the same instant in `at`, what was answered then. As it is recorded now
    /// when absent.
    #[serde(default, deserialize_with = "present")]
    known_at: Option<Timestamp>,
}

/// Why a scope is kept or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ExplanationReason {
    /// It is not in the catalogue.
    Unmanaged,
    /// Everyone who must hold it has an active subscription.
    Active,
    /// Everyone who must hold it does so, one of them in the grace after a window.
    Grace,
    /// It would be removed, but its rule is not enforced.
    NotEnforced,
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
    /// A user must hold it, and the request names none.
    NoUser,
}

/// What becomes of one scope, and why.
#[derive(Debug, Object, Serialize)]
pub struct ExplainedScope {
    /// The scope, as the request spells it.
    scope: String,
    /// Whether it stays.
    kept: bool,
    /// Why.
    reason: ExplanationReason,
    /// Why it would be removed, were its rule enforced; absent unless the reason is `not_enforced`.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    unenforced: Option<ExplanationReason>,
    /// The subscriptions that decided it, ascending: those of the user, of the client or of both whose status is the
    /// reason, or the one in `unenforced`. None where no subscription did.
    subscriptions: Vec<SubscriptionId>,
    /// When it is removed, or kept again; absent when it stays so as long as nothing is changed, and for a scope that is
    /// not enforced, which is kept in any case: what each party holds, and when, is told by its entitlements.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<NextDecision>,
}

/// When a scope is removed, or kept again, as long as nothing is changed.
#[derive(Debug, Object, Serialize)]
pub struct NextDecision {
    /// The first instant at which it is.
    at: Timestamp,
    /// Whether it stays from then on.
    kept: bool,
}

/// What a hook request is answered at an instant, and why.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The instant.
    at: Timestamp,
    /// The requested scopes, in requested order, none repeated.
    scopes: Vec<ExplainedScope>,
    /// What the current hook answers as `removeScopes`.
    remove_scopes: Vec<String>,
    /// What it answers as `additionalClaims`.
    additional_claims: ClaimsObject,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Explanations")]
impl ExplainApi {
    /// Explain what a hook answers
    ///
    /// What the hooks answer to a request at an instant, scope by scope: why, which subscriptions decided it, and when
    /// it will be otherwise. It is told from what is recorded now, also for an instant of the past, unless `knownAt` asks
    /// for what was recorded then; and by the rules of
    /// the hooks: they answer the same, but for what they may answer from memory while the database cannot be asked.
    /// Asking changes nothing, and counts as no decision.
    #[oai(path = "/explain", method = "post", operation_id = "explain")]
    async fn explain(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        body: Unread<ExplanationRequest<'static>>,
    ) -> Result<Ok200<Explanation>, Refusal<problem::View>> {
        let ExplanationRequest { request, at, known_at } = body.read()?;
        let mut errors = FieldErrors::default();
        let at = errors.take(at.map(|at| at.parse("#/at")).transpose()).flatten();
        let known_at = errors.take(known_at.map(|at| at.parse("#/knownAt")).transpose()).flatten();
        errors.check()?;
        let (user, client, scopes) = (request.user(), request.client(), request.scopes());
        let question = question::ExplanationRequest { user, client, scopes: &scopes, at, known_at };
        let (at, explanation, claims) = app.service.explain(question).await?;
        let remove_scopes = explanation.decision.removed().map(str::to_owned).collect();
        let additional_claims = ClaimsObject(claims.claims);
        Ok(Ok200(Explanation { at: at.into(), scopes: explained(explanation)?, remove_scopes, additional_claims }))
    }
}

fn explained(explanation: explain::Explanation<'_>) -> Result<Vec<ExplainedScope>, Problem> {
    let explain::Explanation { decision, grounds } = explanation;
    let explained = |(outcome, grounds)| {
        let Outcome { scope, kept, reason, unenforced } = outcome;
        let Grounds { subscriptions, next } = grounds;
        Ok(ExplainedScope {
            scope: scope.to_owned(),
            kept,
            reason: reason.try_into()?,
            unenforced: unenforced.map(TryInto::try_into).transpose()?,
            subscriptions: subscriptions.into_iter().map(Into::into).collect(),
            next: next.map(|Next { at, kept }| NextDecision { at: at.into(), kept }),
        })
    };
    decision.outcomes.into_iter().zip(grounds).map(explained).collect()
}

impl TryFrom<Reason> for ExplanationReason {
    type Error = Problem;

    fn try_from(reason: Reason) -> Result<Self, Problem> {
        Ok(match reason {
            Reason::Unmanaged => Self::Unmanaged,
            Reason::Active => Self::Active,
            Reason::Grace => Self::Grace,
            Reason::NotEnforced => Self::NotEnforced,
            Reason::Paused => Self::Paused,
            Reason::Scheduled => Self::Scheduled,
            Reason::Canceled => Self::Canceled,
            Reason::Expired => Self::Expired,
            Reason::NoSubscription => Self::NoSubscription,
            Reason::NoUser => Self::NoUser,
            // Whoever asks the database knows, so the contract does not list it.
            Reason::Unknown => return Err(service::Error::Unknown.into()),
        })
    }
}

impl Example for ExplanationRequest<'_> {
    fn example() -> Self {
        Self {
            request: HookRequest::example(),
            at: Some(Timestamp("2026-01-31T12:00:00Z".to_owned())),
            known_at: Some(Timestamp("2026-01-31T12:00:00Z".to_owned())),
        }
    }
}
