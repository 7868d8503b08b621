//! Figures of which the middle matters, and whether a target is met.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Figures of which the middle matters.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// None yet, with room for so many.
    pub fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    /// Takes over those of another.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Notes one.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Each figure with the one of another sample that was noted at the same time.
    pub fn pairs<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (f64, f64)> + 'a {
        self.0.iter().copied().zip(other.0.iter().copied())
    }

    /// The figure that a share of them, in thousandths, does not exceed; 0 when there are none.
    pub fn quantile(&self, thousandths: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (sorted.len() * thousandths).div_ceil(1000).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(500)
    }

    /// How far the median may be off, in nineteen of twenty such runs: how the notches of box plots are made.
    pub fn uncertainty(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let count = self.0.len().max(1) as f64;
        1.57 * (self.quantile(750) - self.quantile(250)) / count.sqrt()
    }

    /// Median and uncertainty in words.
    pub fn told(&self) -> String {
        format!("{} ± {}", digits(self.median()), digits(self.uncertainty()))
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Self {
        Self(figures.into_iter().collect())
    }
}

/// A figure with as many digits as a reader can use.
pub fn digits(figure: f64) -> String {
    match figure.abs() {
        ..9.995 => format!("{figure:.3}"),
        ..99.95 => format!("{figure:.2}"),
        ..999.5 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// A duration in words.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.000_999_5 => format!("{:.0} µs", seconds * 1e6),
        ..0.099_95 => format!("{:.2} ms", seconds * 1e3),
        ..0.999_5 => format!("{:.0} ms", seconds * 1e3),
        ..99.95 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn float(count: usize) -> f64 {
    count as f64
}

/// What a ratio is to be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
        }
    }
}

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    NotMet,
    /// The target lies within what the figure may be off.
    TooNoisy,
}

impl Verdict {
    /// What a figure that may be off so far says of a target.
    pub fn of(target: Target, figure: f64, uncertainty: f64) -> Self {
        let (limit, is_met) = match target {
            Target::AtMost(limit) => (limit, figure <= limit),
            Target::AtLeast(limit) => (limit, figure >= limit),
        };
        if (figure - limit).abs() < uncertainty {
            Self::TooNoisy
        } else if is_met {
            Self::Met
        } else {
            Self::NotMet
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::NotMet => "**not met**",
            Self::TooNoisy => "the machine was too noisy to tell",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_figure_that_a_share_does_not_exceed() {
        let sample: Sample = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            [10, 500, 990, 999, 1000].map(|share| digits(sample.quantile(share))),
            ["1.000", "50.00", "99.00", "100.0", "100.0"]
        );
        assert_eq!(digits(Sample::default().median()), "0.000");
    }

    #[test]
    fn a_target_within_the_uncertainty_is_not_told() {
        let check = |target, figure, verdict| assert_eq!(Verdict::of(target, figure, 0.1), verdict);
        check(Target::AtMost(1.4), 1.2, Verdict::Met);
        check(Target::AtMost(1.4), 1.31, Verdict::TooNoisy);
        check(Target::AtMost(1.4), 1.49, Verdict::TooNoisy);
        check(Target::AtMost(1.4), 1.6, Verdict::NotMet);
        check(Target::AtLeast(0.6), 0.8, Verdict::Met);
        check(Target::AtLeast(0.6), 0.55, Verdict::TooNoisy);
        check(Target::AtLeast(0.6), 0.4, Verdict::NotMet);
    }

    #[test]
    fn an_exact_figure_is_always_told() {
        assert_eq!(Verdict::of(Target::AtMost(10.0), 10.0, 0.0), Verdict::Met);
        assert_eq!(Verdict::of(Target::AtMost(10.0), 11.0, 0.0), Verdict::NotMet);
    }
}
