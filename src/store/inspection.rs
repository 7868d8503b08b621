//! The inspection: whether the rows agree with the domain and with each other, as all that writes them promises.
//!
//! It reads page by page, so it needs as much memory for many rows as for few, and in one transaction that its caller
//! began, so it sees one state whatever is written meanwhile. Nothing that is derived is kept in the tables, so there is
//! nothing of that kind to compare: what is written twice is each row, and what the history tells of its last change.

use std::{collections::HashMap, fmt::Write as _};

use chrono::{DateTime, Utc};
use entity::{catalogue as catalogue_row, subscription as subscription_row, token as token_row};
use sea_orm::{ConnectionTrait as _, DatabaseTransaction, DbBackend, FromQueryResult, QueryResult, Statement, Value};
use uuid::Uuid;

use super::{
    catalogue,
    error::{Error, Result},
    image, subscription, token,
};
use crate::domain::{catalogue::CatalogueScope, scope::Scope, subscription::Subscription};

/// Rows that are read at once.
const PAGE: usize = 1_000;

const CATALOGUE: &str = "catalogue_scope";
const SUBSCRIPTION: &str = "subscription";
const SUBSCRIPTION_SCOPE: &str = "subscription_scope";
const CHANGE: &str = "change";
const TOKEN: &str = "api_token";

// The inspection may take its time, and so may who reads what it finds.
const PATIENT: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

// Each of these reads ranges of indexes, whatever the planner knows of the tables: right after a restore that is nothing.
// So no set of ids is joined, and the number of rows stands in the statement and not beside it.

const SCOPES_OF_A_PAGE: &str = "
SELECT named.subscription_id, named.scope, catalogue_scope.name AS registered
FROM subscription_scope AS named
    JOIN subscription ON subscription.id = named.subscription_id AND subscription.id >= $1 AND subscription.id <= $2
    LEFT JOIN catalogue_scope ON catalogue_scope.name = named.scope
WHERE named.subscription_id >= $1 AND named.subscription_id <= $2";

const LAST_OF_SUBSCRIPTIONS: &str = "
SELECT id, seq, before, after FROM (
    SELECT subscription_id AS id, seq, before, after,
        row_number() OVER (PARTITION BY subscription_id ORDER BY seq DESC) AS place
    FROM change WHERE subscription_id >= $1 AND subscription_id <= $2
) AS numbered WHERE place = 1";

const LAST_OF_SCOPES: &str = "
SELECT id, seq, before, after FROM (
    SELECT scope AS id, seq, before, after, row_number() OVER (PARTITION BY scope ORDER BY seq DESC) AS place
    FROM change WHERE scope >= $1 AND scope <= $2
) AS numbered WHERE place = 1";

const LAST_OF_TOKENS: &str = "
SELECT id, seq, before, after FROM (
    SELECT token_id AS id, seq, before, after, row_number() OVER (PARTITION BY token_id ORDER BY seq DESC) AS place
    FROM change WHERE token_id >= $1 AND token_id <= $2
) AS numbered WHERE place = 1";

const LAST_OF_LOST_SCOPES: &str = "
SELECT seq, scope, after FROM (
    SELECT seq, scope, after, row_number() OVER (PARTITION BY scope ORDER BY seq DESC) AS place
    FROM change WHERE scope > $1
) AS numbered
WHERE place = 1 AND NOT EXISTS (SELECT 1 FROM catalogue_scope WHERE catalogue_scope.name = numbered.scope)
ORDER BY scope LIMIT {page}";

const LOST_NAMES: &str = "
SELECT named.subscription_id, named.scope FROM subscription_scope AS named
WHERE (named.subscription_id, named.scope) > ($1, $2)
    AND NOT EXISTS (SELECT 1 FROM subscription WHERE subscription.id = named.subscription_id)
ORDER BY named.subscription_id, named.scope LIMIT {page}";

const SAME_EXTERNAL_ID: &str = "
SELECT id FROM (
    SELECT id, row_number() OVER (PARTITION BY source, external_id ORDER BY id) AS place
    FROM subscription WHERE external_id IS NOT NULL
) AS numbered WHERE place > 1 AND id > $1 ORDER BY id LIMIT {page}";

const CHANGES: &str = "
SELECT page.*, subscription.id AS found_id, subscription.subject_type AS found_type,
    subscription.subject_id AS found_subject, api_token.id AS found_token
