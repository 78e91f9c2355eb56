-- name: store(index_name, k, target, setting)!
-- Keep the setting that reaches a recall, in place of an earlier one.
INSERT INTO kimera_recall_settings (index_name, k, target, setting)
VALUES (:index_name, :k, :target, :setting)
ON CONFLICT (index_name, k, target) DO UPDATE
SET setting = EXCLUDED.setting, measured_at = clock_timestamp();
