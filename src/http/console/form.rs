//! Fields of queries and forms (`application/x-www-form-urlencoded`), in and out.

use chrono::{DateTime, SecondsFormat, Timelike as _, Utc};
use percent_encoding::{percent_decode_str, utf8_percent_encode};

use crate::{
    domain::time,
    http::{
        UNRESERVED,
        problem::{Problem, undescribed},
    },
};

/// The fields of a query or a form, in their order. One that came empty is not there: a form sends all it has.
#[derive(Debug, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads fields.
    ///
    /// # Errors
    ///
    /// 400 when one is not UTF-8.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let decode = |part: &str| {
            let part = part.replace('+', " ");
            let decoded = percent_decode_str(&part).decode_utf8().map(std::borrow::Cow::into_owned);
            decoded.map_err(|_| undescribed("?", "a field is not UTF-8"))
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        let pairs = pairs.collect::<Result<Vec<_>, Problem>>()?;
        Ok(Self(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect()))
    }

    /// The first field of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// All fields of a name.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The instant that a field names, by the rules of the API or as browsers write a date and a time, in UTC.
    ///
    /// # Errors
    ///
    /// 400 when it names none.
    pub fn instant(&self, name: &str) -> Result<Option<DateTime<Utc>>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let instant = time::parse(&timestamp(text));
        instant.map(Some).ok_or_else(|| undescribed(&format!("?{name}"), "expected a date and a time"))
    }
}

/// A date and a time as browsers write them, as a timestamp in UTC; any other text as it is.
pub fn timestamp(text: &str) -> String {
    let is_shape = |shape: &str| {
        let fits = |(letter, sign): (u8, u8)| if sign == b'0' { letter.is_ascii_digit() } else { letter == sign };
        text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
    };
    if is_shape("0000-00-00") {
        format!("{text}T00:00:00Z")
    } else if is_shape("0000-00-00T00:00") {
        format!("{text}:00Z")
    } else if text.get(..19).is_some_and(|_| is_shape(&"0000-00-00T00:00:00.000000"[..text.len().min(26)])) {
        format!("{text}Z")
    } else {
        text.to_owned()
    }
}

/// An instant as the field of a date and a time holds it, in UTC.
pub fn field_value(instant: DateTime<Utc>) -> String {
    let digits = if instant.nanosecond() == 0 { SecondsFormat::Secs } else { SecondsFormat::Millis };
    instant.to_rfc3339_opts(digits, true).trim_end_matches('Z').to_owned()
}

/// A path with a query.
#[derive(Debug, Clone)]
pub struct Link(String);

impl Link {
    /// A link to a path.
    pub fn to(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// The same link with a field more. Every byte but the plainest is written in hexadecimal.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let separator = if self.0.contains('?') { '&' } else { '?' };
        self.0.push(separator);
        self.0.push_str(name);
        self.0.push('=');
        self.0.extend(utf8_percent_encode(value, &UNRESERVED));
        self
    }

    /// The same link, with a field more when there is a value.
    #[must_use]
    pub fn with_any(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The same link, to a place in the page.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.0.push('#');
        self.0.push_str(place);
        self
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_says_is_read_back_byte_for_byte() {
        let hostile = "a&b=c+d %41\"'<script>\u{202e}\r\n\t#?/\u{e9}🎫";
        let link = Link::to("/console").with("id", hostile).with_any("none", None).with("b", "2").at("c");
        let query = link.as_str().split_once('?').expect("a query").1.split_once('#').expect("a place").0;
        let fields = Fields::parse(query).expect("fields");
        assert_eq!((fields.get("id"), fields.get("b"), fields.get("none")), (Some(hostile), Some("2"), None));
        assert!(link.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{link:?}");
        assert!(Fields::parse("id=%ff").is_err());
        assert_eq!(Fields::parse("a=&b=x+y&b=z&c").expect("fields").all("b").collect::<Vec<_>>(), ["x y", "z"]);
    }

    #[test]
    fn a_date_and_a_time_as_browsers_write_them_are_in_utc() {
        let check = |text: &str, expected: Option<&str>| {
            let fields = Fields(vec![("at".to_owned(), text.to_owned())]);
            let expected = expected.map(|text| text.parse().expect("a timestamp"));
            assert_eq!(fields.instant("at").ok().flatten(), expected, "{text}");
        };
        check("2026-01-31", Some("2026-01-31T00:00:00Z"));
        check("2026-01-31T12:30", Some("2026-01-31T12:30:00Z"));
        check("2026-01-31T12:30:01", Some("2026-01-31T12:30:01Z"));
        check("2026-01-31T12:30:01.5", Some("2026-01-31T12:30:01.5Z"));
        check("2026-01-31T12:30:01.000001", Some("2026-01-31T12:30:01.000001Z"));
        check("2026-01-31T12:30:00+01:00", Some("2026-01-31T11:30:00Z"));
        for text in ["2026-01-32", "2026-01-31T", "2026-01-31 12:30", "31.1.2026", "2026-01-31T12", "é026-01-31T12:30"]
        {
            check(text, None);
        }
        let instant: DateTime<Utc> = "2026-01-31T12:30:01Z".parse().expect("a timestamp");
        assert_eq!(field_value(instant), "2026-01-31T12:30:01");
    }
}
