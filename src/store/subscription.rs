//! Queries of the subscriptions.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use entity::{
    subscription::{ActiveModel, Column, Entity, Model},
    subscription_scope,
};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, QueryTrait as _, Select, Set, Statement,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

use super::{
    catalogue::{claims, claims_column, scope},
    error::{Error, Result},
};
use crate::domain::{
    external::{External, ExternalId, ExternalKey, Source, SourceVersion},
    life::{Life, Status, Term},
    scope::Scope,
    subject::{Subject, SubjectId, SubjectType},
    subscription::{ScopeSet, Subscription},
    window::Window,
};

/// Rows whose scopes are asked for in one query: far below what a statement may hold.
const ROWS_AT_ONCE: usize = 1_000;
// The second number of the lock is this table's own, so that no other use of such locks is hit.
const LOCK_KEY: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 7302))";

// The keys travel as one text, so that each statement is constant, however many they are: parsed and planned once a
// connection. Each key is looked up by itself, whatever the planner knows of the table: for a list of them it may as well
// read all that their source has.

/// Public so that a test can ask the database for its plan.
#[doc(hidden)]
pub const POSTGRES_BY_KEYS: &str = "
SELECT found.* FROM json_array_elements($1::json) AS wanted (key)
CROSS JOIN LATERAL (
    SELECT * FROM subscription
    WHERE subscription.source = wanted.key->>0 AND subscription.external_id = wanted.key->>1 LIMIT 1
) AS found";

#[doc(hidden)]
pub const SQLITE_BY_KEYS: &str = "
SELECT subscription.* FROM json_each(?1) AS wanted
CROSS JOIN subscription ON subscription.source = json_extract(wanted.value, '$[0]')
    AND subscription.external_id = json_extract(wanted.value, '$[1]')";

/// Which subscriptions a list holds: those that pass every filter that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Held by this subject.
    pub subject: Option<Subject>,
    /// Naming this scope.
    pub scope: Option<Scope>,
    /// Of this status at the present that the list was asked with.
    pub status: Option<Status>,
    /// Granting its scopes at this instant.
    pub active_at: Option<DateTime<Utc>>,
    /// Known to this source.
    pub source: Option<Source>,
    /// Changed at this instant or later: then the list is ordered by the last change.
    pub updated_since: Option<DateTime<Utc>>,
    /// Whether deleted ones are in it, too.
    pub with_deleted: bool,
}

/// Where a list goes on: after this subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    /// Its id.
    pub id: Uuid,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// The subscription of an id, unless it was deleted.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find<C: ConnectionTrait>(connection: &C, id: Uuid) -> Result<Option<Subscription>> {
    one(connection, Entity::find_by_id(id).filter(Column::DeletedAt.is_null())).await
}

/// The subscription that a source knows by an id, deleted or not.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find_by_key<C: ConnectionTrait>(connection: &C, key: &ExternalKey) -> Result<Option<Subscription>> {
    one(connection, by_key(key)).await
}

/// The subscription of an id, deleted or not, held against other writers until the transaction ends.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock(transaction: &DatabaseTransaction, id: Uuid) -> Result<Option<Subscription>> {
    one(transaction, Entity::find_by_id(id).lock_exclusive()).await
}

/// The subscription that a source knows by an id, deleted or not, held against other writers until the transaction
/// ends.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock_by_key(transaction: &DatabaseTransaction, key: &ExternalKey) -> Result<Option<Subscription>> {
    one(transaction, by_key(key).lock_exclusive()).await
}

/// Makes others wait who are about to record a subscription that a source knows by the same id, until the transaction
/// ends: no row is there yet that could be held. On SQLite one transaction writes at a time.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock_key(transaction: &DatabaseTransaction, key: &ExternalKey) -> Result<()> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        let values = [key.source.as_str().into(), key.id.as_str().into()];
        transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, LOCK_KEY, values)).await?;
    }
    Ok(())
}

/// The same for many keys, in their order.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock_keys(transaction: &DatabaseTransaction, keys: &[&ExternalKey]) -> Result<()> {
    if transaction.get_database_backend() != DbBackend::Postgres || keys.is_empty() {
        return Ok(());
    }
    let places: Vec<_> = (0..keys.len()).map(|at| format!("(${}, ${})", 2 * at + 1, 2 * at + 2)).collect();
    let sql = format!(
        "SELECT pg_advisory_xact_lock(hashtextextended(source || chr(10) || id, 7302)) FROM (VALUES {}) AS key (source, id)",
        places.join(", ")
    );
    let values = keys.iter().flat_map(|key| [key.source.as_str().into(), key.id.as_str().into()]);
    transaction.query_all_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
    Ok(())
}

