//! The page of a subject: what the hook answers and why, its subscriptions in time, and what was done to them.

use std::{borrow::Cow, collections::HashMap};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use poem::Response;
use uuid::Uuid;

use super::{
    Asked, Visitor,
    change::{self, Verb},
    form::{Fields, Link, field_value},
    markup::{self, Part},
    shown,
    timeline::{self, Scale},
};
use crate::{
    domain::{
        catalogue::{CatalogueScope, Requires},
        decision::{Outcome, Reason},
        explain::{Explanation, Grounds},
        life::Life,
        scope::Scope,
        subject::{Subject, SubjectId, SubjectType},
        subscription::Subscription,
    },
    http::{
        hook::party,
        problem::{FieldError, Problem, undescribed},
    },
    service::{Service, explain::ExplanationRequest},
    store::{
        change::{Record, Recorded},
        subscription::Filter,
    },
};

/// Subscriptions of one subject that are shown: more than anybody reads.
const MAX_SUBSCRIPTIONS: u64 = 200;
/// Subscriptions whose history is shown.
const MAX_HISTORIES: usize = 20;
/// Changes of one subscription that are shown.
const MAX_CHANGES: u64 = 200;
/// Scopes of the catalogue that are asked for when none is named.
pub const MAX_SCOPES: usize = 500;
/// Scopes of the catalogue that are read at once.
const SCOPES_AT_ONCE: u64 = 200;

/// What the page of a subject is about: who, and what the hook is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whose page it is.
    pub subject: Subject,
    /// The other party of the request: the client that asks for a user's token, or the user for whom a client does.
    pub other: Option<String>,
    /// The instant; the present when none is given.
    pub at: Option<DateTime<Utc>>,
    /// The scopes; all of the catalogue when none is named.
    pub scopes: Vec<String>,
}

impl Question {
    /// What fields ask.
    ///
    /// # Errors
    ///
    /// 400, naming the field that is wrong.
    pub fn parse(fields: &Fields) -> Result<Self, Problem> {
        let kind = fields.get("type").and_then(SubjectType::parse);
        let kind = kind.ok_or_else(|| undescribed("?type", "expected `user` or `client`"))?;
        let id = text_of(fields, "id")?.unwrap_or_default();
        let id = SubjectId::parse(&id);
        let id = id.map_err(|error| Problem::invalid_request(vec![FieldError::new("?id", error)]))?;
        let other = text_of(fields, "other")?.map(Cow::into_owned);
        let scopes = fields.all("scope").flat_map(str::split_ascii_whitespace).map(str::to_owned).collect();
        Ok(Self { subject: Subject { kind, id }, other, at: fields.instant("at")?, scopes })
    }

    /// A link to a page of the subject that asks the same.
    pub fn link(&self, path: &str) -> Link {
        let Self { subject, other, at, scopes } = self;
        let link = Link::to(path).with("type", subject.kind.as_str()).with("id", subject.id.as_str());
        let link = link.with_any("other", other.as_deref()).with_any("at", at.map(field_value).as_deref());
        link.with_any("scope", (!scopes.is_empty()).then(|| scopes.join(" ")).as_deref())
    }

    /// The same as fields of a form. Browsers change line breaks in fields, so ids are encoded.
    pub fn fields(&self) -> Markup {
        html! {
            (self.subject_fields())
            @if let Some(other) = &self.other { (markup::hidden("other64", &URL_SAFE_NO_PAD.encode(other))) }
            @if let Some(at) = self.at { (markup::hidden("at", &field_value(at))) }
            @if !self.scopes.is_empty() { (markup::hidden("scope", &self.scopes.join(" "))) }
        }
    }

    fn subject_fields(&self) -> Markup {
        html! {
            (markup::hidden("type", self.subject.kind.as_str()))
            (markup::hidden("id64", &URL_SAFE_NO_PAD.encode(self.subject.id.as_str())))
        }
    }

    /// The ids of the user and the client in the request of a hook that this stands for.
    fn parties(&self) -> (Option<&str>, &str) {
        let (own, other) = (self.subject.id.as_str(), self.other.as_deref());
        match self.subject.kind {
            // An empty id holds nothing.
            SubjectType::User => (Some(own), other.unwrap_or_default()),
            SubjectType::Client => (other, own),
        }
    }

