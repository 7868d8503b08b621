//! The sign-in at an OpenID provider: the authorization code flow with PKCE (RFC 6749, RFC 7636, OpenID Connect Core).
//!
//! What comes of it is an access token, which is what a session holds: it is checked as those are that come to the
//! management API, by the same code, on every request. The ID token tells only that this answer is one to our question.

use std::{fmt, sync::Arc, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::utf8_percent_encode;
use poem::http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex;

use super::{
    form::{Fields, Link},
    session::{SealError, Sealer},
};
use crate::{
    http::{
        UNRESERVED,
        auth::issuer::{Address, AddressError, FetchError, KeyClient},
        problem::Problem,
    },
    service::chain,
};

/// How long the provider may take to answer: a person waits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the provider's description is kept: anybody may begin a sign-in, and must not make this service ask each time.
const KEEPING: TimeDelta = TimeDelta::minutes(1);
/// The path to which the provider sends a browser back.
pub const CALLBACK: &str = "/console/openid/callback";

/// How to sign in at an OpenID provider.
#[derive(Clone)]
pub struct OpenIdSettings {
    /// The provider, as `iss` in its tokens says.
    pub issuer: String,
    /// Where its description is.
    pub description: Address,
    /// What it knows the console as.
    pub client_id: String,
    /// The secret that goes with it; none for a client that has none.
    pub client_secret: Option<String>,
    /// The scopes to ask for, beside `openid`.
    pub scopes: Vec<String>,
    /// Where browsers find the service: what stands before `/console`.
    pub base: String,
}

/// It holds a secret.
impl fmt::Debug for OpenIdSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenIdSettings").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// The sign-in at an OpenID provider.
#[derive(Debug)]
pub struct OpenId {
    settings: OpenIdSettings,
    client: KeyClient,
    /// The provider's description, and when it was asked for. Who needs a new one waits for whoever asks for it.
    described: Mutex<Option<(DateTime<Utc>, Arc<Description>)>>,
}

/// What a browser keeps while it signs in.
#[derive(Serialize, Deserialize)]
pub struct UnderWay {
    state: String,
    nonce: String,
    verifier: String,
    /// The page to show then.
    pub next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Description {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: String,
    token_type: String,
    id_token: String,
}

/// What an ID token says, of what is looked at.
#[derive(Deserialize)]
struct IdClaims {
    iss: String,
    aud: Audience,
    nonce: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {TIMEOUT:?}")]
    TimedOut,
    #[error("the provider gave no answer that can be used")]
    Fetch(#[from] FetchError),
    #[error("the provider's answer cannot be read")]
    Answer(#[from] serde_json::Error),
    #[error("the description of the provider names an address that may not be asked")]
    Address(#[from] AddressError),
    #[error("the description is one of another provider")]
    Issuer,
    #[error("the provider gave another kind of token")]
    Kind,
    #[error("the ID token is not an answer to what was asked")]
    IdToken,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        // The log gets the reason; a browser is told no more than that it did not work.
        tracing::warn!(error = chain(&failure), "the OpenID provider signed nobody in");
        let detail = "The OpenID provider gave no answer that can be used. Try again; the log tells the operator why.";
        Self::new(StatusCode::BAD_GATEWAY, "provider_failed", detail)
    }
}

/// The answer does not belong to a sign-in of this browser.
fn stray() -> Problem {
    let detail = "This answer of the OpenID provider belongs to no sign-in that this browser has begun: sign in again.";
    Problem::new(StatusCode::BAD_REQUEST, "stray_sign_in", detail)
}

impl OpenId {
    /// A sign-in by these settings.
    ///
    /// # Errors
    ///
    /// When the protocol versions of TLS do not fit the cryptography, which a test would show.
    pub fn new(settings: OpenIdSettings) -> Result<Self, rustls::Error> {
        Ok(Self { settings, client: KeyClient::new()?, described: Mutex::new(None) })
    }

    /// Where a browser goes to sign in, and what it keeps meanwhile.
    ///
    /// # Errors
    ///
    /// 502 when the provider cannot be asked.
    pub async fn begin(
        &self,
        sealer: &Sealer,
        next: Option<String>,
        now: DateTime<Utc>,
    ) -> Result<(Link, UnderWay), Problem> {
        let description = self.description(now).await?;
        // It is only sent to a browser, but a browser must not be sent anywhere.
        let endpoint = Address::parse(&description.authorization_endpoint).map_err(Failure::from)?;
        let unguessable = || sealer.unguessable().map_err(|error: SealError| Problem::from(error));
        let under_way = UnderWay { state: unguessable()?, nonce: unguessable()?, verifier: unguessable()?, next };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&under_way.verifier));
        let scopes = std::iter::once("openid").chain(self.settings.scopes.iter().map(String::as_str));
        let link = Link::to(&endpoint.as_uri().to_string())
            .with("response_type", "code")
            .with("client_id", &self.settings.client_id)
            .with("redirect_uri", &self.callback())
            .with("scope", &scopes.collect::<Vec<_>>().join(" "))
            .with("state", &under_way.state)
            .with("nonce", &under_way.nonce)
            .with("code_challenge", &challenge)
            .with("code_challenge_method", "S256");
        Ok((link, under_way))
    }

    /// The access token that a browser's answer stands for.
    ///
    /// # Errors
    ///
    /// 400 when the answer is not one to a question of this browser; 401 when the provider signed nobody in; 502 when
    /// it cannot be asked.
    pub async fn finish(
        &self,
        under_way: Option<&UnderWay>,
        answer: &Fields,
        now: DateTime<Utc>,
    ) -> Result<String, Problem> {
        let under_way = under_way.ok_or_else(stray)?;
        let state = answer.get("state").unwrap_or_default();
        if !bool::from(state.as_bytes().ct_eq(under_way.state.as_bytes())) {
            return Err(stray());
        }
        // A provider that says who it is must be the one that was asked (RFC 9207).
        if answer.get("iss").is_some_and(|issuer| issuer != self.settings.issuer) {
            return Err(stray());
        }
        let Some(code) = answer.get("code") else {
            let detail = "The OpenID provider did not sign you in.";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "not_signed_in", detail));
        };
        let tokens = self.tokens(code, &under_way.verifier, now).await?;
        self.check(&tokens, &under_way.nonce)?;
        Ok(tokens.access_token)
    }

    fn callback(&self) -> String {
        format!("{}{CALLBACK}", self.settings.base)
    }

    async fn description(&self, now: DateTime<Utc>) -> Result<Arc<Description>, Failure> {
        let work = async {
            let mut described = self.described.lock().await;
            if let Some((at, description)) = &*described
                && (*at..*at + KEEPING).contains(&now)
            {
                return Ok(Arc::clone(description));
            }
            let description: Description = serde_json::from_slice(&self.client.get(&self.settings.description).await?)?;
            if description.issuer.trim_end_matches('/') != self.settings.issuer.trim_end_matches('/') {
                return Err(Failure::Issuer);
            }
            let (_, description) = described.insert((now, Arc::new(description)));
            Ok(Arc::clone(description))
        };
        // Whoever waits for another's question does so no longer than for his own.
        tokio::time::timeout(TIMEOUT, work).await.map_err(|_| Failure::TimedOut)?
    }

    async fn tokens(&self, code: &str, verifier: &str, now: DateTime<Utc>) -> Result<Tokens, Failure> {
        let OpenIdSettings { client_id, client_secret, description: described_at, .. } = &self.settings;
        let endpoint = Address::parse(&self.description(now).await?.token_endpoint)?;
        // Another machine must not make this one send secrets in the clear.
        if endpoint.is_plain() && !described_at.is_plain() {
            return Err(AddressError.into());
        }
        let form = Link::to("")
            .with("grant_type", "authorization_code")
            .with("code", code)
            .with("redirect_uri", &self.callback())
            .with("code_verifier", verifier);
        let (form, authorization) = match client_secret {
            // Encoded, each, as the standard has it (RFC 6749 section 2.3.1).
            Some(secret) => {
                let encode = |text: &str| utf8_percent_encode(text, &UNRESERVED).to_string();
                let pair = format!("{}:{}", encode(client_id), encode(secret));
                (form, HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok())
            }
            None => (form.with("client_id", client_id), None),
        };
        let body = form.as_str().trim_start_matches('?').to_owned();
        let post = tokio::time::timeout(TIMEOUT, self.client.post(&endpoint, authorization, body));
        Ok(serde_json::from_slice(&post.await.map_err(|_| Failure::TimedOut)??)?)
    }

    /// Checks that tokens are an answer to what this browser asked. They came from the provider itself, over TLS, which
    /// stands for their signature here (OpenID Connect Core section 3.1.3.7); that of the access token is looked at when
    /// it is used.
    fn check(&self, tokens: &Tokens, nonce: &str) -> Result<(), Failure> {
        if !tokens.token_type.eq_ignore_ascii_case("bearer") {
            return Err(Failure::Kind);
        }
        let mut parts = tokens.id_token.split('.');
        let payload = parts.nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok()).ok_or(Failure::IdToken)?;
        let IdClaims { iss, aud, nonce: given } = serde_json::from_slice(&payload)?;
        let is_for_us = match &aud {
            Audience::One(one) => *one == self.settings.client_id,
            Audience::Many(many) => many.contains(&self.settings.client_id),
        };
        let is_ours = given.is_some_and(|given| bool::from(given.as_bytes().ct_eq(nonce.as_bytes())));
        let is_theirs = iss.trim_end_matches('/') == self.settings.issuer.trim_end_matches('/');
        if is_for_us && is_ours && is_theirs { Ok(()) } else { Err(Failure::IdToken) }
    }
}
