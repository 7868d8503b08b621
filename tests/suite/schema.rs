//! The tables: made and unmade, what they refuse, and replicas that start together.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use entity::{catalogue, change, idempotency_key, subscription, subscription_scope, token};
use migration::{Migrator, MigratorTrait as _};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DatabaseTransaction, EntityTrait, IdenStatic as _, Iterable as _, QueryResult,
    Statement, TryGetable,
};
use tollgate::{
    domain::{
        scope::Scope,
        subject::SubjectId,
        token::{InvalidName, TokenName},
    },
    store::{
        Database, Error,
        database::ConnectError,
        schema::{Migrated, is_current, migrate, unmigrate},
    },
};

use crate::support::{Backend, TestDatabase, on_both};

pub const AT: &str = "'2026-01-01T00:00:00+00:00'";
const LATER: &str = "'2026-01-02T00:00:00+00:00'";

/// Opens a database, and leaves it as it is.
async fn open(database: &TestDatabase) -> Database {
    Database::connect(&database.url).await.expect("a database")
}

pub async fn query<C: ConnectionTrait>(connection: &C, sql: &str) -> Vec<QueryResult> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    connection.query_all_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The first column of what a query gives.
pub async fn column<T: TryGetable, C: ConnectionTrait>(connection: &C, sql: &str) -> Vec<T> {
    let rows = query(connection, sql).await;
    rows.iter().map(|row| row.try_get_by_index(0).expect("a value")).collect()
}

pub async fn execute(transaction: &DatabaseTransaction, sql: &str) {
    transaction.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Whether the database takes a statement; undone if it does not.
async fn is_taken(transaction: &DatabaseTransaction, sql: &str) -> bool {
    execute(transaction, "SAVEPOINT attempt").await;
    let taken = transaction.execute_unprepared(sql).await.is_ok();
    if !taken {
        execute(transaction, "ROLLBACK TO SAVEPOINT attempt").await;
    }
    execute(transaction, "RELEASE SAVEPOINT attempt").await;
    taken
}

/// The names of the tables, but for the list of the steps taken.
async fn tables(database: &Database, backend: Backend) -> BTreeSet<String> {
    let sql = match backend {
        Backend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        Backend::Postgres => "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()",
    };
    let names: Vec<String> = column(database.readers(), sql).await;
    names.into_iter().filter(|name| name != "seaql_migrations").collect()
}

/// All that the database itself tells of the tables.
async fn anatomy(database: &Database, backend: Backend) -> Vec<String> {
    let sql = match backend {
        Backend::Sqlite => "SELECT coalesce(sql, name) FROM sqlite_master WHERE name NOT LIKE 'seaql%' ORDER BY name",
        Backend::Postgres => {
            "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, collation_name, column_default)
            FROM information_schema.columns WHERE table_schema = current_schema()
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
            UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint ORDER BY 1"
        }
    };
    column(database.readers(), sql).await
}

/// The columns of a table as its entity knows them, each with whether it may be null.
fn known_columns<E: EntityTrait>() -> BTreeSet<(String, String, bool)> {
    let name = E::default().table_name().to_owned();
    E::Column::iter().map(|column| (name.clone(), column.as_str().to_owned(), column.def().is_null())).collect()
}

fn uuid(backend: Backend, last: u8) -> String {
    match backend {
        Backend::Sqlite => format!("x'000000000000700080000000000000{last:02x}'"),
        Backend::Postgres => format!("'00000000-0000-7000-8000-0000000000{last:02x}'"),
    }
}

fn boolean(backend: Backend) -> &'static str {
    match backend {
        Backend::Sqlite => "1",
        Backend::Postgres => "true",
    }
}

pub fn insert_scope(backend: Backend, name: &str, requires: &str, version: i64) -> String {
    let (name, enforced) = (name.replace('\'', "''"), boolean(backend));
    format!(
        "INSERT INTO catalogue_scope (name, requires, enforced, version, created_at, updated_at)
        VALUES ('{name}', '{requires}', {enforced}, {version}, {AT}, {AT})"
    )
}

fn insert_subscription(id: &str, subject: (&str, &str), until: &str, version: i64) -> String {
    let (kind, subject_id) = subject;
    format!(
        "INSERT INTO subscription (id, subject_type, subject_id, valid_from, valid_until, version, created_at, updated_at)
        VALUES ({id}, '{kind}', '{subject_id}', {AT}, {until}, {version}, {AT}, {AT})"
    )
}

