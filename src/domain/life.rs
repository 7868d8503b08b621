//! The life of a subscription in time: its window and what was done to it since.

use std::fmt;

use chrono::{DateTime, Utc};

use super::window::{Position, Window};

/// What a subscription is at an instant: derived from its life and `now`, and never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Its window has not begun.
    Scheduled,
    /// It grants its scopes.
    Active,
    /// It was canceled, whatever is left of its window.
    Canceled,
    /// Its window has ended.
    Expired,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Scheduled, Self::Active, Self::Canceled, Self::Expired];

    /// The word for the status in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
        }
    }

    /// The status that a word stands for.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a subscription grants its scopes: its window, and the instant at which it was canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The validity window.
    pub window: Window,
    /// The first instant at which it is canceled.
    pub canceled_at: Option<DateTime<Utc>>,
}

/// A change that makes no sense for a subscription in its present status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// It is canceled already.
    #[error("the subscription is already canceled")]
    AlreadyCanceled,
    /// It has run out, so there is nothing left to cancel.
    #[error("the subscription has expired, so it cannot be canceled")]
    Expired,
    /// It is canceled, so its window and scopes stay as they are.
    #[error("the subscription is canceled, so it cannot be changed")]
    Canceled,
}

impl Life {
    /// The status at `now`. Canceled beats expired, and a canceled one that had not begun is canceled too.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        if self.canceled_at.is_some_and(|canceled_at| canceled_at <= now) {
            return Status::Canceled;
        }
        match self.window.position(now) {
            Position::Before => Status::Scheduled,
            Position::Within => Status::Active,
            Position::After => Status::Expired,
        }
    }

    /// The stretch in which it grants its scopes; none when it was canceled before it began.
    #[must_use]
    pub fn granting(&self) -> Option<Window> {
        match self.canceled_at {
            Some(canceled_at) => self.window.before(canceled_at),
            None => Some(self.window),
        }
    }

    /// Ends it at `now`, whatever is left of its window.
    ///
    /// # Errors
    ///
    /// [`TransitionError`] when it is canceled or expired already.
    pub fn cancel(self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.status(now) {
            Status::Scheduled | Status::Active => Ok(Self { canceled_at: Some(now), ..self }),
            Status::Canceled => Err(TransitionError::AlreadyCanceled),
            Status::Expired => Err(TransitionError::Expired),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn life(from: i64, until: Option<i64>, canceled_at: Option<i64>) -> Life {
        Life { window: Window::new(at(from), until.map(at)).expect("a window"), canceled_at: canceled_at.map(at) }
    }

    #[test]
    fn the_status_changes_on_the_microsecond() {
        let check = |life: Life, now, expected| assert_eq!(life.status(at(now)), expected, "{life:?} at {now}");
        check(life(10, Some(20), None), 9, Status::Scheduled);
        check(life(10, Some(20), None), 10, Status::Active);
        check(life(10, Some(20), None), 19, Status::Active);
        check(life(10, Some(20), None), 20, Status::Expired);
        check(life(10, None, None), 1_000_000, Status::Active);
        check(life(10, Some(20), Some(15)), 14, Status::Active);
        check(life(10, Some(20), Some(15)), 15, Status::Canceled);
        check(life(10, Some(20), Some(15)), 20, Status::Canceled);
        check(life(10, Some(20), Some(5)), 4, Status::Scheduled);
        check(life(10, Some(20), Some(5)), 5, Status::Canceled);
        check(life(10, Some(20), Some(5)), 10, Status::Canceled);
    }

    #[test]
    fn it_grants_exactly_while_it_is_active() {
        for from in 0..4 {
            for until in [None, Some(from + 1), Some(from + 3)] {
                for canceled_at in [None, Some(0), Some(2), Some(4), Some(6)] {
                    let life = life(from, until, canceled_at);
                    for now in (0..9).map(at) {
                        let granted = life.granting().is_some_and(|window| window.position(now) == Position::Within);
                        assert_eq!(granted, life.status(now) == Status::Active, "{life:?} at {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn canceling_ends_it_at_that_instant_and_is_refused_when_nothing_is_left() {
        let check = |life: Life, now, expected| assert_eq!(life.cancel(at(now)), expected, "{life:?} at {now}");
        check(life(10, Some(20), None), 9, Ok(life(10, Some(20), Some(9))));
        check(life(10, Some(20), None), 10, Ok(life(10, Some(20), Some(10))));
        check(life(10, Some(20), None), 19, Ok(life(10, Some(20), Some(19))));
        check(life(10, Some(20), None), 20, Err(TransitionError::Expired));
        check(life(10, Some(20), Some(15)), 15, Err(TransitionError::AlreadyCanceled));
        check(life(10, Some(20), Some(15)), 30, Err(TransitionError::AlreadyCanceled));
        // A cancellation that lies ahead may be brought forward.
        check(life(10, Some(20), Some(15)), 14, Ok(life(10, Some(20), Some(14))));
    }

    #[test]
    fn a_word_names_each_status() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("Active"), None);
    }
}