    /// The scopes that are asked for.
    pub fn asked<'a>(&'a self, catalogue: &'a [CatalogueScope]) -> Vec<&'a str> {
        if self.scopes.is_empty() {
            catalogue.iter().take(MAX_SCOPES).map(|scope| scope.name.as_str()).collect()
        } else {
            self.scopes.iter().map(String::as_str).collect()
        }
    }

    /// What the use case of the explanation is asked.
    pub fn explanation<'a>(&'a self, scopes: &'a [&'a str]) -> ExplanationRequest<'a> {
        let (user, client) = self.parties();
        let (user, client) = (user.map(|id| party(SubjectType::User, id)), party(SubjectType::Client, client));
        ExplanationRequest { user, client, scopes, at: self.at, known_at: None }
    }
}

/// A text that a person typed, or a page has encoded.
fn text_of<'a>(fields: &'a Fields, name: &str) -> Result<Option<Cow<'a, str>>, Problem> {
    if let Some(text) = fields.get(name) {
        return Ok(Some(text.into()));
    }
    let decode = |encoded: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok();
    let decoded = fields.get(&format!("{name}64")).map(|encoded| {
        decode(encoded).ok_or_else(|| undescribed(&format!("?{name}"), "it is not encoded as a page encodes it"))
    });
    Ok(decoded.transpose()?.map(Cow::Owned))
}

/// The scopes of the catalogue: all, or `most` and some more.
///
/// # Errors
///
/// Those of the use case.
pub async fn catalogue(service: &Service, most: usize) -> Result<Vec<CatalogueScope>, Problem> {
    let mut all: Vec<CatalogueScope> = Vec::new();
    loop {
        let page = service.scopes(all.last().map(|scope| &scope.name), SCOPES_AT_ONCE).await?;
        let is_last = u64::try_from(page.len()).unwrap_or(u64::MAX) < SCOPES_AT_ONCE;
        all.extend(page);
        if is_last || all.len() > most {
            return Ok(all);
        }
    }
}

/// The page to begin with.
///
/// # Errors
///
/// 400 when the query is not one.
pub fn search(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    let kind = asked.query()?.get("type").and_then(SubjectType::parse).unwrap_or(SubjectType::User);
    let content = html! {
        h1 { "Look for a user or a client" }
        p {
            "See which scopes somebody gets and why not others, what their subscriptions were, are and will be; and put "
            "right what is wrong."
        }
        (search_form(kind, true))
    };
    Ok(shown("Users and clients", visitor, Part::Subjects, &content))
}

fn search_form(kind: SubjectType, is_alone: bool) -> Markup {
    html! {
        form.search role="search" method="get" action="/console/subject" {
            fieldset.kind {
                legend { "Kind" }
                @for one in SubjectType::ALL {
                    label {
                        input type="radio" name="type" value=(one.as_str()) checked[one == kind];
                        " " (markup::kind(one))
                    }
                }
            }
            div {
                label for="search-id" { "Id, exactly as Access knows it" }
                input id="search-id" name="id" type="search" required autocomplete="off" autocapitalize="none"
                    spellcheck="false" autofocus[is_alone];
            }
            button.main type="submit" { "Show" }
        }
    }
}

/// What the page shows.
struct View<'a> {
    question: &'a Question,
    visitor: &'a Visitor,
    now: DateTime<Utc>,
    at: DateTime<Utc>,
    explanation: Explanation<'a>,
    catalogue: &'a [CatalogueScope],
    subscriptions: &'a [Subscription],
    histories: &'a [(usize, Vec<Record>)],
}

