//! The steps that make, and unmake, Tollgate's tables on SQLite and Postgres.
//!
//! Each step is written for both databases in one text, so that they cannot drift apart; [`dialect`] holds the few
//! words in which they differ. A step is never edited once released: a later change is a later step, and one that an
//! older binary can live with (expand first, contract a release later).

use sea_orm_migration::{
    prelude::{DbErr, SchemaManager},
    sea_orm::{ConnectionTrait, DbBackend, EntityTrait as _, Statement},
    seaql_migrations,
};

pub use sea_orm_migration::prelude::{MigrationTrait, MigratorTrait};

mod dialect;
mod m20261122_000001_create_catalogue;
mod m20261122_000002_create_subscription;
mod m20261122_000003_create_change;
mod m20261122_000004_create_token;
mod m20261122_000005_add_pause_and_grace;
mod m20261122_000006_keep_history;
mod m20261122_000007_add_synchronization;
mod m20261122_000008_add_claims;
mod m20261122_000009_part_indexes_of_sources;

/// All steps, in order.
#[derive(Debug)]
pub struct Migrator;

#[sea_orm_migration::async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_create_catalogue::Migration),
            Box::new(m20261122_000002_create_subscription::Migration),
            Box::new(m20261122_000003_create_change::Migration),
            Box::new(m20261122_000004_create_token::Migration),
            Box::new(m20261122_000005_add_pause_and_grace::Migration),
            Box::new(m20261122_000006_keep_history::Migration),
            Box::new(m20261122_000007_add_synchronization::Migration),
            Box::new(m20261122_000008_add_claims::Migration),
            Box::new(m20261122_000009_part_indexes_of_sources::Migration),
        ]
    }
}

/// The names of the steps that were taken, in whatever version; none when there are no tables at all.
///
/// It only reads, so a role that owns no table may ask.
///
/// # Errors
///
/// [`DbErr`] when the database cannot be asked.
pub async fn applied<C: ConnectionTrait>(connection: &C) -> Result<Vec<String>, DbErr>
where
    for<'c> &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
{
    if !are_listed(connection).await? {
        return Ok(Vec::new());
    }
    let rows = seaql_migrations::Entity::find().all(connection).await?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// Whether there is a list of the steps.
async fn are_listed<C: ConnectionTrait>(connection: &C) -> Result<bool, DbErr>
where
    for<'c> &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
{
    if connection.get_database_backend() != DbBackend::Postgres {
        return SchemaManager::new(connection).has_table("seaql_migrations").await;
    }
    // The library asks for tables on which the role has rights. One that may not read the list would be told that no
    // step was taken, and its operator to take them; here it goes on, and is refused the list by name.
    let sql = "SELECT to_regclass(quote_ident(current_schema()) || '.seaql_migrations') IS NOT NULL";
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    connection.query_one_raw(statement).await?.map_or(Ok(false), |row| row.try_get_by_index(0))
}
