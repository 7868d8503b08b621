//! What is said of subscriptions on the wire, and what it means.

use chrono::{DateTime, Utc};
use poem_openapi::{Enum, Object};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    domain::{
        claims::ClaimsPrefix,
        external::{External, ExternalKey, SourceVersion},
        life::{self, RenewedEnd, Transition},
        scope::Scope,
        subject::{self, Subject},
        subscription::{MAX_SCOPES, ScopeSet, Subscription, SubscriptionPatch, SubscriptionState},
    },
    http::{
        claims::ClaimsObject,
        problem::{FieldError, FieldErrors, Problem, undescribed},
        transfer::NEVER,
        wire::{
            DurationText, ExternalIdText, ScopeToken, SourceText, SubjectIdText, SubscriptionId, Timestamp, nullable,
            object, present, present_object, word,
        },
    },
    service::{
        Expected,
        subscription::{NewSubscription, Shown, Target, Write},
    },
};

/// The kind of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum SubjectType {
    /// A person.
    User,
    /// An OAuth client application.
    Client,
}

/// What a subscription is at the present: derived from its timestamps whenever it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its window has not begun.
    Scheduled,
    /// It grants its scopes.
    Active,
    /// It would grant its scopes, but for a pause.
    Paused,
    /// Its window has ended, and it grants its scopes for a while all the same.
    Grace,
    /// It was canceled.
    Canceled,
    /// Its window has ended, and so has the grace after it.
    Expired,
}

/// Who holds a subscription.
#[derive(Debug, Clone, Object, Serialize, Deserialize)]
#[oai(rename = "Subject")]
#[serde(deny_unknown_fields)]
pub struct SubjectBody {
    /// Whether it is a user or a client.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    kind: SubjectType,
    /// Its id, opaque and compared byte for byte.
    id: SubjectIdText,
}

/// Scopes that a subject holds for a window of time.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Subscription", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionBody {
    /// Its id.
    id: SubscriptionId,
    /// Who holds it.
    subject: SubjectBody,
    /// What it grants, in ascending order.
    scopes: Vec<ScopeToken>,
    /// The first instant of its window.
    valid_from: Timestamp,
    /// The first instant after its window; null when it is open-ended.
    valid_until: Option<Timestamp>,
    /// The first instant after the grace that follows its window; absent when there is none.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_until: Option<Timestamp>,
    /// The first instant of its last pause, which may lie ahead; absent when there was none.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_from: Option<Timestamp>,
    /// The first instant after that pause; absent when it lasts until somebody resumes the subscription.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_until: Option<Timestamp>,
    /// The first instant at which it is canceled, which may lie ahead; absent when it is not.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    canceled_at: Option<Timestamp>,
    /// What tokens are told while it grants one of their scopes; absent when there is nothing.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<ClaimsObject>,
    /// What it is now.
    status: Status,
    /// The system that knows it by an id of its own; absent when none does.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceText>,
    /// The id that this system knows it by.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<ExternalIdText>,
    /// That system's version of what it said last; absent when it gave none.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    source_version: Option<i64>,
    /// Counts its changes, from 1.
    version: i64,
    /// When it was recorded.
    created_at: Timestamp,
    /// When it was last changed.
    updated_at: Timestamp,
    /// When it was deleted; absent when it was not, or was restored.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<Timestamp>,
}

