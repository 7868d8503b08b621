//! The circuit breaker: while the database does not answer, requests do not wait for it one by one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Failures in a row that open the breaker: one may be a connection that was cut, three are an outage.
const FAILURES_TO_OPEN: u32 = 3;
/// How long it stays open before one load may try: far below the time in which a login gives up, far above the cost
/// of a try.
const OPEN_FOR: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

/// A circuit breaker.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

impl Breaker {
    /// Whether a load may try now. When the breaker has been open long enough, the one who asks first may.
    pub fn allows(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.open_until {
            Some(open_until) if now < open_until => false,
            Some(_) => {
                // The others go on being refused until this try has ended.
                state.open_until = Some(now + OPEN_FOR);
                true
            }
            None => true,
        }
    }

    /// Tells that a load got its answer.
    pub fn succeeded(&self) {
        *self.lock() = State::default();
    }

    /// Tells that a load got none.
    pub fn failed(&self, now: Instant) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_TO_OPEN {
            state.open_until = Some(now + OPEN_FOR);
        }
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.lock().open_until.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_then_lets_one_try_at_a_time() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_TO_OPEN - 1 {
            breaker.failed(start);
            assert!(breaker.allows(start));
        }
        breaker.succeeded();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(breaker.allows(start) && !breaker.is_open());
            breaker.failed(start);
        }
        assert!(breaker.is_open() && !breaker.allows((start + OPEN_FOR).checked_sub(Duration::from_nanos(1)).unwrap()));
        assert!(breaker.allows(start + OPEN_FOR));
        assert!(!breaker.allows(start + OPEN_FOR));
        breaker.failed(start + OPEN_FOR);
        assert!(!breaker.allows(start + OPEN_FOR));
        assert!(breaker.allows(start + 2 * OPEN_FOR));
        breaker.succeeded();
        assert!(!breaker.is_open() && breaker.allows(start));
    }
}
