//! Queries: a connection in, domain values out.
//!
//! Architecture invariant: free functions, one file a noun; none begins or commits a transaction, reads the clock or
//! decides a rule. Where SQL has to repeat a rule of the domain (the filters of a list), an agreement test compares
//! the two at every boundary. Uniqueness and references are the database's verdict: insert, and read its answer.

pub mod bulk;
pub mod catalogue;
pub mod change;
pub mod database;
pub mod error;
pub mod facts;
pub mod history;
pub mod idempotency;
pub mod image;
pub mod inspection;
pub mod lane;
pub mod schema;
pub mod subscription;
pub mod token;

pub use database::Database;
pub use error::{Error, Result};
