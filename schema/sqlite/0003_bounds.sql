-- The bounds of schema/postgres/0009_bounds.sql: what is indexed there has at most 2,000 bytes here too. ALTER TABLE adds no
-- CHECK in SQLite. Rows that have longer texts stay as they are until these are next written.

CREATE TRIGGER geoid_states_length_on_insert BEFORE INSERT ON geoid_states
WHEN EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid(NEW.tags) THEN NEW.tags END) WHERE length(CAST(value AS BLOB)) > 2000)
BEGIN
    SELECT RAISE(ABORT, 'geoid_states.tags: longer than 2000 bytes');
END;

CREATE TRIGGER geoid_states_length_on_update BEFORE UPDATE OF tags ON geoid_states
WHEN EXISTS (SELECT 1 FROM json_each(CASE WHEN json_valid(NEW.tags) THEN NEW.tags END) WHERE length(CAST(value AS BLOB)) > 2000)
BEGIN
    SELECT RAISE(ABORT, 'geoid_states.tags: longer than 2000 bytes');
END;

CREATE TRIGGER cognitive_transitions_length_on_insert BEFORE INSERT ON cognitive_transitions
WHEN length(CAST(NEW.transition_type AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'cognitive_transitions.transition_type: longer than 2000 bytes');
END;

CREATE TRIGGER cognitive_transitions_length_on_update BEFORE UPDATE OF transition_type ON cognitive_transitions
WHEN length(CAST(NEW.transition_type AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'cognitive_transitions.transition_type: longer than 2000 bytes');
END;

CREATE TRIGGER semantic_embeddings_length_on_insert BEFORE INSERT ON semantic_embeddings
WHEN length(CAST(NEW.source AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'semantic_embeddings.source: longer than 2000 bytes');
END;

CREATE TRIGGER semantic_embeddings_length_on_update BEFORE UPDATE OF source ON semantic_embeddings
WHEN length(CAST(NEW.source AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'semantic_embeddings.source: longer than 2000 bytes');
END;

CREATE TRIGGER portal_configurations_length_on_insert BEFORE INSERT ON portal_configurations
WHEN length(CAST(NEW.status AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'portal_configurations.status: longer than 2000 bytes');
END;

CREATE TRIGGER portal_configurations_length_on_update BEFORE UPDATE OF status ON portal_configurations
WHEN length(CAST(NEW.status AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'portal_configurations.status: longer than 2000 bytes');
END;

CREATE TRIGGER system_metrics_length_on_insert BEFORE INSERT ON system_metrics
WHEN length(CAST(NEW.metric_name AS BLOB)) > 2000 OR length(CAST(NEW.component AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'system_metrics.metric_name or component: longer than 2000 bytes');
END;

CREATE TRIGGER system_metrics_length_on_update BEFORE UPDATE OF metric_name, component ON system_metrics
WHEN length(CAST(NEW.metric_name AS BLOB)) > 2000 OR length(CAST(NEW.component AS BLOB)) > 2000
BEGIN
    SELECT RAISE(ABORT, 'system_metrics.metric_name or component: longer than 2000 bytes');
END;
