-- name: insert(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)^
-- Add a state; the vector is not sent back, the caller has it.
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    COALESCE(:timestamp, clock_timestamp()),
    :metadata,
    :entropy,
    :coherence_factor,
    :energy_level,
    :creation_context,
    :tags,
    :state_vector
)
RETURNING id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags;

-- name: now()$
-- What time it is, for the rows of copy_in, which takes no defaults.
SELECT clock_timestamp();

-- name: copy_in(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)!
-- Add many states.
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
VALUES (
    :id, :timestamp, :metadata, :entropy, :coherence_factor, :energy_level, :creation_context, :tags, :state_vector
);

-- name: upsert(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)^
-- Write over the state of an id, or add one; the vector is not sent back, the caller has it.
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    COALESCE(:timestamp, clock_timestamp()),
    :metadata,
    :entropy,
    :coherence_factor,
    :energy_level,
    :creation_context,
    :tags,
    :state_vector
)
ON CONFLICT (id) DO UPDATE SET
    timestamp = excluded.timestamp,
    metadata = excluded.metadata,
    entropy = excluded.entropy,
    coherence_factor = excluded.coherence_factor,
    energy_level = excluded.energy_level,
    creation_context = excluded.creation_context,
    tags = excluded.tags,
    state_vector = excluded.state_vector
RETURNING id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags;

-- name: replace_vector(id, vector)$
-- Give a state another vector.
UPDATE geoid_states
SET state_vector = :vector
WHERE id = :id
RETURNING id;

-- name: find_by_id(id)^
-- One state, whole.
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
WHERE id = :id;

-- name: find_by_ids(ids)
-- The states of a list of ids, whole.
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
SELECT id
FROM geoid_states
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a state; one that transitions lead from or to is kept by their foreign keys.
DELETE FROM geoid_states
WHERE id = :id;

-- name: count_all()$
-- How many states there are.
SELECT count(*)
FROM geoid_states;

-- name: stream_all()
-- Every state, the oldest first.
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
ORDER BY +timestamp, id;

-- name: stream_unordered()
-- Every state, in no order.
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
ORDER BY +rowid;

-- name: find(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata, limit)
-- States that pass every filter given (NULL is none), the newest first, without their vectors.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +limit
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags
FROM geoid_states
WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
    AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
    AND (:entropy_min IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max IS NULL OR entropy <= :entropy_max)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: vector_of(id)$
-- The vector of a state.
SELECT state_vector
FROM geoid_states
WHERE id = :id;

