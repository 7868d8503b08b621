//! Use cases of the subscriptions.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{DatabaseTransaction, TransactionTrait as _};
use uuid::Uuid;

use super::{
    Apart, Error, Expected, Origin, Result, Service, Touched, all_to_their_end,
    explain::ExplanationRequest,
    idempotency::{Begun, Kept, undo},
    in_time, new_id, to_its_end,
};
use crate::{
    domain::{
        explain::Explanation,
        external::{External, ExternalKey},
        life::Transition,
        scope::Scope,
        subject::Subject,
        subscription::{Put, Subscription, SubscriptionPatch, SubscriptionState},
    },
    store::{
        self,
        change::{Change, Noun},
        image,
        subscription::{After, Filter},
    },
};

/// A subscription to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSubscription {
    /// All that is said of it.
    pub state: SubscriptionState,
    /// What another system knows it by, if one does.
    pub external: Option<External>,
}

/// A write to one subscription.
#[derive(Debug, Clone)]
pub enum Write {
    /// To record a new one.
    Create(NewSubscription),
    /// To record all that is said of a subscription, whether it is there already or not.
    Put {
        /// Which one.
        target: Target,
        /// All that it says.
        state: SubscriptionState,
        /// Which versions may be changed.
        expected: Expected,
    },
    /// To change the scopes, the window or the grace.
    Patch {
        /// Its id.
        id: Uuid,
        /// Which versions may be changed.
        expected: Expected,
        /// Who the writer thinks holds it.
        subject: Option<Subject>,
        /// What to change.
        patch: SubscriptionPatch,
    },
    /// To take its life through a transition.
    Transition {
        /// Its id.
        id: Uuid,
        /// Which versions may be changed.
        expected: Expected,
        /// The transition.
        transition: Transition,
    },
    /// To delete it: its row stays, and counts in no decision from then on.
    Delete {
        /// Its id.
        id: Uuid,
        /// Which versions may be deleted.
        expected: Expected,
    },
    /// To bring a deleted one back, as it was before.
    Restore {
        /// Its id.
        id: Uuid,
        /// Which versions may be restored.
        expected: Expected,
    },
}

/// What a subscription is known by to whoever says all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// What another system knows it by, and the version of what it says.
    External(External),
    /// Its id, from an export.
    Id {
        /// The id.
        id: Uuid,
        /// The version that was exported; none when it was not told.
        version: Option<i64>,
    },
}

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There is a subscription that was not there before.
    Created,
    /// It was changed.
    Changed,
    /// It was so already.
    Unchanged,
    /// Its source has said something newer before.
    Outdated,
}

/// A subscription with the present at which it is shown: its status is derived from both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The subscription.
    pub subscription: Subscription,
    /// The present.
    pub now: DateTime<Utc>,
}

/// A subscription after a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The subscription.
    pub shown: Shown,
    /// What the write came to.
    pub outcome: Outcome,
}

/// What a write would come to, were it done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview<'a> {
    /// The subscription as it is; none when there is none yet.
    pub before: Option<Subscription>,
    /// The subscription as it would be.
    pub after: Subscription,
    /// The instant of which the explanations are.
    pub at: DateTime<Utc>,
    /// What a hook request is answered as it is, and what it would be answered.
    pub explanations: [Explanation<'a>; 2],
}

/// A write within its transaction.
#[derive(Debug)]
pub(super) struct Applied {
    pub before: Option<Subscription>,
    pub after: Subscription,
    pub action: &'static str,
    pub outcome: Outcome,
}

impl Applied {
    fn created(after: Subscription, action: &'static str) -> Self {
        Self { before: None, after, action, outcome: Outcome::Created }
    }

    fn changed(before: Subscription, after: Subscription, action: &'static str) -> Self {
        Self { before: Some(before), after, action, outcome: Outcome::Changed }
    }

    fn left(after: Subscription, action: &'static str, outcome: Outcome) -> Self {
        Self { before: None, after, action, outcome }
    }

    /// Records the change, if there is one, and gives back its place in the table of changes.
    pub async fn record(
        &self,
        transaction: &DatabaseTransaction,
        origin: &Origin,
        now: DateTime<Utc>,
    ) -> Result<Option<i64>> {
        match self.outcome {
            Outcome::Created | Outcome::Changed => {}
            Outcome::Unchanged | Outcome::Outdated => return Ok(None),
        }
        let noun = Noun::Subscription { before: self.before.as_ref(), after: &self.after };
        let Origin { actor, request_id, .. } = origin;
        let change = Change { at: now, actor, request_id, action: self.action, noun };
        Ok(Some(store::change::insert(transaction, change).await?))
    }

