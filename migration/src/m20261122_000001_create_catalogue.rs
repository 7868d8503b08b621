//! The catalogue of managed scopes.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Creates the catalogue.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
CREATE TABLE catalogue_scope (
    name {text} NOT NULL,
    description text,
    requires text NOT NULL,
    enforced {boolean} NOT NULL,
    version {bigint} NOT NULL,
    created_at {timestamp} NOT NULL,
    updated_at {timestamp} NOT NULL,
    CONSTRAINT catalogue_scope_is_registered_once PRIMARY KEY (name),
    CONSTRAINT catalogue_scope_name_is_a_scope_token CHECK ({scope_token:name}),
    CONSTRAINT catalogue_scope_requires_is_known CHECK (requires IN ('user', 'client', 'any', 'all')),
    CONSTRAINT catalogue_scope_version_counts_from_1 CHECK (version >= 1)
) {strict};
";

const DOWN: &str = "DROP TABLE catalogue_scope;";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, DOWN).await
    }
}
