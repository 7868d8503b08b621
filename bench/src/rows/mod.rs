//! What is measured, row by row.

use std::{pin::Pin, sync::Arc};

use crate::{
    ground::{Ground, Server},
    payload::{Question, questions, scattered},
    processor,
    report::Report,
    sample::{Sample, digits, float},
    wire::Load,
};

mod alloc;
mod auth;
mod ladder;
mod memory;
mod scale;
mod tail;
mod uncached;
mod writes;

/// The users that cached rows ask for.
pub const USERS: u64 = 512;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Report>> + 'a>>;

/// What is measured together.
pub struct Row {
    /// Its name, as an argument.
    pub name: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// Measures it.
    pub run: for<'a> fn(&'a Ground) -> Running<'a>,
}

/// All rows.
pub const ROWS: [Row; 8] = [
    Row {
        name: "LADDER",
        title: "hook requests answered from the cache, with authentication, metrics and logs, against servers that do less",
        run: |ground| Box::pin(ladder::ladder(ground)),
    },
    Row {
        name: "AUTH",
        title: "what it costs to know the caller",
        run: |ground| Box::pin(auth::authentication(ground)),
    },
    Row {
        name: "ALLOC",
        title: "allocations and system calls of a hook request answered from the cache",
        run: |ground| Box::pin(alloc::allocations(ground)),
    },
    Row {
        name: "TAIL",
        title: "the slowest answers at half of the rate that the service can do, asked at random instants",
        run: |ground| Box::pin(tail::tail(ground)),
    },
    Row {
        name: "UNCACHED",
        title: "hook requests for subjects never asked for before, against the same statement alone",
        run: |ground| Box::pin(uncached::uncached(ground)),
    },
    Row { name: "MEMORY", title: "a million subjects in the cache", run: |ground| Box::pin(memory::memory(ground)) },
    Row {
        name: "SCALE",
        title: "hook requests that are not answered from the cache, by the size of the database",
        run: |ground| Box::pin(scale::scale(ground)),
    },
    Row {
        name: "WRITES",
        title: "single writes with and without the change feed, imports against COPY",
        run: |ground| Box::pin(writes::writes(ground)),
    },
];

/// Questions about users that were not asked about before, as long as there are any.
struct Fresh {
    users: Box<dyn Iterator<Item = u64>>,
}

impl Fresh {
    fn new(below: u64) -> Self {
        Self { users: Box::new(scattered(below)) }
    }

    fn take(&mut self, count: usize) -> Arc<[Question]> {
        questions(self.users.by_ref().take(count))
    }
}

/// How many subjects the service did not find in its cache.
fn misses(tollgate: &Server) -> anyhow::Result<f64> {
    tollgate.metric(r#"tollgate_cache_lookups_total{result="miss"}"#)
}

/// A server, what it is asked, and what that took.
struct Step {
    name: &'static str,
    pid: u32,
    load: Load,
    questions: Arc<[Question]>,
    /// Processor time of the server, in microseconds a request, by block.
    time: Sample,
    /// Requests a second, by block.
    rate: Sample,
    /// Times to the answer, in microseconds, by block.
    median: Sample,
    p99: Sample,
}

impl Step {
    fn new(
        name: &'static str,
        server: &Server,
        questions: &Arc<[Question]>,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let load = Load::connect(server.address, connections)?;
        let (time, rate, median, p99) = Default::default();
        Ok(Self { name, pid: server.pid(), load, questions: Arc::clone(questions), time, rate, median, p99 })
    }

    /// A block of requests: the processor time of the server for each, in microseconds.
    async fn run(&mut self, block: usize) -> anyhow::Result<f64> {
        let before = processor::time(self.pid)?;
        let done = self.load.run(&self.questions, block).await?;
        let time = processor::time(self.pid)?.saturating_sub(before).as_secs_f64() * 1e6 / float(block);
        self.time.push(time);
        self.rate.push(done.rate());
        self.median.push(done.latencies.median());
        self.p99.push(done.latencies.quantile(990));
        Ok(time)
    }

    /// The processor time in words, and throughput and latency beside it.
    fn told(&self) -> String {
        format!(
            "{} µs a request (half between {} and {}); {} a second, p50 {} µs, p99 {} µs",
            digits(self.time.median()),
            digits(self.time.quantile(250)),
            digits(self.time.quantile(750)),
            digits(self.rate.median()),
            digits(self.median.median()),
            digits(self.p99.median())
        )
    }
}

/// Runs blocks there and back, so that what gets slower meanwhile does so for all: the processor time of each step in
/// shares of that of one of them, by round.
async fn race(steps: &mut [Step], base: usize, rounds: usize, block: usize) -> anyhow::Result<Vec<Sample>> {
    let mut ratios = vec![Sample::default(); steps.len()];
    for _ in 0..rounds {
        let mut times = vec![0.0; steps.len()];
        for place in (0..steps.len()).chain((0..steps.len()).rev()) {
            times[place] += steps[place].run(block).await?;
        }
        for (ratio, time) in ratios.iter_mut().zip(&times) {
            ratio.push(time / times[base]);
        }
    }
    Ok(ratios)
}
