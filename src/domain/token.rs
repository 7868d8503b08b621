//! The credentials of the management API: what each may do, and until when.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What every secret begins with: it tells a token from other credentials, and a scanner of leaked ones whose it is.
pub const SECRET_PREFIX: &str = "tollgate_";
/// The longest name of a token, in characters.
pub const MAX_NAME_LENGTH: usize = 64;
/// The most tokens that may be live at once: all of them are kept in memory, and read anew with every change.
pub const MAX_LIVE_TOKENS: u64 = 1_000;
/// Names under which changes of other credentials are recorded.
const RESERVED_NAMES: [&str; 2] = ["access", "bootstrap"];

/// What a credential of the management API may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Reader,
    /// Change subscriptions.
    Writer,
    /// Change the catalogue, and hand out credentials.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Admin];

    /// The role's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Admin => "admin",
        }
    }

    /// The role that a word stands for.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// The name of a token, under which its changes are recorded; compared byte for byte.
///
/// Invariant: 1 to [`MAX_NAME_LENGTH`] characters, each an ASCII letter, a digit, `.`, `_` or `-`; and not a name that
/// another kind of credential has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenName(Arc<str>);

/// The text is not the name of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is empty, too long, or holds another character.
    #[error("a name has 1 to {MAX_NAME_LENGTH} characters, each a letter of ASCII, a digit, `.`, `_` or `-`")]
    Spelling,
    /// The changes of another kind of credential are recorded under it.
    #[error("the name is reserved")]
    Reserved,
}

impl TokenName {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] when it is misspelled, or reserved.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=MAX_NAME_LENGTH).contains(&text.len()) || !text.bytes().all(is_plain) {
            return Err(InvalidName::Spelling);
        }
        // In any case: `Bootstrap` would be told from `bootstrap` by machines alone.
        if RESERVED_NAMES.iter().any(|reserved| text.eq_ignore_ascii_case(reserved)) {
            return Err(InvalidName::Reserved);
        }
        Ok(Self(text.into()))
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a token is at an instant: derived from its timestamps and `now`, and never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It lets its bearer in.
    Active,
    /// It has ended.
    Expired,
    /// It was revoked.
    Revoked,
}

impl Status {
    /// The word for the status in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A credential of the management API, but for its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// A UUID of version 7.
    pub id: Uuid,
    /// Its name, which no other token ever has: the history stays unambiguous.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The name of the credential that made it.
    pub created_by: String,
    /// The first instant at which it has ended; none when it never does.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it last let somebody in, to the minute or so.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A token would have ended before anybody could use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token ends in the future")]
pub struct InvalidExpiry;

/// A token that was revoked cannot be revoked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is already revoked")]
pub struct AlreadyRevoked;

impl Token {
    /// A token that nobody has used yet.
    ///
    /// # Errors
    ///
    /// [`InvalidExpiry`] when it would have ended by `now`.
    pub fn new(
        id: Uuid,
        name: TokenName,
        role: Role,
        expires_at: Option<DateTime<Utc>>,
        created_by: String,
        now: DateTime<Utc>,
    ) -> Result<Self, InvalidExpiry> {
        if expires_at.is_some_and(|expires_at| expires_at <= now) {
            return Err(InvalidExpiry);
        }
        Ok(Self { id, name, role, created_at: now, created_by, expires_at, revoked_at: None, last_used_at: None })
    }

    /// The status at `now`. Revoked beats expired, and is for good: a clock that is set back, or a replica whose clock is
    /// behind, must not let a revoked token in again.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        if self.revoked_at.is_some() {
            Status::Revoked
        } else if self.expires_at.is_none_or(|expires_at| now < expires_at) {
            Status::Active
        } else {
            Status::Expired
        }
    }

    /// Whether it lets its bearer in at `now`.
    #[must_use]
    pub fn is_live(&self, now: DateTime<Utc>) -> bool {
        self.status(now) == Status::Active
    }

    /// Ends it at `now`, for good. One that has expired may be revoked, too.
    ///
    /// # Errors
    ///
    /// [`AlreadyRevoked`] when it is revoked.
    pub fn revoke(self, now: DateTime<Utc>) -> Result<Self, AlreadyRevoked> {
        match self.status(now) {
            Status::Active | Status::Expired => Ok(Self { revoked_at: Some(now), ..self }),
            Status::Revoked => Err(AlreadyRevoked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn token(expires_at: Option<i64>) -> Result<Token, InvalidExpiry> {
        let name = TokenName::parse("billing").expect("a name");
        Token::new(Uuid::nil(), name, Role::Reader, expires_at.map(at), "bootstrap".to_owned(), at(10))
    }

    #[test]
    fn each_role_may_do_what_those_before_it_may() {
        assert!(Role::Reader < Role::Writer && Role::Writer < Role::Admin);
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("Admin"), None);
    }

    #[test]
    fn a_name_has_1_to_64_plain_characters() {
        for code in 0..=0xFF_u8 {
            let text = char::from(code).to_string();
            let listed = text.bytes().all(|byte| byte.is_ascii_alphanumeric()) || [".", "_", "-"].contains(&&*text);
            assert_eq!(TokenName::parse(&text).is_ok(), listed, "character {code:#04x}");
        }
        let check = |text: &str, expected| assert_eq!(TokenName::parse(text).map(|_| ()), expected, "{text:?}");
        check("", Err(InvalidName::Spelling));
        check(&"n".repeat(64), Ok(()));
        check(&"n".repeat(65), Err(InvalidName::Spelling));
        check("command line", Err(InvalidName::Spelling));
    }

    #[test]
    fn names_of_other_credentials_are_reserved_in_any_case() {
        for reserved in ["bootstrap", "access", "Bootstrap", "ACCESS"] {
            assert_eq!(TokenName::parse(reserved), Err(InvalidName::Reserved), "{reserved}");
        }
        assert!(TokenName::parse("bootstrap2").is_ok() && TokenName::parse("xaccess").is_ok());
    }

    #[test]
    fn a_token_ends_on_the_microsecond_and_in_the_future() {
        for (expires_at, expected) in [(None, true), (Some(9), false), (Some(10), false), (Some(11), true)] {
            assert_eq!(token(expires_at).is_ok(), expected, "{expires_at:?}");
        }
        let limited = token(Some(20)).expect("a token");
        for (now, expected) in [(9, Status::Active), (19, Status::Active), (20, Status::Expired), (21, Status::Expired)]
        {
            assert_eq!(limited.status(at(now)), expected, "{now}");
            assert_eq!(limited.is_live(at(now)), expected == Status::Active, "{now}");
        }
        assert!(token(None).expect("a token").is_live(at(i64::from(u32::MAX))));
    }

    #[test]
    fn a_revocation_is_for_good_whatever_the_clock_says() {
        for now in [15, 20, 30] {
            let revoked = token(Some(20)).expect("a token").revoke(at(now)).expect("revoked");
            assert_eq!(revoked.revoked_at, Some(at(now)));
            for later in [0, now - 1, now, now + 1] {
                assert_eq!(revoked.status(at(later)), Status::Revoked, "{later}");
                assert!(!revoked.is_live(at(later)));
                assert_eq!(revoked.clone().revoke(at(later)), Err(AlreadyRevoked));
            }
        }
    }
}
