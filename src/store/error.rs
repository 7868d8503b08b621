//! What a query can answer instead of a value.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

/// The answer of a query.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a query gave no value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database could not be asked, or could not answer in time; the same query may go through later.
    #[error("the database is unavailable")]
    Unavailable(#[source] DbErr),
    /// The row exists already.
    #[error("a row of that key exists")]
    Duplicate(#[source] DbErr),
    /// The row refers to one that does not exist, or is referred to by one that does.
    #[error("a reference between rows would break")]
    Reference(#[source] DbErr),
    /// The connection broke while a commit was under way: nobody can tell whether it was done.
    #[error("the outcome of the commit is unknown")]
    OutcomeUnknown(#[source] DbErr),
    /// The database refused the query, or a row does not hold what its table promises.
    #[error("the database answered what it should not")]
    Unexpected(#[source] DbErr),
}

impl Error {
    /// An outage that no library told of.
    pub(crate) fn unavailable(reason: &str) -> Self {
        Self::Unavailable(DbErr::Custom(reason.to_owned()))
    }

    /// A row that does not hold what its table promises. The value itself is not told: it may be personal.
    pub(crate) fn corrupt(column: &'static str) -> Self {
        Self::Unexpected(DbErr::Type(format!("column `{column}` holds an impossible value")))
    }

    /// The error of a commit: where the connection broke, its outcome is unknown.
    pub(super) fn of_commit(error: DbErr) -> Self {
        match sqlx_error(&error) {
            // The server itself said no: nothing was written. But a proxy that lost the server says so in its place, a
            // server that is being shut down may have written, and so may a disk that failed.
            Some(sqlx::Error::Database(answer))
                if !answer.code().is_some_and(|code| {
                    code.starts_with("08") || code.starts_with("57P") || is_sqlite(&code, SQLITE_IOERR)
                }) =>
            {
                error.into()
            }
            _ => Self::OutcomeUnknown(error),
        }
    }

    /// The same of a commit that the library did not see.
    pub(super) fn of_raw_commit(error: sqlx::Error) -> Self {
        Self::of_commit(DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error))))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        DbErr::Query(RuntimeErr::SqlxError(Arc::new(error))).into()
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => return Self::Duplicate(error),
            Some(SqlErr::ForeignKeyConstraintViolation(_)) => return Self::Reference(error),
            _ => {}
        }
        if is_restricted(&error) {
            return Self::Reference(error);
        }
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Unexpected(error) }
    }
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// Whether `ON DELETE RESTRICT` refused it, which the library does not tell: SQLite does so by
/// `SQLITE_CONSTRAINT_TRIGGER`, Postgres from 18 on by `restrict_violation`.
fn is_restricted(error: &DbErr) -> bool {
    match sqlx_error(error) {
        Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| matches!(&*code, "1811" | "23001")),
        _ => false,
    }
}

fn is_unavailable(error: &DbErr) -> bool {
    match sqlx_error(error) {
        Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| is_unavailable_code(&code)),
        Some(
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed,
        ) => true,
        Some(_) => false,
        None => matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_)),
    }
}

/// Whether a code says that the database cannot do its work now: SQLSTATE on Postgres, the (extended) result code in
/// decimal on SQLite.
fn is_unavailable_code(code: &str) -> bool {
    if code.len() == 5 {
        // Connection exceptions, too few resources, operator intervention (shutdown, cancel), system errors;
        // logins that are refused and databases that are not there, as while credentials change; serialization failure
        // and deadlock; lock not available; read-only (a standby).
        return ["08", "28", "3D", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || ["40001", "40P01", "55P03", "25006", "25P03"].contains(&code);
    }
    // SQLITE_BUSY, _LOCKED, _READONLY, _IOERR, _FULL, _CANTOPEN, _PROTOCOL.
    [5, 6, 8, SQLITE_IOERR, 13, 14, 15].iter().any(|primary| is_sqlite(code, *primary))
}

const SQLITE_IOERR: i32 = 10;

/// Whether a code is SQLite's, of a primary result code: an extended code keeps it in its low byte.
fn is_sqlite(code: &str, primary: i32) -> bool {
    code.len() < 5 && code.parse::<i32>().is_ok_and(|code| code & 0xFF == primary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_an_outage_are_told_from_codes_of_a_mistake() {
        for code in
            ["08006", "53300", "57P01", "57014", "58030", "40001", "40P01", "55P03", "25006", "5", "517", "10", "13"]
        {
            assert!(is_unavailable_code(code), "{code}");
        }
        for code in ["42P01", "42601", "22P02", "23514", "1", "275", "x", "", "00010"] {
            assert!(!is_unavailable_code(code), "{code}");
        }
    }
}
