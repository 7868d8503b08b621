//! The change feed: learning what other replicas, and other processes, have written.
//!
//! On Postgres every write records its change in its own transaction. Each replica looks once a second for the changes
//! that its last look did not show, and sooner when a notification wakes it. A look that succeeds leaves no gap
//! whatever happened to the notifications, so they only ever make it faster; and a silence longer than
//! [`TRUST_FOR`](super::cache::TRUST_FOR) makes what is cached unsure by itself, without anybody having to notice.
//!
//! On SQLite a single process is meant to write. A second one that does is noticed by the version of the file.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use sea_orm::{
    ConnectionTrait as _,
    sqlx::{
        self,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::{sync::Notify, task::JoinSet};
use uuid::Uuid;

use super::{
    Clock,
    cache::{CatalogueCache, FactsCache, Ground},
};
use crate::store::{
    self,
    change::{Horizon, Look},
    lane::Connection,
};

/// How often the feed is looked at when nothing wakes it.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a look may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two looks: a burst of wake-ups is one look.
const POLL_GAP: Duration = Duration::from_millis(5);
/// After a silence this long, changes may have been pruned unseen.
const SILENCE_BEFORE_DOUBT: Duration = Duration::from_hours(1);
/// How long changes are kept, in days: far longer than the silence above.
const KEEP_CHANGES_DAYS: i64 = 7;
/// How often old changes are pruned.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);
/// The channel on which replicas wake each other.
const CHANNEL: &str = "tollgate_change";
/// How often a replica sends a notification to itself, to see that its listener still hears.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long the listener may hear nothing, not even that, before it is built anew.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(6);
/// How long anything else that the feed asks may take.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the feed works.
#[derive(Debug, Clone, Copy)]
pub struct FeedSettings {
    /// Whether replicas wake each other with notifications. Without, a change made elsewhere is seen at the next look.
    pub wake_up: bool,
}

/// The feed of one service.
#[derive(Debug)]
pub struct Feed {
    ground: Arc<Ground>,
    facts: Arc<FactsCache>,
    catalogue: Arc<CatalogueCache>,
    clock: Arc<dyn Clock>,
    /// This replica among all, as notifications name their sender.
    replica: Uuid,
    /// A look is wanted now.
    wake: Notify,
    /// Something was committed here that others should be told of.
    tell: Notify,
}

impl Feed {
    /// A feed that nobody watches yet.
    pub fn new(
        ground: Arc<Ground>,
        facts: Arc<FactsCache>,
        catalogue: Arc<CatalogueCache>,
        clock: Arc<dyn Clock>,
        replica: Uuid,
    ) -> Arc<Self> {
        Arc::new(Self { ground, facts, catalogue, clock, replica, wake: Notify::new(), tell: Notify::new() })
    }

    /// Tells other replicas, soon, that something was committed. Several commits may be told of at once.
    pub fn committed(&self) {
        self.tell.notify_one();
    }

    /// Watches for changes made elsewhere, from before this call on, until the set is dropped.
    ///
    /// # Errors
    ///
    /// [`store::Error::Unavailable`] when the database cannot be asked where to begin.
    pub async fn watch(self: &Arc<Self>, settings: FeedSettings) -> store::Result<JoinSet<()>> {
        let mut tasks = JoinSet::new();
        if self.ground.database.postgres().is_some() {
            let asked_at = Instant::now();
            let horizon = self.start().await?;
            self.ground.trust.heard(asked_at);
            tasks.spawn(Arc::clone(self).poll_postgres(horizon));
            if settings.wake_up {
                tasks.spawn(Arc::clone(self).tell_others());
                tasks.spawn(Arc::clone(self).listen());
            }
        } else {
            let asked_at = Instant::now();
            let version = store::change::data_version(self.ground.database.writers()).await?;
            self.ground.trust.heard(asked_at);
            tasks.spawn(Arc::clone(self).poll_sqlite(version));
        }
        tasks.spawn(Arc::clone(self).prune());
        Ok(tasks)
    }

    async fn start(&self) -> store::Result<Horizon> {
        let start = async |lane: &mut Connection| match lane {
            Connection::Postgres(connection) => store::change::start(connection).await,
            Connection::Sqlite(_) => Err(store::Error::unavailable("SQLite has no feed")),
        };
        self.ground.database.feed().run(POLL_TIMEOUT, start).await
    }

    async fn look(&self, since: &Horizon) -> store::Result<Look> {
        let look = async |lane: &mut Connection| match lane {
            Connection::Postgres(connection) => store::change::look(connection, since).await,
            Connection::Sqlite(_) => Err(store::Error::unavailable("SQLite has no feed")),
        };
        self.ground.database.feed().run(POLL_TIMEOUT, look).await
    }

    async fn poll_postgres(self: Arc<Self>, mut horizon: Horizon) {
        loop {
            // Whether it was woken or not, it looks.
            let _ = tokio::time::timeout(POLL_INTERVAL, self.wake.notified()).await;
            let asked_at = Instant::now();
            match self.look(&horizon).await {
                Ok(look) => {
                    let silence = self.ground.trust.silence(asked_at).unwrap_or_default();
                    if look.horizon.is_before(&horizon) || silence > SILENCE_BEFORE_DOUBT {
                        tracing::warn!("changes may have been missed: all that is cached will be asked again");
                        self.ground.metrics.count_feed_doubt();
                        self.facts.doubt();
                        self.catalogue.changed();
                    }
                    horizon = self.apply(look, asked_at);
                    self.ground.trust.heard(asked_at);
                }
                Err(error) => {
                    self.ground.metrics.count_database_error(&error);
                    tracing::warn!(error = super::chain(&error), "the change feed cannot be read");
                    // The next try is a poll interval away: a database that comes back is not met by a storm.
                }
            }
            tokio::time::sleep(POLL_GAP).await;
        }
    }

    /// Makes what the changes touched be read again, and gives back up to where the feed is known now.
    fn apply(&self, look: Look, asked_at: Instant) -> Horizon {
        let Look { horizon, news, database_now } = look;
        let now = self.clock.now();
        // The database read its clock between the asking and now; half of that time is the best guess at when.
        let since = TimeDelta::from_std(asked_at.elapsed() / 2).unwrap_or_default();
        self.ground.metrics.observe_skew(database_now - (now - since));
        if let Some(news) = news {
            for change in news {
                match &change.subject {
                    Some(subject) => self.facts.changed(subject),
                    None => self.catalogue.changed(),
                }
                self.ground.metrics.observe_visibility((self.clock.now() - change.at).to_std().unwrap_or_default());
            }
        } else {
            self.facts.all_changed();
            self.catalogue.changed();
        }
        horizon
    }

    async fn poll_sqlite(self: Arc<Self>, mut version: i64) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let asked_at = Instant::now();
            let writers = self.ground.database.writers();
            if writers.get_sqlite_connection_pool().num_idle() == 0 {
                // A transaction of ours is under way on the writer's connection, so nobody else is writing.
                self.ground.trust.heard(asked_at);
                continue;
            }
            match store::change::data_version(writers).await {
                Ok(present) => {
                    if present != version {
                        tracing::warn!("another process has written to the database file");
                        version = present;
                        self.facts.all_changed();
                        self.catalogue.changed();
                    }
                    self.ground.trust.heard(asked_at);
                }
                Err(error) => self.ground.metrics.count_database_error(&error),
            }
        }
    }

    /// Sends the wake-ups, outside of the transactions that they tell of: inside, they would make commits queue.
    async fn tell_others(self: Arc<Self>) {
        loop {
            // When nothing was committed, the notification is the heartbeat of our own listener.
            let _ = tokio::time::timeout(HEARTBEAT_INTERVAL, self.tell.notified()).await;
            let notify = format!("SELECT pg_notify('{CHANNEL}', '{}')", self.replica);
            let told =
                tokio::time::timeout(ASIDE_TIMEOUT, self.ground.database.writers().execute_unprepared(&notify)).await;
            if !matches!(told, Ok(Ok(_))) {
                self.ground.metrics.count_lost_wakeup();
            }
        }
    }

    /// Hears the wake-ups of others. A listener that hears nothing any more is built anew.
    async fn listen(self: Arc<Self>) {
        loop {
            if let Err(error) = self.listen_once().await {
                tracing::warn!(%error, "the listener for wake-ups was lost");
            }
            self.ground.metrics.count_lost_wakeup();
            // What was not heard may have been news.
            self.wake.notify_one();
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn listen_once(&self) -> Result<(), sqlx::Error> {
        let Some(options) = self.ground.database.postgres() else { return Ok(()) };
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ASIDE_TIMEOUT);
        let pool = pool.connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.ignore_pool_close_event(true);
        listener.listen(CHANNEL).await?;
        let replica = self.replica.to_string();
        loop {
            match tokio::time::timeout(HEARTBEAT_TIMEOUT, listener.try_recv()).await {
                // Our own: the listener is alive.
                Ok(Ok(Some(notification))) if notification.payload() == replica => {}
                Ok(Ok(Some(_))) => self.wake.notify_one(),
                Ok(Err(error)) => return Err(error),
                // The connection was lost, and what was sent meanwhile with it; or not even our own heartbeat was heard.
                Ok(Ok(None)) | Err(_) => return Ok(()),
            }
        }
    }

    async fn prune(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PRUNE_INTERVAL).await;
            let before = self.clock.now() - TimeDelta::days(KEEP_CHANGES_DAYS);
            // A batch a time, so that no transaction grows long.
            while let Ok(1..) = store::change::prune(self.ground.database.writers(), before).await {
                tokio::time::sleep(POLL_GAP).await;
            }
        }
    }
}
