//! Texts as they travel, and their schemas. A text is parsed into a domain value in one place, where it enters.

use std::{borrow::Cow, fmt, marker::PhantomData};

use chrono::{DateTime, SecondsFormat, Timelike as _, Utc};
use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::Value;
use uuid::Uuid;

use super::problem::FieldError;
use crate::domain::{
    external::{ExternalId, MAX_EXTERNAL_ID_BYTES, MAX_SOURCE_LENGTH, Source},
    period::{MAX_PERIOD_BYTES, Period},
    scope::{MAX_SCOPE_LENGTH, Scope},
    subject::{MAX_SUBJECT_ID_BYTES, SubjectId},
    time,
    token::MAX_NAME_LENGTH,
};

/// Declares a text of the wire: a string, as whatever type its schema describes it, that is not parsed yet.
///
/// As a query parameter it never fails to be read, so the error about it is ours to word.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $ty:literal, |$schema:ident| $describe:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl poem_openapi::types::Type for $name {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn schema_ref() -> poem_openapi::registry::MetaSchemaRef {
                let mut $schema = MetaSchema::new($ty);
                $describe;
                poem_openapi::registry::MetaSchemaRef::Inline(Box::new($schema))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }

        impl poem_openapi::types::ParseFromJSON for $name {
            fn parse_from_json(value: Option<serde_json::Value>) -> poem_openapi::types::ParseResult<Self> {
                match value {
                    Some(serde_json::Value::String(text)) => Ok(Self(text)),
                    other => Err(poem_openapi::types::ParseError::expected_type(other.unwrap_or_default())),
                }
            }
        }

        impl poem_openapi::types::ToJSON for $name {
            fn to_json(&self) -> Option<serde_json::Value> {
                Some(serde_json::Value::String(self.0.clone()))
            }
        }

        impl poem_openapi::types::ParseFromParameter for $name {
            fn parse_from_parameter(value: &str) -> poem_openapi::types::ParseResult<Self> {
                Ok(Self(value.to_owned()))
            }
        }
    };
}
pub(super) use text;

text! {
    /// An instant in RFC 3339.
    Timestamp, "string", |schema| {
        schema.format = Some("date-time");
        schema.example = Some("2026-01-31T12:00:00Z".into());
    }
}

text! {
    /// An OAuth scope token of the catalogue.
    ScopeToken, "string", |schema| {
        schema.pattern = Some(r"^[\x21\x23-\x5B\x5D-\x7E]+$".to_owned());
        schema.min_length = Some(1);
        schema.max_length = Some(MAX_SCOPE_LENGTH);
        schema.example = Some("email".into());
    }
}

text! {
    /// The id of a user or client. Its length counts in bytes, which no schema can say; one character has at least one.
    SubjectIdText, "string", |schema| {
        schema.pattern = Some(r"^[^\x00]*$".to_owned());
        schema.min_length = Some(1);
        schema.max_length = Some(MAX_SUBJECT_ID_BYTES);
        schema.example = Some("myUserId22700111101".into());
    }
}

text! {
    /// A period of the calendar in ISO 8601.
    DurationText, "string", |schema| {
        schema.format = Some("duration");
        schema.max_length = Some(MAX_PERIOD_BYTES);
        schema.example = Some("P1M".into());
    }
}

text! {
    /// The id of a subscription.
    SubscriptionId, "string", |schema| {
        schema.format = Some("uuid");
    }
}

text! {
    /// The name of a system that gives subscriptions ids of its own.
    SourceText, "string", |schema| {
        schema.pattern = Some("^[A-Za-z0-9._-]+$".to_owned());
        schema.min_length = Some(1);
        schema.max_length = Some(MAX_SOURCE_LENGTH);
        schema.example = Some("billing".into());
    }
}

text! {
    /// The id that such a system gave. Its length counts in bytes, which no schema can say; one character has at least
    /// one.
    ExternalIdText, "string", |schema| {
        schema.min_length = Some(1);
        schema.max_length = Some(MAX_EXTERNAL_ID_BYTES);
        schema.pattern = Some(r"^[^\x00]*$".to_owned());
        schema.example = Some("sub_1042".into());
    }
}

text! {
    /// The id of a token.
    TokenId, "string", |schema| {
        schema.format = Some("uuid");
    }
}

text! {
    /// The name of a token.
    TokenNameText, "string", |schema| {
        schema.pattern = Some("^[A-Za-z0-9._-]+$".to_owned());
        schema.min_length = Some(1);
        schema.max_length = Some(MAX_NAME_LENGTH);
        schema.example = Some("billing".into());
    }
}

/// A text of a body, as it stands there; borrowed from it but for one with escapes.
#[derive(Debug)]
pub struct BodyText<'body>(pub Cow<'body, str>);