    fn written(self, now: DateTime<Utc>) -> Written {
        Written { shown: Shown { subscription: self.after, now }, outcome: self.outcome }
    }
}

impl Service {
    /// Writes to one subscription.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::VersionMismatch`]; [`Error::UnknownScopes`]; [`Error::State`] and [`Error::Patch`]
    /// when the outcome would be no subscription; [`Error::Transition`] when a transition makes no sense;
    /// [`Error::ExternalIdExists`]; [`Error::NotDeleted`]; and those of a key ([`Error::KeyReused`],
    /// [`Error::KeyInUse`]).
    pub async fn write_subscription(self: &Arc<Self>, origin: Origin, write: Write) -> Result<Written> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let once = service.once(&origin)?;
            let transaction = match once.begin(&service.database, now).await? {
                Begun::Now(transaction) => transaction,
                Begun::Before(written) => {
                    let written: Written = written;
                    service.tell(&[Touched::Subject(written.shown.subscription.subject.clone())]).await;
                    return Ok(written);
                }
            };
            let applied = match apply(&transaction, now, write).await {
                Ok(applied) => applied,
                Err(error) => {
                    // What the database has refused leaves a transaction that answers nothing any more.
                    undo(transaction).await;
                    return Err(narrowed(service.database.readers(), error).await);
                }
            };
            let seq = applied.record(&transaction, &origin, now).await?;
            let touched = Touched::Subject(applied.after.subject.clone());
            let written = applied.written(now);
            once.keep(&transaction, now, &written).await?;
            service.commit(store::database::commit(transaction), seq.into_iter().collect(), vec![touched]).await?;
            Ok(written)
        })
        .await
    }

    /// What a write would come to, and what it would make of the answer to a hook request. It is done as every write is,
    /// and taken back: what refuses the write refuses this.
    ///
    /// # Errors
    ///
    /// Those of [`Service::write_subscription`].
    pub async fn preview_subscription<'a>(
        self: &Arc<Self>,
        write: Write,
        request: ExplanationRequest<'a>,
    ) -> Result<Preview<'a>> {
        let service = Arc::clone(self);
        let (applied, after) = to_its_end(async move {
            let now = service.clock.now();
            let transaction = service.database.begin().await?;
            let tried = async {
                let applied = apply(&transaction, now, write).await?;
                let all = store::subscription::of_subject(&transaction, &applied.after.subject).await?;
                Ok((applied, all))
            };
            let tried = tried.await;
            undo(transaction).await;
            match tried {
                Ok(tried) => Ok(tried),
                Err(error) => Err(narrowed(service.database.readers(), error).await),
            }
        })
        .await?;
        let before = match applied.outcome {
            Outcome::Created | Outcome::Changed => applied.before,
            Outcome::Unchanged | Outcome::Outdated => Some(applied.after.clone()),
        };
        let others = after.iter().filter(|one| one.id != applied.after.id);
        let all_before: Vec<_> = others.chain(&before).cloned().collect();
        let whose = applied.after.subject.clone();
        let (at, explanations) = self.explain_change(request, &whose, [&all_before, &after]).await?;
        Ok(Preview { before, after: applied.after, at, explanations })
    }

    /// Writes to many subscriptions, in their order and in one transaction: all of it, or, unless it is `atomic`, what
    /// can be. `answer` makes the answer of what each write came to; with a key, it is kept and given again.
    ///
    /// # Errors
    ///
    /// What stops the whole: the database, or a key. When it is atomic, [`Error::InBatch`] with the first write that is
    /// refused.
    pub async fn write_subscriptions(
        self: &Arc<Self>,
        origin: Origin,
        writes: Vec<Write>,
        is_atomic: bool,
        answer: impl FnOnce(Vec<Result<Written>>) -> String + Send + 'static,
    ) -> Result<String> {
        let service = Arc::clone(self);
        all_to_their_end(async move {
            let now = service.clock.now();
            let once = service.once(&origin)?;
            let transaction = match once.begin(&service.database, now).await? {
                Begun::Now(transaction) => transaction,
                Begun::Before(BatchAnswer { answer, subjects }) => {
                    let touched: Vec<_> = subjects.into_iter().map(Touched::Subject).collect();
                    service.tell(&touched).await;
                    return Ok(answer);
                }
            };
            if let Err(error) = hold(&transaction, &writes).await {
                undo(transaction).await;
                return Err(error);
            }
            let Batch { results, seqs, touched } = if is_atomic {
                match apply_all(&transaction, &origin, now, writes).await {
                    Ok(batch) => batch,
                    Err((index, error)) => {
                        undo(transaction).await;
                        let error = Box::new(narrowed(service.database.readers(), error).await);
                        return Err(Error::InBatch { index, error });
                    }
                }
            } else {
                apply_each(&transaction, &origin, now, writes).await?
            };
            let subjects = results.iter().flatten().map(|written| written.shown.subscription.subject.clone());
            let subjects: BTreeSet<Subject> = subjects.collect();
            let kept = BatchAnswer { subjects: subjects.into_iter().collect(), answer: answer(results) };
            once.keep(&transaction, now, &kept).await?;
            service.commit(store::database::commit(transaction), seqs, touched).await?;
            Ok(kept.answer)
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

    /// The subscription that a source knows by an id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none, or it was deleted.
    pub async fn subscription_known_as(&self, key: &ExternalKey) -> Result<Shown> {
        let now = self.clock.now();
        let find = async {
            let reading = self.database.begin_reading().await?;
            store::subscription::find_by_key(&reading, key).await
        };
        let found = in_time(find).await?.filter(|subscription| subscription.deleted_at.is_none());
        Ok(Shown { subscription: found.ok_or(Error::NotFound)?, now })
    }

    /// Up to `limit` subscriptions after another one, of a status at `now`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn subscriptions(
        &self,
        filter: &Filter,
        now: DateTime<Utc>,
        after: Option<After>,
        limit: u64,
    ) -> Result<Vec<Subscription>> {
        let list = async {
            let reading = self.database.begin_reading().await?;
            store::subscription::list(&reading, filter, now, after, limit).await
        };
        in_time(list).await
    }

    /// The same, apart.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn subscriptions_apart(
        &self,
        apart: &Apart,
        filter: &Filter,
        now: DateTime<Utc>,
        after: Option<After>,
        limit: u64,
    ) -> Result<Vec<Subscription>> {
        let list = async {
            let reading = apart.database.begin_reading().await?;
            let page = store::subscription::list(&reading, filter, now, after, limit).await?;
            // Not left open while somebody takes the page.
            reading.rollback().await?;
            Ok(page)
        };
        in_time(list).await
    }
}

