//! Queries of the catalogue.

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
    scope::Scope,
};

const RULES: &str = "SELECT name, requires, enforced FROM catalogue_scope";

/// The rules of all managed scopes.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection) -> Result<Catalogue> {
    let rows: Vec<(String, String, bool)> = match connection {
        Connection::Postgres(connection) => sqlx::query_as(RULES).fetch_all(connection).await?,
        Connection::Sqlite(connection) => sqlx::query_as(RULES).fetch_all(&mut **connection).await?,
    };
    rows.into_iter()
        .map(|(name, requires, enforced)| Ok((scope(&name)?, Rule { requires: self::requires(&requires)?, enforced })))
        .collect()
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
    let CatalogueScope { name, description, requires, enforced, version, created_at, updated_at } = scope;
    ActiveModel {
        name: Set(name.as_str().to_owned()),
        description: Set(description.as_ref().map(|text| text.as_str().to_owned())),
        requires: Set(requires.as_str().to_owned()),
        enforced: Set(*enforced),
        version: Set(*version),
        created_at: Set(*created_at),
        updated_at: Set(*updated_at),
    }
}

fn from_row(row: Model) -> Result<CatalogueScope> {
    let Model { name, description, requires, enforced, version, created_at, updated_at } = row;
    Ok(CatalogueScope {
        name: scope(&name)?,
        description: description
            .map(|text| Description::parse(text).map_err(|_| Error::corrupt("description")))
            .transpose()?,
        requires: self::requires(&requires)?,
        enforced,
        version,
        created_at,
        updated_at,
    })
}

/// The scope that a column holds.
pub(super) fn scope(text: &str) -> Result<Scope> {
    Scope::parse(text).map_err(|_| Error::corrupt("scope"))
}

pub(super) fn requires(word: &str) -> Result<Requires> {
    Requires::parse(word).ok_or_else(|| Error::corrupt("requires"))
}
