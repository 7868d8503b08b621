//! Images: what was there before and after a change, in JSON, as the history keeps it.
//!
//! An image is read back for as long as the history is kept, so a member that is added here later is one that may be
//! absent.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    catalogue,
    error::{Error, Result},
    subscription,
};
use crate::domain::{
    catalogue::{CatalogueScope, Description},
    claims::Claims,
    external::SourceVersion,
    life::Life,
    scope::Scope,
    subject::Subject,
    subscription::{ScopeSet, Subscription},
    token::Token,
};

/// A subscription but for its id and its subject, which never change: each change names them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubscriptionImage {
    scopes: Vec<String>,
    valid_from: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_until: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace_until: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_from: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_until: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canceled_at: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    external_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_version: Option<i64>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeImage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    requires: String,
    enforced: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<Value>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// A token, but for its secret and its last use.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenImage<'a> {
    name: &'a str,
    role: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<DateTime<Utc>>,
}

/// The image of a subscription.
pub fn of_subscription(subscription: &Subscription) -> String {
    // Taken apart field by field, so that a field added to the domain cannot be forgotten here.
    let Subscription { id: _, subject: _, scopes, life, external, claims, version, created_at, updated_at, deleted_at } =
        subscription;
    let Life { term, pause, canceled_at } = life;
    write(&SubscriptionImage {
        scopes: scopes.as_slice().iter().map(|scope| scope.as_str().to_owned()).collect(),
        valid_from: term.window().from(),
        valid_until: term.window().until(),
        grace_until: term.grace_until(),
        paused_from: pause.map(|pause| pause.from()),
        paused_until: pause.and_then(|pause| pause.until()),
        canceled_at: *canceled_at,
        claims: of_claims(claims),
        source: external.as_ref().map(|external| external.key.source.as_str().to_owned()),
        external_id: external.as_ref().map(|external| external.key.id.as_str().to_owned()),
        source_version: external.as_ref().and_then(|external| external.version).map(SourceVersion::get),
        version: *version,
        created_at: *created_at,
        updated_at: *updated_at,
        deleted_at: *deleted_at,
    })
}

/// The subscription that an image shows.
///
/// # Errors
///
/// [`Error::Unexpected`] when it shows none.
pub fn subscription(id: Uuid, subject: Subject, image: &str) -> Result<Subscription> {
    let SubscriptionImage {
        scopes,
        valid_from,
        valid_until,
        grace_until,
        paused_from,
        paused_until,
        canceled_at,
        claims,
        source,
        external_id,
        source_version,
        version,
        created_at,
        updated_at,
        deleted_at,
    } = serde_json::from_str(image).map_err(|_| Error::corrupt("image"))?;
    let scopes = scopes.iter().map(|name| catalogue::scope(name)).collect::<Result<Vec<Scope>>>()?;
    let (window, pause) = ((valid_from, valid_until), (paused_from, paused_until));
    Ok(Subscription {
        id,
        subject,
        scopes: ScopeSet::new(scopes).map_err(|_| Error::corrupt("image"))?,
        life: subscription::life(window, grace_until, pause, canceled_at)?,
        external: subscription::external(source, external_id, source_version)?,
        claims: self::claims(claims)?,
        version,
        created_at,
        updated_at,
        deleted_at,
    })
}

/// An answer about a subscription, as it is kept to be given again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    id: Uuid,
    subject_type: String,
    subject_id: String,
    now: DateTime<Utc>,
    outcome: String,
    image: String,
}

/// The text of an answer about a subscription.
pub fn of_answer(subscription: &Subscription, now: DateTime<Utc>, outcome: &str) -> String {
    write(&Answer {
        id: subscription.id,
        subject_type: subscription.subject.kind.as_str().to_owned(),
        subject_id: subscription.subject.id.as_str().to_owned(),
        now,
        outcome: outcome.to_owned(),
        image: of_subscription(subscription),
    })
}

/// The answer of a text: the subscription, the present at which it was shown, and the word for what came of it.
///
/// # Errors
///
/// [`Error::Unexpected`] when it is none.
pub fn answer(text: &str) -> Result<(Subscription, DateTime<Utc>, String)> {
    let answer: Answer = serde_json::from_str(text).map_err(|_| Error::corrupt("answer"))?;
    let Answer { id, subject_type, subject_id, now, outcome, image } = answer;
    let subscription = subscription(id, subscription::subject(&subject_type, &subject_id)?, &image)?;
    Ok((subscription, now, outcome))
}

/// The text of the answer of a batch, with whose subscriptions it wrote to.
pub fn of_batch(answer: &str, subjects: &[Subject]) -> String {
    let subjects: Vec<_> = subjects.iter().map(|subject| (subject.kind.as_str(), subject.id.as_str())).collect();
    write(&(answer, subjects))
}

/// The answer of a batch that a text tells, and whose subscriptions it wrote to.
///
/// # Errors
///
/// [`Error::Unexpected`] when it tells none.
pub fn batch(text: &str) -> Result<(String, Vec<Subject>)> {
    let (answer, subjects): (String, Vec<(String, String)>) =
        serde_json::from_str(text).map_err(|_| Error::corrupt("answer"))?;
    let subjects = subjects.iter().map(|(kind, id)| subscription::subject(kind, id)).collect::<Result<_>>()?;
    Ok((answer, subjects))
}

/// The image of a catalogue scope.
pub fn of_scope(scope: &CatalogueScope) -> String {
    let CatalogueScope { name: _, description, requires, enforced, claims, version, created_at, updated_at } = scope;
    write(&ScopeImage {
        description: description.as_ref().map(|text| text.as_str().to_owned()),
        requires: requires.as_str().to_owned(),
        enforced: *enforced,
        claims: of_claims(claims),
        version: *version,
        created_at: *created_at,
        updated_at: *updated_at,
    })
}

/// The catalogue scope that an image shows.
///
/// # Errors
///
/// [`Error::Unexpected`] when it shows none.
pub fn scope(name: Scope, image: &str) -> Result<CatalogueScope> {
    let corrupt = || Error::corrupt("image");
    let ScopeImage { description, requires, enforced, claims, version, created_at, updated_at } =
        serde_json::from_str(image).map_err(|_| corrupt())?;
    Ok(CatalogueScope {
        name,
        description: description.map(Description::parse).transpose().map_err(|_| corrupt())?,
        requires: catalogue::requires(&requires)?,
        enforced,
        claims: self::claims(claims)?,
        version,
        created_at,
        updated_at,
    })
}

/// The image of a token.
pub fn of_token(token: &Token) -> String {
    let Token { id: _, name, role, created_at: _, created_by: _, expires_at, revoked_at, last_used_at: _ } = token;
    let (name, role) = (name.as_str(), role.as_str());
    write(&TokenImage { name, role, expires_at: *expires_at, revoked_at: *revoked_at })
}

fn of_claims(claims: &Claims) -> Option<Value> {
    (!claims.is_empty()).then(|| Value::Object(claims.to_map()))
}

fn claims(value: Option<Value>) -> Result<Claims> {
    catalogue::claims(value.map(|value| value.to_string()).as_deref())
}

fn write(image: &impl Serialize) -> String {
    // Strings, numbers and times always can be written.
    serde_json::to_string(image).unwrap_or_default()
}
