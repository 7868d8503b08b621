//! The use case of the entitlements view: what one subject holds by itself.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Result, Service};
use crate::{
    domain::{
        entitlement::{Entitlement, entitlements},
        subject::Subject,
    },
    store::{self, lane::Connection},
};

/// How long the database may take to answer a view.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);

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
        let read = async |lane: &mut Connection| {
            let catalogue = store::catalogue::load(lane).await?;
            let facts = store::facts::load(lane, std::slice::from_ref(subject)).await?;
            Ok((catalogue, facts.into_iter().next().unwrap_or_default()))
        };
        let (catalogue, facts) = self.database.views().run(VIEW_TIMEOUT, read).await?;
        Ok((at, entitlements(&catalogue, &facts, at)))
    }
}
