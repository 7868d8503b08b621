//! An issuer of tokens, as Access is one: it signs, and publishes its key.

use std::{sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tollgate::service::{Clock as _, SystemClock};

use crate::sample::Sample;

/// What the issuer calls itself.
pub const ISSUER: &str = "https://tenant.example.com/oauth";
/// Whom its tokens are for.
pub const AUDIENCE: &str = "https://hooks.example.com";
/// The client that Access calls its hooks as.
const CLIENT: &str = "onewelcomeAccessWebHookClient";
/// The name of its key.
const KEY: &str = "current";

/// An issuer with one RSA key of 2,048 bits.
pub struct Issuer {
    key: RsaKeyPair,
    made: u64,
    /// Where its key is.
    pub keys: String,
    _serving: JoinSet<()>,
}

impl Issuer {
    /// Begins to publish.
    pub async fn new() -> anyhow::Result<Self> {
        let key = include_bytes!("../../tests/suite/keys/rsa-current.der");
        let key = RsaKeyPair::from_pkcs8(key).map_err(|error| anyhow::anyhow!("the key: {error}"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let keys = format!("http://{}/keys", listener.local_addr()?);
        let answer: Arc<str> = published(key.public()).into();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    // Who hangs up does not get it.
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Ok(Self { key, made: 0, keys, _serving: serving })
    }

    /// A token that is good for an hour, and like no other.
    pub fn token(&mut self) -> anyhow::Result<String> {
        self.made += 1;
        let now = SystemClock.now().timestamp();
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "RS256", "kid": KEY}));
        let claims = part(json!({
            "aud": AUDIENCE, "sub": CLIENT, "scope": "onewelcome_webhooks onewelcome_webhook_test", "iss": ISSUER,
            "exp": now + 3600, "iat": now, "jti": format!("AT.{:032x}", self.made), "client_id": CLIENT,
        }));
        let message = format!("{head}.{claims}");
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes())?)))
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut signature = vec![0; self.key.public().modulus_len()];
        let signed = self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map_err(|error| anyhow::anyhow!("signing: {error}"))?;
        Ok(signature)
    }

    /// How long the library takes to verify the signature of a token, in microseconds, by block of a hundred.
    pub fn bare_verification(&self, token: &str, blocks: usize) -> anyhow::Result<Sample> {
        let (message, _) = token.rsplit_once('.').unwrap_or_default();
        let (message, signature) = (message.as_bytes(), self.sign(message.as_bytes())?);
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public());
        let mut sample = Sample::default();
        for _ in 0..blocks {
            let begun = Instant::now();
            for _ in 0..100 {
                key.verify(message, &signature).map_err(|error| anyhow::anyhow!("verifying: {error}"))?;
            }
            sample.push(begun.elapsed().as_secs_f64() * 1e4);
        }
        Ok(sample)
    }
}

/// The public half of a key (RFC 7517), as an answer over HTTP.
fn published(key: &ring::rsa::PublicKey) -> String {
    let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(key);
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let keys = json!({"keys": [{"kty": "RSA", "use": "sig", "kid": KEY, "n": part(&n), "e": part(&e)}]}).to_string();
    let length = keys.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{keys}")
}
