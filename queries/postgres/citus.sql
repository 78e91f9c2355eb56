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
-- How many shards a distributed table has.
-- returns: int
-- needs: citus
SELECT count(*)
FROM pg_dist_shard
WHERE logicalrelid = to_regclass(:table);

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
