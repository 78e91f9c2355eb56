-- name: vector_indexes(table)
-- The vector indexes of a table, with what they are made of and what is recorded of them.
-- returns: name str, method str, opclass str, expression str, usable bool, options list[str], size int
-- returns: scans int, rows int, rows_at_build int | None, size_at_build int | None, built_at datetime | None
-- returns: tuned list, pgvector str, loaded int
-- not null: expression, size
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
    built.rows_at_build,
    built.size_at_build,
    built.built_at,
    (
        SELECT COALESCE(jsonb_agg(jsonb_build_array(k, target, setting) ORDER BY k, target), '[]')
        FROM kimera_recall_settings AS tuned
        WHERE tuned.index_name = index_class.relname
    ) AS tuned,
    extension.extversion AS pgvector,
    -- Loads pgvector's library into the session, which its settings are unknown without
    vector_dims('[1]'::vector) AS loaded
FROM pg_index AS index
JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
JOIN pg_class AS table_class ON table_class.oid = index.indrelid
JOIN pg_am AS am ON am.oid = index_class.relam
JOIN pg_opclass AS opclass ON opclass.oid = index.indclass[0]
JOIN pg_extension AS extension ON extension.extname = 'vector'
LEFT JOIN pg_stat_user_indexes AS usage ON usage.indexrelid = index.indexrelid
LEFT JOIN kimera_vector_indexes AS built ON built.index_name = index_class.relname
WHERE index.indrelid = to_regclass(:table)
    AND am.amname IN ('hnsw', 'ivfflat')
ORDER BY index_class.relname;

-- name: set_ef_search(value)^
-- What set_local does, for the one setting that most searches need: half the time of an array of names.
-- returns: before str, now str
-- not null: before, now
SELECT
    set_config('kimera.hnsw_ef_search', current_setting('hnsw.ef_search'), true) AS before,
    set_config('hnsw.ef_search', :value, true) AS now;

-- name: restore_ef_search()$
-- Give that setting its value back.
-- returns: str
-- not null: now
SELECT set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS now;

-- name: set_local(names, values)
-- Change settings until the transaction ends, and keep what they were under a name of ours.
-- returns: before str, now str
-- not null: before, now
SELECT
    set_config('kimera.' || replace(name, '.', '_'), current_setting(name), true) AS before,
    set_config(name, value, true) AS now
FROM unnest(:names::text[], :values::text[]) AS setting (name, value)
ORDER BY name;

-- name: restore(names)
-- Give settings the values back that set_local kept.
-- returns: str
-- not null: now
SELECT set_config(name, current_setting('kimera.' || replace(name, '.', '_')), true) AS now
FROM unnest(:names::text[]) AS setting (name)
ORDER BY name;