/// Holds the subscriptions of these keys and ids against other writers until the transaction ends, in the order of their
/// ids.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn lock_rows(
    transaction: &DatabaseTransaction,
    keys: &[&ExternalKey],
    ids: impl IntoIterator<Item = Uuid>,
) -> Result<()> {
    // The id of a row never changes, so it is looked up without a lock.
    let known = rows_by_keys(transaction, keys).await?.into_iter().map(|row| row.id);
    let ids: Vec<Uuid> = known.chain(ids).collect();
    if !ids.is_empty() {
        let rows = Entity::find().filter(Column::Id.is_in(ids)).order_by_asc(Column::Id).lock_exclusive();
        rows.all(transaction).await?;
    }
    Ok(())
}

/// Whether there is, or was, a subscription of an id.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn exists<C: ConnectionTrait>(connection: &C, id: Uuid) -> Result<bool> {
    Ok(Entity::find_by_id(id).one(connection).await?.is_some())
}

/// The subscriptions that sources know by these ids, deleted ones too.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find_by_keys<C: ConnectionTrait>(connection: &C, keys: &[&ExternalKey]) -> Result<Vec<Subscription>> {
    let rows = rows_by_keys(connection, keys).await?;
    all_with_scopes(connection, rows).await
}

/// The rows of these keys.
async fn rows_by_keys<C: ConnectionTrait>(connection: &C, keys: &[&ExternalKey]) -> Result<Vec<Model>> {
    // A file may name one twice, and each row is wanted once.
    let keys: BTreeSet<(&str, &str)> = keys.iter().map(|key| (key.source.as_str(), key.id.as_str())).collect();
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = serde_json::to_string(&keys).map_err(|_| Error::corrupt("external_id"))?;
    let backend = connection.get_database_backend();
    let sql = if backend == DbBackend::Postgres { POSTGRES_BY_KEYS } else { SQLITE_BY_KEYS };
    Ok(Entity::find()
        .from_raw_sql(Statement::from_sql_and_values(backend, sql, [wanted.into()]))
        .all(connection)
        .await?)
}

/// The subscriptions of these ids, deleted ones too.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find_by_ids<C: ConnectionTrait>(connection: &C, ids: &[Uuid]) -> Result<Vec<Subscription>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Entity::find().filter(Column::Id.is_in(ids.iter().copied())).all(connection).await?;
    all_with_scopes(connection, rows).await
}

/// All subscriptions of a subject, deleted ones too.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn of_subject<C: ConnectionTrait>(connection: &C, subject: &Subject) -> Result<Vec<Subscription>> {
    let mut rows = Vec::new();
    // One query for each of two indexes: that of the deleted ones is apart, so that the hooks' is small.
    for deleted in [Column::DeletedAt.is_null(), Column::DeletedAt.is_not_null()] {
        let query = Entity::find()
            .filter(Column::SubjectType.eq(subject.kind.as_str()))
            .filter(Column::SubjectId.eq(subject.id.as_str()))
            .filter(deleted);
        rows.extend(query.all(connection).await?);
    }
    all_with_scopes(connection, rows).await
}

/// The subscriptions of these rows, however many there are.
async fn all_with_scopes<C: ConnectionTrait>(connection: &C, mut rows: Vec<Model>) -> Result<Vec<Subscription>> {
    let mut found = Vec::with_capacity(rows.len());
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(ROWS_AT_ONCE));
        found.extend(with_scopes(connection, std::mem::replace(&mut rows, rest)).await?);
    }
    Ok(found)
}

fn by_key(key: &ExternalKey) -> Select<Entity> {
    let ExternalKey { source, id } = key;
    Entity::find().filter(Column::Source.eq(source.as_str())).filter(Column::ExternalId.eq(id.as_str()))
}

async fn one<C: ConnectionTrait>(connection: &C, query: Select<Entity>) -> Result<Option<Subscription>> {
    let row = query.one(connection).await?;
    with_scopes(connection, row.into_iter().collect()).await.map(|mut found| found.pop())
}

