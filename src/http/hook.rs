//! The web hooks that Access calls.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use poem::{http::HeaderMap, web::Data};
use poem_openapi::{Object, OpenApi, Tags, types::Example};
use serde::{Deserialize, Serialize};

use super::{
    App,
    auth::HookCaller,
    body::{Ok200, Unread, whole},
    claims::ClaimsObject,
    problem::{self, Problem, Refusal},
    wire::{BodyText, nullable_object, object},
};
use crate::{
    domain::subject::{SubjectRef, SubjectType},
    service::{
        decision::{DecisionRequest, Party},
        metrics::Hook,
    },
};

type Answer<T> = Result<Ok200<T>, Refusal<problem::Hook>>;

/// The operations of the hooks.
#[derive(Debug, Clone, Copy)]
pub struct HookApi;

#[derive(Tags)]
enum Tag {
    /// Called by Access just before it creates a grant or a token.
    Hooks,
}

/// What Access tells about a request for a grant or a token. What is not listed here is ignored.
#[derive(Debug, Object, Deserialize)]
pub struct HookRequest<'body> {
    /// The user; absent, or null, when there is none, as with client credentials.
    #[serde(borrow, default, deserialize_with = "nullable_object")]
    user: Option<HookParty<'body>>,
    /// The client that asks for the grant.
    #[serde(borrow, deserialize_with = "object")]
    client: HookParty<'body>,
    /// The requested scopes.
    #[serde(borrow)]
    scopes: Vec<BodyText<'body>>,
}

/// The vendor's example.
impl Example for HookRequest<'_> {
    fn example() -> Self {
        let text = |text| BodyText(Cow::Borrowed(text));
        let party = |id| HookParty { id: text(id) };
        Self {
            user: Some(party("myUserId22700111101")),
            client: party("client"),
            scopes: ["profile", "email"].map(text).into(),
        }
    }
}

/// A user or a client.
#[derive(Debug, Object, Deserialize)]
pub struct HookParty<'body> {
    /// The identifier: of a user as the identity provider gave it, of a client as Access knows it. Any string.
    #[serde(borrow)]
    id: BodyText<'body>,
}

/// Which scopes to remove, and which claims to add.
#[derive(Debug, PartialEq, Eq, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct CustomizeAccessTokenResponse {
    /// The requested scopes that are to be removed; none of them is unrequested, and none is repeated.
    remove_scopes: Vec<String>,
    /// Claims to add to the token: an object with no null in it. It is empty unless the service is set to make claims and
    /// one of the requested scopes stays because it is held: not because it is unmanaged, not enforced or unknown. Then
    /// it has, each name after a prefix of the operator's choice:
    ///
    /// - `entitled_until`: the first of the ends below; absent when there is none.
    /// - `entitlements`: an array with an object for each of those scopes, in requested order, of `scope` and `until`: the
    ///   first instant at which it is no longer held by those who must hold it, if nothing is written meanwhile, in whole
    ///   seconds since 1970, rounded down; absent when that never comes.
    /// - the claims of the subscriptions that grant one of those scopes at this instant to somebody who must hold it.
    /// - the claims of those scopes.
    ///
    /// Of several claims of one name a subscription's counts before a scope's, of subscriptions that of the one recorded
    /// last, of scopes that of the one requested first. There are at most 4,096 bytes, as JSON. In the order of this list,
    /// of what counts first, and then of their names, each claim is given that still fits; the others are left out.
    additional_claims: ClaimsObject,
}

/// Which scopes remain.
#[derive(Debug, PartialEq, Eq, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct CustomizeTokenResponse {
    /// The requested scopes that remain, in requested order, none repeated.
    reduced_scopes: Vec<String>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Hooks")]
impl HookApi {
    /// Customize an access token
    ///
    /// Answers which of the requested scopes to remove, because their subscription is not valid at this instant.
    /// Removing none is an empty list; removing all of them is an answer, too, upon which Access rejects the flow.
    #[oai(path = "/customize-access-token", method = "post", operation_id = "customize-access-token")]
    async fn customize_access_token(
        &self,
        app: Data<&Arc<App>>,
        HookCaller(waited): HookCaller,
        body: Unread<HookRequest<'static>>,
    ) -> Answer<CustomizeAccessTokenResponse> {
        let request: HookRequest = body.read()?;
        let scopes = request.scopes();
        let (decision, claims) = app.service.customize(decision_request(&request, &scopes, waited)).await?;
        let remove_scopes = decision.removed().map(str::to_owned).collect();
        Ok(Ok200(CustomizeAccessTokenResponse { remove_scopes, additional_claims: ClaimsObject(claims.claims) }))
    }

    /// Customize a token (older contract)
    ///
    /// Answers which of the requested scopes remain. An empty list removes all of them, upon which Access rejects the
    /// flow.
    #[oai(path = "/customize-token", method = "post", operation_id = "customize-token")]
    async fn customize_token(
        &self,
        app: Data<&Arc<App>>,
        HookCaller(waited): HookCaller,
        body: Unread<HookRequest<'static>>,
    ) -> Answer<CustomizeTokenResponse> {
        let request: HookRequest = body.read()?;
        let scopes = request.scopes();
        let decision = app.service.decide(decision_request(&request, &scopes, waited)).await?;
        Ok(Ok200(CustomizeTokenResponse { reduced_scopes: decision.kept().map(str::to_owned).collect() }))
    }
}

/// Answers a hook as its operation above does, which says what it takes and what it gives.
///
/// # Errors
///
/// Those of the operation.
pub async fn answer(
    hook: Hook,
    app: &Arc<App>,
    waited: Duration,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response<Full<Bytes>>, Problem> {
    let (app, caller, body) = (Data(app), HookCaller(waited), Unread::new(headers, body)?);
    match hook {
        Hook::CustomizeAccessToken => written(HookApi.customize_access_token(app, caller, body).await),
        Hook::CustomizeToken => written(HookApi.customize_token(app, caller, body).await),
    }
}

fn written<T: Serialize>(answer: Answer<T>) -> Result<Response<Full<Bytes>>, Problem> {
    whole(&answer.map_err(Refusal::into_problem)?.0)
}

fn decision_request<'a>(request: &'a HookRequest<'_>, scopes: &'a [&'a str], waited: Duration) -> DecisionRequest<'a> {
    DecisionRequest { user: request.user(), client: request.client(), scopes, waited }
}

impl HookRequest<'_> {
    /// The user that it names.
    pub(super) fn user(&self) -> Option<Party<'_>> {
        self.user.as_ref().map(|user| party(SubjectType::User, &user.id.0))
    }

    /// The client that it names.
    pub(super) fn client(&self) -> Party<'_> {
        party(SubjectType::Client, &self.client.id.0)
    }

    /// The scopes, as spelled.
    pub(super) fn scopes(&self) -> Vec<&str> {
        self.scopes.iter().map(|scope| &*scope.0).collect()
    }
}

/// Whom an id in a request stands for.
pub(super) fn party(kind: SubjectType, id: &str) -> Party<'_> {
    match SubjectRef::parse(kind, id) {
        Ok(subject) => Party::Subject(subject),
        Err(_) => Party::Unholding,
    }
}
