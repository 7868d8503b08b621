//! The demo's catalogue and subscriptions: one of every status there is, for users and for clients.

use std::sync::Arc;

use chrono::TimeDelta;

use super::{Error, Expected, Origin, Result, Service, catalogue::NewCatalogueScope, subscription::NewSubscription};
use crate::domain::{
    catalogue::{Description, Requires},
    life::Status,
    scope::Scope,
    subject::{Subject, SubjectId, SubjectType},
    subscription::{ScopeSet, Subscription},
};

/// The user of the vendor's example, whose `email` subscription has expired.
pub const USER: &str = "myUserId22700111101";
/// A client with a subscription of its own.
pub const CLIENT: &str = "reporting-dashboard";

/// A subscription of the demo: when it runs, in days from now, and whether it is canceled.
struct Example {
    kind: SubjectType,
    id: &'static str,
    scopes: &'static [&'static str],
    from: i64,
    until: Option<i64>,
    canceled: bool,
}

const SCOPES: [(&str, &str, Requires, bool); 5] = [
    ("email", "Mail in the customer's name", Requires::Any, true),
    ("reports", "Monthly reports", Requires::User, true),
    ("export", "Bulk export, by applications that paid for it", Requires::Client, true),
    ("premium", "Premium data: the user and the application both need it", Requires::All, true),
    ("insights", "Insights, not enforced yet: counted, and kept for all", Requires::Any, false),
];

const fn user(id: &'static str, scopes: &'static [&'static str], from: i64, until: Option<i64>) -> Example {
    Example { kind: SubjectType::User, id, scopes, from, until, canceled: false }
}

const EXAMPLES: [Example; 8] = [
    user(USER, &["email"], -60, Some(-30)),
    user(USER, &["reports"], -10, Some(20)),
    user(USER, &["premium"], 5, Some(35)),
    Example { canceled: true, ..user(USER, &["insights"], -10, Some(20)) },
    user("jane", &["email", "premium"], -1, None),
    Example { canceled: true, ..user("jane", &["reports"], -5, None) },
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
        let origin = || Origin { actor: "demo".to_owned(), request_id: "demo".to_owned() };
        for (name, description, requires, enforced) in SCOPES {
            let description = Description::parse(description.to_owned()).ok();
            let new = NewCatalogueScope { name: scope(name), description, requires, enforced };
            self.create_scope(origin(), new).await?;
        }
        let now = self.now();
        let mut cancelable = None;
        for example in EXAMPLES {
            let new = NewSubscription {
                subject: Subject { kind: example.kind, id: SubjectId::parse(example.id).expect("an id") },
                scopes: ScopeSet::new(example.scopes.iter().map(|name| scope(name)).collect()).expect("a set"),
                valid_from: Some(now + TimeDelta::days(example.from)),
                valid_until: example.until.map(|days| now + TimeDelta::days(days)),
            };
            let created = self.create_subscription(origin(), new).await?.subscription;
            if example.canceled {
                self.cancel_subscription(origin(), created.id, Expected::Any).await?;
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
