//! Subscriptions in time, as bars on one scale. The bars are for the eye; what they show is told in words beside them.

use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use super::{form::field_value, markup::roughly};
use crate::domain::{life::Life, subscription::Subscription};

/// How far from the present a bar is drawn: what lies further is cut.
const REACH: TimeDelta = TimeDelta::days(2 * 366);
/// How much time is shown at least.
const SHORTEST: TimeDelta = TimeDelta::days(2);
/// The width of a bar, in units of its drawing.
const WIDTH: i64 = 1000;
/// The height of a bar.
const HEIGHT: i64 = 24;

/// The stretch of time that all bars show.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    now: DateTime<Utc>,
    at: DateTime<Utc>,
}

impl Scale {
    /// The scale on which all of these subscriptions, the present and another instant can be seen.
    pub fn of<'a>(
        subscriptions: impl IntoIterator<Item = &'a Subscription>,
        now: DateTime<Utc>,
        at: DateTime<Utc>,
    ) -> Self {
        let near = |instant: DateTime<Utc>| instant.clamp(now - REACH, now + REACH);
        let boundaries = subscriptions.into_iter().flat_map(|subscription| subscription.life.boundaries());
        let (mut from, mut until) = (now - SHORTEST / 2, now + SHORTEST / 2);
        for boundary in boundaries.chain([at]).map(near) {
            from = from.min(boundary);
            until = until.max(boundary);
        }
        let margin = (until - from) / 20;
        Self { from: from - margin, until: until + margin, now, at }
    }

    /// Where an instant lies on a bar.
    fn place(&self, instant: DateTime<Utc>) -> i64 {
        let whole = (self.until - self.from).num_milliseconds().max(1);
        let part = (instant.clamp(self.from, self.until) - self.from).num_milliseconds();
        // Four years of milliseconds times the width are far from the largest number.
        part * WIDTH / whole
    }

    /// The ends of the scale in words, and what is needed to slide along it.
    pub fn axis(&self) -> Markup {
        html! {
            div.axis {
                span { (roughly(self.from)) }
                span { (roughly(self.until)) }
            }
        }
    }

    /// The ends of the scale, as fields of a date and a time hold them.
    pub fn ends(&self) -> [String; 2] {
        // To the second: who slides does not mean a fraction of one.
        [self.from, self.until].map(|end| field_value(end)[..19].to_owned())
    }

    /// The bar of a life.
    pub fn bar(&self, life: &Life, label: &str) -> Markup {
        let Life { term, pause, canceled_at } = life;
        let window = term.window();
        let end = window.until();
        let whole_end = term.grace_until().or(end);
        let stretch = |from: DateTime<Utc>, until: Option<DateTime<Utc>>| {
            let (start, end) = (self.place(from), until.map_or(WIDTH, |until| self.place(until)));
            (start, (end - start).max(0))
        };
        let rect = |(x, width): (i64, i64), class: &str, fill: Option<&str>| {
            html! { rect class=(class) x=(x) y="4" width=(width) height="16" fill=[fill] {} }
        };
        let pause = pause.map(|pause| {
            let until = match (pause.until(), whole_end) {
                (Some(until), Some(end)) => Some(until.min(end)),
                (until, end) => until.or(end),
            };
            stretch(pause.from().max(window.from()), until)
        });
        html! {
            svg.bar role="img" aria-label=(label) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                rect.track x="0" y="11" width=(WIDTH) height="2" {}
                (rect(stretch(window.from(), end), "window", None))
                @if let (Some(end), Some(grace_until)) = (end, term.grace_until()) {
                    (rect(stretch(end, Some(grace_until)), "grace", Some("url(#grace)")))
                }
                @if let Some(pause) = pause { (rect(pause, "paused", Some("url(#paused)"))) }
                @if let Some(canceled_at) = canceled_at {
                    (rect(stretch((*canceled_at).max(window.from()), whole_end), "canceled", Some("url(#canceled)")))
                }
                (self.line(self.now, "now"))
                @if self.at != self.now { (self.line(self.at, "at")) }
            }
        }
    }

    fn line(&self, at: DateTime<Utc>, class: &str) -> Markup {
        let x = self.place(at);
        html! { line class=(class) x1=(x) x2=(x) y1="0" y2=(HEIGHT) vector-effect="non-scaling-stroke" {} }
    }
}

/// What the bars are filled with, once a page.
pub fn patterns() -> Markup {
    html! {
        svg.patterns aria-hidden="true" focusable="false" width="0" height="0" {
            defs {
                pattern id="grace" patternUnits="userSpaceOnUse" width="10" height="8" {
                    rect.grace-ground width="10" height="8" {}
                    circle.grace-dot cx="5" cy="4" r="2" {}
                }
                pattern id="paused" patternUnits="userSpaceOnUse" width="12" height="8" {
                    rect.paused-ground width="12" height="8" {}
                    rect.paused-stripe width="6" height="8" {}
                }
                pattern id="canceled" patternUnits="userSpaceOnUse" width="12" height="12" {
                    rect.canceled-ground width="12" height="12" {}
                    path.canceled-line d="M0 12 L12 0 M0 0 L12 12" {}
                }
            }
        }
    }
}

/// What the fillings and the lines mean.
pub fn legend() -> Markup {
    let sample = |class: &str, fill: Option<&str>| {
        html! {
            svg.sample aria-hidden="true" viewBox="0 0 36 16" { rect class=(class) width="36" height="16" fill=[fill] {} }
        }
    };
    let line = |class: &str| {
        html! {
            svg.sample aria-hidden="true" viewBox="0 0 36 16" { line class=(class) x1="18" x2="18" y1="0" y2="16" {} }
        }
    };
    html! {
        ul.legend aria-label="Legend of the bars" {
            li { (sample("window", None)) " window" }
            li { (sample("grace", Some("url(#grace)"))) " grace" }
            li { (sample("paused", Some("url(#paused)"))) " paused" }
            li { (sample("canceled", Some("url(#canceled)"))) " canceled" }
            li { (line("now")) " now" }
            li { (line("at")) " the instant asked for" }
        }
    }
}
