//! The hook's query: the facts of the subjects that a request names.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::sqlx::{self, ColumnIndex, Decode, Row, Type};
use uuid::Uuid;

use super::{
    catalogue::{claims_or_none, scope},
    error::{Error, Result},
    lane::Connection,
    subscription::life,
};
use crate::domain::{claims::Bearing, facts::Facts, holdings::Holdings, life::Life, scope::Scope, subject::Subject};

// Both statements are constant, so each is parsed and planned once a connection, however many subjects it asks for.
// `place` is the subject's position in the question: the ids need not come back. What a hook rests on and what explains
// it are one query.

/// Each subquery stands for itself, once for each row before it: so nothing is left to choose but the index, whatever the
/// planner knows of the tables. `OFFSET 0` keeps a subquery from being dissolved. Of two indexes that hold the key of a
/// scope the order asks for the one that begins with it, and the array keeps that order from being taken for a constant.
///
/// Public so that a test can ask the database for its plan.
#[doc(hidden)]
pub const POSTGRES: &str = "
SELECT wanted.place, named.scope, subscription.valid_from, subscription.valid_until, subscription.grace_until,
    subscription.paused_from, subscription.paused_until, subscription.canceled_at, subscription.claims,
    subscription.id
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (subject_type, subject_id, place)
CROSS JOIN LATERAL (
    SELECT id, valid_from, valid_until, grace_until, paused_from, paused_until, canceled_at, claims
    FROM subscription
    WHERE subject_type = wanted.subject_type AND subject_id = wanted.subject_id AND deleted_at IS NULL
    OFFSET 0
) AS subscription
CROSS JOIN LATERAL (
    SELECT scope FROM subscription_scope WHERE subscription_id = ANY (ARRAY[subscription.id])
    ORDER BY subscription_id, scope
) AS named";

/// `CROSS JOIN` keeps SQLite from choosing another order than the written one, which is the right one at every size.
#[doc(hidden)]
pub const SQLITE: &str = "
SELECT wanted.key + 1 AS place, named.scope, subscription.valid_from, subscription.valid_until,
    subscription.grace_until, subscription.paused_from, subscription.paused_until, subscription.canceled_at,
    subscription.claims, subscription.id
FROM json_each(?1) AS wanted
CROSS JOIN subscription ON subscription.subject_type = json_extract(wanted.value, '$[0]')
    AND subscription.subject_id = json_extract(wanted.value, '$[1]') AND subscription.deleted_at IS NULL
CROSS JOIN subscription_scope AS named ON named.subscription_id = subscription.id";

/// What the rows of one subject hold.
#[derive(Debug, Default)]
struct Found {
    /// The scopes that its subscriptions name, each with the subscription's id and life.
    named: Vec<(Scope, Uuid, Life)>,
    /// The few subscriptions that have claims of their own.
    bearings: HashMap<Uuid, (Bearing, Vec<Scope>)>,
}

/// The facts of each of these subjects, in their order; a subject without subscriptions has empty facts.
///
/// "May still matter" is every subscription that is not deleted: an expired one is the difference between the reasons
/// `expired` and `no_subscription`, and a clock that is set back makes it matter again.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Facts>> {
    let facts = |found: Found| {
        let (named, bearings) = found.taken_apart();
        Facts::new(named.into_iter().map(|(scope, _, life)| (scope, life)).collect()).with_bearings(bearings)
    };
    Ok(ask(connection, subjects).await?.into_iter().map(facts).collect())
}

/// The holdings of each of these subjects, in their order: what [`load`] gives, and whom it comes from.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn load_holdings(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Holdings>> {
    let holdings = |found: Found| {
        let (named, bearings) = found.taken_apart();
        Holdings::new(named).with_bearings(bearings)
    };
    Ok(ask(connection, subjects).await?.into_iter().map(holdings).collect())
}

async fn ask(connection: &mut Connection, subjects: &[Subject]) -> Result<Vec<Found>> {
    let kinds = subjects.iter().map(|subject| subject.kind.as_str());
    let ids = subjects.iter().map(|subject| subject.id.as_str());
    match connection {
        Connection::Postgres(connection) => {
            let (kinds, ids): (Vec<&str>, Vec<&str>) = (kinds.collect(), ids.collect());
            let rows = sqlx::query(POSTGRES).bind(kinds).bind(ids).fetch_all(connection).await?;
            sort(&rows, subjects.len())
        }
        Connection::Sqlite(connection) => {
            let wanted: Vec<(&str, &str)> = kinds.zip(ids).collect();
            let wanted = serde_json::to_string(&wanted).map_err(|_| Error::corrupt("subject_id"))?;
            let rows = sqlx::query(SQLITE).bind(wanted).fetch_all(&mut **connection).await?;
            sort(&rows, subjects.len())
        }
    }
}

/// What rows hold, subject by subject.
fn sort<R: Row>(rows: &[R], subjects: usize) -> Result<Vec<Found>>
where
    usize: ColumnIndex<R>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> DateTime<Utc>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<DateTime<Utc>>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<&'r str>: Decode<'r, R::Database> + Type<R::Database>,
    Uuid: for<'r> Decode<'r, R::Database> + Type<R::Database>,
{
    let mut sorted: Vec<Found> = Vec::new();
    sorted.resize_with(subjects, Found::default);
    for row in rows {
        let place = usize::try_from(row.try_get::<i64, _>(0)?).ok().and_then(|place| place.checked_sub(1));
        let found = place.and_then(|place| sorted.get_mut(place)).ok_or_else(|| Error::corrupt("place"))?;
        let window = (row.try_get(2)?, row.try_get(3)?);
        let pause = (row.try_get(5)?, row.try_get(6)?);
        let life = life(window, row.try_get(4)?, pause, row.try_get(7)?)?;
        let (name, id) = (scope(row.try_get(1)?)?, row.try_get(9)?);
        if let Some(text) = row.try_get::<Option<&str>, _>(8)? {
            // They stand beside each of its scopes, and are read once.
            let read = || {
                let claims = claims_or_none(Some(text));
                (Bearing { id, life, scopes: Box::default(), claims }, Vec::new())
            };
            found.bearings.entry(id).or_insert_with(read).1.push(name.clone());
        }
        found.named.push((name, id, life));
    }
    Ok(sorted)
}

impl Found {
    fn taken_apart(self) -> (Vec<(Scope, Uuid, Life)>, Vec<Bearing>) {
        let with_claims = self.bearings.into_values().filter(|(bearing, _)| !bearing.claims.is_empty());
        let bearings = with_claims.map(|(bearing, scopes)| Bearing { scopes: scopes.into(), ..bearing });
        (self.named, bearings.collect())
    }
}
