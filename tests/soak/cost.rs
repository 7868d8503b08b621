//! What it costs the service to know its caller: processor time of its process, compared in short blocks.

use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    client::{BASIC, HOOK, question},
    harness::{Ground, Tollgate},
    issuer::{Issuer, SigningKey},
    measure::{Report, duration},
    tokens::{bearer, trusting},
};

/// Connections, each of which asks again when it is answered.
const CONNECTIONS: usize = 8;
/// The header of the credentials.
const AUTHORIZATION: &str = "Authorization";
/// What a request with a token that was verified before may cost, in shares of the same request with the token unread.
const MOST: f64 = 1.03;

/// A connection that is kept, with little between it and the bytes.
struct Wire {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Wire {
    async fn connect(tollgate: &Tollgate) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(tollgate.launch.listen).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Sends a request; fails unless the answer is a 200 that keeps the scope.
    async fn ask(&mut self, request: &str) -> anyhow::Result<()> {
        self.stream.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            anyhow::ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the connection was closed");
            let answer = str::from_utf8(&self.answer)?;
            let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() < length.context("a length")?.parse()? {
                continue;
            }
            let is_right = head.starts_with("HTTP/1.1 200 ") && body.contains(r#""removeScopes":[]"#);
            anyhow::ensure!(is_right, "not a right 200: {answer}");
            return Ok(());
        }
    }
}

/// A request with a further header: the credentials, or none, or something else.
fn request(header: Option<(&str, &str)>) -> Arc<str> {
    let header = header.map_or_else(String::new, |(name, value)| format!("{name}: {value}\r\n"));
    let body = question("h-0");
    let length = body.len();
    let head = format!(
        "POST {HOOK} HTTP/1.1\r\nHost: soak\r\n{header}Content-Type: application/json\r\n\
        Content-Length: {length}\r\n\r\n"
    );
    (head + &body).into()
}

/// The service, and connections to it.
struct Bench {
    tollgate: Tollgate,
    wires: Vec<Wire>,
}

impl Bench {
    /// The processor time of the service for each of these requests, in microseconds.
    async fn cost(&mut self, requests: Vec<Arc<str>>) -> anyhow::Result<f64> {
        let (count, requests) = (requests.len(), Arc::new(requests));
        let before = self.tollgate.exact_processor_time()?;
        let mut tasks = JoinSet::new();
        for (number, mut wire) in self.wires.drain(..).enumerate() {
            let requests = Arc::clone(&requests);
            tasks.spawn(async move {
                for request in requests.iter().skip(number).step_by(CONNECTIONS) {
                    wire.ask(request).await?;
                }
                anyhow::Ok(wire)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            self.wires.push(ended??);
        }
        let time = self.tollgate.exact_processor_time()?.saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let count = count as f64;
        Ok(time.as_secs_f64() * 1e6 / count)
    }
}

/// Figures of which the middle matters.
#[derive(Default)]
struct Sample(Vec<f64>);

impl Sample {
    fn quantile(&self, hundredths: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get((sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn median(&self) -> f64 {
        self.quantile(50)
    }

    /// How far the median may be off, in nineteen of twenty such runs: how the notches of box plots are made.
    fn uncertainty(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        let count = self.0.len() as f64;
        1.57 * (self.quantile(75) - self.quantile(25)) / count.sqrt()
    }

    fn told(&self) -> String {
        format!(
            "{:.3} ± {:.3} (half of {} between {:.3} and {:.3})",
            self.median(),
            self.uncertainty(),
            self.0.len(),
            self.quantile(25),
            self.quantile(75)
        )
    }
}

/// AUTH.
pub async fn authentication(ground: Arc<Ground>) -> anyhow::Result<Report> {
    let key = SigningKey::rsa("current");
    let issuer = Issuer::with(&[&key]).await;
    // One process takes all of them, so that nothing but the credentials differs.
    let tollgate = trusting(&ground, &issuer, "basic,jwt,none").await?;
    let mut bench = Bench { tollgate, wires: Vec::new() };
    for _ in 0..CONNECTIONS {
        bench.wires.push(Wire::connect(&bench.tollgate).await?);
    }
    let token = bearer(&key, 0);
    // The last shows what it costs to receive as much, and the first, once more, what the machine makes of nothing.
    let kinds = [None, Some((AUTHORIZATION, BASIC)), Some((AUTHORIZATION, &token)), Some(("X-Filler", &token)), None];
    let kinds = kinds.map(request);
    let (rounds, block) = ground.pick((500, 300), (20, 200));
    let repeated = |request: &Arc<str>| vec![Arc::clone(request); block];
    let begun = Instant::now();
    for _ in 0..5 {
        for kind in &kinds {
            bench.cost(repeated(kind)).await?;
        }
    }

    // There and back, so that what gets slower meanwhile does so for all.
    let mut alone = Sample::default();
    let mut ratios: [Sample; 4] = Default::default();
    let mut checked = Sample::default();
    for _ in 0..rounds {
        let mut times = [0.0; 5];
        for place in (0..5).chain((0..5).rev()) {
            times[place] += bench.cost(repeated(&kinds[place])).await? / 2.0;
        }
        alone.0.push(times[0]);
        for (ratio, time) in ratios.iter_mut().zip(&times[1..]) {
            ratio.0.push(time / times[0]);
        }
        checked.0.push(times[2] / times[3]);
    }
    let [basic, cached, received, nothing] = ratios;
    let mut by_first = Sample::default();
    let mut number = 0;
    for _ in 0..rounds / 20 {
        let mut times = [0.0; 2];
        for place in [0, 1, 1, 0] {
            let requests = if place == 0 { repeated(&kinds[0]) } else { fresh(&key, block / 3, &mut number) };
            times[place] += bench.cost(requests).await? / 2.0;
        }
        by_first.0.push(times[1] / times[0]);
    }

    let mut report = Report::default();
    let is_optimised = !cfg!(debug_assertions);
    let built = if is_optimised { "optimised" } else { "not optimised, so this says little" };
    report.figure(format!("{built}; {rounds} rounds of ten blocks of {block} in {}", duration(begun.elapsed())));
    report.figure(format!(
        "without credentials {:.2} µs a request (half between {:.2} and {:.2})",
        alone.median(),
        alone.quantile(25),
        alone.quantile(75)
    ));
    report.figure(format!("Basic: {}", basic.told()));
    report.figure(format!("a token of {} bytes seen before: {}", token.len() - "Bearer ".len(), cached.told()));
    report.figure(format!("of that, to receive as much: {}; nothing at all: {}", received.told(), nothing.told()));
    report.figure(format!("so to check it, compared with the same request unread: {}", checked.told()));
    report.figure(format!("seen for the first time: {}", by_first.told()));
    if (checked.median() - MOST).abs() < checked.uncertainty() {
        report.figure("the machine was too noisy to tell whether that is less than 1.03");
    }
    report.require(!is_optimised || checked.median() < MOST, "checking a token seen before costs less than 3 %");
    Ok(report)
}

/// Requests with tokens that nobody has seen.
fn fresh(key: &SigningKey, count: usize, number: &mut u64) -> Vec<Arc<str>> {
    let mut next = || {
        *number += 1;
        request(Some((AUTHORIZATION, &bearer(key, *number))))
    };
    (0..count).map(|_| next()).collect()
}
