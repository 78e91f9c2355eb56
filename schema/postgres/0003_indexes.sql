-- The specification's indexes, under its names. Its two vector indexes are not here: ivfflat takes its centroids
-- from the rows it finds, and on an empty table loses most results. kimera_sql.indexes.build makes them.
CREATE INDEX idx_geoid_timestamp ON geoid_states (timestamp);
CREATE INDEX idx_geoid_entropy ON geoid_states (entropy);
CREATE INDEX idx_geoid_tags ON geoid_states USING GIN (tags);

CREATE INDEX idx_transitions_source ON cognitive_transitions (source_id);
CREATE INDEX idx_transitions_target ON cognitive_transitions (target_id);
CREATE INDEX idx_transitions_type ON cognitive_transitions (transition_type);
CREATE INDEX idx_transitions_timestamp ON cognitive_transitions (timestamp);

CREATE INDEX idx_embedding_source ON semantic_embeddings (source);

CREATE INDEX idx_portal_dimensions ON portal_configurations (source_dimension, target_dimension);
CREATE INDEX idx_portal_status ON portal_configurations (status);

CREATE INDEX idx_metrics_timestamp ON system_metrics (timestamp);
CREATE INDEX idx_metrics_name ON system_metrics (metric_name);
CREATE INDEX idx_metrics_component ON system_metrics (component);

-- JSON is asked for containment (@>) alone, which jsonb_path_ops answers from a smaller index.
CREATE INDEX idx_geoid_metadata ON geoid_states USING GIN (metadata jsonb_path_ops);
CREATE INDEX idx_transitions_metadata ON cognitive_transitions USING GIN (metadata jsonb_path_ops);
CREATE INDEX idx_embedding_metadata ON semantic_embeddings USING GIN (metadata jsonb_path_ops);
CREATE INDEX idx_portal_parameters ON portal_configurations USING GIN (configuration_parameters jsonb_path_ops);
CREATE INDEX idx_metrics_context ON system_metrics USING GIN (context jsonb_path_ops);

-- transitions.unbalanced
CREATE INDEX idx_transitions_error ON cognitive_transitions (abs(conservation_error));
-- embeddings.find_by_text: a hash, because a text can be longer than a b-tree's entry may be
CREATE INDEX idx_embedding_text ON semantic_embeddings USING HASH (text_content);
CREATE INDEX idx_embedding_timestamp ON semantic_embeddings (timestamp);
-- portals.route looks at the active ones alone
CREATE INDEX idx_portal_active ON portal_configurations (source_dimension, energy_requirement)
    WHERE status = 'active';
-- metrics.latest, series and prune
CREATE INDEX idx_metrics_name_timestamp ON system_metrics (metric_name, timestamp);
