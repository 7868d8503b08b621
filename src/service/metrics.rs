//! What Tollgate counts, in the names that dashboards and alerts rely on.
//!
//! Every combination of labels exists from the start, at 0, so that a rate is right from its first event on. No label
//! holds an id, and a hot path keeps the handle of its series: looking one up by label costs more than counting.

use std::{fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

use super::cache::CacheSize;
use crate::{
    domain::decision::{Decision, Reason},
    store::{self, database::PoolUse},
};

/// Bounds of the latency histograms, in seconds: from a cached answer to the longest that a caller may wait.
const LATENCY_BUCKETS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Bounds of the histogram of how long changes take to be known, in seconds: from a notification to the promised bound.
const VISIBILITY_BUCKETS: [f64; 12] = [0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// A difference of clocks that is worth a warning, in seconds.
const SKEW_WARNING_S: f64 = 1.0;

/// The hooks, as metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `POST /v1/customize-access-token`.
    CustomizeAccessToken,
    /// `POST /v1/customize-token`.
    CustomizeToken,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 2] = [Self::CustomizeAccessToken, Self::CustomizeToken];

    /// The label of the hook.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CustomizeAccessToken => "customize-access-token",
            Self::CustomizeToken => "customize-token",
        }
    }
}

/// How much is known of what a hook request was answered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// All of it was known to be right.
    Fresh,
    /// Some of it was right a while ago.
    Stale,
    /// Some of it was not known.
    Unknown,
}

impl Freshness {
    /// Every freshness.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Stale, Self::Unknown];

    /// The label of the freshness.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// How a request ended, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Ok,
    /// Its credentials were missing or wrong (401, 403, 429).
    Unauthorized,
    /// It was refused for what it asked (another 4xx).
    Refused,
    /// It could not be answered now (503).
    Unavailable,
    /// It failed for a fault of ours (another 5xx).
    Failed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Unauthorized, Self::Refused, Self::Unavailable, Self::Failed];

    /// The label of the outcome.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unauthorized => "unauthorized",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}

/// What was turned away because too much was under way, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// A hook request.
    Hooks,
    /// A request to the management API.
    Management,
    /// A connection, before any request.
    Connection,
}

impl Shed {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Hooks, Self::Management, Self::Connection];

    /// The label of the kind.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Management => "management",
            Self::Connection => "connection",
        }
    }
}

/// What became of TLS files that had changed, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsReload {
    /// New connections use what they hold.
    Loaded,
    /// They cannot be used, so what they held before still is.
    Refused,
}

impl TlsReload {
    /// Every outcome.
    pub const ALL: [Self; 2] = [Self::Loaded, Self::Refused];

    /// The label of the outcome.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Refused => "refused",
        }
    }
}

/// What became of a line of an import, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportedLine {
    /// There is a subscription that was not there before.
    Created,
    /// A subscription was changed.
    Changed,
    /// It said what was there.
    Unchanged,
    /// Its source had said something newer before.
    Outdated,
    /// It was refused.
    Refused,
}

impl ImportedLine {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Created, Self::Changed, Self::Unchanged, Self::Outdated, Self::Refused];

    /// The label of the outcome.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Outdated => "outdated",
            Self::Refused => "refused",
        }
    }
}

/// What became of a span of a trace, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanFate {
    /// The collector took it.
    Sent,
    /// It could not be sent.
    Failed,
    /// There was no room for it.
    Dropped,
}

impl SpanFate {
    /// Every fate.
    pub const ALL: [Self; 3] = [Self::Sent, Self::Failed, Self::Dropped];

