//! MEMORY: what a cached subject takes.

use std::time::Instant;

use tollgate::domain::{facts::Facts, scope::Scope, window::Window};

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
    tollgate.register()?;
    seed(&url, users as u64, true).await?;
    let mut load = Load::connect(tollgate.address, CONNECTIONS)?;
    let mut fresh = Fresh::new(users as u64);
    // Connections, buffers and the first pages of everything are there.
    let first = 5_000;
    load.run(&fresh.take(first), first).await?;
    let entries = || tollgate.metric(r#"tollgate_cache_entries{cache="held"}"#);
    let (before, entries_before) = (processor::resident(tollgate.pid())?, entries()?);
    let begun = Instant::now();
    let mut left = users - first;
    while left > 0 {
        let count = left.min(20_000);
        load.run(&fresh.take(count), count).await?;
        left -= count;
    }
    let took = begun.elapsed();
    let (after, entries_after) = (processor::resident(tollgate.pid())?, entries()?);
    let more = entries_after - entries_before;
    anyhow::ensure!(more > float(users - first) * 0.99, "only {entries_after} subjects are in the cache");

    // The kind and the id of the subject; of each scope its name, and the instants between which it is held.
    let facts = 1 + user(0).len() + (HELD.len() + INSTANT) + (ENDED.len() + 2 * INSTANT);
    #[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
    let each = (after - before) as f64 / more;
    let weighed = tollgate.metric(r#"tollgate_cache_bytes{cache="held"}"#)? / entries_after;
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
    let (id, packed) = (1 + user(0).len(), packed_bytes()?);
    let slot = weighed - float(id + packed);
    report.figure(
        "where it goes",
        format!(
            "{} bytes as the cache weighs it: its kind and id {id}, the two lives packed with the names of their scopes \
            {packed}, and {} of a slot of the map, the way to it and what the allocator adds; the slot has the address of \
            the id in 16 bytes, the addresses of the facts in {}, when and at which state of knowledge they were read in \
            32, and what tells the map when to evict it; {} bytes more are resident than weighed",
            digits(weighed),
            digits(slot),
            size_of::<Facts>(),
            digits(each - weighed)
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

/// What the facts of a user of the bench take on the heap.
fn packed_bytes() -> anyhow::Result<usize> {
    let life = |until: Option<&str>| -> anyhow::Result<_> {
        Ok(Window::new("2020-01-01T00:00:00Z".parse()?, until.map(str::parse).transpose()?)?.into())
    };
    let named = vec![(Scope::parse(HELD)?, life(None)?), (Scope::parse(ENDED)?, life(Some("2021-01-01T00:00:00Z"))?)];
    Ok(Facts::new(named).heap_bytes())
}
