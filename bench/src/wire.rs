//! The load: connections that are kept, with little between them and the bytes. Every answer is checked.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    payload::Question,
    sample::{Sample, float},
};

/// How long to wait for an answer, far longer than any takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is kept.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a question.
    pub async fn ask(&mut self, question: &Question) -> anyhow::Result<()> {
        let (status, body) = self.exchange(&question.request).await?;
        question.check(status, body)
    }

    /// Sends a request, and reads the whole answer: its status and body.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            anyhow::ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the connection was closed");
            if answer(&self.buffer)?.is_some() {
                break;
            }
        }
        answer(&self.buffer)?.context("an answer")
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

/// Connections to one server, each of which asks again when it is answered.
#[derive(Debug)]
pub struct Load {
    wires: Vec<Wire>,
}

impl Load {
    /// Connects so many times.
    pub async fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let mut wires = Vec::new();
        for _ in 0..connections {
            wires.push(Wire::connect(address).await?);
        }
        Ok(Self { wires })
    }

    /// Asks so many times, these questions in turn.
    pub async fn run(&mut self, questions: &Arc<[Question]>, count: usize) -> anyhow::Result<Block> {
        let connections = self.wires.len();
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for (first, mut wire) in self.wires.drain(..).enumerate() {
            let questions = Arc::clone(questions);
            tasks.spawn(async move {
                let mut latencies = Vec::with_capacity(count / connections + 1);
                for number in (first..count).step_by(connections) {
                    let asked_at = Instant::now();
                    wire.ask(&questions[number % questions.len()]).await?;
                    latencies.push(asked_at.elapsed().as_secs_f64() * 1e6);
                }
                anyhow::Ok((wire, latencies))
            });
        }
        let mut latencies = Vec::with_capacity(count);
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                let (wire, more) = ended??;
                self.wires.push(wire);
                latencies.extend(more);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE * 4, all).await.context("no answer for two minutes")??;
        Ok(Block { took: begun.elapsed(), latencies: latencies.into_iter().collect() })
    }
}