/// Up to `limit` subscriptions after another one: ascending by id, or by the last change when the filter asks for what
/// was changed since an instant. A status is one at `now`.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn list<C: ConnectionTrait>(
    connection: &C,
    filter: &Filter,
    now: DateTime<Utc>,
    after: Option<After>,
    limit: u64,
) -> Result<Vec<Subscription>> {
    if filter.subject.is_none() || !filter.with_deleted {
        let deleted = (!filter.with_deleted).then(|| Column::DeletedAt.is_null());
        return listed(connection, filter, deleted, now, after, limit).await;
    }
    // A subject's own: two lists in one, each from an index of its own, so that the hooks' holds no deleted ones.
    let mut whole = listed(connection, filter, Some(Column::DeletedAt.is_null()), now, after, limit).await?;
    whole.extend(listed(connection, filter, Some(Column::DeletedAt.is_not_null()), now, after, limit).await?);
    if filter.updated_since.is_some() {
        whole.sort_by_key(|subscription| (subscription.updated_at, subscription.id));
    } else {
        whole.sort_by_key(|subscription| subscription.id);
    }
    whole.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(whole)
}

async fn listed<C: ConnectionTrait>(
    connection: &C,
    filter: &Filter,
    deleted: Option<Expr>,
    now: DateTime<Utc>,
    after: Option<After>,
    limit: u64,
) -> Result<Vec<Subscription>> {
    let Filter { subject, scope, status, active_at, source, updated_since, with_deleted: _ } = filter;
    let mut condition = Condition::all().add_option(deleted);
    if let Some(Subject { kind, id }) = subject {
        condition = condition.add(Column::SubjectType.eq(kind.as_str())).add(Column::SubjectId.eq(id.as_str()));
    }
    if let Some(scope) = scope {
        condition = condition.add(names(scope));
    }
    if let Some(status) = status {
        condition = condition.add(has_status(*status, now));
    }
    if let Some(instant) = active_at {
        condition = condition.add(grants(*instant));
    }
    if let Some(source) = source {
        // What the index of sources asks for, word by word. Every row has a version: see the migration of that index.
        let indexed = Column::ExternalId.is_not_null().and(Expr::cust("version > 0"));
        condition = condition.add(Column::Source.eq(source.as_str())).add(indexed);
    }
    let query = if let Some(since) = updated_since {
        condition = condition.add(Column::UpdatedAt.gte(*since));
        if let Some(After { id, updated_at }) = after {
            let place = Expr::tuple([Expr::col(Column::UpdatedAt), Expr::col(Column::Id)]);
            condition = condition.add(place.gt(Expr::tuple([Expr::value(updated_at), Expr::value(id)])));
        }
        Entity::find().filter(condition).order_by_asc(Column::UpdatedAt)
    } else {
        if let Some(After { id, .. }) = after {
            condition = condition.add(Column::Id.gt(id));
        }
        Entity::find().filter(condition)
    };
    let rows = query.order_by_asc(Column::Id).limit(limit).all(connection).await?;
    with_scopes(connection, rows).await
}

/// How many subjects hold a scope at `now`, and how many subscriptions were looked at that grant it: `most` of them at most.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn count_holders<C: ConnectionTrait>(
    connection: &C,
    scope: &Scope,
    now: DateTime<Utc>,
    most: u64,
) -> Result<(u64, u64)> {
    let granting = Entity::find()
        .select_only()
        .column(Column::SubjectType)
        .column(Column::SubjectId)
        .filter(Condition::all().add(Column::DeletedAt.is_null()).add(names(scope)).add(grants(now)))
        .limit(most)
        .build(connection.get_database_backend());
    let sql = format!(
        "SELECT count(*), coalesce(sum(subscriptions), 0) FROM (
            SELECT count(*) AS subscriptions FROM ({}) AS granting GROUP BY subject_type, subject_id
        ) AS subject",
        granting.sql
    );
    let sum = if connection.get_database_backend() == DbBackend::Postgres {
        // A sum of bigints is a numeric there.
        sql.replace("sum(subscriptions)", "sum(subscriptions)::bigint")
    } else {
        sql
    };
    let statement = Statement { sql: sum, ..granting };
    let row = connection.query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("count"))?;
    let count = |index| -> Result<u64> {
        let count: i64 = row.try_get_by_index(index)?;
        Ok(u64::try_from(count).unwrap_or_default())
    };
    Ok((count(0)?, count(1)?))
}

