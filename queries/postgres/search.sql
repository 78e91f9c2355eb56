-- name: vector_indexes(table)
-- The vector indexes of a table, with what they are made of and what is recorded of them as they are now.
-- live, dead: rows that can be found and rows that the indexes still hold, by the statistics and what this session has
-- not reported to them yet. They begin anew after a crash and are missing on a standby: then reltuples has to do. They
-- count rows twice that were inserted just before ANALYZE: so there are no more than that found.
-- returns: name str, method str, opclass str, expression str, usable bool, options list[str], size int
-- returns: scans int, rows int, live int, dead int, guarded bool
-- returns: rows_at_build int | None, size_at_build int | None, built_at datetime | None
-- returns: tuned list, oid int, filenode int, pgvector str
-- not null: expression, size, live, filenode
SELECT
    index_class.relname AS name,
    am.amname AS method,
    opclass.opcname AS opclass,
    pg_get_indexdef(index.indexrelid, 1, true) AS expression,
    index.indisvalid AND index.indisready AND index.indpred IS NULL AS usable,
    COALESCE(index_class.reloptions, '{}') AS options,
    pg_relation_size(index.indexrelid) AS size,
    COALESCE(usage.idx_scan, 0) AS scans,
    GREATEST(table_class.reltuples, 0)::bigint AS rows,
    CASE
        WHEN table_class.reltuples <= 0 THEN GREATEST(counts.live, 0)
        WHEN counts.known THEN LEAST(counts.live, table_class.reltuples)
        ELSE table_class.reltuples
    END::bigint AS live,
    GREATEST(counts.dead - COALESCE(built.dead_at_build, 0), 0) AS dead,
    table_class.relrowsecurity AS guarded,
    built.rows_at_build,
    built.size_at_build,
    built.built_at,
    (
        SELECT COALESCE(jsonb_agg(jsonb_build_array(k, target, setting) ORDER BY k, target), '[]')
        FROM kimera_recall_settings AS tuned
        WHERE tuned.index_name = index_class.relname
            AND tuned.filenode = pg_relation_filenode(index.indexrelid)::bigint
    ) AS tuned,
    index.indexrelid AS oid,
    pg_relation_filenode(index.indexrelid) AS filenode,
    extension.extversion AS pgvector
FROM pg_index AS index
JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
JOIN pg_class AS table_class ON table_class.oid = index.indrelid
JOIN pg_am AS am ON am.oid = index_class.relam
JOIN pg_opclass AS opclass ON opclass.oid = index.indclass[0]
JOIN pg_extension AS extension ON extension.extname = 'vector'
CROSS JOIN LATERAL (
    SELECT live, dead, live > 0 AND live + dead >= table_class.reltuples / 2 AS known
    FROM (
        SELECT
            pg_stat_get_live_tuples(index.indrelid)
                + pg_stat_get_xact_tuples_inserted(index.indrelid)
                - pg_stat_get_xact_tuples_deleted(index.indrelid) AS live,
            pg_stat_get_dead_tuples(index.indrelid)
                + pg_stat_get_xact_tuples_updated(index.indrelid)
                + pg_stat_get_xact_tuples_deleted(index.indrelid) AS dead
    ) AS reported
) AS counts
LEFT JOIN pg_stat_user_indexes AS usage ON usage.indexrelid = index.indexrelid
LEFT JOIN kimera_vector_indexes AS built
    ON built.index_name = index_class.relname
    AND built.filenode = pg_relation_filenode(index.indexrelid)::bigint
WHERE index.indrelid = to_regclass(:table)
    AND am.amname IN ('hnsw', 'ivfflat')
ORDER BY index_class.relname;

-- name: set_local(names, values, index)
-- Change settings until the transaction ends, and keep what they were under a name of ours. Without pgvector's library,
-- which vector_dims loads into the session, its settings are unknown. What is 0 stays 0: it was switched off, or the
-- server's system has no such thing, and a server up to 17 then refuses any effective_io_concurrency but 0. filenode: the
-- file that the index is in now, NULL where it is gone.
-- returns: loaded int, before str, now str, filenode int | None
-- not null: before, now
SELECT
    vector_dims('[1]'::vector) AS loaded,
    set_config('kimera.' || replace(name, '.', '_'), current_setting(name), true) AS before,
    set_config(name, CASE current_setting(name) WHEN '0' THEN '0' ELSE value END, true) AS now,
    pg_relation_filenode(:index::oid::regclass) AS filenode
FROM unnest(:names::text[], :values::text[]) AS setting (name, value)
ORDER BY name;

-- name: put_back(names)
-- Give settings the values back that set_local kept.
-- returns: str
-- not null: now
SELECT set_config(name, current_setting('kimera.' || replace(name, '.', '_')), true) AS now
FROM unnest(:names::text[]) AS setting (name)
ORDER BY name;
