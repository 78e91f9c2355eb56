-- name: create_schema()!
-- A schema to make the tables in, which is rolled back with all that is in it.
CREATE SCHEMA kimera_verify;

-- name: search_path()$
-- Where tables are looked for.
-- returns: str
SELECT current_setting('search_path') AS search_path;

-- name: settings(names, values)
-- Change settings until the transaction ends.
-- returns: str
-- not null: now
SELECT set_config(name, value, true) AS now
FROM unnest(:names::text[], :values::text[]) AS setting (name, value)
ORDER BY name;

-- name: functions()
-- The names of all functions.
-- returns: oid int, name str
SELECT oid, proname AS name
FROM pg_proc
ORDER BY oid;

-- name: operators()
-- The names of all operators.
-- returns: oid int, name str
SELECT oid, oprname AS name
FROM pg_operator
ORDER BY oid;

-- name: types()
-- The types: their names, the names of their items, and how to write them in SQL.
-- returns: oid int, name str, item str | None, written str
-- not null: written
SELECT type.oid, type.typname AS name, item.typname AS item, format_type(type.oid, NULL) AS written
FROM pg_type AS type
LEFT JOIN pg_type AS item ON item.oid = type.typelem AND type.typcategory = 'A'
ORDER BY type.oid;

-- name: type_oids(names)
-- The types of these names, NULL where there is none.
-- returns: int | None
SELECT to_regtype(name)::oid AS oid
FROM unnest(:names::text[]) WITH ORDINALITY AS written (name, position)
ORDER BY position;

-- name: columns(tables)
-- The columns of tables: whether they are NOT NULL, and the modifiers of their types.
-- returns: table int, number int, not_null bool, modifier int
SELECT attrelid AS table, attnum AS number, attnotnull AS not_null, atttypmod AS modifier
FROM pg_attribute
WHERE attrelid = ANY(:tables::oid[])
    AND attnum > 0
ORDER BY attrelid, attnum;

-- name: body()$
-- The parse tree of the function that was made last.
-- returns: str | None
SELECT prosqlbody::text AS body
FROM pg_proc
WHERE pronamespace = pg_my_temp_schema()
    AND proname = 'kimera_verify';

-- name: server_version()$
-- The server's version, as 150005.
-- returns: int
SELECT current_setting('server_version_num')::integer AS version;

-- name: extensions()
-- The extensions that the database has.
-- returns: name str, version str
SELECT extname AS name, extversion AS version
FROM pg_extension
ORDER BY extname;
