//! What a use case can answer instead of a value.

use crate::{
    domain::{
        claims::TooLarge,
        life::TransitionError,
        scope::Scope,
        subscription::{PatchError, StateError},
        token::{AlreadyRevoked, InvalidExpiry},
    },
    store,
};

/// The answer of a use case.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a use case was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing of that name or id.
    #[error("there is no such resource")]
    NotFound,
    /// It is at another version than the writer expected.
    #[error("the resource is at another version")]
    VersionMismatch,
    /// The catalogue has a scope of that name.
    #[error("the scope is already in the catalogue")]
    ScopeExists,
    /// Subscriptions name the scope.
    #[error("the scope is named by subscriptions")]
    ScopeInUse,
    /// These scopes are not in the catalogue.
    #[error("scopes are not in the catalogue")]
    UnknownScopes(Vec<Scope>),
    /// A subscription never changes hands.
    #[error("a subscription stays with its subject")]
    AnotherSubject,
    /// What is said of a subscription makes none.
    #[error(transparent)]
    State(#[from] StateError),
    /// What is to be changed of a subscription would leave none.
    #[error(transparent)]
    Patch(PatchError),
    /// Another subscription is known by that external id, be it a deleted one.
    #[error("a subscription of that external id exists")]
    ExternalIdExists,
    /// The claims would be too many, or too long.
    #[error(transparent)]
    Claims(#[from] TooLarge),
    /// The resource's status does not allow it.
    #[error(transparent)]
    Transition(#[from] TransitionError),
    /// The subscription was not deleted, so it cannot be restored.
    #[error("the subscription was not deleted")]
    NotDeleted,
    /// Another token has, or had, that name.
    #[error("a token of that name exists, or existed")]
    TokenExists,
    /// There is no room for another token.
    #[error("there are too many tokens")]
    TooManyTokens,
    /// The token would have ended already.
    #[error(transparent)]
    TokenExpiry(#[from] InvalidExpiry),
    /// The token is revoked already.
    #[error(transparent)]
    TokenRevoked(#[from] AlreadyRevoked),
    /// One write of a batch was refused, and with it the whole batch.
    #[error("write {index} of the batch was refused")]
    InBatch {
        /// Which one, counted from 0.
        index: usize,
        /// Why.
        error: Box<Error>,
    },
    /// Another request was done with that key.
    #[error("the key of the request was given to another request")]
    KeyReused,
    /// A request with that key is under way.
    #[error("a request with that key is under way")]
    KeyInUse,
    /// As many exports go on as may.
    #[error("too many exports are under way")]
    ExportUnderWay,
    /// Another import goes on.
    #[error("another import is under way")]
    ImportUnderWay,
    /// The token was made by that very request before, and its secret is not kept.
    #[error("the secret of the token was told, and is not kept")]
    SecretNotKept,
    /// Changes that are asked for are not kept any more, or were never made in this database.
    #[error("changes that are asked for are not kept any more")]
    ChangesGone,
    /// What was known at that instant is not kept any more.
    #[error("the history does not reach back to that instant")]
    HistoryGone,
    /// The machine gave no random bytes for a secret.
    #[error("there are no random bytes to be had")]
    NoRandomness,
    /// The database gave no value.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Nothing is known of what the answer rests on, and the database cannot be asked.
    #[error("what the answer rests on is not known")]
    Unknown,
    /// A write took too long: it may or may not be done.
    #[error("a write took too long")]
    TimedOut,
    /// The work ended before it was done.
    #[error("the work was aborted")]
    Aborted(#[source] tokio::task::JoinError),
}

impl From<PatchError> for Error {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::Transition(error) => error.into(),
            error @ (PatchError::Window(_) | PatchError::Grace(_) | PatchError::Claims(_)) => Self::Patch(error),
        }
    }
}
