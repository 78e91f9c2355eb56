-- name: forget_other()!
-- Forget which model they are of, before they go.
DELETE FROM kimera_models
WHERE NOT serving;

-- name: state()^
-- The other vectors, beside those that serve: which models they are of, how many are to be made, since when they are there, and
-- what they take up. was_serving: they are of the model before. It reads no embedding, and needs no right to.
-- returns: Renewal
-- not null: waiting, size, was_serving
SELECT
    serving.model AS serving,
    other.model AS other,
    (SELECT count(*) FROM kimera_renewal_queue) AS waiting,
    other.since,
    pg_total_relation_size(other.relation) AS size,
    other.since < serving.since AS was_serving
FROM kimera_models AS other
JOIN pg_class AS other_class ON other_class.oid = other.relation
JOIN pg_namespace ON pg_namespace.oid = other_class.relnamespace
JOIN kimera_models AS serving ON serving.serving
WHERE pg_namespace.nspname = 'kimera_renewal'
    AND other_class.relname = 'semantic_embeddings';

-- name: name_next(model)!
-- Note which model the other vectors are of.
INSERT INTO kimera_models (relation, model, serving)
VALUES (to_regclass('kimera_renewal.semantic_embeddings'), :model, false);

-- name: exchange_models()!
-- Note which vectors serve from now on.
UPDATE kimera_models
SET
    serving = NOT serving,
    since = CASE WHEN serving THEN since ELSE clock_timestamp() END;

-- name: obstacles()
-- What depends on the table itself, and would go on with the vectors of before when another took its place.
-- returns: str
-- not null: what
SELECT 'view ' || view.oid::regclass AS what
FROM pg_depend AS depends
JOIN pg_rewrite AS rule ON rule.oid = depends.objid
JOIN pg_class AS view ON view.oid = rule.ev_class
WHERE depends.classid = 'pg_rewrite'::regclass
    AND depends.refobjid = to_regclass('semantic_embeddings')
    AND view.oid <> depends.refobjid
UNION
SELECT 'rule ' || quote_ident(rulename)
FROM pg_rewrite
WHERE ev_class = to_regclass('semantic_embeddings')
UNION
SELECT 'function ' || objid::regprocedure
FROM pg_depend
WHERE classid = 'pg_proc'::regclass
    AND refobjid = to_regclass('semantic_embeddings')
UNION
SELECT format('foreign key %%I of %%s', conname, conrelid::regclass)
FROM pg_constraint
WHERE confrelid = to_regclass('semantic_embeddings')
UNION
SELECT 'policy ' || quote_ident(polname)
FROM pg_policy
WHERE polrelid = to_regclass('semantic_embeddings')
UNION
SELECT 'trigger ' || quote_ident(tgname)
FROM pg_trigger
WHERE tgrelid = to_regclass('semantic_embeddings')
    AND NOT tgisinternal
    AND tgname NOT IN ('kimera_renewal', 'kimera_renewal_truncated')
UNION
SELECT 'publication ' || quote_ident(pubname)
FROM pg_publication_rel
JOIN pg_publication ON pg_publication.oid = prpubid
WHERE prrelid = to_regclass('semantic_embeddings')
UNION
SELECT 'inheritance from ' || inhparent::regclass
FROM pg_inherits
WHERE inhrelid = to_regclass('semantic_embeddings')
UNION
SELECT 'inheritance by ' || inhrelid::regclass
FROM pg_inherits
WHERE inhparent = to_regclass('semantic_embeddings')
UNION
SELECT 'generated column ' || quote_ident(attname)
FROM pg_attribute
WHERE attrelid = to_regclass('semantic_embeddings')
    AND attgenerated <> ''
UNION
SELECT 'sequence ' || objid::regclass
FROM pg_depend
WHERE classid = 'pg_class'::regclass
    AND refobjid = to_regclass('semantic_embeddings')
    AND deptype IN ('a', 'i')
    AND objid IN (SELECT oid FROM pg_class WHERE relkind = 'S')
UNION
SELECT 'statistics ' || quote_ident(stxname)
FROM pg_statistic_ext
WHERE stxrelid = to_regclass('semantic_embeddings')
UNION
SELECT format('column %%I, which was added since the renewal began', attname)
FROM pg_attribute AS here
WHERE attrelid = to_regclass('semantic_embeddings')
    AND attnum > 0
    AND NOT attisdropped
    AND to_regclass('kimera_renewal.semantic_embeddings') IS NOT NULL
    AND NOT EXISTS (
        SELECT 1
        FROM pg_attribute AS there
        WHERE there.attrelid = to_regclass('kimera_renewal.semantic_embeddings')
            AND there.attname = here.attname
            AND there.atttypid = here.atttypid
            AND NOT there.attisdropped
    )
UNION
SELECT 'row-level security'
FROM pg_class
WHERE oid = to_regclass('semantic_embeddings')
    AND relrowsecurity
ORDER BY what;

