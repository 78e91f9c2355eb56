-- What is recorded of a vector index is true of the file that it was in. TRUNCATE, REINDEX, VACUUM FULL and a restore
-- make it anew in another, from other rows or from none: searches then take the index for one that was never measured.
ALTER TABLE kimera_vector_indexes ADD COLUMN filenode BIGINT;
ALTER TABLE kimera_recall_settings ADD COLUMN filenode BIGINT;
UPDATE kimera_vector_indexes SET filenode = pg_relation_filenode(to_regclass(quote_ident(index_name)))::bigint;
UPDATE kimera_recall_settings SET filenode = pg_relation_filenode(to_regclass(quote_ident(index_name)))::bigint;

-- Rows that were dead by then are not in the index. See search.vector_indexes.
ALTER TABLE kimera_vector_indexes ADD COLUMN dead_at_build BIGINT NOT NULL DEFAULT 0;
