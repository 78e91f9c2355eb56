-- name: find(names)
-- Those types of a list of names that there are, in the order of the list: what psycopg's TypeInfo holds.
-- returns: name str, oid int, array_oid int, regtype str, delimiter str
SELECT
    type.typname AS name,
    type.oid,
    type.typarray AS array_oid,
    type.oid::regtype::text AS regtype,
    type.typdelim AS delimiter
FROM unnest(:names::text[]) WITH ORDINALITY AS wanted (name, position)
JOIN pg_type AS type ON type.oid = to_regtype(wanted.name)
ORDER BY wanted.position;

-- name: forget_prepared()!
-- Drop the session's prepared statements, and with them psycopg's record of them.
DEALLOCATE ALL;

-- name: vector()$
-- A result with pgvector's type: a connection that gets one of a type that was dropped and created again learns it anew.
-- returns: Vector | None
-- nullable: vector
SELECT NULL::vector(1024) AS vector;
