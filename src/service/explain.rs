//! The use case of the explanation: what a hook would answer at an instant, and why.

use chrono::{DateTime, Utc};

use super::{Error, Result, Service, decision::Party, history::holdings};
use crate::domain::{
    catalogue::Catalogue,
    claims::{AdditionalClaims, additional},
    explain::{Explanation, Parties, explain},
    holdings::Holdings,
    subject::Subject,
    subscription::Subscription,
};

/// A hook request that is to be explained.
#[derive(Debug, Clone)]
pub struct ExplanationRequest<'a> {
    /// The user; none when the request names none.
    pub user: Option<Party<'a>>,
    /// The client.
    pub client: Party<'a>,
    /// The requested scopes, as spelled.
    pub scopes: &'a [&'a str],
    /// The instant; the present when none is given.
    pub at: Option<DateTime<Utc>>,
    /// As of when what is recorded counts; as it is now when none is given.
    pub known_at: Option<DateTime<Utc>>,
}

impl Service {
    /// What a hook request would be answered at an instant, and what that rests on: the instant, the explanation, and the
    /// claims that the current hook adds.
    ///
    /// It reads the database and not the cache, so support staff see what is recorded; and nothing of it is unknown, so
    /// what is done with the unknown makes no difference.
    ///
    /// # Errors
    ///
    /// [`super::Error::Store`] when the database cannot be asked; [`super::Error::HistoryGone`] when it is not kept any more
    /// what was known then.
    pub async fn explain<'a>(
        &self,
        request: ExplanationRequest<'a>,
    ) -> Result<(DateTime<Utc>, Explanation<'a>, AdditionalClaims)> {
        let ExplanationRequest { user, client, scopes, at, known_at } = request;
        let at = at.unwrap_or_else(|| self.clock.now());
        let subjects = [user.and_then(subject), subject(client)];
        let asked: Vec<_> = subjects.iter().flatten().cloned().collect();
        let (catalogue, found) = match known_at {
            None => self.read_holdings(&asked).await?,
            Some(known_at) => self.read_known(&asked, known_at).await?,
        };
        let explanation = self.explained(&catalogue, (user.is_some(), &subjects), found, scopes, at)?;
        let Explained { explanation, claims } = explanation;
        Ok((at, explanation, claims))
    }

    /// What a hook request would be answered before and after a write to the subscriptions of one of its parties, which
    /// is not done: the instant, and both explanations.
    ///
    /// # Errors
    ///
    /// [`super::Error::Store`] when the database cannot be asked.
    pub(super) async fn explain_change<'a>(
        &self,
        request: ExplanationRequest<'a>,
        whose: &Subject,
        [before, after]: [&[Subscription]; 2],
    ) -> Result<(DateTime<Utc>, [Explanation<'a>; 2])> {
        let ExplanationRequest { user, client, scopes, at, .. } = request;
        let at = at.unwrap_or_else(|| self.clock.now());
        let subjects = [user.and_then(subject), subject(client)];
        let asked: Vec<_> = subjects.iter().flatten().cloned().collect();
        let (catalogue, found) = self.read_holdings(&asked).await?;
        let explained = |subscriptions: &[Subscription]| {
            let live: Vec<_> = subscriptions.iter().filter(|one| one.deleted_at.is_none()).cloned().collect();
            let of = |(subject, found): (&Subject, &Holdings)| {
                if subject == whose { holdings(&live) } else { found.clone() }
            };
            let found = asked.iter().zip(&found).map(of).collect();
            let explained = self.explained(&catalogue, (user.is_some(), &subjects), found, scopes, at)?;
            Ok::<_, Error>(explained.explanation)
        };
        Ok((at, [explained(before)?, explained(after)?]))
    }

    /// The explanation of an answer from what the parties of a request hold.
    fn explained<'a>(
        &self,
        catalogue: &Catalogue,
        (names_user, subjects): (bool, &[Option<Subject>; 2]),
        found: Vec<Holdings>,
        scopes: &'a [&'a str],
        at: DateTime<Utc>,
    ) -> Result<Explained<'a>> {
        let mut found = found.into_iter();
        let [of_user, of_client] =
            subjects.each_ref().map(|subject| subject.as_ref().and_then(|_| found.next()).unwrap_or_default());
        let parties = Parties { user: names_user.then_some(&of_user), client: &of_client };
        let explanation = explain(catalogue, self.policy.unmanaged, parties, scopes, at);
        let explanation = explanation.map_err(|_| Error::Unknown)?;
        let outcomes = &explanation.decision.outcomes;
        let claims = self.claims_prefix().map(|prefix| additional(prefix, catalogue, parties.known(), outcomes, at));
        Ok(Explained { explanation, claims: claims.unwrap_or_default() })
    }
}

/// An explanation, and the claims that the current hook adds.
struct Explained<'a> {
    explanation: Explanation<'a>,
    claims: AdditionalClaims,
}

fn subject(party: Party<'_>) -> Option<Subject> {
    Some(party.subject()?.to_subject())
}
