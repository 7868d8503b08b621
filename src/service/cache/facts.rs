//! The facts of subjects, and the loads that fetch them.

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use super::{
    Found, Ground,
    platform::{CacheSize, Value},
    protocol::{Currency, Enlisted, Entry, Protocol},
};
use crate::{
    domain::{
        facts::Facts,
        subject::{Subject, SubjectRef},
    },
    store::{self, lane::Connection},
};

/// Queries under way at once: enough to keep the database busy, few enough that a cold start does not flood it. While
/// they are under way, further misses gather for the next query.
const CONCURRENT_LOADS: usize = 4;
/// Subjects asked for in one query: it bounds the time that the first of them waits for the last.
const LOAD_BATCH: usize = 512;

/// The facts of subjects.
#[derive(Debug)]
pub struct FactsCache {
    ground: Arc<Ground>,
    protocol: Protocol,
}

/// Facts that a request has, or waits for.
enum Wait {
    Known(Value),
    For(oneshot::Receiver<Result<Value, Arc<store::Error>>>),
}

impl FactsCache {
    /// An empty cache.
    pub fn new(ground: Arc<Ground>) -> Arc<Self> {
        Arc::new(Self { ground, protocol: Protocol::empty() })
    }

    /// What is known of each of these subjects, none of it older than any write that was answered before the call, for
    /// who asks at `now` and waits until the deadline.
    pub async fn get<const N: usize>(
        self: &Arc<Self>,
        subjects: [Option<SubjectRef<'_>>; N],
        now: Instant,
        deadline: Instant,
    ) -> [Option<Found<Facts>>; N] {
        let mut found = subjects.map(|subject| self.fresh(subject?, now).map(Found::Fresh));
        let asked = subjects.iter().flatten().count();
        let hits = found.iter().flatten().count();
        self.ground.metrics.count_cache_lookups(hits, asked - hits);
        if hits == asked {
            return found;
        }
        // Boxed, as it is seldom come by.
        Box::pin(self.wait(&mut found, subjects, now, deadline)).await;
        found
    }

    /// Loads what is not known, and waits for it until the deadline.
    async fn wait<const N: usize>(
        self: &Arc<Self>,
        found: &mut [Option<Found<Facts>>; N],
        subjects: [Option<SubjectRef<'_>>; N],
        now: Instant,
        deadline: Instant,
    ) {
        let places = found.iter_mut().zip(subjects);
        let missed: Vec<_> = places
            .filter(|(found, _)| found.is_none())
            .filter_map(|(place, subject)| Some((place, subject?)))
            .collect();
        let wanted: Vec<_> = missed.iter().map(|(_, subject)| *subject).collect();
        let waiting = self.enlist(&wanted, now);
        for ((place, subject), wait) in missed.into_iter().zip(waiting) {
            let loaded = match wait {
                Some(Wait::Known(facts)) => Some(facts),
                // Neither an error of the query nor its absence is told from here: both were counted where they happened.
                Some(Wait::For(loaded)) => match tokio::time::timeout_at(deadline.into(), loaded).await {
                    Ok(Ok(Ok(facts))) => Some(facts),
                    Ok(Ok(Err(_)) | Err(_)) | Err(_) => None,
                },
                None => None,
            };
            *place = Some(match loaded {
                Some(facts) => Found::Fresh(facts),
                None => self.stale(subject).map_or(Found::Unknown, Found::Stale),
            });
        }
    }

    /// Tells that a change of the subject was committed. Whoever asks from now on gets facts that were read since.
    pub fn changed(&self, subject: &Subject) {
        self.protocol.changed(subject);
    }

    /// Tells that changes of so many subjects were committed that naming them is not worth it.
    pub fn all_changed(&self) {
        self.protocol.all_changed();
    }

    /// Tells that changes may have been missed.
    pub fn doubt(&self) {
        self.protocol.doubt();
    }

    /// How full the cache is.
    pub fn size(&self) -> CacheSize {
        self.protocol.entries().size()
    }

    fn is_fresh(&self, entry: &Entry, currency: Currency, now: Instant) -> bool {
        currency == Currency::Current && now < self.ground.right_until(entry.asked_at)
    }

    fn fresh(&self, subject: SubjectRef<'_>, now: Instant) -> Option<Value> {
        let (entry, currency) = self.protocol.look_up(subject)?;
        self.is_fresh(&entry, currency, now).then_some(entry.value)
    }

    /// What was right a while ago, if the operator allows it: with no change known, and not for too long.
    fn stale(&self, subject: SubjectRef<'_>) -> Option<Value> {
        let (entry, currency) = self.protocol.look_up(subject)?;
        let right_until = match currency {
            Currency::Current => self.ground.right_until(entry.asked_at),
            // Since when it may be wrong is not known.
            Currency::Unsure => entry.asked_at,
            Currency::Outdated => return None,
        };
        (Instant::now() < right_until + self.ground.ages.max_stale).then_some(entry.value)
    }

    /// Enlists the subjects that are not known for the next load; none where the database is not asked just now.
    fn enlist(self: &Arc<Self>, subjects: &[SubjectRef<'_>], now: Instant) -> Vec<Option<Wait>> {
        if !self.ground.breaker.allows(now) {
            return subjects.iter().map(|_| None).collect();
        }
        let mut receivers = Vec::with_capacity(subjects.len());
        let wanted: Vec<_> = subjects
            .iter()
            .map(|subject| {
                let (sender, receiver) = oneshot::channel();
                receivers.push(receiver);
                (subject.to_subject(), sender)
            })
            .collect();
        let is_good = |entry: &Entry, currency| self.is_fresh(entry, currency, now);
        let (enlisted, start) = self.protocol.enlist(wanted, is_good, CONCURRENT_LOADS);
        if start {
            // A task of its own: whoever hangs up must not cancel what others wait for.
            tokio::spawn(Arc::clone(self).run_loads());
        }
        let waits = enlisted.into_iter().zip(receivers).map(|(enlisted, receiver)| match enlisted {
            Enlisted::Known(facts) => Wait::Known(facts),
            Enlisted::Waiting => Wait::For(receiver),
        });
        waits.map(Some).collect()
    }

    /// Loads what is queued, batch after batch, until nothing is.
    async fn run_loads(self: Arc<Self>) {
        while let Some(batch) = self.protocol.take_batch(LOAD_BATCH) {
            let subjects: Vec<Subject> = batch.iter().map(|(subject, _)| subject.clone()).collect();
            self.ground.metrics.count_cache_load(subjects.len());
            let asked_at = Instant::now();
            let values: Vec<_> = match self.load(subjects.clone()).await {
                Ok(facts) => facts.into_iter().map(Ok).collect(),
                // One row that is not what it should be must not cost the others their answer.
                Err(store::Error::Unexpected(_)) if subjects.len() > 1 => {
                    let mut values = Vec::with_capacity(subjects.len());
                    for subject in subjects {
                        let loaded = self.load(vec![subject]).await;
                        values.push(loaded.map(|facts| facts.into_iter().next().unwrap_or_default()));
                    }
                    values.into_iter().map(|value| value.map_err(Arc::new)).collect()
                }
                Err(error) => vec![Err(Arc::new(error)); subjects.len()],
            };
            let facts: Vec<_> = values.iter().map(|value| value.as_ref().ok().cloned()).collect();
            for ((waiters, _), value) in self.protocol.finish(batch, facts, asked_at).into_iter().zip(values) {
                for waiter in waiters {
                    // Whoever hung up does not need the answer.
                    let _ = waiter.send(value.clone());
                }
            }
        }
    }

    async fn load(&self, subjects: Vec<Subject>) -> store::Result<Vec<Facts>> {
        let ground = Arc::clone(&self.ground);
        let load = async move {
            let load = async |lane: &mut Connection| store::facts::load(lane, &subjects).await;
            ground.database.hooks().run(ground.query_timeout, load).await
        };
        // In a task, so that a panic below would end as an error for those who wait, and not as silence.
        let loaded = tokio::spawn(load).await.unwrap_or_else(|_| Err(store::Error::corrupt("subscription")));
        self.ground.note(&loaded);
        loaded
    }
}
