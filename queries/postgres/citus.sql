-- name: version()$
-- The version of Citus in this database; no row without it.
-- returns: str
SELECT extversion
FROM pg_extension
WHERE extname = 'citus';

-- name: distributed(tables)
-- Those of these tables whose rows Citus keeps in shards. Each has a trigger of Citus; its own catalogue can't be named
-- where the extension is missing.
-- returns: str
-- not null: name
SELECT listed.name
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
WHERE EXISTS (
    SELECT
    FROM pg_trigger
    WHERE tgrelid = to_regclass(listed.name)
        AND tgfoid = to_regproc('pg_catalog.citus_truncate_trigger')
)
ORDER BY listed.place;

-- name: shards(table)$
-- How many shards a distributed table has; no row where schema/citus.sql was not applied, which searches by index need.
-- returns: int
-- needs: citus
SELECT count(*)
FROM pg_dist_shard
WHERE logicalrelid = to_regclass(:table)
HAVING to_regprocedure('kimera_set_local(text[], text[])') IS NOT NULL;

-- name: is_coordinator()$
-- Whether this is the node that the others are added to, and not one of those.
-- returns: bool
-- not null: citus_is_coordinator
-- needs: citus
SELECT citus_is_coordinator();

-- name: placements(tables)
-- How Citus keeps these tables: the column that a table is distributed by, None for a reference table.
-- returns: Placement
-- not null: table, shards, colocation
-- nullable: column
-- needs: citus
SELECT
    listed.name AS "table",
    CASE kept.citus_table_type WHEN 'distributed' THEN kept.distribution_column END AS "column",
    kept.shard_count AS shards,
    kept.colocation_id AS colocation
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
JOIN citus_tables AS kept ON kept.table_name = to_regclass(listed.name)
ORDER BY listed.place;

-- name: is_prepared()$
-- Whether there is the function of schema/citus.sql that searches need.
-- returns: bool
SELECT to_regprocedure('kimera_set_local(text[], text[])') IS NOT NULL;

-- name: nodes()
-- The nodes, with the versions of Citus and pgvector that this database has on each. answered: whether it could be asked.
-- returns: Node
-- not null: address, coordinator, active, holds_shards, answered
-- needs: citus
SELECT
    node.nodename || ':' || node.nodeport AS address,
    node.groupid = 0 AS coordinator,
    node.isactive AS active,
    node.shouldhaveshards AS holds_shards,
    COALESCE(asked.success, false) AS answered,
    CASE WHEN asked.success THEN asked.result::jsonb ->> 'citus' END AS citus,
    CASE WHEN asked.success THEN asked.result::jsonb ->> 'vector' END AS vector
FROM pg_dist_node AS node
LEFT JOIN run_command_on_all_nodes(
    $$SELECT COALESCE(jsonb_object_agg(extname, extversion), '{}') FROM pg_extension WHERE extname IN ('citus', 'vector')$$,
    give_warning_for_connection_errors => false
) AS asked ON asked.nodeid = node.nodeid
WHERE node.noderole = 'primary'
ORDER BY node.groupid;

-- name: in_the_way(tables, columns, foreign_keys)
-- What Citus does not allow of tables that are distributed by these columns (NULL for a reference table): unique indexes
-- without the column, triggers, and foreign keys other than those listed.
-- returns: str
-- not null: what
SELECT format('%%s has the trigger %%s', listed.name, tgname) AS what
FROM unnest(:tables::text[]) AS listed (name)
JOIN pg_trigger ON tgrelid = to_regclass(listed.name)
WHERE NOT tgisinternal
UNION ALL
SELECT format('the unique index %%s of %%s does not contain %%s', index_class.relname, listed.name, listed."column")
FROM unnest(:tables::text[], :columns::text[]) AS listed (name, "column")
JOIN pg_index AS index ON index.indrelid = to_regclass(listed.name)
JOIN pg_class AS index_class ON index_class.oid = index.indexrelid
WHERE index.indisunique
    AND NOT index.indisprimary
    AND listed."column" IS NOT NULL
    AND NOT EXISTS (
        SELECT
        FROM pg_attribute
        WHERE attrelid = index.indrelid
            AND attname = listed."column"
            AND attnum = ANY(index.indkey)
    )
UNION ALL
SELECT format('the foreign key %%s leads from %%s to %%s', conname, conrelid::regclass, confrelid::regclass)
FROM pg_constraint
WHERE contype = 'f'
    AND (conrelid = ANY(:tables::regclass[]) OR confrelid = ANY(:tables::regclass[]))
    AND conname <> ALL(:foreign_keys::text[])
ORDER BY what;

-- name: one_by_one()!
-- Until the transaction ends, change one shard of a node after the other.
-- needs: citus
SET LOCAL citus.multi_shard_modify_mode = 'sequential';

-- name: lost_targets()$
-- How many transitions lead to a state that is not there.
-- returns: int
SELECT count(*)
FROM cognitive_transitions
WHERE target_id NOT IN (SELECT id FROM geoid_states);