/// A subscription to be recorded.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "NewSubscription", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSubscriptionBody {
    /// Who holds it.
    #[serde(deserialize_with = "object")]
    pub(in crate::http) subject: SubjectBody,
    /// What it grants: scopes of the catalogue, each once.
    #[oai(validator(min_items = 1, max_items = 100, unique_items))]
    pub(in crate::http) scopes: Vec<ScopeToken>,
    /// The first instant of its window; the present when absent. It may lie in the past.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) valid_from: Option<Timestamp>,
    /// The first instant after its window. It has to be there: null says on purpose that it is open-ended.
    #[serde(deserialize_with = "nullable")]
    pub(in crate::http) valid_until: Option<Timestamp>,
    /// The first instant after a grace that follows the window, in which the scopes are still granted.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) grace_until: Option<Timestamp>,
    /// The first instant of a pause.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) paused_from: Option<Timestamp>,
    /// The first instant after that pause; when absent, it lasts until somebody resumes the subscription.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) paused_until: Option<Timestamp>,
    /// The first instant at which it is canceled. It may lie in the past.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) canceled_at: Option<Timestamp>,
    /// What tokens are told while it grants one of their scopes: JSON values by name, at most 16, of at most 1,024 bytes
    /// altogether, and no null in any. Each name begins with the prefix that the service is set to, goes on after it, and
    /// has at most 128 printable ASCII characters without blank, quotes and backslash; `entitlements` and
    /// `entitled_until` after the prefix are the service's own. Refused when it has no prefix.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) claims: Option<ClaimsObject>,
    /// The system that knows it by an id of its own.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) source: Option<SourceText>,
    /// The id that this system knows it by; goes with `source`.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) external_id: Option<ExternalIdText>,
    /// That system's version of this: a whole number that grows with every change there.
    #[oai(validator(minimum(value = "0")))]
    #[serde(default, deserialize_with = "present")]
    pub(in crate::http) source_version: Option<i64>,
}

/// All that a system says of one of its subscriptions: what is absent is not there.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "SubscriptionState", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionStateBody {
    /// Who holds it.
    #[serde(deserialize_with = "object")]
    subject: SubjectBody,
    /// What it grants: scopes of the catalogue, each once.
    #[oai(validator(min_items = 1, max_items = 100, unique_items))]
    scopes: Vec<ScopeToken>,
    /// The first instant of its window; the start that there is, or the present, when absent. It may lie in the past.
    #[serde(default, deserialize_with = "present")]
    valid_from: Option<Timestamp>,
    /// The first instant after its window. It has to be there: null says on purpose that it is open-ended.
    #[serde(deserialize_with = "nullable")]
    valid_until: Option<Timestamp>,
    /// The first instant after a grace that follows the window, in which the scopes are still granted.
    #[serde(default, deserialize_with = "present")]
    grace_until: Option<Timestamp>,
    /// The first instant of a pause.
    #[serde(default, deserialize_with = "present")]
    paused_from: Option<Timestamp>,
    /// The first instant after that pause; when absent, it lasts until somebody resumes the subscription.
    #[serde(default, deserialize_with = "present")]
    paused_until: Option<Timestamp>,
    /// The first instant at which it is canceled. It may lie in the past.
    #[serde(default, deserialize_with = "present")]
    canceled_at: Option<Timestamp>,
    /// What tokens are told while it grants one of their scopes: JSON values by name, at most 16, of at most 1,024 bytes
    /// altogether, and no null in any. Each name begins with the prefix that the service is set to, goes on after it, and
    /// has at most 128 printable ASCII characters without blank, quotes and backslash; `entitlements` and
    /// `entitled_until` after the prefix are the service's own. Refused when it has no prefix.
    #[serde(default, deserialize_with = "present")]
    claims: Option<ClaimsObject>,
    /// That system's version of this: a whole number that grows with every change there.
    #[oai(validator(minimum(value = "0")))]
    #[serde(default, deserialize_with = "present")]
    source_version: Option<i64>,
}

/// A change of a subscription: absent members stay as they are.
#[derive(Debug, Object, Deserialize)]
#[oai(rename = "SubscriptionPatch", rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionPatchBody {
    /// Who holds it, which never changes: another one is refused.
    #[serde(default, deserialize_with = "present_object")]
    subject: Option<Option<SubjectBody>>,
    /// What it grants: scopes of the catalogue, each once.
    #[oai(validator(min_items = 1, max_items = 100, unique_items))]
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Option<Vec<ScopeToken>>>,
    /// The first instant of its window.
    #[serde(default, deserialize_with = "present")]
    valid_from: Option<Option<Timestamp>>,
    /// The first instant after its window; null makes it open-ended.
    #[serde(default, deserialize_with = "present")]
    valid_until: Option<Option<Timestamp>>,
    /// The first instant after a grace that follows the window; null takes the grace away.
    #[serde(default, deserialize_with = "present")]
    grace_until: Option<Option<Timestamp>>,
    /// The change of its claims, a merge patch itself: absent ones stay, null takes one away; null for all of them takes
    /// all away.
    #[serde(default, deserialize_with = "present")]
    claims: Option<Option<ClaimsObject>>,
}

