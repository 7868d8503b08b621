//! The tables: bringing them up to date.

use migration::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectionTrait as _, DbBackend};

use super::{Database, change, database::commit, error::Result};

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

/// Whether every step that this version knows has been taken.
///
/// # Errors
///
/// [`super::Error::Unavailable`] when the database cannot be asked.
pub async fn is_current(database: &Database) -> Result<bool> {
    let applied = migration::applied(database.readers()).await?;
    Ok(Migrator::migrations().iter().all(|step| applied.iter().any(|name| name == step.name())))
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
