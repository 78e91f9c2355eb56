-- name: locked_tables()
-- The tables of this database that others have locked against readers, and the process of each.
-- returns: table str, pid int | None
-- not null: table
SELECT DISTINCT
    relation::regclass::text AS "table",
    pid
FROM pg_locks
WHERE locktype = 'relation'
    AND granted
    AND mode = 'AccessExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid IS DISTINCT FROM pg_backend_pid()
ORDER BY "table", pid;

-- name: settle(search_path)$
-- Let this transaction write values the same way on every server, and take as long as it needs. NULL keeps the search
-- path: it is a database's, and no part of its dump.
SELECT count(set_config(settings.name, settings.value, true))
FROM (
    VALUES
        ('DateStyle', 'ISO, YMD'),
        ('IntervalStyle', 'postgres'),
        ('TimeZone', 'UTC'),
        ('bytea_output', 'hex'),
        ('extra_float_digits', '1'),
        ('lc_monetary', 'C'),
        ('search_path', COALESCE(:search_path::text, current_setting('search_path'))),
        ('statement_timeout', '0'),
        ('idle_in_transaction_session_timeout', '0'),
        ('transaction_timeout', '0')
) AS settings (name, value)
WHERE current_setting(settings.name, true) IS NOT NULL;

-- name: export_snapshot()$
-- The name by which pg_dump reads what this transaction reads.
SELECT pg_export_snapshot();

-- name: describe()^
-- What a restore has to know of this database. bootstrap is the role that the server was made with, search_path the
-- schemas in which names were looked up, owners the roles that own what is in it, roles those and all others that
-- privileges and policies name. pg_shdepend passes over the bootstrap role and the predefined ones.
-- returns: Origin
-- not null: system, encoding, bootstrap, search_path, owners, roles, size
SELECT
    datname::text AS database,
    (SELECT system_identifier::text FROM pg_control_system()) AS system,
    current_setting('server_version_num')::integer AS server_version,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
    pg_encoding_to_char(encoding)::text AS encoding,
    datlocprovider::text AS provider,
    datcollate::text AS lc_collate,
    datctype::text AS lc_ctype,
    COALESCE(to_jsonb(pg_database) ->> 'datlocale', to_jsonb(pg_database) ->> 'daticulocale') AS locale,
    (SELECT rolname::text FROM pg_roles WHERE oid = 10) AS bootstrap,
    (
        SELECT COALESCE(string_agg(quote_ident(schema), ', ' ORDER BY position), '')
        FROM unnest(current_schemas(false)) WITH ORDINALITY AS schemas (schema, position)
    ) AS search_path,
    ARRAY(
        SELECT pg_get_userbyid(owned.owner)::text
        FROM (
            SELECT 'pg_class'::regclass AS class, oid AS object, relnamespace AS namespace, relowner AS owner
            FROM pg_class
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, pronamespace, proowner
            FROM pg_proc
            UNION ALL
            SELECT classid, objid, NULL, refobjid
            FROM pg_shdepend
            WHERE dbid = pg_database.oid
                AND deptype = 'o'
                AND classid <> 'pg_extension'::regclass
        ) AS owned
        LEFT JOIN pg_namespace ON pg_namespace.oid = owned.namespace
        WHERE COALESCE(pg_namespace.nspname !~ '^pg_' AND pg_namespace.nspname <> 'information_schema', true)
            AND NOT EXISTS (
                SELECT 1
                FROM pg_depend
                WHERE pg_depend.classid = owned.class AND pg_depend.objid = owned.object AND pg_depend.deptype = 'e'
            )
        GROUP BY owned.owner
        ORDER BY pg_get_userbyid(owned.owner) COLLATE "C"
    ) AS owners,
    ARRAY(
        SELECT DISTINCT pg_get_userbyid(refobjid)::text COLLATE "C"
        FROM pg_shdepend
        WHERE dbid = pg_database.oid
            AND refclassid = 'pg_authid'::regclass
        ORDER BY 1
    ) AS roles,
    pg_database_size(oid) AS size
FROM pg_database
WHERE datname = current_database();

-- name: identify()^
-- What the backups of this database are known by.
-- returns: system str, database str
-- not null: system, database
SELECT system_identifier::text AS system, current_database()::text AS database
FROM pg_control_system();

-- name: is_superuser()$
-- Whether the password verifiers of roles can be read.
SELECT rolsuper
FROM pg_roles
WHERE rolname = current_user;

-- name: tables()
-- The tables that a dump has, and whether searches see them; those of extensions are the extensions' business.
-- returns: schema str, name str, visible bool
-- not null: visible
SELECT
    pg_namespace.nspname::text AS schema,
    pg_class.relname::text AS name,
    pg_table_is_visible(pg_class.oid) AND to_regtype('vector') IS NOT NULL AS visible
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.relkind = 'r'
    AND pg_class.relpersistence <> 't'
    AND pg_namespace.nspname !~ '^pg_'
    AND pg_namespace.nspname <> 'information_schema'
    AND NOT EXISTS (
        SELECT 1
        FROM pg_depend
        WHERE pg_depend.classid = 'pg_class'::regclass
            AND pg_depend.objid = pg_class.oid
            AND pg_depend.deptype = 'e'
    )
