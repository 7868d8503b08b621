//! Claims of scopes and subscriptions.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Adds what a token is told about a scope or a subscription: a JSON object.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
ALTER TABLE catalogue_scope ADD COLUMN claims text
    CONSTRAINT catalogue_scope_claims_have_1_to_1024_bytes CHECK ({bytes:claims} BETWEEN 1 AND 1024);
ALTER TABLE subscription ADD COLUMN claims text
    CONSTRAINT subscription_claims_have_1_to_1024_bytes CHECK ({bytes:claims} BETWEEN 1 AND 1024);
";

const DOWN: &str = "
ALTER TABLE subscription DROP COLUMN claims;
ALTER TABLE catalogue_scope DROP COLUMN claims;
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
