//! An issuer of tokens, as Access is one: it signs, publishes its keys, exchanges them, goes down and comes back. The
//! soak uses it, too.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p521::ecdsa::signature::Signer as _;
use ring::{
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
        RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

/// What the issuer of the tests calls itself.
pub const ISSUER: &str = "https://tenant.example.com/oauth";
/// Whom its tokens are for.
pub const AUDIENCE: &str = "https://hooks.example.com";
/// The client that Access calls its hooks as.
pub const ACCESS_CLIENT: &str = "onewelcomeAccessWebHookClient";
/// The scope that every token of Access for a hook has.
pub const SCOPE: &str = "onewelcome_webhooks";

/// Bytes as a part of a token.
pub fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[derive(Clone)]
enum Material {
    Rsa(Arc<RsaKeyPair>),
    Ring(Arc<EcdsaKeyPair>, &'static str),
    P521(Arc<p521::ecdsa::SigningKey>),
}

/// A key of the issuer, with both halves.
#[derive(Clone)]
pub struct SigningKey {
    /// Its name.
    pub id: String,
    material: Material,
}

impl SigningKey {
    /// An RSA key, of which there are three.
    pub fn rsa(id: &str) -> Self {
        let key = match id {
            "previous" => &include_bytes!("keys/rsa-previous.der")[..],
            "next" => include_bytes!("keys/rsa-next.der"),
            _ => include_bytes!("keys/rsa-current.der"),
        };
        let key = RsaKeyPair::from_pkcs8(key).expect("a key");
        Self { id: id.to_owned(), material: Material::Rsa(Arc::new(key)) }
    }

    /// A new key on P-256.
    pub fn p256(id: &str) -> Self {
        Self::ring(id, &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")
    }

    /// A new key on P-384.
    pub fn p384(id: &str) -> Self {
        Self::ring(id, &ECDSA_P384_SHA384_FIXED_SIGNING, "P-384")
    }

    fn ring(id: &str, algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect("the same key");
        Self { id: id.to_owned(), material: Material::Ring(Arc::new(key), curve) }
    }

    /// A new key on P-521.
    pub fn p521(id: &str) -> Self {
        let mut scalar = [0; 66];
        ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut scalar[2..]).expect("random bytes");
        let key = p521::ecdsa::SigningKey::from_slice(&scalar).expect("a key");
        Self { id: id.to_owned(), material: Material::P521(Arc::new(key)) }
    }

    /// The same key by another name.
    pub fn named(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    /// The public half (RFC 7517).
    pub fn jwk(&self) -> Value {
        let elliptic = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "kid": self.id, "x": part(x), "y": part(y)})
        };
        match &self.material {
            Material::Rsa(key) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "use": "sig", "kid": self.id, "n": part(n), "e": part(e)})
            }
            Material::Ring(key, curve) => elliptic(curve, key.public_key().as_ref()),
            Material::P521(key) => {
                let key = p521::ecdsa::VerifyingKey::from(&**key);
                elliptic("P-521", key.to_encoded_point(false).as_bytes())
            }
        }
    }

    /// The algorithms that it is good for.
    pub fn algorithms(&self) -> &'static [&'static str] {
        match &self.material {
            Material::Rsa(_) => &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
            Material::Ring(_, "P-256") => &["ES256"],
            Material::Ring(..) => &["ES384"],
            Material::P521(_) => &["ES512"],
        }
    }

    /// The signature of a message; of an algorithm that does not fit, the one that does.
    pub fn signature(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match &self.material {
            Material::Rsa(key) => {
                let encoding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("signed");
                signature
            }
            Material::Ring(key, _) => key.sign(&SystemRandom::new(), message).expect("signed").as_ref().to_vec(),
            Material::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }

    /// A token of these two parts, whatever they say.
    pub fn sign_parts(&self, algorithm: &str, header: &[u8], claims: &[u8]) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = part(self.signature(algorithm, message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A token with a header, whatever it says.
    pub fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default();
        self.sign_parts(algorithm, header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// A token.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"alg": self.algorithms()[0], "kid": self.id}), claims)
    }
}

/// What Access writes into a token for a hook: its newest form, until a quarter of an hour after the tests' present.
pub fn claims() -> Value {
    json!({
        "aud": AUDIENCE, "sub": ACCESS_CLIENT, "scope": format!("{SCOPE} onewelcome_webhook_test"), "iss": ISSUER,
        "exp": 1_781_525_700, "client_id": ACCESS_CLIENT,
    })
}

/// The same claims, some of them otherwise; null takes one away.
pub fn claims_with(changes: &Value) -> Value {
    let mut claims = claims();
    let object = claims.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(object.remove(name)),
            value => drop(object.insert(name.clone(), value.clone())),
        }
    }
    claims
}

