-- name: role()^
-- The role of this connection, and whether it may make base backups.
-- returns: name str, may bool
-- not null: name, may
SELECT rolname::text AS name, rolsuper OR rolreplication AS may
FROM pg_roles
WHERE rolname = session_user;

-- name: tablespaces()
-- The tablespaces that lie outside the data folder.
-- returns: str
SELECT spcname::text AS name
FROM pg_tablespace
WHERE pg_tablespace_location(oid) <> ''
ORDER BY spcname COLLATE "C";

-- name: progress(application)^
-- How many bytes a base backup has sent, and of how many.
-- returns: sent int, total int | None
-- not null: sent
SELECT backup_streamed AS sent, backup_total AS total
FROM pg_stat_progress_basebackup
INNER JOIN pg_stat_activity USING (pid)
WHERE application_name = :application
ORDER BY pid
LIMIT 1;
