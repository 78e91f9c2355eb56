-- name: put(names, settings, local, pid)
-- Set each of the server's settings *names* to the one of *settings* in its place, to the end of the transaction if local,
-- else of the session, if that is the process pid: behind a pooler it is another one, which others use too. Those that the
-- server does not know yet are left out: transaction_timeout is new in PostgreSQL 17.
-- returns: name str, before str, now str
-- not null: name, before, now
SELECT
    given.name,
    current_setting(given.name) AS before,
    set_config(given.name, given.setting, :local) AS now
FROM unnest(:names::text[], :settings::text[]) AS given (name, setting)
WHERE current_setting(given.name, true) IS NOT NULL
    AND (:local OR pg_backend_pid() = :pid)
ORDER BY given.name;

-- name: statement_timeout()$
-- How many seconds a statement may take; 0 for any number.
-- returns: float
-- not null: seconds
SELECT EXTRACT(epoch FROM current_setting('statement_timeout')::interval)::float8 AS seconds;
