//! Use cases of the management API's tokens.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use ring::rand::{SecureRandom as _, SystemRandom};
use sea_orm::DatabaseTransaction;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Error, Origin, Result, Service, Touched,
    cache::{Found, KEPT_AFTER_EXPIRY},
    idempotency::{Begun, undo},
    in_time, new_id, to_its_end,
};
use crate::{
    domain::token::{MAX_LIVE_TOKENS, Role, SECRET_PREFIX, Token, TokenName},
    store::{
        self,
        change::{Change, Noun},
        token::Digest,
    },
};

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// How long a request to the management API waits until it is known who may call it.
const AUTHENTICATE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is written when tokens were last used.
const WRITE_USES_INTERVAL: Duration = Duration::from_mins(1);
/// How long writing it may take at the end of the process.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Its name.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// The first instant at which it has ended; none when it never does.
    pub expires_at: Option<DateTime<Utc>>,
}

/// The secret of a token: whoever has it is let in. It is shown once, and kept by its digest alone.
pub struct Secret(String);

impl Secret {
    fn random() -> Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
        Ok(Self(format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The digest by which a secret is known.
///
/// A plain hash is enough, for what is hashed holds 256 random bits: the slow ones are there for passwords, which can be
/// guessed, and would make every request slow.
#[must_use]
pub fn digest(secret: &str) -> Digest {
    Sha256::digest(secret).into()
}

/// When tokens last let somebody in, as far as it is not written yet. It never waits for the database.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<Uuid, DateTime<Utc>>>);

impl Uses {
    fn note(&self, id: Uuid, at: DateTime<Utc>) {
        let mut uses = self.lock();
        let last = uses.entry(id).or_insert(at);
        *last = at.max(*last);
    }

    fn take(&self) -> HashMap<Uuid, DateTime<Utc>> {
        mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, DateTime<Utc>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Makes a token: from the answer on its secret, which is told here alone, lets its bearer in.
    ///
    /// # Errors
    ///
    /// [`Error::TokenExpiry`] when it would have ended already; [`Error::TokenExists`] when another one has, or had, its
    /// name; [`Error::TooManyTokens`]; [`Error::SecretNotKept`] when the same request, by its key, was done before.
    pub async fn create_token(self: &Arc<Self>, origin: Origin, new: NewToken) -> Result<(Shown, Secret)> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let NewToken { name, role, expires_at } = new;
            let token = Token::new(new_id(now), name, role, expires_at, origin.actor.clone(), now)?;
            let secret = Secret::random()?;
            let once = service.once(&origin)?;
            let transaction = match once.begin::<String>(&service.database, now).await? {
                Begun::Now(transaction) => transaction,
                Begun::Before(_) => return Err(Error::SecretNotKept),
            };
            if let Err(error) = insert(&transaction, &token, &secret, now).await {
                undo(transaction).await;
                return Err(error);
            }
            let seq = store::change::insert(&transaction, change(&origin, now, "create", None, &token)).await?;
            // That it was done is kept, and nothing more: the secret stands nowhere.
            once.keep(&transaction, now, &String::new()).await?;
            service.commit(store::database::commit(transaction), vec![seq], vec![Touched::Tokens]).await?;
            Ok((Shown { token, now }, secret))
        })
        .await
    }

    /// The token of an id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none.
    pub async fn token(&self, id: Uuid) -> Result<Shown> {
        let now = self.clock.now();
        let token = in_time(store::token::find(self.database.readers(), id)).await?.ok_or(Error::NotFound)?;
        Ok(Shown { token, now })
    }

    /// The token of a name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is none.
    pub async fn token_named(&self, name: &TokenName) -> Result<Shown> {
        let now = self.clock.now();
        let find = store::token::find_by_name(self.database.readers(), name);
        let token = in_time(find).await?.ok_or(Error::NotFound)?;
        Ok(Shown { token, now })
    }

    /// Up to `limit` tokens after an id, ascending by id, those that let nobody in any more among them.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the database cannot be asked.
    pub async fn tokens(&self, after: Option<Uuid>, limit: u64) -> Result<Vec<Token>> {
        in_time(store::token::list(self.database.readers(), after, limit)).await
    }

    /// Revokes a token: from the answer on it lets nobody in.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::TokenRevoked`] when it is revoked already.
    pub async fn revoke_token(self: &Arc<Self>, origin: Origin, id: Uuid) -> Result<Shown> {
        let service = Arc::clone(self);
        to_its_end(async move {
            let now = service.clock.now();
            let once = service.once(&origin)?;
            let transaction = match once.begin::<String>(&service.database, now).await? {
                Begun::Now(transaction) => transaction,
                // Revoked is for good, so it still is what was answered.
                Begun::Before(_) => {
                    service.tell(&[Touched::Tokens]).await;
                    return service.token(id).await;
                }
            };
            let Some(old) = store::token::lock(&transaction, id).await? else {
                undo(transaction).await;
                return Err(Error::NotFound);
            };
            let token = match old.clone().revoke(now) {
                Ok(token) => token,
                Err(error) => {
                    undo(transaction).await;
                    return Err(error.into());
                }
            };
            store::token::update(&transaction, &token).await?;
            let seq = store::change::insert(&transaction, change(&origin, now, "revoke", Some(&old), &token)).await?;
            once.keep(&transaction, now, &String::new()).await?;
            service.commit(store::database::commit(transaction), vec![seq], vec![Touched::Tokens]).await?;
            Ok(Shown { token, now })
        })
        .await
    }

    /// Whose secret has this digest, and what they may do; none when no live token has it.
    ///
    /// It asks memory, which knows of every change that was answered before. What is not known to be right is not used:
    /// a token that was revoked must not be let in because the database is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when it is not known, and the database cannot be asked.
    pub async fn authenticate(&self, digest: &Digest, now: DateTime<Utc>) -> Result<Option<(TokenName, Role)>> {
        let get = async || match self.live_tokens.get(AUTHENTICATE_TIMEOUT).await {
            Found::Fresh(live) => Ok(live),
            Found::Stale(_) | Found::Unknown => Err(Error::Unknown),
        };
        let mut live = get().await?;
        if now < live.read_at - KEPT_AFTER_EXPIRY {
            // The clock was set back: tokens that had ended may be live again.
            self.live_tokens.changed();
            live = get().await?;
        }
        let Some(token) = live.tokens.get(digest).filter(|token| token.is_live(now)) else { return Ok(None) };
        self.uses.note(token.id, now);
        Ok(Some((token.name.clone(), token.role)))
    }

    /// Writes when tokens were last used, as far as it is not written yet. What cannot be written now is later.
    pub async fn write_uses(&self) {
        let mut uses = self.uses.take().into_iter();
        // One statement each, so that no row is held from a revocation while others are written.
        while let Some((id, at)) = uses.next() {
            if let Err(error) = in_time(store::token::used(self.database.writers(), id, at)).await {
                if let Error::Store(error) = error {
                    self.metrics.count_database_error(&error);
                }
                for (id, at) in std::iter::once((id, at)).chain(uses.by_ref()) {
                    self.uses.note(id, at);
                }
            }
        }
    }

    /// Writes, again and again, when tokens were last used.
    pub(super) async fn go_on_writing_uses(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WRITE_USES_INTERVAL).await;
            self.write_uses().await;
        }
    }

    /// Writes when tokens were last used, if that is quickly done: a minute of it may be lost.
    pub(super) async fn write_last_uses(&self) {
        let _ = tokio::time::timeout(LAST_WRITE_TIMEOUT, self.write_uses()).await;
    }
}

/// A token with the present at which it is shown: its status is derived from both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The token.
    pub token: Token,
    /// The present.
    pub now: DateTime<Utc>,
}

/// Records a token, if there is room for it.
async fn insert(transaction: &DatabaseTransaction, token: &Token, secret: &Secret, now: DateTime<Utc>) -> Result<()> {
    store::token::lock_creation(transaction).await?;
    if store::token::count_live(transaction, now).await? >= MAX_LIVE_TOKENS {
        return Err(Error::TooManyTokens);
    }
    let inserted = store::token::insert(transaction, token, &digest(secret.expose())).await;
    inserted.map_err(|error| match error {
        store::Error::Duplicate(_) => Error::TokenExists,
        error => error.into(),
    })
}

fn change<'a>(
    origin: &'a Origin,
    at: DateTime<Utc>,
    action: &'static str,
    before: Option<&'a Token>,
    after: &'a Token,
) -> Change<'a> {
    let Origin { actor, request_id, .. } = origin;
    Change { at, actor, request_id, action, noun: Noun::Token { before, after } }
}
