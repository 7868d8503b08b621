//! The rows of Tollgate's tables, one file a table, without behaviour.
//!
//! Architecture invariant: no rule of the domain stands here. A row is what the database keeps; `store` turns rows
//! into domain values and back, and nothing above `store` sees one.

pub mod catalogue;
pub mod change;
pub mod idempotency_key;
pub mod subscription;
pub mod subscription_scope;
pub mod token;
