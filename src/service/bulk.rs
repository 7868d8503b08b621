//! The use case of imports: many subscriptions, chunk by chunk, while hooks are answered beside it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::{
    Apart, BULK_TIMEOUT, Error, Expected, Origin, Result, Service, Touched, apart,
    subscription::{Batch, Outcome, Target, Write, apply_each, hold},
};
use crate::{
    domain::{
        external::{External, ExternalKey},
        scope::Scope,
        subscription::{Put, Subscription, SubscriptionState},
    },
    store::{
        self, Database,
        bulk::{self, Recording, Rows},
    },
};

/// Writes of a chunk that are done one by one in a transaction: so many that others do not wait for them long.
const WRITES_AT_ONCE: usize = 100;

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
    /// Whether all of the last chunk that was looked for was new, so that the next one is taken to be.
    expects_new: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

/// Items of a chunk, with their places in it.
type Placed = Vec<(usize, Item)>;

impl Service {
    /// Begins an import.
    ///
    /// # Errors
    ///
    /// [`Error::ImportUnderWay`] while another one goes on here: several would only share the database, and take more of
    /// it from the hooks.
    pub fn begin_import(&self, origin: Origin, is_dry_run: bool) -> Result<Import> {
        let permit = Arc::clone(&self.imports).try_acquire_owned().map_err(|_| Error::ImportUnderWay)?;
        Ok(Import { origin, is_dry_run, expects_new: AtomicBool::new(false), _permit: permit })
    }

