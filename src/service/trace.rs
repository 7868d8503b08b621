//! Traces: what a request spent its time on, for those who collect that of all their services.
//!
//! There are none unless an operator names a collector, and a request that is not traced costs nothing here: what is on
//! every request's way asks its caller whether there is a trace ([`Tracer`] is an option there), and only what is
//! slow anyway, such as a question to the database, looks for it ([`during`]). Spans hold no subject, scope, path or query.

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Metrics,
    metrics::{Outcome, SpanFate},
};

/// Spans that wait to be sent. When there are more, new ones are left out and counted.
const WAITING_SPANS: usize = 4096;

tokio::task_local! {
    /// The trace of the request that this task answers.
    static CURRENT: Traced;
}

/// What begins traces.
pub struct Tracer {
    inner: SdkTracer,
    propagator: TraceContextPropagator,
    /// Spans end nowhere when it is gone.
    _provider: SdkTracerProvider,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// Spans that have ended, for whoever sends them on, and whose they are.
#[derive(Debug)]
pub struct Ended {
    /// The spans.
    pub spans: mpsc::Receiver<SpanData>,
    /// This process.
    pub resource: Resource,
}

impl Tracer {
    /// Traces the requests whose caller does so, and this share of those whose caller says nothing.
    pub fn new(share: f64, instance: Uuid, metrics: Arc<Metrics>) -> (Arc<Self>, Ended) {
        let resource = Resource::builder_empty()
            .with_service_name("tollgate")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_string()),
            ])
            .build();
        let (sender, spans) = mpsc::channel(WAITING_SPANS);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource.clone())
            .with_span_processor(Outbox { sender, metrics })
            .build();
        let inner = provider.tracer("tollgate");
        let propagator = TraceContextPropagator::new();
        (Arc::new(Self { inner, propagator, _provider: provider }), Ended { spans, resource })
    }

    /// Begins to trace a request, if it is to be.
    pub fn begin(&self, operation: &'static str, caller: &Caller<'_>) -> Option<Traced> {
        let parent = self.propagator.extract_with_context(&Context::new(), caller);
        let span = self.inner.span_builder(operation).with_kind(SpanKind::Server);
        let span = self.inner.build_with_context(span, &parent);
        span.is_recording().then(|| Traced { tracer: self.inner.clone(), context: parent.with_span(span) })
    }
}

/// What a request says of the trace that it is a part of (W3C Trace Context).
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// The header `traceparent`.
    pub parent: Option<&'a str>,
    /// The header `tracestate`.
    pub state: Option<&'a str>,
}

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// A request that is traced. Its span ends when this does, or with [`Traced::end`].
#[derive(Debug, Clone)]
pub struct Traced {
    tracer: SdkTracer,
    context: Context,
}

impl Traced {
    /// The id of its trace, as `traceparent` spells it.
    pub fn id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// Does the work of the request.
    pub async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), work).await
    }

    /// Ends it, with how the request did.
    pub fn end(self, status: u16, outcome: Outcome, request_id: String) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        span.set_attribute(KeyValue::new("tollgate.outcome", outcome.as_str()));
        span.set_attribute(KeyValue::new("tollgate.request_id", request_id));
        match outcome {
            Outcome::Unavailable | Outcome::Failed => span.set_status(Status::error("")),
            Outcome::Ok | Outcome::Unauthorized | Outcome::Refused => {}
        }
        span.end();
    }
}

/// Does a part of a request's work, with a span of its own where the request is traced.
pub async fn during<T>(part: &'static str, work: impl Future<Output = T>) -> T {
    let begin = |traced: &Traced| {
        let span = traced.tracer.span_builder(part).with_kind(SpanKind::Internal);
        traced.tracer.build_with_context(span, &traced.context)
    };
    // It ends when it is dropped, also with a request that is given up.
    let _span = CURRENT.try_with(begin).ok();
    work.await
}

/// Where ended spans wait to be sent. Nobody waits for it: what finds no room is left out.
#[derive(Debug)]
struct Outbox {
    sender: mpsc::Sender<SpanData>,
    metrics: Arc<Metrics>,
}

impl SpanProcessor for Outbox {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.metrics.count_spans(SpanFate::Dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
