//! The page of the service: how the replica is doing that answers.

use std::time::Duration;

use maud::{Markup, html};
use poem::Response;

use super::{
    Asked, Visitor,
    markup::{self, Part},
    shown,
};
use crate::{
    http::problem::Problem,
    service::{health::Health, metrics::Freshness},
};

/// The page of the service.
///
/// # Errors
///
/// None so far.
pub async fn page(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    let service = &asked.app.service;
    let (health, now) = (service.health().await, service.now());
    let Health { is_ready, silence, is_trusted, is_breaker_open, database_answers, .. } = &health;
    let content = html! {
        h1 { "Service" }
        p {
            "Version " (env!("CARGO_PKG_VERSION")) ", at " (markup::instant(now)) ". This is the replica that answers you; "
            "another one has other numbers. Operators find all of them in the metrics."
        }
        section {
            h2 { "How it is doing" }
            div.wide tabindex="0" role="region" aria-label="How it is doing" {
                table {
                    caption { "How it is doing" }
                    thead { tr { th scope="col" { "What" } th scope="col" { "State" } th scope="col" { "Meaning" } } }
                    tbody {
                        (row("Decisions", *is_ready, "possible", "not possible", &html! {
                            @if *is_ready { "The catalogue was read." } @else { "The catalogue was never read." }
                        }))
                        (row("Changes made elsewhere", *is_trusted, "heard of", "silent", &html! {
                            @match silence {
                                None => "Nobody else writes.",
                                Some(silence) => {
                                    "Last heard " (seconds(*silence)) " ago. "
                                    @if !is_trusted { "What is cached is used up to its age, and counted as stale." }
                                }
                            }
                        }))
                        (row("Database", *database_answers, "answers", "does not answer", &html! {
                            @for (index, (pool, open, idle)) in health.pools.iter().enumerate() {
                                @if index > 0 { "; " }
                                (pool) ": " (open) " connections, " (idle) " idle"
                            }
                        }))
                        (row("Questions of hooks to it", !is_breaker_open, "asked", "held back", &html! {
                            @if *is_breaker_open { "It gave no answers lately: for a moment it is not asked." }
                            @else { "What is not cached is asked for." }
                        }))
                    }
                }
            }
        }
        section {
            h2 { "Cache" }
            dl.facts {
                div { dt { "Subjects that hold something" } dd { (health.cached[0]) } }
                div { dt { "Subjects that hold nothing" } dd { (health.cached[1]) } }
                div { dt { "Memory" } dd { (health.cached_bytes / 1024) " KiB" } }
                @for (freshness, count) in &health.answers {
                    div { dt { (rested_on(*freshness)) } dd { (count) } }
                }
            }
        }
        section {
            h2 { "What was removed lately" }
            p.hint {
                "Samples of the decisions of this replica, at most one in 50 ms, the last 50 of them. They are in memory alone."
            }
            (refusals(&health, now))
        }
    };
    Ok(shown("Service", visitor, Part::Service, &content))
}

fn row(what: &str, is_good: bool, good: &str, bad: &str, meaning: &Markup) -> Markup {
    html! {
        tr {
            th scope="row" data-label="What" { (what) }
            td data-label="State" {
                @if is_good { span.verdict.kept { span aria-hidden="true" { "✓ " } (good) } }
                @else { span.verdict.removed { span aria-hidden="true" { "✕ " } (bad) } }
            }
            td data-label="Meaning" { (meaning) }
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn rested_on(freshness: Freshness) -> &'static str {
    match freshness {
        Freshness::Fresh => "Decisions on fresh facts",
        Freshness::Stale => "Decisions on stale facts",
        Freshness::Unknown => "Decisions without facts",
    }
}

fn refusals(health: &Health, now: chrono::DateTime<chrono::Utc>) -> Markup {
    html! {
        @if health.refusals.is_empty() {
            p { "Nothing, as far as is known." }
        } @else {
            div.wide tabindex="0" role="region" aria-label="What was removed lately" {
                table {
                    caption { "What was removed lately, the last one first" }
                    thead { tr { th scope="col" { "When" } th scope="col" { "From whom" } th scope="col" { "What, and why" } } }
                    tbody {
                        @for refusal in &health.refusals {
                            tr {
                                td data-label="When" {
                                    (markup::instant(refusal.at)) " (" (markup::distance(refusal.at, now)) ")"
                                }
                                td data-label="From whom" {
                                    a href=(markup::subject_link(&refusal.subject).as_str()) { (markup::subject(&refusal.subject)) }
                                }
                                td data-label="What, and why" {
                                    ul.plain {
                                        @for (scope, reason) in &refusal.scopes {
                                            li { (markup::text(scope)) ": " (markup::reason(*reason)) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
