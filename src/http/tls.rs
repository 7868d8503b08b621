//! TLS of the listeners: certificate and key from files, looked at again while connections go on.
//!
//! All listeners show the same certificate, and differ in whose certificate they ask for. A change of the files counts
//! for all of them or for none. Files are compared by content, as what renews them may swap a symbolic link, or write
//! one after the other: what does not fit together is not used, and what was used before is kept until it does.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use chrono::{DateTime, NaiveDateTime, Utc};
use rustls::{
    InconsistentKeys, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_blocking,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::router::Surface;
use crate::service::{
    self,
    metrics::{Metrics, TlsReload},
};

/// How often the files are looked at. Who renews a certificate does so days before it has to.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// The most that is read of a file: many times what a chain of certificates takes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// The permission of everybody to read a file.
const READABLE_BY_OTHERS: u32 = 0o004;

/// A file, with the setting that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// The setting.
    pub setting: &'static str,
    /// Where the file lies.
    pub path: PathBuf,
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the file of {}, {},", self.setting, self.path.display())
    }
}

/// The files, all in PEM, that TLS is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and after it those that it was signed with.
    pub certificate: NamedFile,
    /// Its key.
    pub key: NamedFile,
    /// Who signs the certificates of those that call the hooks; none where they need none.
    pub hook_clients: Option<NamedFile>,
    /// Who signs the certificates of those that call a management API with a listener of its own.
    pub api_clients: Option<NamedFile>,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Unreadable {
        /// The file.
        file: NamedFile,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is none of certificates or keys.
    #[error("{0} is too large")]
    TooLarge(NamedFile),
    /// A file is damaged.
    #[error("{file} is not whole")]
    Damaged {
        /// The file.
        file: NamedFile,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// A file has no certificate.
    #[error("{0} holds no certificate in PEM")]
    NoCertificate(NamedFile),
    /// A file has no key. What it has instead is not said: it may be part of one.
    #[error("{0} holds no private key in PEM that is whole and needs no passphrase")]
    NoKey(NamedFile),
    /// A certificate or a key is of no kind that is known.
    #[error("{file} cannot be used")]
    Unusable {
        /// The file.
        file: NamedFile,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A key is another certificate's.
    #[error("{key} does not hold the key of the certificate: {certificate} holds another's")]
    Mismatch {
        /// The key's file.
        key: NamedFile,
        /// The certificate's file.
        certificate: NamedFile,
    },
}

/// What the connections of a listener begin with. It changes when the files do, for those that begin afterwards.
#[derive(Debug, Clone)]
pub struct Acceptor(Arc<ArcSwap<ServerConfig>>);

impl Acceptor {
    /// Shakes hands.
    ///
    /// # Errors
    ///
    /// When the peer does not speak TLS, or does not show what it is asked for.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// The TLS of all listeners.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    hooks: Acceptor,
    api: Acceptor,
    operations: Acceptor,
    expires_at: Option<DateTime<Utc>>,
    /// What is in use.
    used: Fingerprint,
    /// What was found last, whether it could be used or not.
    seen: Fingerprint,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// When they cannot be used, naming the setting and the file.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let Configs { hooks, api, operations, expires_at } = contents.configs(&files)?;
        let acceptor = |config| Acceptor(Arc::new(ArcSwap::from_pointee(config)));
        let used = contents.fingerprint();
        Ok(Self {
            files,
            hooks: acceptor(hooks),
            api: acceptor(api),
            operations: acceptor(operations),
            expires_at,
            used,
            seen: used,
        })
    }

    /// When the certificate expires; none when that cannot be read.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.expires_at
    }

    /// What the listener of a surface accepts with.
    pub fn acceptor(&self, surface: Surface) -> Acceptor {
        match surface {
            Surface::Hooks => self.hooks.clone(),
            Surface::Management => self.api.clone(),
            Surface::Operations => self.operations.clone(),
        }
    }

    /// Looks at the files again and again, and uses what they become.
    pub async fn watch(mut self, metrics: Arc<Metrics>, interval: Duration) {
        metrics.observe_tls_expiry(self.expires_at);
        loop {
            sleep(interval).await;
            let metrics = Arc::clone(&metrics);
            // A file system over the network may take its time.
            let look = spawn_blocking(move || {
                self.look(&metrics);
                self
            });
            match look.await {
                Ok(tls) => self = tls,
                // It panicked. Whoever waits for this task has to know.
                Err(_) => return,
            }
        }
    }

    fn look(&mut self, metrics: &Metrics) {
        let contents = Contents::read(&self.files);
        let found = match &contents {
            Ok(contents) => contents.fingerprint(),
            Err(error) => Sha256::digest(service::chain(error)).into(),
        };
        // What could not be used is said and counted once, until it changes again.
        if std::mem::replace(&mut self.seen, found) == found || found == self.used {
            return;
        }
        match contents.and_then(|contents| contents.configs(&self.files)) {
            Ok(Configs { hooks, api, operations, expires_at }) => {
                self.hooks.0.store(Arc::new(hooks));
                self.api.0.store(Arc::new(api));
                self.operations.0.store(Arc::new(operations));
                self.used = found;
                self.expires_at = expires_at;
                metrics.observe_tls_expiry(expires_at);
                metrics.count_tls_reload(TlsReload::Loaded);
                tracing::info!(?expires_at, "the TLS files have changed: new connections use them");
            }
            Err(error) => {
                metrics.count_tls_reload(TlsReload::Refused);
                let error = service::chain(&error);
                tracing::warn!(error, "the TLS files have changed and cannot be used: what they held before still is");
            }
        }
    }
}

