//! The facts of subjects, and the loads that fetch them.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    Found, Ground,
    platform::{CacheSize, Value},
    protocol::{Currency, Enlisted, Entry, Protocol, Stamp},
};
use crate::{
    domain::{
        facts::Facts,
        subject::{Subject, SubjectRef},
    },
    service::trace,
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

/// Subjects that a query asks for, each with the stamp that it began at.
type Batch = Vec<(Subject, Stamp)>;

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
        Box::pin(trace::during("read facts", self.wait(&mut found, subjects, now, deadline))).await;
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
        let (waiting, start) = self.enlist(&wanted, now);
        if start {
            // Here, and not in a task of its own: waking one costs as much as the query.
            let load = GoingOn::new(Arc::clone(self).begin_loads());
            // Those who wait, this one among them, are told how it ended; or are not, until the deadline.
            let _ = tokio::time::timeout_at(deadline.into(), load).await;
        }
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

    /// Enlists the subjects that are not known for the next load; none where the database is not asked just now. And
    /// whether the caller has to begin loads.
    fn enlist(&self, subjects: &[SubjectRef<'_>], now: Instant) -> (Vec<Option<Wait>>, bool) {
        if !self.ground.breaker.allows(now) {
            return (subjects.iter().map(|_| None).collect(), false);
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
        let waits = enlisted.into_iter().zip(receivers).map(|(enlisted, receiver)| match enlisted {
            Enlisted::Known(facts) => Wait::Known(facts),
            Enlisted::Waiting => Wait::For(receiver),
        });
        (waits.map(Some).collect(), start)
    }

    /// Loads a batch of what is queued. What is queued meanwhile is for a task of its own: whoever waits for this batch
    /// does not wait for the next.
    async fn begin_loads(self: Arc<Self>) {
        let Some(batch) = self.protocol.take_batch(LOAD_BATCH) else { return };
        self.load_batch(batch).await;
        if let Some(batch) = self.protocol.take_batch(LOAD_BATCH) {
            tokio::spawn(self.go_on_loading(batch));
        }
    }

    /// Loads a batch and what is queued, batch after batch, until nothing is.
    async fn go_on_loading(self: Arc<Self>, batch: Batch) {
        let mut next = Some(batch);
        while let Some(batch) = next {
            self.load_batch(batch).await;
            next = self.protocol.take_batch(LOAD_BATCH);
        }
    }

    async fn load_batch(&self, batch: Batch) {
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

    async fn load(&self, subjects: Vec<Subject>) -> store::Result<Vec<Facts>> {
        let ground = Arc::clone(&self.ground);
        let load = async move {
            let load = async |lane: &mut Connection| store::facts::load(lane, &subjects).await;
            ground.database.hooks().run(ground.query_timeout, load).await
        };
        // A panic below ends as an error for those who wait, and not as silence. What it leaves behind is a connection,
        // which is closed.
        let loaded = AssertUnwindSafe(load).catch_unwind().await;
        let loaded = loaded.unwrap_or_else(|_| Err(store::Error::corrupt("subscription")));
        self.ground.note(&loaded);
        loaded
    }
}

/// Work that goes on in a task of its own when nobody waits for it any more: whoever hangs up must not cancel what
/// others wait for.
struct GoingOn(Option<BoxFuture<'static, ()>>);

impl GoingOn {
    fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl Future for GoingOn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(work) = &mut self.0 {
            ready!(work.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        // Without a runtime there is nobody left who waits.
        if let Some(work) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_goes_on() {
        for is_begun in [false, true] {
            let (gate, done) = (Arc::new(Notify::new()), Arc::new((AtomicBool::new(false), Notify::new())));
            let (its_gate, its_done) = (Arc::clone(&gate), Arc::clone(&done));
            let mut work = Box::pin(GoingOn::new(async move {
                its_gate.notified().await;
                its_done.0.store(true, Ordering::SeqCst);
                its_done.1.notify_one();
            }));
            if is_begun {
                assert!(work.as_mut().now_or_never().is_none());
            }
            drop(work);
            gate.notify_one();
            done.1.notified().await;
            assert!(done.0.load(Ordering::SeqCst));
        }
    }
}
