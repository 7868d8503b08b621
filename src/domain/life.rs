//! The life of a subscription in time: its window with a grace after it, and what was done to it since.

use std::fmt;

use chrono::{DateTime, Utc};

use super::{
    period::Period,
    window::{InvalidWindow, Position, Window},
};

/// What a subscription is at an instant: derived from its life and `now`, and never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Its window has not begun.
    Scheduled,
    /// It grants its scopes.
    Active,
    /// It would grant its scopes, but for a pause.
    Paused,
    /// Its window has ended, and it grants its scopes for a while all the same.
    Grace,
    /// It was canceled, whatever is left of its window.
    Canceled,
    /// Its window has ended, and so has the grace after it.
    Expired,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Scheduled, Self::Active, Self::Paused, Self::Grace, Self::Canceled, Self::Expired];

    /// The word for the status in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Grace => "grace",
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

/// How long a subscription grants its scopes by itself: its window, and a grace after it.
///
/// Invariant: a grace begins where the window ends, and ends later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    window: Window,
    grace_until: Option<DateTime<Utc>>,
}

/// The grace does not end after the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a grace ends after the window, which has to have an end")]
pub struct InvalidGrace;

impl Term {
    /// The term of a window and the end of a grace after it, if there is one.
    ///
    /// # Errors
    ///
    /// [`InvalidGrace`] when the window is open-ended, or the grace would be empty or reversed.
    pub fn new(window: Window, grace_until: Option<DateTime<Utc>>) -> Result<Self, InvalidGrace> {
        if grace_until.is_some() && window.prolonged(grace_until).is_none() {
            return Err(InvalidGrace);
        }
        Ok(Self { window, grace_until })
    }

    /// The validity window.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// The first instant after the grace; none when there is none.
    #[must_use]
    pub fn grace_until(&self) -> Option<DateTime<Utc>> {
        self.grace_until
    }

    /// The window and the grace in one.
    fn whole(&self) -> Window {
        match self.grace_until {
            Some(grace_until) => self.window.prolonged(Some(grace_until)).unwrap_or(self.window),
            None => self.window,
        }
    }
}

impl From<Window> for Term {
    fn from(window: Window) -> Self {
        Self { window, grace_until: None }
    }
}

/// When a subscription grants its scopes: its term, and what takes away from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its window, with the grace after it.
    pub term: Term,
    /// The stretch in which it is paused; open-ended until somebody resumes it.
    pub pause: Option<Window>,
    /// The first instant at which it is canceled.
    pub canceled_at: Option<DateTime<Utc>>,
}

impl From<Term> for Life {
    fn from(term: Term) -> Self {
        Self { term, pause: None, canceled_at: None }
    }
}

impl From<Window> for Life {
    fn from(window: Window) -> Self {
        Term::from(window).into()
    }
}

/// A change of a life by name; other changes are patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// To end it before its time.
    Cancel(Cancellation),
    /// To take a cancellation back.
    Uncancel,
    /// To pause it.
    Pause {
        /// From when on; the present when none is given.
        from: Option<DateTime<Utc>>,
        /// Until when; until somebody resumes it when none is given.
        until: Option<DateTime<Utc>>,
    },
    /// To end a pause, or to take back one that lies ahead.
    Resume,
    /// To give its window a later end.
    Renew(Renewal),
}

/// When a cancellation takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancellation {
    /// Now.
    Now,
    /// At an instant.
    At(DateTime<Utc>),
    /// At the end of the window, so that there is no grace.
    AtEnd,
}

/// What a renewal makes of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The new end of the window.
    pub end: RenewedEnd,
    /// The new end of the grace; when it is not named, what there is stays as long as it comes after the new end.
    pub grace_until: Option<Option<DateTime<Utc>>>,
}

/// The end that a renewal gives to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewedEnd {
    /// An instant, or none at all.
    At(Option<DateTime<Utc>>),
    /// A period after the end that there was.
    AfterEnd(Period),
    /// A period after the present.
    AfterNow(Period),
}

impl Transition {
    /// The word for it in the API and in the changes.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Cancel(_) => "cancel",
            Self::Uncancel => "uncancel",
            Self::Pause { .. } => "pause",
            Self::Resume => "resume",
            Self::Renew(_) => "renew",
        }
    }
}

