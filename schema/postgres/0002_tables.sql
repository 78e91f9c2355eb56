-- The five tables of the specification, under its names. Stricter than it in three ways: timestamps and JSON are
-- never NULL, JSON is an object, so that a reader gets a datetime and a dict every time, and a portal never gives
-- energy, because the search for the cheapest route rests on that.
--
-- pgvector sums squares in single precision: a vector that is zero, or whose norm is far from 1, has a cosine
-- distance of NaN, no place in an index, and so would never be found. The bounds are those of kimera_sql.vectors.
--
-- Vectors are stored PLAIN, inside the row, where the default for their size is EXTERNAL, out of line. Measured on 20,000
-- real embeddings (PostgreSQL 18.4, pgvector 0.8.5), PLAIN against EXTERNAL: exact search 3.6 times as fast, exact search
-- over the 10 % of rows that a filter leaves 3.8 to 5.1 times, over 1 % 2.7 times, binary index with re-ranking 1.5 times,
-- half-precision index 1.1 times, building that index 1.6 times. The price: a row fills a page of 8 kB (162 MB with all
-- indexes but the vectors', against 111 MB), so a scan that reads no vectors is 4.8 times slower (7 ms against 1.5 ms), and
-- reading 200 rows by an index 1.5 times. Searching is what these tables are for.

CREATE TABLE geoid_states (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    state_vector VECTOR(1024) NOT NULL
        CONSTRAINT geoid_states_vector_norm CHECK (vector_norm(state_vector) BETWEEN 1e-15 AND 1e18),
    metadata JSONB NOT NULL DEFAULT '{}'::jsonb
        CONSTRAINT geoid_states_metadata_object CHECK (jsonb_typeof(metadata) = 'object'),
    entropy DOUBLE PRECISION NOT NULL,
    coherence_factor DOUBLE PRECISION NOT NULL,
    energy_level DOUBLE PRECISION NOT NULL,
    creation_context TEXT,
    tags TEXT[]
);
ALTER TABLE geoid_states ALTER COLUMN state_vector SET STORAGE PLAIN;

CREATE TABLE cognitive_transitions (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    source_id UUID NOT NULL REFERENCES geoid_states (id),
    target_id UUID NOT NULL REFERENCES geoid_states (id),
    transition_energy DOUBLE PRECISION NOT NULL,
    conservation_error DOUBLE PRECISION NOT NULL,
    transition_type TEXT NOT NULL,
    timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    metadata JSONB NOT NULL DEFAULT '{}'::jsonb
        CONSTRAINT cognitive_transitions_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
);

CREATE TABLE semantic_embeddings (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    text_content TEXT NOT NULL,
    embedding VECTOR(1024) NOT NULL
        CONSTRAINT semantic_embeddings_vector_norm CHECK (vector_norm(embedding) BETWEEN 1e-15 AND 1e18),
    timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    source TEXT,
    metadata JSONB NOT NULL DEFAULT '{}'::jsonb
        CONSTRAINT semantic_embeddings_metadata_object CHECK (jsonb_typeof(metadata) = 'object')
);
ALTER TABLE semantic_embeddings ALTER COLUMN embedding SET STORAGE PLAIN;

CREATE TABLE portal_configurations (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    source_dimension INTEGER NOT NULL,
    target_dimension INTEGER NOT NULL,
    radius DOUBLE PRECISION NOT NULL,
    energy_requirement DOUBLE PRECISION NOT NULL
        CONSTRAINT portal_configurations_energy_not_negative CHECK (energy_requirement >= 0),
    stability_factor DOUBLE PRECISION NOT NULL,
    creation_timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_used_timestamp TIMESTAMP WITH TIME ZONE,
    configuration_parameters JSONB NOT NULL
        CONSTRAINT portal_configurations_parameters_object CHECK (jsonb_typeof(configuration_parameters) = 'object'),
    status TEXT NOT NULL
);

CREATE TABLE system_metrics (
    id BIGSERIAL PRIMARY KEY,
    timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP,
    metric_name TEXT NOT NULL,
    metric_value DOUBLE PRECISION NOT NULL,
    component TEXT NOT NULL,
    context JSONB NOT NULL DEFAULT '{}'::jsonb
        CONSTRAINT system_metrics_context_object CHECK (jsonb_typeof(context) = 'object')
);