/// When to cancel: now, when no body or an empty object is given.
#[derive(Debug, Object, Deserialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cancellation {
    /// The first instant at which it is canceled, not in the past, and not after its end.
    #[serde(default, deserialize_with = "present")]
    at: Option<Timestamp>,
    /// Whether to cancel it at the end of its window, so that there is no grace. It does not go with `at`.
    #[serde(default, deserialize_with = "present")]
    at_end: Option<bool>,
}

/// When to pause: from now on until somebody resumes it, when no body or an empty object is given.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// The first instant at which it is paused, not in the past; the present when absent.
    #[serde(default, deserialize_with = "present")]
    from: Option<Timestamp>,
    /// The first instant after the pause; when absent, it lasts until somebody resumes the subscription.
    #[serde(default, deserialize_with = "present")]
    until: Option<Timestamp>,
}

/// How to renew: either `validUntil` or `duration` has to be there.
#[derive(Debug, Object, Deserialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Renewal {
    /// The new end of the window, later than the old one; null makes it open-ended.
    #[serde(default, deserialize_with = "present")]
    valid_until: Option<Option<Timestamp>>,
    /// How long after the old end, or after the present, the new end comes: an ISO 8601 duration. It is counted in the
    /// calendar, in UTC: a day that a month does not have is its last one.
    #[serde(default, deserialize_with = "present")]
    duration: Option<DurationText>,
    /// Where the duration is counted from; the old end when absent.
    #[serde(default, deserialize_with = "present")]
    from: Option<RenewedFrom>,
    /// The new end of the grace; null takes the grace away. When absent, what there is stays as long as it comes after
    /// the new end.
    #[serde(default, deserialize_with = "present")]
    grace_until: Option<Option<Timestamp>>,
}

/// Where the duration of a renewal is counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum RenewedFrom {
    /// The end that there was.
    End,
    /// The present.
    Now,
}

/// Nothing to be said: an empty object, or no body at all.
#[derive(Debug, Object, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

const _: () = assert!(MAX_SCOPES == 100, "the contract names the limit");

impl SubjectBody {
    /// The subject of a kind and an id.
    pub(in crate::http) fn new(kind: SubjectType, id: SubjectIdText) -> Self {
        Self { kind, id }
    }

    fn parse(self, pointer: &str) -> Result<Subject, FieldError> {
        let Self { kind, id } = self;
        Ok(Subject { kind: kind.into(), id: id.parse(&format!("{pointer}/id"))? })
    }
}

fn parse_scopes(scopes: &[ScopeToken], errors: &mut FieldErrors) -> Option<ScopeSet> {
    let parse = |(index, scope): (usize, &ScopeToken)| errors.take(scope.parse(&format!("#/scopes/{index}")));
    let parsed: Vec<_> = scopes.iter().enumerate().map(parse).collect();
    let scopes = parsed.into_iter().collect::<Option<Vec<Scope>>>()?;
    errors.take(ScopeSet::new(scopes).map_err(|error| FieldError::new("#/scopes", error)))
}

fn parse_instant(
    timestamp: Option<&Timestamp>,
    pointer: &str,
    errors: &mut FieldErrors,
) -> Option<Option<DateTime<Utc>>> {
    errors.take(timestamp.map(|timestamp| timestamp.parse(pointer)).transpose())
}

/// The instants of a life as they came.
struct Instants {
    valid_from: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    grace_until: Option<Timestamp>,
    paused_from: Option<Timestamp>,
    paused_until: Option<Timestamp>,
    canceled_at: Option<Timestamp>,
}

