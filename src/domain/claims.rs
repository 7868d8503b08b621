//! Claims: what a token is told about the scopes that stay, beside their names.

use std::{cmp::Reverse, collections::HashSet, fmt, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    catalogue::{Catalogue, Requires},
    decision::{Knowledge, Outcome, Parties},
    facts::Facts,
    life::{Life, Status},
    scope::Scope,
};

/// The longest prefix, in characters: room for a URN, and for names of the same length after it.
pub const MAX_PREFIX_LENGTH: usize = 64;
/// The longest name of a claim, in characters.
pub const MAX_NAME_LENGTH: usize = 128;
/// The most claims of one scope or subscription: each stands in every token that is made for it.
pub const MAX_CLAIMS: usize = 16;
/// The most bytes of the claims of one scope or subscription, as JSON: four of them fill an answer.
pub const MAX_CLAIMS_BYTES: usize = 1024;
/// The most bytes of the claims of one answer, as JSON. A token travels in a header, for which servers commonly have
/// room for 8 KiB: these make 5.5 KiB of it in Base64, and Access has claims of its own to add.
pub const MAX_ANSWER_BYTES: usize = 4096;
/// How deep objects and arrays may lie in a claim: what a token holds is flat, and readers of JSON have limits of their
/// own, to which every place that holds claims adds.
pub const MAX_DEPTH: usize = 16;

/// Names of claims that Access makes itself, so that it drops another's.
const RESERVED_NAMES: [&str; 14] = [
    "ver",
    "jti",
    "iss",
    "aud",
    "iat",
    "nbf",
    "exp",
    "cid",
    "client_id",
    "scope",
    "scp",
    "sub",
    "usl",
    "group_permissions",
];
/// What further names of Access begin with.
const RESERVED_NAMESPACE: &str = "urn:onegini.com:oidc:";

/// What the name of the claim about all scopes that are held has after the prefix.
const ENTITLEMENTS: &str = "entitlements";
/// What the name of the claim about the first end of them has after the prefix.
const ENTITLED_UNTIL: &str = "entitled_until";

/// Whether a text has nothing but printable ASCII, without blank, quote and backslash: it means the same in a URL, in a
/// shell and in JSON.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x26 | 0x28..=0x5B | 0x5D..=0x7E))
}

/// What the names of all claims begin with.
///
/// Invariant: 1 to [`MAX_PREFIX_LENGTH`] characters of printable ASCII without blank, quotes and backslash; and no name
/// that Access reserves begins with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimsPrefix(Arc<str>);

/// The text cannot be what the names of claims begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    /// It is empty, too long, or holds another character.
    #[error("a prefix has 1 to {MAX_PREFIX_LENGTH} printable ASCII characters, without blank, quotes and backslash")]
    Spelling,
    /// Access's own names could begin with it.
    #[error("names that begin so are Access's own, or could be, such as `{0}`")]
    Reserved(&'static str),
}

/// A name, or a value, that no claim can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClaim {
    /// The name is too long, or holds another character.
    #[error(
        "a claim's name has at most {MAX_NAME_LENGTH} printable ASCII characters, without blank, quotes and backslash"
    )]
    Spelling,
    /// The name belongs to Access.
    #[error("Access makes claims of that name itself")]
    Reserved,
    /// The name does not go with the prefix.
    #[error("a claim's name begins with the prefix of TOLLGATE_CLAIMS_PREFIX, and goes on after it")]
    Prefix,
    /// The name is of a claim that tells what is held.
    #[error("Tollgate makes the claim of that name itself")]
    Own,
    /// The value is null, or holds null.
    #[error("a claim holds no null, however deep")]
    Null,
}

impl ClaimsPrefix {
    /// Parses a prefix.
    ///
    /// # Errors
    ///
    /// [`InvalidPrefix`] when it is empty, too long, holds another character, or could make a name of Access's.
    pub fn parse(text: &str) -> Result<Self, InvalidPrefix> {
        if text.is_empty() || text.len() > MAX_PREFIX_LENGTH || !is_plain(text) {
            return Err(InvalidPrefix::Spelling);
        }
        let mut reserved = RESERVED_NAMES.into_iter().chain([RESERVED_NAMESPACE]);
        let clash = reserved.find(|name| name.starts_with(text));
        match clash.or_else(|| text.starts_with(RESERVED_NAMESPACE).then_some(RESERVED_NAMESPACE)) {
            Some(name) => Err(InvalidPrefix::Reserved(name)),
            None => Ok(Self(text.into())),
        }
    }

    /// The prefix's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that somebody may give a claim that name.
    fn check(&self, name: &str) -> Result<(), InvalidClaim> {
        if RESERVED_NAMES.contains(&name) || name.starts_with(RESERVED_NAMESPACE) {
            return Err(InvalidClaim::Reserved);
        }
        match name.strip_prefix(&*self.0) {
            None | Some("") => Err(InvalidClaim::Prefix),
            Some(ENTITLEMENTS | ENTITLED_UNTIL) => Err(InvalidClaim::Own),
            Some(_) if name.len() > MAX_NAME_LENGTH || !is_plain(name) => Err(InvalidClaim::Spelling),
            Some(_) => Ok(()),
        }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.0)
    }
}

/// The claims of a catalogue scope, or of a subscription.
///
/// Invariant: ascending by name, each name once, and no null in any value. What was written for this service keeps to
/// [`MAX_CLAIMS`] and [`MAX_CLAIMS_BYTES`], too, and has the prefix that was set then.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Claims(Box<[(Box<str>, Value)]>);

