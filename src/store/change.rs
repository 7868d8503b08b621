//! Queries of the changes: recording one, and reading what others recorded.

use chrono::{DateTime, Utc};
use entity::change::{ActiveModel, Entity};
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait as _, NotSet, Set, Statement,
    sqlx::{self, PgConnection},
};
use uuid::Uuid;

use super::error::{Error, Result};
use crate::domain::{
    scope::Scope,
    subject::{Subject, SubjectId, SubjectType},
};

/// The most changes that are read one by one; when there are more, all that is cached counts as changed.
const MAX_NEWS: i64 = 10_000;

// One statement is one snapshot, so the changes are those that this very snapshot shows and the last one did not:
// each once, in whatever order they were committed, and none waits for another transaction to end. The comparison
// with the oldest transaction that the last snapshot did not know the end of is there for the index.
const NEWS: &str = "
SELECT pg_current_snapshot()::text, clock_timestamp(), change.seq, change.noun, change.subject_type, change.subject_id,
    change.at
FROM (SELECT 1) AS always
LEFT JOIN (
    SELECT seq, noun, subject_type, subject_id, at FROM change
    WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
    LIMIT $2
) AS change ON true";

const START: &str = "SELECT pg_current_snapshot()::text, pg_is_in_recovery()";

const PRUNE_ON_POSTGRES: &str = "
DELETE FROM change WHERE seq IN (
    SELECT seq FROM change WHERE at < $1 AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY seq LIMIT 10000
)";

const PRUNE_ON_SQLITE: &str =
    "DELETE FROM change WHERE seq IN (SELECT seq FROM change WHERE at < ?1 ORDER BY seq LIMIT 10000)";

/// What a change was made to.
#[derive(Debug, Clone, Copy)]
pub enum Noun<'a> {
    /// A catalogue scope.
    Catalogue {
        /// Its name.
        scope: &'a Scope,
    },
    /// A subscription.
    Subscription {
        /// Its id.
        id: Uuid,
        /// Who holds it.
        subject: &'a Subject,
    },
    /// A token of the management API.
    Token {
        /// Its id.
        id: Uuid,
    },
}

/// One write, to be recorded in its own transaction.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// When it was made.
    pub at: DateTime<Utc>,
    /// The name of the credential that made it.
    pub actor: &'a str,
    /// The id of the request that made it.
    pub request_id: &'a str,
    /// What was done, such as `create` or `cancel`.
    pub action: &'static str,
    /// What it was done to.
    pub noun: Noun<'a>,
}

/// Records a change, and gives back its place in the table.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn insert(transaction: &DatabaseTransaction, change: Change<'_>) -> Result<i64> {
    let Change { at, actor, request_id, action, noun } = change;
    let (noun, scope, subscription_id, subject, token_id) = match noun {
        Noun::Catalogue { scope } => ("catalogue", Some(scope), None, None, None),
        Noun::Subscription { id, subject } => ("subscription", None, Some(id), Some(subject), None),
        Noun::Token { id } => ("token", None, None, None, Some(id)),
    };
    let row = ActiveModel {
        seq: NotSet,
        at: Set(at),
        actor: Set(actor.to_owned()),
        request_id: Set(request_id.to_owned()),
        noun: Set(noun.to_owned()),
        action: Set(action.to_owned()),
        scope: Set(scope.map(|scope| scope.as_str().to_owned())),
        subscription_id: Set(subscription_id),
        subject_type: Set(subject.map(|subject| subject.kind.as_str().to_owned())),
        subject_id: Set(subject.map(|subject| subject.id.as_str().to_owned())),
        token_id: Set(token_id),
    };
    Ok(Entity::insert(row).exec(transaction).await?.last_insert_id)
}

/// Up to where a reader of the feed has read: a snapshot of Postgres.
///
/// It means something on the connection alone that it was taken on: a server that crashed, or another one that took
/// over, gives the same transaction ids to other transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon(String);

/// What a change makes stale in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// The rules of the catalogue.
    Catalogue,
    /// What a subject holds.
    Subject(Subject),
    /// Who may call the management API.
    Tokens,
}

/// A change that was made, as far as a cache needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Its place in the table.
    pub seq: i64,
    /// What it makes stale.
    pub stale: Stale,
    /// When it was made, by the clock of the replica that made it.
    pub at: DateTime<Utc>,
}

/// What a look at the feed showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Up to where it was read.
    pub horizon: Horizon,
    /// The changes since the last look; none when there are too many to name.
    pub news: Option<Vec<News>>,
    /// The present by the database's clock.
    pub database_now: DateTime<Utc>,
}

/// Where a reader of the feed begins: it knows all that was committed before.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked, or is a standby: its snapshots do not name the
/// transactions that are under way on the primary, so their changes would be missed.
pub async fn start(connection: &mut PgConnection) -> Result<Horizon> {
    let (snapshot, is_standby): (String, bool) = sqlx::query_as(START).fetch_one(connection).await?;
    if is_standby { Err(Error::unavailable("the database is a standby")) } else { Ok(Horizon(snapshot)) }
}

/// The changes since a horizon of the same connection.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn look(connection: &mut PgConnection, since: &Horizon) -> Result<Look> {
    type Row =
        (String, DateTime<Utc>, Option<i64>, Option<String>, Option<String>, Option<String>, Option<DateTime<Utc>>);
    let query = sqlx::query_as(NEWS).bind(&since.0).bind(MAX_NEWS + 1);
    let rows: Vec<Row> = query.fetch_all(connection).await?;
    let (snapshot, database_now, ..) = rows.first().ok_or_else(|| Error::corrupt("snapshot"))?.clone();
    let is_named = rows.len() <= usize::try_from(MAX_NEWS).unwrap_or(usize::MAX);
    // The one row of a look without changes has none of a change's columns.
    let changes = rows.into_iter().filter(|row| row.2.is_some());
    let named = || changes.map(|(_, _, seq, noun, kind, id, at)| news(seq?, &noun?, kind, id, at?)).collect();
    // What is not understood, a newer version's changes perhaps, counts as a change of everything.
    Ok(Look { horizon: Horizon(snapshot), news: if is_named { named() } else { None }, database_now })
}

fn news(seq: i64, noun: &str, kind: Option<String>, id: Option<String>, at: DateTime<Utc>) -> Option<News> {
    let stale = match noun {
        "catalogue" => Stale::Catalogue,
        "subscription" => {
            Stale::Subject(Subject { kind: SubjectType::parse(&kind?)?, id: SubjectId::parse(&id?).ok()? })
        }
        "token" => Stale::Tokens,
        _ => return None,
    };
    Some(News { seq, stale, at })
}

/// Which version of the file the writer's connection sees: it changes when another process writes to it.
///
/// # Errors
///
/// [`Error::Unavailable`] when the file cannot be read.
pub async fn data_version(writers: &DatabaseConnection) -> Result<i64> {
    let statement = Statement::from_string(DbBackend::Sqlite, "PRAGMA data_version");
    let row = writers.query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("data_version"))?;
    Ok(row.try_get_by_index(0)?)
}

/// Deletes some of the changes that are older than `before` and that no reader of the feed can still have to see, and
/// tells how many.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn prune(writers: &DatabaseConnection, before: DateTime<Utc>) -> Result<u64> {
    let backend = writers.get_database_backend();
    let sql = if backend == DbBackend::Postgres { PRUNE_ON_POSTGRES } else { PRUNE_ON_SQLITE };
    let deleted = writers.execute_raw(Statement::from_sql_and_values(backend, sql, [before.into()])).await?;
    Ok(deleted.rows_affected())
}
