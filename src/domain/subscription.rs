//! A subscription: who holds which scopes, and when.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    claims::{Claims, ClaimsPatch, TooLarge},
    external::{External, SourceVersion},
    life::{InvalidGrace, Life, Status, Term, Transition, TransitionError},
    scope::Scope,
    subject::Subject,
    window::{InvalidWindow, Window},
};

/// The most scopes that one subscription names: far above any price list, far below what a page of answers bears.
pub const MAX_SCOPES: usize = 100;

/// The scopes of one subscription.
///
/// Invariant: 1 to [`MAX_SCOPES`] scopes, each once, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeSet(Vec<Scope>);

/// The scopes do not make a set for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidScopeSet {
    /// None at all, or too many.
    #[error("a subscription names 1 to {MAX_SCOPES} scopes")]
    Size,
    /// One scope stands twice.
    #[error("a subscription names each scope once")]
    Repeated,
}

impl ScopeSet {
    /// The set of these scopes.
    ///
    /// # Errors
    ///
    /// [`InvalidScopeSet`] when there are none or too many, or one is repeated.
    pub fn new(mut scopes: Vec<Scope>) -> Result<Self, InvalidScopeSet> {
        if scopes.is_empty() || scopes.len() > MAX_SCOPES {
            return Err(InvalidScopeSet::Size);
        }
        scopes.sort_unstable();
        if scopes.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(InvalidScopeSet::Repeated);
        }
        Ok(Self(scopes))
    }

    /// The scopes in ascending order.
    #[must_use]
    pub fn as_slice(&self) -> &[Scope] {
        &self.0
    }
}

/// Scopes that a subject holds for a window of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its id: a UUID of version 7, so ids ascend with the time of creation.
    pub id: Uuid,
    /// Who holds it. It never changes hands.
    pub subject: Subject,
    /// What it grants.
    pub scopes: ScopeSet,
    /// When it grants it.
    pub life: Life,
    /// What another system knows it by, if one does.
    pub external: Option<External>,
    /// What a token is told while it grants one of its scopes.
    pub claims: Claims,
    /// Counts its changes, from 1.
    pub version: i64,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted: since then it counts in no decision.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// What is said of a subscription when all of it is said: what is not named is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionState {
    /// Who holds it.
    pub subject: Subject,
    /// What it grants.
    pub scopes: ScopeSet,
    /// The start of its window; when none is given, the start that there is, or the present.
    pub valid_from: Option<DateTime<Utc>>,
    /// The end of its window; none when it is open-ended.
    pub valid_until: Option<DateTime<Utc>>,
    /// The end of the grace after it, if there is one.
    pub grace_until: Option<DateTime<Utc>>,
    /// The start of a pause, if there is one, and its end, if it has one.
    pub pause: Option<(DateTime<Utc>, Option<DateTime<Utc>>)>,
    /// The first instant at which it is canceled, if it is.
    pub canceled_at: Option<DateTime<Utc>>,
    /// What a token is told while it grants one of its scopes.
    pub claims: Claims,
}

/// A state that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The window would hold nothing.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
    /// The grace would not end after the window.
    #[error(transparent)]
    Grace(#[from] InvalidGrace),
    /// The pause would hold nothing.
    #[error("a pause ends after it starts")]
    Pause,
    /// A subscription never changes hands.
    #[error("a subscription stays with its subject")]
    AnotherSubject,
    /// What was written last has a version, so what is written next needs one.
    #[error("what was written last from that source has a version, so this needs one")]
    Unversioned,
}

/// What becomes of a subscription when its source says all of it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is changed.
    Changed(Subscription),
    /// It says what is there.
    Unchanged(Subscription),
    /// It is not newer than what the source said last, so it says nothing: a message that came late, or again.
    Outdated(Subscription),
}

/// What a change of a subscription sets; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionPatch {
    /// The new scopes.
    pub scopes: Option<ScopeSet>,
    /// The new start of its window.
    pub valid_from: Option<DateTime<Utc>>,
    /// The new end of its window: `Some(None)` makes it open-ended.
    pub valid_until: Option<Option<DateTime<Utc>>>,
    /// The new end of the grace after it: `Some(None)` takes the grace away.
    pub grace_until: Option<Option<DateTime<Utc>>>,
    /// The change of its claims.
    pub claims: Option<ClaimsPatch>,
}

