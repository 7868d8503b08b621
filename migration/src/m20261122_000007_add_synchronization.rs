//! What billing systems synchronize by: the names that they give, and the keys of requests that they may repeat.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Adds the external ids of subscriptions, an index for reconciliation, and the answers of requests with a key.
#[derive(DeriveMigrationName)]
pub struct Migration;

// Deleted rows keep their external id: what the source sends later finds them. SQLite adds no constraint to a table
// that is there: each stands with the last column that it is about.
const UP: &str = "
ALTER TABLE subscription ADD COLUMN source {text};
ALTER TABLE subscription ADD COLUMN external_id {text}
    CONSTRAINT subscription_external_id_goes_with_its_source CHECK ((external_id IS NULL) = (source IS NULL));
ALTER TABLE subscription ADD COLUMN source_version {bigint}
    CONSTRAINT subscription_source_version_is_of_a_source
        CHECK (source_version IS NULL OR (external_id IS NOT NULL AND source_version >= 0));
CREATE UNIQUE INDEX subscription_by_external_id ON subscription (source, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX subscription_by_source ON subscription (source, id) WHERE external_id IS NOT NULL;
CREATE INDEX subscription_by_update ON subscription (updated_at, id);

CREATE TABLE idempotency_key (
    actor text NOT NULL,
    key {text} NOT NULL,
    digest {binary} NOT NULL,
    answered_at {timestamp} NOT NULL,
    answer text NOT NULL,
    CONSTRAINT idempotency_key_is_answered_once PRIMARY KEY (actor, key),
    CONSTRAINT idempotency_key_digest_has_32_bytes CHECK ({bytes:digest} = 32)
) {strict};
CREATE INDEX idempotency_key_by_age ON idempotency_key (answered_at);
";

const DOWN: &str = "
DROP TABLE idempotency_key;
DROP INDEX subscription_by_update;
DROP INDEX subscription_by_source;
DROP INDEX subscription_by_external_id;
ALTER TABLE subscription DROP COLUMN source_version;
ALTER TABLE subscription DROP COLUMN external_id;
ALTER TABLE subscription DROP COLUMN source;
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
