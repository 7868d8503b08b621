//! Asks a service whether it is ready, for container engines and scripts that have no other client at hand.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long the service may take: one that takes longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// A longer answer is none of Tollgate's.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a service is not known to be ready.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// It takes too long to say.
    #[error("{0} does not answer in time")]
    TimedOut(SocketAddr),
    /// Nobody answers there, or nobody who speaks the protocol.
    #[error("{address} cannot be asked")]
    NoAnswer {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It says that it is not.
    #[error("not ready: {status} {body}")]
    NotReady {
        /// The status of its answer.
        status: StatusCode,
        /// What it says.
        body: String,
    },
}

/// Succeeds when the service that serves operators at this address is ready.
///
/// # Errors
///
/// [`HealthError`] when it is not, or cannot be asked.
pub async fn ask(address: SocketAddr, is_tls: bool) -> Result<(), HealthError> {
    let address = reachable(address);
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        if is_tls {
            let config = trusting_anybody()?;
            let name = ServerName::IpAddress(address.ip().into());
            get(TlsConnector::from(Arc::new(config)).connect(name, stream).await?, address).await
        } else {
            get(stream, address).await
        }
    };
    let answer = timeout(PATIENCE, asked).await.map_err(|_| HealthError::TimedOut(address))?;
    let (status, body) = answer.map_err(|source| HealthError::NoAnswer { address, source })?;
    if status == StatusCode::OK {
        return Ok(());
    }
    Err(HealthError::NotReady { status, body: String::from_utf8_lossy(&body).trim().to_owned() })
}

/// A listener on every address is reached on the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz")
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("tollgate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())?;
    // Its errors are those of the request.
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await?;
    driver.abort();
    Ok((status, body.to_bytes()))
}

/// The certificate of the service is for the names by which others know it, and this one comes by its address: any is
/// taken. Nothing is told that is secret, and only whether it is ready is believed.
fn trusting_anybody() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

/// Takes any certificate whose key the other side has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