-- name: similar_exact(vector, k, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The k states nearest by cosine that pass every filter given.
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM (
    SELECT id AS nearest_id, cosine_distance(state_vector, :vector) AS distance
    FROM geoid_states
    WHERE (:other_than IS NULL OR id <> :other_than)
        AND (:tags_all IS NULL OR json_contains(tags, :tags_all))
        AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
        AND (:entropy_min IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max IS NULL OR entropy <= :entropy_max)
        AND (:since IS NULL OR timestamp >= :since)
        AND (:until IS NULL OR timestamp < :until)
        AND (:metadata IS NULL OR json_contains(metadata, :metadata))
    ORDER BY distance NULLS LAST, id
    LIMIT :k
) AS nearest
JOIN geoid_states ON id = nearest_id AND distance IS NOT NULL
ORDER BY distance, id;

-- name: within(vector, at_least, with_vectors, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- Every state at least as similar as given that passes the filters, the most similar first. The "LIMIT -1" has each
-- distance computed once.
-- like: similar_exact, -k, -other_than, +at_least
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT
        id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        cosine_distance(state_vector, :vector) AS distance,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
        AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
        AND (:entropy_min IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max IS NULL OR entropy <= :entropy_max)
        AND (:since IS NULL OR timestamp >= :since)
        AND (:until IS NULL OR timestamp < :until)
        AND (:metadata IS NULL OR json_contains(metadata, :metadata))
    LIMIT -1
) AS compared
WHERE 1 - distance >= :at_least
ORDER BY distance, id;

-- name: series(bucket, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The numbers of the states that pass every filter given, in buckets of time, which are counted from 1970-01-01 UTC; empty
-- ones are left out. Numbers from 1e290 up are added up apart and scaled down, so
-- that the sum behind a mean does not overflow.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +bucket
SELECT
    date_bin(:bucket, timestamp, '1970-01-01T00:00:00.000000Z') AS bucket,
    count(*) AS count,
    COALESCE(sum(entropy) FILTER (WHERE abs(entropy) < 1e290), 0) / count(*)
        + COALESCE(sum(entropy / 1e18) FILTER (WHERE abs(entropy) >= 1e290), 0) / count(*) * 1e18 AS mean_entropy,
    min(entropy) AS min_entropy,
    max(entropy) AS max_entropy,
    percentile_cont(0.95, entropy) AS p95_entropy,
    COALESCE(sum(coherence_factor) FILTER (WHERE abs(coherence_factor) < 1e290), 0) / count(*)
        + COALESCE(sum(coherence_factor / 1e18) FILTER (WHERE abs(coherence_factor) >= 1e290), 0) / count(*) * 1e18 AS mean_coherence_factor,
    min(coherence_factor) AS min_coherence_factor,
    max(coherence_factor) AS max_coherence_factor,
    percentile_cont(0.95, coherence_factor) AS p95_coherence_factor,
    COALESCE(sum(energy_level) FILTER (WHERE abs(energy_level) < 1e290), 0) / count(*)
        + COALESCE(sum(energy_level / 1e18) FILTER (WHERE abs(energy_level) >= 1e290), 0) / count(*) * 1e18 AS mean_energy_level,
    min(energy_level) AS min_energy_level,
    max(energy_level) AS max_energy_level,
    percentile_cont(0.95, energy_level) AS p95_energy_level
FROM geoid_states
WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
    AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
    AND (:entropy_min IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max IS NULL OR entropy <= :entropy_max)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
GROUP BY 1
ORDER BY 1;

-- name: centroid(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)$
-- The mean of the vectors of the states that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than
SELECT vector_avg(state_vector) AS centroid
FROM geoid_states
WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
    AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
    AND (:entropy_min IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max IS NULL OR entropy <= :entropy_max)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata));

-- name: count_matching(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)^
-- How many states pass every filter given, and how many transitions lead from or to them.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than
SELECT count(DISTINCT state.id) AS states, count(DISTINCT transition.id) AS transitions
FROM (
    SELECT id
    FROM geoid_states
    WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
        AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
        AND (:entropy_min IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max IS NULL OR entropy <= :entropy_max)
        AND (:since IS NULL OR timestamp >= :since)
        AND (:until IS NULL OR timestamp < :until)
        AND (:metadata IS NULL OR json_contains(metadata, :metadata))
) AS state
LEFT JOIN cognitive_transitions AS transition ON transition.source_id = state.id OR transition.target_id = state.id;

-- name: oldest_matching(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata, limit)
-- The ids of the oldest states that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +limit
SELECT id
FROM geoid_states
WHERE (:tags_all IS NULL OR json_contains(tags, :tags_all))
    AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
    AND (:entropy_min IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max IS NULL OR entropy <= :entropy_max)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
ORDER BY timestamp, id
LIMIT :limit;

-- name: matching_ids(first, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The ids, from the first on, of the states that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +first
SELECT id
FROM geoid_states
WHERE (:first IS NULL OR id >= :first)
    AND (:tags_all IS NULL OR json_contains(tags, :tags_all))
    AND (:tags_any IS NULL OR json_overlaps(tags, :tags_any))
    AND (:entropy_min IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max IS NULL OR entropy <= :entropy_max)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
ORDER BY id;

-- name: vectors_of(ids)
-- The vectors of a list of states.
SELECT id, state_vector
FROM geoid_states
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_ids(ids)!
-- Remove the states of a list of ids.
DELETE FROM geoid_states
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: update_metadata(id, changes)$
-- Merge changes into a state's metadata, key by key, and return the whole.
UPDATE geoid_states
SET metadata = json_merge(metadata, :changes)
WHERE id = :id
RETURNING metadata;

-- name: add_tags(id, tags)$
-- Append the tags that a state does not have yet, in their order, and return all.
UPDATE geoid_states
SET tags = json_add(COALESCE(tags, '[]'), :tags)
WHERE id = :id
RETURNING tags;

-- name: remove_tags(id, tags)$
-- Take the tags away from a state and return those that are left, in their order.
UPDATE geoid_states
SET tags = json_remove_all(COALESCE(tags, '[]'), :tags)
WHERE id = :id
RETURNING tags;
