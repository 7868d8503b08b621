//! The table of changes: one row for each committed write, as other replicas and the history see it.

use sea_orm::entity::prelude::*;

/// One committed write. On Postgres a row also keeps the id of its transaction, which only the database may set.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "change")]
pub struct Model {
    /// Ascends with the order of insertion, which is not the order of commits.
    #[sea_orm(primary_key)]
    pub seq: i64,
    /// When it was made, by the clock of the replica that made it.
    pub at: DateTimeUtc,
    /// The name of the credential that made it.
    pub actor: String,
    /// The id of the request that made it.
    pub request_id: String,
    /// `catalogue`, `subscription` or `token`: which noun was changed.
    pub noun: String,
    /// What was done, such as `create` or `cancel`.
    pub action: String,
    /// The catalogue scope that was changed.
    pub scope: Option<String>,
    /// The subscription that was changed.
    pub subscription_id: Option<Uuid>,
    /// The kind of the subject whose subscription was changed.
    pub subject_type: Option<String>,
    /// The id of that subject.
    pub subject_id: Option<String>,
    /// The token that was changed.
    pub token_id: Option<Uuid>,
    /// What was there before, in JSON; null when there was nothing, or nothing is to be told.
    pub before: Option<String>,
    /// What is there since, in JSON; null when there is nothing, or nothing is to be told.
    pub after: Option<String>,
}

/// The tables that refer to this one, or are referred to: none, a change outlives what it tells of.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
