//! The public keys of an issuer (RFC 7517), and which signatures each of them can check (RFC 7518).
//!
//! A key decides which algorithms it is good for; the header of a token only chooses among those. Symmetric keys are
//! not even kept, so no public key can be turned into the secret of a MAC.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use p521::ecdsa::signature::Verifier as _;
use ring::signature::{self as rs, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;

/// The most keys that a set may have: an issuer has a previous, a current and a next one, maybe of each algorithm.
pub const MAX_KEYS: usize = 64;
/// Bits of the modulus of an RSA key: shorter ones are weak (RFC 7518 section 3.3), longer ones cost an attacker's
/// token too much time of ours.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A signature algorithm (RFC 7518 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// The algorithm of a name; none of one that is not supported, such as `none` and those of symmetric keys.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    /// What ring calls it, for an RSA key.
    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &rs::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &rs::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &rs::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &rs::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &rs::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &rs::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Es512 => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, uncompressed (SEC 1 section 2.3.3).
    P256(Vec<u8>),
    /// The same.
    P384(Vec<u8>),
    P521(Box<p521::EncodedPoint>),
    /// One that checks no signature here: of another kind, for another purpose, weak or malformed. It is kept for its
    /// name, so that the issuer is not asked for it again.
    Unusable,
}

/// A public key that checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    id: Option<String>,
    /// The one algorithm that the issuer meant it for, if it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

impl Key {
    /// Whether a token that names this key may mean it. A token or a key without a name fits any that can be used.
    pub fn answers_to(&self, id: Option<&str>) -> bool {
        match (id, &self.id) {
            (Some(wanted), Some(id)) => wanted == id,
            (None, _) | (_, None) => self.is_usable(),
        }
    }

    /// Whether it bears a name.
    pub fn is_named(&self) -> bool {
        self.id.is_some()
    }

    /// Whether the key checks signatures.
    pub fn is_usable(&self) -> bool {
        self.material != Material::Unusable
    }

    /// Whether the key is good for an algorithm.
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        let fits = match self.material {
            Material::Rsa { .. } => algorithm.rsa().is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::P521(_) => algorithm == Algorithm::Es512,
            Material::Unusable => false,
        };
        fits && self.algorithm.is_none_or(|only| only == algorithm)
    }

    /// Whether a signature of a message is this key's.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let elliptic = |algorithm: &'static dyn VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
        };
        self.allows(algorithm)
            && match &self.material {
                Material::Rsa { n, e } => algorithm.rsa().is_some_and(|parameters| {
                    RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
                }),
                Material::P256(point) => elliptic(&rs::ECDSA_P256_SHA256_FIXED, point),
                Material::P384(point) => elliptic(&rs::ECDSA_P384_SHA384_FIXED, point),
                Material::P521(point) => verifies_p521(point, message, signature),
                Material::Unusable => false,
            }
    }
}

fn verifies_p521(point: &p521::EncodedPoint, message: &[u8], signature: &[u8]) -> bool {
    let key = p521::ecdsa::VerifyingKey::from_encoded_point(point);
    let signature = p521::ecdsa::Signature::from_slice(signature);
    key.is_ok_and(|key| signature.is_ok_and(|signature| key.verify(message, &signature).is_ok()))
}

/// The keys that an issuer has at a time.
pub type KeySet = Arc<[Key]>;

/// Why a document is no set of keys.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// It is not JSON, or has no member `keys`.
    #[error("it is no JWK set")]
    NotASet(#[from] serde_json::Error),
    /// It has more keys than anybody needs.
    #[error("it has {0} keys, more than {MAX_KEYS}")]
    TooMany(usize),
    /// It has no key that checks signatures. An issuer that has lost its keys is not one that has withdrawn them.
    #[error("none of its {0} keys can be used")]
    NoneUsable(usize),
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Reads a JWK set (RFC 7517 section 5).
///
/// # Errors
///
/// [`KeySetError`] when there is nothing to check signatures with.
pub fn parse(document: &[u8]) -> Result<KeySet, KeySetError> {
    let Document { keys } = serde_json::from_slice(document)?;
    let count = keys.len();
    if count > MAX_KEYS {
        return Err(KeySetError::TooMany(count));
    }
    let keys: KeySet = keys.into_iter().map(key).collect();
    if keys.iter().any(Key::is_usable) { Ok(keys) } else { Err(KeySetError::NoneUsable(count)) }
}

fn key(document: serde_json::Value) -> Key {
    let id = document.get("kid").and_then(|id| id.as_str()).map(str::to_owned);
    let usable = serde_json::from_value(document).ok().and_then(|jwk| usable(&jwk));
    let (algorithm, material) = usable.unwrap_or((None, Material::Unusable));
    let key = Key { id, algorithm, material };
    // One of another kind than its algorithm needs is good for nothing.
    let is_sound = algorithm.is_none_or(|algorithm| key.allows(algorithm));
    if is_sound { key } else { Key { material: Material::Unusable, ..key } }
}

fn usable(jwk: &Jwk) -> Option<(Option<Algorithm>, Material)> {
    let is_for_signatures = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && jwk.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
    if !is_for_signatures {
        return None;
    }
    let algorithm = match jwk.alg.as_deref() {
        // One that is meant for an algorithm that is not supported is good for no other.
        Some(name) => Some(Algorithm::named(name)?),
        None => None,
    };
    let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => rsa(jwk)?,
        ("EC", Some("P-256")) => Material::P256(point(jwk, 32)?),
        ("EC", Some("P-384")) => Material::P384(point(jwk, 48)?),
        ("EC", Some("P-521")) => {
            let point = p521::EncodedPoint::from_bytes(point(jwk, 66)?).ok()?;
            p521::ecdsa::VerifyingKey::from_encoded_point(&point).ok()?;
            Material::P521(Box::new(point))
        }
        _ => return None,
    };
    Some((algorithm, material))
}

fn rsa(jwk: &Jwk) -> Option<Material> {
    // The standard allows no leading zeros, which some issuers have all the same; ring refuses them.
    let number = |text: &Option<String>| {
        let bytes = URL_SAFE_NO_PAD.decode(text.as_deref()?).ok()?;
        let first = bytes.iter().position(|byte| *byte != 0)?;
        Some(bytes[first..].to_vec())
    };
    let (n, e) = (number(&jwk.n)?, number(&jwk.e)?);
    let bits = n.len() * 8 - usize::try_from(n.first()?.leading_zeros()).ok()?;
    let is_exponent = e.last().is_some_and(|last| last % 2 == 1) && e != [1];
    (RSA_BITS.contains(&bits) && is_exponent).then_some(Material::Rsa { n, e })
}

fn point(jwk: &Jwk, length: usize) -> Option<Vec<u8>> {
    let coordinate = |text: &Option<String>| {
        let bytes = URL_SAFE_NO_PAD.decode(text.as_deref()?).ok()?;
        (bytes.len() == length).then_some(bytes)
    };
    Some([vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())
}
