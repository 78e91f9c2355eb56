-- name: insert(id, text_content, timestamp, source, metadata, embedding)^
-- Add an embedding; the vector is not sent back, the caller has it.
-- takes: NewEmbedding
-- returns: EmbeddingSummary
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    :text_content,
    COALESCE(:timestamp::timestamptz, clock_timestamp()),
    :source,
    :metadata,
    :embedding
)
RETURNING id, text_content, timestamp, source, metadata;

-- name: now()$
-- What time it is, for rows that are sent with COPY, which takes no defaults for NULL.
-- returns: datetime
SELECT clock_timestamp();

-- name: copy_in()#
-- Add many embeddings.
-- types: uuid, text, timestamptz, text, jsonb, vector
COPY semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
FROM STDIN (FORMAT BINARY);

-- name: upsert(id, text_content, timestamp, source, metadata, embedding)^
-- Write over the embedding of an id, or add one; the vector is not sent back, the caller has it.
-- takes: NewEmbedding
-- returns: EmbeddingSummary
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
VALUES (
    COALESCE(:id::uuid, gen_random_uuid()),
    :text_content,
    COALESCE(:timestamp::timestamptz, clock_timestamp()),
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

-- name: upsert_many(id, text_content, timestamp, source, metadata, embedding)
-- The same for many embeddings, each column an array. In the order of their ids, so that of two who write the same rows one
-- waits for the other.
-- returns: inserted bool
-- not null: inserted
-- only: postgres
INSERT INTO semantic_embeddings (id, text_content, timestamp, source, metadata, embedding)
SELECT id, text_content, COALESCE(timestamp, clock_timestamp()), source, metadata, embedding
FROM unnest(
    :id::uuid[],
    :text_content::text[],
    :timestamp::timestamptz[],
    :source::text[],
    :metadata::jsonb[],
    :embedding::vector[]
) AS given (id, text_content, timestamp, source, metadata, embedding)
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    text_content = excluded.text_content,
    timestamp = excluded.timestamp,
    source = excluded.source,
    metadata = excluded.metadata,
    embedding = excluded.embedding
RETURNING xmax = 0 AS inserted;

-- name: ids_of_texts(texts, sources)
-- For each text, from the source at the same place, the id of the embedding that find_by_text gives.
-- returns: UUID | None
-- nullable: id
-- uses: idx_embedding_text
SELECT (
    SELECT id
    FROM semantic_embeddings
    WHERE text_content = wanted.text_content
        AND source IS NOT DISTINCT FROM wanted.source
    ORDER BY timestamp DESC, id
    LIMIT 1
) AS id
FROM unnest(:texts::text[], :sources::text[]) WITH ORDINALITY AS wanted (text_content, source, position)
ORDER BY position;

-- name: scattered_ids_of_texts(texts, sources)
-- The same on shards of Citus, which runs no subquery for each text: the places of those found, counted from 1, and the ids.
-- returns: position int, id UUID
-- not null: position
-- uses: idx_embedding_text
-- only: postgres
SELECT DISTINCT ON (wanted.position) wanted.position, semantic_embeddings.id
FROM unnest(:texts::text[], :sources::text[]) WITH ORDINALITY AS wanted (text_content, source, position)
JOIN semantic_embeddings
    ON semantic_embeddings.text_content = wanted.text_content
    AND semantic_embeddings.source IS NOT DISTINCT FROM wanted.source
ORDER BY wanted.position, semantic_embeddings.timestamp DESC, semantic_embeddings.id;

-- name: lock_texts(texts)!
-- Make others who want to embed any text wait until this transaction ends, and wait for those who do already: see lock_text.
INSERT INTO kimera_text_locks (place)
SELECT DISTINCT hashtextextended(text_content, 0) & 65535
FROM (SELECT pg_advisory_xact_lock(hashtextextended('semantic_embeddings', 1))) AS locked
CROSS JOIN unnest(:texts::text[]) AS wanted (text_content)
ON CONFLICT (place) DO UPDATE SET place = excluded.place;

-- name: replace_vector(id, vector)$
-- Give an embedding another vector.
-- returns: UUID
UPDATE semantic_embeddings
SET embedding = :vector
WHERE id = :id
RETURNING id;

-- name: find_by_id(id)^
-- One embedding, whole.
-- returns: Embedding
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE id = :id;

-- name: find_by_ids(ids)
-- The embeddings of a list of ids, whole.
-- returns: Embedding
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE id = ANY(:ids)
ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: UUID
SELECT id
FROM semantic_embeddings
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_id(id)!
-- Remove an embedding.
DELETE FROM semantic_embeddings
WHERE id = :id;

-- name: count_all()$
-- How many embeddings there are.
-- returns: int
SELECT count(*)
FROM semantic_embeddings;

-- name: stream_all()
-- Every embedding, the oldest first.
-- returns: Embedding
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
ORDER BY timestamp, id;

-- name: stream_unordered()
-- Every embedding, in no order.
-- returns: Embedding
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings;

-- name: find_by_text(text_content, source)^
-- The newest embedding of a text from a source, NULL being a source of its own.
-- returns: Embedding
-- uses: idx_embedding_text
SELECT id, text_content, timestamp, source, metadata, embedding
FROM semantic_embeddings
WHERE text_content = :text_content
    AND source IS NOT DISTINCT FROM :source
ORDER BY timestamp DESC, id
LIMIT 1;

-- name: lock_text(text_content)!
-- Make others who want to embed the same text wait until this transaction ends. The first lock, which they share, is that of
-- lock_texts: a lock for each text of a large batch would not fit into the server's memory of locks. A transaction that goes
-- by an older snapshot than theirs would not see what they have stored: it fails to serialize at the row that it writes here.
INSERT INTO kimera_text_locks (place)
SELECT hashtextextended(:text_content, 0) & 65535
FROM (
    SELECT
        pg_advisory_xact_lock_shared(hashtextextended('semantic_embeddings', 1)),
        pg_advisory_xact_lock(hashtextextended(:text_content, 0))
) AS locked
ON CONFLICT (place) DO UPDATE SET place = excluded.place;

-- name: nearest_full(vector, k, candidates, ef_search, index, filenode, with_vectors)
-- The k embeddings nearest by cosine where nothing filters them, by an hnsw index on the vectors as they are: a search in one
-- statement, and one plan for every vector. The inner limit sets hnsw.ef_search before the index is read. The outermost
-- SELECT, computed when all is read and sorted, gives it its value back. LIMIT 200 is for the planner: it can't know the
-- other limit, and would expect a tenth of the table. Nothing is read, and no row found, where the index is not in the
-- file any more that it was in when the catalogue was read: it was dropped or rebuilt since.
-- returns: EmbeddingSummary, similarity float, embedding Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_embedding_vector
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, text_content, timestamp, source, metadata, distance, embedding
    FROM (
        SELECT
            id, text_content, timestamp, source, metadata,
            embedding <=> :vector AS distance,
            CASE WHEN :with_vectors THEN embedding END AS embedding
        FROM semantic_embeddings
        ORDER BY semantic_embeddings.embedding <=> :vector
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
-- returns: EmbeddingSummary, similarity float, embedding Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_embedding_vector_hnsw_half
-- needs: vector 0.7
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, text_content, timestamp, source, metadata, distance, embedding
    FROM (
        SELECT
            id, text_content, timestamp, source, metadata,
            embedding <=> :vector AS distance,
            CASE WHEN :with_vectors THEN embedding END AS embedding
        FROM semantic_embeddings
        ORDER BY l2_normalize(semantic_embeddings.embedding)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
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
-- returns: EmbeddingSummary, similarity float, embedding Vector | None, ef_search str
-- not null: similarity, ef_search
-- uses: idx_embedding_vector_hnsw_binary
-- needs: vector 0.7
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding,
    set_config('hnsw.ef_search', current_setting('kimera.hnsw_ef_search'), true) AS ef_search
FROM (
    SELECT id, text_content, timestamp, source, metadata, distance, embedding
    FROM (
        SELECT
            id, text_content, timestamp, source, metadata,
            embedding <=> :vector AS distance,
            CASE WHEN :with_vectors THEN embedding END AS embedding
        FROM semantic_embeddings
        ORDER BY binary_quantize(semantic_embeddings.embedding)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
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

-- name: similar_full(vector, k, candidates, with_vectors, source, since, until, metadata)
-- The k embeddings nearest by cosine that pass every filter given, by an index on the vectors as they are.
-- like: similar_exact, +candidates
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT
        id, text_content, timestamp, source, metadata,
        embedding <=> :vector AS distance,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE (:source::text IS NULL OR source = :source)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY semantic_embeddings.embedding <=> :vector
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: similar_half(vector, k, candidates, with_vectors, source, since, until, metadata)
-- The same by an index in half precision: more candidates than k, of which the exact distance decides.
-- like: similar_exact, +candidates
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector_hnsw_half
-- needs: vector 0.7
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT
        id, text_content, timestamp, source, metadata,
        embedding <=> :vector AS distance,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE (:source::text IS NULL OR source = :source)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY l2_normalize(semantic_embeddings.embedding)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: similar_binary(vector, k, candidates, with_vectors, source, since, until, metadata)
-- The same by an index on the signs of the components: many candidates, of which the exact distance decides.
-- like: similar_exact, +candidates
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector_hnsw_binary
-- needs: vector 0.7
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT
        id, text_content, timestamp, source, metadata,
        embedding <=> :vector AS distance,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE (:source::text IS NULL OR source = :source)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY binary_quantize(semantic_embeddings.embedding)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
    LIMIT :candidates
) AS nearest
ORDER BY distance, id
LIMIT :k;

-- name: scattered_full(vector, candidates, names, settings, with_vectors, source, since, until, metadata)
-- The same on shards of Citus, where each gives its nearest candidates: k of all of them are chosen outside, because Citus
-- would first gather a subquery's rows in a file. kimera_set_local is called once, before the index is read.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - (embedding <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM semantic_embeddings
WHERE kimera_set_local(:names, :settings)
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY semantic_embeddings.embedding <=> :vector
LIMIT :candidates;

-- name: scattered_half(vector, candidates, names, settings, with_vectors, source, since, until, metadata)
-- The same by an index in half precision.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector_hnsw_half
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - (embedding <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM semantic_embeddings
WHERE kimera_set_local(:names, :settings)
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY l2_normalize(semantic_embeddings.embedding)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)
LIMIT :candidates;

-- name: scattered_binary(vector, candidates, names, settings, with_vectors, source, since, until, metadata)
-- The same by an index on the signs of the components.
-- like: similar_exact, -k, +candidates, +names, +settings
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- uses: idx_embedding_vector_hnsw_binary
-- needs: citus
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - (embedding <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM semantic_embeddings
WHERE kimera_set_local(:names, :settings)
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY binary_quantize(semantic_embeddings.embedding)::bit(1024) <~> binary_quantize(:vector)::bit(1024)
LIMIT :candidates;

-- name: similar_exact(vector, k, with_vectors, source, since, until, metadata)
-- The same by comparing all embeddings that pass the filters. The "+ 0" is what no vector index can serve. Ids and distances
-- alone are sorted, because a sort copies each row that it is given; the columns are read for the k found.
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- plan: custom
SELECT
    id, text_content, timestamp, source, metadata,
    1 - nearest.distance AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM (
    SELECT id, (embedding <=> :vector) + 0 AS distance
    FROM semantic_embeddings
    WHERE (:source::text IS NULL OR source = :source)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY distance, id
    LIMIT :k
) AS nearest
JOIN semantic_embeddings USING (id)
ORDER BY nearest.distance, id;

-- name: similar_few(vector, k, with_vectors, source, since, until, metadata)
-- The same where few embeddings pass the filters: sorting them whole is quicker than reading k of them again.
-- like: similar_exact
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT
        id, text_content, timestamp, source, metadata,
        (embedding <=> :vector) + 0 AS distance,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE (:source::text IS NULL OR source = :source)
        AND (:since::timestamptz IS NULL OR timestamp >= :since)
        AND (:until::timestamptz IS NULL OR timestamp < :until)
        AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
    ORDER BY distance, id
    LIMIT :k
) AS nearest
ORDER BY distance, id;

-- name: within(vector, at_least, with_vectors, source, since, until, metadata)
-- Every embedding at least as similar as given that passes the filters, the most similar first, by comparing all. The
-- "OFFSET 0" of the distance has it computed once; that of the columns has them read late, for one row after the other,
-- so that ids and distances alone are sorted, and a cursor reads no more than it is asked for.
-- like: similar_exact, -k, +at_least, +nearest
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- plan: custom
SELECT
    nearest.id, text_content, timestamp, source, metadata,
    1 - distance AS similarity, embedding
FROM (
    SELECT id, distance
    FROM (
        SELECT id, (embedding <=> :vector) + 0 AS distance
        FROM semantic_embeddings
        WHERE (:source::text IS NULL OR source = :source)
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
        text_content, timestamp, source, metadata,
        CASE WHEN :with_vectors THEN embedding END AS embedding
    FROM semantic_embeddings
    WHERE semantic_embeddings.id = nearest.id
    OFFSET 0
) AS found
ORDER BY distance, nearest.id;

-- name: scattered_within(vector, at_least, with_vectors, source, since, until, metadata)
-- The same on shards of Citus, which refuses the subqueries.
-- like: similar_exact, -k, +at_least
-- returns: EmbeddingSummary, similarity float, embedding Vector | None
-- not null: similarity
-- plan: custom
-- only: postgres
SELECT
    id, text_content, timestamp, source, metadata,
    1 - (embedding <=> :vector) AS similarity,
    CASE WHEN :with_vectors THEN embedding END AS embedding
FROM semantic_embeddings
WHERE 1 - (embedding <=> :vector) >= :at_least
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY (embedding <=> :vector) + 0, id;

-- name: matching_plan(source, since, until, metadata)$
-- The plan of finding what passes the filters, for the planner's estimate of how many rows that is.
-- like: similar_exact, -vector, -k, -with_vectors
-- returns: list
-- not null: QUERY PLAN
-- plan: custom
-- only: postgres
EXPLAIN (FORMAT JSON) SELECT id
FROM semantic_embeddings
WHERE (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata);

-- name: matching_words(words, limit, source, since, until, metadata)
-- The embeddings whose texts match words (websearch_to_tsquery's syntax) and pass the filters, the best match first.
-- like: similar_exact, -vector, -k, -with_vectors, +words, +query, +limit
-- returns: EmbeddingSummary
-- uses: idx_embedding_words
-- plan: custom
-- only: postgres
SELECT id, text_content, timestamp, source, metadata
FROM semantic_embeddings
CROSS JOIN websearch_to_tsquery('english', :words) AS query
WHERE to_tsvector('english', left(text_content, 100000)) @@ query
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY ts_rank_cd(to_tsvector('english', left(text_content, 100000)), query, 1) DESC, id
LIMIT :limit;

-- name: count_matching(source, since, until, metadata)$
-- How many embeddings pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors
-- returns: int
-- plan: custom
SELECT count(*)
FROM semantic_embeddings
WHERE (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata);

-- name: oldest_matching(source, since, until, metadata, limit)
-- The ids of the oldest embeddings that pass every filter given; nobody else changes them until the transaction ends.
-- like: similar_exact, -vector, -k, -with_vectors, +limit
-- returns: UUID
-- uses: idx_embedding_timestamp
-- plan: custom
SELECT id
FROM semantic_embeddings
WHERE (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY timestamp, id
LIMIT :limit
FOR UPDATE;

-- name: scattered_oldest(source, since, until, metadata, limit)
-- The same on shards of Citus, which locks no rows of several shards: others may delete them meanwhile.
-- like: similar_exact, -vector, -k, -with_vectors, +limit
-- returns: UUID
-- uses: idx_embedding_timestamp
-- plan: custom
-- only: postgres
SELECT id
FROM semantic_embeddings
WHERE (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY timestamp, id
LIMIT :limit;

-- name: matching_ids(first, source, since, until, metadata)
-- The ids, from the first on, of the embeddings that pass every filter given.
-- like: similar_exact, -vector, -k, -with_vectors, +first
-- returns: UUID
-- plan: custom
SELECT id
FROM semantic_embeddings
WHERE (:first::uuid IS NULL OR id >= :first)
    AND (:source::text IS NULL OR source = :source)
    AND (:since::timestamptz IS NULL OR timestamp >= :since)
    AND (:until::timestamptz IS NULL OR timestamp < :until)
    AND (:metadata::jsonb IS NULL OR metadata @> :metadata)
ORDER BY id;

-- name: vectors_of(ids)
-- The vectors of a list of embeddings.
-- returns: id UUID, embedding Vector
SELECT id, embedding
FROM semantic_embeddings
WHERE id = ANY(:ids)
ORDER BY id;

-- name: delete_by_ids(ids)!
-- Remove the embeddings of a list of ids.
DELETE FROM semantic_embeddings
WHERE id = ANY(:ids);

-- name: sample_vectors(rows)
-- Vectors of embeddings that are picked at random.
-- returns: Vector
-- only: postgres
SELECT embedding
FROM semantic_embeddings
ORDER BY random()
LIMIT :rows;

-- name: stream_vectors()
-- The vectors of all embeddings, streamed in the order in which they are stored.
-- returns: Vector
-- only: postgres
SELECT embedding
FROM semantic_embeddings;

-- name: sample_searches(samples, k)
-- What exact searches for some embeddings find. With + 0 no index serves them.
-- only: postgres
-- returns: sample str, found list[str]
SELECT
    sample.id::text AS sample,
    ARRAY(
        SELECT other.id::text
        FROM semantic_embeddings AS other
        ORDER BY (other.embedding <=> sample.embedding) + 0, other.id
        LIMIT :k
    ) AS found
FROM (
    SELECT id, embedding
    FROM semantic_embeddings
    ORDER BY id
    LIMIT :samples
) AS sample
ORDER BY sample.id;

-- name: seed(rows)!
-- Rows that verify plans the queries above with, in a transaction that it rolls back.
-- only: postgres
INSERT INTO semantic_embeddings (text_content, embedding, source, metadata, timestamp)
SELECT
    'text ' || number,
    (SELECT array_agg(random() - 0.5 + 0 * place) FROM generate_series(1, 1024) AS place WHERE number > 0)::vector,
    'source ' || number,
    jsonb_build_object('number', number),
    clock_timestamp() - number * INTERVAL '1 hour'
FROM generate_series(1, :rows) AS number;

-- name: model()$
-- Which model the vectors of the embeddings are of. The table is looked up by its name when it is locked already, so that
-- the answer holds for what the transaction reads of it, before and after.
-- returns: str
SELECT model
FROM kimera_models
WHERE relation = to_regclass('semantic_embeddings')
    AND serving
    AND NOT EXISTS (SELECT 1 FROM semantic_embeddings LIMIT 0);

-- name: name_model(model)!
-- Say which model the vectors of the embeddings are of.
INSERT INTO kimera_models (relation, model)
VALUES (to_regclass('semantic_embeddings'), :model)
ON CONFLICT (relation) DO UPDATE
SET model = EXCLUDED.model, since = clock_timestamp();
