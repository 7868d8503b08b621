//! A pause and a grace in the life of a subscription.

use sea_orm_migration::prelude::*;

use crate::dialect;

/// Adds when a subscription is paused, and until when it grants its scopes after its window.
#[derive(DeriveMigrationName)]
pub struct Migration;

// SQLite adds no constraint to a table that is there: each stands with the last column that it is about, and goes when
// that column goes.
const UP: &str = "
ALTER TABLE subscription ADD COLUMN grace_until {timestamp}
    CONSTRAINT subscription_grace_ends_after_the_window
        CHECK (grace_until IS NULL OR (valid_until IS NOT NULL AND grace_until > valid_until));
ALTER TABLE subscription ADD COLUMN paused_from {timestamp};
ALTER TABLE subscription ADD COLUMN paused_until {timestamp}
    CONSTRAINT subscription_pause_ends_after_it_starts
        CHECK (paused_until IS NULL OR (paused_from IS NOT NULL AND paused_until > paused_from))
    CONSTRAINT subscription_grace_and_pause_have_years_of_four_digits
        CHECK ({in_years:grace_until} AND {in_years:paused_from} AND {in_years:paused_until});
";

const DOWN: &str = "
ALTER TABLE subscription DROP COLUMN paused_until;
ALTER TABLE subscription DROP COLUMN paused_from;
ALTER TABLE subscription DROP COLUMN grace_until;
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
