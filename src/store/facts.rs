//! The hook's query: the facts of the subjects that a request names.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, Value, sea_query::ArrayType};

use super::{
    catalogue::scope,
    error::{Error, Result},
};
use crate::domain::{facts::Facts, life::Life, subject::Subject, window::Window};

// Both statements are constant, so each is parsed and planned once a connection, however many subjects it asks for.
// `place` is the subject's position in the question: the ids need not come back.

/// Public so that a test can ask the database for its plan.
#[doc(hidden)]
pub const POSTGRES: &str = "
SELECT wanted.place, named.scope, subscription.valid_from, subscription.valid_until, subscription.canceled_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (subject_type, subject_id, place)
JOIN subscription ON subscription.subject_type = wanted.subject_type
    AND subscription.subject_id = wanted.subject_id AND subscription.deleted_at IS NULL
JOIN subscription_scope AS named ON named.subscription_id = subscription.id";

/// `CROSS JOIN` keeps SQLite from choosing another order than the written one, which is the right one at every size.
#[doc(hidden)]
pub const SQLITE: &str = "
SELECT wanted.key + 1 AS place, named.scope, subscription.valid_from, subscription.valid_until, subscription.canceled_at
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
pub async fn load<C: ConnectionTrait>(connection: &C, subjects: &[Subject]) -> Result<Vec<Facts>> {
    let rows = connection.query_all_raw(statement(connection.get_database_backend(), subjects)?).await?;
    let mut pairs: HashMap<usize, Vec<_>> = HashMap::with_capacity(subjects.len());
    for row in &rows {
        let place: i64 = row.try_get_by_index(0)?;
        let place = usize::try_from(place).map_err(|_| Error::corrupt("place"))?;
        let name: String = row.try_get_by_index(1)?;
        pairs.entry(place).or_default().push((scope(&name)?, life(row)?));
    }
    let facts = |place| pairs.remove(&place).map_or_else(Facts::default, Facts::new);
    Ok((1..=subjects.len()).map(facts).collect())
}

fn life(row: &QueryResult) -> Result<Life> {
    let valid_from: DateTime<Utc> = row.try_get_by_index(2)?;
    let valid_until: Option<DateTime<Utc>> = row.try_get_by_index(3)?;
    let canceled_at: Option<DateTime<Utc>> = row.try_get_by_index(4)?;
    let window = Window::new(valid_from, valid_until).map_err(|_| Error::corrupt("valid_until"))?;
    Ok(Life { window, canceled_at })
}

fn statement(backend: DbBackend, subjects: &[Subject]) -> Result<Statement> {
    let kinds = subjects.iter().map(|subject| subject.kind.as_str());
    let ids = subjects.iter().map(|subject| subject.id.as_str());
    Ok(if backend == DbBackend::Postgres {
        let array = |texts: Vec<Value>| Value::Array(ArrayType::String, Some(Box::new(texts)));
        let values = [array(kinds.map(Value::from).collect()), array(ids.map(Value::from).collect())];
        Statement::from_sql_and_values(backend, POSTGRES, values)
    } else {
        let wanted: Vec<(&str, &str)> = kinds.zip(ids).collect();
        let wanted = serde_json::to_string(&wanted).map_err(|_| Error::corrupt("subject_id"))?;
        Statement::from_sql_and_values(backend, SQLITE, [wanted.into()])
    })
}
