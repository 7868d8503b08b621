//! Use cases of the subscriptions.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Error, Expected, Origin, Result, Service, Touched, in_time, new_id, to_its_end};
use crate::{
    domain::{
        life::{Term, Transition},
        scope::Scope,
        subject::Subject,
        subscription::{ScopeSet, Subscription, SubscriptionPatch},
        window::Window,
    },
    store::{
        self,
        change::{Change, Noun},
        subscription::Filter,
    },
};

/// A subscription to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSubscription {
    /// Who holds it.
    pub subject: Subject,
    /// What it grants.
    pub scopes: ScopeSet,
    /// The start of its window; the present when none is given.
    pub valid_from: Option<DateTime<Utc>>,
    /// The end of its window; none when it is open-ended.
    pub valid_until: Option<DateTime<Utc>>,
    /// The end of the grace after it, if there is one.
    pub grace_until: Option<DateTime<Utc>>,
}

/// A subscription with the present at which it is shown: its status is derived from both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The subscription.
    pub subscription: Subscription,
    /// The present.
    pub now: DateTime<Utc>,
}

impl Service {
    /// Records a subscription.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownScopes`] when scopes are not in the catalogue; [`Error::Window`] when it would hold nothing;
    /// [`Error::Grace`] when the grace would not end after it.
    pub async fn create_subscription(self: &Arc<Self>, origin: Origin, new: NewSubscription) -> Result<Shown> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let NewSubscription { subject, scopes, valid_from, valid_until, grace_until } = new;
            let term = Term::new(Window::new(valid_from.unwrap_or(now), valid_until)?, grace_until)?;
            let subscription = Subscription {
                id: new_id(now),
                subject,
                scopes,
                life: term.into(),
                version: 1,
                created_at: now,
                updated_at: now,
            };
            let transaction = service.database.begin().await?;
            if let Err(error) = store::subscription::insert(&transaction, &subscription).await {
                drop(transaction);
                return Err(service.unknown_scopes(error, subscription.scopes.as_slice()).await);
            }
            let seq = store::change::insert(&transaction, change(&origin, now, "create", &subscription)).await?;
            service.commit(transaction, seq, Touched::Subject(subscription.subject.clone())).await?;
            Ok(Shown { subscription, now })
        })
        .await
    }

    /// The subscription of an id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none, or it was deleted.
    pub async fn subscription(&self, id: Uuid) -> Result<Shown> {
        let now = self.clock.now();
        let find = async {
            let reading = self.database.begin_reading().await?;
            store::subscription::find(&reading, id).await
        };
        let subscription = in_time(find).await?.ok_or(Error::NotFound)?;
        Ok(Shown { subscription, now })
    }

    /// Up to `limit` subscriptions after an id, ascending by id, of a status at `now`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn subscriptions(
        &self,
        filter: &Filter,
        now: DateTime<Utc>,
        after: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<Subscription>> {
        let list = async {
            let reading = self.database.begin_reading().await?;
            store::subscription::list(&reading, filter, now, after, limit).await
        };
        in_time(list).await
    }

    /// Changes the scopes or the window of a subscription. `subject` is the one that the writer thinks holds it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::VersionMismatch`]; [`Error::AnotherSubject`]; [`Error::UnknownScopes`];
    /// [`Error::Window`]; [`Error::Grace`]; [`Error::Transition`] when it is canceled.
    pub async fn patch_subscription(
        self: &Arc<Self>,
        origin: Origin,
        id: Uuid,
        expected: Expected,
        subject: Option<Subject>,
        patch: SubscriptionPatch,
    ) -> Result<Shown> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let old = store::subscription::lock(&transaction, id).await?.ok_or(Error::NotFound)?;
            expected.check(old.version)?;
            if subject.is_some_and(|subject| subject != old.subject) {
                return Err(Error::AnotherSubject);
            }
            let new = old.clone().patch(patch, now)?;
            if new == old {
                return Ok(Shown { subscription: new, now });
            }
            if let Err(error) = store::subscription::update(&transaction, &old, &new).await {
                drop(transaction);
                return Err(service.unknown_scopes(error, new.scopes.as_slice()).await);
            }
            let seq = store::change::insert(&transaction, change(&origin, now, "patch", &new)).await?;
            service.commit(transaction, seq, Touched::Subject(new.subject.clone())).await?;
            Ok(Shown { subscription: new, now })
        })
        .await
    }

    /// Takes the life of a subscription through a transition.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::VersionMismatch`]; [`Error::Transition`] when it makes no sense.
    pub async fn transition_subscription(
        self: &Arc<Self>,
        origin: Origin,
        id: Uuid,
        expected: Expected,
        transition: Transition,
    ) -> Result<Shown> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let old = store::subscription::lock(&transaction, id).await?.ok_or(Error::NotFound)?;
            expected.check(old.version)?;
            let new = old.clone().after(transition, now)?;
            store::subscription::update(&transaction, &old, &new).await?;
            let seq = store::change::insert(&transaction, change(&origin, now, transition.as_str(), &new)).await?;
            service.commit(transaction, seq, Touched::Subject(new.subject.clone())).await?;
            Ok(Shown { subscription: new, now })
        })
        .await
    }

    /// Deletes a subscription: its row stays, and counts in no decision and shows in no answer from now on.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none, or it was deleted already; [`Error::VersionMismatch`].
    pub async fn delete_subscription(self: &Arc<Self>, origin: Origin, id: Uuid, expected: Expected) -> Result<()> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let subscription = store::subscription::lock(&transaction, id).await?.ok_or(Error::NotFound)?;
            expected.check(subscription.version)?;
            store::subscription::delete(&transaction, id, subscription.version, now).await?;
            let seq = store::change::insert(&transaction, change(&origin, now, "delete", &subscription)).await?;
            service.commit(transaction, seq, Touched::Subject(subscription.subject.clone())).await
        })
        .await
    }

    /// Brings a deleted subscription back, as it was before: as if it had been there all the time.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there never was one; [`Error::VersionMismatch`]; [`Error::NotDeleted`].
    pub async fn restore_subscription(self: &Arc<Self>, origin: Origin, id: Uuid, expected: Expected) -> Result<Shown> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let found = store::subscription::lock_any(&transaction, id).await?;
            let (old, is_deleted) = found.ok_or(Error::NotFound)?;
            expected.check(old.version)?;
            if !is_deleted {
                return Err(Error::NotDeleted);
            }
            let new = old.clone().restored(now);
            store::subscription::update(&transaction, &old, &new).await?;
            let seq = store::change::insert(&transaction, change(&origin, now, "restore", &new)).await?;
            service.commit(transaction, seq, Touched::Subject(new.subject.clone())).await?;
            Ok(Shown { subscription: new, now })
        })
        .await
    }

    /// The error of a write that the database refused for a reference: it names the scopes that are missing.
    async fn unknown_scopes(&self, error: store::Error, scopes: &[Scope]) -> Error {
        match error {
            store::Error::Reference(_) => match store::catalogue::missing(self.database.readers(), scopes).await {
                Ok(missing) => Error::UnknownScopes(missing),
                Err(error) => error.into(),
            },
            error => error.into(),
        }
    }
}

fn change<'a>(
    origin: &'a Origin,
    at: DateTime<Utc>,
    action: &'static str,
    subscription: &'a Subscription,
) -> Change<'a> {
    let noun = Noun::Subscription { id: subscription.id, subject: &subscription.subject };
    Change { at, actor: &origin.actor, request_id: &origin.request_id, action, noun }
}
