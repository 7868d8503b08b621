//! The use case of imports: many subscriptions, chunk by chunk, while hooks are answered beside it.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::{
    Error, Expected, Origin, Result, Service, Touched,
    subscription::{Batch, Outcome, Target, Write, apply_each},
    to_its_end,
};
use crate::{
    domain::{
        external::{External, ExternalKey},
        scope::Scope,
        subscription::SubscriptionState,
    },
    store::{
        self,
        bulk::{self, BulkTransaction, Recording, Rows},
    },
};

/// A subscription of an import: which one, and all that is said of it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Which one.
    pub target: Target,
    /// All that is said of it.
    pub state: SubscriptionState,
}

/// An import that may go on; while it lives, no other one does on this replica.
#[derive(Debug)]
pub struct Import {
    origin: Origin,
    is_dry_run: bool,
    _permit: OwnedSemaphorePermit,
}

impl Service {
    /// Begins an import.
    ///
    /// # Errors
    ///
    /// [`Error::ImportUnderWay`] while another one goes on here: several would only share the database, and take more of
    /// it from the hooks.
    pub fn begin_import(&self, origin: Origin, is_dry_run: bool) -> Result<Import> {
        let permit = Arc::clone(&self.imports).try_acquire_owned().map_err(|_| Error::ImportUnderWay)?;
        Ok(Import { origin, is_dry_run, _permit: permit })
    }

    /// Imports a chunk, in one or two transactions, and tells what became of each item. A dry run takes all of it back.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot go on: nothing, or a part of the chunk, was imported. Importing it
    /// again is safe, for what is there already is recognised.
    pub async fn import(self: &Arc<Self>, import: &Import, items: Vec<Item>) -> Result<Vec<Result<Outcome>>> {
        let service = Arc::clone(self);
        let (origin, is_dry_run) = (import.origin.clone(), import.is_dry_run);
        to_its_end(async move {
            let mut outcomes: Vec<Option<Result<Outcome>>> = Vec::new();
            outcomes.resize_with(items.len(), || None);
            let rest = match bulk::begin(&service.database).await? {
                Some(transaction) => service.import_new(transaction, &origin, is_dry_run, items, &mut outcomes).await?,
                None => items.into_iter().enumerate().collect(),
            };
            service.import_rest(&origin, is_dry_run, rest, &mut outcomes).await?;
            Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Ok(Outcome::Unchanged))).collect())
        })
        .await
    }

    /// Records what is new of a chunk, all at once, and gives back the rest with its places in the chunk: what is there
    /// already, or comes twice.
    async fn import_new(
        self: &Arc<Self>,
        mut transaction: BulkTransaction,
        origin: &Origin,
        is_dry_run: bool,
        items: Vec<Item>,
        outcomes: &mut [Option<Result<Outcome>>],
    ) -> Result<Vec<(usize, Item)>> {
        let now = self.clock.now();
        let known = known(&mut transaction, &items).await?;
        let (mut seen, mut new, mut rest) = (HashSet::new(), Vec::new(), Vec::new());
        let mut subscriptions = Vec::new();
        for (place, item) in items.into_iter().enumerate() {
            let missing = known.missing(&item);
            if !missing.is_empty() {
                outcomes[place] = Some(Err(Error::UnknownScopes(missing)));
                continue;
            }
            let name = name(&item.target);
            if known.holds(&item.target) || !seen.insert(name) {
                rest.push((place, item));
                continue;
            }
            match item.target.clone().new(item.state.clone(), now) {
                Ok(subscription) => {
                    subscriptions.push(subscription);
                    new.push((place, item));
                }
                Err(error) => outcomes[place] = Some(Err(error)),
            }
        }
        if subscriptions.is_empty() {
            return Ok(rest);
        }
        let touched = subscriptions.iter().map(|subscription| Touched::Subject(subscription.subject.clone())).collect();
        // Writing the images takes a while, in which this thread would answer no hook.
        let rows = tokio::task::spawn_blocking(move || Rows::of(&subscriptions)).await.map_err(Error::Aborted)?;
        let Origin { actor, request_id, .. } = origin;
        let recording = Recording { at: now, actor, request_id, action: "put" };
        match bulk::insert(&mut transaction, rows, recording).await {
            Ok(_) if is_dry_run => drop(transaction),
            Ok(seqs) => self.commit(bulk::commit(transaction), seqs, touched).await?,
            // Somebody else recorded one of them, or took a scope out of the catalogue, since they were looked for.
            Err(store::Error::Duplicate(_) | store::Error::Reference(_)) => {
                rest.extend(new);
                rest.sort_by_key(|(place, _)| *place);
                return Ok(rest);
            }
            Err(error) => return Err(error.into()),
        }
        for (place, _) in new {
            outcomes[place] = Some(Ok(Outcome::Created));
        }
        Ok(rest)
    }

    /// Records the rest of a chunk, one by one.
    async fn import_rest(
        self: &Arc<Self>,
        origin: &Origin,
        is_dry_run: bool,
        rest: Vec<(usize, Item)>,
        outcomes: &mut [Option<Result<Outcome>>],
    ) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let (places, items): (Vec<usize>, Vec<Item>) = rest.into_iter().unzip();
        let writes =
            items.into_iter().map(|Item { target, state }| Write::Put { target, state, expected: Expected::Any });
        let transaction = self.database.begin().await?;
        let Batch { results, seqs, touched } = apply_each(&transaction, origin, now, writes.collect()).await?;
        if is_dry_run {
            transaction.rollback().await.map_err(store::Error::from)?;
        } else {
            self.commit(store::database::commit(transaction), seqs, touched).await?;
        }
        for (place, result) in places.into_iter().zip(results) {
            outcomes[place] = Some(result.map(|written| written.outcome));
        }
        Ok(())
    }
}

/// What the database knows of a chunk.
struct Known {
    keys: HashSet<(String, String)>,
    ids: HashSet<Uuid>,
    scopes: HashSet<String>,
}

async fn known(transaction: &mut BulkTransaction, items: &[Item]) -> Result<Known> {
    let (mut keys, mut ids) = (Vec::new(), Vec::new());
    for item in items {
        match &item.target {
            Target::External(External { key, .. }) => keys.push(key),
            Target::Id(id) => ids.push(*id),
        }
    }
    let scopes: HashSet<&Scope> = items.iter().flat_map(|item| item.state.scopes.as_slice()).collect();
    Ok(Known {
        keys: bulk::known_keys(transaction, &keys).await?,
        ids: bulk::known_ids(transaction, ids).await?,
        scopes: bulk::known_scopes(transaction, &scopes).await?,
    })
}

impl Known {
    fn holds(&self, target: &Target) -> bool {
        match target {
            Target::External(External { key, .. }) => {
                self.keys.contains(&(key.source.as_str().to_owned(), key.id.as_str().to_owned()))
            }
            Target::Id(id) => self.ids.contains(id),
        }
    }

    /// The scopes that an item names and the catalogue does not have.
    fn missing(&self, item: &Item) -> Vec<Scope> {
        let scopes = item.state.scopes.as_slice().iter();
        scopes.filter(|scope| !self.scopes.contains(scope.as_str())).cloned().collect()
    }
}

/// What tells items of one chunk apart.
fn name(target: &Target) -> (Option<ExternalKey>, Option<Uuid>) {
    match target {
        Target::External(External { key, .. }) => (Some(key.clone()), None),
        Target::Id(id) => (None, Some(*id)),
    }
}