impl<'de: 'body, 'body> Deserialize<'de> for BodyText<'body> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = BodyText<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<BodyText<'de>, E> {
                Ok(BodyText(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<BodyText<'de>, E> {
                Ok(BodyText(text.to_owned().into()))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// It is described as what it is in JSON.
impl Type for BodyText<'_> {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        String::name()
    }

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromJSON for BodyText<'_> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::String(text)) => Ok(Self(text.into())),
            other => Err(ParseError::expected_type(other.unwrap_or_default())),
        }
    }
}

impl ToJSON for BodyText<'_> {
    fn to_json(&self) -> Option<Value> {
        Some(Value::from(&*self.0))
    }
}

impl Timestamp {
    /// The instant, cut to the microsecond.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no RFC 3339 timestamp with offset, or its year is not 0001 to 9999.
    pub fn parse(&self, pointer: &str) -> Result<DateTime<Utc>, FieldError> {
        let expected = "expected an RFC 3339 timestamp with `T` and an offset, in the years 0001 to 9999";
        time::parse(&self.0).ok_or_else(|| FieldError::new(pointer, expected))
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(instant: DateTime<Utc>) -> Self {
        let digits = if instant.nanosecond() == 0 { SecondsFormat::Secs } else { SecondsFormat::Micros };
        Self(instant.to_rfc3339_opts(digits, true))
    }
}

impl DurationText {
    /// The period.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no ISO 8601 duration, or one of no length.
    pub fn parse(&self, pointer: &str) -> Result<Period, FieldError> {
        Period::parse(&self.0).map_err(|error| FieldError::new(pointer, error))
    }
}

impl ScopeToken {
    /// The scope.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no scope token.
    pub fn parse(&self, pointer: &str) -> Result<Scope, FieldError> {
        Scope::parse(&self.0).map_err(|error| FieldError::new(pointer, error))
    }
}

impl From<&Scope> for ScopeToken {
    fn from(scope: &Scope) -> Self {
        Self(scope.as_str().to_owned())
    }
}

impl SourceText {
    /// The source.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no name of one.
    pub fn parse(&self, pointer: &str) -> Result<Source, FieldError> {
        Source::parse(&self.0).map_err(|error| FieldError::new(pointer, error))
    }
}

impl ExternalIdText {
    /// The id.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no external id.
    pub fn parse(&self, pointer: &str) -> Result<ExternalId, FieldError> {
        ExternalId::parse(&self.0).map_err(|error| FieldError::new(pointer, error))
    }
}

impl SubjectIdText {
    /// The id.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] at `pointer` when it is no subject id.
    pub fn parse(&self, pointer: &str) -> Result<SubjectId, FieldError> {
        SubjectId::parse(&self.0).map_err(|error| FieldError::new(pointer, error))
    }
}

/// The id that a text spells; none when it cannot be one, and so names nothing.
fn parse_id(text: &str) -> Option<Uuid> {
    // Hyphenated only: the braces and the URN that the parser takes, too, would be further names of one resource.
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

macro_rules! id {
    ($name:ident) => {
        impl $name {
            /// The id; none when the text cannot be one, and so names nothing.
            pub fn parse(&self) -> Option<Uuid> {
                parse_id(&self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id.to_string())
            }
        }
    };
}

id!(SubscriptionId);
id!(TokenId);

/// Reads a member that may be absent, and may not be null.
///
/// # Errors
///
/// When it is there and no `T`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a member that must be there, and may be null. Without it serde would take an absent member for null, and a
/// lost end date would grant a lifetime.
///
/// # Errors
///
/// When it is neither null nor a `T`.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

/// A value that is read from a JSON object alone. Serde would fill a struct from an array as well, member by member in
/// the order of the code, which no contract describes.
#[derive(Debug)]
pub struct FromObject<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for FromObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// Reads a member that must be there, and must be an object.
///
/// # Errors
///
/// When it is no object, or no `T`.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    FromObject::deserialize(deserializer).map(|FromObject(value)| value)
}

/// Reads a member that is an object or null.
///
/// # Errors
///
/// When it is neither null nor an object that is a `T`.
pub fn nullable_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value: Option<FromObject<T>> = Option::deserialize(deserializer)?;
    Ok(value.map(|FromObject(value)| value))
}

/// Reads a member that may be absent, and is an object or null.
///
/// # Errors
///
/// When it is there and neither null nor an object that is a `T`.
pub fn present_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    nullable_object(deserializer).map(Some)
}

/// Reads one of a few words. Serde would read an enum from an object, too: `{"user": null}` for `"user"`.
///
/// # Errors
///
/// When it is no string, or another word.
pub fn word<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Option<T>,
    words: &'static [&'static str],
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::unknown_variant(&text, words))
}