FROM (SELECT * FROM change WHERE seq > $1 ORDER BY seq LIMIT {page}) AS page
    LEFT JOIN subscription ON subscription.id = page.subscription_id
    LEFT JOIN api_token ON api_token.id = page.token_id
ORDER BY page.seq";

const FOREIGN: &str = "SELECT count(*) FROM change WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";
const SEQUENCE: &str = "pg_get_serial_sequence(quote_ident(current_schema()) || '.change', 'seq')";

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The table.
    pub table: &'static str,
    /// The id of the row, or its name; empty when it is about the table as a whole.
    pub id: String,
    /// What is wrong. It tells no value that may be personal.
    pub problem: String,
}

/// Rows that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inspected {
    /// Scopes of the catalogue.
    pub scopes: u64,
    /// Subscriptions, deleted ones too.
    pub subscriptions: u64,
    /// Changes.
    pub changes: u64,
    /// Tokens.
    pub tokens: u64,
    /// What was found.
    pub findings: u64,
}

/// Looks at all rows in a transaction, and reports each that is not as it must be.
///
/// # Errors
///
/// [`Error::Unavailable`] when the database cannot be asked.
pub async fn inspect(
    transaction: &DatabaseTransaction,
    report: &mut (dyn FnMut(Finding) + Send + Sync),
) -> Result<Inspected> {
    let backend = transaction.get_database_backend();
    if backend == DbBackend::Postgres {
        transaction.execute_unprepared(PATIENT).await?;
    }
    let oldest = match ask(transaction, "SELECT at FROM change ORDER BY seq LIMIT 1", []).await?.first() {
        Some(row) => row.try_get::<Option<DateTime<Utc>>>("", "at").unwrap_or_default(),
        None => None,
    };
    let mut inspection = Inspection { transaction, backend, oldest, report, inspected: Inspected::default() };
    if backend == DbBackend::Sqlite {
        inspection.file().await?;
    }
    inspection.catalogue().await?;
    inspection.subscriptions().await?;
    inspection.lost_names().await?;
    inspection.external_ids().await?;
    inspection.tokens().await?;
    inspection.changes().await?;
    inspection.lost_scopes().await?;
    inspection.horizon().await?;
    Ok(inspection.inspected)
}

struct Inspection<'a> {
    transaction: &'a DatabaseTransaction,
    backend: DbBackend,
    /// When the oldest change that is kept was made: whatever was written since then has one.
    oldest: Option<DateTime<Utc>>,
    report: &'a mut (dyn FnMut(Finding) + Send + Sync),
    inspected: Inspected,
}

/// The last change of a row.
struct Last {
    seq: i64,
    before: Option<String>,
    after: Option<String>,
}

