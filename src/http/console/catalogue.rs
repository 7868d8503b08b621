//! The page of the catalogue: what is under subscription, how many hold it, and the switch that enforces a rule.

use std::time::{Duration, Instant};

use maud::{Markup, html};
use poem::Response;

use super::{
    Asked, Visitor,
    form::{Fields, Link},
    markup::{self, Part},
    redirect, shown,
    subject::catalogue as all_scopes,
};
use crate::{
    domain::{
        catalogue::{CatalogueScope, CatalogueScopePatch, Requires},
        scope::Scope,
    },
    http::problem::Problem,
    service::{Expected, Service, catalogue::Holders},
};

/// Scopes of one page: for each of them holders are counted.
const SCOPES_AT_ONCE: usize = 20;
/// Subscriptions of one scope that are counted.
const MAX_COUNTED: u64 = 10_000;
/// How long is counted for one page; what is not counted by then is not.
const COUNTING_TIME: Duration = Duration::from_secs(3);
/// The operation of the management API that changes a scope.
const PATCH: &str = "patch-scope";

/// The page of the catalogue.
///
/// # Errors
///
/// Those of the use cases.
pub async fn page(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    let (service, query) = (&asked.app.service, asked.query()?);
    let wanted = query.get("search").unwrap_or_default().to_lowercase();
    let is_found = |scope: &CatalogueScope| {
        let description = scope.description.as_ref().map(|text| text.as_str().to_lowercase()).unwrap_or_default();
        scope.name.as_str().to_lowercase().contains(&wanted) || description.contains(&wanted)
    };
    let mut found: Vec<_> = all_scopes(service, usize::MAX).await?.into_iter().filter(is_found).collect();
    let count = found.len();
    if let Some(after) = query.get("after") {
        found.retain(|scope| scope.name.as_str() > after);
    }
    let has_more = found.len() > SCOPES_AT_ONCE;
    found.truncate(SCOPES_AT_ONCE);
    let holders = holders(service, &found).await;
    let next = found.last().filter(|_| has_more).map(|scope| {
        let link = Link::to("/console/catalogue").with_any("search", query.get("search"));
        link.with("after", scope.name.as_str())
    });
    let content = html! {
        h1 { "Catalogue" }
        p { "The scopes that are under subscription. Any other scope passes through the hook." }
        (notice(&query, &found, visitor))
        form.search role="search" method="get" action="/console/catalogue" data-live="scopes" {
            div {
                label for="search" { "Name or description" }
                input id="search" name="search" type="search" value=[query.get("search")] autocomplete="off"
                    autocapitalize="none" spellcheck="false";
            }
            button type="submit" { "Search" }
        }
        div id="scopes" {
            p role="status" { (count) " scope" (if count == 1 { "" } else { "s" }) @if !wanted.is_empty() { " found" } }
            @if !found.is_empty() { (table(service, visitor, &found, &holders)) }
            @if let Some(next) = next { p { a href=(next.as_str()) { "Go on after these" } } }
        }
    };
    Ok(shown("Catalogue", visitor, Part::Catalogue, &content))
}

/// How many hold each scope; none where that was not counted in time.
async fn holders(service: &Service, scopes: &[CatalogueScope]) -> Vec<Option<Holders>> {
    let deadline = Instant::now() + COUNTING_TIME;
    let mut counted = Vec::with_capacity(scopes.len());
    for scope in scopes {
        let left = deadline.saturating_duration_since(Instant::now());
        let count = tokio::time::timeout(left, service.holders(&scope.name, MAX_COUNTED)).await;
        // What the page is for is there without the number.
        counted.push(count.ok().and_then(Result::ok));
    }
    counted
}