/// The values may be about a person and are never printed: a log line that shows claims shows how many.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

/// There are too many claims, or they are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "there are at most {MAX_CLAIMS} claims, of {MAX_CLAIMS_BYTES} bytes of JSON altogether, {MAX_DEPTH} levels deep"
)]
pub struct TooLarge;

/// What was given are no claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClaims {
    /// No prefix is set, so no name can begin with it.
    #[error("this service makes no claims: TOLLGATE_CLAIMS_PREFIX is not set")]
    NoPrefix,
    /// One of them is refused.
    #[error("{reason}")]
    Claim {
        /// Its name.
        name: String,
        /// Why.
        reason: InvalidClaim,
    },
    /// All of them together are refused.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// A change of claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimsPatch {
    /// To take all of them away.
    Clear,
    /// To merge an object into them, as RFC 7396 says. Names that it sets were checked, those it takes away need not
    /// be: what was written under another prefix can still be removed.
    Merge(Map<String, Value>),
}

/// How many objects and arrays lie in one another.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

impl Claims {
    /// Claims as somebody gives them.
    ///
    /// # Errors
    ///
    /// [`InvalidClaims`] when there are any and no prefix is set, a name is refused, a value holds null, or they are too
    /// many or too long.
    pub fn parse(members: Map<String, Value>, prefix: Option<&ClaimsPrefix>) -> Result<Self, InvalidClaims> {
        check(&members, prefix)?;
        Ok(Self::within_limits(members)?)
    }

    fn within_limits(members: Map<String, Value>) -> Result<Self, TooLarge> {
        let claims = Self::of(members);
        let is_flat = claims.0.iter().all(|(_, value)| depth(value) <= MAX_DEPTH);
        let is_small = is_flat && claims.0.len() <= MAX_CLAIMS && claims.to_json().len() <= MAX_CLAIMS_BYTES;
        is_small.then_some(claims).ok_or(TooLarge)
    }

    fn of(members: Map<String, Value>) -> Self {
        let mut claims: Vec<_> = members.into_iter().map(|(name, value)| (name.into_boxed_str(), value)).collect();
        claims.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Self(claims.into())
    }

    /// The claims that a JSON object holds, as [`Claims::to_json`] wrote it; none when it is no such object. Whatever
    /// their prefix is: it may have been another one when they were written.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        let members: Map<String, Value> = serde_json::from_str(text).ok()?;
        (!members.values().any(has_null)).then(|| Self::of(members))
    }

    /// The claims as a JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.to_map()).to_string()
    }

    /// The claims as members of an object.
    #[must_use]
    pub fn to_map(&self) -> Map<String, Value> {
        self.0.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes them.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when they would be too many or too long.
    pub fn patched(&self, patch: ClaimsPatch) -> Result<Self, TooLarge> {
        match patch {
            ClaimsPatch::Clear => Ok(Self::default()),
            ClaimsPatch::Merge(patch) => Self::within_limits(merged(self.to_map(), patch)),
        }
    }

    /// Roughly how many bytes of memory the claims take beyond their own size.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let of_claim = |(name, value): &(Box<str>, Value)| name.len() + heap_bytes(value);
        size_of_val(&*self.0) + self.0.iter().map(of_claim).sum::<usize>()
    }
}

impl ClaimsPatch {
    /// A change as somebody gives it: null, or an object to merge.
    ///
    /// # Errors
    ///
    /// [`InvalidClaims`] when it sets a claim and no prefix is set, the name of one that it sets is refused, or null
    /// would stand in one. Whether they would be too many or too long shows when it is merged.
    pub fn parse(patch: Option<Map<String, Value>>, prefix: Option<&ClaimsPrefix>) -> Result<Self, InvalidClaims> {
        let Some(members) = patch else { return Ok(Self::Clear) };
        // In an object null takes away; in an array it would stay.
        check(&merged(Map::new(), members.clone()), prefix)?;
        Ok(Self::Merge(members))
    }
}

/// Checks that somebody may give these claims.
fn check(members: &Map<String, Value>, prefix: Option<&ClaimsPrefix>) -> Result<(), InvalidClaims> {
    for (name, value) in members {
        let refuse = |reason| InvalidClaims::Claim { name: name.clone(), reason };
        prefix.ok_or(InvalidClaims::NoPrefix)?.check(name).map_err(refuse)?;
        if has_null(value) {
            return Err(refuse(InvalidClaim::Null));
        }
    }
    Ok(())
}

/// An object with a patch merged into it (RFC 7396 section 2).
fn merged(mut members: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in patch {
        let value = match (members.remove(&name), value) {
            (_, Value::Null) => continue,
            (Some(Value::Object(old)), Value::Object(patch)) => merged(old, patch).into(),
            (_, Value::Object(patch)) => merged(Map::new(), patch).into(),
            (_, value) => value,
        };
        members.insert(name, value);
    }
    members
}

/// Whether null stands anywhere in a value.
fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(members) => members.values().any(has_null),
    }
}

/// The length of a value as JSON, in bytes.
fn length(value: &Value) -> usize {
    value.to_string().len()
}

