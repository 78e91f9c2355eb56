-- What the vector indexes were built from, so that it is known when they have aged, and the settings that were
-- measured to reach a recall. Both go by the index's name, and a row whose index is gone counts for nothing.
CREATE TABLE kimera_vector_indexes (
    index_name TEXT PRIMARY KEY,
    rows_at_build BIGINT NOT NULL,
    size_at_build BIGINT NOT NULL,
    built_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE kimera_recall_settings (
    index_name TEXT NOT NULL,
    k INTEGER NOT NULL,
    target DOUBLE PRECISION NOT NULL,
    -- probes of an ivfflat index, ef_search of an hnsw one; NULL where none reaches the target
    setting INTEGER,
    measured_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (index_name, k, target)
);

-- embeddings.hybrid. left() because to_tsvector refuses what makes more than 1 MB of lexemes, and with it the row.
CREATE INDEX idx_embedding_words ON semantic_embeddings
    USING GIN (to_tsvector('english', left(text_content, 100000)));
