//! What is known of one subject: the facts that a decision compares with `now`.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{
    claims::Bearing,
    life::{Life, Status},
    packed,
    scope::Scope,
    window::Window,
};

/// How one subject stands to one scope at an instant: the best that any of its subscriptions gives.
///
/// The order is that of preference: several subscriptions make a union, and one that ends never takes away what
/// another still gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// One is active.
    Active,
    /// None is active, one is in grace: it grants the scope as well.
    Grace,
    /// None grants the scope, one is paused.
    Paused,
    /// None grants the scope or is paused, one is scheduled.
    Scheduled,
    /// None does so or is scheduled, one was canceled.
    Canceled,
    /// All have expired.
    Expired,
    /// There is none.
    NoSubscription,
}

impl Standing {
    /// Every standing, the best first.
    pub const ALL: [Self; 7] =
        [Self::Active, Self::Grace, Self::Paused, Self::Scheduled, Self::Canceled, Self::Expired, Self::NoSubscription];

    /// Whether the subject holds the scope.
    #[must_use]
    pub fn is_held(self) -> bool {
        match self {
            Self::Active | Self::Grace => true,
            Self::Paused | Self::Scheduled | Self::Canceled | Self::Expired | Self::NoSubscription => false,
        }
    }
}

impl From<Status> for Standing {
    fn from(status: Status) -> Self {
        match status {
            Status::Active => Self::Active,
            Status::Grace => Self::Grace,
            Status::Paused => Self::Paused,
            Status::Scheduled => Self::Scheduled,
            Status::Canceled => Self::Canceled,
            Status::Expired => Self::Expired,
        }
    }
}

/// The lives of a subject's subscriptions, by scope. No verdict is in it: whether a scope is held is asked with `now`.
///
/// A copy shares what it copies. A million of them stay in memory, so they are packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// See [`packed`].
    lives: Arc<[u8]>,
    /// What few subjects have.
    more: Option<Arc<More>>,
}

/// What few subjects have.
#[derive(Debug, Default, PartialEq, Eq)]
struct More {
    /// Where each scope begins in the lives, so that one is found by bisection; none where there are few.
    places: Box<[u32]>,
    /// The subscriptions with claims of their own, ascending by id.
    bearings: Box<[Bearing]>,
}

/// So many scopes are looked through one by one; of more it is known where each begins.
const FEW_SCOPES: usize = 16;

impl Facts {
    /// The facts that pairs of scope and life make, in whatever order they come.
    #[must_use]
    pub fn new(mut pairs: Vec<(Scope, Life)>) -> Self {
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (mut lives, mut places) = (Vec::new(), Vec::new());
        for of_scope in pairs.chunk_by(|(a, _), (b, _)| a == b) {
            places.push(lives.len());
            packed::write(&mut lives, of_scope);
        }
        if places.len() <= FEW_SCOPES {
            places.clear();
        }
        // Were one of them beyond 4 GiB, all would be looked through one by one.
        let places = places.into_iter().map(u32::try_from).collect::<Result<_, _>>().unwrap_or_default();
        Self { lives: lives.into(), more: None }.with_more(More { places, bearings: Box::default() })
    }

    /// The same facts with the subscriptions that have claims of their own.
    #[must_use]
    pub fn with_bearings(self, mut bearings: Vec<Bearing>) -> Self {
        bearings.sort_unstable_by_key(|bearing| bearing.id);
        let places = self.places().into();
        self.with_more(More { places, bearings: bearings.into() })
    }

    fn with_more(self, more: More) -> Self {
        let more = (more != More::default()).then(|| Arc::new(more));
        Self { more, ..self }
    }

    /// The subscriptions that have claims of their own, ascending by id.
    #[must_use]
    pub fn bearings(&self) -> &[Bearing] {
        self.more.as_ref().map_or(&[], |more| &more.bearings)
    }

