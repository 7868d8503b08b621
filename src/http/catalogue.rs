//! The catalogue in the management API: `/v1/scopes`.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{Body, MergePatch, Ok200},
    claims::ClaimsObject,
    page::{Cursor, Limit, Page},
    path_segment,
    problem::{self, FieldError, FieldErrors, Problem, Refusal},
    resource::{Created, Deleted, Found, IfMatch},
    wire::{ScopeToken, Timestamp, present, word},
};
use crate::{
    domain::{
        catalogue::{self, CatalogueScope, CatalogueScopePatch, Description, MAX_DESCRIPTION_LENGTH},
        claims::ClaimsPrefix,
        scope::Scope,
    },
    service::catalogue::NewCatalogueScope,
};

/// The operations of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueApi;

/// Who must hold a subscription for a scope to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Requires {
    /// The user.
    User,
    /// The client.
    Client,
    /// The user or the client.
    Any,
    /// The user and the client.
    All,
}

/// A scope under subscription.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Scope", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct ScopeBody {
    /// Its name.
    name: ScopeToken,
    /// What it stands for, in words.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Who must hold it.
    requires: Requires,
    /// Whether it is taken away from those who do not hold it. While false it is decided, counted and kept.
    enforced: bool,
    /// What tokens are told while it is held; absent when there is nothing.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<ClaimsObject>,
    /// Counts its changes, from 1.
    version: i64,
    /// When it was registered.
    created_at: Timestamp,
    /// When it was last changed.
    updated_at: Timestamp,
}

/// A scope to be registered.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewScope {
    /// Its name, which never changes.
    name: ScopeToken,
    /// What it stands for, in words.
    #[oai(validator(max_length = 1024, pattern = r"^[^\x00]*$"))]
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
    /// Who must hold it; `any` when absent.
    #[serde(default, deserialize_with = "present")]
    requires: Option<Requires>,
    /// Whether it is taken away from those who do not hold it; true when absent.
    #[serde(default, deserialize_with = "present")]
    enforced: Option<bool>,
    /// What tokens are told while it is held: JSON values by name, at most 16, of at most 1,024 bytes
    /// altogether, and no null in any. Each name begins with the prefix that the service is set to, goes on after it, and
    /// has at most 128 printable ASCII characters without blank, quotes and backslash; `entitlements` and
    /// `entitled_until` after the prefix are the service's own. Refused when it has no prefix.
    #[serde(default, deserialize_with = "present")]
    claims: Option<ClaimsObject>,
}

/// A change of a scope: absent members stay as they are.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopePatch {
    /// Its name, which never changes: another one is refused.
    #[serde(default, deserialize_with = "present")]
    name: Option<Option<ScopeToken>>,
    /// What it stands for, in words; null takes it away.
    #[oai(validator(max_length = 1024, pattern = r"^[^\x00]*$"))]
    #[serde(default, deserialize_with = "present")]
    description: Option<Option<String>>,
    /// Who must hold it.
    #[serde(default, deserialize_with = "present")]
    requires: Option<Option<Requires>>,
    /// Whether it is taken away from those who do not hold it.
    #[serde(default, deserialize_with = "present")]
    enforced: Option<Option<bool>>,
    /// The change of its claims, a merge patch itself: absent ones stay, null takes one away; null for all of them takes
    /// all away.
    #[serde(default, deserialize_with = "present")]
    claims: Option<Option<ClaimsObject>>,
}

/// A page of scopes.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct ScopePage {
    /// The scopes, ascending by name.
    items: Vec<ScopeBody>,
    /// Where the next page begins; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<Cursor>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Catalogue")]
impl CatalogueApi {
    /// Register a scope
    ///
    /// From the answer on the scope is managed: it is removed from whoever holds no active subscription for it, unless
    /// `enforced` is false.
    #[oai(path = "/scopes", method = "post", operation_id = "create-scope")]
    async fn create(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        new: Body<NewScope>,
    ) -> Result<Created<ScopeBody>, Refusal<problem::Create>> {
        let scope = app.service.create_scope(caller.0, new.0.parse(app.service.claims_prefix())?).await?;
        let location = format!("/v1/scopes/{}", path_segment(scope.name.as_str()));
        Ok(Created { version: scope.version, location, body: scope.into() })
    }

    /// List the scopes
    #[oai(path = "/scopes", method = "get", operation_id = "list-scopes")]
    async fn list(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        limit: Query<Option<Limit>>,
        cursor: Query<Option<Cursor>>,
    ) -> Result<Ok200<ScopePage>, Refusal<problem::List>> {
        const FILTERS: &str = "scopes";
        let page = Page::parse(limit.0.as_ref(), cursor.0.as_ref(), FILTERS)?;
        let after = page.position.as_ref().and_then(|position| Scope::parse(&position.after).ok());
        let mut scopes = app.service.scopes(after.as_ref(), page.probe()).await?;
        let next_cursor = page.cut(&mut scopes, app.service.now(), FILTERS, |scope| scope.name.to_string());
        Ok(Ok200(ScopePage { items: scopes.into_iter().map(Into::into).collect(), next_cursor }))
    }