/// What is found in all files, as far as it has to be told apart.
type Fingerprint = [u8; 32];

/// What the files hold.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    hook_clients: Option<Vec<u8>>,
    api_clients: Option<Vec<u8>>,
}

/// What the files make.
struct Configs {
    hooks: ServerConfig,
    api: ServerConfig,
    operations: ServerConfig,
    expires_at: Option<DateTime<Utc>>,
}

impl Contents {
    fn read(files: &Files) -> Result<Self, TlsError> {
        let clients = |file: Option<&NamedFile>| file.map(|file| Ok(read(file)?.0)).transpose();
        let (key, mode) = read(&files.key)?;
        if mode & READABLE_BY_OTHERS != 0 {
            // Said at every look, it would be said too often.
            static SAID: std::sync::Once = std::sync::Once::new();
            let path = files.key.path.display();
            SAID.call_once(|| tracing::warn!(%path, "everybody on this machine can read the TLS key"));
        }
        Ok(Self {
            certificate: read(&files.certificate)?.0,
            key,
            hook_clients: clients(files.hook_clients.as_ref())?,
            api_clients: clients(files.api_clients.as_ref())?,
        })
    }

    fn fingerprint(&self) -> Fingerprint {
        let Self { certificate, key, hook_clients, api_clients } = self;
        let parts = [Some(certificate), Some(key), hook_clients.as_ref(), api_clients.as_ref()];
        let digests = parts.map(|part| part.map_or([0; 32], |part| Sha256::digest(part).into()));
        Sha256::digest(digests.concat()).into()
    }

    fn configs(&self, files: &Files) -> Result<Configs, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&files.certificate, &self.certificate)?;
        let expires_at = chain.first().and_then(|certificate| expiry(certificate));
        let identity = identity(files, chain, &self.key, &provider)?;
        let hook_clients = files.hook_clients.as_ref().zip(self.hook_clients.as_deref());
        let api_clients = files.api_clients.as_ref().zip(self.api_clients.as_deref());
        let config = |clients| config(&identity, clients, &provider, &files.certificate);
        Ok(Configs { hooks: config(hook_clients)?, api: config(api_clients)?, operations: config(None)?, expires_at })
    }
}

/// What a file holds, and its permissions.
fn read(named: &NamedFile) -> Result<(Vec<u8>, u32), TlsError> {
    let read = || -> io::Result<_> {
        let file = File::open(&named.path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut content = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        Ok((content, mode))
    };
    let (content, mode) = read().map_err(|source| TlsError::Unreadable { file: named.clone(), source })?;
    if content.len() as u64 > MAX_FILE_BYTES { Err(TlsError::TooLarge(named.clone())) } else { Ok((content, mode)) }
}

fn certificates(file: &NamedFile, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let certificates = certificates.map_err(|source| TlsError::Damaged { file: file.clone(), source })?;
    if certificates.is_empty() { Err(TlsError::NoCertificate(file.clone())) } else { Ok(certificates) }
}

/// The certificate and its key, when they belong together.
fn identity(
    files: &Files,
    chain: Vec<CertificateDer<'static>>,
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let unusable = |file: &NamedFile, source| TlsError::Unusable { file: file.clone(), source };
    // The reason could repeat a line of the file.
    let key = PrivateKeyDer::from_pem_slice(key).ok().ok_or_else(|| TlsError::NoKey(files.key.clone()))?;
    let key = provider.key_provider.load_private_key(key).map_err(|source| unusable(&files.key, source))?;
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        Ok(()) => Ok(identity),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::Mismatch { key: files.key.clone(), certificate: files.certificate.clone() })
        }
        Err(source) => Err(unusable(&files.certificate, source)),
    }
}

/// The certificate authorities in a file.
///
/// # Errors
///
/// [`TlsError`] when it cannot be used.
pub fn authorities(file: &NamedFile) -> Result<RootCertStore, TlsError> {
    roots(file, &read(file)?.0)
}

fn roots(file: &NamedFile, content: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(file, content)? {
        roots.add(root).map_err(|source| TlsError::Unusable { file: file.clone(), source })?;
    }
    Ok(roots)
}

