-- name: rights(tables)
-- Of each of a list of tables, whether it exists, and whether this role owns it and may vacuum it.
-- returns: Rights
-- not null: table, present, owned, may_vacuum
SELECT
    listed.name AS "table",
    table_class.oid IS NOT NULL AS present,
    COALESCE(pg_has_role(table_class.relowner, 'USAGE'), false) AS owned,
    COALESCE(
        pg_has_role(table_class.relowner, 'USAGE')
        OR pg_has_role(database.datdba, 'USAGE')
        OR CASE
            WHEN current_setting('server_version_num')::integer >= 170000
                THEN has_table_privilege(table_class.oid, 'MAINTAIN')
            ELSE false
        END,
        false
    ) AS may_vacuum
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
JOIN pg_database AS database ON database.datname = current_database()
LEFT JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
ORDER BY listed.place;

-- name: state(table)^
-- A table after its VACUUM: rows by the planner's estimate, dead rows that had to be left, bytes with its indexes.
-- returns: Vacuumed
-- not null: dead, size
SELECT
    table_class.relname::text AS "table",
    GREATEST(table_class.reltuples, 0)::bigint AS rows,
    pg_stat_get_dead_tuples(table_class.oid) AS dead,
    pg_total_relation_size(table_class.oid) AS size
FROM pg_class AS table_class
WHERE table_class.oid = to_regclass(:table);

-- name: vacuuming(tables)
-- The VACUUMs that go on now on our tables: phase and how many of the table's pages are done.
-- returns: Building
-- not null: table, phase, done, total
SELECT
    table_class.relname::text AS "table",
    vacuum.phase,
    CASE vacuum.phase WHEN 'vacuuming heap' THEN vacuum.heap_blks_vacuumed ELSE vacuum.heap_blks_scanned END AS done,
    vacuum.heap_blks_total AS total,
    NULL::integer AS waits_for
FROM pg_stat_progress_vacuum AS vacuum
JOIN pg_class AS table_class ON table_class.oid = vacuum.relid
WHERE vacuum.datname = current_database()
    AND table_class.relname = ANY(:tables)
ORDER BY table_class.relname;

-- name: holders(table)
-- The transactions of others for whose end a rebuild of a table's indexes must wait: those with a lock on the table, and
-- those with a snapshot of this database, if this role may see that. VACUUMs and other builds are left out: a rebuild
-- waits for the table's before it begins anything, and for no snapshot of a VACUUM.
-- returns: Holder
-- not null: transaction, locks
SELECT
    held.virtualtransaction AS transaction,
    held.pid,
    bool_or(held.locktype = 'relation') AS locks
FROM pg_locks AS held
LEFT JOIN pg_stat_activity AS session ON session.pid = held.pid
WHERE held.granted
    AND held.pid IS DISTINCT FROM pg_backend_pid()
    AND (
        (
            held.locktype = 'relation'
            AND held.mode <> 'ShareUpdateExclusiveLock'
            AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND held.relation = to_regclass(:table)
        )
        OR (
            held.locktype = 'virtualxid'
            AND session.datname = current_database()
            AND session.backend_xmin IS NOT NULL
            AND session.backend_type <> 'autovacuum worker'
            AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_vacuum AS vacuum WHERE vacuum.pid = held.pid)
            AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_create_index AS building WHERE building.pid = held.pid)
        )
    )
GROUP BY held.virtualtransaction, held.pid
ORDER BY held.virtualtransaction;

-- name: lockers(tables)
-- The processes of others that have a lock on one of these tables that keeps upkeep from it, with the table.
-- returns: table str, pid int | None
-- not null: table
SELECT DISTINCT
    listed.name AS "table",
    held.pid
FROM unnest(:tables::text[]) AS listed (name)
JOIN pg_locks AS held ON held.relation = to_regclass(listed.name)
WHERE held.locktype = 'relation'
    AND held.granted
    AND held.mode IN (
        'ShareUpdateExclusiveLock',
        'ShareLock',
        'ShareRowExclusiveLock',
        'ExclusiveLock',
        'AccessExclusiveLock'
    )
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND held.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY listed.name, held.pid;

-- name: pause(seconds)$
-- Wait, in the server, where a cancel request ends it.
-- returns: str
-- not null: pg_sleep
SELECT pg_sleep(:seconds)::text;
