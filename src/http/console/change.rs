//! Changes of a subject's subscriptions: each is shown before it is done, and many can be undone after it.

use chrono::{DateTime, Utc};
use maud::{Markup, html};
use poem::{Response, http::StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Asked, Visitor,
    form::{Fields, Link, field_value, timestamp},
    html_response,
    markup::{self, Part},
    redirect,
    subject::{MAX_SCOPES, Question, catalogue, differences, scopes_of, words},
    timeline::{self, Scale},
};
use crate::{
    domain::{
        catalogue::CatalogueScope,
        decision::Outcome,
        explain::Grounds,
        life::{self, Cancellation, RenewedEnd, Transition},
        period::Period,
        scope::Scope,
        subject::Subject,
        subscription::{Subscription, SubscriptionPatch},
    },
    http::{
        problem::{FieldError, Problem, undescribed},
        subscription::{self as wire, NewSubscriptionBody, Pause, Renewal},
    },
    service::{
        Expected, Idempotency, Service,
        explain::ExplanationRequest,
        new_id,
        subscription::{Preview, Write},
    },
    store::{
        change::{Record, Recorded},
        subscription::Filter,
    },
};

/// Subscriptions of a subject among which the one to be changed is looked for.
const MAX_SUBSCRIPTIONS: u64 = 200;
/// Changes among which the one is looked for that is to be undone.
const MAX_CHANGES: u64 = 200;
/// The fields of the forms of all verbs.
const OPTIONS: [&str; 13] = [
    "chosen",
    "length",
    "base",
    "until",
    "pause_from",
    "pause_until",
    "when",
    "cancel_at",
    "add",
    "start",
    "end",
    "open",
    "grace",
];

/// What can be done with a subscription, or with a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// To record a new one.
    Add,
    /// To give its window a later end.
    Renew,
    /// To take a renewal back.
    Shorten,
    /// To pause it.
    Pause,
    /// To end a pause.
    Resume,
    /// To end it.
    Cancel,
    /// To take a cancellation back.
    Uncancel,
    /// To delete it.
    Delete,
    /// To bring a deleted one back.
    Restore,
}

impl Verb {
    const ALL: [Self; 9] = [
        Self::Add,
        Self::Renew,
        Self::Shorten,
        Self::Pause,
        Self::Resume,
        Self::Cancel,
        Self::Uncancel,
        Self::Delete,
        Self::Restore,
    ];

    /// Those that are offered beside each subscription.
    pub const LISTED: [Self; 7] =
        [Self::Renew, Self::Resume, Self::Uncancel, Self::Pause, Self::Cancel, Self::Delete, Self::Restore];

