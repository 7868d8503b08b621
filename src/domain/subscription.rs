//! A subscription: who holds which scopes, and when.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    life::{Life, Status, TransitionError},
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
    /// Counts its changes, from 1.
    pub version: i64,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
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
}

/// A change of a subscription that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The window would hold nothing.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
    /// Its status does not allow a change.
    #[error(transparent)]
    Transition(#[from] TransitionError),
}

impl Subscription {
    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> Status {
        self.life.status(now)
    }

    /// Ends it at `now`, whatever is left of its window.
    ///
    /// # Errors
    ///
    /// [`TransitionError`] when it is canceled or expired already.
    pub fn cancel(self, now: DateTime<Utc>) -> Result<Self, TransitionError> {
        let life = self.life.cancel(now)?;
        Ok(Self { life, ..self }.touched(now))
    }

    /// Changes its scopes or its window. An expired one may be extended; a patch that sets what is there already
    /// leaves it, its version too, as it was.
    ///
    /// # Errors
    ///
    /// [`PatchError`] when it is canceled, or the window would hold nothing.
    pub fn patch(self, patch: SubscriptionPatch, now: DateTime<Utc>) -> Result<Self, PatchError> {
        match self.status(now) {
            Status::Scheduled | Status::Active | Status::Expired => {}
            Status::Canceled => return Err(TransitionError::Canceled.into()),
        }
        let SubscriptionPatch { scopes, valid_from, valid_until } = patch;
        let from = valid_from.unwrap_or_else(|| self.life.window.from());
        let until = valid_until.unwrap_or_else(|| self.life.window.until());
        let life = Life { window: Window::new(from, until)?, ..self.life };
        let scopes = scopes.unwrap_or_else(|| self.scopes.clone());
        if life == self.life && scopes == self.scopes {
            return Ok(self);
        }
        Ok(Self { life, scopes, ..self }.touched(now))
    }

    fn touched(self, now: DateTime<Utc>) -> Self {
        Self { version: self.version + 1, updated_at: now, ..self }
    }
}
