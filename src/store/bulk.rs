//! Many rows at once: what an import writes on Postgres, in a few statements however many rows there are.
//!
//! Rows travel as arrays, one for each column, which the library's own inserts do not know: the statements are raw. On
//! SQLite a statement is a function call, so that one row at a time is as good, and nothing here is used.

use chrono::{DateTime, Utc};
use sea_orm::{
    DbBackend,
    sqlx::{self, PgConnection, Postgres, Transaction},
};
use uuid::Uuid;

use super::{
    catalogue::claims_column,
    database::Database,
    error::{Error, Result},
    image,
};
use crate::domain::{external::SourceVersion, subscription::Subscription};

/// It waits for nobody as long as it takes Postgres to look for a deadlock (`deadlock_timeout`, a second by default):
/// of two that begin to wait for each other's rows it is this one that gives up.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '500ms'";

const SUBSCRIPTIONS: &str = "
INSERT INTO subscription (id, subject_type, subject_id, valid_from, valid_until, grace_until, paused_from, paused_until,
    canceled_at, claims, source, external_id, source_version, version, created_at, updated_at)
SELECT *, 1, $14, $14
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[],
    $7::timestamptz[], $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[], $13::bigint[])";

const SCOPES: &str =
    "INSERT INTO subscription_scope (subscription_id, scope) SELECT * FROM unnest($1::uuid[], $2::text[])";

const CHANGES: &str = "
INSERT INTO change (at, actor, request_id, noun, action, subscription_id, subject_type, subject_id, after)
SELECT $1, $2, $3, 'subscription', $4, * FROM unnest($5::uuid[], $6::text[], $7::text[], $8::text[])
RETURNING seq";

/// A transaction for many rows.
pub type BulkTransaction = Transaction<'static, Postgres>;

/// Who imports, and how it is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Recording<'a> {
    /// When.
    pub at: DateTime<Utc>,
    /// The name of the credential.
    pub actor: &'a str,
    /// The id of the request.
    pub request_id: &'a str,
    /// What is done.
    pub action: &'static str,
}

/// The rows of new subscriptions, column by column.
#[derive(Debug, Default)]
pub struct Rows {
    ids: Vec<Uuid>,
    kinds: Vec<&'static str>,
    subjects: Vec<String>,
    valid_from: Vec<DateTime<Utc>>,
    valid_until: Vec<Option<DateTime<Utc>>>,
    grace_until: Vec<Option<DateTime<Utc>>>,
    paused_from: Vec<Option<DateTime<Utc>>>,
    paused_until: Vec<Option<DateTime<Utc>>>,
    canceled_at: Vec<Option<DateTime<Utc>>>,
    claims: Vec<Option<String>>,
    sources: Vec<Option<String>>,
    external_ids: Vec<Option<String>>,
    source_versions: Vec<Option<i64>>,
    naming: Vec<Uuid>,
    scopes: Vec<String>,
    images: Vec<String>,
}

impl Rows {
    /// Adds the rows of a new subscription.
    pub fn push(&mut self, subscription: &Subscription) {
        // Taken apart field by field, so that a field added to the domain cannot be forgotten here.
        let Subscription {
            id,
            subject,
            scopes,
            life,
            external,
            claims,
            version: _,
            created_at: _,
            updated_at: _,
            deleted_at: _,
        } = subscription;
        self.ids.push(*id);
        self.kinds.push(subject.kind.as_str());
        self.subjects.push(subject.id.as_str().to_owned());
        self.valid_from.push(life.term.window().from());
        self.valid_until.push(life.term.window().until());
        self.grace_until.push(life.term.grace_until());
        self.paused_from.push(life.pause.map(|pause| pause.from()));
        self.paused_until.push(life.pause.and_then(|pause| pause.until()));
        self.canceled_at.push(life.canceled_at);
        self.claims.push(claims_column(claims));
        self.sources.push(external.as_ref().map(|external| external.key.source.as_str().to_owned()));
        self.external_ids.push(external.as_ref().map(|external| external.key.id.as_str().to_owned()));
        let version = external.as_ref().and_then(|external| external.version);
        self.source_versions.push(version.map(SourceVersion::get));
        for scope in scopes.as_slice() {
            self.naming.push(*id);
            self.scopes.push(scope.as_str().to_owned());
        }
        self.images.push(image::of_subscription(subscription));
    }
}

/// Whether a database is one that takes many rows at once.
#[must_use]
pub fn is_for(database: &Database) -> bool {
    database.backend() == DbBackend::Postgres
}

/// Begins a transaction for many rows, in a database that is one for it.
///
/// # Errors
///
/// [`Error::Unavailable`] when no connection is to be had.
pub async fn begin(database: &Database) -> Result<BulkTransaction> {
    Ok(database.writers().get_postgres_connection_pool().begin_with(BEGIN).await?)
}

/// Commits such a transaction.
///
/// # Errors
///
/// [`Error::OutcomeUnknown`] when the connection broke before the answer came.
pub async fn commit(transaction: BulkTransaction) -> Result<()> {
    transaction.commit().await.map_err(Error::of_raw_commit)
}

/// Takes such a transaction back, and waits for it.
pub async fn undo(transaction: BulkTransaction) {
    // One that cannot be taken back ends with its connection.
    let _ = transaction.rollback().await;
}

/// Records new subscriptions with their scopes and their changes, and gives back the places of the changes.
///
/// # Errors
///
/// [`Error::Reference`] when a scope is not in the catalogue, [`Error::Duplicate`] when a key or an id is known,
/// [`Error::Unavailable`] when somebody holds one of them for too long or the database cannot be asked: then nothing is
/// recorded, and the transaction is of no use any more.
pub async fn insert(connection: &mut PgConnection, rows: Rows, recording: Recording<'_>) -> Result<Vec<i64>> {
    let Recording { at, actor, request_id, action } = recording;
    sqlx::query(SUBSCRIPTIONS)
        .bind(&rows.ids)
        .bind(&rows.kinds)
        .bind(&rows.subjects)
        .bind(rows.valid_from)
        .bind(rows.valid_until)
        .bind(rows.grace_until)
        .bind(rows.paused_from)
        .bind(rows.paused_until)
        .bind(rows.canceled_at)
        .bind(rows.claims)
        .bind(rows.sources)
        .bind(rows.external_ids)
        .bind(rows.source_versions)
        .bind(at)
        .execute(&mut *connection)
        .await?;
    sqlx::query(SCOPES).bind(rows.naming).bind(rows.scopes).execute(&mut *connection).await?;
    let changes = sqlx::query_scalar(CHANGES).bind(at).bind(actor).bind(request_id).bind(action);
    let changes = changes.bind(rows.ids).bind(rows.kinds).bind(rows.subjects).bind(rows.images);
    Ok(changes.fetch_all(connection).await?)
}
