//! The OAuth scope token.

use std::{borrow::Borrow, fmt, sync::Arc};

/// The longest scope token Tollgate registers, in characters. RFC 6749 names no limit; Access allows 20.
pub const MAX_SCOPE_LENGTH: usize = 255;

/// An OAuth scope token, as RFC 6749 section 3.3 spells it; compared byte for byte.
///
/// Invariant: 1 to [`MAX_SCOPE_LENGTH`] characters, each `%x21`, `%x23-5B` or `%x5D-7E`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Arc<str>);

/// The text is not a scope token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a scope has 1 to {MAX_SCOPE_LENGTH} printable ASCII characters, without blank, quote and backslash")]
pub struct InvalidScope;

impl Scope {
    /// Parses a scope token.
    ///
    /// # Errors
    ///
    /// [`InvalidScope`] when the text is empty, too long, or holds another character.
    pub fn parse(text: &str) -> Result<Self, InvalidScope> {
        let is_token = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E);
        if (1..=MAX_SCOPE_LENGTH).contains(&text.len()) && text.as_bytes().iter().all(is_token) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidScope)
        }
    }

    /// The token's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A scope is found by its text: requests name scopes that may be no scope token at all.
impl Borrow<str> for Scope {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_one_byte_is_taken_exactly_as_rfc_6749_lists_it() {
        for code in 0..=0x7F_u8 {
            let text = char::from(code).to_string();
            // The grammar's prose: visible ASCII but for the double quote and the backslash.
            let listed = (b'!'..=b'~').contains(&code) && code != b'"' && code != b'\\';
            assert_eq!(Scope::parse(&text).is_ok(), listed, "character {code:#04x}");
        }
    }

    #[test]
    fn characters_beyond_ascii_are_refused() {
        for text in ["é", "e\u{301}", "scope\u{a0}", "🎫", "\u{80}"] {
            assert_eq!(Scope::parse(text), Err(InvalidScope), "{text:?}");
        }
    }

    #[test]
    fn a_scope_has_1_to_255_characters() {
        assert_eq!(Scope::parse(""), Err(InvalidScope));
        assert!(Scope::parse("a").is_ok());
        assert!(Scope::parse(&"a".repeat(255)).is_ok());
        assert_eq!(Scope::parse(&"a".repeat(256)), Err(InvalidScope));
    }
}