    /// Begins an export, which goes on for as long as what is given back lives.
    ///
    /// # Errors
    ///
    /// [`Error::ExportUnderWay`] while as many go on here as may.
    pub fn begin_export(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.exports).try_acquire_owned().map_err(|_| Error::ExportUnderWay)
    }

    /// Imports a chunk, in a few transactions, and tells what became of each item. A dry run takes all of it back.
    ///
    /// It computes for milliseconds on end, and must not be dropped half-way: it is done apart.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot go on: nothing, or a part of the chunk, was imported. Importing it
    /// again is safe, for what is there already is recognised.
    pub async fn import(
        self: &Arc<Self>,
        import: &Import,
        apart: &Apart,
        items: Vec<Item>,
    ) -> Result<Vec<Result<Outcome>>> {
        let Import { origin, is_dry_run, expects_new, _permit: _ } = import;
        let (database, is_dry_run) = (&apart.database, *is_dry_run);
        let importing = async {
            let mut outcomes: Vec<Option<Result<Outcome>>> = Vec::new();
            outcomes.resize_with(items.len(), || None);
            let mut unsorted: Placed = items.into_iter().enumerate().collect();
            // Most files are new from some line on: what the database knows is not looked for in vain then.
            if expects_new.load(Ordering::Relaxed) {
                let (first, again) = first_of_each(unsorted);
                unsorted = self.import_new(database, origin, is_dry_run, first, false, &mut outcomes).await?;
                unsorted.extend(again);
                unsorted.sort_by_key(|(place, _)| *place);
            }
            if !unsorted.is_empty() {
                let count = unsorted.len();
                let (new, mut rest) = self.sort(database, unsorted, &mut outcomes).await?;
                let is_new = new.len() == count;
                let left = self.import_new(database, origin, is_dry_run, new, true, &mut outcomes).await?;
                expects_new.store(is_new && left.is_empty(), Ordering::Relaxed);
                rest.extend(left);
                // What comes twice comes in its order.
                rest.sort_by_key(|(place, _)| *place);
                self.import_rest(database, origin, is_dry_run, rest, &mut outcomes).await?;
            }
            Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Ok(Outcome::Unchanged))).collect())
        };
        tokio::time::timeout(BULK_TIMEOUT, importing).await.unwrap_or(Err(Error::TimedOut))
    }

    /// Parts what is new from what may be a change of what is there. What is said once and is nothing new is done with
    /// here, without a lock: a file that is imported again is read as fast as it was imported.
    async fn sort(
        &self,
        database: &Database,
        items: Placed,
        outcomes: &mut [Option<Result<Outcome>>],
    ) -> Result<(Placed, Placed)> {
        let now = self.clock.now();
        let known = known(database, &items).await?;
        let (mut fit, mut found) = (Vec::with_capacity(items.len()), Vec::new());
        for (place, item) in items {
            let missing = known.missing(&item);
            if missing.is_empty() {
                fit.push((place, item));
            } else {
                outcomes[place] = Some(Err(Error::UnknownScopes(missing)));
            }
        }
        let (first, mut rest) = first_of_each(fit);
        let mut new = Vec::new();
        // One that has an external id may be named by its id, too, and what is said first counts first.
        let mut changing: HashSet<Uuid> =
            rest.iter().filter_map(|(_, item)| known.subscription(item)).map(|there| there.id).collect();
        for (place, item) in first {
            apart::give_way();
            let Some(there) = known.subscription(&item) else {
                new.push((place, item));
                continue;
            };
            if changing.contains(&there.id) {
                rest.push((place, item));
                continue;
            }
            match item.target.put(there.clone(), item.state.clone(), now) {
                Ok(Put::Changed(_)) => {
                    changing.insert(there.id);
                    rest.push((place, item));
                }
                Ok(Put::Unchanged(_)) => {
                    found.push(there.subject.clone());
                    outcomes[place] = Some(Ok(Outcome::Unchanged));
                }
                Ok(Put::Outdated(_)) => {
                    found.push(there.subject.clone());
                    outcomes[place] = Some(Ok(Outcome::Outdated));
                }
                Err(error) => outcomes[place] = Some(Err(error)),
            }
        }
        if !found.is_empty() {
            // Whoever wrote it may have got no answer, or another replica did: the cache may not know of it yet. Others
            // need not be told, for nothing was written.
            let facts = Arc::clone(&self.facts);
            let refresh = async move {
                for subject in &found {
                    facts.changed(subject);
                }
            };
            apart::on_service_runtime(refresh).await;
        }
        Ok((new, rest))
    }

    /// Records what is new of a chunk, all at once, and gives back what it did not record: all of it where the database
    /// does not take it, because it knows some of it or not a scope, or because somebody else is at it, and on SQLite.
    /// What nothing new may say is refused, if it was looked for; else it is given back, too.
    async fn import_new(
        self: &Arc<Self>,
        database: &Database,
        origin: &Origin,
        is_dry_run: bool,
        new: Placed,
        was_looked_for: bool,
        outcomes: &mut [Option<Result<Outcome>>],
    ) -> Result<Placed> {
        if !bulk::is_for(database) {
            return Ok(new);
        }
        let now = self.clock.now();
        let (mut rows, mut touched) = (Rows::default(), Vec::with_capacity(new.len()));
        let (mut taken, mut left): (Placed, Placed) = (Vec::with_capacity(new.len()), Vec::new());
        for (place, item) in new {
            apart::give_way();
            match item.target.clone().recorded(item.state.clone(), now) {
                Ok(subscription) => {
                    rows.push(&subscription);
                    touched.push(Touched::Subject(subscription.subject));
                    taken.push((place, item));
                }
                Err(error) if was_looked_for => outcomes[place] = Some(Err(error)),
                Err(_) => left.push((place, item)),
            }
        }
        if taken.is_empty() {
            return Ok(left);
        }
        let Origin { actor, request_id, .. } = origin;
        let recording = Recording { at: now, actor, request_id, action: "put" };
        let mut transaction = bulk::begin(database).await?;
        match bulk::insert(&mut transaction, rows, recording).await {
            Ok(_) if is_dry_run => bulk::undo(transaction).await,
            Ok(seqs) => {
                self.commit(bulk::commit(transaction), seqs, touched).await?;
            }
            Err(error) => {
                match &error {
                    store::Error::Duplicate(_) | store::Error::Reference(_) => {}
                    error => tracing::warn!(?error, "a chunk of an import is written line by line"),
                }
                bulk::undo(transaction).await;
                left.extend(taken);
                return Ok(left);
            }
        }
        for (place, _) in taken {
            outcomes[place] = Some(Ok(Outcome::Created));
        }
        Ok(left)
    }

    /// Records the rest of a chunk, one by one.
    async fn import_rest(
        self: &Arc<Self>,
        database: &Database,
        origin: &Origin,
        is_dry_run: bool,
        mut rest: Placed,
        outcomes: &mut [Option<Result<Outcome>>],
    ) -> Result<()> {
        while !rest.is_empty() {
            // In a dry run each of these sees what those before it have done, in one transaction.
            let count = if is_dry_run { rest.len() } else { rest.len().min(WRITES_AT_ONCE) };
            let later = rest.split_off(count);
            let (places, items): (Vec<usize>, Vec<Item>) = std::mem::replace(&mut rest, later).into_iter().unzip();
            let write = |Item { target, state }: Item| Write::Put { target, state, expected: Expected::Any };
            let writes: Vec<Write> = items.into_iter().map(write).collect();
            let now = self.clock.now();
            let transaction = database.begin().await?;
            hold(&transaction, &writes).await?;
            let Batch { results, seqs, touched } = apply_each(&transaction, origin, now, writes).await?;
            if is_dry_run {
                transaction.rollback().await.map_err(store::Error::from)?;
            } else {
                self.commit(store::database::commit(transaction), seqs, touched).await?;
            }
            for (place, result) in places.into_iter().zip(results) {
                outcomes[place] = Some(result.map(|written| written.outcome));
            }
        }
        Ok(())
    }
}