    /// Read a scope
    #[oai(path = "/scopes/:name", method = "get", operation_id = "get-scope")]
    async fn get(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        name: Path<ScopeToken>,
    ) -> Result<Found<ScopeBody>, Refusal<problem::Read>> {
        let scope = app.service.scope(&named(&name.0)?).await?;
        Ok(Found { version: scope.version, body: scope.into() })
    }

    /// Change a scope
    ///
    /// A merge patch (RFC 7396): absent members stay as they are, and an empty object changes nothing.
    #[oai(path = "/scopes/:name", method = "patch", operation_id = "patch-scope")]
    async fn patch(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        name: Path<ScopeToken>,
        /// The versions that may be changed.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        patch: Body<ScopePatch, MergePatch>,
    ) -> Result<Found<ScopeBody>, Refusal<problem::Change>> {
        let expected = if_match.expected(app.require_if_match)?;
        let name = named(&name.0)?;
        let patch = patch.0.parse(&name, app.service.claims_prefix())?;
        let scope = app.service.patch_scope(caller.0, name, expected, patch).await?;
        Ok(Found { version: scope.version, body: scope.into() })
    }

    /// Delete a scope
    ///
    /// From the answer on the scope is unmanaged. It is refused while a subscription, be it a deleted one, names it:
    /// a paid scope must not become free by accident.
    #[oai(path = "/scopes/:name", method = "delete", operation_id = "delete-scope")]
    async fn delete(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        name: Path<ScopeToken>,
        /// The versions that may be deleted.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<Deleted, Refusal<problem::DeleteReferred>> {
        let expected = if_match.expected(app.require_if_match)?;
        app.service.delete_scope(caller.0, named(&name.0)?, expected).await?;
        Ok(Deleted)
    }
}

/// The scope of a path. A text that is no scope token names nothing.
fn named(name: &ScopeToken) -> Result<Scope, Problem> {
    Scope::parse(&name.0).map_err(|_| Problem::not_found())
}

fn parse_description(text: String) -> Result<Description, FieldError> {
    Description::parse(text).map_err(|error| FieldError::new("#/description", error))
}

impl NewScope {
    fn parse(self, prefix: Option<&ClaimsPrefix>) -> Result<NewCatalogueScope, Problem> {
        let Self { name, description, requires, enforced, claims } = self;
        let mut errors = FieldErrors::default();
        let name = errors.take(name.parse("#/name"));
        let description = errors.take(description.map(parse_description).transpose());
        let claims = errors.take(ClaimsObject::parse(claims, prefix));
        let (Some(name), Some(description), Some(claims)) = (name, description, claims) else {
            return Err(errors.into());
        };
        Ok(NewCatalogueScope {
            name,
            description,
            requires: requires.map(Into::into).unwrap_or_default(),
            enforced: enforced.unwrap_or(true),
            claims,
        })
    }
}

impl ScopePatch {
    fn parse(self, of: &Scope, prefix: Option<&ClaimsPrefix>) -> Result<CatalogueScopePatch, Problem> {
        let Self { name, description, requires, enforced, claims } = self;
        let mut errors = FieldErrors::default();
        errors.refuse_null(&name, "#/name");
        errors.refuse_null(&requires, "#/requires");
        errors.refuse_null(&enforced, "#/enforced");
        if name.flatten().is_some_and(|name| name.0 != of.as_str()) {
            errors.take::<()>(Err(FieldError::new("#/name", "a scope's name never changes")));
        }
        let description = description.map(|text| errors.take(text.map(parse_description).transpose()).flatten());
        let claims = claims.and_then(|claims| errors.take(ClaimsObject::parse_patch(claims, prefix)));
        errors.check()?;
        let (requires, enforced) = (requires.flatten().map(Into::into), enforced.flatten());
        Ok(CatalogueScopePatch { description, requires, enforced, claims })
    }
}

impl From<CatalogueScope> for ScopeBody {
    fn from(scope: CatalogueScope) -> Self {
        let CatalogueScope { name, description, requires, enforced, claims, version, created_at, updated_at } = scope;
        Self {
            name: (&name).into(),
            description: description.map(|text| text.to_string()),
            requires: requires.into(),
            enforced,
            claims: ClaimsObject::of(&claims),
            version,
            created_at: created_at.into(),
            updated_at: updated_at.into(),
        }
    }
}

impl<'de> Deserialize<'de> for Requires {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = &["user", "client", "any", "all"];
        word(deserializer, |text| catalogue::Requires::parse(text).map(Into::into), words)
    }
}

impl From<Requires> for catalogue::Requires {
    fn from(requires: Requires) -> Self {
        match requires {
            Requires::User => Self::User,
            Requires::Client => Self::Client,
            Requires::Any => Self::Any,
            Requires::All => Self::All,
        }
    }
}

impl From<catalogue::Requires> for Requires {
    fn from(requires: catalogue::Requires) -> Self {
        match requires {
            catalogue::Requires::User => Self::User,
            catalogue::Requires::Client => Self::Client,
            catalogue::Requires::Any => Self::Any,
            catalogue::Requires::All => Self::All,
        }
    }
}

const _: () = assert!(MAX_DESCRIPTION_LENGTH == 1024, "the contract names the limit");