    /// The word for it in links and forms.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Renew => "renew",
            Self::Shorten => "shorten",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
            Self::Uncancel => "uncancel",
            Self::Delete => "delete",
            Self::Restore => "restore",
        }
    }

    /// The verb that a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == word)
    }

    /// What a button says.
    pub fn label(self) -> &'static str {
        match self {
            Self::Add => "Add",
            Self::Renew => "Renew",
            Self::Shorten => "Take back the renewal",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Cancel => "Cancel",
            Self::Uncancel => "Take back the cancellation",
            Self::Delete => "Delete",
            Self::Restore => "Restore",
        }
    }

    /// What stands between that and the name of a subscription.
    pub fn of(self) -> &'static str {
        match self {
            Self::Shorten | Self::Uncancel => " of ",
            Self::Add | Self::Renew | Self::Pause | Self::Resume | Self::Cancel | Self::Delete | Self::Restore => " ",
        }
    }

    /// What was done, after the name of a subscription.
    pub fn done(self) -> &'static str {
        match self {
            Self::Add => "is recorded",
            Self::Renew => "is renewed",
            Self::Shorten => "has its former end again",
            Self::Pause => "is paused",
            Self::Resume => "is resumed",
            Self::Cancel => "is canceled",
            Self::Uncancel => "is no longer canceled",
            Self::Delete => "is deleted",
            Self::Restore => "is restored",
        }
    }

    /// What it does when it undoes something.
    pub fn undoes(self) -> &'static str {
        match self {
            Self::Add => "record it",
            Self::Renew => "renew it",
            Self::Shorten => "give it its former end",
            Self::Pause => "pause it",
            Self::Resume => "resume it",
            Self::Cancel => "cancel it",
            Self::Uncancel => "take the cancellation back",
            Self::Delete => "delete it",
            Self::Restore => "restore it",
        }
    }

    /// The operation of the management API that does it, whose role it needs.
    fn operation(self) -> &'static str {
        match self {
            Self::Add => "create-subscription",
            Self::Renew => "renew-subscription",
            Self::Shorten => "patch-subscription",
            Self::Pause => "pause-subscription",
            Self::Resume => "resume-subscription",
            Self::Cancel => "cancel-subscription",
            Self::Uncancel => "uncancel-subscription",
            Self::Delete => "delete-subscription",
            Self::Restore => "restore-subscription",
        }
    }

    /// Whether a visitor may do it.
    pub fn is_permitted(self, visitor: &Visitor) -> bool {
        visitor.caller.may(self.operation())
    }

    /// Whether the domain lets it be done with a subscription, in its plainest form.
    pub fn is_possible(self, subscription: &Subscription, now: DateTime<Utc>) -> bool {
        let is_deleted = subscription.deleted_at.is_some();
        let allows = |transition| !is_deleted && subscription.life.after(transition, now).is_ok();
        match self {
            Self::Add => true,
            Self::Renew => allows(Transition::Renew(life::Renewal { end: RenewedEnd::At(None), grace_until: None })),
            Self::Pause => allows(Transition::Pause { from: None, until: None }),
            Self::Resume => allows(Transition::Resume),
            Self::Cancel => allows(Transition::Cancel(Cancellation::Now)),
            Self::Uncancel => allows(Transition::Uncancel),
            Self::Delete => !is_deleted,
            Self::Restore => is_deleted,
            // It undoes, and is not offered by itself.
            Self::Shorten => false,
        }
    }
}

/// A link to the page that shows what a verb would come to.
pub fn link(question: &Question, verb: Verb, on: Option<&Subscription>) -> Link {
    let id = on.map(|subscription| subscription.id.to_string());
    question.link("/console/change").with("verb", verb.as_str()).with_any("on", id.as_deref())
}

/// What a change made of a subscription.
pub fn after(record: &Record) -> Option<&Subscription> {
    match &record.noun {
        Recorded::Subscription { after, .. } => after.as_ref(),
        Recorded::Catalogue { .. } => None,
    }
}

fn before(record: &Record) -> Option<&Subscription> {
    match &record.noun {
        Recorded::Subscription { before, .. } => before.as_ref(),
        Recorded::Catalogue { .. } => None,
    }
}

/// What undoes a change of a subscription, the last one that there was, where the domain has it.
pub fn undo(subscription: &Subscription, record: &Record, now: DateTime<Utc>) -> Option<Verb> {
    let before = before(record);
    let verb = match record.action.as_str() {
        "renew" => {
            let is_possible = subscription.clone().patch(former_term(before?), now).is_ok();
            return is_possible.then_some(Verb::Shorten);
        }
        // One that replaced another cancellation is not undone by taking it back.
        "cancel" if before?.life.canceled_at.is_none() => Verb::Uncancel,
        "pause" => Verb::Resume,
        "delete" => Verb::Restore,
        "restore" | "create" => Verb::Delete,
        _ => return None,
    };
    verb.is_possible(subscription, now).then_some(verb)
}

/// What gives a subscription the window and the grace of another state of it.
fn former_term(former: &Subscription) -> SubscriptionPatch {
    let term = former.life.term;
    SubscriptionPatch {
        valid_until: Some(term.window().until()),
        grace_until: Some(term.grace_until()),
        ..SubscriptionPatch::default()
    }
}

