//! The roles of `deploy/postgres/roles.sql`: each can do its work, and nothing else.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use chrono::TimeDelta;
use sea_orm::ConnectionTrait as _;
use serde_json::json;
use tollgate::{
    service::FeedSettings,
    store::{
        self, Database,
        inspection::inspect,
        schema::{Migrated, RIGHTS, is_current, migrate, missing_rights},
    },
};

use crate::support::{
    ACCESS_TOKEN, ADMIN_CREDENTIALS, App, ByHand, JSON, Options, TestDatabase, eventually, instant, only_on,
};

/// For what only has to come at all, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a role is told that lacks a right.
const DENIED: &str = "42501";

/// All rights that a table can give.
const EVERY_RIGHT: [&str; 7] = ["DELETE", "INSERT", "REFERENCES", "SELECT", "TRIGGER", "TRUNCATE", "UPDATE"];

/// The names of the three roles, of one test alone.
struct Roles {
    owner: String,
    service: String,
    reader: String,
}

impl Roles {
    fn new(database: &TestDatabase) -> Self {
        let [owner, service, reader] = ["owner", "service", "reader"].map(|word| database.role(word));
        Self { owner, service, reader }
    }

    /// Makes the roles, as whoever an address names.
    fn make(&self, url: &str) -> Output {
        let Self { owner, service, reader } = self;
        let names = [format!("owner={owner}"), format!("service={service}"), format!("reader={reader}")];
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postgres/roles.sql");
        let mut command = Command::new(psql());
        command.arg("-X").arg("-f").arg(file).args(names.iter().flat_map(|name| ["-v", name.as_str()])).arg(url);
        command.output().expect("psql, the client of PostgreSQL, in TEST_POSTGRES_BIN or PATH")
    }

