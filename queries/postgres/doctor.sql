-- name: settings(names)
-- Settings of the server; those that this role may not see are left out.
-- returns: name str, setting str
-- not null: name, setting
SELECT name, setting
FROM pg_settings
WHERE name = ANY(:names)
ORDER BY name;

-- name: session()^
-- Who asks, whether it may do everything, and how many connections it and the database may have; -1 for any number.
-- returns: Session
-- not null: superuser, role, role_limit
SELECT
    role.rolname::text AS role,
    role.rolsuper AS superuser,
    role.rolconnlimit AS role_limit,
    database.datconnlimit AS database_limit
FROM pg_roles AS role
JOIN pg_database AS database ON database.datname = current_database()
WHERE role.rolname = current_user;

-- name: extensions()
-- The extensions in this database, and the versions that the server could update them to.
-- returns: Extension
-- not null: name, installed
SELECT name::text AS name, installed_version AS installed, default_version AS available
FROM pg_available_extensions
WHERE installed_version IS NOT NULL
ORDER BY name;

-- name: has_schema()$
-- Whether the tables are there, and seen by this role.
SELECT to_regclass('geoid_states') IS NOT NULL AS has_schema;

-- name: compiles()$
-- Whether the server can compile plans, and does so in this session.
-- returns: bool
-- not null: pg_jit_available
SELECT pg_jit_available();