/// What a form asks for.
struct Ask<'a> {
    question: Question,
    verb: Verb,
    on: Option<Uuid>,
    fields: &'a Fields,
}

impl<'a> Ask<'a> {
    fn parse(fields: &'a Fields) -> Result<Self, Problem> {
        let question = Question::parse(fields)?;
        let verb =
            fields.get("verb").and_then(Verb::parse).ok_or_else(|| undescribed("?verb", "there is no such verb"))?;
        let on = match verb {
            Verb::Add => None,
            Verb::Renew
            | Verb::Shorten
            | Verb::Pause
            | Verb::Resume
            | Verb::Cancel
            | Verb::Uncancel
            | Verb::Delete
            | Verb::Restore => {
                Some(fields.get("on").and_then(|id| Uuid::try_parse(id).ok()).ok_or_else(Problem::not_found)?)
            }
        };
        Ok(Self { question, verb, on, fields })
    }

    /// The subscription that is to be changed, which has to be one of the subject.
    async fn subscription(&self, service: &Service) -> Result<Option<Subscription>, Problem> {
        let Some(id) = self.on else { return Ok(None) };
        let filter = Filter { subject: Some(self.question.subject.clone()), with_deleted: true, ..Filter::default() };
        let all = service.subscriptions(&filter, service.now(), None, MAX_SUBSCRIPTIONS).await?;
        all.into_iter().find(|one| one.id == id).map(Some).ok_or_else(Problem::not_found)
    }

    /// What was chosen, or what is chosen to begin with.
    fn option(&self, name: &str, default: impl FnOnce() -> String) -> String {
        let is_chosen = self.fields.get("chosen").is_some();
        let given = self.fields.get(name).map(str::to_owned);
        given.unwrap_or_else(|| if is_chosen { String::new() } else { default() })
    }

    /// The write of the API that this stands for.
    async fn write(&self, service: &Service, expected: Expected) -> Result<Write, Problem> {
        let id = self.on.unwrap_or_default();
        let transition = |transition| Write::Transition { id, expected: expected.clone(), transition };
        let instant = |name: &str| self.fields.get(name).map(|text| Value::from(timestamp(text)));
        let object = |members: [(&str, Option<Value>); 3]| {
            let present = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(present.collect())
        };
        Ok(match self.verb {
            Verb::Add => Write::Create(read::<NewSubscriptionBody>(self.new_subscription(service))?.parse(None)?),
            Verb::Renew => {
                let body = self.renewal(self.subscription(service).await?.as_ref(), service.now());
                transition(Transition::Renew(read::<Renewal>(body)?.parse()?))
            }
            Verb::Shorten => {
                let versions = match &expected {
                    Expected::Versions(versions) => versions.clone(),
                    Expected::Any => Vec::new(),
                };
                let history = service.history(id, None, MAX_CHANGES).await?;
                let of_version = |record: &&Record| after(record).is_some_and(|one| versions.contains(&one.version));
                let record = history.iter().find(of_version).filter(|record| record.action == "renew");
                let former = record.and_then(before).ok_or_else(Problem::not_found)?;
                Write::Patch { id, expected, subject: None, patch: former_term(former) }
            }
            Verb::Pause => {
                let body = object([("from", instant("pause_from")), ("until", instant("pause_until")), ("", None)]);
                transition(read::<Pause>(body)?.parse()?)
            }
            Verb::Resume => transition(Transition::Resume),
            Verb::Cancel => {
                let at = match self.fields.get("when") {
                    Some("at") => Some(instant("cancel_at").unwrap_or_else(|| Value::from(""))),
                    _ => None,
                };
                let at_end = (self.fields.get("when") == Some("end")).then(|| Value::from(true));
                let body = object([("at", at), ("atEnd", at_end), ("", None)]);
                transition(Transition::Cancel(read::<wire::Cancellation>(body)?.parse()?))
            }
            Verb::Uncancel => transition(Transition::Uncancel),
            Verb::Delete => Write::Delete { id, expected },
            Verb::Restore => Write::Restore { id, expected },
        })
    }

