//! Credentials that were verified before, so that the next request with the same ones costs next to nothing: they are
//! found by the whole line of the header, before any of it is looked at.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use foldhash::quality::RandomState;

use super::{issuer::Issuer, jwt::MAX_TOKEN_BYTES};

/// Credentials that are remembered. An issuer reuses a token for minutes, and has one for each of its clients.
const MAX_REMEMBERED: usize = 1024;
/// The longest line that is remembered, in bytes: a token with its scheme, and some blanks.
const MAX_LINE_BYTES: usize = MAX_TOKEN_BYTES + 64;

/// Until when verified credentials need not be verified again.
#[derive(Debug, Clone)]
pub enum Proof {
    /// As long as the process has its settings.
    Lasting,
    /// Until this instant, and while the issuer has the keys with which it was verified.
    Signed {
        /// The first instant at which it has ended.
        until: DateTime<Utc>,
        /// Who signed it.
        issuer: Arc<Issuer>,
        /// The number of the set of keys.
        keys: u64,
    },
}

impl Proof {
    fn holds(&self, now: impl FnOnce() -> DateTime<Utc>) -> bool {
        match self {
            Self::Lasting => true,
            Self::Signed { until, issuer, keys } => issuer.number() == *keys && now() < *until,
        }
    }
}

/// Lines, and what those are good for that have shown them.
///
/// A line is compared whole, so its hash decides nothing and need not be one that nobody can collide, which would cost
/// more than all the rest. The hash's key is random, so how long a look takes tells nothing of what is in here.
type Lines<T> = HashMap<Arc<[u8]>, (T, Proof), RandomState>;

/// What verified credentials are good for, by the line of the header `Authorization`.
pub struct Remembered<T>(ArcSwap<Lines<T>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<T> fmt::Debug for Remembered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl<T: Clone> Remembered<T> {
    /// What a line is good for, when it was verified before and its proof still holds.
    pub fn find(&self, line: &[u8], now: impl FnOnce() -> DateTime<Utc>) -> Option<T> {
        let lines = self.0.load();
        let (value, proof) = lines.get(line)?;
        proof.holds(now).then(|| value.clone())
    }

    /// Remembers what a line is good for.
    pub fn add(&self, line: &[u8], value: &T, proof: &Proof, now: DateTime<Utc>) {
        if line.len() > MAX_LINE_BYTES {
            return;
        }
        self.0.rcu(|lines| {
            let mut lines = Lines::clone(lines);
            if lines.len() >= MAX_REMEMBERED {
                lines.retain(|_, (_, proof)| proof.holds(|| now));
            }
            // Nobody has so many. Were it so, each would be verified again now and then.
            if lines.len() >= MAX_REMEMBERED {
                lines.clear();
            }
            lines.insert(line.into(), (value.clone(), proof.clone()));
            lines
        });
    }
}
