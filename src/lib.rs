//! Tollgate answers the web hooks of OneWelcome Access: it keeps the OAuth scopes whose subscription is valid at that
//! instant, and removes the others.
//!
//! The layers, and the one direction in which they may use each other:
//!
//! ```text
//! main -> http -> service -> store -> entity
//!           |        |         |
//!           +--------+---------+--> domain
//! ```
//!
//! - [`domain`]: the rules. Pure: no clock, no database, no framework.
//! - [`store`]: queries. A connection in, domain values out.
//! - [`service`]: use cases. One visible transaction each, the cache, the metrics, the clock.
//! - [`http`]: wire types, handlers that translate, errors as problem documents, authentication, the server's loop.
//! - [`config`]: every setting; the only reader of the environment.
//!
//! One noun has one file name in every layer: `catalogue`, `subscription`, `decision`, `entitlement`, `facts`,
//! `change`, `token`. A test holds the code to the arrows above.

pub mod config;
pub mod domain;
pub mod http;
pub mod service;
pub mod store;
pub mod telemetry;