fn parse_state(
    subject: SubjectBody,
    scopes: &[ScopeToken],
    instants: Instants,
    claims: (Option<ClaimsObject>, Option<&ClaimsPrefix>),
    errors: &mut FieldErrors,
) -> Option<SubscriptionState> {
    let Instants { valid_from, valid_until, grace_until, paused_from, paused_until, canceled_at } = instants;
    let subject = errors.take(subject.parse("#/subject"));
    let scopes = parse_scopes(scopes, errors);
    let valid_from = parse_instant(valid_from.as_ref(), "#/validFrom", errors);
    let valid_until = parse_instant(valid_until.as_ref(), "#/validUntil", errors);
    let grace_until = parse_instant(grace_until.as_ref(), "#/graceUntil", errors);
    let paused_from = parse_instant(paused_from.as_ref(), "#/pausedFrom", errors);
    let paused_until = parse_instant(paused_until.as_ref(), "#/pausedUntil", errors);
    let canceled_at = parse_instant(canceled_at.as_ref(), "#/canceledAt", errors);
    let claims = errors.take(ClaimsObject::parse(claims.0, claims.1));
    let pause = match (paused_from?, paused_until?) {
        (Some(from), until) => Some((from, until)),
        (None, None) => None,
        (None, Some(_)) => {
            return errors.take(Err(FieldError::new("#/pausedUntil", "it goes with `pausedFrom`")));
        }
    };
    Some(SubscriptionState {
        subject: subject?,
        scopes: scopes?,
        valid_from: valid_from?,
        valid_until: valid_until?,
        grace_until: grace_until?,
        pause,
        canceled_at: canceled_at?,
        claims: claims?,
    })
}

fn parse_source_version(version: Option<i64>, errors: &mut FieldErrors) -> Option<Option<SourceVersion>> {
    let version = version.map(SourceVersion::new).transpose();
    errors.take(version.map_err(|error| FieldError::new("#/sourceVersion", error)))
}

impl NewSubscriptionBody {
    /// The subscription to be recorded.
    ///
    /// # Errors
    ///
    /// 422, naming the members that are wrong; 400 for an external id without its source, or the other way round.
    pub fn parse(self, prefix: Option<&ClaimsPrefix>) -> Result<NewSubscription, Problem> {
        let Self { subject, scopes, valid_from, valid_until, grace_until, .. } = self;
        let Self { paused_from, paused_until, canceled_at, source, external_id, source_version, claims, .. } = self;
        let mut errors = FieldErrors::default();
        let instants = Instants { valid_from, valid_until, grace_until, paused_from, paused_until, canceled_at };
        let state = parse_state(subject, &scopes, instants, (claims, prefix), &mut errors);
        let key = match (source, external_id) {
            (Some(source), Some(id)) => {
                let (source, id) = (source.parse("#/source"), id.parse("#/externalId"));
                let (source, id) = (errors.take(source), errors.take(id));
                source.zip(id).map(|(source, id)| ExternalKey { source, id })
            }
            (Some(_), None) => return Err(undescribed("#/externalId", "it goes with `source`")),
            (None, Some(_)) => return Err(undescribed("#/source", "it goes with `externalId`")),
            (None, None) if source_version.is_some() => {
                return Err(undescribed("#/externalId", "it goes with `sourceVersion`"));
            }
            (None, None) => None,
        };
        let version = parse_source_version(source_version, &mut errors);
        errors.check()?;
        match (state, version) {
            (Some(state), Some(version)) => {
                Ok(NewSubscription { state, external: key.map(|key| External { key, version }) })
            }
            // Nothing is missing without an error that says so.
            _ => Err(Problem::invalid_value(Vec::new())),
        }
    }
}

impl SubscriptionStateBody {
    /// The write that records what a source says of the subscription that it knows by a key.
    ///
    /// # Errors
    ///
    /// 422, naming the members that are wrong.
    pub fn parse(self, key: ExternalKey, expected: Expected, prefix: Option<&ClaimsPrefix>) -> Result<Write, Problem> {
        let Self { subject, scopes, valid_from, valid_until, grace_until, .. } = self;
        let Self { paused_from, paused_until, canceled_at, source_version, claims, .. } = self;
        let mut errors = FieldErrors::default();
        let instants = Instants { valid_from, valid_until, grace_until, paused_from, paused_until, canceled_at };
        let state = parse_state(subject, &scopes, instants, (claims, prefix), &mut errors);
        let version = parse_source_version(source_version, &mut errors);
        match (state, version) {
            (Some(state), Some(version)) if errors.is_empty() => {
                let target = Target::External(External { key, version });
                Ok(Write::Put { target, state, expected })
            }
            _ => Err(errors.into()),
        }
    }
}

