//! How what hooks and imports read is planned, on tables of a million subscriptions and on tables that were empty when it
//! was.

use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, AssertSqlSafe, Executor as _, PgConnection, Row as _};
use serde_json::{Value, json};
use tollgate::{
    domain::{
        facts::Standing,
        subject::{Subject, SubjectId, SubjectType},
    },
    store::{self, Database, lane::Connection},
};

use crate::{
    described::{elements, members},
    schema::{AT, column, execute, insert_scope, query},
    support::{Backend, instant, load_facts, on_both},
};

/// Foreign keys are checked elsewhere; where many rows are made they take most of the time, if the role may leave them
/// out.
const UNCHECKED: &str = "DO $$ BEGIN PERFORM set_config('session_replication_role', 'replica', true);
    EXCEPTION WHEN insufficient_privilege THEN NULL; END $$";

/// Subscriptions at which the plan of the hook's query is looked at. SQLite, whose planner looks at no more than the
/// statistics that `ANALYZE` makes of them, needs ten seconds for a million; a quarter shows the same.
const fn many(backend: Backend) -> u32 {
    match backend {
        Backend::Sqlite => 250_000,
        Backend::Postgres => 1_000_000,
    }
}

on_both! {
    async fn the_hooks_query_is_planned_for_large_tables_while_they_are_empty(database) {
        // SQLite plans by the order in which the statement is written.
        if database.backend == Backend::Postgres {
            let opened = database.connect().await;
            let lane = opened.hooks().open(Duration::from_secs(10)).await.expect("a connection as hooks have it");
            let Connection::Postgres(mut lane) = lane else { panic!("not to Postgres") };
            check_plan_of_empty_tables(&opened, &mut lane).await;
            opened.close().await;
        }
    }

    #[expect(clippy::print_stdout, reason = "measurements, for whoever asks to see them")]
    async fn the_hooks_query_reads_one_range_of_one_index_for_each_subject(database) {
        let opened = database.connect().await;
        let started = Instant::now();
        fill(&opened, database.backend).await;
        println!("{} subscriptions on {:?}: filled in {:?}", many(database.backend), database.backend, started.elapsed());
        match database.backend {
            Backend::Sqlite => check_sqlite_plan(&opened).await,
            Backend::Postgres => check_postgres_plans(&opened).await,
        }
        let subject = |kind, id: &str| Subject { kind, id: SubjectId::parse(id).expect("an id") };
        let subjects = [
            subject(SubjectType::User, "subject-77"),
            subject(SubjectType::Client, "subject-77"),
            subject(SubjectType::Client, "subject-100"),
            subject(SubjectType::User, "nobody"),
        ];
        let started = Instant::now();
        let facts = load_facts(&opened, &subjects).await.expect("loaded");
        println!("facts of {} subjects on {:?}: loaded in {:?}", subjects.len(), database.backend, started.elapsed());
        let standings = facts.iter().map(|facts| facts.standing("s1", instant("2026-06-15T12:00:00Z")));
        let (active, none) = (Standing::Active, Standing::NoSubscription);
        assert_eq!(standings.collect::<Vec<_>>(), [active, none, active, none]);
        opened.close().await;
    }
}

/// Subscriptions: two of each subject, one subject in a hundred a client, each naming one scope of two.
async fn fill(database: &Database, backend: Backend) {
    let many = many(backend);
    let transaction = database.begin().await.expect("begun");
    for scope in ["s0", "s1"] {
        execute(&transaction, &insert_scope(backend, scope, "any", 1)).await;
    }
    let (series, id, names) = match backend {
        Backend::Sqlite => (
            format!("WITH RECURSIVE series (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM series WHERE n <= {many})"),
            "CAST(printf('%016d', n) AS blob)",
            "(CAST(substr(CAST(id AS text), 16) AS integer) % 2)",
        ),
        Backend::Postgres => {
            execute(&transaction, UNCHECKED).await;
            // What is lost in a crash of the server does not matter here.
            for table in ["subscription_scope", "subscription"] {
                execute(&transaction, &format!("ALTER TABLE {table} SET UNLOGGED")).await;
            }
            execute(&transaction, "SET LOCAL maintenance_work_mem = '256MB'").await;
            (
                format!("WITH series AS (SELECT * FROM generate_series(2, {many} + 1) AS n)"),
                "lpad(n::text, 32, '0')::uuid",
                "(right(id::text, 1)::integer % 2)",
            )
        }
    };
    // An index is made faster than it grows; the definition is the migration's own.
    let indexes = ["subscription_live_by_subject", "subscription_scope_by_scope", "subscription_by_update"];
    let mut definitions: Vec<String> = Vec::new();
    for index in indexes {
        let sql = match backend {
            Backend::Sqlite => format!("SELECT sql FROM sqlite_master WHERE name = '{index}'"),
            Backend::Postgres => format!("SELECT indexdef FROM pg_indexes WHERE indexname = '{index}'"),
        };
        definitions.extend(column::<String, _>(&transaction, &sql).await);
        execute(&transaction, &format!("DROP INDEX {index}")).await;
    }
    if backend == Backend::Postgres {
        // Filling takes longer than a request may.
        execute(&transaction, "SET LOCAL statement_timeout = 0").await;
    }
    assert_eq!(definitions.len(), indexes.len());
    execute(
        &transaction,
        &format!(
            "{series} INSERT INTO subscription
                (id, subject_type, subject_id, valid_from, valid_until, version, created_at, updated_at)
            SELECT {id}, CASE WHEN (n / 2) % 100 = 0 THEN 'client' ELSE 'user' END, 'subject-' || (n / 2), {AT}, NULL, 1, {AT}, {AT}
            FROM series"
        ),
    )
    .await;
    let scopes = format!("INSERT INTO subscription_scope SELECT id, 's' || {names} FROM subscription");
    execute(&transaction, &scopes).await;
    for definition in definitions {
        execute(&transaction, &definition).await;
    }
    execute(&transaction, "ANALYZE").await;
    let count: Vec<i64> = column(&transaction, "SELECT count(*) FROM subscription_scope").await;
    assert_eq!(count, [i64::from(many)]);
    transaction.commit().await.expect("committed");
}

