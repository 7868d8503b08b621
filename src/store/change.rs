//! Queries of the changes: recording one, and reading what others recorded.

use chrono::{DateTime, Utc};
use entity::change::{ActiveModel, Entity};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait as _, NotSet, QueryResult, Set,
    Statement,
    sqlx::{self, PgConnection, Row as _},
};
use uuid::Uuid;

use super::{
    catalogue,
    error::{Error, Result},
    image,
    subscription::subject,
};
use crate::domain::{
    catalogue::CatalogueScope,
    scope::Scope,
    subject::{Subject, SubjectId, SubjectType},
    subscription::Subscription,
    token::Token,
};

/// The words for the nouns in the table.
const CATALOGUE: &str = "catalogue";
const SUBSCRIPTION: &str = "subscription";
const TOKEN: &str = "token";

/// The most changes that are read one by one; when there are more, all that is cached counts as changed.
const MAX_NEWS: i64 = 10_000;

// One statement is one snapshot, so the changes are those that this very snapshot shows and the last one did not:
// each once, in whatever order they were committed, and none waits for another transaction to end. The comparison
// with the oldest transaction that the last snapshot did not know the end of is there for the index, and so is the order:
// without it the planner, which does not know how recent that is, may read the whole history at every look. They come
// column by column, in one row, and of those that the reader knows no more than that they show: row by row, the changes of
// an import would keep a processor from the hooks for milliseconds.
const NEWS: &str = "
SELECT pg_current_snapshot()::text, clock_timestamp(), array_agg(seq) FILTER (WHERE is_own),
    array_agg(at) FILTER (WHERE is_own), array_agg(seq) FILTER (WHERE NOT is_own),
    array_agg(at) FILTER (WHERE NOT is_own), array_agg(noun) FILTER (WHERE NOT is_own),
    array_agg(subject_type) FILTER (WHERE NOT is_own), array_agg(subject_id) FILTER (WHERE NOT is_own)
FROM (
    SELECT seq, noun, subject_type, subject_id, at, seq = ANY($3) AS is_own FROM change
    WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
    ORDER BY xid, seq LIMIT $2
) AS change";

const START: &str = "SELECT pg_current_snapshot()::text, pg_is_in_recovery()";

// The oldest are looked at, and no others: there is no index on the time, and none is worth it.
const PRUNE_ON_POSTGRES: &str = "
DELETE FROM change WHERE seq IN (
    SELECT seq FROM (SELECT seq, at, xid FROM change ORDER BY seq LIMIT 10000) AS oldest
    WHERE at < $1 AND xid < pg_snapshot_xmin(pg_current_snapshot())
)";

const PRUNE_ON_SQLITE: &str = "DELETE FROM change WHERE seq IN
        (SELECT seq FROM (SELECT seq, at FROM change ORDER BY seq LIMIT 10000) AS oldest WHERE at < ?1)";

const FOREIGN: &str = "SELECT EXISTS (SELECT FROM change WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))";

// The first id that a server gives to anybody is 3.
const ADOPT: &str = "UPDATE change SET xid = '3' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";