-- name: create_schema()!
-- Where the other vectors are.
CREATE SCHEMA kimera_renewal;

-- name: create_table()!
-- A table for them, which lacks what likeness makes.
CREATE TABLE kimera_renewal.semantic_embeddings (
    LIKE semantic_embeddings INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS
);

-- name: create_records()!
-- What is recorded of their indexes, and of searches, which are none yet.
CREATE TABLE kimera_renewal.kimera_vector_indexes (LIKE kimera_vector_indexes INCLUDING ALL);

-- name: create_settings()!
-- The settings that are tuned for their indexes.
CREATE TABLE kimera_renewal.kimera_recall_settings (LIKE kimera_recall_settings INCLUDING ALL);

-- name: create_searches()!
-- Searches that were sampled: none. Those that there are have vectors of the model that serves.
CREATE TABLE kimera_renewal.kimera_sampled_searches (LIKE kimera_sampled_searches INCLUDING ALL);

-- name: create_recalls()!
-- Their recall.
CREATE TABLE kimera_renewal.kimera_sampled_recalls (LIKE kimera_sampled_recalls INCLUDING ALL);

-- name: create_note()!
-- What notes a change in the queue. Whoever may write embeddings need not see the queue. NULL stands for TRUNCATE.
CREATE FUNCTION kimera_renewal.note() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    queue TEXT;
BEGIN
    queue = format('INSERT INTO %%I.kimera_renewal_queue (id) VALUES ($1)', TG_TABLE_SCHEMA);
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE queue USING NULL::uuid;
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        EXECUTE queue USING OLD.id;
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
        EXECUTE queue USING NEW.id;
    END IF;
    RETURN NULL;
END
$$;

-- name: follow()!
-- Have changes of the embeddings that serve noted.
CREATE TRIGGER kimera_renewal
AFTER INSERT OR UPDATE OR DELETE ON semantic_embeddings
FOR EACH ROW EXECUTE FUNCTION kimera_renewal.note();

-- name: follow_truncation()!
-- Have it noted when all are removed at once.
CREATE TRIGGER kimera_renewal_truncated
AFTER TRUNCATE ON semantic_embeddings
FOR EACH STATEMENT EXECUTE FUNCTION kimera_renewal.note();

-- name: unfollow()!
-- No more.
DROP TRIGGER kimera_renewal ON semantic_embeddings;

-- name: unfollow_truncation()!
-- No more.
DROP TRIGGER kimera_renewal_truncated ON semantic_embeddings;

-- name: drop()!
-- Drop the other vectors and all that belongs to them.
DROP SCHEMA kimera_renewal CASCADE;

-- name: shut()!
-- Let nobody read or write the embeddings until the transaction ends.
LOCK TABLE semantic_embeddings IN ACCESS EXCLUSIVE MODE;

-- name: analyze()!
-- Let the planner know the other vectors.
ANALYZE semantic_embeddings;

-- name: likeness()
-- The statements that make a table, a copy of the embeddings' by LIKE, what that leaves out: keys and indexes under their own
-- names, but the vector indexes; storage parameters, statistics targets, the owner and privileges, comments.
-- returns: str
-- not null: statement
SELECT statement
FROM (
    SELECT 1 AS place, format('ALTER TABLE kimera_renewal.semantic_embeddings ADD CONSTRAINT %%I %%s', conname, pg_get_constraintdef(oid)) AS statement
    FROM pg_constraint
    WHERE conrelid = to_regclass('semantic_embeddings')
        AND contype IN ('p', 'u', 'x', 'f')
    UNION ALL
    SELECT
        2,
        format(
            'CREATE %%sINDEX %%I ON kimera_renewal.semantic_embeddings %%s',
            CASE WHEN indisunique THEN 'UNIQUE ' END,
            index_class.relname,
            substring(pg_get_indexdef(indexrelid) FROM ' (USING .*)$')
        )
    FROM pg_index
    JOIN pg_class AS index_class ON index_class.oid = indexrelid
    JOIN pg_am AS am ON am.oid = index_class.relam
    WHERE indrelid = to_regclass('semantic_embeddings')
        AND am.amname NOT IN ('hnsw', 'ivfflat')
        AND indexrelid NOT IN (SELECT conindid FROM pg_constraint WHERE conrelid = indrelid)
    UNION ALL
    SELECT 3, format('ALTER TABLE kimera_renewal.semantic_embeddings SET (%%s)', array_to_string(reloptions, ', '))
    FROM pg_class
    WHERE oid = to_regclass('semantic_embeddings')
        AND reloptions IS NOT NULL
    UNION ALL
    SELECT 3, format('ALTER TABLE kimera_renewal.semantic_embeddings ALTER COLUMN %%I SET STATISTICS %%s', attname, attstattarget)
    FROM pg_attribute
    WHERE attrelid = to_regclass('semantic_embeddings')
        AND attnum > 0
        AND attstattarget >= 0
    UNION ALL
    SELECT 3, format('COMMENT ON TABLE kimera_renewal.semantic_embeddings IS %%L', description)
    FROM pg_description
    WHERE objoid = to_regclass('semantic_embeddings')
        AND classoid = 'pg_class'::regclass
        AND objsubid = 0
    UNION ALL
    SELECT
        3,
        format(
            'GRANT %%s ON kimera_renewal.semantic_embeddings TO %%s%%s',
            privilege_type,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
        )
    FROM pg_class
    CROSS JOIN aclexplode(relacl) AS granted
    WHERE oid = to_regclass('semantic_embeddings')
    UNION ALL
    SELECT
        3,
        format(
            'GRANT %%s (%%I) ON kimera_renewal.semantic_embeddings TO %%s%%s',
            privilege_type,
            attname,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
        )
    FROM pg_attribute
    CROSS JOIN aclexplode(attacl) AS granted
    WHERE attrelid = to_regclass('semantic_embeddings')
    UNION ALL
    SELECT place, format('ALTER %%s OWNER TO %%s', made, relowner::regrole)
    FROM pg_class
    CROSS JOIN (
        VALUES
        (0, 'SCHEMA kimera_renewal'),
        (4, 'TABLE kimera_renewal.semantic_embeddings'),
        (4, 'TABLE kimera_renewal.kimera_vector_indexes'),
        (4, 'TABLE kimera_renewal.kimera_recall_settings'),
        (4, 'TABLE kimera_renewal.kimera_sampled_searches'),
        (4, 'TABLE kimera_renewal.kimera_sampled_recalls'),
        (4, 'FUNCTION kimera_renewal.note()')
    ) AS owned (place, made)
    WHERE oid = to_regclass('semantic_embeddings')
        AND relowner <> CURRENT_USER::regrole
) AS made
ORDER BY place, statement;

