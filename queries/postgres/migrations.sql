-- name: lock()!
-- Let one migration run at a time. The lock goes with the transaction. The number is "kimera" in ASCII.
SELECT pg_advisory_xact_lock(118100551103073);

-- name: create_table()!
-- The record of what was applied.
CREATE TABLE IF NOT EXISTS kimera_migrations (
    name TEXT PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- name: exists()$
-- Whether there is such a record at all.
-- returns: bool
SELECT to_regclass('kimera_migrations') IS NOT NULL;

-- name: applied()
-- Names and checksums of the files that were applied, in order.
-- returns: name str, checksum str
SELECT name, checksum
FROM kimera_migrations
ORDER BY name;

-- name: record_applied(name, checksum)!
-- Note that a file was applied.
INSERT INTO kimera_migrations (name, checksum)
VALUES (:name, :checksum);
