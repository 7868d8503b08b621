//! Tokens that an issuer has signed (RFC 7519): what they must say, whether the signature is right, and for how long
//! that need not be asked again.
//!
//! Architecture invariant: nothing that a token says is believed before its signature was checked, except to refuse it.
//! In particular no address comes from a token: the keys are those of the issuers that the operator has named. Keys are
//! asked for again only for a token whose every claim would be right.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    issuer::{Attempt, Issuer, Keys},
    jwk::Algorithm,
    remembered::Proof,
};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Why a token is refused: for the log and the metrics, never for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// It is no token, or one of a form that is not supported.
    Malformed,
    /// It is longer than any token should be.
    TooLong,
    /// Its algorithm is not supported, or not one of its key's.
    Algorithm,
    /// It has an extension that must be understood (`crit`), and none is.
    Critical,
    /// Its issuer is not one of those that were named.
    Issuer,
    /// It is for somebody else.
    Audience,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It lacks a scope.
    Scope,
    /// It is of another client.
    Client,
    /// Its issuer has no such key.
    UnknownKey,
    /// Its signature is wrong.
    Signature,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::TooLong,
        Self::Algorithm,
        Self::Critical,
        Self::Issuer,
        Self::Audience,
        Self::Expired,
        Self::NotYetValid,
        Self::Scope,
        Self::Client,
        Self::UnknownKey,
        Self::Signature,
    ];

    /// The reason's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Algorithm => "algorithm",
            Self::Critical => "critical",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Scope => "scope",
            Self::Client => "client",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
        }
    }
}

/// Why a token does not open anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is not right.
    Refused(Reason),
    /// Whether it is right cannot be told: its issuer's keys could not be had.
    KeysUnavailable,
}

/// What a token says (RFC 7519 section 4.1, RFC 9068 section 2.2).
#[derive(Debug, Clone)]
pub struct Claims {
    issuer: String,
    audiences: Vec<String>,
    expires_at: DateTime<Utc>,
    not_before: Option<DateTime<Utc>>,
    /// `sub`: whom it is about.
    pub subject: Option<String>,
    /// `scope`, as a list.
    pub scopes: Vec<String>,
    /// `cid` and `client_id`: older and newer names of the client; which one a token has differs by its age.
    pub clients: [Option<String>; 2],
}

/// What a caller's token is good for, from what it says; or why it is not.
pub type Accept<T> = Box<dyn Fn(&Claims) -> Result<T, Reason> + Send + Sync>;

/// How much waiting for keys is borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a request may wait.
    pub limit: Duration,
    /// How many may wait at once: each holds a place that a good request may need. A rotation makes some wait, for some
    /// milliseconds.
    pub places: usize,
}

/// Verifies the tokens of some issuers.
pub struct Verifier<T> {
    issuers: Vec<Arc<Issuer>>,
    audiences: Vec<String>,
    leeway: TimeDelta,
    patience: Patience,
    accept: Accept<T>,
    waiting: Semaphore,
}

impl<T> fmt::Debug for Verifier<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("issuers", &self.issuers).finish_non_exhaustive()
    }
}

impl<T> Verifier<T> {
    /// Takes tokens of these issuers that are meant for one of these audiences, compared exactly. `leeway` is how far
    /// the issuer's clock may be off.
    pub fn new(
        issuers: Vec<Arc<Issuer>>,
        audiences: Vec<String>,
        leeway: TimeDelta,
        patience: Patience,
        accept: Accept<T>,
    ) -> Self {
        let waiting = Semaphore::new(patience.places);
        Self { issuers, audiences, leeway, patience, accept, waiting }
    }

    /// Whether each issuer has had keys, so that its tokens can be told from others.
    pub fn is_ready(&self) -> bool {
        self.issuers.iter().all(|issuer| issuer.keys().is_some())
    }

    /// Waits until each issuer was asked for its keys once, whatever came of it.
    pub async fn begun(&self) {
        for issuer in &self.issuers {
            if issuer.keys().is_none() {
                issuer.refresh().await;
            }
        }
    }

