//! The table of managed scopes.

use sea_orm::entity::prelude::*;

/// A managed scope.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "catalogue_scope")]
pub struct Model {
    /// The scope token.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// What it stands for, in words.
    pub description: Option<String>,
    /// `user`, `client`, `any` or `all`.
    pub requires: String,
    /// Whether it is taken away from those who do not hold it.
    pub enforced: bool,
    /// Its claims, a JSON object; null when it has none.
    pub claims: Option<String>,
    /// Counts changes, from 1.
    pub version: i64,
    /// When it was registered.
    pub created_at: DateTimeUtc,
    /// When it was last changed.
    pub updated_at: DateTimeUtc,
}

/// The tables that refer to this one, or are referred to.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
