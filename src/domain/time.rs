//! Instants as Tollgate keeps them: UTC, whole microseconds, years 0001 to 9999.

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};

/// The instant cut to the microsecond, the finest step that both databases keep.
///
/// Finer digits are dropped and never rounded up: rounding could move an end past the instant that was asked for.
#[must_use]
pub fn truncated(instant: DateTime<Utc>) -> DateTime<Utc> {
    let nanoseconds = instant.nanosecond() / 1_000 * 1_000;
    // A leap second is chrono's second 59 with 1_000_000_000 nanoseconds or more; its digits are cut alike.
    instant.with_nanosecond(nanoseconds).unwrap_or(instant)
}

/// Whether the instant's year is one that RFC 3339 can write: 0001 to 9999.
#[must_use]
pub fn is_representable(instant: DateTime<Utc>) -> bool {
    (1..=9999).contains(&instant.year())
}

/// The instant of an RFC 3339 timestamp with `T` and an offset, in the years that RFC 3339 can write, cut to the
/// microsecond; none when the text is no such timestamp.
#[must_use]
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    // chrono takes a blank, too, where RFC 3339 section 5.6 has the letter, and a typographic minus for the sign.
    if !text.is_ascii() || !matches!(text.as_bytes().get(10), Some(b'T' | b't')) {
        return None;
    }
    let instant = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    // A leap second is kept by neither database; the last instant before it is the nearest one they keep.
    let instant = match instant.nanosecond().checked_sub(1_000_000_000) {
        Some(_) => instant.with_nanosecond(999_999_999).unwrap_or(instant),
        None => instant,
    };
    is_representable(instant).then(|| truncated(instant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn finer_digits_are_dropped_and_never_rounded_up() {
        assert_eq!(truncated(at("2026-01-01T00:00:00.123456999Z")), at("2026-01-01T00:00:00.123456Z"));
        assert_eq!(truncated(at("2026-01-01T00:00:00.000000999Z")), at("2026-01-01T00:00:00Z"));
        assert_eq!(truncated(at("1969-12-31T23:59:59.999999999Z")), at("1969-12-31T23:59:59.999999Z"));
    }

    #[test]
    fn only_years_of_four_digits_from_0001_are_representable() {
        assert!(is_representable(at("0001-01-01T00:00:00Z")));
        assert!(is_representable(at("9999-12-31T23:59:59.999999Z")));
        assert!(!is_representable(at("0000-12-31T23:59:59.999999Z")));
        assert!(!is_representable(at("+10000-01-01T00:00:00Z")));
    }
}