    #[track_caller]
    fn apply(&self, url: &str) {
        let output = self.make(url);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Lets the roles log in: the file sets no passwords.
    async fn set_passwords(&self, hand: &ByHand) {
        for role in [&self.owner, &self.service, &self.reader] {
            hand.run(&format!("ALTER ROLE {role} PASSWORD '{role}'")).await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "tests/with-postgres tells where the tools are")]
fn psql() -> PathBuf {
    std::env::var_os("TEST_POSTGRES_BIN").map_or_else(|| "psql".into(), |folder| Path::new(&folder).join("psql"))
}

/// Makes the roles, the tables as their owner, and the rights to these.
async fn install(database: &TestDatabase) -> (Roles, ByHand) {
    let (roles, hand) = (Roles::new(database), ByHand::open(&database.url).await);
    roles.apply(&database.url);
    roles.set_passwords(&hand).await;
    let owner = Database::connect(&database.url_as(&roles.owner)).await.expect("a database");
    let migrated = migrate(&owner).await.expect("the owner makes the tables");
    assert!(matches!(migrated, Migrated::Steps(_)), "{migrated:?}");
    owner.close().await;
    roles.apply(&database.url);
    (roles, hand)
}

fn unwoken() -> Options {
    Options { feed: FeedSettings { wake_up: false }, ..Options::default() }
}

/// What of all that the service does goes wrong on a running replica.
async fn failures(app: &App) -> Vec<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    let (kept, dropped, user, token) =
        (format!("kept{count}"), format!("dropped{count}"), format!("user{count}"), format!("token{count}"));
    let mut failures = Vec::new();
    let mut check = |what: &str, holds: bool| {
        if !holds {
            failures.push(what.to_owned());
        }
    };
    check("is_current", matches!(is_current(&app.database).await, Ok(true)));
    for name in [&kept, &dropped] {
        check("create scope", app.call_with("POST", "/v1/scopes", &json!({"name": name})).await.status == 201);
    }
    check("list scopes", app.call("GET", "/v1/scopes").await.status == 200);
    let path = format!("/v1/scopes/{kept}");
    check("patch scope", app.call_with("PATCH", &path, &json!({"description": "d"})).await.status == 200);
    let path = format!("/v1/scopes/{dropped}");
    check("delete scope", app.call("DELETE", &path).await.status == 204);
    let second = json!({"name": dropped});
    check("create it again", app.call_with("POST", "/v1/scopes", &second).await.status == 201);

    let subscription = json!({
        "subject": {"type": "user", "id": user}, "scopes": [kept, dropped], "validUntil": null,
    });
    let created = app.call_with("POST", "/v1/subscriptions", &subscription).await;
    check("create subscription", created.status == 201);
    if created.status == 201 {
        let path = created.header("location").expect("a location");
        check("read subscription", app.call("GET", path).await.status == 200);
        let hook = json!({"user": {"id": user}, "client": {"id": "c"}, "scopes": [kept]});
        check("hook", app.ask(ACCESS_TOKEN, &hook).await.status == 200);
        let list = format!("/v1/subscriptions?scope={kept}&status=active");
        check("list subscriptions", app.call("GET", &list).await.status == 200);
        let entitlements = format!("/v1/entitlements?subjectType=user&subjectId={user}");
        check("entitlements", app.call("GET", &entitlements).await.status == 200);
        let question = json!({"request": hook});
        check("explain", app.call_with("POST", "/v1/explain", &question).await.status == 200);
        check("take a scope", app.call_with("PATCH", path, &json!({"scopes": [kept]})).await.status == 200);
        check("give a scope", app.call_with("PATCH", path, &json!({"scopes": [kept, dropped]})).await.status == 200);
        check("cancel subscription", app.call("POST", &format!("{path}/cancel")).await.status == 200);
        check("delete subscription", app.call("DELETE", path).await.status == 204);
        check("scope in use", app.call("DELETE", &format!("/v1/scopes/{kept}")).await.status == 409);
    }

    let new = json!({"name": token, "role": "reader", "expiresAt": null});
    let created = app.call_with("POST", "/v1/tokens", &new).await;
    check("create token", created.status == 201);
    if created.status == 201 {
        let bearer = format!("Bearer {}", created.expect(201)["token"].as_str().expect("a token"));
        let headers = [("authorization", bearer.as_str())];
        check("use token", app.send("GET", "/v1/scopes", &headers, "").await.status == 200);
        app.service.write_uses().await;
        let path = created.header("location").expect("a location");
        let read = app.call("GET", path).await;
        check("write its use", read.status == 200 && read.text().contains("lastUsedAt"));
        check("list tokens", app.call("GET", "/v1/tokens").await.status == 200);
        check("revoke token", app.call("POST", &format!("{path}/revoke")).await.status == 200);
    }
    let state = json!({"subject": {"type": "user", "id": "put"}, "scopes": [kept], "validUntil": null});
    let by_source = format!("/v1/subscriptions/by-external-id?source=s&externalId={kept}");
    check("put subscription", app.call_with("PUT", &by_source, &state).await.status == 201);
    let batch = json!({"items": [{"create": state}]}).to_string();
    let headers = [ADMIN_CREDENTIALS, JSON, ("idempotency-key", &kept)];
    for _ in 0..2 {
        let answer = app.send("POST", "/v1/subscriptions/batch", &headers, batch.clone()).await;
        check("a batch with a key", answer.status == 207 && answer.text().contains("created"));
    }
    // The answer is too old to be given again, and gives way.
    app.set_now(app.now() + TimeDelta::days(2));
    check("a key again", app.send("POST", "/v1/subscriptions/batch", &headers, batch).await.status == 207);
    check("follow the changes", app.call("GET", "/v1/changes").await.status == 200);
    check(
        "prune answers",
        store::idempotency::prune(app.database.writers(), app.now() - TimeDelta::days(9)).await.is_ok(),
    );
    check("prune", store::change::prune(app.database.writers(), instant("2000-01-01T00:00:00Z")).await.is_ok());
    failures
}

/// The rights of a role on a relation.
async fn rights(hand: &ByHand, role: &str, relation: &str) -> Vec<String> {
    let sql = format!(
        "SELECT privilege_type::text FROM pg_class, aclexplode(relacl) WHERE oid = 'public.{relation}'::regclass
        AND grantee IN (0, '{role}'::regrole) ORDER BY 1"
    );
    hand.column(&sql).await
}

/// Statements that must be refused for want of a right.
async fn expect_denied(hand: &ByHand, statements: &[&str]) {
    for sql in statements {
        assert_eq!(hand.refusal(sql).await.as_deref(), Some(DENIED), "{sql}");
    }
}

only_on! { Postgres:
    async fn the_service_works_as_a_role_that_owns_nothing(database) {
        let (roles, hand) = install(&database).await;
        let url = database.url_as(&roles.service);
        let opened = Database::connect(&url).await.expect("a database");
        assert!(is_current(&opened).await.expect("it may ask"));
        assert_eq!(migrate(&opened).await.expect("nothing is to be done"), Migrated::Nothing);
        opened.close().await;

        let app = database.app_at(&url, Options::default()).await;
        assert_eq!(failures(&app).await, [""; 0]);
        let mut replicas = Vec::new();
        for options in [unwoken(), Options::default()] {
            let replica = database.app_at(&url, options).await;
            let scope = format!("seen{}", hand.ask::<i64>("SELECT count(*) FROM catalogue_scope").await);
            assert!(replica.removed(Some("u"), "c", &[&scope]).await.is_empty());
            app.register(&scope).await;
            eventually!("the other replica sees it", PATIENCE, replica.removed(Some("u"), "c", &[&scope]).await == [scope.clone()]);
            replicas.push(replica);
        }
        let listeners = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND query LIKE 'LISTEN%'", roles.service);
        eventually!("they listen", PATIENCE, hand.ask::<i64>(&listeners).await == 2);

        let made: i64 = hand.ask("SELECT count(*) FROM change").await;
        assert!(made > 0);
        // Other databases' transactions, too, keep changes from being pruned.
        eventually!("changes are pruned", PATIENCE, {
            store::change::prune(app.database.writers(), instant("2030-01-01T00:00:00Z")).await.expect("pruned");
            hand.ask::<i64>("SELECT count(*) FROM change").await == 0
        });
    }

    async fn the_service_has_every_right_that_it_needs_and_no_other(database) {
        let (roles, hand) = install(&database).await;
        let tables: Vec<String> =
            hand.column("SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1").await;
        assert_eq!(tables, RIGHTS.map(|(table, _)| table), "what may the service do with a new table? tell roles.sql, too");
        for (table, expected) in RIGHTS {
            assert_eq!(rights(&hand, &roles.service, table).await, expected, "{table}");
            assert_eq!(rights(&hand, &roles.reader, table).await, ["SELECT"], "{table}");
            assert_eq!(rights(&hand, &roles.owner, table).await, EVERY_RIGHT, "{table}");
        }
        let service = Database::connect_to_read(&database.url_as(&roles.service)).await.expect("a database");
        assert_eq!(missing_rights(&service).await.expect("rights"), []);
        // Without any one of them something does not work.
        for (table, needed) in RIGHTS {
            for right in needed {
                let app = database.app_at(&database.url_as(&roles.service), unwoken()).await;
                hand.run(&format!("REVOKE {right} ON {table} FROM {}", roles.service)).await;
                assert_eq!(missing_rights(&service).await.expect("rights"), [(table, *right)]);
                assert_ne!(failures(&app).await, [""; 0], "{right} on {table} is not needed");
                hand.run(&format!("GRANT {right} ON {table} TO {}", roles.service)).await;
                app.service.close().await;
            }
        }
    }

    async fn the_service_can_neither_change_the_tables_nor_look_elsewhere(database) {
        let (roles, hand) = install(&database).await;
        hand.run("CREATE SCHEMA secret; CREATE TABLE secret.secret (word text)").await;
        let service = ByHand::open(&database.url_as(&roles.service)).await;
        expect_denied(&service, &[
            "CREATE TABLE public.mine (x integer)",
            "CREATE TEMPORARY TABLE mine (x integer)",
            "CREATE SCHEMA mine",
            "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "CREATE ROLE mine",
            "ALTER TABLE subscription ADD COLUMN mine integer",
            "ALTER TABLE subscription DISABLE TRIGGER ALL",
            "CREATE INDEX mine ON subscription (id)",
            "CREATE TRIGGER mine BEFORE DELETE ON change FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "DROP TABLE subscription CASCADE",
            "TRUNCATE change",
            "TRUNCATE subscription CASCADE",
            "DELETE FROM subscription",
            "DELETE FROM api_token",
            "UPDATE change SET actor = 'another'",
            "UPDATE subscription_scope SET scope = 'another'",
            "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m99991231_000001_later', 0)",
            "DELETE FROM seaql_migrations",
            "SELECT setval('change_seq_seq', 1)",
            "SELECT * FROM secret.secret",
            "SELECT rolpassword FROM pg_authid",
            "SELECT * FROM pg_shadow",
            "COPY subscription TO PROGRAM 'cat'",
            "SELECT pg_read_file('postgresql.conf')",
        ]).await;
        expect_denied(&service, &[&format!("SET ROLE {}", roles.owner), &format!("GRANT SELECT ON secret.secret TO {}", roles.service)]).await;
        for role in [&roles.service, &roles.reader] {
            let owned = format!("SELECT count(*) FROM pg_class WHERE relowner = '{role}'::regrole");
            assert_eq!(hand.ask::<i64>(&owned).await, 0);
        }
        let owners = "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        assert_eq!(hand.column::<String>(owners).await, std::slice::from_ref(&roles.owner));

        let stranger = database.role("stranger");
        hand.run(&format!("CREATE ROLE {stranger} LOGIN PASSWORD '{stranger}'")).await;
        assert!(Database::connect(&database.url_as(&stranger)).await.is_err(), "whom nothing was granted does not get in");
    }

    async fn the_reader_reads_all_and_writes_nothing(database) {
        let (roles, hand) = install(&database).await;
        hand.run("INSERT INTO catalogue_scope VALUES ('email', NULL, 'any', true, 1, now(), now())").await;
        let reader = ByHand::open(&database.url_as(&roles.reader)).await;
        assert_eq!(reader.ask::<String>("SELECT name FROM catalogue_scope").await, "email");
        // What a backup asks for.
        for (table, _) in RIGHTS {
            reader.run(&format!("BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE; SELECT * FROM {table}; COMMIT")).await;
        }
        assert_eq!(reader.ask::<i64>("SELECT last_value FROM change_seq_seq").await, 1);
        // And what a look at the data asks for.
        let looking = Database::connect_to_read(&database.url_as(&roles.reader)).await.expect("a database");
        let reading = looking.begin_reading().await.expect("a transaction");
        let mut findings = Vec::new();
        let inspected = inspect(&reading, &mut |finding| findings.push(finding)).await.expect("looked at");
        assert_eq!((findings, inspected.scopes), (Vec::new(), 1));
        reading.rollback().await.expect("ended");
        for (table, _) in RIGHTS {
            expect_denied(&reader, &[
                &format!("INSERT INTO {table} DEFAULT VALUES"),
                &format!("DELETE FROM {table}"),
                &format!("TRUNCATE {table} CASCADE"),
                &format!("DROP TABLE {table} CASCADE"),
            ]).await;
        }
        expect_denied(&reader, &[
            "UPDATE catalogue_scope SET enforced = false",
            "SELECT name FROM catalogue_scope FOR UPDATE",
            "CREATE TABLE public.mine (x integer)",
            "CREATE TEMPORARY TABLE mine (x integer)",
            "SELECT nextval('change_seq_seq')",
            "SELECT rolpassword FROM pg_authid",
        ]).await;
    }

    async fn a_table_of_a_later_migration_can_be_used_but_not_deleted_from(database) {
        let (roles, hand) = install(&database).await;
        let owner = ByHand::open(&database.url_as(&roles.owner)).await;
        owner.run("CREATE TABLE later (id bigint GENERATED ALWAYS AS IDENTITY, x integer)").await;
        assert_eq!(rights(&hand, &roles.service, "later").await, ["INSERT", "SELECT", "UPDATE"]);
        assert_eq!(rights(&hand, &roles.reader, "later").await, ["SELECT"]);
        assert_eq!(rights(&hand, &roles.service, "later_id_seq").await, [""; 0]);
        assert_eq!(rights(&hand, &roles.reader, "later_id_seq").await, ["SELECT"]);
        let service = ByHand::open(&database.url_as(&roles.service)).await;
        service.run("INSERT INTO later (x) VALUES (1)").await;
        expect_denied(&service, &["DELETE FROM later", "TRUNCATE later"]).await;
    }

    async fn the_rights_are_the_same_however_often_they_are_given(database) {
        let (roles, hand) = install(&database).await;
        let all = "SELECT concat_ws(' ', relname, pg_get_userbyid(relowner), relacl::text) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT concat_ws(' ', nspname, nspacl::text) FROM pg_namespace WHERE nspname = 'public'
            UNION ALL SELECT concat_ws(' ', datname, datacl::text) FROM pg_database WHERE datname = current_database()
            UNION ALL SELECT concat_ws(' ', defaclobjtype, defaclacl::text) FROM pg_default_acl ORDER BY 1";
        let before: Vec<String> = hand.column(all).await;
        // What was granted by hand goes, but for tables that the file does not know.
        hand.run(&format!("GRANT ALL ON subscription, change TO {}, {}; GRANT UPDATE (actor) ON change TO PUBLIC", roles.service, roles.reader)).await;
        hand.run(&format!("GRANT ALL ON SEQUENCE change_seq_seq TO {}; GRANT CREATE ON SCHEMA public TO PUBLIC", roles.service)).await;
        for _ in 0..2 {
            roles.apply(&database.url);
            assert_eq!(hand.column::<String>(all).await, before);
        }
    }

    async fn a_database_that_one_role_made_is_taken_over(database) {
        let app = database.app().await;
        app.register("email").await;
        let (roles, hand) = (Roles::new(&database), ByHand::open(&database.url).await);
        roles.apply(&database.url);
        roles.set_passwords(&hand).await;
        let owner = Database::connect(&database.url_as(&roles.owner)).await.expect("a database");
        assert_eq!(migrate(&owner).await.expect("it may"), Migrated::Nothing);
        owner.readers().execute_unprepared("ALTER TABLE subscription ADD COLUMN later integer").await.expect("its own");
        owner.close().await;
        let app = database.app_at(&database.url_as(&roles.service), Options::default()).await;
        assert_eq!(failures(&app).await, [""; 0]);
    }

    async fn a_role_that_is_more_than_it_should_be_is_refused(database) {
        let hand = ByHand::open(&database.url).await;
        for (word, attribute) in [("super", "SUPERUSER"), ("maker", "CREATEROLE"), ("member", "IN ROLE pg_monitor")] {
            let mut roles = Roles::new(&database);
            roles.service = database.role(word);
            hand.run(&format!("CREATE ROLE {} LOGIN {attribute}", roles.service)).await;
            assert!(!roles.make(&database.url).status.success(), "{attribute}");
            let made = format!("SELECT count(*) FROM pg_roles WHERE rolname = '{}'", roles.owner);
            assert_eq!(hand.ask::<i64>(&made).await, 0, "all or nothing");
        }
        let roles = Roles::new(&database);
        hand.run(&format!("CREATE ROLE {} LOGIN; ALTER SCHEMA public OWNER TO {}", roles.owner, roles.owner)).await;
        hand.run(&format!("CREATE ROLE {} LOGIN; CREATE TABLE mine (); ALTER TABLE mine OWNER TO {}", roles.service, roles.service)).await;
        let refused = roles.make(&database.url);
        assert!(!refused.status.success());
        let message = String::from_utf8(refused.stderr).expect("UTF-8");
        assert!(message.contains("owns: table mine"), "{message}");
    }

    async fn an_administrator_who_is_no_superuser_can_make_the_roles(database) {
        let hand = ByHand::open(&database.url).await;
        if hand.ask::<i32>("SELECT current_setting('server_version_num')::integer").await < 150_000 {
            // There the schema belongs to the superuser.
            return;
        }
        let (roles, admin) = (Roles::new(&database), database.role("admin"));
        hand.run(&format!("CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD '{admin}'")).await;
        let name: String = hand.ask("SELECT current_database()::text").await;
        hand.run(&format!("ALTER DATABASE {name} OWNER TO {admin}")).await;
        let url = database.url_as(&admin);
        roles.apply(&url);
        roles.set_passwords(&hand).await;
        let owner = Database::connect(&database.url_as(&roles.owner)).await.expect("a database");
        migrate(&owner).await.expect("the owner makes the tables");
        owner.close().await;
        for _ in 0..2 {
            roles.apply(&url);
        }
        for (table, expected) in RIGHTS {
            assert_eq!(rights(&hand, &roles.service, table).await, expected, "{table}");
        }
        expect_denied(&ByHand::open(&url).await, &["DROP TABLE public.subscription"]).await;
        let app = database.app_at(&database.url_as(&roles.service), Options::default()).await;
        assert_eq!(failures(&app).await, [""; 0]);
    }

    async fn a_role_that_may_not_read_the_list_of_steps_is_not_told_that_none_was_taken(database) {
        let (roles, hand) = install(&database).await;
        hand.run(&format!("REVOKE SELECT ON seaql_migrations FROM {}", roles.service)).await;
        let opened = Database::connect(&database.url_as(&roles.service)).await.expect("a database");
        let error = is_current(&opened).await.expect_err("refused");
        assert!(format!("{error:?}").contains("permission denied for table seaql_migrations"), "{error:?}");
        opened.close().await;
    }
}
