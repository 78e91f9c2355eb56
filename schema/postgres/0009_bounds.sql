-- What an index takes of a text, in the tables too: 2,000 bytes, the bound of kimera_sql.checks. PostgreSQL refuses more than
-- 2,704 bytes that cannot be compressed, with an error that names no column, and takes longer texts that can be. Of a list
-- no CHECK counts the bytes of each item, but a cast to varchar(n) cuts them to n characters.
--
-- NOT VALID: rows that have longer texts stay as they are until they are next written, and the tables are not read here.
ALTER TABLE geoid_states
    ADD CONSTRAINT geoid_states_tags_length CHECK (tags = tags::varchar(2000)[]::text[]) NOT VALID;
ALTER TABLE cognitive_transitions
    ADD CONSTRAINT cognitive_transitions_type_length CHECK (octet_length(transition_type) <= 2000) NOT VALID;
ALTER TABLE semantic_embeddings
    ADD CONSTRAINT semantic_embeddings_source_length CHECK (octet_length(source) <= 2000) NOT VALID;
ALTER TABLE portal_configurations
    ADD CONSTRAINT portal_configurations_status_length CHECK (octet_length(status) <= 2000) NOT VALID;
ALTER TABLE system_metrics
    ADD CONSTRAINT system_metrics_name_length CHECK (octet_length(metric_name) <= 2000) NOT VALID,
    ADD CONSTRAINT system_metrics_component_length CHECK (octet_length(component) <= 2000) NOT VALID;

-- embeddings.lock_text. Whoever is to store a text writes to the row of its place, of which there are 65,536. A transaction
-- that goes by a snapshot from before that fails to serialize there, where it would otherwise not see the other's text and
-- store it a second time. An advisory lock alone would let it pass, and a unique index is out of the question, because
-- insert may store a text as often as it likes.
CREATE TABLE kimera_text_locks (
    place INTEGER PRIMARY KEY
);
