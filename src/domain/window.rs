//! The validity window: the one place where dates of a subscription are compared.

use chrono::{DateTime, Utc};

/// A half-open stretch of time, `[from, until)`: it holds its start and not its end.
///
/// Invariant: `from < until` when there is an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
}

/// The end does not come after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a window ends after it starts")]
pub struct InvalidWindow;

/// Where an instant lies, seen from a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before the window's start.
    Before,
    /// At its start, or later but before its end.
    Within,
    /// At its end or later.
    After,
}

impl Window {
    /// The window from an instant until another, or open-ended.
    ///
    /// # Errors
    ///
    /// [`InvalidWindow`] when it would be empty or reversed.
    pub fn new(from: DateTime<Utc>, until: Option<DateTime<Utc>>) -> Result<Self, InvalidWindow> {
        match until {
            Some(until) if until <= from => Err(InvalidWindow),
            _ => Ok(Self { from, until }),
        }
    }

    /// The first instant of the window.
    #[must_use]
    pub fn from(&self) -> DateTime<Utc> {
        self.from
    }

    /// The first instant after the window; none when it is open-ended.
    #[must_use]
    pub fn until(&self) -> Option<DateTime<Utc>> {
        self.until
    }

    /// Where `now` lies.
    #[must_use]
    pub fn position(&self, now: DateTime<Utc>) -> Position {
        if now < self.from {
            Position::Before
        } else if self.until.is_none_or(|until| now < until) {
            Position::Within
        } else {
            Position::After
        }
    }

    /// Whether the window holds `now`.
    #[must_use]
    pub fn contains(&self, now: DateTime<Utc>) -> bool {
        self.position(now) == Position::Within
    }

    /// The part of the window before `cut`; none when nothing is left.
    #[must_use]
    pub fn before(&self, cut: DateTime<Utc>) -> Option<Self> {
        let until = self.until.map_or(cut, |until| until.min(cut));
        Self::new(self.from, Some(until)).ok()
    }

    /// The part of the window from `cut` on; none when nothing is left.
    #[must_use]
    pub fn from_on(&self, cut: DateTime<Utc>) -> Option<Self> {
        Self::new(self.from.max(cut), self.until).ok()
    }

    /// The window with another end, or none; nothing when that is not later than its own.
    #[must_use]
    pub fn prolonged(&self, until: Option<DateTime<Utc>>) -> Option<Self> {
        let end = self.until?;
        until.is_none_or(|until| end < until).then_some(Self { until, ..*self })
    }

    /// The first instant after `now` that no window of the unbroken run around `now` holds.
    ///
    /// The run is what overlapping and adjoining windows make together. None when it never ends, or when no window
    /// holds `now`; a caller that must tell these apart asks [`Window::position`] first.
    #[must_use]
    pub fn end_of_run(windows: &[Self], now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut windows = windows.to_vec();
        windows.sort_unstable_by_key(|window| window.from);
        let mut end = now;
        // In the order of their starts one that begins later than the run reaches, and all after it, are no part of it.
        for window in windows {
            match window.position(end) {
                Position::Before => break,
                Position::Within => end = window.until?,
                Position::After => {}
            }
        }
        (end > now).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn window((from, until): (i64, Option<i64>)) -> Window {
        Window::new(at(from), until.map(at)).expect("a window")
    }

    #[test]
    fn a_window_holds_its_start_but_not_its_end() {
        let check = |bounds, now, expected| {
            assert_eq!(window(bounds).position(at(now)), expected, "{bounds:?} at {now}");
        };
        check((1, Some(3)), 0, Position::Before);
        check((1, Some(3)), 1, Position::Within);
        check((1, Some(3)), 2, Position::Within);
        check((1, Some(3)), 3, Position::After);
        check((1, None), 0, Position::Before);
        check((1, None), 1, Position::Within);
        check((1, None), i64::from(i32::MAX), Position::Within);
    }

    #[test]
    fn a_window_that_would_hold_nothing_is_refused() {
        for from in 0..4 {
            for until in 0..4 {
                assert_eq!(Window::new(at(from), Some(at(until))).is_ok(), from < until, "[{from}, {until})");
            }
        }
    }

    #[test]
    fn cutting_a_window_leaves_exactly_the_instants_before_the_cut() {
        for from in 0..4 {
            for until in [None, Some(from + 1), Some(from + 3)] {
                for cut in 0..8 {
                    let whole = window((from, until));
                    for now in 0..8 {
                        let expected = now < cut && whole.position(at(now)) == Position::Within;
                        let left = whole.before(at(cut));
                        let held = left.is_some_and(|left| left.position(at(now)) == Position::Within);
                        assert_eq!(held, expected, "[{from}, {until:?}) before {cut} at {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_left_from_a_cut_on_is_exactly_the_instants_from_there() {
        for from in 0..4 {
            for until in [None, Some(from + 1), Some(from + 3)] {
                for (cut, now) in (0..8).flat_map(|cut| (0..8).map(move |now| (cut, now))) {
                    let whole = window((from, until));
                    let held = whole.from_on(at(cut)).is_some_and(|left| left.contains(at(now)));
                    assert_eq!(held, cut <= now && whole.contains(at(now)), "[{from}, {until:?}) from {cut} at {now}");
                }
            }
        }
    }

    #[test]
    fn a_window_is_prolonged_by_a_later_end_alone() {
        let later = |until: Option<i64>, end: Option<i64>| window((1, until)).prolonged(end.map(at));
        assert_eq!(later(Some(3), Some(4)), Some(window((1, Some(4)))));
        assert_eq!(later(Some(3), None), Some(window((1, None))));
        for (until, end) in [(Some(3), Some(3)), (Some(3), Some(2)), (Some(3), Some(0)), (None, Some(9)), (None, None)]
        {
            assert_eq!(later(until, end), None, "{until:?} {end:?}");
        }
    }

    #[test]
    fn the_end_of_a_run_is_the_first_instant_that_no_window_holds() {
        // Every set of up to three windows with bounds below 5 (5 stands for open-ended), at every instant.
        let mut all = vec![None];
        for from in 0..5 {
            for until in from + 1..=5 {
                all.push(Some((from, (until < 5).then_some(until))));
            }
        }
        let all = &all;
        for (a, b, c) in all.iter().flat_map(|a| all.iter().flat_map(move |b| all.iter().map(move |c| (a, b, c)))) {
            let windows: Vec<_> = [a, b, c].into_iter().flatten().copied().map(window).collect();
            let holds = |now| windows.iter().any(|window| window.position(at(now)) == Position::Within);
            for now in 0..7 {
                // Beyond 5 nothing changes, so an instant held at 6 is held for ever.
                let expected = if holds(now) { (now..7).find(|&later| !holds(later)).map(at) } else { None };
                assert_eq!(Window::end_of_run(&windows, at(now)), expected, "{windows:?} at {now}");
            }
        }
    }
}