/// What the database knows of a chunk.
async fn known(database: &Database, items: &[(usize, Item)]) -> Result<Known> {
    let (mut keys, mut ids) = (Vec::new(), Vec::new());
    for (_, item) in items {
        match &item.target {
            Target::External(External { key, .. }) => keys.push(key),
            Target::Id { id, .. } => ids.push(*id),
        }
    }
    let scopes: HashSet<&Scope> = items.iter().flat_map(|(_, item)| item.state.scopes.as_slice()).collect();
    let scopes: Vec<Scope> = scopes.into_iter().cloned().collect();
    let reading = database.begin_reading().await?;
    let missing = store::catalogue::missing(&reading, &scopes).await?;
    let by_key = store::subscription::find_by_keys(&reading, &keys).await?;
    let by_id = store::subscription::find_by_ids(&reading, &ids).await?;
    // Not left open while the next chunk is waited for.
    reading.rollback().await.map_err(store::Error::from)?;
    let of_key = |subscription: Subscription| {
        let key = subscription.external.as_ref().map(|external| external.key.clone());
        ((key, None), subscription)
    };
    let of_id = |subscription: Subscription| ((None, Some(subscription.id)), subscription);
    Ok(Known {
        subscriptions: by_key.into_iter().map(of_key).chain(by_id.into_iter().map(of_id)).collect(),
        missing: missing.into_iter().collect(),
    })
}

/// What the database knows of a chunk.
struct Known {
    subscriptions: HashMap<Name, Subscription>,
    missing: HashSet<Scope>,
}

/// What tells items of one chunk apart: an external id, or an id.
type Name = (Option<ExternalKey>, Option<Uuid>);

impl Known {
    /// The subscription that an item names, if it is known.
    fn subscription(&self, item: &Item) -> Option<&Subscription> {
        self.subscriptions.get(&name(&item.target))
    }

    /// The scopes that an item names and the catalogue does not have.
    fn missing(&self, item: &Item) -> Vec<Scope> {
        item.state.scopes.as_slice().iter().filter(|scope| self.missing.contains(*scope)).cloned().collect()
    }
}

/// Parts the first item of each subscription from those that name it again.
fn first_of_each(items: Placed) -> (Placed, Placed) {
    let mut seen = HashSet::with_capacity(items.len());
    items.into_iter().partition(|(_, item)| {
        apart::give_way();
        seen.insert(name(&item.target))
    })
}

fn name(target: &Target) -> Name {
    match target {
        Target::External(External { key, .. }) => (Some(key.clone()), None),
        Target::Id { id, .. } => (None, Some(*id)),
    }
}