/// Lets the hook's statement be planned while the tables are empty, and looks at what that plan reads when they are not.
async fn check_plan_of_empty_tables(database: &Database, lane: &mut PgConnection) {
    const MANY: u32 = 100_000;
    let prepare = format!("PREPARE facts (text[], text[]) AS {}", store::facts::POSTGRES);
    lane.execute(AssertSqlSafe(prepare)).await.expect("prepared");
    // Whatever is done to a table makes its plans anew: here nobody does so unasked.
    for table in ["subscription", "subscription_scope"] {
        let sql = format!("ALTER TABLE {table} SET (autovacuum_enabled = false)");
        lane.execute(AssertSqlSafe(sql)).await.expect("set");
    }
    let plan_of = async |lane: &mut PgConnection, options: &str, ids: &str| -> Value {
        let kinds = vec!["user"; ids.split(',').count()].join(",");
        let sql = format!("EXPLAIN ({options}FORMAT JSON) EXECUTE facts ('{{{kinds}}}', '{{{ids}}}')");
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(lane).await.expect("a plan");
        let plans: Value = serde_json::from_str(row.try_get_unchecked(0).expect("text")).expect("JSON");
        plans[0]["Plan"].clone()
    };
    for state in ["never looked at", "looked at"] {
        if state == "looked at" {
            lane.execute("VACUUM (ANALYZE) subscription, subscription_scope").await.expect("vacuumed");
        }
        let of_empty = plan_of(lane, "", "subject-77,subject-100").await;
        check_ranges(&of_empty, state);

        let transaction = database.begin().await.expect("begun");
        execute(&transaction, UNCHECKED).await;
        execute(&transaction, "SET LOCAL statement_timeout = 0").await;
        execute(&transaction, &format!("{} ON CONFLICT DO NOTHING", insert_scope(Backend::Postgres, "s", "any", 1)))
            .await;
        let insert = format!(
            "INSERT INTO subscription (id, subject_type, subject_id, valid_from, version, created_at, updated_at)
            SELECT lpad(n::text, 32, '0')::uuid, 'user', 'subject-' || n, {AT}, 1, {AT}, {AT}
            FROM generate_series(1, {MANY}) AS n"
        );
        execute(&transaction, &insert).await;
        execute(&transaction, "INSERT INTO subscription_scope SELECT id, 's' FROM subscription").await;
        transaction.commit().await.expect("committed");

        // A path down each of two indexes of a few levels, and a row at the end of each: not one page more, or less than
        // ten, as there are more subjects.
        for ids in ["subject-77", "subject-1,subject-500,subject-50000,subject-99999,nobody"] {
            let plan = plan_of(lane, "ANALYZE, BUFFERS, ", ids).await;
            assert_eq!(plan["Total Cost"], of_empty["Total Cost"], "{state}: it is the plan that was made before");
            let subjects = ids.split(',').count();
            check_plan(&plan, subjects, state);
            let pages = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| plan[name].as_u64().expect("a number"));
            let most = 10 * subjects as u64;
            assert!(pages.iter().sum::<u64>() <= most, "{state}: {pages:?} for {subjects} subjects\n{plan:#}");
        }

        // A later version's column neither breaks the statement nor changes what it reads; nor do statistics.
        let column = if state == "looked at" { "later_column" } else { "later_still" };
        let add = format!("ALTER TABLE subscription ADD COLUMN {column} bigint");
        lane.execute(AssertSqlSafe(add)).await.expect("added");
        lane.execute("ANALYZE subscription, subscription_scope").await.expect("analyzed");
        let rows = lane.fetch_all("EXECUTE facts ('{user}', '{subject-77}')").await.expect("answered");
        assert_eq!(rows.len(), 1, "{state}");
        check_plan(&plan_of(lane, "ANALYZE, ", "subject-77,subject-100").await, 2, "filled");
        lane.execute("TRUNCATE subscription, subscription_scope").await.expect("emptied");
    }
}

