-- name: has_role()$
-- Whether the embedded server has its role.
-- returns: bool
SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'kimera');

-- name: create_role()!
-- The role that owns the embedded server's database and is no superuser.
CREATE ROLE kimera LOGIN;

-- name: has_database()$
-- Whether the embedded server has its database.
-- returns: bool
SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = 'kimera_swm');

-- name: create_database()!
-- The embedded server's database.
CREATE DATABASE kimera_swm OWNER kimera;

-- name: create_extension()!
-- pgvector, which only a superuser may add to a database.
CREATE EXTENSION IF NOT EXISTS vector;
