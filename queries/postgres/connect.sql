-- name: backend_pid()$
-- The server's process that runs this. A pooler tells its clients a number of its own instead.
-- returns: int
SELECT pg_backend_pid();

-- name: hurry()^
-- Neither wait for locks nor for the disk, until the transaction ends.
-- returns: lock_timeout str, synchronous_commit str
-- not null: lock_timeout, synchronous_commit
SELECT
    set_config('lock_timeout', '50ms', true) AS lock_timeout,
    set_config('synchronous_commit', 'off', true) AS synchronous_commit;

-- name: shorter(names, settings)
-- Those of the timeouts in settings that are shorter than what the role, the database and the server allow, by their names.
-- returns: name str, setting str
-- not null: name, setting
SELECT
    given.name,
    given.setting
FROM unnest(:names::text[], :settings::text[]) AS given (name, setting)
WHERE given.setting::interval > interval '0'
    AND (
        current_setting(given.name)::interval = interval '0'
        OR given.setting::interval < current_setting(given.name)::interval
    )
ORDER BY given.name;

-- name: close_cursors()!
-- Close the cursors that outlive their transactions. This and what follows make a session as new. DISCARD ALL would too, but
-- it also drops the plans that are worth keeping.
CLOSE ALL;

-- name: reset_user()!
-- Take back SET SESSION AUTHORIZATION.
RESET SESSION AUTHORIZATION;

-- name: reset_role()!
-- Take back SET ROLE.
RESET ROLE;

-- name: reset_settings()!
-- Take back every other SET.
RESET ALL;

-- name: stop_listening()!
-- Take back every LISTEN.
UNLISTEN *;

-- name: unlock()!
-- Free the advisory locks that outlive their transactions.
SELECT pg_catalog.pg_advisory_unlock_all();

-- name: drop_temporary()!
-- Drop the temporary tables.
DISCARD TEMP;

-- name: forget_sequences()!
-- Give up the numbers that were taken from sequences in advance.
DISCARD SEQUENCES;

-- name: settle(name, setting)$
-- Give the session a setting.
-- returns: str
-- not null: setting
SELECT pg_catalog.set_config(:name, :setting, false) AS setting;

-- name: prepared()
-- The names of the session's prepared statements: the driver's, and those of a PREPARE.
-- returns: str
-- not null: name
SELECT name FROM pg_catalog.pg_prepared_statements;