ORDER BY pg_namespace.nspname COLLATE "C", pg_class.relname COLLATE "C";

-- name: is_empty()$
-- Whether nobody has made anything in this database: no relation, function, schema or large object of their own.
SELECT NOT EXISTS (
    SELECT 1
    FROM (
        SELECT 'pg_class'::regclass AS class, pg_class.oid AS object, pg_class.relnamespace AS namespace
        FROM pg_class
        UNION ALL
        SELECT 'pg_proc'::regclass, pg_proc.oid, pg_proc.pronamespace
        FROM pg_proc
        UNION ALL
        SELECT 'pg_namespace'::regclass, pg_namespace.oid, pg_namespace.oid
        FROM pg_namespace
        WHERE pg_namespace.nspname <> 'public'
    ) AS made
    JOIN pg_namespace ON pg_namespace.oid = made.namespace
    WHERE pg_namespace.nspname !~ '^pg_'
        AND pg_namespace.nspname <> 'information_schema'
        AND NOT EXISTS (
            SELECT 1
            FROM pg_depend
            WHERE pg_depend.classid = made.class AND pg_depend.objid = made.object AND pg_depend.deptype = 'e'
        )
) AND NOT EXISTS (SELECT 1 FROM pg_largeobject_metadata);

-- name: invalid_indexes()
-- Indexes that no query uses, because their build failed.
-- returns: str
SELECT indexrelid::regclass::text AS name
FROM pg_index
WHERE NOT indisvalid OR NOT indisready
ORDER BY indexrelid::regclass::text COLLATE "C";

-- name: database(name)^
-- A database by its name. tablespace is NULL for the one that new databases are in.
-- returns: oid int, has_grants bool, owner str, connection_limit int, is_template bool, allows_connections bool
-- returns: tablespace str | None, comment str | None
-- not null: has_grants, owner
SELECT
    pg_database.oid::bigint AS oid,
    datacl IS NOT NULL AS has_grants,
    pg_get_userbyid(datdba)::text AS owner,
    datconnlimit AS connection_limit,
    datistemplate AS is_template,
    datallowconn AS allows_connections,
    (
        SELECT spcname::text
        FROM pg_tablespace
        WHERE pg_tablespace.oid = pg_database.dattablespace
            AND dattablespace <> (SELECT dattablespace FROM pg_database WHERE datname = 'template0')
    ) AS tablespace,
    shobj_description(pg_database.oid, 'pg_database') AS comment
FROM pg_database
WHERE datname = :name;

