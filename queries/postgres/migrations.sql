-- name: lock()!
-- Let one migration run at a time. The lock goes with the transaction. The number is "kimera" in ASCII.
SELECT pg_advisory_xact_lock(118100551103073);

-- name: create_table()!
-- The record of what was applied.
CREATE TABLE IF NOT EXISTS kimera_migrations (
    name TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- name: exists()$
-- Whether there is such a record at all.
-- returns: bool
SELECT to_regclass('kimera_migrations') IS NOT NULL;

-- name: applied()
-- Names and checksums of the files that were applied, in order.
-- returns: name str, checksum str
SELECT name, checksum
FROM kimera_migrations
ORDER BY name;

-- name: record_applied(name, checksum)!
-- Note that a file was applied.
INSERT INTO kimera_migrations (name, checksum)
VALUES (:name, :checksum);

-- name: places()
-- The schemas of this database that have the record of what was applied, or pgvector, and what this connection makes of
-- them: whether it may use them, finds what they have, and would make tables there.
-- only: postgres
-- returns: Place
-- not null: tables, schema, usable, found, first, path, role
SELECT
    held.tables,
    quote_ident(pg_namespace.nspname) AS schema,
    has_schema_privilege(pg_namespace.oid, 'USAGE') AS usable,
    COALESCE(held.visible, pg_namespace.nspname = ANY(current_schemas(true))) AS found,
    pg_namespace.nspname IS NOT DISTINCT FROM current_schema() AS first,
    current_setting('search_path') AS path,
    quote_ident(current_user) AS role
FROM (
    SELECT true AS tables, relnamespace AS namespace, pg_table_is_visible(oid) AS visible
    FROM pg_class
    WHERE relname = 'kimera_migrations'
        AND relkind IN ('r', 'p')
    UNION ALL
    SELECT false, extnamespace, NULL
    FROM pg_extension
    WHERE extname = 'vector'
) AS held
JOIN pg_namespace ON pg_namespace.oid = held.namespace
ORDER BY held.tables DESC, pg_namespace.nspname;