    /// Roughly how many bytes of memory the facts take beyond their own size.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let of_bearing = |bearing: &Bearing| {
            let names = bearing.scopes.iter().map(|scope| scope.as_str().len()).sum::<usize>();
            size_of_val(&*bearing.scopes) + names + bearing.claims.heap_bytes()
        };
        let of_more = |more: &Arc<More>| {
            size_of::<More>()
                + size_of_val(&*more.places)
                + size_of_val(&*more.bearings)
                + more.bearings.iter().map(of_bearing).sum::<usize>()
        };
        self.lives.len() + self.more.as_ref().map_or(0, of_more)
    }

    /// Whether the subject has no subscription at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// How the subject stands to a scope at `now`.
    #[must_use]
    pub fn standing(&self, scope: &str, now: DateTime<Utc>) -> Standing {
        let best = self.lives_of(scope).map(|life| Standing::from(life.status(now))).min();
        best.unwrap_or(Standing::NoSubscription)
    }

    /// The first instant after `now` at which the scope is no longer held, when it is held at `now`; none when it is
    /// held for ever, or not held.
    #[must_use]
    pub fn held_until(&self, scope: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        Self::held_by_any_until([self], scope, now)
    }

    /// The first instant after `now` at which none of several subjects holds the scope, when one holds it at `now`; none
    /// when it is held for ever, or not held.
    #[must_use]
    pub fn held_by_any_until<'a>(
        subjects: impl IntoIterator<Item = &'a Self>,
        scope: &str,
        now: DateTime<Utc>,
    ) -> Option<DateTime<Utc>> {
        let lives = subjects.into_iter().flat_map(|facts| facts.lives_of(scope));
        let granting: Vec<_> = lives.flat_map(|life| life.granting()).collect();
        Window::end_of_run(&granting, now)
    }

    fn places(&self) -> &[u32] {
        self.more.as_ref().map_or(&[], |more| &more.places)
    }

    fn lives_of(&self, scope: &str) -> impl Iterator<Item = Life> {
        let places = self.places();
        // The last one that does not begin behind it; where there are few, the first of all.
        let before = places.partition_point(|place| packed::name_at(&self.lives, *place as usize) <= scope.as_bytes());
        let start = before.checked_sub(1).map_or(0, |place| places[place] as usize);
        packed::lives_of(&self.lives[start..], scope.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::life::Term;

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn life(from: i64, until: Option<i64>, canceled_at: Option<i64>) -> Life {
        let window = Window::new(at(from), until.map(at)).expect("a window");
        Life { canceled_at: canceled_at.map(at), ..window.into() }
    }

    /// The same with a grace after its end, and a pause.
    fn more(life: Life, grace_until: Option<i64>, pause: Option<(i64, Option<i64>)>) -> Life {
        let term = Term::new(life.term.window(), grace_until.map(at)).expect("a term");
        let pause = pause.map(|(from, until)| Window::new(at(from), until.map(at)).expect("a pause"));
        Life { term, pause, ..life }
    }

    fn facts<'a>(pairs: impl IntoIterator<Item = (&'a str, Life)>) -> Facts {
        Facts::new(pairs.into_iter().map(|(scope, life)| (Scope::parse(scope).expect(scope), life)).collect())
    }

    #[test]
    fn of_two_subscriptions_the_better_counts_whichever_comes_first() {
        use Standing::{Active as A, Canceled as C, Expired as E, Grace as G, Paused as P, Scheduled as S};
        // At 10 these are, in this order: active, in grace, paused, scheduled, canceled, expired.
        let lives = [
            life(10, Some(11), None),
            more(life(0, Some(10), None), Some(11), None),
            more(life(0, None, None), None, Some((10, None))),
            life(11, None, None),
            life(0, None, Some(10)),
            life(0, Some(10), None),
        ];
        let expected = [
            [A, A, A, A, A, A], // active and another
            [A, G, G, G, G, G], // in grace and another
            [A, G, P, P, P, P], // paused and another
            [A, G, P, S, S, S], // scheduled and another
            [A, G, P, S, C, C], // canceled and another
            [A, G, P, S, C, E], // expired and another
        ];
        for (row, one) in lives.into_iter().enumerate() {
            assert_eq!(facts([("x", one)]).standing("x", at(10)), expected[row][row]);
            for (column, other) in lives.into_iter().enumerate() {
                let standing = facts([("x", one), ("x", other)]).standing("x", at(10));
                assert_eq!(standing, expected[row][column], "{one:?} and {other:?}");
            }
        }
        assert_eq!(facts([]).standing("x", at(10)), Standing::NoSubscription);
    }

    #[test]
    fn one_that_ends_never_takes_away_what_another_still_gives() {
        let expiring = facts([("x", life(0, Some(10), None)), ("x", life(5, Some(20), None))]);
        let canceled = facts([("x", life(0, None, Some(10))), ("x", life(5, Some(20), None))]);
        let replaced = facts([("x", life(0, None, Some(10))), ("x", life(12, Some(20), None))]);
        let check =
            |facts: &Facts, now, expected| assert_eq!(facts.standing("x", at(now)), expected, "{facts:?} {now}");
        for now in [0, 4, 5, 9, 10, 11, 19] {
            check(&expiring, now, Standing::Active);
            check(&canceled, now, Standing::Active);
        }
        check(&expiring, 20, Standing::Expired);
        check(&canceled, 20, Standing::Canceled);
        check(&replaced, 9, Standing::Active);
        check(&replaced, 10, Standing::Scheduled);
        check(&replaced, 11, Standing::Scheduled);
        check(&replaced, 12, Standing::Active);
    }

    #[test]
    fn each_scope_has_its_own_lives_in_whatever_order_the_pairs_come() {
        // One standing per scope at 10; "b" gets it from the second of its two lives.
        let pairs = [
            ("b", life(0, Some(5), None)),
            ("ab", life(11, None, None)),
            ("a", life(0, None, Some(3))),
            ("B", life(0, Some(10), None)),
            ("b", life(10, None, None)),
        ];
        for turn in 0..pairs.len() {
            let mut turned = pairs;
            turned.rotate_left(turn);
            for facts in [facts(turned), facts(turned.into_iter().rev())] {
                let check =
                    |scope, expected| assert_eq!(facts.standing(scope, at(10)), expected, "{scope:?} {facts:?}");
                check("a", Standing::Canceled);
                check("ab", Standing::Scheduled);
                check("b", Standing::Active);
                check("B", Standing::Expired);
                for absent in ["", " ", "A", "aa", "abc", "bb", "a b", "b\0", "é", "🎫"] {
                    check(absent, Standing::NoSubscription);
                }
            }
        }
        assert!(facts([]).is_empty());
        assert!(!facts(pairs.into_iter().take(1)).is_empty());
    }

    #[test]
    fn one_of_many_scopes_is_found_and_no_other() {
        // Each name is the beginning of others, and each scope has one more life than the one before.
        for count in [0, 1, 2, FEW_SCOPES, FEW_SCOPES + 1, 300] {
            let name = |number: usize| "x".repeat(number % 7 + 1) + &number.to_string();
            let lives = |number: usize| 0..i64::try_from(number % 40 + 1).expect("few");
            let pairs = (0..count).flat_map(|number| {
                lives(number).map(move |place| (Scope::parse(&name(number)).expect("a scope"), life(place, None, None)))
            });
            let facts = Facts::new(pairs.collect()).with_bearings(Vec::new());
            assert_eq!(facts.more.is_some(), count > FEW_SCOPES, "{count}");
            for number in 0..count + 20 {
                let expected: Vec<_> =
                    if number < count { lives(number).map(|from| life(from, None, None)).collect() } else { vec![] };
                assert_eq!(facts.lives_of(&name(number)).collect::<Vec<_>>(), expected, "{} of {count}", name(number));
            }
            for absent in ["", "0", "x", "xxxxxxxxxxxx", "y", "\u{0}", "\u{ff}", &"x".repeat(300)] {
                assert_eq!(facts.lives_of(absent).count(), 0, "{absent} of {count}");
            }
        }
    }

    #[test]
    fn a_scope_is_held_until_the_first_instant_at_which_no_life_is_active() {
        // Every pair of lives that begin, end and are canceled below 5, some with a grace and a pause, at every instant.
        let mut all = Vec::new();
        for from in 0..4 {
            for until in (from + 1..5).map(Some).chain([None]) {
                for one in [None, Some(0), Some(3)].map(|canceled_at| life(from, until, canceled_at)) {
                    for grace in [None, until.map(|until| until + 1)] {
                        let pauses = [None, Some((from, Some(from + 1))), Some((1, Some(3))), Some((2, None))];
                        all.extend(pauses.map(|pause| more(one, grace, pause)));
                    }
                }
            }
        }
        for one in &all {
            for other in &all {
                let facts = facts([("y", life(0, None, None)), ("x", *one), ("x", *other)]);
                let held = |now| {
                    let mut statuses = [one, other].into_iter().map(|life| life.status(at(now)));
                    statuses.any(|status| matches!(status, Status::Active | Status::Grace))
                };
                for now in 0..7 {
                    // Beyond 5 nothing changes.
                    let expected = if held(now) { (now..7).find(|&later| !held(later)).map(at) } else { None };
                    assert_eq!(facts.held_until("x", at(now)), expected, "{one:?} and {other:?} at {now}");
                }
            }
        }
    }
}
