//! The change feed: learning what other replicas, and other processes, have written.
//!
//! On Postgres every write records its change in its own transaction. Each replica looks once a second for the changes
//! that its last look did not show, and sooner when a notification wakes it. A look that succeeds leaves no gap
//! whatever happened to the notifications, so they only ever make it faster. A silence longer than
//! [`TRUST_FOR`](super::cache::TRUST_FOR) makes what is cached unsure by itself, without anybody having to notice; and
//! a connection that was lost, all of it: the server that answers next may be another one, or have crashed.
//!
//! On SQLite a single process is meant to write. A second one that does is noticed by the version of the file.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ConnectionTrait as _,
    sqlx::{
        self, PgConnection,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use uuid::Uuid;

use super::{
    Clock,
    cache::{CatalogueCache, FactsCache, Ground, TokenCache},
};
use crate::store::{
    self,
    change::{Changes, Horizon, Look, News, Stale},
    lane::Connection,
};

/// How often the feed is looked at when nothing wakes it.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a look may take.
const POLL_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time between two looks: a burst of wake-ups is one look.
const POLL_GAP: Duration = Duration::from_millis(5);
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

/// A connection that reads the feed, and up to where it has read.
struct Reader {
    connection: PgConnection,
    horizon: Horizon,
}

/// What those who write tell of their changes.
#[derive(Debug)]
enum Told {
    /// They are about to be committed, and the cache will be told of them.
    Making(Vec<i64>),
    /// Nobody knows whether they were.
    Unsure(Vec<i64>),
}

/// Changes made here that the feed has not shown yet: the cache is told of them by those who make them. They send word of
/// them, and share no lock that is held while anything is done: one of them may be a thread that the system lets run last.
#[derive(Debug)]
struct Own {
    told: mpsc::UnboundedReceiver<Told>,
    seqs: HashSet<i64>,
}

impl Own {
    /// Hears what was told up to now.
    fn hear(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            match told {
                Told::Making(seqs) => self.seqs.extend(seqs),
                Told::Unsure(seqs) => {
                    for seq in seqs {
                        self.seqs.remove(&seq);
                    }
                }
            }
        }
    }

    /// Forgets all that was told up to now: what is shown of it is news again.
    fn forget(&mut self) {
        self.hear();
        self.seqs.clear();
    }
}

/// The feed of one service.
#[derive(Debug)]
pub struct Feed {
    ground: Arc<Ground>,
    facts: Arc<FactsCache>,
    catalogue: Arc<CatalogueCache>,
    tokens: Arc<TokenCache>,
    clock: Arc<dyn Clock>,
    /// This replica among all, as notifications name their sender.
    replica: Uuid,
    /// A look is wanted now.
    wake: Notify,
    /// Something was committed here that others should be told of.
    tell: Notify,
    /// Takes what is told of changes made here; there when somebody watches.
    told: OnceLock<mpsc::UnboundedSender<Told>>,
}

impl Feed {
    /// A feed that nobody watches yet.
    pub fn new(
        ground: Arc<Ground>,
        facts: Arc<FactsCache>,
        catalogue: Arc<CatalogueCache>,
        tokens: Arc<TokenCache>,
        clock: Arc<dyn Clock>,
        replica: Uuid,
    ) -> Arc<Self> {
        Arc::new(Self {
            ground,
            facts,
            catalogue,
            tokens,
            clock,
            replica,
            wake: Notify::new(),
            tell: Notify::new(),
            told: OnceLock::new(),
        })
    }

    /// Tells that changes are about to be committed by somebody who tells the cache of them, so that it need not
    /// be told again when the feed shows them.
    pub fn making(&self, seqs: &[i64]) {
        self.hear_of(|| Told::Making(seqs.to_vec()));
    }

    /// Tells that nobody knows whether changes were committed: when the feed shows them, they are news.
    pub fn unsure_of(&self, seqs: &[i64]) {
        self.hear_of(|| Told::Unsure(seqs.to_vec()));
    }

    fn hear_of(&self, told: impl FnOnce() -> Told) {
        // Who does not watch is shown nothing, so nothing would take it out again.
        if let Some(sender) = self.told.get() {
            // Nobody hears it when the watching is over.
            let _ = sender.send(told());
        }
    }

    /// Looks at the feed as soon as may be.
    pub fn look_soon(&self) {
        self.wake.notify_one();
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
            let (sender, told) = mpsc::unbounded_channel();
            // Of what is told to somebody else everything is news to this one.
            let _ = self.told.set(sender);
            let mut own = Own { told, seqs: HashSet::new() };
            let asked_at = Instant::now();
            let reader = self.start(&mut own).await?;
            self.ground.trust.heard(asked_at);
            tasks.spawn(Arc::clone(self).poll_postgres(reader, own));
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
        Ok(tasks)
    }

