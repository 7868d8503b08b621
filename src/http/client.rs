//! The client: how Tollgate asks others, an issuer for its keys, and another Tollgate at the command line; and how it sends
//! traces to a collector.
//!
//! It follows no redirect, so that an answer is from where the operator said, keeps no connection, and reads no more of
//! an answer than it is told to.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::tls::{NamedFile, TlsError, authorities};

/// What every request says of who asks.
const USER_AGENT: &str = concat!("tollgate/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none that can be asked.
    #[error("it is not an absolute http or https URL")]
    Address,
    /// It took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Nobody answers there, or not over TLS that can be believed.
    #[error("no connection")]
    Connection(#[from] hyper_util::client::legacy::Error),
    /// A header cannot be sent as it is.
    #[error("no request can be made of it")]
    Request(#[from] hyper::http::Error),
    /// The answer is not whole, or too long.
    #[error("the answer broke off, or is longer than {limit} bytes")]
    Body {
        /// The most bytes that are read.
        limit: usize,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Asks others over HTTP/1.1, with TLS or without.
#[derive(Clone)]
pub struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// A client that believes the certificate authorities of the system.
    ///
    /// # Errors
    ///
    /// When the protocol versions do not fit the cryptography, which a test would show.
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            || ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        Ok(Self::with(match builder()?.with_native_roots() {
            Ok(builder) => builder.with_no_client_auth(),
            Err(error) => {
                tracing::warn!(%error, "the system has no certificate authorities: no https address can be asked");
                builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
            }
        }))
    }

    /// A client that believes the certificate authorities in a file, and no others.
    ///
    /// # Errors
    ///
    /// [`TlsError`] when the file cannot be used.
    pub fn trusting(file: &NamedFile) -> Result<Self, TlsError> {
        let unusable = |source| TlsError::Unusable { file: file.clone(), source };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        Ok(Self::with(builder.with_root_certificates(authorities(file)?).with_no_client_auth()))
    }

    fn with(tls: ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let connector = builder.wrap_connector(connector);
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    /// Asks for what is at an address.
    ///
    /// # Errors
    ///
    /// [`ClientError`] when there is no answer.
    pub async fn get(&self, url: &str, limit: usize) -> Result<Reply, ClientError> {
        let request = Request::get(url).header(header::ACCEPT, "application/json");
        self.send(request, Bytes::new(), limit).await
    }

    /// Posts JSON to an address, with the credentials that a header `Authorization` holds, and waits no longer than
    /// `patience`.
    ///
    /// # Errors
    ///
    /// [`ClientError`] when there is no answer.
    pub async fn post(
        &self,
        url: &str,
        authorization: Option<&str>,
        body: Bytes,
        patience: Duration,
        limit: usize,
    ) -> Result<Reply, ClientError> {
        const JSON: [(HeaderName, &str); 2] =
            [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
        let mut request = Request::post(url);
        let credentials = authorization.map(|credentials| (header::AUTHORIZATION, credentials));
        for (name, value) in JSON.into_iter().chain(credentials) {
            request = request.header(name, value);
        }
        timeout(patience, self.send(request, body, limit)).await.map_err(|_| ClientError::TimedOut(patience))?
    }

    /// Posts a message in protobuf to an address, and waits no longer than `patience`.
    ///
    /// # Errors
    ///
    /// [`ClientError`] when there is no answer.
    pub async fn post_protobuf(
        &self,
        url: &str,
        message: Bytes,
        patience: Duration,
        limit: usize,
    ) -> Result<Reply, ClientError> {
        let request = Request::post(url).header(header::CONTENT_TYPE, "application/x-protobuf");
        timeout(patience, self.send(request, message, limit)).await.map_err(|_| ClientError::TimedOut(patience))?
    }

    /// Posts a form to an address, with the credentials that a header `Authorization` holds.
    ///
    /// # Errors
    ///
    /// [`ClientError`] when there is no answer.
    pub async fn post_form(
        &self,
        url: &str,
        authorization: Option<HeaderValue>,
        form: String,
        limit: usize,
    ) -> Result<Reply, ClientError> {
        let mut request = Request::post(url)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.send(request, form.into(), limit).await
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
        limit: usize,
    ) -> Result<Reply, ClientError> {
        let request = request.header(header::USER_AGENT, USER_AGENT).body(Full::new(body))?;
        let is_http = matches!(request.uri().scheme_str(), Some("http" | "https"));
        if !is_http || request.uri().host().is_none() {
            return Err(ClientError::Address);
        }
        let response = self.0.request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), limit).collect().await;
        let body = body.map_err(|source| ClientError::Body { limit, source })?.to_bytes();
        Ok(Reply { status, body })
    }
}
