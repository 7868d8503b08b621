//! Two indexes that begin with the source of a subscription, told apart.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Takes the list of a source's subscriptions out of the sight of whoever looks for one external id.
///
/// Where few subscriptions have a source yet, a planner takes both indexes to be as good for an external id, and one of
/// them reads all that the source has. A row has a version of 1 or more, so that the condition leaves none out: it only
/// has to be in a query that may use the index, and is not in one that may not.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
DROP INDEX subscription_by_source;
CREATE INDEX subscription_by_source ON subscription (source, id) WHERE external_id IS NOT NULL AND version > 0;
";

const DOWN: &str = "
DROP INDEX subscription_by_source;
CREATE INDEX subscription_by_source ON subscription (source, id) WHERE external_id IS NOT NULL;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, DOWN).await
    }
}
