//! LADDER: what each layer adds to the cost of a request.

use std::{sync::Arc, time::Instant};

use super::USERS;
use crate::{
    ground::{Ground, Server, seed},
    payload::{Question, answer, echoes, questions, sorted},
    report::Report,
    rungs::Rung,
    sample::{Sample, Target, digits, duration, float},
    wire::Load,
};

/// A server, what it is asked, and what that took.
struct Step {
    name: &'static str,
    server: Server,
    load: Load,
    questions: Arc<[Question]>,
    /// Processor time of the server, in microseconds a request, by block.
    time: Sample,
    /// Requests a second, by block.
    rate: Sample,
    median: Sample,
    p99: Sample,
}

impl Step {
    async fn new(
        name: &'static str,
        server: Server,
        questions: Arc<[Question]>,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let load = Load::connect(server.address, connections).await?;
        let (time, rate, median, p99) = Default::default();
        Ok(Self { name, server, load, questions, time, rate, median, p99 })
    }

    /// A block of requests: the processor time of the server for each, in microseconds.
    async fn run(&mut self, block: usize) -> anyhow::Result<f64> {
        let before = self.server.time()?;
        let done = self.load.run(&self.questions, block).await?;
        let time = self.server.time()?.saturating_sub(before).as_secs_f64() * 1e6 / float(block);
        self.time.push(time);
        self.rate.push(done.rate());
        self.median.push(done.latencies.median());
        self.p99.push(done.latencies.quantile(990));
        Ok(time)
    }

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

/// LADDER.
pub async fn ladder(ground: &Ground) -> anyhow::Result<Report> {
    let url = ground.database().await?;
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register().await?;
    seed(&url, USERS).await?;
    let questions = questions(USERS);
    let (echoes, sorted) = (echoes(&questions), sorted(&questions));
    let mut steps = Vec::new();
    for rung in Rung::ALL {
        let (name, questions) = match rung {
            Rung::Echo => ("bare hyper, gives the body back", &echoes),
            Rung::Serde => ("hyper with serde", &questions),
            Rung::Poem => ("a JSON handler of poem", &questions),
            Rung::Openapi => ("a JSON handler of poem-openapi", &sorted),
        };
        steps.push(Step::new(name, ground.rung(rung)?, Arc::clone(questions), ground.connections).await?);
    }
    steps.push(Step::new("Tollgate, everything on", tollgate, Arc::clone(&questions), ground.connections).await?);

    let (rounds, block) = ground.pick((120, 2_000), (8, 1_000));
    for step in &mut steps {
        // The cache fills, and the connections grow to their size.
        step.load.run(&step.questions, 4 * USERS).await?;
    }
    // There and back, so that what gets slower meanwhile does so for all.
    let (last, serde) = (steps.len() - 1, 1);
    let begun = Instant::now();
    let mut ratios = vec![Sample::default(); steps.len()];
    for _ in 0..rounds {
        let mut times = vec![0.0; steps.len()];
        for place in (0..=last).chain((0..=last).rev()) {
            times[place] += steps[place].run(block).await?;
        }
        for (ratio, time) in ratios.iter_mut().zip(&times) {
            ratio.push(time / times[serde]);
        }
    }

    let mut report = Report::default();
    report.target("a cached hook : bare hyper with serde, server CPU a request", &ratios[last], Target::AtMost(1.4));
    for (step, ratio) in steps.iter().zip(&ratios) {
        report.figure(format!("{} : hyper with serde, server CPU", step.name), ratio.told());
        report.figure(step.name, step.told());
    }
    report.note(format!(
        "{rounds} rounds of {} blocks of {block} requests on {} connections in {}; {USERS} users, each answered {}",
        2 * steps.len(),
        ground.connections,
        duration(begun.elapsed()),
        String::from_utf8_lossy(&answer())
    ));
    Ok(report)
}
