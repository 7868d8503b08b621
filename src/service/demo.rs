//! The demo's catalogue and subscriptions: one of every status there is, for users and for clients.

use std::sync::Arc;

use chrono::TimeDelta;

use super::{
    Error, Expected, Origin, Result, Service,
    catalogue::NewCatalogueScope,
    subscription::{NewSubscription, Write},
};
use crate::domain::{
    catalogue::{Description, Requires},
    claims::Claims,
    life::{Cancellation, Status, Transition},
    scope::Scope,
    subject::{Subject, SubjectId, SubjectType},
    subscription::{ScopeSet, Subscription, SubscriptionState},
};

/// The user of the vendor's example, whose `email` subscription has expired.
pub const USER: &str = "myUserId22700111101";
/// A client with a subscription of its own.
pub const CLIENT: &str = "reporting-dashboard";

/// A subscription of the demo: when it runs, in days from now, and what was done to it.
struct Example {
    kind: SubjectType,
    id: &'static str,
    scopes: &'static [&'static str],
    from: i64,
    until: Option<i64>,
    grace_until: Option<i64>,
    done: Option<Transition>,
}

const CANCELED: Option<Transition> = Some(Transition::Cancel(Cancellation::Now));
const PAUSED: Option<Transition> = Some(Transition::Pause { from: None, until: None });

const SCOPES: [(&str, &str, Requires, bool); 5] = [
    ("email", "Mail in the customer's name", Requires::Any, true),
    ("reports", "Monthly reports", Requires::User, true),
    ("export", "Bulk export, by applications that paid for it", Requires::Client, true),
    ("premium", "Premium data: the user and the application both need it", Requires::All, true),
    ("insights", "Insights, not enforced yet: counted, and kept for all", Requires::Any, false),
];

const fn user(id: &'static str, scopes: &'static [&'static str], from: i64, until: Option<i64>) -> Example {
    Example { kind: SubjectType::User, id, scopes, from, until, grace_until: None, done: None }
}

const EXAMPLES: [Example; 10] = [
    user(USER, &["email"], -60, Some(-30)),
    user(USER, &["reports"], -10, Some(20)),
    user(USER, &["premium"], 5, Some(35)),
    Example { done: CANCELED, ..user(USER, &["insights"], -10, Some(20)) },
    user("jane", &["email", "premium"], -1, None),
    Example { done: CANCELED, ..user("jane", &["reports"], -5, None) },
    Example { grace_until: Some(7), ..user("late", &["email", "reports"], -30, Some(-1)) },
    Example { done: PAUSED, ..user("away", &["email", "reports"], -30, Some(60)) },
    Example { kind: SubjectType::Client, ..user(CLIENT, &["export", "premium"], -90, None) },
    Example { kind: SubjectType::Client, ..user("retired-app", &["export"], -90, Some(-1)) },
];

impl Service {
    /// Fills an empty database with the demo's catalogue and subscriptions, as the API would, and gives back an active
    /// subscription of [`USER`] that can be canceled.
    ///
    /// # Errors
    ///
    /// [`Error::ScopeExists`] when the database is not empty.
    ///
    /// # Panics
    ///
    /// When an example above is not one that the domain allows, which every start of the demo would show.
    pub async fn seed_demo(self: &Arc<Self>) -> Result<Subscription> {
        let origin = || Origin { actor: "demo".to_owned(), request_id: "demo".to_owned(), idempotency: None };
        for (name, description, requires, enforced) in SCOPES {
            let description = Description::parse(description.to_owned()).ok();
            let new =
                NewCatalogueScope { name: scope(name), description, requires, enforced, claims: Claims::default() };
            self.create_scope(origin(), new).await?;
        }
        let now = self.now();
        let mut cancelable = None;
        for example in EXAMPLES {
            let state = SubscriptionState {
                subject: Subject { kind: example.kind, id: SubjectId::parse(example.id).expect("an id") },
                scopes: ScopeSet::new(example.scopes.iter().map(|name| scope(name)).collect()).expect("a set"),
                valid_from: Some(now + TimeDelta::days(example.from)),
                valid_until: example.until.map(|days| now + TimeDelta::days(days)),
                grace_until: example.grace_until.map(|days| now + TimeDelta::days(days)),
                pause: None,
                canceled_at: None,
                claims: Claims::default(),
            };
            let create = Write::Create(NewSubscription { state, external: None });
            let created = self.write_subscription(origin(), create).await?.shown.subscription;
            if let Some(transition) = example.done {
                let write = Write::Transition { id: created.id, expected: Expected::Any, transition };
                self.write_subscription(origin(), write).await?;
            } else if example.id == USER && created.status(now) == Status::Active {
                cancelable = Some(created);
            }
        }
        cancelable.ok_or(Error::NotFound)
    }
}

fn scope(name: &str) -> Scope {
    Scope::parse(name).expect("the demo's scopes are scope tokens")
}