fn heap_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => items.capacity() * size_of::<Value>() + items.iter().map(heap_bytes).sum::<usize>(),
        // A node of the tree has room for eleven members, however few there are.
        Value::Object(members) => {
            let entry = size_of::<String>() + size_of::<Value>();
            let inner = members.iter().map(|(name, value)| name.capacity() + heap_bytes(value)).sum::<usize>();
            members.len().next_multiple_of(11) * entry + inner
        }
    }
}

/// A subscription with claims of its own: what has to be known of it to tell whether they are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearing {
    /// Its id, which ascends with the time of its creation.
    pub id: Uuid,
    /// When it grants its scopes.
    pub life: Life,
    /// Its scopes.
    pub scopes: Box<[Scope]>,
    /// Its claims.
    pub claims: Claims,
}

impl Bearing {
    fn is_granting(&self, now: DateTime<Utc>) -> bool {
        match self.life.status(now) {
            Status::Active | Status::Grace => true,
            Status::Scheduled | Status::Paused | Status::Canceled | Status::Expired => false,
        }
    }
}

/// The claims of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdditionalClaims {
    /// The claims, by name.
    pub claims: Map<String, Value>,
    /// How many there was no room for.
    pub left_out: usize,
}

/// A scope that stays because it is held.
struct Held<'a> {
    scope: &'a str,
    requires: Requires,
    until: Option<DateTime<Utc>>,
}

/// The claims about the scopes that stay because they are held at `now`; none when there is no such scope.
///
/// Scopes that stay for another reason earn none. The claims are, in this order:
///
/// 1. until when: the first of the ends below, in whole seconds since 1970, when one of the scopes ends;
/// 2. what is held: each scope, in requested order, with its end unless it has none;
/// 3. those of the subscriptions that grant one of these scopes to somebody who must hold it, the one created last first;
/// 4. those of the scopes in the catalogue, in requested order.
///
/// Of several claims of one name the first counts. Each is given that still fits into [`MAX_ANSWER_BYTES`]; what does
/// not fit is left out, and makes no room for another of its name. Names without the prefix are passed over: they were
/// written under another one.
///
/// Of a party that is not known nothing is told: an end may then be told too early, and never too late.
#[must_use]
pub fn additional(
    prefix: &ClaimsPrefix,
    catalogue: &Catalogue,
    parties: Parties<'_>,
    outcomes: &[Outcome<'_>],
    now: DateTime<Utc>,
) -> AdditionalClaims {
    let held: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.reason.is_held())
        .filter_map(|outcome| {
            let requires = catalogue.rule(outcome.scope)?.requires;
            let until = held_until(outcome.scope, requires, parties, now);
            Some(Held { scope: outcome.scope, requires, until })
        })
        .collect();
    let mut answer = AdditionalClaims::default();
    if held.is_empty() {
        return answer;
    }
    // The braces.
    let mut bytes = 2;
    if let Some(first) = held.iter().filter_map(|held| held.until).min() {
        answer.give(prefix.name(ENTITLED_UNTIL), first.timestamp().into(), &mut bytes);
    }
    answer.give(prefix.name(ENTITLEMENTS), held.iter().map(entitlement).collect(), &mut bytes);

    let bearings = bearings(parties, &held, now);
    let of_subscriptions = bearings.iter().map(|bearing| &bearing.claims);
    let of_scopes = held.iter().filter_map(|held| catalogue.claims(held.scope));
    let mut seen = HashSet::new();
    for (name, value) in of_subscriptions.chain(of_scopes).flat_map(|claims| &claims.0) {
        if prefix.check(name).is_ok() && seen.insert(&**name) {
            answer.give(name.to_string(), value.clone(), &mut bytes);
        }
    }
    answer
}

impl AdditionalClaims {
    /// Gives a claim, if it still fits.
    fn give(&mut self, name: String, value: Value, bytes: &mut usize) {
        // Names need no escapes: two quotes, a colon, and a comma after another claim.
        let more = name.len() + 3 + length(&value) + usize::from(!self.claims.is_empty());
        if *bytes + more <= MAX_ANSWER_BYTES {
            *bytes += more;
            self.claims.insert(name, value);
        } else {
            self.left_out += 1;
        }
    }
}

fn entitlement(held: &Held<'_>) -> Value {
    let mut members = Map::from_iter([("scope".to_owned(), held.scope.into())]);
    if let Some(until) = held.until {
        members.insert("until".to_owned(), until.timestamp().into());
    }
    members.into()
}

/// The subscriptions with claims that grant a held scope to somebody who must hold it, the one created last first.
fn bearings<'a>(parties: Parties<'a>, held: &[Held<'_>], now: DateTime<Utc>) -> Vec<&'a Bearing> {
    let asked = |bearing: &Bearing, pointless: Requires| {
        bearing
            .scopes
            .iter()
            .any(|scope| held.iter().any(|held| held.scope == scope.as_str() && held.requires != pointless))
    };
    let of = |party: Option<Knowledge<'a>>, pointless| {
        let bearings = party.and_then(known).map_or(&[][..], Facts::bearings);
        bearings.iter().filter(move |bearing| bearing.is_granting(now) && asked(bearing, pointless))
    };
    let mut found: Vec<_> =
        of(parties.user, Requires::Client).chain(of(Some(parties.client), Requires::User)).collect();
    found.sort_unstable_by_key(|bearing| Reverse(bearing.id));
    found
}

