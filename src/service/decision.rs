//! The use case of the hooks: which of the requested scopes stay.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{Error, Result, Service, cache::Found, metrics::Freshness};
use crate::domain::{
    catalogue::Requires,
    claims::{AdditionalClaims, ClaimsPrefix, additional},
    decision::{Decision, Knowledge, Parties, Stance, decide},
    facts::Facts,
    subject::SubjectRef,
};

/// How long the log is not told again that claims were left out.
const TELL_LEFT_OUT_AGAIN: Duration = Duration::from_mins(1);

/// What a party that holds nothing holds.
static NOTHING: LazyLock<Facts> = LazyLock::new(Facts::default);

/// A user or client that a hook request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party<'a> {
    /// One that may hold subscriptions.
    Subject(SubjectRef<'a>),
    /// One whose id no subscription can have: it holds nothing, and its id never reaches the database.
    Unholding,
}

impl<'a> Party<'a> {
    /// The subject, where it may hold subscriptions.
    #[must_use]
    pub fn subject(self) -> Option<SubjectRef<'a>> {
        match self {
            Self::Subject(subject) => Some(subject),
            Self::Unholding => None,
        }
    }
}

/// What a hook request asks: for whom, and which scopes.
#[derive(Debug, Clone)]
pub struct DecisionRequest<'a> {
    /// The user; none when the request names none.
    pub user: Option<Party<'a>>,
    /// The client.
    pub client: Party<'a>,
    /// The requested scopes, as spelled.
    pub scopes: &'a [&'a str],
    /// How much of the time that a hook has is used up already.
    pub waited: Duration,
}

impl Service {
    /// Decides which of the requested scopes stay.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when what the decision needs is not known, the database cannot be asked, and the policy is
    /// to say so: a guess would lock people out, or let them in.
    pub async fn decide<'a>(&self, request: DecisionRequest<'a>) -> Result<Decision<'a>> {
        let (decision, _) = self.answer(request, None).await?;
        Ok(decision)
    }

    /// Decides which of the requested scopes stay, and what the token is told about them.
    ///
    /// # Errors
    ///
    /// Those of [`Service::decide`]: what is told never costs an answer.
    pub async fn customize<'a>(&self, request: DecisionRequest<'a>) -> Result<(Decision<'a>, AdditionalClaims)> {
        let (decision, claims) = self.answer(request, self.claims_prefix()).await?;
        if claims.left_out > 0 {
            self.metrics.count_claims_left_out(claims.left_out);
            self.tell_left_out(claims.left_out);
        }
        Ok((decision, claims))
    }

    /// What the names of claims begin with; none when no claims are made.
    #[must_use]
    pub fn claims_prefix(&self) -> Option<&ClaimsPrefix> {
        self.policy.claims_prefix.as_ref()
    }

    /// Tells the log of claims that had no room, now and then: every request of the same subject has none for them.
    fn tell_left_out(&self, left_out: usize) {
        // Whoever finds it taken leaves the telling to the one who has it.
        let Ok(mut told) = self.left_out_told.try_lock() else { return };
        if told.is_none_or(|told| told.elapsed() >= TELL_LEFT_OUT_AGAIN) {
            *told = Some(Instant::now());
            tracing::warn!(left_out, "claims were left out of an answer that had no room for them");
        }
    }

    /// Counts whom the scopes would have been taken from that are kept because their rules are not enforced.
    fn count_losses(&self, decision: &Decision<'_>, whose: Option<SubjectRef<'_>>, now: DateTime<Utc>) {
        let Some(subject) = whose else { return };
        for outcome in decision.outcomes.iter().filter(|outcome| outcome.unenforced.is_some()) {
            self.losses.add(outcome.scope, subject, now);
        }
    }

    async fn answer<'a>(
        &self,
        request: DecisionRequest<'a>,
        prefix: Option<&ClaimsPrefix>,
    ) -> Result<(Decision<'a>, AdditionalClaims)> {
        let DecisionRequest { user, client, scopes, waited } = request;
        let (now, asked_at) = (self.clock.now(), Instant::now());
        let deadline = asked_at + self.policy.hook_timeout.saturating_sub(waited);
        let (catalogue, of_catalogue) = match self.catalogue.get_until(asked_at, deadline).await {
            Found::Fresh(catalogue) => (catalogue, Freshness::Fresh),
            Found::Stale(catalogue) => (catalogue, Freshness::Stale),
            // A catalogue of any age still tells that a scope was not in it.
            Found::Unknown => (Arc::new(self.catalogue.last().ok_or(Error::Unknown)?.enforced()), Freshness::Unknown),
        };

        let (mut is_managed, mut asks_user, mut asks_client) = (false, false, false);
        for rule in scopes.iter().filter_map(|scope| catalogue.rule(scope)) {
            is_managed = true;
            asks_user |= rule.requires != Requires::Client;
            asks_client |= rule.requires != Requires::User;
        }
        let user_subject = user.filter(|_| asks_user).and_then(Party::subject);
        let client_subject = Some(client).filter(|_| asks_client).and_then(Party::subject);
        let subjects = [user_subject, client_subject];
        let found = self.facts.get(subjects, asked_at, deadline).await;
        let of_facts = found.iter().flatten().map(freshness).max().unwrap_or(Freshness::Fresh);
        self.metrics.count_answer(if is_managed { of_facts.max(of_catalogue) } else { Freshness::Fresh });

        let [of_user, of_client] = found.each_ref().map(|found| match found {
            Some(Found::Fresh(facts) | Found::Stale(facts)) => Knowledge::Known(facts),
            Some(Found::Unknown) => Knowledge::Unknown,
            None => Knowledge::Known(&NOTHING),
        });
        let parties = if of_catalogue == Freshness::Unknown {
            // Who must hold a scope is as little known as who holds it.
            Parties { user: Some(Knowledge::Unknown), client: Knowledge::Unknown }
        } else {
            Parties { user: user.is_some().then_some(of_user), client: of_client }
        };
        let stance = Stance { unmanaged: self.policy.unmanaged, on_unknown: self.policy.on_unknown };
        let decision = decide(&catalogue, stance, parties, scopes, now).map_err(|_| Error::Unknown)?;
        self.metrics.count_decision(&decision);
        // The user, if there is one; for whom an id stands that holds nothing cannot be told from others.
        let whose = user.unwrap_or(client).subject();
        self.count_losses(&decision, whose, now);
        self.refusals.add(&decision, whose, now);
        let claims = prefix.map(|prefix| additional(prefix, &catalogue, parties, &decision.outcomes, now));
        Ok((decision, claims.unwrap_or_default()))
    }
}

fn freshness<T>(found: &Found<T>) -> Freshness {
    match found {
        Found::Fresh(_) => Freshness::Fresh,
        Found::Stale(_) => Freshness::Stale,
        Found::Unknown => Freshness::Unknown,
    }
}
