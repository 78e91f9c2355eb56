-- The roles of Kimera's database, each with no more than it needs. It is no migration: roles belong to the whole server,
-- and making them takes a superuser. Apply it after `kimera-sql init`, as often as you like. Either way the settings
-- kimera.tables and kimera.bookkeeping tell it the tables:
--
--     kimera-sql roles          or          kimera-sql roles --print | psql --single-transaction -v ON_ERROR_STOP=1
--
-- It works on the tables that its connection finds by the search_path, in whichever schema they are. Because roles belong
-- to the whole server, a second database needs groups of its own: `kimera-sql roles --prefix NAME` calls them NAME_owner
-- and so on.
--
-- They are groups that nobody logs in as, so there is no password here. Whoever logs in gets a role of its own, and its
-- password by psql's \password, which sends only the verifier:
--
--     CREATE ROLE kimera_service LOGIN IN ROLE kimera_app;
--     CREATE ROLE kimera_deploy LOGIN IN ROLE kimera_owner;
--     ALTER ROLE kimera_deploy SET role = kimera_owner;        -- so that what it makes belongs to the group
--     CREATE ROLE kimera_nightly LOGIN REPLICATION IN ROLE kimera_backup;
--
-- Members inherit privileges, never attributes: LOGIN, REPLICATION and SUPERUSER count only for the very role that has
-- them. So pg_basebackup and pg_receivewal need REPLICATION on the login itself, and none of the groups has it.
--
--     kimera_owner     owns the tables: migrations, vector indexes, their tuning, upkeep
--     kimera_app       reads and writes rows; cannot alter, truncate or drop anything, nor make anything. It adds to the
--                      searches that are sampled, and does not read them
--     kimera_readonly  reads and searches
--     kimera_monitor   pg_monitor, and what is recorded of the vector indexes; no row of the five tables
--     kimera_backup    pg_read_all_data, which pg_dump needs
--
-- The app role does not tune: what recall.tune stores decides the recall of everybody's searches.

DO $$
DECLARE
    name TEXT;
    unsafe TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['kimera_owner', 'kimera_app', 'kimera_readonly', 'kimera_monitor', 'kimera_backup'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        SELECT rolname
        INTO unsafe
        FROM pg_roles
        WHERE rolname = name
            AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls);
        IF FOUND THEN
            RAISE 'role % may do more than a group should: take SUPERUSER, CREATEROLE, CREATEDB, REPLICATION and BYPASSRLS from it',
                unsafe;
        END IF;
    END LOOP;
END
$$;

-- The members of another database's groups are not let in here. A database that has let them in may be brought up to date:
-- it was copied or restored from the other.
DO $$
DECLARE
    others TEXT;
BEGIN
    WITH let_in AS (
        SELECT DISTINCT datname
        FROM pg_database
        CROSS JOIN aclexplode(datacl) AS granted
        JOIN pg_roles ON pg_roles.oid = granted.grantee
        WHERE granted.privilege_type = 'CONNECT'
            AND rolname IN ('kimera_owner', 'kimera_app', 'kimera_readonly', 'kimera_monitor', 'kimera_backup')
    )
    SELECT string_agg(datname, ', ' ORDER BY datname)
    INTO others
    FROM let_in
    WHERE NOT EXISTS (SELECT FROM let_in WHERE datname = current_database());
    IF others IS NOT NULL THEN
        RAISE 'the groups kimera_owner, kimera_app ... belong to the database %, and their members would be let into this one; '
            'give it groups of its own: kimera-sql roles --prefix NAME', others;
    END IF;
END
$$;

-- Nobody but the groups gets in or makes anything. The database's owner and superusers always can.
DO $$
DECLARE
    name TEXT := current_database();
BEGIN
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', name);
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO kimera_owner, kimera_app, kimera_readonly, kimera_monitor, kimera_backup', name
    );
    EXECUTE format('GRANT CREATE, TEMPORARY ON DATABASE %I TO kimera_owner', name);
END
$$;

-- Nobody but the owner makes anything where names are looked up. Tables of later migrations get the rights of these.
DO $$
DECLARE
    one RECORD;
