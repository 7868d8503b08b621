//! What a use case can answer instead of a value.

use crate::{
    domain::{
        life::{InvalidGrace, TransitionError},
        scope::Scope,
        token::{AlreadyRevoked, InvalidExpiry},
        window::InvalidWindow,
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
    /// The window would hold nothing.
    #[error(transparent)]
    Window(#[from] InvalidWindow),
    /// The grace would not end after the window.
    #[error(transparent)]
    Grace(#[from] InvalidGrace),
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

impl From<crate::domain::subscription::PatchError> for Error {
    fn from(error: crate::domain::subscription::PatchError) -> Self {
        use crate::domain::subscription::PatchError;
        match error {
            PatchError::Window(error) => error.into(),
            PatchError::Grace(error) => error.into(),
            PatchError::Transition(error) => error.into(),
        }
    }
}
