//! The use case of the explanation: what a hook would answer at an instant, and why.

use chrono::{DateTime, Utc};

use super::{Error, Result, Service, decision::Party};
use crate::domain::{
    claims::{AdditionalClaims, additional},
    explain::{Explanation, Parties, explain},
    holdings::Holdings,
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
        let subjects = [user, Some(client)].map(|party| Some(party?.subject()?.to_subject()));
        let asked: Vec<_> = subjects.iter().flatten().cloned().collect();
        let (catalogue, found) = match known_at {
            None => self.read_holdings(&asked).await?,
            Some(known_at) => self.read_known(&asked, known_at).await?,
        };

        let mut found = found.into_iter();
        let [of_user, of_client] =
            subjects.map(|subject| subject.and_then(|_| found.next()).unwrap_or_else(Holdings::default));
        let parties = Parties { user: user.is_some().then_some(&of_user), client: &of_client };
        let explanation = explain(&catalogue, self.policy.unmanaged, parties, scopes, at);
        let explanation = explanation.map_err(|_| Error::Unknown)?;
        let outcomes = &explanation.decision.outcomes;
        let claims = self.claims_prefix().map(|prefix| additional(prefix, &catalogue, parties.known(), outcomes, at));
        Ok((at, explanation, claims.unwrap_or_default()))
    }
}