/// What a change was made to, with what was there before and after it.
#[derive(Debug, Clone, Copy)]
pub enum Noun<'a> {
    /// A catalogue scope.
    Catalogue {
        /// Its name.
        name: &'a Scope,
        /// What it was; none when it was not there.
        before: Option<&'a CatalogueScope>,
        /// What it is; none when it is there no more.
        after: Option<&'a CatalogueScope>,
    },
    /// A subscription.
    Subscription {
        /// What it was; none when it was not there.
        before: Option<&'a Subscription>,
        /// What it is; a deleted one says so itself.
        after: &'a Subscription,
    },
    /// A token of the management API.
    Token {
        /// What it was; none when it was not there.
        before: Option<&'a Token>,
        /// What it is.
        after: &'a Token,
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
    let (before, after) = match noun {
        Noun::Catalogue { before, after, .. } => (before.map(image::of_scope), after.map(image::of_scope)),
        Noun::Subscription { before, after } => {
            (before.map(image::of_subscription), Some(image::of_subscription(after)))
        }
        Noun::Token { before, after } => (before.map(image::of_token), Some(image::of_token(after))),
    };
    let (noun, scope, subscription, token_id) = match noun {
        Noun::Catalogue { name, .. } => (CATALOGUE, Some(name), None, None),
        Noun::Subscription { after, .. } => (SUBSCRIPTION, None, Some(after), None),
        Noun::Token { after, .. } => (TOKEN, None, None, Some(after.id)),
    };
    let row = ActiveModel {
        seq: NotSet,
        at: Set(at),
        actor: Set(actor.to_owned()),
        request_id: Set(request_id.to_owned()),
        noun: Set(noun.to_owned()),
        action: Set(action.to_owned()),
        scope: Set(scope.map(|scope| scope.as_str().to_owned())),
        subscription_id: Set(subscription.map(|subscription| subscription.id)),
        subject_type: Set(subscription.map(|subscription| subscription.subject.kind.as_str().to_owned())),
        subject_id: Set(subscription.map(|subscription| subscription.subject.id.as_str().to_owned())),
        token_id: Set(token_id),
        before: Set(before),
        after: Set(after),
    };
    Ok(Entity::insert(row).exec(transaction).await?.last_insert_id)
}

/// The place of a change in the order in which changes are read: no change that becomes visible later comes before one
/// that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The id of its transaction; 0 on SQLite, where transactions come one after another.
    pub transaction: u64,
    /// Its place in the table.
    pub seq: i64,
}

/// What a recorded change was made to. What was there before and after is unknown of changes that were recorded before
/// the history was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "most are of subscriptions, and a page holds no more than hundreds")]
pub enum Recorded {
    /// A catalogue scope.
    Catalogue {
        /// Its name.
        name: Scope,
        /// What it was.
        before: Option<CatalogueScope>,
        /// What it was from then on.
        after: Option<CatalogueScope>,
    },
    /// A subscription.
    Subscription {
        /// Its id.
        id: Uuid,
        /// Who holds it.
        subject: Subject,
        /// What it was.
        before: Option<Subscription>,
        /// What it was from then on.
        after: Option<Subscription>,
    },
}

/// A change as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order of reading.
    pub place: Place,
    /// When it was made.
    pub at: DateTime<Utc>,
    /// The name of the credential that made it.
    pub actor: String,
    /// The id of the request that made it.
    pub request_id: String,
    /// What was done, such as `create` or `cancel`.
    pub action: String,
    /// What it was done to.
    pub noun: Recorded,
}

const COLUMNS: &str =
    "seq, at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id, before, after";

/// Up to `limit` changes of a subscription after one of them, in the order in which they were made.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn history<C: ConnectionTrait>(
    connection: &C,
    subscription: Uuid,
    after: Option<i64>,
    limit: u64,
) -> Result<Vec<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM change WHERE subscription_id = $1 AND seq > $2 ORDER BY seq LIMIT $3");
    let values = [subscription.into(), after.unwrap_or_default().into(), limit_value(limit)];
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
    connection.query_all_raw(statement).await?.iter().map(|row| record(row, 0)).collect()
}

