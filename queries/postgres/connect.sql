-- name: backend_pid()$
-- The server's process that runs this. A pooler tells its clients a number of its own instead.
-- returns: int
SELECT pg_backend_pid();
