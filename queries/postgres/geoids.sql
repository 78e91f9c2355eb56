-- name: insert(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)^
-- Add a state; the vector is not sent back, the caller has it.
-- takes: NewGeoid
-- returns: GeoidSummary
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    COALESCE(:timestamp::timestamptz, clock_timestamp()),
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
-- What time it is, for rows that are sent with COPY, which takes no defaults for NULL.
-- returns: datetime
SELECT clock_timestamp();

-- name: copy_in()#
-- Add many states.
-- types: uuid, timestamptz, jsonb, float8, float8, float8, text, text[], vector
COPY geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
FROM STDIN (FORMAT BINARY);

-- name: upsert(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)^
-- Write over the state of an id, or add one; the vector is not sent back, the caller has it.
-- takes: NewGeoid
-- returns: GeoidSummary
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    COALESCE(:timestamp::timestamptz, clock_timestamp()),
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

-- name: upsert_many(id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector)
-- The same for many states, each column an array. In the order of their ids, so that of two who write the same rows one
-- waits for the other.
-- returns: inserted bool
-- not null: inserted
-- only: postgres
INSERT INTO geoid_states (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
SELECT
    id, COALESCE(timestamp, clock_timestamp()), metadata, entropy, coherence_factor, energy_level, creation_context,
    tags::text[], state_vector
FROM unnest(
    :id::uuid[],
    :timestamp::timestamptz[],
    :metadata::jsonb[],
    :entropy::float8[],
    :coherence_factor::float8[],
    :energy_level::float8[],
    :creation_context::text[],
    :tags::text[],
    :state_vector::vector[]
) AS given (
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    timestamp = excluded.timestamp,
    metadata = excluded.metadata,
    entropy = excluded.entropy,
    coherence_factor = excluded.coherence_factor,
    energy_level = excluded.energy_level,
    creation_context = excluded.creation_context,
    tags = excluded.tags,
    state_vector = excluded.state_vector
RETURNING xmax = 0 AS inserted;

-- name: replace_vector(id, vector)$
-- Give a state another vector.
-- returns: UUID
UPDATE geoid_states
SET state_vector = :vector
WHERE id = :id
RETURNING id;

-- name: find_by_id(id)^
-- One state, whole.
-- returns: Geoid
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
WHERE id = :id;

-- name: find_by_ids(ids)
-- The states of a list of ids, whole.
-- returns: Geoid
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
WHERE id = ANY(:ids)
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: UUID
SELECT id
FROM geoid_states
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a state; one that transitions lead from or to is kept by their foreign keys.
DELETE FROM geoid_states
WHERE id = :id;

-- name: count_all()$
-- How many states there are.
-- returns: int
SELECT count(*)
FROM geoid_states;

-- name: stream_all()
-- Every state, the oldest first.
-- returns: Geoid
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states
ORDER BY timestamp, id;

-- name: stream_unordered()
-- Every state, in no order.
-- returns: Geoid
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, state_vector
FROM geoid_states;

-- name: find(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata, limit)
-- States that pass every filter given (NULL is none), the newest first, without their vectors.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +limit
-- returns: GeoidSummary
-- uses: idx_geoid_timestamp
-- plan: custom
SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags
FROM geoid_states
WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY timestamp DESC, id
LIMIT :limit;

-- name: vector_of(id)$
-- The vector of a state.
-- returns: Vector
SELECT state_vector
FROM geoid_states
WHERE id = :id;

-- name: nearest_full(vector, k, candidates, ef_search, index, filenode, with_vectors)
-- The k states nearest by cosine where nothing filters them, by an hnsw index on the vectors as they are: a search in one
-- statement, and one plan for every vector. The inner limit sets hnsw.ef_search before the index is read. The outermost
-- SELECT, computed when all is read and sorted, gives it its value back. LIMIT 200 is for the planner: it can't know the
-- other limit, and would expect a tenth of the table. Nothing is read, and no row found, where the index is not in the
-- file any more that it was in when the catalogue was read: it was dropped or rebuilt since.
-- returns: GeoidSummary, similarity float, state_vector Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_geoid_vector
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, distance, state_vector
    FROM (
        SELECT
            id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
            state_vector <=> :vector AS distance,
            CASE WHEN :with_vectors THEN state_vector END AS state_vector
        FROM geoid_states
        ORDER BY geoid_states.state_vector <=> :vector
        LIMIT 200
    ) AS scanned
    LIMIT (
        SELECT
            CASE WHEN pg_relation_filenode(:index::oid::regclass) = :filenode::oid THEN :candidates::integer ELSE 0 END
            + 0 * length(
                set_config('kimera.hnsw_ef_search', current_setting('hnsw.ef_search'), true)
                || set_config('hnsw.ef_search', :ef_search, true)
            )
    )
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: nearest_half(vector, k, candidates, ef_search, index, filenode, with_vectors)
-- The same by an index in half precision: more candidates than k, of which the exact distance decides.
-- returns: GeoidSummary, similarity float, state_vector Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_geoid_vector_hnsw_half
-- needs: vector 0.7
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, distance, state_vector
    FROM (
        SELECT
            id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
            state_vector <=> :vector AS distance,
            CASE WHEN :with_vectors THEN state_vector END AS state_vector
        FROM geoid_states
        ORDER BY l2_normalize(geoid_states.state_vector)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
        LIMIT 200
    ) AS scanned
    LIMIT (
        SELECT
            CASE WHEN pg_relation_filenode(:index::oid::regclass) = :filenode::oid THEN :candidates::integer ELSE 0 END
            + 0 * length(
                set_config('kimera.hnsw_ef_search', current_setting('hnsw.ef_search'), true)
                || set_config('hnsw.ef_search', :ef_search, true)
            )
    )
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: nearest_binary(vector, k, candidates, ef_search, index, filenode, with_vectors)
-- The same by an index on the signs of the components: many candidates, of which the exact distance decides.
-- returns: GeoidSummary, similarity float, state_vector Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_geoid_vector_hnsw_binary
-- needs: vector 0.7
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags, distance, state_vector
    FROM (
        SELECT
            id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
            state_vector <=> :vector AS distance,
            CASE WHEN :with_vectors THEN state_vector END AS state_vector
        FROM geoid_states
        ORDER BY binary_quantize(geoid_states.state_vector)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
        LIMIT 200
    ) AS scanned
    LIMIT (
        SELECT
            CASE WHEN pg_relation_filenode(:index::oid::regclass) = :filenode::oid THEN :candidates::integer ELSE 0 END
            + 0 * length(
                set_config('kimera.hnsw_ef_search', current_setting('hnsw.ef_search'), true)
                || set_config('hnsw.ef_search', :ef_search, true)
            )
    )
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: similar_full(vector, k, candidates, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The k states nearest by cosine that pass every filter given, by an index on the vectors as they are.
-- like: similar_exact, +candidates
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT
        id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        state_vector <=> :vector AS distance,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE (:other_than::uuid IS NULL OR id <> :other_than)
        AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY geoid_states.state_vector <=> :vector
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: similar_half(vector, k, candidates, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same by an index in half precision: more candidates than k, of which the exact distance decides.
-- like: similar_exact, +candidates
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector_hnsw_half
-- needs: vector 0.7
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT
        id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        state_vector <=> :vector AS distance,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE (:other_than::uuid IS NULL OR id <> :other_than)
        AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY l2_normalize(geoid_states.state_vector)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: similar_binary(vector, k, candidates, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same by an index on the signs of the components: many candidates, of which the exact distance decides.
-- like: similar_exact, +candidates
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector_hnsw_binary
-- needs: vector 0.7
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT
        id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        state_vector <=> :vector AS distance,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE (:other_than::uuid IS NULL OR id <> :other_than)
        AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY binary_quantize(geoid_states.state_vector)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: scattered_full(vector, candidates, names, settings, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same on shards of Citus, where each gives its nearest candidates: k of all of them are chosen outside, because Citus
-- would first gather a subquery's rows in a file. kimera_set_local is called once, before the index is read.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - (state_vector <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM geoid_states
WHERE kimera_set_local(:names, :settings)
    AND (:other_than::uuid IS NULL OR id <> :other_than)
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY geoid_states.state_vector <=> :vector
LIMIT :candidates;

-- name: scattered_half(vector, candidates, names, settings, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same by an index in half precision.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector_hnsw_half
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - (state_vector <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM geoid_states
WHERE kimera_set_local(:names, :settings)
    AND (:other_than::uuid IS NULL OR id <> :other_than)
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY l2_normalize(geoid_states.state_vector)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
LIMIT :candidates;

-- name: scattered_binary(vector, candidates, names, settings, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same by an index on the signs of the components.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- uses: idx_geoid_vector_hnsw_binary
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - (state_vector <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM geoid_states
WHERE kimera_set_local(:names, :settings)
    AND (:other_than::uuid IS NULL OR id <> :other_than)
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY binary_quantize(geoid_states.state_vector)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
LIMIT :candidates;

-- name: similar_exact(vector, k, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same by comparing all states that pass the filters. The "+ 0" is what no vector index can serve. Ids and distances
-- alone are sorted, because a sort copies each row that it is given; the columns are read for the k found.
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- plan: custom
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - nearest.distance AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM (
    SELECT id, (state_vector <=> :vector) + 0 AS distance
    FROM geoid_states
    WHERE (:other_than::uuid IS NULL OR id <> :other_than)
        AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY distance, id
    LIMIT :k
) AS nearest
JOIN geoid_states USING (id)
ORDER BY nearest.distance, id;

-- name: similar_few(vector, k, with_vectors, other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same where few states pass the filters: sorting them whole is quicker than reading k of them again.
-- like: similar_exact
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT
        id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        (state_vector <=> :vector) + 0 AS distance,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE (:other_than::uuid IS NULL OR id <> :other_than)
        AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY distance, id
    LIMIT :k
) AS nearest
ORDER BY distance, id;

-- name: within(vector, at_least, with_vectors, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- Every state at least as similar as given that passes the filters, the most similar first, by comparing all. The
-- "OFFSET 0" of the distance has it computed once; that of the columns has them read late, for one row after the other,
-- so that ids and distances alone are sorted, and a cursor reads no more than it is asked for.
-- like: similar_exact, -k, -other_than, +at_least, +nearest
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- plan: custom
SELECT
    nearest.id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - distance AS similarity, state_vector
FROM (
    SELECT id, distance
    FROM (
        SELECT id, (state_vector <=> :vector) + 0 AS distance
        FROM geoid_states
        WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
            AND (:tags_any::text[] IS NULL OR tags && :tags_any)
            AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
            AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
            AND (:since::timestamptz IS NULL OR timestamp >= :since)
            AND (:until::timestamptz IS NULL OR timestamp < :until)
            AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
        OFFSET 0
    ) AS compared
    WHERE 1 - distance >= :at_least
    ORDER BY distance, id
) AS nearest
CROSS JOIN LATERAL (
    SELECT
        timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
        CASE WHEN :with_vectors THEN state_vector END AS state_vector
    FROM geoid_states
    WHERE geoid_states.id = nearest.id
    OFFSET 0
) AS found
ORDER BY distance, nearest.id;

-- name: scattered_within(vector, at_least, with_vectors, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The same on shards of Citus, which refuses the subqueries.
-- like: similar_exact, -k, -other_than, +at_least
-- returns: GeoidSummary, similarity float, state_vector Vector | None
-- not null: similarity
-- plan: custom
-- only: postgres
SELECT
    id, timestamp, metadata, entropy, coherence_factor, energy_level, creation_context, tags,
    1 - (state_vector <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN state_vector END AS state_vector
FROM geoid_states
WHERE 1 - (state_vector <=> :vector) >= :at_least
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY (state_vector <=> :vector) + 0, id;

-- name: matching_plan(other_than, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)$
-- The plan of finding what passes the filters, for the planner's estimate of how many rows that is.
-- like: similar_exact, -vector, -k, -with_vectors
-- returns: list
-- not null: QUERY PLAN
-- plan: custom
-- only: postgres
EXPLAIN (FORMAT JSON) SELECT id
FROM geoid_states
WHERE (:other_than::uuid IS NULL OR id <> :other_than)
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata);

-- name: series(bucket, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The numbers of the states that pass every filter given, in buckets of time, which are counted from 1970-01-01 UTC; empty
-- ones are left out. Numbers from 1e290 up are added up apart and scaled down, so
-- that the sum behind a mean does not overflow.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +bucket
-- returns: Bucket
-- not null: bucket
-- plan: custom
SELECT
    date_bin(:bucket::interval, timestamp, TIMESTAMP WITH TIME ZONE '1970-01-01 00:00:00+00') AS bucket,
    count(*) AS count,
    COALESCE(sum(entropy) FILTER (WHERE abs(entropy) < 1e290), 0) / count(*)
        + COALESCE(sum(entropy / 1e18) FILTER (WHERE abs(entropy) >= 1e290), 0) / count(*) * 1e18 AS mean_entropy,
    min(entropy) AS min_entropy,
    max(entropy) AS max_entropy,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY entropy) AS p95_entropy,
    COALESCE(sum(coherence_factor) FILTER (WHERE abs(coherence_factor) < 1e290), 0) / count(*)
        + COALESCE(sum(coherence_factor / 1e18) FILTER (WHERE abs(coherence_factor) >= 1e290), 0) / count(*) * 1e18 AS mean_coherence_factor,
    min(coherence_factor) AS min_coherence_factor,
    max(coherence_factor) AS max_coherence_factor,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY coherence_factor) AS p95_coherence_factor,
    COALESCE(sum(energy_level) FILTER (WHERE abs(energy_level) < 1e290), 0) / count(*)
        + COALESCE(sum(energy_level / 1e18) FILTER (WHERE abs(energy_level) >= 1e290), 0) / count(*) * 1e18 AS mean_energy_level,
    min(energy_level) AS min_energy_level,
    max(energy_level) AS max_energy_level,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY energy_level) AS p95_energy_level
FROM geoid_states
WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
GROUP BY 1
ORDER BY 1;

-- name: centroid(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)$
-- The mean of the vectors of the states that pass every filter given. The limit keeps avg out of parallel workers: where two
-- of them find no row, pgvector's avg fails (vector must have at least 1 dimension).
-- like: similar_exact, -vector, -k, -with_vectors, -other_than
-- returns: Vector | None
-- plan: custom
SELECT avg(state_vector)::vector(1024) AS centroid
FROM (
    SELECT state_vector
    FROM geoid_states
    WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    LIMIT 9223372036854775807
) AS matching;

-- name: count_matching(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)^
-- How many states pass every filter given, and how many transitions lead from or to them.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than
-- returns: Gone
-- plan: custom
SELECT count(DISTINCT state.id) AS states, count(DISTINCT transition.id) AS transitions
FROM (
    SELECT id
    FROM geoid_states
    WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
        AND (:tags_any::text[] IS NULL OR tags && :tags_any)
        AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
        AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
) AS state
LEFT JOIN cognitive_transitions AS transition ON transition.source_id = state.id OR transition.target_id = state.id;

-- name: oldest_matching(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata, limit)
-- The ids of the oldest states that pass every filter given; nobody else changes them until the transaction ends.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +limit
-- returns: UUID
-- uses: idx_geoid_timestamp
-- plan: custom
SELECT id
FROM geoid_states
WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY timestamp, id
LIMIT :limit
FOR UPDATE;

-- name: scattered_oldest(tags_all, tags_any, entropy_min, entropy_max, since, until, metadata, limit)
-- The same on shards of Citus, which locks no rows of several shards: others may delete them meanwhile.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +limit
-- returns: UUID
-- uses: idx_geoid_timestamp
-- plan: custom
-- only: postgres
SELECT id
FROM geoid_states
WHERE (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY timestamp, id
LIMIT :limit;

-- name: matching_ids(first, tags_all, tags_any, entropy_min, entropy_max, since, until, metadata)
-- The ids, from the first on, of the states that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, -other_than, +first
-- returns: UUID
-- plan: custom
SELECT id
FROM geoid_states
WHERE (:first::uuid IS NULL OR id >= :first)
    AND (:tags_all::text[] IS NULL OR tags @> :tags_all)
    AND (:tags_any::text[] IS NULL OR tags && :tags_any)
    AND (:entropy_min::float8 IS NULL OR entropy >= :entropy_min)
    AND (:entropy_max::float8 IS NULL OR entropy <= :entropy_max)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY id;

-- name: vectors_of(ids)
-- The vectors of a list of states.
-- returns: id UUID, state_vector Vector
SELECT id, state_vector
FROM geoid_states
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_ids(ids)!
-- Remove the states of a list of ids.
DELETE FROM geoid_states
WHERE id = ANY(:ids);

-- name: update_metadata(id, changes)$
-- Merge changes into a state's metadata, key by key, and return the whole.
-- returns: dict
-- not null: metadata
UPDATE geoid_states
SET metadata = metadata || :changes
WHERE id = :id
RETURNING metadata;

-- name: add_tags(id, tags)$
-- Append the tags that a state does not have yet, in their order, and return all.
-- returns: tuple[str, ...]
-- not null: tags
UPDATE geoid_states
SET tags = COALESCE(tags, '{}') || ARRAY(
    SELECT tag
    FROM unnest(:tags::text[]) WITH ORDINALITY AS new (tag, position)
    WHERE array_position(tags, tag) IS NULL
    GROUP BY tag
    ORDER BY min(position)
)
WHERE id = :id
RETURNING tags;

-- name: remove_tags(id, tags)$
-- Take the tags away from a state and return those that are left, in their order.
-- returns: tuple[str, ...]
-- not null: tags
UPDATE geoid_states
SET tags = ARRAY(
    SELECT tag
    FROM unnest(tags) WITH ORDINALITY AS old (tag, position)
    WHERE tag <> ALL (:tags::text[])
    ORDER BY position
)
WHERE id = :id
RETURNING tags;

-- name: sample_vectors(rows)
-- Vectors of states that are picked at random.
-- returns: Vector
-- only: postgres
SELECT state_vector
FROM geoid_states
ORDER BY random()
LIMIT :rows;

-- name: stream_vectors()
-- The vectors of all states, streamed in the order in which they are stored.
-- returns: Vector
-- only: postgres
SELECT state_vector
FROM geoid_states;

-- name: sample_searches(samples, k)
-- What exact searches for some states find. With + 0 no index serves them.
-- only: postgres
-- returns: sample str, found list[str]
SELECT
    sample.id::text AS sample,
    ARRAY(
        SELECT other.id::text
        FROM geoid_states AS other
        ORDER BY (other.state_vector <=> sample.state_vector) + 0, other.id
        LIMIT :k
    ) AS found
FROM (
    SELECT id, state_vector
    FROM geoid_states
    ORDER BY id
    LIMIT :samples
) AS sample
ORDER BY sample.id;

-- name: seed(rows)!
-- Rows that verify plans the queries above with, in a transaction that it rolls back.
-- only: postgres
INSERT INTO geoid_states (state_vector, metadata, entropy, coherence_factor, energy_level, tags, timestamp)
SELECT
    (SELECT array_agg(random() - 0.5 + 0 * place) FROM generate_series(1, 1024) AS place)::vector,
    jsonb_build_object('number', number),
    number,
    0,
    0,
    ARRAY['tag ' || number],
    clock_timestamp() - number * INTERVAL '1 hour'
FROM generate_series(1, :rows) AS number;
