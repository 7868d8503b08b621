//! The session of a browser: a cookie that holds the credential itself, sealed, so that the service keeps nothing.
//!
//! The credential is checked again on every request, by the code that checks those of the API: one that is revoked, or
//! ends, ends what its sessions may do at once.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use poem::http::{HeaderMap, HeaderValue, header};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom as _, SystemRandom},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use subtle::ConstantTimeEq as _;

/// How long a session lasts: a working day, so that whoever comes back the next morning signs in again.
pub const LENGTH: TimeDelta = TimeDelta::hours(8);
/// How far in the future something may have been sealed. Replicas share the key and not the clock: what one whose clock
/// is ahead has just sealed must open at another one.
const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::minutes(1);
/// The longest cookie that browsers keep, in bytes: its name, its value and its attributes (RFC 6265 section 6.1).
const MAX_COOKIE_BYTES: usize = 4096;
/// Room for the name and the attributes.
const COOKIE_MARGIN_BYTES: usize = 256;

/// What is sealed, so that one thing is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A session.
    Session,
    /// A sign-in at an OpenID provider that is under way.
    SignIn,
}

impl Purpose {
    /// The name of its cookie. With the prefix a browser takes it over TLS only, from this very host only.
    fn cookie(self, is_secure: bool) -> &'static str {
        match (self, is_secure) {
            (Self::Session, true) => "__Host-tollgate-console",
            (Self::Session, false) => "tollgate-console",
            (Self::SignIn, true) => "__Host-tollgate-sign-in",
            (Self::SignIn, false) => "tollgate-sign-in",
        }
    }

    /// When a browser sends its cookie. That of a sign-in comes along as the provider sends the browser back.
    fn same_site(self) -> &'static str {
        match self {
            Self::Session => "Strict",
            Self::SignIn => "Lax",
        }
    }

    /// How long it lasts.
    fn length(self) -> TimeDelta {
        match self {
            Self::Session => LENGTH,
            // Whoever looks for a password for longer begins anew.
            Self::SignIn => TimeDelta::minutes(15),
        }
    }
}

/// What a browser's session holds.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// The credential.
    pub token: String,
    /// What each form that is shown to its visitor repeats.
    pub form_token: String,
}

/// It holds a credential.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    /// Whether a form was made by a page that was shown to its visitor.
    pub fn made(&self, form_token: Option<&str>) -> bool {
        form_token.is_some_and(|token| self.form_token.as_bytes().ct_eq(token.as_bytes()).into())
    }
}

/// Sealed with when it was.
#[derive(Serialize, Deserialize)]
struct Dated<T> {
    at: DateTime<Utc>,
    value: T,
}

/// Why nothing is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No browser would keep it.
    #[error("it is too long for a cookie")]
    TooLong,
    /// The machine gave no random bytes.
    #[error("there are no random bytes to be had")]
    NoRandomness,
}

/// Seals what browsers keep.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// A sealer with a key that is derived from a secret, or a random one: then its sessions are those of this process.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRandomness`].
    pub fn new(secret: Option<&[u8]>) -> Result<Self, SealError> {
        let random = SystemRandom::new();
        let mut bytes = [0; 32];
        match secret {
            Some(secret) => {
                let key = Salt::new(HKDF_SHA256, b"tollgate console 1").extract(secret);
                let derived = key.expand(&[b"cookies"], &CHACHA20_POLY1305);
                derived.and_then(|derived| derived.fill(&mut bytes)).map_err(|_| SealError::NoRandomness)?;
            }
            None => random.fill(&mut bytes).map_err(|_| SealError::NoRandomness)?,
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| SealError::NoRandomness)?;
        Ok(Self { key: LessSafeKey::new(key), random })
    }

    /// A text that nobody can guess.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRandomness`].
    pub fn unguessable(&self) -> Result<String, SealError> {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes).map_err(|_| SealError::NoRandomness)?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The header that makes a browser keep a value.
    ///
    /// # Errors
    ///
    /// [`SealError`].
    pub fn cookie<T: Serialize>(
        &self,
        purpose: Purpose,
        value: T,
        now: DateTime<Utc>,
        is_secure: bool,
    ) -> Result<HeaderValue, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::NoRandomness)?;
        let mut sealed = serde_json::to_vec(&Dated { at: now, value }).map_err(|_| SealError::TooLong)?;
        let aad = Aad::from(purpose.cookie(is_secure));
        let nonced = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonced, aad, &mut sealed).map_err(|_| SealError::TooLong)?;
        let text = URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat());
        if text.len() + COOKIE_MARGIN_BYTES > MAX_COOKIE_BYTES {
            return Err(SealError::TooLong);
        }
        Ok(set_cookie(purpose, &text, purpose.length(), is_secure))
    }

    /// What a browser keeps, when this sealer has sealed it, and not too long ago.
    pub fn open<T: DeserializeOwned>(
        &self,
        purpose: Purpose,
        headers: &HeaderMap,
        now: DateTime<Utc>,
        is_secure: bool,
    ) -> Option<T> {
        let name = purpose.cookie(is_secure);
        let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, text) = pairs.find(|(there, _)| *there == name)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.key.open_in_place(nonce, Aad::from(name), sealed).ok()?;
        let Dated { at, value } = serde_json::from_slice(opened).ok()?;
        (at <= now + MAX_CLOCK_SKEW && now < at + purpose.length()).then_some(value)
    }
}