/// Whether a subscription names a scope.
fn names(scope: &Scope) -> Condition {
    let naming = subscription_scope::Entity::find()
        .select_only()
        .column(subscription_scope::Column::SubscriptionId)
        .filter(subscription_scope::Column::Scope.eq(scope.as_str()))
        .into_query();
    Condition::all().add(Column::Id.in_subquery(naming))
}

/// Whether a subscription grants its scopes at an instant.
fn grants(instant: DateTime<Utc>) -> Condition {
    let granting = [Status::Active, Status::Grace].map(|status| has_status(status, instant));
    granting.into_iter().fold(Condition::any(), Condition::add)
}

/// [`Life::status`] as a condition: a repetition of that rule, which the agreement test holds to it.
fn has_status(status: Status, now: DateTime<Utc>) -> Condition {
    let not_canceled = Condition::any().add(Column::CanceledAt.is_null()).add(Column::CanceledAt.gt(now));
    let begun = Column::ValidFrom.lte(now);
    let unfinished = Condition::any().add(Column::ValidUntil.is_null()).add(Column::ValidUntil.gt(now));
    // A grace ends after the window, so one that has not ended has begun, or will.
    let in_grace = Condition::all().add(Column::ValidUntil.lte(now)).add(Column::GraceUntil.gt(now));
    let no_grace = Condition::any().add(Column::GraceUntil.is_null()).add(Column::GraceUntil.lte(now));
    let not_paused = Condition::any()
        .add(Column::PausedFrom.is_null())
        .add(Column::PausedFrom.gt(now))
        .add(Column::PausedUntil.lte(now));
    let paused = Condition::all()
        .add(Column::PausedFrom.lte(now))
        .add(Condition::any().add(Column::PausedUntil.is_null()).add(Column::PausedUntil.gt(now)));
    let living = Condition::all().add(not_canceled);
    match status {
        Status::Canceled => Condition::all().add(Column::CanceledAt.lte(now)),
        Status::Scheduled => living.add(Column::ValidFrom.gt(now)),
        Status::Active => living.add(begun).add(unfinished).add(not_paused),
        Status::Paused => living.add(begun).add(Condition::any().add(unfinished).add(in_grace)).add(paused),
        Status::Grace => living.add(in_grace).add(not_paused),
        Status::Expired => living.add(Column::ValidUntil.lte(now)).add(no_grace),
    }
}

/// Records a new subscription with its scopes.
///
/// # Errors
///
/// [`Error::Reference`] when one of its scopes is not in the catalogue.
pub async fn insert(transaction: &DatabaseTransaction, subscription: &Subscription) -> Result<()> {
    Entity::insert(to_row(subscription)).exec_without_returning(transaction).await?;
    insert_scopes(transaction, subscription.id, subscription.scopes.as_slice()).await
}

/// Writes a subscription that was locked before, and its scopes when they changed.
///
/// # Errors
///
/// [`Error::Reference`] when one of its scopes is not in the catalogue.
pub async fn update(transaction: &DatabaseTransaction, old: &Subscription, new: &Subscription) -> Result<()> {
    to_row(new).update(transaction).await?;
    let (old, new, id) = (old.scopes.as_slice(), new.scopes.as_slice(), new.id);
    let gone: Vec<_> = old.iter().filter(|scope| !new.contains(scope)).map(Scope::as_str).collect();
    if !gone.is_empty() {
        subscription_scope::Entity::delete_many()
            .filter(subscription_scope::Column::SubscriptionId.eq(id))
            .filter(subscription_scope::Column::Scope.is_in(gone))
            .exec(transaction)
            .await?;
    }
    let added: Vec<_> = new.iter().filter(|scope| !old.contains(scope)).cloned().collect();
    insert_scopes(transaction, id, &added).await
}

async fn insert_scopes(transaction: &DatabaseTransaction, id: Uuid, scopes: &[Scope]) -> Result<()> {
    if scopes.is_empty() {
        return Ok(());
    }
    let rows = scopes.iter().map(|scope| subscription_scope::ActiveModel {
        subscription_id: Set(id),
        scope: Set(scope.as_str().to_owned()),
    });
    subscription_scope::Entity::insert_many(rows).exec_without_returning(transaction).await?;
    Ok(())
}

