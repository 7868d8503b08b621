//! Who holds a subscription.

use std::{fmt, sync::Arc};

/// The longest subject id, in bytes of UTF-8.
pub const MAX_SUBJECT_ID_BYTES: usize = 1024;

/// What kind of party a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectType {
    /// A person, known by the identifier that the identity provider gave.
    User,
    /// An OAuth client application, known by its client id.
    Client,
}

impl SubjectType {
    /// Both kinds, in the order in which a decision looks at them.
    pub const ALL: [Self; 2] = [Self::User, Self::Client];

    /// The word for the kind in the API and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Client => "client",
        }
    }

    /// The kind that a word stands for.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// An identifier that another system gave: opaque, compared byte for byte, never normalised.
///
/// Invariant: 1 to [`MAX_SUBJECT_ID_BYTES`] bytes of UTF-8 without U+0000, which Postgres cannot keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectId(Arc<str>);

/// The text is no subject id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subject id has 1 to {MAX_SUBJECT_ID_BYTES} bytes and no U+0000")]
pub struct InvalidSubjectId;

impl SubjectId {
    /// Parses an id.
    ///
    /// # Errors
    ///
    /// [`InvalidSubjectId`] when the text is empty, too long or holds U+0000.
    pub fn parse(text: &str) -> Result<Self, InvalidSubjectId> {
        check(text).map(|id| Self(id.into()))
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str) -> Result<&str, InvalidSubjectId> {
    let is_id = (1..=MAX_SUBJECT_ID_BYTES).contains(&text.len()) && !text.contains('\0');
    if is_id { Ok(text) } else { Err(InvalidSubjectId) }
}

/// Who holds a subscription: a user or a client, and its id. A user and a client of one id are two subjects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Whether it is a user or a client.
    pub kind: SubjectType,
    /// Its id.
    pub id: SubjectId,
}

/// The id is personal data and never printed: a log line that shows a subject shows its kind alone.
impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.borrowed().fmt(f)
    }
}

impl Subject {
    /// The subject, with an id that stays where it is.
    #[must_use]
    pub fn borrowed(&self) -> SubjectRef<'_> {
        SubjectRef { kind: self.kind, id: self.id.as_str() }
    }
}

/// A subject whose id stands elsewhere, such as in a request: enough to look something up.
///
/// Invariant: the id is that of a [`SubjectId`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubjectRef<'a> {
    kind: SubjectType,
    id: &'a str,
}

impl<'a> SubjectRef<'a> {
    /// Parses an id.
    ///
    /// # Errors
    ///
    /// Those of [`SubjectId::parse`].
    pub fn parse(kind: SubjectType, id: &'a str) -> Result<Self, InvalidSubjectId> {
        check(id).map(|id| Self { kind, id })
    }

    /// Whether it is a user or a client.
    #[must_use]
    pub fn kind(self) -> SubjectType {
        self.kind
    }

    /// Its id.
    #[must_use]
    pub fn id(self) -> &'a str {
        self.id
    }

    /// The subject, with an id of its own.
    #[must_use]
    pub fn to_subject(self) -> Subject {
        Subject { kind: self.kind, id: SubjectId(self.id.into()) }
    }
}

/// Without the id.
impl fmt::Debug for SubjectRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_1_to_1024_bytes_not_characters() {
        assert_eq!(SubjectId::parse(""), Err(InvalidSubjectId));
        assert!(SubjectId::parse("x").is_ok());
        assert!(SubjectId::parse(&"é".repeat(512)).is_ok());
        assert_eq!(SubjectId::parse(&"é".repeat(513)), Err(InvalidSubjectId));
        assert!(SubjectId::parse(&"x".repeat(1024)).is_ok());
        assert_eq!(SubjectId::parse(&"x".repeat(1025)), Err(InvalidSubjectId));
    }

    #[test]
    fn only_the_null_character_is_refused_whatever_an_id_looks_like() {
        assert_eq!(SubjectId::parse("a\0b"), Err(InvalidSubjectId));
        for text in [" ", "../x", "%2F", "' OR 1=1 --", "a\nb", "\u{1b}[31m", "🎫"] {
            assert_eq!(SubjectId::parse(text).expect(text).as_str(), text);
        }
    }

    #[test]
    fn a_borrowed_subject_is_the_one_that_it_was_borrowed_from() {
        for kind in SubjectType::ALL {
            let subject = Subject { kind, id: SubjectId::parse("🎫").expect("an id") };
            assert_eq!(subject.borrowed().to_subject(), subject);
            assert_eq!(SubjectRef::parse(kind, "🎫"), Ok(subject.borrowed()));
            for text in ["", "a\0b", &"x".repeat(1025)] {
                assert_eq!(SubjectRef::parse(kind, text), Err(InvalidSubjectId));
            }
        }
    }

    #[test]
    fn ids_that_look_alike_stay_apart() {
        let nfc = SubjectId::parse("\u{e9}").expect("composed");
        let nfd = SubjectId::parse("e\u{301}").expect("decomposed");
        assert_ne!(nfc, nfd);
        assert_ne!(SubjectId::parse("A"), SubjectId::parse("a"));
        assert_ne!(SubjectId::parse("a"), SubjectId::parse("a "));
    }

    #[test]
    fn a_subject_never_prints_its_id() {
        let subject = Subject { kind: SubjectType::User, id: SubjectId::parse("jane@example.com").expect("an id") };
        assert!(!format!("{subject:?} {:?}", subject.borrowed()).contains("jane"));
    }
}
