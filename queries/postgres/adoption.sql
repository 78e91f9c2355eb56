-- name: see_all_rows()$
-- Let a policy that would hide rows from this role be an error, to the end of the transaction.
-- returns: str
-- not null: set_config
SELECT set_config('row_security', 'off', true);

-- name: standing(tables)
-- Those of a list of tables that there are. kind: as pg_class has it. owned: this role is their owner or a member of it.
-- returns: Standing
-- not null: table, kind, owned
SELECT
    listed.name AS "table",
    table_class.relkind::text AS kind,
    pg_has_role(table_class.relowner, 'USAGE') AS owned
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
ORDER BY listed.place;

-- name: has_rows(table)$
-- Whether a table has any row, by its size.
-- returns: bool
-- not null: has_rows
SELECT pg_relation_size(to_regclass(:table)) > 0 AS has_rows;

-- name: reaching(tables)
-- Foreign keys of other tables that would delete or change their rows where one of these tables loses rows.
-- returns: table str, parent str
-- not null: table, parent
SELECT DISTINCT
    rule.conrelid::regclass::text AS "table",
    parent.relname::text AS parent
FROM pg_constraint AS rule
JOIN pg_class AS parent ON parent.oid = rule.confrelid
WHERE rule.contype = 'f'
    AND rule.confdeltype IN ('c', 'n', 'd')
    AND rule.confrelid IN (SELECT to_regclass(listed.name) FROM unnest(:tables::text[]) AS listed (name))
    AND rule.conrelid NOT IN (
        SELECT to_regclass(listed.name) FROM unnest(:tables::text[]) AS listed (name) WHERE to_regclass(listed.name) IS NOT NULL
    )
ORDER BY 1, 2;

-- name: references_between(tables)
-- The foreign keys between these tables, as they would be made again.
-- returns: table str, name str, definition str
-- not null: table, name, definition
SELECT
    child.relname::text AS "table",
    rule.conname::text AS name,
    pg_get_constraintdef(rule.oid) AS definition
FROM pg_constraint AS rule
JOIN pg_class AS child ON child.oid = rule.conrelid
WHERE rule.contype = 'f'
    AND rule.confrelid IN (SELECT to_regclass(listed.name) FROM unnest(:tables::text[]) AS listed (name))
    AND rule.conrelid IN (SELECT to_regclass(listed.name) FROM unnest(:tables::text[]) AS listed (name))
ORDER BY child.relname, rule.conname;

-- name: sequence()$
-- The sequence that numbers the metrics, quoted.
-- returns: str | None
SELECT pg_get_serial_sequence('system_metrics', 'id');
