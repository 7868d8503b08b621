//! The last removals that this process decided: for a person who wants to see what happens just now.
//!
//! They are samples. A hook never waits to leave one: it leaves none while another one does, or soon after another one.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use chrono::{DateTime, Utc};

use crate::domain::{
    decision::{Decision, Reason},
    subject::{Subject, SubjectRef},
};

/// Removals that are kept.
const KEPT: usize = 50;
/// Milliseconds from one that is kept to the next one.
const GAP_MS: i64 = 50;
/// Scopes of one removal that are kept.
const MAX_SCOPES: usize = 10;
/// The longest scope that is kept, in bytes: a request may name any text.
const MAX_SCOPE_BYTES: usize = 255;

/// A decision that removed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When it was made.
    pub at: DateTime<Utc>,
    /// The user, or the client of a request without one.
    pub subject: Subject,
    /// What was removed, and why: some of it, when it was much.
    pub scopes: Vec<(String, Reason)>,
}

/// The last removals.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    last_ms: AtomicI64,
    kept: Mutex<VecDeque<Refusal>>,
}

impl Refusals {
    /// Keeps a decision when it removed something, unless that would take time.
    pub fn add(&self, decision: &Decision<'_>, subject: Option<SubjectRef<'_>>, now: DateTime<Utc>) {
        let Some(subject) = subject.filter(|_| decision.removed().next().is_some()) else { return };
        let (last, now_ms) = (self.last_ms.load(Ordering::Relaxed), now.timestamp_millis());
        if (last..last.saturating_add(GAP_MS)).contains(&now_ms) {
            return;
        }
        let Ok(mut kept) = self.kept.try_lock() else { return };
        self.last_ms.store(now_ms, Ordering::Relaxed);
        let removed =
            decision.outcomes.iter().filter(|outcome| !outcome.kept && outcome.scope.len() <= MAX_SCOPE_BYTES);
        let scopes = removed.take(MAX_SCOPES).map(|outcome| (outcome.scope.to_owned(), outcome.reason)).collect();
        if kept.len() >= KEPT {
            kept.pop_back();
        }
        kept.push_front(Refusal { at: now, subject: subject.to_subject(), scopes });
    }

    /// Those that are kept, the last one first.
    pub fn all(&self) -> Vec<Refusal> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::{
        decision::Outcome,
        subject::{SubjectId, SubjectType},
    };

    fn decision(scopes: &[(&'static str, bool)]) -> Decision<'static> {
        let outcome = |&(scope, kept): &(&'static str, bool)| Outcome {
            scope,
            kept,
            reason: if kept { Reason::Active } else { Reason::Expired },
            unenforced: None,
        };
        Decision { outcomes: scopes.iter().map(outcome).collect() }
    }

    #[test]
    fn the_last_removals_are_kept_and_not_more_often_than_now_and_then() {
        let subject = Subject { kind: SubjectType::User, id: SubjectId::parse("jane").expect("an id") };
        let start: DateTime<Utc> = "2026-06-15T12:00:00Z".parse().expect("a timestamp");
        let refusals = Refusals::default();
        refusals.add(&decision(&[("a", true)]), Some(subject.borrowed()), start);
        refusals.add(&decision(&[("a", false)]), None, start);
        assert_eq!(refusals.all(), []);
        for step in 0..200 {
            refusals.add(
                &decision(&[("a", false), ("b", true)]),
                Some(subject.borrowed()),
                start + TimeDelta::milliseconds(10 * step),
            );
        }
        let all = refusals.all();
        assert_eq!(all.len(), 40, "one of five");
        assert_eq!(all[0].at, start + TimeDelta::milliseconds(1950));
        assert_eq!(all[0].scopes, [("a".to_owned(), Reason::Expired)]);
        for step in 0..100 {
            refusals.add(&decision(&[("a", false)]), Some(subject.borrowed()), start + TimeDelta::seconds(10 + step));
        }
        assert_eq!(refusals.all().len(), KEPT);
    }
}
