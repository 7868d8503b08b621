//! Who would have lost a scope whose rule is not enforced yet: distinct subjects, hour by hour, for a day.
//!
//! A hook adds to it for each scope that it keeps for this reason alone, so adding takes no lock and allocates nothing: a
//! look for the scope in a snapshot, a hash, and a few atomic words. Subjects are not kept, only what is needed to tell
//! how many different ones there were: a `HyperLogLog` sketch for each hour (Flajolet et al., 2007), whose registers are
//! merged over the hours. It is off by some 3 of 100, and near to nothing while there are few.
//!
//! It counts what this process has decided since it began. Nothing rests on it: it helps a person to decide.

use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use foldhash::quality::RandomState;

use crate::domain::subject::SubjectRef;

/// Hours that are kept: a whole day, and the hour that has not ended.
const HOURS: usize = 25;
/// Bits of a hash that choose a register.
const REGISTER_BITS: u32 = 10;
/// Registers of an hour: a kibibyte.
const REGISTERS: usize = 1 << REGISTER_BITS;
/// Scopes that are counted: their hours take 5 MB at most.
const MAX_SCOPES: usize = 200;
/// Seconds of an hour.
const HOUR_S: i64 = 3600;
/// The hour of nothing that was counted.
const NEVER: i64 = i64::MIN;

/// What was counted for a scope in the last day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Roughly how many subjects would have lost it.
    pub subjects: u64,
    /// In how many decisions.
    pub decisions: u64,
}

struct Hour {
    /// Which hour it is of, since 1970.
    number: AtomicI64,
    decisions: AtomicU64,
    registers: [AtomicU8; REGISTERS],
}

impl Hour {
    fn new() -> Self {
        Self {
            number: AtomicI64::new(NEVER),
            decisions: AtomicU64::new(0),
            registers: std::array::from_fn(|_| AtomicU8::new(0)),
        }
    }

    /// Begins another hour in the place of one that is a day old. What others add at that very moment may be lost.
    fn turn(&self, number: i64) {
        let old = self.number.load(Ordering::Acquire);
        let is_turned =
            old < number && self.number.compare_exchange(old, number, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_turned {
            self.decisions.store(0, Ordering::Relaxed);
            self.registers.iter().for_each(|register| register.store(0, Ordering::Relaxed));
        }
    }
}

/// The hours of one scope.
type Day = Box<[Hour]>;

/// What would have been lost, by scope.
pub struct Losses {
    days: ArcSwap<HashMap<Box<str>, Arc<Day>, RandomState>>,
    hasher: RandomState,
    since: DateTime<Utc>,
}

impl fmt::Debug for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Losses")
    }
}

impl Losses {
    /// Nothing was counted yet.
    pub fn new(now: DateTime<Utc>) -> Self {
        Self { days: ArcSwap::default(), hasher: RandomState::default(), since: now }
    }

    /// Since when it is counted.
    pub fn since(&self) -> DateTime<Utc> {
        self.since
    }

    /// Counts that a subject would have lost a scope of the catalogue.
    pub fn add(&self, scope: &str, subject: SubjectRef<'_>, now: DateTime<Utc>) {
        let days = self.days.load();
        match days.get(scope) {
            Some(day) => self.add_to(day, subject, now),
            None if days.len() < MAX_SCOPES => self.add_scope(scope, subject, now),
            None => {}
        }
    }

    /// The first time of a scope. It is rare, as scopes are those of the catalogue.
    #[cold]
    fn add_scope(&self, scope: &str, subject: SubjectRef<'_>, now: DateTime<Utc>) {
        let new: Arc<Day> = Arc::new((0..HOURS).map(|_| Hour::new()).collect());
        self.days.rcu(|days| {
            let mut days = HashMap::clone(days);
            if days.len() < MAX_SCOPES {
                days.entry(scope.into()).or_insert_with(|| Arc::clone(&new));
            }
            days
        });
        if let Some(day) = self.days.load().get(scope) {
            self.add_to(day, subject, now);
        }
    }

    fn add_to(&self, day: &Day, subject: SubjectRef<'_>, now: DateTime<Utc>) {
        let number = now.timestamp().div_euclid(HOUR_S);
        let hour = &day[place(number)];
        if hour.number.load(Ordering::Acquire) != number {
            hour.turn(number);
        }
        hour.decisions.fetch_add(1, Ordering::Relaxed);
        let (register, rank) = observed(self.hasher.hash_one(subject));
        // Most subjects come again, and change nothing.
        if hour.registers[register].load(Ordering::Relaxed) < rank {
            hour.registers[register].fetch_max(rank, Ordering::Relaxed);
        }
    }

