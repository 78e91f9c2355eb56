-- When autovacuum comes to these tables, and what the planner knows of them.
--
-- The defaults wait until a fifth of a table is dead or a tenth is new. That is long for tables with vectors: a dead row
-- stays in the vector index, where searches still walk over it, and whether a filtered search is run exactly or by the
-- index is decided by estimates. So: dead or new rows from a twentieth on, estimates from a fiftieth on.
ALTER TABLE geoid_states SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
ALTER TABLE semantic_embeddings SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
ALTER TABLE cognitive_transitions SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
-- Rows come in all the time and go by the batch; the newest are asked for most, and are beyond the last histogram.
ALTER TABLE system_metrics SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);
-- Small, and each use of a portal updates its row: by the number of them.
ALTER TABLE portal_configurations SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05
);

-- "Custom statistics for vector columns" cannot be: ANALYZE leaves out values wider than 1 kB, a vector has 4, and no
-- estimate of distances uses any. The filters beside a vector are what can be known better, and of those only metadata
-- needs it. @> is estimated by trying it on the sampled values that are kept, 100 common ones and 100 others by default,
-- so what a hundredth of the rows or fewer have is a guess. Measured with 20,000 states and 400 values of one key: what
-- 0.5 to 5 % of the rows have was estimated as low as a hundredth of it, with 500 within about twice; rarer values stay
-- a guess. tags keep ten times as many elements and were within twice already; entropy and timestamp are right but at
-- their ends. The price: ANALYZE reads 300 times as many rows, of a table with vectors as many pages, so up to 1.2 GB.
ALTER TABLE geoid_states ALTER COLUMN metadata SET STATISTICS 500;
ALTER TABLE semantic_embeddings ALTER COLUMN metadata SET STATISTICS 500;

-- A metric comes from one component, as a rule. Taken for independent, the two conditions of metrics.latest and
-- metrics.series were estimated at a tenth of what they find with ten components.
CREATE STATISTICS kimera_metrics_component (dependencies) ON metric_name, component FROM system_metrics;
