//! Upgrades and roll-backs: what each older version of the tables holds is there after an upgrade and after a roll-back,
//! and what a program of that version writes is taken by the newest tables, and counts.
//!
//! A program of an older version names the columns that it knows, and no others. So it is played by statements on the
//! columns that its tables had: the build of an older commit is not part of the tests.

use std::collections::BTreeMap;

use migration::{Migrator, MigratorTrait as _};
use sea_orm::{ConnectionTrait as _, QueryResult, Statement};
use tollgate::store::{
    Database,
    inspection::inspect,
    schema::{Migrated, migrate, unmigrate},
};

use crate::support::{Backend, TestDatabase, on_both};

/// The columns of each table, in the order of the references between tables.
type Columns = Vec<(&'static str, Vec<String>)>;

const TABLES: [&str; 6] =
    ["catalogue_scope", "subscription", "subscription_scope", "change", "api_token", "idempotency_key"];

/// Whose subscription it is: one of before the upgrade, one of after it.
#[derive(Clone, Copy)]
enum Holder {
    Joe,
    Ann,
}

impl Holder {
    fn name(self) -> &'static str {
        match self {
            Self::Joe => "joe",
            Self::Ann => "ann",
        }
    }

    /// What a program writes into a column; none where the database numbers the rows, or the column is for few.
    fn value(self, backend: Backend, table: &str, column: &str) -> Option<String> {
        let number = match self {
            Self::Joe => 1,
            Self::Ann => 2,
        };
        let uuid = |kind: u32| match backend {
            Backend::Sqlite => format!("x'0000000000007000800000000000{kind:02x}{number:02x}'"),
            Backend::Postgres => format!("'00000000-0000-7000-8000-00000000{kind:02x}{number:02x}'"),
        };
        let digest = || match backend {
            Backend::Sqlite => format!("x'{}'", format!("{number:02x}").repeat(32)),
            Backend::Postgres => format!("'\\x{}'", format!("{number:02x}").repeat(32)),
        };
        let text = |text: &str| Some(format!("'{text}'"));
        let (early, late) = ("2026-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00");
        match (table, column) {
            (_, "seq" | "xid" | "before" | "after")
            | ("change", "token_id")
            | ("subscription", "canceled_at" | "deleted_at" | "paused_from" | "paused_until")
            | ("api_token", "expires_at" | "revoked_at" | "last_used_at") => None,
            ("catalogue_scope", "name") | (_, "scope") => text(&format!("of-{}", self.name())),
            ("api_token", "name") | ("idempotency_key", "key") | (_, "external_id" | "subject_id") => text(self.name()),
            (_, "description" | "answer" | "created_by" | "actor" | "request_id" | "action") => text("words"),
            (_, "claims") => Some(r#"'{"tg:plan":"gold"}'"#.to_owned()),
            (_, "requires") => text("any"),
            (_, "role") => text("reader"),
            (_, "noun") => text("subscription"),
            (_, "enforced") => Some(if backend == Backend::Sqlite { "1" } else { "true" }.to_owned()),
            (_, "version") => Some("1".to_owned()),
            (_, "source_version") => Some("7".to_owned()),
            (_, "source") => text("billing"),
            (_, "subject_type") => text("user"),
            ("api_token", "id") => Some(uuid(2)),
            (_, "id" | "subscription_id") => Some(uuid(1)),
            (_, "digest") => Some(digest()),
            (_, "valid_until") => text(late),
            (_, "grace_until") => text("2030-02-01T00:00:00+00:00"),
            (_, "at" | "valid_from" | "created_at" | "updated_at" | "answered_at") => text(early),
            other => panic!("what does a program write into {other:?}?"),
        }
    }
}

async fn rows(database: &Database, sql: &str) -> Vec<QueryResult> {
    let statement = Statement::from_string(database.backend(), sql);
    database.writers().query_all_raw(statement).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn run(database: &Database, sql: &str) {
    let transaction = database.begin().await.expect("a transaction");
    transaction.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    transaction.commit().await.expect("committed");
}

/// The tables that there are, and their columns.
async fn columns(database: &Database, backend: Backend) -> Columns {
    let mut found = Vec::new();
    for table in TABLES {
        let sql = match backend {
            Backend::Sqlite => format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"),
            Backend::Postgres => format!(
                "SELECT column_name::text FROM information_schema.columns
                WHERE table_schema = current_schema() AND table_name = '{table}' ORDER BY ordinal_position"
            ),
        };
        let names: Vec<String> =
            rows(database, &sql).await.iter().map(|row| row.try_get_by_index(0).expect("a name")).collect();
        if !names.is_empty() {
            found.push((table, names));
        }
    }
    found
}

/// Writes a row into each table, as a program does that knows these columns.
async fn write(database: &Database, backend: Backend, known: &Columns, holder: Holder) {
    for (table, columns) in known {
        let written: BTreeMap<_, _> = columns
            .iter()
            .filter_map(|column| Some((column.as_str(), holder.value(backend, table, column)?)))
            .collect();
        let (names, values): (Vec<_>, Vec<_>) = written.into_iter().unzip();
        run(database, &format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values.join(", "))).await;
    }
}

/// All that such a program reads.
async fn read(database: &Database, backend: Backend, known: &Columns) -> Vec<String> {
    let mut read = Vec::new();
    for (table, columns) in known {
        // The number of a transaction is no value of ours.
        let shown = columns.iter().filter(|column| *column != "xid").map(|column| match backend {
            Backend::Sqlite => format!("quote({column})"),
            Backend::Postgres => format!("coalesce({column}::text, 'NULL')"),
        });
        let sql = format!("SELECT {} FROM {table} ORDER BY 1", shown.collect::<Vec<_>>().join(" || ' ' || "));
        for row in rows(database, &sql).await {
            read.push(format!("{table}: {}", row.try_get_by_index::<String>(0).expect("a text")));
        }
    }
    read
}

async fn step(database: &Database, steps: i64) {
    let transaction = database.begin().await.expect("a transaction");
    let count = Some(u32::try_from(steps.abs()).expect("a few"));
    if steps < 0 {
        Migrator::down(&transaction, count).await.expect("taken back");
    } else {
        Migrator::up(&transaction, count).await.expect("taken");
    }
    transaction.commit().await.expect("committed");
}

/// What the inspection finds.
async fn findings(database: &Database) -> Vec<String> {
    let reading = database.begin_reading().await.expect("a transaction");
    let mut found = Vec::new();
    let mut tell = |finding| found.push(format!("{finding:?}"));
    inspect(&reading, &mut tell).await.expect("looked at");
    reading.rollback().await.expect("ended");
    found
}

/// Whether the hooks count what a holder holds.
async fn holds(database: &TestDatabase, holder: Holder) -> bool {
    let app = database.app().await;
    let scope = format!("of-{}", holder.name());
    let removed = app.removed(Some(holder.name()), "portal", &[&scope]).await;
    app.service.close().await;
    removed.is_empty()
}

on_both! {
    async fn each_older_version_can_be_upgraded_goes_on_beside_and_can_be_rolled_back_to(database) {
        let backend = database.backend;
        let all = i64::try_from(Migrator::migrations().len()).expect("a few");
        // The subscriptions that the hooks look for are there from the second step on, and changes from the third.
        for version in 3..all {
            let service = Database::connect(&database.url).await.expect("a database");
            step(&service, version).await;
            let known = columns(&service, backend).await;
            write(&service, backend, &known, Holder::Joe).await;
            let before = read(&service, backend, &known).await;
            assert!(before.len() >= 4, "{before:?}");

            // The upgrade, as a start of the newest version does it.
            let migrated = migrate(&service).await.expect("upgraded");
            assert_eq!(migrated, Migrated::Steps(usize::try_from(all - version).expect("a few")), "from {version}");
            assert_eq!(read(&service, backend, &known).await, before, "from {version}");
            assert_eq!(findings(&service).await, [""; 0], "from {version}");
            assert!(holds(&database, Holder::Joe).await, "from {version}");

            // The older program goes on, on the newest tables: it writes, changes and reads what it knows.
            write(&service, backend, &known, Holder::Ann).await;
            // An end beyond a grace that it does not know it cannot give: the tables refuse that.
            run(&service, "UPDATE subscription SET version = version + 1, valid_until = '2029-01-01T00:00:00+00:00'").await;
            run(&service, "UPDATE catalogue_scope SET version = version + 1, description = 'other words'").await;
            let beside = read(&service, backend, &known).await;
            assert_eq!(beside.len(), 2 * before.len(), "from {version}");
            assert!(holds(&database, Holder::Ann).await && holds(&database, Holder::Joe).await, "from {version}");
            // Its changes tell nothing of before and after where it knew nothing of a history.
            assert_eq!(findings(&service).await, [""; 0], "from {version}");

            // Back to the older tables, and to the newest ones again.
            step(&service, version - all).await;
            assert_eq!(columns(&service, backend).await, known, "back to {version}");
            assert_eq!(read(&service, backend, &known).await, beside, "back to {version}");
            step(&service, all - version).await;
            assert_eq!(read(&service, backend, &known).await, beside, "from {version} again");
            unmigrate(&service).await.expect("unmade");
            service.close().await;
        }
    }
}
