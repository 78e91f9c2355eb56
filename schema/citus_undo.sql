-- The way back from schema/citus.sql: the tables on the coordinator alone, as the migrations make them. In one transaction:
--
--     kimera-sql scale undistribute      or, of its --dry-run, the same by psql as there

DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I RESET citus.max_adaptive_executor_pool_size', current_database());
    EXECUTE format('ALTER DATABASE %I RESET citus.max_cached_conns_per_worker', current_database());
    EXECUTE format('ALTER DATABASE %I RESET citus.executor_slow_start_interval', current_database());
END
$$;

DROP FUNCTION kimera_set_local(TEXT[], TEXT[]);

ALTER TABLE cognitive_transitions DROP CONSTRAINT cognitive_transitions_source_id_fkey;

SELECT undistribute_table('cognitive_transitions');

SELECT undistribute_table('geoid_states');

SELECT undistribute_table('semantic_embeddings');

-- It is another table now, by the number that this goes by.
UPDATE kimera_models
SET relation = 'semantic_embeddings'::regclass
WHERE serving
    AND NOT EXISTS (SELECT FROM pg_class WHERE oid = relation);

SELECT undistribute_table('system_metrics');

SELECT undistribute_table('portal_configurations');

ALTER TABLE system_metrics
    DROP CONSTRAINT system_metrics_pkey,
    ADD CONSTRAINT system_metrics_pkey PRIMARY KEY (id);

ALTER TABLE cognitive_transitions
    DROP CONSTRAINT cognitive_transitions_pkey,
    ADD CONSTRAINT cognitive_transitions_pkey PRIMARY KEY (id),
    ADD CONSTRAINT cognitive_transitions_source_id_fkey FOREIGN KEY (source_id) REFERENCES geoid_states (id),
    ADD CONSTRAINT cognitive_transitions_target_id_fkey FOREIGN KEY (target_id) REFERENCES geoid_states (id);