/// The header that makes a browser forget.
pub fn forget(purpose: Purpose, is_secure: bool) -> HeaderValue {
    set_cookie(purpose, "", TimeDelta::zero(), is_secure)
}

fn set_cookie(purpose: Purpose, value: &str, length: TimeDelta, is_secure: bool) -> HeaderValue {
    let (name, same_site, seconds) = (purpose.cookie(is_secure), purpose.same_site(), length.num_seconds());
    let secure = if is_secure { "; Secure" } else { "" };
    let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite={same_site}{secure}");
    // It consists of letters that a header holds.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-06-15T12:00:00Z".parse().expect("a timestamp")
    }

    fn session(token: &str) -> Session {
        Session { token: token.to_owned(), form_token: "form".to_owned() }
    }

    fn sent(cookie: &HeaderValue) -> HeaderMap {
        let (pair, _) = cookie.to_str().expect("text").split_once(';').expect("attributes");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::try_from(format!("a=b; {pair}; c=d")).expect("a value"))])
    }

    fn opened(sealer: &Sealer, purpose: Purpose, headers: &HeaderMap, now: DateTime<Utc>) -> Option<String> {
        sealer.open::<Session>(purpose, headers, now, true).map(|session| session.token)
    }

    #[test]
    fn a_session_is_opened_by_its_sealer_for_its_purpose_and_for_a_working_day() {
        let sealer = Sealer::new(None).expect("a sealer");
        let cookie = sealer.cookie(Purpose::Session, session("secret"), now(), true).expect("a cookie");
        let headers = sent(&cookie);
        let check = |purpose, at, expected: Option<&str>| {
            assert_eq!(opened(&sealer, purpose, &headers, at).as_deref(), expected, "{purpose:?} at {at}");
        };
        check(Purpose::Session, now(), Some("secret"));
        check(Purpose::Session, now() + LENGTH - TimeDelta::microseconds(1), Some("secret"));
        check(Purpose::Session, now() + LENGTH, None);
        check(Purpose::Session, now() - MAX_CLOCK_SKEW, Some("secret"));
        check(Purpose::Session, now() - MAX_CLOCK_SKEW - TimeDelta::microseconds(1), None);
        check(Purpose::SignIn, now(), None);
        assert_eq!(sealer.open::<Session>(Purpose::Session, &headers, now(), false).map(|one| one.token), None);
        assert_eq!(opened(&Sealer::new(None).expect("another"), Purpose::Session, &headers, now()), None);
        assert!(!cookie.to_str().expect("text").contains("secret"));
    }

    #[test]
    fn a_cookie_that_was_changed_anywhere_is_none() {
        let sealer = Sealer::new(Some(b"a secret of some length, shared by replicas")).expect("a sealer");
        let again = Sealer::new(Some(b"a secret of some length, shared by replicas")).expect("a sealer");
        let cookie = sealer.cookie(Purpose::Session, session("secret"), now(), true).expect("a cookie");
        let text = cookie.to_str().expect("text").to_owned();
        assert_eq!(opened(&again, Purpose::Session, &sent(&cookie), now()).as_deref(), Some("secret"));
        let start = text.find('=').expect("a value") + 1;
        let end = text.find(';').expect("attributes");
        for at in start..end {
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            let headers = sent(&HeaderValue::try_from(changed).expect("a value"));
            // The last letter may hold bits that mean nothing.
            assert!(at + 1 == end || opened(&sealer, Purpose::Session, &headers, now()).is_none(), "letter {at}");
        }
        for short in ["", "A", "AAAA"] {
            let headers = sent(&HeaderValue::try_from(format!("__Host-tollgate-console={short};")).expect("a value"));
            assert_eq!(opened(&sealer, Purpose::Session, &headers, now()), None);
        }
    }

    #[test]
    fn a_credential_that_no_cookie_holds_is_refused() {
        let sealer = Sealer::new(None).expect("a sealer");
        let cookie = |length| sealer.cookie(Purpose::Session, session(&"x".repeat(length)), now(), true).map(|_| ());
        assert_eq!((cookie(2500), cookie(3000)), (Ok(()), Err(SealError::TooLong)));
    }
}
