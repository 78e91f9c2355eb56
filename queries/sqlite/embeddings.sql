-- name: insert(id, text_content, timestamp, source, metadata, embedding)^
-- Add an embedding; the vector is not sent back, the caller has it.
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    :text_content,
    COALESCE(:timestamp, clock_timestamp()),
    :source,
    :metadata,
    :embedding
)
RETURNING id, text_content, timestamp, source, metadata;

-- name: now()$
-- What time it is, for the rows of copy_in, which takes no defaults.
SELECT clock_timestamp();

-- name: copy_in(id, text_content, timestamp, source, metadata, embedding)!
-- Add many embeddings.
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
VALUES (:id, :text_content, :timestamp, :source, :metadata, :embedding);

-- name: upsert(id, text_content, timestamp, source, metadata, embedding)^
-- Write over the embedding of an id, or add one; the vector is not sent back, the caller has it.
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
VALUES (
    COALESCE(:id, gen_random_uuid()),
    :text_content,
    COALESCE(:timestamp, clock_timestamp()),
    :source,
    :metadata,
    :embedding
)
ON CONFLICT (id) DO UPDATE SET
    text_content = excluded.text_content,
    timestamp = excluded.timestamp,
    source = excluded.source,
    metadata = excluded.metadata,
    embedding = excluded.embedding
RETURNING id, text_content, timestamp, source, metadata;

-- name: ids_of_texts(texts, sources)
-- For each text, from the source at the same place, the id of the embedding that find_by_text gives.
SELECT (
    SELECT id
    FROM semantic_embeddings
    WHERE text_content = wanted.value
        AND source IS given.value
    ORDER BY timestamp DESC, id
    LIMIT 1
) AS id
FROM json_each(:texts) AS wanted
JOIN json_each(:sources) AS given USING (key)
ORDER BY wanted.key;

-- name: lock_texts(texts)!
-- Make others who want to write wait until this transaction ends: an update of no row takes the write lock.
UPDATE semantic_embeddings
SET source = source
WHERE :texts IS NULL;

-- name: replace_vector(id, vector)$
-- Give an embedding another vector.
UPDATE semantic_embeddings
SET embedding = :vector
WHERE id = :id
RETURNING id;

-- name: find_by_id(id)^
-- One embedding, whole.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE id = :id;

-- name: find_by_ids(ids)
-- The embeddings of a list of ids, whole.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
SELECT id
FROM semantic_embeddings
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove an embedding.
DELETE FROM semantic_embeddings
WHERE id = :id;

-- name: count_all()$
-- How many embeddings there are.
SELECT count(*)
FROM semantic_embeddings;

-- name: stream_all()
-- Every embedding, the oldest first.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
ORDER BY +timestamp, id;

-- name: stream_unordered()
-- Every embedding, in no order.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
ORDER BY +rowid;

-- name: find_by_text(text_content, source)^
-- The newest embedding of a text from a source, NULL being a source of its own.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE text_content = :text_content
    AND source IS :source
ORDER BY timestamp DESC, id
LIMIT 1;

-- name: lock_text(text_content)!
-- Make others who want to write wait until this transaction ends: an update of no row takes the write lock.
UPDATE semantic_embeddings
SET source = source
WHERE :text_content IS NULL;

-- name: similar_exact(vector, k, with_vectors, source, since, until, metadata)
-- The k embeddings nearest by cosine that pass every filter given.
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM (
    SELECT id AS nearest_id, cosine_distance(embedding, :vector) AS distance
    FROM semantic_embeddings
    WHERE (:source IS NULL OR source = :source)
        AND (:since IS NULL OR timestamp >= :since)
        AND (:until IS NULL OR timestamp < :until)
        AND (:metadata IS NULL OR json_contains(metadata, :metadata))
    ORDER BY distance NULLS LAST, id
    LIMIT :k
) AS nearest
JOIN semantic_embeddings ON id = nearest_id AND distance IS NOT NULL
ORDER BY distance, id;

-- name: within(vector, at_least, with_vectors, source, since, until, metadata)
-- Every embedding at least as similar as given that passes the filters, the most similar first. The "LIMIT -1" has each
-- distance computed once.
-- like: similar_exact, -k, +at_least
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT
        id, text_content, timestamp, source, metadata,
        cosine_distance(embedding, :vector) AS distance,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE (:source IS NULL OR source = :source)
        AND (:since IS NULL OR timestamp >= :since)
        AND (:until IS NULL OR timestamp < :until)
        AND (:metadata IS NULL OR json_contains(metadata, :metadata))
    LIMIT -1
) AS compared
WHERE 1 - distance >= :at_least
ORDER BY distance, id;

-- name: count_matching(source, since, until, metadata)$
-- How many embeddings pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors
SELECT count(*)
FROM semantic_embeddings
WHERE (:source IS NULL OR source = :source)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata));

-- name: oldest_matching(source, since, until, metadata, limit)
-- The ids of the oldest embeddings that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, +limit
SELECT id
FROM semantic_embeddings
WHERE (:source IS NULL OR source = :source)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
ORDER BY timestamp, id
LIMIT :limit;

-- name: matching_ids(first, source, since, until, metadata)
-- The ids, from the first on, of the embeddings that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, +first
SELECT id
FROM semantic_embeddings
WHERE (:first IS NULL OR id >= :first)
    AND (:source IS NULL OR source = :source)
    AND (:since IS NULL OR timestamp >= :since)
    AND (:until IS NULL OR timestamp < :until)
    AND (:metadata IS NULL OR json_contains(metadata, :metadata))
ORDER BY id;

-- name: vectors_of(ids)
-- The vectors of a list of embeddings.
SELECT id, embedding
FROM semantic_embeddings
WHERE id IN (SELECT value FROM json_each(:ids))
ORDER BY id;

-- name: delete_by_ids(ids)!
-- Remove the embeddings of a list of ids.
DELETE FROM semantic_embeddings
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: model()$
-- Which model the vectors of the embeddings are of.
SELECT model
FROM kimera_models
WHERE relation = 'semantic_embeddings';

-- name: name_model(model)!
-- Say which model the vectors of the embeddings are of.
INSERT INTO kimera_models (relation, model)
VALUES ('semantic_embeddings', :model);
