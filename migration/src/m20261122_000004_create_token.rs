//! The tokens of the management API, and their changes.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

use crate::dialect;

/// Creates the table of tokens, and lets changes be of one.
#[derive(DeriveMigrationName)]
pub struct Migration;

const UP: &str = "
CREATE TABLE api_token (
    id {uuid} NOT NULL,
    name {text} NOT NULL,
    digest {binary} NOT NULL,
    role text NOT NULL,
    created_at {timestamp} NOT NULL,
    created_by text NOT NULL,
    expires_at {timestamp},
    revoked_at {timestamp},
    last_used_at {timestamp},
    CONSTRAINT api_token_id_is_unique PRIMARY KEY (id),
    CONSTRAINT api_token_name_is_given_once UNIQUE (name),
    CONSTRAINT api_token_digest_is_unique UNIQUE (digest),
    CONSTRAINT api_token_name_has_1_to_64_plain_characters CHECK ({token_name:name}),
    CONSTRAINT api_token_digest_has_32_bytes CHECK ({bytes:digest} = 32),
    CONSTRAINT api_token_role_is_known CHECK (role IN ('reader', 'writer', 'admin')),
    CONSTRAINT api_token_ends_after_it_was_made CHECK (expires_at > created_at),
    CONSTRAINT api_token_end_has_a_year_of_four_digits CHECK ({in_years:expires_at})
) {strict};
";

const DOWN: &str = "DROP TABLE api_token;";

const CHANGES_UP_ON_POSTGRES: &str = "
ALTER TABLE change
    ADD COLUMN token_id {uuid},
    DROP CONSTRAINT change_noun_is_known,
    ADD CONSTRAINT change_noun_is_known CHECK (noun IN ('catalogue', 'subscription', 'token')),
    ADD CONSTRAINT change_of_a_token_names_it CHECK (noun <> 'token' OR token_id IS NOT NULL);
";

const CHANGES_DOWN_ON_POSTGRES: &str = "
DELETE FROM change WHERE noun = 'token';
ALTER TABLE change
    DROP CONSTRAINT change_of_a_token_names_it,
    DROP CONSTRAINT change_noun_is_known,
    ADD CONSTRAINT change_noun_is_known CHECK (noun IN ('catalogue', 'subscription')),
    DROP COLUMN token_id;
";

// SQLite cannot change a constraint: the table is made anew. Where it counts its rows goes along, so that none gets the
// number of one that was pruned.
const CHANGES_UP_ON_SQLITE: &str = "
CREATE TABLE new_change (
    seq {identity},
    at {timestamp} NOT NULL,
    actor text NOT NULL,
    request_id text NOT NULL,
    noun text NOT NULL,
    action text NOT NULL,
    scope {text},
    subscription_id {uuid},
    subject_type {text},
    subject_id {text},
    token_id {uuid},
    CONSTRAINT change_noun_is_known CHECK (noun IN ('catalogue', 'subscription', 'token')),
    CONSTRAINT change_of_the_catalogue_names_its_scope CHECK (noun <> 'catalogue' OR scope IS NOT NULL),
    CONSTRAINT change_of_a_subscription_names_it_and_its_subject CHECK (noun <> 'subscription' OR
        (subscription_id IS NOT NULL AND subject_type IS NOT NULL AND subject_id IS NOT NULL)),
    CONSTRAINT change_of_a_token_names_it CHECK (noun <> 'token' OR token_id IS NOT NULL)
) {strict};
INSERT INTO new_change (seq, at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id)
    SELECT seq, at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id FROM change;
DELETE FROM sqlite_sequence WHERE name = 'new_change';
INSERT INTO sqlite_sequence (name, seq) SELECT 'new_change', seq FROM sqlite_sequence WHERE name = 'change';
DROP TABLE change;
ALTER TABLE new_change RENAME TO change;
";

const CHANGES_DOWN_ON_SQLITE: &str = "
CREATE TABLE new_change (
    seq {identity},
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
INSERT INTO new_change (seq, at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id)
    SELECT seq, at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id FROM change
    WHERE noun <> 'token';
DELETE FROM sqlite_sequence WHERE name = 'new_change';
INSERT INTO sqlite_sequence (name, seq) SELECT 'new_change', seq FROM sqlite_sequence WHERE name = 'change';
DROP TABLE change;
ALTER TABLE new_change RENAME TO change;
";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, UP).await?;
        let changes = match manager.get_database_backend() {
            DbBackend::Postgres => CHANGES_UP_ON_POSTGRES,
            _ => CHANGES_UP_ON_SQLITE,
        };
        dialect::execute(manager, changes).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let changes = match manager.get_database_backend() {
            DbBackend::Postgres => CHANGES_DOWN_ON_POSTGRES,
            _ => CHANGES_DOWN_ON_SQLITE,
        };
        dialect::execute(manager, changes).await?;
        dialect::execute(manager, DOWN).await
    }
}
