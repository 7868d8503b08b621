//! Sends traces to a collector: OTLP over HTTP, in protobuf.
//!
//! One task sends what has ended, batch by batch. A collector that is slow or away costs the requests nothing: what it does
//! not take is counted and left out, and the log says so at most once a minute.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::Uri;
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::trace::SpanData;
use prost::Message as _;
use tokio::{sync::oneshot, time::sleep};

use super::client::{ClientError, HttpClient, Reply};
use crate::service::{Metrics, chain, metrics::SpanFate, trace::Ended};

/// Spans in a request.
const BATCH_SPANS: usize = 512;
/// How long spans are gathered before they are sent.
const GATHERING: Duration = Duration::from_secs(1);
/// How long a collector may take to take them.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long the log is not told again that they could not be sent.
const TELL_AGAIN: Duration = Duration::from_mins(1);
/// What follows the address of a collector.
const PATH: &str = "/v1/traces";

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

/// Why a collector cannot be somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be an http or https URL without user, query and fragment, such as http://localhost:4318")]
pub struct EndpointError;

impl Endpoint {
    /// Parses the address below which a collector takes traces at `/v1/traces`.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] when it is none.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        if url.contains(['?', '#', '@']) {
            return Err(EndpointError);
        }
        let uri: Uri = format!("{}{PATH}", url.trim_end_matches('/')).parse().map_err(|_| EndpointError)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        if is_web && uri.host().is_some_and(|host| !host.is_empty()) { Ok(Self(uri)) } else { Err(EndpointError) }
    }
}

/// Why spans could not be sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    NoAnswer(#[from] ClientError),
    #[error("the status is {0}")]
    Status(u16),
}

/// Sends spans to a collector.
pub struct Collector {
    url: String,
    client: HttpClient,
    resource: ResourceAttributesWithSchema,
    ended: Ended,
    metrics: Arc<Metrics>,
    /// When the log was last told that spans could not be sent.
    told: Option<Instant>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Collector {
    /// What sends the ended spans there.
    ///
    /// # Errors
    ///
    /// When the protocol versions of TLS do not fit the cryptography, which a test would show.
    pub fn new(Endpoint(endpoint): Endpoint, ended: Ended, metrics: Arc<Metrics>) -> Result<Self, rustls::Error> {
        let client = HttpClient::new()?;
        let resource = ResourceAttributesWithSchema::from(&ended.resource);
        Ok(Self { url: endpoint.to_string(), client, resource, ended, metrics, told: None })
    }

    /// Sends what ends, until it is told to stop; then what is left, once.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut is_over = false;
        while !is_over {
            let mut batch = Vec::with_capacity(BATCH_SPANS);
            is_over = tokio::select! {
                _ = &mut stop => true,
                count = self.ended.spans.recv_many(&mut batch, BATCH_SPANS) => count == 0,
            };
            if is_over {
                self.ended.spans.close();
            } else if batch.len() < BATCH_SPANS {
                // Those that end shortly after go with it.
                tokio::select! {
                    _ = &mut stop => is_over = true,
                    () = sleep(GATHERING) => {}
                }
            }
            while let Ok(span) = self.ended.spans.try_recv() {
                batch.push(span);
                if batch.len() >= BATCH_SPANS {
                    self.send(std::mem::take(&mut batch)).await;
                }
            }
            self.send(batch).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len();
        match self.try_send(batch).await {
            Ok(()) => self.metrics.count_spans(SpanFate::Sent, count),
            Err(error) => {
                self.metrics.count_spans(SpanFate::Failed, count);
                if self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
                    self.told = Some(Instant::now());
                    tracing::warn!(error = chain(&error), spans = count, "traces cannot be sent to the collector");
                }
            }
        }
    }

    async fn try_send(&self, batch: Vec<SpanData>) -> Result<(), SendError> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
        let reply = self.client.post_protobuf(&self.url, message, TIMEOUT, MAX_ANSWER_BYTES).await?;
        match reply {
            Reply { status: 200..300, .. } => Ok(()),
            Reply { status, .. } => Err(SendError::Status(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_at_a_plain_web_address() {
        let check = |url: &str, expected: Option<&str>| {
            let parsed = Endpoint::parse(url).ok().map(|Endpoint(uri)| uri.to_string());
            assert_eq!(parsed.as_deref(), expected, "{url}");
        };
        check("http://localhost:4318", Some("http://localhost:4318/v1/traces"));
        check("http://localhost:4318/", Some("http://localhost:4318/v1/traces"));
        check("https://otel.example.com/tenant/a", Some("https://otel.example.com/tenant/a/v1/traces"));
        for url in
            ["", "localhost:4318", "grpc://localhost:4317", "http://", "http://u:p@localhost", "http://h?x=y", "/v1"]
        {
            check(url, None);
        }
    }
}
