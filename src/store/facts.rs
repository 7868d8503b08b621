//! The hook's query: the facts of the subjects that a request names.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, ColumnIndex, Decode, Row, Type, postgres::PgRow, sqlite::SqliteRow};

use super::{
    catalogue::scope,
    error::{Error, Result},
    lane::Connection,
    subscription::life,
};
use crate::domain::{facts::Facts, holdings::Holdings, life::Life, scope::Scope, subject::Subject};

// The statements are constant, so each is parsed and planned once a connection, however many subjects it asks for.
// `place` is the subject's position in the question: the ids need not come back. What a hook rests on and what explains
// it are one query, but for the columns that `$more` adds.

macro_rules! postgres {
    ($more:literal) => {
        concat!(
            "
SELECT wanted.place, named.scope, subscription.valid_from, subscription.valid_until, subscription.grace_until,
    subscription.paused_from, subscription.paused_until, subscription.canceled_at",
            $more,
            "
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (subject_type, subject_id, place)
JOIN subscription ON subscription.subject_type = wanted.subject_type
    AND subscription.subject_id = wanted.subject_id AND subscription.deleted_at IS NULL
JOIN subscription_scope AS named ON named.subscription_id = subscription.id"
        )
    };
}

// `CROSS JOIN` keeps SQLite from choosing another order than the written one, which is the right one at every size.
macro_rules! sqlite {
    ($more:literal) => {
        concat!(
            "
SELECT wanted.key + 1 AS place, named.scope, subscription.valid_from, subscription.valid_until,
    subscription.grace_until, subscription.paused_from, subscription.paused_until, subscription.canceled_at",
            $more,
            "
FROM json_each(?1) AS wanted
CROSS JOIN subscription ON subscription.subject_type = json_extract(wanted.value, '$[0]')
    AND subscription.subject_id = json_extract(wanted.value, '$[1]') AND subscription.deleted_at IS NULL
CROSS JOIN subscription_scope AS named ON named.subscription_id = subscription.id"
        )
    };
}

/// A query in the words of either database.
struct Query {
    postgres: &'static str,
    sqlite: &'static str,
}

/// Public so that a test can ask the database for its plan.
#[doc(hidden)]
pub const POSTGRES: &str = postgres!("");

/// The same.
#[doc(hidden)]
pub const SQLITE: &str = sqlite!("");

const FACTS: Query = Query { postgres: POSTGRES, sqlite: SQLITE };

const HOLDINGS: Query = Query { postgres: postgres!(", subscription.id"), sqlite: sqlite!(", subscription.id") };

/// The facts of each of these subjects, in their order; a subject without subscriptions has empty facts.
///
/// "May still matter" is every subscription that is not deleted: an expired one is the difference between the reasons
/// `expired` and `no_subscription`, and a clock that is set back makes it matter again.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Facts>> {
    let lives = match ask(connection, FACTS, subjects).await? {
        Rows::Postgres(rows) => lives(&rows, subjects.len(), |scope, life, _| Ok((scope, life))),
        Rows::Sqlite(rows) => lives(&rows, subjects.len(), |scope, life, _| Ok((scope, life))),
    };
    Ok(lives?.into_iter().map(Facts::new).collect())
}

/// The holdings of each of these subjects, in their order: what [`load`] gives, and whom it comes from.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load_holdings(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Holdings>> {
    let lives = match ask(connection, HOLDINGS, subjects).await? {
        Rows::Postgres(rows) => lives(&rows, subjects.len(), |scope, life, row| Ok((scope, row.try_get(8)?, life))),
        Rows::Sqlite(rows) => lives(&rows, subjects.len(), |scope, life, row| Ok((scope, row.try_get(8)?, life))),
    };
    Ok(lives?.into_iter().map(Holdings::new).collect())
}

/// The rows that a database answered.
enum Rows {
    Postgres(Vec<PgRow>),
    Sqlite(Vec<SqliteRow>),
}

async fn ask(connection: &mut Connection, query: Query, subjects: &[Subject]) -> Result<Rows> {
    let kinds = subjects.iter().map(|subject| subject.kind.as_str());
    let ids = subjects.iter().map(|subject| subject.id.as_str());
    Ok(match connection {
        Connection::Postgres(connection) => {
            let (kinds, ids): (Vec<&str>, Vec<&str>) = (kinds.collect(), ids.collect());
            Rows::Postgres(sqlx::query(query.postgres).bind(kinds).bind(ids).fetch_all(connection).await?)
        }
        Connection::Sqlite(connection) => {
            let wanted: Vec<(&str, &str)> = kinds.zip(ids).collect();
            let wanted = serde_json::to_string(&wanted).map_err(|_| Error::corrupt("subject_id"))?;
            Rows::Sqlite(sqlx::query(query.sqlite).bind(wanted).fetch_all(&mut **connection).await?)
        }
    })
}

/// What rows hold for each subject: for each scope that a subscription names, what `make` makes of it and the life.
fn lives<R: Row, T>(rows: &[R], subjects: usize, make: impl Fn(Scope, Life, &R) -> Result<T>) -> Result<Vec<Vec<T>>>
where
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> DateTime<Utc>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<DateTime<Utc>>: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut lives: HashMap<usize, Vec<T>> = HashMap::with_capacity(subjects);
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>(0)?).map_err(|_| Error::corrupt("place"))?;
        let window = (row.try_get(2)?, row.try_get(3)?);
        let pause = (row.try_get(5)?, row.try_get(6)?);
        let life = life(window, row.try_get(4)?, pause, row.try_get(7)?)?;
        lives.entry(place).or_default().push(make(scope(row.try_get(1)?)?, life, row)?);
    }
    Ok((1..=subjects).map(|place| lives.remove(&place).unwrap_or_default()).collect())
}
