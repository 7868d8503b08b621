//! Figures: times, their percentiles, and what a row reports.

use std::time::Duration;

/// What a row measured, and which of its promises do not hold.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<String>,
    broken: Vec<String>,
}

impl Report {
    /// Notes a figure.
    pub fn figure(&mut self, figure: impl Into<String>) {
        self.figures.push(figure.into());
    }

    /// Notes that a promise is broken, unless it holds.
    pub fn require(&mut self, holds: bool, promise: impl Into<String>) {
        if !holds {
            self.broken.push(promise.into());
        }
    }

    /// The figures in a line, and whether all promises hold.
    pub fn told(self) -> (String, bool) {
        let mut line = self.figures.join("; ");
        if !self.broken.is_empty() {
            line = format!("{line}. Broken: {}", self.broken.join("; "));
        }
        (line, self.broken.is_empty())
    }
}

/// Times that something took.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Notes one.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Takes over those of another.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that a share of them, in thousandths, does not exceed; zero when there are none.
    pub fn percentile(&self, thousandths: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * thousandths).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The longest; zero when there are none.
    pub fn max(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    /// Median, 99th percentile and maximum in words.
    pub fn told(&self) -> String {
        let (median, p99) = (duration(self.percentile(500)), duration(self.percentile(990)));
        format!("p50 {median}, p99 {p99}, max {} of {}", duration(self.max()), self.len())
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        Self(times.into_iter().collect())
    }
}

/// A duration in words.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.0995 => format!("{:.1} ms", seconds * 1e3),
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..99.95 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// How many of something happened in a second.
#[expect(clippy::cast_precision_loss, reason = "a rate is a rounded figure")]
pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// Numbers that look random and are the same in each run (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The next number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