impl SubscriptionPatchBody {
    /// The patch, and who its sender thinks holds the subscription.
    ///
    /// # Errors
    ///
    /// 422, naming the members that are wrong.
    pub fn parse(self, prefix: Option<&ClaimsPrefix>) -> Result<(Option<Subject>, SubscriptionPatch), Problem> {
        let Self { subject, scopes, valid_from, valid_until, grace_until, claims } = self;
        let mut errors = FieldErrors::default();
        errors.refuse_null(&subject, "#/subject");
        errors.refuse_null(&scopes, "#/scopes");
        errors.refuse_null(&valid_from, "#/validFrom");
        let subject = subject.flatten().and_then(|subject| errors.take(subject.parse("#/subject")));
        let scopes = scopes.flatten().and_then(|scopes| parse_scopes(&scopes, &mut errors));
        let valid_from = parse_instant(valid_from.flatten().as_ref(), "#/validFrom", &mut errors).flatten();
        let valid_until = valid_until.map(|until| parse_instant(until.as_ref(), "#/validUntil", &mut errors).flatten());
        let grace_until = grace_until.map(|until| parse_instant(until.as_ref(), "#/graceUntil", &mut errors).flatten());
        let claims = claims.and_then(|claims| errors.take(ClaimsObject::parse_patch(claims, prefix)));
        errors.check()?;
        Ok((subject, SubscriptionPatch { scopes, valid_from, valid_until, grace_until, claims }))
    }
}

impl Cancellation {
    /// The cancellation.
    ///
    /// # Errors
    ///
    /// 422 when its instant is none; 400 when it says two things.
    pub fn parse(self) -> Result<life::Cancellation, Problem> {
        let Self { at, at_end } = self;
        match (at, at_end.unwrap_or_default()) {
            (None, false) => Ok(life::Cancellation::Now),
            (None, true) => Ok(life::Cancellation::AtEnd),
            (Some(at), false) => {
                let at = at.parse("#/at").map_err(|error| Problem::invalid_value(vec![error]))?;
                Ok(life::Cancellation::At(at))
            }
            (Some(_), true) => Err(undescribed("#/atEnd", "it does not go with `at`")),
        }
    }
}

impl Pause {
    /// The pause.
    ///
    /// # Errors
    ///
    /// 422, naming the members that are wrong.
    pub fn parse(self) -> Result<Transition, Problem> {
        let Self { from, until } = self;
        let mut errors = FieldErrors::default();
        let from = parse_instant(from.as_ref(), "#/from", &mut errors).flatten();
        let until = parse_instant(until.as_ref(), "#/until", &mut errors).flatten();
        errors.check()?;
        Ok(Transition::Pause { from, until })
    }
}

impl Renewal {
    /// The renewal.
    ///
    /// # Errors
    ///
    /// 422, naming the members that are wrong; 400 when it says nothing, or two things.
    pub fn parse(self) -> Result<life::Renewal, Problem> {
        let Self { valid_until, duration, from, grace_until } = self;
        let mut errors = FieldErrors::default();
        let grace_until = grace_until.map(|until| parse_instant(until.as_ref(), "#/graceUntil", &mut errors).flatten());
        let end = match (valid_until, duration, from) {
            (Some(until), None, None) => parse_instant(until.as_ref(), "#/validUntil", &mut errors).map(RenewedEnd::At),
            (None, Some(duration), from) => errors.take(duration.parse("#/duration")).map(|period| match from {
                None | Some(RenewedFrom::End) => RenewedEnd::AfterEnd(period),
                Some(RenewedFrom::Now) => RenewedEnd::AfterNow(period),
            }),
            (Some(_), Some(_), _) => return Err(undescribed("#/duration", "it does not go with `validUntil`")),
            (_, None, Some(_)) => return Err(undescribed("#/from", "it goes with `duration`")),
            (None, None, None) => return Err(undescribed("#/validUntil", "it has to be there, or `duration`")),
        };
        match end {
            Some(end) if errors.is_empty() => Ok(life::Renewal { end, grace_until }),
            _ => Err(errors.into()),
        }
    }
}

impl From<Subject> for SubjectBody {
    fn from(subject: Subject) -> Self {
        let Subject { kind, id } = subject;
        Self { kind: kind.into(), id: SubjectIdText(id.as_str().to_owned()) }
    }
}

