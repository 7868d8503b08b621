//! Entitlements: what one subject holds by itself, scope by scope.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    catalogue::Catalogue,
    facts::Standing,
    holdings::{Holdings, first_change},
    scope::Scope,
};

/// When a subject comes to hold a scope, or holds it no longer, as long as nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The first instant at which it does.
    pub at: DateTime<Utc>,
    /// Whether it holds the scope from then on.
    pub held: bool,
}

/// How a subject stands to one catalogue scope at an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlement {
    /// The scope.
    pub scope: Scope,
    /// How the subject stands to it; whether it holds the scope is [`Standing::is_held`].
    pub standing: Standing,
    /// The end of the unbroken run of time in which it is held; none when it is open-ended, or not held.
    pub until: Option<DateTime<Utc>>,
    /// The subscriptions that make it stand so, ascending by id.
    pub subscriptions: Vec<Uuid>,
    /// When it is held no longer, or held at last; none when it stays so for ever.
    pub next: Option<Next>,
}

/// What a subject holds at `now`: an entitlement for each catalogue scope, in ascending order.
#[must_use]
pub fn entitlements(catalogue: &Catalogue, holdings: &Holdings, now: DateTime<Utc>) -> Vec<Entitlement> {
    let entitlement = |scope: Scope| {
        let name = scope.as_str();
        let standing = holdings.facts().standing(name, now);
        let next = first_change([holdings], name, now, |[standing]| standing.is_held());
        Entitlement {
            until: holdings.facts().held_until(name, now),
            subscriptions: holdings.standing_so(name, standing, now),
            next: next.map(|(at, held)| Next { at, held }),
            standing,
            scope,
        }
    };
    catalogue.scopes().into_iter().map(entitlement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        catalogue::{Requires, Rule},
        life::Life,
        window::Window,
    };

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn life(from: i64, until: Option<i64>, canceled_at: Option<i64>) -> Life {
        let window = Window::new(at(from), until.map(at)).expect("a window");
        Life { canceled_at: canceled_at.map(at), ..window.into() }
    }

    /// The holdings that these lives make; the id of each is its place.
    fn holdings(lives: &[(&str, Life)]) -> Holdings {
        Holdings::new((0..).zip(lives).map(|(id, (name, life))| (scope(name), Uuid::from_u128(id), *life)).collect())
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).expect(text)
    }

    fn catalogue(rules: &[(&str, Requires, bool)]) -> Catalogue {
        rules.iter().map(|&(name, requires, enforced)| (scope(name), Rule { requires, enforced })).collect()
    }

    #[test]
    fn each_catalogue_scope_has_one_entitlement_in_ascending_order_whatever_its_rule() {
        let catalogue = catalogue(&[
            ("b", Requires::Client, true),
            ("a:b", Requires::All, false),
            ("B", Requires::User, true),
            ("c", Requires::Any, false),
            ("a", Requires::All, true),
        ]);
        let lives = [
            ("a", life(10, Some(12), None)),
            ("a", life(0, Some(11), None)),
            ("a:b", life(11, None, None)),
            ("b", life(0, None, Some(10))),
            ("c", life(0, Some(10), None)),
            ("unmanaged", life(0, None, None)),
        ];
        let holdings = holdings(&lives);
        let item = |name, standing, until: Option<i64>, ids: &[u128], next: Option<(i64, bool)>| Entitlement {
            scope: scope(name),
            standing,
            until: until.map(at),
            subscriptions: ids.iter().copied().map(Uuid::from_u128).collect(),
            next: next.map(|(change, held)| Next { at: at(change), held }),
        };
        let expected = [
            item("B", Standing::NoSubscription, None, &[], None),
            item("a", Standing::Active, Some(12), &[0, 1], Some((12, false))),
            item("a:b", Standing::Scheduled, None, &[2], Some((11, true))),
            item("b", Standing::Canceled, None, &[3], None),
            item("c", Standing::Expired, None, &[4], None),
        ];
        assert_eq!(entitlements(&catalogue, &holdings, at(10)), expected);
        assert_eq!(entitlements(&Catalogue::default(), &holdings, at(10)), []);
    }

    #[test]
    fn adjoining_and_overlapping_windows_are_one_run_which_a_gap_or_a_cancellation_ends() {
        let catalogue = catalogue(&[("x", Requires::Any, true)]);
        let check = |lives: &[Life], now, held, until: Option<i64>| {
            let lives_of_x: Vec<_> = lives.iter().map(|life| ("x", *life)).collect();
            let found = entitlements(&catalogue, &holdings(&lives_of_x), at(now));
            let found: Vec<_> = found.iter().map(|item| (item.standing == Standing::Active, item.until)).collect();
            assert_eq!(found, [(held, until.map(at))], "{lives:?} at {now}");
        };
        let adjoining = [life(20, Some(30), None), life(10, Some(20), None)];
        check(&adjoining, 9, false, None);
        check(&adjoining, 10, true, Some(30));
        check(&adjoining, 19, true, Some(30));
        check(&adjoining, 20, true, Some(30));
        check(&adjoining, 29, true, Some(30));
        check(&adjoining, 30, false, None);
        let gap = [life(10, Some(20), None), life(21, Some(30), None)];
        check(&gap, 19, true, Some(20));
        check(&gap, 20, false, None);
        check(&gap, 21, true, Some(30));
        let overlapping = [life(10, Some(20), None), life(15, Some(25), None), life(12, Some(18), None)];
        check(&overlapping, 10, true, Some(25));
        check(&overlapping, 24, true, Some(25));
        check(&overlapping, 25, false, None);
        let open_ended = [life(10, Some(20), None), life(20, None, None)];
        check(&open_ended, 9, false, None);
        check(&open_ended, 10, true, None);
        check(&open_ended, 1_000_000, true, None);
        // Canceled early, on the boundary, before it begins, after its end.
        check(&[life(10, Some(20), Some(15)), life(20, Some(30), None)], 14, true, Some(15));
        check(&[life(10, Some(20), Some(15)), life(20, Some(30), None)], 15, false, None);
        check(&[life(10, Some(20), Some(15)), life(15, Some(30), None)], 14, true, Some(30));
        check(&[life(10, Some(20), None), life(20, None, Some(20))], 19, true, Some(20));
        check(&[life(10, Some(20), None), life(20, None, Some(5))], 19, true, Some(20));
        check(&[life(10, Some(20), Some(25))], 19, true, Some(20));
    }
}
