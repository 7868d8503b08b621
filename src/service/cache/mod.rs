//! The cache: facts, not verdicts.
//!
//! What a subject holds changes when somebody writes; whether it is active changes by itself. So the cache keeps the
//! subject's subscriptions as intervals, each request compares them with its own `now`, and no timer can be late.
//!
//! Three promises:
//!
//! 1. A request that starts after a write's success was answered never sees facts read before that commit: not from
//!    an entry, not by joining a load that was under way, not because a slow load was stored late.
//! 2. Entries outlive doubt. What is uncertain is asked again, and not thrown away.
//! 3. An entry is never overwritten by older facts.
//!
//! They rest on stamps. A [`Stamp`](generations::Stamp) is taken before a query begins, and what the query finds is
//! kept with it. A writer commits, then moves the stamp, then answers. Facts are fresh while their stamp is still
//! the present one: then no write was answered between their query and now.

mod catalogue;
mod facts;
mod generations;

pub use catalogue::CatalogueCache;
pub use facts::{CacheSize, FactsCache};