fn insert_named(id: &str, scope: &str) -> String {
    format!("INSERT INTO subscription_scope (subscription_id, scope) VALUES ({id}, '{scope}')")
}

fn insert_change(noun: &str, scope: &str, id: &str, kind: &str, subject_id: &str) -> String {
    format!(
        "INSERT INTO change (at, actor, request_id, noun, action, scope, subscription_id, subject_type, subject_id)
        VALUES ({AT}, 'a', 'r', '{noun}', 'create', {scope}, {id}, {kind}, {subject_id})"
    )
}

fn insert_token_change(id: &str) -> String {
    format!(
        "INSERT INTO change (at, actor, request_id, noun, action, token_id) VALUES ({AT}, 'a', 'r', 'token', 'create', {id})"
    )
}

/// A digest of so many bytes, all of them the same.
fn digest(backend: Backend, byte: u8, length: usize) -> String {
    let hexadecimal = format!("{byte:02x}").repeat(length);
    match backend {
        Backend::Sqlite => format!("x'{hexadecimal}'"),
        Backend::Postgres => format!("'\\x{hexadecimal}'"),
    }
}

fn key_row(actor: &str, key: &str, digest: &str) -> String {
    format!("('{actor}', '{key}', {digest}, {AT}, '')")
}

fn insert_key(actor: &str, key: &str, digest: &str) -> String {
    let row = key_row(actor, key, digest);
    format!("INSERT INTO idempotency_key (actor, key, digest, answered_at, answer) VALUES {row}")
}

fn insert_token(id: &str, name: &str, digest: &str, role: &str, end: &str) -> String {
    let name = name.replace('\'', "''");
    format!(
        "INSERT INTO api_token (id, name, digest, role, created_at, created_by, expires_at)
        VALUES ({id}, '{name}', {digest}, '{role}', {AT}, 'a', {end})"
    )
}

fn set_end(backend: Backend, on_postgres: &str, on_sqlite: &str) -> String {
    let end = if backend == Backend::Postgres { on_postgres } else { on_sqlite };
    format!("UPDATE subscription SET valid_until = '{end}'")
}

/// A change of the one subscription that there is, whose window begins at [`AT`].
fn set(columns: &str) -> String {
    format!("UPDATE subscription SET {columns}")
}

