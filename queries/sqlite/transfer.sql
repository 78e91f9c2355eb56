-- name: tables()
-- The tables of the file.
SELECT name
FROM sqlite_schema
WHERE type = 'table'
    AND name NOT LIKE 'sqlite%'
ORDER BY name;
