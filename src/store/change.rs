//! Queries of the changes.

use chrono::{DateTime, Utc};
use entity::change::{ActiveModel, Entity};
use sea_orm::{DatabaseTransaction, EntityTrait as _, NotSet, Set};
use uuid::Uuid;

use super::error::Result;
use crate::domain::{scope::Scope, subject::Subject};

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

/// Records a change.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn insert(transaction: &DatabaseTransaction, change: Change<'_>) -> Result<()> {
    let Change { at, actor, request_id, action, noun } = change;
    let (noun, scope, subscription_id, subject) = match noun {
        Noun::Catalogue { scope } => ("catalogue", Some(scope), None, None),
        Noun::Subscription { id, subject } => ("subscription", None, Some(id), Some(subject)),
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
    };
    Entity::insert(row).exec_without_returning(transaction).await?;
    Ok(())
}