impl Inspection<'_> {
    fn find(&mut self, table: &'static str, id: impl Into<String>, problem: impl Into<String>) {
        self.inspected.findings += 1;
        (self.report)(Finding { table, id: id.into(), problem: problem.into() });
    }

    /// What SQLite itself finds in its file: pages, indexes, and what the tables refuse.
    async fn file(&mut self) -> Result<()> {
        for row in ask(self.transaction, "PRAGMA integrity_check", []).await? {
            let found: String = row.try_get_by_index(0)?;
            if found != "ok" {
                self.find("the file", "", found);
            }
        }
        Ok(())
    }

    async fn catalogue(&mut self) -> Result<()> {
        let (mut after, mut operator) = (String::new(), ">=");
        loop {
            let sql = format!("SELECT * FROM catalogue_scope WHERE name {operator} $1 ORDER BY name LIMIT {PAGE}");
            let rows = ask(self.transaction, &sql, [after.clone().into()]).await?;
            let names =
                rows.iter().map(|row| row.try_get::<String>("", "name")).collect::<std::result::Result<Vec<_>, _>>()?;
            let (Some(first), Some(end)) = (names.first(), names.last()) else { return Ok(()) };
            let last = self.last(LAST_OF_SCOPES, first.clone().into(), end.clone().into(), text_key).await?;
            for (row, name) in rows.iter().zip(&names) {
                self.inspected.scopes += 1;
                let row = catalogue_row::Model::from_query_result(row, "");
                match row.map_err(Error::from).and_then(catalogue::from_row) {
                    Err(error) => self.find(CATALOGUE, name, broken(&error)),
                    Ok(scope) => self.scope(&scope, last.get(name.as_bytes())),
                }
            }
            after.clone_from(end);
            operator = ">";
        }
    }

    fn scope(&mut self, scope: &CatalogueScope, last: Option<&Last>) {
        let name = scope.name.as_str();
        if scope.version < 1 {
            self.find(CATALOGUE, name, "its version is below 1");
        }
        if scope.updated_at < scope.created_at {
            self.find(CATALOGUE, name, "it was changed before it was made");
        }
        let Some(last) = self.known(CATALOGUE, name, scope.updated_at, last) else { return };
        let Some(after) = &last.after else {
            return self.find(CATALOGUE, name, format!("its last change, {}, deleted it", last.seq));
        };
        // An image that cannot be read is found with the changes.
        let Ok(known) = image::scope(scope.name.clone(), after) else { return };
        if known.version != scope.version {
            let (row, history) = (scope.version, known.version);
            self.find(CATALOGUE, name, format!("it is of version {row}, its last change, {}, of {history}", last.seq));
        } else if known != *scope {
            self.find(CATALOGUE, name, format!("it says something else than its last change, {}", last.seq));
        }
    }

    async fn subscriptions(&mut self) -> Result<()> {
        let (mut after, mut operator) = (self.least_id(), ">=");
        loop {
            let sql = format!("SELECT * FROM subscription WHERE id {operator} $1 ORDER BY id LIMIT {PAGE}");
            let rows = ask(self.transaction, &sql, [self.id_value(&after)]).await?;
            let keys = rows.iter().map(|row| self.id_key(row, "id")).collect::<Result<Vec<_>>>()?;
            let (Some(first), Some(end)) = (keys.first(), keys.last()) else { return Ok(()) };
            let range = [self.id_value(first), self.id_value(end)];
            let mut scopes: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
            for row in ask(self.transaction, SCOPES_OF_A_PAGE, range.clone()).await? {
                let (id, scope) = (self.id_key(&row, "subscription_id")?, row.try_get::<String>("", "scope")?);
                if row.try_get::<Option<String>>("", "registered")?.is_none() {
                    let problem = format!("it names the scope `{scope}`, which is not in the catalogue");
                    self.find(SUBSCRIPTION_SCOPE, spelled(&id), problem);
                }
                scopes.entry(id).or_default().push(scope);
            }
            let [from, to] = range;
            let last = self.last(LAST_OF_SUBSCRIPTIONS, from, to, id_key).await?;
            for (row, key) in rows.iter().zip(&keys) {
                self.inspected.subscriptions += 1;
                let id = spelled(key);
                let row = match subscription_row::Model::from_query_result(row, "") {
                    Ok(row) => row,
                    Err(error) => {
                        self.find(SUBSCRIPTION, id, broken(&error.into()));
                        continue;
                    }
                };
                for problem in halves(&row) {
                    self.find(SUBSCRIPTION, &id, problem);
                }
                let names = scopes.remove(key).unwrap_or_default();
                let names = names.iter().map(|name| catalogue::scope(name)).collect::<Result<Vec<Scope>>>();
                match names.and_then(|names| subscription::from_row(names, row)) {
                    Err(error) => self.find(SUBSCRIPTION, id, broken(&error)),
                    Ok(subscription) => self.subscription(&subscription, last.get(key)),
                }
            }
            after.clone_from(end);
            operator = ">";
        }
    }

    fn subscription(&mut self, subscription: &Subscription, last: Option<&Last>) {
        let id = subscription.id.to_string();
        if subscription.id.get_version_num() != 7 {
            self.find(SUBSCRIPTION, &id, "its id is no UUID of version 7");
        }
        if subscription.version < 1 {
            self.find(SUBSCRIPTION, &id, "its version is below 1");
        }
        if subscription.updated_at < subscription.created_at {
            self.find(SUBSCRIPTION, &id, "it was changed before it was made");
        }
        let Some(last) = self.known(SUBSCRIPTION, &id, subscription.updated_at, last) else { return };
        let Some(after) = &last.after else {
            return self.find(SUBSCRIPTION, id, format!("its last change, {}, tells of nothing after it", last.seq));
        };
        // An image that cannot be read is found with the changes.
        let Ok(known) = image::subscription(subscription.id, subscription.subject.clone(), after) else { return };
        if known.version != subscription.version {
            let (row, history) = (subscription.version, known.version);
            self.find(SUBSCRIPTION, id, format!("it is of version {row}, its last change, {}, of {history}", last.seq));
        } else if known != *subscription {
            let parts = differences(&known, subscription).join(", ");
            self.find(SUBSCRIPTION, id, format!("it differs from its last change, {}, in {parts}", last.seq));
        }
    }

    /// The last change of a row, when there is one that tells what was made of it; it is told when there must be one.
    fn known<'a>(
        &mut self,
        table: &'static str,
        id: &str,
        updated_at: DateTime<Utc>,
        last: Option<&'a Last>,
    ) -> Option<&'a Last> {
        if last.is_none() && self.oldest.is_some_and(|oldest| updated_at > oldest) {
            self.find(table, id, "it was changed after the oldest change that is kept, and no change tells of it");
        }
        // A change of before the history was kept tells neither.
        last.filter(|last| last.before.is_some() || last.after.is_some())
    }

    /// Scopes that are named by subscriptions which are not there.
    async fn lost_names(&mut self) -> Result<()> {
        let mut after = (self.least_id(), String::new());
        loop {
            let values = [self.id_value(&after.0), after.1.clone().into()];
            let rows = ask(self.transaction, &paged(LOST_NAMES), values).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = (self.id_key(last, "subscription_id")?, last.try_get("", "scope")?);
            for row in &rows {
                let (id, scope) = (self.id_key(row, "subscription_id")?, row.try_get::<String>("", "scope")?);
                let problem = format!("it names the scope `{scope}` for a subscription that is not there");
                self.find(SUBSCRIPTION_SCOPE, spelled(&id), problem);
            }
        }
    }

    async fn external_ids(&mut self) -> Result<()> {
        let mut after = self.least_id();
        loop {
            let rows = ask(self.transaction, &paged(SAME_EXTERNAL_ID), [self.id_value(&after)]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = self.id_key(last, "id")?;
            for row in &rows {
                let id = spelled(&self.id_key(row, "id")?);
                self.find(SUBSCRIPTION, id, "another one has the same external id of the same source");
            }
        }
    }

    async fn tokens(&mut self) -> Result<()> {
        let (mut after, mut operator) = (self.least_id(), ">=");
        loop {
            let sql = format!("SELECT * FROM api_token WHERE id {operator} $1 ORDER BY id LIMIT {PAGE}");
            let rows = ask(self.transaction, &sql, [self.id_value(&after)]).await?;
            let keys = rows.iter().map(|row| self.id_key(row, "id")).collect::<Result<Vec<_>>>()?;
            let (Some(first), Some(end)) = (keys.first(), keys.last()) else { return Ok(()) };
            let last = self.last(LAST_OF_TOKENS, self.id_value(first), self.id_value(end), id_key).await?;
            for (row, key) in rows.iter().zip(&keys) {
                self.inspected.tokens += 1;
                let id = spelled(key);
                let token = token_row::Model::from_query_result(row, "").map_err(Error::from).and_then(|row| {
                    if row.digest.len() == 32 { token::from_row(row) } else { Err(Error::corrupt("digest")) }
                });
                let token = match token {
                    Ok(token) => token,
                    Err(error) => {
                        self.find(TOKEN, id, broken(&error));
                        continue;
                    }
                };
                let changed_at = token.revoked_at.unwrap_or(token.created_at);
                let Some(last) = self.known(TOKEN, &id, changed_at, last.get(key)) else { continue };
                let known = last.after.as_deref().map(serde_json::from_str::<serde_json::Value>);
                if let Some(Ok(known)) = known
                    && Ok(known) != serde_json::from_str(&image::of_token(&token)).map_err(drop)
                {
                    self.find(TOKEN, id, format!("it says something else than its last change, {}", last.seq));
                }
            }
            after.clone_from(end);
            operator = ">";
        }
    }

    async fn changes(&mut self) -> Result<()> {
        let mut after = i64::MIN;
        loop {
            let rows = ask(self.transaction, &paged(CHANGES), [after.into()]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.try_get("", "seq")?;
            for row in &rows {
                self.inspected.changes += 1;
                let seq: i64 = row.try_get("", "seq")?;
                match change(row) {
                    Ok(problems) => {
                        for problem in problems {
                            self.find(CHANGE, seq.to_string(), problem);
                        }
                    }
                    Err(error) => self.find(CHANGE, seq.to_string(), broken(&error)),
                }
            }
        }
    }

    /// Scopes of which the history tells that they are there, and which are not.
    async fn lost_scopes(&mut self) -> Result<()> {
        let mut after = String::new();
        loop {
            let rows = ask(self.transaction, &paged(LAST_OF_LOST_SCOPES), [after.into()]).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.try_get("", "scope")?;
            for row in &rows {
                if row.try_get::<Option<String>>("", "after")?.is_some() {
                    let (name, seq): (String, i64) = (row.try_get("", "scope")?, row.try_get("", "seq")?);
                    self.find(
                        CATALOGUE,
                        name,
                        format!("it is not there, and its last change, {seq}, did not delete it"),
                    );
                }
            }
        }
    }

    /// Whether what the change feed goes by can be right: the order in which changes are read, and what comes next.
    async fn horizon(&mut self) -> Result<()> {
        let highest = "SELECT coalesce(max(seq), 0) FROM change";
        let highest: i64 = one(self.transaction, highest).await?;
        let given: Option<i64> = if self.backend == DbBackend::Postgres {
            let foreign: i64 = one(self.transaction, FOREIGN).await?;
            if foreign > 0 {
                let problem = format!(
                    "{foreign} changes have transaction ids that this server has not given: they were restored from \
                    another one's dump; run `tollgate migrate` as the owner of the tables"
                );
                self.find(CHANGE, "", problem);
            }
            let may = format!("SELECT has_sequence_privilege({SEQUENCE}, 'SELECT, USAGE')");
            // Who may not look cannot tell.
            if one(self.transaction, &may).await? {
                one(self.transaction, &format!("SELECT coalesce(pg_sequence_last_value({SEQUENCE}::regclass), 0)"))
                    .await?
            } else {
                None
            }
        } else {
            let given = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'change'";
            one(self.transaction, given).await?
        };
        if given.is_some_and(|given| given < highest) {
            self.find(CHANGE, "", format!("numbers up to {highest} are taken, and would be given again"));
        }
        Ok(())
    }

    /// The last changes of rows between two of them, by their keys.
    async fn last(
        &self,
        sql: &str,
        from: Value,
        to: Value,
        key: fn(DbBackend, &QueryResult, &str) -> Result<Vec<u8>>,
    ) -> Result<HashMap<Vec<u8>, Last>> {
        let rows = ask(self.transaction, sql, [from, to]).await?;
        let last = |row: &QueryResult| {
            let (seq, before, after) = (row.try_get("", "seq")?, row.try_get("", "before")?, row.try_get("", "after")?);
            Ok((key(self.backend, row, "id")?, Last { seq, before, after }))
        };
        rows.iter().map(last).collect()
    }

    /// What comes before every id, or is the first of them.
    fn least_id(&self) -> Vec<u8> {
        if self.backend == DbBackend::Postgres { vec![0; 16] } else { Vec::new() }
    }

    fn id_value(&self, id: &[u8]) -> Value {
        match Uuid::from_slice(id) {
            Ok(id) if self.backend == DbBackend::Postgres => id.into(),
            // On SQLite it is the bytes of one, or whatever somebody wrote in their place.
            _ => id.to_vec().into(),
        }
    }

    fn id_key(&self, row: &QueryResult, column: &str) -> Result<Vec<u8>> {
        id_key(self.backend, row, column)
    }
}

fn id_key(backend: DbBackend, row: &QueryResult, column: &str) -> Result<Vec<u8>> {
    if backend == DbBackend::Postgres {
        return Ok(row.try_get::<Uuid>("", column)?.as_bytes().to_vec());
    }
    Ok(row.try_get("", column)?)
}

fn text_key(_: DbBackend, row: &QueryResult, column: &str) -> Result<Vec<u8>> {
    Ok(row.try_get::<String>("", column)?.into_bytes())
}

/// A statement with the number of rows that are read at once.
fn paged(sql: &str) -> String {
    sql.replace("{page}", &PAGE.to_string())
}

async fn ask<const N: usize>(
    transaction: &DatabaseTransaction,
    sql: &str,
    values: [Value; N],
) -> Result<Vec<QueryResult>> {
    let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
    Ok(transaction.query_all_raw(statement).await?)
}

async fn one<T: sea_orm::TryGetable>(transaction: &DatabaseTransaction, sql: &str) -> Result<T> {
    let statement = Statement::from_string(transaction.get_database_backend(), sql);
    let row = transaction.query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("seq"))?;
    Ok(row.try_get_by_index(0)?)
}