/// Up to `limit` changes of the catalogue and of subscriptions after a place, in the order of reading.
///
/// On Postgres a change shows as soon as no transaction is under way that began to write before it: whoever goes on from
/// the last place that was read misses nothing, however transactions overlap. Nothing at all when the place is one that
/// this database has not reached: then it is another one, or was put back.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn since<C: ConnectionTrait>(connection: &C, after: Place, limit: u64) -> Result<Option<Vec<Record>>> {
    let backend = connection.get_database_backend();
    let (seq, limit) = (after.seq.into(), limit_value(limit));
    if backend != DbBackend::Postgres {
        // The highest number that was ever given: a file that was put back has not come so far.
        let given = "SELECT coalesce(max(seq), 0) >= $1 FROM sqlite_sequence WHERE name = 'change'";
        let given = Statement::from_sql_and_values(backend, given, [after.seq.into()]);
        let row = connection.query_one_raw(given).await?.ok_or_else(|| Error::corrupt("seq"))?;
        if !row.try_get_by_index::<bool>(0)? {
            return Ok(None);
        }
        let sql = format!("SELECT {COLUMNS} FROM change WHERE seq > $1 AND noun <> '{TOKEN}' ORDER BY seq LIMIT $2");
        let rows = connection.query_all_raw(Statement::from_sql_and_values(backend, sql, [seq, limit])).await?;
        return rows.iter().map(|row| record(row, 0)).collect::<Result<_>>().map(Some);
    }
    let transaction = after.transaction.to_string();
    let reached = "SELECT pg_snapshot_xmax(pg_current_snapshot()) >= $1::xid8";
    let reached = Statement::from_sql_and_values(backend, reached, [transaction.clone().into()]);
    let row = connection.query_one_raw(reached).await?.ok_or_else(|| Error::corrupt("snapshot"))?;
    if !row.try_get_by_index::<bool>(0)? {
        return Ok(None);
    }
    // The text of a number has another order than the number, and a name that stood for both would mean the text.
    let sql = format!(
        "SELECT {COLUMNS}, xid::text AS transaction FROM change
        WHERE (xid, seq) > ($1::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot()) AND noun <> '{TOKEN}'
        ORDER BY xid, seq LIMIT $3"
    );
    let statement = Statement::from_sql_and_values(backend, sql, [transaction.into(), seq, limit]);
    let rows = connection.query_all_raw(statement).await?;
    let records = rows.iter().map(|row| {
        let transaction = row.try_get::<String>("", "transaction")?.parse().map_err(|_| Error::corrupt("xid"))?;
        record(row, transaction)
    });
    records.collect::<Result<_>>().map(Some)
}

fn limit_value(limit: u64) -> sea_orm::Value {
    i64::try_from(limit).unwrap_or(i64::MAX).into()
}

/// What an image shows, unless somebody wrote it by hand and it cannot be read: that costs the image, and not all that
/// was recorded after it.
fn readable<T>(image: Result<T>) -> Option<T> {
    image.inspect_err(|_| tracing::warn!("an image in the history cannot be read, and is left out")).ok()
}

fn record(row: &QueryResult, transaction: u64) -> Result<Record> {
    let noun: String = row.try_get("", "noun")?;
    let (before, after): (Option<String>, Option<String>) = (row.try_get("", "before")?, row.try_get("", "after")?);
    let noun = match noun.as_str() {
        CATALOGUE => {
            let name: Option<String> = row.try_get("", "scope")?;
            let name = catalogue::scope(&name.unwrap_or_default())?;
            let read = |image: Option<String>| image.and_then(|image| readable(image::scope(name.clone(), &image)));
            Recorded::Catalogue { before: read(before), after: read(after), name }
        }
        SUBSCRIPTION => {
            let (kind, id): (Option<String>, Option<String>) =
                (row.try_get("", "subject_type")?, row.try_get("", "subject_id")?);
            let subject = subject(&kind.unwrap_or_default(), &id.unwrap_or_default())?;
            let id: Option<Uuid> = row.try_get("", "subscription_id")?;
            let id = id.ok_or_else(|| Error::corrupt("subscription_id"))?;
            let read = |image: Option<String>| {
                image.and_then(|image| readable(image::subscription(id, subject.clone(), &image)))
            };
            Recorded::Subscription { before: read(before), after: read(after), id, subject }
        }
        _ => return Err(Error::corrupt("noun")),
    };
    Ok(Record {
        place: Place { transaction, seq: row.try_get("", "seq")? },
        at: row.try_get("", "at")?,
        actor: row.try_get("", "actor")?,
        request_id: row.try_get("", "request_id")?,
        action: row.try_get("", "action")?,
        noun,
    })
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

/// The changes that a look at the feed showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The reader's own, by their places in the table, and when each was made.
    pub own: Vec<(i64, DateTime<Utc>)>,
    /// The others.
    pub news: Vec<News>,
}

