-- The roles of a database that is Tollgate's alone: an owner that migrates, a service that serves, a reader for reports
-- and backups.
--
--     psql -X -f deploy/postgres/roles.sql 'postgres://postgres@db.example.com/tollgate'
--     psql -X -f deploy/postgres/roles.sql -v service=tollgate 'postgres://...'
--
-- Run it once before the first `tollgate migrate`, and after each one; any number of times does no harm. It is one
-- transaction. Whoever runs it is a superuser, or (from PostgreSQL 15 on) owns the database and has CREATEROLE.
-- `docs/database-roles.md` tells what each role may do, and how to give it a password: none is set here.
\set ON_ERROR_STOP on
\if :{?owner} \else \set owner tollgate_owner \endif
\if :{?service} \else \set service tollgate_service \endif
\if :{?reader} \else \set reader tollgate_reader \endif

BEGIN;
-- Tables change their owner on the first run at most; then requests wait no longer than this.
SET LOCAL lock_timeout = '5s';
-- psql puts no variables into the body of a DO.
SET LOCAL tollgate.owner = :'owner';
SET LOCAL tollgate.service = :'service';
SET LOCAL tollgate.reader = :'reader';

-- What a role that is created gets, it has from the defaults: no attribute but LOGIN.
SELECT format('CREATE ROLE %I LOGIN', name) FROM (VALUES (:'owner'), (:'service'), (:'reader')) AS role (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- To act for the owner, whoever is no superuser must be a member of it, until the end of this file.
SELECT NOT pg_has_role(current_user, :'owner', 'USAGE') AS is_stranger \gset
\if :is_stranger
GRANT :"owner" TO CURRENT_USER;
\endif

-- The database and the schema: nobody has a right by being there.
SELECT current_database() AS database \gset
REVOKE ALL ON DATABASE :"database" FROM PUBLIC, :"owner", :"service", :"reader";
GRANT CONNECT ON DATABASE :"database" TO :"owner", :"service", :"reader";
SELECT format('ALTER SCHEMA public OWNER TO %I', :'owner') FROM pg_namespace
WHERE nspname = 'public' AND pg_get_userbyid(nspowner) <> :'owner' \gexec
REVOKE ALL ON SCHEMA public FROM PUBLIC, :"service", :"reader";
GRANT USAGE ON SCHEMA public TO :"service", :"reader";

-- Tables of later migrations, until they stand below: the service may read, add and change, so that an upgrade does not
-- stand still when this file is forgotten, and never delete; the reader reads, so that a backup is always whole.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT, INSERT, UPDATE ON TABLES TO :"service";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT ON TABLES TO :"reader";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT ON SEQUENCES TO :"reader";

-- The tables that there are: exactly what the service's queries need. No sequence: those of identity columns ask for no
-- right. A subscription that is deleted stays as a row.
DO $$
DECLARE
    owner text := current_setting('tollgate.owner');
    service text := current_setting('tollgate.service');
    item record;
BEGIN
    FOR item IN
        SELECT pg_class.oid::regclass AS name, pg_get_userbyid(relowner) AS owner, rights FROM (VALUES
            ('api_token', 'SELECT, INSERT, UPDATE'),
            ('catalogue_scope', 'SELECT, INSERT, UPDATE, DELETE'),
            ('change', 'SELECT, INSERT, DELETE'),
            ('idempotency_key', 'SELECT, INSERT, UPDATE, DELETE'),
            ('seaql_migrations', 'SELECT'),
            ('subscription', 'SELECT, INSERT, UPDATE'),
            ('subscription_scope', 'SELECT, INSERT, DELETE')
        ) AS needed (table_name, rights)
        JOIN pg_class ON relname = table_name AND relnamespace = 'public'::regnamespace
    LOOP
        -- As when one role did everything until now.
        IF item.owner <> owner THEN
            EXECUTE format('ALTER TABLE %s OWNER TO %I', item.name, owner);
        END IF;
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, %I', item.name, service);
        EXECUTE format('GRANT %s ON %s TO %I', item.rights, item.name, service);
    END LOOP;
END
$$;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, :"service", :"reader";
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM :"reader";
GRANT SELECT ON ALL TABLES IN SCHEMA public TO :"reader";
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO :"reader";

-- Roles that were there before may have what no grant above takes away.
DO $$
DECLARE
    owner text := current_setting('tollgate.owner');
    item record;
    owned text;
BEGIN
    FOR item IN
        SELECT pg_roles.* FROM pg_roles
        WHERE rolname IN (current_setting('tollgate.service'), current_setting('tollgate.reader'))
    LOOP
        IF item.rolsuper OR item.rolcreaterole OR item.rolcreatedb OR item.rolreplication OR item.rolbypassrls THEN
            RAISE EXCEPTION 'role % has an attribute beyond LOGIN', item.rolname
                USING HINT = 'ALTER ROLE ... NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS';
        ELSIF EXISTS (SELECT FROM pg_auth_members WHERE member = item.oid) THEN
            RAISE EXCEPTION 'role % is a member of another role', item.rolname
                USING HINT = 'REVOKE that membership, or name another role';
        END IF;
        SELECT string_agg(pg_describe_object(classid, objid, objsubid), ', ') INTO owned FROM pg_shdepend
        WHERE refclassid = 'pg_authid'::regclass AND refobjid = item.oid AND deptype = 'o'
            AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()));
        IF owned IS NOT NULL THEN
            RAISE EXCEPTION 'role % owns: %', item.rolname, owned
                USING HINT = format('ALTER ... OWNER TO, for example, %I', owner);
        END IF;
    END LOOP;
END
$$;

\if :is_stranger
REVOKE :"owner" FROM CURRENT_USER;
\endif
COMMIT;
