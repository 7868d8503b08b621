//! The words in which the two databases differ.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// Runs statements written with placeholders for what differs between the databases.
///
/// | placeholder | SQLite | Postgres |
/// | --- | --- | --- |
/// | `{timestamp}` | text that sorts as time does, written by Tollgate only | `timestamptz`, whole microseconds |
/// | `{uuid}` | 16 bytes | `uuid` |
/// | `{text}` | compared byte by byte, as ever | compared byte by byte, whatever the database's locale |
/// | `{boolean}`, `{bigint}` | integer | of that name |
/// | `{binary}` | any bytes | the same |
/// | `{bytes:column}` | the column's length in bytes | the same |
/// | `{token_name:column}` | whether the column is the name of a token, reserved or not | the same |
/// | `{scope_token:column}` | whether the column is a scope token of RFC 6749 | the same |
/// | `{in_years:column}` | whether the column is null or a time in the years 0001 to 9999, so not `infinity` | the same |
/// | `{identity}` | ascending integer, never used twice | the same |
/// | `{xid}` | nothing: a single process writes | the id of the writing transaction |
/// | `{strict}` | refuses a value of another type | nothing: it always does |
pub async fn execute(manager: &SchemaManager<'_>, statements: &str) -> Result<(), DbErr> {
    let words: &[(&str, &str)] = match manager.get_database_backend() {
        DbBackend::Postgres => &[
            ("{timestamp}", "timestamptz"),
            ("{uuid}", "uuid"),
            ("{text}", r#"text COLLATE "C""#),
            ("{boolean}", "boolean"),
            ("{bigint}", "bigint"),
            ("{binary}", "bytea"),
            ("{bytes:subject_id}", "octet_length(subject_id)"),
            ("{bytes:digest}", "octet_length(digest)"),
            ("{bytes:claims}", "octet_length(claims)"),
            ("{token_name:name}", "name ~ '^[A-Za-z0-9._-]{1,64}$'"),
            ("{scope_token:name}", r"name ~ '^[\x21\x23-\x5b\x5d-\x7e]{1,255}$'"),
            ("{in_years:valid_from}", "valid_from BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:valid_until}", "valid_until BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:canceled_at}", "canceled_at BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:grace_until}", "grace_until BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:paused_from}", "paused_from BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:paused_until}", "paused_until BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{in_years:expires_at}", "expires_at BETWEEN '0001-01-01 0:00+0' AND '9999-12-31 23:59:59.999999+0'"),
            ("{identity}", "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
            ("{xid}", "xid xid8 NOT NULL DEFAULT pg_current_xact_id(),"),
            ("{strict}", ""),
        ],
        DbBackend::Sqlite => &[
            ("{timestamp}", "text"),
            ("{uuid}", "blob"),
            ("{text}", "text"),
            ("{boolean}", "integer"),
            ("{bigint}", "integer"),
            ("{binary}", "blob"),
            ("{bytes:subject_id}", "length(CAST(subject_id AS blob))"),
            ("{bytes:digest}", "length(digest)"),
            ("{bytes:claims}", "length(CAST(claims AS blob))"),
            ("{token_name:name}", "length(name) BETWEEN 1 AND 64 AND name NOT GLOB '*[^A-Za-z0-9._-]*'"),
            // The class lists `]` first and `[` and `^` as ends of ranges, the only places where they are plain.
            ("{scope_token:name}", "length(name) BETWEEN 1 AND 255 AND name NOT GLOB '*[^]!#-[^-~]*'"),
            ("{in_years:valid_from}", "valid_from GLOB '[0-9][0-9][0-9][0-9]-*' AND valid_from NOT GLOB '0000*'"),
            ("{in_years:valid_until}", "valid_until GLOB '[0-9][0-9][0-9][0-9]-*' AND valid_until NOT GLOB '0000*'"),
            ("{in_years:canceled_at}", "canceled_at GLOB '[0-9][0-9][0-9][0-9]-*' AND canceled_at NOT GLOB '0000*'"),
            ("{in_years:grace_until}", "grace_until GLOB '[0-9][0-9][0-9][0-9]-*' AND grace_until NOT GLOB '0000*'"),
            ("{in_years:paused_from}", "paused_from GLOB '[0-9][0-9][0-9][0-9]-*' AND paused_from NOT GLOB '0000*'"),
            ("{in_years:paused_until}", "paused_until GLOB '[0-9][0-9][0-9][0-9]-*' AND paused_until NOT GLOB '0000*'"),
            ("{in_years:expires_at}", "expires_at GLOB '[0-9][0-9][0-9][0-9]-*' AND expires_at NOT GLOB '0000*'"),
            ("{identity}", "integer PRIMARY KEY AUTOINCREMENT"),
            ("{xid}", ""),
            ("{strict}", "STRICT"),
        ],
        other => return Err(DbErr::Custom(format!("{other:?} is not supported"))),
    };
    let sql = words.iter().fold(statements.to_owned(), |sql, (placeholder, word)| sql.replace(placeholder, word));
    manager.get_connection().execute_unprepared(&sql).await?;
    Ok(())
}
