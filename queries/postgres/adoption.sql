-- name: prepare()
-- To the end of the transaction, let a policy that would hide rows from this role be an error, and nothing be given up
-- half done because it takes long.
-- returns: str
-- not null: set_config
SELECT set_config(given.name, given.value, true)
FROM (VALUES ('row_security', 'off'), ('statement_timeout', '0')) AS given (name, value)
ORDER BY given.name;

-- name: standing(tables)
-- Those of a list of tables that there are. kind: as pg_class has it. owned: this role is their owner or a member of it.
-- first: new tables would be made in their schema. may_create: this role may make some there.
-- returns: Standing
-- not null: table, kind, owned, schema, first, may_create, role
SELECT
    listed.name AS "table",
    table_class.relkind::text AS kind,
    pg_has_role(table_class.relowner, 'USAGE') AS owned,
    quote_ident(pg_namespace.nspname) AS schema,
    pg_namespace.nspname IS NOT DISTINCT FROM current_schema() AS first,
    has_schema_privilege(pg_namespace.oid, 'CREATE') AS may_create,
    quote_ident(current_user) AS role
FROM unnest(:tables::text[]) WITH ORDINALITY AS listed (name, place)
JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
JOIN pg_namespace ON pg_namespace.oid = table_class.relnamespace
ORDER BY listed.place;

-- name: has_rows(table)$
-- Whether a table has any row, by its size.
-- returns: bool
-- not null: has_rows
SELECT pg_relation_size(to_regclass(:table)) > 0 AS has_rows;

-- name: traits(tables)
-- What decides whether a column can be taken over, besides its type. wordy: its values are text to the server, as those of
-- an enumeration or of a domain over text are.
-- returns: table str, name str, wordy bool, generated bool
-- not null: table, name, wordy, generated
SELECT
    listed.name AS "table",
    attribute.attname::text AS name,
    type.typcategory IN ('S', 'E') AS wordy,
    attribute.attgenerated <> '' AS generated
FROM unnest(:tables::text[]) AS listed (name)
JOIN pg_attribute AS attribute ON attribute.attrelid = to_regclass(listed.name)
JOIN pg_type AS type ON type.oid = attribute.atttypid
WHERE attribute.attnum > 0 AND NOT attribute.attisdropped
ORDER BY listed.name, attribute.attnum;

-- name: holding(tables, columns, types)
-- What keeps these columns from becoming of these types: views, rules, triggers, policies, publications and functions that
-- name them, foreign keys of which only one end would become a UUID, and tables that they are inherited from.
-- returns: table str, column str, holder str
-- not null: table, column, holder
WITH changing AS (
    SELECT listed."table", listed."column", listed.type, attribute.attrelid, attribute.attnum, attribute.attinhcount
    FROM unnest(:tables::text[], :columns::text[], :types::text[]) AS listed ("table", "column", type)
    JOIN pg_attribute AS attribute
        ON attribute.attrelid = to_regclass(listed."table")
        AND attribute.attname = listed."column"
),

found AS (
    SELECT
        changing."table",
        changing."column",
        pg_describe_object(dependence.classid, dependence.objid, dependence.objsubid) AS holder
    FROM changing
    JOIN pg_depend AS dependence
        ON dependence.refclassid = 'pg_class'::regclass
        AND dependence.refobjid = changing.attrelid
        AND dependence.refobjsubid = changing.attnum
    WHERE dependence.classid IN (
            'pg_rewrite'::regclass,
            'pg_trigger'::regclass,
            'pg_policy'::regclass,
            'pg_publication_rel'::regclass,
            'pg_proc'::regclass
        )

    UNION
    SELECT min(changing."table"), min(changing."column"), pg_describe_object('pg_constraint'::regclass, rule.oid, 0)
    FROM pg_constraint AS rule
    JOIN changing
        ON (changing.attrelid = rule.conrelid AND ARRAY[changing.attnum] = rule.conkey)
        OR (changing.attrelid = rule.confrelid AND ARRAY[changing.attnum] = rule.confkey)
    WHERE rule.contype = 'f' AND changing.type = 'uuid'
    GROUP BY rule.oid
    HAVING count(*) = 1

    UNION
    SELECT changing."table", changing."column", 'inheritance from ' || parent.inhparent::regclass::text
    FROM changing
    JOIN pg_inherits AS parent ON parent.inhrelid = changing.attrelid
    WHERE changing.attinhcount > 0
)

SELECT "table", "column", holder
FROM found
ORDER BY "table", "column", holder;

-- name: reaching(tables, children, columns)
-- What deletes or changes rows elsewhere, or knows more of a row, where one of these tables loses rows: foreign keys but
-- those of these columns of these children, triggers, rules, and tables that inherit from it. holds: a foreign key that
-- lets no row go that it refers to.
-- returns: parent str, what str, holds bool
-- not null: parent, what, holds
WITH losing AS (
    SELECT listed.name, table_class.oid, table_class.relkind
    FROM unnest(:tables::text[]) AS listed (name)
    JOIN pg_class AS table_class ON table_class.oid = to_regclass(listed.name)
),

found AS (
    SELECT
        losing.name AS parent,
        pg_describe_object('pg_constraint'::regclass, rule.oid, 0) AS what,
        rule.confdeltype IN ('a', 'r') AS holds
    FROM losing
    JOIN pg_constraint AS rule ON rule.confrelid = losing.oid
    WHERE rule.contype = 'f'
        AND NOT EXISTS (
            SELECT
            FROM unnest(:children::text[], :columns::text[]) AS known (child, name)
            JOIN pg_attribute AS attribute
                ON attribute.attrelid = to_regclass(known.child)
                AND attribute.attname = known.name
            WHERE rule.conrelid = attribute.attrelid AND rule.conkey = ARRAY[attribute.attnum]
        )

    UNION ALL
    SELECT losing.name, pg_describe_object('pg_trigger'::regclass, own.oid, 0), false
    FROM losing
    JOIN pg_trigger AS own ON own.tgrelid = losing.oid
    WHERE NOT own.tgisinternal
        AND own.tgenabled <> 'D'
        -- The bit of DELETE
        AND own.tgtype & 8 <> 0

    UNION ALL
    SELECT losing.name, pg_describe_object('pg_rewrite'::regclass, own.oid, 0), false
    FROM losing
    JOIN pg_rewrite AS own ON own.ev_class = losing.oid
    -- The number of DELETE
    WHERE own.ev_type = '4' AND own.ev_enabled <> 'D'

    UNION ALL
    SELECT losing.name, 'inheritance by table ' || child.inhrelid::regclass::text, false
    FROM losing
    JOIN pg_inherits AS child ON child.inhparent = losing.oid
    WHERE losing.relkind = 'r'
)

SELECT parent, what, holds
FROM found
ORDER BY parent, what;

-- name: rehearse()$
-- Have what is made from now on, to the end of the transaction, be temporary.
-- returns: str
-- not null: set_config
SELECT set_config('search_path', 'pg_temp, ' || current_setting('search_path'), true);

-- name: check_at_once()!
-- Let no foreign key wait for the end of the transaction: a table with checks to come can't be altered.
SET CONSTRAINTS ALL IMMEDIATE;

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