BEGIN
    FOR one IN
        SELECT
            pg_namespace.nspname AS name,
            pg_namespace.oid IN (
                SELECT relnamespace
                FROM pg_class
                JOIN unnest(current_setting('kimera.tables')::text[]) AS listed (name) ON oid = to_regclass(listed.name)
            ) AS tables,
            pg_namespace.oid IN (SELECT extnamespace FROM pg_extension WHERE extname = 'vector') AS pgvector,
            pg_namespace.nspname = ANY (current_schemas(false)) AS searched
        FROM pg_namespace
        ORDER BY pg_namespace.nspname
    LOOP
        IF one.searched OR one.pgvector THEN
            EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', one.name);
        END IF;
        IF one.tables OR one.pgvector THEN
            EXECUTE format(
                'GRANT USAGE ON SCHEMA %I TO kimera_owner, kimera_app, kimera_readonly, kimera_monitor, kimera_backup',
                one.name
            );
        END IF;
        IF one.tables THEN
            EXECUTE format('GRANT CREATE ON SCHEMA %I TO kimera_owner', one.name);
            EXECUTE format(
                'ALTER DEFAULT PRIVILEGES FOR ROLE kimera_owner IN SCHEMA %I '
                'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO kimera_app',
                one.name
            );
            EXECUTE format(
                'ALTER DEFAULT PRIVILEGES FOR ROLE kimera_owner IN SCHEMA %I GRANT USAGE ON SEQUENCES TO kimera_app',
                one.name
            );
            EXECUTE format(
                'ALTER DEFAULT PRIVILEGES FOR ROLE kimera_owner IN SCHEMA %I GRANT SELECT ON TABLES TO kimera_readonly',
                one.name
            );
        END IF;
    END LOOP;
END
$$;

-- Whoever owned a table until now stays able to do what it could, as a member of the new owner.
DO $$
DECLARE
    one RECORD;
BEGIN
    FOR one IN
        SELECT table_class.oid::regclass AS name, owner.rolname AS owner, owner.rolsuper AS superuser
        FROM unnest(
            current_setting('kimera.tables')::text[] || current_setting('kimera.bookkeeping')::text[]
        ) AS listed (name)
        JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
        JOIN pg_roles AS owner ON owner.oid = table_class.relowner
        WHERE owner.rolname <> 'kimera_owner'
        ORDER BY table_class.relname
    LOOP
        IF NOT one.superuser THEN
            EXECUTE format('GRANT kimera_owner TO %I', one.owner);
        END IF;
        EXECUTE format('ALTER TABLE %s OWNER TO kimera_owner', one.name);
    END LOOP;
END
$$;

DO $$
DECLARE
    name TEXT;
    sequence TEXT;
BEGIN
    FOREACH name IN ARRAY current_setting('kimera.tables')::text[] || current_setting('kimera.bookkeeping')::text[] LOOP
        -- What an earlier version of this file, or somebody, gave beyond these is taken back.
        EXECUTE format(
            'REVOKE ALL ON %I FROM PUBLIC, kimera_app, kimera_readonly, kimera_monitor, kimera_backup', name
        );
    END LOOP;
    FOREACH name IN ARRAY current_setting('kimera.tables')::text[] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO kimera_app', name);
        EXECUTE format('GRANT SELECT ON %I TO kimera_readonly', name);
        FOR sequence IN
            SELECT objid::regclass::text
            FROM pg_depend
            WHERE refobjid = to_regclass(name) AND deptype IN ('a', 'i') AND classid = 'pg_class'::regclass
                AND EXISTS (SELECT 1 FROM pg_class WHERE oid = objid AND relkind = 'S')
        LOOP
            EXECUTE format(
                'REVOKE ALL ON SEQUENCE %s FROM PUBLIC, kimera_app, kimera_readonly, kimera_monitor, kimera_backup',
                sequence
            );
            EXECUTE format('GRANT USAGE ON SEQUENCE %s TO kimera_app', sequence);
        END LOOP;
    END LOOP;
    FOREACH name IN ARRAY array_remove(current_setting('kimera.bookkeeping')::text[], 'kimera_sampled_searches') LOOP
        -- Searches choose their index and its settings by these.
        EXECUTE format('GRANT SELECT ON %I TO kimera_app, kimera_readonly, kimera_monitor', name);
    END LOOP;
    -- What others have searched for is read by the owner alone, who tunes with it; the rest see how much there is.
    GRANT SELECT (table_name, place, k, sampled_at) ON kimera_sampled_searches
        TO kimera_app, kimera_readonly, kimera_monitor;
    GRANT INSERT (table_name, place, query, k), UPDATE (query, k, sampled_at) ON kimera_sampled_searches TO kimera_app;
    -- Whoever is to store a text, once, writes there: see embeddings.lock_text.
    GRANT INSERT, UPDATE ON kimera_text_locks TO kimera_app;
END
$$;

GRANT pg_monitor TO kimera_monitor;
GRANT pg_read_all_data TO kimera_backup;