/// What a listener's connections begin with, when it asks for certificates that one of `clients` has signed, or none.
fn config(
    identity: &CertifiedKey,
    clients: Option<(&NamedFile, &[u8])>,
    provider: &Arc<CryptoProvider>,
    certificate: &NamedFile,
) -> Result<ServerConfig, TlsError> {
    let unusable = |file: &NamedFile, source| TlsError::Unusable { file: file.clone(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| unusable(certificate, source))?;
    let resolver = Arc::new(SingleCertAndKey::from(identity.clone()));
    let mut config = if let Some((file, content)) = clients {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(file, content)?), Arc::clone(provider))
                .build()
                .map_err(|error| unusable(file, rustls::Error::General(error.to_string())))?;
        let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(resolver);
        // A session that is resumed shows no certificate, so one that has expired since would still get in.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    } else {
        builder.with_no_client_auth().with_cert_resolver(resolver)
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// When a certificate expires: `notAfter` of its `Validity` (RFC 5280 section 4.1). Nothing rests on it but a metric,
/// so the few elements before it are stepped over, rather than bringing a library in for them.
fn expiry(certificate: &[u8]) -> Option<DateTime<Utc>> {
    const INTEGER: u8 = 0x02;
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let expect = |(tag, content, rest), wanted: u8| (tag == wanted).then_some((content, rest));
    let (certificate, _) = expect(element(certificate)?, SEQUENCE)?;
    let (mut rest, _) = expect(element(certificate)?, SEQUENCE)?;
    if let (VERSION, _, after) = element(rest)? {
        rest = after;
    }
    let (_serial, rest) = expect(element(rest)?, INTEGER)?;
    let (_algorithm, rest) = expect(element(rest)?, SEQUENCE)?;
    let (_issuer, rest) = expect(element(rest)?, SEQUENCE)?;
    let (validity, _) = expect(element(rest)?, SEQUENCE)?;
    let (_, _not_before, rest) = element(validity)?;
    let (tag, not_after, _) = element(rest)?;
    let text = std::str::from_utf8(not_after).ok()?;
    let text = match tag {
        // Two digits of a year from 1950 to 2049.
        UTC_TIME => format!("{}{text}", if text >= "50" { "19" } else { "20" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    // The parser below would do with fewer digits.
    if text.len() != "YYYYMMDDhhmmssZ".len() {
        return None;
    }
    Some(NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?.and_utc())
}

/// The first element of a text in DER: its tag, its content, and what comes after it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let add = |sum: usize, digit: &u8| sum.checked_mul(256)?.checked_add(usize::from(*digit));
        (digits.iter().try_fold(0, add)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a certificate of version 3 with these times, as far as the validity.
    fn certificate(not_before: &[u8], not_after: &[u8]) -> Vec<u8> {
        let wrap =
            |tag: u8, content: &[u8]| [&[tag, 0x82, 0, u8::try_from(content.len()).expect("short")], content].concat();
        let validity = wrap(0x30, &[not_before, not_after].concat());
        let before = [&[0xa0, 3, 2, 1, 2][..], &[2, 1, 7], &[0x30, 2, 6, 0], &[0x30, 0]].concat();
        wrap(0x30, &wrap(0x30, &[before, validity].concat()))
    }

    #[test]
    fn the_expiry_of_a_certificate_is_read_in_both_notations() {
        let early = b"\x17\x0d260101000000Z";
        let check = |not_after: &[u8], expected: Option<&str>| {
            let found = expiry(&certificate(early, not_after)).map(|at| at.to_rfc3339());
            assert_eq!(found.as_deref(), expected, "{}", not_after.escape_ascii());
        };
        check(b"\x17\x0d491231235959Z", Some("2049-12-31T23:59:59+00:00"));
        check(b"\x17\x0d500101000000Z", Some("1950-01-01T00:00:00+00:00"));
        check(b"\x18\x0f20500101000000Z", Some("2050-01-01T00:00:00+00:00"));
        check(b"\x18\x0f99991231235959Z", Some("9999-12-31T23:59:59+00:00"));
        check(b"\x17\x0d261301000000Z", None);
        check(b"\x17\x0c26010100000Z", None);
        check(b"\x0c\x0d260101000000Z", None);
        check(b"\x17\x02\xff\xff", None);
        check(b"", None);
    }

    #[test]
    fn what_is_no_certificate_has_no_expiry() {
        let whole = certificate(b"\x17\x0d260101000000Z", b"\x17\x0d270101000000Z");
        assert!(expiry(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(expiry(&whole[..length]), None, "{length}");
        }
        for index in 0..whole.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[index] = byte;
                // Whatever it finds, it must find an end.
                let _ = expiry(&changed);
            }
        }
        assert_eq!(element(&[0x30, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