-- name: home()$
-- The schema of the embeddings.
-- returns: str
SELECT nspname
FROM pg_class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE pg_class.oid = to_regclass('semantic_embeddings');

-- name: search_path()$
-- Where names are looked up.
-- returns: str
-- not null: path
SELECT current_setting('search_path') AS path;

-- name: set_search_path(path)$
-- Look names up elsewhere.
-- returns: str
-- not null: path
SELECT set_config('search_path', :path, false) AS path;

-- name: set_lock_timeout(milliseconds)$
-- How long this transaction waits for a lock at most.
-- returns: str
-- not null: value
SELECT set_config('lock_timeout', :milliseconds, true) AS value;

-- name: lock()!
-- Let one at a time put vectors beside the others, or change places.
SELECT pg_advisory_xact_lock(hashtextextended('kimera_renewal', 0));

-- name: enqueue()!
-- Have the vectors of all rows made.
INSERT INTO kimera_renewal_queue (id)
SELECT id
FROM semantic_embeddings;

-- name: waiting()$
-- How many there still are to make.
-- returns: int
SELECT count(*)
FROM kimera_renewal_queue;

-- name: next(limit)
-- The first of them, with their texts: none where the row is gone.
-- returns: number int, id UUID | None, text_content str | None
SELECT queue.number, queue.id, stored.text_content
FROM kimera_renewal_queue AS queue
LEFT JOIN semantic_embeddings AS stored ON stored.id = queue.id
ORDER BY queue.number
LIMIT :limit;

-- name: done(numbers)!
-- They are made.
DELETE FROM kimera_renewal_queue
WHERE number = ANY(:numbers);

-- name: clear_queue()!
-- None is to be made.
DELETE FROM kimera_renewal_queue;

-- name: rows(ids)
-- Rows as JSON, with whatever columns the table has, but their vectors; as text, for numbers of any length.
-- returns: id UUID, text_content str, described str
-- not null: described
SELECT id, text_content, (to_jsonb(stored) - 'embedding')::text AS described
FROM semantic_embeddings AS stored
WHERE id = ANY(:ids)
ORDER BY id;

-- name: put(rows, vectors)!
-- Add rows that are given as JSON, and their vectors.
INSERT INTO semantic_embeddings OVERRIDING SYSTEM VALUE
SELECT made.*
FROM unnest(:rows::text[], :vectors::text[]) AS given (described, vector)
CROSS JOIN LATERAL jsonb_populate_record(
    NULL::semantic_embeddings, given.described::jsonb || jsonb_build_object('embedding', given.vector)
) AS made;

-- name: clear()!
-- Remove all embeddings.
DELETE FROM semantic_embeddings;

-- name: forget_searches()!
-- Forget the searches that were sampled, and their recall: their vectors are of the other model.
WITH forgotten AS (
    DELETE FROM kimera_sampled_recalls
    WHERE table_name = 'semantic_embeddings'
)
DELETE FROM kimera_sampled_searches
WHERE table_name = 'semantic_embeddings';

-- name: index_names()
-- What is recorded of the indexes of the embeddings goes by these names.
-- returns: str
SELECT relname
FROM pg_index
JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = to_regclass('semantic_embeddings')
ORDER BY relname;
