//! MEMORY: what a cached subject takes.

use std::time::Instant;

use tollgate::domain::{facts::Facts, life::Life, scope::Scope, subject::Subject};

use super::Fresh;
use crate::{
    ground::{Ground, seed},
    payload::{ENDED, HELD, user},
    processor,
    report::Report,
    sample::{Target, digits, duration, float},
    wire::Load,
};

/// Connections that fill the cache.
const CONNECTIONS: usize = 64;
/// An instant, in bytes.
const INSTANT: usize = 8;

/// MEMORY.
pub async fn memory(ground: &Ground) -> anyhow::Result<Report> {
    let users: usize = ground.pick(1_000_000, 50_000);
    let url = ground.database().await?;
    // Nothing is asked for twice.
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register().await?;
    seed(&url, users as u64, true).await?;
    let mut load = Load::connect(tollgate.address, CONNECTIONS).await?;
    let mut fresh = Fresh::new(users as u64);
    // Connections, buffers and the first pages of everything are there.
    let first = 5_000;
    load.run(&fresh.take(first), first).await?;
    let entries = async || tollgate.metric(r#"tollgate_cache_entries{cache="held"}"#).await;
    let (before, entries_before) = (processor::resident(tollgate.pid())?, entries().await?);
    let begun = Instant::now();
    let mut left = users - first;
    while left > 0 {
        let count = left.min(20_000);
        load.run(&fresh.take(count), count).await?;
        left -= count;
    }
    let took = begun.elapsed();
    let (after, entries_after) = (processor::resident(tollgate.pid())?, entries().await?);
    let more = entries_after - entries_before;
    anyhow::ensure!(more > float(users - first) * 0.99, "only {entries_after} subjects are in the cache");

    // The kind and the id of the subject; of each scope its name, and the instants between which it is held.
    let facts = 1 + user(0).len() + (HELD.len() + INSTANT) + (ENDED.len() + 2 * INSTANT);
    #[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
    let each = (after - before) as f64 / more;
    let weighed = tollgate.metric(r#"tollgate_cache_bytes{cache="held"}"#).await? / entries_after;
    let mut report = Report::default();
    report.exact("memory of a cached subject : its facts", each / float(facts), Target::AtMost(4.0));
    report.figure(
        "memory of a cached subject",
        format!(
            "{} bytes resident; facts {facts} bytes: kind and id {}, two scope names {}, three instants {}",
            digits(each),
            1 + user(0).len(),
            HELD.len() + ENDED.len(),
            3 * INSTANT
        ),
    );
    report.figure(
        "where it goes",
        format!(
            "{} bytes as the cache weighs it; among them the key {}, the facts {} and for each scope its place {} and a life \
            of {}; the rest is the map's own, and what the allocator rounds up",
            digits(weighed),
            size_of::<Subject>(),
            size_of::<Facts>(),
            size_of::<(Scope, Box<[Life]>)>(),
            size_of::<Life>()
        ),
    );
    report.figure(
        format!("time to warm {users} subjects"),
        format!(
            "{}, {} a second on {CONNECTIONS} connections",
            duration(took),
            digits(float(users - first) / took.as_secs_f64())
        ),
    );
    report.note(format!(
        "resident memory of the process grew by {} MB while {more:.0} subjects with two subscriptions each came into the \
        cache",
        (after - before) / 1_000_000
    ));
    Ok(report)
}
