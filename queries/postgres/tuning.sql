-- name: settings(names)
-- Settings of the server as this session has them, sizes in bytes.
-- returns: ServerSetting
-- not null: name, value, source, pending_restart
SELECT
    name,
    setting::double precision * CASE unit WHEN '8kB' THEN 8192 WHEN 'kB' THEN 1024 WHEN 'MB' THEN 1048576 ELSE 1 END
        AS value,
    source,
    pending_restart
FROM pg_settings
WHERE name = ANY(:names)
ORDER BY name;