/// A change of a life that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// It is canceled already.
    #[error("the subscription is already canceled")]
    AlreadyCanceled,
    /// It has run out, so there is nothing left to change.
    #[error("the subscription has expired, so there is nothing left of it")]
    Expired,
    /// It is canceled, so its window and scopes stay as they are.
    #[error("the subscription is canceled, so it cannot be changed")]
    Canceled,
    /// There is no cancellation to take back.
    #[error("the subscription is not canceled")]
    NotCanceled,
    /// It would be canceled before the present.
    #[error("a subscription is not canceled in the past")]
    CanceledInPast,
    /// Its window has ended, so it cannot be canceled at its end any more.
    #[error("the window has ended already")]
    WindowEnded,
    /// Its window has no end to count from.
    #[error("the window is open-ended")]
    OpenEnded,
    /// It is paused already, or will be.
    #[error("the subscription is already paused, or will be")]
    AlreadyPaused,
    /// It is not paused, and will not be.
    #[error("the subscription is not paused")]
    NotPaused,
    /// It would be paused before the present.
    #[error("a subscription is not paused in the past")]
    PausedInPast,
    /// The pause would hold nothing.
    #[error("a pause ends after it starts")]
    InvalidPause,
    /// The new end is not later than the old one.
    #[error("a renewal makes a window longer")]
    NotLonger,
    /// The new end has a year that cannot be written.
    #[error("the new end lies beyond the year 9999")]
    TooLong,
    /// The grace does not end after the new window.
    #[error(transparent)]
    Grace(#[from] InvalidGrace),
}