/// How the issuer answers.
#[derive(Clone)]
pub enum Mode {
    /// With this document and status.
    Answer(u16, Vec<u8>),
    /// With its keys, after a while.
    Slow(Duration),
    /// With its keys, and it says that they are where this says.
    Described(String),
    /// Not at all: it closes the connection.
    Down,
    /// Elsewhere.
    Redirect(String),
    /// With so many bytes that never end in a document.
    Endless,
}

struct State {
    mode: Mode,
    keys: Value,
}

/// An issuer that is asked for its keys over HTTP.
pub struct Issuer {
    state: Arc<Mutex<State>>,
    requests: Arc<AtomicUsize>,
    written: Arc<AtomicUsize>,
    /// Where it listens.
    pub base: String,
    _serving: JoinSet<()>,
}

impl Issuer {
    /// An issuer with these keys.
    pub async fn with(keys: &[&SigningKey]) -> Self {
        let state = Arc::new(Mutex::new(State { mode: Mode::Slow(Duration::ZERO), keys: set(keys) }));
        let (requests, written) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let mut serving = JoinSet::new();
        let (for_task, counts) = (Arc::clone(&state), (Arc::clone(&requests), Arc::clone(&written)));
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (state, counts) = (Arc::clone(&for_task), (Arc::clone(&counts.0), Arc::clone(&counts.1)));
                connections.spawn(async move {
                    // Who hangs up has its reasons.
                    let _ = answer(stream, &state, &counts.0, &counts.1).await;
                });
            }
        });
        Self { state, requests, written, base, _serving: serving }
    }

    /// Publishes other keys, and answers with them from now on.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.publish_set(set(keys));
    }

    /// Publishes a document in the place of keys.
    pub fn publish_set(&self, keys: Value) {
        let mut state = self.state.lock().expect("no panic");
        *state = State { mode: Mode::Slow(Duration::ZERO), keys };
    }

    /// Answers otherwise from now on.
    pub fn set(&self, mode: Mode) {
        self.state.lock().expect("no panic").mode = mode;
    }

    /// How often it was asked.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// How many bytes were taken from it.
    pub fn written(&self) -> usize {
        self.written.load(Ordering::SeqCst)
    }
}

fn set(keys: &[&SigningKey]) -> Value {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()})
}

async fn answer(
    mut stream: TcpStream,
    state: &Mutex<State>,
    requests: &AtomicUsize,
    written: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    requests.fetch_add(1, Ordering::SeqCst);
    let (mode, keys) = {
        let state = state.lock().expect("no panic");
        (state.mode.clone(), state.keys.to_string().into_bytes())
    };
    let is_description = head.windows(DESCRIPTION.len()).any(|window| window == DESCRIPTION);
    let (status, extra, body) = match mode {
        Mode::Down => return Ok(()),
        Mode::Answer(status, body) => (status, String::new(), body),
        Mode::Redirect(place) => (302, format!("location: {place}\r\n"), Vec::new()),
        Mode::Described(place) if is_description => {
            (200, String::new(), json!({"issuer": "another name", "jwks_uri": place}).to_string().into_bytes())
        }
        Mode::Described(_) => (200, String::new(), keys),
        Mode::Slow(pause) => {
            sleep(pause).await;
            (200, String::new(), keys)
        }
        Mode::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 52428800\r\n\r\n").await?;
            let blanks = vec![b' '; 65_536];
            for _ in 0..800 {
                stream.write_all(&blanks).await?;
                written.fetch_add(blanks.len(), Ordering::SeqCst);
            }
            return Ok(());
        }
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Status\r\n{extra}content-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}

const DESCRIPTION: &[u8] = b"openid-configuration";