impl From<Shown> for SubscriptionBody {
    fn from(Shown { subscription, now }: Shown) -> Self {
        let status = subscription.status(now).into();
        let Subscription { id, subject, scopes, life, external, claims, version, created_at, updated_at, deleted_at } =
            subscription;
        let source_version = external.as_ref().and_then(|external| external.version).map(SourceVersion::get);
        let key = external.map(|external| external.key);
        Self {
            id: id.into(),
            subject: subject.into(),
            scopes: scopes.as_slice().iter().map(Into::into).collect(),
            valid_from: life.term.window().from().into(),
            valid_until: life.term.window().until().map(Into::into),
            grace_until: life.term.grace_until().map(Into::into),
            paused_from: life.pause.map(|pause| pause.from().into()),
            paused_until: life.pause.and_then(|pause| pause.until()).map(Into::into),
            canceled_at: life.canceled_at.map(Into::into),
            claims: ClaimsObject::of(&claims),
            status,
            source: key.as_ref().map(|key| SourceText(key.source.as_str().to_owned())),
            external_id: key.as_ref().map(|key| ExternalIdText(key.id.as_str().to_owned())),
            source_version,
            version,
            created_at: created_at.into(),
            updated_at: updated_at.into(),
            deleted_at: deleted_at.map(Into::into),
        }
    }
}

impl SubscriptionBody {
    /// Its values, in the order of the columns of a file: an empty one is not there.
    pub(in crate::http) fn columns(&self) -> [String; 19] {
        let instant = |timestamp: &Option<Timestamp>| timestamp.as_ref().map(|at| at.0.clone()).unwrap_or_default();
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.0.as_str()).collect();
        [
            self.source.as_ref().map(|source| source.0.clone()).unwrap_or_default(),
            self.external_id.as_ref().map(|id| id.0.clone()).unwrap_or_default(),
            self.source_version.map(|version| version.to_string()).unwrap_or_default(),
            subject::SubjectType::from(self.subject.kind).as_str().to_owned(),
            self.subject.id.0.clone(),
            scopes.join(" "),
            self.valid_from.0.clone(),
            self.valid_until.as_ref().map_or_else(|| NEVER.to_owned(), |at| at.0.clone()),
            instant(&self.grace_until),
            instant(&self.paused_from),
            instant(&self.paused_until),
            instant(&self.canceled_at),
            self.claims.as_ref().and_then(|claims| serde_json::to_string(claims).ok()).unwrap_or_default(),
            self.id.0.clone(),
            life::Status::from(self.status).as_str().to_owned(),
            self.version.to_string(),
            self.created_at.0.clone(),
            self.updated_at.0.clone(),
            instant(&self.deleted_at),
        ]
    }
}

impl<'de> Deserialize<'de> for SubjectType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        word(deserializer, |text| subject::SubjectType::parse(text).map(Into::into), &["user", "client"])
    }
}

impl<'de> Deserialize<'de> for RenewedFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| match text {
            "end" => Some(Self::End),
            "now" => Some(Self::Now),
            _ => None,
        };
        word(deserializer, parse, &["end", "now"])
    }
}

impl From<SubjectType> for subject::SubjectType {
    fn from(kind: SubjectType) -> Self {
        match kind {
            SubjectType::User => Self::User,
            SubjectType::Client => Self::Client,
        }
    }
}

impl From<subject::SubjectType> for SubjectType {
    fn from(kind: subject::SubjectType) -> Self {
        match kind {
            subject::SubjectType::User => Self::User,
            subject::SubjectType::Client => Self::Client,
        }
    }
}

impl From<Status> for life::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Scheduled => Self::Scheduled,
            Status::Active => Self::Active,
            Status::Paused => Self::Paused,
            Status::Grace => Self::Grace,
            Status::Canceled => Self::Canceled,
            Status::Expired => Self::Expired,
        }
    }
}

impl From<life::Status> for Status {
    fn from(status: life::Status) -> Self {
        match status {
            life::Status::Scheduled => Self::Scheduled,
            life::Status::Active => Self::Active,
            life::Status::Paused => Self::Paused,
            life::Status::Grace => Self::Grace,
            life::Status::Canceled => Self::Canceled,
            life::Status::Expired => Self::Expired,
        }
    }
}
