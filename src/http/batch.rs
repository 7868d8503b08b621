//! Many writes in one request: `/v1/subscriptions/batch`.

use std::sync::Arc;

use poem::{
    IntoResponse, Response,
    http::{StatusCode, header},
    web::Data,
};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    registry::{MetaResponses, Registry},
    types::Type as _,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::{self, Body},
    problem::{self, Document, Problem, Refusal, undescribed},
    subscription::{
        Cancellation, NewSubscriptionBody, Nothing, Pause, Renewal, SubscriptionBody, SubscriptionPatchBody,
    },
    wire::{FromObject, SubscriptionId, object, present},
};
use crate::{
    domain::{claims::ClaimsPrefix, life::Transition},
    service::{
        self, Expected,
        subscription::{Outcome, Target, Write, Written},
    },
};

/// The most writes of a batch: what a transaction can hold for the time that others wait for it.
pub const MAX_ITEMS: usize = 1_000;

const _: () = assert!(MAX_ITEMS == 1_000, "the contract names the limit");

/// The operation of batches.
#[derive(Debug, Clone, Copy)]
pub struct BatchApi;

/// Writes to subscriptions, done in their order.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Whether all of it is done, or nothing; false when absent: what can be done is.
    #[serde(default, deserialize_with = "present")]
    atomic: Option<bool>,
    /// The writes.
    #[oai(validator(min_items = 1, max_items = 1000))]
    #[serde(deserialize_with = "items")]
    items: Vec<BatchItem>,
}

/// One write: exactly one of the members that name what to do, and `id` with those that do it to a subscription that is
/// there.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// The subscription that is written to; not for `create` and `put`.
    #[serde(default, deserialize_with = "present")]
    id: Option<SubscriptionId>,
    /// The version that may be written to, as in `If-Match`; not for `create`.
    #[serde(default, deserialize_with = "present")]
    version: Option<i64>,
    /// To record a subscription.
    #[serde(default, deserialize_with = "some_object")]
    create: Option<NewSubscriptionBody>,
    /// To record what a system says of its subscription: `source` and `externalId` have to be there.
    #[serde(default, deserialize_with = "some_object")]
    put: Option<NewSubscriptionBody>,
    /// To change it.
    #[serde(default, deserialize_with = "some_object")]
    patch: Option<SubscriptionPatchBody>,
    /// To cancel it.
    #[serde(default, deserialize_with = "some_object")]
    cancel: Option<Cancellation>,
    /// To take back a cancellation.
    #[serde(default, deserialize_with = "some_object")]
    uncancel: Option<Nothing>,
    /// To pause it.
    #[serde(default, deserialize_with = "some_object")]
    pause: Option<Pause>,
    /// To resume it.
    #[serde(default, deserialize_with = "some_object")]
    resume: Option<Nothing>,
    /// To renew it.
    #[serde(default, deserialize_with = "some_object")]
    renew: Option<Renewal>,
    /// To delete it.
    #[serde(default, deserialize_with = "some_object")]
    delete: Option<Nothing>,
    /// To restore it.
    #[serde(default, deserialize_with = "some_object")]
    restore: Option<Nothing>,
}

/// What became of the writes, in their order.
#[derive(Debug, Object, Serialize)]
pub struct BatchAnswer {
    /// One item for each write.
    items: Vec<BatchResult>,
}

/// What became of one write.
#[derive(Debug, Object, Serialize)]
pub struct BatchResult {
    /// 201 when it recorded a subscription, 200 when it was done otherwise, and the status of its problem when it was
    /// refused.
    status: u16,
    /// What came of it; absent when it was refused.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<BatchOutcome>,
    /// The subscription; absent when the write was refused.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription: Option<SubscriptionBody>,
    /// Why it was refused; absent when it was done.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Document>,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum BatchOutcome {
    /// The subscription is new.
    Created,
    /// It was changed.
    Changed,
    /// It was so already.
    Unchanged,
    /// Its source has said this, or something newer, before: by its version, so nothing was done.
    Outdated,
}

