//! What all pages of the console are made of. What comes from data is escaped by the templates; texts of others are
//! shown so that they change nothing around them.

use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Timelike as _, Utc};
use maud::{DOCTYPE, Markup, html};

use super::{Visitor, bulk::IMPORT, form::Link};
use crate::{
    domain::{
        decision::Reason,
        life::Status,
        subject::{Subject, SubjectType},
    },
    http::{problem::Document, wire::Timestamp},
};

/// Changes with the version, so that a browser takes no old one for a new page.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The parts of the console, as its menu lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Users and clients.
    /// Users and clients.
    Subjects,
    /// Scopes.
    Catalogue,
    /// Files.
    Import,
    /// The service itself.
    Service,
}

impl Part {
    const ALL: [Self; 4] = [Self::Subjects, Self::Catalogue, Self::Import, Self::Service];

    /// Whether a visitor may do what it is for.
    fn is_for(self, visitor: &Visitor) -> bool {
        match self {
            Self::Import => visitor.caller.may(IMPORT),
            Self::Subjects | Self::Catalogue | Self::Service => true,
        }
    }

    fn link(self) -> (&'static str, &'static str) {
        match self {
            Self::Subjects => ("/console", "Users and clients"),
            Self::Catalogue => ("/console/catalogue", "Catalogue"),
            Self::Import => ("/console/import", "Import"),
            Self::Service => ("/console/service", "Service"),
        }
    }
}

/// A whole page.
pub fn page(title: &str, visitor: Option<&Visitor>, part: Option<Part>, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (visible_text(title)) " – Tollgate" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href={ "/console/console.css?v=" (VERSION) };
                script src={ "/console/console.js?v=" (VERSION) } defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    p.brand { a href="/console" { "Tollgate" } " console" }
                    @if let Some(visitor) = visitor {
                        nav aria-label="Console" {
                            ul {
                                @for one in Part::ALL.into_iter().filter(|one| one.is_for(visitor)) {
                                    @let (link, name) = one.link();
                                    li { a href=(link) aria-current=[(Some(one) == part).then_some("page")] { (name) } }
                                }
                            }
                        }
                        form.who method="post" action="/console/sign-out" {
                            (form_token(visitor))
                            span {
                                "Signed in as " (text(&visitor.caller.name))
                                @if let Some(role) = visitor.caller.role { " (" (role.as_str()) ")" }
                            }
                            button type="submit" { "Sign out" }
                        }
                    }
                }
                main id="main" tabindex="-1" { (content) }
            }
        }
    }
}

/// What each form of a session repeats, so that no other site's form is taken for one of ours.
pub fn form_token(visitor: &Visitor) -> Markup {
    hidden("form_token", &visitor.session.form_token)
}

/// A field that is not shown. Browsers change line breaks in it: a text of others is encoded before.
pub fn hidden(name: &str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

/// A text of others, kept apart from what stands around it. What nobody would see, or would turn letters around, is
/// shown by its number.
pub fn text(text: &str) -> Markup {
    html! {
        bdi.text {
            @for part in parts(text) {
                @match part {
                    Part_::Plain(plain) => (plain),
                    Part_::Mark(letter) => span.mark { (code(letter)) },
                }
            }
        }
    }
}

/// The same, where there is no room for markup.
pub fn visible_text(text: &str) -> String {
    let show = |part| match part {
        Part_::Plain(plain) => plain.to_owned(),
        Part_::Mark(letter) => format!("⟨{}⟩", code(letter)),
    };
    parts(text).into_iter().map(show).collect()
}

enum Part_<'a> {
    Plain(&'a str),
    Mark(char),
}

fn code(letter: char) -> String {
    format!("U+{:04X}", u32::from(letter))
}

fn parts(text: &str) -> Vec<Part_<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((at, letter)) = rest.char_indices().find(|(_, letter)| is_unseen(*letter)) {
        if at > 0 {
            parts.push(Part_::Plain(&rest[..at]));
        }
        parts.push(Part_::Mark(letter));
        rest = &rest[at + letter.len_utf8()..];
    }
    if !rest.is_empty() {
        parts.push(Part_::Plain(rest));
    }
    parts
}

/// Whether a letter shows nothing of itself: controls, marks of direction, blanks without width, tags.
fn is_unseen(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The word for a kind of subject.
pub fn kind(kind: SubjectType) -> &'static str {
    match kind {
        SubjectType::User => "User",
        SubjectType::Client => "Client",
    }
}

/// A subject, by its kind and id.
pub fn subject(subject: &Subject) -> Markup {
    html! { (kind(subject.kind)) " " (text(subject.id.as_str())) }
}

/// The page of a subject.
pub fn subject_link(subject: &Subject) -> Link {
    Link::to("/console/subject").with("type", subject.kind.as_str()).with("id", subject.id.as_str())
}

/// An instant, for people and for programs.
pub fn instant(at: DateTime<Utc>) -> Markup {
    let exact = Timestamp::from(at).0;
    html! { time datetime=(exact) title=(exact) { (spelled(at)) } }
}

