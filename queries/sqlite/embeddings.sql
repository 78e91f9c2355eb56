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
-- The oldest embedding of a text from a source, NULL being a source of its own.
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE text_content = :text_content
    AND source IS :source
ORDER BY timestamp, id
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
    ORDER BY distance, id
    LIMIT :k
) AS nearest
JOIN semantic_embeddings ON id = nearest_id
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
