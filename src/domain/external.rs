//! What another system, such as billing, knows a subscription by.

use std::{fmt, sync::Arc};

/// The longest name of a source, in characters.
pub const MAX_SOURCE_LENGTH: usize = 64;
/// The longest external id, in bytes of UTF-8.
pub const MAX_EXTERNAL_ID_BYTES: usize = 255;

/// The name of a system that gives subscriptions ids of its own; compared byte for byte.
///
/// Invariant: 1 to [`MAX_SOURCE_LENGTH`] characters, each an ASCII letter, a digit, `.`, `_` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(Arc<str>);

/// The text is not the name of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a source has 1 to {MAX_SOURCE_LENGTH} characters, each a letter of ASCII, a digit, `.`, `_` or `-`")]
pub struct InvalidSource;

impl Source {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`InvalidSource`] when it is empty, too long or holds another character.
    pub fn parse(text: &str) -> Result<Self, InvalidSource> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if (1..=MAX_SOURCE_LENGTH).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSource)
        }
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id that a source gave to a subscription: opaque, compared byte for byte.
///
/// Invariant: 1 to [`MAX_EXTERNAL_ID_BYTES`] bytes of UTF-8 without U+0000, which Postgres cannot keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalId(Arc<str>);

/// The text is no external id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an external id has 1 to {MAX_EXTERNAL_ID_BYTES} bytes and no U+0000")]
pub struct InvalidExternalId;

impl ExternalId {
    /// Parses an id.
    ///
    /// # Errors
    ///
    /// [`InvalidExternalId`] when the text is empty, too long or holds U+0000.
    pub fn parse(text: &str) -> Result<Self, InvalidExternalId> {
        if (1..=MAX_EXTERNAL_ID_BYTES).contains(&text.len()) && !text.contains('\0') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidExternalId)
        }
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The version that a source gives to what it sends: it grows with every change there.
///
/// Invariant: it is not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceVersion(i64);

/// The number is not the version of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a source's version is a whole number from 0 to 9223372036854775807")]
pub struct InvalidSourceVersion;

impl SourceVersion {
    /// The version of a number.
    ///
    /// # Errors
    ///
    /// [`InvalidSourceVersion`] when it is negative.
    pub fn new(number: i64) -> Result<Self, InvalidSourceVersion> {
        if number >= 0 { Ok(Self(number)) } else { Err(InvalidSourceVersion) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

/// What a subscription is known by elsewhere: no other one has the same, be it a deleted one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalKey {
    /// The system.
    pub source: Source,
    /// Its id there.
    pub id: ExternalId,
}

/// The id may tell a customer, so it is not printed.
impl fmt::Debug for ExternalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalKey").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What a subscription is known by elsewhere, and in which version it came from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The system and its id there.
    pub key: ExternalKey,
    /// That system's version of what was written last; none when it gives none.
    pub version: Option<SourceVersion>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_plain_word() {
        for text in ["s", "stripe", "Billing-2.eu_west", "0", &"x".repeat(64)] {
            assert_eq!(Source::parse(text).expect(text).as_str(), text);
        }
        for text in ["", " ", "a b", "a/b", "ä", "a\0", "a:b", &"x".repeat(65)] {
            assert_eq!(Source::parse(text), Err(InvalidSource), "{text:?}");
        }
    }

    #[test]
    fn an_external_id_is_any_text_of_some_bytes() {
        for text in ["s", " ", "sub_1N/é🎫\n", &"x".repeat(255)] {
            assert_eq!(ExternalId::parse(text).expect(text).as_str(), text);
        }
        for text in ["", "a\0b", &"x".repeat(256), &"é".repeat(128)] {
            assert_eq!(ExternalId::parse(text), Err(InvalidExternalId), "{text:?}");
        }
    }

    #[test]
    fn a_version_counts_from_0() {
        for number in [0, 1, i64::MAX] {
            assert_eq!(SourceVersion::new(number).map(SourceVersion::get), Ok(number));
        }
        for number in [-1, i64::MIN] {
            assert_eq!(SourceVersion::new(number), Err(InvalidSourceVersion));
        }
    }
}
