//! What a change was from and to, so that changes are the history.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::dialect;

/// Adds to each change what was there before and after it.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
ALTER TABLE change ADD COLUMN before text;
ALTER TABLE change ADD COLUMN after text;
CREATE INDEX change_by_subscription ON change (subscription_id, seq) WHERE subscription_id IS NOT NULL;
CREATE INDEX change_by_scope ON change (scope, seq) WHERE scope IS NOT NULL;
CREATE INDEX subscription_deleted_by_subject ON subscription (subject_type, subject_id, id) WHERE deleted_at IS NOT NULL;
";

// A page of changes is a range of this index: in the order of transactions, and within one in the order of its writes.
const UP_ON_POSTGRES: &str = "
CREATE INDEX change_by_transaction_and_seq ON change (xid, seq);
DROP INDEX change_by_transaction;
";

const DOWN: &str = "
DROP INDEX subscription_deleted_by_subject;
DROP INDEX change_by_scope;
DROP INDEX change_by_subscription;
ALTER TABLE change DROP COLUMN after;
ALTER TABLE change DROP COLUMN before;
";

const DOWN_ON_POSTGRES: &str = "
CREATE INDEX change_by_transaction ON change (xid);
DROP INDEX change_by_transaction_and_seq;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, UP).await?;
        match manager.get_database_backend() {
            DbBackend::Postgres => dialect::execute(manager, UP_ON_POSTGRES).await,
            _ => Ok(()),
        }
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            dialect::execute(manager, DOWN_ON_POSTGRES).await?;
        }
        dialect::execute(manager, DOWN).await
    }
}
