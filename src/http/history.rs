//! The history in the management API: `/v1/subscriptions/{id}/history` and `/v1/changes`.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
};
use serde::Serialize;

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::Ok200,
    catalogue::ScopeBody,
    page::{Cursor, Limit, Page, Position},
    problem::{self, Refusal},
    subscription::{SubjectBody, SubscriptionBody, identified},
    wire::{ScopeToken, SubscriptionId, Timestamp},
};
use crate::{
    domain::subscription::Subscription,
    service::subscription::Shown,
    store::change::{Place, Record, Recorded},
};

/// The operations of the history.
#[derive(Debug, Clone, Copy)]
pub struct HistoryApi;

/// A change: who made it, when, and what it was from and to. Of the catalogue and of a subscription, one is told.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// When it was made.
    at: Timestamp,
    /// The name of the credential that made it.
    actor: String,
    /// The id of the request that made it.
    request_id: String,
    /// What was done, such as `create`, `patch`, `cancel` or `delete`.
    action: String,
    /// The subscription that was changed.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription: Option<SubscriptionChange>,
    /// The catalogue scope that was changed.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<ScopeChange>,
}

/// What a change made of a subscription; each with the status that it had at the instant of the change.
#[derive(Debug, Object, Serialize)]
pub struct SubscriptionChange {
    /// Its id.
    id: SubscriptionId,
    /// Who holds it.
    subject: SubjectBody,
    /// What it was; absent when it was not there.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<SubscriptionBody>,
    /// What it was from then on. It is absent only from changes that were recorded before the history was kept.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<SubscriptionBody>,
}

/// What a change made of a scope of the catalogue.
#[derive(Debug, Object, Serialize)]
pub struct ScopeChange {
    /// Its name.
    name: ScopeToken,
    /// What it was; absent when it was not there.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<ScopeBody>,
    /// What it was from then on; absent when it was there no more.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<ScopeBody>,
}

/// A page of a subscription's history.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct HistoryPage {
    /// The changes, in the order in which they were made.
    items: Vec<Change>,
    /// Where the next page begins; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<Cursor>,
}

/// A part of the feed of changes.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// The changes, in an order in which none is ever missed.
    items: Vec<Change>,
    /// Where to go on, now or later: it is always there.
    next: Cursor,
    /// Whether there is more already.
    has_more: bool,
}

/// What a cursor of the feed is bound to.
const FEED: &str = "changes";

#[OpenApi(prefix_path = "/v1", tag = "Tag::History")]
impl HistoryApi {
    /// Show the history of a subscription
    ///
    /// Every change of it since it was recorded, as far as changes are kept, whether it was deleted or not.
    #[oai(path = "/subscriptions/:id/history", method = "get", operation_id = "get-history")]
    async fn history(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        id: Path<SubscriptionId>,
        limit: Query<Option<Limit>>,
        cursor: Query<Option<Cursor>>,
    ) -> Result<Ok200<HistoryPage>, Refusal<problem::Read>> {
        let id = identified(&id.0)?;
        let filters = format!("history {id}");
        let page = Page::parse(limit.0.as_ref(), cursor.0.as_ref(), &filters)?;
        let after = page.position.as_ref().and_then(|position| position.after.parse().ok());
        let mut items = app.service.history(id, after, page.probe()).await?;
        let next_cursor = page.cut(&mut items, app.service.now(), &filters, |record| record.place.seq.to_string());
        Ok(Ok200(HistoryPage { items: items.into_iter().map(Into::into).collect(), next_cursor }))
    }

    /// Follow all changes
    ///
    /// Every change of the catalogue and of subscriptions, each once. Whoever keeps `next`, and asks with it again and
    /// again, misses none, whatever is written meanwhile: a change shows once no older transaction is under way. Two of
    /// one subscription may come in another order than they were made; their versions tell it.
    #[oai(path = "/changes", method = "get", operation_id = "list-changes")]
    async fn changes(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        /// Where to go on: `next` of an earlier answer. When absent, the answer begins with the oldest change that is
        /// kept.
        since: Query<Option<Cursor>>,
        limit: Query<Option<Limit>>,
    ) -> Result<Ok200<Changes>, Refusal<problem::Feed>> {
        let page = Page::parse(limit.0.as_ref(), None, FEED)?;
        let after = since.0.as_ref().map(|cursor| {
            let position = Position::decode(&cursor.0, FEED);
            let after = position.and_then(|position| Some((place(&position.after)?, position.now)));
            after.ok_or_else(|| problem::undescribed("?since", "expected `next` of an earlier answer"))
        });
        let after = after.transpose()?;
        let mut changes = app.service.changes(after, page.probe()).await?;
        let has_more = page.cut(&mut changes.records, changes.now, FEED, |_| String::new()).is_some();
        let last = changes.records.last().map(|record| record.place).or(after.map(|(place, _)| place));
        let Place { transaction, seq } = last.unwrap_or(Place { transaction: 0, seq: 0 });
        // Whoever has read all there is stands at the present; who has not, at the last change that was read.
        let read_at = changes.records.last().filter(|_| has_more).map_or(changes.now, |record| record.at);
        let next = Position { now: read_at, after: format!("{transaction} {seq}") };
        let items = changes.records.into_iter().map(Into::into).collect();
        Ok(Ok200(Changes { items, next: Cursor(next.encode(FEED)), has_more }))
    }
}

fn place(text: &str) -> Option<Place> {
    let (transaction, seq) = text.split_once(' ')?;
    Some(Place { transaction: transaction.parse().ok()?, seq: seq.parse().ok()? })
}

impl From<Record> for Change {
    fn from(record: Record) -> Self {
        let Record { place: _, at, actor, request_id, action, noun } = record;
        let (subscription, scope) = match noun {
            Recorded::Subscription { id, subject, before, after } => {
                let shown = |subscription: Subscription| Shown { subscription, now: at }.into();
                let (before, after) = (before.map(shown), after.map(shown));
                (Some(SubscriptionChange { id: id.into(), subject: subject.into(), before, after }), None)
            }
            Recorded::Catalogue { name, before, after } => {
                let (before, after) = (before.map(Into::into), after.map(Into::into));
                (None, Some(ScopeChange { name: (&name).into(), before, after }))
            }
        };
        Self { at: at.into(), actor, request_id, action, subscription, scope }
    }
}
