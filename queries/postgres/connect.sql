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

-- name: home()$
-- The search path that leads to our tables and to the extensions that our statements need, and nowhere else; no row where
-- the session's own path leads to no tables of ours. Temporary tables would come first if they were not named last.
-- returns: str
-- not null: path
SELECT concat_ws(
    ', ',
    quote_ident(home.nspname),
    (
        SELECT string_agg(DISTINCT quote_ident(pg_namespace.nspname), ', ')
        FROM pg_extension
        JOIN pg_namespace ON pg_namespace.oid = pg_extension.extnamespace
        WHERE pg_extension.extname IN ('vector', 'pg_stat_statements')
            AND pg_namespace.oid <> home.oid
    ),
    'pg_temp'
) AS path
FROM unnest(current_schemas(false)) WITH ORDINALITY AS listed (name, position)
JOIN pg_namespace AS home ON home.nspname = listed.name
JOIN pg_class AS record ON record.relnamespace = home.oid
WHERE record.relname = 'kimera_migrations'
    AND record.relkind IN ('r', 'p')
ORDER BY listed.position
LIMIT 1;

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