/// What each constraint refuses: its name, what SQLite says in its place where it knows no name, a statement that it
/// refuses, and one beside it that it takes.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn refusals(backend: Backend) -> Vec<(&'static str, Option<&'static str>, String, String)> {
    let (first, second, none) = (uuid(backend, 1), uuid(backend, 2), uuid(backend, 9));
    let (user, new) = (("user", "u"), digest(backend, 2, 32));
    let unique = |columns| Some(columns);
    let broken = Some("FOREIGN KEY constraint failed");
    vec![
        (
            "catalogue_scope_is_registered_once",
            unique("UNIQUE constraint failed: catalogue_scope.name"),
            insert_scope(backend, "email", "any", 1),
            insert_scope(backend, "Email", "any", 1),
        ),
        (
            "catalogue_scope_name_is_a_scope_token",
            None,
            insert_scope(backend, "a b", "any", 1),
            insert_scope(backend, "a_b", "any", 1),
        ),
        (
            "catalogue_scope_requires_is_known",
            None,
            insert_scope(backend, "x", "Any", 1),
            insert_scope(backend, "x", "all", 1),
        ),
        (
            "catalogue_scope_version_counts_from_1",
            None,
            insert_scope(backend, "x", "any", 0),
            insert_scope(backend, "x", "any", 1),
        ),
        (
            "subscription_id_is_unique",
            unique("UNIQUE constraint failed: subscription.id"),
            insert_subscription(&first, user, "NULL", 1),
            insert_subscription(&second, user, "NULL", 1),
        ),
        (
            "subscription_subject_type_is_known",
            None,
            insert_subscription(&second, ("group", "u"), "NULL", 1),
            insert_subscription(&second, ("client", "u"), "NULL", 1),
        ),
        (
            "subscription_subject_id_has_1_to_1024_bytes",
            None,
            insert_subscription(&second, ("user", ""), "NULL", 1),
            insert_subscription(&second, ("user", " "), "NULL", 1),
        ),
        (
            "subscription_ends_after_it_starts",
            None,
            insert_subscription(&second, user, AT, 1),
            insert_subscription(&second, user, LATER, 1),
        ),
        (
            "subscription_version_counts_from_1",
            None,
            insert_subscription(&second, user, "NULL", 0),
            insert_subscription(&second, user, "NULL", 1),
        ),
        (
            "subscription_names_each_scope_once",
            unique("UNIQUE constraint failed: subscription_scope.subscription_id, subscription_scope.scope"),
            insert_named(&first, "email"),
            insert_named(&first, "unused"),
        ),
        (
            "subscription_scope_belongs_to_a_subscription",
            broken,
            insert_named(&none, "email"),
            insert_named(&first, "unused"),
        ),
        (
            "subscription_scope_is_in_the_catalogue",
            broken,
            insert_named(&first, "absent"),
            insert_named(&first, "unused"),
        ),
        (
            // The same, from the other side.
            "subscription_scope_is_in_the_catalogue",
            broken,
            "DELETE FROM catalogue_scope WHERE name = 'email'".to_owned(),
            "DELETE FROM catalogue_scope WHERE name = 'unused'".to_owned(),
        ),
        (
            // What Postgres takes for a time, and no year can say; and a year that no timestamp can write.
            "subscription_times_have_years_of_four_digits",
            None,
            set_end(backend, "infinity", "99999-01-01T00:00:00+00:00"),
            set_end(backend, "9999-12-31T23:59:59.999999+00:00", "9999-12-31T23:59:59.999999+00:00"),
        ),
        (
            "subscription_grace_ends_after_the_window",
            None,
            set(&format!("valid_until = {LATER}, grace_until = {LATER}")),
            set(&format!("valid_until = {LATER}, grace_until = '2026-01-02T00:00:00.000001+00:00'")),
        ),
        (
            // There is no end for it to come after.
            "subscription_grace_ends_after_the_window",
            None,
            set(&format!("grace_until = {LATER}")),
            set("grace_until = NULL"),
        ),
        (
            "subscription_pause_ends_after_it_starts",
            None,
            set(&format!("paused_from = {AT}, paused_until = {AT}")),
            set(&format!("paused_from = {AT}, paused_until = {LATER}")),
        ),
        (
            "subscription_pause_ends_after_it_starts",
            None,
            set(&format!("paused_until = {LATER}")),
            set(&format!("paused_from = {LATER}")),
        ),
        (
            "subscription_grace_and_pause_have_years_of_four_digits",
            None,
            set(if backend == Backend::Postgres {
                "paused_from = '-infinity'"
            } else {
                "paused_from = '0000-01-01T00:00:00+00:00'"
            }),
            set("paused_from = '0001-01-01T00:00:00+00:00'"),
        ),
        (
            "subscription_external_id_goes_with_its_source",
            None,
            set("external_id = '1'"),
            set("external_id = '1', source = 's'"),
        ),
        ("subscription_external_id_goes_with_its_source", None, set("source = 's'"), set("source = NULL")),
        (
            "subscription_source_version_is_of_a_source",
            None,
            set("source_version = 0"),
            set("external_id = '1', source = 's', source_version = 0"),
        ),
        (
            "subscription_source_version_is_of_a_source",
            None,
            set("external_id = '1', source = 's', source_version = -1"),
            set("external_id = '1', source = 's'"),
        ),
        (
            "idempotency_key_digest_has_32_bytes",
            None,
            insert_key("a", "k", &digest(backend, 2, 33)),
            insert_key("a", "k", &new),
        ),
        (
            "idempotency_key_is_answered_once",
            unique("UNIQUE constraint failed: idempotency_key.actor, idempotency_key.key"),
            format!("{}, {}", insert_key("a", "k", &new), key_row("a", "k", &new)),
            format!("{}, {}", insert_key("a", "k", &new), key_row("b", "k", &new)),
        ),
        (
            "subscription_claims_have_1_to_1024_bytes",
            None,
            set(&format!("claims = '{}é'", "x".repeat(1023))),
            set(&format!("claims = '{}é'", "x".repeat(1022))),
        ),
        (
            "catalogue_scope_claims_have_1_to_1024_bytes",
            None,
            "UPDATE catalogue_scope SET claims = ''".to_owned(),
            "UPDATE catalogue_scope SET claims = NULL".to_owned(),
        ),
        (
            "change_noun_is_known",
            None,
            insert_change("scope", "'x'", &first, "'user'", "'u'"),
            insert_change("catalogue", "'x'", &first, "'user'", "'u'"),
        ),
        (
            "change_of_the_catalogue_names_its_scope",
            None,
            insert_change("catalogue", "NULL", &first, "'user'", "'u'"),
            insert_change("catalogue", "'x'", "NULL", "NULL", "NULL"),
        ),
        (
            "change_of_a_subscription_names_it_and_its_subject",
            None,
            insert_change("subscription", "'x'", "NULL", "'user'", "'u'"),
            insert_change("subscription", "NULL", &first, "'user'", "'u'"),
        ),
        (
            "change_of_a_subscription_names_it_and_its_subject",
            None,
            insert_change("subscription", "'x'", &first, "NULL", "'u'"),
            insert_change("subscription", "NULL", &first, "'user'", "'u'"),
        ),
        (
            "change_of_a_subscription_names_it_and_its_subject",
            None,
            insert_change("subscription", "'x'", &first, "'user'", "NULL"),
            insert_change("subscription", "NULL", &first, "'user'", "'u'"),
        ),
        ("change_of_a_token_names_it", None, insert_token_change("NULL"), insert_token_change(&first)),
        (
            "api_token_id_is_unique",
            unique("UNIQUE constraint failed: api_token.id"),
            insert_token(&first, "other", &new, "reader", "NULL"),
            insert_token(&second, "other", &new, "reader", "NULL"),
        ),
        (
            "api_token_name_is_given_once",
            unique("UNIQUE constraint failed: api_token.name"),
            insert_token(&second, "billing", &new, "reader", "NULL"),
            insert_token(&second, "Billing", &new, "reader", "NULL"),
        ),
        (
            "api_token_digest_is_unique",
            unique("UNIQUE constraint failed: api_token.digest"),
            insert_token(&second, "other", &digest(backend, 1, 32), "reader", "NULL"),
            insert_token(&second, "other", &new, "reader", "NULL"),
        ),
        (
            "api_token_name_has_1_to_64_plain_characters",
            None,
            insert_token(&second, "a b", &new, "reader", "NULL"),
            insert_token(&second, "a_b", &new, "reader", "NULL"),
        ),
        (
            "api_token_digest_has_32_bytes",
            None,
            insert_token(&second, "other", &digest(backend, 2, 31), "reader", "NULL"),
            insert_token(&second, "other", &new, "reader", "NULL"),
        ),
        (
            "api_token_role_is_known",
            None,
            insert_token(&second, "other", &new, "Reader", "NULL"),
            insert_token(&second, "other", &new, "writer", "NULL"),
        ),
        (
            "api_token_ends_after_it_was_made",
            None,
            insert_token(&second, "other", &new, "reader", AT),
            insert_token(&second, "other", &new, "reader", LATER),
        ),
        (
            "api_token_end_has_a_year_of_four_digits",
            None,
            insert_token(
                &second,
                "other",
                &new,
                "reader",
                if backend == Backend::Postgres { "'infinity'" } else { "'99999-01-01T00:00:00+00:00'" },
            ),
            insert_token(&second, "other", &new, "admin", "'9999-12-31T23:59:59.999999+00:00'"),
        ),
    ]
}