/// An id as it is written, or the bytes in its place.
fn spelled(id: &[u8]) -> String {
    if let Ok(id) = Uuid::from_slice(id) {
        return id.to_string();
    }
    let digits = id.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("x'{digits}'")
}

/// Why a row cannot be read.
fn broken(error: &Error) -> String {
    match error {
        Error::Unavailable(error)
        | Error::Duplicate(error)
        | Error::Reference(error)
        | Error::OutcomeUnknown(error)
        | Error::Unexpected(error) => match error {
            sea_orm::DbErr::Type(text) => text.clone(),
            other => format!("it cannot be read: {other}"),
        },
    }
}

/// What of a subscription is only half there. The domain has no word for it, so it would be lost in reading.
fn halves(row: &subscription_row::Model) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if row.source.is_some() != row.external_id.is_some() {
        problems.push("it has a source without an external id, or an external id without a source");
    }
    if row.source_version.is_some() && row.external_id.is_none() {
        problems.push("it has a source's version, and no external id");
    }
    if row.paused_until.is_some() && row.paused_from.is_none() {
        problems.push("it has the end of a pause, and no start");
    }
    problems
}

/// In what two states of a subscription differ.
fn differences(known: &Subscription, row: &Subscription) -> Vec<&'static str> {
    // Taken apart field by field, so that a field added to the domain cannot be forgotten here.
    let Subscription { id: _, subject, scopes, life, external, claims, version, created_at, updated_at, deleted_at } =
        known;
    [
        ("its subject", *subject != row.subject),
        ("its scopes", *scopes != row.scopes),
        ("its window, grace, pause or cancellation", *life != row.life),
        ("its external id", *external != row.external),
        ("its claims", *claims != row.claims),
        ("its version", *version != row.version),
        ("when it was made", *created_at != row.created_at),
        ("when it was changed", *updated_at != row.updated_at),
        ("when it was deleted", *deleted_at != row.deleted_at),
    ]
    .into_iter()
    .filter_map(|(part, differs)| differs.then_some(part))
    .collect()
}

