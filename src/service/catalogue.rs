//! Use cases of the catalogue.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{
    Error, Expected, Origin, Result, Service, Touched,
    idempotency::{Begun, Kept, undo},
    in_time,
    losses::Lost,
    to_its_end,
};
use crate::{
    domain::{
        catalogue::{CatalogueScope, CatalogueScopePatch, Description, Requires},
        claims::Claims,
        scope::Scope,
    },
    store::{
        self,
        change::{Change, Noun},
        image,
    },
};

/// A scope to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCatalogueScope {
    /// Its name.
    pub name: Scope,
    /// What it stands for, in words.
    pub description: Option<Description>,
    /// Who must hold it.
    pub requires: Requires,
    /// Whether it is taken away from those who do not.
    pub enforced: bool,
    /// What a token is told while it is held.
    pub claims: Claims,
}

/// How many subjects hold a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holders {
    /// The subjects that were counted.
    pub subjects: u64,
    /// Whether these are all.
    pub is_all: bool,
}

impl Service {
    /// Registers a scope: from the answer on it is managed.
    ///
    /// # Errors
    ///
    /// [`Error::ScopeExists`] when its name is registered.
    pub async fn create_scope(self: &Arc<Self>, origin: Origin, new: NewCatalogueScope) -> Result<CatalogueScope> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let NewCatalogueScope { name, description, requires, enforced, claims } = new;
            let (version, created_at, updated_at) = (1, now, now);
            let scope =
                CatalogueScope { name, description, requires, enforced, claims, version, created_at, updated_at };
            let once = service.once(&origin)?;
            let transaction = match once.begin(&service.database, now).await? {
                Begun::Now(transaction) => transaction,
                Begun::Before(scope) => {
                    service.tell(&[Touched::Catalogue]).await;
                    return Ok(scope);
                }
            };
            if let Err(error) = store::catalogue::insert(&transaction, &scope).await {
                undo(transaction).await;
                return Err(match error {
                    store::Error::Duplicate(_) => Error::ScopeExists,
                    error => error.into(),
                });
            }
            let change = change(&origin, now, "create", &scope.name, None, Some(&scope));
            let seq = store::change::insert(&transaction, change).await?;
            once.keep(&transaction, now, &scope).await?;
            service.commit(store::database::commit(transaction), vec![seq], vec![Touched::Catalogue]).await?;
            Ok(scope)
        })
        .await
    }

    /// The scope of a name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it is not in the catalogue.
    pub async fn scope(&self, name: &Scope) -> Result<CatalogueScope> {
        in_time(store::catalogue::find(self.database.readers(), name)).await?.ok_or(Error::NotFound)
    }

    /// Up to `limit` scopes after a name, ascending.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn scopes(&self, after: Option<&Scope>, limit: u64) -> Result<Vec<CatalogueScope>> {
        in_time(store::catalogue::list(self.database.readers(), after, limit)).await
    }

    /// How many subjects hold a scope now by subscriptions of their own, counted up to `most` subscriptions that grant it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked, or does not answer in time: it looks at every subscription
    /// that names the scope until it has found so many.
    pub async fn holders(&self, scope: &Scope, most: u64) -> Result<Holders> {
        let now = self.clock.now();
        let count = async {
            let reading = self.database.begin_reading().await?;
            store::subscription::count_holders(&reading, scope, now, most).await
        };
        let (subjects, granting) = in_time(count).await?;
        Ok(Holders { subjects, is_all: granting < most })
    }

    /// How many subjects would have lost a scope in the last day, were its rule enforced, by what this process has
    /// decided; none when there was nobody. And since when that is counted.
    #[must_use]
    pub fn losses(&self, scope: &Scope) -> (Option<Lost>, DateTime<Utc>) {
        (self.losses.of(scope.as_str(), self.clock.now()), self.losses.since())
    }

    /// Changes a scope.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::VersionMismatch`] when it is at another version than expected; [`Error::Claims`].
    pub async fn patch_scope(
        self: &Arc<Self>,
        origin: Origin,
        name: Scope,
        expected: Expected,
        patch: CatalogueScopePatch,
    ) -> Result<CatalogueScope> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let old = store::catalogue::lock(&transaction, &name).await?.ok_or(Error::NotFound)?;
            expected.check(old.version)?;
            let new = old.clone().patch(patch, now)?;
            if new.version == old.version {
                // Whoever is answered so may have asked before, elsewhere or in vain.
                service.tell(&[Touched::Catalogue]).await;
                return Ok(new);
            }
            store::catalogue::update(&transaction, &new).await?;
            let change = change(&origin, now, "patch", &name, Some(&old), Some(&new));
            let seq = store::change::insert(&transaction, change).await?;
            service.commit(store::database::commit(transaction), vec![seq], vec![Touched::Catalogue]).await?;
            Ok(new)
        })
        .await
    }

    /// Deletes a scope: from the answer on it is unmanaged.
    ///
    /// # Errors
    ///
    /// [`Error::ScopeInUse`] while a subscription, be it a deleted one, names it; [`Error::NotFound`];
    /// [`Error::VersionMismatch`].
    pub async fn delete_scope(self: &Arc<Self>, origin: Origin, name: Scope, expected: Expected) -> Result<()> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let scope = store::catalogue::lock(&transaction, &name).await?.ok_or(Error::NotFound)?;
            expected.check(scope.version)?;
            store::catalogue::delete(&transaction, &name).await.map_err(|error| match error {
                store::Error::Reference(_) => Error::ScopeInUse,
                error => error.into(),
            })?;
            let change = change(&origin, now, "delete", &name, Some(&scope), None);
            let seq = store::change::insert(&transaction, change).await?;
            service.commit(store::database::commit(transaction), vec![seq], vec![Touched::Catalogue]).await
        })
        .await
    }
}

fn change<'a>(
    origin: &'a Origin,
    at: DateTime<Utc>,
    action: &'static str,
    name: &'a Scope,
    before: Option<&'a CatalogueScope>,
    after: Option<&'a CatalogueScope>,
) -> Change<'a> {
    let Origin { actor, request_id, .. } = origin;
    Change { at, actor, request_id, action, noun: Noun::Catalogue { name, before, after } }
}

impl Kept for CatalogueScope {
    fn write(&self) -> String {
        format!("{} {}", self.name, image::of_scope(self))
    }

    fn read(kept: &str) -> store::Result<Self> {
        // No scope holds a blank.
        let (name, image) = kept.split_once(' ').ok_or_else(|| store::Error::corrupt("answer"))?;
        image::scope(Scope::parse(name).map_err(|_| store::Error::corrupt("answer"))?, image)
    }
}
