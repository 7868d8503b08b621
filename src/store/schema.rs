//! The tables: bringing them up to date.

use chrono::{DateTime, Utc};
use migration::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectionTrait as _, DbBackend, QueryResult, Statement};

use super::{
    Database, change,
    database::commit,
    error::{Error, Result},
};

/// The key of the advisory lock under which replicas on Postgres migrate one after the other: "tollgate" in ASCII.
const MIGRATION_LOCK: i64 = 0x746F_6C6C_6761_7465;

/// What bringing the tables up to date came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrated {
    /// All steps had been taken before.
    Nothing,
    /// This many steps were taken now.
    Steps(usize),
    /// The tables are those of a newer Tollgate, and hold all that this one needs.
    NewerSchema,
}

/// Takes the steps that are still to be taken: all of them or, when it is cut off, none.
///
/// Changes that were restored from another server's dump are made this one's ([`change::adopt`]).
///
/// It runs in one transaction under a lock, so replicas that start together wait for the first of them. Steps that
/// this version does not know are a newer version's, and made so that this one can live with them.
///
/// # Errors
///
/// [`super::Error::Unexpected`] when a step fails, or when a newer version's steps were taken without all of ours.
pub async fn migrate(database: &Database) -> Result<Migrated> {
    let transaction = database.begin().await?;
    if database.backend() == DbBackend::Postgres {
        // A step may take its time, and so may the replica that is waited for.
        transaction.execute_unprepared("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
        let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        transaction.execute_unprepared(&lock).await?;
    }
    let applied = migration::applied(&transaction).await?;
    let known: Vec<String> = Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
    let pending = known.iter().filter(|name| !applied.contains(name)).count();
    let newer = applied.iter().any(|name| !known.contains(name));
    let migrated = match (pending, newer) {
        (0, false) => Migrated::Nothing,
        (0, true) => Migrated::NewerSchema,
        (steps, _) => {
            // With steps it does not know, this refuses to begin, and says which they are.
            Migrator::up(&transaction, None).await?;
            Migrated::Steps(steps)
        }
    };
    change::adopt(&transaction).await?;
    commit(transaction).await?;
    Ok(migrated)
}

/// How far the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Every step was taken.
    Current,
    /// Every step that this version knows was taken, and a newer version's, too.
    Newer,
    /// So many steps are still to be taken.
    Behind(usize),
}

/// How far the tables are. It only reads.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn standing(database: &Database) -> Result<Standing> {
    let applied = migration::applied(database.readers()).await?;
    let known: Vec<String> = Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
    Ok(match known.iter().filter(|name| !applied.contains(name)).count() {
        0 if applied.iter().any(|name| !known.contains(name)) => Standing::Newer,
        0 => Standing::Current,
        steps => Standing::Behind(steps),
    })
}

/// What a database server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name and its version.
    pub version: String,
    /// Whether it only follows another one.
    pub is_standby: bool,
}

/// What the database server is.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn server(database: &Database) -> Result<Server> {
    let sql = match database.backend() {
        DbBackend::Postgres => "SELECT 'PostgreSQL ' || current_setting('server_version'), pg_is_in_recovery()",
        _ => "SELECT 'SQLite ' || sqlite_version(), 0 = 1",
    };
    let row = one(database, sql).await?;
    Ok(Server { version: row.try_get_by_index(0)?, is_standby: row.try_get_by_index(1)? })
}

/// The present by the clock of the database server; none on SQLite, which has no clock of its own.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn database_now(database: &Database) -> Result<Option<DateTime<Utc>>> {
    if database.backend() != DbBackend::Postgres {
        return Ok(None);
    }
    Ok(Some(one(database, "SELECT clock_timestamp()").await?.try_get_by_index(0)?))
}

/// What the service does with each table: `deploy/postgres/roles.sql` grants exactly this.
pub const RIGHTS: [(&str, &[&str]); 7] = [
    ("api_token", &["INSERT", "SELECT", "UPDATE"]),
    ("catalogue_scope", &["DELETE", "INSERT", "SELECT", "UPDATE"]),
    ("change", &["DELETE", "INSERT", "SELECT"]),
    ("idempotency_key", &["DELETE", "INSERT", "SELECT", "UPDATE"]),
    ("seaql_migrations", &["SELECT"]),
    ("subscription", &["INSERT", "SELECT", "UPDATE"]),
    ("subscription_scope", &["DELETE", "INSERT", "SELECT"]),
];

/// The rights that the service needs and the role lacks, each as a table and a word; none on SQLite, which knows no
/// roles.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn missing_rights(database: &Database) -> Result<Vec<(&'static str, &'static str)>> {
    let mut missing = Vec::new();
    if database.backend() != DbBackend::Postgres {
        return Ok(missing);
    }
    for (table, rights) in RIGHTS {
        for right in rights {
            let sql = "SELECT has_table_privilege(quote_ident(current_schema()) || '.' || quote_ident($1), $2)";
            let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [table.into(), (*right).into()]);
            let row = database.readers().query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("privilege"))?;
            if !row.try_get_by_index::<bool>(0)? {
                missing.push((table, *right));
            }
        }
    }
    Ok(missing)
}

/// Whether there are changes that were restored from another server's dump, and not made this one's since.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn holds_foreign_changes(database: &Database) -> Result<bool> {
    change::are_foreign(database.readers()).await
}

async fn one(database: &Database, sql: &str) -> Result<QueryResult> {
    let statement = Statement::from_string(database.backend(), sql);
    database.readers().query_one_raw(statement).await?.ok_or_else(|| Error::corrupt("row"))
}

/// Whether every step that this version knows has been taken.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn is_current(database: &Database) -> Result<bool> {
    Ok(match standing(database).await? {
        Standing::Current | Standing::Newer => true,
        Standing::Behind(_) => false,
    })
}

/// Takes back every step, the newest first, with all data in the tables.
///
/// # Errors
///
/// [`super::Error::Unexpected`] when a step cannot be taken back.
pub async fn unmigrate(database: &Database) -> Result<()> {
    let transaction = database.begin().await?;
    Migrator::down(&transaction, None).await?;
    commit(transaction).await
}