/// What became of the writes of a batch, within its transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What each write came to, in their order.
    pub results: Vec<Result<Written>>,
    /// The places of the changes.
    pub seqs: Vec<i64>,
    /// What they make stale.
    pub touched: Vec<Touched>,
}

impl Batch {
    async fn add(
        &mut self,
        applied: Applied,
        transaction: &DatabaseTransaction,
        origin: &Origin,
        now: DateTime<Utc>,
    ) -> Result<()> {
        self.seqs.extend(applied.record(transaction, origin, now).await?);
        self.touched.push(Touched::Subject(applied.after.subject.clone()));
        self.results.push(Ok(applied.written(now)));
        Ok(())
    }
}

/// Holds all that a batch writes to, in one order that all batches have: each in its own would wait for one another.
pub(super) async fn hold(transaction: &DatabaseTransaction, writes: &[Write]) -> Result<()> {
    let (mut keys, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for write in writes {
        match write {
            Write::Create(NewSubscription { external, .. }) => {
                keys.extend(external.as_ref().map(|external| &external.key));
            }
            Write::Put { target: Target::External(External { key, .. }), .. } => {
                keys.insert(key);
            }
            Write::Put { target: Target::Id { id, .. }, .. }
            | Write::Patch { id, .. }
            | Write::Transition { id, .. }
            | Write::Delete { id, .. }
            | Write::Restore { id, .. } => {
                ids.insert(*id);
            }
        }
    }
    let keys: Vec<_> = keys.into_iter().collect();
    store::subscription::lock_keys(transaction, &keys).await?;
    Ok(store::subscription::lock_rows(transaction, &keys, ids).await?)
}

/// Does all writes within a transaction, or says which one is refused, and why.
async fn apply_all(
    transaction: &DatabaseTransaction,
    origin: &Origin,
    now: DateTime<Utc>,
    writes: Vec<Write>,
) -> std::result::Result<Batch, (usize, Error)> {
    let mut batch = Batch::default();
    for (index, write) in writes.into_iter().enumerate() {
        let applied = apply(transaction, now, write).await.map_err(|error| (index, error))?;
        batch.add(applied, transaction, origin, now).await.map_err(|error| (index, error))?;
    }
    Ok(batch)
}

/// Does those writes within a transaction that can be done.
///
/// # Errors
///
/// [`Error::Store`] when the database cannot go on.
pub(super) async fn apply_each(
    transaction: &DatabaseTransaction,
    origin: &Origin,
    now: DateTime<Utc>,
    writes: Vec<Write>,
) -> Result<Batch> {
    let mut batch = Batch::default();
    for write in writes {
        // A savepoint, so that a write that the database refuses takes nothing else with it.
        let savepoint = transaction.begin().await.map_err(store::Error::from)?;
        match apply(&savepoint, now, write).await {
            Ok(applied) => {
                savepoint.commit().await.map_err(store::Error::from)?;
                batch.add(applied, transaction, origin, now).await?;
            }
            Err(Error::Store(error)) => return Err(error.into()),
            Err(error) => {
                savepoint.rollback().await.map_err(store::Error::from)?;
                batch.results.push(Err(narrowed(transaction, error).await));
            }
        }
    }
    Ok(batch)
}

/// Does a write within a transaction. Whoever calls it records the change and commits, or takes all of it back.
async fn apply(transaction: &DatabaseTransaction, now: DateTime<Utc>, write: Write) -> Result<Applied> {
    match write {
        Write::Create(NewSubscription { state, external }) => {
            let new = Subscription::new(new_id(now), state, external, now)?;
            insert(transaction, &new).await?;
            Ok(Applied::created(new, "create"))
        }
        Write::Put { target, state, expected } => put(transaction, now, target, state, &expected).await,
        Write::Patch { id, expected, subject, patch } => {
            let old = live(transaction, id, &expected).await?;
            if subject.is_some_and(|subject| subject != old.subject) {
                return Err(Error::AnotherSubject);
            }
            let new = old.clone().patch(patch, now)?;
            if new == old {
                return Ok(Applied::left(new, "patch", Outcome::Unchanged));
            }
            update(transaction, &old, &new).await?;
            Ok(Applied::changed(old, new, "patch"))
        }
        Write::Transition { id, expected, transition } => {
            let old = live(transaction, id, &expected).await?;
            let new = old.clone().after(transition, now)?;
            update(transaction, &old, &new).await?;
            Ok(Applied::changed(old, new, transition.as_str()))
        }
        Write::Delete { id, expected } => {
            let old = live(transaction, id, &expected).await?;
            let new = old.clone().deleted(now);
            update(transaction, &old, &new).await?;
            Ok(Applied::changed(old, new, "delete"))
        }
        Write::Restore { id, expected } => {
            let old = store::subscription::lock(transaction, id).await?.ok_or(Error::NotFound)?;
            expected.check(old.version)?;
            if old.deleted_at.is_none() {
                return Err(Error::NotDeleted);
            }
            let new = old.clone().restored(now);
            update(transaction, &old, &new).await?;
            Ok(Applied::changed(old, new, "restore"))
        }
    }
}

/// Records all that is said of a subscription.
async fn put(
    transaction: &DatabaseTransaction,
    now: DateTime<Utc>,
    target: Target,
    state: SubscriptionState,
    expected: &Expected,
) -> Result<Applied> {
    let found = match &target {
        Target::Id { id, .. } => store::subscription::lock(transaction, *id).await?,
        Target::External(External { key, .. }) => match store::subscription::lock_by_key(transaction, key).await? {
            // Of two that come at once for a key that is new, the second one waits here, and finds the first one's row.
            None => {
                store::subscription::lock_key(transaction, key).await?;
                store::subscription::lock_by_key(transaction, key).await?
            }
            found => found,
        },
    };
    let Some(old) = found else {
        if *expected != Expected::Any {
            return Err(Error::VersionMismatch);
        }
        let new = target.clone().recorded(state.clone(), now)?;
        // A create, or an import, may record it at this very moment: then it is there, and this is a change of it.
        let savepoint = transaction.begin().await.map_err(store::Error::from)?;
        match insert(&savepoint, &new).await {
            Ok(()) => {
                savepoint.commit().await.map_err(store::Error::from)?;
                return Ok(Applied::created(new, "put"));
            }
            Err(Error::ExternalIdExists) => savepoint.rollback().await.map_err(store::Error::from)?,
            Err(error) => return Err(error),
        }
        let there = match &target {
            Target::External(External { key, .. }) => store::subscription::lock_by_key(transaction, key).await?,
            Target::Id { id, .. } => store::subscription::lock(transaction, *id).await?,
        };
        let old = there.ok_or(Error::ExternalIdExists)?;
        return restate(transaction, now, target, state, old).await;
    };
    expected.check(old.version)?;
    restate(transaction, now, target, state, old).await
}

/// Changes a subscription to what is said of it.
async fn restate(
    transaction: &DatabaseTransaction,
    now: DateTime<Utc>,
    target: Target,
    state: SubscriptionState,
    old: Subscription,
) -> Result<Applied> {
    match target.put(old.clone(), state, now)? {
        Put::Changed(new) => {
            update(transaction, &old, &new).await?;
            Ok(Applied::changed(old, new, "put"))
        }
        Put::Unchanged(same) => Ok(Applied::left(same, "put", Outcome::Unchanged)),
        Put::Outdated(newer) => Ok(Applied::left(newer, "put", Outcome::Outdated)),
    }
}

impl Target {
    /// What becomes of the subscription that is there.
    pub(super) fn put(&self, old: Subscription, state: SubscriptionState, now: DateTime<Utc>) -> Result<Put> {
        Ok(match self {
            Self::External(External { version, .. }) => old.put(state, *version, now)?,
            Self::Id { version, .. } => old.restated(state, *version, now)?,
        })
    }

    /// The subscription that is recorded when none is there.
    pub(super) fn recorded(self, state: SubscriptionState, now: DateTime<Utc>) -> Result<Subscription> {
        Ok(match self {
            Self::External(external) => Subscription::new(new_id(now), state, Some(external), now)?,
            Self::Id { id, .. } => Subscription::new(id, state, None, now)?,
        })
    }
}

/// The subscription of an id that may be changed, held against other writers.
async fn live(transaction: &DatabaseTransaction, id: Uuid, expected: &Expected) -> Result<Subscription> {
    let found = store::subscription::lock(transaction, id).await?;
    let found = found.filter(|found| found.deleted_at.is_none()).ok_or(Error::NotFound)?;
    expected.check(found.version)?;
    Ok(found)
}

async fn insert(transaction: &DatabaseTransaction, new: &Subscription) -> Result<()> {
    let inserted = store::subscription::insert(transaction, new).await;
    inserted.map_err(|error| refused(error, new))
}

async fn update(transaction: &DatabaseTransaction, old: &Subscription, new: &Subscription) -> Result<()> {
    let updated = store::subscription::update(transaction, old, new).await;
    updated.map_err(|error| refused(error, new))
}

/// The error of a write that the database refused. Which scopes are unknown is asked later ([`narrowed`]).
fn refused(error: store::Error, new: &Subscription) -> Error {
    match error {
        store::Error::Reference(_) => Error::UnknownScopes(new.scopes.as_slice().to_vec()),
        store::Error::Duplicate(_) => Error::ExternalIdExists,
        error => error.into(),
    }
}

/// The error of a write, with only those scopes in it that are not in the catalogue.
async fn narrowed<C: sea_orm::ConnectionTrait>(connection: &C, error: Error) -> Error {
    let Error::UnknownScopes(scopes) = error else { return error };
    let missing: store::Result<Vec<Scope>> = store::catalogue::missing(connection, &scopes).await;
    missing.map_or_else(Into::into, Error::UnknownScopes)
}

/// The answer of a batch, and whose subscriptions it wrote to.
#[derive(Debug)]
struct BatchAnswer {
    answer: String,
    subjects: Vec<Subject>,
}

impl Kept for BatchAnswer {
    fn write(&self) -> String {
        image::of_batch(&self.answer, &self.subjects)
    }

    fn read(kept: &str) -> store::Result<Self> {
        let (answer, subjects) = image::batch(kept)?;
        Ok(Self { answer, subjects })
    }
}

impl Kept for Written {
    fn write(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Created => "created",
            Outcome::Changed => "changed",
            Outcome::Unchanged => "unchanged",
            Outcome::Outdated => "outdated",
        };
        image::of_answer(&self.shown.subscription, self.shown.now, outcome)
    }

    fn read(kept: &str) -> store::Result<Self> {
        let (subscription, now, outcome) = image::answer(kept)?;
        let outcome = match outcome.as_str() {
            "created" => Outcome::Created,
            "changed" => Outcome::Changed,
            "outdated" => Outcome::Outdated,
            _ => Outcome::Unchanged,
        };
        Ok(Self { shown: Shown { subscription, now }, outcome })
    }
}