impl Life {
    /// The status at `now`. Canceled beats expired, and a canceled one that had not begun is canceled too; a pause
    /// counts in the window and in the grace alone.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        if self.canceled_at.is_some_and(|canceled_at| canceled_at <= now) {
            return Status::Canceled;
        }
        let is_paused = self.pause.is_some_and(|pause| pause.contains(now));
        match (self.term.window.position(now), self.term.whole().position(now)) {
            (Position::Before, _) => Status::Scheduled,
            (_, Position::After) => Status::Expired,
            (Position::Within | Position::After, _) if is_paused => Status::Paused,
            (Position::Within, _) => Status::Active,
            (Position::After, _) => Status::Grace,
        }
    }

    /// The stretches in which it grants its scopes, in their order: none when it was canceled before it began, two when
    /// a pause lies between them. They hold exactly the instants at which it is active or in grace.
    pub fn granting(&self) -> impl Iterator<Item = Window> + use<> {
        let whole = self.term.whole();
        let whole = match self.canceled_at {
            Some(canceled_at) => whole.before(canceled_at),
            None => Some(whole),
        };
        let parts = match (whole, self.pause) {
            (Some(whole), Some(pause)) => {
                [whole.before(pause.from()), pause.until().and_then(|until| whole.from_on(until))]
            }
            (whole, _) => [whole, None],
        };
        parts.into_iter().flatten()
    }

    /// The instants at which its status may change; between two that follow each other it never does.
    pub fn boundaries(&self) -> impl Iterator<Item = DateTime<Utc>> + use<> {
        let Self { term, pause, canceled_at } = *self;
        let (pause_from, pause_until) = (pause.map(|pause| pause.from()), pause.and_then(|pause| pause.until()));
        let ends = [term.window.until(), term.grace_until, pause_from, pause_until, canceled_at];
        std::iter::once(term.window.from()).chain(ends.into_iter().flatten())
    }

    /// The life after a transition at `now`.
    ///
    /// # Errors
    ///
    /// [`TransitionError`] when it makes no sense for the life as it is.
    pub fn after(self, transition: Transition, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match transition {
            Transition::Cancel(cancellation) => self.cancel(cancellation, now),
            Transition::Uncancel => self.uncancel(now),
            Transition::Pause { from, until } => self.pause(from.unwrap_or(now), until, now),
            Transition::Resume => self.resume(now),
            Transition::Renew(renewal) => self.renew(renewal, now),
        }
    }

    /// Ends it, whatever is left of it. A cancellation that lies ahead is replaced.
    fn cancel(self, cancellation: Cancellation, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.status(now) {
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace => {}
            Status::Canceled => return Err(TransitionError::AlreadyCanceled),
            Status::Expired => return Err(TransitionError::Expired),
        }
        let canceled_at = match cancellation {
            Cancellation::Now => now,
            Cancellation::At(at) if at < now => return Err(TransitionError::CanceledInPast),
            // At that instant there would be nothing left to cancel.
            Cancellation::At(at) if self.term.whole().until().is_some_and(|end| end < at) => {
                return Err(TransitionError::Expired);
            }
            Cancellation::At(at) => at,
            Cancellation::AtEnd => match self.term.window.until() {
                None => return Err(TransitionError::OpenEnded),
                Some(end) if end < now => return Err(TransitionError::WindowEnded),
                Some(end) => end,
            },
        };
        Ok(Self { canceled_at: Some(canceled_at), ..self })
    }

    /// Takes a cancellation back, as if there had been none; whether it took effect already does not matter.
    fn uncancel(self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        if self.canceled_at.is_none() {
            return Err(TransitionError::NotCanceled);
        }
        let life = Self { canceled_at: None, ..self };
        match life.status(now) {
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace => Ok(life),
            // Without a cancellation it is never canceled.
            Status::Canceled | Status::Expired => Err(TransitionError::Expired),
        }
    }

    fn pause(
        self,
        from: DateTime<Utc>,
        until: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<Self, TransitionError> {
        match self.status(now) {
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace => {}
            Status::Canceled => return Err(TransitionError::Canceled),
            Status::Expired => return Err(TransitionError::Expired),
        }
        if self.pause.is_some_and(|pause| pause.position(now) != Position::After) {
            return Err(TransitionError::AlreadyPaused);
        }
        if from < now {
            return Err(TransitionError::PausedInPast);
        }
        let pause = Window::new(from, until).map_err(|InvalidWindow| TransitionError::InvalidPause)?;
        Ok(Self { pause: Some(pause), ..self })
    }

    fn resume(self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.status(now) {
            // A pause may outlast an expired one, and would still hold when that is renewed.
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace | Status::Expired => {}
            Status::Canceled => return Err(TransitionError::Canceled),
        }
        match self.pause {
            // What is left of it is what has passed: nothing when it lies ahead, or begins at this instant.
            Some(pause) if pause.position(now) != Position::After => Ok(Self { pause: pause.before(now), ..self }),
            _ => Err(TransitionError::NotPaused),
        }
    }

    /// Gives its window a later end. The start stays, so a gap since the old end counts as granted when it is looked
    /// back upon.
    fn renew(self, renewal: Renewal, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        match self.status(now) {
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace | Status::Expired => {}
            Status::Canceled => return Err(TransitionError::Canceled),
        }
        let Renewal { end, grace_until } = renewal;
        let old = self.term.window.until();
        let new = match end {
            RenewedEnd::At(until) => until,
            RenewedEnd::AfterEnd(period) => {
                Some(period.after(old.ok_or(TransitionError::OpenEnded)?).ok_or(TransitionError::TooLong)?)
            }
            RenewedEnd::AfterNow(period) => Some(period.after(now).ok_or(TransitionError::TooLong)?),
        };
        let window = self.term.window.prolonged(new).ok_or(TransitionError::NotLonger)?;
        // A cancellation that lies ahead leaves nothing of what comes after it: nobody shall pay for that.
        if self.canceled_at.is_some_and(|canceled_at| new.is_none_or(|end| canceled_at <= end)) {
            return Err(TransitionError::Canceled);
        }
        let term = match grace_until {
            Some(grace_until) => Term::new(window, grace_until)?,
            None => Term::new(window, self.term.grace_until).unwrap_or_else(|InvalidGrace| window.into()),
        };
        Ok(Self { term, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn window(from: i64, until: Option<i64>) -> Window {
        Window::new(at(from), until.map(at)).expect("a window")
    }

    fn life(from: i64, until: Option<i64>, canceled_at: Option<i64>) -> Life {
        Life { canceled_at: canceled_at.map(at), ..window(from, until).into() }
    }

    /// A life of \[10, 20), with a grace until 30.
    fn graced() -> Life {
        Term::new(window(10, Some(20)), Some(at(30))).expect("a term").into()
    }

    fn paused(life: Life, from: i64, until: Option<i64>) -> Life {
        Life { pause: Some(window(from, until)), ..life }
    }

    fn canceled(life: Life, canceled_at: i64) -> Life {
        Life { canceled_at: Some(at(canceled_at)), ..life }
    }

    /// Every life whose instants lie below 5.
    fn all() -> Vec<Life> {
        let ends = |from: i64| (from..5).map(Some).chain([None]);
        let mut lives = Vec::new();
        for (from, until) in (0..4).flat_map(|from| ends(from + 1).map(move |until| (from, until))) {
            let graces = until.map_or(5..5, |until| until + 1..5).map(Some).chain([None]);
            for term in graces.map(|grace| Term::new(window(from, until), grace.map(at)).expect("a term")) {
                let pauses = (0..5).flat_map(|from| ends(from + 1).map(move |until| Some(window(from, until))));
                for pause in pauses.chain([None]) {
                    lives.extend(ends(0).map(|canceled_at| Life { term, pause, canceled_at: canceled_at.map(at) }));
                }
            }
        }
        lives
    }

    /// The status in the words of the rule: the first that applies.
    fn expected(life: &Life, now: i64) -> Status {
        let number = |instant: Option<DateTime<Utc>>| instant.map(|instant| instant.timestamp_micros());
        let (from, until) = (life.term.window.from().timestamp_micros(), number(life.term.window.until()));
        let is_in = |from: i64, until: Option<i64>| (from..until.unwrap_or(i64::MAX)).contains(&now);
        let in_window = is_in(from, until);
        let in_grace = until.zip(number(life.term.grace_until)).is_some_and(|(from, until)| is_in(from, Some(until)));
        let in_pause = life.pause.is_some_and(|pause| is_in(pause.from().timestamp_micros(), number(pause.until())));
        match () {
            () if number(life.canceled_at).is_some_and(|canceled_at| canceled_at <= now) => Status::Canceled,
            () if now < from => Status::Scheduled,
            () if (in_window || in_grace) && in_pause => Status::Paused,
            () if in_window => Status::Active,
            () if in_grace => Status::Grace,
            () => Status::Expired,
        }
    }

    #[test]
    fn the_status_is_the_first_that_applies_and_it_grants_exactly_while_that_is_active_or_grace() {
        let (mut seen, lives) = ([0; 6], all());
        assert!(lives.len() > 2_000, "{}", lives.len());
        for life in lives {
            assert!(life.granting().count() <= 2, "{life:?}");
            for now in 0..7 {
                let status = life.status(at(now));
                assert_eq!(status, expected(&life, now), "{life:?} at {now}");
                let granted = life.granting().any(|window| window.contains(at(now)));
                assert_eq!(granted, matches!(status, Status::Active | Status::Grace), "{life:?} at {now}");
                seen[status as usize] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count > 300), "every status occurs: {seen:?}");
    }

    #[test]
    fn the_status_changes_at_boundaries_alone() {
        for life in all() {
            let boundaries: Vec<_> = life.boundaries().collect();
            for now in 0..6 {
                let changes = life.status(at(now - 1)) != life.status(at(now));
                assert!(!changes || boundaries.contains(&at(now)), "{life:?} at {now}: {boundaries:?}");
            }
        }
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
        check(graced(), 19, Status::Active);
        check(graced(), 20, Status::Grace);
        check(graced(), 29, Status::Grace);
        check(graced(), 30, Status::Expired);
        let late = paused(graced(), 15, Some(25));
        for (now, status) in [(14, Status::Active), (15, Status::Paused), (24, Status::Paused), (25, Status::Grace)] {
            check(late, now, status);
        }
        check(canceled(late, 18), 17, Status::Paused);
        check(canceled(late, 18), 18, Status::Canceled);
        // Neither before the window nor after the grace is there anything to pause.
        let ever = paused(graced(), 0, None);
        for (now, status) in [(9, Status::Scheduled), (10, Status::Paused), (29, Status::Paused), (30, Status::Expired)]
        {
            check(ever, now, status);
        }
    }

    #[test]
    fn a_grace_follows_a_window_that_ends() {
        for until in 1..4 {
            for grace in 0..6 {
                let term = Term::new(window(0, Some(until)), Some(at(grace)));
                assert_eq!(term.is_ok(), until < grace, "{until} {grace}");
            }
        }
        assert_eq!(Term::new(window(0, None), Some(at(9))), Err(InvalidGrace));
        assert_eq!(Term::new(window(0, None), None), Ok(window(0, None).into()));
    }

    fn check(life: Life, transition: Transition, now: i64, expected: Result<Life, TransitionError>) {
        assert_eq!(life.after(transition, at(now)), expected, "{life:?} {transition:?} at {now}");
    }

    #[test]
    fn canceling_ends_it_at_that_instant_and_is_refused_when_nothing_is_left() {
        let check = |life, now, expected| check(life, Transition::Cancel(Cancellation::Now), now, expected);
        for now in [9, 10, 19] {
            check(life(10, Some(20), None), now, Ok(life(10, Some(20), Some(now))));
        }
        check(life(10, Some(20), None), 20, Err(TransitionError::Expired));
        check(life(10, Some(20), Some(15)), 15, Err(TransitionError::AlreadyCanceled));
        check(life(10, Some(20), Some(15)), 30, Err(TransitionError::AlreadyCanceled));
        // A cancellation that lies ahead may be brought forward.
        check(life(10, Some(20), Some(15)), 14, Ok(life(10, Some(20), Some(14))));
        check(graced(), 29, Ok(canceled(graced(), 29)));
        check(graced(), 30, Err(TransitionError::Expired));
        check(paused(graced(), 12, None), 15, Ok(canceled(paused(graced(), 12, None), 15)));
    }

    #[test]
    fn a_cancellation_may_lie_ahead_up_to_the_end_and_not_in_the_past() {
        let cancel = |instant| Transition::Cancel(Cancellation::At(at(instant)));
        for instant in [15, 16, 20, 30] {
            check(graced(), cancel(instant), 15, Ok(canceled(graced(), instant)));
        }
        check(graced(), cancel(14), 15, Err(TransitionError::CanceledInPast));
        check(graced(), cancel(31), 15, Err(TransitionError::Expired));
        check(life(10, Some(20), None), cancel(20), 15, Ok(life(10, Some(20), Some(20))));
        check(life(10, Some(20), None), cancel(21), 15, Err(TransitionError::Expired));
        check(life(10, None, None), cancel(1_000), 15, Ok(life(10, None, Some(1_000))));
        check(canceled(graced(), 18), cancel(25), 17, Ok(canceled(graced(), 25)));
        check(canceled(graced(), 18), cancel(25), 18, Err(TransitionError::AlreadyCanceled));
        check(graced(), cancel(40), 30, Err(TransitionError::Expired));

        let at_end = Transition::Cancel(Cancellation::AtEnd);
        for now in [5, 10, 20] {
            check(graced(), at_end, now, Ok(canceled(graced(), 20)));
        }
        check(graced(), at_end, 21, Err(TransitionError::WindowEnded));
        check(graced(), at_end, 30, Err(TransitionError::Expired));
        check(life(10, None, None), at_end, 15, Err(TransitionError::OpenEnded));
        check(canceled(graced(), 15), at_end, 15, Err(TransitionError::AlreadyCanceled));
    }

    #[test]
    fn a_cancellation_is_taken_back_while_something_else_would_be_left() {
        for now in [0, 14, 15, 16, 29] {
            check(canceled(graced(), 15), Transition::Uncancel, now, Ok(graced()));
            check(graced(), Transition::Uncancel, now, Err(TransitionError::NotCanceled));
        }
        check(canceled(graced(), 15), Transition::Uncancel, 30, Err(TransitionError::Expired));
        check(graced(), Transition::Uncancel, 30, Err(TransitionError::NotCanceled));
        let still_paused = paused(graced(), 12, None);
        check(canceled(still_paused, 15), Transition::Uncancel, 16, Ok(still_paused));
    }

    #[test]
    fn a_pause_begins_at_the_present_or_later_and_there_is_one_at_a_time() {
        let pause =
            |from: Option<i64>, until: Option<i64>| Transition::Pause { from: from.map(at), until: until.map(at) };
        for now in [9, 10, 19, 20, 29] {
            check(graced(), pause(None, None), now, Ok(paused(graced(), now, None)));
            check(graced(), pause(Some(now), Some(now + 1)), now, Ok(paused(graced(), now, Some(now + 1))));
            check(graced(), pause(Some(now + 5), None), now, Ok(paused(graced(), now + 5, None)));
            check(graced(), pause(Some(now - 1), None), now, Err(TransitionError::PausedInPast));
            check(graced(), pause(None, Some(now)), now, Err(TransitionError::InvalidPause));
        }
        check(graced(), pause(None, None), 30, Err(TransitionError::Expired));
        check(canceled(graced(), 15), pause(None, None), 14, Ok(paused(canceled(graced(), 15), 14, None)));
        check(canceled(graced(), 15), pause(None, None), 15, Err(TransitionError::Canceled));
        let before = paused(graced(), 12, Some(15));
        for now in [5, 11, 12, 14] {
            check(before, pause(Some(18), None), now, Err(TransitionError::AlreadyPaused));
        }
        check(before, pause(Some(18), None), 15, Ok(paused(graced(), 18, None)));
        check(paused(graced(), 12, None), pause(None, None), 29, Err(TransitionError::AlreadyPaused));
    }

    #[test]
    fn resuming_keeps_what_has_passed_of_a_pause() {
        let before = paused(graced(), 12, Some(15));
        for now in [5, 11, 12] {
            check(before, Transition::Resume, now, Ok(graced()));
        }
        for now in [13, 14] {
            check(before, Transition::Resume, now, Ok(paused(graced(), 12, Some(now))));
        }
        for now in [15, 16, 30] {
            check(before, Transition::Resume, now, Err(TransitionError::NotPaused));
        }
        check(graced(), Transition::Resume, 15, Err(TransitionError::NotPaused));
        // One that outlasts the subscription would still hold after a renewal.
        check(paused(graced(), 12, None), Transition::Resume, 40, Ok(paused(graced(), 12, Some(40))));
        check(canceled(paused(graced(), 12, None), 15), Transition::Resume, 15, Err(TransitionError::Canceled));
    }

    fn renew(end: RenewedEnd) -> Transition {
        Transition::Renew(Renewal { end, grace_until: None })
    }

    #[test]
    fn a_renewal_makes_the_window_longer_in_every_status_but_canceled() {
        let period = Period::parse("PT0.000015S").expect("a period");
        let later = |until: i64, grace: Option<i64>| -> Life {
            Term::new(window(10, Some(until)), grace.map(at)).expect("a term").into()
        };
        // Scheduled, active, in grace and expired; the grace stays as long as it comes after the new end.
        for now in [5, 15, 20, 25, 30, 40] {
            check(graced(), renew(RenewedEnd::At(Some(at(21)))), now, Ok(later(21, Some(30))));
            check(graced(), renew(RenewedEnd::At(Some(at(29)))), now, Ok(later(29, Some(30))));
            check(graced(), renew(RenewedEnd::At(Some(at(30)))), now, Ok(later(30, None)));
            check(graced(), renew(RenewedEnd::At(None)), now, Ok(life(10, None, None)));
            check(graced(), renew(RenewedEnd::AfterEnd(period)), now, Ok(later(35, None)));
            let from_now = if now > 5 { Ok(later(now + 15, None)) } else { Err(TransitionError::NotLonger) };
            check(graced(), renew(RenewedEnd::AfterNow(period)), now, from_now);
            for end in [20, 19, 11, 10, 3] {
                check(graced(), renew(RenewedEnd::At(Some(at(end)))), now, Err(TransitionError::NotLonger));
            }
            check(canceled(graced(), 5), renew(RenewedEnd::At(None)), now, Err(TransitionError::Canceled));
        }
        let still = paused(graced(), 12, None);
        check(still, renew(RenewedEnd::At(Some(at(25)))), 15, Ok(paused(later(25, Some(30)), 12, None)));
        let open_ended = life(10, None, None);
        check(open_ended, renew(RenewedEnd::AfterEnd(period)), 15, Err(TransitionError::OpenEnded));
        for end in [RenewedEnd::At(None), RenewedEnd::At(Some(at(90))), RenewedEnd::AfterNow(period)] {
            check(open_ended, renew(end), 15, Err(TransitionError::NotLonger));
        }
        let long = Period::parse("P9000Y").expect("a period");
        for end in [RenewedEnd::AfterEnd(long), RenewedEnd::AfterNow(long)] {
            check(graced(), renew(end), 15, Err(TransitionError::TooLong));
        }
    }

    #[test]
    fn a_renewal_sets_the_grace_that_it_names() {
        let renew = |end: Option<i64>, grace: Option<i64>| {
            Transition::Renew(Renewal { end: RenewedEnd::At(end.map(at)), grace_until: Some(grace.map(at)) })
        };
        let later =
            |grace: Option<i64>| -> Life { Term::new(window(10, Some(25)), grace.map(at)).expect("a term").into() };
        check(graced(), renew(Some(25), Some(26)), 15, Ok(later(Some(26))));
        check(graced(), renew(Some(25), None), 15, Ok(later(None)));
        check(graced(), renew(Some(25), Some(25)), 15, Err(TransitionError::Grace(InvalidGrace)));
        check(graced(), renew(None, Some(40)), 15, Err(TransitionError::Grace(InvalidGrace)));
        check(graced(), renew(None, None), 15, Ok(life(10, None, None)));
        check(graced(), renew(Some(20), Some(20)), 15, Err(TransitionError::NotLonger));
    }

    #[test]
    fn what_a_cancellation_ahead_would_make_void_is_not_renewed() {
        for canceled_at in [16, 19, 20] {
            check(canceled(graced(), canceled_at), renew(RenewedEnd::At(None)), 15, Err(TransitionError::Canceled));
        }
        // One in the grace is left of a renewal that ends before it, and no other.
        let in_grace = canceled(graced(), 26);
        for end in [RenewedEnd::At(None), RenewedEnd::At(Some(at(40))), RenewedEnd::At(Some(at(26)))] {
            check(in_grace, renew(end), 15, Err(TransitionError::Canceled));
        }
        let term = Term::new(window(10, Some(25)), Some(at(30))).expect("a term");
        check(in_grace, renew(RenewedEnd::At(Some(at(25)))), 15, Ok(Life { term, ..in_grace }));
    }

    /// What a renewal fills in changes, and so does a pause that is over and gives way to another one.
    #[test]
    fn what_has_passed_stays_as_it_was() {
        let period = Period::parse("PT0.000001S").expect("a period");
        let instants = || (0..6).map(Some).chain([None]);
        let mut transitions = vec![
            Transition::Cancel(Cancellation::Now),
            Transition::Cancel(Cancellation::AtEnd),
            Transition::Resume,
            renew(RenewedEnd::AfterNow(period)),
        ];
        transitions.extend((0..6).map(|instant| Transition::Cancel(Cancellation::At(at(instant)))));
        transitions.extend(instants().flat_map(|from| {
            instants().map(move |until| Transition::Pause { from: from.map(at), until: until.map(at) })
        }));
        let mut done = 0;
        for life in all() {
            for now in 0..6 {
                for transition in &transitions {
                    let Ok(after) = life.after(*transition, at(now)) else { continue };
                    done += 1;
                    let may_change = |was| match transition {
                        Transition::Renew(_) => matches!(was, Status::Grace | Status::Expired),
                        Transition::Pause { .. } => was == Status::Paused,
                        _ => false,
                    };
                    for past in 0..now {
                        let (was, is) = (life.status(at(past)), after.status(at(past)));
                        assert!(
                            was == is || may_change(was),
                            "{life:?} {transition:?} at {now}: {past} was {was}, is {is}"
                        );
                    }
                }
            }
        }
        assert!(done > 20_000, "{done}");
    }

    #[test]
    fn a_word_names_each_status() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("Active"), None);
    }
}