/// A change of a subscription that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The window would hold nothing.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
    /// The grace would not end after the window.
    #[error(transparent)]
    Grace(#[from] InvalidGrace),
    /// There would be too many claims.
    #[error(transparent)]
    Claims(#[from] TooLarge),
    /// Its status does not allow a change.
    #[error(transparent)]
    Transition(#[from] TransitionError),
}

impl SubscriptionState {
    /// The state of a subscription with a window, and nothing else.
    #[must_use]
    pub fn lasting(
        subject: Subject,
        scopes: ScopeSet,
        valid_from: Option<DateTime<Utc>>,
        valid_until: Option<DateTime<Utc>>,
    ) -> Self {
        Self {
            subject,
            scopes,
            valid_from,
            valid_until,
            grace_until: None,
            pause: None,
            canceled_at: None,
            claims: Claims::default(),
        }
    }

    fn life(&self, from: DateTime<Utc>) -> Result<Life, StateError> {
        let pause = self.pause.map(|(from, until)| Window::new(from, until)).transpose();
        Ok(Life {
            term: Term::new(Window::new(from, self.valid_until)?, self.grace_until)?,
            pause: pause.map_err(|InvalidWindow| StateError::Pause)?,
            canceled_at: self.canceled_at,
        })
    }
}

impl Subscription {
    /// A new subscription.
    ///
    /// # Errors
    ///
    /// [`StateError`] when its window, its grace or its pause is none.
    pub fn new(
        id: Uuid,
        state: SubscriptionState,
        external: Option<External>,
        now: DateTime<Utc>,
    ) -> Result<Self, StateError> {
        let life = state.life(state.valid_from.unwrap_or(now))?;
        let SubscriptionState { subject, scopes, claims, .. } = state;
        let (created_at, updated_at) = (now, now);
        Ok(Self { id, subject, scopes, life, external, claims, version: 1, created_at, updated_at, deleted_at: None })
    }

    /// The subscription after its source said all of it again, in a version of the source's or without one. A deleted
    /// one is there again.
    ///
    /// An older message never overwrites a newer one, and one that is sent twice counts once: only a version that is
    /// greater than the last one says anything. Without versions the last one that arrives counts.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it would change hands, what is said is no state, or the version is missing.
    pub fn put(
        self,
        state: SubscriptionState,
        version: Option<SourceVersion>,
        now: DateTime<Utc>,
    ) -> Result<Put, StateError> {
        let last = self.external.as_ref().and_then(|external| external.version);
        let is_outdated = last.zip(version).is_some_and(|(last, version)| version <= last);
        if is_outdated && state.valid_from.is_none() {
            // Its window would begin where a newer message let it begin, and need not go with that.
            return if state.subject == self.subject {
                Ok(Put::Outdated(self))
            } else {
                Err(StateError::AnotherSubject)
            };
        }
        let external = self.external.clone().map(|external| External { version, ..external });
        // What is wrong is refused, be it late or not.
        let put = self.clone().replaced(state, external, now)?;
        match (last, version) {
            (Some(_), None) => Err(StateError::Unversioned),
            _ if is_outdated => Ok(Put::Outdated(self)),
            _ => Ok(put),
        }
    }

    /// The subscription after all of it was said again by whoever knows it as it is here, in a version of ours: what was
    /// changed since is newer. Without a version the last one that says it counts.
    ///
    /// # Errors
    ///
    /// [`StateError`] when it would change hands, or what is said is no state.
    pub fn restated(
        self,
        state: SubscriptionState,
        version: Option<i64>,
        now: DateTime<Utc>,
    ) -> Result<Put, StateError> {
        let external = self.external.clone();
        let put = self.clone().replaced(state, external, now)?;
        Ok(match put {
            Put::Changed(_) if version.is_some_and(|version| version < self.version) => Put::Outdated(self),
            put => put,
        })
    }

    fn replaced(
        self,
        state: SubscriptionState,
        external: Option<External>,
        now: DateTime<Utc>,
    ) -> Result<Put, StateError> {
        if state.subject != self.subject {
            return Err(StateError::AnotherSubject);
        }
        let life = state.life(state.valid_from.unwrap_or_else(|| self.life.term.window().from()))?;
        let SubscriptionState { scopes, claims, .. } = state;
        let is_same = life == self.life && scopes == self.scopes && claims == self.claims && external == self.external;
        if is_same && self.deleted_at.is_none() {
            return Ok(Put::Unchanged(self));
        }
        Ok(Put::Changed(Self { scopes, life, external, claims, deleted_at: None, ..self }.touched(now)))
    }

    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        self.life.status(now)
    }

    /// The subscription after a transition of its life.
    ///
    /// # Errors
    ///
    /// [`TransitionError`] when it makes no sense for the life as it is.
    pub fn after(self, transition: Transition, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        let life = self.life.after(transition, now)?;
        Ok(Self { life, ..self }.touched(now))
    }

    /// Changes its scopes, its window, the grace after it or its claims. An expired one may be extended; a patch that sets what is
    /// there already leaves it, its version too, as it was.
    ///
    /// # Errors
    ///
    /// [`PatchError`] when it is canceled, the window would hold nothing, the grace would not end after it, or the claims
    /// would be too large.
    pub fn patch(self, patch: SubscriptionPatch, now: DateTime<Utc>) -> Result<Self, PatchError> {
        match self.status(now) {
            Status::Scheduled | Status::Active | Status::Paused | Status::Grace | Status::Expired => {}
            Status::Canceled => return Err(TransitionError::Canceled.into()),
        }
        let SubscriptionPatch { scopes, valid_from, valid_until, grace_until, claims } = patch;
        let old = self.life.term;
        let from = valid_from.unwrap_or_else(|| old.window().from());
        let until = valid_until.unwrap_or_else(|| old.window().until());
        let grace_until = grace_until.unwrap_or_else(|| old.grace_until());
        let life = Life { term: Term::new(Window::new(from, until)?, grace_until)?, ..self.life };
        let scopes = scopes.unwrap_or_else(|| self.scopes.clone());
        let claims = claims.map_or_else(|| Ok(self.claims.clone()), |patch| self.claims.patched(patch))?;
        if life == self.life && scopes == self.scopes && claims == self.claims {
            return Ok(self);
        }
        Ok(Self { life, scopes, claims, ..self }.touched(now))
    }

    /// The subscription after it was deleted.
    #[must_use]
    pub fn deleted(self, now: DateTime<Utc>) -> Self {
        Self { deleted_at: Some(now), ..self }.touched(now)
    }

    /// The subscription as it was before it was deleted, but for its version.
    #[must_use]
    pub fn restored(self, now: DateTime<Utc>) -> Self {
        Self { deleted_at: None, ..self }.touched(now)
    }

    fn touched(self, now: DateTime<Utc>) -> Self {
        Self { version: self.version + 1, updated_at: now, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        life::Cancellation,
        subject::{SubjectId, SubjectType},
    };

    fn at(microseconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(microseconds).expect("an instant")
    }

    fn life(from: i64, until: Option<i64>, canceled_at: Option<i64>) -> Life {
        let window = Window::new(at(from), until.map(at)).expect("a window");
        Life { canceled_at: canceled_at.map(at), ..window.into() }
    }

    fn scopes(names: &[&str]) -> Result<ScopeSet, InvalidScopeSet> {
        ScopeSet::new(names.iter().map(|name| Scope::parse(name).expect(name)).collect())
    }

    /// A subscription of "a" and "b" in its third version.
    fn subscription(life: Life) -> Subscription {
        Subscription {
            id: Uuid::from_u128(7),
            subject: Subject { kind: SubjectType::Client, id: SubjectId::parse("shop").expect("an id") },
            scopes: scopes(&["a", "b"]).expect("a set"),
            life,
            external: None,
            claims: Claims::default(),
            version: 3,
            created_at: at(1),
            updated_at: at(2),
            deleted_at: None,
        }
    }

    /// A patch of its window; 0 stands for open-ended.
    fn window_patch(from: Option<i64>, until: Option<i64>) -> SubscriptionPatch {
        let valid_until = until.map(|until| (until > 0).then(|| at(until)));
        SubscriptionPatch { valid_from: from.map(at), valid_until, ..SubscriptionPatch::default() }
    }

    #[test]
    fn a_set_has_1_to_100_scopes() {
        let names: Vec<String> = (0..=100).map(|number| format!("scope{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(scopes(&[]), Err(InvalidScopeSet::Size));
        for size in [1, 2, 99, 100] {
            assert_eq!(scopes(&names[..size]).expect("a set").as_slice().len(), size);
        }
        assert_eq!(scopes(&names), Err(InvalidScopeSet::Size));
    }

    #[test]
    fn a_set_is_ascending_and_refuses_a_scope_that_stands_twice_wherever_it_stands() {
        for names in [["a", "b", "B"], ["b", "B", "a"], ["B", "b", "a"], ["b", "a", "B"]] {
            let set = scopes(&names).expect("a set");
            assert_eq!(set.as_slice().iter().map(Scope::as_str).collect::<Vec<_>>(), ["B", "a", "b"]);
        }
        for names in [["a", "a", "b"], ["a", "b", "a"], ["b", "a", "a"], ["a", "a", "a"]] {
            assert_eq!(scopes(&names), Err(InvalidScopeSet::Repeated), "{names:?}");
        }
    }

    #[test]
    fn a_patch_that_sets_what_is_there_keeps_the_version() {
        let before = subscription(life(10, Some(20), None));
        let same = SubscriptionPatch { scopes: scopes(&["b", "a"]).ok(), ..window_patch(Some(10), Some(20)) };
        for patch in [SubscriptionPatch::default(), window_patch(Some(10), None), window_patch(None, Some(20)), same] {
            // While it is scheduled, active and expired alike.
            for now in [9, 10, 20] {
                assert_eq!(before.clone().patch(patch.clone(), at(now)).as_ref(), Ok(&before), "{patch:?} at {now}");
            }
        }
        let open_ended = subscription(life(10, None, None));
        assert_eq!(open_ended.clone().patch(window_patch(None, Some(0)), at(15)), Ok(open_ended));
    }

    #[test]
    fn a_patch_changes_what_it_names_and_is_counted() {
        let check = |patch: SubscriptionPatch, now, names: &[&str], patched| {
            let expected = Subscription {
                scopes: scopes(names).expect("a set"),
                version: 4,
                updated_at: at(now),
                ..subscription(patched)
            };
            let before = subscription(life(10, Some(20), None));
            assert_eq!(before.patch(patch.clone(), at(now)), Ok(expected), "{patch:?} at {now}");
        };
        let other_scopes = SubscriptionPatch { scopes: scopes(&["c"]).ok(), ..SubscriptionPatch::default() };
        check(other_scopes.clone(), 15, &["c"], life(10, Some(20), None));
        check(window_patch(Some(11), None), 9, &["a", "b"], life(11, Some(20), None));
        check(window_patch(None, Some(19)), 15, &["a", "b"], life(10, Some(19), None));
        check(window_patch(None, Some(0)), 15, &["a", "b"], life(10, None, None));
        check(
            SubscriptionPatch { scopes: other_scopes.scopes, ..window_patch(Some(20), Some(21)) },
            15,
            &["c"],
            life(20, Some(21), None),
        );
        // An expired one may be extended, on the instant of its end too, and need not become active by it.
        check(window_patch(None, Some(30)), 20, &["a", "b"], life(10, Some(30), None));
        check(window_patch(None, Some(0)), 25, &["a", "b"], life(10, None, None));
        check(window_patch(None, Some(21)), 25, &["a", "b"], life(10, Some(21), None));
    }

    #[test]
    fn a_patch_that_leaves_the_window_empty_or_reversed_is_refused() {
        let check = |patch: SubscriptionPatch, ok| {
            let patched = subscription(life(10, Some(20), None)).patch(patch.clone(), at(15));
            assert_eq!(patched.map(|_| ()), if ok { Ok(()) } else { Err(InvalidWindow.into()) }, "{patch:?}");
        };
        check(window_patch(Some(19), None), true);
        check(window_patch(Some(20), None), false);
        check(window_patch(Some(21), None), false);
        check(window_patch(None, Some(11)), true);
        check(window_patch(None, Some(10)), false);
        check(window_patch(None, Some(9)), false);
        check(window_patch(Some(30), Some(31)), true);
        check(window_patch(Some(30), Some(30)), false);
        check(window_patch(Some(30), Some(0)), true);
    }

    #[test]
    fn a_patch_sets_and_takes_away_a_grace_that_comes_after_the_window() {
        let patch = |until: Option<i64>, grace: Option<i64>| SubscriptionPatch {
            grace_until: grace.map(|grace| (grace > 0).then(|| at(grace))),
            ..window_patch(None, until)
        };
        let graced = |until, grace: i64| -> Life {
            Term::new(life(10, Some(until), None).term.window(), Some(at(grace))).expect("a term").into()
        };
        let check = |before: Life, patch: SubscriptionPatch, expected: Result<Life, PatchError>| {
            // While it is scheduled, active, in grace and expired alike.
            for now in [9, 10, 20, 40] {
                let patched = subscription(before).patch(patch.clone(), at(now));
                assert_eq!(patched.map(|patched| patched.life), expected, "{patch:?} at {now}");
            }
        };
        check(life(10, Some(20), None), patch(None, Some(21)), Ok(graced(20, 21)));
        check(life(10, Some(20), None), patch(None, Some(20)), Err(InvalidGrace.into()));
        check(life(10, None, None), patch(None, Some(30)), Err(InvalidGrace.into()));
        check(life(10, None, None), patch(Some(25), Some(30)), Ok(graced(25, 30)));
        check(graced(20, 30), patch(None, Some(0)), Ok(life(10, Some(20), None)));
        check(graced(20, 30), patch(Some(29), None), Ok(graced(29, 30)));
        // What stays has to fit: nothing is dropped that the patch does not name.
        check(graced(20, 30), patch(Some(30), None), Err(InvalidGrace.into()));
        check(graced(20, 30), patch(Some(0), None), Err(InvalidGrace.into()));
        check(graced(20, 30), patch(Some(0), Some(0)), Ok(life(10, None, None)));
        let same = subscription(graced(20, 30));
        assert_eq!(same.clone().patch(patch(None, Some(30)), at(15)), Ok(same));
    }

    #[test]
    fn a_canceled_one_refuses_every_patch_from_the_instant_of_its_cancellation() {
        let before = subscription(life(10, Some(20), Some(15)));
        let other_scopes = SubscriptionPatch { scopes: scopes(&["c"]).ok(), ..SubscriptionPatch::default() };
        let reversed = window_patch(Some(30), Some(29));
        for patch in [SubscriptionPatch::default(), other_scopes, window_patch(None, Some(30)), reversed] {
            for now in [15, 16, 20, 30] {
                let refused = Err(PatchError::Transition(TransitionError::Canceled));
                assert_eq!(before.clone().patch(patch.clone(), at(now)), refused, "{patch:?} at {now}");
            }
        }
        // Before that instant it can be changed, and stays canceled as of then.
        let patched = before.patch(window_patch(None, Some(30)), at(14)).expect("a change");
        assert_eq!(patched.life, life(10, Some(30), Some(15)));
    }

    #[test]
    fn canceling_is_counted_and_leaves_the_rest_as_it_was() {
        let canceled =
            |now| Subscription { version: 4, updated_at: at(now), ..subscription(life(10, Some(20), Some(now))) };
        let cancel = Transition::Cancel(Cancellation::Now);
        let check =
            |before: Life, now, expected| assert_eq!(subscription(before).after(cancel, at(now)), expected, "{now}");
        check(life(10, Some(20), None), 9, Ok(canceled(9)));
        check(life(10, Some(20), None), 10, Ok(canceled(10)));
        check(life(10, Some(20), None), 19, Ok(canceled(19)));
        check(life(10, Some(20), None), 20, Err(TransitionError::Expired));
        check(life(10, Some(20), Some(15)), 15, Err(TransitionError::AlreadyCanceled));
        assert_eq!(canceled(12).status(at(11)), Status::Active);
        assert_eq!(canceled(12).status(at(12)), Status::Canceled);
    }
}