/// The first instant after `now` at which a scope is no longer held by those who must hold it, when it is held at
/// `now`; none when that never comes.
#[must_use]
pub fn held_until(scope: &str, requires: Requires, parties: Parties<'_>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let (user, client) = (parties.user.and_then(known), known(parties.client));
    let of = |facts: Option<&Facts>| facts.and_then(|facts| facts.held_until(scope, now));
    match requires {
        Requires::User => of(user),
        Requires::Client => of(client),
        Requires::Any => Facts::held_by_any_until(user.into_iter().chain(client), scope, now),
        // Both hold it, so one without an end holds it for ever.
        Requires::All => of(user).into_iter().chain(of(client)).min(),
    }
}

fn known(party: Knowledge<'_>) -> Option<&Facts> {
    match party {
        Knowledge::Known(facts) => Some(facts),
        Knowledge::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        catalogue::Rule,
        decision::{OnUnknown, Stance, Unmanaged, decide},
        life::Term,
        window::Window,
    };

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn scope(name: &str) -> Scope {
        Scope::parse(name).expect(name)
    }

    fn prefix(text: &str) -> ClaimsPrefix {
        ClaimsPrefix::parse(text).expect(text)
    }

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    fn claims(value: Value) -> Claims {
        Claims::parse(object(value), Some(&prefix("x:"))).expect("claims")
    }

    fn window(from: i64, until: Option<i64>) -> Window {
        Window::new(at(from), until.map(at)).expect("a window")
    }

    #[test]
    fn a_prefix_is_plain_and_makes_no_name_of_accesss() {
        let spelled_wrongly = Err(InvalidPrefix::Spelling);
        let longest = "p".repeat(64);
        for text in ["tg:", "https://tollgate.example/", "urn:example:", "_", "Z", "scope_", "Ver", "aud:", &longest] {
            assert_eq!(
                ClaimsPrefix::parse(text).map(|prefix| prefix.as_str().to_owned()),
                Ok(text.to_owned()),
                "{text}"
            );
        }
        for text in ["", "a b", "a\"", "a'", "a\\", "a\n", "a\u{7f}", "é:", &"p".repeat(65)] {
            assert_eq!(ClaimsPrefix::parse(text).map(|_| ()), spelled_wrongly, "{text:?}");
        }
        for (text, name) in [
            ("c", "cid"),
            ("cid", "cid"),
            ("cl", "client_id"),
            ("s", "scope"),
            ("scop", "scope"),
            ("v", "ver"),
            ("group_", "group_permissions"),
            ("us", "usl"),
            ("ur", "urn:onegini.com:oidc:"),
            ("urn:", "urn:onegini.com:oidc:"),
            ("urn:onegini.com:oidc:", "urn:onegini.com:oidc:"),
            ("urn:onegini.com:oidc:x:", "urn:onegini.com:oidc:"),
        ] {
            assert_eq!(ClaimsPrefix::parse(text).map(|_| ()), Err(InvalidPrefix::Reserved(name)), "{text}");
        }
        for name in RESERVED_NAMES {
            for end in 1..=name.len() {
                assert!(ClaimsPrefix::parse(&name[..end]).is_err(), "{}", &name[..end]);
            }
        }
    }

    #[test]
    fn a_name_has_the_prefix_and_belongs_to_nobody_else() {
        let check = |name: &str, expected: Result<(), InvalidClaim>| {
            let parsed = Claims::parse(Map::from_iter([(name.to_owned(), json!(1))]), Some(&prefix("x:")));
            let refused = |reason| InvalidClaims::Claim { name: name.to_owned(), reason };
            assert_eq!(parsed.map(|_| ()), expected.map_err(refused), "{name:?}");
        };
        let longest = format!("x:{}", "n".repeat(126));
        for name in ["x:a", "x:x:", "x:entitlement", "x:entitlements2", "x:Entitlements", "x:~/", &longest] {
            check(name, Ok(()));
        }
        for name in ["", "a", "x", "x:", "X:a", "ax:a", " x:a"] {
            check(name, Err(InvalidClaim::Prefix));
        }
        for name in RESERVED_NAMES.into_iter().chain(["urn:onegini.com:oidc:", "urn:onegini.com:oidc:a"]) {
            check(name, Err(InvalidClaim::Reserved));
        }
        for name in ["x:entitlements", "x:entitled_until"] {
            check(name, Err(InvalidClaim::Own));
        }
        for name in ["x:a b", "x:\"", "x:'", "x:\\", "x:é", "x:\0", &format!("{longest}n")] {
            check(name, Err(InvalidClaim::Spelling));
        }
        let none = |members| Claims::parse(object(members), None).map(|claims| claims.is_empty());
        assert_eq!(none(json!({})), Ok(true));
        assert_eq!(none(json!({"x:a": 1})), Err(InvalidClaims::NoPrefix));
    }

    #[test]
    fn claims_hold_no_null_and_keep_to_their_limits() {
        let parse = |members: Value| Claims::parse(object(members), Some(&prefix("x:"))).map(|claims| claims.to_json());
        for value in [json!(""), json!(0), json!(false), json!([]), json!({}), json!([{"null": ["null", 1.5]}])] {
            let members = json!({"x:a": value});
            assert_eq!(parse(members.clone()), Ok(members.to_string()));
            assert_eq!(Claims::from_json(&members.to_string()), Some(claims(members)));
        }
        for value in [json!(null), json!([null]), json!({"a": null}), json!([1, {"a": [{"b": [null]}]}])] {
            let members = json!({"x:a": 1, "x:b": value});
            let refused = InvalidClaims::Claim { name: "x:b".to_owned(), reason: InvalidClaim::Null };
            assert_eq!(parse(members.clone()), Err(refused), "{value}");
            assert_eq!(Claims::from_json(&members.to_string()), None, "{value}");
        }
        for text in ["", "null", "[]", "1", "{", "{}x"] {
            assert_eq!(Claims::from_json(text), None, "{text}");
        }
        let many = |count| Value::Object((0..count).map(|number| (format!("x:{number}"), json!(1))).collect());
        assert!(parse(many(16)).is_ok());
        assert_eq!(parse(many(17)), Err(InvalidClaims::TooLarge(TooLarge)));
        // `{"x:a":""}` has ten bytes; an é has two.
        assert!(parse(json!({"x:a": "é".repeat(507)})).is_ok());
        assert!(parse(json!({"x:a": "e".repeat(1014)})).is_ok());
        assert_eq!(parse(json!({"x:a": "e".repeat(1015)})), Err(InvalidClaims::TooLarge(TooLarge)));
        assert_eq!(parse(json!({"x:a": "é".repeat(508)})), Err(InvalidClaims::TooLarge(TooLarge)));
        assert!(!format!("{:?}", claims(json!({"x:a": "personal"}))).contains("personal"));
    }

    #[test]
    fn a_patch_merges_as_rfc_7396_says() {
        let check = |before: Value, patch: Value, after: Value| {
            let patch = if patch.is_null() { None } else { Some(object(patch)) };
            let patch = ClaimsPatch::parse(patch, Some(&prefix("x:"))).expect("a patch");
            let patched = claims(before.clone()).patched(patch.clone()).map(|claims| claims.to_map().into());
            assert_eq!(patched, Ok(after), "{before} {patch:?}");
        };
        let before = json!({"x:a": {"b": 1, "c": {"d": [1]}}, "x:e": "f"});
        check(before.clone(), json!({}), before.clone());
        check(before.clone(), json!(null), json!({}));
        check(before.clone(), json!({"x:e": null}), json!({"x:a": {"b": 1, "c": {"d": [1]}}}));
        check(before.clone(), json!({"x:g": 1}), json!({"x:a": {"b": 1, "c": {"d": [1]}}, "x:e": "f", "x:g": 1}));
        check(before.clone(), json!({"x:a": {"c": {"d": [2]}}}), json!({"x:a": {"b": 1, "c": {"d": [2]}}, "x:e": "f"}));
        check(before.clone(), json!({"x:a": {"b": null}}), json!({"x:a": {"c": {"d": [1]}}, "x:e": "f"}));
        check(before.clone(), json!({"x:a": [1]}), json!({"x:a": [1], "x:e": "f"}));
        check(
            before.clone(),
            json!({"x:e": {"g": null, "h": 1}}),
            json!({"x:a": {"b": 1, "c": {"d": [1]}}, "x:e": {"h": 1}}),
        );
        // What takes away needs no prefix, and names nothing that must be there.
        check(before.clone(), json!({"y:a": null, "cid": null, "x:none": null}), before);
        let parse = |patch: Value, prefix: Option<&ClaimsPrefix>| ClaimsPatch::parse(Some(object(patch)), prefix);
        assert!(parse(json!({"y:a": null}), None).is_ok() && ClaimsPatch::parse(None, None).is_ok());
        assert_eq!(parse(json!({"x:a": 1}), None), Err(InvalidClaims::NoPrefix));
        let refused = |name: &str, reason| Err(InvalidClaims::Claim { name: name.to_owned(), reason });
        assert_eq!(parse(json!({"y:a": {}}), Some(&prefix("x:"))), refused("y:a", InvalidClaim::Prefix));
        assert_eq!(parse(json!({"x:a": [null]}), Some(&prefix("x:"))), refused("x:a", InvalidClaim::Null));
        assert_eq!(parse(json!({"x:a": {"b": [null]}}), Some(&prefix("x:"))), refused("x:a", InvalidClaim::Null));
        // The limits are those of what comes out.
        let full = claims(Value::Object((0..16).map(|number| (format!("x:{number}"), json!(1))).collect()));
        let patch = |patch| parse(patch, Some(&prefix("x:"))).expect("a patch");
        assert_eq!(full.patched(patch(json!({"x:new": 1}))), Err(TooLarge));
        assert!(full.patched(patch(json!({"x:new": 1, "x:0": null}))).is_ok());
        assert_eq!(full.patched(patch(json!({"x:0": "long".repeat(250)}))), Err(TooLarge));
    }

    /// Facts of lives of the scope "x".
    fn facts(lives: &[Life]) -> Facts {
        Facts::new(lives.iter().map(|life| (scope("x"), *life)).collect())
    }

    fn told(
        rules: &[(&str, Requires, bool)],
        user: Option<&Facts>,
        client: &Facts,
        requested: &[&str],
        now: i64,
    ) -> AdditionalClaims {
        let rules = rules.iter().map(|&(name, requires, enforced)| (scope(name), Rule { requires, enforced }));
        let catalogue: Catalogue = rules.collect();
        let parties = Parties { user: user.map(Knowledge::Known), client: Knowledge::Known(client) };
        let decision = decide(&catalogue, Stance::default(), parties, requested, at(now)).expect("decided");
        additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(now))
    }

    #[test]
    fn the_end_of_a_scope_is_the_first_instant_at_which_it_would_be_removed() {
        const S: i64 = 1_000_000;
        // [0, 10 s) and a half; with a grace until 12 s; paused from 5 s on; canceled at 3 s; [8 s, ...).
        let plain = Life::from(window(0, Some(10 * S + S / 2)));
        let graced = Life::from(Term::new(window(0, Some(10 * S)), Some(at(12 * S + S - 1))).expect("a term"));
        let paused = Life { pause: Some(window(5 * S, None)), ..plain };
        let canceled = Life { canceled_at: Some(at(3 * S)), ..plain };
        let open = Life::from(window(8 * S, None));
        let nobody = facts(&[]);
        let check = |requires, user: Option<&[Life]>, client: &[Life], now, expected: Option<Option<i64>>| {
            let user = user.map(facts);
            let told = told(&[("x", requires, true)], user.as_ref(), &facts(client), &["x", "other", "x"], now);
            let claims = Value::Object(told.claims);
            let expected = match expected {
                None => json!({}),
                Some(None) => json!({"x:entitlements": [{"scope": "x"}]}),
                Some(Some(until)) => {
                    json!({"x:entitlements": [{"scope": "x", "until": until}], "x:entitled_until": until})
                }
            };
            assert_eq!((claims, told.left_out), (expected, 0), "{requires:?} {user:?} at {now}");
        };
        for requires in [Requires::User, Requires::Any] {
            let check = |lives: &[Life], now, expected| check(requires, Some(lives), &[], now, expected);
            // Half a second is rounded down, and the scope is held to the last microsecond.
            check(&[plain], 0, Some(Some(10)));
            check(&[plain], -1, None);
            check(&[plain], 10 * S + S / 2 - 1, Some(Some(10)));
            check(&[plain], 10 * S + S / 2, None);
            check(&[graced], 10 * S - 1, Some(Some(12)));
            check(&[graced], 10 * S, Some(Some(12)));
            check(&[graced], 12 * S + S - 2, Some(Some(12)));
            check(&[graced], 12 * S + S - 1, None);
            check(&[paused], 5 * S - 1, Some(Some(5)));
            check(&[paused], 5 * S, None);
            check(&[canceled], 3 * S - 1, Some(Some(3)));
            check(&[canceled], 3 * S, None);
            check(&[open], 8 * S - 1, None);
            check(&[open], 8 * S, Some(None));
            check(&[plain, open], 0, Some(None));
            check(&[paused, open], 0, Some(Some(5)));
        }
        // Either party's time follows on the other's.
        check(Requires::Any, Some(&[plain]), &[open], 0, Some(None));
        check(Requires::Any, Some(&[canceled]), &[paused], 0, Some(Some(5)));
        check(Requires::Any, Some(&[]), &[plain], 0, Some(Some(10)));
        check(Requires::Any, None, &[plain], 0, Some(Some(10)));
        check(Requires::All, Some(&[plain]), &[paused], 0, Some(Some(5)));
        check(Requires::All, Some(&[paused]), &[plain], 0, Some(Some(5)));
        check(Requires::All, Some(&[open]), &[plain], 9 * S, Some(Some(10)));
        check(Requires::All, Some(&[plain]), &[open], 9 * S, Some(Some(10)));
        check(Requires::All, Some(&[open]), &[open], 9 * S, Some(None));
        check(Requires::All, Some(&[plain]), &[open], 0, None);
        check(Requires::Client, Some(&[plain]), &[paused], 0, Some(Some(5)));
        check(Requires::Client, Some(&[plain]), &[], 0, None);
        check(Requires::User, Some(&[paused]), &[plain], 0, Some(Some(5)));
        assert_eq!(told(&[("x", Requires::User, true)], None, &nobody, &["x"], 0), AdditionalClaims::default());
    }

    #[test]
    fn a_scope_that_stays_without_being_held_earns_nothing() {
        let (holder, nobody) = (facts(&[Life::from(window(0, Some(10)))]), facts(&[]));
        let unenforced = [("x", Requires::User, false)];
        assert_eq!(told(&unenforced, Some(&nobody), &holder, &["x", "openid"], 0), AdditionalClaims::default());
        assert_eq!(told(&unenforced, Some(&holder), &nobody, &["x", "openid"], 10), AdditionalClaims::default());
        assert_eq!(told(&[], Some(&holder), &holder, &["x", "openid"], 0), AdditionalClaims::default());
        // One that is held is told of, whether it is enforced or not.
        assert_eq!(told(&unenforced, Some(&holder), &nobody, &["x"], 0).claims.len(), 2);

        // What is not known is not told, and shortens no end of what is.
        let catalogue = Catalogue::from_iter([(scope("x"), Rule { requires: Requires::Any, enforced: true })]);
        let catalogue = catalogue.with_claims([(scope("x"), claims(json!({"x:a": 1})))].into());
        let stance = Stance { unmanaged: Unmanaged::Keep, on_unknown: OnUnknown::Keep };
        let claims = |user, client| {
            let parties = Parties { user, client };
            let decision = decide(&catalogue, stance, parties, &["x"], at(0)).expect("decided");
            assert!(decision.outcomes[0].kept);
            Value::Object(additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(0)).claims)
        };
        assert_eq!(claims(Some(Knowledge::Unknown), Knowledge::Unknown), json!({}));
        let expected = json!({"x:a": 1, "x:entitlements": [{"scope": "x", "until": 0}], "x:entitled_until": 0});
        assert_eq!(claims(Some(Knowledge::Known(&holder)), Knowledge::Unknown), expected);
    }

    /// A subscription with claims, which grants scopes in [0, 10).
    fn bearing(id: u128, scopes: &[&str], members: Value) -> Bearing {
        Bearing {
            id: Uuid::from_u128(id),
            life: window(0, Some(10)).into(),
            scopes: scopes.iter().map(|name| scope(name)).collect(),
            claims: Claims::of(object(members)),
        }
    }

    fn holder(bearings: Vec<Bearing>) -> Facts {
        let pair = |bearing: &Bearing| bearing.scopes.iter().map(|scope| (scope.clone(), bearing.life)).collect();
        Facts::new(bearings.iter().flat_map::<Vec<_>, _>(pair).collect()).with_bearings(bearings)
    }

    /// The catalogue of "a", "b" and "c", each held by whom its rule says and with claims.
    fn catalogue(requires: [Requires; 3], of_scopes: [Value; 3]) -> Catalogue {
        let rules = ["a", "b", "c"].into_iter().zip(requires);
        let rules: Catalogue = rules.map(|(name, requires)| (scope(name), Rule { requires, enforced: true })).collect();
        let of_scopes = ["a", "b", "c"].into_iter().zip(of_scopes);
        rules.with_claims(of_scopes.map(|(name, members)| (scope(name), claims(members))).collect())
    }

    fn given(catalogue: &Catalogue, user: &Facts, client: &Facts, requested: &[&str], now: i64) -> Value {
        let parties = Parties { user: Some(Knowledge::Known(user)), client: Knowledge::Known(client) };
        let decision = decide(catalogue, Stance::default(), parties, requested, at(now)).expect("decided");
        let mut told = additional(&prefix("x:"), catalogue, parties, &decision.outcomes, at(now));
        assert_eq!(told.left_out, 0);
        told.claims.remove("x:entitlements");
        told.claims.remove("x:entitled_until");
        Value::Object(told.claims)
    }

    #[test]
    fn a_subscription_beats_a_scope_a_later_one_an_earlier_and_a_scope_one_requested_after_it() {
        let catalogue = catalogue(
            [Requires::Any; 3],
            [json!({"x:1": "a", "x:2": "a", "x:3": "a"}), json!({"x:1": "b", "x:4": "b"}), json!({"x:5": "c"})],
        );
        let user = holder(vec![
            bearing(3, &["a"], json!({"x:1": "third", "x:6": "third"})),
            bearing(1, &["a", "b"], json!({"x:1": "first", "x:2": "first", "x:7": "first"})),
        ]);
        let client = holder(vec![bearing(2, &["b"], json!({"x:2": "second", "x:6": "second", "x:4": {"deep": [1]}}))]);
        let check = |requested: &[&str], now, expected: Value| {
            assert_eq!(given(&catalogue, &user, &client, requested, now), expected, "{requested:?} at {now}");
        };
        let of_subscriptions =
            json!({"x:1": "third", "x:2": "second", "x:4": {"deep": [1]}, "x:6": "third", "x:7": "first"});
        let mut all = of_subscriptions.clone();
        all["x:3"] = json!("a");
        check(&["a", "b", "c"], 0, all.clone());
        check(&["b", "a"], 9, all);
        check(&["b", "a"], 10, json!({}));
        check(&["a"], 0, json!({"x:1": "third", "x:2": "first", "x:3": "a", "x:6": "third", "x:7": "first"}));
        check(&["c"], 0, json!({}));
        let plain = holder(vec![bearing(1, &["a", "b"], json!({}))]);
        let nobody = Facts::default();
        let of_scopes = |requested: &[&str]| given(&catalogue, &plain, &nobody, requested, 0);
        assert_eq!(of_scopes(&["a", "b"]), json!({"x:1": "a", "x:2": "a", "x:3": "a", "x:4": "b"}));
        assert_eq!(of_scopes(&["b", "a"]), json!({"x:1": "b", "x:2": "a", "x:3": "a", "x:4": "b"}));
    }

    #[test]
    fn a_subscription_counts_while_it_grants_itself_to_somebody_who_is_asked() {
        let requires = [Requires::User, Requires::Client, Requires::All];
        let catalogue = catalogue(requires, [json!({}), json!({}), json!({})]);
        let of_user = bearing(1, &["a", "b"], json!({"x:user": 1}));
        let of_client = bearing(2, &["a", "b"], json!({"x:client": 1}));
        let (user, client) = (holder(vec![of_user.clone()]), holder(vec![of_client]));
        assert_eq!(given(&catalogue, &user, &client, &["a"], 0), json!({"x:user": 1}));
        assert_eq!(given(&catalogue, &user, &client, &["b"], 0), json!({"x:client": 1}));
        assert_eq!(given(&catalogue, &user, &client, &["b", "a"], 0), json!({"x:user": 1, "x:client": 1}));
        let both = |id, name: &str| {
            holder(vec![bearing(id, &["c"], Value::Object(Map::from_iter([(name.to_owned(), json!(1))])))])
        };
        let (user_c, client_c) = (both(1, "x:user"), both(2, "x:client"));
        assert_eq!(given(&catalogue, &user_c, &client_c, &["c"], 0), json!({"x:user": 1, "x:client": 1}));
        assert_eq!(given(&catalogue, &user_c, &user, &["c"], 0), json!({}));
        // Another subscription keeps the scope, so it is held while this one is not granting.
        let check = |life: Life, now, is_given| {
            let plain = bearing(3, &["a"], json!({}));
            let bearing = Bearing { life, ..of_user.clone() };
            let user = holder(vec![bearing, Bearing { life: window(0, None).into(), ..plain }]);
            let expected = if is_given { json!({"x:user": 1}) } else { json!({}) };
            assert_eq!(given(&catalogue, &user, &Facts::default(), &["a"], now), expected, "{life:?} at {now}");
        };
        let life = Life::from(window(5, Some(10)));
        for (now, is_given) in [(4, false), (5, true), (9, true), (10, false)] {
            check(life, now, is_given);
        }
        let graced = Life::from(Term::new(window(5, Some(10)), Some(at(12))).expect("a term"));
        for (now, is_given) in [(10, true), (11, true), (12, false)] {
            check(graced, now, is_given);
        }
        let paused = Life { pause: Some(window(6, Some(8))), ..life };
        for (now, is_given) in [(5, true), (6, false), (7, false), (8, true)] {
            check(paused, now, is_given);
        }
        let canceled = Life { canceled_at: Some(at(7)), ..life };
        for (now, is_given) in [(6, true), (7, false), (9, false)] {
            check(canceled, now, is_given);
        }
    }

    #[test]
    fn claims_that_were_written_under_another_prefix_are_passed_over() {
        let catalogue = catalogue([Requires::Any; 3], [json!({"x:1": 1}), json!({}), json!({})]);
        let of_another =
            json!({"y:1": 1, "cid": 1, "x:entitlements": 1, "x:entitled_until": 1, "x:": 1, "x:a b": 1, "x:2": 2});
        let user = holder(vec![bearing(1, &["a"], of_another)]);
        assert_eq!(given(&catalogue, &user, &Facts::default(), &["a"], 0), json!({"x:1": 1, "x:2": 2}));
    }

    #[test]
    fn what_has_no_room_is_left_out_in_a_known_order_and_makes_none_for_what_it_beat() {
        let filled = |rest: usize| "v".repeat(rest);
        let rules = [("a", Requires::Any)].map(|(name, requires)| (scope(name), Rule { requires, enforced: true }));
        let full_of = |of_scope: Value, bearings: Vec<Bearing>| {
            let catalogue = Catalogue::from_iter(rules.clone());
            let of_scope = Claims::from_json(&of_scope.to_string()).expect("claims");
            let catalogue = catalogue.with_claims([(scope("a"), of_scope)].into());
            let (user, client) = (holder(bearings), Facts::default());
            let parties = Parties { user: Some(Knowledge::Known(&user)), client: Knowledge::Known(&client) };
            let decision = decide(&catalogue, Stance::default(), parties, &["a"], at(0)).expect("decided");
            additional(&prefix("x:"), &catalogue, parties, &decision.outcomes, at(0))
        };
        let own = Value::Object(full_of(json!({}), vec![bearing(1, &["a"], json!({}))]).claims).to_string().len();
        // `,"x:big":""` has eleven bytes.
        let exactly = MAX_ANSWER_BYTES - own - 11;
        let with = |length| full_of(json!({}), vec![bearing(1, &["a"], json!({"x:big": filled(length)}))]);
        let full = with(exactly);
        assert_eq!((full.claims.len(), full.left_out), (3, 0));
        assert_eq!(Value::Object(full.claims).to_string().len(), MAX_ANSWER_BYTES);
        let over = with(exactly + 1);
        assert_eq!((over.claims.len(), over.left_out), (2, 1));

        let half = MAX_ANSWER_BYTES / 2;
        let bearings = vec![
            bearing(1, &["a"], json!({"x:early": filled(half), "x:small": 1})),
            bearing(2, &["a"], json!({"x:late": filled(half)})),
        ];
        let told = full_of(json!({"x:early": 0, "x:scope": filled(half), "x:tiny": 2}), bearings);
        let names: Vec<_> = told.claims.keys().map(String::as_str).collect();
        assert_eq!(names, ["x:entitled_until", "x:entitlements", "x:late", "x:small", "x:tiny"]);
        assert_eq!(told.left_out, 2);

        // So many scopes that naming them takes more than there is.
        let names: Vec<_> = (0..300).map(|number| format!("scope-{number}")).collect();
        let rules: Vec<_> = names.iter().map(|name| (&**name, Requires::Any, true)).collect();
        let requested: Vec<_> = names.iter().map(String::as_str).collect();
        let pairs = names.iter().map(|name| (scope(name), Life::from(window(0, Some(10)))));
        let told = self::told(&rules, Some(&Facts::new(pairs.collect())), &Facts::default(), &requested, 0);
        assert_eq!((Value::Object(told.claims), told.left_out), (json!({"x:entitled_until": 0}), 1));
    }

    #[test]
    fn the_memory_of_claims_is_counted_and_a_subject_without_pays_nothing() {
        let plain = holder(vec![]).heap_bytes();
        assert_eq!(plain, 0);
        let without = Facts::new(vec![(scope("a"), window(0, None).into())]);
        let bearing = |text: &str| bearing(1, &["a"], json!({"x:a": text, "x:b": [{"c": [text]}]}));
        let with = |text: &str| without.clone().with_bearings(vec![bearing(text)]).heap_bytes();
        let least = without.heap_bytes() + size_of::<Bearing>() + size_of::<Scope>();
        assert!(with("") > least, "{} and {least}", with(""));
        assert_eq!(with(&"t".repeat(400)) - with(""), 800);
    }
}
