//! The hook's query: the facts of the subjects that a request names.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, ColumnIndex, Decode, Row, Type};

use super::{
    catalogue::scope,
    error::{Error, Result},
    lane::Connection,
    subscription::life,
};
use crate::domain::{facts::Facts, life::Life, scope::Scope, subject::Subject};

// Both statements are constant, so each is parsed and planned once a connection, however many subjects it asks for.
// `place` is the subject's position in the question: the ids need not come back.

/// Public so that a test can ask the database for its plan.
#[doc(hidden)]
pub const POSTGRES: &str = "
SELECT wanted.place, named.scope, subscription.valid_from, subscription.valid_until, subscription.grace_until,
    subscription.paused_from, subscription.paused_until, subscription.canceled_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (subject_type, subject_id, place)
JOIN subscription ON subscription.subject_type = wanted.subject_type
    AND subscription.subject_id = wanted.subject_id AND subscription.deleted_at IS NULL
JOIN subscription_scope AS named ON named.subscription_id = subscription.id";

/// `CROSS JOIN` keeps SQLite from choosing another order than the written one, which is the right one at every size.
#[doc(hidden)]
pub const SQLITE: &str = "
SELECT wanted.key + 1 AS place, named.scope, subscription.valid_from, subscription.valid_until,
    subscription.grace_until, subscription.paused_from, subscription.paused_until, subscription.canceled_at
FROM json_each(?1) AS wanted
CROSS JOIN subscription ON subscription.subject_type = json_extract(wanted.value, '$[0]')
    AND subscription.subject_id = json_extract(wanted.value, '$[1]') AND subscription.deleted_at IS NULL
CROSS JOIN subscription_scope AS named ON named.subscription_id = subscription.id";

/// The facts of each of these subjects, in their order; a subject without subscriptions has empty facts.
///
/// "May still matter" is every subscription that is not deleted: an expired one is the difference between the reasons
/// `expired` and `no_subscription`, and a clock that is set back makes it matter again.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Facts>> {
    let kinds = subjects.iter().map(|subject| subject.kind.as_str());
    let ids = subjects.iter().map(|subject| subject.id.as_str());
    match connection {
        Connection::Postgres(connection) => {
            let (kinds, ids): (Vec<&str>, Vec<&str>) = (kinds.collect(), ids.collect());
            let rows = sqlx::query(POSTGRES).bind(kinds).bind(ids).fetch_all(connection).await?;
            facts(&rows, subjects.len())
        }
        Connection::Sqlite(connection) => {
            let wanted: Vec<(&str, &str)> = kinds.zip(ids).collect();
            let wanted = serde_json::to_string(&wanted).map_err(|_| Error::corrupt("subject_id"))?;
            let rows = sqlx::query(SQLITE).bind(wanted).fetch_all(&mut **connection).await?;
            facts(&rows, subjects.len())
        }
    }
}

fn facts<R: Row>(rows: &[R], subjects: usize) -> Result<Vec<Facts>>
where
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> DateTime<Utc>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<DateTime<Utc>>: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut pairs: HashMap<usize, Vec<(Scope, Life)>> = HashMap::with_capacity(subjects);
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>(0)?).map_err(|_| Error::corrupt("place"))?;
        let window = (row.try_get(2)?, row.try_get(3)?);
        let pause = (row.try_get(5)?, row.try_get(6)?);
        let life = life(window, row.try_get(4)?, pause, row.try_get(7)?)?;
        pairs.entry(place).or_default().push((scope(row.try_get(1)?)?, life));
    }
    let facts = |place| pairs.remove(&place).map_or_else(Facts::default, Facts::new);
    Ok((1..=subjects).map(facts).collect())
}
