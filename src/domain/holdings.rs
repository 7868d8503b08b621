//! What one subject holds, subscription by subscription: its facts, and whom they come from.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    claims::Bearing,
    facts::{Facts, Standing},
    life::Life,
    scope::Scope,
};

/// A subject's subscriptions by scope. They make the same [`Facts`] as a hook is answered from, and tell besides which
/// of them a standing comes from, and when there will be another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    facts: Facts,
    /// Ascending by scope, so that one is found by bisection; and by id.
    named: Box<[Named]>,
}

/// A scope that a subscription names, with the subscription's id and life.
type Named = (Scope, Uuid, Life);

impl Holdings {
    /// The holdings that scopes with the id and the life of a subscription make, in whatever order they come.
    #[must_use]
    pub fn new(mut named: Vec<(Scope, Uuid, Life)>) -> Self {
        named.sort_unstable_by(|(scope, id, _), (other_scope, other_id, _)| {
            scope.cmp(other_scope).then_with(|| id.cmp(other_id))
        });
        let facts = Facts::new(named.iter().map(|(scope, _, life)| (scope.clone(), *life)).collect());
        Self { facts, named: named.into() }
    }

    /// The same holdings with the subscriptions that have claims of their own.
    #[must_use]
    pub fn with_bearings(self, bearings: Vec<Bearing>) -> Self {
        Self { facts: self.facts.with_bearings(bearings), ..self }
    }

    /// What is known of the subject.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The subscriptions that name a scope and stand to it like this at `now`, ascending by id.
    #[must_use]
    pub fn standing_so(&self, scope: &str, standing: Standing, now: DateTime<Utc>) -> Vec<Uuid> {
        let stands_so = |(_, _, life): &&Named| Standing::from(life.status(now)) == standing;
        self.naming(scope).iter().filter(stands_so).map(|(_, id, _)| *id).collect()
    }

    fn naming(&self, scope: &str) -> &[Named] {
        let start = self.named.partition_point(|(name, ..)| name.as_str() < scope);
        let length = self.named[start..].partition_point(|(name, ..)| name.as_str() == scope);
        &self.named[start..start + length]
    }
}

/// How many of a subject's subscriptions give each standing at an instant that moves on.
#[derive(Debug, Clone, Copy, Default)]
struct Tally([usize; Standing::ALL.len()]);

impl Tally {
    fn add(&mut self, standing: Standing) {
        self.0[standing as usize] += 1;
    }

    fn replace(&mut self, old: Standing, new: Standing) {
        self.0[old as usize] -= 1;
        self.add(new);
    }

    /// The best standing there is, as [`Facts::standing`] finds it.
    fn best(&self) -> Standing {
        let is_given = |standing: &Standing| self.0[*standing as usize] > 0;
        Standing::ALL.into_iter().find(is_given).unwrap_or(Standing::NoSubscription)
    }
}

/// The first instant after `now` at which a verdict on how some subjects stand to a scope is another one than at `now`,
/// and that verdict; none when it stays the same for ever, as long as nothing is written.
///
/// It lives through the instants at which anything may change, in their order, and looks at each subscription only when
/// its own may: with n subscriptions that name the scope it takes n log n steps, so many thousands of them do no harm.
pub fn first_change<T: PartialEq, const SUBJECTS: usize>(
    subjects: [&Holdings; SUBJECTS],
    scope: &str,
    now: DateTime<Utc>,
    verdict: impl Fn([Standing; SUBJECTS]) -> T,
) -> Option<(DateTime<Utc>, T)> {
    let mut tallies = [Tally::default(); SUBJECTS];
    let mut standings = Vec::new();
    let mut boundaries = Vec::new();
    for (subject, holdings) in subjects.into_iter().enumerate() {
        for (_, _, life) in holdings.naming(scope) {
            let standing = life.status(now).into();
            tallies[subject].add(standing);
            let later = life.boundaries().filter(|boundary| now < *boundary);
            boundaries.extend(later.map(|boundary| (boundary, subject, standings.len(), life)));
            standings.push(standing);
        }
    }
    boundaries.sort_unstable_by_key(|(boundary, ..)| *boundary);
    let of_now = verdict(tallies.map(|tally| tally.best()));
    boundaries.chunk_by(|(one, ..), (other, ..)| one == other).find_map(|changing| {
        let boundary = changing[0].0;
        for (_, subject, place, life) in changing {
            let standing = life.status(boundary).into();
            tallies[*subject].replace(standings[*place], standing);
            standings[*place] = standing;
        }
        let verdict = verdict(tallies.map(|tally| tally.best()));
        (verdict != of_now).then_some((boundary, verdict))
    })
}
