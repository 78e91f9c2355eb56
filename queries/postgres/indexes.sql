-- name: pgvector_version()$
-- The version of the extension.
-- returns: str
SELECT extversion
FROM pg_extension
WHERE extname = 'vector';

-- name: resources()^
-- What a build may use: the bytes that are allowed now, the server's idea of its machine's, and half the workers.
-- returns: allowed int, machine int, workers int
SELECT
    pg_size_bytes(current_setting('maintenance_work_mem')) AS allowed,
    pg_size_bytes(current_setting('effective_cache_size')) AS machine,
    GREATEST(
        current_setting('max_parallel_maintenance_workers')::integer,
        current_setting('max_parallel_workers')::integer / 2
    ) AS workers;

-- name: settings()^
-- What a build sets, as it is before.
-- returns: maintenance_work_mem str, max_parallel_maintenance_workers str
SELECT
    current_setting('maintenance_work_mem') AS maintenance_work_mem,
    current_setting('max_parallel_maintenance_workers') AS max_parallel_maintenance_workers;

-- name: record_build(index_name, rows)!
-- Keep what an index was built from, in place of an earlier record of its name.
INSERT INTO kimera_vector_indexes (index_name, rows_at_build, size_at_build, filenode, dead_at_build)
SELECT
    :index_name,
    :rows,
    pg_relation_size(indexrelid),
    pg_relation_filenode(indexrelid)::bigint,
    pg_stat_get_dead_tuples(indrelid)
        + pg_stat_get_xact_tuples_updated(indrelid)
        + pg_stat_get_xact_tuples_deleted(indrelid)
FROM pg_index
WHERE indexrelid = to_regclass(quote_ident(:index_name))
ON CONFLICT (index_name) DO UPDATE
SET
    rows_at_build = EXCLUDED.rows_at_build,
    size_at_build = EXCLUDED.size_at_build,
    filenode = EXCLUDED.filenode,
    dead_at_build = EXCLUDED.dead_at_build,
    built_at = clock_timestamp();

-- name: forget(index_name)!
-- Drop the record of an index.
DELETE FROM kimera_vector_indexes
WHERE index_name = :index_name;

-- name: forget_settings(index_name)!
-- Drop the settings that were tuned for an index.
DELETE FROM kimera_recall_settings
WHERE index_name = :index_name;

-- name: invalid(tables)
-- Vector indexes on these tables that a build or rebuild left behind unfinished, and that nothing is building now.
-- returns: str
SELECT index_class.relname
FROM pg_index AS index
JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
JOIN pg_am AS am ON am.oid = index_class.relam
WHERE index.indrelid IN (SELECT to_regclass(name) FROM unnest(:tables::text[]) AS listed (name))
    AND am.amname IN ('hnsw', 'ivfflat')
    AND NOT index.indisvalid
    AND NOT EXISTS (
        SELECT 1
        FROM pg_stat_progress_create_index AS building
        LEFT JOIN pg_locks AS held ON held.pid = building.pid AND held.relation = index.indrelid
        -- Of another role's build this role may only see that there is one.
        WHERE building.index_relid = index.indexrelid OR (building.relid IS NULL AND held.pid IS NOT NULL)
    )
ORDER BY index_class.relname;

-- name: building(tables)
-- The builds of indexes that go on now on these tables: phase, how much of it is done, and the process it waits for.
-- returns: Building
-- not null: phase, done, total
SELECT
    table_class.relname AS "table",
    building.phase,
    GREATEST(building.tuples_done, building.blocks_done) AS done,
    GREATEST(building.tuples_total, building.blocks_total) AS total,
    -- The server leaves the last one standing in the phases that follow.
    CASE WHEN building.phase LIKE 'waiting for %%' THEN NULLIF(building.current_locker_pid, 0) END AS waits_for
FROM pg_stat_progress_create_index AS building
JOIN pg_class AS table_class ON table_class.oid = building.relid
WHERE building.datname = current_database()
    AND building.relid IN (SELECT to_regclass(name) FROM unnest(:tables::text[]) AS listed (name))
ORDER BY table_class.relname;
