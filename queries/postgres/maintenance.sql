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
    vacuum.heap_blks_total AS total
FROM pg_stat_progress_vacuum AS vacuum
JOIN pg_class AS table_class ON table_class.oid = vacuum.relid
WHERE vacuum.datname = current_database()
    AND table_class.relname = ANY(:tables)
ORDER BY table_class.relname;

-- name: holders(table)
-- The transactions of others that have a lock on a table, which a rebuild of its indexes must wait for to end. Those that
-- a VACUUM or another build has are left out: the rebuild waits for these before it begins anything.
-- returns: transaction str, pid int | None
-- not null: transaction
SELECT DISTINCT
    virtualtransaction AS transaction,
    pid
FROM pg_locks
WHERE locktype = 'relation'
    AND granted
    AND mode <> 'ShareUpdateExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND relation = to_regclass(:table)
    AND pid IS DISTINCT FROM pg_backend_pid()
ORDER BY virtualtransaction;

-- name: pause(seconds)$
-- Wait, in the server, where a cancel request ends it.
-- returns: str
-- not null: pg_sleep
SELECT pg_sleep(:seconds)::text;

-- name: set_lock_timeout(value)^
-- How long a statement of this session waits for a lock at most, and what it was before.
-- returns: before str, now str
-- not null: before, now
SELECT
    current_setting('lock_timeout') AS before,
    set_config('lock_timeout', :value, false) AS now;
