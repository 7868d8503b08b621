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
