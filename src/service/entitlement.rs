//! The use case of the entitlements view: what one subject holds by itself.

use chrono::{DateTime, Utc};

use super::{Result, Service};
use crate::{
    domain::{
        entitlement::{Entitlement, entitlements},
        subject::Subject,
    },
    store,
};

impl Service {
    /// What a subject holds at an instant, the present when none is given: the instant, and an entitlement for each
    /// catalogue scope.
    ///
    /// It reads the database and not the cache, so support staff see what is recorded.
    ///
    /// # Errors
    ///
    /// [`super::Error::Store`] when the database cannot be asked.
    pub async fn entitlements(
        &self,
        subject: &Subject,
        at: Option<DateTime<Utc>>,
    ) -> Result<(DateTime<Utc>, Vec<Entitlement>)> {
        let at = at.unwrap_or_else(|| self.clock.now());
        let catalogue = store::catalogue::load(self.database.readers()).await?;
        let facts = store::facts::load(self.database.readers(), std::slice::from_ref(subject)).await?;
        let facts = facts.into_iter().next().unwrap_or_default();
        Ok((at, entitlements(&catalogue, &facts, at)))
    }
}
