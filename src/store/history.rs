//! What was known at an instant of the past: the present, with each change since then taken back.
//!
//! The first change after the instant tells what was there before it; where there is none, what is there now was there
//! then. So the history need not reach back to the beginning, only to the instant.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult, Statement, Value};
use uuid::Uuid;

use super::{
    catalogue,
    error::{Error, Result},
    image, subscription,
};
use crate::domain::{catalogue::CatalogueScope, scope::Scope, subject::Subject, subscription::Subscription};

/// Ids that are asked for in one query: far below what a statement may hold.
const IDS_AT_ONCE: usize = 500;
/// Catalogue scopes that are read at once; a catalogue has fewer by far.
const ALL_SCOPES: u64 = 1_000_000;

/// What a change tells of what was there before it.
enum Before {
    Nothing,
    Image(String),
    /// It was recorded before the history was kept.
    Unknown,
}

fn before(row: &QueryResult) -> Result<Before> {
    let (before, after): (Option<String>, Option<String>) = (row.try_get("", "before")?, row.try_get("", "after")?);
    Ok(match (before, after) {
        (Some(before), _) => Before::Image(before),
        (None, Some(_)) => Before::Nothing,
        (None, None) => Before::Unknown,
    })
}

/// A subject's subscriptions as they were known at an instant, without those that were deleted then; none when the
/// history does not reach back to it.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn subscriptions<C: ConnectionTrait>(
    connection: &C,
    subject: &Subject,
    at: DateTime<Utc>,
) -> Result<Option<Vec<Subscription>>> {
    let present = subscription::of_subject(connection, subject).await?;
    let mut changed = HashMap::new();
    for ids in present.iter().map(|subscription| subscription.id).collect::<Vec<_>>().chunks(IDS_AT_ONCE) {
        let places: Vec<_> = (2..ids.len() + 2).map(|place| format!("${place}")).collect();
        let sql = format!(
            "SELECT subscription_id, before, after FROM change WHERE seq IN (
                SELECT min(seq) FROM change WHERE at > $1 AND subscription_id IN ({}) GROUP BY subscription_id)",
            places.join(", ")
        );
        let values = std::iter::once(Value::from(at)).chain(ids.iter().map(|id| Value::from(*id)));
        let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, values);
        for row in connection.query_all_raw(statement).await? {
            let id: Option<Uuid> = row.try_get("", "subscription_id")?;
            changed.insert(id.ok_or_else(|| Error::corrupt("subscription_id"))?, before(&row)?);
        }
    }
    let mut known = Vec::with_capacity(present.len());
    for subscription in present {
        match changed.remove(&subscription.id) {
            None => known.push(subscription),
            Some(Before::Nothing) => {}
            Some(Before::Image(image)) => known.push(image::subscription(subscription.id, subject.clone(), &image)?),
            Some(Before::Unknown) => return Ok(None),
        }
    }
    known.retain(|subscription| subscription.deleted_at.is_none());
    Ok(Some(known))
}

/// The catalogue as it was known at an instant; none when the history does not reach back to it.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn scopes<C: ConnectionTrait>(connection: &C, at: DateTime<Utc>) -> Result<Option<Vec<CatalogueScope>>> {
    let present = catalogue::list(connection, None, ALL_SCOPES).await?;
    let mut known: HashMap<Scope, CatalogueScope> =
        present.into_iter().map(|scope| (scope.name.clone(), scope)).collect();
    let sql = "SELECT scope, before, after FROM change WHERE seq IN (
        SELECT min(seq) FROM change WHERE at > $1 AND scope IS NOT NULL GROUP BY scope)";
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), sql, [at.into()]);
    for row in connection.query_all_raw(statement).await? {
        let name: Option<String> = row.try_get("", "scope")?;
        let name = catalogue::scope(&name.unwrap_or_default())?;
        match before(&row)? {
            Before::Nothing => known.remove(&name),
            Before::Image(image) => known.insert(name.clone(), image::scope(name, &image)?),
            Before::Unknown => return Ok(None),
        };
    }
    Ok(Some(known.into_values().collect()))
}
