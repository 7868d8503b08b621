//! Queries of the catalogue.

use std::collections::HashMap;

use entity::catalogue::{ActiveModel, Column, Entity, Model};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, Set, sqlx,
};

use super::{
    error::{Error, Result},
    lane::Connection,
};
use crate::domain::{
    catalogue::{Catalogue, CatalogueScope, Description, Requires, Rule},
    claims::Claims,
    scope::Scope,
};

const RULES: &str = "SELECT name, requires, enforced, claims FROM catalogue_scope";

/// The rules of all managed scopes.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection) -> Result<Catalogue> {
    let rows: Vec<(String, String, bool, Option<String>)> = match connection {
        Connection::Postgres(connection) => sqlx::query_as(RULES).fetch_all(connection).await?,
        Connection::Sqlite(connection) => sqlx::query_as(RULES).fetch_all(&mut **connection).await?,
    };
    let (mut rules, mut claims) = (Vec::with_capacity(rows.len()), HashMap::new());
    for (name, requires, enforced, text) in rows {
        let name = scope(&name)?;
        let of_scope = claims_or_none(text.as_deref());
        if !of_scope.is_empty() {
            claims.insert(name.clone(), of_scope);
        }
        rules.push((name, Rule { requires: self::requires(&requires)?, enforced }));
    }
    Ok(rules.into_iter().collect::<Catalogue>().with_claims(claims))
}

/// The scope of a name.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find<C: ConnectionTrait>(connection: &C, name: &Scope) -> Result<Option<CatalogueScope>> {
    Entity::find_by_id(name.as_str()).one(connection).await?.map(from_row).transpose()
}

/// The scope of a name, held against other writers until the transaction ends.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock(transaction: &DatabaseTransaction, name: &Scope) -> Result<Option<CatalogueScope>> {
    Entity::find_by_id(name.as_str()).lock_exclusive().one(transaction).await?.map(from_row).transpose()
}

/// Up to `limit` scopes after a name, ascending.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn list<C: ConnectionTrait>(
    connection: &C,
    after: Option<&Scope>,
    limit: u64,
) -> Result<Vec<CatalogueScope>> {
    let mut query = Entity::find().order_by_asc(Column::Name).limit(limit);
    if let Some(after) = after {
        query = query.filter(Column::Name.gt(after.as_str()));
    }
    query.all(connection).await?.into_iter().map(from_row).collect()
}

/// Which of these scopes are not in the catalogue.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn missing<C: ConnectionTrait>(connection: &C, scopes: &[Scope]) -> Result<Vec<Scope>> {
    let known: Vec<String> = Entity::find()
        .select_only()
        .column(Column::Name)
        .filter(Column::Name.is_in(scopes.iter().map(Scope::as_str)))
        .into_tuple()
        .all(connection)
        .await?;
    Ok(scopes.iter().filter(|scope| !known.iter().any(|name| name == scope.as_str())).cloned().collect())
}

/// Registers a scope.
///
/// # Errors
///
/// [`Error::Duplicate`] when its name is registered already.
pub async fn insert(transaction: &DatabaseTransaction, scope: &CatalogueScope) -> Result<()> {
    Entity::insert(to_row(scope)).exec_without_returning(transaction).await?;
    Ok(())
}

/// Writes a scope that was locked before.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn update(transaction: &DatabaseTransaction, scope: &CatalogueScope) -> Result<()> {
    to_row(scope).update(transaction).await?;
    Ok(())
}

/// Deletes a scope.
///
/// # Errors
///
/// [`Error::Reference`] when a subscription, be it a deleted one, names it.
pub async fn delete(transaction: &DatabaseTransaction, name: &Scope) -> Result<()> {
    Entity::delete_by_id(name.as_str()).exec(transaction).await?;
    Ok(())
}

fn to_row(scope: &CatalogueScope) -> ActiveModel {
    // Taken apart field by field, so that a field added to the domain cannot be forgotten here.
    let CatalogueScope { name, description, requires, enforced, claims, version, created_at, updated_at } = scope;
    ActiveModel {
        name: Set(name.as_str().to_owned()),
        description: Set(description.as_ref().map(|text| text.as_str().to_owned())),
        requires: Set(requires.as_str().to_owned()),
        enforced: Set(*enforced),
        claims: Set(claims_column(claims)),
        version: Set(*version),
        created_at: Set(*created_at),
        updated_at: Set(*updated_at),
    }
}

/// What a row holds.
pub(super) fn from_row(row: Model) -> Result<CatalogueScope> {
    let Model { name, description, requires, enforced, claims, version, created_at, updated_at } = row;
    Ok(CatalogueScope {
        name: scope(&name)?,
        description: description
            .map(|text| Description::parse(text).map_err(|_| Error::corrupt("description")))
            .transpose()?,
        requires: self::requires(&requires)?,
        enforced,
        claims: self::claims(claims.as_deref())?,
        version,
        created_at,
        updated_at,
    })
}

/// The scope that a column holds.
pub(super) fn scope(text: &str) -> Result<Scope> {
    Scope::parse(text).map_err(|_| Error::corrupt("scope"))
}

/// The claims that a column holds.
pub(super) fn claims(text: Option<&str>) -> Result<Claims> {
    text.map_or(Ok(Claims::default()), |text| Claims::from_json(text).ok_or_else(|| Error::corrupt("claims")))
}

/// The claims that a column holds, for a hook: what somebody wrote there by hand and cannot be read costs the claims,
/// and not the login.
pub(super) fn claims_or_none(text: Option<&str>) -> Claims {
    claims(text).unwrap_or_else(|_| {
        tracing::warn!("claims in the database cannot be read, and are left out");
        Claims::default()
    })
}

/// What a column holds for claims.
pub(super) fn claims_column(claims: &Claims) -> Option<String> {
    (!claims.is_empty()).then(|| claims.to_json())
}

pub(super) fn requires(word: &str) -> Result<Requires> {
    Requires::parse(word).ok_or_else(|| Error::corrupt("requires"))
}
