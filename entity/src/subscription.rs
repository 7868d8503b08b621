//! The table of subscriptions.

use sea_orm::entity::prelude::*;

/// A subscription, but for its scopes.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "subscription")]
pub struct Model {
    /// A UUID of version 7.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// `user` or `client`.
    pub subject_type: String,
    /// The id of the user or client.
    pub subject_id: String,
    /// The first instant of its window.
    pub valid_from: DateTimeUtc,
    /// The first instant after its window; null when open-ended.
    pub valid_until: Option<DateTimeUtc>,
    /// The first instant after the grace that follows its window; null when there is none.
    pub grace_until: Option<DateTimeUtc>,
    /// The first instant of its pause.
    pub paused_from: Option<DateTimeUtc>,
    /// The first instant after its pause; null when there is none, or nobody has resumed it yet.
    pub paused_until: Option<DateTimeUtc>,
    /// The first instant at which it is canceled.
    pub canceled_at: Option<DateTimeUtc>,
    /// Its claims, a JSON object; null when it has none.
    pub claims: Option<String>,
    /// When it was deleted; a deleted one counts in no decision and shows in no answer.
    pub deleted_at: Option<DateTimeUtc>,
    /// The system that gave its external id.
    pub source: Option<String>,
    /// The id that this system knows it by.
    pub external_id: Option<String>,
    /// That system's version of what was written last.
    pub source_version: Option<i64>,
    /// Counts changes, from 1.
    pub version: i64,
    /// When it was recorded.
    pub created_at: DateTimeUtc,
    /// When it was last changed.
    pub updated_at: DateTimeUtc,
}

/// The tables that refer to this one, or are referred to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    /// The scopes that it names.
    #[sea_orm(has_many = "super::subscription_scope::Entity")]
    Scope,
}

impl Related<super::subscription_scope::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Scope.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
