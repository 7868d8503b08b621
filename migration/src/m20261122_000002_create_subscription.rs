//! Subscriptions and the scopes that they name.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Creates subscriptions with their scopes.
#[derive(DeriveMigrationName)]
pub struct Migration;

// `subscription_live_by_subject` answers the hook: one range of it holds all that may still matter for a subject. It
// ends in `id`, so that it also serves the list of a subject's subscriptions, page by page.
const UP: &str = "
CREATE TABLE subscription (
    id {uuid} NOT NULL,
    subject_type {text} NOT NULL,
    subject_id {text} NOT NULL,
    valid_from {timestamp} NOT NULL,
    valid_until {timestamp},
    canceled_at {timestamp},
    deleted_at {timestamp},
    version {bigint} NOT NULL,
    created_at {timestamp} NOT NULL,
    updated_at {timestamp} NOT NULL,
    CONSTRAINT subscription_id_is_unique PRIMARY KEY (id),
    CONSTRAINT subscription_subject_type_is_known CHECK (subject_type IN ('user', 'client')),
    CONSTRAINT subscription_subject_id_has_1_to_1024_bytes CHECK ({bytes:subject_id} BETWEEN 1 AND 1024),
    CONSTRAINT subscription_ends_after_it_starts CHECK (valid_until > valid_from),
    CONSTRAINT subscription_times_have_years_of_four_digits CHECK ({in_years:valid_from} AND {in_years:valid_until}
        AND {in_years:canceled_at}),
    CONSTRAINT subscription_version_counts_from_1 CHECK (version >= 1)
) {strict};

CREATE INDEX subscription_live_by_subject ON subscription (subject_type, subject_id, id) WHERE deleted_at IS NULL;

CREATE TABLE subscription_scope (
    subscription_id {uuid} NOT NULL,
    scope {text} NOT NULL,
    CONSTRAINT subscription_names_each_scope_once PRIMARY KEY (subscription_id, scope),
    CONSTRAINT subscription_scope_belongs_to_a_subscription
        FOREIGN KEY (subscription_id) REFERENCES subscription (id) ON DELETE CASCADE,
    CONSTRAINT subscription_scope_is_in_the_catalogue
        FOREIGN KEY (scope) REFERENCES catalogue_scope (name) ON DELETE RESTRICT
) {strict};

CREATE INDEX subscription_scope_by_scope ON subscription_scope (scope, subscription_id);
";

const DOWN: &str = "
DROP TABLE subscription_scope;
DROP TABLE subscription;
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
