-- name: check_store()!
-- Write nothing, and fail as store does where this role may not write or the transaction only reads.
INSERT INTO kimera_recall_settings (index_name, k, target, setting, filenode)
SELECT '', 0, 0, 0, 0
WHERE false
ON CONFLICT (index_name, k, target) DO UPDATE
SET setting = EXCLUDED.setting, filenode = EXCLUDED.filenode, measured_at = clock_timestamp();

-- name: store(index_name, k, target, setting)!
-- Keep the setting that reaches a recall, in place of an earlier one.
INSERT INTO kimera_recall_settings (index_name, k, target, setting, filenode)
VALUES (:index_name, :k, :target, :setting, pg_relation_filenode(to_regclass(quote_ident(:index_name)))::bigint)
ON CONFLICT (index_name, k, target) DO UPDATE
SET setting = EXCLUDED.setting, filenode = EXCLUDED.filenode, measured_at = clock_timestamp();
