//! Use cases of the history: who changed what, and when.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{Error, Result, Service, chain, idempotency::KEEP_ANSWERS, in_time};
use crate::{
    domain::{
        catalogue::{Catalogue, CatalogueScope, Rule},
        claims::Bearing,
        holdings::Holdings,
        subject::Subject,
        subscription::Subscription,
    },
    store::{
        self,
        change::{Place, Record},
    },
};

/// How often what is kept no longer is pruned.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);
/// The pause between two batches of it.
const PRUNE_GAP: Duration = Duration::from_millis(5);

/// How much later than it says a change may have been committed, or by another clock.
const PRUNE_SLACK: TimeDelta = TimeDelta::minutes(1);

/// What is kept for a while only.
#[derive(Debug, Clone, Copy)]
enum Prunable {
    Changes,
    Answers,
}

/// A part of the feed of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The changes, in the order of reading.
    pub records: Vec<Record>,
    /// The present.
    pub now: DateTime<Utc>,
}

impl Service {
    /// Up to `limit` changes of a subscription, be it a deleted one, after one of them, in the order in which they were
    /// made.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there never was such a subscription.
    pub async fn history(&self, subscription: Uuid, after: Option<i64>, limit: u64) -> Result<Vec<Record>> {
        let read = async {
            let reading = self.database.begin_reading().await?;
            let records = store::change::history(&reading, subscription, after, limit).await?;
            let is_known = !records.is_empty() || store::subscription::exists(&reading, subscription).await?;
            Ok(is_known.then_some(records))
        };
        in_time(read).await?.ok_or(Error::NotFound)
    }

    /// Up to `limit` changes of the catalogue and of subscriptions after a place that was read at an instant; from the
    /// oldest one on when there is none. Whoever goes on from the last place misses nothing.
    ///
    /// # Errors
    ///
    /// [`Error::ChangesGone`] when changes after that place may have been pruned since, or the database is another one.
    pub async fn changes(&self, after: Option<(Place, DateTime<Utc>)>, limit: u64) -> Result<Changes> {
        let now = self.clock.now();
        // Times are those of the writers' clocks, read before they commit.
        let is_pruned = |(_, read_at): (Place, DateTime<Utc>)| {
            self.pruned_before(now).is_some_and(|kept| read_at < kept + PRUNE_SLACK)
        };
        if after.is_some_and(is_pruned) {
            return Err(Error::ChangesGone);
        }
        let place = after.map_or(Place { transaction: 0, seq: 0 }, |(place, _)| place);
        let read = async {
            let reading = self.database.begin_reading().await?;
            store::change::since(&reading, place, limit).await
        };
        let records = in_time(read).await?.ok_or(Error::ChangesGone)?;
        Ok(Changes { records, now })
    }

    /// The catalogue, and what each of these subjects held, as they were known at an instant.
    pub(super) async fn read_known(
        &self,
        subjects: &[Subject],
        known_at: DateTime<Utc>,
    ) -> Result<(Catalogue, Vec<Holdings>)> {
        if self.pruned_before(self.clock.now()).is_some_and(|kept| known_at < kept) {
            return Err(Error::HistoryGone);
        }
        let read = async {
            let reading = self.database.begin_reading().await?;
            let Some(scopes) = store::history::scopes(&reading, known_at).await? else { return Ok(None) };
            let mut known = Vec::with_capacity(subjects.len());
            for subject in subjects {
                match store::history::subscriptions(&reading, subject, known_at).await? {
                    Some(subscriptions) => known.push(subscriptions),
                    None => return Ok(None),
                }
            }
            Ok(Some((scopes, known)))
        };
        let (scopes, known) = in_time(read).await?.ok_or(Error::HistoryGone)?;
        let claims = scopes.iter().filter(|scope| !scope.claims.is_empty());
        let claims = claims.map(|scope| (scope.name.clone(), scope.claims.clone())).collect();
        let rule = |scope: CatalogueScope| (scope.name, Rule { requires: scope.requires, enforced: scope.enforced });
        let catalogue = scopes.into_iter().map(rule).collect::<Catalogue>().with_claims(claims);
        Ok((catalogue, known.iter().map(|subscriptions| holdings(subscriptions)).collect()))
    }

    /// The instant before which changes are pruned at `now`; none when all are kept.
    pub(super) fn pruned_before(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let keep = TimeDelta::from_std(self.policy.keep_changes?).ok()?;
        now.checked_sub_signed(keep)
    }

    /// Prunes, again and again, changes and answers that are kept no longer.
    pub(super) async fn go_on_pruning(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PRUNE_INTERVAL).await;
            let now = self.clock.now();
            if let Some(before) = self.pruned_before(now) {
                self.prune(Prunable::Changes, before).await;
            }
            self.prune(Prunable::Answers, now - KEEP_ANSWERS).await;
        }
    }

    /// Prunes a batch a time, so that no transaction grows long.
    async fn prune(&self, what: Prunable, before: DateTime<Utc>) {
        let writers = self.database.writers();
        loop {
            let pruned = match what {
                Prunable::Changes => store::change::prune(writers, before).await,
                Prunable::Answers => store::idempotency::prune(writers, before).await,
            };
            match pruned {
                Ok(0) => break,
                Ok(_) => tokio::time::sleep(PRUNE_GAP).await,
                Err(error) => {
                    // An outage shows elsewhere, too; a role that may not delete shows here alone.
                    self.metrics.count_database_error(&error);
                    tracing::warn!(error = chain(&error), ?what, "what is kept no longer cannot be pruned");
                    break;
                }
            }
        }
    }
}

/// What subscriptions make a subject hold.
pub(super) fn holdings(subscriptions: &[Subscription]) -> Holdings {
    let with_claims = subscriptions.iter().filter(|subscription| !subscription.claims.is_empty());
    let bearing = |subscription: &Subscription| Bearing {
        id: subscription.id,
        life: subscription.life,
        scopes: subscription.scopes.as_slice().into(),
        claims: subscription.claims.clone(),
    };
    let bearings = with_claims.map(bearing).collect();
    let named = subscriptions.iter().flat_map(|subscription| {
        let Subscription { id, life, scopes, .. } = subscription;
        scopes.as_slice().iter().map(|scope| (scope.clone(), *id, *life))
    });
    Holdings::new(named.collect()).with_bearings(bearings)
}
