-- The tables of schema/postgres in SQLite: vectors as 1024 little-endian float32, UUIDs as text, timestamps as
-- ISO 8601 in UTC with microseconds (so that text sorts as time does), JSON and tags as JSON text.

CREATE TABLE geoid_states (
    id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
        CHECK (timestamp GLOB '????-??-??T??:??:??.??????Z'),
    metadata TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    entropy REAL NOT NULL,
    coherence_factor REAL NOT NULL,
    energy_level REAL NOT NULL,
    creation_context TEXT,
    tags TEXT CHECK (tags IS NULL OR (json_valid(tags) AND json_type(tags) = 'array')),
    state_vector BLOB NOT NULL CHECK (length(state_vector) = 4096 AND state_vector <> zeroblob(4096))
) STRICT;

CREATE INDEX idx_geoid_timestamp ON geoid_states (timestamp);
CREATE INDEX idx_geoid_entropy ON geoid_states (entropy);

CREATE TABLE cognitive_transitions (
    id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    source_id TEXT NOT NULL REFERENCES geoid_states (id),
    target_id TEXT NOT NULL REFERENCES geoid_states (id),
    transition_energy REAL NOT NULL,
    conservation_error REAL NOT NULL,
    transition_type TEXT NOT NULL,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
        CHECK (timestamp GLOB '????-??-??T??:??:??.??????Z'),
    metadata TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metadata) AND json_type(metadata) = 'object')
) STRICT;

CREATE INDEX idx_transitions_source ON cognitive_transitions (source_id);
CREATE INDEX idx_transitions_target ON cognitive_transitions (target_id);
CREATE INDEX idx_transitions_type ON cognitive_transitions (transition_type);
CREATE INDEX idx_transitions_timestamp ON cognitive_transitions (timestamp);
CREATE INDEX idx_transitions_error ON cognitive_transitions (abs(conservation_error));

CREATE TABLE semantic_embeddings (
    id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    text_content TEXT NOT NULL,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
        CHECK (timestamp GLOB '????-??-??T??:??:??.??????Z'),
    source TEXT,
    metadata TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    embedding BLOB NOT NULL CHECK (length(embedding) = 4096 AND embedding <> zeroblob(4096))
) STRICT;

CREATE INDEX idx_embedding_source ON semantic_embeddings (source);
CREATE INDEX idx_embedding_text ON semantic_embeddings (text_content);
CREATE INDEX idx_embedding_timestamp ON semantic_embeddings (timestamp);

CREATE TABLE portal_configurations (
    id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
    source_dimension INTEGER NOT NULL,
    target_dimension INTEGER NOT NULL,
    radius REAL NOT NULL,
    energy_requirement REAL NOT NULL CHECK (energy_requirement >= 0),
    stability_factor REAL NOT NULL,
    creation_timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
        CHECK (creation_timestamp GLOB '????-??-??T??:??:??.??????Z'),
    last_used_timestamp TEXT CHECK (last_used_timestamp GLOB '????-??-??T??:??:??.??????Z'),
    configuration_parameters TEXT NOT NULL
        CHECK (json_valid(configuration_parameters) AND json_type(configuration_parameters) = 'object'),
    status TEXT NOT NULL
) STRICT;

CREATE INDEX idx_portal_dimensions ON portal_configurations (source_dimension, target_dimension);
CREATE INDEX idx_portal_status ON portal_configurations (status);

CREATE TABLE system_metrics (
    -- AUTOINCREMENT gives no number twice, like PostgreSQL's sequence
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
        CHECK (timestamp GLOB '????-??-??T??:??:??.??????Z'),
    metric_name TEXT NOT NULL,
    metric_value REAL NOT NULL,
    component TEXT NOT NULL,
    context TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(context) AND json_type(context) = 'object')
) STRICT;

CREATE INDEX idx_metrics_timestamp ON system_metrics (timestamp);
CREATE INDEX idx_metrics_name ON system_metrics (metric_name);
CREATE INDEX idx_metrics_component ON system_metrics (component);
CREATE INDEX idx_metrics_name_timestamp ON system_metrics (metric_name, timestamp);
