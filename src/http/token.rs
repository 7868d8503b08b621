//! The tokens of the management API: `/v1/tokens`.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{Body, Ok200, Optional},
    page::{Cursor, Limit, Page},
    problem::{self, FieldError, FieldErrors, Problem, Refusal},
    resource::Issued,
    wire::{Timestamp, TokenId, TokenNameText, nullable, word},
};
use crate::{
    domain::token::{self, Token},
    service::token::{NewToken, Secret, Shown},
};

/// The operations of the tokens.
#[derive(Debug, Clone, Copy)]
pub struct TokenApi;

/// What a token may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Reader,
    /// Change subscriptions.
    Writer,
    /// Change the catalogue, and hand out tokens.
    Admin,
}

/// What a token is at the present: derived from its timestamps whenever it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename = "TokenStatus", rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It lets its bearer in.
    Active,
    /// It has ended.
    Expired,
    /// It was revoked.
    Revoked,
}

/// A credential of the management API, but for its secret.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Token", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct TokenBody {
    /// Its id.
    id: TokenId,
    /// Its name, under which its changes are recorded.
    name: TokenNameText,
    /// What it may do.
    role: Role,
    /// What it is now.
    status: Status,
    /// The first instant at which it has ended; null when it never does.
    expires_at: Option<Timestamp>,
    /// When it was revoked; absent when it was not.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    /// When it last let somebody in, which is written about once a minute; absent when it never did.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Timestamp>,
    /// When it was made.
    created_at: Timestamp,
    /// The name of the credential that made it.
    created_by: String,
}

/// A new credential of the management API, with its secret.
// Without `Debug`: it would show the secret.
#[derive(Object, Serialize)]
#[oai(rename = "IssuedToken", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct IssuedTokenBody {
    /// What its bearer sends: `Authorization: Bearer` and this. It is shown here once, and kept nowhere.
    token: String,
    /// All that is not secret.
    #[oai(flatten)]
    #[serde(flatten)]
    body: TokenBody,
}

/// A token to be made.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "NewToken", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewTokenBody {
    /// Its name, which no other token may have, or ever have had. `access` and `bootstrap` are reserved.
    name: TokenNameText,
    /// What it may do.
    role: Role,
    /// The first instant at which it has ended, in the future. It has to be there: null says on purpose that it never
    /// ends.
    #[serde(deserialize_with = "nullable")]
    expires_at: Option<Timestamp>,
}

/// How to revoke: an empty object, or no body at all.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {}

/// A page of tokens.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct TokenPage {
    /// The tokens, ascending by id, so the oldest come first.
    items: Vec<TokenBody>,
    /// Where the next page begins; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<Cursor>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Tokens")]
impl TokenApi {
    /// Make a token
    ///
    /// From the answer on its bearer is let in. The answer alone shows its secret.
    #[oai(path = "/tokens", method = "post", operation_id = "create-token")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        new: Body<NewTokenBody>,
    ) -> Result<Issued<IssuedTokenBody>, Refusal<problem::Create>> {
        let (shown, secret) = app.service.create_token(caller.0, new.0.parse()?).await?;
        let location = format!("/v1/tokens/{}", shown.token.id);
        Ok(Issued { location, body: issued(&secret, shown) })
    }

    /// List the tokens
    ///
    /// Expired and revoked ones are among them. All pages show the status at the present of the first one.
    #[oai(path = "/tokens", method = "get", operation_id = "list-tokens")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        limit: Query<Option<Limit>>,
        cursor: Query<Option<Cursor>>,
    ) -> Result<Ok200<TokenPage>, Refusal<problem::List>> {
        const FILTERS: &str = "tokens";
        let page = Page::parse(limit.0.as_ref(), cursor.0.as_ref(), FILTERS)?;
        let now = page.position.as_ref().map_or_else(|| app.service.now(), |position| position.now);
        let after = page.position.as_ref().and_then(|position| Uuid::try_parse(&position.after).ok());
        let mut items = app.service.tokens(after, page.probe()).await?;
        let next_cursor = page.cut(&mut items, now, FILTERS, |token| token.id.to_string());
        let items = items.into_iter().map(|token| Shown { token, now }.into()).collect();
        Ok(Ok200(TokenPage { items, next_cursor }))
    }

    /// Read a token
    #[oai(path = "/tokens/:id", method = "get", operation_id = "get-token")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        id: Path<TokenId>,
    ) -> Result<Ok200<TokenBody>, Refusal<problem::Read>> {
        Ok(Ok200(app.service.token(identified(&id.0)?).await?.into()))
    }

    /// Revoke a token
    ///
    /// From the answer on it lets nobody in, for good. It needs no `If-Match`, so that nothing holds it up.
    #[oai(path = "/tokens/:id/revoke", method = "post", operation_id = "revoke-token")]
    async fn revoke(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        id: Path<TokenId>,
        _revocation: Body<Revocation, Optional>,
    ) -> Result<Ok200<TokenBody>, Refusal<problem::Act>> {
        Ok(Ok200(app.service.revoke_token(caller.0, identified(&id.0)?).await?.into()))
    }
}

/// The id of a path. A text that is no id names nothing.
fn identified(id: &TokenId) -> Result<Uuid, Problem> {
    id.parse().ok_or_else(Problem::not_found)
}

fn issued(secret: &Secret, shown: Shown) -> IssuedTokenBody {
    IssuedTokenBody { token: secret.expose().to_owned(), body: shown.into() }
}

impl NewTokenBody {
    fn parse(self) -> Result<NewToken, Problem> {
        let Self { name, role, expires_at } = self;
        let mut errors = FieldErrors::default();
        let name = token::TokenName::parse(&name.0).map_err(|error| FieldError::new("#/name", error));
        let name = errors.take(name);
        let expires_at = errors.take(expires_at.map(|timestamp| timestamp.parse("#/expiresAt")).transpose());
        match (name, expires_at) {
            (Some(name), Some(expires_at)) => Ok(NewToken { name, role: role.into(), expires_at }),
            _ => Err(errors.into()),
        }
    }
}

impl From<Shown> for TokenBody {
    fn from(Shown { token, now }: Shown) -> Self {
        let status = token.status(now).into();
        let Token { id, name, role, created_at, created_by, expires_at, revoked_at, last_used_at } = token;
        Self {
            id: id.into(),
            name: TokenNameText(name.as_str().to_owned()),
            role: role.into(),
            status,
            expires_at: expires_at.map(Into::into),
            revoked_at: revoked_at.map(Into::into),
            last_used_at: last_used_at.map(Into::into),
            created_at: created_at.into(),
            created_by,
        }
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, |text| token::Role::parse(text).map(Into::into), &["reader", "writer", "admin"])
    }
}

impl From<Role> for token::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Reader => Self::Reader,
            Role::Writer => Self::Writer,
            Role::Admin => Self::Admin,
        }
    }
}

impl From<token::Role> for Role {
    fn from(role: token::Role) -> Self {
        match role {
            token::Role::Reader => Self::Reader,
            token::Role::Writer => Self::Writer,
            token::Role::Admin => Self::Admin,
        }
    }
}

impl From<token::Status> for Status {
    fn from(status: token::Status) -> Self {
        match status {
            token::Status::Active => Self::Active,
            token::Status::Expired => Self::Expired,
            token::Status::Revoked => Self::Revoked,
        }
    }
}
