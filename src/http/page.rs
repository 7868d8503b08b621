//! Pages of a list: `limit` and `cursor`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use poem_openapi::registry::MetaSchema;
use sha2::{Digest as _, Sha256};

use super::{
    problem::{FieldError, Problem},
    wire::text,
};

/// The items of a page when no `limit` is given.
const DEFAULT_LIMIT: u16 = 50;
/// The most items of a page: what an answer and a query can bear.
const MAX_LIMIT: u16 = 200;
/// Bytes of the digest that binds a cursor to what it was given for. It guards against mistakes, not against forgery:
/// a forged cursor reaches nothing that a filter could not.
const DIGEST_BYTES: usize = 12;

text! {
    /// How many items a page holds at most.
    Limit, "integer", |schema| {
        schema.minimum = Some(1.0);
        schema.maximum = Some(f64::from(MAX_LIMIT));
        schema.default = Some(DEFAULT_LIMIT.into());
    }
}

text! {
    /// Where a page begins: `nextCursor` of the page before.
    Cursor, "string", |schema| {
        schema.min_length = Some(1);
    }
}

/// Which page is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// How many items it holds at most.
    pub limit: u16,
    /// Where it begins; none for the first page.
    pub position: Option<Position>,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The present of the first page, which all pages share.
    pub now: DateTime<Utc>,
    /// The key of the last item before the page.
    pub after: String,
}

impl Page {
    /// The page that the parameters ask for. `filters` is the list that they belong to, filters and all: a cursor of
    /// another list is refused.
    ///
    /// # Errors
    ///
    /// 400, naming the parameter that is wrong.
    pub fn parse(limit: Option<&Limit>, cursor: Option<&Cursor>, filters: &str) -> Result<Self, Problem> {
        let limit = limit.map_or(Some(DEFAULT_LIMIT), |limit| {
            let is_decimal = limit.0.bytes().all(|byte| byte.is_ascii_digit());
            limit.0.parse().ok().filter(|limit| is_decimal && (1..=MAX_LIMIT).contains(limit))
        });
        let limit = limit.ok_or_else(|| invalid("?limit", &format!("expected a number from 1 to {MAX_LIMIT}")))?;
        let position = cursor.map(|cursor| {
            Position::decode(&cursor.0, filters)
                .ok_or_else(|| invalid("?cursor", "expected the `nextCursor` of a page of this very list"))
        });
        Ok(Self { limit, position: position.transpose()? })
    }

    /// How many items to ask for: one more than the page holds tells whether another page follows.
    #[must_use]
    pub fn probe(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// Cuts the items to the page, and gives the cursor of the next one, if there is one.
    pub fn cut<T>(
        &self,
        items: &mut Vec<T>,
        now: DateTime<Utc>,
        filters: &str,
        key: impl Fn(&T) -> String,
    ) -> Option<Cursor> {
        if items.len() <= usize::from(self.limit) {
            return None;
        }
        items.truncate(usize::from(self.limit));
        let after = key(items.last()?);
        Some(Cursor(Position { now, after }.encode(filters)))
    }
}

fn invalid(parameter: &str, detail: &str) -> Problem {
    Problem::invalid_request(vec![FieldError::new(parameter, detail)])
}

impl Position {
    /// The text of a cursor of the list that `filters` names.
    pub fn encode(&self, filters: &str) -> String {
        let mut bytes = self.now.timestamp_micros().to_be_bytes().to_vec();
        bytes.extend_from_slice(self.after.as_bytes());
        bytes.extend_from_slice(&digest(&bytes, filters));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position that a cursor was made of; none when it is no cursor of that list.
    pub fn decode(text: &str, filters: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (content, found) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if found != digest(content, filters) {
            return None;
        }
        let (now, after) = content.split_first_chunk()?;
        let now = DateTime::from_timestamp_micros(i64::from_be_bytes(*now))?;
        Some(Self { now, after: std::str::from_utf8(after).ok()?.to_owned() })
    }
}

fn digest(content: &[u8], filters: &str) -> [u8; DIGEST_BYTES] {
    let whole = Sha256::new().chain_update(content).chain_update([0]).chain_update(filters).finalize();
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&whole[..DIGEST_BYTES]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position { now: DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("an instant"), after: "x".into() }
    }

    #[test]
    fn a_cursor_reads_back_for_its_own_filters_only() {
        let text = position().encode("a");
        assert_eq!(Position::decode(&text, "a"), Some(position()));
        assert_eq!(Position::decode(&text, "b"), None);
    }

    #[test]
    fn a_cursor_that_was_changed_anywhere_is_refused() {
        let text = position().encode("a");
        for index in 0..text.len() {
            for letter in ['A', 'B', '_'] {
                let mut changed = text.clone();
                changed.replace_range(index..=index, &letter.to_string());
                if changed != text {
                    assert_eq!(Position::decode(&changed, "a"), None, "{changed}");
                }
            }
            assert_eq!(Position::decode(&text[..index], "a"), None);
        }
        assert_eq!(Position::decode(&"A".repeat(10_000), "a"), None);
    }

    #[test]
    fn a_limit_is_a_plain_number_from_1_to_200() {
        let check = |text: &str, expected: Option<u16>| {
            let page = Page::parse(Some(&Limit(text.to_owned())), None, "");
            assert_eq!(page.ok().map(|page| page.limit), expected, "{text:?}");
        };
        check("1", Some(1));
        check("200", Some(200));
        for wrong in ["0", "201", "", "-1", "+1", "1.0", " 1", "one", "99999999999999999999"] {
            check(wrong, None);
        }
        assert_eq!(Page::parse(None, None, "").expect("a page").limit, 50);
    }
}