/// The subscriptions of these rows, in their order.
async fn with_scopes<C: ConnectionTrait>(connection: &C, rows: Vec<Model>) -> Result<Vec<Subscription>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let named = subscription_scope::Entity::find()
        .filter(subscription_scope::Column::SubscriptionId.is_in(rows.iter().map(|row| row.id)))
        .all(connection)
        .await?;
    let mut scopes: HashMap<Uuid, Vec<Scope>> = HashMap::with_capacity(rows.len());
    for subscription_scope::Model { subscription_id, scope: name } in named {
        scopes.entry(subscription_id).or_default().push(scope(&name)?);
    }
    rows.into_iter().map(|row| from_row(scopes.remove(&row.id).unwrap_or_default(), row)).collect()
}

fn to_row(subscription: &Subscription) -> ActiveModel {
    // Taken apart field by field, so that a field added to the domain cannot be forgotten here. The scopes are rows of
    // their own.
    let Subscription { id, subject, scopes: _, life, external, claims, version, created_at, updated_at, deleted_at } =
        subscription;
    let Life { term, pause, canceled_at } = life;
    ActiveModel {
        id: Set(*id),
        subject_type: Set(subject.kind.as_str().to_owned()),
        subject_id: Set(subject.id.as_str().to_owned()),
        valid_from: Set(term.window().from()),
        valid_until: Set(term.window().until()),
        grace_until: Set(term.grace_until()),
        paused_from: Set(pause.map(|pause| pause.from())),
        paused_until: Set(pause.and_then(|pause| pause.until())),
        canceled_at: Set(*canceled_at),
        deleted_at: Set(*deleted_at),
        source: Set(external.as_ref().map(|external| external.key.source.as_str().to_owned())),
        external_id: Set(external.as_ref().map(|external| external.key.id.as_str().to_owned())),
        source_version: Set(external.as_ref().and_then(|external| external.version).map(SourceVersion::get)),
        claims: Set(claims_column(claims)),
        version: Set(*version),
        created_at: Set(*created_at),
        updated_at: Set(*updated_at),
    }
}

/// What a row, and the scopes beside it, hold.
pub(super) fn from_row(scopes: Vec<Scope>, row: Model) -> Result<Subscription> {
    let Model {
        id,
        subject_type,
        subject_id,
        valid_from,
        valid_until,
        grace_until,
        paused_from,
        paused_until,
        canceled_at,
        deleted_at,
        source,
        external_id,
        source_version,
        claims: claims_text,
        version,
        created_at,
        updated_at,
    } = row;
    Ok(Subscription {
        id,
        subject: subject(&subject_type, &subject_id)?,
        scopes: ScopeSet::new(scopes).map_err(|_| Error::corrupt("scopes"))?,
        life: life((valid_from, valid_until), grace_until, (paused_from, paused_until), canceled_at)?,
        external: external(source, external_id, source_version)?,
        claims: claims(claims_text.as_deref())?,
        version,
        created_at,
        updated_at,
        deleted_at,
    })
}

/// The subject that two columns hold.
pub(super) fn subject(kind: &str, id: &str) -> Result<Subject> {
    let kind = SubjectType::parse(kind).ok_or_else(|| Error::corrupt("subject_type"))?;
    let id = SubjectId::parse(id).map_err(|_| Error::corrupt("subject_id"))?;
    Ok(Subject { kind, id })
}

/// What the columns about another system hold.
pub(super) fn external(source: Option<String>, id: Option<String>, version: Option<i64>) -> Result<Option<External>> {
    let (Some(source), Some(id)) = (source, id) else { return Ok(None) };
    let source = Source::parse(&source).map_err(|_| Error::corrupt("source"))?;
    let id = ExternalId::parse(&id).map_err(|_| Error::corrupt("external_id"))?;
    let version = version.map(SourceVersion::new).transpose().map_err(|_| Error::corrupt("source_version"))?;
    Ok(Some(External { key: ExternalKey { source, id }, version }))
}

/// The life that the columns of a window, a grace, a pause and a cancellation hold.
pub(super) fn life(
    (valid_from, valid_until): (DateTime<Utc>, Option<DateTime<Utc>>),
    grace_until: Option<DateTime<Utc>>,
    (paused_from, paused_until): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    canceled_at: Option<DateTime<Utc>>,
) -> Result<Life> {
    let window = Window::new(valid_from, valid_until).map_err(|_| Error::corrupt("valid_until"))?;
    let pause = paused_from.map(|from| Window::new(from, paused_until)).transpose();
    Ok(Life {
        term: Term::new(window, grace_until).map_err(|_| Error::corrupt("grace_until"))?,
        pause: pause.map_err(|_| Error::corrupt("paused_until"))?,
        canceled_at,
    })
}
