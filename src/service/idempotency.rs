//! Requests that are done once, however often they are sent: the key of one, and its answer, are kept in the very
//! transaction of its write (draft-ietf-httpapi-idempotency-key-header).

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseTransaction;

use super::{Error, Origin, Result, Service};
use crate::store::{
    self, Database,
    idempotency::{Done, Key},
};

/// How long the answer of a request with a key is kept.
pub(super) const KEEP_ANSWERS: TimeDelta = TimeDelta::hours(24);

/// The key that a sender gave to a request, and the digest of what was asked for with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key.
    pub key: String,
    /// The SHA-256 digest of all that the answer depends on.
    pub digest: [u8; 32],
}

/// A key may be guessed from, and tell, what is bought.
impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idempotency")
    }
}

/// What is kept of an answer, so that it can be given again.
pub(super) trait Kept: Sized {
    /// The text that is kept.
    fn write(&self) -> String;

    /// What a text says that was kept.
    ///
    /// # Errors
    ///
    /// [`store::Error::Unexpected`] when it says nothing.
    fn read(kept: &str) -> store::Result<Self>;
}

impl Kept for String {
    fn write(&self) -> String {
        self.clone()
    }

    fn read(kept: &str) -> store::Result<Self> {
        Ok(kept.to_owned())
    }
}

/// The keys of the requests that are under way in this process.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<HashSet<Key>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that may have been done before; while it lives, no other one with its key goes on.
#[derive(Debug)]
pub(super) struct Once {
    request: Option<(Key, [u8; 32])>,
    running: Arc<Running>,
}

impl Drop for Once {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.request {
            self.running.lock().remove(key);
        }
    }
}

/// A request that was begun.
#[derive(Debug)]
pub(super) enum Begun<T> {
    /// It is to be done in this transaction.
    Now(DatabaseTransaction),
    /// It was done before, and this was its answer.
    Before(T),
}

/// Takes a transaction back, and waits for it: one that is dropped goes on for a moment, in which its key would seem to
/// be in use.
pub(super) async fn undo(transaction: DatabaseTransaction) {
    // One that cannot be taken back ends with its connection.
    let _ = transaction.rollback().await;
}

impl Service {
    /// Takes the key of a request, if it has one.
    ///
    /// # Errors
    ///
    /// [`Error::KeyInUse`] when another request with that key is under way.
    pub(super) fn once(&self, origin: &Origin) -> Result<Once> {
        let running = Arc::clone(&self.running);
        let Some(Idempotency { key, digest }) = origin.idempotency.clone() else {
            return Ok(Once { request: None, running });
        };
        let key = Key { actor: origin.actor.clone(), key };
        if !running.lock().insert(key.clone()) {
            return Err(Error::KeyInUse);
        }
        Ok(Once { request: Some((key, digest)), running })
    }
}

impl Once {
    /// Begins the transaction of a request, unless it was done before: then what was answered.
    ///
    /// # Errors
    ///
    /// [`Error::KeyReused`] when another request was done with its key; [`Error::KeyInUse`] when one is under way
    /// elsewhere.
    pub async fn begin<T: Kept>(&self, database: &Database, now: DateTime<Utc>) -> Result<Begun<T>> {
        let transaction = database.begin().await?;
        match self.before(&transaction, now).await {
            Ok(None) => Ok(Begun::Now(transaction)),
            Ok(Some(before)) => {
                undo(transaction).await;
                Ok(Begun::Before(before))
            }
            Err(error) => {
                undo(transaction).await;
                Err(error)
            }
        }
    }

    async fn before<T: Kept>(&self, transaction: &DatabaseTransaction, now: DateTime<Utc>) -> Result<Option<T>> {
        let Some((key, digest)) = &self.request else { return Ok(None) };
        if !store::idempotency::take(transaction, key).await? {
            return Err(Error::KeyInUse);
        }
        match store::idempotency::find(transaction, key, now - KEEP_ANSWERS).await? {
            None => Ok(None),
            Some(done) if done.digest == digest => Ok(Some(T::read(&done.answer)?)),
            Some(_) => Err(Error::KeyReused),
        }
    }

    /// Keeps the answer of a request that is about to be committed.
    ///
    /// # Errors
    ///
    /// [`Error::KeyInUse`] when another request was done with its key meanwhile.
    pub async fn keep<T: Kept>(&self, transaction: &DatabaseTransaction, now: DateTime<Utc>, answer: &T) -> Result<()> {
        let Some((key, digest)) = &self.request else { return Ok(()) };
        let done = Done { digest: digest.to_vec(), answer: answer.write() };
        store::idempotency::insert(transaction, key, done, now, now - KEEP_ANSWERS).await.map_err(|error| match error {
            store::Error::Duplicate(_) => Error::KeyInUse,
            error => error.into(),
        })
    }
}