/// A 200 for a batch that was done as one, or a 207 with a status for each of its writes.
#[derive(Debug)]
pub struct Answered {
    status: StatusCode,
    body: String,
}

impl ApiResponse for Answered {
    fn meta() -> MetaResponses {
        let responses = vec![
            body::meta::<BatchAnswer>(200, "All of it was done."),
            body::meta::<BatchAnswer>(207, "Each write has a status of its own."),
        ];
        MetaResponses { responses }
    }

    fn register(registry: &mut Registry) {
        BatchAnswer::register(registry);
    }
}

impl IntoResponse for Answered {
    fn into_response(self) -> Response {
        Response::builder().status(self.status).header(header::CONTENT_TYPE, "application/json").body(self.body)
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Subscriptions")]
impl BatchApi {
    /// Write to many subscriptions
    ///
    /// In one transaction and in their order. Atomic: all of it is done (200), or nothing, and the answer is the first
    /// refusal, whose pointers name its place. Otherwise each write has a status of its own (207), a 400 where its members
    /// do not go together. Any other body that this contract does not describe is refused as a whole.
    #[oai(path = "/subscriptions/batch", method = "post", operation_id = "write-subscriptions")]
    async fn write(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        batch: Body<Batch>,
    ) -> Result<Answered, Refusal<problem::Change>> {
        let Batch { atomic, items } = batch.0;
        let is_atomic = atomic.unwrap_or_default();
        let (mut places, mut refused, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            let place = format!("#/items/{index}");
            match item.parse(app.require_if_match, app.service.claims_prefix(), &place) {
                Ok((place, write)) => {
                    places.push(place);
                    writes.push(write);
                    refused.push(None);
                }
                Err(problem) if is_atomic => return Err(problem.into()),
                Err(problem) => refused.push(Some(problem)),
            }
        }
        let shown_places = places.clone();
        let answer = move |results: Vec<service::Result<Written>>| {
            let mut done = results.into_iter().zip(shown_places);
            let items = refused.into_iter().filter_map(|refused| match refused {
                Some(problem) => Some(BatchResult::of_problem(&problem)),
                None => done.next().map(|(result, place)| match result {
                    Ok(written) => written.into(),
                    Err(error) => BatchResult::of_problem(&Problem::from(error).below(&place)),
                }),
            });
            serde_json::to_string(&BatchAnswer { items: items.collect() }).unwrap_or_default()
        };
        let written = app.service.write_subscriptions(caller.0, writes, is_atomic, answer).await;
        let body = written.map_err(|error| match error {
            service::Error::InBatch { index, error } => {
                Problem::from(*error).below(places.get(index).map_or("#", String::as_str))
            }
            error => error.into(),
        })?;
        Ok(Answered { status: if is_atomic { StatusCode::OK } else { StatusCode::MULTI_STATUS }, body })
    }
}

/// Reads a member that may be absent, and is an object when it is there.
fn some_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    object(deserializer).map(Some)
}

/// Reads the writes of a batch, as many as there may be.
fn items<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BatchItem>, D::Error> {
    let items = Vec::<FromObject<BatchItem>>::deserialize(deserializer)?;
    if (1..=MAX_ITEMS).contains(&items.len()) {
        Ok(items.into_iter().map(|FromObject(item)| item).collect())
    } else {
        // What comes after `expected` is told to the sender.
        Err(D::Error::custom(format!("another number of items, expected 1 to {MAX_ITEMS}")))
    }
}

impl BatchItem {
    /// The write, and the pointer to the member that says it.
    fn parse(
        self,
        is_version_required: bool,
        prefix: Option<&ClaimsPrefix>,
        place: &str,
    ) -> Result<(String, Write), Problem> {
        let Self { id, version, create, put, patch, cancel, uncancel, pause, resume, renew, delete, restore } = self;
        let expected = match version {
            Some(version) => Expected::Versions(vec![version]),
            None => Expected::Any,
        };
        let old = || {
            let missing = || undescribed(&format!("{place}/id"), "the member is missing");
            let id = id
                .as_ref()
                .ok_or_else(missing)?
                .parse()
                .ok_or_else(|| Problem::not_found().below(&format!("{place}/id")))?;
            if is_version_required && version.is_none() {
                return Err(Problem::if_match_required().below(&format!("{place}/version")));
            }
            Ok((id, expected.clone()))
        };
        let transition = |name: &'static str, transition: Result<Transition, Problem>| {
            let (id, expected) = old()?;
            let transition = transition.map_err(|problem| problem.below(&format!("{place}/{name}")))?;
            Ok((name, Write::Transition { id, expected, transition }))
        };
        let new = |name: &'static str, is_put: bool, body: NewSubscriptionBody| {
            if id.is_some() {
                return Err(undescribed(&format!("{place}/id"), "it does not go with what is new"));
            }
            if !is_put && version.is_some() {
                return Err(undescribed(&format!("{place}/version"), "it does not go with `create`"));
            }
            let below = format!("{place}/{name}");
            let new = body.parse(prefix).map_err(|problem| problem.below(&below))?;
            let write = match (is_put, new.external) {
                (true, None) => return Err(undescribed(&format!("{below}/externalId"), "the member is missing")),
                (true, Some(external)) => {
                    let target = Target::External(external);
                    Write::Put { target, state: new.state, expected: expected.clone() }
                }
                (false, external) => {
                    Write::Create(service::subscription::NewSubscription { state: new.state, external })
                }
            };
            Ok((name, write))
        };
        let mut writes: Vec<Result<(&'static str, Write), Problem>> = Vec::with_capacity(1);
        writes.extend(create.map(|body| new("create", false, body)));
        writes.extend(put.map(|body| new("put", true, body)));
        writes.extend(patch.map(|body| {
            let (id, expected) = old()?;
            let (subject, patch) = body.parse(prefix).map_err(|problem| problem.below(&format!("{place}/patch")))?;
            Ok(("patch", Write::Patch { id, expected, subject, patch }))
        }));
        writes.extend(cancel.map(|body| transition("cancel", body.parse().map(Transition::Cancel))));
        writes.extend(uncancel.map(|Nothing {}| transition("uncancel", Ok(Transition::Uncancel))));
        writes.extend(pause.map(|body| transition("pause", body.parse())));
        writes.extend(resume.map(|Nothing {}| transition("resume", Ok(Transition::Resume))));
        writes.extend(renew.map(|body| transition("renew", body.parse().map(Transition::Renew))));
        writes.extend(delete.map(|Nothing {}| old().map(|(id, expected)| ("delete", Write::Delete { id, expected }))));
        writes
            .extend(restore.map(|Nothing {}| old().map(|(id, expected)| ("restore", Write::Restore { id, expected }))));
        let mut writes = writes.into_iter();
        match (writes.next(), writes.next()) {
            (Some(write), None) => write.map(|(name, write)| (format!("{place}/{name}"), write)),
            _ => Err(undescribed(place, "expected exactly one member that names what to do")),
        }
    }
}

impl BatchResult {
    fn of_problem(problem: &Problem) -> Self {
        let status = problem.status().as_u16();
        Self { status, outcome: None, subscription: None, problem: Some(problem.document()) }
    }
}

impl From<Written> for BatchResult {
    fn from(Written { shown, outcome }: Written) -> Self {
        let (status, outcome) = match outcome {
            Outcome::Created => (201, BatchOutcome::Created),
            Outcome::Changed => (200, BatchOutcome::Changed),
            Outcome::Unchanged => (200, BatchOutcome::Unchanged),
            Outcome::Outdated => (200, BatchOutcome::Outdated),
        };
        Self { status, outcome: Some(outcome), subscription: Some(shown.into()), problem: None }
    }
}
