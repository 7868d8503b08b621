//! The present.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::domain::time::truncated;

/// A source of the present: a trait because a test cannot wait for a window to close.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present, to the microsecond: what the database keeps, so a value reads back equal.
    fn now(&self) -> DateTime<Utc>;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> DateTime<Utc> {
        truncated(Utc::now())
    }
}