-- name: clients(name)
-- The sessions in a database that keep it from being renamed, and whether this role may end them. Autovacuum has no role,
-- and gives way. What kind a session is, it shows to the members of its role alone.
-- returns: pid int, role str, application str, may_end bool
-- not null: pid, role, application, may_end
SELECT
    session.pid,
    session.usename::text AS role,
    COALESCE(session.application_name, '') AS application,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    OR (
        NOT (SELECT rolsuper FROM pg_roles WHERE pg_roles.oid = session.usesysid)
        AND (pg_has_role(session.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
    ) AS may_end
FROM pg_stat_activity AS session
WHERE session.datname = :name
    AND session.pid <> pg_backend_pid()
    AND session.usesysid IS NOT NULL
    AND session.backend_type IS DISTINCT FROM 'parallel worker'
ORDER BY session.pid;

-- name: prepared(name)
-- The prepared transactions of a database, which keep it from being renamed.
-- returns: str
-- not null: gid
SELECT gid
FROM pg_prepared_xacts
WHERE database = :name
ORDER BY gid COLLATE "C";

-- name: end_clients(name)
-- End the sessions in a database, and wait up to 5 s for each.
-- returns: pid int, ended bool
-- not null: pid, ended
SELECT pid, pg_terminate_backend(pid, 5000) AS ended
FROM pg_stat_activity
WHERE datname = :name
    AND pid <> pg_backend_pid()
    AND usesysid IS NOT NULL
    AND backend_type IS DISTINCT FROM 'parallel worker'
ORDER BY pid;

-- name: claim_restore(name)!
-- Keep the unfinished database of this name, kimera_restore_ and 32 hexadecimal digits, until the session ends.
SELECT pg_advisory_lock(('x' || right(:name, 16))::bit(64)::bigint);

-- name: release_restore(name)!
-- Let go of what claim_restore keeps.
SELECT pg_advisory_unlock(('x' || right(:name, 16))::bit(64)::bigint);

-- name: left_restores()
-- The unfinished databases of restores and drills whose session has ended.
-- returns: str
SELECT database.datname
FROM pg_database AS database
WHERE database.datname ~ '^kimera_restore_[0-9a-f]{32}$'
    AND NOT EXISTS (
        SELECT 1
        FROM pg_locks AS held
        WHERE held.locktype = 'advisory'
            AND (held.classid::bigint << 32) | held.objid::bigint
            = ('x' || right(database.datname, 16))::bit(64)::bigint
    )
ORDER BY database.datname;

-- name: missing_roles(names)
-- Those of a list of roles that this server does not have.
-- returns: str
-- not null: name
SELECT listed.name
FROM unnest(:names::text[]) AS listed (name)
WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = listed.name)
ORDER BY listed.name COLLATE "C";

-- name: database_size(name)$
-- The bytes that a database takes.
SELECT pg_database_size(:name::name);

-- name: database_settings(oid)
-- What ALTER DATABASE ... SET gave a database, for all roles or for one.
-- returns: Setting
-- not null: name, value
SELECT
    pg_roles.rolname::text AS role,
    split_part(setting, '=', 1) AS name,
    substr(setting, strpos(setting, '=') + 1) AS value
FROM pg_db_role_setting
CROSS JOIN unnest(pg_db_role_setting.setconfig) WITH ORDINALITY AS settings (setting, number)
LEFT JOIN pg_roles ON pg_roles.oid = pg_db_role_setting.setrole
WHERE pg_db_role_setting.setdatabase = :oid::bigint::oid
ORDER BY role, settings.number;

-- name: database_grants(oid)
-- Who may do what with a database, where that is not the default; grantee is NULL for everyone.
-- returns: Grant
-- not null: privilege, grantable
SELECT
    CASE WHEN granted.grantee <> 0 THEN pg_get_userbyid(granted.grantee)::text END AS grantee,
    granted.privilege_type AS privilege,
    granted.is_grantable AS grantable
FROM pg_database
CROSS JOIN aclexplode(pg_database.datacl) AS granted
WHERE pg_database.oid = :oid::bigint::oid
ORDER BY grantee, privilege;

-- name: offers_pgvector()$
-- Whether pgvector can be created here.
SELECT EXISTS (SELECT 1 FROM pg_available_extensions WHERE name = 'vector');

-- name: analyze()!
-- Let the planner know what was restored.
ANALYZE;

-- name: replication_role()^
-- The role of this connection, and whether it may make base backups.
-- returns: name str, may bool
-- not null: name, may
SELECT rolname::text AS name, rolsuper OR rolreplication AS may
FROM pg_roles
WHERE rolname = session_user;

-- name: archive_command()$
-- What the server archives its WAL with, empty where it does not.
-- returns: str
-- not null: archive_command
SELECT CASE WHEN current_setting('archive_mode') = 'off' THEN '' ELSE current_setting('archive_command') END
    AS archive_command;

-- name: configuration_files()
-- Where the server keeps its data and its configuration, as far as this role may see.
-- returns: name str, setting str
-- not null: name, setting
SELECT name, setting
FROM pg_settings
WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file') AND setting IS NOT NULL
ORDER BY name COLLATE "C";

-- name: read_file(path)$
-- The content of a file of the server's machine.
-- returns: bytes
-- not null: pg_read_binary_file
SELECT pg_read_binary_file(:path::text);

-- name: list_folder(path)
-- The names of the files in a folder of the server's machine.
-- returns: str
-- not null: name
SELECT name
FROM pg_ls_dir(:path::text) AS name
ORDER BY name COLLATE "C";

-- name: outside_tablespaces()
-- The tablespaces that lie outside the data folder.
-- returns: str
SELECT spcname::text AS name
FROM pg_tablespace
WHERE pg_tablespace_location(oid) <> ''
ORDER BY spcname COLLATE "C";

-- name: base_progress(application)^
-- How many bytes a base backup has sent, and of how many.
-- returns: sent int, total int | None
-- not null: sent
SELECT backup_streamed AS sent, backup_total AS total
FROM pg_stat_progress_basebackup
INNER JOIN pg_stat_activity USING (pid)
WHERE application_name = :application
ORDER BY pid
LIMIT 1;

-- name: has_records()$
-- Whether this database records which files its vector indexes are in.
-- returns: bool
SELECT EXISTS (
    SELECT
    FROM pg_attribute
    WHERE attrelid IN (to_regclass('kimera_vector_indexes'), to_regclass('kimera_recall_settings'))
        AND attname = 'filenode'
);

-- name: keep_builds()!
-- Let the records of the vector indexes count for the files that a restore made: the rows are the same.
UPDATE kimera_vector_indexes
SET filenode = pg_relation_filenode(to_regclass(quote_ident(index_name)))::bigint;

-- name: keep_settings()!
-- The same for the settings that were measured.
UPDATE kimera_recall_settings
SET filenode = pg_relation_filenode(to_regclass(quote_ident(index_name)))::bigint;