async fn check_sqlite_plan(database: &Database) {
    let sql = format!("EXPLAIN QUERY PLAN {}", store::facts::SQLITE);
    let rows = query(database.readers(), &sql.replace("?1", r#"'[["user","subject-77"],["client","x"]]'"#)).await;
    let steps: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").expect("a step")).collect();
    let expected = [
        "SCAN wanted VIRTUAL TABLE INDEX 1:",
        "SEARCH subscription USING INDEX subscription_live_by_subject (subject_type=? AND subject_id=?)",
        "SEARCH named USING COVERING INDEX sqlite_autoindex_subscription_scope_1 (subscription_id=?)",
    ];
    assert_eq!(steps, expected);

    let sql = format!("EXPLAIN QUERY PLAN {}", store::subscription::SQLITE_BY_KEYS);
    let rows = query(database.readers(), &sql.replace("?1", r#"'[["crm","1"],["crm","2"]]'"#)).await;
    let steps: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").expect("a step")).collect();
    let expected = [
        "SCAN wanted VIRTUAL TABLE INDEX 1:",
        "SEARCH subscription USING INDEX subscription_by_external_id (source=? AND external_id=?)",
    ];
    assert_eq!(steps, expected);
}

async fn check_postgres_plans(database: &Database) {
    let transaction = database.begin().await.expect("begun");
    execute(&transaction, &format!("PREPARE facts (text[], text[]) AS {}", store::facts::POSTGRES)).await;
    let batch: Vec<_> = (0..512).map(|n| format!("subject-{}", 1 + n * 7)).collect();
    for mode in ["force_custom_plan", "force_generic_plan"] {
        execute(&transaction, &format!("SET LOCAL plan_cache_mode = {mode}")).await;
        for (kinds, ids) in [
            ("user,client".to_owned(), "subject-77,subject-100".to_owned()),
            (vec!["user"; batch.len()].join(","), batch.join(",")),
        ] {
            let sql = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE facts ('{{{kinds}}}', '{{{ids}}}')");
            let plan: Vec<Value> = column(&transaction, &sql).await;
            let subjects = ids.split(',').count();
            check_plan(&plan[0][0]["Plan"], subjects, mode);
        }
    }

    // None of the rows has a source: for the planner, one index that begins with it is as good as another.
    execute(&transaction, &format!("PREPARE by_keys (text) AS {}", store::subscription::POSTGRES_BY_KEYS)).await;
    for mode in ["force_custom_plan", "force_generic_plan"] {
        execute(&transaction, &format!("SET LOCAL plan_cache_mode = {mode}")).await;
        let sql = r#"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE by_keys ('[["crm", "1"], ["crm", "2"]]')"#;
        let plan: Vec<Value> = column(&transaction, sql).await;
        let mut scans = Vec::new();
        collect_scans(&plan[0][0]["Plan"], &mut scans);
        let [by_key] = scans[..] else { panic!("{mode}: not one scan of a table\n{:#}", plan[0]) };
        assert_eq!(by_key["Index Name"], "subscription_by_external_id", "{mode}: {by_key:#}");
        assert!(by_key.get("Filter").is_none(), "{mode}: nothing is read in vain: {by_key:#}");
        assert_eq!(by_key["Actual Loops"], json!(2), "{mode}: one look for each key");
    }
    transaction.rollback().await.expect("undone");
}

/// Holds a plan to: no scan of a table, one range of the subjects' index for each subject, the key of the scopes.
fn check_plan(plan: &Value, subjects: usize, mode: &str) {
    let by_subject = check_ranges(plan, mode);
    assert_eq!(by_subject["Actual Loops"], json!(subjects), "{mode}: one range for each subject");
    assert!(by_subject.get("Filter").is_none(), "{mode}: nothing is read in vain: {by_subject:#}");
}

/// Holds a plan to the ranges that it reads, of two indexes, and gives the scan of subscriptions.
fn check_ranges<'a>(plan: &'a Value, mode: &str) -> &'a Value {
    let mut scans = Vec::new();
    collect_scans(plan, &mut scans);
    let [by_subject, by_key] = scans[..] else { panic!("{mode}: not two scans of tables\n{plan:#}") };
    let index = |scan: &Value, name: &str, columns: &[&str]| {
        assert_eq!(scan["Index Name"], name, "{mode}: {scan:#}");
        let condition = scan["Index Cond"].as_str().expect("a range");
        assert!(columns.iter().all(|column| condition.contains(&format!("({column} = "))), "{mode}: {condition}");
    };
    index(by_subject, "subscription_live_by_subject", &["subject_type", "subject_id"]);
    index(by_key, "subscription_names_each_scope_once", &["subscription_id"]);
    by_subject
}

fn collect_scans<'a>(node: &'a Value, scans: &mut Vec<&'a Value>) {
    if node.get("Relation Name").is_some() || node.get("Index Name").is_some() {
        scans.push(node);
    }
    assert!(members(node).count() > 0);
    for inner in elements(&node["Plans"]) {
        collect_scans(inner, scans);
    }
}