    /// The body of a renewal in the API.
    fn renewal(&self, subscription: Option<&Subscription>, now: DateTime<Utc>) -> Value {
        let length = self.option("length", || "P1M".to_owned());
        match length.as_str() {
            "never" => json!({"validUntil": null}),
            "until" => json!({"validUntil": timestamp(self.fields.get("until").unwrap_or_default())}),
            _ => json!({"duration": length, "from": self.base(subscription, now)}),
        }
    }

    /// Where a renewal is counted from.
    fn base(&self, subscription: Option<&Subscription>, now: DateTime<Utc>) -> String {
        let until = subscription.and_then(|subscription| subscription.life.term.window().until());
        // Whoever comes back after a while does not pay for it.
        let has_ended = until.is_some_and(|until| until <= now);
        let base = self.option("base", || if has_ended { "now" } else { "end" }.to_owned());
        if base.is_empty() { "end".to_owned() } else { base }
    }

    /// The body of a new subscription in the API.
    fn new_subscription(&self, service: &Service) -> Value {
        let Subject { kind, id } = &self.question.subject;
        let scopes: Vec<&str> = self.fields.all("add").collect();
        let mut body = Map::new();
        body.insert("subject".to_owned(), json!({"type": kind.as_str(), "id": id.as_str()}));
        body.insert("scopes".to_owned(), json!(scopes));
        let mut set = |member: &str, name: &str| {
            if let Some(text) = self.fields.get(name) {
                body.insert(member.to_owned(), timestamp(text).into());
            }
        };
        set("validFrom", "start");
        set("graceUntil", "grace");
        let end = self.option("end", || first_end(service.now()));
        let is_open = self.fields.get("open").is_some();
        body.insert("validUntil".to_owned(), if is_open { Value::Null } else { timestamp(&end).into() });
        Value::Object(body)
    }
}

/// The end that a new subscription has unless another one is chosen.
fn first_end(now: DateTime<Utc>) -> String {
    let month = Period::parse("P1M").ok();
    let end = month.and_then(|month| month.after(now)).unwrap_or(now);
    field_value(end)[..16].to_owned()
}

/// A body as the API reads it.
fn read<T: DeserializeOwned>(body: Value) -> Result<T, Problem> {
    serde_json::from_value(body).map_err(|_| Problem::invalid_value(vec![FieldError::new("#", "a field is missing")]))
}

/// The page that shows what a change would come to, and does it when it is told to.
///
/// # Errors
///
/// 403; 404; 400 when the query is not one; those of the use cases that have nothing to do with what was chosen.
pub async fn preview(asked: &Asked<'_>, visitor: &Visitor) -> Result<Response, Problem> {
    let (service, query) = (&asked.app.service, asked.query()?);
    let ask = Ask::parse(&query)?;
    asked.permit(visitor, ask.verb.operation())?;
    let subscription = ask.subscription(service).await?;
    let catalogue = catalogue(service, MAX_SCOPES).await?;
    let now = service.now();
    let mut scopes = ask.question.asked(&catalogue);
    let touched = subscription.iter().flat_map(|one| one.scopes.as_slice()).map(Scope::as_str);
    let touched: Vec<&str> = touched.chain(ask.fields.all("add")).collect();
    scopes.extend(
        touched
            .iter()
            .copied()
            .filter(|scope| !ask.question.scopes.is_empty() && !scopes.contains(scope))
            .collect::<Vec<_>>(),
    );
    let is_empty_add = ask.verb == Verb::Add && ask.fields.get("add").is_none();
    // What is asked is what a hook would be asked now.
    let request = ExplanationRequest { at: None, ..ask.question.explanation(&scopes) };
    let previewed = if is_empty_add {
        None
    } else {
        Some(match ask.write(service, Expected::Any).await {
            Ok(write) => service.preview_subscription(write, request).await.map_err(Problem::from),
            Err(problem) => Err(problem),
        })
    };
    let status = match &previewed {
        Some(Err(problem)) if problem.status().is_server_error() => {
            return Err(previewed.and_then(Result::err).unwrap_or_else(Problem::not_found));
        }
        Some(Err(problem)) => problem.status(),
        Some(Ok(_)) | None => StatusCode::OK,
    };
    let key = new_id(now);
    let title = format!("{} a subscription", ask.verb.label());
    let content = html! {
        (timeline::patterns())
        h1 {
            @match &subscription {
                Some(subscription) => { (ask.verb.label()) ": " (scopes_of(subscription)) }
                None => "Add a subscription",
            }
        }
        p { "Of " (markup::subject(&ask.question.subject)) ". Nothing is done until you confirm it." }
        (options(&ask, subscription.as_ref(), &catalogue, now))
        div id="preview" {
            @match &previewed {
                None => { p id="preview-summary" role="status" { "Choose at least one scope." } }
                Some(Err(problem)) => (markup::refusal(&problem.document())),
                Some(Ok(preview)) => (outcome(&ask, visitor, preview, &touched, (now, key))),
            }
        }
        p { a href=(ask.question.link("/console/subject").as_str()) { "Back without a change" } }
    };
    Ok(html_response(status, markup::page(&title, Some(visitor), Some(Part::Subjects), &content).into_string()))
}