    /// What was counted for a scope in the last 24 whole hours and the present one; none when there was nothing.
    pub fn of(&self, scope: &str, now: DateTime<Utc>) -> Option<Lost> {
        let days = self.days.load();
        let day = days.get(scope)?;
        let last = now.timestamp().div_euclid(HOUR_S);
        let first = last - i64::try_from(HOURS).unwrap_or(i64::MAX) + 1;
        let (mut merged, mut decisions) = ([0_u8; REGISTERS], 0);
        for hour in day.iter().filter(|hour| (first..=last).contains(&hour.number.load(Ordering::Acquire))) {
            decisions += hour.decisions.load(Ordering::Relaxed);
            for (merged, register) in merged.iter_mut().zip(&hour.registers) {
                *merged = (*merged).max(register.load(Ordering::Relaxed));
            }
        }
        (decisions > 0).then(|| Lost { subjects: estimated(&merged), decisions })
    }
}

fn place(number: i64) -> usize {
    // At most the number of hours.
    usize::try_from(number.rem_euclid(i64::try_from(HOURS).unwrap_or(1))).unwrap_or(0)
}

/// The register that a hash chooses, and the place of the first bit that is set in the rest of it.
fn observed(hash: u64) -> (usize, u8) {
    let register = usize::try_from(hash >> (64 - REGISTER_BITS)).unwrap_or(0);
    let rest = (hash << REGISTER_BITS) | (1 << (REGISTER_BITS - 1));
    (register, u8::try_from(rest.leading_zeros() + 1).unwrap_or(u8::MAX))
}

/// How many different hashes were seen.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate")]
fn estimated(registers: &[u8; REGISTERS]) -> u64 {
    let count = REGISTERS as f64;
    let sum: f64 = registers.iter().map(|rank| (-f64::from(*rank)).exp2()).sum();
    let raw = 0.7213 / (1.0 + 1.079 / count) * count * count / sum;
    let empty = registers.iter().map(|rank| usize::from(*rank == 0)).sum::<usize>();
    // While registers are empty, how many tells more than what stands in the others.
    let estimate = if raw <= 2.5 * count && empty > 0 { count * (count / empty as f64).ln() } else { raw };
    estimate.round() as u64
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::subject::{Subject, SubjectId, SubjectType};

    fn user(number: u32) -> Subject {
        Subject { kind: SubjectType::User, id: SubjectId::parse(&format!("user-{number}")).expect("an id") }
    }

    fn start() -> DateTime<Utc> {
        "2026-06-15T12:59:59Z".parse().expect("a timestamp")
    }

    #[test]
    fn subjects_are_counted_once_however_often_they_come() {
        for expected in [1_u32, 2, 10, 100, 1_000, 20_000] {
            let losses = Losses::new(start());
            for round in 0..3_u32 {
                for number in 0..expected {
                    losses.add("x", user(number).borrowed(), start() + TimeDelta::hours(i64::from(round)));
                }
            }
            let Lost { subjects, decisions } = losses.of("x", start() + TimeDelta::hours(2)).expect("some");
            assert_eq!(decisions, u64::from(3 * expected));
            // Five times what it is off usually, and one where there are few.
            let bound = (u64::from(expected) * 16 / 100).max(1);
            assert!(subjects.abs_diff(u64::from(expected)) <= bound, "{subjects} for {expected}");
        }
    }

    #[test]
    fn what_is_older_than_a_day_is_forgotten() {
        let losses = Losses::new(start());
        assert_eq!(losses.of("x", start()), None);
        losses.add("x", user(1).borrowed(), start());
        losses.add("x", user(2).borrowed(), start() + TimeDelta::hours(1));
        let counted =
            |hours| losses.of("x", start() + TimeDelta::hours(hours)).map(|lost| (lost.subjects, lost.decisions));
        assert_eq!(counted(1), Some((2, 2)));
        assert_eq!(counted(24), Some((2, 2)));
        assert_eq!(counted(25), Some((1, 1)), "the first hour is over for a day");
        assert_eq!(counted(26), None);
        losses.add("x", user(3).borrowed(), start() + TimeDelta::hours(25));
        assert_eq!(counted(25), Some((2, 2)), "an hour's place is used again");
        assert_eq!(losses.of("y", start()), None);
    }

    #[test]
    fn the_number_of_scopes_is_bounded() {
        let losses = Losses::new(start());
        for scope in 0..2 * MAX_SCOPES {
            losses.add(&scope.to_string(), user(1).borrowed(), start());
        }
        assert_eq!(losses.days.load().len(), MAX_SCOPES);
    }
}