    /// What a token is good for, and until when that need not be asked again.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<(T, Proof), Failure> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Failure::Refused(Reason::TooLong));
        }
        let parsed = Parsed::of(token).map_err(Failure::Refused)?;
        let (issuer, value, until) = self.check(&parsed.claims, now).map_err(Failure::Refused)?;
        let keys = match self.issuers[issuer].keys() {
            Some(keys) => match parsed.verify(&keys) {
                Ok(()) => keys,
                // The issuer may have a key that is newer than those that are known here; it is not one that a token
                // has to bring along.
                Err(Reason::UnknownKey) if !parsed.brings_key => self.ask_again(issuer, true, &parsed).await?,
                Err(reason) => return Err(Failure::Refused(reason)),
            },
            None => self.ask_again(issuer, false, &parsed).await?,
        };
        let proof = Proof::Signed { until, issuer: Arc::clone(&self.issuers[issuer]), keys: keys.number };
        Ok((value, proof))
    }

    /// Verifies a token whose key is not known with the keys that its issuer has now, and gives those.
    ///
    /// That a key does not exist is only known from an issuer that was asked: when it gives no answer, the failure is
    /// [`Failure::KeysUnavailable`] even though there are other keys.
    async fn ask_again(&self, issuer: usize, is_any_known: bool, parsed: &Parsed<'_>) -> Result<Keys, Failure> {
        let issuer = &self.issuers[issuer];
        let known = if is_any_known { Failure::Refused(Reason::UnknownKey) } else { Failure::KeysUnavailable };
        // Those for whom there is no place are answered from what is known, as those are who come when the budget is used
        // up.
        let Ok(_place) = self.waiting.try_acquire() else { return Err(known) };
        let deadline = Instant::now() + self.patience.limit;
        loop {
            let Some(Attempt { refresh, is_joined }) = issuer.refresh_on_demand() else { return Err(known) };
            let is_refreshed = timeout_at(deadline, refresh).await.is_ok_and(|is_refreshed| is_refreshed);
            let Some(keys) = issuer.keys() else { return Err(Failure::KeysUnavailable) };
            match parsed.verify(&keys) {
                Ok(()) => return Ok(keys),
                Err(Reason::UnknownKey) if !is_refreshed => return Err(Failure::KeysUnavailable),
                // It was asked before the token came, and the key may be younger than that.
                Err(Reason::UnknownKey) if is_joined => {}
                Err(reason) => return Err(Failure::Refused(reason)),
            }
        }
    }

    /// Whether what a token says would do: the issuer's place, what the token is good for, and until when.
    fn check(&self, claims: &Claims, now: DateTime<Utc>) -> Result<(usize, T, DateTime<Utc>), Reason> {
        let issuer = self.issuers.iter().position(|issuer| issuer.name() == claims.issuer).ok_or(Reason::Issuer)?;
        if !claims.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Reason::Audience);
        }
        let until = claims.expires_at.checked_add_signed(self.leeway).ok_or(Reason::Malformed)?;
        if now >= until {
            return Err(Reason::Expired);
        }
        let earliest = claims.not_before.map(|not_before| not_before.checked_sub_signed(self.leeway));
        if earliest.is_some_and(|earliest| earliest.is_some_and(|earliest| now < earliest)) {
            return Err(Reason::NotYetValid);
        }
        Ok((issuer, (self.accept)(claims)?, until))
    }
}

/// Whether a bearer token has the form of a signed one: three parts with dots between them.
pub fn has_form(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// A token taken apart, not yet verified.
struct Parsed<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// Whether its header holds a key, or tells where one is.
    brings_key: bool,
    claims: Claims,
    /// What was signed.
    message: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parsed<'a> {
    /// Takes a token in compact form (RFC 7515 section 7.1) apart.
    fn of(token: &'a str) -> Result<Self, Reason> {
        let (message, signature) = token.rsplit_once('.').ok_or(Reason::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Reason::Malformed)?;
        let header: Header = object(header)?;
        if header.has_critical {
            return Err(Reason::Critical);
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(Reason::Algorithm)?;
        let claims = object::<RawClaims>(claims)?.try_into()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Reason::Malformed)?;
        let brings_key = [header.jku, header.jwk, header.x5u, header.x5c].iter().any(Option::is_some);
        Ok(Self { algorithm, key_id: header.kid, brings_key, claims, message, signature })
    }

    /// Checks the signature with the keys that the issuer has.
    fn verify(&self, keys: &Keys) -> Result<(), Reason> {
        let mut outcome = Err(Reason::UnknownKey);
        for key in keys.set.iter().filter(|key| key.answers_to(self.key_id.as_deref())) {
            if key.verifies(self.algorithm, self.message.as_bytes(), &self.signature) {
                return Ok(());
            }
            // That a key without a name is not the one that a token names tells nothing of the one that is.
            if key.is_named() || self.key_id.is_none() {
                outcome = Err(if key.allows(self.algorithm) { Reason::Signature } else { Reason::Algorithm });
            }
        }
        outcome
    }
}

/// The header's members that matter (RFC 7515 section 4.1). What those hold that bring a key is not looked at: keys
/// come from the issuer alone.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(rename = "crit", default, deserialize_with = "is_there")]
    has_critical: bool,
    jku: Option<IgnoredAny>,
    jwk: Option<IgnoredAny>,
    x5u: Option<IgnoredAny>,
    x5c: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    aud: OneOrMany,
    exp: serde_json::Number,
    nbf: Option<serde_json::Number>,
    sub: Option<String>,
    scope: Option<OneOrMany>,
    cid: Option<String>,
    client_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<RawClaims> for Claims {
    type Error = Reason;

    fn try_from(raw: RawClaims) -> Result<Self, Reason> {
        let RawClaims { iss, aud, exp, nbf, sub, scope, cid, client_id } = raw;
        Ok(Self {
            issuer: iss,
            audiences: match aud {
                OneOrMany::One(audience) => vec![audience],
                OneOrMany::Many(audiences) => audiences,
            },
            expires_at: instant(&exp)?,
            not_before: nbf.as_ref().map(instant).transpose()?,
            subject: sub,
            scopes: match scope {
                None => Vec::new(),
                Some(OneOrMany::One(scopes)) => {
                    scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
                }
                Some(OneOrMany::Many(scopes)) => scopes,
            },
            clients: [cid, client_id],
        })
    }
}

/// A `NumericDate` (RFC 7519 section 2): seconds since 1970, maybe with a fraction.
fn instant(date: &serde_json::Number) -> Result<DateTime<Utc>, Reason> {
    let whole = date.as_i64().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    let fractional = || {
        let micros = (date.as_f64()? * 1e6).floor();
        // Beyond it a float no longer tells microseconds apart, and no token lives that long.
        #[expect(clippy::cast_possible_truncation, reason = "it was compared with bounds that fit")]
        (micros.abs() < 9e15).then_some(micros as i64).and_then(DateTime::from_timestamp_micros)
    };
    whole.or_else(fractional).ok_or(Reason::Malformed)
}

/// A JSON object in base64url without padding. serde would also take an array for a struct.
fn object<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, Reason> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::Malformed)?;
    let is_object = json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if is_object { serde_json::from_slice(&json).map_err(|_| Reason::Malformed) } else { Err(Reason::Malformed) }
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}