    /// Begins to read the feed on a connection of its own. What was committed before is not news to it.
    async fn start(&self, own: &mut Own) -> store::Result<Reader> {
        let Connection::Postgres(mut connection) = self.ground.database.feed().open(POLL_TIMEOUT).await? else {
            return Err(store::Error::unavailable("SQLite has no feed"));
        };
        let started = tokio::time::timeout(POLL_TIMEOUT, store::change::start(&mut connection)).await;
        let horizon = started.unwrap_or_else(|_| Err(store::Error::unavailable("no answer came in time")))?;
        // What was committed before the horizon will not be shown; what will be is at worst told twice.
        own.forget();
        Ok(Reader { connection, horizon })
    }

    async fn poll_postgres(self: Arc<Self>, reader: Reader, mut own: Own) {
        let mut reader = Some(reader);
        loop {
            // Whether it was woken or not, it looks.
            let _ = tokio::time::timeout(POLL_INTERVAL, self.wake.notified()).await;
            let asked_at = Instant::now();
            let looked = match &mut reader {
                Some(reader) => self.look(reader, &mut own).await,
                None => self.start(&mut own).await.map(|started| {
                    tracing::warn!("the change feed is back: all that is cached will be asked again");
                    // After the new horizon was taken, and before anything is trusted again.
                    self.doubt();
                    reader = Some(started);
                }),
            };
            match looked {
                Ok(()) => self.ground.trust.heard(asked_at),
                Err(error) => {
                    self.ground.metrics.count_database_error(&error);
                    tracing::warn!(error = super::chain(&error), "the change feed cannot be read");
                    // The connection is dropped. The next try is a poll interval away: a database that comes back is
                    // not met by a storm.
                    reader = None;
                }
            }
            tokio::time::sleep(POLL_GAP).await;
        }
    }

    async fn look(&self, reader: &mut Reader, own: &mut Own) -> store::Result<()> {
        let asked_at = Instant::now();
        own.hear();
        let seqs: Vec<i64> = own.seqs.iter().copied().collect();
        let look = store::change::look(&mut reader.connection, &reader.horizon, &seqs);
        let looked = tokio::time::timeout(POLL_TIMEOUT, look).await;
        let look = looked.unwrap_or_else(|_| Err(store::Error::unavailable("no answer came in time")))?;
        // What was committed meanwhile may show.
        own.hear();
        reader.horizon = self.apply(look, asked_at, own);
        Ok(())
    }

    /// Makes all that is cached be asked again: changes of it may have been missed.
    fn doubt(&self) {
        self.ground.metrics.count_feed_doubt();
        self.facts.doubt();
        self.catalogue.doubt();
        self.tokens.doubt();
        self.reload_catalogue();
    }

    /// Makes all that is cached be read again: something was changed, and what is not known.
    fn all_changed(&self) {
        self.facts.all_changed();
        self.catalogue.changed();
        self.tokens.changed();
    }

    /// Reads the rules again before a request needs them, so that they are known even if the database goes away.
    fn reload_catalogue(&self) {
        let (catalogue, timeout) = (Arc::clone(&self.catalogue), self.ground.query_timeout);
        tokio::spawn(async move { catalogue.get(timeout).await });
    }

    /// Makes what the changes touched be read again, and gives back up to where the feed is known now.
    fn apply(&self, look: Look, asked_at: Instant, made: &mut Own) -> Horizon {
        let Look { horizon, changes, database_now } = look;
        let now = self.clock.now();
        // The database read its clock between the asking and now; half of that time is the best guess at when.
        let since = TimeDelta::from_std(asked_at.elapsed() / 2).unwrap_or_default();
        self.ground.metrics.observe_skew(database_now - (now - since));
        let Some(Changes { own, news }) = changes else {
            // Among them are our own, which it would not show again.
            made.forget();
            self.all_changed();
            self.reload_catalogue();
            return horizon;
        };
        let visible =
            |at: DateTime<Utc>| self.ground.metrics.observe_visibility((now - at).to_std().unwrap_or_default());
        let mut is_unsure = false;
        for (seq, at) in own {
            visible(at);
            is_unsure |= !made.seqs.remove(&seq);
        }
        if is_unsure {
            // Since the asking it was found that nobody knows whether it was committed, and so it is news; of what, was
            // not asked.
            self.all_changed();
            self.reload_catalogue();
        }
        for News { seq, stale, at } in news {
            visible(at);
            if made.seqs.remove(&seq) {
                continue;
            }
            match stale {
                Stale::Subject(subject) => self.facts.changed(&subject),
                Stale::Catalogue => {
                    self.catalogue.changed();
                    self.reload_catalogue();
                }
                Stale::Tokens => self.tokens.changed(),
            }
        }
        horizon
    }

    async fn poll_sqlite(self: Arc<Self>, mut version: i64) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let asked_at = Instant::now();
            let writers = self.ground.database.writers();
            match store::change::data_version(writers).await {
                Ok(present) => {
                    if present != version {
                        tracing::warn!("another process has written to the database file");
                        version = present;
                        self.all_changed();
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
        let begin = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let Ok(listener) = tokio::time::timeout(ASIDE_TIMEOUT, begin).await else { return Ok(()) };
        let mut listener = listener?;
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
}
