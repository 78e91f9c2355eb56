-- Kimera's tables distributed over the nodes of Citus. It is no migration: apply it once, after `kimera-sql init`, on the
-- coordinator, either way in one transaction:
--
--     kimera-sql scale citus      or      kimera-sql scale citus --dry-run | psql --single-transaction -v ON_ERROR_STOP=1
--
-- The command also checks what can be checked first, builds the vector indexes on the shards when the rows are there, and
-- tunes them again. With psql, drop them before and build them afterwards: an ivfflat index is trained on the rows it finds.
-- `kimera-sql scale undistribute` leads back: schema/citus_undo.sql.

-- It takes the database's owner, so it comes first, before hours of moving rows. A search asks every shard. By default a session keeps one connection to each worker, opens more only after 10 ms, and
-- closes them again: here it opens up to four at once, and keeps them.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET citus.max_adaptive_executor_pool_size = 4', current_database());
    EXECUTE format('ALTER DATABASE %I SET citus.max_cached_conns_per_worker = 4', current_database());
    EXECUTE format('ALTER DATABASE %I SET citus.executor_slow_start_interval = 0', current_database());
END
$$;

-- How a search tells the workers what it needs, as SET on the coordinator does not reach them. STABLE, so that it is not
-- called for each row but once, before the index is read; it is in force until the worker's transaction ends.
CREATE FUNCTION kimera_set_local(names TEXT[], settings TEXT[]) RETURNS BOOLEAN
    LANGUAGE sql STABLE
    RETURN (
        SELECT bool_and(set_config(given.name, given.setting, true) IS NOT NULL)
        FROM unnest(names, settings) AS given (name, setting)
    );

-- What a distributed table cannot have goes first. A key must contain the column that rows are spread by. A foreign key
-- must lead to the same shard, as a transition's source does; its target can be on any.
ALTER TABLE cognitive_transitions
    DROP CONSTRAINT cognitive_transitions_target_id_fkey,
    DROP CONSTRAINT cognitive_transitions_source_id_fkey,
    DROP CONSTRAINT cognitive_transitions_pkey,
    ADD CONSTRAINT cognitive_transitions_pkey PRIMARY KEY (id, source_id);

ALTER TABLE system_metrics
    DROP CONSTRAINT system_metrics_pkey,
    ADD CONSTRAINT system_metrics_pkey PRIMARY KEY (id, metric_name);

-- kimera.shards: how many shards each table gets.
SELECT set_config('citus.shard_count', current_setting('kimera.shards'), true);

SELECT create_distributed_table('geoid_states', 'id', colocate_with => 'none');

SELECT create_distributed_table('cognitive_transitions', 'source_id', colocate_with => 'geoid_states');

ALTER TABLE cognitive_transitions
    ADD CONSTRAINT cognitive_transitions_source_id_fkey FOREIGN KEY (source_id) REFERENCES geoid_states (id);

SELECT create_distributed_table('semantic_embeddings', 'id', colocate_with => 'none');

SELECT create_distributed_table('system_metrics', 'metric_name', colocate_with => 'none');

-- Few rows, and routes lead through all of them.
SELECT create_reference_table('portal_configurations');

-- The rows are on the workers now. What the coordinator's own files still hold is seen by nobody. The first takes the
-- transitions along.
SELECT truncate_local_data_after_distributing_table('geoid_states');

SELECT truncate_local_data_after_distributing_table('semantic_embeddings');

SELECT truncate_local_data_after_distributing_table('system_metrics');

SELECT truncate_local_data_after_distributing_table('portal_configurations');
