//! Periods of the calendar, such as a month: what a price list counts in.

use chrono::{DateTime, Utc};
use jiff::{
    SignedDuration, SpanFieldwise,
    civil::{self, datetime},
    fmt::temporal::SpanParser,
};

/// The longest text of a period, in bytes: longer than any that says something.
pub const MAX_PERIOD_BYTES: usize = 64;

const EPOCH: civil::DateTime = datetime(1970, 1, 1, 0, 0, 0, 0);

/// A period of the calendar in UTC: months are months, whatever their length, and a day has 24 hours.
///
/// Invariant: it is longer than nothing, and runs forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(SpanFieldwise);

/// The text is no period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an ISO 8601 duration that is longer than nothing, such as `P1M`")]
pub struct InvalidPeriod;

impl Period {
    /// Parses an ISO 8601 duration.
    ///
    /// # Errors
    ///
    /// [`InvalidPeriod`] when the text is none, or one of no length or a negative one.
    pub fn parse(text: &str) -> Result<Self, InvalidPeriod> {
        // The parser takes a sign and small letters, too, which the standard does not have.
        let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b',');
        if text.len() > MAX_PERIOD_BYTES || !text.bytes().all(is_plain) {
            return Err(InvalidPeriod);
        }
        let span = SpanParser::new().parse_span(text).map_err(|_| InvalidPeriod)?;
        if span.is_positive() { Ok(Self(span.fieldwise())) } else { Err(InvalidPeriod) }
    }

    /// The instant that comes the period after another; none when it lies beyond the year 9999.
    ///
    /// A day that a month does not have is its last one, and parts of a microsecond are dropped.
    #[must_use]
    pub fn after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let start = EPOCH.checked_add(SignedDuration::from_micros(instant.timestamp_micros())).ok()?;
        let end = start.checked_add(self.0.0).ok()?;
        let microseconds = end.duration_since(EPOCH).as_nanos().div_euclid(1_000);
        DateTime::from_timestamp_micros(i64::try_from(microseconds).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike as _, Days, Months, TimeDelta};

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a timestamp")
    }

    fn period(text: &str) -> Period {
        Period::parse(text).expect(text)
    }

    #[test]
    fn a_duration_of_iso_8601_is_a_period_when_it_runs_forward() {
        for text in ["P1M", "P1Y", "P2W", "P30D", "P1Y2M10DT2H30M", "PT36H", "PT0.5S", "PT1,5H", "PT0.000001S", "P0Y1D"]
        {
            assert!(Period::parse(text).is_ok(), "{text}");
        }
        let long = format!("P{}1D", "0".repeat(MAX_PERIOD_BYTES - 2));
        for text in [
            "",
            "P",
            "PT",
            "P1",
            "1M",
            "P1MT",
            "P0D",
            "PT0S",
            "-P1M",
            "+P1M",
            "P-1M",
            "p1m",
            "P1m",
            " P1M",
            "P1M ",
            "P1.5M",
            "P1H",
            "PT1D",
            "P1M1Y",
            "P99999999Y",
            "1 month",
            "P1M\u{0}",
            "P１M",
            "month",
            &long,
        ] {
            assert_eq!(Period::parse(text), Err(InvalidPeriod), "{text:?}");
        }
    }

    #[test]
    fn a_month_ends_on_the_same_day_or_on_the_last_one_that_the_month_has() {
        let check = |start, text, end| assert_eq!(period(text).after(at(start)), Some(at(end)), "{start} {text}");
        check("2026-01-31T12:00:00.000001Z", "P1M", "2026-02-28T12:00:00.000001Z");
        check("2028-01-31T00:00:00Z", "P1M", "2028-02-29T00:00:00Z");
        check("2028-02-29T00:00:00Z", "P1Y", "2029-02-28T00:00:00Z");
        check("2028-02-29T00:00:00Z", "P4Y", "2032-02-29T00:00:00Z");
        check("2026-12-31T23:59:59.999999Z", "P2M", "2027-02-28T23:59:59.999999Z");
        // The largest first: the month is counted before the day.
        check("2026-01-31T00:00:00Z", "P1M1D", "2026-03-01T00:00:00Z");
        // No clock is moved in UTC, so a day is 24 hours.
        check("2026-03-28T23:00:00Z", "P1D", "2026-03-29T23:00:00Z");
        check("2026-03-28T23:00:00Z", "PT24H", "2026-03-29T23:00:00Z");
        check("2026-01-01T00:00:00Z", "P1W", "2026-01-08T00:00:00Z");
        check("1969-12-31T23:59:59.999999Z", "PT0.0000019S", "1970-01-01T00:00:00Z");
        check("1969-12-31T23:59:58Z", "PT0.0000019S", "1969-12-31T23:59:58.000001Z");
        check("0001-01-01T00:00:00Z", "P1Y", "0002-01-01T00:00:00Z");
        check("9998-12-31T23:59:59.999999Z", "P1Y", "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn what_lies_beyond_the_year_9999_is_no_instant() {
        for (start, text) in [
            ("9999-12-31T23:59:59.999999Z", "PT0.000001S"),
            ("9999-12-01T00:00:00Z", "P1M"),
            ("2026-01-01T00:00:00Z", "P8000Y"),
            ("2026-01-01T00:00:00Z", "P19998Y"),
            ("2026-01-01T00:00:00Z", "PT175307616H"),
        ] {
            assert_eq!(period(text).after(at(start)), None, "{start} {text}");
        }
    }

    #[test]
    fn months_and_days_are_counted_as_chrono_counts_them() {
        let start = at("2023-12-25T06:07:08.091011Z");
        for day in 0..1_500_i64 {
            let start = start + TimeDelta::days(day);
            for months in [1_u32, 2, 11, 12, 13, 48] {
                let expected = start.checked_add_months(Months::new(months));
                assert_eq!(period(&format!("P{months}M")).after(start), expected, "{start} and {months} months");
                let expected = expected.and_then(|end| end.checked_add_days(Days::new(u64::from(start.day()))));
                assert_eq!(period(&format!("P{months}M{}D", start.day())).after(start), expected, "{start}");
            }
        }
    }
}