/// What can be chosen for a verb.
fn options(
    ask: &Ask<'_>,
    subscription: Option<&Subscription>,
    catalogue: &[CatalogueScope],
    now: DateTime<Utc>,
) -> Markup {
    let given = |name: &str| ask.fields.get(name);
    let date = |id: &str, label: &str, value: Option<&str>| {
        html! {
            div.field {
                label for=(id) { (label) }
                input id=(id) name=(id) type="datetime-local" step="1" value=[value];
            }
        }
    };
    let choice = |name: &str, value: &str, label: &str, chosen: &str| {
        html! { label { input type="radio" name=(name) value=(value) checked[value == chosen]; " " (label) } }
    };
    let content = match ask.verb {
        Verb::Renew => {
            let length = ask.option("length", || "P1M".to_owned());
            let base = ask.base(subscription, now);
            html! {
                fieldset {
                    legend { "How long" }
                    @for (value, label) in [
                        ("P1M", "a month"),
                        ("P3M", "three months"),
                        ("P6M", "six months"),
                        ("P1Y", "a year"),
                        ("until", "until the instant below"),
                        ("never", "without an end"),
                    ] { (choice("length", value, label, &length)) }
                }
                (date("until", "Until (UTC)", given("until")))
                fieldset {
                    legend { "Counted from" }
                    (choice("base", "end", "the end that there is", &base))
                    (choice("base", "now", "now", &base))
                }
            }
        }
        Verb::Pause => html! {
            (date("pause_from", "From (UTC; empty: now)", given("pause_from")))
            (date("pause_until", "Until (UTC; empty: until somebody resumes it)", given("pause_until")))
        },
        Verb::Cancel => {
            let when = ask.option("when", || "now".to_owned());
            html! {
                fieldset {
                    legend { "When" }
                    (choice("when", "now", "now", &when))
                    (choice("when", "end", "at the end of its window, so that there is no grace", &when))
                    (choice("when", "at", "at the instant below", &when))
                }
                (date("cancel_at", "At (UTC)", given("cancel_at")))
            }
        }
        Verb::Add => {
            let end = ask.option("end", || first_end(now));
            html! {
                fieldset.scopes {
                    legend { "Scopes" }
                    @if catalogue.is_empty() { p { "The catalogue is empty." } }
                    @for scope in catalogue {
                        @let name = scope.name.as_str();
                        label {
                            input type="checkbox" name="add" value=(name) checked[ask.fields.all("add").any(|one| one == name)];
                            " " (markup::text(name))
                            @if let Some(description) = &scope.description { " – " (markup::text(description.as_str())) }
                        }
                    }
                }
                (date("start", "Start (UTC; empty: now)", given("start")))
                (date("end", "End (UTC)", Some(end.as_str()).filter(|end| !end.is_empty())))
                label.single {
                    input type="checkbox" name="open" value="1" checked[given("open").is_some()];
                    " without an end"
                }
                (date("grace", "End of a grace after it (UTC; empty: none)", given("grace")))
            }
        }
        Verb::Shorten | Verb::Resume | Verb::Uncancel | Verb::Delete | Verb::Restore => return html! {},
    };
    html! {
        form.options method="get" action="/console/change" data-live="preview" {
            (ask.question.fields())
            (markup::hidden("verb", ask.verb.as_str()))
            @if let Some(id) = ask.on { (markup::hidden("on", &id.to_string())) }
            (markup::hidden("chosen", "1"))
            (content)
            button type="submit" { "Show what it would come to" }
        }
    }
}