/// The page of a subject.
///
/// # Errors
///
/// 400 when the query is not one; those of the use cases.
pub async fn page(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    let (service, query) = (&asked.app.service, asked.query()?);
    let question = Question::parse(&query)?;
    let now = service.now();
    let catalogue = catalogue(service, MAX_SCOPES).await?;
    let scopes = question.asked(&catalogue);
    let mut explained = question.explanation(&scopes);
    explained.at.get_or_insert(now);
    let (at, explanation, _) = service.explain(explained).await?;
    let filter = Filter { subject: Some(question.subject.clone()), with_deleted: true, ..Filter::default() };
    let mut subscriptions = service.subscriptions(&filter, now, None, MAX_SUBSCRIPTIONS).await?;
    // Those that were deleted last; ids ascend with the time of creation.
    subscriptions.sort_by_key(|one| (one.deleted_at.is_some(), one.life.term.window().from(), one.id));
    let mut histories = Vec::new();
    for (index, subscription) in subscriptions.iter().enumerate().take(MAX_HISTORIES) {
        histories.push((index, service.history(subscription.id, None, MAX_CHANGES).await?));
    }
    let view = View {
        question: &question,
        visitor,
        now,
        at,
        explanation,
        catalogue: &catalogue,
        subscriptions: &subscriptions,
        histories: &histories,
    };
    let name = markup::kind(question.subject.kind);
    let title = format!("{name} {}", question.subject.id.as_str());
    Ok(shown(&title, visitor, Part::Subjects, &view.show(&query)))
}

/// What a page calls a subscription: ids are too long to be read.
pub fn name(index: usize) -> String {
    format!("S{}", index + 1)
}