/// An instant in words, to the second: fractions of one are for programs.
pub fn spelled(at: DateTime<Utc>) -> String {
    let format = if at.second() == 0 { "%-d %b %Y %H:%M UTC" } else { "%-d %b %Y %H:%M:%S UTC" };
    at.format(format).to_string()
}

/// An instant to the minute, where the exact one does not matter.
pub fn roughly(at: DateTime<Utc>) -> String {
    at.format("%-d %b %Y %H:%M UTC").to_string()
}

/// How far an instant is from the present, in words.
pub fn distance(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let apart = if at < now { now - at } else { at - now };
    if apart < TimeDelta::seconds(1) {
        return "now".to_owned();
    }
    let units = [
        ("year", TimeDelta::days(365)),
        ("month", TimeDelta::days(30)),
        ("day", TimeDelta::days(1)),
        ("hour", TimeDelta::hours(1)),
        ("minute", TimeDelta::minutes(1)),
        ("second", TimeDelta::seconds(1)),
    ];
    // A unit is used from two of it on: "45 days" says more than "1 month".
    let (name, unit) =
        units.into_iter().find(|(name, unit)| apart >= *unit * 2 || *name == "second").unwrap_or(units[5]);
    let count = apart.num_seconds() / unit.num_seconds();
    let mut words = format!("{count} {name}{}", if count == 1 { "" } else { "s" });
    // Writing into a string does not fail.
    let _ = if at < now { write!(words, " ago") } else { Ok(()) };
    if at < now { words } else { format!("in {words}") }
}

/// A status, told by its word as well as by its color.
pub fn status(status: Status) -> Markup {
    html! { span class={ "status " (status.as_str()) } { (status.as_str()) } }
}

/// What becomes of a scope, told by its word as well as by its color.
pub fn verdict(kept: bool) -> Markup {
    if kept {
        html! { span.verdict.kept { span aria-hidden="true" { "✓ " } "kept" } }
    } else {
        html! { span.verdict.removed { span aria-hidden="true" { "✕ " } "removed" } }
    }
}

/// Why a scope is kept or removed, in words.
pub fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Unmanaged => "it is not in the catalogue",
        Reason::Active => "a subscription is active",
        Reason::Grace => "a subscription has ended and is in its grace",
        Reason::NotEnforced => "its rule is not enforced",
        Reason::Paused => "the subscription is paused",
        Reason::Scheduled => "the subscription has not begun",
        Reason::Canceled => "the subscription was canceled",
        Reason::Expired => "the subscription has expired",
        Reason::NoSubscription => "there is no subscription",
        Reason::NoUser => "a user must hold it, and none is asked for",
        Reason::Unknown => "whether it is held is not known",
    }
}

/// What went wrong, at the top of what it is about.
pub fn refusal(problem: &Document) -> Markup {
    html! {
        div.notice.bad role="alert" {
            p { strong { (problem.title) ". " } (problem.detail) }
            @if !problem.errors.is_empty() {
                ul {
                    @for error in &problem.errors {
                        li { @if let Some(name) = field(&error.pointer) { (name) ": " } (text(&error.detail)) }
                    }
                }
            }
        }
    }
}

/// What a form calls the member or the parameter that a pointer names.
fn field(pointer: &str) -> Option<&str> {
    let name = pointer.trim_start_matches(['#', '/', '?']);
    Some(match name.split('/').next().unwrap_or_default() {
        "" => return None,
        "validFrom" => "Start",
        "validUntil" => "End",
        "graceUntil" => "End of the grace",
        "duration" => "Length",
        "from" => "Start of the pause",
        "until" => "End of the pause",
        "scopes" | "scope" => "Scopes",
        "subjectId" | "id" => "Id",
        "subjectType" | "type" => "Kind",
        "at" => "At",
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_would_see_is_shown_by_its_number_and_all_else_is_escaped() {
        let shown = text("<b>\"a'&\u{202e}x\n").into_string();
        let expected = "<bdi class=\"text\">&lt;b&gt;&quot;a'&amp;<span class=\"mark\">U+202E</span>x\
            <span class=\"mark\">U+000A</span></bdi>";
        assert_eq!(shown, expected);
        assert_eq!(visible_text("a\u{202e}\u{0}b"), "a⟨U+202E⟩⟨U+0000⟩b");
    }

    #[test]
    fn a_distance_is_told_in_the_largest_unit_of_which_there_are_two() {
        let now: DateTime<Utc> = "2026-06-15T12:00:00Z".parse().expect("a timestamp");
        let check = |seconds, expected: &str| assert_eq!(distance(now + TimeDelta::seconds(seconds), now), expected);
        check(0, "now");
        check(1, "in 1 second");
        check(-1, "1 second ago");
        check(-119, "119 seconds ago");
        check(120, "in 2 minutes");
        check(47 * 3600, "in 47 hours");
        check(-45 * 86_400, "45 days ago");
        check(-800 * 86_400, "2 years ago");
    }
}
