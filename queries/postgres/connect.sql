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

-- What follows makes a session as new. DISCARD ALL would too, but it also drops the plans that are worth keeping.

-- name: close_cursors()!
-- Close the cursors that outlive their transactions.
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

-- name: settle(names, settings)^
-- Give the session these settings, and count its prepared statements: those of a PREPARE, and those of the driver's.
-- returns: settled int, by_name int, by_driver int
-- not null: settled, by_name, by_driver
SELECT
    (
        SELECT count(pg_catalog.set_config(given.name, given.setting, false))
        FROM unnest(:names::text[], :settings::text[]) AS given (name, setting)
    ) AS settled,
    count(*) FILTER (WHERE from_sql) AS by_name,
    count(*) FILTER (WHERE NOT from_sql) AS by_driver
FROM pg_catalog.pg_prepared_statements;
