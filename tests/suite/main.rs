//! The tests: features over HTTP, contracts, layers, tables, and agreements between SQL and the domain.
//!
//! One binary, so that it is linked once. Every test that needs a database has one that nobody shares, and runs on
//! SQLite and on Postgres (`support::on_both`). A test that needs another present moves its clock; none sleeps for it.

#![expect(clippy::expect_used, reason = "a test that cannot go on says why")]

mod agreement;
mod bad_input;
mod batch;
mod bulk;
mod cache;
mod catalogue;
mod claims;
mod command;
mod console;
mod contract;
mod credentials;
mod described;
mod documents;
mod domain;
mod entitlement;
mod explain;
mod feed;
mod history;
mod hook;
mod issuer;
mod jwt;
mod layering;
mod life;
mod operations;
mod outage;
mod pages;
mod plan;
mod process;
mod proxy;
mod roles;
mod schema;
mod server;
mod simulation;
mod subscription;
mod support;
mod sync;
mod tls;
mod token;
mod traces;
mod upgrade;
mod watch;
