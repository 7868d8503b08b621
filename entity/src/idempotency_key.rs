//! The table of requests that were done, by the keys that their senders gave them.

use sea_orm::entity::prelude::*;

/// A request with a key, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_key")]
pub struct Model {
    /// The name of the credential that sent it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub actor: String,
    /// The key.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// The SHA-256 digest of what was asked for.
    pub digest: Vec<u8>,
    /// When it was answered.
    pub answered_at: DateTimeUtc,
    /// What the answer was made from, in JSON.
    pub answer: String,
}

/// The tables that refer to this one, or are referred to: none.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
