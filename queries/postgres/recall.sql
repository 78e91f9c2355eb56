-- name: sample_geoid_states(rows)
-- Vectors of states that are picked at random.
-- returns: Vector
SELECT state_vector
FROM geoid_states
ORDER BY random()
LIMIT :rows;

-- name: sample_semantic_embeddings(rows)
-- Vectors of embeddings that are picked at random.
-- returns: Vector
SELECT embedding
FROM semantic_embeddings
ORDER BY random()
LIMIT :rows;

-- name: vectors_geoid_states()
-- The vectors of all states, streamed in the order in which they are stored.
-- returns: Vector
SELECT state_vector
FROM geoid_states;

-- name: vectors_semantic_embeddings()
-- The vectors of all embeddings, streamed in the order in which they are stored.
-- returns: Vector
SELECT embedding
FROM semantic_embeddings;

-- name: store(index_name, k, target, setting)!
-- Keep the setting that reaches a recall, in place of an earlier one.
INSERT INTO kimera_recall_settings (index_name, k, target, setting)
VALUES (:index_name, :k, :target, :setting)
ON CONFLICT (index_name, k, target) DO UPDATE
SET setting = EXCLUDED.setting, measured_at = clock_timestamp();
