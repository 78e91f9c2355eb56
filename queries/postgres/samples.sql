-- name: keep(table_name, vector, k)!
-- Keep a search, in a place that is picked at random. EXCLUDED would take the right to read what others searched for.
INSERT INTO kimera_sampled_searches (table_name, place, query, k)
VALUES (:table_name, floor(random() * 1000)::integer, :vector, :k)
ON CONFLICT (table_name, place) DO UPDATE
SET query = :vector, k = :k, sampled_at = DEFAULT;

-- name: newest(table_name, limit)
-- What was searched for, the newest first. What many have searched for counts once, or it would narrow every interval.
-- returns: Vector
SELECT query
FROM kimera_sampled_searches
WHERE table_name = :table_name
GROUP BY query
ORDER BY max(sampled_at) DESC, query
LIMIT :limit;

-- name: usual_k(table_name)$
-- For how many neighbours most of the searches were.
-- returns: int | None
SELECT mode() WITHIN GROUP (ORDER BY k) AS k
FROM kimera_sampled_searches
WHERE table_name = :table_name;

-- name: record(table_name, k, queries, recall, low, high, index_name)!
-- Keep a recall that was measured, in place of an earlier one.
INSERT INTO kimera_sampled_recalls (table_name, k, queries, recall, low, high, index_name, filenode)
VALUES (
    :table_name,
    :k,
    :queries,
    :recall,
    :low,
    :high,
    :index_name,
    pg_relation_filenode(to_regclass(quote_ident(:index_name)))::bigint
)
ON CONFLICT (table_name) DO UPDATE
SET
    k = EXCLUDED.k,
    queries = EXCLUDED.queries,
    recall = EXCLUDED.recall,
    low = EXCLUDED.low,
    high = EXCLUDED.high,
    index_name = EXCLUDED.index_name,
    filenode = EXCLUDED.filenode,
    measured_at = clock_timestamp();
