//! SCALE: whether a check costs more in a large database.

use super::{Fresh, misses};
use crate::{
    ground::{Ground, Server, postmaster, seed},
    processor,
    report::{Point, Report},
    sample::{Sample, Target, digits, duration, float},
    wire::Load,
};

/// Connections, each of which asks again when it is answered.
const CONNECTIONS: usize = 8;

/// A database of a size, and the service on it.
struct Size {
    subscriptions: u64,
    tollgate: Server,
    load: Load,
    fresh: Fresh,
    /// Processor time a check, in microseconds, by block: of the service, and of Postgres.
    service: Sample,
    postgres: Sample,
    /// Times to the answer, in microseconds, by block.
    median: Sample,
    p99: Sample,
}

impl Size {
    fn new(subscriptions: u64, tollgate: Server) -> anyhow::Result<Self> {
        let load = Load::connect(tollgate.address, CONNECTIONS)?;
        let fresh = Fresh::new(subscriptions);
        let [service, postgres, median, p99] = [const { Sample::new() }; 4];
        Ok(Self { subscriptions, tollgate, load, fresh, service, postgres, median, p99 })
    }

    /// A block of requests: the processor time of the service and of Postgres for each, in microseconds.
    async fn run(&mut self, server: u32, block: usize) -> anyhow::Result<f64> {
        let questions = self.fresh.take(block);
        let before = (self.tollgate.time()?, processor::time_with_children(server)?);
        let done = self.load.run(&questions, block).await?;
        let after = (self.tollgate.time()?, processor::time_with_children(server)?);
        let each = |before, after: std::time::Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / float(block);
        let (service, postgres) = (each(before.0, after.0), each(before.1, after.1));
        self.service.push(service);
        self.postgres.push(postgres);
        self.median.push(done.latencies.median());
        self.p99.push(done.latencies.quantile(990));
        Ok(service + postgres)
    }
}

/// A service on a database of this size.
async fn fill(ground: &Ground, subscriptions: u64) -> anyhow::Result<Server> {
    let url = ground.database().await?;
    // The smallest has fewer subjects than there are requests: what is read is not believed for long.
    let tollgate = ground.tollgate(&url, &[("TOLLGATE_MAX_AGE", "200ms")]).await?;
    tollgate.register()?;
    seed(&url, subscriptions, false).await?;
    Ok(tollgate)
}

/// SCALE.
pub async fn scale(ground: &Ground) -> anyhow::Result<Report> {
    let counts: &[u64] = ground.pick(&[10_000, 1_000_000, 10_000_000], &[10_000, 100_000]);
    let mut filled = Vec::new();
    let begun = std::time::Instant::now();
    for count in counts {
        filled.push((*count, fill(ground, *count).await?));
    }
    let seeded = duration(begun.elapsed());
    // Only now: a connection that idles for long is closed.
    let mut sizes = Vec::new();
    for (count, tollgate) in filled {
        sizes.push(Size::new(count, tollgate)?);
    }
    let server = postmaster(&ground.database().await?).await?;
    let (rounds, block) = ground.pick((60, 2_000), (4, 1_000));
    for size in &mut sizes {
        size.run(server, 4 * block).await?;
    }
    let mut missed = Vec::new();
    for size in &mut sizes {
        [size.service, size.postgres, size.median, size.p99] = [const { Sample::new() }; 4];
        missed.push(misses(&size.tollgate)?);
    }
    let mut ratios = vec![Sample::new(); sizes.len()];
    let mut latency_ratios = vec![Sample::new(); sizes.len()];
    for _ in 0..rounds {
        let mut times = vec![0.0; sizes.len()];
        for place in (0..sizes.len()).chain((0..sizes.len()).rev()) {
            times[place] += sizes[place].run(server, block).await?;
        }
        for (ratio, time) in ratios.iter_mut().zip(&times) {
            ratio.push(time / times[0]);
        }
    }
    for (ratio, size) in latency_ratios.iter_mut().zip(&sizes) {
        *ratio = size.median.pairs(&sizes[0].median).map(|(large, small)| large / small).collect();
    }

    let mut report = Report::default();
    let last = sizes.len() - 1;
    report.target(
        format!("uncached CPU at {} : at {} subscriptions", sizes[last].subscriptions, sizes[0].subscriptions),
        &ratios[last],
        Target::AtMost(1.3),
    );
    report.figure("the same, median time to the answer", latency_ratios[last].told());
    for ((size, ratio), before) in sizes.iter().zip(&ratios).zip(missed) {
        let missed = (misses(&size.tollgate)? - before) / float(2 * rounds * block);
        let [service, postgres, median, p99] =
            [&size.service, &size.postgres, &size.median, &size.p99].map(|sample| digits(sample.median()));
        report.figure(
            format!("{} subscriptions", size.subscriptions),
            format!(
                "{} : 1; service {service} µs and Postgres {postgres} µs a check; p50 {median} µs, p99 {p99} µs; {missed:.2} \
                subjects a check not in the cache",
                ratio.told(),
            ),
        );
        #[expect(clippy::cast_precision_loss, reason = "some millions")]
        report.points.push(Point {
            subscriptions: size.subscriptions as f64,
            service: size.service.median(),
            postgres: size.postgres.median(),
            latency: size.median.median(),
        });
    }
    report.note(format!(
        "{rounds} rounds of {} blocks of {block} requests on {CONNECTIONS} connections; the databases were filled in \
        {seeded}; Postgres has 128 MB of shared buffers, what is larger comes from the system's cache",
        2 * sizes.len()
    ));
    Ok(report)
}
