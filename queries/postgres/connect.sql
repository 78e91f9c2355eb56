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
