//! The load: connections that are kept, with little between them and the bytes. Every answer is checked.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

use crate::{
    payload::Question,
    sample::{Sample, float},
};

/// How long to wait for an answer, far longer than any takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection that is kept. It takes memory for the first answers only.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Wire {
    /// Connects.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; 8192], filled: 0 })
    }

    /// Sends a request, and waits for the whole answer: its status and body.
    pub fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.send(request)?;
        loop {
            anyhow::ensure!(self.read()?, "no answer for {} s", PATIENCE.as_secs());
            if answer(&self.buffer[..self.filled])?.is_some() {
                break;
            }
        }
        answer(&self.buffer[..self.filled])?.context("an answer")
    }

    /// Sends a request when the answer to the one before has come.
    fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.filled = 0;
        Ok(self.stream.write_all(request)?)
    }

    /// Reads what has come; the answer, when it is whole.
    fn receive(&mut self) -> anyhow::Result<Option<(u16, &[u8])>> {
        if self.read()? { answer(&self.buffer[..self.filled]) } else { Ok(None) }
    }

    /// Whether anything has come.
    fn read(&mut self) -> anyhow::Result<bool> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        loop {
            match self.stream.read(&mut self.buffer[self.filled..]) {
                Ok(0) => anyhow::bail!("the connection was closed"),
                Ok(count) => {
                    self.filled += count;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The status and the body of an answer, when all of it is there.
pub fn answer(bytes: &[u8]) -> anyhow::Result<Option<(u16, &[u8])>> {
    let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let (status, length) = head(&bytes[..end])?;
    let body = &bytes[end + 4..];
    anyhow::ensure!(body.len() <= length, "more than an answer came");
    Ok((body.len() == length).then_some((status, body)))
}

/// What the head of an answer says: its status, and the length of its body.
fn head(head: &[u8]) -> anyhow::Result<(u16, usize)> {
    let head = str::from_utf8(head)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("an HTTP status")?.parse()?;
    let length = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    Ok((status, length.unwrap_or("0").parse()?))
}

/// A block of requests: how long it took, and each of them.
#[derive(Debug, Default)]
pub struct Block {
    /// The block.
    pub took: Duration,
    /// How long each request took, in microseconds.
    pub latencies: Sample,
}

impl Block {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        float(self.latencies.count()) / self.took.as_secs_f64().max(1e-9)
    }
}

/// Connections that are kept, and on each of which one request is under way at most.
pub struct Wires {
    all: Vec<Wire>,
    /// Which question is under way on each, and since when.
    asked: Vec<Option<(usize, Instant)>>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Wires {
    /// Connects so many times.
    pub fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut all = Vec::new();
        for place in 0..connections {
            let wire = Wire::connect(address)?;
            wire.stream.set_nonblocking(true)?;
            epoll::add(&epoll, &wire.stream, epoll::EventData::new_u64(place.try_into()?), epoll::EventFlags::IN)?;
            all.push(wire);
        }
        Ok(Self { all, asked: vec![None; connections], epoll, events: Vec::with_capacity(connections) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Asks one of the questions on a connection that is free; its time counts from `since`.
    pub fn ask(&mut self, place: usize, number: usize, questions: &[Question], since: Instant) -> anyhow::Result<()> {
        self.asked[place] = Some((number, since));
        // It is smaller than the socket's buffer, in which nothing is: the last answer has come.
        self.all[place].send(&questions[number].request)
    }

    /// Waits for answers for so long at most, and tells each: on which connection it came, and how long it took, in
    /// microseconds. What is answered to that is asked there next.
    pub fn wait(
        &mut self,
        questions: &[Question],
        timeout: Duration,
        mut then: impl FnMut(usize, f64) -> Option<usize>,
    ) -> anyhow::Result<()> {
        let timeout = Timespec { tv_sec: timeout.as_secs().try_into()?, tv_nsec: timeout.subsec_nanos().into() };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            // Who interrupts has the word when the block is over.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for place in 0..self.events.len() {
            let event = self.events[place];
            let place = usize::try_from(event.data.u64())?;
            let Some((status, body)) = self.all[place].receive()? else { continue };
            let (number, since) = self.asked[place].take().context("an answer to nothing")?;
            questions[number].check(status, body)?;
            if let Some(next) = then(place, since.elapsed().as_secs_f64() * 1e6) {
                self.ask(place, next, questions, Instant::now())?;
            }
        }
        Ok(())
    }
}

/// Connections to one server, each of which asks again when it is answered.
pub struct Load(Wires);

impl Load {
    /// Connects so many times.
    pub fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        Wires::connect(address, connections).map(Self)
    }

    /// Asks so many times, these questions in turn.
    pub async fn run(&mut self, questions: &[Question], count: usize) -> anyhow::Result<Block> {
        let Self(wires) = self;
        let mut latencies = Sample::with_capacity(count);
        let (begun, mut asked) = (Instant::now(), wires.count().min(count));
        for place in 0..asked {
            wires.ask(place, place % questions.len(), questions, Instant::now())?;
        }
        let mut heard_at = begun;
        while latencies.count() < count {
            wires.wait(questions, PATIENCE, |_, latency| {
                latencies.push(latency);
                heard_at = Instant::now();
                let next = asked;
                asked += 1;
                (next < count).then_some(next % questions.len())
            })?;
            anyhow::ensure!(heard_at.elapsed() < PATIENCE, "no answer for {} s", PATIENCE.as_secs());
        }
        let took = begun.elapsed();
        // Lets an interrupt be heard.
        tokio::task::yield_now().await;
        Ok(Block { took, latencies })
    }
}