    /// The label of the fate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Debug)]
struct Series {
    count: IntCounter,
    duration: Histogram,
}

/// The counters, gauges and histograms of one service, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    hooks: [[Series; Outcome::ALL.len()]; Hook::ALL.len()],
    api_requests: IntCounterVec,
    api_duration: HistogramVec,
    shed: [IntCounter; Shed::ALL.len()],
    decisions: [[IntCounter; Reason::ALL.len()]; 2],
    removed: IntCounter,
    unenforced: [IntCounter; Reason::ALL.len()],
    claims_left_out: IntCounter,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    cache_loads: IntCounter,
    cache_loaded_subjects: IntCounter,
    cache_entries: IntGaugeVec,
    cache_bytes: IntGaugeVec,
    denials: IntCounterVec,
    key_refreshes: IntCounterVec,
    keys: IntGaugeVec,
    keys_read_at: IntGaugeVec,
    database_errors: IntCounterVec,
    pool_connections: IntGaugeVec,
    answers: [IntCounter; Freshness::ALL.len()],
    breaker_open: IntGauge,
    feed_silence: Gauge,
    feed_trusted: IntGauge,
    feed_changes: IntCounter,
    feed_doubts: IntCounter,
    lost_wakeups: IntCounter,
    visibility: Histogram,
    skew: Gauge,
    tls_reloads: [IntCounter; TlsReload::ALL.len()],
    tls_expiry: IntGaugeVec,
    tls_handshake_failures: IntCounter,
    ready: IntGauge,
    hook_timeout: Gauge,
    pool_limits: IntGaugeVec,
    imported_lines: [IntCounter; ImportedLine::ALL.len()],
    spans: [IntCounter; SpanFate::ALL.len()],
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All series, at 0.
    ///
    /// # Errors
    ///
    /// When two metrics bear one name, which a test would show.
    #[expect(clippy::too_many_lines, reason = "a list of all series reads best as one")]
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let hook_requests =
            counters("tollgate_hook_requests_total", "Hook requests by how they ended.", &["hook", "outcome"])?;
        let hook_duration = HistogramVec::new(
            HistogramOpts::new("tollgate_hook_duration_seconds", "Time from a hook request's head to its answer.")
                .buckets(LATENCY_BUCKETS.to_vec()),
            &["hook", "outcome"],
        )?;
        let hooks = Hook::ALL.map(|hook| {
            Outcome::ALL.map(|outcome| {
                let labels = [hook.as_str(), outcome.as_str()];
                Series {
                    count: hook_requests.with_label_values(&labels),
                    duration: hook_duration.with_label_values(&labels),
                }
            })
        });
        let shed_counts = counters(
            "tollgate_shed_requests_total",
            "Requests and connections turned away because too much was under way.",
            &["surface"],
        )?;
        let shed = Shed::ALL.map(|shed| shed_counts.with_label_values(&[shed.as_str()]));
        let decision_counts = counters(
            "tollgate_decisions_total",
            "Requested scopes by what was decided for them and why.",
            &["decision", "reason"],
        )?;
        let decisions = ["kept", "removed"]
            .map(|kept| Reason::ALL.map(|reason| decision_counts.with_label_values(&[kept, reason.as_str()])));
        let unenforced_counts = counters(
            "tollgate_unenforced_removals_total",
            "Scopes kept only because their rule is not enforced, by why they would have been removed.",
            &["reason"],
        )?;
        let unenforced = Reason::ALL.map(|reason| unenforced_counts.with_label_values(&[reason.as_str()]));
        let removed = IntCounter::new("tollgate_scopes_removed_total", "Requested scopes that were removed.")?;
        let lookups = counters(
            "tollgate_cache_lookups_total",
            "Subjects looked up in the cache, by what was found.",
            &["result"],
        )?;
        let answer_counts = counters(
            "tollgate_answers_total",
            "Decisions of hooks by how much was known of what they rest on.",
            &["freshness"],
        )?;
        let answers = Freshness::ALL.map(|freshness| answer_counts.with_label_values(&[freshness.as_str()]));
        let tls_reload_counts =
            counters("tollgate_tls_reloads_total", "Changes of the TLS files, by what became of them.", &["outcome"])?;
        let tls_reloads = TlsReload::ALL.map(|outcome| tls_reload_counts.with_label_values(&[outcome.as_str()]));
        let imported_line_counts = counters(
            "tollgate_import_lines_total",
            "Lines of imports over the API, dry runs apart, by what became of them.",
            &["outcome"],
        )?;
        let imported_lines = ImportedLine::ALL.map(|line| imported_line_counts.with_label_values(&[line.as_str()]));
        let span_counts =
            counters("tollgate_trace_spans_total", "Spans of traces, by what became of them.", &["outcome"])?;
        let spans = SpanFate::ALL.map(|fate| span_counts.with_label_values(&[fate.as_str()]));
        let metrics = Self {
            hooks,
            api_requests: counters(
                "tollgate_api_requests_total",
                "Requests to the management API by how they ended.",
                &["operation", "outcome"],
            )?,
            api_duration: HistogramVec::new(
                HistogramOpts::new("tollgate_api_duration_seconds", "Time to answer a management request.")
                    .buckets(LATENCY_BUCKETS.to_vec()),
                &["operation"],
            )?,
            shed,
            decisions,
            removed: removed.clone(),
            unenforced,
            claims_left_out: IntCounter::new(
                "tollgate_claims_left_out_total",
                "Claims that were left out of answers that had no room for them.",
            )?,
            cache_hits: lookups.with_label_values(&["hit"]),
            cache_misses: lookups.with_label_values(&["miss"]),
            cache_loads: IntCounter::new(
                "tollgate_cache_loads_total",
                "Queries for the facts of subjects that were not in the cache.",
            )?,
            cache_loaded_subjects: IntCounter::new(
                "tollgate_cache_loaded_subjects_total",
                "Subjects that these queries asked for: several at once where several are missed.",
            )?,
            cache_entries: gauges("tollgate_cache_entries", "Subjects in the cache.", &["cache"])?,
            cache_bytes: gauges("tollgate_cache_bytes", "Bytes of the subjects in the cache, as weighed.", &["cache"])?,
            denials: counters(
                "tollgate_authentication_failures_total",
                "Requests whose credentials were refused, by method and why.",
                &["surface", "method", "reason"],
            )?,
            key_refreshes: counters(
                "tollgate_jwt_key_refreshes_total",
                "Attempts to read the keys of an issuer, by how they ended.",
                &["surface", "issuer", "outcome"],
            )?,
            keys: gauges("tollgate_jwt_keys", "Keys of an issuer that signatures are checked with.", &["surface", "issuer"])?,
            keys_read_at: gauges(
                "tollgate_jwt_keys_read_timestamp_seconds",
                "When the keys of an issuer were last read, in seconds since 1970; 0 for never.",
                &["surface", "issuer"],
            )?,
            database_errors: counters(
                "tollgate_database_errors_total",
                "Queries that gave no value, by why.",
                &["kind"],
            )?,
            pool_connections: gauges(
                "tollgate_database_pool_connections",
                "Connections of a pool, by whether somebody uses them.",
                &["pool", "state"],
            )?,
            answers,
            breaker_open: IntGauge::new("tollgate_breaker_open", "1 while the database is not asked.")?,
            feed_silence: Gauge::new(
                "tollgate_feed_silence_seconds",
                "Time since all changes made elsewhere were known.",
            )?,
            feed_trusted: IntGauge::new(
                "tollgate_feed_trusted",
                "1 while changes made elsewhere are heard of in time, 0 while what is cached is unsure.",
            )?,
            feed_changes: IntCounter::new("tollgate_feed_changes_total", "Changes that the feed showed.")?,
            feed_doubts: IntCounter::new(
                "tollgate_feed_doubts_total",
                "Times that changes may have been missed, so that all was asked again.",
            )?,
            lost_wakeups: IntCounter::new(
                "tollgate_feed_wakeups_lost_total",
                "Wake-ups that could not be sent, and listeners that were lost.",
            )?,
            visibility: Histogram::with_opts(
                HistogramOpts::new(
                    "tollgate_change_visibility_seconds",
                    "Time from a change, here or on another replica, until this replica's cache knew of it by the feed.",
                )
                .buckets(VISIBILITY_BUCKETS.to_vec()),
            )?,
            skew: Gauge::new("tollgate_database_clock_skew_seconds", "The database's clock less this machine's.")?,
            tls_reloads,
            // A vector, though it has no labels: it has no value before there is one, where 0 would say long expired.
            tls_expiry: gauges(
                "tollgate_tls_certificate_expiry_seconds",
                "When the certificate of the listeners expires, in seconds since 1970.",
                &[],
            )?,
            tls_handshake_failures: IntCounter::new(
                "tollgate_tls_handshake_failures_total",
                "Connections that did not come to speak TLS in time: without a right certificate, say, or by none at all.",
            )?,
            ready: IntGauge::new("tollgate_ready", "1 while the replica is ready, as /readyz says.")?,
            hook_timeout: Gauge::new(
                "tollgate_hook_timeout_seconds",
                "How long a hook may take to be answered: TOLLGATE_HOOK_TIMEOUT.",
            )?,
            pool_limits: gauges(
                "tollgate_database_pool_max_connections",
                "Connections that a pool may have at most.",
                &["pool"],
            )?,
            imported_lines,
            spans,
            registry,
        };
        for kind in ["unavailable", "duplicate", "reference", "outcome_unknown", "unexpected"] {
            metrics.database_errors.with_label_values(&[kind]);
        }
        let build = gauges("tollgate_build_info", "1, with the version that runs.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.register([
            Box::new(hook_requests) as Box<dyn Collector>,
            Box::new(hook_duration),
            Box::new(metrics.api_requests.clone()),
            Box::new(metrics.api_duration.clone()),
            Box::new(shed_counts),
            Box::new(decision_counts),
            Box::new(removed),
            Box::new(unenforced_counts),
            Box::new(metrics.claims_left_out.clone()),
            Box::new(lookups),
            Box::new(metrics.cache_loads.clone()),
            Box::new(metrics.cache_loaded_subjects.clone()),
            Box::new(metrics.cache_entries.clone()),
            Box::new(metrics.cache_bytes.clone()),
            Box::new(metrics.denials.clone()),
            Box::new(metrics.key_refreshes.clone()),
            Box::new(metrics.keys.clone()),
            Box::new(metrics.keys_read_at.clone()),
            Box::new(metrics.database_errors.clone()),
            Box::new(metrics.pool_connections.clone()),
            Box::new(build),
            Box::new(answer_counts),
            Box::new(metrics.breaker_open.clone()),
            Box::new(metrics.feed_silence.clone()),
            Box::new(metrics.feed_trusted.clone()),
            Box::new(metrics.feed_changes.clone()),
            Box::new(metrics.feed_doubts.clone()),
            Box::new(metrics.lost_wakeups.clone()),
            Box::new(metrics.visibility.clone()),
            Box::new(metrics.skew.clone()),
            Box::new(tls_reload_counts),
            Box::new(metrics.tls_expiry.clone()),
            Box::new(metrics.tls_handshake_failures.clone()),
            Box::new(metrics.ready.clone()),
            Box::new(metrics.hook_timeout.clone()),
            Box::new(metrics.pool_limits.clone()),
            Box::new(imported_line_counts),
            Box::new(span_counts),
            #[cfg(target_os = "linux")]
            Box::new(prometheus::process_collector::ProcessCollector::for_self()),
        ])?;
        Ok(metrics)
    }

    fn register<const N: usize>(&self, collectors: [Box<dyn Collector>; N]) -> Result<(), prometheus::Error> {
        collectors.into_iter().try_for_each(|collector| self.registry.register(collector))
    }

    /// Makes the series of an operation of the management API, at 0.
    pub fn expect_operation(&self, operation: &str) {
        for outcome in Outcome::ALL {
            self.api_requests.with_label_values(&[operation, outcome.as_str()]);
        }
        self.api_duration.with_label_values(&[operation]);
    }

    /// Counts a hook request.
    pub fn count_hook(&self, hook: Hook, outcome: Outcome, duration: Duration) {
        let Series { count, duration: histogram } = &self.hooks[hook as usize][outcome as usize];
        count.inc();
        histogram.observe(duration.as_secs_f64());
    }

    /// Counts a request to the management API.
    pub fn count_api(&self, operation: &str, outcome: Outcome, duration: Duration) {
        self.api_requests.with_label_values(&[operation, outcome.as_str()]).inc();
        self.api_duration.with_label_values(&[operation]).observe(duration.as_secs_f64());
    }

    /// Makes the series of a way for credentials to be refused, at 0.
    pub fn expect_denial(&self, surface: &str, method: &str, reason: &str) {
        self.denials.with_label_values(&[surface, method, reason]);
    }

    /// Counts credentials that were refused.
    pub fn count_denial(&self, surface: &str, method: &str, reason: &str) {
        self.denials.with_label_values(&[surface, method, reason]).inc();
    }

    /// Makes the series of an issuer of tokens, at 0.
    pub fn expect_issuer(&self, surface: &str, issuer: &str) {
        for outcome in ["read", "failed"] {
            self.key_refreshes.with_label_values(&[surface, issuer, outcome]);
        }
        self.keys.with_label_values(&[surface, issuer]);
        self.keys_read_at.with_label_values(&[surface, issuer]);
    }

    /// Counts that an issuer's keys were read, which and when.
    pub fn count_keys_read(&self, surface: &str, issuer: &str, keys: usize, now: DateTime<Utc>) {
        self.key_refreshes.with_label_values(&[surface, issuer, "read"]).inc();
        self.keys.with_label_values(&[surface, issuer]).set(i64::try_from(keys).unwrap_or(i64::MAX));
        self.keys_read_at.with_label_values(&[surface, issuer]).set(now.timestamp());
    }

    /// Counts that an issuer's keys could not be read.
    pub fn count_keys_failed(&self, surface: &str, issuer: &str) {
        self.key_refreshes.with_label_values(&[surface, issuer, "failed"]).inc();
    }

    /// Counts what was turned away.
    pub fn count_shed(&self, shed: Shed) {
        self.shed[shed as usize].inc();
    }

    /// Counts what was decided.
    pub fn count_decision(&self, decision: &Decision<'_>) {
        for outcome in &decision.outcomes {
            self.decisions[usize::from(!outcome.kept)][outcome.reason as usize].inc();
            if !outcome.kept {
                self.removed.inc();
            }
            if let Some(reason) = outcome.unenforced {
                self.unenforced[reason as usize].inc();
            }
        }
    }

    /// Counts subjects that were found in the cache, and ones that were not.
    pub fn count_cache_lookups(&self, hits: usize, misses: usize) {
        self.cache_hits.inc_by(hits as u64);
        self.cache_misses.inc_by(misses as u64);
    }

    /// Counts a query for the facts of so many subjects.
    pub fn count_cache_load(&self, subjects: usize) {
        self.cache_loads.inc();
        self.cache_loaded_subjects.inc_by(subjects as u64);
    }

    /// Counts how much was known of what a decision rests on.
    pub fn count_answer(&self, freshness: Freshness) {
        self.answers[freshness as usize].inc();
    }

    /// How many decisions rested on how fresh facts.
    pub fn answers(&self) -> [(Freshness, u64); Freshness::ALL.len()] {
        Freshness::ALL.map(|freshness| (freshness, self.answers[freshness as usize].get()))
    }

    /// Counts that changes may have been missed.
    pub fn count_feed_doubt(&self) {
        self.feed_doubts.inc();
    }

    /// Counts a wake-up that was, or may have been, lost.
    pub fn count_lost_wakeup(&self) {
        self.lost_wakeups.inc();
    }

    /// Counts a change that the feed showed, and how long after it was made.
    pub fn observe_visibility(&self, after: Duration) {
        self.feed_changes.inc();
        self.visibility.observe(after.as_secs_f64());
    }

    /// Sets by how much the database's clock is ahead of ours.
    pub fn observe_skew(&self, ahead: TimeDelta) {
        let seconds = ahead.as_seconds_f64();
        let was_skewed = self.skew.get().abs() > SKEW_WARNING_S;
        self.skew.set(seconds);
        // Said once, when it begins: it is looked at every second.
        if seconds.abs() > SKEW_WARNING_S && !was_skewed {
            tracing::warn!(seconds, "this machine's clock and the database's differ");
        }
    }

    /// Sets the gauges of the feed and of the breaker. The silence is none where nobody else writes.
    pub fn observe_feed(&self, silence: Option<Duration>, trusted_for: Duration, breaker_open: bool) {
        let silence = silence.unwrap_or_default();
        self.feed_silence.set(silence.as_secs_f64());
        self.feed_trusted.set(i64::from(silence < trusted_for));
        self.breaker_open.set(i64::from(breaker_open));
    }

    /// Counts a connection over TLS that did not come to its first request.
    pub fn count_tls_handshake_failure(&self) {
        self.tls_handshake_failures.inc();
    }

    /// Counts that TLS files have changed, and what became of that.
    pub fn count_tls_reload(&self, outcome: TlsReload) {
        self.tls_reloads[outcome as usize].inc();
    }

    /// Sets when the certificate of the listeners expires.
    pub fn observe_tls_expiry(&self, expires_at: Option<DateTime<Utc>>) {
        match expires_at {
            Some(at) => self.tls_expiry.with_label_values(&[""; 0]).set(at.timestamp()),
            None => self.tls_expiry.reset(),
        }
    }

    /// Sets whether the replica is ready.
    pub fn observe_ready(&self, is_ready: bool) {
        self.ready.set(i64::from(is_ready));
    }

    /// Sets how long a hook may take.
    pub fn observe_hook_timeout(&self, timeout: Duration) {
        self.hook_timeout.set(timeout.as_secs_f64());
    }

    /// Counts spans of traces.
    pub fn count_spans(&self, fate: SpanFate, count: usize) {
        self.spans[fate as usize].inc_by(count as u64);
    }

    /// Counts a line of an import.
    pub fn count_imported_line(&self, line: ImportedLine) {
        self.imported_lines[line as usize].inc();
    }

    /// Counts a query that gave no value.
    pub fn count_database_error(&self, error: &store::Error) {
        let kind = match error {
            store::Error::Unavailable(_) => "unavailable",
            store::Error::Duplicate(_) => "duplicate",
            store::Error::Reference(_) => "reference",
            store::Error::OutcomeUnknown(_) => "outcome_unknown",
            store::Error::Unexpected(_) => "unexpected",
        };
        self.database_errors.with_label_values(&[kind]).inc();
    }

    /// Counts claims that an answer had no room for.
    pub fn count_claims_left_out(&self, count: usize) {
        self.claims_left_out.inc_by(count as u64);
    }

    /// Sets the gauges of the pools.
    pub fn observe_pools(&self, pools: &[PoolUse]) {
        for PoolUse { pool, open, idle, limit } in pools {
            self.pool_limits.with_label_values(&[*pool]).set(i64::from(*limit));
            self.pool_connections.with_label_values(&[*pool, "idle"]).set(i64::from(*idle));
            self.pool_connections.with_label_values(&[*pool, "used"]).set(i64::from(open.saturating_sub(*idle)));
        }
    }

    /// Sets the gauges of the cache.
    pub fn observe_cache(&self, size: &CacheSize) {
        let CacheSize { held, held_bytes, absent, absent_bytes } = *size;
        for (cache, entries, bytes) in [("held", held, held_bytes), ("absent", absent, absent_bytes)] {
            self.cache_entries.with_label_values(&[cache]).set(signed(entries));
            self.cache_bytes.with_label_values(&[cache]).set(signed(bytes));
        }
    }

    /// All series in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing into memory does not fail, and the encoder writes UTF-8 only.
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        debug_assert!(encoded.is_ok(), "{encoded:?}");
        String::from_utf8(text).unwrap_or_default()
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
