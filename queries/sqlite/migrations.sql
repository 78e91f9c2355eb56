-- name: lock()!
-- Nothing to do: BEGIN IMMEDIATE, with which sql.transaction begins, lets one writer in at a time.
SELECT 1;

-- name: create_table()!
-- The record of what was applied.
CREATE TABLE IF NOT EXISTS kimera_migrations (
    name TEXT PRIMARY KEY NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000Z', 'now'))
) STRICT;

-- name: exists()$
-- Whether there is such a record at all.
SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'kimera_migrations');

-- name: applied()
-- Names and checksums of the files that were applied, in order.
SELECT name, checksum
FROM kimera_migrations
ORDER BY name;

-- name: record_applied(name, checksum)!
-- Note that a file was applied.
INSERT INTO kimera_migrations (name, checksum)
VALUES (:name, :checksum);

-- name: present(tables)
-- Those of a list of tables that there are.
SELECT listed.value AS name
FROM json_each(:tables) AS listed
WHERE EXISTS (SELECT 1 FROM sqlite_schema AS made WHERE made.type = 'table' AND made.name = listed.value)
ORDER BY listed.key;
