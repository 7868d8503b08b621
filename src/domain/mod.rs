//! The rules: what a scope, a subject, a window and a subscription are, and which scopes of a request stay.
//!
//! Architecture invariant: nothing here reads a clock, a database, the environment or the network, and no type of
//! a framework appears. The present is an argument (`now`), so every boundary can be tested on the instant.

pub mod catalogue;
pub mod claims;
pub mod decision;
pub mod entitlement;
pub mod explain;
pub mod external;
pub mod facts;
pub mod holdings;
pub mod life;
mod packed;
pub mod period;
pub mod scope;
pub mod subject;
pub mod subscription;
pub mod time;
pub mod token;
pub mod window;