/// What a change would come to, and the form that does it.
fn outcome(
    ask: &Ask<'_>,
    visitor: &Visitor,
    preview: &Preview<'_>,
    touched: &[&str],
    (now, key): (DateTime<Utc>, Uuid),
) -> Markup {
    let Preview { before, after, at, explanations: [old, new] } = preview;
    let rows: Vec<_> = old
        .decision
        .outcomes
        .iter()
        .zip(&old.grounds)
        .zip(new.decision.outcomes.iter().zip(&new.grounds))
        .filter(|((old, _), (new, _))| *old != *new || touched.contains(&old.scope))
        .collect();
    let others = old.decision.outcomes.len() - rows.len();
    let gained = rows.iter().filter(|((old, _), (new, _))| !old.kept && new.kept).count();
    let lost = rows.iter().filter(|((old, _), (new, _))| old.kept && !new.kept).count();
    let scale = Scale::of(before.iter().chain([after]), now, now);
    html! {
        h2 id="preview-title" { "What it would come to" }
        p id="preview-summary" role="status" {
            @match (gained, lost) {
                (0, 0) => "No scope is kept or removed because of it now.",
                (gained, 0) => { strong { (gained) } " scope" (plural(gained)) " would be kept from now on." }
                (0, lost) => { strong { (lost) } " scope" (plural(lost)) " would be removed from now on." }
                (gained, lost) => {
                    strong { (gained) } " scope" (plural(gained)) " would be kept, " strong { (lost) } " removed from now on."
                }
            }
        }
        div.wide tabindex="0" role="region" aria-label="What the hook answers, before and after" {
            table {
                caption { "What the hook answers, before and after" }
                thead {
                    tr {
                        th scope="col" { "Scope" }
                        th scope="col" { "Now" }
                        th scope="col" { "After the change" }
                    }
                }
                tbody {
                    @for ((old, old_grounds), (new, new_grounds)) in rows {
                        tr class=[(old.kept != new.kept).then_some("changed")] {
                            th scope="row" data-label="Scope" { (markup::text(old.scope)) }
                            td data-label="Now" { (told(old, old_grounds, now)) }
                            td data-label="After the change" {
                                @if old.kept != new.kept { strong { "changes: " } }
                                (told(new, new_grounds, now))
                            }
                        }
                    }
                }
            }
        }
        @if others > 0 { p.hint { (others) " other scope" (plural(others)) " not touched by it." } }
        h3 { "The subscription" }
        @if let Some(before) = before {
            p.bar-label { "Before" }
            (scale.bar(&before.life, &format!("Before: {}", words(&before.life))))
        }
        p.bar-label { "After" }
        (scale.bar(&after.life, &format!("After: {}", words(&after.life))))
        (scale.axis())
        ul.plain {
            @for (what, from, to) in differences(before.as_ref(), after) {
                li { (what) ": " @if let Some(from) = from { (from) " → " } strong { (to) } }
            }
        }
        p.hint { "Told at " (markup::instant(*at)) "." }
        form.confirm method="post" action="/console/change" {
            (markup::form_token(visitor))
            (ask.question.fields())
            (markup::hidden("verb", ask.verb.as_str()))
            @if let Some(id) = ask.on { (markup::hidden("on", &id.to_string())) }
            @if let Some(before) = before { (markup::hidden("version", &before.version.to_string())) }
            (markup::hidden("once", &key.to_string()))
            (markup::hidden("chosen", "1"))
            @for (name, value) in chosen(ask, before.as_ref(), now) { (markup::hidden(&name, &value)) }
            button.main type="submit" {
                (ask.verb.label())
                @if ask.verb == Verb::Add { " the subscription" }
            }
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// What was chosen, be it by leaving what there was to begin with.
fn chosen(ask: &Ask<'_>, before: Option<&Subscription>, now: DateTime<Utc>) -> Vec<(String, String)> {
    let given = OPTIONS.into_iter().filter(|name| *name != "chosen");
    let mut all: Vec<(String, String)> =
        given.flat_map(|name| ask.fields.all(name).map(move |value| (name.to_owned(), value.to_owned()))).collect();
    let mut set = |name: &str, value: String| {
        if ask.fields.get(name).is_none() && !value.is_empty() {
            all.push((name.to_owned(), value));
        }
    };
    match ask.verb {
        Verb::Renew => {
            set("length", ask.option("length", || "P1M".to_owned()));
            set("base", ask.base(before, now));
        }
        Verb::Add => set("end", ask.option("end", || first_end(now))),
        Verb::Cancel => set("when", ask.option("when", || "now".to_owned())),
        Verb::Shorten | Verb::Pause | Verb::Resume | Verb::Uncancel | Verb::Delete | Verb::Restore => {}
    }
    all
}

/// What becomes of a scope, why, and until when.
fn told(outcome: &Outcome<'_>, grounds: &Grounds, now: DateTime<Utc>) -> Markup {
    html! {
        (markup::verdict(outcome.kept)) ": "
        @if let Some(unenforced) = outcome.unenforced { "not enforced, or else " (markup::reason(unenforced)) }
        @else { (markup::reason(outcome.reason)) }
        @if let Some(next) = grounds.next {
            "; " (if next.kept { "kept" } else { "removed" }) " from " (markup::instant(next.at))
            " (" (markup::distance(next.at, now)) ")"
        }
    }
}

/// Does a change, and shows the subject with it.
///
/// # Errors
///
/// 403; 404; those of the write.
pub async fn done(asked: &Asked<'_>, visitor: &Visitor, fields: &Fields) -> Result<Response, Problem> {
    let service = &asked.app.service;
    let ask = Ask::parse(fields)?;
    asked.permit(visitor, ask.verb.operation())?;
    let expected = match (ask.verb, fields.get("version").and_then(|version| version.parse().ok())) {
        (Verb::Add, _) => Expected::Any,
        (_, Some(version)) => Expected::Versions(vec![version]),
        (_, None) => return Err(Problem::if_match_required()),
    };
    // It has to be one of the subject whose page it was.
    ask.subscription(service).await?;
    let write = ask.write(service, expected).await?;
    let mut origin = asked.origin(visitor);
    origin.idempotency = fields.get("once").and_then(|key| Uuid::try_parse(key).ok()).map(|key| once(key, fields));
    let written = service.write_subscription(origin, write).await?.shown.subscription;
    let question = Question { at: None, ..ask.question };
    let link = question.link("/console/subject").with("done", ask.verb.as_str()).with("on", &written.id.to_string());
    Ok(redirect(&link.with("version", &written.version.to_string()).at("notice")))
}

/// What makes a form be done once, though its button is pressed twice.
fn once(key: Uuid, fields: &Fields) -> Idempotency {
    let mut digest = Sha256::new();
    for (name, value) in fields.iter().filter(|(name, _)| *name != "form_token") {
        for text in [name, value] {
            digest.update(text.len().to_be_bytes());
            digest.update(text);
        }
    }
    Idempotency { key: format!("console-{key}"), digest: digest.finalize().into() }
}
