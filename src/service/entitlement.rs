//! The use case of the entitlements view: what one subject holds by itself.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Result, Service};
use crate::{
    domain::{
        catalogue::Catalogue,
        entitlement::{Entitlement, entitlements},
        holdings::Holdings,
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
        let (catalogue, holdings) = self.read_holdings(std::slice::from_ref(subject)).await?;
        let holdings = holdings.into_iter().next().unwrap_or_default();
        Ok((at, entitlements(&catalogue, &holdings, at)))
    }

    /// The catalogue, and what each of these subjects holds, as the database has them at one instant.
    pub(super) async fn read_holdings(&self, subjects: &[Subject]) -> Result<(Catalogue, Vec<Holdings>)> {
        let read = async |lane: &mut Connection| {
            let catalogue = store::catalogue::load(lane).await?;
            Ok((catalogue, store::facts::load_holdings(lane, subjects).await?))
        };
        Ok(self.database.views().run_at_once(VIEW_TIMEOUT, read).await?)
    }
}
