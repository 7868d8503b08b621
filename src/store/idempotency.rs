//! Queries of the requests that were done, by the keys that their senders gave them.

use chrono::{DateTime, Utc};
use entity::idempotency_key::{ActiveModel, Column, Entity, Model};
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait as _, Set, Statement,
    sea_query::{Expr, ExprTrait as _, OnConflict},
};

use super::error::{Error, Result};

/// A key of a request: unique for the credential that sent it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name of the credential.
    pub actor: String,
    /// The key that the sender gave.
    pub key: String,
}

/// A request that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The digest of what was asked for.
    pub digest: Vec<u8>,
    /// What the answer was made from.
    pub answer: String,
}

// The second number of the lock is this table's own, so that no other use of such locks is hit.
const LOCK: &str = "SELECT pg_try_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 7301))";

const PRUNE: &str = "
DELETE FROM idempotency_key WHERE (actor, key) IN (
    SELECT actor, key FROM idempotency_key WHERE answered_at < $1 ORDER BY answered_at LIMIT 10000
)";

/// Takes a key for as long as the transaction lasts, and tells whether it was free: a request with the same key may be
/// under way on another replica. On SQLite one transaction writes at a time, so it always is.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn take(transaction: &DatabaseTransaction, key: &Key) -> Result<bool> {
    if transaction.get_database_backend() != DbBackend::Postgres {
        return Ok(true);
    }
    let values = [key.actor.as_str().into(), key.key.as_str().into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, LOCK, values);
    let row = transaction.query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("lock"))?;
    Ok(row.try_get_by_index(0)?)
}

/// The request that was done with a key at an instant or later.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn find(transaction: &DatabaseTransaction, key: &Key, since: DateTime<Utc>) -> Result<Option<Done>> {
    let row = Entity::find_by_id((key.actor.clone(), key.key.clone())).one(transaction).await?;
    let row = row.filter(|row| row.answered_at >= since);
    Ok(row.map(|Model { actor: _, key: _, digest, answered_at: _, answer }| Done { digest, answer }))
}

/// Keeps a request that is done. What was done with the key before `since` is forgotten.
///
/// # Errors
///
/// [`Error::Duplicate`] when another request was done with that key since.
pub async fn insert(
    transaction: &DatabaseTransaction,
    key: &Key,
    done: Done,
    now: DateTime<Utc>,
    since: DateTime<Utc>,
) -> Result<()> {
    let Done { digest, answer } = done;
    let row = ActiveModel {
        actor: Set(key.actor.clone()),
        key: Set(key.key.clone()),
        digest: Set(digest),
        answered_at: Set(now),
        answer: Set(answer),
    };
    let replaced = OnConflict::columns([Column::Actor, Column::Key])
        .update_columns([Column::Digest, Column::AnsweredAt, Column::Answer])
        .action_and_where(Expr::col((Entity, Column::AnsweredAt)).lt(since))
        .to_owned();
    match Entity::insert(row).on_conflict(replaced).exec_without_returning(transaction).await? {
        0 => Err(Error::Duplicate(sea_orm::DbErr::RecordNotInserted)),
        _ => Ok(()),
    }
}

/// Deletes some of the requests that were answered before an instant, and tells how many.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn prune(writers: &DatabaseConnection, before: DateTime<Utc>) -> Result<u64> {
    let statement = Statement::from_sql_and_values(writers.get_database_backend(), PRUNE, [before.into()]);
    Ok(writers.execute_raw(statement).await?.rows_affected())
}
