//! The keys of an issuer: where they come from, and how they are kept at hand.
//!
//! They are asked for in the background, so that a request hardly ever waits for them, and by a request that names a
//! key which is not known, within a budget. Whatever goes wrong, the last good keys stay.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use hyper::{Uri, header::HeaderValue};
use serde::Deserialize;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Surface,
    jwk::{self, KeySet},
};
use crate::{
    http::client::{ClientError, HttpClient, Reply},
    service::{Service, chain},
};

/// The largest answer that is read, in bytes: 64 keys of 8,192 bits with their certificates are not larger.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// The status of an answer that holds what was asked for.
const OK: u16 = 200;
/// The path of an issuer's keys, unless told otherwise.
const KEYS_PATH: &str = "/v1/keys";
/// The path of an issuer's description (OpenID Connect Discovery 1.0, section 4).
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

/// Where an issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// At an address.
    At(Address),
    /// Where the issuer's description, which is at this address, says (`jwks_uri`).
    DescribedAt(Address),
}

/// An address that keys may come from: https, or http on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Uri);

/// Why keys may not come from an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be an absolute https URL, or an http URL of this machine")]
pub struct AddressError;

impl Address {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// [`AddressError`] when whoever stands between could exchange what is read there.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let uri: Uri = url.parse().map_err(|_| AddressError)?;
        let host = uri.host().ok_or(AddressError)?;
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        let is_here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        match uri.scheme_str() {
            Some("https") if !has_user => Ok(Self(uri)),
            Some("http") if is_here && !has_user => Ok(Self(uri)),
            _ => Err(AddressError),
        }
    }

    /// Its URL.
    pub(in crate::http) fn as_uri(&self) -> &Uri {
        &self.0
    }

    /// Whether it is one of this machine, without TLS.
    pub(in crate::http) fn is_plain(&self) -> bool {
        self.0.scheme_str() == Some("http")
    }

    /// The address of the keys below an issuer.
    ///
    /// # Errors
    ///
    /// [`AddressError`].
    pub fn of_keys(issuer: &str) -> Result<Self, AddressError> {
        Self::parse(&format!("{}{KEYS_PATH}", issuer.trim_end_matches('/')))
    }

    /// The address of the description of an issuer.
    ///
    /// # Errors
    ///
    /// [`AddressError`].
    pub fn of_description(issuer: &str) -> Result<Self, AddressError> {
        Self::parse(&format!("{}{DISCOVERY_PATH}", issuer.trim_end_matches('/')))
    }
}

/// How often keys are asked for, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long one attempt may take, description and keys together.
    pub timeout: Duration,
    /// From one refresh in the background to the next. A key that was withdrawn is known to be so by then, and so is a
    /// new one when the budget below is used up.
    pub interval: Duration,
    /// From a failed attempt to the next one in the background; it doubles with each failure, up to the interval, or
    /// to five times this while there are no keys at all.
    pub retry: Duration,
    /// Refreshes that requests may cause at once.
    pub budget: u32,
    /// After which time one more is allowed.
    pub refill: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            interval: Duration::from_secs(25),
            retry: Duration::from_secs(1),
            budget: 2,
            refill: Duration::from_secs(30),
        }
    }
}

/// The keys of an issuer as they were last read.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The keys.
    pub set: KeySet,
    /// Counts the sets that the issuer has had.
    pub number: u64,
}

