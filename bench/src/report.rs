//! What a row measured, as it is printed and as it is kept.

use serde::{Deserialize, Serialize};

use crate::sample::{Sample, Target, Verdict, digits};

/// A line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What is measured, and against what.
    pub what: String,
    /// The figure.
    pub measured: String,
    /// What it is to be, where there is a target.
    pub target: Option<String>,
    /// Whether it is.
    pub verdict: Option<Verdict>,
}

/// A point of the chart of cost against scale: what an uncached check costs in a database of this size.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Point {
    /// Subscriptions.
    pub subscriptions: f64,
    /// Processor time of the service, in microseconds.
    pub service: f64,
    /// Processor time of Postgres, in microseconds.
    pub postgres: f64,
    /// The median time to the answer, in microseconds.
    pub latency: f64,
}

/// What a row measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The lines of the table.
    pub figures: Vec<Figure>,
    /// What stands below it.
    pub notes: Vec<String>,
    /// The points of the chart.
    pub points: Vec<Point>,
}

impl Report {
    /// Notes a ratio that has a target.
    pub fn target(&mut self, what: impl Into<String>, ratios: &Sample, target: Target) {
        let verdict = Verdict::of(target, ratios.median(), ratios.uncertainty());
        self.judged(what, ratios.told(), target, verdict);
    }

    /// Notes an exact figure that has a target.
    pub fn exact(&mut self, what: impl Into<String>, figure: f64, target: Target) {
        self.judged(what, digits(figure), target, Verdict::of(target, figure, 0.0));
    }

    fn judged(&mut self, what: impl Into<String>, measured: String, target: Target, verdict: Verdict) {
        let (what, target) = (what.into(), Some(target.to_string()));
        self.figures.push(Figure { what, measured, target, verdict: Some(verdict) });
    }

    /// Notes a figure that has none.
    pub fn figure(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        self.figures.push(Figure { what: what.into(), measured: measured.into(), target: None, verdict: None });
    }

    /// Notes what helps to read the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}