-- name: repeated_transitions()$
-- How many ids of transitions there are more than once.
-- returns: int
SELECT count(*)
FROM (SELECT id FROM cognitive_transitions GROUP BY id HAVING count(*) > 1) AS repeated;

-- name: repeated_metrics()$
-- How many ids of measurements there are more than once.
-- returns: int
SELECT count(*)
FROM (SELECT id FROM system_metrics GROUP BY id HAVING count(*) > 1) AS repeated;

-- name: shard_states()
-- Every shard of the tables that Citus keeps, with what its node's statistics say of it; of a reference table one copy.
-- Sizes are by the pages that they count, because asking for one takes a lock. unusable_indexes: how many indexes the shard
-- lacks, or has unfinished. All numbers are 0 where the node does not answer.
-- returns: Shard
-- not null: table, number, node, answered, live_rows, dead_rows, changed_rows, table_scans, index_scans, heap_bytes
-- not null: other_bytes, index_bytes, unusable_indexes
-- needs: citus
SELECT DISTINCT ON ("table", number)
    kept.logicalrelid::regclass::text AS "table",
    asked.shardid AS number,
    asked.nodename || ':' || asked.nodeport AS node,
    asked.success AS answered,
    COALESCE((state.said ->> 'live')::bigint, 0) AS live_rows,
    COALESCE((state.said ->> 'dead')::bigint, 0) AS dead_rows,
    COALESCE((state.said ->> 'changed')::bigint, 0) AS changed_rows,
    COALESCE((state.said ->> 'table_scans')::bigint, 0) AS table_scans,
    COALESCE((state.said ->> 'index_scans')::bigint, 0) AS index_scans,
    (state.said ->> 'vacuumed')::timestamptz AS vacuumed_at,
    (state.said ->> 'analyzed')::timestamptz AS analyzed_at,
    COALESCE((state.said ->> 'heap')::bigint, 0) AS heap_bytes,
    COALESCE((state.said ->> 'other')::bigint, 0) AS other_bytes,
    COALESCE((state.said ->> 'indexes')::bigint, 0) AS index_bytes,
    CASE
        WHEN asked.success
            THEN (SELECT count(*) FROM pg_index WHERE indrelid = kept.logicalrelid) - (state.said ->> 'usable')::bigint
        ELSE 0
    END AS unusable_indexes
FROM pg_dist_partition AS kept
CROSS JOIN LATERAL run_command_on_placements(
    kept.logicalrelid,
    $$
    SELECT jsonb_build_object(
        'live', pg_stat_get_live_tuples(relation.oid),
        'dead', pg_stat_get_dead_tuples(relation.oid),
        'changed', pg_stat_get_mod_since_analyze(relation.oid),
        'table_scans', pg_stat_get_numscans(relation.oid),
        'index_scans', (SELECT sum(pg_stat_get_numscans(indexrelid)) FROM pg_index WHERE indrelid = relation.oid),
        'vacuumed',
        GREATEST(pg_stat_get_last_vacuum_time(relation.oid), pg_stat_get_last_autovacuum_time(relation.oid)),
        'analyzed',
        GREATEST(pg_stat_get_last_analyze_time(relation.oid), pg_stat_get_last_autoanalyze_time(relation.oid)),
        'heap', relation.relpages * block.size,
        'other', COALESCE((SELECT relpages FROM pg_class WHERE oid = relation.reltoastrelid), 0) * block.size,
        'indexes',
        (
            SELECT sum(relpages)
            FROM pg_index
            JOIN pg_class ON oid = indexrelid
            WHERE indrelid = relation.oid
        ) * block.size,
        'usable', (SELECT count(*) FROM pg_index WHERE indrelid = relation.oid AND indisvalid AND indisready)
    )
    FROM pg_class AS relation
    CROSS JOIN (SELECT current_setting('block_size')::bigint AS size) AS block
    WHERE relation.oid = '%%s'::regclass
    $$
) AS asked
CROSS JOIN LATERAL (SELECT CASE WHEN asked.success THEN asked.result::jsonb END AS said) AS state
ORDER BY "table", number, answered DESC, node;

-- name: index_use(table)
-- What the shards of each index of a table take together, and how often they were scanned. An index that this transaction
-- has made is not among them.
-- returns: name str, size int, scans int
-- not null: name, size, scans
-- needs: citus
SELECT
    index.name,
    sum((index.use ->> 0)::bigint)::bigint AS size,
    sum((index.use ->> 1)::bigint)::bigint AS scans
FROM run_command_on_shards(
    to_regclass(:table),
    $$
    SELECT jsonb_object_agg(
        regexp_replace(relname, '_[0-9]+$', ''),
        jsonb_build_array(relpages * current_setting('block_size')::bigint, pg_stat_get_numscans(oid))
    )
    FROM pg_index
    JOIN pg_class ON oid = indexrelid
    WHERE indrelid = '%%s'::regclass
    $$
) AS asked
CROSS JOIN LATERAL jsonb_each(CASE WHEN asked.success THEN asked.result::jsonb END) AS index (name, use)
GROUP BY index.name
ORDER BY index.name;
