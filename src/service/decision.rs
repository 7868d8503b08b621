//! The use case of the hooks: which of the requested scopes stay.

use std::sync::{Arc, LazyLock};

use super::{Result, Service};
use crate::domain::{
    catalogue::Requires,
    decision::{Decision, Parties, decide},
    facts::Facts,
    subject::Subject,
};

static NOTHING: LazyLock<Arc<Facts>> = LazyLock::new(Arc::default);

/// A user or client that a hook request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    /// One that may hold subscriptions.
    Subject(Subject),
    /// One whose id no subscription can have: it holds nothing, and its id never reaches the database.
    Unholding,
}

/// What a hook request asks: for whom, and which scopes.
#[derive(Debug, Clone)]
pub struct DecisionRequest<'a> {
    /// The user; none when the request names none.
    pub user: Option<Party>,
    /// The client.
    pub client: Party,
    /// The requested scopes, as spelled.
    pub scopes: &'a [&'a str],
}

impl Service {
    /// Decides which of the requested scopes stay.
    ///
    /// # Errors
    ///
    /// [`super::Error::Store`] or [`super::Error::Facts`] when what the decision needs is not known and the database
    /// cannot be asked. Then nothing is decided: a guess would lock people out, or let them in.
    pub async fn decide<'a>(&self, request: DecisionRequest<'a>) -> Result<Decision<'a>> {
        let DecisionRequest { user, client, scopes } = request;
        let now = self.clock.now();
        let catalogue = self.catalogue.get().await?;

        let rules = || scopes.iter().filter_map(|scope| catalogue.rule(scope));
        let asks_user = rules().any(|rule| rule.requires != Requires::Client);
        let asks_client = rules().any(|rule| rule.requires != Requires::User);
        let subject = |party: &Party, asked: bool| match party {
            Party::Subject(subject) if asked => Some(subject.clone()),
            Party::Subject(_) | Party::Unholding => None,
        };
        let user_subject = user.as_ref().and_then(|user| subject(user, asks_user));
        let client_subject = subject(&client, asks_client);

        let subjects: Vec<_> = [&user_subject, &client_subject].into_iter().flatten().cloned().collect();
        let mut facts = self.facts.get(&subjects).await?.into_iter();
        let mut facts_of =
            |subject: Option<Subject>| subject.and_then(|_| facts.next()).unwrap_or_else(|| Arc::clone(&NOTHING));
        let user_facts = facts_of(user_subject);
        let client_facts = facts_of(client_subject);

        let parties = Parties { user: user.is_some().then_some(&*user_facts), client: &client_facts };
        let decision = decide(&catalogue, self.policy.unmanaged, parties, scopes, now);
        self.metrics.count_decision(&decision);
        Ok(decision)
    }
}
