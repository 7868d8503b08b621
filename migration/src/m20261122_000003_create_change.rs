//! The changes: one row for each committed write.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::dialect;

/// Creates the table of changes.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
CREATE TABLE change (
    seq {identity},
    {xid}
    at {timestamp} NOT NULL,
    actor text NOT NULL,
    request_id text NOT NULL,
    noun text NOT NULL,
    action text NOT NULL,
    scope {text},
    subscription_id {uuid},
    subject_type {text},
    subject_id {text},
    CONSTRAINT change_noun_is_known CHECK (noun IN ('catalogue', 'subscription')),
    CONSTRAINT change_of_the_catalogue_names_its_scope CHECK (noun <> 'catalogue' OR scope IS NOT NULL),
    CONSTRAINT change_of_a_subscription_names_it_and_its_subject CHECK (noun <> 'subscription' OR
        (subscription_id IS NOT NULL AND subject_type IS NOT NULL AND subject_id IS NOT NULL))
) {strict};
";

// Rows become visible in the order of commits, which neither `seq` nor `at` follows: a reader of the feed asks for all
// visible rows from a transaction id on.
const INDEX_ON_POSTGRES: &str = "CREATE INDEX change_by_transaction ON change (xid);";

const DOWN: &str = "DROP TABLE change;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, UP).await?;
        match manager.get_database_backend() {
            DbBackend::Postgres => dialect::execute(manager, INDEX_ON_POSTGRES).await,
            _ => Ok(()),
        }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, DOWN).await
    }
}