/// Why an issuer gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// There is no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer is none with keys.
    #[error("the status is {0}")]
    Status(u16),
    /// The answer is no set of keys.
    #[error("the answer cannot be used")]
    KeySet(#[from] jwk::KeySetError),
    /// The description is none.
    #[error("the description of the issuer cannot be read")]
    Description(#[from] serde_json::Error),
    /// The description leads where keys may not come from.
    #[error("the description of the issuer names an address that keys may not come from")]
    Address(#[from] AddressError),
}

#[derive(Deserialize)]
struct Description {
    jwks_uri: String,
}

/// Asks issuers.
#[derive(Debug, Clone)]
pub struct KeyClient(HttpClient);

impl KeyClient {
    /// A client that believes the certificate authorities of the system.
    ///
    /// # Errors
    ///
    /// When the protocol versions do not fit the cryptography, which a test would show.
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self(HttpClient::new()?))
    }

    /// Asks for the keys once, within `patience`, and tells how many there are, and how many of these can be used.
    ///
    /// # Errors
    ///
    /// Why the keys cannot be had.
    pub async fn count(&self, source: &Source, patience: Duration) -> Result<(usize, usize), FetchError> {
        let set = timeout(patience, self.keys(source)).await.map_err(|_| FetchError::TimedOut(patience))??;
        Ok((set.iter().count(), set.iter().filter(|key| key.is_usable()).count()))
    }

    async fn keys(&self, source: &Source) -> Result<KeySet, FetchError> {
        let described;
        let address = match source {
            Source::At(address) => address,
            Source::DescribedAt(address) => {
                let description: Description = serde_json::from_slice(&self.get(address).await?)?;
                described = Address::parse(&description.jwks_uri)?;
                // Another machine must not make this one ask itself.
                if described.is_plain() && !address.is_plain() {
                    return Err(AddressError.into());
                }
                &described
            }
        };
        Ok(jwk::parse(&self.get(address).await?)?)
    }

    /// What stands at an address.
    ///
    /// # Errors
    ///
    /// [`FetchError`]
    pub(in crate::http) async fn get(&self, Address(uri): &Address) -> Result<Bytes, FetchError> {
        usable(self.0.get(&uri.to_string(), MAX_ANSWER_BYTES).await?)
    }

    /// What is answered to a form, with the credentials that a header `Authorization` holds.
    ///
    /// # Errors
    ///
    /// [`FetchError`]
    pub(in crate::http) async fn post(
        &self,
        Address(uri): &Address,
        authorization: Option<HeaderValue>,
        form: String,
    ) -> Result<Bytes, FetchError> {
        usable(self.0.post_form(&uri.to_string(), authorization, form, MAX_ANSWER_BYTES).await?)
    }
}

fn usable(Reply { status, body }: Reply) -> Result<Bytes, FetchError> {
    if status == OK { Ok(body) } else { Err(FetchError::Status(status)) }
}

/// Refreshes that requests may still cause.
#[derive(Debug)]
struct Budget {
    left: u32,
    /// When it was last full, or one was last added.
    since: Instant,
}

impl Budget {
    fn take(&mut self, pace: &Pace, now: Instant) -> bool {
        while self.left < pace.budget && now.duration_since(self.since) >= pace.refill {
            self.left += 1;
            self.since += pace.refill;
        }
        if self.left == 0 {
            return false;
        }
        if self.left == pace.budget {
            self.since = now;
        }
        self.left -= 1;
        true
    }
}

/// Whether the keys were read; anybody may wait for it.
pub type Refresh = Shared<BoxFuture<'static, bool>>;

/// An attempt that a request waits for.
pub struct Attempt {
    /// Its end.
    pub refresh: Refresh,
    /// Whether it was under way already, so that what it reads may be from before the request.
    pub is_joined: bool,
}

/// An attempt to read the keys.
struct Flight {
    task: AbortHandle,
    refresh: Refresh,
}

impl Flight {
    /// What to wait for, while it is under way.
    fn join(&self) -> Option<Refresh> {
        (!self.task.is_finished()).then(|| self.refresh.clone())
    }
}

/// An issuer whose tokens are believed.
pub struct Issuer {
    name: String,
    surface: Surface,
    source: Source,
    client: KeyClient,
    pace: Pace,
    service: Arc<Service>,
    keys: ArcSwapOption<Keys>,
    number: AtomicU64,
    budget: Mutex<Budget>,
    /// The attempt that is under way, or the last one.
    flight: Mutex<Option<Flight>>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer that is called by its name (`iss`) in tokens for a surface. Its keys are asked for at once and then again and again,
    /// until it is dropped.
    pub fn new(
        surface: Surface,
        (name, source): (String, Source),
        client: KeyClient,
        pace: Pace,
        service: Arc<Service>,
    ) -> Arc<Self> {
        service.metrics().expect_issuer(surface.as_str(), &name);
        let issuer = Arc::new(Self {
            name,
            surface,
            source,
            client,
            pace,
            service,
            keys: ArcSwapOption::empty(),
            number: AtomicU64::new(0),
            budget: Mutex::new(Budget { left: pace.budget, since: Instant::now() }),
            flight: Mutex::new(None),
        });
        tokio::spawn(keep_fresh(Arc::downgrade(&issuer), pace));
        issuer
    }

    /// What its tokens call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keys, as far as they are known.
    pub fn keys(&self) -> Option<Keys> {
        self.keys.load().as_deref().cloned()
    }

    /// Counts the sets of keys that it has had.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Asks for its keys, or waits with those who have: one attempt is under way at a time.
    pub fn refresh(self: &Arc<Self>) -> Refresh {
        let mut flight = self.flight.lock().unwrap_or_else(PoisonError::into_inner);
        flight.as_ref().and_then(Flight::join).unwrap_or_else(|| self.begin(&mut flight))
    }