on_both! {
    async fn the_tables_are_made_unmade_and_made_again(database) {
        let steps = Migrator::migrations().len();
        let opened = open(&database).await;
        assert!(!is_current(&opened).await.expect("asked"));
        assert_eq!(migrate(&opened).await.expect("made"), Migrated::Steps(steps));
        assert!(is_current(&opened).await.expect("asked"));
        let made = anatomy(&opened, database.backend).await;
        assert!(made.len() > 10, "{made:?}");
        assert_eq!(migrate(&opened).await.expect("nothing to do"), Migrated::Nothing);
        assert_eq!(anatomy(&opened, database.backend).await, made, "migrating twice changes nothing");
        unmigrate(&opened).await.expect("unmade");
        assert_eq!(tables(&opened, database.backend).await, BTreeSet::new());
        assert!(!is_current(&opened).await.expect("asked"));
        assert_eq!(migrate(&opened).await.expect("made"), Migrated::Steps(steps));
        assert_eq!(anatomy(&opened, database.backend).await, made);
        opened.close().await;
    }

    async fn changes_keep_their_numbers_when_their_table_is_made_anew(database) {
        let opened = open(&database).await;
        let transaction = opened.begin().await.expect("begun");
        Migrator::up(&transaction, Some(3)).await.expect("made");
        let insert = insert_change("catalogue", "'x'", "NULL", "NULL", "NULL");
        for _ in 0..3 {
            execute(&transaction, &insert).await;
        }
        execute(&transaction, "DELETE FROM change WHERE seq IN (1, 3)").await;
        let seqs = "SELECT seq FROM change ORDER BY seq";
        for step in [4, 5, 6] {
            let is_up = step % 2 == 0;
            if is_up {
                Migrator::up(&transaction, Some(1)).await.expect("made");
            } else {
                execute(&transaction, &insert_token_change(&uuid(database.backend, 1))).await;
                Migrator::down(&transaction, Some(1)).await.expect("unmade");
            }
            assert!(column::<i64, _>(&transaction, seqs).await.contains(&2), "what was recorded stays");
            execute(&transaction, &insert).await;
            let expected = [4, 6, 7][usize::try_from(step - 4).expect("a place")];
            assert_eq!(column::<i64, _>(&transaction, seqs).await.last(), Some(&expected), "no number is used twice");
        }
        transaction.rollback().await.expect("undone");
        opened.close().await;
    }

    async fn the_columns_are_those_that_the_code_knows_on_both_databases(database) {
        let opened = database.connect().await;
        let sql = match database.backend {
            // Only an integer key is both a key and said to be nullable.
            Backend::Sqlite => "SELECT t.name, c.name, c.\"notnull\" = 0 AND c.pk = 0 FROM sqlite_master AS t,
                pragma_table_info(t.name) AS c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%'",
            Backend::Postgres => "SELECT table_name::text, column_name::text, is_nullable = 'YES'
                FROM information_schema.columns WHERE table_schema = current_schema()",
        };
        let rows = query(opened.readers(), sql).await;
        let value = |row: &QueryResult| -> (String, String, bool) {
            (row.try_get_by_index(0).expect("a table"), row.try_get_by_index(1).expect("a column"), row.try_get_by_index(2).expect("a flag"))
        };
        let mut found: BTreeSet<_> = rows.iter().map(value).collect();
        found.retain(|(table, _, _)| table != "seaql_migrations");
        if database.backend == Backend::Postgres {
            assert!(found.remove(&("change".to_owned(), "xid".to_owned(), false)), "the database's own column");
        }
        let known: BTreeSet<_> = [
            known_columns::<catalogue::Entity>(),
            known_columns::<subscription::Entity>(),
            known_columns::<subscription_scope::Entity>(),
            known_columns::<change::Entity>(),
            known_columns::<token::Entity>(),
            known_columns::<idempotency_key::Entity>(),
        ].into_iter().flatten().collect();
        assert_eq!(found, known);
        opened.close().await;
    }

    async fn each_constraint_refuses_what_its_name_says(database) {
        let backend = database.backend;
        let opened = database.connect().await;
        let (mut tested, first) = (BTreeSet::new(), uuid(backend, 1));
        for (constraint, on_sqlite, refused, taken) in refusals(backend) {
            let transaction = opened.begin().await.expect("begun");
            for scope in ["email", "unused"] {
                execute(&transaction, &insert_scope(backend, scope, "any", 1)).await;
            }
            execute(&transaction, &insert_subscription(&first, ("user", "u"), "NULL", 1)).await;
            execute(&transaction, &insert_named(&first, "email")).await;
            execute(&transaction, &insert_token(&first, "billing", &digest(backend, 1, 32), "reader", "NULL")).await;
            assert!(is_taken(&transaction, &taken).await, "{constraint}: {taken}");
            transaction.rollback().await.expect("undone");

            let transaction = opened.begin().await.expect("begun");
            for scope in ["email", "unused"] {
                execute(&transaction, &insert_scope(backend, scope, "any", 1)).await;
            }
            execute(&transaction, &insert_subscription(&first, ("user", "u"), "NULL", 1)).await;
            execute(&transaction, &insert_named(&first, "email")).await;
            execute(&transaction, &insert_token(&first, "billing", &digest(backend, 1, 32), "reader", "NULL")).await;
            let error = transaction.execute_unprepared(&refused).await.expect_err(&refused);
            let expected = on_sqlite.filter(|_| backend == Backend::Sqlite).unwrap_or(constraint);
            assert!(error.to_string().contains(expected), "{constraint}: {error}");
            let verdict = Error::from(error);
            let is_told_apart = match constraint {
                "catalogue_scope_is_registered_once" | "subscription_id_is_unique" | "subscription_names_each_scope_once" | "api_token_id_is_unique"
                | "api_token_name_is_given_once" | "api_token_digest_is_unique" | "idempotency_key_is_answered_once" => matches!(verdict, Error::Duplicate(_)),
                "subscription_scope_belongs_to_a_subscription" | "subscription_scope_is_in_the_catalogue" => matches!(verdict, Error::Reference(_)),
                _ => matches!(verdict, Error::Unexpected(_)),
            };
            assert!(is_told_apart, "{constraint}: {verdict:?}");
            transaction.rollback().await.expect("undone");
            tested.insert(constraint.to_owned());
        }
        assert_eq!(tested, constraints(&opened, backend).await, "every constraint has a test");
        opened.close().await;
    }

    async fn a_subscription_takes_its_scopes_with_it(database) {
        let backend = database.backend;
        let opened = database.connect().await;
        let transaction = opened.begin().await.expect("begun");
        let first = uuid(backend, 1);
        execute(&transaction, &insert_scope(backend, "email", "any", 1)).await;
        execute(&transaction, &insert_subscription(&first, ("user", "u"), "NULL", 1)).await;
        execute(&transaction, &insert_named(&first, "email")).await;
        execute(&transaction, "DELETE FROM subscription").await;
        assert_eq!(column::<i64, _>(&transaction, "SELECT count(*) FROM subscription_scope").await, [0]);
        transaction.rollback().await.expect("undone");
        opened.close().await;
    }

    async fn names_and_ids_are_held_to_the_rules_of_the_domain(database) {
        let backend = database.backend;
        let opened = database.connect().await;
        let transaction = opened.begin().await.expect("begun");
        let mut names: Vec<String> = (1..=0x7F_u8).map(|code| char::from(code).to_string()).collect();
        names.extend((1..=0x7F_u8).map(|code| format!("a{}z", char::from(code))));
        names.extend(["", "é", "aé", "🎫", "\u{80}"].map(str::to_owned));
        names.extend([255, 256].map(|length| "n".repeat(length)));
        for name in names {
            let taken = is_taken(&transaction, &insert_scope(backend, &name, "any", 1)).await;
            assert_eq!(taken, Scope::parse(&name).is_ok(), "{name:?}");
        }
        let mut names: Vec<String> = (1..=0x7F_u8).map(|code| char::from(code).to_string()).collect();
        names.extend(["", "é", "aé", "a b", "-.Z_9", "bootstrap"].map(str::to_owned));
        names.extend([64, 65].map(|length| "n".repeat(length)));
        for (index, name) in (1..).zip(names) {
            let row = insert_token(&uuid(backend, index), &name, &digest(backend, index, 32), "reader", "NULL");
            // The table knows of no reserved names: they may become more.
            let expected = TokenName::parse(&name) != Err(InvalidName::Spelling);
            assert_eq!(is_taken(&transaction, &row).await, expected, "{name:?}");
        }
        let ids = ["", "a", " ", "é", &"x".repeat(1024), &"x".repeat(1025), &"é".repeat(512), &format!("{}x", "é".repeat(512))];
        for (index, id) in (1..).zip(ids) {
            let row = insert_subscription(&uuid(backend, index), ("user", id), "NULL", 1);
            assert_eq!(is_taken(&transaction, &row).await, SubjectId::parse(id).is_ok(), "{} bytes", id.len());
        }
        transaction.rollback().await.expect("undone");
        opened.close().await;
    }

    async fn columns_take_values_of_their_own_type_only(database) {
        let backend = database.backend;
        let opened = database.connect().await;
        let transaction = opened.begin().await.expect("begun");
        for (column, value) in [("version", "'many'"), ("enforced", "'perhaps'"), ("created_at", "NULL"), ("name", "NULL")] {
            execute(&transaction, "SAVEPOINT row").await;
            execute(&transaction, &insert_scope(backend, "x", "any", 1)).await;
            assert!(!is_taken(&transaction, &format!("UPDATE catalogue_scope SET {column} = {value}")).await, "{column}");
            execute(&transaction, "ROLLBACK TO SAVEPOINT row").await;
        }
        transaction.rollback().await.expect("undone");
        opened.close().await;
    }

    async fn replicas_that_start_together_make_the_tables_once(database) {
        let start = || {
            let url = database.url.clone();
            tokio::spawn(async move {
                let started = Instant::now();
                loop {
                    // A slow machine can keep the file to one of them for longer than the others wait: each tries again,
                    // as the process does.
                    let migrated = match Database::connect(&url).await {
                        Ok(opened) => {
                            let migrated = migrate(&opened).await;
                            opened.close().await;
                            migrated
                        }
                        Err(ConnectError::Open(error)) => Err(error),
                        Err(error) => panic!("{error:?}"),
                    };
                    match migrated {
                        Err(Error::Unavailable(_)) if started.elapsed() < Duration::from_secs(30) => {}
                        migrated => return migrated.expect("migrated"),
                    }
                }
            })
        };
        let replicas: Vec<_> = (0..5).map(|_| start()).collect();
        let mut outcomes = Vec::new();
        for replica in replicas {
            outcomes.push(replica.await.expect("no panic"));
        }
        let made = outcomes.iter().filter(|outcome| **outcome == Migrated::Steps(Migrator::migrations().len())).count();
        let idle = outcomes.iter().filter(|outcome| **outcome == Migrated::Nothing).count();
        assert_eq!((made, idle), (1, 4), "{outcomes:?}");
        let opened = open(&database).await;
        let taken: Vec<i64> = column(opened.readers(), "SELECT count(*) FROM seaql_migrations").await;
        assert_eq!(taken, [i64::try_from(Migrator::migrations().len()).expect("few")]);
        opened.close().await;
    }

    async fn an_older_version_lives_with_the_tables_of_a_newer_one(database) {
        let opened = database.connect().await;
        let transaction = opened.begin().await.expect("begun");
        execute(&transaction, "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m99991231_000001_later', 0)").await;
        transaction.commit().await.expect("committed");
        assert_eq!(migrate(&opened).await.expect("lived with"), Migrated::NewerSchema);
        assert!(is_current(&opened).await.expect("asked"));
        let app = database.app().await;
        app.register("email").await;
        assert_eq!(app.removed(Some("u"), "c", &["email", "openid"]).await, ["email"]);
        assert_eq!(app.send_to(app.operations, "GET", "/readyz", &[], "").await.status, 200);

        let known = Migrator::migrations().last().expect("a step").name().to_owned();
        let transaction = opened.begin().await.expect("begun");
        execute(&transaction, &format!("DELETE FROM seaql_migrations WHERE version = '{known}'")).await;
        transaction.commit().await.expect("committed");
        let before = anatomy(&opened, database.backend).await;
        assert!(matches!(migrate(&opened).await, Err(Error::Unexpected(_))), "what is missing cannot be put under what is newer");
        assert!(!is_current(&opened).await.expect("asked"));
        assert_eq!(anatomy(&opened, database.backend).await, before);
        opened.close().await;
    }
}

/// The names of all constraints, from the database itself.
async fn constraints(database: &Database, backend: Backend) -> BTreeSet<String> {
    match backend {
        Backend::Sqlite => {
            let tables: Vec<String> =
                column(database.readers(), "SELECT sql FROM sqlite_master WHERE sql LIKE '%CONSTRAINT%'").await;
            let names = tables.iter().flat_map(|sql| sql.split("CONSTRAINT ").skip(1));
            names.map(|rest| rest.split_whitespace().next().expect("a name").to_owned()).collect()
        }
        Backend::Postgres => {
            let sql = "SELECT conname::text FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
                WHERE relnamespace = current_schema()::regnamespace AND contype <> 'n'
                AND conname NOT IN ('seaql_migrations_pkey', 'change_pkey')";
            column(database.readers(), sql).await.into_iter().collect()
        }
    }
}