/// What is wrong with a change.
fn change(row: &QueryResult) -> Result<Vec<String>> {
    // When it was made is read, and found, with the rest.
    let _: DateTime<Utc> = row.try_get("", "at")?;
    let noun: String = row.try_get("", "noun")?;
    let (before, after): (Option<String>, Option<String>) = (row.try_get("", "before")?, row.try_get("", "after")?);
    let mut problems = Vec::new();
    let mut follow = |versions: (Option<i64>, Option<i64>)| match versions {
        (Some(before), Some(after)) if before + 1 != after => {
            problems.push(format!("it makes version {after} of version {before}"));
        }
        _ => {}
    };
    match noun.as_str() {
        "catalogue" => {
            let name: Option<String> = row.try_get("", "scope")?;
            let name = catalogue::scope(&name.unwrap_or_default())?;
            let read = |image: &Option<String>| {
                image.as_deref().map(|image| image::scope(name.clone(), image).map(|scope| scope.version)).transpose()
            };
            follow((read(&before)?, read(&after)?));
        }
        "subscription" => {
            let (kind, id): (Option<String>, Option<String>) =
                (row.try_get("", "subject_type")?, row.try_get("", "subject_id")?);
            let subject =
                subscription::subject(kind.as_deref().unwrap_or_default(), id.as_deref().unwrap_or_default())?;
            let named: Option<Uuid> = row.try_get("", "subscription_id")?;
            let named = named.ok_or_else(|| Error::corrupt("subscription_id"))?;
            let read = |image: &Option<String>| {
                let read = |image: &str| image::subscription(named, subject.clone(), image).map(|read| read.version);
                image.as_deref().map(read).transpose()
            };
            follow((read(&before)?, read(&after)?));
            if row.try_get::<Option<Uuid>>("", "found_id")?.is_none() {
                problems.push(format!("it is of the subscription {named}, which is not there"));
            } else {
                let found: (Option<String>, Option<String>) =
                    (row.try_get("", "found_type")?, row.try_get("", "found_subject")?);
                if found != (kind, id) {
                    problems.push(format!("it is of another subject than the subscription {named}"));
                }
            }
        }
        "token" => {
            let named: Option<Uuid> = row.try_get("", "token_id")?;
            let named = named.ok_or_else(|| Error::corrupt("token_id"))?;
            if row.try_get::<Option<Uuid>>("", "found_token")?.is_none() {
                problems.push(format!("it is of the token {named}, which is not there"));
            }
            let is_object = |image: &Option<String>| {
                image.as_deref().is_none_or(|image| {
                    serde_json::from_str::<serde_json::Value>(image).is_ok_and(|image| image.is_object())
                })
            };
            if !is_object(&before) || !is_object(&after) {
                return Err(Error::corrupt("image"));
            }
        }
        _ => return Err(Error::corrupt("noun")),
    }
    Ok(problems)
}
