//! TAIL: the slowest answers when requests come at random instants, whether or not earlier ones were answered.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::USERS;
use crate::{
    ground::{Ground, seed},
    payload::{Question, echoes, questions},
    report::Report,
    rungs::Rung,
    sample::{Sample, Target, digits, float},
    wire::{Load, Wires},
};

/// TAIL.
pub async fn tail(ground: &Ground) -> anyhow::Result<Report> {
    let url = ground.database().await?;
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register()?;
    seed(&url, USERS, true).await?;
    let questions = questions(0..USERS);
    let (echo, serde) = (ground.rung(Rung::Echo)?, ground.rung(Rung::Serde)?);
    let echoes = echoes(&questions);
    let mut load = Load::connect(tollgate.address, ground.connections)?;
    load.run(&questions, 10_000).await?;
    let most = load.run(&questions, ground.pick(100_000, 10_000)).await?.rate();
    drop(load);

    let rate = most / 2.0;
    let length = ground.pick(Duration::from_millis(50), Duration::from_millis(20));
    let mut contestants = Vec::new();
    for (name, address, questions) in [
        ("bare hyper, gives the body back", echo.address, &echoes),
        ("bare hyper with serde", serde.address, &questions),
        ("Tollgate, everything on", tollgate.address, &questions),
    ] {
        let mut open = OpenLoop::connect(address, ground.connections)?;
        open.run(questions, rate, length)?;
        contestants.push((name, open, questions, [const { Sample::new() }; 3], Sample::new()));
    }
    // Very many very short ones: what holds the machine up for a moment, several times a second, spoils the ones that it
    // falls into and not the median. What would hold the service alone up so shows in those of all together.
    let rounds = ground.pick(400, 10);
    for _ in 0..rounds {
        for place in [0, 1, 2, 2, 1, 0] {
            let (_, open, questions, told, all) = &mut contestants[place];
            let latencies = open.run(questions, rate, length)?;
            for (sample, share) in told.iter_mut().zip([500, 990, 999]) {
                sample.push(latencies.quantile(share));
            }
            all.append(latencies);
        }
        // Lets an interrupt be heard.
        tokio::task::yield_now().await;
    }
    // The blocks of a round were run there and back; each is compared with the one beside which it was run.
    let ratio = |place: usize, base: usize, share: usize| -> Sample {
        contestants[place].3[share].pairs(&contestants[base].3[share]).map(|(own, other)| own / other).collect()
    };

    let mut report = Report::default();
    report.target("p99 at half load : bare hyper's at the same rate", &ratio(2, 0, 1), Target::AtMost(1.5));
    report.figure("p99.9 at half load : bare hyper's at the same rate", ratio(2, 0, 2).told());
    report.figure("p99 at half load : bare hyper's with serde at the same rate", ratio(2, 1, 1).told());
    for (name, .., [median, p99, p999], all) in &contestants {
        let told = [median, p99, p999].map(|sample| digits(sample.median()));
        let all = [990, 999].map(|share| digits(all.quantile(share)));
        report.figure(
            *name,
            format!(
                "p50 {} µs, p99 {} µs, p99.9 {} µs; of the requests of all blocks together p99 {} µs, p99.9 {} µs",
                told[0], told[1], told[2], all[0], all[1]
            ),
        );
    }
    report.note(format!(
        "{rate:.0} requests a second at random (exponential) distances on {} connections, half of the {most:.0} that the \
        service answers when each connection asks again at once; the time of a request counts from the instant at which \
        it was to be sent; {rounds} rounds of two blocks of {} each; a figure is the median of the blocks', a ratio that of the pairs'",
        ground.connections,
        crate::sample::duration(length)
    ));
    Ok(report)
}

/// Connections on which requests are sent at their instants. It keeps its processor busy, so that it is never late.
struct OpenLoop {
    wires: Wires,
    random: u64,
}

impl OpenLoop {
    fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        Ok(Self { wires: Wires::connect(address, connections)?, random: 1 })
    }

    /// Asks at this rate for so long: how long each request took, in microseconds.
    fn run(&mut self, questions: &[Question], rate: f64, length: Duration) -> anyhow::Result<Sample> {
        let mut latencies = Sample::new();
        let mut free: Vec<usize> = (0..self.wires.count()).collect();
        let mut waiting = VecDeque::new();
        let (begun, mut asked) = (Instant::now(), 0);
        let mut next = begun;
        loop {
            let now = Instant::now();
            while next <= now && next < begun + length {
                waiting.push_back(next);
                next += Duration::from_secs_f64(self.distance() / rate);
            }
            while let Some(at) = waiting.front().copied()
                && let Some(place) = free.pop()
            {
                waiting.pop_front();
                asked += 1;
                self.wires.ask(place, asked % questions.len(), questions, at)?;
            }
            if free.len() == self.wires.count() && next >= begun + length {
                return Ok(latencies);
            }
            anyhow::ensure!(now < begun + length * 100, "the answers do not come as fast as they are asked for");
            self.wires.wait(questions, Duration::ZERO, |place, latency| {
                latencies.push(latency);
                free.push(place);
                None
            })?;
        }
    }

    /// A distance of which the mean is 1, as between things that happen independently (splitmix64).
    fn distance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let share = float(usize::try_from(mixed >> 12).unwrap_or_default() + 1) / float(1 << 52);
        -share.ln()
    }
}
