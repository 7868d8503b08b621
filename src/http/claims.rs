//! Claims as they travel: JSON objects whose members nobody describes.

use std::{borrow::Cow, fmt};

use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::problem::{FieldError, shortened};
use crate::domain::claims::{Claims, ClaimsPatch, ClaimsPrefix, InvalidClaims};

/// A JSON object with members of any name and value. None is repeated, at any depth: of two that are, somebody meant
/// the other one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ClaimsObject(pub Map<String, Value>);

impl ClaimsObject {
    /// The claims, of the member `claims` of a body; none when it is absent.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] that names the claim which is refused, or all of them.
    pub fn parse(claims: Option<Self>, prefix: Option<&ClaimsPrefix>) -> Result<Claims, FieldError> {
        Claims::parse(claims.unwrap_or_default().0, prefix).map_err(refusal)
    }

    /// The change that the member `claims` of a merge patch stands for.
    ///
    /// # Errors
    ///
    /// A [`FieldError`] that names the claim which is refused, or all of them.
    pub fn parse_patch(patch: Option<Self>, prefix: Option<&ClaimsPrefix>) -> Result<ClaimsPatch, FieldError> {
        ClaimsPatch::parse(patch.map(|Self(members)| members), prefix).map_err(refusal)
    }

    /// The member `claims` of an answer: absent when there are none.
    pub fn of(claims: &Claims) -> Option<Self> {
        (!claims.is_empty()).then(|| Self(claims.to_map()))
    }
}

fn refusal(error: InvalidClaims) -> FieldError {
    match &error {
        InvalidClaims::Claim { name, reason } => {
            let name = shortened(name).replace('~', "~0").replace('/', "~1");
            FieldError::new(format!("#/claims/{name}"), reason)
        }
        InvalidClaims::NoPrefix | InvalidClaims::TooLarge(_) => FieldError::new("#/claims", error),
    }
}

impl Type for ClaimsObject {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "Claims".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        let any = MetaSchemaRef::Inline(Box::new(MetaSchema::ANY));
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            additional_properties: Some(Box::new(any)),
            ..MetaSchema::new("object")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromJSON for ClaimsObject {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::Object(members)) => Ok(Self(members)),
            other => Err(ParseError::expected_type(other.unwrap_or_default())),
        }
    }
}

impl ToJSON for ClaimsObject {
    fn to_json(&self) -> Option<Value> {
        Some(Value::Object(self.0.clone()))
    }
}

impl<'de> Deserialize<'de> for ClaimsObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = ClaimsObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<ClaimsObject, A::Error> {
                read_members(access).map(ClaimsObject)
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

fn read_members<'de, A: MapAccess<'de>>(mut access: A) -> Result<Map<String, Value>, A::Error> {
    let mut members = Map::new();
    while let Some(name) = access.next_key::<String>()? {
        let value = access.next_value_seed(AnyValue)?;
        if members.insert(name, value).is_some() {
            return Err(A::Error::custom("a repeated member, expected each name once"));
        }
    }
    Ok(members)
}

/// Reads any value, but for objects in which a name is repeated.
struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON has no number that is not finite.
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        read_members(access).map(Value::Object)
    }
}