fn table(service: &Service, visitor: &Visitor, scopes: &[CatalogueScope], holders: &[Option<Holders>]) -> Markup {
    html! {
        div.wide tabindex="0" role="region" aria-label="Scopes of the catalogue" {
            table {
                caption { "Scopes of the catalogue" }
                thead {
                    tr {
                        th scope="col" { "Scope" }
                        th scope="col" { "Who must hold it" }
                        th scope="col" { "Who holds it now" }
                        th scope="col" { "Enforced" }
                    }
                }
                tbody {
                    @for (scope, holders) in scopes.iter().zip(holders) {
                        tr {
                            th scope="row" data-label="Scope" {
                                (markup::text(scope.name.as_str()))
                                @if let Some(description) = &scope.description {
                                    p.hint { (markup::text(description.as_str())) }
                                }
                            }
                            td data-label="Who must hold it" { (requires(scope.requires)) }
                            td data-label="Who holds it now" { (held_by(*holders)) }
                            td data-label="Enforced" {
                                @if scope.enforced { span.status.active { "yes" } }
                                @else {
                                    span.status.paused { "no" }
                                    p.hint { (losses(service, &scope.name)) }
                                }
                                @if visitor.caller.may(PATCH) {
                                    @let link = Link::to("/console/enforced").with("scope", scope.name.as_str());
                                    p {
                                        a.button href=(link.as_str()) {
                                            (if scope.enforced { "Stop enforcing" } else { "Enforce" })
                                            span.unseen { " " (markup::text(scope.name.as_str())) } "…"
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

fn requires(requires: Requires) -> &'static str {
    match requires {
        Requires::User => "the user",
        Requires::Client => "the client",
        Requires::Any => "the user or the client",
        Requires::All => "the user and the client",
    }
}

fn held_by(holders: Option<Holders>) -> Markup {
    html! {
        @match holders {
            Some(Holders { subjects, is_all: true }) => (subjects),
            Some(Holders { subjects, is_all: false }) => { (subjects) " or more" }
            None => "not counted in time",
        }
    }
}

/// Who would have lost a scope, in words that say what was counted.
fn losses(service: &Service, scope: &Scope) -> Markup {
    let (lost, since) = service.losses(scope);
    let now = service.now();
    let since = since.max(now - chrono::TimeDelta::hours(24));
    html! {
        @match lost {
            Some(lost) => {
                "Were it enforced, about " strong { (lost.subjects) } " subject" (if lost.subjects == 1 { "" } else { "s" })
                " would have lost it, in " (lost.decisions) " decision" (if lost.decisions == 1 { "" } else { "s" })
            }
            None => "Nobody would have lost it",
        }
        ", of those that this replica decided since " (markup::spelled(since)) "."
    }
}

/// What was just switched, and the switch back.
fn notice(query: &Fields, scopes: &[CatalogueScope], visitor: &Visitor) -> Markup {
    let done = query.get("done");
    let Some(scope) = scopes.iter().find(|scope| Some(scope.name.as_str()) == done) else { return html! {} };
    html! {
        div.notice.good id="notice" role="status" tabindex="-1" {
            p {
                strong { (markup::text(scope.name.as_str())) }
                (if scope.enforced { " is enforced from now on." } else { " is no longer enforced: all keep it, and it is counted." })
            }
            @if visitor.caller.may(PATCH) {
                (switch(scope, visitor, if scope.enforced { "Undo: stop enforcing it" } else { "Undo: enforce it" }))
            }
        }
    }
}

/// The form that turns the switch over.
fn switch(scope: &CatalogueScope, visitor: &Visitor, label: &str) -> Markup {
    html! {
        form.confirm method="post" action="/console/enforced" {
            (markup::form_token(visitor))
            (markup::hidden("scope", scope.name.as_str()))
            (markup::hidden("enforced", if scope.enforced { "false" } else { "true" }))
            (markup::hidden("version", &scope.version.to_string()))
            button.main type="submit" { (label) }
        }
    }
}

fn named(fields: &Fields) -> Result<Scope, Problem> {
    Scope::parse(fields.get("scope").unwrap_or_default()).map_err(|_| Problem::not_found())
}

/// The page that shows what the switch of a scope would do.
///
/// # Errors
///
/// 403; 404; those of the use cases.
pub async fn preview(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    asked.permit(visitor, PATCH)?;
    let service = &asked.app.service;
    let scope = service.scope(&named(&asked.query()?)?).await?;
    let name = markup::text(scope.name.as_str());
    let content = html! {
        h1 { (if scope.enforced { "Stop enforcing: " } else { "Enforce: " }) (name) }
        @if scope.enforced {
            p { "From then on everybody keeps the scope. Tollgate goes on to decide and to count who would have lost it." }
        } @else {
            p { "From then on the scope is removed from everybody who does not hold it: " (requires(scope.requires)) " must." }
            p id="losses" { (losses(service, &scope.name)) }
            p.hint {
                "Each replica counts what it has decided itself, since it was started; another one has other numbers. "
                "Different subjects are told apart by a sketch that is off by some 3 of 100. A user is counted, or the "
                "client of a request that names no user."
            }
        }
        (switch(&scope, visitor, if scope.enforced { "Stop enforcing" } else { "Enforce" }))
        p { a href="/console/catalogue" { "Back without a change" } }
    };
    Ok(shown("Enforced", visitor, Part::Catalogue, &content))
}

/// Turns the switch of a scope.
///
/// # Errors
///
/// 403; 404; those of the use case.
pub async fn done(asked: &Asked<'_>, visitor: &Visitor, fields: &Fields) -> Result<Response, Problem> {
    asked.permit(visitor, PATCH)?;
    let name = named(fields)?;
    let version = fields.get("version").and_then(|version| version.parse().ok());
    let expected = Expected::Versions(vec![version.ok_or_else(Problem::if_match_required)?]);
    let enforced = fields.get("enforced") == Some("true");
    let patch = CatalogueScopePatch { enforced: Some(enforced), ..CatalogueScopePatch::default() };
    let scope = asked.app.service.patch_scope(asked.origin(visitor), name, expected, patch).await?;
    let link = Link::to("/console/catalogue").with("search", scope.name.as_str()).with("done", scope.name.as_str());
    Ok(redirect(&link.at("notice")))
}