/// What a look at the feed showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Up to where it was read.
    pub horizon: Horizon,
    /// The changes since the last look; none when there are too many to name.
    pub changes: Option<Changes>,
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

/// The changes since a horizon of the same connection. `own` are places of changes that the reader made itself.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn look(connection: &mut PgConnection, since: &Horizon, own: &[i64]) -> Result<Look> {
    let row = sqlx::query(NEWS).bind(&since.0).bind(MAX_NEWS + 1).bind(own).fetch_one(connection).await?;
    let (horizon, database_now) = (Horizon(row.try_get(0)?), row.try_get(1)?);
    let own_seqs = row.try_get::<Option<Vec<i64>>, _>(2)?.unwrap_or_default();
    let seqs = row.try_get::<Option<Vec<i64>>, _>(4)?.unwrap_or_default();
    let is_named = own_seqs.len() + seqs.len() <= usize::try_from(MAX_NEWS).unwrap_or(usize::MAX);
    let read = || {
        let mut changes = Changes::default();
        // Without changes there are no columns of them.
        if !own_seqs.is_empty() {
            changes.own = own_seqs.into_iter().zip(row.try_get::<Vec<_>, _>(3)?).collect();
        }
        if seqs.is_empty() {
            return Ok(Some(changes));
        }
        let (times, nouns): (Vec<DateTime<Utc>>, Vec<String>) = (row.try_get(5)?, row.try_get(6)?);
        let (kinds, ids): (Vec<Option<String>>, Vec<Option<String>>) = (row.try_get(7)?, row.try_get(8)?);
        let named = seqs.into_iter().zip(times).zip(nouns).zip(kinds.into_iter().zip(ids));
        let news = named.map(|(((seq, at), noun), (kind, id))| news(seq, &noun, kind, id, at)).collect();
        // What is not understood, a newer version's changes perhaps, counts as a change of everything.
        let news: Option<Vec<News>> = news;
        Result::Ok(news.map(|news| Changes { news, ..changes }))
    };
    Ok(Look { horizon, changes: if is_named { read()? } else { None }, database_now })
}

fn news(seq: i64, noun: &str, kind: Option<String>, id: Option<String>, at: DateTime<Utc>) -> Option<News> {
    let stale = match noun {
        CATALOGUE => Stale::Catalogue,
        SUBSCRIPTION => Stale::Subject(Subject { kind: SubjectType::parse(&kind?)?, id: SubjectId::parse(&id?).ok()? }),
        TOKEN => Stale::Tokens,
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

/// Makes changes this server's that were restored from another one's dump: the ids of their transactions are beyond the
/// ids that this one has given, so to it they would lie in the future. They come before all that is its own.
///
/// # Errors
///
/// [`Error::Unexpected`] when there are some and the role may not change them: it takes the owner of the tables.
pub async fn adopt(transaction: &DatabaseTransaction) -> Result<()> {
    if are_foreign(transaction).await? {
        transaction.execute_unprepared(ADOPT).await?;
    }
    Ok(())
}

/// Whether there are changes that [`adopt`] has to make this server's.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn are_foreign<C: ConnectionTrait>(connection: &C) -> Result<bool> {
    if connection.get_database_backend() != DbBackend::Postgres {
        return Ok(false);
    }
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, FOREIGN)).await?;
    Ok(row.ok_or_else(|| Error::corrupt("xid"))?.try_get_by_index(0)?)
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