impl View<'_> {
    fn show(&self, query: &Fields) -> Markup {
        let live = self.subscriptions.iter().filter(|one| one.deleted_at.is_none());
        let scale = Scale::of(live, self.now, self.at);
        html! {
            (timeline::patterns())
            h1 { (markup::subject(&self.question.subject)) }
            (self.notice(query))
            section aria-labelledby="answer-title" {
                h2 id="answer-title" { "What the hook answers" }
                (self.question_form(&scale))
                div id="answer" { (self.answer()) }
            }
            section aria-labelledby="subscriptions-title" {
                h2 id="subscriptions-title" { "Subscriptions" }
                div id="subscriptions" { (self.timeline(&scale)) }
                @if Verb::Add.is_permitted(self.visitor) {
                    p { a.button href=(change::link(self.question, Verb::Add, None).as_str()) { "Add a subscription…" } }
                }
            }
            section aria-labelledby="history-title" {
                h2 id="history-title" { "History" }
                (self.history())
            }
            section aria-labelledby="search-title" {
                h2 id="search-title" { "Look for another one" }
                (search_form(self.question.subject.kind, false))
            }
        }
    }

    /// What was just done, and how to undo it.
    fn notice(&self, query: &Fields) -> Markup {
        let Some(verb) = query.get("done").and_then(Verb::parse) else { return html! {} };
        let on = query.get("on").and_then(|id| Uuid::try_parse(id).ok());
        let version = query.get("version").and_then(|version| version.parse::<i64>().ok());
        let index = self.subscriptions.iter().position(|one| Some(one.id) == on);
        let Some((index, version)) = index.zip(version) else { return html! {} };
        let subscription = &self.subscriptions[index];
        let record = self.record(index, version);
        let undo = record.filter(|_| subscription.version == version);
        let undo = undo.and_then(|record| change::undo(subscription, record, self.now));
        html! {
            div.notice.good id="notice" role="status" tabindex="-1" {
                p { strong { (name(index)) " " (verb.done()) "." } " It counts from this moment on, for every request." }
                @if let Some(undo) = undo && undo.is_permitted(self.visitor) {
                    form method="post" action="/console/change" {
                        (markup::form_token(self.visitor))
                        (self.question.fields())
                        (markup::hidden("verb", undo.as_str()))
                        (markup::hidden("on", &subscription.id.to_string()))
                        (markup::hidden("version", &version.to_string()))
                        button type="submit" { "Undo: " (undo.undoes()) }
                    }
                }
            }
        }
    }

    fn record(&self, index: usize, version: i64) -> Option<&Record> {
        let (_, records) = self.histories.iter().find(|(there, _)| *there == index)?;
        records.iter().find(|record| change::after(record).is_some_and(|after| after.version == version))
    }

    fn question_form(&self, scale: &Scale) -> Markup {
        let Question { other, at, scopes, subject } = self.question;
        let other_label = match subject.kind {
            SubjectType::User => "For the client (empty: one that holds nothing)",
            SubjectType::Client => "For the user (empty: none)",
        };
        // A field has no line breaks, so an id with one stays beside it.
        let typed = other.as_deref().filter(|other| !other.contains(['\r', '\n']));
        let [from, until] = scale.ends();
        html! {
            form.question method="get" action="/console/subject" data-live="answer subscriptions" {
                (self.question.subject_fields())
                div.field {
                    label for="at" { "At (UTC; empty: now)" }
                    input id="at" name="at" type="datetime-local" step="1" value=[at.map(field_value)]
                        data-from=(from) data-until=(until) data-now=(&field_value(self.now)[..19]);
                }
                div.field {
                    label for="other" { (other_label) }
                    @if let (Some(other), None) = (other, typed) {
                        (markup::hidden("other64", &URL_SAFE_NO_PAD.encode(other)))
                        p.hint { "asked for: " (markup::text(other)) }
                    }
                    input id="other" name="other" value=[typed] autocomplete="off" autocapitalize="none" spellcheck="false";
                }
                div.field {
                    label for="scope" { "Scopes (empty: all of the catalogue)" }
                    input id="scope" name="scope" value=(scopes.join(" ")) autocomplete="off" autocapitalize="none"
                        spellcheck="false";
                }
                button type="submit" { "Ask" }
            }
        }
    }

    /// The answer, scope by scope.
    fn answer(&self) -> Markup {
        let outcomes = &self.explanation.decision.outcomes;
        let removed = outcomes.iter().filter(|outcome| !outcome.kept).count();
        let kept = outcomes.len() - removed;
        html! {
            p id="answer-summary" role="status" {
                @if outcomes.is_empty() {
                    "The catalogue is empty: the hook keeps every scope."
                } @else {
                    strong { (kept) " kept, " (removed) " removed" } " at " (markup::instant(self.at))
                    " (" (self.when(self.at)) ")"
                }
            }
            @if self.question.scopes.is_empty() && self.catalogue.len() > MAX_SCOPES {
                p { "These are the first " (MAX_SCOPES) " scopes of the catalogue; name others above." }
            }
            @if !outcomes.is_empty() {
                div.wide tabindex="0" role="region" aria-label="The answer, scope by scope" {
                    table.answer {
                        caption { "The answer, scope by scope" }
                        thead {
                            tr {
                                th scope="col" { "Scope" }
                                th scope="col" { "Answer" }
                                th scope="col" { "Why" }
                                th scope="col" { "Next change" }
                            }
                        }
                        tbody {
                            @for (outcome, grounds) in outcomes.iter().zip(&self.explanation.grounds) {
                                (self.answer_row(outcome, grounds))
                            }
                        }
                    }
                }
            }
        }
    }

    fn answer_row(&self, outcome: &Outcome<'_>, grounds: &Grounds) -> Markup {
        let reason = outcome.unenforced.unwrap_or(outcome.reason);
        let deciding = |id: &&Uuid| self.subscriptions.iter().position(|one| one.id == **id);
        let own: Vec<usize> = grounds.subscriptions.iter().filter_map(|id| deciding(&id)).collect();
        let of_other = grounds.subscriptions.len() - own.len();
        html! {
            tr {
                th scope="row" data-label="Scope" { (markup::text(outcome.scope)) }
                td data-label="Answer" { (markup::verdict(outcome.kept)) }
                td data-label="Why" {
                    @if outcome.unenforced.is_some() {
                        "Kept because the scope is not enforced. Were it enforced: "
                    }
                    (markup::reason(reason))
                    @if let Some(holder) = self.must_hold(outcome.scope) { " (" (holder) " must hold it)" }
                    @for (place, index) in own.iter().enumerate() {
                        (if place == 0 { ": " } else { ", " })
                        a href={ "#" (name(*index)) } { (name(*index)) }
                        @if let Some(event) = event(&self.subscriptions[*index].life, reason) {
                            " " (event.0) " " (markup::instant(event.1)) " (" (self.when(event.1)) ")"
                        }
                    }
                    @if of_other > 0 {
                        (if own.is_empty() { ": " } else { ", " }) (of_other) " of "
                        (match self.question.subject.kind { SubjectType::User => "the client", SubjectType::Client => "the user" })
                    }
                    (self.remedy(outcome, &own))
                }
                td data-label="Next change" {
                    @match grounds.next {
                        Some(next) => {
                            (if next.kept { "kept" } else { "removed" }) " from " (markup::instant(next.at))
                            " (" (self.when(next.at)) ")"
                        }
                        None => "none",
                    }
                }
            }
        }
    }

    /// Who must hold a scope, where it is not whoever does.
    fn must_hold(&self, scope: &str) -> Option<&'static str> {
        match self.requires(scope)? {
            Requires::Any => None,
            Requires::User => Some("the user"),
            Requires::Client => Some("the client"),
            Requires::All => Some("both user and client"),
        }
    }

    fn requires(&self, scope: &str) -> Option<Requires> {
        self.catalogue.iter().find(|one| one.name.as_str() == scope).map(|one| one.requires)
    }

    /// Whether a subscription of the subject could ever count for a scope.
    fn may_count(&self, scope: &str) -> bool {
        match (self.requires(scope), self.question.subject.kind) {
            (None, _) | (Some(Requires::Client), SubjectType::User) | (Some(Requires::User), SubjectType::Client) => {
                false
            }
            (Some(Requires::Any | Requires::All), _)
            | (Some(Requires::User), SubjectType::User)
            | (Some(Requires::Client), SubjectType::Client) => true,
        }
    }

    /// What would give a scope back.
    fn remedy(&self, outcome: &Outcome<'_>, own: &[usize]) -> Markup {
        if outcome.kept {
            return html! {};
        }
        let verbs = [Verb::Resume, Verb::Uncancel, Verb::Renew];
        let can = |index: usize, verb: Verb| {
            let subscription = &self.subscriptions[index];
            verb.is_permitted(self.visitor) && verb.is_possible(subscription, self.now)
        };
        // Those that stand in the way of this reason: a pause is ended, a cancellation taken back, an end moved.
        let fits = |verb: Verb| match outcome.reason {
            Reason::Paused => verb == Verb::Resume,
            Reason::Canceled => verb == Verb::Uncancel,
            Reason::Expired => verb == Verb::Renew,
            Reason::Unmanaged
            | Reason::Active
            | Reason::Grace
            | Reason::NotEnforced
            | Reason::Scheduled
            | Reason::NoSubscription
            | Reason::NoUser
            | Reason::Unknown => false,
        };
        let offered = own.iter().flat_map(|index| verbs.map(|verb| (*index, verb)));
        let offered: Vec<_> = offered.filter(|(index, verb)| fits(*verb) && can(*index, *verb)).collect();
        let is_missing = outcome.reason == Reason::NoSubscription
            && self.may_count(outcome.scope)
            && Verb::Add.is_permitted(self.visitor);
        html! {
            @if !offered.is_empty() || is_missing {
                span.remedy {
                    @for (index, verb) in offered {
                        @let link = change::link(self.question, verb, Some(&self.subscriptions[index]));
                        a.button href=(link.as_str()) { (verb.label()) (verb.of()) (name(index)) "…" }
                    }
                    @if is_missing {
                        @let link = change::link(self.question, Verb::Add, None).with("add", outcome.scope);
                        a.button href=(link.as_str()) { "Add a subscription…" }
                    }
                }
            }
        }
    }

    /// How far an instant is from the present.
    fn when(&self, at: DateTime<Utc>) -> String {
        markup::distance(at, self.now)
    }

    fn timeline(&self, scale: &Scale) -> Markup {
        let (live, deleted): (Vec<_>, Vec<_>) =
            self.subscriptions.iter().enumerate().partition(|(_, one)| one.deleted_at.is_none());
        html! {
            @if self.subscriptions.is_empty() {
                p { "There is none, and there never was one." }
            }
            @if u64::try_from(self.subscriptions.len()).unwrap_or(u64::MAX) >= MAX_SUBSCRIPTIONS {
                p { "These are the first " (MAX_SUBSCRIPTIONS) "; the management API lists all." }
            }
            @if !live.is_empty() {
                (timeline::legend())
                (scale.axis())
                @for (index, subscription) in live { (self.subscription(index, subscription, Some(scale))) }
            }
            @if !deleted.is_empty() {
                details.deleted {
                    summary { "Deleted (" (deleted.len()) ")" }
                    @for (index, subscription) in deleted { (self.subscription(index, subscription, None)) }
                }
            }
        }
    }

    fn subscription(&self, index: usize, subscription: &Subscription, scale: Option<&Scale>) -> Markup {
        let status = subscription.status(self.now);
        let name = name(index);
        let title = format!("{name}-title");
        let verbs: Vec<Verb> = Verb::LISTED
            .into_iter()
            .filter(|verb| verb.is_permitted(self.visitor) && verb.is_possible(subscription, self.now))
            .collect();
        html! {
            article.subscription id=(name) aria-labelledby=(title) tabindex="-1" {
                h3 id=(title) {
                    (name) ": " (scopes_of(subscription)) " "
                    @if subscription.deleted_at.is_some() { span.status.canceled { "deleted" } }
                    @else { (markup::status(status)) }
                }
                @if let Some(scale) = scale {
                    (scale.bar(&subscription.life, &format!("{name} in time: {}", words(&subscription.life))))
                }
                (self.facts(subscription))
                @if !verbs.is_empty() {
                    ul.verbs aria-label={ "What can be done with " (name) } {
                        @for verb in verbs {
                            @let link = change::link(self.question, verb, Some(subscription));
                            li { a.button href=(link.as_str()) { (verb.label()) span.unseen { (verb.of()) (name) } "…" } }
                        }
                    }
                }
            }
        }
    }

    fn facts(&self, subscription: &Subscription) -> Markup {
        let Life { term, pause, canceled_at } = subscription.life;
        let dated = |at: DateTime<Utc>| html! { (markup::instant(at)) " (" (self.when(at)) ")" };
        html! {
            dl.facts {
                div { dt { "From" } dd { (dated(term.window().from())) } }
                div {
                    dt { "Until" }
                    dd { @match term.window().until() { Some(until) => (dated(until)), None => "open-ended" } }
                }
                @if let Some(until) = term.grace_until() { div { dt { "Grace until" } dd { (dated(until)) } } }
                @if let Some(pause) = pause {
                    div { dt { "Paused from" } dd { (dated(pause.from())) } }
                    div {
                        dt { "Paused until" }
                        dd { @match pause.until() { Some(until) => (dated(until)), None => "somebody resumes it" } }
                    }
                }
                @if let Some(at) = canceled_at { div { dt { "Canceled at" } dd { (dated(at)) } } }
                @if let Some(at) = subscription.deleted_at { div { dt { "Deleted at" } dd { (dated(at)) } } }
                @if let Some(external) = &subscription.external {
                    div {
                        dt { "Known to " (markup::text(external.key.source.as_str())) " as" }
                        dd { (markup::text(external.key.id.as_str())) }
                    }
                }
                div { dt { "Id" } dd { code { (subscription.id) } } }
            }
        }
    }

    fn history(&self) -> Markup {
        let mut all: Vec<(usize, &Record)> =
            self.histories.iter().flat_map(|(index, records)| records.iter().map(|record| (*index, record))).collect();
        all.sort_by_key(|(_, record)| std::cmp::Reverse((record.at, record.place.seq)));
        let by_id: HashMap<Uuid, usize> =
            self.subscriptions.iter().enumerate().map(|(index, one)| (one.id, index)).collect();
        html! {
            @if self.subscriptions.len() > MAX_HISTORIES {
                p { "Of the first " (MAX_HISTORIES) " subscriptions; the management API tells that of each." }
            }
            @if all.is_empty() {
                p { "Nothing was changed, as far as changes are kept." }
            } @else {
                div.wide tabindex="0" role="region" aria-label="Changes, the last one first" {
                    table {
                        caption { "Changes, the last one first" }
                        thead {
                            tr {
                                th scope="col" { "When" }
                                th scope="col" { "What" }
                                th scope="col" { "Who" }
                                th scope="col" { "Change" }
                                th scope="col" { "Request" }
                            }
                        }
                        tbody {
                            @for (index, record) in all {
                                tr {
                                    td data-label="When" { (markup::instant(record.at)) }
                                    td data-label="What" { (record.action) " " (named(&by_id, record).unwrap_or_else(|| name(index))) }
                                    td data-label="Who" { (markup::text(&record.actor)) }
                                    td data-label="Change" { (difference(record)) }
                                    td data-label="Request" { code { (markup::text(&record.request_id)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What a page calls the subscription of a change.
fn named(by_id: &HashMap<Uuid, usize>, record: &Record) -> Option<String> {
    match &record.noun {
        Recorded::Subscription { id, .. } => by_id.get(id).map(|index| name(*index)),
        Recorded::Catalogue { .. } => None,
    }
}

/// The scopes of a subscription.
pub fn scopes_of(subscription: &Subscription) -> Markup {
    html! {
        @for (index, scope) in subscription.scopes.as_slice().iter().enumerate() {
            @if index > 0 { ", " }
            (markup::text(scope.as_str()))
        }
    }
}

/// The instant at which a life came to stand as a reason says, and what happened then.
fn event(life: &Life, reason: Reason) -> Option<(&'static str, DateTime<Utc>)> {
    match reason {
        Reason::Expired => Some(("ended", life.term.grace_until().or(life.term.window().until())?)),
        Reason::Grace => Some(("ended", life.term.window().until()?)),
        Reason::Canceled => Some(("was canceled", life.canceled_at?)),
        Reason::Paused => Some(("has been paused since", life.pause?.from())),
        Reason::Scheduled => Some(("begins", life.term.window().from())),
        Reason::Active => Some(("began", life.term.window().from())),
        Reason::Unmanaged | Reason::NotEnforced | Reason::NoSubscription | Reason::NoUser | Reason::Unknown => None,
    }
}

/// A life in words, for whoever does not see its bar.
pub fn words(life: &Life) -> String {
    let Life { term, pause, canceled_at } = life;
    let mut words = format!("from {}", markup::spelled(term.window().from()));
    let mut add = |what: &str, at: DateTime<Utc>| {
        words.push_str(what);
        words.push_str(&markup::spelled(at));
    };
    if let Some(until) = term.window().until() {
        add(" until ", until);
    }
    if let Some(until) = term.grace_until() {
        add(", grace until ", until);
    }
    if let Some(pause) = pause {
        add(", paused from ", pause.from());
        if let Some(until) = pause.until() {
            add(" until ", until);
        }
    }
    if let Some(at) = canceled_at {
        add(", canceled at ", *at);
    }
    words
}

/// What a change made of a subscription, in words.
fn difference(record: &Record) -> Markup {
    let Recorded::Subscription { before, after, .. } = &record.noun else { return html! {} };
    let Some(after) = after else { return html! { "not recorded" } };
    let lines = differences(before.as_ref(), after);
    html! {
        @if lines.is_empty() { "nothing that shows here" }
        @else {
            ul.plain { @for (what, from, to) in lines {
                li { (what) ": " @if let Some(from) = from { (from) " → " } (to) }
            } }
        }
    }
}

/// What differs between a subscription before and after a change: what, what it was, and what it is.
pub fn differences(before: Option<&Subscription>, after: &Subscription) -> Vec<(&'static str, Option<String>, String)> {
    const NONE: &str = "none";
    type Told = [(&'static str, String); 7];
    let told = |subscription: &Subscription| -> Told {
        let Life { term, pause, canceled_at } = subscription.life;
        let instant = |at: Option<DateTime<Utc>>| at.map_or_else(|| NONE.to_owned(), markup::spelled);
        let until = term.window().until().map_or_else(|| "open-ended".to_owned(), markup::spelled);
        let pause = pause.map_or_else(
            || NONE.to_owned(),
            |pause| {
                let until = pause.until().map_or_else(|| "somebody resumes it".to_owned(), markup::spelled);
                format!("{} until {until}", markup::spelled(pause.from()))
            },
        );
        let scopes: Vec<_> = subscription.scopes.as_slice().iter().map(Scope::as_str).collect();
        [
            ("scopes", scopes.join(", ")),
            ("from", markup::spelled(term.window().from())),
            ("until", until),
            ("grace until", instant(term.grace_until())),
            ("paused", pause),
            ("canceled", instant(canceled_at)),
            ("deleted", instant(subscription.deleted_at)),
        ]
    };
    let new = told(after);
    match before {
        None => new.into_iter().filter(|(_, value)| value != NONE).map(|(what, value)| (what, None, value)).collect(),
        Some(before) => {
            let pairs = told(before).into_iter().zip(new).filter(|((_, old), (_, new))| old != new);
            pairs.map(|((what, old), (_, new))| (what, Some(old), new)).collect()
        }
    }
}
