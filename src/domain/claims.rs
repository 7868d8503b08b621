//! Claims: what a token is told about the scopes that stay, beside their names. Here is what may be said at all; which
//! claims an answer gives is told by [`additional()`].

mod additional;

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};

pub use additional::{AdditionalClaims, Bearing, MAX_ANSWER_BYTES, additional, held_until};

/// The longest prefix, in characters: room for a URN, and for names of the same length after it.
pub const MAX_PREFIX_LENGTH: usize = 64;
/// The longest name of a claim, in characters.
pub const MAX_NAME_LENGTH: usize = 128;
/// The most claims of one scope or subscription: each stands in every token that is made for it.
pub const MAX_CLAIMS: usize = 16;
/// The most bytes of the claims of one scope or subscription, as JSON: four of them fill an answer.
pub const MAX_CLAIMS_BYTES: usize = 1024;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn prefix(text: &str) -> ClaimsPrefix {
        ClaimsPrefix::parse(text).expect(text)
    }

    pub(super) fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    pub(super) fn claims(value: Value) -> Claims {
        Claims::parse(object(value), Some(&prefix("x:"))).expect("claims")
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
}