    /// The same for a request that needs a key which is not known. None when requests have caused too many attempts.
    pub fn refresh_on_demand(self: &Arc<Self>) -> Option<Attempt> {
        let mut flight = self.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refresh) = flight.as_ref().and_then(Flight::join) {
            return Some(Attempt { refresh, is_joined: true });
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = || Attempt { refresh: self.begin(&mut flight), is_joined: false };
        budget.take(&self.pace, Instant::now()).then(begin)
    }

    fn begin(self: &Arc<Self>, flight: &mut Option<Flight>) -> Refresh {
        // A task of its own: whoever hangs up must not cancel what others wait for.
        let task = tokio::spawn(Arc::clone(self).fetch());
        let handle = task.abort_handle();
        let refresh = task.map(|done| done.unwrap_or(false)).boxed().shared();
        *flight = Some(Flight { task: handle, refresh: refresh.clone() });
        refresh
    }

    async fn fetch(self: Arc<Self>) -> bool {
        let fetched = timeout(self.pace.timeout, self.client.keys(&self.source)).await;
        let fetched = fetched.unwrap_or(Err(FetchError::TimedOut(self.pace.timeout)));
        match fetched {
            Ok(set) => {
                let usable = set.iter().filter(|key| key.is_usable()).count();
                self.service.metrics().count_keys_read(self.surface.as_str(), &self.name, usable, self.service.now());
                let is_known = self.keys.load().as_ref().is_some_and(|known| known.set == set);
                if !is_known {
                    let number = self.number() + 1;
                    tracing::info!(issuer = self.name, keys = usable, "an issuer has other keys than before");
                    self.keys.store(Some(Arc::new(Keys { set, number })));
                    self.number.store(number, Ordering::Release);
                }
                true
            }
            Err(error) => {
                self.service.metrics().count_keys_failed(self.surface.as_str(), &self.name);
                let (issuer, has_keys) = (&self.name, self.keys.load().is_some());
                let error = chain(&error);
                tracing::warn!(issuer, has_keys, error, "the keys of an issuer could not be read");
                false
            }
        }
    }
}

async fn keep_fresh(issuer: Weak<Issuer>, pace: Pace) {
    let mut failures = 0;
    loop {
        let pause = {
            let Some(issuer) = issuer.upgrade() else { return };
            let refresh = issuer.refresh();
            let has_keys = issuer.keys().is_some();
            drop(issuer);
            if refresh.await {
                failures = 0;
                pace.interval
            } else {
                let longest = if has_keys { pace.interval } else { pace.interval.min(pace.retry * 5) };
                let pause = pace.retry.saturating_mul(1 << failures).min(longest);
                failures = (failures + 1).min(16);
                pause
            }
        };
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_a_connection_that_nobody_can_change() {
        for url in [
            "https://tenant.example.com/oauth/v1/keys",
            "https://tenant.example.com:8443/keys",
            "http://localhost:8080/keys",
            "http://127.0.0.1/keys",
            "http://[::1]:80/keys",
        ] {
            assert!(Address::parse(url).is_ok(), "{url}");
        }
        for url in [
            "http://tenant.example.com/oauth/v1/keys",
            "http://localhost.example.com/keys",
            "http://127.0.0.1.example.com/keys",
            "http://10.0.0.1/keys",
            "https://user:secret@tenant.example.com/keys",
            "ftp://localhost/keys",
            "file:///etc/passwd",
            "/v1/keys",
            "tenant.example.com",
            "",
        ] {
            assert_eq!(Address::parse(url), Err(AddressError), "{url}");
        }
    }

    #[test]
    fn the_keys_are_below_the_issuer() {
        for issuer in ["https://tenant.example.com/oauth", "https://tenant.example.com/oauth/"] {
            let expected = Address::parse("https://tenant.example.com/oauth/v1/keys");
            assert_eq!(Address::of_keys(issuer), expected);
            let expected = Address::parse("https://tenant.example.com/oauth/.well-known/openid-configuration");
            assert_eq!(Address::of_description(issuer), expected);
        }
    }

    #[test]
    fn a_budget_is_used_up_and_fills_again_one_by_one() {
        let (pace, start) = (Pace::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut budget = Budget { left: pace.budget, since: start };
        let taken: Vec<bool> = [100, 101, 102, 129, 130, 131, 159, 160, 161, 300, 301, 302]
            .map(|seconds| budget.take(&pace, after(seconds)))
            .to_vec();
        let expected = [true, true, false, false, true, false, false, true, false, true, true, false];
        assert_eq!(taken, expected);
    }
}
