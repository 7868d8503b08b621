//! The table of the management API's tokens.

use sea_orm::entity::prelude::*;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_token")]
pub struct Model {
    /// A UUID of version 7.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// Its name, which no other token ever has.
    pub name: String,
    /// The SHA-256 digest of its secret, which itself is nowhere kept.
    pub digest: Vec<u8>,
    /// `reader`, `writer` or `admin`.
    pub role: String,
    /// When it was made.
    pub created_at: DateTimeUtc,
    /// The name of the credential that made it.
    pub created_by: String,
    /// The first instant at which it has ended; null when it never does.
    pub expires_at: Option<DateTimeUtc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTimeUtc>,
    /// When it last let somebody in.
    pub last_used_at: Option<DateTimeUtc>,
}

/// The tables that refer to this one, or are referred to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
