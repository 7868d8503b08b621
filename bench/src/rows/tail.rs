//! TAIL: the slowest answers when requests come at random instants, whether or not earlier ones were answered.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

use super::USERS;
use crate::{
    ground::{Ground, seed},
    payload::{Question, echoes, questions},
    report::Report,
    rungs::Rung,
    sample::{Sample, Target, digits, float},
    wire::{self, Load},
};

/// TAIL.
pub async fn tail(ground: &Ground) -> anyhow::Result<Report> {
    let url = ground.database().await?;
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register().await?;
    seed(&url, USERS, true).await?;
    let questions = questions(0..USERS);
    let (echo, serde) = (ground.rung(Rung::Echo)?, ground.rung(Rung::Serde)?);
    let echoes = echoes(&questions);
    let mut load = Load::connect(tollgate.address, ground.connections).await?;
    load.run(&questions, 10_000).await?;
    let most = load.run(&questions, ground.pick(100_000, 10_000)).await?.rate();
    drop(load);

    let rate = most / 2.0;
    let length = ground.pick(Duration::from_millis(400), Duration::from_millis(200));
    let mut contestants = Vec::new();
    for (name, address, questions) in [
        ("bare hyper, gives the body back", echo.address, &echoes),
        ("bare hyper with serde", serde.address, &questions),
        ("Tollgate, everything on", tollgate.address, &questions),
    ] {
        let mut open = OpenLoop::connect(address, ground.connections)?;
        open.run(questions, rate, length / 2)?;
        contestants.push((name, open, questions, [const { Sample::new() }; 3]));
    }
    // Many short ones: what holds the machine up for a moment spoils few of them.
    let rounds = ground.pick(50, 4);
    let mut ratios = [const { Sample::new() }; 2];
    let mut by_serde = Sample::new();
    for _ in 0..rounds {
        let mut latencies = [const { Sample::new() }; 3];
        for place in [0, 1, 2, 2, 1, 0] {
            let (_, open, questions, _) = &mut contestants[place];
            latencies[place].append(open.run(questions, rate, length)?);
        }
        let quantile = |place: usize, share| latencies[place].quantile(share);
        for (ratio, share) in ratios.iter_mut().zip([990, 999]) {
            ratio.push(quantile(2, share) / quantile(0, share));
        }
        by_serde.push(quantile(2, 990) / quantile(1, 990));
        for (place, (.., told)) in contestants.iter_mut().enumerate() {
            for (sample, share) in told.iter_mut().zip([500, 990, 999]) {
                sample.push(quantile(place, share));
            }
        }
    }

    let mut report = Report::default();
    report.target("p99 at half load : bare hyper's at the same rate", &ratios[0], Target::AtMost(1.5));
    report.figure("p99.9 at half load : bare hyper's at the same rate", ratios[1].told());
    report.figure("p99 at half load : bare hyper's with serde at the same rate", by_serde.told());
    for (name, .., [median, p99, p999]) in &contestants {
        let told = [median, p99, p999].map(|sample| digits(sample.median()));
        report.figure(*name, format!("p50 {} µs, p99 {} µs, p99.9 {} µs", told[0], told[1], told[2]));
    }
    report.note(format!(
        "{rate:.0} requests a second at random (exponential) distances on {} connections, half of the {most:.0} that the \
        service answers when each connection asks again at once; the time of a request counts from the instant at which \
        it was to be sent; {rounds} rounds of two blocks of {} each",
        ground.connections,
        crate::sample::duration(length)
    ));
    Ok(report)
}

/// A connection, and what is under way on it.
struct Wire {
    stream: TcpStream,
    buffer: Box<[u8; 8192]>,
    filled: usize,
    /// Which question, and when it was to be asked.
    asked: Option<(usize, Instant)>,
}

/// Connections on which requests are sent at their instants. It keeps its processor busy, so that it is never late.
struct OpenLoop {
    wires: Vec<Wire>,
    events: OwnedFd,
    random: u64,
}

impl OpenLoop {
    fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut wires = Vec::new();
        for number in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll::add(&events, &stream, epoll::EventData::new_u64(number.try_into()?), epoll::EventFlags::IN)?;
            wires.push(Wire { stream, buffer: Box::new([0; 8192]), filled: 0, asked: None });
        }
        Ok(Self { wires, events, random: 1 })
    }

    /// Asks at this rate for so long: how long each request took, in microseconds.
    fn run(&mut self, questions: &[Question], rate: f64, length: Duration) -> anyhow::Result<Sample> {
        let mut latencies = Sample::new();
        let mut free: Vec<usize> = (0..self.wires.len()).collect();
        let mut waiting = VecDeque::new();
        let mut events = Vec::with_capacity(self.wires.len());
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
                self.wires[place].send(asked % questions.len(), at, questions)?;
            }
            if free.len() == self.wires.len() && next >= begun + length {
                return Ok(latencies);
            }
            anyhow::ensure!(now < begun + length * 10, "the answers do not come as fast as they are asked for");
            events.clear();
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut events), Some(&at_once))?;
            for event in &events {
                let place = usize::try_from(event.data.u64())?;
                if let Some(at) = self.wires[place].receive(questions)? {
                    latencies.push(at.elapsed().as_secs_f64() * 1e6);
                    free.push(place);
                }
            }
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

impl Wire {
    fn send(&mut self, question: usize, at: Instant, questions: &[Question]) -> anyhow::Result<()> {
        // It is smaller than the socket's buffer, in which nothing is: the last answer has come.
        self.stream.write_all(&questions[question].request)?;
        (self.filled, self.asked) = (0, Some((question, at)));
        Ok(())
    }

    /// Reads what has come: when the answer is whole, since when it was waited for.
    fn receive(&mut self, questions: &[Question]) -> anyhow::Result<Option<Instant>> {
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => anyhow::bail!("the connection was closed"),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some((status, body)) = wire::answer(&self.buffer[..self.filled])? else { return Ok(None) };
        let Some((question, at)) = self.asked.take() else { anyhow::bail!("an answer to nothing") };
        questions[question].check(status, body)?;
        Ok(Some(at))
    }
}
